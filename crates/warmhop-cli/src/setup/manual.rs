//! The manual pages: what clap knows of each command, and what it does not know.

use std::fmt::Write;
use std::path::Path;
use std::{fs, io};

/// What the statuses mean, for all commands.
const STATUSES: [(&str, &str); 3] = [
    ("0", "It was done."),
    ("1", "It failed, or the peer refused it. Standard error says why."),
    ("2", "The command line or the configuration is wrong. Nothing was done."),
];

/// What commands that ask a peer read from the environment.
const ASKING: [(&str, &str); 3] = [
    ("WARMHOP_ADMIN", "The URL of the admin listener to ask, in place of --admin."),
    ("WARMHOP_ADMIN_TOKEN", "The token that it wants, in place of --token. Apps never get it."),
    (
        "WARMHOP_ADMIN_CA_FILE",
        "The authorities that its certificate may come from, in place of --ca-file.",
    ),
];

/// What a peer reads from the environment.
const RUNNING: [(&str, &str); 3] = [
    ("NAME", "Wherever the configuration has ${NAME}."),
    ("RUST_LOG", "What is logged, in place of [log] level."),
    (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "The collector that gets traces. The other variables of OpenTelemetry's exporter apply as well.",
    ),
];

/// What a running peer does with signals.
const SIGNALS: [(&str, &str); 3] = [
    ("SIGTERM, SIGINT", "The peer drains and ends. A second one ends it at once."),
    ("SIGHUP", "It reads its configuration again, as warmhop reload has it do."),
    ("SIGUSR1", "It opens the file of its access log again."),
];

const FILES: [(&str, &str); 1] =
    [("/etc/warmhop/warmhop.toml", "The configuration that the systemd unit names.")];

/// Writes the pages of `command` and of all its subcommands into `dir`.
///
/// # Errors
/// A file cannot be written.
pub fn write(command: clap::Command, dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let name = command.get_name().to_owned();
    clap_mangen::generate_to(command, dir)?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let Some(page) = path.file_stem().and_then(|it| it.to_str()).map(str::to_owned) else {
            continue;
        };
        let is_own = page == name || page.starts_with(&format!("{name}-"));
        if is_own && path.extension().is_some_and(|it| it == "1") {
            let mut text = fs::read_to_string(&path)?;
            add_sections(&mut text, &page, &name);
            fs::write(&path, text)?;
        }
    }
    Ok(())
}

fn add_sections(text: &mut String, page: &str, name: &str) {
    let (is_main, runs) = (page == name, page == format!("{name}-run"));
    let asks = text.contains("\\-\\-admin");
    section(text, "EXIT STATUS", &STATUSES);
    let asking: &[_] = if asks || is_main { &ASKING } else { &[] };
    let running: &[_] = if runs || is_main { &RUNNING } else { &[] };
    section(text, "ENVIRONMENT", &[asking, running].concat());
    if runs || is_main {
        section(text, "SIGNALS", &SIGNALS);
        section(text, "FILES", &FILES);
    }
    let others = if is_main { ["run", "check", "status"] } else { ["", "check", "status"] };
    let others = others
        .iter()
        .map(|it| if it.is_empty() { name.to_owned() } else { format!("{name}-{it}") });
    let others: Vec<_> =
        others.filter(|it| it != page).map(|it| format!("\\fB{}\\fR(1)", escaped(&it))).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(text, ".SH \"SEE ALSO\"\n{}", others.join(", "));
}

fn section(text: &mut String, title: &str, entries: &[(&str, &str)]) {
    if entries.is_empty() {
        return;
    }
    let _ = writeln!(text, ".SH \"{title}\"");
    for (term, meaning) in entries {
        let _ = writeln!(text, ".TP\n\\fB{}\\fR\n{}", escaped(term), escaped(meaning));
    }
}

/// `text` as roff shows it: a bare hyphen may become a typographic one, which cannot be copied.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

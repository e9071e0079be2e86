//! The peer's log for its operator: lines on standard error.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

use crate::host::journal::Journal;
use crate::host::stderr::Stderr;

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people; coloured on a terminal.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// The filter if neither `RUST_LOG` nor the configuration has one: the events of this peer and its
/// apps' output, and from the libraries below only what needs attention.
const DEFAULT_FILTER: &str = "warn,warmhop=info,warmhop_cli=info,warmhop_core=info";

/// Libraries that warn of what a client or a stranger did, each time: the peer counts that, and logs it
/// at most once a second. A filter that names them takes precedence.
const QUIET: &str = "h2=error,quinn_proto=error";

/// The targets of this program itself, each of which may be a filter by itself.
const OWN_TARGETS: [&str; 3] = ["warmhop", "warmhop_cli", "warmhop_core"];

/// The log's filter, which may change while the peer runs.
#[derive(Debug, Clone, Default)]
pub struct Level(Option<reload::Handle<EnvFilter, Registry>>);

impl Level {
    /// Sets the filter to `level`, or to the default if there is none. If `RUST_LOG` is set,
    /// nothing changes, and it returns false.
    #[must_use]
    pub fn set(&self, level: Option<&str>) -> bool {
        let filter = configured(level);
        self.0.as_ref().is_some_and(|handle| handle.reload(filter).is_ok())
    }
}

/// The filter that the configuration means by `level`.
fn configured(level: Option<&str>) -> EnvFilter {
    EnvFilter::new(format!("{QUIET},{}", level.unwrap_or(DEFAULT_FILTER)))
}

/// Checks that `text` is a filter in the form of `RUST_LOG`.
///
/// # Errors
/// What is wrong with it.
pub fn check_level(text: &str) -> Result<(), String> {
    let is_empty = text.trim().is_empty();
    let wrong = || "expected a level such as \"info\", or several: \"warn,warmhop=debug\"".into();
    if is_empty {
        return Err(wrong());
    }
    filter(text).map(drop).map_err(|why| format!("{}; {why}", wrong()))
}

/// The filter that `text` means.
///
/// # Errors
/// What is wrong with it. A single word that is no level would count as the name of a target, and
/// nothing but that target would be logged: a misspelt level would silence the log.
fn filter(text: &str) -> Result<EnvFilter, String> {
    let is_fine = |word: &str| {
        word.contains(['=', '['])
            || word.parse::<LevelFilter>().is_ok()
            || OWN_TARGETS.contains(&word.split("::").next().unwrap_or_default())
    };
    // Values of a span's fields may have commas between them.
    let words = text.split(',').map(str::trim).filter(|_| !text.contains('{'));
    if let Some(stray) = words.filter(|word| !word.is_empty()).find(|word| !is_fine(word)) {
        return Err(format!(
            "{stray} is not one of off, error, warn, info, debug and trace; for a target, write {stray}=trace"
        ));
    }
    EnvFilter::try_new(text).map_err(|error| error.to_string())
}

/// Sends the program's events to standard error from now on, and keeps the newest. `RUST_LOG` is
/// the filter, or `level` if it is not set.
///
/// # Errors
/// What is wrong with `RUST_LOG`.
pub fn start(
    format: Format,
    level: Option<&str>,
    stderr: Stderr,
) -> Result<(Journal, Level), String> {
    let set = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let filter = match &set {
        Some(text) => filter(text).map_err(|error| {
            format!("RUST_LOG={text:?} is not a log filter ({error}); try RUST_LOG=info")
        })?,
        None => configured(level),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let journal = Journal::default();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(stderr)
        // A full disk or a collector that is gone costs lines. A report of that would have to be
        // written to the same place, and a failure there panics in the task that logs.
        .log_internal_errors(false);
    let both = tracing_subscriber::registry().with(filter).with(journal.clone());
    match format {
        Format::Text => both.with(lines.with_ansi(is_coloured(&std::io::stderr()))).init(),
        Format::Json => both.with(lines.json().flatten_event(true)).init(),
    }
    Ok((journal, Level(Some(handle).filter(|_| set.is_none()))))
}

/// Whether `stream` is to be coloured: a terminal that can, unless the user objects
/// (<https://no-color.org>).
#[must_use]
pub fn is_coloured(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && !is_dumb && !set("NO_COLOR")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_taken_in_the_form_of_rust_log_and_no_other() {
        for level in [
            "info",
            "WARN",
            "warn,warmhop=debug",
            "off",
            "3",
            "warmhop::links",
            "[request{id}]=info",
        ] {
            assert!(check_level(level).is_ok(), "{level}");
        }
        for level in ["", " ", "warmhop=loud", "warning", "inof", "warn,hyper"] {
            assert!(check_level(level).unwrap_err().contains("expected a level"), "{level}");
        }
        assert!(
            filter("warning").unwrap_err().starts_with("warning is not one of off, error, warn,")
        );
        assert!(!Level::default().set(Some("debug")), "RUST_LOG says it");
    }
}

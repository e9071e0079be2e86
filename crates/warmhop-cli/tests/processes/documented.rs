//! The commands of README.md and of the documentation, as they are printed there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cli::{Peer, app_table, run, text};
use crate::role::{scratch, wait_until};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// README.md, CONTRIBUTING.md and every page below docs.
pub(crate) fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    let docs = std::fs::read_dir(root().join("docs")).unwrap();
    pages.extend(
        docs.map(|page| page.unwrap().path())
            .filter(|page| page.extension().is_some_and(|extension| extension == "md")),
    );
    pages
}

/// The blocks of a page in this language.
pub(crate) fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in page.lines() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(of)) => open = Some((of.trim() == language, String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take().filter(|it| it.0).map(|it| it.1)),
            (Some((true, text)), None) => text.extend([line, "\n"]),
            _ => {}
        }
    }
    blocks
}

/// The calls of warmhop in a block, without comments.
fn calls(block: &str) -> Vec<String> {
    let lines = block.replace("\\\n", " ");
    let call = |line: &str| {
        let line = line.split(" #").next().unwrap_or_default().trim();
        let at = line.find("warmhop ").filter(|at| {
            // Variables of the environment may come before it.
            line[..*at].split_whitespace().all(|word| word.contains('='))
        })?;
        Some(line[at..].to_owned())
    };
    lines.lines().filter_map(call).collect()
}

fn shell(dir: &Path, script: &str) -> (i32, String) {
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir)
        .env("WARMHOP_BINARY", env!("CARGO_BIN_EXE_warmhop"))
        .env_remove("WARMHOP_ADMIN")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&printed).into_owned())
}

#[test]
fn every_printed_command_is_one_that_there_is_with_flags_that_there_are() {
    let dir = scratch("printed");
    let mut found = 0;
    for page in pages() {
        let content = std::fs::read_to_string(&page).unwrap();
        for call in blocks(&content, "sh").iter().flat_map(|block| calls(block)) {
            // The words after -- are another program's; with --help the rest is parsed up to there.
            let own = call.split(" -- ").next().unwrap_or_default();
            let own = own.split(['|', '>', ';']).next().unwrap_or_default();
            let script = format!("warmhop() {{ \"$WARMHOP_BINARY\" \"$@\" --help; }}; {own}");
            let (code, printed) = shell(&dir, &script);
            assert_eq!(code, 0, "{}: {call}\n{printed}", page.display());
            assert!(printed.contains("Usage: warmhop"), "{}: {call}\n{printed}", page.display());
            found += 1;
        }
    }
    assert!(found > 10, "only {found} commands were found");
}

#[test]
fn there_is_a_manual_page_for_each_command_and_a_schema_for_editors() {
    let dir = scratch("manual");
    let (code, _, error) = run(&["man", text(&dir)]);
    assert_eq!(code, 0, "{error}");
    for page in ["warmhop.1", "warmhop-run.1", "warmhop-drain.1", "warmhop-cert-peer.1"] {
        let content = std::fs::read_to_string(dir.join(page)).expect(page);
        assert!(content.contains(".TH "), "{page}: {content}");
        assert!(content.contains(".SH \"EXIT STATUS\"\n"), "{page}: {content}");
    }
    let page = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let run_page = page("warmhop-run.1");
    for part in ["SIGHUP", "RUST_LOG", "/etc/warmhop/warmhop.toml", ".SH \"SEE ALSO\""] {
        assert!(run_page.contains(part), "no {part} in {run_page}");
    }
    assert!(page("warmhop-status.1").contains("\\fBWARMHOP_ADMIN_TOKEN\\fR"));
    assert!(!page("warmhop-init.1").contains("WARMHOP_ADMIN_TOKEN"), "it asks no peer");
    let (code, schema, error) = run(&["check", "--schema"]);
    assert_eq!(code, 0, "{error}");
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    assert_eq!(schema["properties"]["peer"]["required"][0], "name");
}

#[test]
fn every_configuration_in_the_documentation_is_toml() {
    for page in pages() {
        let content = std::fs::read_to_string(&page).unwrap();
        for block in blocks(&content, "toml") {
            if let Err(error) = toml::from_str::<toml::Table>(&block) {
                panic!("{}: {error}\n{block}", page.display());
            }
        }
    }
}

#[test]
fn the_first_peer_of_the_readme_runs_as_it_is_printed() {
    let dir = scratch("readme");
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let all: Vec<String> = blocks(&readme, "sh").iter().flat_map(|block| calls(block)).collect();
    let run = |call: &str| {
        let script = format!("warmhop() {{ \"$WARMHOP_BINARY\" \"$@\"; }}; {call}");
        let (code, printed) = shell(&dir, &script);
        assert_eq!(code, 0, "{call}\n{printed}");
        printed
    };
    run("warmhop init mesh");
    assert!(readme.contains("`warmhop init mesh`"));
    for folder in ["ca", "certs"] {
        // Of an earlier run of this test; keys are not overwritten.
        let _ = std::fs::remove_dir_all(dir.join(folder));
    }
    for call in all.iter().filter(|call| call.starts_with("warmhop cert ")) {
        run(call);
    }
    let written =
        blocks(&readme, "toml").into_iter().find(|block| block.contains("[mesh]")).unwrap();
    std::fs::write(dir.join("warmhop.toml"), &written).unwrap();
    let check = all.iter().find(|call| call.starts_with("warmhop check ")).unwrap();
    assert!(run(check).contains("identity = "));

    // As it is but for the addresses and the program, which this machine need not have.
    let mut table: toml::Table = toml::from_str(&written).unwrap();
    let app: toml::Table = toml::from_str(&app_table("")).unwrap();
    let app = &app["app"].as_array().unwrap()[0];
    let shop = table["app"].as_array_mut().unwrap()[0].as_table_mut().unwrap();
    for key in ["run", "env"] {
        shop.insert(key.into(), app[key].clone());
    }
    shop.insert("dir".into(), ".".into());
    shop.insert("ready".into(), toml::Table::new().into());
    let anywhere = toml::Value::from("127.0.0.1:0");
    table["http"].as_table_mut().unwrap().insert("listen".into(), vec![anywhere.clone()].into());
    let mesh = table["mesh"].as_table_mut().unwrap();
    mesh.insert("listen".into(), anywhere.clone());
    mesh.remove("advertise");
    mesh.insert("seeds".into(), toml::Value::Array(Vec::new()));
    let admin = toml::Table::from_iter([("listen".to_owned(), anywhere)]);
    table.insert("admin".into(), admin.into());
    let file = dir.join("running.toml");
    std::fs::write(&file, toml::to_string(&table).unwrap()).unwrap();
    let peer = Peer::start(&file);
    wait_until("the copy that is kept is ready", || peer.run(&["status"]).1.contains("ready"));
    for (args, expected) in
        [(&["status"][..], "shop"), (&["logs", "shop"], "ready"), (&["lb", "haproxy"], "backend")]
    {
        let (code, printed, error) = peer.run(args);
        assert_eq!(code, 0, "{args:?}: {error}");
        assert!(printed.contains(expected), "{args:?}: {printed}");
    }
    assert!(text(&file).ends_with("running.toml"));
}

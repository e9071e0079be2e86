//! The blocks of commands in the documentation, run from their first line to the last as they are
//! printed. Where a block calls programs that a machine need not have, such as kubectl, scripts stand
//! in for them that check what they are given.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::cli::{Peer, app_table, certified, config, text, write};
use crate::documented::{blocks, pages, root};
use crate::role::{scratch, wait_until};

/// Each block: its page, how it begins, and the test that runs it, in this file or in another of the
/// repository; or why none does.
const BLOCKS: [(&str, &str, &str); 16] = [
    ("README.md", "cargo install --path crates/warmhop-cli\nwarmhop dev ", "first_minute.rs"),
    ("README.md", "testbed/demo ", "these are programs that test: they run by themselves"),
    ("README.md", "testbed/chaos ", "these are programs that test: they run by themselves"),
    ("README.md", "warmhop cert ca ", "documented.rs"),
    ("README.md", "warmhop check ", "documented.rs"),
    ("CONTRIBUTING.md", "testbed/demo ", "these are programs that test: they run by themselves"),
    ("CONTRIBUTING.md", "cargo test -p warmhop-core ", "it is one of the tests"),
    ("docs/apps.md", "for peer in peer-1 ", "printed.rs"),
    ("docs/deploy.md", "export WARMHOP_ADMIN=https://", "https.rs"),
    ("docs/deploy.md", "install -m 755 target/release/warmhop ", "printed.rs"),
    ("docs/deploy.md", "warmhop init --peers 1 ", "printed.rs"),
    ("docs/deploy.md", "docker build ", "printed.rs"),
    ("docs/deploy.md", "kubectl create secret ", "printed.rs"),
    ("docs/deploy.md", "warmhop cert ca ", "printed.rs"),
    ("docs/load-balancers.md", "warmhop lb haproxy > haproxy.cfg", "printed.rs"),
    ("docs/load-balancers.md", "export CA=", "printed.rs"),
];
/// Those that go on until they are ended.
const ENDLESS: [(&str, &str, &str); 1] =
    [("docs/observability.md", "OTEL_EXPORTER_OTLP_ENDPOINT=", "printed.rs")];

/// What stands in for the programs of others.
const STAND_INS: [(&str, &str); 11] = [
    ("ssh", "shift; exec \"$@\""),
    ("scp", "test -f \"$1\" && test \"${2#peer-[123]:/etc/warmhop/}\" = ''"),
    ("systemctl", "exit 0"),
    ("systemd-sysusers", "test -f \"$ROOT/etc/sysusers.d/warmhop.conf\""),
    (
        "install",
        "i=$#; for word; do i=$((i - 1)); shift; \
         test $i -gt 0 || word=$ROOT$word; set -- \"$@\" \"$word\"; done; \
         exec /usr/bin/install \"$@\"",
    ),
    ("cp", "test \"$1\" = -r && exec /bin/cp -r \"$2\" \"$ROOT$3\""),
    ("chgrp", "test \"$2\" = warmhop && test -f \"$ROOT$3/warmhop.toml\""),
    ("chmod", "test \"$1\" = -R && exec /bin/chmod -R \"$2\" \"$ROOT$3\""),
    ("openssl", "test \"$1\" = rand && printf '%064d\\n' 0"),
    ("docker", "test \"$1\" = build && test -f \"$3\" && test \"$4\" = --tag"),
    (
        "kubectl",
        "echo \"$*\" >> \"$ROOT/kubectl\"; for word; do case $word in \
         --from-file=*) test -s \"${word#--from-file=*=}\" || exit 1 ;; \
         deploy/*) test -f \"$word/kustomization.yaml\" || exit 1 ;; esac; done",
    ),
];

fn block(page: &str, begins: &str) -> String {
    let content = std::fs::read_to_string(root().join(page)).unwrap();
    let found = blocks(&content, "sh").into_iter().find(|it| it.trim_start().starts_with(begins));
    found.unwrap_or_else(|| panic!("{page} has no block that begins with {begins}"))
}

/// A folder with the program and all that stands in for others, to be put into `PATH`.
fn programs(dir: &Path) -> PathBuf {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let _ = std::fs::remove_file(bin.join("warmhop"));
    symlink(env!("CARGO_BIN_EXE_warmhop"), bin.join("warmhop")).unwrap();
    for (name, script) in STAND_INS {
        let file = bin.join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    }
    bin
}

/// A shell in `dir` that runs `script`, with the program and the stand-ins before all others.
fn shell(dir: &Path, script: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command
        .args(["-ec", script])
        .current_dir(dir)
        .env("PATH", format!("{}:{path}", text(&programs(dir))))
        .env("ROOT", dir)
        .env_remove("WARMHOP_ADMIN")
        .env_remove("WARMHOP_ADMIN_TOKEN")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// Runs a block whose commands ask this peer, if there is one; returns what it printed.
fn run(dir: &Path, block: &str, peer: Option<&Peer>) -> String {
    let mut command = shell(dir, block);
    if let Some(peer) = peer {
        command.env("WARMHOP_ADMIN", &peer.admin);
    }
    let output = command.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{block}\n{stdout}\n{error}");
    stdout
}

/// A peer whose app is ready.
fn serving(test: &str) -> (PathBuf, Peer) {
    let dir = certified(test, "peer-1");
    let peer =
        Peer::start(&write(&dir, &config(&app_table("start = 'at-boot'\nstop_grace = '100ms'\n"))));
    wait_until("the app is ready", || peer.run(&["status"]).1.contains("ready"));
    (dir, peer)
}

#[test]
fn no_block_of_commands_goes_unnoticed() {
    let mut known: Vec<_> = BLOCKS.iter().chain(&ENDLESS).collect();
    for page in pages() {
        let content = std::fs::read_to_string(&page).unwrap();
        for block in blocks(&content, "sh") {
            let at = known.iter().position(|(name, begins, _)| {
                page.ends_with(name) && block.trim_start().starts_with(begins)
            });
            let at = at.unwrap_or_else(|| {
                panic!("{} has a block that no test is named for:\n{block}", page.display())
            });
            known.remove(at);
        }
    }
    assert!(known.is_empty(), "there are no such blocks any more: {known:?}");
}

#[test]
fn a_new_version_is_rolled_out_as_it_is_printed() {
    let (dir, peer) = serving("roll-out");
    run(&dir, &block("docs/apps.md", "for peer in peer-1 "), Some(&peer));
    let (_, status, _) = peer.run(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    // Once at boot, once for each of the three, once for the mesh.
    assert_eq!(status["apps"][0]["starts"], 5, "{status:#}");
}

#[test]
fn balancers_are_configured_as_it_is_printed() {
    let (dir, peer) = serving("balancers");
    let begins = "warmhop lb haproxy > haproxy.cfg";
    let nginx = run(&dir, &block("docs/load-balancers.md", begins), Some(&peer));
    assert!(nginx.contains("127.0.0.1:8080"), "{nginx}");
    let haproxy = std::fs::read_to_string(dir.join("haproxy.cfg")).unwrap();
    assert!(haproxy.contains("peer-1"), "{haproxy}");

    let recipes = run(&dir, &block("docs/load-balancers.md", "export CA="), Some(&peer));
    for part in [
        "ssl verify required ca-file /etc/ssl/doors-ca.pem verifyhost shop.example",
        "proxy_ssl_name shop.example;",
        "SSLProxyCACertificateFile /etc/ssl/doors-ca.pem",
        "matcher: { exact: shop.example }",
    ] {
        assert!(recipes.contains(part), "{part}: {recipes}");
    }
}

#[test]
fn a_peer_is_deployed_as_it_is_printed() {
    let dir = scratch("deployed");
    for folder in ["target/release", "usr/local/bin"] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_warmhop"));
    for (to, link) in [(binary, "target/release/warmhop"), (&root().join("deploy"), "deploy")] {
        let _ = std::fs::remove_file(dir.join(link));
        symlink(to, dir.join(link)).unwrap();
    }
    let page = "docs/deploy.md";
    run(&dir, &block(page, "install -m 755 target/release/warmhop "), None);
    let installed = dir.join("usr/local/bin/warmhop");
    assert_eq!(installed.metadata().unwrap().permissions().mode() & 0o777, 0o755);
    let unit = std::fs::read_to_string(dir.join("etc/systemd/system/warmhop.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/local/bin/warmhop run "), "{unit}");
    // `systemctl reload` needs a command, and the access log a folder that the peer may write.
    assert!(unit.contains("\nExecReload=/bin/kill -HUP $MAINPID\n"), "{unit}");
    let log = std::fs::read_to_string(root().join("docs/observability.md")).unwrap();
    assert!(log.contains("access = \"/var/log/warmhop/access.log\""), "it is elsewhere");
    assert!(unit.contains("\nProtectSystem=strict\n"), "{unit}");
    assert!(unit.contains("\nLogsDirectory=warmhop\n"), "{unit}");

    for folder in ["mesh", "etc/warmhop"] {
        // Of an earlier run of this test; nothing is overwritten.
        let _ = std::fs::remove_dir_all(dir.join(folder));
    }
    let folder = dir.join("etc/warmhop");
    std::fs::create_dir_all(&folder).unwrap();
    run(&dir, &block(page, "warmhop init --peers 1 "), None);
    let mode = |file: &str| folder.join(file).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("warmhop.toml"), mode("certs/key.pem"), mode("certs")), (0o640, 0o640, 0o750));

    run(&dir, &block(page, "docker build "), None);

    for folder in ["ca", "certs"] {
        // Of an earlier run of this test; keys are not overwritten.
        let _ = std::fs::remove_dir_all(dir.join(folder));
    }
    let _ = std::fs::remove_file(dir.join("kubectl"));
    // In one shell the first would need the file that the sentence before it has had made.
    run(&dir, "openssl rand -base64 32 > cookie.key", None);
    run(&dir, &block(page, "kubectl create secret "), None);
    run(&dir, &block(page, "warmhop cert ca "), None);
    let asked = std::fs::read_to_string(dir.join("kubectl")).unwrap();
    assert!(asked.contains("apply --kustomize deploy/kubernetes"), "{asked}");
    for n in 0..3 {
        let made =
            format!("secret generic warmhop-{n}-identity --from-file=ca.crt=certs/warmhop-{n}");
        assert!(asked.contains(&made), "{asked}");
    }
}

#[test]
fn a_peer_sends_its_spans_as_it_is_printed() {
    let dir = certified("spans", "peer-1");
    write(&dir, &config(""));
    let printed = block("docs/observability.md", ENDLESS[0].1);
    // Its log is read as JSON; and the shell becomes the peer, so that this is what is ended.
    let script = format!("exec env {} --log json", printed.trim());
    let mut peer = Peer::from_command(&mut shell(&dir, &script));
    let line = peer.ever_logged("spans are sent to a collector");
    assert!(line.contains("http://127.0.0.1:4318"), "{line}");
    peer.signal(Signal::SIGTERM);
    assert!(peer.wait().success());
}

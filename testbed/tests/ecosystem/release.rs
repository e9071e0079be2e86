//! What `release/` makes: the crates as crates.io would get them, and the Debian package, installed
//! in a root that has nothing else in it.

use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;
use warmhop_testbed::workspace;

use crate::installed::{Skipped, Tested, home};
use crate::support::program_built;
use crate::test;

/// The tests of this module.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("release::the_crates_can_be_published_in_their_order", async || crates()),
        test("release::the_debian_package_installs_in_an_empty_root_and_goes_again", async || {
            debian()
        }),
    ]
}

/// What it printed, if it succeeded.
fn said(command: &mut Command) -> Result<String, Skipped> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| Skipped(format!("{program} does not run here: {error}")))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{program}: {said}");
    Ok(said)
}

fn crates() -> Tested {
    let script = workspace().join("release/dry-run");
    let said = said(Command::new(script).arg("--no-verify"))?;
    assert!(said.contains("in the order warmhop-core warmhop warmhop-cli"), "{said}");
    match said.lines().find(|line| line.contains("SKIPPED")) {
        Some(line) => Err(Skipped(format!("packed, but not all of it was tried: {line}"))),
        None => Ok(()),
    }
}

/// The accounts that a root has before any package makes its own.
fn empty_root(root: &Path) {
    let _ = std::fs::remove_dir_all(root);
    for folder in ["etc", "var/lib/dpkg/info", "var/lib/dpkg/updates"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    for (file, text) in [
        ("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
        ("etc/shadow", "root:*:1::::::\n"),
        ("etc/gshadow", "root:*::\n"),
        ("var/lib/dpkg/status", ""),
        ("var/lib/dpkg/available", ""),
    ] {
        std::fs::write(root.join(file), text).unwrap();
    }
}

fn debian() -> Tested {
    if !nix::unistd::Uid::effective().is_root() {
        return Err(Skipped("dpkg lays down packages for root alone".into()));
    }
    let build = workspace().join("release/build");
    let made = said(Command::new(build).arg("--program").arg(program_built("warmhop")))?;
    if let Some(line) = made.lines().find(|line| line.contains("SKIPPED")) {
        return Err(Skipped(line.to_owned()));
    }
    let package = made.lines().find(|line| line.ends_with(".deb")).expect("a package is named");
    let package = workspace().join(package);
    let depends = said(Command::new("dpkg-deb").arg("--field").arg(&package).arg("Depends"))?;
    assert!(depends.contains("libc6"), "{depends}");

    let root = home().join(format!("root-{}", std::process::id()));
    empty_root(&root);
    // The scripts run outside, since there is no shell in it, and get its path. What the
    // package needs of other packages is not in it either.
    let dpkg = || {
        let mut command = Command::new("dpkg");
        command.arg("--root").arg(&root).arg("--log=/dev/null");
        command.args(["--force-script-chrootless", "--force-depends"]);
        command
    };
    said(dpkg().arg("--install").arg(&package))?;

    let accounts = std::fs::read_to_string(root.join("etc/passwd")).unwrap();
    assert!(accounts.contains("\nwarmhop:"), "{accounts}");
    let program = root.join("usr/bin/warmhop");
    let version = said(Command::new(&program).arg("--version"))?;
    assert_eq!(version.trim(), format!("warmhop {}", env!("CARGO_PKG_VERSION")));
    let unit = std::fs::read_to_string(root.join("usr/lib/systemd/system/warmhop.service"));
    assert!(unit.unwrap().contains("ExecStart=/usr/bin/warmhop run --config /etc/warmhop/"));
    for (file, word) in [
        ("usr/share/man/man1/warmhop-run.1", "config"),
        ("usr/share/bash-completion/completions/warmhop", "_warmhop"),
        ("usr/share/zsh/vendor-completions/_warmhop", "#compdef warmhop"),
        ("usr/share/fish/vendor_completions.d/warmhop.fish", "complete -c warmhop"),
        ("usr/share/doc/warmhop/copyright", "MIT"),
        ("usr/share/doc/warmhop/examples/alerts.yml", "warmhop_"),
    ] {
        let text = std::fs::read_to_string(root.join(file));
        assert!(text.as_ref().is_ok_and(|text| text.contains(word)), "{file}: {text:?}");
    }
    let example = root.join("usr/share/doc/warmhop/examples/warmhop.toml");
    said(Command::new(&program).arg("check").arg(example))?;
    let folder = root.join("etc/warmhop");
    let mode = std::os::unix::fs::PermissionsExt::mode(&folder.metadata().unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o750, "keys are to be in it");

    // The names of functions are in a file of their own, which a debugger finds.
    let half = package.with_file_name("warmhop.debug");
    assert!(
        half.exists() && program.metadata().unwrap().len() < half.metadata().unwrap().len() * 4
    );

    std::fs::write(folder.join("key.pem"), "a secret").unwrap();
    said(dpkg().args(["--purge", "warmhop"]))?;
    assert!(!program.exists());
    assert!(folder.join("key.pem").exists(), "nobody else has it");
    std::fs::remove_dir_all(root).unwrap();
    Ok(())
}

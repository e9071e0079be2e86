//! A real browser, without a screen.

use std::process::Command;

use libtest_mimic::Trial;

use crate::installed::{self, Skipped, Tested, debian_file, home, libraries};
use crate::support::{QUICK, World, shop};
use crate::test;

/// The tests of this module.
pub(crate) fn trials() -> Vec<Trial> {
    vec![test("a_browser_gets_a_page_through_the_mesh", page)]
}

/// Node.js, to run a script that drives Chromium by playwright-core: `CHROMIUM` is the program and
/// `CHROMIUM_ARGS` the arguments to start it with.
pub(crate) fn browser_script() -> Result<Command, Skipped> {
    let chromium = debian_file("usr/lib/chromium/chromium")?;
    let mut command = installed::node("playwright-core")?;
    let fonts = home().join("debian/usr/share/fonts");
    let config = home().join("fonts.conf");
    let written = std::fs::write(
        &config,
        format!(
            "<?xml version='1.0'?><!DOCTYPE fontconfig SYSTEM 'fonts.dtd'><fontconfig>\
             <dir>{}</dir><cachedir>{}</cachedir></fontconfig>",
            fonts.display(),
            home().join("fonts").display()
        ),
    );
    written.map_err(|error| Skipped(format!("cannot write {}: {error}", config.display())))?;
    command
        .env("CHROMIUM", chromium)
        .env("LD_LIBRARY_PATH", libraries())
        .env("FONTCONFIG_FILE", config)
        // Whatever it would ask of the internet is off: a test speaks to this machine alone.
        .env(
            "CHROMIUM_ARGS",
            "--no-sandbox --disable-gpu --disable-quic --no-first-run \
             --disable-background-networking --disable-component-update --disable-sync",
        );
    Ok(command)
}

async fn page() -> Tested {
    let mut script = browser_script()?;
    let world = World::new(1, shop(QUICK, "")).await;
    let source = "
        const { chromium } = require('playwright-core');
        (async () => {
            const browser = await chromium.launch({
                executablePath: process.env.CHROMIUM,
                args: process.env.CHROMIUM_ARGS.split(' '),
            });
            const page = await browser.newPage();
            const response = await page.goto(process.argv[1]);
            console.log(response.status(), await response.headerValue('warmhop-peer'));
            await browser.close();
        })();
    ";
    let output = tokio::task::block_in_place(|| {
        script.args(["-e", source, &format!("http://{}/", world.http(0))]).output()
    });
    let output = output.expect("node starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.trim(), format!("200 {}", world.name(0)), "{output:?}");
    Ok(())
}

//! A real browser, without a screen.

use std::process::{Command, Stdio};
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::Value as Json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;
use warmhop_testbed::workspace;

use crate::installed::{self, Skipped, Tested, debian_file, home, libraries};
use crate::support::{QUICK, World, shop};
use crate::test;

/// How long one step of a browser may take; some wait for a kernel to start.
const STEP_BOUND: Duration = Duration::from_secs(90);

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
    world.warm(0).await;
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

/// A browser, and the script beside this file that drives it.
pub(crate) struct Browser {
    child: Child,
    steps: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Browser {
    /// Starts it with the `script` of this folder, which reads one step a line, in JSON, and answers
    /// each with a line.
    pub(crate) fn start(script: &str) -> Result<Self, Skipped> {
        let mut command = browser_script()?;
        command.arg(workspace().join("testbed/tests/ecosystem").join(script));
        let mut child = tokio::process::Command::from(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Skipped(format!("Node.js does not start: {error}")))?;
        let steps = child.stdin.take().expect("it was asked for");
        let answers = BufReader::new(child.stdout.take().expect("it was asked for")).lines();
        Ok(Self { child, steps, answers })
    }

    /// Carries out one step.
    pub(crate) async fn step(&mut self, step: Json) -> Json {
        self.steps.write_all(format!("{step}\n").as_bytes()).await.expect("the script reads");
        let line = timeout(STEP_BOUND, self.answers.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("no answer to {step} in {STEP_BOUND:?}"));
        let line = line.expect("the script writes text").expect("the script goes on");
        let answer: Json = serde_json::from_str(&line).expect("an answer is JSON");
        assert!(answer["error"].is_null(), "{step}: {answer:#}");
        answer
    }

    /// Closes the browser.
    pub(crate) async fn end(mut self) {
        drop(self.steps);
        let ended = timeout(STEP_BOUND, self.child.wait()).await.expect("the browser closes");
        assert!(ended.expect("it is waited for").success(), "the script failed");
    }
}

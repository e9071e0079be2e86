//! The binary `warmhop`: parses its arguments and calls the modules that carry them out.

#[path = "main/arguments.rs"]
mod arguments;

use std::io::Write;
use std::ops::ControlFlow;
use std::process::ExitCode;

use clap::CommandFactory;
use http::Method;
use serde_json::Value;
use warmhop_cli::config::{self, Config};
use warmhop_cli::host::{guard, log};
use warmhop_cli::operate::client::{Admin, AskError, encoded};
use warmhop_cli::operate::{show, watch};
use warmhop_cli::run::Failure;
use warmhop_cli::setup::{dev, init, manual};
use warmhop_cli::{cert, lb, operate, run};

use crate::arguments::{App, Ask, Cert, Cli, Command, Lines};

/// A request takes some dozens of small allocations, most of them freed by the thread that made
/// them. With the system's allocator a request took a fifth more CPU.
#[cfg(not(debug_assertions))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Debug builds count instead, for `testbed/costs`.
#[cfg(debug_assertions)]
#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<std::alloc::System> = &stats_alloc::INSTRUMENTED_SYSTEM;

fn main() -> ExitCode {
    // Before anything else: a guard is started for each app, and has to be cheap.
    if let Some(code) = guard::run_if_asked(std::env::args_os()) {
        return code;
    }
    match carry_out(Cli::of_process().command) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            let mut stderr = std::io::stderr().lock();
            for message in &failure.messages {
                // Nobody is left to report a failure to.
                let _ = writeln!(stderr, "warmhop: {message}");
            }
            ExitCode::from(failure.status)
        }
    }
}

fn carry_out(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Run { config, log } => run::run(&config, log),
        Command::Dev { peers, port, session, ready, command } => {
            in_runtime(dev::run(dev::Wanted { peers, port, session, ready, command }))
        }
        Command::Init { peers, dir } => print(&init::write(&dir, peers)?),
        Command::Check { file: Some(file), .. } => check(&file),
        Command::Check { .. } => print(&pretty(&config::keys::schema())),
        Command::Man { dir } => man(&dir),
        Command::Cert(command) => certificates(command),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "warmhop", &mut text);
            print(&String::from_utf8_lossy(&text))
        }
        Command::Status { ask, watch: true } => in_runtime(async {
            let (json, admin) = (ask.json, ask.listener.connect());
            watch::run(&admin, json).await
        }),
        Command::Status { ask, .. } => in_runtime(async {
            let (json, admin) = (ask.json, ask.listener.connect());
            print(&status(&admin, json).await.map_err(Failure::failed)?)
        }),
        Command::App(command) => in_runtime(act_on_app(command)),
        Command::Reload { ask } => in_runtime(reload(ask)),
        Command::Drain { wait: true, timeout, ask } => in_runtime(async move {
            let (json, admin) = (ask.json, ask.listener.connect());
            let status = operate::drain(&admin, timeout).await?;
            print(&if json { pretty(&status) } else { "drained\n".into() })
        }),
        Command::Drain { ask, .. } => in_runtime(async {
            act(ask, "/v1/drain", |_| "draining; the peer takes no new traffic\n".into()).await
        }),
        Command::Undrain { ask } => in_runtime(async {
            act(ask, "/v1/undrain", |_| "the peer takes traffic again\n".into()).await
        }),
        Command::Members { gone: Some(peer), ask } => in_runtime(async move {
            let path = format!("/v1/members/{peer}/gone");
            act(ask, &path, |_| format!("{peer} counts as gone for good\n")).await
        }),
        Command::Members { ask, .. } => in_runtime(async {
            let coloured = log::is_coloured(&std::io::stdout());
            ask_for(ask, "/v1/status", "/peer/name", |admin, answer| {
                Ok(show::members(&admin.read(answer)?, coloured))
            })
            .await
        }),
        Command::Logs { app, follow, lines } => {
            let question = operate::Question { app: Some(app), level: None, follow };
            in_runtime(show_lines(question, lines))
        }
        Command::Monitor { level, lines } => {
            let question = operate::Question { app: None, level: Some(level), follow: true };
            in_runtime(show_lines(question, lines))
        }
        Command::Debug { out, listener } => {
            in_runtime(async move { print(&operate::archive(&listener.connect(), out).await?) })
        }
        Command::Session { key, ask } => in_runtime(async {
            let path = format!("/v1/sessions/{}", encoded(&key.to_string()));
            ask_for(ask, &path, "/key", |admin, answer| Ok(show::session(&admin.read(answer)?)))
                .await
        }),
        Command::Why { request_id, ask } => in_runtime(async {
            let path = format!("/v1/requests/{}", encoded(&request_id));
            let coloured = log::is_coloured(&std::io::stdout());
            ask_for(ask, &path, "/id", |admin, answer| {
                Ok(show::trace(&admin.read(answer)?, coloured))
            })
            .await
        }),
        Command::Lb { balancer, affinity, listen, listener } => in_runtime(async move {
            let admin = listener.connect();
            let answer = admin.status().await.map_err(Failure::failed)?;
            let status = admin.read(&answer).map_err(Failure::failed)?;
            let wanted = lb::Wanted { balancer, affinity, listen };
            print(&lb::recipe(wanted, &status).map_err(Failure::failed)?)
        }),
    }
}

/// Makes, shows or renews certificates.
fn certificates(command: Cert) -> Result<u8, Failure> {
    match command {
        Cert::Ca { out, cluster, force } => {
            print(&cert::make_authority(&out, &cluster, force).map_err(|it| cert::failed(&it))?)
        }
        Cert::Peer { name, ca, out, force, days } => {
            print(&cert::issue_peer(&name, &ca, &out, force, days).map_err(|it| cert::failed(&it))?)
        }
        Cert::Show { dir } => {
            let (text, is_usable) = cert::show(&dir).map_err(|it| cert::failed(&it))?;
            print(&text).map(|_| u8::from(!is_usable))
        }
        Cert::Renew { dir, ca, days } => {
            print(&cert::renew(&dir, &ca, days).map_err(|it| cert::failed(&it))?)
        }
    }
}

/// Has a peer read its configuration again.
async fn reload(ask: Ask) -> Result<u8, Failure> {
    let (json, admin) = (ask.json, ask.listener.connect());
    match admin.ask(Method::POST, "/v1/reload", "/action").await {
        Ok(answer) => print(&if json { pretty(&answer) } else { show::reloaded(&answer) }),
        Err(AskError::Refused { status, detail }) if status.as_u16() == 422 => {
            let messages = detail.lines().map(show::clean).collect();
            Err(Failure { messages, status: 2 })
        }
        Err(error) => Err(Failure::failed(error)),
    }
}

/// Has a peer start, stop, restart or hold down an app.
async fn act_on_app(command: App) -> Result<u8, Failure> {
    match command {
        App::Start { name, ask } => {
            let path = format!("/v1/apps/{}/start", part(&name));
            act(ask, &path, |answer| show::started(&name, was(answer))).await
        }
        App::Stop { name, ask } => {
            let path = format!("/v1/apps/{}/stop", part(&name));
            act(ask, &path, |answer| show::stopped(&name, was(answer))).await
        }
        App::Restart { name, mesh: true, ask } => restart_mesh(name, ask).await,
        App::Restart { name, ask, .. } => {
            let (json, admin) = (ask.json, ask.listener.connect());
            let path = format!("/v1/apps/{}/restart", part(&name));
            let answer = operate::restart(&admin, &name, &path).await?;
            let serves = || format!("the new copy of {name} serves\n");
            print(&if json { pretty(&answer) } else { serves() })
        }
        App::Pause { name, ask } => {
            let path = format!("/v1/apps/{}/pause", part(&name));
            act(ask, &path, |_| format!("{name} is held down there\n")).await
        }
        App::Resume { name, ask } => {
            let path = format!("/v1/apps/{}/resume", part(&name));
            act(ask, &path, |_| format!("{name} may start there again\n")).await
        }
    }
}

fn man(dir: &std::path::Path) -> Result<u8, Failure> {
    let written = manual::write(Cli::command(), dir);
    let cannot = |error| Failure::failed(format!("cannot write into {}: {error}", dir.display()));
    written.map_err(cannot).map(|()| 0)
}

fn check(file: &std::path::Path) -> Result<u8, Failure> {
    let texts = |problems: Vec<warmhop_cli::config::Problem>| {
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let (config, warnings) =
        Config::load(file).map_err(|problems| Failure { messages: texts(problems), status: 2 })?;
    let mut stderr = std::io::stderr().lock();
    let of_keys = config.exposed_keys();
    let ending = run::certificates_that_end(&config, std::time::SystemTime::now());
    let warnings = warnings.into_iter().chain(config.apps_as_root()).chain(of_keys).chain(ending);
    let warnings: Vec<_> = warnings.collect();
    let named: Vec<String> = warnings.iter().map(|it| format!(": {}: ", it.key)).collect();
    for warning in texts(warnings) {
        let _ = writeln!(stderr, "warmhop: {warning}");
    }
    run::check(&config)?;
    let refused = run::refused_here(&config);
    for more in refused.iter().filter(|message| !named.iter().any(|key| message.contains(key))) {
        let _ = writeln!(stderr, "warmhop: {more}");
    }
    if !refused.is_empty() {
        let _ = writeln!(
            stderr,
            "warmhop: {}: a peer on this machine would not start with this configuration, and would \
             refuse to reload it, because of what is missing here; check it where the peer runs",
            file.display()
        );
    }
    print(&config.without_secrets().to_string())
}

async fn show_lines(question: operate::Question, lines: Lines) -> Result<u8, Failure> {
    let Lines { peer, lines, ask } = lines;
    let (json, admin) = (ask.json, ask.listener.connect());
    let path = question.path(peer.as_ref(), lines);
    let mut written = Ok(0);
    let shown = admin.lines(Method::GET, &path, |line| {
        let line = if json { format!("{line}\n") } else { operate::line(line) };
        written = print(&line);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    tokio::select! {
        shown = shown => shown.map_err(|error| match (&peer, error) {
            (Some(peer), AskError::BrokeOff { .. }) => Failure::failed(format!(
                "the lines of {peer} have ended: it is gone, or the link to it broke"
            )),
            (_, error) => Failure::failed(error),
        })?,
        _ = tokio::signal::ctrl_c() => {}
    }
    written
}

async fn restart_mesh(name: String, ask: Ask) -> Result<u8, Failure> {
    let (json, admin) = (ask.json, ask.listener.connect());
    let path = format!("/v1/apps/{}/restart?mesh=true", part(&name));
    let (mut failed, mut done) = (false, false);
    let shown = admin.lines(Method::POST, &path, |line| {
        let (text, has_failed) = operate::step(line);
        failed |= has_failed;
        done |= line.contains("\"done\"");
        let written = print(&if json { format!("{line}\n") } else { text });
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    shown.await.map_err(Failure::failed)?;
    match (failed, done) {
        (false, true) => Ok(0),
        (true, _) => Ok(1),
        (false, false) => Err(Failure::failed("the peer that was asked ended before it was done")),
    }
}

/// One path segment: an app's name has no slash, whatever the user typed.
fn part(name: &str) -> String {
    encoded(name).replace('/', "%2F")
}

async fn status(admin: &Admin, json: bool) -> Result<String, AskError> {
    let answer = admin.status().await?;
    if json {
        return Ok(pretty(&answer));
    }
    Ok(show::status(&admin.read(&answer)?, log::is_coloured(&std::io::stdout())))
}

/// The state of an app before the command; a peer that is too old does not send it.
fn was(answer: &Value) -> &str {
    answer["was"].as_str().unwrap_or_default()
}

async fn act(ask: Ask, path: &str, done: impl FnOnce(&Value) -> String) -> Result<u8, Failure> {
    let (json, admin) = (ask.json, ask.listener.connect());
    let answer = admin.ask(Method::POST, path, "/action").await.map_err(Failure::failed)?;
    print(&if json { pretty(&answer) } else { done(&answer) })
}

async fn ask_for(
    ask: Ask,
    path: &str,
    mark: &str,
    shown: impl FnOnce(&Admin, &Value) -> Result<String, AskError>,
) -> Result<u8, Failure> {
    let (json, admin) = (ask.json, ask.listener.connect());
    let answer = admin.ask(Method::GET, path, mark).await.map_err(Failure::failed)?;
    if json {
        return print(&pretty(&answer));
    }
    print(&shown(&admin, &answer).map_err(Failure::failed)?)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Writes to standard output; a reader that has seen enough ends the program quietly.
fn print(text: &str) -> Result<u8, Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(0),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::failed(format!("cannot write the answer: {error}"))),
    }
}

fn in_runtime(command: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))?
        .block_on(command)
}

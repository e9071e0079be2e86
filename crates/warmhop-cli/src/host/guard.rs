//! The guard: a small process between the peer and one app, so that the app and everything
//! that it started end with the peer, even where the peer is killed with SIGKILL.
//!
//! ```text
//! peer ──stdin pipe──▶ guard (leads the process group) ──▶ app ──▶ its descendants
//! ```
//!
//! The peer holds the only writing end of the guard's standard input. However the peer
//! ends, the kernel closes that end, and the guard then kills every descendant. The guard
//! adopts orphans (it is a child subreaper), so a descendant that left the process group or
//! was disowned by its parent is found as well.
//!
//! States: *serving* until the app exits or SIGTERM arrives at the group; *stopping* from
//! SIGTERM on, in which the app's descendants may take their time after the app itself is
//! gone; *killing* from the end of the input, or from an exit of the app that nobody asked
//! for. The guard exits, with the app's status, once no descendant is left.
//!
//! It is this program itself, started with a hidden first argument that `main` looks for
//! before it does anything else: no runtime, no argument parser, no allocation to speak of.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::host::confine::Confine;

/// The hidden first argument.
const ARGUMENT: &str = "__guard";

/// The hidden first argument of a process that limits its own memory and then becomes the app.
const LIMITED: &str = "__limited";

/// The exit status if the app could not be executed, as in shells.
const CANNOT_EXECUTE: u8 = 126;

/// How long the guard waits before it looks for survivors again.
const KILL_INTERVAL: Duration = Duration::from_millis(5);

/// The program to start as a guard: this one.
///
/// On Linux the link to the running image is executed rather than a path, so that a peer
/// whose binary was replaced under it still starts guards of its own version.
#[must_use]
pub fn executable() -> PathBuf {
    if cfg!(target_os = "linux") {
        PathBuf::from("/proc/self/exe")
    } else {
        std::env::current_exe().unwrap_or_else(|_| PathBuf::from("warmhop"))
    }
}

/// The arguments that make this program a guard of `run`, confined by `confine`.
pub(crate) fn arguments(confine: &Confine, run: &[String]) -> impl Iterator<Item = OsString> {
    [OsString::from(ARGUMENT), confine.argument()].into_iter().chain(run.iter().map(OsString::from))
}

/// Runs as a guard if the arguments of this process, its name included, ask for it.
#[must_use]
pub fn run_if_asked(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    args.next();
    let role = args.next()?;
    if role != ARGUMENT && role != LIMITED {
        return None;
    }
    let Some(confine) = args.next().and_then(|argument| Confine::from_argument(argument.to_str()?))
    else {
        report("it is started by a peer, not by hand");
        return Some(ExitCode::from(CANNOT_EXECUTE));
    };
    let run: Vec<OsString> = args.collect();
    let status =
        if role == LIMITED { become_limited(&confine, &run) } else { guard(&confine, &run) };
    Some(ExitCode::from(status))
}

/// The app's command, in its user's name.
fn command(confine: &Confine, program: &OsString, arguments: &[OsString]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    confine.become_user(&mut command);
    command
}

/// Becomes `run` once the memory is limited; returns only if that failed.
fn become_limited(confine: &Confine, run: &[OsString]) -> u8 {
    let Some((program, arguments)) = run.split_first() else {
        return CANNOT_EXECUTE;
    };
    let mut command = command(confine, program, arguments);
    if let Err(what) = confine.limit_memory() {
        report(&what);
        return CANNOT_EXECUTE;
    }
    let error = command.exec();
    report(&format!("cannot run {}: {error}", program.display()));
    CANNOT_EXECUTE
}

/// Starts `run`, waits until it and its descendants are gone, returns the exit status.
fn guard(confine: &Confine, run: &[OsString]) -> u8 {
    let Some((program, arguments)) = run.split_first() else {
        return CANNOT_EXECUTE;
    };
    // A signal handler, unlike an ignored signal, is not inherited by the app.
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let handled = signal_hook::flag::register(signal as i32, Arc::clone(&stopping));
        if let Err(error) = handled {
            report(&format!("cannot handle {signal}: {error}"));
            return CANNOT_EXECUTE;
        }
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        report(&format!("cannot adopt the app's orphans: {error}"));
    }

    if let Err(what) = confine.limit() {
        report(&what);
        return CANNOT_EXECUTE;
    }
    let mut command = if confine.limits_memory() {
        let mut command = Command::new(executable());
        command.args([OsString::from(LIMITED), confine.argument()]).args(run).stdin(Stdio::null());
        command
    } else {
        command(confine, program, arguments)
    };
    let app = match command.spawn() {
        Ok(app) => Pid::from_raw(app.id().cast_signed()),
        Err(error) => {
            report(&format!("cannot run {}: {error}", program.display()));
            return CANNOT_EXECUTE;
        }
    };
    std::thread::spawn(|| {
        wait_for_the_peers_end();
        kill_descendants();
    });
    wait_for_all(app, &stopping)
}

/// Reaps every child until none is left; the status is the app's own.
fn wait_for_all(app: Pid, stopping: &AtomicBool) -> u8 {
    let mut status = 0;
    loop {
        let (ended, code) = match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, u8::try_from(code & 0xff).unwrap_or(1)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 | signal as u8),
            Ok(_) | Err(Errno::EINTR) => continue,
            // No child is left: every process that was started is gone.
            Err(_) => return status,
        };
        if ended != app {
            continue;
        }
        status = code;
        if !stopping.load(Ordering::SeqCst) {
            // Nobody asked the app to end. Processes that it leaves behind would hold its port.
            std::thread::spawn(kill_descendants);
        }
    }
}

/// Returns when the peer closed its end of the pipe or is gone. It never writes.
fn wait_for_the_peers_end() {
    let mut input = std::io::stdin().lock();
    let mut ignored = [0; 64];
    loop {
        match input.read(&mut ignored) {
            Ok(1..) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// Kills descendants repeatedly, since they may fork meanwhile, until the main thread finds that
/// none is left and ends the process.
#[cfg(target_os = "linux")]
fn kill_descendants() {
    loop {
        for pid in descendants() {
            // It may have ended since; no other process can have its number while this one has not
            // reaped it or its parent is alive, and the list is microseconds old.
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(KILL_INTERVAL);
    }
}

/// Without a way to adopt and list orphans, only the process group is known.
#[cfg(not(target_os = "linux"))]
fn kill_descendants() {
    loop {
        let _ = nix::sys::signal::killpg(nix::unistd::getpgrp(), Signal::SIGKILL);
        std::thread::sleep(KILL_INTERVAL);
    }
}

/// Every process below this one, nearest first.
#[cfg(target_os = "linux")]
fn descendants() -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let family: Vec<(i32, i32)> = entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((pid, parent_of(pid)?))
        })
        .collect();
    let mut found = vec![std::process::id().cast_signed()];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(family.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.into_iter().skip(1).map(Pid::from_raw).collect()
}

/// The fourth field of `/proc/PID/stat`; the second is a name in parentheses that may contain
/// anything, parentheses included.
#[cfg(target_os = "linux")]
fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// One line on standard error, which the peer reads as the app's output.
fn report(what: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "warmhop: {what}");
}

/// How a guarded app ended, for people: statuses above 128 are signals, as in shells.
pub(crate) fn describe(status: std::process::ExitStatus) -> String {
    if let Some(signal) = status.signal() {
        return format!("its guard process was killed by {}", signal_name(signal));
    }
    match status.code() {
        Some(0) => "it exited with status 0; an app has to stay in the foreground".into(),
        Some(code @ 129..=192) => {
            format!("it was killed by {} (status {code})", signal_name(code - 128))
        }
        Some(code) => format!("it exited with status {code}"),
        None => "it ended".into(),
    }
}

fn signal_name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |name| name.to_string())
}

//! Whether a process still runs, and how to end it without ending another.
//!
//! A pid alone does not identify a process: once the process is gone, the kernel may give its pid to
//! another. A pid together with the start time does, so every signal checks both first.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

const POLL: Duration = Duration::from_millis(10);

/// One process, never mistaken for a later one with its pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The kernel's number.
    pub pid: u32,
    /// When it started, in clock ticks since the machine did.
    pub started: u64,
}

impl ProcessId {
    /// The process that has `pid` now.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        Stat::read(pid).map(|stat| Self { pid, started: stat.started })
    }

    /// Whether it runs still. One that has ended and only waits to be reaped does not.
    #[must_use]
    pub fn is_alive(self) -> bool {
        Stat::read(self.pid)
            .is_some_and(|stat| stat.started == self.started && !matches!(stat.state, 'Z' | 'X'))
    }

    /// Whether it is stopped, as by SIGSTOP.
    #[must_use]
    pub fn is_stopped(self) -> bool {
        Stat::read(self.pid).is_some_and(|s| s.started == self.started && s.state == 'T')
    }

    /// Sends a signal; false if the process is gone.
    ///
    /// # Errors
    /// If the kernel forbids it.
    pub fn signal(self, signal: Signal) -> Result<bool> {
        if !self.is_alive() {
            return Ok(false);
        }
        let pid = i32::try_from(self.pid).context("no such pid")?;
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(errno) => bail!("cannot send {signal} to process {pid}: {errno}"),
        }
    }

    /// Waits until it has ended; false if it has not within `bound`.
    pub async fn ended_within(self, bound: Duration) -> bool {
        let until = Instant::now() + bound;
        while self.is_alive() {
            if Instant::now() >= until {
                return false;
            }
            sleep(POLL).await;
        }
        true
    }

    /// Asks it to end, and makes it end if it has not within `grace`.
    ///
    /// # Errors
    /// If it cannot be signalled or outlives SIGKILL.
    pub async fn stop(self, grace: Duration) -> Result<()> {
        if !self.signal(Signal::SIGTERM)? || self.ended_within(grace).await {
            return Ok(());
        }
        self.signal(Signal::SIGKILL)?;
        if self.ended_within(Duration::from_secs(5)).await {
            return Ok(());
        }
        bail!("process {} outlived SIGKILL", self.pid)
    }

    /// The processes that it started, directly or through others, as far as they are still
    /// under it.
    #[must_use]
    pub fn descendants(self) -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let all: Vec<(Self, u32)> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(|pid| Stat::read(pid).map(|s| (Self { pid, started: s.started }, s.parent)))
            .collect();
        let mut found = vec![self];
        let mut looked_at = 0;
        while looked_at < found.len() {
            let parent = found[looked_at].pid;
            found.extend(all.iter().filter(|(_, of)| *of == parent).map(|(process, _)| *process));
            looked_at += 1;
        }
        found.split_off(1)
    }

    /// Its command line, for people.
    #[must_use]
    pub fn command(self) -> String {
        let raw = std::fs::read(Path::new("/proc").join(self.pid.to_string()).join("cmdline"));
        let raw = raw.unwrap_or_default();
        raw.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ")
    }
}

/// Resolves when this process is asked to end: Ctrl-C, SIGTERM, or its terminal is gone.
///
/// # Panics
/// If the kernel refuses a signal handler, which it has no reason to.
pub async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).expect("signal handlers can be set");
    let mut signals =
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(listen);
    let [interrupt, terminate, hangup] = &mut signals;
    tokio::select! {
        _ = interrupt.recv() => (),
        _ = terminate.recv() => (),
        _ = hangup.recv() => (),
    }
}

struct Stat {
    state: char,
    parent: u32,
    started: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The second field is the program's name in parentheses and may hold anything, further
    /// parentheses included; the fields are therefore counted from the last one (proc(5)).
    fn parse(stat: &str) -> Option<Self> {
        let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        Some(Self { state, parent, started: fields.nth(17)?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_named_like_anything() {
        let line = "7 (a) S 1 (b) R 5 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.state, stat.parent, stat.started), ('R', 5, 4711));
        assert!(Stat::parse("7 (cut").is_none());
    }

    #[test]
    fn this_process_lives_and_one_of_its_pid_but_another_time_does_not() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!ProcessId { started: me.started + 1, ..me }.is_alive());
    }

    #[tokio::test]
    async fn a_process_that_ignores_sigterm_is_made_to_end() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "trap '' TERM; echo trapped; while :; do sleep 0.05; done"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // It has said so, so the trap is set.
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.take().unwrap()),
            &mut line,
        )
        .unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        process.stop(Duration::from_millis(100)).await.unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
        assert!(!process.signal(Signal::SIGTERM).unwrap(), "a signal to nobody is not sent");
    }
}

//! An app as a child process: started behind a [`crate::host::guard`], probed over loopback until it is
//! ready, then served through a small pool of kept-alive connections.
//!
//! The child gets its port in `PORT` and has to listen on `127.0.0.1:PORT`. Its output goes to the
//! peer's log, line by line; the last lines are kept for the message when it fails.
//!
//! Nothing outlives its owner: dropping a start, a started copy or the whole peer closes the pipe
//! to the guard, which then kills the child and all its descendants.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};
use warmhop::ids::AppName;
use warmhop::{Ended, Running, StartContext, StartError};

use self::probe::{Latest, Probe};
pub use self::request::STATE_BYTES_MAX;
pub use self::service::ChildService;
use crate::child::launch::{Alive, Inherit, Protocol, Ready};
use crate::host::confine::Confine;
use crate::host::guard;

pub mod environment;
mod h2;
mod http1;
mod interim;
pub mod launch;
mod lent;
mod listens;
mod plain;
mod pool;
mod probe;
mod request;
mod service;
mod socket;
pub(crate) mod usage;

/// How often a start is tried on another port if another process has taken the chosen one.
const PORT_TRIES: u32 = 3;
/// How many of the ports chosen last are not chosen again.
const RECENT_PORTS: usize = 64;
/// A longer line of output is cut.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// How many last lines are kept for messages.
const TAIL_LINES: usize = 20;
/// How long the output of an ended app is still waited for.
const OUTPUT_TIMEOUT: Duration = Duration::from_millis(500);
/// An app that is not ready after this time may listen somewhere else.
const HINT_AFTER: Duration = Duration::from_secs(3);
/// How long killing may take before the peer stops waiting for it.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// An app that runs as a child process of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildApp {
    /// Program and arguments.
    pub run: Vec<String>,
    /// The folder that it runs in.
    pub dir: PathBuf,
    /// What it inherits of the peer's own environment.
    pub inherit: Inherit,
    /// A file of variables that are added to those, read at each start.
    pub env_file: Option<PathBuf>,
    /// Variables that are added to both.
    pub env: BTreeMap<String, String>,
    /// How the peer detects that it is ready.
    pub ready: Ready,
    /// How the peer detects that it is alive.
    pub alive: Alive,
    /// The URL of the endpoint that keeps sessions, for its `REDIS_URL`; absent if there is no
    /// endpoint.
    pub redis: Option<String>,
    /// The protocol between the peer and it.
    pub protocol: Protocol,
    /// Whether it receives its session in the field `Warmhop-Session` and sets it there.
    pub carried: bool,
    /// The program that guards it: [`guard::executable`].
    pub guard: PathBuf,
    /// Its user and its limits.
    pub confine: Confine,
    /// Variables of the peer's own environment that it does not inherit unless it names them.
    pub hidden: Vec<String>,
}

#[async_trait::async_trait]
impl warmhop::App for ChildApp {
    async fn start(&self, start: StartContext) -> Result<Running, StartError> {
        let Launched { service, process } = self.launch(&start.app).await?;
        let exited = process.exited();
        let probe = Arc::new(Probe {
            path: self.alive.path.clone().or_else(|| self.ready.path.clone()),
            timeout: self.alive.timeout,
            ..self.probe(service.port())
        });
        let (asked, lends) = (service.clone(), service.lends());
        let mut running = Running::of(service)
            .on_stop(move |grace| process.stop(grace))
            .exits_with(exited)
            .asked_with(move || {
                let (probe, asked) = (Arc::clone(&probe), asked.clone());
                async move { probe.ask(&asked).await }
            });
        if let Some(lends) = lends {
            running = running.answers_whole(lends);
        }
        Ok(if self.carried { running.with_carried_session() } else { running })
    }
}

/// A child that is ready.
pub struct Launched {
    /// Sends requests to it.
    pub service: ChildService,
    /// Its process.
    pub process: Process,
}

/// A start that failed.
struct Failed {
    error: StartError,
    /// Whether the child ended by itself.
    exited: bool,
}

impl ChildApp {
    /// Starts the child and waits until it is ready.
    ///
    /// # Errors
    /// Why it failed, with the child's last lines of output.
    pub async fn launch(&self, name: &AppName) -> Result<Launched, StartError> {
        let failed = |reason: String| StartError::new(reason);
        if self.run.is_empty() {
            return Err(failed("it has no run here; other peers run it".into()));
        }
        // Reported as what it is, and not as a process that cannot be started.
        let env = self.environment().map_err(|error| failed(format!("its env_file {error}")))?;
        let deadline = Instant::now() + self.ready.timeout;
        let mut tries = 1;
        loop {
            let port = free_port()
                .map_err(|error| failed(format!("no loopback port is free: {error}")))?;
            match self.launch_on(port, &env, name, deadline).await {
                // The child has exited, so another process that listens there took the port before
                // it could.
                Err(Failed { exited: true, .. }) if tries < PORT_TRIES && is_taken(port) => {
                    warn!(app = %name, port, "another process took the app's port; trying another");
                    tries += 1;
                }
                Err(failed) => return Err(failed.error),
                Ok(launched) => return Ok(launched),
            }
        }
    }

    async fn launch_on(
        &self,
        port: u16,
        env: &[(OsString, OsString)],
        name: &AppName,
        deadline: Instant,
    ) -> Result<Launched, Failed> {
        let process = Process::spawn(self, port, env, name).map_err(|error| Failed {
            error: StartError::new(format!(
                "cannot start a process in {}: {error}",
                self.dir.display()
            ))
            .caused_by(error),
            exited: false,
        })?;
        let service = ChildService::new(port, self.protocol);
        let mut exit = process.exit.clone();
        let probe = self.probe(port);
        let latest = Latest::default();
        let asking = timeout_at(deadline, probe.until_ready(&service, self.ready.every, &latest));
        let hints = hints(name, process.group(), &probe, &latest);
        let status = tokio::select! {
            biased;
            status = ended(&mut exit) => Some(status),
            ready = asking => {
                if ready.is_ok() {
                    return Ok(Launched { service, process });
                }
                None
            }
            never = hints => match never {},
        };
        let (reason, exited) = match status {
            Some(status) => (guard::describe(status), true),
            None => {
                let within = self.ready.timeout;
                let why = match listens_elsewhere(process.group(), port).await {
                    Some(elsewhere) => elsewhere,
                    None if !is_taken(port) => {
                        format!(
                            "nothing listens at 127.0.0.1:{port}, which its variable PORT asks for"
                        )
                    }
                    None => {
                        let came = latest.came().unwrap_or_else(|| "no probe was answered".into());
                        format!("{came}; {}", probe.wanted())
                    }
                };
                (format!("it was not ready within {within:?}: {why}"), false)
            }
        };
        let output = tail_lines(&process.tail);
        // Another try, or the next start, must find nothing left of this one.
        process.stop(Duration::ZERO).await;
        Err(Failed { error: StartError::new(reason).with_output(output), exited })
    }

    /// The probe for its readiness.
    fn probe(&self, port: u16) -> Probe {
        Probe {
            port,
            path: self.ready.path.clone(),
            host: self.ready.host.clone(),
            status: self.ready.status.clone(),
            timeout: self.ready.probe_timeout,
        }
    }
}

/// Warns about an app that listens on another address than it should, or rejects the probe, long before
/// its time is over.
async fn hints(name: &AppName, group: i32, probe: &Probe, latest: &Latest) -> Infallible {
    sleep(HINT_AFTER).await;
    let rejected = || Some(format!("{}; {}", latest.rejection()?, probe.wanted()));
    if let Some(reason) = listens_elsewhere(group, probe.port).await.or_else(rejected) {
        warn!(app = %name, reason, "the app is not ready yet");
    }
    std::future::pending().await
}

async fn listens_elsewhere(group: i32, port: u16) -> Option<String> {
    // The search looks at every process of the machine.
    tokio::task::spawn_blocking(move || listens::elsewhere(group, port)).await.ok().flatten()
}

/// What an app needs and this machine does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The key of the app's table that names it.
    pub key: &'static str,
    /// What was searched, and where.
    pub what: String,
    /// What to do.
    pub remedy: &'static str,
}

/// The path of `program`, searched as the guard does: from `dir` if it has a slash, else in `path`
/// or the peer's own `PATH`.
///
/// # Errors
/// If it is not there, or there is no `dir`.
pub fn find_program(program: &str, dir: &Path, path: Option<&String>) -> Result<PathBuf, Missing> {
    if !dir.is_dir() {
        let what = format!("there is no folder {} to run {program:?} in", dir.display());
        return Err(Missing { key: "dir", what, remedy: "make it, or correct dir" });
    }
    let no_program =
        |what| Missing { key: "run", what, remedy: "install it, or correct run or dir" };
    let is_executable = |file: &Path| {
        std::fs::metadata(file)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        let file = dir.join(program);
        return if is_executable(&file) {
            Ok(file)
        } else {
            Err(no_program(format!("there is no executable file {}", file.display())))
        };
    }
    let path = path.map(std::ffi::OsString::from).or_else(|| std::env::var_os("PATH"));
    std::env::split_paths(&path.unwrap_or_default())
        // An empty or relative element is relative to the folder that the program runs in.
        .map(|folder| dir.join(folder).join(program))
        .find(|file| !program.is_empty() && is_executable(file))
        .ok_or_else(|| no_program(format!("there is no program {program:?} in PATH")))
}

/// A port that was free a moment ago and was not chosen lately.
fn free_port() -> io::Result<u16> {
    static RECENT: Mutex<VecDeque<u16>> = Mutex::new(VecDeque::new());
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    // Listeners stay bound while others are tried, so that each try gets another port.
    let mut passed_over = Vec::new();
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        if !recent.contains(&port) || passed_over.len() > RECENT_PORTS {
            recent.push_back(port);
            if recent.len() > RECENT_PORTS {
                recent.pop_front();
            }
            return Ok(port);
        }
        passed_over.push(listener);
    }
}

fn is_taken(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// The last lines of output, shared by the readers and the task that reports a failure.
type Tail = Arc<Mutex<VecDeque<String>>>;

fn tail_lines(tail: &Tail) -> Vec<String> {
    tail.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// A guarded child. Dropping it kills the child and its descendants.
pub struct Process {
    /// The guard's process id and that of the group it leads.
    group: Pid,
    /// Closing it makes the guard kill the child.
    _alive: ChildStdin,
    exit: watch::Receiver<Option<ExitStatus>>,
    tail: Tail,
}

impl Process {
    fn spawn(
        app: &ChildApp,
        port: u16,
        env: &[(OsString, OsString)],
        name: &AppName,
    ) -> io::Result<Self> {
        let mut command = Command::new(&app.guard);
        command
            .arg0("warmhop")
            .args(guard::arguments(&app.confine, &app.run))
            .current_dir(&app.dir)
            .env_clear()
            .envs(env.iter().map(|(name, value)| (name, value)))
            .env("PORT", port.to_string())
            .envs(app.redis.iter().map(|url| ("REDIS_URL", url)))
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let (Some(pid), Some(alive), Some(stdout), Some(stderr)) =
            (child.id(), child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            unreachable!("a child that was just spawned has its id and the pipes asked for");
        };
        let tail = Tail::default();
        let readers = [
            tokio::spawn(read_output(stdout, "stdout", name.clone(), Arc::clone(&tail))),
            tokio::spawn(read_output(stderr, "stderr", name.clone(), Arc::clone(&tail))),
        ];
        let group = Pid::from_raw(pid.cast_signed());
        usage::begins(name, group.as_raw());
        let (exited, exit) = watch::channel(None);
        tokio::spawn(reap(child, group, readers, exited));
        Ok(Self { group, _alive: alive, exit, tail })
    }

    /// The guard's process id, which is also the id of the group that it leads.
    #[must_use]
    pub fn group(&self) -> i32 {
        self.group.as_raw()
    }

    /// Resolves when the child has ended, with the reason and the last lines of its output.
    pub fn exited(&self) -> impl Future<Output = Ended> + Send + use<> {
        let (mut exit, tail) = (self.exit.clone(), Arc::clone(&self.tail));
        async move {
            let status = ended(&mut exit).await;
            let mut lines = vec![guard::describe(status)];
            lines.extend(tail_lines(&tail));
            Ended::new(lines.join("\n")).in_good_order(status.success())
        }
    }

    /// Asks the group to end, waits for `grace`, and kills the rest. Resolves when no process is
    /// left.
    pub async fn stop(self, grace: Duration) {
        let Self { group, _alive: alive, mut exit, .. } = self;
        if !grace.is_zero() && exit.borrow().is_none() {
            let _ = killpg(group, Signal::SIGTERM);
            if timeout(grace, ended(&mut exit)).await.is_ok() {
                return;
            }
        }
        drop(alive);
        if timeout(KILL_TIMEOUT, ended(&mut exit)).await.is_err() {
            let _ = killpg(group, Signal::SIGKILL);
            let _ = timeout(KILL_TIMEOUT, ended(&mut exit)).await;
        }
    }
}

/// Waits for the guard's end and reports it, once the output before it has been read.
async fn reap(
    mut child: Child,
    group: Pid,
    readers: [tokio::task::JoinHandle<()>; 2],
    exited: watch::Sender<Option<ExitStatus>>,
) {
    let status = child.wait().await.unwrap_or_default();
    if status.code().is_none() {
        // The guard was killed and could not clean up, so its group is killed from here.
        let _ = killpg(group, Signal::SIGKILL);
    }
    usage::ends(group.as_raw());
    let _ = timeout(OUTPUT_TIMEOUT, async {
        for reader in readers {
            let _ = reader.await;
        }
    })
    .await;
    exited.send_replace(Some(status));
}

async fn ended(exit: &mut watch::Receiver<Option<ExitStatus>>) -> ExitStatus {
    let status = exit.wait_for(Option::is_some).await.ok().and_then(|status| *status);
    match status {
        Some(status) => status,
        // The task that waits for the process is gone with the runtime.
        None => std::future::pending().await,
    }
}

/// Logs each line of `output` until its end.
async fn read_output(
    output: impl AsyncRead + Unpin,
    stream: &'static str,
    app: AppName,
    tail: Tail,
) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    let mut cut = false;
    loop {
        let (used, ends) = match output.fill_buf().await {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok([]) | Err(_) => break,
            Ok(bytes) => {
                let newline = bytes.iter().position(|byte| *byte == b'\n');
                let part = &bytes[..newline.unwrap_or(bytes.len())];
                let fits = part.len().min(LINE_BYTES_MAX - line.len());
                line.extend_from_slice(&part[..fits]);
                cut |= fits < part.len();
                (newline.map_or(bytes.len(), |at| at + 1), newline.is_some())
            }
        };
        output.consume(used);
        if ends {
            log_line(&mut line, &mut cut, stream, &app, &tail);
        }
    }
    if !line.is_empty() {
        log_line(&mut line, &mut cut, stream, &app, &tail);
    }
}

/// `text` without colours and cursor movements, which are useless in a log or a message; tabs stay.
fn without_controls(text: &str) -> String {
    if !text.contains(|c: char| c.is_control()) {
        return text.to_owned();
    }
    let parts: Vec<_> = text.split('\t').map(strip_ansi_escapes::strip_str).collect();
    parts.join("\t").chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

fn log_line(line: &mut Vec<u8>, cut: &mut bool, stream: &str, app: &AppName, tail: &Tail) {
    let mut text = without_controls(&String::from_utf8_lossy(line));
    if std::mem::take(cut) {
        text.push_str(" … (cut)");
    }
    line.clear();
    info!(target: "warmhop::app", %app, stream, "{text}");
    let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    if tail.len() == TAIL_LINES {
        tail.pop_front();
    }
    tail.push_back(text);
}

#[cfg(test)]
mod tests;

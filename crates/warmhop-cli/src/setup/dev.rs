//! `warmhop dev`: a mesh of a few peers on this machine with one app behind them, for the first
//! minute: no configuration file, no certificates to make, and everything ends with Ctrl-C.
//!
//! ```text
//! warmhop dev ──stdin pipe──▶ guard ──▶ warmhop run --config FOLDER/peer-1/warmhop.toml ──▶ app
//!             ├─stdin pipe──▶ guard ──▶ warmhop run …
//! ```
//!
//! Each peer is a process of its own, so that it can be killed as a machine would be. Each has a
//! [`guard`], so that none outlives this program, however it ends. The peers' logs come back as
//! JSON lines: the app's output is shown under its peer's name, starts are reported as they happen,
//! and of the rest only what needs attention.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use warmhop::identity::Authority;
use warmhop::ids::PeerId;
use warmhop::status::Status;

use crate::child::find_program;
use crate::failure::Failure;
use crate::host::confine::Confine;
use crate::host::guard;
use crate::operate::client::{Admin, AdminUrl};

/// The most peers that one command starts.
pub const PEERS_MAX: u16 = 9;
/// The name of the cluster and of its one app.
const CLUSTER: &str = "dev";
const APP: &str = "app";
/// The first of the admin listeners' ports if they are free, as every command assumes.
const ADMIN_PORT: u16 = 9001;
/// How long the mesh may take to form.
const FORM_WITHIN: Duration = Duration::from_secs(120);
/// How often it is said meanwhile that it has not.
const STILL_EVERY: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
/// How long the peers may take to drain before they are killed.
const DRAIN_WITHIN: Duration = Duration::from_secs(15);
/// An app that has not answered after this time may listen somewhere else.
const HINT_AFTER: Duration = Duration::from_secs(8);
/// What to do about that.
const LISTEN_ON_PORT: &str = "Have it listen on $PORT, as in: \
                              warmhop dev -- 'python3 -m http.server $PORT'";
/// What to do about an app that rejects the probe.
const NAME_A_PATH: &str = "Name a path with --ready that it answers with 2xx or 3xx once it is ready, or \
                           leave --ready out.";
/// Lines of the peers that wait to be shown; a peer that writes more has to wait.
const LINES_MAX: usize = 1024;
/// The longest line that is shown whole.
const LINE_CHARS_MAX: usize = 2000;

/// What to run.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// How many peers.
    pub peers: u16,
    /// The port of the first front door; the others follow. 0: any free ports.
    pub port: u16,
    /// Where the app's sessions are: `portable`, `pinned` or `none`.
    pub session: String,
    /// The path that answers once the app is ready; absent: it is ready once it listens.
    pub ready: Option<String>,
    /// The app, with its arguments; a single word with spaces is a line for the shell.
    pub command: Vec<String>,
}

/// Runs the mesh until Ctrl-C or SIGTERM, or until no peer is left.
///
/// # Errors
/// What is wrong with the command or the ports, or why the mesh did not form.
pub async fn run(wanted: Wanted) -> Result<u8, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let run = command_line(&wanted.command);
    let here = std::env::current_dir().map_err(|error| {
        Failure::failed(format!("cannot determine the current folder: {error}"))
    })?;
    if let Err(missing) = find_program(&run[0], &here, None) {
        return Err(Failure::usage(format!(
            "{}: give the command that starts your app behind --, as in: warmhop dev -- node server.js",
            missing.what
        )));
    }
    let mut terminated = signal(SignalKind::terminate())
        .map_err(|error| Failure::failed(format!("cannot wait for signals: {error}")))?;
    let folder = Folder::make()?;
    let places = places(wanted.peers, wanted.port)?;
    write_files(&folder.0, &places, &wanted, &run, &here)?;
    let (lines, mut heard) = mpsc::channel(LINES_MAX);
    let mut peers = Vec::new();
    for place in &places {
        peers.push(Peer::start(&folder.0, place, lines.clone())?);
    }
    drop(lines);

    let mut shown = Shown::default();
    let outcome = tokio::select! {
        outcome = follow(&places, &run, &mut heard, &mut shown) => outcome.map(|()| 0),
        _ = tokio::signal::ctrl_c() => Ok(0),
        _ = terminated.recv() => Ok(0),
    };
    if outcome.is_ok() {
        // Nobody may be left to read it.
        let _ = say("ending; Ctrl-C again ends everything at once\n");
    }
    end(peers, &mut heard, &mut shown).await;
    outcome
}

/// Shows events until no peer is left.
async fn follow(
    places: &[Place],
    run: &[String],
    heard: &mut mpsc::Receiver<Heard>,
    shown: &mut Shown,
) -> Result<(), Failure> {
    let formed = formed(places);
    tokio::pin!(formed);
    let (mut is_formed, mut left) = (false, places.len());
    let mut still = tokio::time::interval_at(Instant::now() + STILL_EVERY, STILL_EVERY);
    while left > 0 {
        tokio::select! {
            outcome = &mut formed, if !is_formed => {
                outcome?;
                is_formed = true;
                shown.has_formed = true;
                say(&welcome(places, run))?;
            }
            line = heard.recv() => match line {
                Some(Heard::Line { peer, text }) => shown.line(&peer, &text)?,
                Some(Heard::Ended { peer }) if is_formed => {
                    left -= 1;
                    say(&format!("{peer}  ended\n"))?;
                }
                Some(Heard::Ended { peer }) => {
                    let why = shown.last_error.take();
                    let why = why.unwrap_or_else(|| "it gave no reason".into());
                    return Err(Failure::failed(format!("{peer} did not start: {why}")));
                }
                None => break,
            },
            _ = still.tick(), if !is_formed => say("the peers are still starting\n")?,
            () = sleep_until(shown.hint_at()), if shown.starting_since.is_some() => shown.hint()?,
        }
    }
    Err(Failure::failed("no peer is left"))
}

/// The app's command: a single word with white space in it is a line for the shell, so that it can
/// use `$PORT`.
fn command_line(command: &[String]) -> Vec<String> {
    match command {
        [line] if line.contains(char::is_whitespace) => {
            vec!["sh".into(), "-c".into(), line.clone()]
        }
        words => words.to_vec(),
    }
}

/// The addresses of one peer.
struct Place {
    name: PeerId,
    http: SocketAddr,
    mesh: SocketAddr,
    admin: SocketAddr,
    redis: SocketAddr,
}

/// Finds free ports for `peers` peers whose front doors begin at `port`.
fn places(peers: u16, port: u16) -> Result<Vec<Place>, Failure> {
    let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if port.checked_add(peers.saturating_sub(1)).is_none() {
        return Err(Failure::usage(format!(
            "--port {port} leaves no ports for {peers} peers, which take as many in a row: choose one \
             up to {}",
            u16::MAX - (peers - 1)
        )));
    }
    for at in (0..peers).filter(|_| port != 0) {
        let front = port.checked_add(at);
        let free = front.map(|front| TcpListener::bind(local(front)).map(drop));
        if let Some(Err(error)) = free {
            let front = u32::from(port) + u32::from(at);
            return Err(Failure::failed(format!(
                "cannot listen on port {front} ({error}): choose others with --port, which names \
                 the first of {peers}"
            )));
        }
    }
    let unusable =
        |error: io::Error| Failure::failed(format!("cannot find a free port on loopback: {error}"));
    // All stay bound until the last is found, so that no port is chosen twice.
    let (mut tcp, mut udp) = (Vec::new(), Vec::new());
    let any = |tcp: &mut Vec<TcpListener>| -> Result<SocketAddr, Failure> {
        let listener = TcpListener::bind(local(0)).map_err(unusable)?;
        let addr = listener.local_addr().map_err(unusable)?;
        tcp.push(listener);
        Ok(addr)
    };
    let usual: Vec<_> =
        (0..peers).map_while(|at| TcpListener::bind(local(ADMIN_PORT + at)).ok()).collect();
    let are_usual = usual.len() == usize::from(peers);
    let mut places = Vec::new();
    for at in 0..peers {
        let socket = UdpSocket::bind(local(0)).map_err(unusable)?;
        let mesh = socket.local_addr().map_err(unusable)?;
        udp.push(socket);
        let admin = if are_usual { local(ADMIN_PORT + at) } else { any(&mut tcp)? };
        let name = PeerId::new(&format!("peer-{}", at + 1));
        let name = name.map_err(|error| Failure::failed(error.to_string()))?;
        let http = if port == 0 { any(&mut tcp)? } else { local(port + at) };
        places.push(Place { name, http, mesh, admin, redis: any(&mut tcp)? });
    }
    Ok(places)
}

/// A folder that is removed when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("warmhop-dev-{}", std::process::id()));
        // A killed process of this number may have left one behind.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| {
            Failure::failed(format!("cannot make the folder {}: {error}", path.display()))
        })?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nobody is left to report a failure to; it is in a folder where temporary files are swept.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write_files(
    folder: &Path,
    places: &[Place],
    wanted: &Wanted,
    run: &[String],
    here: &Path,
) -> Result<(), Failure> {
    let authority = Authority::generate(CLUSTER).map_err(Failure::failed)?;
    for place in places {
        let dir = folder.join(place.name.as_str());
        authority.issue_into(&place.name, dir.join("certs"), false).map_err(Failure::failed)?;
        let file = dir.join("warmhop.toml");
        let text = configuration(place, places, wanted, run, here).to_string();
        std::fs::write(&file, text).map_err(|error| {
            Failure::failed(format!("cannot write {}: {error}", file.display()))
        })?;
    }
    Ok(())
}

fn configuration(
    place: &Place,
    places: &[Place],
    wanted: &Wanted,
    run: &[String],
    here: &Path,
) -> toml::Table {
    use toml::Value;
    fn table<const N: usize>(entries: [(&str, Value); N]) -> Value {
        Value::Table(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }
    let text = |addr: SocketAddr| Value::from(addr.to_string());
    // `${NAME}` is a variable in a configuration; here every dollar is meant literally.
    let literal = |word: &str| Value::from(word.replace("${", "$${"));
    let mut app = toml::Table::new();
    app.insert("name".into(), APP.into());
    app.insert("match".into(), table([("path", "/".into())]));
    app.insert("run".into(), run.iter().map(|word| literal(word)).collect::<Vec<_>>().into());
    app.insert("dir".into(), literal(&here.to_string_lossy()));
    app.insert("session".into(), wanted.session.clone().into());
    app.insert("keep_ready".into(), 1.into());
    if let Some(path) = &wanted.ready {
        app.insert("ready".into(), table([("path", literal(path))]));
    }
    let seeds: Vec<_> = places.iter().map(|place| text(place.mesh)).collect();
    let mut config = toml::Table::new();
    config.insert("cluster".into(), CLUSTER.into());
    config.insert("peer".into(), table([("name", place.name.as_str().into())]));
    config.insert("http".into(), table([("listen", vec![text(place.http)].into())]));
    let mesh =
        [("listen", text(place.mesh)), ("seeds", seeds.into()), ("identity", "certs".into())];
    config.insert("mesh".into(), table(mesh));
    config.insert("admin".into(), table([("listen", text(place.admin))]));
    if wanted.session == "portable" {
        config.insert("session".into(), table([("redis", text(place.redis))]));
    }
    config.insert(APP.into(), vec![Value::Table(app)].into());
    config
}

/// A running peer: its guard, whose standard input keeps it alive. The guard itself is never
/// killed, since it could not end the peer then.
struct Peer {
    guard: Child,
    _alive: Option<ChildStdin>,
}

/// A report from a peer.
enum Heard {
    /// A line of its log.
    Line { peer: PeerId, text: String },
    /// It is gone.
    Ended { peer: PeerId },
}

impl Peer {
    fn start(folder: &Path, place: &Place, lines: mpsc::Sender<Heard>) -> Result<Self, Failure> {
        let failed =
            |error: io::Error| Failure::failed(format!("cannot start {}: {error}", place.name));
        let program = std::env::current_exe().map_err(failed)?;
        let config = folder.join(place.name.as_str()).join("warmhop.toml");
        let run = [
            program.to_string_lossy().into_owned(),
            "run".into(),
            "--log".into(),
            "json".into(),
            "--config".into(),
            config.to_string_lossy().into_owned(),
        ];
        let mut guard = Command::new(guard::executable())
            .args(guard::arguments(&Confine::default(), &run))
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C reaches this program alone, which then drains the peers.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let alive = guard.stdin.take();
        if let Some(log) = guard.stderr.take() {
            let peer = place.name.clone();
            tokio::spawn(async move {
                let mut log = BufReader::new(log).lines();
                while let Ok(Some(text)) = log.next_line().await {
                    if lines.send(Heard::Line { peer: peer.clone(), text }).await.is_err() {
                        return;
                    }
                }
                // Fails only once nobody listens.
                let _ = lines.send(Heard::Ended { peer }).await;
            });
        }
        Ok(Self { guard, _alive: alive })
    }

    fn terminate(&self) {
        if let Some(id) = self.guard.id() {
            // It may have ended by itself already, which is the goal.
            let _ = killpg(Pid::from_raw(id.cast_signed()), Signal::SIGTERM);
        }
    }
}

/// Drains all peers and waits for their end; a second Ctrl-C, or a timeout, kills them.
async fn end(mut peers: Vec<Peer>, heard: &mut mpsc::Receiver<Heard>, shown: &mut Shown) {
    for peer in &peers {
        peer.terminate();
    }
    let until = Instant::now() + DRAIN_WITHIN;
    let all_ended = async {
        for peer in &mut peers {
            let _ = timeout_at(until, peer.guard.wait()).await;
        }
    };
    let show_output = async {
        while let Some(heard) = heard.recv().await {
            if let Heard::Line { peer, text } = heard {
                // A line that can no longer be shown is no reason to stay.
                let _ = shown.output_of_app(&peer, &text);
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = all_ended => {}
        () = show_output => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    // The remaining peers end with their guards, whose inputs close here.
}

/// Waits until every peer answers and sees every other.
async fn formed(places: &[Place]) -> Result<(), Failure> {
    let until = Instant::now() + FORM_WITHIN;
    for place in places {
        loop {
            if sees_all(place, places.len() - 1).await {
                break;
            }
            if Instant::now() >= until {
                let seconds = FORM_WITHIN.as_secs();
                return Err(Failure::failed(format!(
                    "the peers did not find each other within {seconds} s"
                )));
            }
            sleep(POLL).await;
        }
    }
    Ok(())
}

async fn sees_all(place: &Place, others: usize) -> bool {
    let Ok(url) = place.admin.to_string().parse::<AdminUrl>() else { return false };
    let admin = Admin::new(url, None);
    let Ok(answer) = admin.status().await else { return false };
    let status = admin.read::<Status>(&answer);
    status.is_ok_and(|status| status.peers.iter().filter(|peer| peer.alive).count() == others)
}

fn welcome(places: &[Place], run: &[String]) -> String {
    let peers = if places.len() == 1 { "peer" } else { "peers" };
    let mut text = format!("{} {peers} in front of: {}\n\n", places.len(), run.join(" "));
    for place in places {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  {}  http://{}/   dashboard http://{}/",
            place.name, place.http, place.admin
        );
    }
    let (first, admin) = match places {
        [first, ..] => (first.http.to_string(), first.admin.to_string()),
        [] => return text,
    };
    let admin = if admin.ends_with(&format!(":{ADMIN_PORT}")) {
        String::new()
    } else {
        format!(" --admin http://{admin}")
    };
    let _ = write!(
        text,
        "\nOpen http://{first}/ : the first request is answered wherever a copy is ready, and starts one \
         here.\nSee more with: warmhop status --watch{admin}\nCtrl-C ends everything.\n\n"
    );
    text
}

/// The part of the peers' logs that is shown.
#[derive(Default)]
struct Shown {
    last_error: Option<String>,
    /// Since when a first copy has been starting, until one was ready or the hint was given.
    starting_since: Option<Instant>,
    was_ready: bool,
    /// The peers have found each other.
    has_formed: bool,
}

/// How a peer's line begins about a seed that it does not reach.
const UNREACHED: &str = "a seed cannot be reached";

impl Shown {
    fn line(&mut self, peer: &PeerId, text: &str) -> Result<(), Failure> {
        if self.output_of_app(peer, text)? {
            return Ok(());
        }
        let Ok(event) = serde_json::from_str::<Value>(text) else {
            // Not a line of the log: the program ended before logging began.
            self.last_error = Some(text.trim_start_matches("warmhop: ").to_owned());
            return say(&format!("{peer}  {}\n", shortened(text)));
        };
        let message = event["message"].as_str().unwrap_or_default();
        let about_app = event["app"] == APP;
        if about_app && message == "starting" {
            if !self.was_ready {
                self.starting_since.get_or_insert_with(Instant::now);
            }
            say(&format!("{peer}  the app starts\n"))
        } else if about_app && message == "ready" {
            self.was_ready = true;
            self.starting_since = None;
            let took = event["took_ms"].as_u64().unwrap_or_default();
            say(&format!("{peer}  the app is ready, after {took} ms\n"))
        } else if !self.has_formed && message.starts_with(UNREACHED) {
            // It is another of these peers, which is only slower.
            Ok(())
        } else if matches!(event["level"].as_str(), Some("WARN" | "ERROR")) {
            let why = event["reason"].as_str().or(event["error"].as_str());
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            let next = match event["next_try_ms"].as_u64() {
                Some(ms) if ms > 0 => format!("; next try in {:.1} s", ms as f64 / 1000.0),
                _ => String::new(),
            };
            let error = format!("{message}{why}{next}");
            let line = say(&format!("{peer}  {}\n", shortened(&error)));
            self.last_error = Some(error);
            line?;
            if about_app && message == "the app did not start" {
                // Its command has ended. The next start begins to wait anew.
                self.starting_since = None;
            }
            if about_app
                && message == "the app is not ready yet"
                && self.starting_since.take().is_some()
            {
                // It listens where it should, and answers the probe with an error.
                let is_rejected = why.contains(" answered ");
                let remedy = if is_rejected { NAME_A_PATH } else { LISTEN_ON_PORT };
                return say(&format!("         {remedy}\n"));
            }
            Ok(())
        } else {
            Ok(())
        }
    }

    /// Shows a line that the app printed; returns whether it was one.
    fn output_of_app(&mut self, peer: &PeerId, text: &str) -> Result<bool, Failure> {
        let Ok(event) = serde_json::from_str::<Value>(text) else { return Ok(false) };
        if event["target"] != "warmhop::app" {
            return Ok(false);
        }
        let printed = event["message"].as_str().unwrap_or_default();
        say(&format!("{peer}  | {}\n", shortened(printed)))?;
        Ok(true)
    }

    fn hint_at(&self) -> Instant {
        self.starting_since.unwrap_or_else(Instant::now) + HINT_AFTER
    }

    fn hint(&mut self) -> Result<(), Failure> {
        self.starting_since = None;
        say(&format!(
            "         The command has run for {} s, and nothing answers yet at the port in its variable \
             PORT.\n         If it is only slow, wait. {LISTEN_ON_PORT}\n",
            HINT_AFTER.as_secs()
        ))
    }
}

fn shortened(text: &str) -> &str {
    match text.char_indices().nth(LINE_CHARS_MAX) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

/// Writes to standard output; a reader that has seen enough ends the program.
fn say(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::failed(format!("cannot write: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_has_ended_is_not_said_to_run() {
        let peer = PeerId::new("peer-1").unwrap();
        let mut shown = Shown::default();
        let mut sees = |message: &str, level: &str| {
            let event = serde_json::json!({ "message": message, "level": level, "app": APP });
            shown.line(&peer, &event.to_string()).unwrap();
            shown.starting_since.is_some()
        };
        assert!(sees("starting", "INFO"));
        assert!(!sees("the app did not start", "WARN"));
        assert!(sees("starting", "INFO"), "the next start");
        assert!(!sees("ready", "INFO"));
    }

    #[test]
    fn seeds_that_are_only_slower_are_not_reported() {
        let peer = PeerId::new("peer-1").unwrap();
        let message = format!("{UNREACHED}; it is tried until it answers");
        let event = serde_json::json!({ "message": message, "level": "WARN" }).to_string();
        let mut shown = Shown::default();
        shown.line(&peer, &event).unwrap();
        assert_eq!(shown.last_error, None);
        shown.has_formed = true;
        shown.line(&peer, &event).unwrap();
        assert_eq!(shown.last_error.as_deref(), Some(&*message));
    }
}

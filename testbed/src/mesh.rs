//! Peers: their certificates, configurations and processes, and waiting for what they report.
//!
//! ```text
//! FOLDER/ca/              the authority that issued every certificate of this mesh
//! FOLDER/NAME/warmhop.toml, certs/, log
//! ```
//!
//! A [`Mesh`] ends with its value: whatever it started is killed, apps included, unless the
//! program that holds it is killed by SIGKILL. [`Mesh::release`] lets the peers live on.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use serde_json::Value as Json;
use tokio::time::sleep;
use toml::{Table, Value};

use crate::client::Client;
use crate::ports::PeerPorts;
use crate::process::ProcessId;
use crate::state::PeerRecord;

/// How long a mesh may take to form; it takes a second or two.
pub const FORM_BOUND: Duration = Duration::from_secs(30);
/// How long a peer may take to drain before it is killed: more than its own grace times together.
pub const DRAIN_BOUND: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(15);
const ADMIN_TIMEOUT: Duration = Duration::from_secs(3);
const LOG_LINES: usize = 15;

/// The settings of a mesh.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Where its files go.
    pub folder: PathBuf,
    /// Its name.
    pub cluster: String,
    /// The addresses of `peer-1`, `peer-2` …
    pub ports: Vec<PeerPorts>,
    /// The apps of every peer, with absolute paths.
    pub apps: Vec<Table>,
    /// Settings of every peer beside those above, merged over the testbed's own.
    pub settings: Table,
    /// Whether the peers are to outlive this process and the terminal it runs in.
    pub detached: bool,
}

/// The peers of one mesh, as this process knows them.
#[derive(Debug)]
pub struct Mesh {
    spec: Spec,
    peers: Vec<Peer>,
    orphans: Vec<ProcessId>,
}

/// One peer.
#[derive(Debug)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub ports: PeerPorts,
    folder: PathBuf,
    child: Option<(Child, ProcessId)>,
}

impl Mesh {
    /// Writes certificates and configurations, starts every peer and waits until each sees
    /// every other.
    ///
    /// # Errors
    /// If a peer ends or does not see the others in time; with its last words.
    pub async fn launch(spec: Spec) -> Result<Self> {
        let mut mesh = Self::prepare(spec)?;
        for index in 0..mesh.peers.len() {
            mesh.start(index)?;
        }
        mesh.formed().await?;
        Ok(mesh)
    }

    /// Writes certificates and configurations only.
    ///
    /// # Errors
    /// If a file cannot be written, or `warmhop cert` fails.
    pub fn prepare(spec: Spec) -> Result<Self> {
        let ca = spec.folder.join("ca");
        clear(&ca)?;
        std::fs::create_dir_all(&spec.folder)?;
        warmhop_cert(&["ca", "--cluster", &spec.cluster, "--out"], &ca)?;
        let mut peers = Vec::with_capacity(spec.ports.len());
        for (index, ports) in spec.ports.iter().enumerate() {
            let name = format!("peer-{}", index + 1);
            let folder = spec.folder.join(&name);
            clear(&folder)?;
            std::fs::create_dir_all(&folder)?;
            let certs = folder.join("certs");
            let ca = ca.to_str().context("the folder's path is not UTF-8")?;
            warmhop_cert(&["peer", &name, "--ca", ca, "--out"], &certs)?;
            let config = configuration(&spec, &name, ports, &certs)?;
            std::fs::write(folder.join("warmhop.toml"), config.to_string())?;
            peers.push(Peer { name, ports: *ports, folder, child: None });
        }
        Ok(Self { spec, peers, orphans: Vec::new() })
    }

    /// Every peer, running or not.
    #[must_use]
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// The peer at `index`, from 0.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn peer(&self, index: usize) -> &Peer {
        &self.peers[index]
    }

    /// The position of the peer with that name.
    #[must_use]
    pub fn index(&self, name: &str) -> Option<usize> {
        self.peers.iter().position(|peer| peer.name == name)
    }

    /// Changes the configuration of the peer at `index`; it counts from its next start.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn reconfigure(&self, index: usize, change: impl FnOnce(&mut Table)) -> Result<()> {
        let path = self.peers[index].folder.join("warmhop.toml");
        let mut config: Table = std::fs::read_to_string(&path)?.parse()?;
        change(&mut config);
        Ok(std::fs::write(path, config.to_string())?)
    }

    /// Starts the peer at `index`, which does not run.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&mut self, index: usize) -> Result<()> {
        self.start_with(index, &[])
    }

    /// As [`Mesh::start`], with more in its environment.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_with(&mut self, index: usize, env: &[(&str, &str)]) -> Result<()> {
        let detached = self.spec.detached;
        let peer = &mut self.peers[index];
        if peer.is_alive() {
            bail!("{} runs already", peer.name);
        }
        let child = spawn(&peer.folder, detached, env)?;
        let process = ProcessId::of(child.id()).context("it ended at once")?;
        peer.child = Some((child, process));
        Ok(())
    }

    /// How the peer at `index` exited, if it was started and has ended by itself; it may then be
    /// started again.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn ended(&mut self, index: usize) -> Result<Option<ExitStatus>> {
        let peer = &mut self.peers[index];
        let status = peer.exit_status()?;
        if status.is_some() {
            peer.child = None;
        }
        Ok(status)
    }

    /// Whether every running peer answers and sees every other running one at this moment.
    pub async fn is_formed(&self) -> bool {
        let names: Vec<String> = self.running().map(|peer| peer.name.clone()).collect();
        for peer in self.running() {
            if missing(&peer.status().await, &peer.name, &names).is_some() {
                return false;
            }
        }
        true
    }

    /// Waits until every running peer sees every other running one.
    ///
    /// # Errors
    /// If one ends or the bound passes; with the last lines of its log.
    pub async fn formed(&mut self) -> Result<()> {
        let until = Instant::now() + FORM_BOUND;
        let names: Vec<String> = self.running().map(|peer| peer.name.clone()).collect();
        for index in 0..self.peers.len() {
            if self.peers[index].child.is_none() {
                continue;
            }
            loop {
                let peer = &mut self.peers[index];
                if let Some(status) = peer.exit_status()? {
                    bail!("{} ended ({status}) while the mesh formed.\n{}", peer.name, peer.tail());
                }
                let missing = missing(&peer.status().await, &peer.name, &names);
                let Some(missing) = missing else { break };
                if Instant::now() >= until {
                    bail!("{} {missing} after {FORM_BOUND:?}.\n{}", peer.name, peer.tail());
                }
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Kills the peer at `index` as a power cut would.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        let peer = &mut self.peers[index];
        let (mut child, process) = peer.child.take().context("it does not run")?;
        self.orphans.extend(process.descendants());
        process.signal(Signal::SIGKILL)?;
        child.wait()?;
        Ok(())
    }

    /// Shuts the peer at `index` down cleanly; returns how it exited.
    ///
    /// # Errors
    /// If it does not run, or has to be killed.
    pub async fn stop(&mut self, index: usize) -> Result<ExitStatus> {
        let peer = &mut self.peers[index];
        let (_, process) = peer.child.as_ref().context("it does not run")?;
        self.orphans.extend(process.descendants());
        process.signal(Signal::SIGTERM)?;
        let bound = DRAIN_BOUND;
        let status = until("it ends after SIGTERM", bound, async || peer.exit_status().ok()?).await;
        let status = status.with_context(|| format!("{}\n{}", peer.name, peer.tail()))?;
        peer.child = None;
        Ok(status)
    }

    /// Lets the peers live on, and says which they are.
    ///
    /// # Errors
    /// If one of them has ended.
    pub fn release(mut self) -> Result<Vec<PeerRecord>> {
        let records = self.peers.iter().map(Peer::record).collect::<Result<_>>()?;
        for peer in &mut self.peers {
            peer.child = None;
        }
        Ok(records)
    }

    fn running(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| peer.child.is_some())
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for peer in &mut self.peers {
            let Some((mut child, process)) = peer.child.take() else { continue };
            self.orphans.extend(process.descendants());
            // Nobody is left to report a failure to.
            let _ = process.signal(Signal::SIGCONT);
            let _ = process.signal(Signal::SIGKILL);
            let _ = child.wait();
        }
        for orphan in &self.orphans {
            let _ = orphan.signal(Signal::SIGKILL);
        }
    }
}

impl Peer {
    /// Its folder, with `warmhop.toml`, `certs` and `log`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its process, if it was started.
    #[must_use]
    pub fn process(&self) -> Option<ProcessId> {
        self.child.as_ref().map(|(_, process)| *process)
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.process().is_some_and(ProcessId::is_alive)
    }

    /// The answer of its admin listener at `/v1/status`.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn status(&self) -> Result<Json> {
        status(self.ports.admin).await
    }

    /// The state of one of its apps, as itself reports it; `gone` if it does not answer.
    pub async fn app_state(&self, app: &str) -> String {
        match self.status().await {
            Ok(status) => app_state(&status, app).unwrap_or("unknown").to_owned(),
            Err(_) => "gone".to_owned(),
        }
    }

    /// The whole log of all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        let raw = std::fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&raw).into_owned()
    }

    fn tail(&self) -> String {
        log_tail(&self.folder)
    }

    fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.child {
            Some((child, _)) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    fn record(&self) -> Result<PeerRecord> {
        let process = self.process().filter(|process| process.is_alive());
        Ok(PeerRecord {
            name: self.name.clone(),
            process: process
                .with_context(|| format!("{} has ended.\n{}", self.name, self.tail()))?,
            http: self.ports.http,
            mesh: self.ports.mesh,
            admin: self.ports.admin,
            redis: self.ports.redis,
        })
    }
}

/// Asks again until there is an answer.
///
/// # Errors
/// If there is none within `bound`.
pub async fn until<T>(
    what: &str,
    bound: Duration,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let end = Instant::now() + bound;
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if Instant::now() >= end {
            return Err(anyhow!("waited {bound:?} in vain until {what}"));
        }
        sleep(POLL).await;
    }
}

/// Starts the peer whose files are in `folder`; what it says is appended to `log` there.
///
/// # Errors
/// If it cannot be started.
pub fn spawn(folder: &Path, detached: bool, env: &[(&str, &str)]) -> Result<Child> {
    let log = File::options().create(true).append(true).open(folder.join("log"))?;
    let mut command = Command::new(crate::program("warmhop")?);
    command
        .args(["run", "--config"])
        .arg(folder.join("warmhop.toml"))
        .current_dir(folder)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if detached {
        // A group of its own: a Ctrl-C meant for the launcher does not reach it.
        command.process_group(0);
    }
    command.spawn().context("cannot start warmhop")
}

/// The answer of the admin listener at `admin` at `/v1/status`.
///
/// # Errors
/// If it does not answer with JSON.
pub async fn status(admin: std::net::SocketAddr) -> Result<Json> {
    let mut client = Client::new();
    let call = client.call(http::Method::GET, "/v1/status").timeout(ADMIN_TIMEOUT);
    call.send(admin).await?.ok()?.json()
}

/// The state of one app in a peer's status.
#[must_use]
pub fn app_state<'a>(status: &'a Json, app: &str) -> Option<&'a str> {
    let apps = status.get("apps")?.as_array()?;
    apps.iter().find(|entry| entry["name"] == app)?.get("state")?.as_str()
}

/// Which of `names` a peer does not yet see alive, as the end of a sentence; `None` if it sees
/// them all.
#[must_use]
pub fn missing(status: &Result<Json>, own: &str, names: &[String]) -> Option<String> {
    let status = match status {
        Ok(status) => status,
        Err(error) => return Some(format!("does not answer on its admin listener ({error:#})")),
    };
    let none = Vec::new();
    let peers = status["peers"].as_array().unwrap_or(&none);
    let seen = |name: &str| peers.iter().any(|p| p["name"] == name && p["alive"] == true);
    let missing: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| *name != own && !seen(name)).collect();
    (!missing.is_empty()).then(|| format!("does not see {}", missing.join(", ")))
}

/// The last lines of the log in a peer's folder, for an error message.
#[must_use]
pub fn log_tail(folder: &Path) -> String {
    let path = folder.join("log");
    let read = || -> std::io::Result<String> {
        let mut file = File::open(&path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(16 * 1024)))?;
        let mut raw = Vec::new();
        file.read_to_end(&mut raw)?;
        Ok(String::from_utf8_lossy(&raw).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n  ");
    format!("The last lines of {}:\n  {last}", path.display())
}

fn configuration(spec: &Spec, name: &str, ports: &PeerPorts, certs: &Path) -> Result<Table> {
    let seeds = spec.ports.iter().take(3).map(|peer| Value::from(peer.mesh.to_string())).collect();
    let mut config = Table::new();
    config.insert("cluster".into(), spec.cluster.clone().into());
    let mut section = |key: &str, entries: Vec<(&str, Value)>| {
        let table = entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Table>();
        config.insert(key.to_owned(), Value::Table(table));
    };
    let identity = certs.to_str().context("the folder's path is not UTF-8")?;
    section("peer", vec![("name", name.into())]);
    section("http", vec![("listen", Value::Array(vec![ports.http.to_string().into()]))]);
    section(
        "mesh",
        vec![
            ("listen", ports.mesh.to_string().into()),
            ("advertise", ports.mesh.to_string().into()),
            ("seeds", Value::Array(seeds)),
            ("identity", identity.into()),
        ],
    );
    section("admin", vec![("listen", ports.admin.to_string().into())]);
    section("session", vec![("redis", ports.redis.to_string().into())]);
    merge(&mut config, &spec.settings);
    let apps = spec.apps.iter().cloned().map(Value::Table).collect();
    config.insert("app".into(), Value::Array(apps));
    Ok(config)
}

fn merge(onto: &mut Table, from: &Table) {
    for (key, value) in from {
        match (onto.get_mut(key), value) {
            (Some(Value::Table(onto)), Value::Table(from)) => merge(onto, from),
            _ => {
                onto.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Empties a folder of the testbed, which it fills anew.
fn clear(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot clear {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Runs `warmhop cert`.
///
/// # Errors
/// If it fails; with what it said.
pub fn warmhop_cert(args: &[&str], out: &Path) -> Result<()> {
    let run = Command::new(crate::program("warmhop")?)
        .arg("cert")
        .args(args)
        .arg(out)
        .stdin(Stdio::null())
        .output()
        .context("cannot run warmhop")?;
    if !run.status.success() {
        let said = String::from_utf8_lossy(&run.stderr);
        bail!("`warmhop cert {}` failed ({}): {}", args.join(" "), run.status, said.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_peer_is_missing_until_it_is_seen_alive() {
        let names = ["peer-1", "peer-2", "peer-3"].map(str::to_owned);
        let status = Ok(json!({"peers": [
            {"name": "peer-2", "alive": true}, {"name": "peer-3", "alive": false}]}));
        let text = missing(&status, "peer-1", &names).unwrap();
        assert!(text.contains("peer-3") && !text.contains("peer-2"), "{text}");
        let status = Ok(json!({"peers": [
            {"name": "peer-2", "alive": true}, {"name": "peer-3", "alive": true}]}));
        assert_eq!(missing(&status, "peer-1", &names), None);
        assert!(missing(&Err(anyhow!("refused")), "peer-1", &names).is_some());
        assert!(missing(&Ok(json!(3)), "peer-1", &names).is_some());
    }

    #[test]
    fn settings_are_merged_into_sections() {
        let mut config: Table = "[session]\nredis='x'\n[peer]\nname='p'".parse().unwrap();
        merge(&mut config, &"[session]\ncopies=2\n[gossip]\na=1".parse().unwrap());
        assert_eq!(config["session"]["redis"].as_str(), Some("x"));
        assert_eq!(config["session"]["copies"].as_integer(), Some(2));
        assert_eq!(config["gossip"]["a"].as_integer(), Some(1));
    }
}

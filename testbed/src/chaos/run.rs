//! One run: a mesh behind a relay, clients, faults until the time is up, and the records of it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use futures_util::future::join_all;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use toml::{Table, Value};

use super::faults::{Breaker, Kind};
use super::history::{Attempt, History, Run, Sample};
use super::idle::Idle;
use super::keys;
use super::leases;
use super::load::{self, Load, locked};
use super::relay::Relay;
use super::{APPS, LedgerApp};
use crate::mesh::{self, Mesh, Spec};
use crate::ports::{PeerPorts, Reservation};
use crate::terminal::Terminal;

/// How long clients may take to finish their operations when the time is up.
const CLIENTS_END_WITHIN: Duration = Duration::from_secs(90);
/// There is one group of clients that use keys for so many clients of apps.
const CLIENTS_PER_GROUP: u32 = 8;
/// How many keys are read once more at the end, the newest.
const READ_AGAIN: usize = 400;
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
const SAMPLE_WITHIN: Duration = Duration::from_millis(700);

/// The settings of a run.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many peers, from 3 to 15.
    pub peers: u16,
    /// For how long faults are made.
    pub length: Duration,
    /// Which kinds.
    pub kinds: Vec<Kind>,
    /// How many clients.
    pub clients: u32,
    /// How many sessions are begun and left alone.
    pub idle: u32,
    /// The schedule's seed.
    pub seed: u64,
    /// Where its files go.
    pub folder: PathBuf,
}

/// Carries a run out. If it ends early, the records say why.
///
/// # Errors
/// If the mesh does not form, or what it wrote cannot be read.
pub async fn run(options: &Options) -> Result<History> {
    let mut stage = Stage::open(options).await?;
    let broken = make_faults(&mut stage.breaker, options).await;
    stage.close(broken).await
}

/// A mesh behind a relay with clients at work, and the means to break it.
#[derive(Debug)]
pub struct Stage {
    /// Breaks it.
    pub breaker: Breaker,
    seed: u64,
    began_unix_ms: u64,
    folder: PathBuf,
    clients: JoinSet<()>,
    sampling: JoinSet<()>,
    samples: Arc<Mutex<Vec<Sample>>>,
    _ports: Reservation,
}

/// A formed mesh, whose peers reach each other through the relay alone.
async fn mesh_behind(relay: &Relay, ports: &[PeerPorts], options: &Options) -> Result<Mesh> {
    let mut mesh = Mesh::prepare(Spec {
        folder: options.folder.clone(),
        cluster: "chaos".into(),
        ports: ports.to_vec(),
        apps: APPS.iter().map(|app| app_table(app, &options.folder)).collect::<Result<_>>()?,
        settings: Table::new(),
        detached: true,
    })?;
    let seeds: Vec<Value> =
        relay.addresses().iter().take(3).map(|at| at.to_string().into()).collect();
    for index in 0..mesh.peers().len() {
        let (name, advertise) = (mesh.peer(index).name.clone(), relay.addresses()[index]);
        let log = log_of(&options.folder, &name);
        clear_file(&log)?;
        mesh.reconfigure(index, |config| {
            if let Some(Value::Table(section)) = config.get_mut("mesh") {
                section.insert("advertise".into(), advertise.to_string().into());
                section.insert("seeds".into(), seeds.clone().into());
            }
            let apps = config.get_mut("app").and_then(Value::as_array_mut);
            for app in apps.into_iter().flatten() {
                if let Some(Value::Table(env)) = app.get_mut("env") {
                    env.insert("LEDGER_PEER".into(), name.clone().into());
                    env.insert("LEDGER_LOG".into(), log.to_string_lossy().into_owned().into());
                }
            }
        })?;
        mesh.start(index)?;
    }
    mesh.formed().await?;
    Ok(mesh)
}

fn begin_clients(load: &Arc<Load>, options: &Options) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for client in 0..options.clients {
        clients.spawn(load::run(Arc::clone(load), client, options.seed));
    }
    // A group is several clients, and in a hurry.
    for group in 0..options.clients.div_ceil(CLIENTS_PER_GROUP) {
        clients.spawn(keys::run(Arc::clone(load), group, options.seed));
        for client in 0..leases::AT_ONCE {
            clients.spawn(leases::run(Arc::clone(load), group, client, options.seed));
        }
    }
    clients
}

impl Stage {
    /// Starts the mesh and, once it is formed, the clients.
    ///
    /// # Errors
    /// If the mesh does not form.
    pub async fn open(options: &Options) -> Result<Self> {
        if !(3..=15).contains(&options.peers) {
            bail!("--peers takes 3 to 15: fewer cannot lose one and keep a majority");
        }
        let reserved = Reservation::new()?;
        let ports: Vec<PeerPorts> = (0..options.peers).map(|index| reserved.peer(index)).collect();
        let addresses: Vec<SocketAddr> = ports.iter().map(|ports| ports.mesh).collect();
        let relay = Relay::open(&addresses).await?;
        let mesh = mesh_behind(&relay, &ports, options).await?;
        let doors = mesh.peers().iter().map(|peer| (peer.name.clone(), peer.ports.http)).collect();
        let load = Arc::new(Load {
            doors,
            began: Instant::now(),
            over: AtomicBool::new(false),
            attempts: Mutex::default(),
            keys: mesh.peers().iter().map(|it| (it.name.clone(), it.ports.redis)).collect(),
            operations: Mutex::default(),
            holds: Mutex::default(),
            let_in: Mutex::default(),
            sessions: Mutex::default(),
        });
        let admins: Vec<SocketAddr> = ports.iter().map(|ports| ports.admin).collect();
        let idle = Idle::begin(&load, &admins, options.idle, options.seed).await;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let clients = begin_clients(&load, options);
        let samples = Arc::new(Mutex::new(Vec::new()));
        let mut sampling = JoinSet::new();
        sampling.spawn(sample(Arc::clone(&load), ports, Arc::clone(&samples)));
        let rng = SmallRng::seed_from_u64(options.seed);
        Ok(Self {
            breaker: Breaker {
                mesh,
                relay,
                load,
                rng,
                faults: Vec::new(),
                points: Vec::new(),
                keys: BTreeMap::new(),
                idle,
            },
            seed: options.seed,
            began_unix_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
            folder: options.folder.clone(),
            clients,
            sampling,
            samples,
            _ports: reserved,
        })
    }

    /// Lets the clients finish, ends the mesh and returns the records.
    ///
    /// # Errors
    /// If what the apps wrote cannot be read.
    pub async fn close(mut self, broken: Result<()>) -> Result<History> {
        let load = Arc::clone(&self.breaker.load);
        let mut cut_short = broken.err().map(|error| format!("{error:#}"));
        load.over.store(true, Ordering::Relaxed);
        let ended = async { while self.clients.join_next().await.is_some() {} };
        if timeout(CLIENTS_END_WITHIN, ended).await.is_err() {
            cut_short.get_or_insert(format!(
                "clients still waited for answers {CLIENTS_END_WITHIN:?} after the end"
            ));
        }
        drop(self.sampling);
        if cut_short.is_none() {
            self.breaker.idle.read().await;
            keys::read_again(&load, &used_keys(&load), self.seed).await;
        }
        let Breaker { mesh, faults, idle, .. } = self.breaker;
        let peers: Vec<String> = mesh.peers().iter().map(|peer| peer.name.clone()).collect();
        drop(mesh);
        let mut attempts = taken(&load.attempts);
        attempts.sort_by_key(|attempt: &Attempt| attempt.ended);
        Ok(History {
            seed: self.seed,
            began_unix_ms: self.began_unix_ms,
            cut_short,
            length: load.now(),
            attempts,
            runs: runs(&self.folder, &peers)?,
            faults,
            samples: taken(&self.samples),
            keys: taken(&load.operations),
            holds: taken(&load.holds),
            let_in: taken(&load.let_in),
            idle: idle.count(),
            orphans: idle.orphans,
            peers,
        })
    }
}

/// The keys that were used, the newest of them.
fn used_keys(load: &Load) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for operation in locked(&load.operations).iter().rev() {
        if keys.len() < READ_AGAIN && !keys.contains(&operation.key) {
            keys.push(operation.key.clone());
        }
    }
    keys
}

fn taken<T: Default>(shared: &Mutex<T>) -> T {
    std::mem::take(&mut locked(shared))
}

async fn make_faults(breaker: &mut Breaker, options: &Options) -> Result<()> {
    let terminal = Terminal::new();
    let (safe, losing): (Vec<Kind>, Vec<Kind>) =
        options.kinds.iter().partition(|kind| **kind != Kind::Two);
    // A while of peace, so that there is something to lose.
    sleep(Duration::from_secs(3)).await;
    let mut bag: Vec<Kind> = Vec::new();
    let mut losing_left: Vec<Kind> = Vec::new();
    while breaker.load.began.elapsed() < options.length {
        // What may lose sessions is kept for the last third.
        let is_late = safe.is_empty() || breaker.load.began.elapsed() > options.length * 2 / 3;
        if bag.is_empty() {
            bag.clone_from(&safe);
            losing_left.clear();
            losing_left.extend(&losing);
        }
        if is_late {
            bag.append(&mut losing_left);
        }
        let kind = bag.swap_remove(breaker.rng.random_range(0..bag.len()));
        let at = breaker.load.began.elapsed().as_secs();
        terminal.passing(format!("{at:>4} s: {}", kind.name()));
        breaker.one(kind).await?;
        let calm = breaker.rng.random_range(300..2_000);
        sleep(Duration::from_millis(calm)).await;
    }
    terminal.erase();
    Ok(())
}

fn app_table(app: &LedgerApp, folder: &Path) -> Result<Table> {
    let text = format!(
        r#"
        name = "{}"
        match = {{ host = "{}" }}
        env = {{ START_MS = "700" }}
        ready = {{ path = "/healthz", timeout = "30s" }}
        start = "on-request"
        keep_ready = 2
        session = "portable"
        effects = "{}"
        max_wait = "10s"
        "#,
        app.name, app.host, app.effects
    );
    let mut table: Table = text.parse().context("a constant")?;
    let program = crate::program("ledger")?.to_string_lossy().into_owned();
    table.insert("run".into(), vec![Value::from(program)].into());
    table.insert("dir".into(), folder.to_string_lossy().into_owned().into());
    Ok(table)
}

/// Removes what an earlier run wrote.
fn clear_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn log_of(folder: &Path, peer: &str) -> PathBuf {
    folder.join(format!("{peer}.ledger.jsonl"))
}

/// Asks each peer each second what it owns and holds: all at once, so that a stopped one delays no
/// other.
async fn sample(load: Arc<Load>, peers: Vec<PeerPorts>, samples: Arc<Mutex<Vec<Sample>>>) {
    let mut every = interval(SAMPLE_EVERY);
    loop {
        every.tick().await;
        let at = load.now();
        let asked = peers.iter().enumerate().map(async |(index, ports)| {
            let status = timeout(SAMPLE_WITHIN, mesh::status(ports.admin)).await;
            let status = status.ok().and_then(Result::ok);
            let count = |name: &str| status.as_ref().and_then(|it| it["sessions"][name].as_u64());
            let peer = format!("peer-{}", index + 1);
            Sample { at, peer, owned: count("owned"), copies: count("copies") }
        });
        let taken = join_all(asked).await;
        locked(&samples).extend(taken);
    }
}

/// The records of the apps. The last line of a process that was killed may be cut off.
fn runs(folder: &Path, peers: &[String]) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut halves: HashMap<&str, usize> = HashMap::new();
    for peer in peers {
        let path = log_of(folder, peer);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.with_context(|| path.display().to_string())?,
        };
        for line in text.lines() {
            match serde_json::from_str(line) {
                Ok(run) => runs.push(run),
                Err(_) => *halves.entry(peer).or_default() += 1,
            }
        }
    }
    runs.sort_by_key(|run: &Run| run.at_unix_ms);
    Ok(runs)
}

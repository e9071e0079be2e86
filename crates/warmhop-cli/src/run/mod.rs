//! `warmhop run`: one peer in the foreground, from its configuration to its exit status.

pub mod access_log;
pub mod admin;
pub mod cores;
mod preflight;
pub mod reload;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use warmhop::error::StartMeshError;
use warmhop::identity::{FrontDoorTls, Identity};
use warmhop::ids::AppName;
use warmhop::{Builder, Mesh};

use crate::config::Config;
use crate::host::journal::Journal;
use crate::host::stderr::Stderr;
use crate::host::{log, memory, notify, process};
#[cfg(feature = "otlp")]
use crate::otlp;
use crate::redis;
use crate::run::access_log::{AccessLog, Writing};
use crate::run::cores::Door;
use crate::run::preflight::{Credentials, identity_failure, load, read};
use crate::run::reload::{Given, Reloader, app_of};

pub use crate::failure::Failure;
pub use crate::run::preflight::{certificates_that_end, check, checked, refused_here};

/// Runs the peer that `file` describes until a signal ends it; the exit status is 0 after a drain,
/// and 128 plus the signal's number if a second signal cut it short.
///
/// # Errors
/// Why it did not start, or had to give up.
pub fn run(file: &Path, format: log::Format) -> Result<u8, Failure> {
    process::begins();
    let runtime = cores::runtime()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))?;
    // Before anything else: a signal may come as soon as the process exists.
    let signals = {
        let _runtime = runtime.enter();
        Signals::new()
            .map_err(|error| Failure::failed(format!("cannot wait for signals: {error}")))?
    };
    let (config, warnings) = read(file)?;
    // Otherwise an app of the same user could read the peer's memory and environment.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_dumpable(false);
    let stderr = Stderr::start()
        .map_err(|error| Failure::failed(format!("cannot start the log's thread: {error}")))?;
    let _last_lines = stderr.last_lines();
    let level = config.log.level.as_deref();
    let (journal, level) = log::start(format, level, stderr.clone()).map_err(Failure::usage)?;
    // Before the warnings: a missing file is an error here, and one message is enough.
    let credentials = load(&config)?;
    #[cfg(target_os = "linux")]
    if config.apps.iter().any(|app| app.wanted.cgroup)
        && let Err(what) = crate::host::cgroup::prepare()
    {
        warn!("apps with limits.cgroup cannot start: {what}");
    }
    for warning in warnings.into_iter().chain(config.exposed_keys()) {
        warn!("{warning}");
    }
    let open_files = raise_open_files();
    let machine = Machine { open_files, threads: cores::threads(&config) };
    let log = Logging { journal, level, stderr, format };
    let outcome = runtime.block_on(serve(file, &config, credentials, signals, machine, log));
    // Tasks that still run have had their time; the guards end the apps.
    runtime.shutdown_background();
    outcome
}

/// What the peer logs with.
struct Logging {
    journal: Journal,
    level: log::Level,
    stderr: Stderr,
    format: log::Format,
}

/// The resources that the peer uses of its machine.
struct Machine {
    /// The limit of open files for the apps.
    open_files: Option<u64>,
    /// The threads that serve clients.
    threads: NonZeroUsize,
}

/// Starts the peer; `None` if a signal ended it first.
async fn start(
    config: &Config,
    builder: Builder,
    signals: &mut Signals,
) -> Result<Option<Mesh>, Failure> {
    let mut starting = std::pin::pin!(builder.start());
    let number = tokio::select! {
        mesh = &mut starting => {
            return mesh.map(Some).map_err(|error| start_failure(config, &error));
        }
        number = signals.next() => number,
    };
    info!(signal = number, "stopped before the peer served anybody");
    // Other peers may have met it already: without a goodbye they would suspect it.
    let leaving = async {
        if let Ok(mesh) = starting.await {
            mesh.shutdown().await;
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(LEAVES_WITHIN, leaving) => {}
        _ = signals.next() => {}
    }
    Ok(None)
}

/// Serves the sessions of session libraries at `listener`, until the token is cancelled.
fn serve_redis(
    config: &Config,
    mesh: &Mesh,
    listener: TcpListener,
) -> Option<(JoinHandle<()>, CancellationToken)> {
    let registers = mesh.registers(&redis_name())?;
    let addr = listener.local_addr().ok();
    info!(url = addr.map(redis::url), "the Redis endpoint for session libraries is open");
    let (ttl, events) = (config.session.policy.ttl, config.session.redis_events);
    let leaves = CancellationToken::new();
    let serving = redis::serve(listener, mesh.clone(), registers, ttl, events, leaves.clone());
    Some((tokio::spawn(serving), leaves))
}

/// Serves until a signal comes, or until another peer turns out to have this one's name.
async fn until_ended(config: &Config, mesh: &Mesh, signals: &mut Signals) -> Result<u8, Failure> {
    tokio::select! {
        number = signals.next() => {
            info!(signal = number, "draining; a second signal ends the peer at once");
            Ok(0)
        }
        other = mesh.name_clash() => Err(Failure::failed(config.problem(
            "peer.name",
            format!("a live peer at {other} has the name {} already", config.peer.name),
            "names are unique in a cluster: rename one of the two",
        ))),
    }
}

/// The listeners of each front door for the threads that did not start the peer, and its TLS.
type OtherDoors = Vec<(Vec<std::net::TcpListener>, Option<FrontDoorTls>)>;

/// Has the mesh serve clients at the front doors on its first thread; returns the listeners of the
/// other threads.
fn open_doors(
    mut builder: Builder,
    doors: Vec<(Door, Option<FrontDoorTls>)>,
) -> (Builder, OtherDoors) {
    let mut others = Vec::new();
    for (door, tls) in doors {
        builder = match tls.clone() {
            Some(tls) => builder.front_door_tls(door.first, tls),
            None => builder.front_door(door.first),
        };
        others.push((door.others, tls));
    }
    (builder, others)
}

async fn serve(
    file: &Path,
    config: &Config,
    credentials: Credentials,
    mut signals: Signals,
    Machine { open_files, threads }: Machine,
    Logging { journal, level, stderr, format }: Logging,
) -> Result<u8, Failure> {
    let Credentials { identity, tls, error_page } = credentials;
    let listeners = bind(config, tls, threads).await?;
    let redis_addr = listeners.redis.as_ref().and_then(|listener| listener.local_addr().ok());
    let given = Given { open_files, redis: redis_addr };
    let mut builder = builder(config, identity, &given);
    if let Some(page) = error_page {
        builder = builder.error_page(page);
    }
    if let Some((log, writing)) = access_log(config, &stderr, format)? {
        builder = builder.access_log(log);
        signals.access = Some(writing);
    }
    #[cfg(feature = "otlp")]
    let (mut builder, spans) = with_spans(config, builder)?;
    let connections = connections_each(listeners.http.len());
    if let Some(each) = connections {
        builder = builder.front_door_connections(each);
    }
    let (builder, others) = open_doors(builder, listeners.http);
    let admin_addr = listeners.admin.local_addr().unwrap_or(config.admin.listen);

    let Some(mesh) = start(config, builder, &mut signals).await? else { return Ok(0) };
    let _cores = cores::serve(&mesh, others)
        .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
    let token = warmhop::admin::Token::new(config.admin.token.as_deref());
    let reloader = Reloader::new(mesh.clone(), file, config, token.clone(), level, given);
    signals.reloader = Some(Arc::clone(&reloader));
    let admin_leaves = CancellationToken::new();
    let admin = admin::listener(&mesh, token, &journal, &reloader);
    let admin = tokio::spawn(admin.serve(listeners.admin, admin_leaves.clone().cancelled_owned()));
    let redis = listeners.redis.and_then(|listener| serve_redis(config, &mesh, listener));
    let beside = Beside { admin, admin_leaves, redis };
    announce(config, &mesh, admin_addr, connections);
    notify::ready(&format!("serving as {}", config.peer.name));
    let watchdog = tokio::spawn(notify::watchdog());
    let gives_back = tokio::spawn(memory::gives_back());

    let outcome = until_ended(config, &mesh, &mut signals).await;
    notify::stopping();
    tokio::select! {
        () = drain(config, &mesh, beside) => {}
        number = signals.next() => {
            warn!(signal = number, "stopped before everything was drained");
            return Ok(exit_status(number));
        }
    }
    watchdog.abort();
    gives_back.abort();
    if let Some(access) = signals.access.take() {
        access.end().await;
    }
    #[cfg(feature = "otlp")]
    if let Some(spans) = spans {
        spans.flush().await;
    }
    info!("the peer has stopped");
    outcome
}

/// The servers besides the front doors: each a task, and the token that ends it.
struct Beside {
    admin: JoinHandle<()>,
    admin_leaves: CancellationToken,
    redis: Option<(JoinHandle<()>, CancellationToken)>,
}

/// Drains the mesh, and ends the other servers once nobody needs them any more.
async fn drain(config: &Config, mesh: &Mesh, beside: Beside) {
    mesh.shutdown_after(async {
        // Not before the apps have stopped: they need it to shut down cleanly.
        if let Some((redis, leaves)) = beside.redis {
            leaves.cancel();
            ends_within(config.http.drain_grace, redis, "the Redis endpoint").await;
        }
    })
    .await;
    // Last of all: an operator who watches the peer leave asks here.
    beside.admin_leaves.cancel();
    ends_within(ADMIN_ENDS_WITHIN, beside.admin, "the admin listener").await;
}

/// Sends spans to a collector, if the environment names one.
#[cfg(feature = "otlp")]
fn with_spans(
    config: &Config,
    builder: Builder,
) -> Result<(Builder, Option<otlp::Sending>), Failure> {
    let settings = otlp::Settings::from_env(config.peer.name.as_str()).map_err(Failure::usage)?;
    let Some(settings) = settings else { return Ok((builder, None)) };
    info!(endpoint = %settings.endpoint(), "spans are sent to a collector");
    let (exporter, sending) = otlp::Exporter::start(settings).map_err(Failure::usage)?;
    Ok((builder.spans(exporter), Some(sending)))
}

/// Waits until a server of clients has answered the requests that it accepted and has ended; after
/// `grace` the rest is cut off.
async fn ends_within(grace: Duration, mut serving: JoinHandle<()>, what: &str) {
    if tokio::time::timeout(grace, &mut serving).await.is_err() {
        warn!("{what} still serves clients after {grace:?}; they are cut off");
        serving.abort();
    }
}

fn access_log(
    config: &Config,
    stderr: &Stderr,
    format: log::Format,
) -> Result<Option<(AccessLog, Writing)>, Failure> {
    AccessLog::start(&config.log, stderr, format).map_err(|error| {
        let what = format!("the access log cannot be opened: {error}");
        let remedy = "name a file in a folder that is there and that this user may write to";
        Failure::failed(config.problem("log.access", what, remedy))
    })
}

/// The parts of the mesh that need no port yet.
fn builder(config: &Config, identity: Identity, given: &Given) -> Builder {
    let mut builder = Mesh::builder(identity)
        .mesh_listen(config.mesh.listen)
        .sessions(config.session.policy.clone())
        .reveal(config.http.reveal)
        .refuse(config.mesh.refuse.clone())
        .client_limits(config.http.limits)
        .trusted_proxies(config.http.trusted_proxies.clone())
        .proxy_protocol(config.http.proxy_protocol)
        .drain_grace(config.http.drain_grace);
    if let Some(zone) = &config.peer.zone {
        builder = builder.zone(zone.clone());
    }
    if let Some(addr) = config.mesh.advertise {
        builder = builder.advertise(addr);
    }
    for seed in &config.mesh.seeds {
        builder = builder.seed(seed.clone());
    }
    if config.session.redis.is_some() {
        builder = builder.registers(redis_name());
    }
    for app in &config.apps {
        let (spec, child) = app_of(config, app, given);
        builder = builder.app(spec, child);
    }
    #[cfg(debug_assertions)]
    let builder = with_faults(builder);
    builder
}

/// Faults for tests: a death at a named moment, and a clock that is wrong.
#[cfg(debug_assertions)]
fn with_faults(mut builder: Builder) -> Builder {
    if let Some(points) = std::env::var_os("WARMHOP_FAILPOINTS") {
        builder = builder.failpoints(points.to_string_lossy());
    }
    let ahead_ms = std::env::var("WARMHOP_CLOCK_AHEAD_MS").ok().and_then(|ms| ms.parse().ok());
    match ahead_ms {
        Some(ahead_ms) => builder.clock_ahead(ahead_ms),
        None => builder,
    }
}

/// The registers that the Redis-speaking endpoint keeps its keys in.
fn redis_name() -> AppName {
    AppName::new(redis::NAME).expect("a constant of the right form")
}

/// The TCP listeners of a peer.
struct Listeners {
    http: Vec<(Door, Option<FrontDoorTls>)>,
    admin: TcpListener,
    redis: Option<TcpListener>,
}

/// Binds the TCP listeners; all failures are reported at once.
async fn bind(
    config: &Config,
    tls: Option<FrontDoorTls>,
    threads: NonZeroUsize,
) -> Result<Listeners, Failure> {
    let mut messages = Vec::new();
    let mut http = Vec::new();
    for (at, addr) in config.http.listen.iter().enumerate() {
        match Door::open(*addr, threads).await {
            Ok(door) => http.push((door, tls.clone())),
            Err(error) => {
                messages.push(bind_problem(config, &format!("http.listen[{at}]"), *addr, &error));
            }
        }
    }
    let mut listen = async |addr: SocketAddr, key: &str| match TcpListener::bind(addr).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            messages.push(bind_problem(config, key, addr, &error));
            None
        }
    };
    let redis = match config.session.redis {
        Some(addr) => listen(addr, "session.redis").await,
        None => None,
    };
    let admin = listen(config.admin.listen, "admin.listen").await;
    match admin {
        Some(admin) if messages.is_empty() => Ok(Listeners { http, admin, redis }),
        _ => Err(Failure { messages, status: 1 }),
    }
}

fn bind_problem(config: &Config, key: &str, addr: SocketAddr, error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "choose a free port, or stop what uses this one",
        io::ErrorKind::AddrNotAvailable => "name an address of this machine",
        io::ErrorKind::PermissionDenied => {
            "choose a port from 1024 on, or give the program CAP_NET_BIND_SERVICE"
        }
        _ => "choose another address",
    };
    config.problem(key, format!("cannot listen on {addr}: {error}"), remedy).to_string()
}

fn start_failure(config: &Config, error: &StartMeshError) -> Failure {
    let problem = |key: &str| config.problem(key, error.to_string(), "");
    match error {
        StartMeshError::Bind { addr, source } => {
            Failure::failed(bind_problem(config, "mesh.listen", *addr, source))
        }
        StartMeshError::NameInUse { .. } => Failure::failed(problem("peer.name")),
        StartMeshError::NeedsAdvertise { .. } => Failure::usage(problem("mesh.advertise")),
        StartMeshError::AppsCollide { .. } => Failure::usage(problem("app")),
        StartMeshError::Identity(error) => identity_failure(config, error),
        StartMeshError::Failpoints(error) => {
            Failure::failed(format!("WARMHOP_FAILPOINTS: {error}"))
        }
        _ => Failure::failed(error),
    }
}

/// Raises the limit of open files as far as the system allows, since each connection is one.
/// Returns the former limit, for the apps: some programs do not work with a large one.
fn raise_open_files() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        return Some(soft);
    }
    None
}

/// How many connections of clients each of so many front doors may have open; absent: the front
/// door's own default.
fn connections_each(doors: usize) -> Option<NonZeroUsize> {
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let each = connections_within(files, doors);
    NonZeroUsize::new(each).filter(|_| each < CONNECTIONS_MAX)
}

/// So many that clients who keep connections open, busy or not, leave a part of the open files to
/// the admin listener, the links and the apps' pipes. A busy connection needs another to the app.
fn connections_within(open_files: u64, doors: usize) -> usize {
    let reserved = (open_files / 4).max(OPEN_FILES_RESERVED_MIN);
    let each = open_files.saturating_sub(reserved) / 2 / doors.max(1) as u64;
    usize::try_from(each).unwrap_or(usize::MAX).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
}

/// How long a peer that gets a signal while it starts may take to begin to serve and to leave
/// again.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// How long the admin listener may take to answer the requests that it accepted, once everything
/// else has ended.
const ADMIN_ENDS_WITHIN: Duration = Duration::from_secs(1);

/// The least number of open files that clients leave to the rest.
const OPEN_FILES_RESERVED_MIN: u64 = 128;
/// The least number of connections of a front door, however few files may be open.
const CONNECTIONS_MIN: usize = 16;
/// The most connections of a front door.
const CONNECTIONS_MAX: usize = 16 * 1024;

fn announce(config: &Config, mesh: &Mesh, admin: SocketAddr, connections: Option<NonZeroUsize>) {
    let scheme = if config.http.tls.is_some() { "https" } else { "http" };
    let doors: Vec<String> =
        mesh.front_doors().iter().map(|addr| format!("{scheme}://{addr}")).collect();
    info!(
        peer = %config.peer.name,
        cluster = %config.cluster,
        front_doors = %if doors.is_empty() { "none".into() } else { doors.join(" ") },
        mesh = %mesh.mesh_addr(),
        admin = %format!("http://{admin}"),
        "serving"
    );
    if config.mesh.seeds.is_empty() {
        info!("no seeds are configured: this peer waits for others to join it");
    }
    if config.apps.is_empty() {
        warn!("no apps are configured, so every request gets 404; add an [[app]]");
    }
    if let Some(each) = connections {
        info!(
            each_front_door = each,
            "the limit of open files bounds clients' connections; LimitNOFILE= or ulimit -H -n \
             allows more"
        );
    }
}

/// SIGTERM and Ctrl-C, from before the peer starts until its very end. SIGHUP makes the peer read
/// its configuration again.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    reopen: Signal,
    /// Reopened on SIGUSR1.
    access: Option<Writing>,
    /// Called on SIGHUP.
    reloader: Option<Arc<Reloader>>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            access: None,
            reloader: None,
        })
    }

    /// The number of the next signal that is to end the peer.
    async fn next(&mut self) -> i32 {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return SignalKind::terminate().as_raw_value(),
                _ = self.interrupt.recv() => return SignalKind::interrupt().as_raw_value(),
                _ = self.reopen.recv() => match &self.access {
                    Some(access) => access.reopen(),
                    None => info!("SIGUSR1 is ignored: no access log is configured"),
                },
                _ = self.hang_up.recv() => match self.reloader.clone() {
                    // It reads files, and logs the outcome itself.
                    Some(reloader) => drop(tokio::task::spawn_blocking(move || reloader.reload())),
                    None => info!("SIGHUP is ignored: the configuration was read just now"),
                },
            }
        }
    }
}

fn exit_status(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_a_part_of_the_open_files_to_the_rest() {
        for (open_files, doors, each) in [
            (1 << 20, 1, CONNECTIONS_MAX),
            (65_536, 2, 12_288),
            (1024, 1, 384),
            (1024, 3, 128),
            (256, 1, 64),
            (64, 1, CONNECTIONS_MIN),
            (256, 0, 64),
        ] {
            assert_eq!(connections_within(open_files, doors), each, "{open_files} {doors}");
        }
    }
}

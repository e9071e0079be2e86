//! Measures what keeping sessions costs, as ratios against things measured in the same run:
//!
//! ```sh
//! cargo run --release -p warmhop --example session_figures             # all but the next
//! cargo run --release -p warmhop --example session_figures -- memory   # a million sessions
//! ```
//!
//! Clients, peers and the app share this machine's cores and one process; requests go straight
//! into the peers' service, so that no HTTP connection is measured with them.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Extension;
use axum::routing::{get, post};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use tower::ServiceExt;
use warmhop::config::{SessionMode, StartMode};
use warmhop::identity::Authority;
use warmhop::ids::{AppName, PeerId};
use warmhop::{AppSpec, Mesh, Session, app_fn};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

const STATE_BYTES: usize = 256;
/// Longer than a round trip on loopback, so that a read's confirmation has time beside it.
const READ_TAKES: Duration = Duration::from_millis(2);

/// Without the runtime's timer, which rounds up to a millisecond.
async fn take_time() {
    let _ = tokio::task::spawn_blocking(|| std::thread::sleep(READ_TAKES)).await;
}

fn app() -> Router {
    async fn write(Extension(session): Extension<Session>) -> &'static str {
        match session.set(vec![b'x'; STATE_BYTES]) {
            Ok(()) => "written",
            Err(_) => "too large",
        }
    }
    async fn read(Extension(session): Extension<Session>) -> String {
        take_time().await;
        session.get().map_or(0, |state| state.len()).to_string()
    }
    async fn run() -> &'static str {
        "run"
    }
    async fn plain() -> &'static str {
        take_time().await;
        "plain"
    }
    Router::new()
        .route("/write", post(write))
        .route("/read", get(read))
        .route("/plain", get(plain))
        .route("/run", post(run))
}

async fn peers(count: usize) -> Result<Vec<Mesh>, AnyError> {
    let authority = Authority::generate("figures")?;
    let mut peers: Vec<Mesh> = Vec::new();
    for n in 0..count {
        let id = PeerId::new(&format!("p{n}"))?;
        let mut builder = Mesh::builder(authority.issue(&id)?);
        for (name, mode) in [("kept", SessionMode::Portable), ("bare", SessionMode::None)] {
            let mut spec = AppSpec::new(AppName::new(name)?);
            spec.policy.session = mode;
            spec.policy.start = StartMode::AtBoot;
            spec.matches = vec![warmhop::Match::new(Some(name), "/")];
            builder = builder.app(spec, app_fn(|| async { Ok::<_, std::io::Error>(app()) }));
        }
        if let Some(first) = peers.first() {
            builder = builder.seed(first.mesh_addr().to_string());
        }
        peers.push(builder.start().await?);
    }
    let whole = |mesh: &Mesh| {
        let status = mesh.status();
        let linked = status.peers.iter().filter(|p| p.alive && p.rtt_us.is_some()).count();
        linked == count - 1 && status.apps.iter().all(|app| app.state == "ready")
    };
    while !peers.iter().all(whole) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(peers)
}

/// One client: its cookie, and a request at a time.
#[derive(Default, Clone)]
struct Client {
    cookie: Option<http::HeaderValue>,
}

impl Client {
    async fn ask(
        &mut self,
        mesh: &Mesh,
        method: http::Method,
        host: &str,
        path: &str,
    ) -> Result<Bytes, AnyError> {
        let mut request = http::Request::builder().method(method).uri(path).header("host", host);
        if let Some(cookie) = &self.cookie {
            request = request.header("cookie", cookie);
        }
        let response = mesh.service().oneshot(request.body(Empty::<Bytes>::new())?).await?;
        let status = response.status();
        if let Some(set) = response.headers().get("set-cookie") {
            let text = set.to_str()?;
            let pair = text.split(';').next().unwrap_or(text);
            self.cookie = Some(http::HeaderValue::from_str(pair)?);
        }
        let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
        if !status.is_success() {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into());
        }
        Ok(body)
    }

    async fn write(&mut self, mesh: &Mesh) -> Result<(), AnyError> {
        self.ask(mesh, http::Method::POST, "kept", "/write").await.map(drop)
    }
}

/// A connection of QUIC alone, on which each message is sent back.
struct Echo {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    _ends: (quinn::Endpoint, quinn::Endpoint),
}

impl Echo {
    async fn open() -> Result<Self, AnyError> {
        let certified = rcgen::generate_simple_self_signed(["echo".to_owned()])?;
        let key =
            rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let server =
            quinn::ServerConfig::with_single_cert(vec![certified.cert.der().clone()], key.into())?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certified.cert.der().clone())?;
        let client = quinn::ClientConfig::with_root_certificates(Arc::new(roots))?;
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let far = quinn::Endpoint::server(server, any)?;
        let near = quinn::Endpoint::client(any)?;
        let connecting = near.connect_with(client, far.local_addr()?, "echo")?;
        let incoming = far.accept().await.ok_or("the endpoint is closed")?;
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                let mut message = vec![0; 64 * 1024];
                while let Ok(Some(len)) = recv.read(&mut message).await {
                    if send.write_all(&message[..len]).await.is_err() {
                        return;
                    }
                }
            }
        });
        let (send, recv) = connecting.await?.open_bi().await?;
        Ok(Self { send, recv, _ends: (near, far) })
    }

    async fn round_trip(&mut self, message: &[u8], back: &mut [u8]) -> Result<(), AnyError> {
        self.send.write_all(message).await?;
        self.recv.read_exact(back).await?;
        Ok(())
    }
}

fn percentile(times: &mut [Duration], per_cent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * per_cent / 100).min(times.len() - 1)]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn writes_and_reads() -> Result<(), AnyError> {
    const EACH: usize = 1_000;
    let mesh = peers(3).await?;
    let mut client = Client::default();
    let mut echo = Echo::open().await?;
    // A body of that many bytes, with what names the session and its members around it.
    let (message, mut back) = (vec![b'x'; STATE_BYTES + 256], vec![0; STATE_BYTES + 256]);
    let (mut over_echo, mut p50_us) = (Vec::new(), Vec::new());
    for round in 0..8 {
        let (mut writes, mut runs, mut echoes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..EACH {
            let began = Instant::now();
            client.write(&mesh[0]).await?;
            writes.push(began.elapsed());
            let began = Instant::now();
            Client::default().ask(&mesh[0], http::Method::POST, "bare", "/run").await?;
            runs.push(began.elapsed());
            let began = Instant::now();
            echo.round_trip(&message, &mut back).await?;
            echoes.push(began.elapsed());
        }
        let [write, run, echo] = [&mut writes, &mut runs, &mut echoes]
            .map(|times| percentile(times, 50).as_secs_f64() * 1e6);
        if round > 0 {
            over_echo.push((write - run) / echo);
            p50_us.push([write, run, echo]);
        }
    }
    let [write, run, echo] = [0, 1, 2].map(|at| median(p50_us.iter().map(|it| it[at]).collect()));
    println!(
        "a write of {STATE_BYTES} bytes at its owner, less the same request without a session, over \
         a bare QUIC echo: p50 x {:.2} ({write:.0} - {run:.0} over {echo:.0} us)",
        median(over_echo),
    );
    let (mut ratios, mut p50_us) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let (mut reads, mut plains) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            let began = Instant::now();
            client.ask(&mesh[0], http::Method::GET, "kept", "/read").await?;
            reads.push(began.elapsed());
            let began = Instant::now();
            Client::default().ask(&mesh[0], http::Method::GET, "bare", "/plain").await?;
            plains.push(began.elapsed());
        }
        let [read, plain] =
            [&mut reads, &mut plains].map(|times| percentile(times, 50).as_secs_f64() * 1e6);
        ratios.push(read / plain);
        p50_us.push([read, plain]);
    }
    let [read, plain] = [0, 1].map(|at| median(p50_us.iter().map(|it| it[at]).collect()));
    println!(
        "a read over a request without a session, the app taking {READ_TAKES:?}: p50 x {:.3} \
         ({read:.0} over {plain:.0} us)",
        median(ratios)
    );
    for mesh in &mesh {
        mesh.vanish().await;
    }
    Ok(())
}

async fn takeovers() -> Result<(), AnyError> {
    let (mut first, mut later) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        let mesh = peers(3).await?;
        let mut clients = vec![Client::default(); 20];
        for client in &mut clients {
            for _ in 0..3 {
                client.write(&mesh[0]).await?;
            }
        }
        mesh[0].vanish().await;
        while mesh[1].status().peers.iter().any(|peer| peer.name == "p0" && peer.alive) {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        for client in &mut clients {
            let began = Instant::now();
            client.write(&mesh[1]).await?;
            first.push(began.elapsed());
            let began = Instant::now();
            client.write(&mesh[1]).await?;
            later.push(began.elapsed());
        }
        for mesh in &mesh[1..] {
            mesh.vanish().await;
        }
    }
    println!(
        "the first write after an owner's loss is known, its takeover included: p50 {:.2} ms, \
         p99 {:.2} ms; the next: p50 {:.2} ms",
        percentile(&mut first, 50).as_secs_f64() * 1e3,
        percentile(&mut first, 99).as_secs_f64() * 1e3,
        percentile(&mut later, 50).as_secs_f64() * 1e3,
    );
    Ok(())
}

fn resident_bytes() -> Result<u64, AnyError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).ok_or("no figure")?.parse()?;
    Ok(kib * 1024)
}

async fn memory() -> Result<(), AnyError> {
    const SESSIONS: u64 = 1_000_000;
    let mesh = peers(1).await?;
    let before = resident_bytes()?;
    for made in 1..=SESSIONS {
        Client::default().write(&mesh[0]).await?;
        if made % 250_000 == 0 {
            let each = resident_bytes()?.saturating_sub(before) / made;
            println!("{made} idle sessions of {STATE_BYTES} bytes: {each} bytes each in all");
        }
    }
    let owned = mesh[0].status().sessions.owned;
    println!("{owned} are owned here");
    mesh[0].vanish().await;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    if std::env::args().nth(1).as_deref() == Some("memory") {
        return memory().await;
    }
    writes_and_reads().await?;
    takeovers().await
}

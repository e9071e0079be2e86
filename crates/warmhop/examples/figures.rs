//! Measures what the mesh costs, as ratios against things measured in the same run:
//!
//! ```sh
//! cargo run --release -p warmhop --example figures
//! ```
//!
//! Clients, peers and the app share this machine's cores and one process, so single figures are
//! pessimistic and noisy; quote the ratios.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use warmhop::config::{SessionMode, StartMode};
use warmhop::identity::Authority;
use warmhop::ids::{AppName, PeerId};
use warmhop::{AppSpec, Mesh, app_fn};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn app() -> Router {
    let kilobyte = "x".repeat(1024);
    Router::new().route("/", get(move || std::future::ready(kilobyte.clone())))
}

async fn peer(
    authority: &Authority,
    name: &str,
    seed: Option<SocketAddr>,
    start: StartMode,
) -> Result<Mesh, AnyError> {
    let id = PeerId::new(name)?;
    let mut spec = AppSpec::new(AppName::new("app")?);
    spec.policy.session = SessionMode::None;
    spec.policy.start = start;
    let mut builder = Mesh::builder(authority.issue(&id)?)
        .front_door(TcpListener::bind("127.0.0.1:0").await?)
        .app(spec, app_fn(|| async { Ok::<_, std::io::Error>(app()) }));
    if let Some(seed) = seed {
        builder = builder.seed(seed.to_string());
    }
    Ok(builder.start().await?)
}

/// One connection that asks `count` times in turn; the time of each.
async fn ask(addr: SocketAddr, count: usize) -> Result<Vec<Duration>, AnyError> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let request =
            http::Request::get("/").header("host", "app").body(Empty::<bytes::Bytes>::new())?;
        sender.ready().await?;
        let began = Instant::now();
        let response = sender.send_request(request).await?;
        assert_eq!(response.status(), 200);
        response.into_body().collect().await?;
        times.push(began.elapsed());
    }
    Ok(times)
}

fn percentile(times: &mut [Duration], per_cent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * per_cent / 100).min(times.len() - 1)]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Requests a second over 64 connections.
async fn rate(addr: SocketAddr) -> Result<f64, AnyError> {
    const CONNECTIONS: usize = 64;
    const EACH: usize = 300;
    let began = Instant::now();
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| tokio::spawn(ask(addr, EACH))).collect();
    for client in clients {
        client.await??;
    }
    Ok((CONNECTIONS * EACH) as f64 / began.elapsed().as_secs_f64())
}

async fn cost_of_a_hop() -> Result<(), AnyError> {
    let authority = Authority::generate("figures")?;
    let one = peer(&authority, "one", None, StartMode::AtBoot).await?;
    let two = peer(&authority, "two", Some(one.mesh_addr()), StartMode::Never).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let direct = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app()).await });
    let (local, hop) = (one.front_doors()[0], two.front_doors()[0]);
    for addr in [direct, local, hop] {
        ask(addr, 2_000).await?;
    }
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    let mut added = Vec::new();
    for _ in 0..7 {
        let mut here = ask(local, 2_000).await?;
        let mut there = ask(hop, 2_000).await?;
        let (a, b) = (percentile(&mut here, 50), percentile(&mut there, 50));
        p50.push(b.as_secs_f64() / a.as_secs_f64());
        added.push((b.as_secs_f64() - a.as_secs_f64()) * 1e6);
        p99.push(
            percentile(&mut there, 99).as_secs_f64() / percentile(&mut here, 99).as_secs_f64(),
        );
    }
    println!(
        "a hop over serving locally, one request in flight: p50 x {:.2} (+{:.0} us), p99 x {:.2}",
        median(p50),
        median(added),
        median(p99)
    );
    let (mut local_ratio, mut hop_ratio) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let base = rate(direct).await?;
        local_ratio.push(rate(local).await? / base);
        hop_ratio.push(rate(hop).await? / base);
    }
    println!(
        "requests a second over the app asked directly, 64 connections: local x {:.2}, hop x {:.2}",
        median(local_ratio),
        median(hop_ratio)
    );
    two.shutdown().await;
    one.shutdown().await;
    Ok(())
}

async fn spread_of_readiness(count: usize) -> Result<(), AnyError> {
    let authority = Authority::generate("figures")?;
    let mut peers = vec![peer(&authority, "p0", None, StartMode::OnRequest).await?];
    for n in 1..count {
        let seed = Some(peers[0].mesh_addr());
        peers.push(peer(&authority, &format!("p{n}"), seed, StartMode::OnRequest).await?);
    }
    let linked = |mesh: &Mesh| {
        mesh.status().peers.iter().filter(|p| p.alive && p.rtt_us.is_some()).count() == count - 1
    };
    while !peers.iter().all(linked) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let name = AppName::new("app")?;
    let (first, others) = peers.split_first().ok_or("no peers")?;
    let believed = |state: &'static str| {
        move |mesh: &Mesh| {
            mesh.status()
                .peers
                .iter()
                .any(|p| p.name == "p0" && p.apps.get("app").is_some_and(|s| s == state))
        }
    };
    let mut times = Vec::new();
    for _ in 0..40 {
        let began = Instant::now();
        first.start_app(&name)?;
        while !others.iter().all(believed("ready")) {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        times.push(began.elapsed());
        first.stop_app(&name)?;
        while !others.iter().all(believed("cold")) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    println!(
        "readiness known to all of {count} peers, start of an instant app included: p50 {:.1} ms, p99 {:.1} ms",
        percentile(&mut times, 50).as_secs_f64() * 1e3,
        percentile(&mut times, 99).as_secs_f64() * 1e3,
    );
    for mesh in &peers {
        mesh.shutdown().await;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    cost_of_a_hop().await?;
    for count in [5, 20] {
        spread_of_readiness(count).await?;
    }
    Ok(())
}

//! What a hop costs a stream, against the same app asked directly in the same run.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::bench_mesh::{BOUND, bench_mesh};
use crate::client::Client;
use crate::mesh::{Mesh, until};
use crate::ports::Reservation;
use crate::terminal::Terminal;

const ROUNDS: usize = 3;
const ROUND_TRIPS: usize = 5_000;
const PIECE_BYTES: usize = 64 * 1024;

/// One way to the app.
struct Way {
    name: &'static str,
    addr: SocketAddr,
}

/// Moves `bytes` bytes down and up, and passes messages over a WebSocket: through a hop, through
/// the peer that runs the app, and to the app itself, in turn. Prints the medians, their ratios
/// and how much memory the peers took.
///
/// # Errors
/// If the mesh does not form, or a stream breaks.
pub async fn streams(bytes: u64) -> Result<()> {
    let terminal = Terminal::new();
    let reserved = Reservation::new()?;
    let mesh = bench_mesh(&reserved, 2).await?;
    let through_hop = mesh.peer(1).ports.http;
    let hops = until("the second peer sends requests on", BOUND, async || {
        Client::new().get(through_hop, "/whoami").await.ok()?.ok().ok()
    })
    .await?;
    ensure!(hops.hopped(), "the second peer served it itself");
    let port = hops.json()?["port"].as_u64().context("the app tells its port")?;
    let ways = [
        Way { name: "direct", addr: SocketAddr::from(([127, 0, 0, 1], u16::try_from(port)?)) },
        Way { name: "one peer", addr: mesh.peer(0).ports.http },
        Way { name: "a hop", addr: through_hop },
    ];

    let before = [resident_peak(&mesh, 0)?, resident_peak(&mesh, 1)?];
    let mib = bytes as f64 / f64::from(1 << 20);
    let row = |what: &str, medians: &[f64]| {
        let cells = ways.iter().zip(medians).map(|(way, median)| {
            format!("  {} {median:>7.1} (x{:.2})", way.name, median / medians[0])
        });
        terminal.line(format!("{what:<34}{}", cells.collect::<String>()));
    };
    let mut down = vec![Vec::new(); ways.len()];
    let mut up = vec![Vec::new(); ways.len()];
    for round in 0..ROUNDS {
        for (index, way) in ways.iter().enumerate() {
            terminal.passing(format!("round {} of {ROUNDS}: {}", round + 1, way.name));
            down[index].push(mib / download(way.addr, bytes).await?.as_secs_f64());
            up[index].push(mib / upload(way.addr, bytes).await?.as_secs_f64());
        }
    }
    let (down, up) = (medians(down), medians(up));
    row(&format!("download of {mib:.0} MiB, MiB/s"), &down);
    row(&format!("upload of {mib:.0} MiB, MiB/s"), &up);
    for (what, rates) in [("download", &down), ("upload", &up)] {
        terminal.line(format!(
            "{:<34}  {:.2}",
            format!("{what} by a hop over one peer's"),
            rates[2] / rates[1]
        ));
    }
    for (index, before) in before.into_iter().enumerate() {
        let grown = resident_peak(&mesh, index)?.saturating_sub(before) / 1024;
        let peer = mesh.peer(index);
        terminal.line(format!(
            "most memory of {}: {} MiB before, {grown} MiB more meanwhile",
            peer.name,
            before / 1024
        ));
    }
    let mut trips = vec![Vec::new(); ways.len()];
    for _ in 0..ROUNDS {
        for (index, way) in ways.iter().enumerate() {
            terminal.passing(format!("round trips: {}", way.name));
            trips[index].push(round_trip(way.addr).await?.as_secs_f64() * 1e6);
        }
    }
    row("WebSocket round trip (half), us", &medians(trips));
    Ok(())
}

fn medians(samples: Vec<Vec<f64>>) -> Vec<f64> {
    samples
        .into_iter()
        .map(|mut samples| {
            samples.sort_by(f64::total_cmp);
            samples[samples.len() / 2]
        })
        .collect()
}

async fn exchange<B>(
    addr: SocketAddr,
    method: Method,
    path: &str,
    body: B,
) -> Result<Response<Incoming>>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", addr.to_string());
    let response = sender.send_request(request.body(body)?).await?;
    ensure!(response.status().is_success(), "{path} at {addr}: {}", response.status());
    Ok(response)
}

async fn download(addr: SocketAddr, bytes: u64) -> Result<Duration> {
    let began = Instant::now();
    let path = format!("/bytes?n={bytes}");
    let mut response = exchange(addr, Method::GET, &path, Full::default()).await?;
    let mut received = 0;
    while let Some(frame) = response.frame().await {
        received += frame?.into_data().map_or(0, |data| data.len() as u64);
    }
    ensure!(received == bytes, "{received} of {bytes} bytes came");
    Ok(began.elapsed())
}

async fn upload(addr: SocketAddr, bytes: u64) -> Result<Duration> {
    let piece = Bytes::from(vec![7; PIECE_BYTES]);
    let pieces = futures_util::stream::unfold(bytes, move |left| {
        let piece = piece.clone();
        async move {
            let length = left.min(PIECE_BYTES as u64);
            let frame = Ok(Frame::data(piece.slice(..length as usize)));
            (left > 0).then_some((frame, left - length))
        }
    });
    let began = Instant::now();
    let response = exchange(addr, Method::POST, "/count", StreamBody::new(pieces)).await?;
    let counted: serde_json::Value =
        serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
    ensure!(counted["bytes"] == bytes, "{counted} of {bytes} bytes came");
    Ok(began.elapsed())
}

/// The median.
async fn round_trip(addr: SocketAddr) -> Result<Duration> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let (mut socket, _) =
        tokio_tungstenite::client_async(format!("ws://{addr}/ws"), stream).await?;
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let began = Instant::now();
        socket.send(Message::text("there and back")).await?;
        let back = socket.next().await.context("the WebSocket ended")??;
        ensure!(back.is_text(), "not an echo: {back:?}");
        times.push(began.elapsed());
    }
    socket.close(None).await?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// The most memory that a peer has had resident, in KiB.
fn resident_peak(mesh: &Mesh, index: usize) -> Result<u64> {
    let process = mesh.peer(index).process().context("the peer does not run")?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)).context("no VmHWM")?;
    Ok(kib.parse()?)
}

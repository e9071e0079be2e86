//! The cost of messages: how long one takes to a subscriber at another peer, compared with the hop of a
//! request to that peer, and what idle subscriptions cost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::Method;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::bench_mesh::bench_mesh;
use crate::mesh::Mesh;
use crate::ports::Reservation;
use crate::resp::{Answer, Connection};
use crate::terminal::Terminal;

/// How often each is measured, in turn with the others: the machine may have other things to do.
const ROUNDS: usize = 5;
const MESSAGES: usize = 1_000;
const SUBSCRIPTIONS: usize = 10_000;
/// How many of them one client has.
const EACH: usize = 100;
/// How long idle peers are watched.
const IDLE: Duration = Duration::from_secs(10);

/// Measures and prints.
///
/// # Errors
/// If the mesh does not form, or a connection breaks.
pub async fn messages() -> Result<()> {
    let terminal = Terminal::new();
    let reserved = Reservation::new()?;
    let mesh = bench_mesh(&reserved, 3).await?;

    let mut heard = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        terminal.passing(format!("messages: round {} of {ROUNDS}", round + 1));
        let times = [
            requests(&mesh, 0).await?,
            requests(&mesh, 1).await?,
            latency_at(&mesh, 0).await?,
            latency_at(&mesh, 1).await?,
        ];
        heard.iter_mut().zip(times).for_each(|(all, time)| all.push(time));
    }
    let [here, hopped, heard_here, heard_there] = heard.map(median);
    // A request to the app passes the hop twice.
    let hop = (hopped - here) / 2.0;
    terminal.line(format!("a request, us: served here {here:.0}, by a hop {hopped:.0}"));
    terminal.line(format!("a hop's one-way time, us: {hop:.0}"));
    terminal.line(format!(
        "a message, us: to a subscriber of the same peer {heard_here:.0}, of another {heard_there:.0}"
    ));
    terminal.line(format!(
        "what a message takes to another peer, us: {:.0} (x{:.2} of the hop's)",
        heard_there - heard_here,
        (heard_there - heard_here) / hop
    ));
    idle(&mesh, &terminal).await
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn micros(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// The median of a request's times on one connection.
async fn requests(mesh: &Mesh, door: usize) -> Result<f64> {
    let addr = mesh.peer(door).ports.http;
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tokio::spawn(connection);
    let mut times = Vec::with_capacity(MESSAGES);
    for _ in 0..MESSAGES {
        let request = http::Request::builder().method(Method::GET).uri("/healthz");
        let request = request.header("host", addr.to_string());
        sender.ready().await?;
        let began = Instant::now();
        let response = sender
            .send_request(request.body(http_body_util::Empty::<bytes::Bytes>::new())?)
            .await?;
        ensure!(response.status().is_success(), "{}", response.status());
        http_body_util::BodyExt::collect(response.into_body()).await?;
        times.push(began.elapsed());
    }
    Ok(micros(times))
}

/// The median of the times from the sending of `PUBLISH` at the second peer to a message's arrival at
/// a subscriber of that peer (0), or of the first one (1).
async fn latency_at(mesh: &Mesh, away: usize) -> Result<f64> {
    let mut subscriber = Connection::open(mesh.peer(1 - away).ports.redis).await?;
    subscriber.ask(&["SUBSCRIBE", "bench"]).await?;
    let mut publisher = Connection::open(mesh.peer(1).ports.redis).await?;
    let mut times = Vec::with_capacity(MESSAGES);
    for _ in 0..MESSAGES {
        let began = Instant::now();
        publisher.send(&["PUBLISH", "bench", "a message"]).await?;
        let message = subscriber.read().await?;
        times.push(began.elapsed());
        ensure!(matches!(message, Answer::Several(_)), "{message:?}");
        let count = publisher.read().await?;
        ensure!(count == Answer::Number(1), "{count:?}");
    }
    Ok(micros(times))
}

async fn idle(mesh: &Mesh, terminal: &Terminal) -> Result<()> {
    terminal.passing("idle subscriptions");
    let before = (resident(mesh)?, busy(mesh).await?);
    let addr = mesh.peer(1).ports.redis;
    let mut subscribers = Vec::new();
    for client in 0..SUBSCRIPTIONS / EACH {
        let mut subscriber = Connection::open(addr).await?;
        for channel in 0..EACH {
            let answer =
                subscriber.ask(&["SUBSCRIBE", &format!("idle:{client}:{channel}")]).await?;
            ensure!(matches!(answer, Answer::Several(_)), "{answer:?}");
        }
        subscribers.push(subscriber);
    }
    let after = (resident(mesh)?, busy(mesh).await?);
    terminal.line(format!(
        "{SUBSCRIPTIONS} subscriptions of {} clients: {} KiB more at their peer; all peers were busy \
         {:.1} ms of a second before, {:.1} with them",
        SUBSCRIPTIONS / EACH,
        after.0.saturating_sub(before.0),
        before.1,
        after.1
    ));
    Ok(())
}

/// The second peer's resident memory in KiB.
fn resident(mesh: &Mesh) -> Result<u64> {
    let process = mesh.peer(1).process().context("the peer does not run")?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)).context("no VmRSS")?;
    Ok(kib.parse()?)
}

/// How many milliseconds of processor time a second all peers use while they are idle.
async fn busy(mesh: &Mesh) -> Result<f64> {
    let ran = || -> Result<f64> {
        let mut nanos = 0.0;
        for peer in mesh.peers() {
            let process = peer.process().context("the peer does not run")?;
            for thread in std::fs::read_dir(format!("/proc/{}/task", process.pid))? {
                let stat = std::fs::read_to_string(thread?.path().join("schedstat"))?;
                let ran = stat.split_whitespace().next().context("schedstat tells")?;
                nanos += ran.parse::<f64>()?;
            }
        }
        Ok(nanos)
    };
    let before = ran()?;
    sleep(IDLE).await;
    Ok((ran()? - before) / 1e6 / IDLE.as_secs_f64())
}

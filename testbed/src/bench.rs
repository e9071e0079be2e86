//! Figures that only real processes can give. `testbed/bench` builds optimised ones for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use toml::{Table, Value};

use crate::mesh::{Mesh, Spec, until};
use crate::ports::Reservation;
use crate::terminal::Terminal;

const PEERS: usize = 4;
const COPIES: usize = 3;
const CLIENTS_AT_ONCE: usize = 32;
/// Long enough for any figure worth printing.
const BOUND: Duration = Duration::from_secs(120);
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// A connection that is kept between requests, unlike the clients of the tests.
pub(crate) struct Door {
    addr: SocketAddr,
    sender: Option<SendRequest<Full<Bytes>>>,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) cookie: Option<String>,
    pub(crate) body: Bytes,
}

impl Door {
    pub(crate) fn new(addr: SocketAddr) -> Self {
        Self { addr, sender: None }
    }

    pub(crate) async fn ask(
        &mut self,
        method: Method,
        path: &str,
        cookie: Option<&str>,
        body: String,
    ) -> Result<Answer> {
        let asked = self.ask_once(method, path, cookie, body);
        let answer = match timeout(ANSWER_WITHIN, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(anyhow!("no answer within {ANSWER_WITHIN:?}")),
        };
        if answer.is_err() {
            self.sender = None;
        }
        answer
    }

    async fn ask_once(
        &mut self,
        method: Method,
        path: &str,
        cookie: Option<&str>,
        body: String,
    ) -> Result<Answer> {
        let sender = match self.sender.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => self.sender.insert(sender),
            None => {
                let stream = TcpStream::connect(self.addr).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                self.sender.insert(sender)
            }
        };
        sender.ready().await?;
        let mut request =
            Request::builder().method(method).uri(path).header("host", self.addr.to_string());
        if let Some(cookie) = cookie {
            request = request.header("cookie", cookie);
        }
        let response = sender.send_request(request.body(Full::from(body))?).await?;
        let status = response.status();
        let cookie = response
            .headers()
            .get("set-cookie")
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.split(';').next())
            .map(str::to_owned);
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Answer { status, cookie, body })
    }
}

/// Does `each` for the numbers below `count`, some at a time, each of the workers with its own
/// connection to one of `doors`.
async fn for_each<T: Send + 'static, F>(
    count: usize,
    doors: &[SocketAddr],
    each: impl Fn(Door, usize) -> F + Clone + Send + 'static,
) -> Result<Vec<(usize, T)>>
where
    F: Future<Output = Result<(Door, T)>> + Send,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for worker in 0..CLIENTS_AT_ONCE {
        let (next, each) = (Arc::clone(&next), each.clone());
        let addr = doors[worker % doors.len()];
        workers.spawn(async move {
            let mut door = Door::new(addr);
            let mut done = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(done);
                }
                let result;
                (door, result) = each(door, number).await?;
                done.push((number, result));
            }
        });
    }
    let mut all = Vec::with_capacity(count);
    while let Some(done) = workers.join_next().await {
        all.extend(done??);
    }
    all.sort_unstable_by_key(|(number, _)| *number);
    Ok(all)
}

fn app(mesh: &std::path::Path) -> Result<Table> {
    let mut app: Table = r#"
        name = "ledger"
        match = { path = "/" }
        ready = { path = "/healthz", timeout = "30s" }
        start = "at-boot"
        session = "portable"
    "#
    .parse()?;
    let program = crate::program("ledger")?.to_string_lossy().into_owned();
    app.insert("run".into(), vec![Value::from(program)].into());
    app.insert("dir".into(), mesh.to_string_lossy().into_owned().into());
    Ok(app)
}

/// How many sessions the running peers own and hold.
async fn kept(mesh: &Mesh) -> Option<(usize, usize)> {
    let (mut owned, mut held) = (0, 0);
    for peer in mesh.peers().iter().filter(|peer| peer.is_alive()) {
        let status = peer.status().await.ok()?;
        owned += usize::try_from(status["sessions"]["owned"].as_u64()?).ok()?;
        held += usize::try_from(status["sessions"]["copies"].as_u64()?).ok()?;
    }
    Some((owned, held))
}

async fn all_kept(mesh: &Mesh, sessions: usize) -> Result<()> {
    let whole = (sessions, sessions * COPIES);
    let mut last = None;
    let done = until("every session is owned once and held three times", BOUND, async || {
        last = kept(mesh).await;
        (last == Some(whole)).then_some(())
    });
    done.await.with_context(|| format!("owned and held: {last:?} instead of {whole:?}"))
}

pub(crate) fn percentile(sorted: &[Duration], per_cent: usize) -> f64 {
    let at = (sorted.len() * per_cent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, Duration::as_secs_f64)
}

/// Ends the owner of `sessions` sessions by SIGKILL, and takes the time until each of them is
/// served again, and until each is held by three peers again: once with clients that ask for all
/// of them at once, once with nobody asking.
///
/// # Errors
/// If the mesh does not form, a session is lost, or it takes longer than two minutes.
pub async fn failover(sessions: usize) -> Result<()> {
    let terminal = Terminal::new();
    for asked in [true, false] {
        let reserved = Reservation::new()?;
        let folder = crate::workspace().join("target/testbed-bench");
        std::fs::create_dir_all(&folder)?;
        let mut mesh = Mesh::launch(Spec {
            folder: folder.clone(),
            cluster: "bench".into(),
            ports: (0..PEERS as u16).map(|index| reserved.peer(index)).collect(),
            apps: vec![app(&folder)?],
            settings: Table::new(),
            detached: true,
        })
        .await?;
        for index in 0..PEERS {
            until("the app is ready everywhere", BOUND, async || {
                (mesh.peer(index).app_state("ledger").await == "ready").then_some(())
            })
            .await?;
        }
        let doors: Vec<SocketAddr> = mesh.peers().iter().map(|peer| peer.ports.http).collect();
        let made = for_each(sessions, &doors[..1], async |mut door: Door, number: usize| {
            let item = format!("item-{number}");
            let answer = door.ask(Method::POST, "/append", None, item).await?;
            let cookie = answer.cookie.filter(|_| answer.status.is_success());
            let cookie = cookie.with_context(|| format!("not made: {}", answer.status))?;
            Ok((door, cookie))
        })
        .await?;
        let cookies: Arc<[String]> = made.into_iter().map(|(_, cookie)| cookie).collect();
        all_kept(&mesh, sessions).await?;

        mesh.kill(0)?;
        let killed = Instant::now();
        if asked {
            let served = for_each(sessions, &doors[1..], {
                move |mut door: Door, number: usize| {
                    let cookies = Arc::clone(&cookies);
                    async move {
                        loop {
                            let cookie = Some(cookies[number].as_str());
                            let asked = door.ask(Method::GET, "/list", cookie, String::new());
                            match asked.await {
                                Ok(answer) if answer.status.is_success() => {
                                    let expected = format!("[\"item-{number}\"]");
                                    if answer.body != expected {
                                        bail!("session {number} holds {:?}", answer.body);
                                    }
                                    return Ok((door, killed.elapsed()));
                                }
                                _ if killed.elapsed() > BOUND => {
                                    bail!("session {number} is not served");
                                }
                                _ => sleep(Duration::from_millis(20)).await,
                            }
                        }
                    }
                }
            })
            .await?;
            let mut times: Vec<Duration> = served.into_iter().map(|(_, time)| time).collect();
            times.sort_unstable();
            terminal.line(format!(
                "{sessions} sessions of a killed owner, all asked for at once, {CLIENTS_AT_ONCE} \
                 at a time: served again after {:.1} s (half), {:.1} s (99 %), {:.1} s (all)",
                percentile(&times, 50),
                percentile(&times, 99),
                percentile(&times, 100),
            ));
        }
        all_kept(&mesh, sessions).await?;
        let whole = killed.elapsed().as_secs_f64();
        let how = if asked { "" } else { ", nobody asking" };
        terminal.line(format!("owned once and held by three peers again{how}: {whole:.1} s"));
    }
    Ok(())
}

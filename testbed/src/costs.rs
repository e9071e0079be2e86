//! What a request allocates at the peers that it passes, beside the most that it may.
//!
//! Times say little on a machine that does other things as well, but the same request on a connection of
//! its own makes the same allocations everywhere. Peers of debug builds count them. What idle peers
//! allocate is measured first and subtracted.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http::Method;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::time::sleep;
use toml::{Table, Value};

use crate::bench::Door;
use crate::client::Client;
use crate::mesh::{Mesh, Spec, until};
use crate::ports::Reservation;
use crate::terminal::Terminal;

const PEERS: usize = 3;
const BOUND: Duration = Duration::from_secs(60);
/// How long idle peers are watched.
const IDLE: Duration = Duration::from_secs(2);
/// Requests before those that count: they open connections and grow the buffers that grow.
const WARM_UP: u32 = 50;
const REQUESTS: u32 = 200;
/// How often a way that takes more than it may is measured again: other work of the peers in the
/// meantime can only add to it.
const TRIES: u32 = 4;

/// A way that requests take, and the most allocations that one may take at all peers together.
struct Way {
    name: &'static str,
    asks: Asks,
    most: f64,
}

/// What is asked, at which peer; the apps run at the first.
enum Asks {
    Http { door: usize, method: Method, target: &'static str, session: bool },
    Redis(&'static [&'static str]),
}

/// Each `most` is the count at the time of writing plus a sixth: a change that adds an allocation on
/// purpose raises it, and one that saves some lowers it.
fn ways() -> [Way; 7] {
    let http = |name, door, method, target, session, most| Way {
        name,
        asks: Asks::Http { door, method, target, session },
        most,
    };
    let (get, post) = (Method::GET, Method::POST);
    [
        http("served here", 0, get.clone(), "/healthz", false, 33.0),
        http("by a hop", 1, get.clone(), "/healthz", false, 95.0),
        http("a session, read here", 0, get.clone(), "/list", true, 80.0),
        http("a session, forwarded", 1, get, "/list", true, 151.0),
        http("a session, written here", 0, post, "/append", true, 135.0),
        Way { name: "Redis GET", asks: Asks::Redis(&["GET", "costs"]), most: 97.0 },
        Way { name: "Redis SET", asks: Asks::Redis(&["SET", "costs", "value"]), most: 103.0 },
    ]
}

/// Counts and prints; an error where a way takes more than it may.
///
/// # Errors
/// If one does, a peer does not answer, or does not count.
pub async fn costs() -> Result<()> {
    let terminal = Terminal::new();
    let ports = Reservation::new()?;
    let folder = crate::workspace().join("target/testbed-costs");
    let spec = Spec {
        folder: folder.clone(),
        cluster: "costs".into(),
        ports: (0..PEERS as u16).map(|index| ports.peer(index)).collect(),
        apps: vec![
            app(&folder, "plain", "/healthz", "none")?,
            app(&folder, "kept", "/", "portable")?,
        ],
        settings: Table::new(),
        detached: false,
    };
    let mut mesh = Mesh::prepare(spec)?;
    for index in 0..PEERS {
        mesh.reconfigure(index, |config| at_first_peer_only(config, index))?;
        mesh.start(index)?;
    }
    mesh.formed().await?;
    for app in ["plain", "kept"] {
        until(&format!("{app} is ready"), BOUND, async || {
            (mesh.peer(0).app_state(app).await == "ready").then_some(())
        })
        .await?;
    }
    let (before, began) = (allocations(&mesh).await?, Instant::now());
    sleep(IDLE).await;
    let idle = (allocations(&mesh).await? - before) / began.elapsed().as_secs_f64();
    terminal.line(format!("{:<24} {:>12} {:>12}", "allocations a request", "counted", "at most"));
    let mut dear = Vec::new();
    for way in &ways() {
        let mut least = f64::INFINITY;
        for _ in 0..TRIES {
            least = least.min(count(&mesh, way, idle).await?);
            if least <= way.most {
                break;
            }
        }
        terminal.line(format!("{:<24} {least:>12.1} {:>12.1}", way.name, way.most));
        if least > way.most {
            dear.push(way.name);
        }
    }
    if !dear.is_empty() {
        bail!(
            "more than was written down: {}. Find what allocates and did not before; where it has \
             to, raise the figure in testbed/src/costs.rs",
            dear.join(", ")
        );
    }
    Ok(())
}

/// How many allocations a request on `way` takes.
async fn count(mesh: &Mesh, way: &Way, idle: f64) -> Result<f64> {
    let mut asker = Asker::of(mesh, &way.asks).await.context(way.name)?;
    for _ in 0..WARM_UP {
        asker.ask().await.context(way.name)?;
    }
    let (before, began) = (allocations(mesh).await?, Instant::now());
    for _ in 0..REQUESTS {
        asker.ask().await.context(way.name)?;
    }
    let counted = allocations(mesh).await? - before - idle * began.elapsed().as_secs_f64();
    Ok(counted / f64::from(REQUESTS))
}

/// Asks the same over and over on a connection of its own.
enum Asker {
    Http { door: Door, method: Method, target: &'static str, cookie: Option<String> },
    Redis { stream: BufStream<TcpStream>, command: Vec<u8> },
}

impl Asker {
    async fn of(mesh: &Mesh, asks: &Asks) -> Result<Self> {
        let (door, method, target, session) = match asks {
            Asks::Http { door, method, target, session } => (*door, method, *target, *session),
            Asks::Redis(words) => {
                let mut command = format!("*{}\r\n", words.len()).into_bytes();
                for word in *words {
                    command.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
                }
                let stream = BufStream::new(TcpStream::connect(mesh.peer(0).ports.redis).await?);
                return Ok(Self::Redis { stream, command });
            }
        };
        let mut cookie = None;
        if session {
            // Begun at the first peer, which owns it then.
            let mut owner = Door::new(mesh.peer(0).ports.http);
            let answer = owner.ask(Method::POST, "/append", None, "item".into()).await?;
            ensure!(answer.status.is_success(), "{}", answer.status);
            cookie = answer.cookie;
        }
        let door = Door::new(mesh.peer(door).ports.http);
        Ok(Self::Http { door, method: method.clone(), target, cookie })
    }

    async fn ask(&mut self) -> Result<()> {
        match self {
            Self::Http { door, method, target, cookie } => {
                let body = if *method == Method::POST { "item" } else { "" };
                let asked = door.ask(method.clone(), target, cookie.as_deref(), body.into());
                let answer = asked.await?;
                ensure!(answer.status.is_success(), "{}", answer.status);
                *cookie = answer.cookie.or(cookie.take());
            }
            Self::Redis { stream, command } => {
                stream.write_all(command).await?;
                stream.flush().await?;
                let mut line = String::new();
                stream.read_line(&mut line).await?;
                ensure!(line.ends_with('\n') && !line.starts_with('-'), "it answers {line:?}");
                if let Some(length) = line.trim_end().strip_prefix('$').filter(|it| *it != "-1") {
                    let mut value = vec![0; length.parse::<usize>()? + 2];
                    stream.read_exact(&mut value).await?;
                }
            }
        }
        Ok(())
    }
}

/// What all peers have allocated so far.
async fn allocations(mesh: &Mesh) -> Result<f64> {
    const NAME: &str = "process_allocations_total ";
    let mut sum = 0.0;
    for peer in mesh.peers() {
        let metrics = Client::new().get(peer.ports.admin, "/metrics").await?.ok()?;
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        let count = text.lines().find_map(|line| line.strip_prefix(NAME));
        let count = count.context("peers of release builds do not count what they allocate")?;
        sum += count.trim().parse::<f64>()?;
    }
    Ok(sum)
}

fn app(folder: &Path, name: &str, path: &str, session: &str) -> Result<Table> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut app: Table = format!(
        "name = '{name}'\nmatch = {{ path = '{path}' }}\nstart = 'at-boot'\n\
         session = '{session}'\nready = {{ path = '/healthz', timeout = '60s' }}\n"
    )
    .parse()?;
    let program = crate::program("ledger")?;
    app.insert("run".into(), vec![Value::from(text(&program))].into());
    app.insert("dir".into(), text(folder).into());
    Ok(app)
}

fn at_first_peer_only(config: &mut Table, index: usize) {
    let apps = config.get_mut("app").and_then(Value::as_array_mut);
    for app in apps.into_iter().flatten().filter_map(Value::as_table_mut) {
        if index > 0 {
            app.insert("start".into(), "never".into());
        }
    }
}

//! How many instructions a request takes at a peer, without the kernel's: valgrind counts them, and counts the
//! same on a busy machine. What starts child processes does not run below it, so it counts peers that
//! answer from memory, and the Redis endpoint.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use toml::Table;

use crate::bench::Door;
use crate::client::Client;
use crate::mesh::{Mesh, Spec, until, warmhop_cert};
use crate::ports::Reservation;
use crate::terminal::Terminal;

/// Programs start slowly below valgrind.
const BOUND: Duration = Duration::from_secs(120);
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);
const WARM_UP: usize = 320;
const REQUESTS: usize = 1600;
const VALUE_BYTES: usize = 1024;
/// How many commands are sent at once, where they are.
const TOGETHER: usize = 16;

/// A program below valgrind, ended with its value.
struct Counted {
    child: Child,
    out: PathBuf,
    dumps: usize,
}

impl Counted {
    fn start(folder: &Path, name: &str, program: &Path, args: &[&str]) -> Result<Self> {
        let out = folder.join(format!("{name}.callgrind"));
        let log = std::fs::File::create(folder.join(format!("{name}.log")))?;
        let child = Command::new("valgrind")
            .args(["--tool=callgrind", "--instr-atstart=no"])
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(program)
            .args(args)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot run valgrind")?;
        Ok(Self { child, out, dumps: 0 })
    }

    async fn control(&self, order: &str) -> Result<()> {
        let pid = self.child.id().context("what is counted has ended")?.to_string();
        let mut command = Command::new("callgrind_control");
        command.args(order.split(' ')).arg(pid).stdin(Stdio::null());
        let said = command.output().await.context("cannot run callgrind_control (valgrind)")?;
        ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        Ok(())
    }

    async fn begin(&self) -> Result<()> {
        self.control("-i on").await?;
        self.control("-z").await
    }

    /// How many since it began.
    async fn end(&mut self) -> Result<f64> {
        self.control("-d").await?;
        self.control("-i off").await?;
        self.dumps += 1;
        let dump = self.out.with_extension(format!("callgrind.{}", self.dumps));
        let written = async || {
            let text = std::fs::read_to_string(&dump).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("totals: "))?;
            line.trim().parse().ok()
        };
        until("the counts are written", BOUND, written).await
    }
}

/// Counts and prints. Where there is no valgrind, it only says so.
///
/// # Errors
/// If a peer does not answer.
pub async fn instructions() -> Result<()> {
    let terminal = Terminal::new();
    let there = Command::new("valgrind").arg("--version").output().await;
    if !there.is_ok_and(|it| it.status.success()) {
        terminal.line("instructions are not counted: there is no valgrind");
        return Ok(());
    }
    let folder = crate::workspace().join("target/testbed-bench-instructions");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    terminal.line(format!("{:<36} {:>12}", "instructions a request, at one peer", "thousands"));
    from_memory(&terminal, &folder).await?;
    redis(&terminal, &folder).await
}

fn print(terminal: &Terminal, name: &str, counted: f64) {
    terminal.line(format!("{name:<36} {:>12.1}", counted / 1000.0));
}

async fn from_memory(terminal: &Terminal, folder: &Path) -> Result<()> {
    let reserved = Reservation::new()?;
    let ports = [reserved.peer(0), reserved.peer(1)];
    let ca = folder.join("ca");
    warmhop_cert(&["ca", "--cluster", "bench", "--out"], &ca)?;
    let seed = ports[0].mesh.to_string();
    let mut peers = Vec::new();
    for (own, (name, starts)) in ports.iter().zip([("peer-1", "ready"), ("peer-2", "never")]) {
        let certs = folder.join(name);
        let ca = ca.to_str().context("the folder's path is not UTF-8")?;
        warmhop_cert(&["peer", name, "--ca", ca, "--out"], &certs)?;
        let (http, mesh) = (own.http.to_string(), own.mesh.to_string());
        let certs = certs.to_str().context("the folder's path is not UTF-8")?;
        let args = [certs, &http, &mesh, &seed, starts, "current-thread"];
        peers.push(Counted::start(folder, name, &crate::program("memory")?, &args)?);
    }
    for (way, door, counted) in [
        ("from memory, here", 0, 0),
        ("by a hop, at its entry", 1, 1),
        ("by a hop, at its far end", 1, 0),
    ] {
        let addr = ports[door].http;
        until("the app answers", BOUND, async || {
            Client::new().get(addr, "/").await.ok()?.ok().ok()
        })
        .await?;
        let mut door = Door::new(addr);
        ask(&mut door, WARM_UP).await?;
        peers[counted].begin().await?;
        ask(&mut door, REQUESTS).await?;
        print(terminal, way, peers[counted].end().await? / REQUESTS as f64);
    }
    Ok(())
}

async fn ask(door: &mut Door, count: usize) -> Result<()> {
    for _ in 0..count {
        let answer = door.ask(Method::GET, "/", None, String::new()).await?;
        ensure!(answer.status.is_success(), "{}", answer.status);
    }
    Ok(())
}

/// A command on a key of its own, and the length of its reply.
struct Asked {
    name: &'static str,
    reply_bytes: usize,
}

impl Asked {
    fn put(&self, number: usize, onto: &mut Vec<u8>) {
        let key = format!("key:{:06}", number % 100);
        let value = "x".repeat(VALUE_BYTES);
        let words: &[&str] = match self.name {
            "SET" => &["SET", &key, &value],
            _ => &[self.name, &key],
        };
        onto.extend(format!("*{}\r\n", words.len()).into_bytes());
        for word in words {
            onto.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
        }
    }

    /// Sends commands, so many together, and reads their replies.
    async fn ask(&self, stream: &mut TcpStream, count: usize, together: usize) -> Result<()> {
        let mut replies = vec![0; together * self.reply_bytes];
        for round in 0..count / together {
            let mut commands = Vec::new();
            (0..together).for_each(|at| self.put(round * together + at, &mut commands));
            stream.write_all(&commands).await?;
            let read = timeout(ANSWERED_WITHIN, stream.read_exact(&mut replies));
            read.await.context("no reply in time")??;
            ensure!(replies[0] != b'-', "{}", String::from_utf8_lossy(&replies));
        }
        Ok(())
    }
}

/// The Redis endpoint at the peer that owns the keys, one of three.
async fn redis(terminal: &Terminal, folder: &Path) -> Result<()> {
    let reserved = Reservation::new()?;
    let mut mesh = Mesh::prepare(Spec {
        folder: folder.join("redis"),
        cluster: "bench".into(),
        ports: (0..3).map(|index| reserved.peer(index)).collect(),
        apps: Vec::new(),
        settings: Table::new(),
        detached: false,
    })?;
    mesh.start(1)?;
    mesh.start(2)?;
    let config = folder.join("redis/peer-1/warmhop.toml");
    let config = config.to_str().context("the folder's path is not UTF-8")?;
    let args = ["run", "--config", config];
    let mut counted = Counted::start(folder, "redis", &crate::program("warmhop")?, &args)?;
    let door = mesh.peer(0).ports;
    until("all peers have met", BOUND, async || {
        let status = crate::mesh::status(door.admin).await;
        let names = ["peer-2".to_owned(), "peer-3".to_owned()];
        crate::mesh::missing(&status, "peer-1", &names).is_none().then_some(())
    })
    .await?;
    let mut stream = connected(door.redis).await?;
    let set = Asked { name: "SET", reply_bytes: "+OK\r\n".len() };
    let get = Asked { name: "GET", reply_bytes: "$1024\r\n\r\n".len() + VALUE_BYTES };
    for (asked, together) in [(&set, 1), (&set, TOGETHER), (&get, 1), (&get, TOGETHER)] {
        asked.ask(&mut stream, WARM_UP, together).await?;
        counted.begin().await?;
        asked.ask(&mut stream, REQUESTS, together).await?;
        let name = match together {
            1 => format!("Redis {}", asked.name),
            _ => format!("Redis {}, {together} together", asked.name),
        };
        print(terminal, &name, counted.end().await? / REQUESTS as f64);
    }
    Ok(())
}

async fn connected(addr: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

//! The guided tour: a request to a cold app answered at once, the cut-over, an owner killed.
//!
//! It runs on a mesh of its own, in `target/testbed-demo` and on free ports, so it disturbs no
//! mesh that is up. Every figure it prints was measured in the run, and every claim was
//! checked; a claim that did not hold is marked, and makes the tour fail.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::Method;
use nix::sys::signal::Signal;
use serde_json::Value as Json;
use tokio::time::sleep;

use crate::client::{Client, Reply};
use crate::mesh::{self, Mesh, Spec, until};
use crate::ports::{self, PeerPorts};
use crate::process::interrupted;
use crate::terminal::Terminal;
use crate::{apps, workspace};

const PEERS: usize = 3;
const APP: &str = "bookshop";
/// The start is some seconds of work; on a busy machine it may take many times that.
const START_BOUND: Duration = Duration::from_secs(90);
/// A hop takes milliseconds and a start seconds. The limit between them leaves room for a machine
/// that is busy building an index on one of its cores.
const HOPS_PER_START_MIN: u32 = 5;
const FAILOVER_BOUND: Duration = Duration::from_secs(10);
/// The key of the payment during which a peer is killed.
const PAYMENT: &str = "ada-pays-once";
/// How long the shop takes for a payment, in milliseconds: long enough to be killed during one.
const PAYMENT_MS: u64 = 300;
const PACE: Duration = Duration::from_millis(60);
const WIDTH: usize = 74;

/// Runs the tour.
///
/// # Errors
/// If anything did not hold, or it was interrupted. Nothing it started is left behind.
pub async fn run() -> Result<()> {
    tokio::select! {
        done = tour() => done,
        // The tour's future is dropped, and its mesh with it.
        () = interrupted() => bail!("interrupted; the peers have been stopped"),
    }
}

async fn tour() -> Result<()> {
    let mut guide = Guide { terminal: Terminal::new(), failed: 0, stop: 0 };
    guide.say("");
    guide.say(guide.terminal.bold("warmhop: the first request to a cold app, answered now"));
    guide.say("A bookshop has to index 150 000 books before it can answer. Three peers can run");
    guide.say("it. The mesh keeps it ready on one; a client arrives at another, where it is cold.");

    let (mut mesh, kept, built) = open(&mut guide).await?;
    let entry = (kept + 1) % PEERS;
    let third = (kept + 2) % PEERS;
    let mut ada = Shopper::default();
    let first = first_request(&mut guide, &mesh, kept, entry, built, &mut ada).await?;
    let over = cut_over(&mut guide, &mesh, entry, &mut ada, first.at).await?;
    let failover = owner_killed(&mut guide, &mut mesh, entry, third, &mut ada).await?;
    guide.stop("In one table", "");
    guide.row("first request at a cold peer", millis(first.took), "");
    guide.row(
        "the same, had it waited for the start",
        millis(over.start),
        &format!("{:.0} times as long", over.start.as_secs_f64() / first.took.as_secs_f64()),
    );
    guide.row("a request over a hop, median", millis(over.hop_median), "while the copy started");
    guide.row("a request served locally, median", millis(over.local_median), "the hop is gone");
    guide.row(
        "from kill -9 to the retry's answer",
        millis(failover),
        &format!("{PAYMENT_MS} ms of it are the shop's own"),
    );
    guide.row(
        "books paid for / in the cart",
        format!("{0} / {0}", ada.acknowledged),
        "none lost, none doubled",
    );
    guide.say("");
    drop(mesh);
    match guide.failed {
        0 => {
            guide.say(guide.terminal.green("Everything held. All peers are stopped."));
            Ok(())
        }
        failed => bail!("{failed} of the statements above did not hold"),
    }
}

/// The mesh, the peer that keeps the app ready, and how long its start took.
async fn open(guide: &mut Guide) -> Result<(Mesh, usize, Duration)> {
    let (base, ports) = free_ports()?;
    let spec = Spec {
        folder: workspace().join("target/testbed-demo"),
        cluster: "demo".into(),
        ports,
        apps: apps::read(&apps::example())?,
        settings: toml::Table::new(),
        detached: true,
    };
    guide.terminal.passing("starting three peers …");
    let began = Instant::now();
    let mesh = Mesh::launch(spec).await?;
    guide.stop(
        "Three peers find each other: no registry, no coordinator",
        &seconds(began.elapsed()),
    );
    guide.say(format!(
        "  front doors at http://127.0.0.1:{}, :{} and :{}",
        base + 1,
        base + 2,
        base + 3
    ));
    let opening = Instant::now();
    let kept = until("a copy of the bookshop is ready", START_BOUND, async || {
        let seconds = opening.elapsed().as_secs();
        guide.terminal.passing(format_args!("  the bookshop reads its stock … {seconds} s"));
        for (index, peer) in mesh.peers().iter().enumerate() {
            if peer.app_state(APP).await == "ready" {
                return Some(index);
            }
        }
        None
    })
    .await
    .with_context(|| mesh::log_tail(mesh.peer(0).folder()))?;
    let built = opening.elapsed();
    let name = &mesh.peer(kept).name;
    guide.fact(format!("  one copy is kept ready: {name} has built it"), seconds(built));
    let mut cold = true;
    for (index, peer) in mesh.peers().iter().enumerate() {
        cold &= index == kept || peer.app_state(APP).await == "cold";
    }
    guide.check(cold, "on the other two it is cold");
    // Every peer has heard of the copy: news travels in milliseconds, but a first request must
    // not race it.
    until("all peers know of the ready copy", Duration::from_secs(10), async || {
        for peer in mesh.peers().iter().filter(|peer| peer.name != *name) {
            let status = peer.status().await.ok()?;
            let peers = status["peers"].as_array()?;
            peers.iter().find(|p| p["name"] == **name && p["apps"][APP] == "ready")?;
        }
        Some(())
    })
    .await?;
    Ok((mesh, kept, built))
}

struct First {
    at: Instant,
    took: Duration,
}

async fn first_request(
    guide: &mut Guide,
    mesh: &Mesh,
    kept: usize,
    entry: usize,
    built: Duration,
    ada: &mut Shopper,
) -> Result<First> {
    let (here, there) = (mesh.peer(entry), mesh.peer(kept));
    let at = Instant::now();
    let reply = ada.add(here.ports.http, None).await?;
    let took = reply.took;
    let state = here.app_state(APP).await;
    guide.stop(&format!("Ada puts a book in her cart at {}: cold", here.name), &millis(took));
    let by = reply.peer().unwrap_or("nobody").to_owned();
    guide.check(by == there.name && reply.hopped(), format!("answered by {by}, over one hop"));
    guide.say(guide.terminal.faint(format!(
        "    Via: {}   Proxy-Status: {}",
        reply.header("via").unwrap_or("-"),
        reply.header("proxy-status").unwrap_or("-")
    )));
    guide.check(took < built / HOPS_PER_START_MIN, "a hop's time, not a start's");
    guide.check(state == "starting", format!("{}'s own copy: {state}", here.name));
    let route = ada.client.route().unwrap_or("nobody").to_owned();
    guide.check(route == here.name, format!("her cookie already names {route}"));
    Ok(First { at, took })
}

struct Over {
    start: Duration,
    hop_median: Duration,
    local_median: Duration,
}

async fn cut_over(
    guide: &mut Guide,
    mesh: &Mesh,
    entry: usize,
    ada: &mut Shopper,
    began: Instant,
) -> Result<Over> {
    let here = mesh.peer(entry);
    let mut hops = Vec::new();
    let mut right = true;
    let end = began + START_BOUND;
    loop {
        let reply = ada.add(here.ports.http, None).await?;
        right &= ada.is_right(&reply);
        if !reply.hopped() && reply.peer() == Some(&here.name) {
            break;
        }
        hops.push(reply.took);
        if Instant::now() > end {
            bail!("{} did not take over within {START_BOUND:?}", here.name);
        }
        guide.terminal.passing(format_args!("  {} books in Ada's cart …", ada.acknowledged));
        sleep(PACE).await;
    }
    let start = began.elapsed();
    let slowest = hops.iter().max().copied().unwrap_or_default();
    guide.stop(
        &format!("She goes on while {} starts, until it takes over", here.name),
        &seconds(start),
    );
    guide.fact(format!("  {} books over the hop; the slowest took", hops.len()), millis(slowest));
    let mut local = Vec::new();
    let mut hopped = 0;
    for _ in 0..25 {
        let reply = ada.add(here.ports.http, None).await?;
        right &= ada.is_right(&reply);
        hopped += usize::from(reply.hopped());
        local.push(reply.took);
    }
    guide.check(right, "her cart counted on through the cut-over, without a gap");
    guide.check(hopped == 0, format!("the hop is gone: the next 25 are served by {}", here.name));
    let (hop_median, local_median) = (median(&mut hops), median(&mut local));
    Ok(Over { start, hop_median, local_median })
}

async fn owner_killed(
    guide: &mut Guide,
    mesh: &mut Mesh,
    entry: usize,
    third: usize,
    ada: &mut Shopper,
) -> Result<Duration> {
    let (here, there) = (mesh.peer(entry), mesh.peer(third).ports.http);
    let (name, other) = (here.name.clone(), mesh.peer(third).name.clone());
    let owner = owner(here.ports.admin, ada).await?;
    // A payment is under way at the very moment: it is slow, and its key makes it safe to
    // send again.
    let mut paying = ada.clone();
    let http = here.ports.http;
    let payment = tokio::spawn(async move { paying.add(http, Some(PAYMENT)).await });
    until("the payment is under way", Duration::from_secs(10), async || {
        let status = mesh::status(here.ports.admin).await.ok()?;
        let app = status["apps"].as_array()?.iter().find(|app| app["name"] == APP)?;
        (app["in_flight"].as_u64()? > 0).then_some(())
    })
    .await?;
    let process = here.process().context("it runs")?;
    process.signal(Signal::SIGKILL)?;
    let killed = Instant::now();
    let cut_off = payment.await?.is_err();
    guide.terminal.passing(format_args!("  {name} is dead; Ada tries {other} …"));
    let reply = ada.add(there, Some(PAYMENT)).await?;
    let took = killed.elapsed();
    guide.stop(&format!("kill -9 {name}, in the middle of a payment"), &millis(took));
    guide.check(owner == name, format!("{owner} owned her cart"));
    guide.check(cut_off, "her connection broke, so she sends the payment again, with its key");
    let by = reply.peer().unwrap_or("nobody").to_owned();
    guide.check(took < FAILOVER_BOUND, format!("{other} takes over the cart; the app ran on {by}"));
    guide.check(ada.is_right(&reply), "the payment counts once, and nothing is lost");
    let mut right = true;
    for _ in 0..25 {
        let reply = ada.add(there, None).await?;
        right &= ada.is_right(&reply);
    }
    guide.check(right, format!("25 more at {other}: every one counts"));
    let cart = ada.client.get(there, "/cart").await?.ok()?.json()?;
    guide.check(ada.holds(&cart), "the cart holds every book that was paid for, once");
    Ok(took)
}

/// Which peer owns the client's session, as the peer at `admin` tells from its last request.
async fn owner(admin: SocketAddr, ada: &Shopper) -> Result<String> {
    let mut client = Client::new();
    let why =
        client.get(admin, format!("/v1/requests/{}", ada.last_request)).await?.ok()?.json()?;
    let key = why["session"].as_str().context("the request's trace names no session")?;
    let session = client.get(admin, format!("/v1/sessions/{key}")).await?.ok()?.json()?;
    Ok(session["owner"].as_str().unwrap_or("nobody").to_owned())
}

/// A client that knows what was acknowledged to it.
#[derive(Debug, Clone, Default)]
struct Shopper {
    client: Client,
    acknowledged: u64,
    last_request: String,
}

impl Shopper {
    /// Adds the next book: at once, or slowly and with a key, so that it can be sent again.
    async fn add(&mut self, addr: SocketAddr, key: Option<&str>) -> Result<Reply> {
        let next = self.acknowledged + 1;
        let slowness = key.map(|_| format!("&ms={PAYMENT_MS}")).unwrap_or_default();
        let mut call =
            self.client.call(Method::POST, format!("/cart/add?item=book-{next}{slowness}"));
        if let Some(key) = key {
            call = call.header("idempotency-key", format!("\"{key}\""));
        }
        let reply = call.send(addr).await?.ok()?;
        self.acknowledged = next;
        self.last_request = reply.request_id().unwrap_or_default().to_owned();
        Ok(reply)
    }

    /// Whether a reply to an addition counts exactly what was acknowledged.
    fn is_right(&self, reply: &Reply) -> bool {
        reply.json().is_ok_and(|cart| cart["count"] == self.acknowledged)
    }

    /// Whether a cart holds exactly the acknowledged books (it shows the latest 200).
    fn holds(&self, cart: &Json) -> bool {
        let Some(items) = cart["items"].as_array() else { return false };
        let shown: HashSet<&str> = items.iter().filter_map(Json::as_str).collect();
        let expected: HashSet<String> =
            (1..=self.acknowledged).rev().take(items.len()).map(|n| format!("book-{n}")).collect();
        cart["count"] == self.acknowledged
            && shown.len() == items.len()
            && expected.iter().all(|book| shown.contains(book.as_str()))
    }
}

/// Prints the tour and counts the claims that did not hold.
struct Guide {
    terminal: Terminal,
    failed: usize,
    stop: usize,
}

impl Guide {
    fn say(&self, text: impl AsRef<str>) {
        self.terminal.line(text.as_ref());
    }

    fn stop(&mut self, title: &str, figure: &str) {
        self.stop += 1;
        let title = format!("{}  {title}", self.stop);
        let gap = WIDTH.saturating_sub(title.chars().count() + figure.chars().count());
        self.say("");
        self.say(format!(
            "{}{}{}",
            self.terminal.bold(title),
            " ".repeat(gap),
            self.terminal.bold(figure)
        ));
    }

    fn fact(&self, text: impl AsRef<str>, figure: impl AsRef<str>) {
        let (text, figure) = (text.as_ref(), figure.as_ref());
        let gap = WIDTH.saturating_sub(text.chars().count() + figure.chars().count());
        self.say(format!("{text}{}{figure}", " ".repeat(gap)));
    }

    fn check(&mut self, holds: bool, text: impl AsRef<str>) {
        self.failed += usize::from(!holds);
        let mark =
            if holds { self.terminal.green("✓") } else { self.terminal.red("✗ did not hold:") };
        self.say(format!("  {mark} {}", text.as_ref()));
    }

    fn row(&self, what: &str, figure: impl AsRef<str>, note: &str) {
        let note = self.terminal.faint(note);
        self.say(format!("   {what:<40}{:>12}   {note}", figure.as_ref()));
    }
}

/// The first base port from 21000 on whose ranges are free.
fn free_ports() -> Result<(u16, Vec<PeerPorts>)> {
    for base in (21_000..32_000).step_by(500) {
        let ports = ports::plan(PEERS, Some(base))?;
        if ports.iter().all(|peer| peer.check_free("").is_ok()) {
            return Ok((base, ports));
        }
    }
    bail!("there are no free ports between 21000 and 32000")
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn millis(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    if ms < 100.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The text with `#` for whatever differs from run to run: figures, names of peers, and what
    /// stands for them where the words are printed.
    fn generalized(text: &str) -> String {
        let is_of_figure = |c: char| c.is_ascii_digit() || c == '.';
        let is_of_placeholder = |c: char| c.is_ascii_alphanumeric() || "_.:<>".contains(c);
        let mut general = String::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let placeholder = rest
                .strip_prefix('{')
                .and_then(|inner| inner.trim_start_matches(is_of_placeholder).strip_prefix('}'));
            let named = rest.strip_prefix("peer-").map(|it| it.trim_start_matches(is_of_figure));
            let figure = first.is_ascii_digit().then(|| rest.trim_start_matches(is_of_figure));
            if let Some(after) = placeholder.or(named).or(figure) {
                general.push('#');
                rest = after;
            } else {
                general.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
        general
    }

    #[test]
    fn the_readme_quotes_the_tour_literally() {
        let readme = fs::read_to_string(workspace().join("README.md")).unwrap();
        let shown = readme.split("```text\n").find(|block| block.starts_with("1  Three peers"));
        let shown = shown.unwrap().split("\n```").next().unwrap();
        let source = include_str!("demo.rs").split("mod tests {").next().unwrap();
        let source = generalized(source);
        let pieces = shown.lines().flat_map(|line| line.split("  ")).map(|piece| {
            let piece = piece.trim().trim_start_matches('✓').trim();
            generalized(piece)
        });
        let is_figure =
            |piece: &String| piece.split(' ').all(|word| ["", "#", "/", "s", "ms"].contains(&word));
        let phrases: Vec<String> = pieces.filter(|piece| !is_figure(piece)).collect();
        assert!(phrases.len() >= 15, "{phrases:?}");
        for phrase in phrases {
            assert!(source.contains(&phrase), "the tour does not say: {phrase}");
        }
    }
}

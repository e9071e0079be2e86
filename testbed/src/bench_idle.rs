//! What a peer takes that nobody asks, among twenty: its processor and its memory.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::sleep;
use toml::Table;

use crate::bench_proxies::{median, seconds_of};
use crate::mesh::{Mesh, Spec};
use crate::ports::Reservation;
use crate::terminal::Terminal;

const PEERS: u16 = 20;
/// How long they are left alone before that counts: they have just met.
const SETTLES: Duration = Duration::from_secs(10);

/// Watches twenty idle peers for so many seconds, and prints what half of them take at most.
///
/// # Errors
/// If the mesh does not form.
pub async fn idle(seconds: u32) -> Result<()> {
    let terminal = Terminal::new();
    // One has ports for fifteen.
    let reserved = [Reservation::new()?, Reservation::new()?];
    let half =
        |reserved: &Reservation| (0..PEERS / 2).map(|at| reserved.peer(at)).collect::<Vec<_>>();
    let folder = crate::workspace().join("target/testbed-bench-idle");
    terminal.passing(format!("{PEERS} peers start"));
    let mesh = Mesh::launch(Spec {
        folder,
        cluster: "bench".into(),
        ports: reserved.iter().flat_map(half).collect(),
        apps: Vec::new(),
        settings: Table::new(),
        detached: false,
    })
    .await?;
    terminal.passing(format!("{PEERS} peers, left alone"));
    sleep(SETTLES).await;
    let pids = mesh.peers().iter().map(|peer| {
        let process = peer.process().context("a peer has ended")?;
        Ok(process.pid)
    });
    let pids: Vec<u32> = pids.collect::<Result<_>>()?;
    let before: Vec<f64> = pids.iter().map(|pid| seconds_of(*pid)).collect::<Result<_>>()?;
    let began = Instant::now();
    sleep(Duration::from_secs(seconds.into())).await;
    let elapsed = began.elapsed().as_secs_f64();
    let used = pids.iter().zip(before).map(|(pid, before)| Ok(seconds_of(*pid)? - before));
    let used: Vec<f64> = used.collect::<Result<_>>()?;
    let shares = used.iter().map(|used| used / elapsed * 100.0).collect();
    let memory = |what| pids.iter().map(|pid| mib_of(*pid, what)).collect::<Result<Vec<_>>>();
    terminal.line(format!(
        "an idle peer of {PEERS}: {:.2} % of a core, {:.1} MiB resident, of which {:.1} MiB its own",
        median(shares),
        median(memory("VmRSS:")?),
        median(memory("RssAnon:")?)
    ));
    Ok(())
}

/// A line of `/proc/PID/status` in MiB.
fn mib_of(pid: u32, what: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib = kib.with_context(|| format!("no {what} in the status of a process"))?;
    Ok(kib.parse::<f64>()? / 1024.0)
}

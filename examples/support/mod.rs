//! What the examples share: three peers of one service in one process, so that one command shows
//! how they work together. A service of yours starts one, with an identity made by `warmhop cert`
//! and the addresses of some others.
#![allow(dead_code, reason = "each example uses its own part of this")]

use std::future::Future;
use std::io::BufRead;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use warmhop::identity::Authority;
use warmhop::ids::PeerId;
use warmhop::{Builder, Mesh};

/// An error of any kind.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// A peer that runs: where its clients reach it, and what ends a server of its own, if it has one.
pub(crate) struct Peer {
    pub(crate) mesh: Mesh,
    pub(crate) url: String,
    pub(crate) server: CancellationToken,
}

impl Peer {
    /// A peer that answers its clients at its own front door.
    pub(crate) fn with_front_door(mesh: Mesh) -> Self {
        let url = format!("http://{}/", mesh.front_doors()[0]);
        Self { mesh, url, server: CancellationToken::new() }
    }
}

/// Starts three peers by `start`, says where they are, and ends them one by one as their names are
/// typed, or all on Ctrl-C.
pub(crate) async fn run<F, Fut>(start: F) -> Result<(), Error>
where
    F: Fn(&'static str, Builder) -> Fut,
    Fut: Future<Output = Result<Peer, Error>>,
{
    let authority = Authority::generate("example")?;
    let mut peers: Vec<(&str, Peer)> = Vec::new();
    for name in ["one", "two", "three"] {
        let id = PeerId::new(name)?;
        let mut builder = Mesh::builder(authority.issue(&id)?);
        for (_, other) in &peers {
            builder = builder.seed(other.mesh.mesh_addr().to_string());
        }
        peers.push((name, start(name, builder).await?));
    }
    // A peer serves from its start on; three copies of a session need three peers that have met.
    while !peers.iter().all(|(_, peer)| has_met(&peer.mesh, peers.len() - 1)) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (name, peer) in &peers {
        println!("{name:<5} {}", peer.url);
    }
    println!("Type a peer's name to end it at once, as a crash would; Ctrl-C ends all.");

    let mut typed = lines();
    loop {
        let line = tokio::select! {
            line = typed.recv() => line,
            _ = tokio::signal::ctrl_c() => break,
        };
        let Some(line) = line else {
            // Nobody types: started in the background.
            let _ = tokio::signal::ctrl_c().await;
            break;
        };
        let Some(at) = peers.iter().position(|(name, _)| *name == line.trim()) else { continue };
        let (name, peer) = peers.remove(at);
        peer.server.cancel();
        peer.mesh.vanish().await;
        println!("{name} is gone");
    }
    for (_, peer) in &peers {
        peer.mesh.shutdown().await;
        peer.server.cancel();
    }
    Ok(())
}

fn has_met(mesh: &Mesh, others: usize) -> bool {
    mesh.status().peers.iter().filter(|peer| peer.alive && peer.rtt_us.is_some()).count() == others
}

/// The lines of the standard input. A thread reads them, because a read cannot be cancelled.
fn lines() -> mpsc::Receiver<String> {
    let (typed, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if typed.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

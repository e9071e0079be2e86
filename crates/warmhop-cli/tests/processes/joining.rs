//! What both ends report about peers that cannot join, and about those that do.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli::{Peer, certified, config, run, text, warmhop, write};

/// A configuration with `seeds` on a mesh port of its own.
pub(crate) fn seeded(seeds: &[&str]) -> String {
    let seeds: Vec<_> = seeds.iter().map(|seed| format!("'{seed}'")).collect();
    config("").replace("[mesh]", &format!("[mesh]\nseeds = [{}]", seeds.join(", ")))
}

/// Where the peer's mesh port is, as its log tells.
pub(crate) fn mesh_addr(peer: &Peer) -> String {
    let (code, status, error) = peer.run(&["status", "--json"]);
    assert_eq!(code, 0, "{error}");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status["peer"]["mesh"].as_str().unwrap().to_owned()
}

#[test]
fn a_seed_that_cannot_be_reached_is_reported_with_the_reason() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let dir = certified("seeds", "peer-1");
    let peer = Peer::start(&write(&dir, &seeded(&["no-such-host.invalid:7001", &silent])));
    let logged = peer.ever_logged("no-such-host.invalid");
    assert!(logged.contains("WARN") && logged.contains("cannot be resolved"), "{logged}");
    let logged = peer.ever_logged(&format!("nobody answers at {silent}"));
    assert!(logged.contains("WARN"), "{logged}");

    let (code, shown, error) = peer.run(&["status"]);
    assert_eq!(code, 0, "{error}");
    assert!(shown.contains("seeds: 0 of 2 reached"), "{shown}");
    assert!(shown.contains("no-such-host.invalid:7001: its name cannot be resolved"), "{shown}");
}

#[test]
fn a_peer_of_another_authority_is_reported_at_both_ends() {
    let (dir, other) = (certified("authority", "peer-1"), certified("authority-other", "peer-2"));
    let peer = Peer::start(&write(&dir, &config("")));
    let seed = mesh_addr(&peer);
    let stranger = seeded(&[&seed]).replace("peer-1", "peer-2");
    let stranger = Peer::start(&write(&other, &stranger));
    let logged = stranger.ever_logged("a seed cannot be reached");
    assert!(logged.contains("another authority"), "{logged}");
    // Which end refuses first depends on who reads whose certificate first; both say why.
    let logged = peer.ever_logged("another authority");
    assert!(logged.contains("WARN") && logged.contains("wants to join"), "{logged}");
    let (_, shown, _) = stranger.run(&["status"]);
    assert!(shown.contains("seeds: 0 of 1 reached"), "{shown}");
}

/// A folder below `dir` with the identity of `peer-2`, for so many days.
pub(crate) fn second(dir: &Path, days: &str) -> PathBuf {
    let (ca, second) = (dir.join("ca"), dir.join("second"));
    std::fs::create_dir_all(&second).unwrap();
    let (ca, certs) = (text(&ca).to_owned(), second.join("certs"));
    let to = ["--ca", &ca, "--out", text(&certs), "--force", "--days", days];
    let (code, _, error) = run(&[&["cert", "peer", "peer-2"], &to[..]].concat());
    assert_eq!(code, 0, "{error}");
    second
}

#[test]
fn a_peer_that_is_ended_while_it_starts_says_goodbye() {
    let dir = certified("ended-early", "peer-1");
    let second = second(&dir, "90");
    let peer = Peer::start(&write(&dir, &config("")));
    // The seed that never answers keeps it from serving for a while.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let joining = seeded(&[&mesh_addr(&peer), &silent]).replace("peer-1", "peer-2");
    let file = write(&second, &joining);
    let mut joining = warmhop(&["run", "--config", text(&file)]).spawn().unwrap();
    peer.ever_logged("\"joined\"");
    kill(Pid::from_raw(joining.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(joining.wait().unwrap().success());
    peer.logged("the peer has left");
}

#[test]
fn a_peer_that_joins_and_leaves_is_logged() {
    let dir = certified("joins", "peer-1");
    let second = second(&dir, "20");
    let peer = Peer::start(&write(&dir, &config("")));
    let seed = mesh_addr(&peer);
    let joining = seeded(&[&seed]).replace("peer-1", "peer-2");
    let joining = Peer::start(&write(&second, &joining));
    let logged = joining.ever_logged("a certificate ends in less than");
    assert!(logged.contains("\"days\":30"), "{logged}");
    let logged = peer.ever_logged("\"joined\"");
    assert!(logged.contains("peer-2"), "{logged}");
    let (_, shown, _) = joining.run(&["status"]);
    assert!(!shown.contains("seeds:"), "{shown}");
    drop(joining);
    let logged = peer.ever_logged("the link was lost");
    assert!(logged.contains("peer-2"), "{logged}");
}

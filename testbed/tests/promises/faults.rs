//! What is promised when a peer, an app or a link is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use nix::sys::signal::Signal;
use warmhop_testbed::client::Client;
use warmhop_testbed::mesh::Mesh;

use crate::support::{APP, BOUND, QUICK, Shopper, World, never_on, shop, until};

/// A mesh of three with the app ready on all of them.
async fn three_ready() -> World {
    let world = World::new(3, shop(QUICK, "")).await;
    for index in 0..3 {
        world.warm(index).await;
    }
    world
}

/// Adds until an answer comes: a client behind a balancer that tries the next peer. The key
/// makes the retries count once.
async fn add_until_answered(world: &World, shopper: &mut Shopper, door: usize, key: &str) {
    shopper.acknowledged += 1;
    let wanted = shopper.acknowledged;
    let path = "/cart/add?item=book";
    let reply = until("the session goes on", async || {
        let key = format!("\"{key}\"");
        let call = shopper.client.call(Method::POST, path).header("idempotency-key", key);
        call.send(world.http(door)).await.ok().filter(|reply| reply.status.is_success())
    })
    .await;
    assert_eq!(reply.json().unwrap()["count"], wanted, "nothing lost, nothing doubled");
}

#[tokio::test]
async fn the_loss_of_a_sessions_owner_loses_nothing() {
    let mut world = three_ready().await;
    world.expect_errors();
    let mut shopper = Shopper::default();
    for _ in 0..5 {
        shopper.add(world.http(0)).await;
    }
    world.mesh.kill(0).unwrap();
    add_until_answered(&world, &mut shopper, 1, "after-the-kill").await;
    for turn in 0..10 {
        shopper.add(world.http(1 + turn % 2)).await;
    }
    // The copies were made up again, so the next loss is survived as well.
    until("both that are left hold a copy", async || {
        let (two, three) = (world.status(1).await, world.status(2).await);
        let copies = two["sessions"]["copies"].as_u64()? + three["sessions"]["copies"].as_u64()?;
        (copies == 2).then_some(())
    })
    .await;
}

/// A mesh of three whose second peer always hops, with the app ready on the two others.
pub(crate) async fn two_to_run_it(more: &str) -> World {
    let mut world = World::with(3, vec![shop(QUICK, more)], "", never_on(1)).await;
    world.expect_errors();
    world.warm(0).await;
    world.warm(2).await;
    world
}

/// Kills the peer that runs the one request in flight; returns the position of the one that
/// could run it instead.
pub(crate) async fn kill_executor(world: &mut World) -> usize {
    let executor = until("the request is in the app", async || {
        for index in [0, 2] {
            if world.app(index, APP).await["in_flight"] == 1 {
                return Some(index);
            }
        }
        None
    })
    .await;
    world.mesh.kill(executor).unwrap();
    2 - executor
}

#[tokio::test]
async fn the_loss_of_the_peer_that_runs_a_keyed_request_is_not_the_clients_to_notice() {
    let mut world = two_to_run_it("effects = 'session-only'").await;
    let mut shopper = Shopper::default();
    shopper.add(world.http(1)).await;
    let (mut client, addr) = (shopper.client.clone(), world.http(1));
    let paying = tokio::spawn(async move {
        let call = client.call(Method::POST, "/cart/add?item=lamp&ms=4000");
        call.header("idempotency-key", "\"pay\"").send(addr).await
    });
    let other = kill_executor(&mut world).await;
    let reply = paying.await.unwrap().unwrap().ok().unwrap();
    shopper.acknowledged += 1;
    assert_eq!(reply.peer(), Some(world.name(other)));
    assert_eq!(reply.json().unwrap()["count"], shopper.acknowledged);
    shopper.check(world.http(other)).await;
    shopper.add(world.http(1)).await;
}

#[tokio::test]
async fn an_unkeyed_change_whose_peer_is_lost_is_not_run_again() {
    let mut world = two_to_run_it("").await;
    let mut shopper = Shopper::default();
    shopper.add(world.http(1)).await;
    let (mut client, addr) = (shopper.client.clone(), world.http(1));
    let paying = tokio::spawn(async move { client.post(addr, "/cart/add?item=x&ms=30000").await });
    let other = kill_executor(&mut world).await;
    let reply = paying.await.unwrap().unwrap();
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "its outcome is unknown");
    // It was killed before it answered, and nobody ran it again.
    shopper.check(world.http(other)).await;
}

#[tokio::test]
async fn a_safe_request_whose_peer_is_lost_is_run_again() {
    let mut world = two_to_run_it("").await;
    let addr = world.http(1);
    let asking =
        tokio::spawn(async move { Client::new().get(addr, "/slow?ms=10&head=4000").await });
    let other = kill_executor(&mut world).await;
    let reply = asking.await.unwrap().unwrap().ok().unwrap();
    assert_eq!(reply.peer(), Some(world.name(other)));
}

#[tokio::test]
async fn a_session_goes_on_through_the_loss_and_return_of_each_peer_in_turn() {
    let mut world = three_ready().await;
    world.expect_errors();
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;
    for lost in [2, 0, 1] {
        let door = (lost + 1) % 3;
        world.mesh.kill(lost).unwrap();
        add_until_answered(&world, &mut shopper, door, &format!("kill-{lost}")).await;
        shopper.add(world.http((lost + 2) % 3)).await;
        world.mesh.start(lost).unwrap();
        world.mesh.formed().await.unwrap();
        world.warm(lost).await;
        // Repair: three peers hold a copy again before the next is lost.
        until("three peers hold a copy", async || {
            let mut copies = 0;
            for index in 0..3 {
                copies += u64::from(world.status(index).await["sessions"]["copies"].as_u64()? > 0);
            }
            (copies == 3).then_some(())
        })
        .await;
        shopper.add(world.http(lost)).await;
    }
}

/// Waits until the one session of a mesh of three has a copy on each of them.
async fn three_copies(world: &World) {
    until("each peer holds a copy", async || {
        let mut copies = 0;
        for index in 0..3 {
            copies += world.status(index).await["sessions"]["copies"].as_u64()?;
        }
        (copies == 3).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_session_outlives_all_the_processes_that_its_cookie_names() {
    let mut world = three_ready().await;
    world.expect_errors();
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;
    three_copies(&world).await;
    // Nobody asks for the session meanwhile: it is kept whole all the same.
    for lost in [1, 0, 2] {
        world.mesh.kill(lost).unwrap();
        world.mesh.start(lost).unwrap();
        world.mesh.formed().await.unwrap();
        three_copies(&world).await;
    }
    for index in 0..3 {
        world.warm(index).await;
        shopper.check(world.http(index)).await;
    }
}

#[tokio::test]
async fn a_session_that_lost_most_of_its_holders_is_said_to_be_lost() {
    let mut world = three_ready().await;
    world.expect_errors();
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;
    three_copies(&world).await;
    for lost in [0, 1] {
        world.mesh.kill(lost).unwrap();
    }
    for index in [0, 1] {
        world.mesh.start(index).unwrap();
    }
    world.mesh.formed().await.unwrap();
    let reply = until("an answer", async || {
        let reply = shopper.client.post(world.http(2), "/cart/add?item=anew").await.ok()?;
        reply.status.is_success().then_some(reply)
    })
    .await;
    assert_eq!(reply.header("warmhop-session-lost"), Some("?1"), "{reply:?}");
    assert_eq!(reply.json().unwrap()["count"], 1, "a new session, and said to be one");
}

#[tokio::test]
async fn an_app_that_dies_is_news_and_starts_again() {
    let mut world = three_ready().await;
    world.expect_errors();
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;
    // The connection breaks: the app ends before it answers.
    let _ = Client::new().post(world.http(0), "/crash").await;
    until("the end is reported", async || {
        let app = world.app(0, APP).await;
        (app["state"] != "ready" || app["starts"].as_u64()? > 1).then_some(())
    })
    .await;
    // The peer goes on, and so does its client, wherever the app is ready.
    shopper.check(world.http(0)).await;
    shopper.add(world.http(0)).await;
    until("it is ready here again", async || {
        shopper.check(world.http(0)).await;
        let app = world.app(0, APP).await;
        (app["state"] == "ready" && app["starts"].as_u64()? > 1).then_some(())
    })
    .await;
    assert!(!shopper.add(world.http(0)).await.hopped());
}

#[tokio::test]
async fn an_app_does_not_outlive_a_killed_peer() {
    let mut world = World::new(2, shop(QUICK, "")).await;
    world.warm(0).await;
    let under = world.mesh.peer(0).process().unwrap().descendants();
    assert!(under.iter().any(|process| process.command().contains("bookshop")));
    world.mesh.kill(0).unwrap();
    for process in under {
        assert!(process.ended_within(BOUND).await, "{} lives on", process.command());
    }
}

#[tokio::test]
async fn nothing_under_a_peer_can_be_killed_to_leave_an_app_astray() {
    let mut world = World::new(2, shop(QUICK, "")).await;
    world.expect_errors();
    world.warm(0).await;
    world.warm(1).await;
    let under = world.mesh.peer(0).process().unwrap().descendants();
    // Every process between the peer and its app dies as well; kill it first, then the peer.
    for process in under.iter().filter(|process| !process.command().contains("bookshop")) {
        process.signal(Signal::SIGKILL).unwrap();
    }
    let mut client = Client::new();
    until("clients of the peer are served still", async || {
        client.get(world.http(0), "/whoami").await.ok()?.ok().ok()
    })
    .await;
    world.warm(0).await;
    let now = world.mesh.peer(0).process().unwrap().descendants();
    world.mesh.kill(0).unwrap();
    for process in under.into_iter().chain(now) {
        assert!(process.ended_within(BOUND).await, "{} lives on", process.command());
    }
}

#[tokio::test]
async fn a_draining_peer_ends_what_is_in_flight_and_gives_its_sessions_away() {
    let mut world = three_ready().await;
    let mut shopper = Shopper::default();
    for _ in 0..3 {
        shopper.add(world.http(0)).await;
    }
    assert_eq!(world.status(0).await["sessions"]["owned"], 1);
    let addr = world.http(0);
    let slow = tokio::spawn(async move { Client::new().get(addr, "/slow?ms=300&head=3000").await });
    world.in_flight(0, 1).await;
    let status = world.mesh.stop(0).await.unwrap();
    assert!(status.success(), "{status}");
    let reply = slow.await.unwrap().unwrap().ok().unwrap();
    assert!(reply.text().starts_with("line 0"), "the slow answer came whole");
    // The heirs answer at once: nobody has to find out first that the owner is gone.
    shopper.add(world.http(1)).await;
    shopper.add(world.http(2)).await;
}

#[tokio::test]
async fn a_restarted_peer_is_seen_as_a_new_one_of_its_name() {
    let mut world = World::new(3, shop(QUICK, "")).await;
    world.expect_errors();
    let before = world.status(0).await["peer"]["incarnation"].clone();
    world.mesh.kill(0).unwrap();
    world.believes(1, "peer-1", false).await;
    world.mesh.start(0).unwrap();
    world.mesh.formed().await.unwrap();
    world.believes(2, "peer-1", true).await;
    let status = world.status(0).await;
    assert_ne!(status["peer"]["incarnation"], before);
    let seen = world.status(1).await;
    let entries = seen["peers"].as_array().unwrap().iter();
    let alive = entries.filter(|p| p["name"] == "peer-1" && p["alive"] == true).count();
    assert_eq!(alive, 1, "{seen}");
}

#[tokio::test]
async fn a_peer_that_stalls_and_comes_back_harms_no_session() {
    let mut world = three_ready().await;
    world.expect_errors();
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;
    let stalled = world.mesh.peer(0).process().unwrap();
    stalled.signal(Signal::SIGSTOP).unwrap();
    until("it is stopped", async || stalled.is_stopped().then_some(())).await;
    add_until_answered(&world, &mut shopper, 1, "while-it-stalls").await;
    for turn in 0..6 {
        shopper.add(world.http(1 + turn % 2)).await;
    }
    stalled.signal(Signal::SIGCONT).unwrap();
    // It believes itself the owner still; it must not answer from what it remembers.
    let late = shopper.client.call(Method::GET, "/cart").timeout(BOUND).send(world.http(0)).await;
    let late = late.unwrap();
    if late.status.is_success() {
        assert_eq!(late.json().unwrap()["count"], shopper.acknowledged, "a stale read");
    }
    world.believes(1, "peer-1", true).await;
    add_until_answered(&world, &mut shopper, 0, "after-it-is-back").await;
    shopper.check(world.http(2)).await;
}

#[tokio::test]
async fn a_peer_of_another_authority_gets_nothing() {
    let mut world = World::new(2, shop(QUICK, "")).await;
    world.expect_errors();
    world.warm(0).await;
    // The same name of the cluster and the right seeds, but a certificate of its own making.
    let mut foreign = World::prepare(1, vec![shop(QUICK, "max_wait = '500ms'")], "");
    foreign.expect_errors();
    let cluster = cluster(&world.mesh);
    let seeds: Vec<String> =
        world.mesh.peers().iter().map(|peer| peer.ports.mesh.to_string()).collect();
    foreign
        .mesh
        .reconfigure(0, |config| {
            config.insert("cluster".into(), cluster.into());
            config["peer"]["name"] = "peer-9".into();
            config["mesh"]["seeds"] = seeds.into();
        })
        .unwrap();
    foreign.mesh.start(0).unwrap();
    let watched = until("the stranger has knocked for a while", async || {
        match foreign.mesh.peer(0).status().await {
            Ok(status) => (status["peer"]["uptime_ms"].as_u64()? > 2500).then_some(status),
            // It may as well refuse to run: its certificate does not name its cluster.
            Err(_) => (!foreign.mesh.peer(0).is_alive()).then(|| serde_json::json!({"peers": []})),
        }
    })
    .await;
    let seen = watched["peers"].as_array().unwrap();
    assert!(seen.iter().all(|peer| peer["alive"] != true), "it joined: {watched}");
    for index in 0..2 {
        let status = world.status(index).await;
        let peers = status["peers"].as_array().unwrap();
        assert!(peers.iter().all(|peer| peer["name"] != "peer-9"), "it was let in: {status}");
    }
    Client::new().get(world.http(1), "/whoami").await.unwrap().ok().unwrap();
}

#[tokio::test]
async fn the_app_is_kept_ready_somewhere_when_its_keeper_dies() {
    let mut world = World::new(3, shop(QUICK, "keep_ready = 1")).await;
    world.expect_errors();
    let ready = async |world: &World| {
        for (index, peer) in world.mesh.peers().iter().enumerate() {
            if peer.is_alive() && peer.app_state(APP).await == "ready" {
                return Some(index);
            }
        }
        None
    };
    let keeper = until("one peer keeps it ready", async || ready(&world).await).await;
    world.reaches(keeper, APP, "ready").await;
    world.mesh.kill(keeper).unwrap();
    let next = until("another keeps it ready", async || ready(&world).await).await;
    assert_ne!(next, keeper);
    Client::new().get(world.http(next), "/whoami").await.unwrap().ok().unwrap();
}

fn cluster(mesh: &Mesh) -> String {
    let path = mesh.peer(0).folder().join("warmhop.toml");
    let config: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
    config["cluster"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_peer_that_stands_still_for_a_moment_costs_nobody_an_answer() {
    let world = two_to_run_it("").await;
    let (addr, stop) = (world.http(1), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let stop = Arc::clone(&stop);
            tokio::spawn(async move {
                let mut shopper = Shopper::default();
                while !stop.load(Ordering::Relaxed) {
                    shopper.add(addr).await;
                }
                shopper
            })
        })
        .collect();
    for index in [0, 2, 0, 2] {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let stalled = world.mesh.peer(index).process().unwrap();
        stalled.signal(Signal::SIGSTOP).unwrap();
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        stalled.signal(Signal::SIGCONT).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let mut shopper = client.await.unwrap();
        assert!(shopper.acknowledged > 0);
        shopper.check(addr).await;
    }
}

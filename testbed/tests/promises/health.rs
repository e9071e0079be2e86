//! Apps that live on and are of no use, apps that are busy, and probes that only look.

use std::collections::BTreeSet;
use std::time::Duration;

use http::{Method, StatusCode};
use nix::sys::signal::Signal;
use tokio::task::JoinSet;
use warmhop_testbed::client::Client;
use warmhop_testbed::process::ProcessId;

use crate::support::{APP, QUICK, Shopper, World, shop, until};

/// Two peers that both have the app ready.
async fn two(more: &str) -> World {
    let world = World::new(2, shop(QUICK, more)).await;
    world.warm(0).await;
    world.warm(1).await;
    world
}

/// Has the copy on the peer at 0 fall ill.
async fn falls_ill(world: &World, how: &str) {
    let path = format!("/falls-ill?how={how}");
    let reply = Client::new().post(world.http(0), path).await.unwrap();
    assert_eq!((reply.status, reply.peer()), (StatusCode::NO_CONTENT, Some(world.name(0))));
}

/// Waits until the peer at 0 has another copy ready.
async fn is_replaced(world: &World) {
    until("another copy is ready", async || {
        let app = world.app(0, APP).await;
        (app["state"] == "ready" && app["copy"].as_u64() > Some(1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_copy_that_hangs_is_ended_and_started_again_and_nobody_who_looks_notices() {
    let world =
        two("alive = { path = '/healthz', every = '200ms', timeout = '1s', misses = 2 }").await;
    let pid = async || Client::new().get(world.http(0), "/whoami").await.unwrap().json().unwrap();
    let before = pid().await;
    falls_ill(&world, "hangs").await;
    let reply = Client::new().get(world.http(0), "/cart").await.unwrap();
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    is_replaced(&world).await;
    let after = until("it serves here again", async || {
        let reply = Client::new().get(world.http(0), "/whoami").await.unwrap();
        (!reply.hopped()).then(|| reply.json().unwrap())
    })
    .await;
    assert_ne!(before["pid"], after["pid"]);
}

#[tokio::test]
async fn a_copy_that_refuses_connections_costs_no_change_of_anybody_anything() {
    let world = two("").await;
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;
    falls_ill(&world, "closed").await;
    for _ in 0..4 {
        shopper.add(world.http(0)).await;
    }
    is_replaced(&world).await;
    shopper.check(world.http(0)).await;
}

#[tokio::test]
async fn a_copy_that_says_it_is_not_well_is_out_until_it_is_and_goes_on() {
    let world =
        two("alive = { path = '/healthz', every = '100ms', timeout = '5s', misses = 2 }").await;
    let whoami = Client::new().get(world.http(0), "/whoami").await.unwrap().json().unwrap();
    let port = whoami["port"].as_u64().unwrap();
    falls_ill(&world, "unwell").await;
    until("it is out", async || (world.app(0, APP).await["state"] != "ready").then_some(())).await;
    let reply = Client::new().post(world.http(0), "/cart/add?item=book").await.unwrap();
    assert_eq!((reply.status, reply.peer()), (StatusCode::OK, Some(world.name(1))));
    // Nobody is sent to it, so it is asked past the mesh.
    let app = format!("127.0.0.1:{port}").parse().unwrap();
    let reply = Client::new().post(app, "/falls-ill?how=well").await.unwrap();
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    world.reaches(0, APP, "ready").await;
    let again = Client::new().get(world.http(0), "/whoami").await.unwrap();
    assert_eq!(
        (again.hopped(), again.json().unwrap()["pid"].clone()),
        (false, whoami["pid"].clone())
    );
}

#[tokio::test]
async fn requests_at_once_are_shared_out_where_a_copy_serves_one_at_a_time() {
    let world = World::new(3, shop(QUICK, "concurrency = 1")).await;
    for index in 0..3 {
        world.warm(index).await;
    }
    let slow = || {
        let door = world.http(0);
        tokio::spawn(async move {
            Client::new().get(door, "/slow?head=500&ms=0").await.unwrap().ok().unwrap()
        })
    };
    let asked: Vec<_> = (0..12).map(|_| slow()).collect();
    let mut served_by = BTreeSet::new();
    for reply in asked {
        served_by.insert(reply.await.unwrap().peer().unwrap().to_owned());
    }
    assert_eq!(served_by.len(), 3, "{served_by:?}");
}

#[tokio::test]
async fn copies_that_a_rush_had_started_stop_when_it_is_over_and_one_stays() {
    // They are idle for half a minute before they stop.
    const OVER: Duration = Duration::from_secs(90);
    let world = World::new(3, shop(QUICK, "concurrency = 1\nscale = { at = 0.8, max = 3 }")).await;
    world.warm(0).await;
    let mut rush = JoinSet::new();
    for _ in 0..6 {
        let door = world.http(0);
        rush.spawn(async move {
            loop {
                let reply = Client::new().get(door, "/slow?head=1500&ms=0").await.unwrap();
                assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
            }
        });
    }
    for index in [1, 2] {
        world.reaches(index, APP, "ready").await;
    }
    assert!(rush.try_join_next().is_none(), "a client was refused");
    rush.shutdown().await;
    let stopped = warmhop_testbed::mesh::until("the others have stopped", OVER, async || {
        // Others may serve it for as long as what the clients left behind takes the place here.
        let reply = Client::new().get(world.http(0), "/cart").await.unwrap();
        assert_eq!(reply.status, StatusCode::OK);
        let (one, other) = (world.app(1, APP).await, world.app(2, APP).await);
        (one["state"] == "cold" && other["state"] == "cold").then_some(())
    });
    stopped.await.unwrap();
    let reply = Client::new().get(world.http(0), "/cart").await.unwrap();
    assert_eq!((reply.status, reply.peer()), (StatusCode::OK, Some(world.name(0))));
    assert_eq!(world.app(0, APP).await["state"], "ready");
}

#[tokio::test]
async fn a_probe_wakes_no_app_and_is_served_by_one_that_is_awake() {
    let wake = "wake = { not_user_agent = ['kube-probe'], not_path = ['/search'] }";
    let world = World::new(1, shop(QUICK, wake)).await;
    let probes = [("/cart", "kube-probe/1.31"), ("/search?q=sea", "curl/8")];
    let probe = async |(path, agent): (&str, &str)| {
        let mut client = Client::new();
        let call = client.call(Method::GET, path).header("user-agent", agent);
        call.send(world.http(0)).await.unwrap()
    };
    for asked in probes {
        let reply = probe(asked).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{asked:?}");
        assert!(reply.header("retry-after").is_some(), "{reply:?}");
    }
    let app = world.app(0, APP).await;
    assert_eq!((&app["state"], &app["starts"]), (&"cold".into(), &0.into()));
    assert_eq!(Client::new().get(world.http(0), "/cart").await.unwrap().status, StatusCode::OK);
    for asked in probes {
        assert_eq!(probe(asked).await.status, StatusCode::OK, "{asked:?}");
    }
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_had_elsewhere_or_given_up() {
    // Much longer than an answer takes, on a busy machine as well.
    let world = two("head_timeout = '2s'").await;
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;
    // It says that it is well, so it is left alone.
    falls_ill(&world, "stalls").await;
    let reply = shopper.check(world.http(0)).await;
    assert_eq!(reply.peer(), Some(world.name(1)), "who only looks is answered by the other");
    let reply = Client::new().post(world.http(0), "/cart/add?item=book").await.unwrap();
    assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT, "{}", reply.text());
    let reply = Client::new().get(world.http(0), "/slow?head=30000&ms=0").await.unwrap();
    assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT, "slow everywhere: {}", reply.text());
    assert_eq!(world.app(0, APP).await["copy"], 1);
}

#[tokio::test]
async fn an_app_that_ends_by_itself_in_good_order_is_started_by_the_next_request_however_often() {
    let world = World::new(1, shop(QUICK, "")).await;
    let mut shopper = Shopper::default();
    for starts in 1..=4 {
        // Each finds nobody, and waits for a start and no back-off.
        shopper.add(world.http(0)).await;
        let app = world.app(0, APP).await;
        assert_eq!((&app["starts"], &app["error"]), (&starts.into(), &serde_json::Value::Null));
        let pid = Client::new().get(world.http(0), "/whoami").await.unwrap().json().unwrap()["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok())
            .unwrap();
        ProcessId::of(pid).unwrap().signal(Signal::SIGTERM).unwrap();
        until("it has ended", async || (world.app(0, APP).await["state"] == "cold").then_some(()))
            .await;
    }
    shopper.check(world.http(0)).await;
}

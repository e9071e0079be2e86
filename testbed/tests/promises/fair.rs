//! A client that asks now and then, beside one that sends more than all copies of an app can serve.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::task::JoinSet;
use tokio::time::sleep;
use warmhop_testbed::client::Client;

use crate::support::{QUICK, World, shop};

const PEERS: usize = 3;
/// How many requests of the greedy client are under way at each front door.
const AT_ONCE: usize = 16;
/// How often the modest client asks at each of them.
const ROUNDS: usize = 6;
/// How many requests of others each copy finishes on average, at most, until the modest client is
/// answered: the one that it was serving, two that come first, and the one beside the modest client's.
const TURNS: usize = 4;

async fn ask(door: SocketAddr, from: &str) {
    let mut client = Client::new();
    let call = client.call(Method::GET, "/slow?head=100&ms=0").header("x-forwarded-for", from);
    let reply = call.send(door).await.unwrap();
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
}

#[tokio::test]
async fn a_client_waits_for_a_turn_or_two_at_every_front_door_while_another_floods_all_of_them() {
    let app = shop(QUICK, "concurrency = 1\nsession = 'none'\nwaiting_max = 1000");
    let trusts = "[http]\ntrusted_proxies = ['127.0.0.1/32']";
    let world = World::with(PEERS as u16, vec![app], trusts, |_, _| ()).await;
    for index in 0..PEERS {
        world.warm(index).await;
    }
    let doors: Vec<_> = (0..PEERS).map(|index| world.http(index)).collect();
    let answered = Arc::new(AtomicUsize::new(0));
    let mut flood = JoinSet::new();
    for at in 0..PEERS * AT_ONCE {
        let (door, answered) = (doors[at % PEERS], Arc::clone(&answered));
        flood.spawn(async move {
            loop {
                ask(door, "192.0.2.1").await;
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let mut meanwhile = Vec::new();
    for at in 0..PEERS * ROUNDS {
        // Whatever was overtaken by its last request has been served by then.
        let before = answered.load(Ordering::SeqCst);
        while answered.load(Ordering::SeqCst) < before + 2 * PEERS {
            assert!(flood.try_join_next().is_none(), "a request of the flood failed");
            sleep(Duration::from_millis(5)).await;
        }
        let before = answered.load(Ordering::SeqCst);
        ask(doors[at % PEERS], "192.0.2.2").await;
        meanwhile.push(answered.load(Ordering::SeqCst) - before);
    }
    flood.shutdown().await;
    let most = PEERS * TURNS * meanwhile.len();
    assert!(meanwhile.iter().sum::<usize>() <= most, "{meanwhile:?}");
}

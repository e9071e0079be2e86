//! What a peer that leaves does with what it took in at its other doors: those of Redis'
//! clients, and the admin listener's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::Signal;
use tokio::time::timeout;
use warmhop_testbed::resp::{Answer, Connection};

use crate::support::{BOUND, QUICK, World, shop, until};

const KEY: &str = "counter";
/// How many commands are sent before the first of them is answered.
const AT_ONCE: i64 = 40;

async fn open(addr: SocketAddr) -> Connection {
    Connection::open(addr).await.unwrap()
}

async fn counted(addr: SocketAddr) -> i64 {
    let Answer::Text(number) = open(addr).await.ask(&["GET", KEY]).await.unwrap() else { return 0 };
    number.parse().unwrap()
}

/// What the commands of a client came to until its connection ended.
#[derive(Debug, Default)]
struct Came {
    /// The highest count that it got as an answer.
    highest: i64,
    unknown: i64,
}

/// Counts up in pipelines until its connection ends.
async fn counts(addr: SocketAddr, answered: Arc<AtomicU64>) -> Came {
    let (mut client, mut came) = (open(addr).await, Came::default());
    loop {
        for _ in 0..AT_ONCE {
            if client.send(&["INCR", KEY]).await.is_err() {
                break;
            }
        }
        for _ in 0..AT_ONCE {
            match client.read().await {
                Ok(Answer::Number(number)) => came.highest = number,
                Ok(Answer::Error(error)) if error.starts_with("UNKNOWN") => came.unknown += 1,
                Ok(Answer::Error(error)) => assert!(error.starts_with("TRYAGAIN"), "{error}"),
                Ok(other) => panic!("{other:?}"),
                Err(_) => return came,
            }
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test]
async fn each_command_of_a_pipeline_to_a_peer_that_leaves_is_answered_or_was_not_done() {
    let mut world = World::new(3, shop(QUICK, "")).await;
    let redis: Vec<SocketAddr> = world.mesh.peers().iter().map(|peer| peer.ports.redis).collect();
    let answered = Arc::new(AtomicU64::new(0));
    let counting = tokio::spawn(counts(redis[0], Arc::clone(&answered)));
    until("it counts", async || (answered.load(Ordering::Relaxed) > 100).then_some(())).await;
    let status = world.mesh.stop(0).await.unwrap();
    assert!(status.success(), "{status}");
    let came = timeout(BOUND, counting).await.expect("its connection ends").unwrap();
    let done = counted(redis[1]).await;
    assert!((came.highest..=came.highest + came.unknown).contains(&done), "{done} of {came:?}");
}

#[tokio::test]
async fn who_waits_or_listens_at_a_peer_that_leaves_is_sent_away_and_delays_nobody() {
    let mut world = World::new(2, shop(QUICK, "")).await;
    let redis = world.mesh.peer(0).ports.redis;
    let mut waiting = open(redis).await;
    waiting.send(&["BLPOP", "queue", "0"]).await.unwrap();
    let mut listening = open(redis).await;
    let subscribed = listening.ask(&["SUBSCRIBE", "news"]).await.unwrap();
    assert!(matches!(subscribed, Answer::Several(_)), "{subscribed:?}");
    let mut idle = open(redis).await;
    assert_eq!(idle.ask(&["PING"]).await.unwrap(), Answer::Text("PONG".into()));
    let mut in_transaction = open(redis).await;
    for words in [&["MULTI"][..], &["INCR", KEY]] {
        let answer = in_transaction.ask(words).await.unwrap();
        assert!(matches!(answer, Answer::Text(_)), "{answer:?}");
    }

    let process = world.mesh.peer(0).process().unwrap();
    process.signal(Signal::SIGTERM).unwrap();
    let reply = timeout(BOUND, waiting.read()).await.expect("it waits no longer").unwrap();
    assert!(matches!(&reply, Answer::Error(error) if error.starts_with("UNBLOCKED ")), "{reply:?}");
    for connection in [&mut waiting, &mut listening, &mut idle, &mut in_transaction] {
        assert!(timeout(BOUND, connection.read()).await.expect("it is closed").is_err());
    }
    assert!(Connection::open(redis).await.is_err(), "nobody listens there any more");
    let status = until("it ends", async || world.mesh.ended(0).unwrap()).await;
    assert!(status.success(), "{status}");
    let log = world.mesh.peer(0).log();
    assert!(!log.contains("cut off"), "{log}");
    let mut other = open(world.mesh.peer(1).ports.redis).await;
    assert_eq!(other.ask(&["LLEN", "queue"]).await.unwrap(), Answer::Number(0));
    assert_eq!(counted(world.mesh.peer(1).ports.redis).await, 0, "EXEC never came");
}

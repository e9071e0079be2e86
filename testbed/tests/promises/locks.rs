//! Locks with a lease, as libraries keep them at the Redis endpoint, where their owner is killed or
//! stalls: within a lease nobody else gets one, afterwards one other does, and who wakes too late neither
//! gives back what is not his nor writes past the one who holds it now.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use warmhop_testbed::resp::{Answer, Connection};

use crate::support::{QUICK, World, shop, until};

const LEASE: Duration = Duration::from_secs(3);
/// The lock, what tells the tokens of its holders, and the highest token that has written.
const KEYS: [&str; 3] = ["{lock}", "{lock}:token", "{lock}:written"];
const TAKE: &str = "if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then \
                    return redis.call('INCR', KEYS[2]) end return 0";
const GIVE_BACK: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then \
                         return redis.call('DEL', KEYS[1]) end return 0";
const WRITE: &str = "if tonumber(redis.call('GET', KEYS[3]) or 0) > tonumber(ARGV[1]) then return 0 end \
                     redis.call('SET', KEYS[3], ARGV[1]) return 1";

/// What a script answers at a peer; `None` while it cannot, or does not know.
async fn asks(at: SocketAddr, script: &str, arguments: &[&str]) -> Option<i64> {
    let mut words = vec!["EVAL", script, "3"];
    words.extend(KEYS);
    words.extend(arguments);
    let mut connection = Connection::open(at).await.ok()?;
    match connection.ask(&words).await.ok()? {
        Answer::Number(number) => Some(number),
        Answer::Error(error) if ["TRYAGAIN", "UNKNOWN"].iter().any(|it| error.starts_with(it)) => {
            None
        }
        other => panic!("{other:?}"),
    }
}

async fn takes(at: SocketAddr, who: &str) -> Option<i64> {
    asks(at, TAKE, &[who, &LEASE.as_millis().to_string()]).await
}

/// The token of the next holder, who asks at these peers again and again.
async fn next_holder(at: &[SocketAddr], who: &str) -> i64 {
    let mut turn = 0;
    until("another holds it", async || {
        turn += 1;
        takes(at[turn % at.len()], who).await.filter(|token| *token > 0)
    })
    .await
}

#[tokio::test]
async fn a_lock_whose_owner_is_killed_is_held_until_its_lease_is_over_and_by_one_other_then() {
    let mut world = World::new(3, shop(QUICK, "start = 'never'")).await;
    world.expect_errors();
    let redis: Vec<SocketAddr> = world.mesh.peers().iter().map(|peer| peer.ports.redis).collect();
    let asked = Instant::now();
    assert_eq!(takes(redis[0], "first").await, Some(1));
    world.mesh.kill(0).unwrap();
    let token = next_holder(&redis[1..], "second").await;
    assert!(asked.elapsed() >= LEASE, "two held it: it was given on {:?} after", asked.elapsed());
    // Nothing of what was counted before has been lost with the owner.
    assert!(token > 1, "{token}");
}

#[tokio::test]
async fn who_holds_a_lock_at_a_peer_that_stalls_longer_than_its_lease_finds_it_gone() {
    let mut world = World::new(3, shop(QUICK, "start = 'never'")).await;
    world.expect_errors();
    let redis: Vec<SocketAddr> = world.mesh.peers().iter().map(|peer| peer.ports.redis).collect();
    let asked = Instant::now();
    let late = takes(redis[0], "first").await.unwrap();
    let stalled = world.mesh.peer(0).process().unwrap();
    stalled.signal(Signal::SIGSTOP).unwrap();
    until("it is stopped", async || stalled.is_stopped().then_some(())).await;
    let token = next_holder(&redis[1..], "second").await;
    assert!(asked.elapsed() >= LEASE, "two held it: it was given on {:?} after", asked.elapsed());
    assert!(token > late);
    let token = token.to_string();
    let reply = until("it answers", async || asks(redis[2], WRITE, &[&token]).await).await;
    assert_eq!(reply, 1);
    stalled.signal(Signal::SIGCONT).unwrap();
    // It owned the lock when it was stopped, and may believe that it does.
    let reply = until("it answers", async || asks(redis[0], GIVE_BACK, &["first"]).await).await;
    assert_eq!(reply, 0, "it gave back what is another's");
    let late = late.to_string();
    let reply = until("it answers", async || asks(redis[0], WRITE, &[&late]).await).await;
    assert_eq!(reply, 0, "it wrote after the one that holds it now");
}

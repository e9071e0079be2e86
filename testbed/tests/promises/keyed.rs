//! Requests with an `Idempotency-Key` to an app that was given the Redis endpoint: what it writes there
//! is not undone, so each runs once, or its client learns that the outcome is unknown.

use http::{Method, StatusCode};
use warmhop_testbed::client::{Client, Reply};

use crate::faults::{kill_executor, two_to_run_it};
use crate::sessions::all_are_kept_of_a_race;
use crate::support::{QUICK, Shopper, World, shop};

async fn add(client: &mut Client, world: &World, door: usize, item: &str, key: &str) -> Reply {
    let call = client.call(Method::POST, format!("/cart/add?item={item}"));
    call.header("idempotency-key", format!("\"{key}\"")).send(world.http(door)).await.unwrap()
}

#[tokio::test]
async fn keyed_changes_that_race_at_three_peers_while_their_session_moves_are_all_answered() {
    let world = World::new(3, shop(QUICK, "")).await;
    for index in 0..3 {
        world.warm(index).await;
    }
    for _ in 0..8 {
        all_are_kept_of_a_race(&world).await;
    }
}

#[tokio::test]
async fn a_keyed_request_that_may_have_written_by_commands_ends_unknown_and_never_runs_again() {
    let mut world = two_to_run_it("").await;
    let mut shopper = Shopper::default();
    shopper.add(world.http(1)).await;
    let (mut client, addr) = (shopper.client.clone(), world.http(1));
    let paying = tokio::spawn(async move {
        let call = client.call(Method::POST, "/cart/add?item=lamp&ms=30000");
        (call.header("idempotency-key", "\"pay\"").send(addr).await.unwrap(), client)
    });
    let other = kill_executor(&mut world).await;
    let (reply, mut client) = paying.await.unwrap();
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "{reply:?}");
    for door in [1, other, 1] {
        let repeat = add(&mut client, &world, door, "lamp&ms=30000", "pay").await;
        assert_eq!(repeat.status, StatusCode::CONFLICT, "{repeat:?}");
        let problem = repeat.json().unwrap();
        assert!(problem.to_string().contains("idempotency-key-outcome-unknown"), "{problem}");
    }
    // The app was not run a second time, and the session goes on.
    shopper.check(world.http(other)).await;
    add(&mut shopper.client, &world, 1, "lamp", "pay-again").await.ok().unwrap();
    shopper.acknowledged += 1;
    shopper.check(world.http(other)).await;
}

#[tokio::test]
async fn a_repeat_that_comes_while_the_first_request_runs_is_refused_at_once() {
    let world = World::new(2, shop(QUICK, "")).await;
    world.warm(0).await;
    world.warm(1).await;
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;
    let (mut client, addr) = (shopper.client.clone(), world.http(0));
    // Longer than it takes to be refused twice, on a busy machine as well.
    let item = "lamp&ms=10000";
    let first = tokio::spawn(async move {
        let call = client.call(Method::POST, format!("/cart/add?item={item}"));
        call.header("idempotency-key", "\"pay\"").send(addr).await.unwrap()
    });
    world.in_flight(0, 1).await;
    for door in [0, 1] {
        let repeat = add(&mut shopper.client.clone(), &world, door, item, "pay").await;
        assert_eq!(repeat.status, StatusCode::CONFLICT, "{repeat:?}");
        assert!(repeat.text().contains("idempotency-key-in-use"), "{repeat:?}");
    }
    let first = first.await.unwrap().ok().unwrap();
    let repeat = add(&mut shopper.client.clone(), &world, 1, item, "pay").await.ok().unwrap();
    assert_eq!(repeat.body, first.body);
    shopper.acknowledged += 1;
    shopper.check(world.http(1)).await;
}

//! Sessions while nothing breaks: exact over the cut-over, whichever peer is asked.

use http::{Method, StatusCode};
use tokio::task::JoinSet;
use warmhop_testbed::client::Client;

use crate::support::{APP, QUICK, SLOW, Shopper, World, never_on, shop, until};

#[tokio::test]
async fn counts_stay_exact_over_the_cut_over_under_load() {
    let world = World::new(3, shop(SLOW, "")).await;
    world.warm(0).await;
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        let addr = world.http(1);
        clients.spawn(async move {
            let mut shopper = Shopper::default();
            let mut hops = 0;
            // `add` and `check` fail at the first answer that does not count exactly.
            while shopper.add(addr).await.hopped() {
                hops += 1;
                shopper.check(addr).await;
            }
            for _ in 0..20 {
                assert!(!shopper.add(addr).await.hopped(), "the hop is gone for good");
            }
            (shopper, hops)
        });
    }
    let mut hopped = 0;
    while let Some(done) = clients.join_next().await {
        let (mut shopper, hops) = done.unwrap();
        hopped += hops;
        shopper.check(world.http(2)).await;
    }
    assert_ne!(hopped, 0, "the first request came while it was cold");
    assert_eq!(world.app(1, APP).await["starts"], 1);
}

#[tokio::test]
async fn a_session_goes_on_at_whichever_peer_is_asked() {
    let world = World::new(3, shop(QUICK, "")).await;
    for index in 0..3 {
        world.warm(index).await;
    }
    let mut shopper = Shopper::default();
    for turn in 0..30 {
        shopper.add(world.http(turn % 3)).await;
        shopper.check(world.http((turn + 1) % 3)).await;
    }
}

/// Changes of one session at three peers at once, half of them with a key: the session moves between
/// the peers while its requests look for it.
pub(crate) async fn all_are_kept_of_a_race(world: &World) {
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;
    let mut racing = JoinSet::new();
    for turn in 0..24 {
        let (addr, mut client) = (world.http(turn % 3), shopper.client.clone());
        racing.spawn(async move {
            let mut call = client.call(Method::POST, format!("/cart/add?item=race-{turn}"));
            if turn % 2 == 0 {
                call = call.header("idempotency-key", format!("\"{turn}\""));
            }
            call.send(addr).await.unwrap()
        });
    }
    while let Some(reply) = racing.join_next().await {
        reply.unwrap().ok().unwrap();
    }
    let reply = shopper.client.get(world.http(1), "/cart").await.unwrap().ok().unwrap();
    let cart = reply.json().unwrap();
    let items = cart["items"].as_array().unwrap();
    for turn in 0..24 {
        let item = format!("race-{turn}");
        let times = items.iter().filter(|it| **it == *item).count();
        assert_eq!(times, 1, "{item} in {items:?}");
    }
    assert_eq!(cart["count"], items.len());
}

#[tokio::test]
async fn changes_that_race_at_two_peers_are_all_kept() {
    let world = World::new(3, shop(QUICK, "effects = 'session-only'")).await;
    for index in 0..3 {
        world.warm(index).await;
    }
    for _ in 0..10 {
        all_are_kept_of_a_race(&world).await;
    }
}

#[tokio::test]
async fn a_keyed_request_counts_once_and_its_repeat_gets_the_first_answer() {
    let world = World::with(3, vec![shop(QUICK, "")], "", never_on(1)).await;
    world.warm(0).await;
    world.warm(2).await;
    let mut shopper = Shopper::default();
    shopper.add(world.http(1)).await;
    let pay = async |client: &mut Client, door: usize, item: &str, key: &str| {
        client
            .call(Method::POST, format!("/cart/add?item={item}"))
            .header("idempotency-key", format!("\"{key}\""))
            .send(world.http(door))
            .await
            .unwrap()
    };
    let first = pay(&mut shopper.client, 1, "lamp", "k-1").await.ok().unwrap();
    shopper.acknowledged += 1;
    assert_eq!(first.json().unwrap()["count"], shopper.acknowledged);
    for door in [1, 0, 2, 1] {
        let repeat = pay(&mut shopper.client, door, "lamp", "k-1").await.ok().unwrap();
        assert_eq!(repeat.body, first.body, "at {}", world.name(door));
        assert_eq!(repeat.headers["content-type"], first.headers["content-type"]);
    }
    let other = pay(&mut shopper.client, 1, "chair", "k-1").await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", other.text());
    shopper.check(world.http(0)).await;

    // The same key in another client's session is another request.
    let mut stranger = Shopper::default();
    stranger.add(world.http(1)).await;
    let theirs = pay(&mut stranger.client, 1, "lamp", "k-1").await.ok().unwrap();
    assert_eq!(theirs.json().unwrap()["count"], 2);
}

#[tokio::test]
async fn a_cleared_session_is_empty_everywhere() {
    let world = World::new(2, shop(QUICK, "")).await;
    world.warm(0).await;
    world.warm(1).await;
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;
    shopper.client.post(world.http(1), "/cart/clear").await.unwrap().ok().unwrap();
    shopper.acknowledged = 0;
    shopper.check(world.http(0)).await;
    shopper.add(world.http(1)).await;
}

#[tokio::test]
async fn a_pinned_session_stays_with_the_peer_that_made_it() {
    let world = World::new(3, shop(QUICK, "session = 'pinned'")).await;
    world.warm(0).await;
    let mut client = Client::new();
    let first = client.post(world.http(1), "/visits").await.unwrap().ok().unwrap();
    let made_by = first.peer().unwrap().to_owned();
    world.reaches(1, APP, "ready").await;
    world.warm(2).await;
    for visits in 2..12 {
        let reply = client.post(world.http(visits % 3), "/visits").await.unwrap().ok().unwrap();
        assert_eq!(reply.peer(), Some(made_by.as_str()), "its memory is there");
        assert_eq!(reply.json().unwrap()["visits"], visits);
    }
    assert_eq!(client.route(), Some(made_by.as_str()));
}

#[tokio::test]
async fn an_app_without_sessions_gets_and_sets_none() {
    let world = World::new(2, shop(QUICK, "session = 'none'")).await;
    world.warm(0).await;
    let mut client = Client::new();
    for door in [0, 1, 0] {
        let reply = client.post(world.http(door), "/cart/add?item=x").await.unwrap().ok().unwrap();
        assert_eq!(reply.json().unwrap()["count"], 1, "nothing is kept");
        assert!(reply.header("warmhop-session").is_none());
    }
    let sessions = world.status(0).await["sessions"].clone();
    assert_eq!((&sessions["owned"], &sessions["copies"]), (&0.into(), &0.into()), "{sessions}");
}

#[tokio::test]
async fn a_session_that_holds_nothing_costs_nothing() {
    let world = World::new(3, shop(QUICK, "")).await;
    world.warm(0).await;
    for _ in 0..5 {
        Shopper::default().check(world.http(0)).await;
    }
    assert_eq!(world.status(0).await["sessions"]["owned"], 0);
    let mut shopper = Shopper::default();
    shopper.add(world.http(0)).await;
    assert_eq!(world.status(0).await["sessions"]["owned"], 1);
    until("three peers hold a copy", async || {
        let mut copies = 0;
        for index in 0..3 {
            copies += world.status(index).await["sessions"]["copies"].as_u64()?;
        }
        (copies == 3).then_some(())
    })
    .await;
}

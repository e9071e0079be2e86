//! Requests that wait for a place at copies that serve so many at once.
#![allow(missing_docs, reason = "a test crate")]
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bed;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bed::{Answer, Bed, Client, Gate, Plan, eventually};
use http::{Request, Response, StatusCode};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use warmhop::config::{AppPolicy, SessionMode, StartMode};
use warmhop::{AppSpec, Body, BoxError, Builder, ClientInfo, Mesh, app_fn};

/// More requests than come in any test.
const COME_MAX: usize = 64;

/// Answers a request once it may; reports whose request it is when it arrives.
#[derive(Clone)]
struct Held {
    come: mpsc::Sender<String>,
    let_go: Arc<Semaphore>,
}

impl Held {
    fn new() -> (Self, mpsc::Receiver<String>) {
        let (come, comes) = mpsc::channel(COME_MAX);
        (Self { come, let_go: Arc::new(Semaphore::new(0)) }, comes)
    }

    /// The app of a peer, with one place.
    fn on(
        &self,
        name: &'static str,
        session: SessionMode,
        waiting_max: usize,
    ) -> impl Fn(Builder) -> Builder {
        self.with(name, move |policy| {
            policy.session = session;
            policy.concurrency = Some(1);
            policy.waiting_max = waiting_max;
        })
    }

    /// The app of a peer, changed so.
    fn with(
        &self,
        name: &'static str,
        change: impl Fn(&mut AppPolicy),
    ) -> impl Fn(Builder) -> Builder {
        let held = self.clone();
        move |builder| {
            let mut spec = AppSpec::new("held".parse().unwrap());
            spec.matches = vec![warmhop::Match::new(Some("held.test"), "/")];
            spec.policy.start = StartMode::AtBoot;
            change(&mut spec.policy);
            let held = held.clone();
            builder.app(
                spec,
                app_fn(move || {
                    let held = held.clone();
                    async move {
                        Ok::<_, BoxError>(tower::service_fn(move |request: Request<Body>| {
                            let held = held.clone();
                            async move {
                                let arrival = format!("{name}{}", request.uri().path());
                                held.come.send(arrival).await.unwrap();
                                held.let_go.acquire().await.unwrap().forget();
                                Ok::<_, BoxError>(Response::new(Body::from(name)))
                            }
                        }))
                    }
                }),
            )
        }
    }
}

async fn mesh(
    held: &Held,
    names: &[&'static str],
    session: SessionMode,
    waiting_max: usize,
) -> Bed {
    let mut bed = Bed::new();
    for name in names {
        let built = held.on(name, session, waiting_max);
        bed.add_built(name, Plan::default(), &Gate::new(true), built).await;
    }
    for who in &bed.peers {
        eventually("it is ready, and believed so, everywhere", || {
            let status = who.status();
            status.apps.iter().any(|it| it.name == "held" && it.state == "ready")
                && status.peers.iter().all(|it| it.apps.get("held").is_some_and(|it| it == "ready"))
        })
        .await;
    }
    bed
}

/// Asks at the first peer, from this address.
fn ask(bed: &Bed, from: &str, path: &str, client: Client) -> JoinHandle<(Answer, Client)> {
    ask_at(bed, 0, from, path, client)
}

fn ask_at(
    bed: &Bed,
    at: usize,
    from: &str,
    path: &str,
    mut client: Client,
) -> JoinHandle<(Answer, Client)> {
    let addr = format!("{from}:4711").parse().unwrap();
    let request = Request::get(format!("http://held.test{path}")).extension(ClientInfo::new(addr));
    let (request, mesh) = (request.body(Body::empty()).unwrap(), bed.peers[at].clone());
    tokio::spawn(async move { (client.send(&mesh, request).await, client) })
}

fn waiting(mesh: &Mesh) -> u64 {
    let status = mesh.status();
    status.apps.iter().find(|it| it.name == "held").map_or(0, |it| it.waiting)
}

#[tokio::test]
async fn requests_at_once_use_every_ready_copy_and_each_place_that_becomes_free() {
    let (held, mut comes) = Held::new();
    let bed = mesh(&held, &["one", "two", "three"], SessionMode::None, 100).await;
    let asking: Vec<_> = (0..12).map(|_| ask(&bed, "192.0.2.1", "/", Client::default())).collect();
    let mut all = BTreeSet::new();
    for _ in 0..3 {
        all.insert(comes.recv().await.unwrap());
    }
    assert_eq!(all.len(), 3, "{all:?}");
    eventually("the others wait", || waiting(&bed.peers[0]) == 9).await;
    for _ in 3..12 {
        assert!(comes.try_recv().is_err(), "one at a time");
        held.let_go.add_permits(1);
        comes.recv().await.unwrap();
    }
    held.let_go.add_permits(3);
    for asking in asking {
        assert_eq!(asking.await.unwrap().0.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn whose_peers_and_others_are_full_waits_however_often_it_is_turned_away() {
    for session in [SessionMode::None, SessionMode::Portable] {
        let (held, mut comes) = Held::new();
        let bed = mesh(&held, &["one", "two", "three"], session, 100).await;
        // Each peer sends what it has no place for to the others, which are as full.
        let clients: Vec<_> = (0..12)
            .map(|at| {
                let mesh = bed.peers[at % 3].clone();
                tokio::spawn(async move {
                    let mut client = Client::default();
                    for _ in 0..8 {
                        let request = Request::get("http://held.test/").body(Body::empty());
                        let answer = client.send(&mesh, request.unwrap()).await;
                        let text = &answer.text;
                        assert_eq!(answer.status, StatusCode::OK, "{session:?}: {text}");
                    }
                })
            })
            .collect();
        let let_go = held.let_go.clone();
        let answering = tokio::spawn(async move {
            while comes.recv().await.is_some() {
                let let_go = let_go.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let_go.add_permits(1);
                });
            }
        });
        for client in clients {
            client.await.unwrap();
        }
        answering.abort();
    }
}

#[tokio::test]
async fn a_client_with_many_requests_waits_for_its_own_and_gives_way_where_the_queue_is_full() {
    let (held, mut comes) = Held::new();
    let bed = mesh(&held, &["one"], SessionMode::None, 6).await;
    let mut greedy = vec![ask(&bed, "192.0.2.1", "/greedy", Client::default())];
    assert_eq!(comes.recv().await.unwrap(), "one/greedy");
    for n in 1..=6 {
        greedy.push(ask(&bed, "192.0.2.1", "/greedy", Client::default()));
        eventually("it waits", || waiting(&bed.peers[0]) == n).await;
    }
    let refused = ask(&bed, "192.0.2.1", "/greedy", Client::default()).await.unwrap().0;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!refused.field("retry-after").is_empty());
    let modest = ask(&bed, "192.0.2.2", "/modest", Client::default());
    eventually("one gave way", || greedy.iter().any(JoinHandle::is_finished)).await;
    held.let_go.add_permits(1);
    assert_eq!(comes.recv().await.unwrap(), "one/modest", "nothing else of it waited");
    held.let_go.add_permits(10);
    assert_eq!(modest.await.unwrap().0.status, StatusCode::OK);
    let mut outcomes = Vec::new();
    for asking in greedy {
        outcomes.push(asking.await.unwrap().0.status.as_u16());
    }
    outcomes.sort_unstable();
    assert_eq!(outcomes, [200, 200, 200, 200, 200, 200, 503]);
}

#[tokio::test]
async fn a_session_pinned_to_a_copy_without_a_place_waits_and_keeps_nobody_from_another() {
    let (held, mut comes) = Held::new();
    let bed = mesh(&held, &["one", "two"], SessionMode::Pinned, 100).await;
    // Two sessions, one on each copy: the second is made while the first has the place here.
    let first = ask(&bed, "192.0.2.1", "/", Client::default());
    assert_eq!(comes.recv().await.unwrap(), "one/");
    let second = ask(&bed, "192.0.2.1", "/", Client::default());
    assert_eq!(comes.recv().await.unwrap(), "two/");
    held.let_go.add_permits(2);
    let (here, there) = (first.await.unwrap().1, second.await.unwrap().1);
    let busy = ask(&bed, "192.0.2.1", "/", there.clone());
    assert_eq!(comes.recv().await.unwrap(), "two/");
    let waits = ask(&bed, "192.0.2.1", "/waits", there);
    eventually("it waits", || waiting(&bed.peers[0]) == 1).await;
    let other = ask(&bed, "192.0.2.1", "/other", here);
    assert_eq!(comes.recv().await.unwrap(), "one/other");
    held.let_go.add_permits(3);
    assert_eq!(comes.recv().await.unwrap(), "two/waits");
    for asking in [busy, waits, other] {
        assert_eq!(asking.await.unwrap().0.status, StatusCode::OK);
    }
}

/// A mesh in which `one` runs the app and `two` never does.
async fn one_serves_two_never(held: &Held, session: SessionMode, waiting_max: usize) -> Bed {
    let mut bed = Bed::new();
    for (name, start) in [("one", StartMode::AtBoot), ("two", StartMode::Never)] {
        let built = held.with(name, move |policy| {
            (policy.concurrency, policy.session) = (Some(1), session);
            (policy.start, policy.waiting_max) = (start, waiting_max);
        });
        bed.add_built(name, Plan::default(), &Gate::new(true), built).await;
    }
    let two = bed.peers[1].clone();
    eventually("it is believed ready", || {
        two.status().peers.iter().any(|it| it.apps.get("held").is_some_and(|it| it == "ready"))
    })
    .await;
    bed
}

#[tokio::test]
async fn a_client_at_another_peer_has_its_turn_among_those_at_the_copys_own() {
    for session in [SessionMode::None, SessionMode::Portable] {
        let (held, mut comes) = Held::new();
        let bed = one_serves_two_never(&held, session, 100).await;
        let mut asking = vec![ask(&bed, "192.0.2.1", "/greedy", Client::default())];
        assert_eq!(comes.recv().await.unwrap(), "one/greedy");
        asking.extend((0..8).map(|_| ask(&bed, "192.0.2.1", "/greedy", Client::default())));
        eventually("they wait", || waiting(&bed.peers[0]) == 8).await;
        // A client that leaves while it waits there waits no more.
        let leaves = ask_at(&bed, 1, "192.0.2.3", "/leaves", Client::default());
        eventually("it waits there", || waiting(&bed.peers[0]) == 9).await;
        leaves.abort();
        eventually("it has left", || waiting(&bed.peers[0]) == 8).await;
        asking.push(ask_at(&bed, 1, "192.0.2.2", "/modest", Client::default()));
        eventually("it waits there", || waiting(&bed.peers[0]) == 9).await;
        assert_eq!(waiting(&bed.peers[1]), 0, "and nowhere else");
        held.let_go.add_permits(1);
        assert_eq!(comes.recv().await.unwrap(), "one/modest", "{session:?}");
        all_are_served(&held, asking).await;
    }
}

#[tokio::test]
async fn a_client_at_another_peer_finds_room_in_a_queue_that_one_client_has_filled() {
    let (held, mut comes) = Held::new();
    let bed = one_serves_two_never(&held, SessionMode::None, 4).await;
    let mut greedy = vec![ask(&bed, "192.0.2.1", "/greedy", Client::default())];
    assert_eq!(comes.recv().await.unwrap(), "one/greedy");
    greedy.extend((0..4).map(|_| ask(&bed, "192.0.2.1", "/greedy", Client::default())));
    eventually("they wait", || waiting(&bed.peers[0]) == 4).await;
    let modest = ask_at(&bed, 1, "192.0.2.2", "/modest", Client::default());
    eventually("one gave way", || greedy.iter().any(JoinHandle::is_finished)).await;
    assert_eq!(waiting(&bed.peers[0]), 4);
    held.let_go.add_permits(1);
    assert_eq!(comes.recv().await.unwrap(), "one/modest");
    held.let_go.add_permits(COME_MAX);
    assert_eq!(modest.await.unwrap().0.status, StatusCode::OK);
}

#[tokio::test]
async fn a_client_at_another_peer_does_not_wait_there_for_what_another_sends_by_it() {
    for session in [SessionMode::None, SessionMode::Portable] {
        let (held, mut comes) = Held::new();
        let bed = one_serves_two_never(&held, session, 100).await;
        let greedy = |at| ask_at(&bed, at, "192.0.2.1", "/greedy", Client::default());
        let mut asking = vec![greedy(0)];
        assert_eq!(comes.recv().await.unwrap(), "one/greedy");
        asking.extend((0..4).map(|_| greedy(0)));
        eventually("they wait", || waiting(&bed.peers[0]) == 4).await;
        asking.extend((0..4).map(|_| greedy(1)));
        eventually("one of the others waits there, and three where they came", || {
            waiting(&bed.peers[0]) == 5 && waiting(&bed.peers[1]) == 3
        })
        .await;
        for others in [0, 1] {
            let from = format!("192.0.2.{}", 2 + others);
            asking.push(ask_at(&bed, 1, &from, "/modest", Client::default()));
            eventually("it waits there", || waiting(&bed.peers[0]) == 6 + others).await;
        }
        let mut come = Vec::new();
        for _ in 0..4 {
            held.let_go.add_permits(1);
            come.push(comes.recv().await.unwrap());
        }
        assert_eq!(
            come.iter().filter(|it| *it == "one/modest").count(),
            2,
            "{session:?}: {come:?}"
        );
        all_are_served(&held, asking).await;
    }
}

#[tokio::test]
async fn a_session_that_is_pinned_elsewhere_does_not_wait_for_another_of_its_address() {
    let (held, mut comes) = Held::new();
    let bed = mesh(&held, &["one", "two"], SessionMode::Pinned, 100).await;
    // Two sessions of one address, both on the second copy.
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let begins = ask_at(&bed, 1, "192.0.2.1", "/", Client::default());
        assert_eq!(comes.recv().await.unwrap(), "two/");
        held.let_go.add_permits(1);
        sessions.push(begins.await.unwrap().1);
    }
    let greedy = |at| ask_at(&bed, at, "192.0.2.1", "/greedy", sessions[0].clone());
    let mut asking = vec![greedy(1)];
    assert_eq!(comes.recv().await.unwrap(), "two/greedy");
    asking.extend((0..8).map(|_| greedy(1)));
    eventually("they wait", || waiting(&bed.peers[1]) == 8).await;
    asking.extend((0..4).map(|_| greedy(0)));
    eventually("one of the others waits there, and three where they came", || {
        waiting(&bed.peers[1]) == 9 && waiting(&bed.peers[0]) == 3
    })
    .await;
    asking.push(ask_at(&bed, 0, "192.0.2.1", "/modest", sessions[1].clone()));
    eventually("it waits there", || waiting(&bed.peers[1]) == 10).await;
    let mut come = Vec::new();
    for _ in 0..3 {
        held.let_go.add_permits(1);
        come.push(comes.recv().await.unwrap());
    }
    assert!(come.contains(&"two/modest".to_owned()), "{come:?}");
    all_are_served(&held, asking).await;
}

/// Lets all go, and expects that everybody was served.
async fn all_are_served(
    held: &Held,
    asking: impl IntoIterator<Item = JoinHandle<(Answer, Client)>>,
) {
    held.let_go.add_permits(COME_MAX);
    for asking in asking {
        let answer = asking.await.unwrap().0;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }
}

#[tokio::test]
async fn one_client_cannot_have_every_place_and_waits_for_its_own_alone() {
    for session in [SessionMode::None, SessionMode::Portable] {
        let (held, mut comes) = Held::new();
        let mut bed = Bed::new();
        let built = held.with("one", |policy| {
            (policy.concurrency, policy.session) = (Some(3), session);
            policy.concurrency_per_address = Some(2);
        });
        let one = bed.add_built("one", Plan::default(), &Gate::new(true), built).await;
        eventually("it is ready", || {
            one.status().apps.iter().any(|it| it.name == "held" && it.state == "ready")
        })
        .await;
        let mut asking: Vec<_> =
            (0..6).map(|_| ask(&bed, "192.0.2.1", "/greedy", Client::default())).collect();
        for _ in 0..2 {
            assert_eq!(comes.recv().await.unwrap(), "one/greedy");
        }
        eventually("its others wait", || waiting(&one) == 4).await;
        assert!(comes.try_recv().is_err(), "one place is for others");
        asking.push(ask(&bed, "192.0.2.2", "/modest", Client::default()));
        assert_eq!(comes.recv().await.unwrap(), "one/modest");
        // All places are taken, and the first that ends is one of its own.
        held.let_go.add_permits(1);
        assert_eq!(comes.recv().await.unwrap(), "one/greedy");
        all_are_served(&held, asking).await;
    }
}

#[tokio::test]
async fn a_copy_counts_a_clients_requests_whichever_peers_they_come_by() {
    for session in [SessionMode::None, SessionMode::Portable] {
        let (held, mut comes) = Held::new();
        let mut bed = Bed::new();
        for name in ["one", "two", "three"] {
            let start = if name == "one" { StartMode::AtBoot } else { StartMode::Never };
            let built = held.with(name, |policy| {
                (policy.concurrency, policy.session) = (Some(3), session);
                policy.concurrency_per_address = Some(2);
                policy.start = start;
            });
            bed.add_built(name, Plan::default(), &Gate::new(true), built).await;
        }
        let (two, three) = (bed.peers[1].clone(), bed.peers[2].clone());
        for who in [&two, &three] {
            eventually("it is believed ready", || {
                let status = who.status();
                status.peers.iter().any(|it| it.apps.get("held").is_some_and(|it| it == "ready"))
            })
            .await;
        }
        let greedy = |at| ask_at(&bed, at, "192.0.2.1", "/greedy", Client::default());
        let mut asking = vec![greedy(1), greedy(2)];
        for _ in 0..2 {
            assert_eq!(comes.recv().await.unwrap(), "one/greedy");
        }
        asking.extend([greedy(1), greedy(2)]);
        eventually("both wait", || waiting(&two) == 1 && waiting(&three) == 1).await;
        asking.push(ask_at(&bed, 2, "192.0.2.2", "/modest", Client::default()));
        assert_eq!(comes.recv().await.unwrap(), "one/modest");
        all_are_served(&held, asking).await;
    }
}

#[tokio::test]
async fn a_client_has_its_share_of_each_copy() {
    let (held, mut comes) = Held::new();
    let mut bed = Bed::new();
    for name in ["one", "two"] {
        let built = held.with(name, |policy| {
            policy.concurrency = Some(2);
            policy.concurrency_per_address = Some(1);
        });
        bed.add_built(name, Plan::default(), &Gate::new(true), built).await;
    }
    for who in &bed.peers {
        eventually("it is ready, and believed so", || {
            let status = who.status();
            status.apps.iter().any(|it| it.name == "held" && it.state == "ready")
                && status.peers.iter().all(|it| it.apps.get("held").is_some_and(|it| it == "ready"))
        })
        .await;
    }
    let mut asking: Vec<_> =
        (0..4).map(|_| ask(&bed, "192.0.2.1", "/greedy", Client::default())).collect();
    let mut begun = BTreeSet::new();
    for _ in 0..2 {
        begun.insert(comes.recv().await.unwrap());
    }
    assert_eq!(Vec::from_iter(begun), ["one/greedy", "two/greedy"]);
    eventually("its others wait", || waiting(&bed.peers[0]) == 2).await;
    // Nobody in particular has all that there is.
    for _ in 0..2 {
        let request = Request::get("http://held.test/unknown").body(Body::empty()).unwrap();
        let (mesh, mut client) = (bed.peers[0].clone(), Client::default());
        asking.push(tokio::spawn(async move { (client.send(&mesh, request).await, client) }));
    }
    let mut begun = BTreeSet::new();
    for _ in 0..2 {
        begun.insert(comes.recv().await.unwrap());
    }
    assert_eq!(Vec::from_iter(begun), ["one/unknown", "two/unknown"]);
    all_are_served(&held, asking).await;
}

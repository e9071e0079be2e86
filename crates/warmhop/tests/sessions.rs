//! Sessions across peers: born at the entry peer, executed where the app is ready, committed
//! before the response leaves, taken over when their owner dies.
#![allow(missing_docs, reason = "a test crate")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bed;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bed::{Answer, Bed, Client, Gate, Plan, eventually};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use warmhop::config::{SessionMode, StartMode};
use warmhop::{Body, BoxError, Mesh};

fn portable() -> Plan {
    Plan { session: SessionMode::Portable, ..Plan::default() }
}

/// Three peers: the app ready on the first, cold behind `cold` on the others.
async fn three(cold: &Gate) -> Bed {
    let warm = Gate::new(true);
    let mut bed = Bed::new();
    bed.add_ready("one", portable(), &warm).await;
    for name in ["two", "three"] {
        let mesh = bed.add(name, portable(), cold).await;
        bed.believes(&mesh, "one", "ready").await;
    }
    bed
}

fn owned(mesh: &Mesh) -> u64 {
    mesh.status().sessions.owned
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_does_not_run_the_app_gives_the_session_to_who_serves_it() {
    let bed = three(&Gate::new(false)).await;
    let (owner, third) = (&bed.peers[1], &bed.peers[2]);
    let mut client = Client::default();
    let first = client.post(owner, "/add", "book").await;
    assert_eq!((first.text.as_str(), first.field("warmhop-peer")), ("book ", "one"));
    // A known client at a cold peer, where the owner is cold as well.
    for _ in 0..2 {
        let answer = client.get(third, "/").await;
        assert_eq!((answer.text.as_str(), answer.field("warmhop-peer")), ("book ", "one"));
        let hop = answer.field("proxy-status");
        assert!(hop.contains("next-hop=one"), "one hop: {hop}");
    }
    let answer = client.post(third, "/add", "pen").await;
    assert_eq!(answer.text, "book pen ");
    // It does not bounce: it moved a moment ago.
    for who in [owner, third] {
        assert_eq!(client.get(who, "/").await.text, "book pen ");
    }
}

#[tokio::test]
async fn a_session_is_born_at_the_entry_peer_and_goes_on_across_the_cut_over() {
    let cold = Gate::new(false);
    let bed = three(&cold).await;
    let two = &bed.peers[1];
    let mut client = Client::default();
    let first = client.post(two, "/add", "a").await;
    assert_eq!((first.status, first.text.as_str()), (StatusCode::OK, "a "), "{:?}", first.headers);
    assert_eq!(first.field("warmhop-peer"), "one");
    assert_eq!(client.route(), "two", "the cookie names the entry peer from the first response on");
    assert!(first.field("cache-control").contains("private"));
    assert_eq!(owned(two), 1);
    assert_eq!(client.post(two, "/add", "b").await.text, "a b ");

    cold.open();
    eventually("the copy is ready", || two.status().apps[0].state == "ready").await;
    let after = client.post(two, "/add", "c").await;
    assert_eq!((after.text.as_str(), after.field("warmhop-peer")), ("a b c ", "two"));
    assert_eq!(after.field("proxy-status"), "", "the hop is gone");
    assert_eq!(client.get(two, "/").await.text, "a b c ");
}

#[tokio::test]
async fn clients_that_never_change_anything_cost_nothing() {
    let cold = Gate::new(false);
    let bed = three(&cold).await;
    for _ in 0..50 {
        let answer = Client::default().get(&bed.peers[1], "/").await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }
    for mesh in &bed.peers {
        eventually("no session is kept", || mesh.status().sessions.owned == 0).await;
    }
}

#[tokio::test]
async fn concurrent_requests_of_one_session_are_all_applied_once_across_the_cut_over() {
    let cold = Gate::new(false);
    let bed = three(&cold).await;
    let two = bed.peers[1].clone();
    let mut client = Client::default();
    assert_eq!(client.post(&two, "/add", "x").await.status, StatusCode::OK);
    let mut clients = tokio::task::JoinSet::new();
    for at in 0..6 {
        let (two, mut client, cold) = (two.clone(), client.clone(), cold.clone());
        clients.spawn(async move {
            for round in 0..10 {
                if (at, round) == (0, 3) {
                    cold.open();
                }
                let answer = client.post(&two, "/add", "x").await;
                assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    let list = client.get(&two, "/").await.text;
    assert_eq!(list.split_whitespace().count(), 61, "{list}");
}

#[tokio::test]
async fn a_request_at_another_peer_is_forwarded_to_the_owner_and_then_the_session_moves() {
    let cold = Gate::new(true);
    let bed = three(&cold).await;
    let (two, three) = (&bed.peers[1], &bed.peers[2]);
    let mut client = Client::default();
    client.post(two, "/add", "a").await;
    for (item, so_far) in [("b", "a b "), ("c", "a b c "), ("d", "a b c d "), ("e", "a b c d e ")] {
        let answer = client.post(three, "/add", item).await;
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, so_far));
    }
    assert_eq!(client.route(), "three");
    eventually("the session moved", || owned(three) == 1 && owned(two) == 0).await;
}

#[tokio::test]
async fn a_problem_that_the_owner_decides_on_reaches_the_client_of_another_peer_whole() {
    let cold = Gate::new(true);
    let bed = three(&cold).await;
    let (two, three) = (&bed.peers[1], &bed.peers[2]);
    let mut client = Client::default();
    let first = client.post_keyed(two, "/add", "key", "a").await;
    assert_eq!(first.status, StatusCode::OK, "{}", first.text);
    for mesh in [two, three] {
        let again = client.clone().post_keyed(mesh, "/add", "key", "b").await;
        let name = mesh.status().peer.name;
        assert_eq!(again.status, StatusCode::UNPROCESSABLE_ENTITY, "at {name}: {}", again.text);
        assert!(again.text.contains("urn:warmhop:idempotency-key-reused"), "{}", again.text);
        let reason = format!("{name}; error=http_request_denied; ");
        assert!(again.field("proxy-status").starts_with(&reason), "{:?}", again.headers);
    }
}

#[tokio::test]
async fn when_the_owner_leaves_properly_its_sessions_have_an_heir_already() {
    let cold = Gate::new(true);
    let bed = three(&cold).await;
    let (two, three) = (&bed.peers[1], &bed.peers[2]);
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..10 {
        let mut client = Client::default();
        client.post(two, "/add", "a").await;
        clients.push(client);
    }
    two.shutdown().await;
    let elsewhere = owned(&bed.peers[0]) + owned(three);
    assert_eq!(elsewhere, 10, "each session has an owner among the others");
    for mut client in clients {
        let answer = client.post(three, "/add", "b").await;
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, "a b "));
    }
}

#[tokio::test]
async fn a_keyed_repeat_gets_the_first_answer_and_is_applied_once() {
    let cold = Gate::new(true);
    let bed = three(&cold).await;
    let (two, three) = (&bed.peers[1], &bed.peers[2]);
    let mut client = Client::default();
    client.post(two, "/add", "a").await;
    let first = client.post_keyed(two, "/add", "key-1", "b").await;
    assert_eq!(first.text, "a b ");
    let again = client.post_keyed(two, "/add", "key-1", "b").await;
    assert_eq!((again.status, again.text.as_str()), (StatusCode::OK, "a b "));
    let elsewhere = client.post_keyed(three, "/add", "key-1", "b").await;
    assert_eq!(elsewhere.text, "a b ");
    let other = client.post_keyed(two, "/add", "key-1", "other").await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(client.get(two, "/").await.text, "a b ");
}

#[tokio::test]
async fn a_forged_or_truncated_cookie_begins_a_new_session() {
    let cold = Gate::new(true);
    let bed = three(&cold).await;
    let two = &bed.peers[1];
    let mut client = Client::default();
    client.post(two, "/add", "a").await;
    let good = client.cookie.clone().unwrap();
    for bad in [&good[1..], &good[..good.len() / 2], "x.two", "", ".two", "AAAA"] {
        let mut forger = Client { cookie: Some(bad.to_owned()) };
        let answer = forger.get(two, "/").await;
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, ""), "{bad}");
        assert!(!answer.field("set-cookie").is_empty(), "it is replaced");
    }
    assert_eq!(client.get(two, "/").await.text, "a ");
    assert!(two.metrics().contains("warmhop_cookies_rejected"));
}

#[tokio::test]
async fn a_lone_peer_keeps_sessions_by_itself() {
    let gate = Gate::new(true);
    let mut bed = Bed::new();
    let one = bed.add("one", portable(), &gate).await;
    let mut client = Client::default();
    for (item, so_far) in [("a", "a "), ("b", "a b ")] {
        assert_eq!(client.post(&one, "/add", item).await.text, so_far);
    }
    assert_eq!(client.get(&one, "/").await.text, "a b ");
}

#[tokio::test]
async fn of_two_peers_the_one_that_is_left_goes_on_with_all_that_was_acknowledged() {
    let gate = Gate::new(true);
    let mut bed = Bed::new();
    let policy = || {
        warmhop::config::SessionPolicy::default()
            .with(|made| made.majority_timeout = Duration::from_millis(200))
    };
    let plan = || Plan { policy: policy(), start: StartMode::AtBoot, ..portable() };
    let one = bed.add("one", plan(), &gate).await;
    let two = bed.add("two", plan(), &gate).await;
    bed.believes(&two, "one", "ready").await;
    let mut client = Client::default();
    client.post(&one, "/add", "a").await;
    client.post(&one, "/add", "b").await;
    // It neither drains nor says goodbye in time to hand anything off.
    one.vanish().await;
    let answer = client.post(&two, "/add", "c").await;
    assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, "a b c "));
    // The other is proven gone: it is the same session, and not a copy of it.
    assert_eq!(answer.field("warmhop-session-forked"), "");
    let next = client.post(&two, "/add", "d").await;
    assert_eq!((next.text.as_str(), next.field("warmhop-session-forked")), ("a b c d ", ""));
    assert!(two.metrics().contains("warmhop_sessions_forked_total 0"));
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_does_not_block_its_session() {
    let cold = Gate::new(true);
    let bed = three(&cold).await;
    let two = bed.peers[1].clone();
    let mut client = Client::default();
    client.post(&two, "/add", "a").await;
    for at in 0..20 {
        let (two, mut client) = (two.clone(), client.clone());
        let item = format!("x{at}");
        let leaving = tokio::spawn(async move { client.post(&two, "/add", item).await });
        tokio::time::sleep(Duration::from_micros(rand::random_range(0..800))).await;
        leaving.abort();
        let _ = leaving.await;
    }
    let list = client.post(&two, "/add", "z").await;
    assert_eq!(list.status, StatusCode::OK);
    let items: Vec<&str> = list.text.split_whitespace().collect();
    let [first, abandoned @ .., last] = &items[..] else { panic!("{items:?}") };
    assert_eq!((*first, *last), ("a", "z"), "what was answered is there");
    // Whether they were added is open; which of two came first is, too.
    let sent: BTreeSet<String> = (0..20).map(|at| format!("x{at}")).collect();
    let added: BTreeSet<String> = abandoned.iter().map(|it| (*it).to_owned()).collect();
    assert!(added.is_subset(&sent), "{items:?}");
    assert_eq!(added.len(), abandoned.len(), "one was added twice: {items:?}");
}

#[tokio::test]
async fn how_sessions_are_kept_changes_while_the_peer_serves() {
    let bed = three(&Gate::new(false)).await;
    let one = &bed.peers[0];
    let mut client = Client::default();
    client.post(one, "/add", "a").await;
    client.post_keyed(one, "/add", "first", "b").await;
    let again = client.post_keyed(one, "/add", "first", "b").await;
    assert_eq!((again.text.as_str(), again.field("warmhop-replayed")), ("a b ", "?1"));
    let mut keeps_none = warmhop::config::SessionPolicy::default();
    keeps_none.stored_response_bytes_max = 0;
    one.change_sessions(keeps_none);
    assert_eq!(client.post_keyed(one, "/add", "second", "c").await.text, "a b c ");
    let again = client.post_keyed(one, "/add", "second", "c").await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    assert!(again.text.contains("applied-too-large-to-repeat"), "{}", again.text);
    assert_eq!(client.get(one, "/").await.text, "a b c ");
}

/// A body of unknown length: it counts the pieces that are read of it, and ends once it may.
fn streamed(pieces: Vec<Bytes>, read: &Arc<AtomicUsize>, may_end: watch::Receiver<bool>) -> Body {
    let read = Arc::clone(read);
    let pieces = futures_util::stream::iter(pieces).map(move |piece| {
        read.fetch_add(1, Ordering::SeqCst);
        Ok::<_, BoxError>(Frame::data(piece))
    });
    let end = futures_util::stream::once(async move {
        may_end.clone().wait_for(|may| *may).await.unwrap();
        Ok(Frame::data(Bytes::new()))
    });
    Body::new(StreamBody::new(Box::pin(pieces.chain(end))))
}

fn add(client: &Client, at: &Mesh, body: Body) -> JoinHandle<Answer> {
    let (mut client, at) = (client.clone(), at.clone());
    tokio::spawn(async move { client.send(&at, Request::post("/add").body(body).unwrap()).await })
}

/// A session's requests with bodies of unknown length come to a peer that forwards them to the
/// session's owner, and the owner leaves while they wait there in line: how each of them ended,
/// and the session. `small` bodies are short, and `long` is too long to be kept.
async fn in_line_while_the_owner_leaves(small: usize, long: Vec<Bytes>) -> (Vec<Answer>, String) {
    let bed = three(&Gate::new(true)).await;
    let (two, three) = (bed.peers[1].clone(), &bed.peers[2]);
    for mesh in [&two, three] {
        Client::default().get(mesh, "/").await;
        eventually("the app is ready", || mesh.status().apps[0].state == "ready").await;
    }
    let mut client = Client::default();
    client.post(&two, "/add", "a").await;
    let (ends, may_end) = watch::channel(false);
    let (first, read) = (Arc::default(), Arc::<AtomicUsize>::default());
    let held = add(&client, &two, streamed(vec!["held".into()], &first, may_end));
    eventually("the first is in the app", || first.load(Ordering::SeqCst) == 1).await;
    let (_ended, ended) = watch::channel(true);
    let pieces = long.len().min(4) + small;
    let mut waiting = Vec::new();
    if !long.is_empty() {
        waiting.push(add(&client, three, streamed(long, &read, ended.clone())));
    }
    for at in 0..small {
        waiting.push(add(
            &client,
            three,
            streamed(vec![format!("s{at}").into()], &read, ended.clone()),
        ));
    }
    eventually("the owner has taken them", || read.load(Ordering::SeqCst) >= pieces).await;
    let leaves = tokio::spawn({
        let two = two.clone();
        async move { two.shutdown().await }
    });
    eventually("the owner leaves", || two.status().peer.state == "draining").await;
    ends.send_replace(true);
    assert_eq!(held.await.unwrap().text, "a held ");
    let mut answers = Vec::new();
    for answer in waiting {
        answers.push(answer.await.unwrap());
    }
    leaves.await.unwrap();
    let list = client.get(three, "/").await.text;
    (answers, list)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_body_of_unknown_length_is_sent_again_if_the_owner_refused_it() {
    let (answers, list) = in_line_while_the_owner_leaves(3, Vec::new()).await;
    for answer in &answers {
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }
    let items: BTreeSet<&str> = list.split_whitespace().collect();
    assert_eq!(items, BTreeSet::from(["a", "held", "s0", "s1", "s2"]), "{list}");
    assert_eq!(list.split_whitespace().count(), items.len(), "one was applied twice: {list}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_body_that_the_owner_refused_is_said_not_to_be_applied() {
    let long = vec![Bytes::from_static(&[b'x'; 24 * 1024]); 8];
    let (answers, list) = in_line_while_the_owner_leaves(0, long).await;
    let [answer] = &answers[..] else { panic!("{} answers", answers.len()) };
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text);
    assert!(answer.text.contains("nothing was done"), "{}", answer.text);
    assert_ne!(answer.field("retry-after"), "", "{}", answer.text);
    assert_eq!(list, "a held ");
}

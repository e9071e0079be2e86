//! The way a request takes: served, hopped, waiting, refused.
#![allow(missing_docs, reason = "a test crate")]

mod bed;

use bed::{Bed, Client, Gate, Plan, app, eventually};
use bytes::Bytes;
use http::{Request, StatusCode};
use warmhop::Body;
use warmhop::config::{SessionMode, StartMode};

/// Two peers: the app ready on the first, cold on the second.
async fn ready_and_cold(session: SessionMode) -> (Bed, Gate, Gate) {
    let (warm, cold) = (Gate::new(true), Gate::new(false));
    let mut bed = Bed::new();
    let plan = || Plan { session, ..Plan::default() };
    bed.add_ready("one", plan(), &warm).await;
    let two = bed.add("two", plan(), &cold).await;
    bed.believes(&two, "one", "ready").await;
    (bed, warm, cold)
}

#[tokio::test]
async fn a_request_to_a_cold_peer_hops_at_once_and_starts_the_copy_there_once() {
    let (bed, _, cold) = ready_and_cold(SessionMode::None).await;
    let two = bed.peers[1].clone();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let two = two.clone();
        clients.spawn(async move { Client::default().get(&two, "/who").await });
    }
    while let Some(answer) = clients.join_next().await {
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, "one"));
        assert_eq!(answer.field("warmhop-peer"), "one");
        assert_eq!(answer.field("proxy-status"), "two; next-hop=one");
        assert!(answer.field("via").contains("two"));
    }
    eventually("the start began", || cold.starts() == 1).await;
    assert_eq!(two.status().apps[0].state, "starting");

    cold.open();
    eventually("the copy is ready", || two.status().apps[0].state == "ready").await;
    let answer = Client::default().get(&two, "/who").await;
    assert_eq!((answer.text.as_str(), answer.field("warmhop-peer")), ("two", "two"));
    assert_eq!(answer.field("proxy-status"), "");
    assert_eq!(cold.starts(), 1);
}

#[tokio::test]
async fn ready_nowhere_waits_for_the_first_copy_anywhere() {
    let (first, second) = (Gate::new(false), Gate::new(false));
    let mut bed = Bed::new();
    let one = bed.add("one", Plan { start: StartMode::AtBoot, ..Plan::default() }, &first).await;
    let two = bed.add("two", Plan::default(), &second).await;
    bed.believes(&two, "one", "starting").await;
    let waiting = tokio::spawn({
        let two = two.clone();
        async move { Client::default().get(&two, "/who").await }
    });
    eventually("its own start began", || second.starts() == 1).await;
    assert!(!waiting.is_finished());
    first.open();
    assert_eq!(waiting.await.unwrap().text, "one");
    drop(one);
}

#[tokio::test]
async fn past_its_bound_a_wait_gets_503_with_retry_after() {
    let gate = Gate::new(false);
    let mut bed = Bed::new();
    let plan = Plan { max_wait: std::time::Duration::from_millis(50), ..Plan::default() };
    let one = bed.add("one", plan, &gate).await;
    let answer = Client::default().get(&one, "/").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!answer.field("retry-after").is_empty());
    assert!(answer.field("proxy-status").contains("error="), "{:?}", answer.headers);
    assert_eq!(answer.field("content-type"), "application/problem+json");
}

#[tokio::test]
async fn a_peer_that_may_not_start_the_app_asks_one_that_may() {
    let gate = Gate::new(true);
    let mut bed = Bed::new();
    bed.add("one", Plan::default(), &gate).await;
    let never = Plan { start: StartMode::Never, ..Plan::default() };
    let two = bed.add("two", never, &gate).await;
    bed.believes(&two, "one", "cold").await;
    assert_eq!(Client::default().get(&two, "/who").await.text, "one");
    assert_eq!(two.status().apps[0].state, "cold");
}

#[tokio::test]
async fn a_stale_belief_costs_a_refused_hop_and_never_an_error() {
    let (bed, _, cold) = ready_and_cold(SessionMode::None).await;
    let (one, two) = (&bed.peers[0], &bed.peers[1]);
    cold.open();
    // Many requests while the only ready copy stops: each is served by one or the other.
    let load = tokio::spawn({
        let two = two.clone();
        async move {
            for _ in 0..200 {
                let answer = Client::default().get(&two, "/who").await;
                assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
            }
        }
    });
    one.stop_app(&app()).unwrap();
    load.await.unwrap();
}

#[tokio::test]
async fn bodies_stream_through_a_hop_both_ways_and_arrive_whole() {
    let (bed, _, _cold) = ready_and_cold(SessionMode::None).await;
    let two = &bed.peers[1];
    for size in [0, 1, 16 * 1024, 16 * 1024 + 1, 5_000_000] {
        let sent: Bytes = (0..size).map(|at| (at % 251) as u8).collect::<Vec<_>>().into();
        let chunks: Vec<_> = sent
            .chunks(60_000)
            .map(|c| Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::copy_from_slice(c))))
            .collect();
        let body = Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(chunks)));
        let request = Request::post("/echo").body(body).unwrap();
        let request = {
            let mut request = request;
            request.headers_mut().insert("host", "shop.test".parse().unwrap());
            request
        };
        let response = tower::ServiceExt::oneshot(two.service(), request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let back = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        assert!(back == sent, "{size} bytes came back as {}", back.len());
    }
}

#[tokio::test]
async fn fields_that_clients_may_not_send_do_not_reach_the_app() {
    let (bed, _, _cold) = ready_and_cold(SessionMode::None).await;
    for mesh in &bed.peers {
        let request = Request::get("/headers")
            .header("warmhop-session", ":AAAA:")
            .header("warmhop-peer", "x")
            .header("connection", "x-private")
            .header("x-private", "1")
            .header("cookie", "a=1; warmhop=forged.one; b=2")
            .header("x-request-id", "my-id-1")
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .body(Body::empty())
            .unwrap();
        let answer = Client::default().send(mesh, request).await;
        for absent in ["warmhop", "x-private", "connection"] {
            assert!(!answer.text.contains(absent), "{absent}: {}", answer.text);
        }
        for present in
            ["a=1; b=2", "my-id-1", "0af7651916cd43dd8448eb211c80319c", "forwarded", "via"]
        {
            assert!(answer.text.contains(present), "{present}: {}", answer.text);
        }
        assert_eq!(answer.field("warmhop-request-id"), "my-id-1");
        let trace = mesh.why("my-id-1").expect("the request is remembered");
        assert_eq!(trace.role, "entry");
        assert!(!trace.steps.is_empty());
    }
    // Both peers can tell of the one that hopped.
    assert_eq!(bed.peers[0].why("my-id-1").unwrap().status, Some(200));
}

#[tokio::test]
async fn an_unknown_app_is_404_as_a_problem() {
    let bed = {
        let gate = Gate::new(true);
        let mut bed = Bed::new();
        let authority = &bed.authority;
        let mut spec = warmhop::AppSpec::new(app());
        spec.matches = vec![warmhop::Match::new(Some("shop.test"), "/shop")];
        let mesh = warmhop::Mesh::builder(authority.issue(&bed::peer("one")).unwrap())
            .app(spec, warmhop::app_fn(|| async { Ok::<_, std::io::Error>(axum::Router::new()) }))
            .start()
            .await
            .unwrap();
        drop(gate);
        bed.peers.push(mesh);
        bed
    };
    for path in ["/", "/shopping"] {
        let answer = Client::default().get(&bed.peers[0], path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert!(answer.text.contains("urn:warmhop:unknown-app"), "{}", answer.text);
    }
}

#[tokio::test]
async fn a_pinned_session_stays_where_it_was_made_and_a_none_app_sets_no_cookie() {
    let (bed, _, cold) = ready_and_cold(SessionMode::Pinned).await;
    let (one, two) = (&bed.peers[0], &bed.peers[1]);
    let mut client = Client::default();
    assert_eq!(client.get(two, "/who").await.text, "one");
    assert_eq!(client.route(), "one");
    cold.open();
    eventually("the copy is ready", || two.status().apps[0].state == "ready").await;
    assert_eq!(client.get(two, "/who").await.text, "one", "the session was made there");
    assert_eq!(Client::default().get(two, "/who").await.text, "two", "a new one is made here");
    // When its peer leaves, a fresh one begins.
    one.shutdown().await;
    assert_eq!(client.get(two, "/who").await.text, "two");
    assert_eq!(client.route(), "two");

    let (bed, _, _cold) = ready_and_cold(SessionMode::None).await;
    let mut client = Client::default();
    client.get(&bed.peers[1], "/").await;
    assert_eq!(client.cookie, None);
}

#[tokio::test]
async fn copies_are_kept_ready_across_the_mesh_and_replaced() {
    let gate = Gate::new(true);
    let mut bed = Bed::new();
    let plan = || Plan { keep_ready: 1, ..Plan::default() };
    for name in ["one", "two", "three"] {
        bed.add(name, plan(), &gate).await;
    }
    let ready = |peers: &[warmhop::Mesh]| {
        peers.iter().filter(|mesh| mesh.status().apps[0].state == "ready").count()
    };
    eventually("one copy is ready", || ready(&bed.peers) == 1).await;
    let keeper = bed.peers.iter().position(|m| m.status().apps[0].state == "ready").unwrap();
    let gone = bed.peers.remove(keeper);
    gone.shutdown().await;
    eventually("another keeps it", || ready(&bed.peers) == 1).await;
}

//! What people see: the starting page in a browser, and what a peer reports about its work.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bed;

use bed::{Answer, Bed, Client, Gate, Plan, eventually};
use http::{Request, StatusCode};
use warmhop::config::SessionMode;
use warmhop::ids::AppName;
use warmhop::{Body, Mesh};

/// Opens `path` as a browser's tab does.
async fn open(mesh: &Mesh, path: &str) -> Answer {
    let request = Request::get(path)
        .header("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
        .header("sec-fetch-mode", "navigate")
        .header("sec-fetch-dest", "document")
        .body(Body::empty())
        .unwrap();
    Client::default().send(mesh, request).await
}

#[tokio::test]
async fn a_browser_is_shown_a_page_at_once_while_others_wait_for_the_first_copy() {
    for session in [SessionMode::None, SessionMode::Pinned, SessionMode::Portable] {
        let gate = Gate::new(false);
        let mut bed = Bed::new();
        let one = bed.add("one", Plan { session, ..Plan::default() }, &gate).await;
        let page = open(&one, "/who").await;
        assert_eq!(page.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(page.field("content-type"), "text/html; charset=utf-8");
        assert_eq!(page.field("cache-control"), "no-store");
        assert!(page.field("retry-after").parse::<u64>().is_ok_and(|s| (1..=120).contains(&s)));
        assert!(page.field("content-security-policy").starts_with("default-src 'none';"));
        assert!(page.text.contains("shop is starting"), "{}", page.text);
        assert_eq!(page.field("set-cookie"), "", "no session began");
        // The page has begun the start, and is no request that waits.
        eventually("the start began", || gate.starts() == 1).await;
        assert_eq!(one.status().apps[0].waiting, 0);

        let waiting = tokio::spawn({
            let one = one.clone();
            async move { Client::default().get(&one, "/who").await }
        });
        eventually("the program waits", || one.status().apps[0].waiting == 1).await;
        let progress = Client::default().get(&one, "/.well-known/warmhop/starting/who").await;
        assert!(
            progress.text.starts_with("{\"state\":\"starting\",\"eta_ms\":null,\"elapsed_ms\":"),
            "{}",
            progress.text
        );
        assert!(!waiting.is_finished());
        gate.open();
        let answer = waiting.await.unwrap();
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, "one"));
        let progress = Client::default().get(&one, "/.well-known/warmhop/starting/who").await;
        assert!(progress.text.starts_with("{\"state\":\"ready\""), "{}", progress.text);
        assert_eq!(open(&one, "/who").await.text, "one");
        assert_eq!(gate.starts(), 1);
    }
}

#[tokio::test]
async fn a_browser_hops_like_everyone_else_where_the_app_is_ready_elsewhere() {
    let (warm, cold) = (Gate::new(true), Gate::new(false));
    let mut bed = Bed::new();
    bed.add_ready("one", Plan::default(), &warm).await;
    let two = bed.add("two", Plan::default(), &cold).await;
    bed.believes(&two, "one", "ready").await;
    let answer = open(&two, "/who").await;
    assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, "one"));
    let progress = Client::default().get(&two, "/.well-known/warmhop/starting/").await;
    assert!(progress.text.starts_with("{\"state\":\"ready\""), "{}", progress.text);
}

#[tokio::test]
async fn an_app_without_the_page_lets_browsers_wait_too() {
    let gate = Gate::new(false);
    let mut bed = Bed::new();
    let plan = Plan { starting_page: false, ..Plan::default() };
    let one = bed.add("one", plan, &gate).await;
    let tab = tokio::spawn({
        let one = one.clone();
        async move { open(&one, "/who").await }
    });
    eventually("the tab waits", || one.status().apps[0].waiting == 1).await;
    let progress = Client::default().get(&one, "/.well-known/warmhop/starting/who").await;
    assert_eq!((progress.status, progress.text.as_str()), (StatusCode::NOT_FOUND, ""));
    gate.open();
    assert_eq!(tab.await.unwrap().text, "one");
}

#[tokio::test]
async fn asking_for_progress_starts_nothing_and_an_unknown_app_has_none() {
    let gate = Gate::new(false);
    let mut bed = Bed::new();
    let one = bed.add("one", Plan::default(), &gate).await;
    let progress = Client::default().get(&one, "/.well-known/warmhop/starting/who").await;
    let cold =
        "{\"state\":\"cold\",\"eta_ms\":null,\"elapsed_ms\":null,\"failures\":0,\"retry_ms\":null}";
    assert_eq!(progress.text.trim(), cold);
    assert_eq!(progress.field("cache-control"), "no-store");
    assert_eq!((gate.starts(), one.status().apps[0].state.as_str()), (0, "cold"));
}

#[tokio::test]
async fn a_first_start_here_is_estimated_by_what_starts_take_elsewhere() {
    let (warm, cold) = (Gate::new(true), Gate::new(false));
    let mut bed = Bed::new();
    let one = bed.add_ready("one", Plan::default(), &warm).await;
    let two = bed.add("two", Plan::default(), &cold).await;
    one.stop_app(&AppName::new("shop").unwrap()).unwrap();
    bed.believes(&two, "one", "cold").await;
    let page = open(&two, "/who").await;
    assert_eq!(page.status, StatusCode::SERVICE_UNAVAILABLE);
    let progress = Client::default().get(&two, "/.well-known/warmhop/starting/who").await;
    assert!(progress.text.starts_with("{\"state\":\"starting\",\"eta_ms\":1"), "{}", progress.text);
    assert_eq!(two.status().apps[0].eta_ms, None, "of itself it has measured nothing");
}

#[tokio::test]
async fn a_peer_counts_what_it_serves_sends_and_receives_and_tells_its_newest_decisions() {
    let (warm, cold) = (Gate::new(true), Gate::new(false));
    let mut bed = Bed::new();
    let one = bed.add_ready("one", Plan::default(), &warm).await;
    let two = bed.add("two", Plan::default(), &cold).await;
    bed.believes(&two, "one", "ready").await;
    for _ in 0..3 {
        Client::default().get(&two, "/who").await;
    }
    Client::default().get(&one, "/who").await;
    Client::default().get(&one, "/fail").await;

    let (first, second) = (one.status(), two.status());
    assert_eq!(second.apps[0].requests.hopped, 3);
    assert_eq!(second.apps[0].requests.served, 0);
    assert_eq!((second.peers[0].hops_sent, second.peers[0].hops_received), (3, 0));
    assert_eq!((first.apps[0].requests.served, first.apps[0].requests.failed), (2, 1));
    assert_eq!((first.peers[0].hops_sent, first.peers[0].hops_received), (0, 3));
    assert_eq!(first.peers[0].state, "alive");
    assert!(second.apps[0].starting_ms.is_some(), "its own start is under way");
    assert_eq!(first.apps[0].starting_ms, None);

    let recent = two.recent(2);
    assert_eq!(recent.len(), 2);
    assert!(recent[0].at_unix_ms >= recent[1].at_unix_ms, "the newest comes first");
    assert_eq!(recent[0].steps[0].what, "hop");
    assert_eq!(recent[0].served_by.as_deref(), Some("one"));
    assert!(one.recent(10).iter().any(|trace| trace.role == "hop"));

    let (ones, twos) = (one.metrics(), two.metrics());
    for (metrics, line) in [
        (&twos, "warmhop_requests_total{app=\"shop\",way=\"hop\",code=\"2xx\"} 3"),
        (&ones, "warmhop_requests_total{app=\"shop\",way=\"serve\",code=\"5xx\"} 1"),
        (&twos, "warmhop_requests_total{app=\"shop\",way=\"hop\",code=\"5xx\"} 0"),
        (&twos, "warmhop_decisions_total{app=\"shop\",decision=\"hop\",reason=\"ready_there\"} 3"),
        (&twos, "warmhop_hops_sent_total{peer=\"one\"} 3"),
        // What has not happened yet is reported as 0, so that the first time is an increase.
        (&ones, "warmhop_hops_sent_total{peer=\"two\"} 0"),
        (&ones, "warmhop_clients_refused_total{reason=\"over-budget\"} 0"),
        (&ones, "warmhop_cookies_rejected_total{reason=\"forged\"} 0"),
        (&ones, "warmhop_session_refusals_total{reason=\"session-no-majority\"} 0"),
        (&ones, "warmhop_session_refusals_total{reason=\"memory-full\"} 0"),
        (&ones, "warmhop_session_too_large_total{reason=\"field\"} 0"),
        (&ones, "warmhop_session_too_large_total{reason=\"set\"} 0"),
        (&ones, "warmhop_links_refused_total{reason=\"refused\"} 0"),
        (&ones, "warmhop_answers_cut_off_total{app=\"shop\"} 0"),
        (&twos, "warmhop_app_state{app=\"shop\",state=\"starting\"} 1.0"),
        (&twos, "warmhop_app_state{app=\"shop\",state=\"ready\"} 0.0"),
        (&ones, "warmhop_hops_received_total{peer=\"two\"} 3"),
        (&ones, "warmhop_app_start_seconds_count{app=\"shop\"} 1"),
        (&ones, "warmhop_peers{state=\"alive\"} 1.0"),
        (&ones, "warmhop_draining 0.0"),
        (&ones, "warmhop_build_info{version="),
        (&ones, "warmhop_peer_round_trip_seconds{peer=\"two\"} "),
        (&ones, "warmhop_start_time_seconds "),
    ] {
        assert!(metrics.lines().any(|each| each.starts_with(line)), "{line} in\n{metrics}");
    }
}

#[tokio::test]
async fn many_changes_make_one_notification() {
    let gate = Gate::new(true);
    let mut bed = Bed::new();
    let one = bed.add("one", Plan::default(), &gate).await;
    let mut changes = one.changes();
    Client::default().get(&one, "/who").await;
    assert_eq!(one.status().apps[0].state, "ready");
    changes.next().await;
    let quiet = tokio::time::timeout(std::time::Duration::from_millis(100), changes.next()).await;
    assert!(quiet.is_err(), "a second notification of the same change");
}

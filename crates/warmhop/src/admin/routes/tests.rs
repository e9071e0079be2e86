//! The routes and their guard, over a peer that only records its calls.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::observe::status::{
    AppStatus, History, OtherPeer, PeerStatus, RequestCounts, SeedStatus, SessionCounts,
    SessionStatus,
};
use axum::body::Body;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tower::ServiceExt;

use http::Method;
use http::header::WWW_AUTHENTICATE;
use serde_json::Value;

use super::*;
use crate::admin::places::{self, serve};
use crate::http::refusals::Refusals;

/// The routes over a peer, with no others beside them.
fn router<P: Peer>(peer: P, token: Option<&str>) -> Router {
    guarded(peer, Token::new(token), Arc::new(|text| text), Router::new())
}

#[derive(Clone, Default)]
struct Fake {
    asked: Arc<Mutex<Vec<String>>>,
    draining: Arc<AtomicBool>,
    looked: Arc<AtomicUsize>,
    refusals: Arc<Refusals<AdminRefusal>>,
}

impl Fake {
    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn trace(id: String) -> RequestTrace {
    RequestTrace {
        host: None,
        id,
        peer: "peer-1".into(),
        role: "entry".into(),
        app: None,
        request: "GET /".into(),
        at_unix_ms: 1,
        status: None,
        served_by: None,
        sent_to: None,
        session: None,
        steps: Vec::new(),
        head_ms: None,
    }
}

impl Peer for Fake {
    fn status(&self) -> Status {
        self.looked.fetch_add(1, Ordering::SeqCst);
        Status {
            peer: PeerStatus {
                name: "peer-1".into(),
                route: "peer-1".into(),
                id: "spiffe://demo/peer/peer-1".into(),
                incarnation: "00".into(),
                version: "0.1.0".into(),
                uptime_ms: 1,
                state: "serving".into(),
                http: vec!["127.0.0.1:8081".into()],
                mesh: "127.0.0.1:7001".into(),
                zone: None,
                clock_correction_ms: 0,
                identity_not_after: 1,
                front_door_not_after: None,
            },
            apps: vec![AppStatus {
                name: "shop".into(),
                state: "cold".into(),
                starts: 0,
                eta_ms: None,
                starting_ms: None,
                in_flight: 0,
                waiting: 0,
                requests: RequestCounts::default(),
                error: None,
                session: "none".into(),
                copy: None,
                next: None,
                version: None,
                next_version: None,
                digest: "-".into(),
                differs_on: Vec::new(),
            }],
            peers: vec![OtherPeer {
                name: "peer-2".into(),
                route: "peer-2".into(),
                id: "spiffe://demo/peer/peer-2".into(),
                incarnation: "01".into(),
                alive: true,
                draining: false,
                state: "alive".into(),
                unlinked: Some("nobody answers at 127.0.0.1:7002".into()),
                rtt_us: None,
                clock_ahead_ms: None,
                zone: None,
                mesh: "127.0.0.1:7002".into(),
                http: None,
                apps: BTreeMap::new(),
                copies: BTreeMap::new(),
                hops_sent: 0,
                hops_received: 0,
            }],
            cookie: "warmhop".into(),
            sessions: SessionCounts {
                owned: 12,
                copies: 30,
                short: 2,
                bytes: 9_000,
                bytes_max: 1 << 20,
            },
            takeovers: 0,
            seeds: vec![SeedStatus {
                seed: "far.example:7001".into(),
                reached: false,
                error: Some("its name cannot be resolved".into()),
            }],
        }
    }

    fn why(&self, request_id: &str) -> Option<RequestTrace> {
        (request_id == "a/b:c").then(|| trace(request_id.into()))
    }

    fn recent(&self, count: usize) -> Vec<RequestTrace> {
        (0..count).map(|number| trace(format!("request-{number}"))).collect()
    }

    fn history(&self) -> History {
        History {
            interval_ms: 10_000,
            intervals_max: 60,
            bounds_ms: vec![0.5],
            apps: BTreeMap::from([("shop".into(), Vec::new())]),
        }
    }

    fn session(&self, key: &SessionKey) -> Option<SessionStatus> {
        (key.app.as_str() == "shop").then(|| SessionStatus {
            key: key.to_string(),
            owner: Some("peer-2".into()),
            ballot: "1.00".into(),
            version: 7,
            members: vec!["peer-2".into(), "peer-1".into()],
        })
    }

    fn start_app(&self, name: &AppName) -> Result<(), ControlError> {
        match name.as_str() {
            "shop" => {
                self.note(format!("start {name}"));
                Ok(())
            }
            "far" => {
                Err(ControlError::NotStartable { name: "far".into(), why: "start = never".into() })
            }
            _ => {
                Err(ControlError::UnknownApp { name: name.to_string(), known: "shop, far".into() })
            }
        }
    }

    fn stop_app(&self, name: &AppName) -> Result<(), ControlError> {
        self.note(format!("stop {name}"));
        Ok(())
    }

    fn takes_traffic(&self) -> bool {
        !self.draining.load(Ordering::SeqCst)
    }

    fn refusals(&self) -> Arc<Refusals<AdminRefusal>> {
        Arc::clone(&self.refusals)
    }

    fn metrics(&self) -> String {
        "# HELP warmhop_hops Hops.\n# TYPE warmhop_hops counter\nwarmhop_hops_total 3\n\
         # HELP warmhop_build The version.\n# TYPE warmhop_build info\n\
         warmhop_build_info{version=\"1\"} 1\n# HELP warmhop_age_seconds Age.\n\
         # TYPE warmhop_age_seconds gauge\n# UNIT warmhop_age_seconds seconds\n\
         warmhop_age_seconds 2.5\n# EOF\n"
            .into()
    }

    async fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    async fn undrain(&self) -> Result<(), ControlError> {
        if self.draining.swap(false, Ordering::SeqCst) { Ok(()) } else { Err(ControlError::Ends) }
    }
}

async fn ask(router: &Router, request: http::Request<Body>) -> (StatusCode, HeaderMap, String) {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

fn request(method: Method, path: &str, headers: &[(&str, &str)]) -> http::Request<Body> {
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

const LOCAL: (&str, &str) = ("host", "127.0.0.1:9001");

async fn get_json(router: &Router, path: &str) -> (StatusCode, Value) {
    let (status, _, body) = ask(router, request(Method::GET, path, &[LOCAL])).await;
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn every_route_answers_as_the_contract_says() {
    let peer = Fake::default();
    let router = router(peer.clone(), None);
    for (path, content_type, begins) in [
        ("/", "text/html; charset=utf-8", "<!doctype html>"),
        ("/healthz", "text/plain; charset=utf-8", "ok"),
        ("/readyz", "text/plain; charset=utf-8", "ready"),
        (
            "/readyz?verbose",
            "text/plain; charset=utf-8",
            "ready\npeers: 1 of 1 alive, 1 without a link (peer-2: nobody answers at 127.0.0.1:7002)\n\
             seeds: 0 of 1",
        ),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", "# HELP warmhop_hops_total"),
        ("/v1/status", "application/json", "{\"peer\":{\"name\":\"peer-1\""),
        ("/v1/history", "application/json", "{\"interval_ms\":10000,"),
        ("/v1/requests", "application/json", "{\"requests\":[{\"id\":\"request-0\""),
    ] {
        let (status, headers, body) = ask(&router, request(Method::GET, path, &[LOCAL])).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(headers[CONTENT_TYPE], content_type, "{path}");
        assert!(body.starts_with(begins), "{path}: {body}");
        if path == "/readyz?verbose" {
            let line = "certificate: expired on Thu, 01 Jan 1970 00:00:01 GMT\n";
            assert!(body.ends_with(line), "{body}");
        }
    }
    let (_, status) = get_json(&router, "/v1/status").await;
    let sessions =
        json!({ "owned": 12, "copies": 30, "short": 2, "bytes": 9_000, "bytes_max": 1 << 20 });
    assert_eq!(status["sessions"], sessions);
    assert_eq!(get_json(&router, "/v1/requests/a/b%3Ac").await.1["id"], "a/b:c");
    let key = "shop/000102030405060708090a0b0c0d0e0f";
    let (_, session) = get_json(&router, &format!("/v1/sessions/{key}")).await;
    assert_eq!(session["key"], key);
    assert_eq!(session["members"], json!(["peer-2", "peer-1"]));

    for (path, noted) in
        [("/v1/apps/shop/start", "start shop"), ("/v1/apps/shop/stop", "stop shop")]
    {
        let (status, _, answer) = ask(&router, request(Method::POST, path, &[LOCAL])).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{path}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((&answer["app"], &answer["was"]), (&json!("shop"), &json!("cold")), "{path}");
        assert_eq!(peer.asked().last().unwrap(), noted);
    }
}

#[tokio::test]
async fn metrics_are_in_openmetrics_if_the_scraper_asks_for_it_and_else_in_the_older_format() {
    let router = router(Fake::default(), None);
    let older = "# HELP warmhop_hops_total Hops.\n# TYPE warmhop_hops_total counter\n\
                 warmhop_hops_total 3\n# HELP warmhop_build_info The version.\n\
                 # TYPE warmhop_build_info gauge\nwarmhop_build_info{version=\"1\"} 1\n\
                 # HELP warmhop_age_seconds Age.\n# TYPE warmhop_age_seconds gauge\n\
                 warmhop_age_seconds 2.5\n";
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3,*/*;q=0.1";
    for (accept, is_new) in [
        (None, false),
        (Some("*/*"), false),
        (Some("text/plain;version=0.0.4"), false),
        (Some("application/openmetrics-text;q=0, text/plain"), false),
        (Some(prometheus), true),
        (Some("text/plain, Application/OpenMetrics-Text"), true),
    ] {
        let mut headers = vec![LOCAL];
        headers.extend(accept.map(|accept| ("accept", accept)));
        let (_, answer, body) = ask(&router, request(Method::GET, "/metrics", &headers)).await;
        let kind = answer[CONTENT_TYPE].to_str().unwrap();
        assert_eq!(kind.starts_with("application/openmetrics-text"), is_new, "{accept:?}: {kind}");
        assert_eq!(body.ends_with("# EOF\n"), is_new, "{accept:?}: {body}");
        assert_eq!(body.starts_with(older), !is_new, "{accept:?}: {body}");
        assert_eq!(answer["vary"], "accept");
    }
}

#[tokio::test]
async fn errors_are_problem_details() {
    let more = Router::new().route("/v1/more", post(|| async { "more\n" }));
    let peer = Fake::default();
    let router = guarded(peer, Token::new(None), Arc::new(|text| text), more);
    let unknown = "/v1/sessions/blog/000102030405060708090a0b0c0d0e0f";
    for (method, path, status, detail) in [
        (Method::GET, "/v1/nothing", 404, "there is nothing here"),
        (Method::GET, "/v1/requests/x", 404, "remembers no such request"),
        (Method::GET, "/v1/sessions/shop/nothing", 400, "expected 32 hexadecimal digits"),
        (Method::GET, unknown, 404, "holds no copy"),
        (Method::POST, "/v1/apps/blog/start", 404, "it has: shop, far"),
        (Method::POST, "/v1/apps/far/start", 409, "start = never"),
        (Method::POST, "/v1/apps/b%20g/start", 404, "not a valid app name"),
        (Method::GET, "/v1/apps/shop/start", 405, "what acts is POST"),
        (Method::POST, "/v1/status", 405, "what acts is POST"),
        (Method::GET, "/v1/more", 405, "what acts is POST"),
        (Method::GET, "/v1/requests?limit=x", 400, "limit"),
        (Method::GET, "/v1/requests/%ff", 400, "UTF-8"),
        (Method::POST, "/v1/apps/%ff/start", 400, "UTF-8"),
    ] {
        let (found, headers, body) = ask(&router, request(method, path, &[LOCAL])).await;
        assert_eq!(found.as_u16(), status, "{path}");
        assert_eq!(headers[CONTENT_TYPE], "application/problem+json", "{path}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["status"], status, "{path}");
        assert!(body["detail"].as_str().unwrap().contains(detail), "{path}: {body}");
    }
}

#[tokio::test]
async fn a_drain_is_accepted_at_once_and_shows_in_readiness_not_in_health() {
    let peer = Fake::default();
    let router = router(peer.clone(), None);
    let (status, _, _) = ask(&router, request(Method::POST, "/v1/drain", &[LOCAL])).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    while peer.takes_traffic() {
        tokio::task::yield_now().await;
    }
    let (status, _, _) = ask(&router, request(Method::GET, "/readyz", &[LOCAL])).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let (status, _, _) = ask(&router, request(Method::GET, "/healthz", &[LOCAL])).await;
    assert_eq!(status, StatusCode::OK);
    let undrain = async || ask(&router, request(Method::POST, "/v1/undrain", &[LOCAL])).await;
    assert_eq!(undrain().await.0, StatusCode::OK);
    assert!(peer.takes_traffic());
    let (status, _, body) = undrain().await;
    assert_eq!(status, StatusCode::CONFLICT, "one that ends says so");
    assert!(body.contains("start it again"), "{body}");
}

#[tokio::test]
async fn no_web_page_of_another_origin_acts_on_the_peer() {
    let peer = Fake::default();
    let router = router(peer.clone(), None);
    let own = "http://127.0.0.1:9001";
    for (headers, status) in [
        (vec![LOCAL], 202),
        (vec![LOCAL, ("origin", own)], 202),
        (vec![LOCAL, ("origin", own), ("sec-fetch-site", "same-origin")], 202),
        (vec![("host", "localhost:9001"), ("origin", "http://LOCALHOST:9001")], 202),
        (vec![], 202),
        (vec![LOCAL, ("origin", "http://evil.example")], 403),
        (vec![LOCAL, ("origin", "http://127.0.0.1:8080")], 403),
        (vec![LOCAL, ("origin", "null")], 403),
        (vec![LOCAL, ("origin", "file://")], 403),
        (vec![LOCAL, ("sec-fetch-site", "cross-site")], 403),
        (vec![LOCAL, ("sec-fetch-site", "same-site")], 403),
        // An attacker's name that resolves to this machine.
        (vec![("host", "evil.example:9001"), ("origin", "http://evil.example:9001")], 403),
        (vec![("host", "127.0.0.1.evil.example")], 403),
        (vec![("host", "")], 403),
        (vec![LOCAL, ("host", "evil.example")], 403),
    ] {
        let (found, _, _) =
            ask(&router, request(Method::POST, "/v1/apps/shop/stop", &headers)).await;
        assert_eq!(found.as_u16(), status, "{headers:?}");
    }
    assert_eq!(peer.asked().len(), 5, "what was refused was not done");
    for host in ["127.0.0.1", "[::1]:9001", "localhost", "10.1.2.3:9001"] {
        let headers = [("host", host)];
        let (found, _, _) = ask(&router, request(Method::GET, "/v1/status", &headers)).await;
        assert_eq!(found, StatusCode::OK, "{host}");
    }
    let rebound = [("host", "evil.example")];
    let (found, _, _) = ask(&router, request(Method::GET, "/v1/status", &rebound)).await;
    assert_eq!(found, StatusCode::FORBIDDEN, "a rebound name gets no answer either");
    assert_eq!(peer.refusals.count(AdminRefusal::ForeignPage), 6);
    assert_eq!(peer.refusals.count(AdminRefusal::ForeignHost), 5);
}

async fn watch(router: &Router) -> Response {
    router.clone().oneshot(request(Method::GET, "/v1/events", &[LOCAL])).await.unwrap()
}

async fn next_event(watcher: &mut Response) -> Value {
    let data = watcher.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    let text = std::str::from_utf8(&data).unwrap();
    let json = text.strip_prefix("data: ").and_then(|rest| rest.strip_suffix("\n\n"));
    serde_json::from_str(json.unwrap_or_else(|| panic!("no event: {text:?}"))).unwrap()
}

#[tokio::test(start_paused = true)]
async fn watchers_get_events_and_without_watchers_the_status_is_not_read() {
    let peer = Fake::default();
    let router = router(peer.clone(), None);
    let looked = || peer.looked.load(Ordering::SeqCst);
    assert_eq!(looked(), 0);
    let mut first = watch(&router).await;
    assert_eq!(first.headers()[CONTENT_TYPE], "text/event-stream");
    let event = next_event(&mut first).await;
    assert_eq!(event["status"]["peer"]["name"], "peer-1");
    let recent = event["recent"].as_array().unwrap();
    assert_eq!(recent.len(), 1, "equal decisions are one");
    assert_eq!((&recent[0]["id"], &recent[0]["times"]), (&"request-0".into(), &400.into()));
    let mut second = watch(&router).await;
    next_event(&mut second).await;
    assert_eq!(looked(), 1, "all get the same");
    next_event(&mut first).await;
    next_event(&mut second).await;
    assert_eq!(looked(), 2);
    // A client that does not read gets the newest event once it does, not all that it missed.
    for _ in 0..50 {
        next_event(&mut first).await;
    }
    next_event(&mut second).await;
    let event = tokio::time::timeout(Duration::from_millis(1), next_event(&mut second)).await;
    assert!(event.is_err(), "it got an event of the time before");
    drop((first, second));
    sleep(Duration::from_secs(2)).await;
    let after = looked();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(looked(), after, "it is looked at though nobody watches");
    next_event(&mut watch(&router).await).await;
    assert_eq!(looked(), after + 1, "and again for the next who comes");
}

#[tokio::test]
async fn who_watches_from_everywhere_gives_a_place_up_to_another() {
    let router = router(Fake::default(), None);
    let watches = async |from: &str| {
        let mut asking = request(Method::GET, "/v1/events", &[LOCAL]);
        asking.extensions_mut().insert(Who::client(from.parse().unwrap()));
        router.clone().oneshot(asking).await.unwrap()
    };
    let mut greedy = Vec::new();
    for _ in 0..16 {
        greedy.push(watches("10.0.0.1").await);
    }
    assert_eq!(watches("10.0.0.1").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let mut other = watches("10.0.0.2").await;
    assert_eq!(other.status(), StatusCode::OK);
    next_event(&mut other).await;
    // The oldest ends cleanly; the others continue.
    let mut oldest = greedy.remove(0).into_body();
    while let Some(frame) = oldest.frame().await {
        frame.unwrap();
    }
    for watcher in &mut greedy {
        next_event(watcher).await;
    }
}

#[tokio::test]
async fn a_bounded_number_may_watch_at_once() {
    let peer = Fake::default();
    let router = router(peer.clone(), None);
    let mut watchers = Vec::new();
    for _ in 0..16 {
        let mut watcher = watch(&router).await;
        assert_eq!(watcher.status(), StatusCode::OK);
        next_event(&mut watcher).await;
        watchers.push(watcher);
    }
    assert_eq!(watch(&router).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(peer.refusals.count(AdminRefusal::TooManyWatch), 1);
    watchers.pop();
    assert_eq!(watch(&router).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_page_allows_nothing_but_its_own_parts() {
    let router = router(Fake::default(), None);
    let (_, headers, page) = ask(&router, request(Method::GET, "/", &[LOCAL])).await;
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    for (open, close) in [("<style>", "</style>"), ("<script>", "</script>")] {
        let part = &page[page.find(open).unwrap() + open.len()..page.find(close).unwrap()];
        let digest = ring::digest::digest(&ring::digest::SHA256, part.as_bytes());
        use base64::Engine;
        let digest = base64::engine::general_purpose::STANDARD.encode(digest);
        assert!(policy.contains(&digest), "{open} is not what the policy allows");
    }
    for outside in ["://", "url(", "src=", "@import"] {
        assert!(!page.contains(outside), "it loads something: {outside}");
    }
    for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
        assert!(!page.contains(sink), "{sink}");
    }
}

#[tokio::test]
async fn as_many_of_the_newest_requests_are_listed_as_asked_for() {
    let router = router(Fake::default(), None);
    for (path, expected) in
        [("/v1/requests", 20), ("/v1/requests?limit=3", 3), ("/v1/requests?limit=100000", 200)]
    {
        let (_, listed) = get_json(&router, path).await;
        assert_eq!(listed["requests"].as_array().unwrap().len(), expected, "{path}");
    }
    let (status, _, _) = ask(&router, request(Method::GET, "/v1/requests?limit=x", &[LOCAL])).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn with_a_token_all_but_health_and_the_page_ask_for_it() {
    let peer = Fake::default();
    let router = router(peer.clone(), Some("a-token-of-length"));
    let right = ("authorization", "Bearer a-token-of-length");
    let anywhere = ("host", "peer-1.internal:9001");
    for path in ["/", "/healthz", "/readyz"] {
        let (status, _, _) = ask(&router, request(Method::GET, path, &[anywhere])).await;
        assert_eq!(status, StatusCode::OK, "{path}");
    }
    for (path, method, done) in [
        ("/metrics", Method::GET, 200),
        ("/v1/status", Method::GET, 200),
        ("/v1/requests", Method::GET, 200),
        ("/v1/events", Method::GET, 200),
        ("/v1/apps/shop/stop", Method::POST, 202),
    ] {
        for wrong in [
            None,
            Some("Bearer "),
            Some("Bearer a-token-of-lengt"),
            Some("Bearer a-token-of-length-and-more"),
            Some("Basic a-token-of-length"),
            Some("a-token-of-length"),
            Some("Bea"),
        ] {
            let mut headers = vec![anywhere];
            headers.extend(wrong.map(|value| ("authorization", value)));
            let (status, answer, _) = ask(&router, request(method.clone(), path, &headers)).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{path} {wrong:?}");
            assert!(answer[WWW_AUTHENTICATE].to_str().unwrap().starts_with("Bearer"));
        }
        let asked = request(method, path, &[anywhere, right]);
        let answer = router.clone().oneshot(asked).await.unwrap();
        assert_eq!(answer.status().as_u16(), done, "{path}");
    }
    assert_eq!(peer.asked(), ["stop shop"]);
    let foreign = [anywhere, right, ("origin", "http://evil.example")];
    let (status, _, _) = ask(&router, request(Method::POST, "/v1/drain", &foreign)).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(peer.refusals.count(AdminRefusal::NoToken), 35, "each wrong one is counted");
    assert_eq!(peer.refusals.count(AdminRefusal::ForeignPage), 1);
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_given_up() {
    tokio::time::pause();
    let router = Router::new().route("/", get(pending::<()>)).layer(middleware::from_fn(in_time));
    let (status, _, body) = ask(&router, request(Method::GET, "/", &[])).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("took too long"), "{body}");
}

/// Clients that connect and say nothing make room for those that ask.
#[tokio::test]
async fn health_is_answered_however_many_connections_are_silent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (peer, refusals) = (Fake::default(), Arc::default());
    let server = serve(listener, router(peer, None), Arc::clone(&refusals), || (), pending());
    let server = tokio::spawn(server);
    let mut idle = Vec::new();
    for _ in 0..3 * places::CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET").await.unwrap();
        idle.push(stream);
    }
    for path in ["/healthz", "/readyz", "/v1/status"] {
        let mut late = TcpStream::connect(addr).await.unwrap();
        late.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        late.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    }
    // The first one to connect was closed first.
    let mut rest = Vec::new();
    let _ = idle[0].read_to_end(&mut rest).await;
    let gave_way = refusals.count(AdminRefusal::GaveWay);
    let silent = 2 * places::CONNECTIONS_MAX as u64;
    assert!(gave_way >= silent, "{gave_way} were closed, and each counted");
    // The others are closed when their time is over; time passes only while nothing else can
    // happen.
    tokio::time::pause();
    let _ = idle.pop().unwrap().read_to_end(&mut rest).await;
    server.abort();
}

#[tokio::test]
async fn without_the_token_readiness_is_all_that_a_stranger_learns() {
    let token = "a-token-that-is-long-enough-to-be-one";
    let router = router(Fake::default(), Some(token));
    let verbose = |headers: &[(&str, &str)]| request(Method::GET, "/readyz?verbose", headers);
    let (status, _, body) = ask(&router, verbose(&[LOCAL])).await;
    assert_eq!(
        (status, body.as_str()),
        (StatusCode::OK, "ready\nwith the admin token there is more\n")
    );
    let bearer = format!("Bearer {token}");
    let (_, _, body) = ask(&router, verbose(&[LOCAL, ("authorization", &bearer)])).await;
    assert!(body.contains("seeds: 0 of 1") && body.contains("far.example"), "{body}");
}

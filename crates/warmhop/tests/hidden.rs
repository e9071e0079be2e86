//! What a client is shown of the mesh's inside, and what not where that is not wanted.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bed;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bed::{Answer, Bed, Client, Gate, Plan, eventually};
use http::{Method, Request, StatusCode};
use warmhop::config::{SessionMode, StartMode};
use warmhop::{Body, Mesh};

/// All that an answer says, as one text.
fn all_of(answer: &Answer) -> String {
    let fields: Vec<_> = answer.headers.iter().filter(|(name, _)| *name != "set-cookie").collect();
    format!("{fields:?} {}", answer.text)
}

async fn ask(mesh: &Mesh, method: Method, target: &str, accept: &str) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header("accept", accept)
        .header("x-request-id", "an-id-of-it")
        .body(Body::empty())
        .unwrap();
    Client::default().send(mesh, request).await
}

#[tokio::test]
async fn nothing_names_a_peer_an_app_or_a_request_where_nothing_is_revealed() {
    let (warm, cold) = (Gate::new(true), Gate::new(false));
    let mut bed = Bed::new();
    let plan = Plan { start: StartMode::AtBoot, ..Plan::default() };
    let first = bed.add("first-one", plan, &warm).await;
    eventually("the app is ready on the first", || first.status().apps[0].state == "ready").await;
    let second =
        bed.add_built("second-one", Plan::default(), &cold, |built| built.reveal(false)).await;
    bed.believes(&second, "first-one", "ready").await;

    let hopped = ask(&second, Method::GET, "/fail", "*/*").await;
    assert_eq!((hopped.status, hopped.text.as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "no"));
    assert_eq!(hopped.field("via"), "1.1 gateway");
    let refused = ask(&second, Method::CONNECT, "shop.localhost:80", "*/*").await;
    assert_eq!(refused.status, StatusCode::NOT_IMPLEMENTED);
    let page = ask(&second, Method::CONNECT, "shop.localhost:80", "text/html").await;
    assert!(page.text.contains("That cannot be done here"), "{}", page.text);
    first.shutdown().await;
    eventually("the app is ready nowhere", || !second.status().peers[0].alive).await;
    let request = Request::get("/who")
        .header("accept", "text/html")
        .header("sec-fetch-mode", "navigate")
        .body(Body::empty())
        .unwrap();
    let starting = Client::default().send(&second, request).await;
    assert_eq!(starting.status, StatusCode::SERVICE_UNAVAILABLE);
    for answer in [hopped, refused, page, starting] {
        let text = all_of(&answer);
        for inner in ["first-one", "second-one", "an-id-of-it", "proxy-status", "urn:", "shop is"] {
            assert!(!text.contains(inner), "{inner} in {text}");
        }
    }
}

#[tokio::test]
async fn browsers_get_plain_words_and_programs_problem_details() {
    let cold = Gate::new(false);
    let mut bed = Bed::new();
    let one = bed.add("one", Plan::default(), &cold).await;
    let page = ask(&one, Method::CONNECT, "shop.localhost:80", "text/html").await;
    assert_eq!(page.field("content-type"), "text/html; charset=utf-8");
    assert!(page.field("content-security-policy").starts_with("default-src 'none';"));
    assert!(page.text.contains("CONNECT is for forward proxies"), "{}", page.text);
    assert!(page.text.contains("501 an-id-of-it"), "{}", page.text);
    let refused = ask(&one, Method::CONNECT, "shop.localhost:80", "*/*").await;
    assert_eq!(refused.field("content-type"), "application/problem+json");
    assert!(refused.text.contains("urn:warmhop:no-connect"), "{}", refused.text);

    let own = "<p>{status} {title} {id}</p>";
    let two = bed.add_built("two", Plan::default(), &cold, |built| built.error_page(own)).await;
    let page = ask(&two, Method::CONNECT, "shop.localhost:80", "text/html").await;
    assert_eq!(page.text, "<p>501 That cannot be done here an-id-of-it</p>");
}

#[tokio::test]
async fn a_cookie_names_no_peer_where_nothing_is_revealed_and_brings_its_client_back() {
    for session in [SessionMode::Portable, SessionMode::Pinned] {
        let (warm, cold) = (Gate::new(true), Gate::new(false));
        let mut bed = Bed::new();
        let plan = Plan { start: StartMode::AtBoot, session, ..Plan::default() };
        let first = bed.add_built("first-one", plan, &warm, |built| built.reveal(false)).await;
        eventually("the app is ready on the first", || first.status().apps[0].state == "ready")
            .await;
        let plan = Plan { session, ..Plan::default() };
        let second = bed.add_built("second-one", plan, &cold, |built| built.reveal(false)).await;
        bed.believes(&second, "first-one", "ready").await;

        let mut client = Client::default();
        client.post(&second, "/add", "a").await;
        let cookie = client.cookie.clone().unwrap();
        let status = second.status();
        let (expected, elsewhere) = match session {
            SessionMode::Pinned => (status.peers[0].route.clone(), &second),
            _ => (status.peer.route.clone(), &first),
        };
        assert_eq!(client.route(), expected, "{session:?}: what balancers see");
        assert_eq!(first.status().peer.route, status.peers[0].route, "all peers call it the same");
        let opaque = cookie.split(['=', '.']).nth(1).unwrap();
        let inner = URL_SAFE_NO_PAD.decode(opaque).unwrap();
        // Nor an app.
        for name in ["first-one", "second-one", "shop"] {
            assert!(!cookie.contains(name), "{cookie}");
            assert!(!inner.windows(name.len()).any(|window| window == name.as_bytes()));
        }
        let again = client.post(elsewhere, "/add", "b").await;
        assert_eq!(again.status, StatusCode::OK, "{session:?}");
        if session == SessionMode::Portable {
            assert_eq!(again.text, "a b ");
        }
        cold.open();
        eventually("the copy is ready", || second.status().apps[0].state == "ready").await;
        if session == SessionMode::Pinned {
            client.get(&second, "/who").await;
            assert_eq!(client.route(), expected, "the session stays where it was made");
            assert_eq!(client.get(&second, "/who").await.text, "first-one");
        }
    }
}

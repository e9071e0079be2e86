//! The axum extractors behind real peers: a value that follows its client through a hop, and what a
//! handler gets if the mesh keeps no session.
#![cfg(feature = "axum")]
#![allow(missing_docs, reason = "a test crate")]
#![allow(clippy::unwrap_used, reason = "tests: a failed step is a failed test")]

mod bed;

use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::Router;
use axum::routing::{get, post};
use bed::{Answer, Client, eventually, peer};
use http::StatusCode;
use warmhop::config::{SessionMode, StartMode};
use warmhop::extract::{Session, SessionRejection, SetError};
use warmhop::identity::Authority;
use warmhop::ids::AppName;
use warmhop::{AppSpec, Mesh, SessionError, app_fn};

type Cart = BTreeMap<String, u32>;

async fn add(mut cart: Session<Cart>, item: String) -> Result<String, SetError> {
    cart.update(|cart| {
        *cart.entry(item).or_default() += 1;
        format!("{cart:?}")
    })
}

async fn raw(session: warmhop::Session) -> String {
    String::from_utf8(session.get().unwrap_or_default().to_vec()).unwrap()
}

async fn overwrite(session: warmhop::Session, text: String) -> Result<(), SessionError> {
    session.set(text)
}

async fn perhaps(cart: Option<Session<Cart>>) -> String {
    cart.map_or("no session".into(), |cart| format!("{:?}", cart.get()))
}

async fn caught(cart: Result<Session<Cart>, SessionRejection>) -> &'static str {
    match cart {
        Ok(_) => "a cart",
        Err(SessionRejection::Unreadable(_)) => "begin again",
        Err(_) => "no session",
    }
}

/// Two peers: the app ready on the first, and never started on the second.
async fn two_peers(mode: SessionMode) -> [Mesh; 2] {
    let authority = Authority::generate("test").unwrap();
    let start = async |name: &str, start, seed: Option<&Mesh>| {
        let mut spec = AppSpec::new(AppName::new("shop").unwrap());
        spec.policy.session = mode;
        spec.policy.start = start;
        let app = app_fn(|| async {
            let router = Router::new()
                .route("/add", post(add))
                .route("/raw", get(raw).post(overwrite))
                .route("/perhaps", get(perhaps))
                .route("/caught", get(caught));
            Ok::<_, Infallible>(router)
        });
        let identity = authority.issue(&peer(name)).unwrap();
        let mut builder = Mesh::builder(identity).app(spec, app);
        if let Some(seed) = seed {
            builder = builder.seed(seed.mesh_addr().to_string());
        }
        builder.start().await.unwrap()
    };
    let one = start("one", StartMode::AtBoot, None).await;
    let two = start("two", StartMode::Never, Some(&one)).await;
    eventually("two knows that the app is ready on one", || {
        let peers = two.status().peers;
        peers.iter().any(|p| p.name == "one" && p.apps.get("shop").is_some_and(|s| s == "ready"))
    })
    .await;
    [one, two]
}

fn problem(answer: &Answer) -> String {
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{}", answer.text);
    assert_eq!(answer.field("content-type"), "application/problem+json");
    let problem: serde_json::Value = serde_json::from_str(&answer.text).unwrap();
    format!("{} {}", problem["type"].as_str().unwrap(), problem["detail"].as_str().unwrap())
}

#[tokio::test]
async fn a_value_goes_with_its_client_through_a_hop_and_is_json_to_others() {
    let [one, two] = two_peers(SessionMode::Portable).await;
    let mut client = Client::default();
    assert_eq!(client.get(&two, "/perhaps").await.text, "None");
    assert_eq!(client.post(&two, "/add", "tea").await.text, r#"{"tea": 1}"#);
    assert_eq!(client.post(&one, "/add", "tea").await.text, r#"{"tea": 2}"#);
    assert_eq!(client.get(&two, "/raw").await.text, r#"{"tea":2}"#);
    assert_eq!(client.get(&one, "/caught").await.text, "a cart");

    assert_eq!(client.post(&two, "/raw", "[\"secret\"]").await.status, StatusCode::OK);
    let shown = problem(&client.post(&two, "/add", "tea").await);
    assert!(shown.starts_with("urn:warmhop:session-unreadable "), "{shown}");
    assert!(!shown.contains("secret"), "{shown}");
    assert_eq!(client.get(&two, "/caught").await.text, "begin again");
    assert_eq!(client.get(&two, "/raw").await.text, "[\"secret\"]", "it is left as it was");
}

#[tokio::test]
async fn where_the_mesh_keeps_no_session_a_handler_says_what_to_declare() {
    for mode in [SessionMode::None, SessionMode::Pinned] {
        let [one, two] = two_peers(mode).await;
        for mesh in [&one, &two] {
            let mut client = Client::default();
            for answer in [client.post(mesh, "/add", "tea").await, client.get(mesh, "/raw").await] {
                let shown = problem(&answer);
                assert!(shown.starts_with("urn:warmhop:session-not-portable "), "{shown}");
                assert!(shown.contains("SessionMode::Portable"), "{shown}");
            }
            assert_eq!(client.get(mesh, "/perhaps").await.text, "no session");
            assert_eq!(client.get(mesh, "/caught").await.text, "no session");
        }
    }
}

#[tokio::test]
async fn a_value_that_is_too_large_is_refused_and_not_kept() {
    let [one, _two] = two_peers(SessionMode::Portable).await;
    let mut client = Client::default();
    client.post(&one, "/add", "tea").await;
    let large: &'static str = Box::leak("x".repeat(40_000).into_boxed_str());
    let shown = problem(&client.post(&one, "/add", large).await);
    assert!(shown.starts_with("urn:warmhop:session-too-large "), "{shown}");
    assert_eq!(client.get(&one, "/raw").await.text, r#"{"tea":1}"#);
}

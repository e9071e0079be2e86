//! What becomes of a request that its copy of the app failed on.
#![allow(missing_docs, reason = "a test crate")]
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bed;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bed::{Answer, Bed, Client, Gate, Plan, eventually};
use http::{Request, Response, StatusCode};
use tokio::sync::Notify;
use warmhop::config::{EffectsMode, SessionMode, StartMode};
use warmhop::{App, Body, BoxError, Builder, Ended, Running, StartContext, StartError};

/// Fails on some requests, and ends at some of them.
#[derive(Clone, Default)]
struct Frail {
    starts: Arc<AtomicU32>,
    /// How many requests to `/ends` it has had, in all its copies here.
    asked: Arc<AtomicU32>,
    /// How many requests to other paths it has failed on, or never answered.
    failed: Arc<AtomicU32>,
    /// It changes nothing but its session.
    session_only: bool,
    /// Each of the first so many requests to `/ends` ends the copy that gets it.
    ends: u32,
}

#[async_trait::async_trait]
impl App for Frail {
    async fn start(&self, _: StartContext) -> Result<Running, StartError> {
        self.starts.fetch_add(1, Ordering::SeqCst);
        let over = Arc::new(Notify::new());
        let (frail, end) = (self.clone(), Arc::clone(&over));
        let service = tower::service_fn(move |request: Request<Body>| {
            let (frail, end) = (frail.clone(), Arc::clone(&end));
            async move {
                match request.uri().path() {
                    "/fails" => {
                        frail.failed.fetch_add(1, Ordering::SeqCst);
                        return Err(BoxError::from("out of order"));
                    }
                    "/slow" => {
                        frail.failed.fetch_add(1, Ordering::SeqCst);
                        std::future::pending::<()>().await;
                    }
                    "/ends" if frail.asked.fetch_add(1, Ordering::SeqCst) < frail.ends => {
                        // As of a process: its connections end, and a moment later it has ended.
                        tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            end.notify_one();
                        });
                        return Err(BoxError::from("connection reset"));
                    }
                    _ => {}
                }
                Ok(Response::new(Body::from("well")))
            }
        });
        let exited = async move {
            over.notified().await;
            Ended::new("it crashed")
        };
        Ok(Running::new(service).exits_with(exited))
    }
}

fn with(frail: &Frail, session: SessionMode) -> impl FnOnce(Builder) -> Builder {
    let (frail, mut spec) = (frail.clone(), warmhop::AppSpec::new(bed::app()));
    spec.policy.start = StartMode::AtBoot;
    spec.policy.session = session;
    if frail.session_only {
        spec.policy.effects = EffectsMode::SessionOnly;
    }
    spec.policy.head_timeout = Some(Duration::from_millis(500));
    spec.matches = vec![warmhop::Match::new(Some("frail.test"), "/")];
    spec.name = warmhop::ids::AppName::new("frail").unwrap();
    move |builder| builder.app(spec, frail)
}

/// A mesh of so many peers with the frail app ready on each.
async fn mesh(peers: &[&Frail], session: SessionMode) -> Bed {
    let mut bed = Bed::new();
    for (frail, name) in peers.iter().zip(["one", "two", "three"]) {
        bed.add_built(name, Plan::default(), &Gate::new(true), with(frail, session)).await;
    }
    let state = |mesh: &warmhop::Mesh| {
        let status = mesh.status();
        status.apps.into_iter().find(|app| app.name == "frail").map(|app| app.state)
    };
    eventually("it is ready everywhere", || {
        bed.peers.iter().all(|it| state(it).is_some_and(|state| state == "ready"))
    })
    .await;
    for who in &bed.peers {
        eventually("it is believed ready everywhere", || {
            let peers = who.status().peers;
            peers.iter().all(|it| it.apps.get("frail").is_some_and(|state| state == "ready"))
        })
        .await;
    }
    bed
}

async fn ask(bed: &Bed, method: &str, path: &str) -> Answer {
    ask_with(bed, method, path, None).await
}

async fn ask_with(bed: &Bed, method: &str, path: &str, key: Option<&str>) -> Answer {
    let mut request = Request::builder().method(method).uri(format!("http://frail.test{path}"));
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let request = request.body(Body::empty()).unwrap();
    Client::default().send(&bed.peers[0], request).await
}

#[tokio::test]
async fn a_safe_request_whose_copy_ended_is_given_to_the_next_one_and_no_other() {
    for session in [SessionMode::None, SessionMode::Portable] {
        let frail = Frail { ends: 1, ..Frail::default() };
        let bed = mesh(&[&frail], session).await;
        assert_eq!(ask(&bed, "GET", "/ends").await.status, StatusCode::OK, "{session:?}");
        assert_eq!(frail.starts.load(Ordering::SeqCst), 2);

        let frail = Frail { ends: 1, ..Frail::default() };
        let bed = mesh(&[&frail], session).await;
        assert_eq!(ask(&bed, "POST", "/ends").await.status, StatusCode::BAD_GATEWAY);
        assert_eq!(frail.asked.load(Ordering::SeqCst), 1, "it may have been carried out");

        let frail = Frail { ends: u32::MAX, ..Frail::default() };
        let bed = mesh(&[&frail], session).await;
        assert_eq!(ask(&bed, "GET", "/ends").await.status, StatusCode::BAD_GATEWAY);
        assert_eq!(frail.asked.load(Ordering::SeqCst), 2, "who ends every copy ends two");
    }
}

#[tokio::test]
async fn a_safe_request_that_failed_goes_to_another_ready_copy_and_waits_for_none() {
    for session in [SessionMode::None, SessionMode::Portable] {
        let (frail, sound) = (Frail { ends: 1, ..Frail::default() }, Frail::default());
        let bed = mesh(&[&frail, &sound], session).await;
        let answer = ask(&bed, "GET", "/ends").await;
        assert_eq!((answer.status, answer.field("warmhop-peer")), (StatusCode::OK, "two"));

        let frail = Frail::default();
        let bed = mesh(&[&frail], session).await;
        assert_eq!(ask(&bed, "GET", "/fails").await.status, StatusCode::BAD_GATEWAY);
        assert_eq!(frail.starts.load(Ordering::SeqCst), 1, "it lives");
    }
}

#[tokio::test]
async fn a_safe_request_that_no_copy_can_answer_reaches_two_of_them_once_each() {
    let expected = [("/fails", StatusCode::BAD_GATEWAY), ("/slow", StatusCode::GATEWAY_TIMEOUT)];
    for session in [SessionMode::None, SessionMode::Portable] {
        for (path, status) in expected {
            let all = [Frail::default(), Frail::default(), Frail::default()];
            for peers in [&all.each_ref()[..], &all.each_ref()[..2]] {
                all.iter().for_each(|it| it.failed.store(0, Ordering::SeqCst));
                let bed = mesh(peers, session).await;
                assert_eq!(ask(&bed, "GET", path).await.status, status, "{session:?} {path}");
                let mut reached =
                    peers.iter().map(|it| it.failed.load(Ordering::SeqCst)).collect::<Vec<_>>();
                reached.sort_unstable();
                let two = [0, 1, 1];
                assert_eq!(reached, two[3 - peers.len()..], "{session:?} {path}");
            }
        }
    }
}

#[tokio::test]
async fn a_change_that_is_void_without_an_answer_is_given_to_the_next_copy_as_well() {
    for (session_only, key) in [(true, None), (true, Some("\"a\"")), (false, Some("\"a\""))] {
        let case = format!("{session_only} {key:?}");
        let frail = Frail { ends: 1, session_only, ..Frail::default() };
        let bed = mesh(&[&frail], SessionMode::Portable).await;
        let answer = ask_with(&bed, "POST", "/ends", key).await;
        assert_eq!(answer.status, StatusCode::OK, "{case}: {}", answer.text);
        assert_eq!(frail.asked.load(Ordering::SeqCst), 2, "{case}");

        let frail = Frail { ends: u32::MAX, session_only, ..Frail::default() };
        let bed = mesh(&[&frail], SessionMode::Portable).await;
        let answer = ask_with(&bed, "POST", "/ends", key).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{case}");
        assert_eq!(frail.asked.load(Ordering::SeqCst), 2, "{case}: who ends every copy ends two");

        // Nothing of it is void where the session is not the mesh's.
        let frail = Frail { ends: 1, session_only, ..Frail::default() };
        let bed = mesh(&[&frail], SessionMode::None).await;
        assert_eq!(ask_with(&bed, "POST", "/ends", key).await.status, StatusCode::BAD_GATEWAY);
        assert_eq!(frail.asked.load(Ordering::SeqCst), 1, "{case}");
    }
}

//! When copies start: if others are busy, and not for a request that only asks whether any run.
#![allow(missing_docs, reason = "a test crate")]
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bed;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bed::{Bed, Client, Gate, Plan, eventually};
use http::{Request, Response, StatusCode};
use tokio::sync::Semaphore;
use warmhop::config::{AppPolicy, ScalePolicy, WakePolicy};
use warmhop::{AppSpec, Body, BoxError, Builder, Mesh, app_fn};

/// An app that answers `/held` once it is let, and all else at once.
#[derive(Clone)]
struct Shop {
    starts: Arc<AtomicU32>,
    let_go: Arc<Semaphore>,
}

impl Shop {
    fn new() -> Self {
        Self { starts: Arc::default(), let_go: Arc::new(Semaphore::new(0)) }
    }

    fn built(&self, policy: AppPolicy) -> impl FnOnce(Builder) -> Builder {
        let shop = self.clone();
        let mut spec = AppSpec::new("books".parse().unwrap());
        spec.matches = vec![warmhop::Match::new(Some("books.test"), "/")];
        spec.policy = policy;
        let make = move || {
            let shop = shop.clone();
            async move {
                shop.starts.fetch_add(1, Ordering::SeqCst);
                Ok::<_, BoxError>(tower::service_fn(move |request: Request<Body>| {
                    let shop = shop.clone();
                    async move {
                        if request.uri().path() == "/held" {
                            shop.let_go.acquire().await.unwrap().forget();
                        }
                        Ok::<_, BoxError>(Response::new(Body::from("books")))
                    }
                }))
            }
        };
        |builder| builder.app(spec, app_fn(make))
    }
}

fn get(path: &str) -> http::request::Builder {
    Request::get(format!("http://books.test{path}"))
}

async fn status_of(mesh: &Mesh, request: http::request::Builder) -> StatusCode {
    Client::default().send(mesh, request.body(Body::empty()).unwrap()).await.status
}

fn is_ready(mesh: &Mesh) -> bool {
    mesh.status().apps.iter().any(|app| app.name == "books" && app.state == "ready")
}

#[tokio::test]
async fn where_the_ready_copies_are_busy_for_a_while_one_more_peer_starts_its_own() {
    let shop = Shop::new();
    let mut bed = Bed::new();
    let scale = Some(ScalePolicy::default().with(|made| made.max = 2));
    let policy = AppPolicy::default().with(|made| {
        made.concurrency = Some(1);
        made.scale = scale;
    });
    for name in ["one", "two", "three"] {
        let built = shop.built(policy.clone());
        bed.add_built(name, Plan::default(), &Gate::new(true), built).await;
    }
    let one = bed.peers[0].clone();
    assert_eq!(status_of(&one, get("/")).await, StatusCode::OK);
    assert_eq!(shop.starts.load(Ordering::SeqCst), 1);
    let held = tokio::spawn(async move { status_of(&one, get("/held")).await });
    eventually("one of the others has started its own", || {
        bed.peers[1..].iter().filter(|mesh| is_ready(mesh)).count() == 1
    })
    .await;
    assert_eq!(shop.starts.load(Ordering::SeqCst), 2, "no more than it takes");
    eventually("the first peer sends it what comes", || {
        bed.peers[0]
            .status()
            .peers
            .iter()
            .any(|it| it.apps.get("books").is_some_and(|s| s == "ready"))
    })
    .await;
    assert_eq!(status_of(&bed.peers[0], get("/")).await, StatusCode::OK);
    shop.let_go.add_permits(1);
    assert_eq!(held.await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn a_probe_starts_no_copy_and_is_answered_by_one_that_is_ready() {
    let shop = Shop::new();
    let mut bed = Bed::new();
    let wake = WakePolicy::default().with(|made| {
        made.not_user_agent = vec!["kube-probe".into()];
        made.not_path = vec!["/healthz".into()];
    });
    let built = shop.built(AppPolicy::default().with(|made| made.wake = wake));
    let mesh = bed.add_built("one", Plan::default(), &Gate::new(true), built).await;
    let probes = || [get("/").header("user-agent", "Kube-Probe/1.30"), get("/healthz?deep=1")];
    for probe in probes() {
        assert_eq!(status_of(&mesh, probe).await, StatusCode::SERVICE_UNAVAILABLE);
    }
    let page = get("/healthz").header("accept", "text/html").header("sec-fetch-mode", "navigate");
    assert_eq!(status_of(&mesh, page).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(shop.starts.load(Ordering::SeqCst), 0);
    assert_eq!(status_of(&mesh, get("/")).await, StatusCode::OK);
    for probe in probes() {
        assert_eq!(status_of(&mesh, probe).await, StatusCode::OK);
    }
    assert_eq!(shop.starts.load(Ordering::SeqCst), 1);
}

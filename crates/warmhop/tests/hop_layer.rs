//! A service that starts by itself and has an HTTP server of its own, with the mesh as a layer.
#![allow(missing_docs, reason = "a test crate")]
#![allow(clippy::unwrap_used, reason = "tests: a failed step is a failed test")]

mod bed;

use std::convert::Infallible;
use std::future::Ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::Extension;
use axum::routing::get;
use bed::{PATIENCE, eventually, peer};
use futures_util::task::AtomicWaker;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::{Layer, Service, ServiceExt};
use warmhop::config::SessionMode;
use warmhop::identity::Authority;
use warmhop::ids::AppName;
use warmhop::{AppSpec, Body, HopLayer, HopService, Mesh, Readiness, Session};

fn app() -> AppName {
    AppName::new("search").unwrap()
}

fn layer() -> HopLayer {
    HopLayer::new(AppSpec::new(app()))
}

/// A mark of the server's own, which only a request that came untouched has.
#[derive(Clone)]
struct Mark;

/// The service: answers who it is and what it sees.
fn service(name: &'static str) -> Router {
    let seen = async move |mark: Option<Extension<Mark>>, headers: HeaderMap| {
        let forwarded = headers.contains_key("forwarded");
        format!("{name} mark={} forwarded={forwarded}", mark.is_some())
    };
    let hang = async || {
        axum::body::Body::new(http_body_util::StreamBody::new(futures_util::stream::pending::<
            Result<_, Infallible>,
        >()))
    };
    Router::new().route("/", get(seen)).route("/hang", get(hang))
}

/// Peers around layers, each of which knows all before it.
struct Layered {
    authority: Authority,
    peers: Vec<Mesh>,
}

impl Layered {
    fn new() -> Self {
        Self { authority: Authority::generate("test").unwrap(), peers: Vec::new() }
    }

    async fn join(&mut self, name: &str, layer: &HopLayer) -> Mesh {
        let identity = self.authority.issue(&peer(name)).unwrap();
        let mut builder = Mesh::builder(identity).hop_layer(layer);
        for other in &self.peers {
            builder = builder.seed(other.mesh_addr().to_string());
        }
        let mesh = builder.start().await.unwrap();
        self.peers.push(mesh.clone());
        mesh
    }
}

fn state(mesh: &Mesh) -> String {
    mesh.status().apps[0].state.to_string()
}

fn believes(mesh: &Mesh, on: &str, state: &str) -> bool {
    let peers = mesh.status().peers;
    peers.iter().any(|p| p.name == on && p.apps.get("search").is_some_and(|is| is == state))
}

async fn ask<S, B>(service: &HopService<S>, path: &str) -> Response<Body>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync,
    S: 'static,
    S::Future: Send,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<warmhop::BoxError>,
{
    let request = Request::get(path).header("host", "search.test").extension(Mark);
    let answering = service.clone().oneshot(request.body(Body::empty()).unwrap());
    tokio::time::timeout(PATIENCE, answering).await.expect("an answer in time").unwrap()
}

async fn text(response: Response<Body>) -> String {
    assert_eq!(response.status(), StatusCode::OK);
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn requests_hop_until_the_service_is_ready_and_then_reach_it_untouched() {
    let mut mesh = Layered::new();
    let readiness = Readiness::new();
    let (warm, cold) = (layer(), layer().readiness(&readiness));
    let _one = warm.layer(service("one"));
    let two = cold.layer(service("two"));
    let first = mesh.join("one", &warm).await;
    let second = mesh.join("two", &cold).await;
    eventually("ready on one", || state(&first) == "ready").await;
    eventually("known on two", || believes(&second, "one", "ready")).await;
    assert_eq!(state(&second), "starting");

    let response = ask(&two, "/").await;
    assert_eq!(response.headers()["warmhop-peer"], "one");
    assert_eq!(text(response).await, "one mark=false forwarded=true");

    readiness.set(true);
    eventually("ready on two", || state(&second) == "ready").await;
    let response = ask(&two, "/").await;
    assert!(response.headers().keys().all(|name| !name.as_str().starts_with("warmhop")));
    assert_eq!(text(response).await, "two mark=true forwarded=false");
}

#[tokio::test]
async fn a_service_that_takes_its_readiness_back_hops_again_and_is_asked_by_nobody() {
    let mut mesh = Layered::new();
    let signals = [Readiness::new(), Readiness::new()];
    let layers = signals.each_ref().map(|signal| layer().readiness(signal));
    let one = layers[0].layer(service("one"));
    let two = layers[1].layer(service("two"));
    let first = mesh.join("one", &layers[0]).await;
    let second = mesh.join("two", &layers[1]).await;
    signals[0].set(true);
    signals[1].set(true);
    eventually("both are ready", || {
        believes(&first, "two", "ready") && believes(&second, "one", "ready")
    })
    .await;
    for _ in 0..3 {
        signals[1].set(false);
        eventually("two is not ready", || state(&second) == "starting").await;
        assert!(text(ask(&two, "/").await).await.starts_with("one"));
        eventually("one knows", || !believes(&first, "two", "ready")).await;

        signals[1].set(true);
        eventually("two is ready again", || state(&second) == "ready").await;
        eventually("one knows", || believes(&first, "two", "ready")).await;
        signals[0].set(false);
        eventually("one is not ready", || state(&first) == "starting").await;
        assert!(text(ask(&one, "/").await).await.starts_with("two"));
        signals[0].set(true);
        eventually("one is ready again", || state(&first) == "ready").await;
        eventually("two knows", || believes(&second, "one", "ready")).await;
    }
}

#[tokio::test]
async fn a_future_decides_by_its_result_and_its_error_is_reported() {
    let mut mesh = Layered::new();
    let (done, wait) = tokio::sync::oneshot::channel::<()>();
    let good = layer().ready_when(wait);
    let bad = layer().ready_when(async { Err::<(), _>("the index is broken") });
    let _one = good.layer(service("one"));
    let two = bad.layer(service("two"));
    let first = mesh.join("one", &good).await;
    let second = mesh.join("two", &bad).await;
    eventually("two failed", || state(&second) == "failed").await;
    assert_eq!(second.status().apps[0].error.as_deref(), Some("the index is broken"));
    assert_eq!(state(&first), "starting");
    done.send(()).unwrap();
    eventually("known on two", || believes(&second, "one", "ready")).await;
    assert!(text(ask(&two, "/").await).await.starts_with("one"));
}

/// Ready once the test says so; every clone that was polled ready holds a reservation until it is
/// called or dropped, as a limit on concurrency does.
struct Reserving {
    open: Arc<(AtomicBool, AtomicWaker)>,
    reserved: Arc<AtomicUsize>,
    has_one: bool,
}

impl Clone for Reserving {
    fn clone(&self) -> Self {
        let (open, reserved) = (Arc::clone(&self.open), Arc::clone(&self.reserved));
        Self { open, reserved, has_one: false }
    }
}

impl Drop for Reserving {
    fn drop(&mut self) {
        self.reserved.fetch_sub(usize::from(self.has_one), Ordering::SeqCst);
    }
}

impl Service<Request<Body>> for Reserving {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.open.1.register(cx.waker());
        if !self.open.0.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        self.reserved.fetch_add(usize::from(!self.has_one), Ordering::SeqCst);
        self.has_one = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        assert!(self.has_one, "called without having been polled ready");
        std::future::ready(Ok(Response::new(Body::from("itself"))))
    }
}

#[tokio::test]
async fn the_inner_services_own_readiness_counts_and_nothing_of_it_is_kept_reserved() {
    let mut mesh = Layered::new();
    let (warm, cold) = (layer(), layer());
    let _one = warm.layer(service("one"));
    let inner = Reserving { open: Arc::default(), reserved: Arc::default(), has_one: false };
    let (open, reserved) = (Arc::clone(&inner.open), Arc::clone(&inner.reserved));
    let two = cold.layer(inner);
    mesh.join("one", &warm).await;
    let second = mesh.join("two", &cold).await;
    eventually("known on two", || believes(&second, "one", "ready")).await;
    assert!(text(ask(&two, "/").await).await.starts_with("one"));
    open.0.store(true, Ordering::SeqCst);
    open.1.wake();
    eventually("ready on two", || state(&second) == "ready").await;
    assert_eq!(text(ask(&two, "/").await).await, "itself");
    eventually("nothing is reserved", || reserved.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn requests_that_the_service_answers_by_itself_count_as_load() {
    let mut mesh = Layered::new();
    let layer = layer();
    let one = layer.layer(service("one"));
    let first = mesh.join("one", &layer).await;
    eventually("ready", || state(&first) == "ready").await;
    let hanging = ask(&one, "/hang").await;
    assert_eq!(first.status().apps[0].in_flight, 1);
    drop(hanging);
    assert_eq!(first.status().apps[0].in_flight, 0);
}

#[tokio::test]
async fn without_a_running_peer_the_service_answers_by_itself() {
    let mut mesh = Layered::new();
    let readiness = Readiness::new();
    let layer = layer().readiness(&readiness);
    let one = layer.layer(service("one"));
    assert!(text(ask(&one, "/").await).await.starts_with("one"), "before the peer starts");
    readiness.set(true);
    let first = mesh.join("one", &layer).await;
    eventually("ready", || state(&first) == "ready").await;
    // While the peer leaves and once it has left, clients of the service's own server are served.
    let leaving = tokio::spawn({
        let first = first.clone();
        async move { first.shutdown().await }
    });
    while !leaving.is_finished() {
        assert_eq!(text(ask(&one, "/").await).await, "one mark=true forwarded=false");
        tokio::task::yield_now().await;
    }
    leaving.await.unwrap();
    drop((first, mesh));
    assert_eq!(text(ask(&one, "/").await).await, "one mark=true forwarded=false");
}

#[tokio::test]
async fn with_a_portable_session_the_mesh_stays_around_the_service() {
    let count = async |Extension(session): Extension<Session>| {
        let visits = session.get().map_or(0, |bytes| bytes[0]) + 1;
        session.set(vec![visits]).unwrap();
        visits.to_string()
    };
    let mut spec = AppSpec::new(app());
    spec.policy.session = SessionMode::Portable;
    let layer = HopLayer::new(spec);
    let one = layer.layer(Router::new().route("/", get(count)));
    let first = Layered::new().join("one", &layer).await;
    eventually("ready", || state(&first) == "ready").await;
    let response = ask(&one, "/").await;
    let cookie =
        response.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    assert_eq!(text(response).await, "1");
    let request = Request::get("/").header("host", "search.test").header("cookie", cookie);
    let response = one.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(text(response).await, "2");
}

#[test]
#[should_panic(expected = "wraps one whole service")]
fn wrapping_each_route_is_refused_at_once() {
    let _ = service("one").layer(layer());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_readiness_that_is_taken_back_at_once_leaves_nothing_ready() {
    let readiness = Readiness::new();
    let layer = layer().readiness(&readiness);
    let _service = layer.layer(service("one"));
    let mut layered = Layered::new();
    let one = layered.join("one", &layer).await;
    for _ in 0..200 {
        readiness.set(true);
        tokio::task::yield_now().await;
        readiness.set(false);
        // Its start may still be on its way to ready.
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        eventually("it is not ready", || one.status().apps[0].state == "starting").await;
    }
}

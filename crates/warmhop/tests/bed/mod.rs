//! Several peers of one mesh in one process, over real QUIC on loopback.
#![allow(clippy::unwrap_used, reason = "a test bed: a failed step is a failed test")]
#![allow(dead_code, reason = "each test file uses its own part of this bed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::routing::{get, post};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::watch;
use tower::ServiceExt;
use warmhop::config::{SessionMode, SessionPolicy, StartMode};
use warmhop::identity::Authority;
use warmhop::ids::{AppName, PeerId};
use warmhop::{AppSpec, Body, Builder, Mesh, Session, app_fn};

/// No wait of a test takes longer; only a failing one takes as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// When copies of the test app may become ready, and how many were started.
#[derive(Clone)]
pub(crate) struct Gate {
    open: watch::Sender<bool>,
    pub(crate) starts: Arc<AtomicU32>,
    pub(crate) requests: Arc<AtomicU32>,
}

impl Gate {
    pub(crate) fn new(open: bool) -> Self {
        Self { open: watch::Sender::new(open), starts: Arc::default(), requests: Arc::default() }
    }

    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }

    pub(crate) fn starts(&self) -> u32 {
        self.starts.load(Ordering::SeqCst)
    }
}

pub(crate) fn peer(name: &str) -> PeerId {
    PeerId::new(name).unwrap()
}

pub(crate) fn app() -> AppName {
    AppName::new("shop").unwrap()
}

/// The test app: a counter and a list in the session, an echo, and its peer's name.
fn routes(name: String, requests: Arc<AtomicU32>) -> Router {
    let counted = move |session: Option<Session>| {
        requests.fetch_add(1, Ordering::SeqCst);
        session
    };
    let list = {
        let counted = counted.clone();
        move |session: Option<Extension<Session>>| {
            let counted = counted.clone();
            async move {
                match counted(session.map(|s| s.0)) {
                    Some(session) => {
                        String::from_utf8(session.get().unwrap_or_default().to_vec()).unwrap()
                    }
                    None => "no session".to_owned(),
                }
            }
        }
    };
    let add = {
        let counted = counted.clone();
        move |session: Option<Extension<Session>>, item: String| {
            let counted = counted.clone();
            async move {
                let Some(session) = counted(session.map(|s| s.0)) else {
                    return "no session".to_owned();
                };
                let mut list =
                    String::from_utf8(session.get().unwrap_or_default().to_vec()).unwrap();
                list.push_str(&item);
                list.push(' ');
                session.set(list.clone()).unwrap();
                list
            }
        }
    };
    Router::new()
        .route("/", get(list))
        .route("/add", post(add))
        .route(
            "/login",
            post(|Extension(session): Extension<Session>| async move {
                session.renew().unwrap();
                String::from_utf8(session.get().unwrap_or_default().to_vec()).unwrap()
            }),
        )
        .route(
            "/logout",
            post(|Extension(session): Extension<Session>| async move {
                session.clear().unwrap();
                "bye"
            }),
        )
        .route("/who", get(move || async move { name }))
        .route("/echo", post(|body: axum::body::Body| async move { body }))
        .route("/headers", get(|headers: HeaderMap| async move { format!("{headers:?}") }))
        .route("/fail", get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "no") }))
}

pub(crate) struct Bed {
    pub(crate) authority: Authority,
    pub(crate) peers: Vec<Mesh>,
}

pub(crate) struct Plan {
    pub(crate) session: SessionMode,
    pub(crate) start: StartMode,
    pub(crate) keep_ready: u32,
    pub(crate) max_wait: Duration,
    pub(crate) starting_page: bool,
    pub(crate) policy: SessionPolicy,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            session: SessionMode::None,
            start: StartMode::OnRequest,
            keep_ready: 0,
            max_wait: PATIENCE,
            starting_page: true,
            policy: SessionPolicy::default(),
        }
    }
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self { authority: Authority::generate("test").unwrap(), peers: Vec::new() }
    }

    /// Adds a peer that knows the first one, and waits until all see it.
    pub(crate) async fn add(&mut self, name: &str, plan: Plan, gate: &Gate) -> Mesh {
        self.add_built(name, plan, gate, |builder| builder).await
    }

    /// As [`Bed::add`], of a peer on which the app starts at boot; waits until the app is ready there.
    pub(crate) async fn add_ready(&mut self, name: &str, plan: Plan, gate: &Gate) -> Mesh {
        let mesh = self.add(name, Plan { start: StartMode::AtBoot, ..plan }, gate).await;
        eventually("the app is ready", || mesh.status().apps[0].state == "ready").await;
        mesh
    }

    /// As [`Bed::add`], of a peer that is `built` otherwise than the rest.
    pub(crate) async fn add_built(
        &mut self,
        name: &str,
        plan: Plan,
        gate: &Gate,
        built: impl FnOnce(Builder) -> Builder,
    ) -> Mesh {
        let seeds: Vec<String> =
            self.peers.first().iter().map(|first| first.mesh_addr().to_string()).collect();
        let mesh = start_built(&self.authority, name, &seeds, plan, gate, built).await;
        self.peers.push(mesh.clone());
        self.all_see_each_other().await;
        mesh
    }

    pub(crate) async fn all_see_each_other(&self) {
        eventually("every peer sees every other", || {
            self.peers.iter().all(|mesh| {
                let status = mesh.status();
                self.peers.iter().all(|other| {
                    let name = other.status().peer.name;
                    name == status.peer.name
                        || status
                            .peers
                            .iter()
                            .any(|p| p.name == name && p.alive && p.rtt_us.is_some())
                })
            })
        })
        .await;
    }

    /// Waits until `who` believes that the app is in `state` on `on`.
    pub(crate) async fn believes(&self, who: &Mesh, on: &str, state: &str) {
        eventually(&format!("the app is believed {state} on {on}"), || {
            who.status()
                .peers
                .iter()
                .any(|p| p.name == on && p.apps.get("shop").is_some_and(|s| s == state))
        })
        .await;
    }
}

pub(crate) async fn start(
    authority: &Authority,
    name: &str,
    seeds: &[String],
    plan: Plan,
    gate: &Gate,
) -> Mesh {
    start_built(authority, name, seeds, plan, gate, |builder| builder).await
}

async fn start_built(
    authority: &Authority,
    name: &str,
    seeds: &[String],
    plan: Plan,
    gate: &Gate,
    built: impl FnOnce(Builder) -> Builder,
) -> Mesh {
    let identity = authority.issue(&peer(name)).unwrap();
    let mut spec = AppSpec::new(app());
    spec.policy.session = plan.session;
    spec.policy.start = plan.start;
    spec.policy.keep_ready = plan.keep_ready;
    spec.policy.max_wait = plan.max_wait;
    spec.policy.starting_page = plan.starting_page;
    let (gate, host) = (gate.clone(), name.to_owned());
    let make = move || {
        let (gate, host) = (gate.clone(), host.clone());
        async move {
            gate.starts.fetch_add(1, Ordering::SeqCst);
            gate.open.subscribe().wait_for(|open| *open).await.unwrap();
            Ok::<_, std::convert::Infallible>(routes(host, gate.requests.clone()))
        }
    };
    let mut builder = Mesh::builder(identity).sessions(plan.policy).app(spec, app_fn(make));
    for seed in seeds {
        builder = builder.seed(seed);
    }
    built(builder).start().await.unwrap()
}

/// A client with a cookie, who may ask any peer.
#[derive(Default, Clone)]
pub(crate) struct Client {
    pub(crate) cookie: Option<String>,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or("")
    }
}

impl Client {
    pub(crate) async fn get(&mut self, mesh: &Mesh, path: &str) -> Answer {
        self.send(mesh, Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&mut self, mesh: &Mesh, path: &str, body: impl Into<Body>) -> Answer {
        self.send(mesh, Request::post(path).body(body.into()).unwrap()).await
    }

    pub(crate) async fn post_keyed(
        &mut self,
        mesh: &Mesh,
        path: &str,
        key: &str,
        body: &'static str,
    ) -> Answer {
        let request =
            Request::post(path).header("idempotency-key", key).body(Body::from(body)).unwrap();
        self.send(mesh, request).await
    }

    pub(crate) async fn send(&mut self, mesh: &Mesh, mut request: Request<Body>) -> Answer {
        request.headers_mut().insert("host", "shop.test".parse().unwrap());
        if let Some(cookie) = &self.cookie {
            request.headers_mut().insert("cookie", format!("warmhop={cookie}").parse().unwrap());
        }
        let answering = mesh.service().oneshot(request);
        let response: Response<Body> =
            tokio::time::timeout(PATIENCE, answering).await.expect("an answer in time").unwrap();
        for set in response.headers().get_all("set-cookie") {
            let set = set.to_str().unwrap();
            if let Some(rest) = set.strip_prefix("warmhop=") {
                self.cookie = Some(rest.split(';').next().unwrap().to_owned());
            }
        }
        let (parts, body) = response.into_parts();
        let bytes = tokio::time::timeout(PATIENCE, body.collect())
            .await
            .expect("a body in time")
            .expect("a whole body")
            .to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    pub(crate) fn route(&self) -> &str {
        self.cookie
            .as_deref()
            .and_then(|cookie| cookie.rsplit_once('.'))
            .map_or("", |(_, route)| route)
    }
}

/// The outcome of `waiting`, which may include a peer's own waits of up to half a minute.
pub(crate) async fn in_time<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    let outcome = tokio::time::timeout(3 * PATIENCE, waiting).await;
    outcome.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// Waits for a condition that is observable from outside.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("never happened: {what}"));
}

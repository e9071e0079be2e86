//! The admin listener: health, metrics, the dashboard, and the routes behind the commands.
//!
//! It acts on one peer, so it is guarded by where it listens and by who may ask. On loopback
//! without a token, any process of this machine may, and what has to be kept out is a web
//! page in a browser here: a page of another origin may not post, and a name that was
//! rebound to 127.0.0.1 is no name of ours. With a token everything but health and the
//! dashboard's empty page asks for it.
//!
//! Connections, their time without a request, and each answer's time are bounded; `places.rs` says
//! who gives way.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, RawQuery, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN, VARY,
    WWW_AUTHENTICATE,
};
use http::uri::Authority;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::time::timeout;
use tracing::info;
use warmhop::Mesh;
use warmhop::error::ControlError;
use warmhop::ids::{AppName, SessionKey};
use warmhop::status::{History, RequestTrace, SessionStatus, Status};

use crate::child::usage;
use crate::dashboard::{self, Feed};
use crate::{process, redis};
pub use places::serve;

pub mod life;
pub mod operate;
mod places;

/// How long an answer may take to begin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How many of the newest requests are told unless more are asked for, and at most.
const RECENT_DEFAULT: usize = 20;
const RECENT_MAX: usize = 200;

/// What the admin listener needs of a peer: the public interface of [`Mesh`].
pub trait Peer: Clone + Send + Sync + 'static {
    /// [`Mesh::status`].
    fn status(&self) -> Status;
    /// [`Mesh::why`].
    fn why(&self, request_id: &str) -> Option<RequestTrace>;
    /// [`Mesh::recent`].
    fn recent(&self, count: usize) -> Vec<RequestTrace>;
    /// [`Mesh::history`].
    fn history(&self) -> History;
    /// [`Mesh::session`].
    fn session(&self, key: &SessionKey) -> Option<SessionStatus>;
    /// [`Mesh::start_app`].
    ///
    /// # Errors
    /// As there.
    fn start_app(&self, name: &AppName) -> Result<(), ControlError>;
    /// [`Mesh::stop_app`].
    ///
    /// # Errors
    /// As there.
    fn stop_app(&self, name: &AppName) -> Result<(), ControlError>;
    /// [`Mesh::takes_traffic`].
    fn takes_traffic(&self) -> bool;
    /// [`Mesh::metrics`].
    fn metrics(&self) -> String;
    /// [`Mesh::drain`].
    fn drain(&self) -> impl Future<Output = ()> + Send;
    /// [`Mesh::undrain`].
    ///
    /// # Errors
    /// As there.
    fn undrain(&self) -> impl Future<Output = Result<(), ControlError>> + Send;
}

impl Peer for Mesh {
    fn status(&self) -> Status {
        Self::status(self)
    }

    fn why(&self, request_id: &str) -> Option<RequestTrace> {
        Self::why(self, request_id)
    }

    fn recent(&self, count: usize) -> Vec<RequestTrace> {
        Self::recent(self, count)
    }

    fn history(&self) -> History {
        Self::history(self)
    }

    fn session(&self, key: &SessionKey) -> Option<SessionStatus> {
        Self::session(self, key)
    }

    fn start_app(&self, name: &AppName) -> Result<(), ControlError> {
        Self::start_app(self, name)
    }

    fn stop_app(&self, name: &AppName) -> Result<(), ControlError> {
        Self::stop_app(self, name)
    }

    fn takes_traffic(&self) -> bool {
        Self::takes_traffic(self)
    }

    fn metrics(&self) -> String {
        Self::metrics(self)
    }

    async fn drain(&self) {
        Self::drain(self).await;
    }

    async fn undrain(&self) -> Result<(), ControlError> {
        Self::undrain(self).await
    }
}

/// What may be read of a peer, without acting on it.
fn readable<P: Peer>() -> Router<P> {
    Router::new()
        .route("/metrics", get(metrics::<P>))
        .route("/v1/status", get(|State(peer): State<P>| async move { Json(peer.status()) }))
        .route("/v1/history", get(|State(peer): State<P>| async move { Json(peer.history()) }))
        .route("/v1/requests", get(recent::<P>))
        .route("/v1/requests/{*id}", get(why::<P>))
        .route("/v1/sessions/{*key}", get(session::<P>))
}

/// What who asks has to show, while it holds.
#[derive(Clone, Default)]
pub struct Token(Arc<RwLock<Option<Arc<str>>>>);

impl Token {
    /// `None`: nothing, on loopback.
    #[must_use]
    pub fn new(token: Option<&str>) -> Self {
        Self(Arc::new(RwLock::new(token.map(Arc::from))))
    }

    /// From here on it is another one.
    pub fn set(&self, token: Option<&str>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = token.map(Arc::from);
    }

    fn get(&self) -> Option<Arc<str>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The routes and `more` of them, guarded by `token` or, without one, for loopback alone.
pub fn router<P: Peer>(peer: P, token: Option<&str>, more: Router) -> Router {
    guarded(peer, Token::new(token), more)
}

/// As [`router`], where the token may change.
pub fn guarded<P: Peer>(peer: P, token: Token, more: Router) -> Router {
    let guard = Guard { token };
    let feed = Feed::new();
    let watch = move |State(peer): State<P>| async move {
        feed.watch(&peer).unwrap_or_else(|| {
            problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many watch this peer already; close some dashboards",
            )
        })
    };
    Router::new()
        .route("/", get(|| async { dashboard::page() }))
        .route("/v1/events", get(watch))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready::<P>))
        .merge(readable())
        .route("/v1/apps/{name}/start", post(start_app::<P>))
        .route("/v1/apps/{name}/stop", post(stop_app::<P>))
        .route("/v1/drain", post(drain::<P>))
        .route("/v1/undrain", post(undrain::<P>))
        .fallback(|| async {
            problem(StatusCode::NOT_FOUND, "there is nothing here; see GET /v1/status")
        })
        .method_not_allowed_fallback(|| async {
            problem(StatusCode::METHOD_NOT_ALLOWED, "what acts is POST, everything else GET")
        })
        .with_state(peer)
        .merge(more)
        .layer(middleware::from_fn_with_state(guard, check))
        .layer(middleware::from_fn(in_time))
}

/// Whether the peer takes traffic; with `?verbose` also what an operator looks for first.
async fn ready<P: Peer>(State(peer): State<P>, RawQuery(query): RawQuery) -> Response {
    let (code, mut text) = if peer.takes_traffic() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned())
    };
    let asks_for_more = |query: &str| {
        query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="))
    };
    if query.as_deref().is_some_and(asks_for_more) {
        text.push_str(&verbose(&peer.status()));
    }
    (code, text).into_response()
}

fn verbose(status: &Status) -> String {
    use std::fmt::Write;
    let reached = status.seeds.iter().filter(|seed| seed.reached).count();
    let alive = status.peers.iter().filter(|peer| peer.alive).count();
    let mut text = format!(
        "peers: {alive} of {} alive\nseeds: {reached} of {} reached\n",
        status.peers.len(),
        status.seeds.len()
    );
    for seed in status.seeds.iter().filter(|seed| !seed.reached) {
        let why = seed.error.as_deref().unwrap_or("not tried yet");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {}: {why}", seed.seed);
    }
    for app in &status.apps {
        let _ = writeln!(text, "app {}: {}", app.name, app.state);
    }
    text
}

/// In OpenMetrics for whoever asks for it, as Prometheus does, and for everyone else in the text
/// format before it, which every scraper reads.
async fn metrics<P: Peer>(State(peer): State<P>, headers: HeaderMap) -> Response {
    let text = usage::with(redis::with_commands(process::with(peer.metrics())));
    let (content_type, text) = if asks_for_openmetrics(&headers) {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", text)
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", plain_text(&text))
    };
    ([(CONTENT_TYPE, content_type), (VARY, "accept")], text).into_response()
}

fn asks_for_openmetrics(headers: &HeaderMap) -> bool {
    let fields = headers.get_all(ACCEPT).iter().filter_map(|field| field.to_str().ok());
    fields.flat_map(|field| field.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_it = parts
            .next()
            .is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"));
        let refuses = |part: &str| {
            let quality = part.strip_prefix("q=").and_then(|quality| quality.parse::<f32>().ok());
            quality == Some(0.0)
        };
        is_it && !parts.any(refuses)
    })
}

/// OpenMetrics as the Prometheus text format 0.0.4: there a counter's and an info's own name has the
/// suffix, an info is a gauge, and there are neither units nor an end.
fn plain_text(metrics: &str) -> String {
    let mut text = String::with_capacity(metrics.len());
    let mut kinds = HashMap::new();
    for line in metrics.lines() {
        if let Some(("TYPE", (name, kind))) = described(line) {
            kinds.insert(name, kind);
        }
    }
    for line in metrics.lines() {
        let Some((what, (name, rest))) = described(line) else {
            if line != "# EOF" {
                text.extend([line, "\n"]);
            }
            continue;
        };
        let (suffix, kind) = match kinds.get(name) {
            Some(&"counter") => ("_total", "counter"),
            Some(&"info") => ("_info", "gauge"),
            Some(&"unknown") => ("", "untyped"),
            kind => ("", *kind.unwrap_or(&"untyped")),
        };
        match what {
            "TYPE" => text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]),
            "HELP" => text.extend(["# HELP ", name, suffix, " ", rest, "\n"]),
            _ => {}
        }
    }
    text
}

/// `# WHAT NAME REST`.
fn described(line: &str) -> Option<(&str, (&str, &str))> {
    let (what, rest) = line.strip_prefix("# ")?.split_once(' ')?;
    Some((what, rest.split_once(' ')?))
}

async fn why<P: Peer>(State(peer): State<P>, Path(id): Path<String>) -> Response {
    match peer.why(&id) {
        Some(trace) => Json(trace).into_response(),
        None => problem(
            StatusCode::NOT_FOUND,
            "this peer remembers no such request; it keeps the latest ones only, so ask soon, \
             and ask the peer that the client reached",
        ),
    }
}

#[derive(Deserialize)]
struct RecentQuery {
    limit: Option<usize>,
}

#[derive(Serialize)]
struct Recent {
    requests: Vec<RequestTrace>,
}

async fn recent<P: Peer>(State(peer): State<P>, Query(query): Query<RecentQuery>) -> Response {
    let limit = query.limit.unwrap_or(RECENT_DEFAULT).min(RECENT_MAX);
    Json(Recent { requests: peer.recent(limit) }).into_response()
}

async fn session<P: Peer>(State(peer): State<P>, Path(key): Path<String>) -> Response {
    match key.parse::<SessionKey>() {
        Err(invalid) => problem(StatusCode::BAD_REQUEST, &invalid.to_string()),
        Ok(key) => match peer.session(&key) {
            Some(session) => Json(session).into_response(),
            None => problem(
                StatusCode::NOT_FOUND,
                "this peer holds no copy of that session; another peer may",
            ),
        },
    }
}

async fn start_app<P: Peer>(State(peer): State<P>, Path(name): Path<String>) -> Response {
    act(&peer, &name, "start", P::start_app)
}

async fn stop_app<P: Peer>(State(peer): State<P>, Path(name): Path<String>) -> Response {
    act(&peer, &name, "stop", P::stop_app)
}

/// The answer tells the state that the app was in, since what was done depends on it.
fn act<P: Peer>(
    peer: &P,
    name: &str,
    action: &str,
    carry_out: impl FnOnce(&P, &AppName) -> Result<(), ControlError>,
) -> Response {
    let name = match AppName::new(name) {
        Ok(name) => name,
        Err(invalid) => return problem(StatusCode::NOT_FOUND, &invalid.to_string()),
    };
    let apps = peer.status().apps;
    let was = apps.iter().find(|app| app.name == name.as_str()).map(|app| &app.state);
    match carry_out(peer, &name) {
        Ok(()) => {
            info!(app = %name, action, "asked for through the admin listener");
            accepted(&json!({ "app": name.as_str(), "action": action, "was": was }))
        }
        Err(error @ ControlError::UnknownApp { .. }) => {
            problem(StatusCode::NOT_FOUND, &error.to_string())
        }
        Err(error) => problem(StatusCode::CONFLICT, &error.to_string()),
    }
}

async fn drain<P: Peer>(State(peer): State<P>) -> Response {
    info!("draining, as asked through the admin listener");
    tokio::spawn(async move { peer.drain().await });
    accepted(&json!({ "action": "drain" }))
}

async fn undrain<P: Peer>(State(peer): State<P>) -> Response {
    match peer.undrain().await {
        Ok(()) => {
            info!("takes traffic again, as asked through the admin listener");
            Json(json!({ "action": "undrain" })).into_response()
        }
        Err(error) => problem(StatusCode::CONFLICT, &error.to_string()),
    }
}

/// It goes on after the answer.
fn accepted(what: &Value) -> Response {
    (StatusCode::ACCEPTED, Json(what)).into_response()
}

/// An error as problem details (RFC 9457).
fn problem(status: StatusCode, detail: &str) -> Response {
    let body = json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    let content_type = HeaderValue::from_static("application/problem+json");
    (status, [(CONTENT_TYPE, content_type)], body.to_string()).into_response()
}

async fn in_time(request: Request, next: Next) -> Result<Response, Infallible> {
    let answer = timeout(ANSWER_TIMEOUT, next.run(request)).await;
    Ok(answer.unwrap_or_else(|_| {
        problem(StatusCode::SERVICE_UNAVAILABLE, "the peer took too long to answer")
    }))
}

#[derive(Clone)]
struct Guard {
    token: Token,
}

async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.refusal(request.method(), request.uri().path(), request.headers()) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

impl Guard {
    fn refusal(&self, method: &Method, path: &str, headers: &HeaderMap) -> Option<Response> {
        if let Some(token) = &self.token.get() {
            let is_open = matches!(path, "/" | "/healthz" | "/readyz");
            if !is_open && !shows_token(headers, token) {
                let mut refusal = problem(
                    StatusCode::UNAUTHORIZED,
                    "this needs Authorization: Bearer with the token of [admin] token; \
                     the commands take it from WARMHOP_ADMIN_TOKEN",
                );
                let scheme = HeaderValue::from_static("Bearer realm=\"warmhop\"");
                refusal.headers_mut().insert(WWW_AUTHENTICATE, scheme);
                return Some(refusal);
            }
        } else if !is_local_host(headers) {
            return Some(problem(
                StatusCode::FORBIDDEN,
                "the Host field names another machine; ask http://127.0.0.1, or set [admin] token",
            ));
        }
        let acts = method != Method::GET && method != Method::HEAD;
        if acts && is_foreign_page(headers) {
            return Some(problem(
                StatusCode::FORBIDDEN,
                "a web page of another origin may not act on this peer",
            ));
        }
        None
    }
}

/// Compared in constant time, so that the time tells nothing of how much was right.
fn shows_token(headers: &HeaderMap, token: &str) -> bool {
    let shown = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
        let (scheme, rest) = value.split_at_checked(b"Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(rest.trim_ascii())
    });
    shown.is_some_and(|shown| shown.ct_eq(token.as_bytes()).into())
}

/// A page whose DNS name was rebound to this machine sends that name. An address cannot be
/// rebound, and a client without `Host` (HTTP/1.0, as health checkers are) is no browser.
fn is_local_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => true,
        (Some(host), None) => authority(host).is_some_and(|authority| {
            let host = authority.host();
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
        }),
        _ => false,
    }
}

/// Browsers send `Origin` with every request that acts, and most say how far the page is.
fn is_foreign_page(headers: &HeaderMap) -> bool {
    let says_so = headers
        .get("sec-fetch-site")
        .is_some_and(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"));
    let other_origin = headers.get(ORIGIN).is_some_and(|origin| {
        let origin = origin.to_str().ok().and_then(|text| text.strip_prefix("http"));
        let origin = origin.and_then(|rest| rest.trim_start_matches('s').strip_prefix("://"));
        let origin = origin.and_then(|rest| rest.parse::<Authority>().ok());
        origin.is_none() || origin != headers.get(HOST).and_then(authority)
    });
    says_so || other_origin
}

fn authority(value: &HeaderValue) -> Option<Authority> {
    value.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests;

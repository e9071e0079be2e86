//! The routes, guarded: health, metrics, the dashboard, and those behind the commands.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Extension, RawQuery, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, VARY};
use http::{Extensions, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::timeout;
use tracing::{debug, info};
use warmhop_core::ids::{AppName, SessionKey};

use crate::admin::answers::{Path, Query, accepted, problem, with_refusals};
use crate::admin::dashboard::{self, Feed};
use crate::admin::guard::{Guard, Stranger, Token, check};
use crate::admin::peer::Peer;
use crate::admin::watchers::Who;
use crate::error::ControlError;
use crate::http::refusals::admin::AdminRefusal;
use crate::observe::status::{OtherPeer, RequestTrace, Status};

/// How long an answer may take to begin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How many of the newest requests are returned by default, and at most.
const RECENT_DEFAULT: usize = 20;
const RECENT_MAX: usize = 200;

/// Adds to the peer's metrics, a text in the OpenMetrics format.
pub(crate) type More = Arc<dyn Fn(String) -> String + Send + Sync>;

/// The routes that read a peer without acting on it.
pub(crate) fn readable<P: Peer>(more: More) -> Router<P> {
    let metrics = move |State(peer): State<P>, headers: HeaderMap| {
        let text = more(peer.metrics());
        async move { metrics(&headers, text) }
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/v1/status", get(|State(peer): State<P>| async move { Json(peer.status()) }))
        .route("/v1/history", get(|State(peer): State<P>| async move { Json(peer.history()) }))
        .route("/v1/requests", get(recent::<P>))
        .route("/v1/requests/{*id}", get(why::<P>))
        .route("/v1/sessions/{*key}", get(session::<P>))
}

/// The routes and `more` of them, guarded by `token`.
pub(crate) fn guarded<P: Peer>(peer: P, token: Token, metrics: More, more: Router) -> Router {
    let refusals = peer.refusals();
    let guard = Guard { token, refusals: Arc::clone(&refusals) };
    let feed = Feed::new();
    let watch = move |State(peer): State<P>, extensions: Extensions| async move {
        feed.watch(&peer, Who::sent(&extensions)).unwrap_or_else(|| {
            refusals.note(AdminRefusal::TooManyWatch);
            problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many watch this peer already; close some dashboards",
            )
        })
    };
    let routes = Router::new()
        .route("/", get(|| async { dashboard::page() }))
        .route("/v1/events", get(watch))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready::<P>))
        .merge(readable(metrics))
        .route("/v1/apps/{name}/start", post(start_app::<P>))
        .route("/v1/apps/{name}/stop", post(stop_app::<P>))
        .route("/v1/drain", post(drain::<P>))
        .route("/v1/undrain", post(undrain::<P>))
        .with_state(peer)
        .merge(more);
    with_refusals(routes)
        .layer(middleware::from_fn_with_state(guard, check))
        .layer(middleware::from_fn(in_time))
}

/// Whether the peer takes traffic; with `?verbose` also what an operator looks for first, who has the
/// token if there is one.
async fn ready<P: Peer>(
    State(peer): State<P>,
    RawQuery(query): RawQuery,
    stranger: Option<Extension<Stranger>>,
) -> Response {
    let (code, mut text) = if peer.takes_traffic() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned())
    };
    let asks_for_more = |query: &str| {
        query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="))
    };
    match query.as_deref().is_some_and(asks_for_more) {
        true if stranger.is_some() => text.push_str("with the admin token there is more\n"),
        true => text.push_str(&verbose(&peer.status())),
        false => {}
    }
    (code, text).into_response()
}

fn verbose(status: &Status) -> String {
    use std::fmt::Write;
    let reached = status.seeds.iter().filter(|seed| seed.reached).count();
    let alive = status.peers.iter().filter(|peer| peer.alive).count();
    let mut text = format!("peers: {alive} of {} alive", status.peers.len());
    let unlinked = |peer: &OtherPeer| Some(format!("{}: {}", peer.name, peer.unlinked.as_ref()?));
    let unlinked: Vec<_> = status.peers.iter().filter_map(unlinked).collect();
    // Writing to a string cannot fail.
    if !unlinked.is_empty() {
        let _ = write!(text, ", {} without a link ({})", unlinked.len(), unlinked.join("; "));
    }
    let _ = writeln!(text, "\nseeds: {reached} of {} reached", status.seeds.len());
    for seed in status.seeds.iter().filter(|seed| !seed.reached) {
        let why = seed.error.as_deref().unwrap_or("not tried yet");
        let _ = writeln!(text, "  {}: {why}", seed.seed);
    }
    for app in &status.apps {
        // It is cold again between two tries, and not well.
        let failed = if app.state == "cold" && app.error.is_some() { ", failed" } else { "" };
        let _ = writeln!(text, "app {}: {}{failed}", app.name, app.state);
    }
    let peer = &status.peer;
    let ends = [
        ("certificate", Some(peer.identity_not_after)),
        ("front door's certificate", peer.front_door_not_after),
    ];
    for (what, ends) in ends {
        let ends = ends.and_then(|ends| UNIX_EPOCH.checked_add(Duration::from_secs(ends)));
        let Some(ends) = ends else { continue };
        let is = if ends > SystemTime::now() { "valid until" } else { "expired on" };
        let _ = writeln!(text, "{what}: {is} {}", httpdate::fmt_http_date(ends));
    }
    text
}

/// In OpenMetrics for clients that accept it, as Prometheus does, and for all others in the older
/// text format, which every scraper can read.
fn metrics(headers: &HeaderMap, text: String) -> Response {
    let (content_type, text) = if asks_for_openmetrics(headers) {
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

/// Converts OpenMetrics to the Prometheus text format 0.0.4: there the name of a counter or an info
/// includes the suffix, an info is a gauge, and there are neither units nor an end.
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

/// The answer contains the state that the app was in, since the effect depends on it.
pub(crate) fn act<P: Peer>(
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
    debug!("a drain is asked for through the admin listener");
    tokio::spawn(async move { peer.drain().await });
    accepted(&json!({ "action": "drain" }))
}

async fn undrain<P: Peer>(State(peer): State<P>) -> Response {
    match peer.undrain().await {
        Ok(()) => {
            debug!("the peer was asked through the admin listener to take traffic again");
            Json(json!({ "action": "undrain" })).into_response()
        }
        Err(error) => problem(StatusCode::CONFLICT, &error.to_string()),
    }
}

async fn in_time(request: Request, next: Next) -> Result<Response, Infallible> {
    let answer = timeout(ANSWER_TIMEOUT, next.run(request)).await;
    Ok(answer.unwrap_or_else(|_| {
        problem(StatusCode::SERVICE_UNAVAILABLE, "the peer took too long to answer")
    }))
}

#[cfg(test)]
mod tests;

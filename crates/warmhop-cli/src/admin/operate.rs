//! What an operator asks for beside a peer's state: its log, its configuration, and all of it of any
//! other peer through this one.
//!
//! ```text
//! warmhop logs --peer peer-2 ──▶ admin listener of peer-1 ──link──▶ peer-2's service, reading only
//! ```
//!
//! A member of the cluster may read another's state and log, have it start an app or a new copy of
//! one ([`super::life`]), and do nothing else there.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt;
use tracing::Level;
use warmhop::Mesh;
use warmhop::ids::{AppName, PeerId};
use warmhop::peer_service::AskPeerError;

use super::problem;
use crate::journal::{Journal, Line, Wanted};
use crate::reload::Reloader;

/// The service that peers offer to each other.
pub(super) const SERVICE: &str = "admin";
/// How many may follow the log at once.
const FOLLOWERS_MAX: usize = 32;
/// How many lines are told unless more are asked for.
const LINES_DEFAULT: usize = 100;

#[derive(Clone)]
struct Log {
    journal: Journal,
    places: Arc<Semaphore>,
}

/// The routes of the admin listener: this peer's log and configuration, and what other peers tell.
/// From here on the other peers of the cluster may ask this one, too.
pub fn routes(mesh: &Mesh, journal: &Journal, reloader: &Arc<Reloader>) -> Router {
    let log = Log { journal: journal.clone(), places: Arc::new(Semaphore::new(FOLLOWERS_MAX)) };
    offer(mesh, &log);
    let here = Router::new().route("/v1/logs", get(logs)).with_state(log);
    let others =
        Router::new().route("/v1/peers/{name}/{*path}", get(of_peer)).with_state(mesh.clone());
    let life = super::life::routes(mesh, Arc::clone(reloader));
    let reloader = Arc::clone(reloader);
    let configuration = get(move || std::future::ready(reloader.configuration()));
    here.merge(others).merge(life).route("/v1/config", configuration)
}

fn service_name() -> AppName {
    AppName::new(SERVICE).expect("a constant of the right form")
}

/// What another peer may read here.
fn offer(mesh: &Mesh, log: &Log) {
    let log = Router::new().route("/v1/logs", get(logs)).with_state(log.clone());
    let router = super::readable::<Mesh>().with_state(mesh.clone()).merge(log);
    mesh.offer_to_peers(service_name(), move |request| {
        let router = router.clone();
        async move {
            let answer = router.oneshot(request.map(Body::new)).await;
            answer.map(|response| response.map(warmhop::Body::new))
        }
    });
}

/// Asks another peer for what it offers.
async fn of_peer(
    State(mesh): State<Mesh>,
    Path((name, path)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let Ok(peer) = PeerId::new(&name) else {
        return problem(StatusCode::NOT_FOUND, &format!("{name:?} is no name of a peer"));
    };
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let Ok(target) = format!("/{path}{query}").parse::<Uri>() else {
        return problem(StatusCode::BAD_REQUEST, "the path cannot be passed on");
    };
    let request = Request::builder().method(Method::GET).uri(target).body(warmhop::Body::empty());
    let Ok(request) = request else {
        return problem(StatusCode::BAD_REQUEST, "the path cannot be passed on");
    };
    match mesh.ask_peer(&peer, &service_name(), request).await {
        Ok(response) => response.map(Body::new).into_response(),
        Err(error @ AskPeerError::Unreachable { .. }) => {
            problem(StatusCode::BAD_GATEWAY, &error.to_string())
        }
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

#[derive(Deserialize)]
struct LogQuery {
    app: Option<String>,
    level: Option<String>,
    lines: Option<usize>,
    #[serde(default)]
    follow: bool,
}

/// One JSON object a line; with `follow` it goes on until the client leaves.
async fn logs(State(log): State<Log>, Query(query): Query<LogQuery>) -> Response {
    let level = match query.level.as_deref().map(str::parse::<Level>) {
        None => None,
        Some(Ok(level)) => Some(level),
        Some(Err(_)) => {
            let detail = "level is one of error, warn, info, debug and trace";
            return problem(StatusCode::BAD_REQUEST, detail);
        }
    };
    let wanted = Wanted { app: query.app, level };
    let (lines, live) = log.journal.read(&wanted, query.lines.unwrap_or(LINES_DEFAULT));
    let first: String = lines.iter().map(|line| text(line)).collect();
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    if !query.follow {
        return (headers, first).into_response();
    }
    let Ok(place) = Arc::clone(&log.places).try_acquire_owned() else {
        let detail = "too many follow this peer's log already";
        return problem(StatusCode::SERVICE_UNAVAILABLE, detail);
    };
    let first = stream::iter((!first.is_empty()).then(|| Bytes::from(first)));
    let rest = stream::unfold((live, wanted, place), next);
    let body = Body::from_stream(first.chain(rest).map(Ok::<_, Infallible>));
    (headers, body).into_response()
}

type Following = (tokio::sync::broadcast::Receiver<Arc<Line>>, Wanted, OwnedSemaphorePermit);

async fn next((mut live, wanted, place): Following) -> Option<(Bytes, Following)> {
    loop {
        let told = match live.recv().await {
            Ok(line) if wanted.takes(&line) => text(&line),
            Ok(_) => continue,
            Err(RecvError::Lagged(missed)) => {
                let told = serde_json::json!({ "level": "WARN", "missed": missed,
                    "message": "lines were left out: they came faster than they were read" });
                format!("{told}\n")
            }
            Err(RecvError::Closed) => return None,
        };
        return Some((Bytes::from(told), (live, wanted, place)));
    }
}

fn text(line: &Line) -> String {
    // A map with text for keys always serializes.
    let mut text = serde_json::to_string(line).unwrap_or_default();
    text.push('\n');
    text
}

//! The admin listener: the routes of the mesh crate, and those that only the binary has: the log,
//! the configuration and its reload.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Level;
use warmhop::Mesh;
use warmhop::admin::{Admin, Token, problem};

use crate::child::usage;
use crate::host::journal::{Journal, Line, Wanted};
use crate::host::process;
use crate::redis;
use crate::run::reload::Reloader;

/// How many may follow the log at once.
const FOLLOWERS_MAX: usize = 32;
/// What is said to a reader of what an app prints, if the log has none of it.
const LEFT_OUT: &str = "the level of this peer's log leaves out what apps print; with [log] level = \
                        \"warn,warmhop::app=info\", say, it is kept";
/// How many lines are sent by default.
const LINES_DEFAULT: usize = 100;

#[derive(Clone)]
struct Log {
    mesh: Mesh,
    journal: Journal,
    places: Arc<Semaphore>,
}

/// The routes of the admin listener, guarded by `token`.
pub fn listener(mesh: &Mesh, token: Token, journal: &Journal, reloader: &Arc<Reloader>) -> Admin {
    let places = Arc::new(Semaphore::new(FOLLOWERS_MAX));
    let log = Log { mesh: mesh.clone(), journal: journal.clone(), places };
    let log = Router::new().route("/v1/logs", get(logs)).with_state(log);
    let current = Arc::clone(reloader);
    let own = Router::new()
        .route("/v1/reload", post(reload))
        .with_state(Arc::clone(reloader))
        .route("/v1/config", get(move || std::future::ready(current.configuration())));
    Admin::new(mesh)
        .token(token)
        .metrics(|text| usage::with(redis::with_commands(process::with(text))))
        .readable(log)
        .routes(own)
}

async fn reload(State(reloader): State<Arc<Reloader>>) -> Response {
    // A reload reads files.
    match tokio::task::spawn_blocking(move || reloader.reload()).await {
        Ok(Ok(reloaded)) => Json(reloaded).into_response(),
        Ok(Err(failure)) => problem(StatusCode::UNPROCESSABLE_ENTITY, &failure.messages.join("\n")),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
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

/// One JSON object a line; with `follow` until the client leaves.
async fn logs(State(log): State<Log>, query: Result<Query<LogQuery>, QueryRejection>) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(rejected) => return problem(rejected.status(), &rejected.body_text()),
    };
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
    if let (Some(app), true) = (&wanted.app, lines.is_empty()) {
        let apps: Vec<_> = log.mesh.status().apps.into_iter().map(|app| app.name).collect();
        // The log keeps lines of removed apps.
        if !apps.contains(app) {
            let has = apps.join(", ");
            let detail = format!("no app {app} is configured on this peer; it has: {has}");
            return problem(StatusCode::NOT_FOUND, &detail);
        }
    }
    let mut first: String = lines.iter().map(|line| text(line)).collect();
    if wanted.app.is_some() && !tracing::enabled!(target: "warmhop::app", Level::INFO) {
        first.insert_str(0, &remark(json!({ "message": LEFT_OUT })));
    }
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
        let line = match live.recv().await {
            Ok(line) if wanted.takes(&line) => text(&line),
            Ok(_) => continue,
            Err(RecvError::Lagged(missed)) => {
                let message = "lines were left out: they came faster than they were read";
                remark(json!({ "missed": missed, "message": message }))
            }
            Err(RecvError::Closed) => return None,
        };
        return Some((Bytes::from(line), (live, wanted, place)));
    }
}

/// A line about the lines, of this moment.
fn remark(mut line: serde_json::Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    line["at_unix_ms"] = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).into();
    line["level"] = "WARN".into();
    format!("{line}\n")
}

fn text(line: &Line) -> String {
    // A map with string keys always serializes.
    let mut text = serde_json::to_string(line).unwrap_or_default();
    text.push('\n');
    text
}

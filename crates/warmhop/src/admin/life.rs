//! An app's life by hand: restart, pause, resume, here or peer by peer.
//!
//! A restart over the whole mesh is a walk, not a plan: the peer that was asked makes one peer
//! after the other start its new copy, and proceeds when that one serves. No peer stores the
//! progress. The client may leave, which ends the walk after the current step, and ask again.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::info;
use warmhop_core::ids::{AppName, PeerId};

use crate::admin::answers::{Path, Query, accepted, problem};
use crate::admin::peers::{self, name_of, offer_as};
use crate::admin::routes::act;
use crate::error::ControlError;
use crate::mesh::running::Mesh;
use crate::observe::status::{OtherPeer, Status};

/// The service through which peers ask each other for a new copy of an app.
const SERVICE: &str = "restart";
/// How often the progress of a start is checked.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a step waits for another copy to be ready, if there should be one.
const ANOTHER_READY_WITHIN: Duration = Duration::from_secs(60);
/// A peer that does not answer for this long counts as having failed the step.
const SILENT_MAX: Duration = Duration::from_secs(15);
/// The largest answer of another peer, in bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// What is said of a peer that was not heard and is gone by now: it may have stood still.
const GONE: &str =
    "it cannot be reached, and counts as gone by now: if it comes back, restart the app there";

/// The routes that act on apps. From now on other peers of the cluster may ask this one for a new
/// copy of an app.
pub(crate) fn routes(mesh: &Mesh) -> Router {
    let service = Router::new().route("/v1/apps/{name}/restart", post(restart_here));
    offer_as(mesh, SERVICE, service.with_state(mesh.clone()));
    Router::new()
        .route("/v1/apps/{name}/restart", post(restart))
        .route("/v1/apps/{name}/pause", post(async |mesh, name| held(mesh, name, true)))
        .route("/v1/apps/{name}/resume", post(async |mesh, name| held(mesh, name, false)))
        .with_state(mesh.clone())
}

#[derive(Deserialize)]
struct Where {
    #[serde(default)]
    mesh: bool,
}

async fn restart(
    State(mesh): State<Mesh>,
    Path(name): Path<String>,
    Query(query): Query<Where>,
) -> Response {
    if !query.mesh {
        return restart_here(State(mesh), Path(name)).await;
    }
    let app = match AppName::new(&name) {
        Ok(app) => app,
        Err(invalid) => return problem(StatusCode::NOT_FOUND, &invalid.to_string()),
    };
    let known = |status: &Status| {
        let here = status.apps.iter().any(|it| it.name == name);
        let is_heard = |peer: &&OtherPeer| peer.alive || peer.state == "suspect";
        let mut others = status.peers.iter().filter(is_heard);
        here || others.any(|peer| peer.apps.contains_key(&name))
    };
    if !known(&mesh.status()) {
        return problem(StatusCode::NOT_FOUND, &format!("no peer of the mesh has an app {name}"));
    }
    let status = mesh.status();
    let (peers, unheard) = (runs_on(&status, &app), runs_unheard(&status, &app));
    if peers.is_empty() && unheard.is_empty() {
        let detail = format!(
            "{app} runs on no peer, so there is nothing to restart: its next start, by a request or \
             by an operator, brings up a new copy"
        );
        return problem(StatusCode::CONFLICT, &detail);
    }
    info!(app = %app, "restarting peer by peer, as asked through the admin listener");
    let (steps, done) = mpsc::channel::<Value>(1);
    tokio::spawn(async move { walk(&mesh, &app, peers, unheard, &steps).await });
    let lines = stream::unfold(done, |mut done| async move {
        let step = done.recv().await?;
        Some((Ok::<_, Infallible>(Bytes::from(format!("{step}\n"))), done))
    });
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, Body::from_stream(lines.boxed())).into_response()
}

async fn restart_here(State(mesh): State<Mesh>, Path(name): Path<String>) -> Response {
    let app = match AppName::new(&name) {
        Ok(app) => app,
        Err(invalid) => return problem(StatusCode::NOT_FOUND, &invalid.to_string()),
    };
    let apps = mesh.status().apps;
    let was = apps.iter().find(|it| it.name == name).map(|it| &it.state);
    match mesh.restart_app(&app) {
        Ok(attempt) => {
            info!(app = %app, attempt, "a new copy is asked for");
            accepted(&json!({ "app": name, "action": "restart", "was": was, "attempt": attempt }))
        }
        Err(error) => refused(&error),
    }
}

fn held(State(mesh): State<Mesh>, Path(name): Path<String>, paused: bool) -> Response {
    act(&mesh, &name, if paused { "pause" } else { "resume" }, |mesh, name| {
        mesh.pause_app(name, paused)
    })
}

fn refused(error: &ControlError) -> Response {
    let status = match error {
        ControlError::UnknownApp { .. } => StatusCode::NOT_FOUND,
        _ => StatusCode::CONFLICT,
    };
    problem(status, &error.to_string())
}

/// The peers that have a copy, or are about to; the peer that is asked comes first.
fn runs_on(status: &Status, app: &AppName) -> Vec<PeerId> {
    let here = status.apps.iter().filter(|it| it.name == app.as_str() && runs(&it.state));
    let here = here.map(|_| &status.peer.name);
    let others = status
        .peers
        .iter()
        .filter(|peer| peer.alive && peer.apps.get(app.as_str()).is_some_and(|state| runs(state)))
        .map(|peer| &peer.name);
    here.chain(others).filter_map(|name| PeerId::new(name).ok()).collect()
}

/// The peers that have a copy or are about to, as far as was heard, and are not heard now.
fn runs_unheard(status: &Status, app: &AppName) -> Vec<PeerId> {
    let runs_there = |peer: &&OtherPeer| {
        peer.state == "suspect" && peer.apps.get(app.as_str()).is_some_and(|state| runs(state))
    };
    let unheard = status.peers.iter().filter(runs_there);
    unheard.filter_map(|peer| PeerId::new(&peer.name).ok()).collect()
}

/// Whether `peer` is gone, with its copies.
fn is_gone(mesh: &Mesh, peer: &PeerId) -> bool {
    let peers = mesh.status().peers;
    peers.iter().find(|it| it.name == peer.as_str()).is_none_or(|it| it.state == "gone")
}

/// Restarts the app on one of `peers` after the other, and on those `unheard` last; ends if one
/// fails.
async fn walk(
    mesh: &Mesh,
    app: &AppName,
    peers: Vec<PeerId>,
    unheard: Vec<PeerId>,
    steps: &mpsc::Sender<Value>,
) {
    let me = mesh.status().peer.name;
    let late = peers.len();
    for (at, peer) in peers.into_iter().chain(unheard).enumerate() {
        let is_me = peer.as_str() == me;
        if steps.send(json!({ "peer": peer.as_str(), "state": "starting" })).await.is_err() {
            return;
        }
        let done = match another_is_ready(mesh, app, &peer).await {
            Ok(()) if at >= late && is_gone(mesh, &peer) => Err(GONE.into()),
            Ok(()) => step(mesh, app, &peer, is_me).await,
            Err(why) => Err(why),
        };
        let step = match &done {
            Ok(()) => json!({ "peer": peer.as_str(), "state": "serves" }),
            Err(why) => json!({ "peer": peer.as_str(), "state": "failed", "error": why }),
        };
        if steps.send(step).await.is_err() || done.is_err() {
            return;
        }
    }
    let _ = steps.send(json!({ "done": true })).await;
}

fn runs(state: &str) -> bool {
    matches!(state, "ready" | "starting")
}

/// Waits until the mesh reports that a copy other than that of `peer` is ready, unless no other
/// runs: then the old one there serves until the new one does.
async fn another_is_ready(mesh: &Mesh, app: &AppName, peer: &PeerId) -> Result<(), String> {
    let waiting = async {
        loop {
            let status = mesh.status();
            let here = status.apps.iter().filter(|it| it.name == app.as_str());
            let here = here.map(|it| (&status.peer.name, &it.state));
            let others = status.peers.iter().filter(|other| other.alive);
            let others =
                others.filter_map(|other| Some((&other.name, other.apps.get(app.as_str())?)));
            let beside: Vec<&String> = here
                .chain(others)
                .filter(|(name, state)| *name != peer.as_str() && runs(state))
                .map(|(_, state)| state)
                .collect();
            if beside.is_empty() || beside.iter().any(|state| *state == "ready") {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(ANOTHER_READY_WITHIN, waiting)
        .await
        .map_err(|_| format!("no other copy was ready within {ANOTHER_READY_WITHIN:?}"))
}

/// Makes one peer replace its copy, and waits until the new one serves.
async fn step(mesh: &Mesh, app: &AppName, peer: &PeerId, is_me: bool) -> Result<(), String> {
    let attempt = if is_me {
        mesh.restart_app(app).map_err(|error| error.to_string())?
    } else {
        let target = format!("/v1/apps/{app}/restart");
        let answer = ask(mesh, peer, SERVICE, Method::POST, &target).await?;
        answer["attempt"].as_u64().ok_or("the peer did not say which start it began")?
    };
    let mut silent_since = None;
    loop {
        let status = if is_me {
            serde_json::to_value(mesh.status()).map_err(|error| error.to_string())
        } else {
            ask(mesh, peer, peers::SERVICE, Method::GET, "/v1/status").await
        };
        match status {
            Ok(status) => {
                silent_since = None;
                if let Some(done) = outcome(&status, app.as_str(), attempt) {
                    return done;
                }
            }
            Err(why) => {
                let since = *silent_since.get_or_insert_with(tokio::time::Instant::now);
                if since.elapsed() > SILENT_MAX {
                    return Err(why);
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// For the binary, which waits for it: the outcome of the start `attempt`, by the status of its
/// peer; absent until it has ended.
pub fn outcome(status: &Value, app: &str, attempt: u64) -> Option<Result<(), String>> {
    let apps = status["apps"].as_array()?;
    let Some(copy) = apps.iter().find(|it| it["name"] == app) else {
        return Some(Err("the app was removed there".into()));
    };
    if copy["copy"].as_u64().is_some_and(|serves| serves >= attempt) {
        return Some(Ok(()));
    }
    let starts = copy["starts"].as_u64().unwrap_or_default();
    let goes_on = copy["next"].as_u64().is_some_and(|next| next >= attempt)
        || starts < attempt
        || copy["state"] == "starting";
    if goes_on {
        return None;
    }
    let error = copy["error"].as_str().unwrap_or("the start was given up");
    Some(Err(error.to_owned()))
}

async fn ask(
    mesh: &Mesh,
    peer: &PeerId,
    service: &str,
    method: Method,
    target: &str,
) -> Result<Value, String> {
    let request = Request::builder().method(method).uri(target).body(crate::Body::empty());
    let request = request.map_err(|error| error.to_string())?;
    let asking = async {
        let response = mesh.ask_peer(peer, &name_of(service), request).await;
        let (head, body) = response.map_err(|error| error.to_string())?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        let answer: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        if head.status.is_success() {
            Ok(answer)
        } else {
            Err(answer["detail"].as_str().unwrap_or("it refused without a reason").to_owned())
        }
    };
    tokio::time::timeout(SILENT_MAX, asking)
        .await
        .map_err(|_| format!("{peer} did not answer within {SILENT_MAX:?}"))?
}

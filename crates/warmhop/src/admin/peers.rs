//! The routes that peers read from each other, and a client from a peer through another one.
//!
//! ```text
//! warmhop status --peer peer-2 ──▶ routes of peer-1 ──link──▶ peer-2's service, reading only
//! ```
//!
//! A member of the cluster may read another's state, make it start an app or a new copy of one
//! ([`life`](crate::admin::life)), and do nothing else there.

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{Method, Request, StatusCode, Uri};
use tower::ServiceExt;
use warmhop_core::ids::{AppName, PeerId};

use crate::admin::answers::{Path, problem, with_refusals};
use crate::hop::peer_service::AskPeerError;
use crate::http::body::Body;
use crate::mesh::running::Mesh;

/// The service that peers offer to each other.
pub(crate) const SERVICE: &str = "admin";

/// What is added to the reason why a peer cannot be reached that is suspect.
const SUSPECT: &str =
    "; this peer has not heard it for a while: is it stopped, overloaded or cut off?";

/// Another peer, through this one.
pub(crate) fn routes(mesh: &Mesh) -> Router {
    Router::new().route("/v1/peers/{name}/{*path}", get(of_peer)).with_state(mesh.clone())
}

/// Lets the other peers read the answers of `router`.
pub(crate) fn offer(mesh: &Mesh, router: Router) {
    offer_as(mesh, SERVICE, router);
}

pub(crate) fn offer_as(mesh: &Mesh, service: &str, router: Router) {
    let router = with_refusals(router);
    mesh.offer_to_peers(name_of(service), move |request| {
        let router = router.clone();
        async move {
            let answer = router.oneshot(request.map(axum::body::Body::new)).await;
            answer.map(|response| response.map(Body::new))
        }
    });
}

pub(crate) fn name_of(service: &str) -> AppName {
    AppName::new(service).expect("a constant of the right form")
}

/// Reads from another peer.
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
    let request = Request::builder().method(Method::GET).uri(target).body(Body::empty());
    let Ok(request) = request else {
        return problem(StatusCode::BAD_REQUEST, "the path cannot be passed on");
    };
    match mesh.ask_peer(&peer, &name_of(SERVICE), request).await {
        Ok(response) => response.map(axum::body::Body::new).into_response(),
        Err(error @ AskPeerError::Unreachable { .. }) => {
            let peers = mesh.status().peers;
            let is_suspect = peers.iter().any(|it| it.name == name && it.state == "suspect");
            let more = if is_suspect { SUSPECT } else { "" };
            problem(StatusCode::BAD_GATEWAY, &format!("{error}{more}"))
        }
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

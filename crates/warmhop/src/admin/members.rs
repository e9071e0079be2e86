//! What an operator knows about other peers and this peer cannot: that one never comes back.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::post;
use http::StatusCode;
use serde_json::json;
use warmhop_core::ids::PeerId;

use crate::admin::answers::{Path, problem};
use crate::mesh::running::Mesh;

/// The routes that act on what this peer believes of others.
pub(crate) fn routes(mesh: &Mesh) -> Router {
    Router::new().route("/v1/members/{name}/gone", post(gone)).with_state(mesh.clone())
}

async fn gone(State(mesh): State<Mesh>, Path(name): Path<String>) -> Response {
    let peer = match PeerId::new(&name) {
        Ok(peer) => peer,
        Err(invalid) => return problem(StatusCode::NOT_FOUND, &invalid.to_string()),
    };
    match mesh.write_off(&peer) {
        Ok(()) => Json(json!({ "peer": name, "action": "gone" })).into_response(),
        Err(error) => problem(StatusCode::CONFLICT, &error.to_string()),
    }
}

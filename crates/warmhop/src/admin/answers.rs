//! The answers that several routes use.

use axum::response::{IntoResponse, Json, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};

/// For an action that continues after the answer.
pub(crate) fn accepted(what: &Value) -> Response {
    (StatusCode::ACCEPTED, Json(what)).into_response()
}

/// An error as problem details (RFC 9457), for routes of your own as well.
#[must_use]
pub fn problem(status: StatusCode, detail: &str) -> Response {
    let body = json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    let content_type = HeaderValue::from_static("application/problem+json");
    (status, [(CONTENT_TYPE, content_type)], body.to_string()).into_response()
}

//! The answers that several routes use, and the parameters that they read, whose absence or form is
//! an answer as well.

use axum::Router;
use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Json, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// As axum's extractor; a path that is not text is answered with problem details.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(read)) => Ok(Self(read)),
            Err(rejected) => Err(problem(rejected.status(), &rejected.body_text())),
        }
    }
}

/// As axum's extractor; a query in another form is answered with problem details.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(read)) => Ok(Self(read)),
            Err(rejected) => Err(problem(rejected.status(), &rejected.body_text())),
        }
    }
}

/// The routes with an answer for paths that there are not, and for methods that a path does not have.
pub(crate) fn with_refusals<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes
        .fallback(|| async {
            problem(StatusCode::NOT_FOUND, "there is nothing here; see GET /v1/status")
        })
        .method_not_allowed_fallback(|| async {
            problem(StatusCode::METHOD_NOT_ALLOWED, "what acts is POST, everything else GET")
        })
}

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

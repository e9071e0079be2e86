//! Extractors for axum: the client's session as bytes ([`warmhop::Session`](crate::Session)) or as
//! a value ([`Session<T>`]). Behind the feature `axum`.
//!
//! ```
//! use axum::{Router, routing::get};
//! use serde::{Deserialize, Serialize};
//! use warmhop::extract::{Session, SetError};
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct Cart {
//!     books: Vec<String>,
//! }
//!
//! async fn add(mut cart: Session<Cart>) -> Result<String, SetError> {
//!     let count = cart.update(|cart| {
//!         cart.books.push("The Go Programming Language".into());
//!         cart.books.len()
//!     })?;
//!     Ok(format!("{count} in the cart"))
//! }
//!
//! // What a `warmhop::app_fn` yields, under a policy whose `session` is `SessionMode::Portable`.
//! let app: Router = Router::new().route("/add", get(add));
//! ```

use std::convert::Infallible;

use axum_core::body::Body;
use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Extensions, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::app::session::SessionError;

/// The client's session as a value of `T`, kept by the mesh as JSON, which an app in another
/// language can read as well and which may gain fields between two versions of one app.
///
/// The value set when the response's head is returned is committed, replicated, before the client
/// sees the response.
///
/// As an argument of a handler it is rejected with 500 and a problem (RFC 9457) if the mesh keeps
/// no session for the app, or holds something that is not a `T`; an argument `Option<Session<T>>`
/// is `None` in the first case, and `Result<Session<T>, SessionRejection>` leaves both to the
/// handler.
#[derive(Debug)]
pub struct Session<T> {
    session: crate::Session,
    value: Option<T>,
}

impl<T> Session<T> {
    /// The value; `None` if none was set for this client yet.
    #[must_use]
    pub fn get(&self) -> Option<&T> {
        self.value.as_ref()
    }

    /// The value itself; the session in the mesh stays as it is.
    #[must_use]
    pub fn into_inner(self) -> Option<T> {
        self.value
    }

    /// Replaces the value.
    ///
    /// # Errors
    /// See [`SetError`]; nothing changed.
    pub fn set(&mut self, value: T) -> Result<(), SetError>
    where
        T: Serialize,
    {
        self.session.set(serde_json::to_vec(&value).map_err(SetError::Encode)?)?;
        self.value = Some(value);
        Ok(())
    }

    /// Changes the value in place, or the default one if none was set yet, and returns the result
    /// of `change`.
    ///
    /// # Errors
    /// See [`SetError`]; nothing changed.
    pub fn update<R>(&mut self, change: impl FnOnce(&mut T) -> R) -> Result<R, SetError>
    where
        T: Serialize + DeserializeOwned + Default,
    {
        let mut value = self.value.take().unwrap_or_default();
        let returned = change(&mut value);
        let outcome = self.set(value);
        if outcome.is_err() {
            // It was read from these bytes before, so it can be again.
            self.value = read(self.session.get()).ok().flatten();
        }
        outcome.map(|()| returned)
    }

    /// Forgets the value.
    ///
    /// # Errors
    /// [`SetError::Refused`] after the response was returned.
    pub fn clear(&mut self) -> Result<(), SetError> {
        self.session.clear()?;
        self.value = None;
        Ok(())
    }

    /// Gives the session a new id: see [`crate::Session::renew`]. Call it at a login.
    ///
    /// # Errors
    /// [`SetError::Refused`] after the response was returned.
    pub fn renew(&mut self) -> Result<(), SetError> {
        Ok(self.session.renew()?)
    }

    /// The same session as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &crate::Session {
        &self.session
    }
}

/// Why a session was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetError {
    /// The value has no JSON form: a map whose keys are not strings, or a `Serialize` that failed.
    #[error("the session's value cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// The session does not accept it.
    #[error(transparent)]
    Refused(#[from] SessionError),
}

/// Why a handler got no session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionRejection {
    /// The mesh keeps no session for this app, or the request did not come through the mesh.
    #[error(
        "no session of the mesh came with this request: set the app's `AppSpec::policy.session` to \
         `SessionMode::Portable`, without `Running::with_carried_session`, and serve it through \
         the mesh"
    )]
    NotPortable,
    /// The session holds something that is not a value of the requested type: the app wrote another
    /// one, perhaps in an earlier version.
    #[error("the client's session holds no value of the type that the handler asks for")]
    Unreadable(#[source] serde_json::Error),
}

impl IntoResponse for SetError {
    fn into_response(self) -> Response {
        match self {
            Self::Encode(cause) => {
                // The text of a failed `Serialize` is for logs alone.
                tracing::error!(%cause, "a session's value cannot be written as JSON");
                problem("session-not-encodable", &Self::Encode(cause).to_string())
            }
            Self::Refused(error) => error.into_response(),
        }
    }
}

impl IntoResponse for SessionRejection {
    fn into_response(self) -> Response {
        match &self {
            Self::NotPortable => problem("session-not-portable", &self.to_string()),
            // The cause may quote the session, which its client must not see.
            Self::Unreadable(cause) => problem(
                "session-unreadable",
                &format!("{self}: see column {} of its JSON", cause.column()),
            ),
        }
    }
}

impl IntoResponse for SessionError {
    fn into_response(self) -> Response {
        let name = match &self {
            Self::TooLate => "session-too-late",
            Self::TooLarge { .. } => "session-too-large",
        };
        problem(name, &self.to_string())
    }
}

/// All of these are mistakes of the app or its declaration, not of its client.
fn problem(name: &str, detail: &str) -> Response {
    let body = serde_json::json!({
        "type": format!("urn:warmhop:{name}"),
        "title": "Internal Server Error",
        "status": 500,
        "detail": detail,
    });
    let mut response = Response::new(Body::from(format!("{body}\n")));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn session_in(extensions: &Extensions) -> Option<crate::Session> {
    extensions.get::<crate::Session>().cloned()
}

fn read<T: DeserializeOwned>(bytes: Option<Bytes>) -> Result<Option<T>, SessionRejection> {
    bytes
        .map(|bytes| serde_json::from_slice(&bytes).map_err(SessionRejection::Unreadable))
        .transpose()
}

impl<S: Sync> FromRequestParts<S> for crate::Session {
    type Rejection = SessionRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        session_in(&parts.extensions).ok_or(SessionRejection::NotPortable)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for crate::Session {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(session_in(&parts.extensions))
    }
}

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Session<T> {
    type Rejection = SessionRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let session = session_in(&parts.extensions).ok_or(SessionRejection::NotPortable)?;
        let value = read(session.get())?;
        Ok(Self { session, value })
    }
}

impl<S: Sync, T: DeserializeOwned> OptionalFromRequestParts<S> for Session<T> {
    type Rejection = SessionRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        let Some(session) = session_in(&parts.extensions) else { return Ok(None) };
        let value = read(session.get())?;
        Ok(Some(Self { session, value }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use http_body_util::BodyExt;

    use super::*;

    fn kept(state: Option<&'static str>, bytes_max: usize) -> crate::Session {
        crate::Session::new(state.map(Bytes::from), bytes_max)
    }

    fn parts(session: Option<crate::Session>) -> Parts {
        let mut request = http::Request::new(());
        if let Some(session) = session {
            request.extensions_mut().insert(session);
        }
        request.into_parts().0
    }

    async fn extract<T: DeserializeOwned>(
        session: Option<crate::Session>,
    ) -> Result<Session<T>, SessionRejection> {
        <Session<T> as FromRequestParts<()>>::from_request_parts(&mut parts(session), &()).await
    }

    #[tokio::test]
    async fn a_value_reads_back_and_is_left_as_json_for_others() {
        let session = kept(None, 100);
        let mut list = extract::<Vec<u32>>(Some(session.clone())).await.unwrap();
        assert_eq!(list.get(), None);
        assert_eq!(
            list.update(|list| {
                list.push(7);
                list.len()
            })
            .unwrap(),
            1
        );
        assert_eq!(session.get().unwrap(), "[7]");
        assert_eq!(
            extract::<Vec<u32>>(Some(session.clone())).await.unwrap().into_inner(),
            Some(vec![7])
        );
        list.clear().unwrap();
        assert_eq!((list.get(), session.get()), (None, None));
    }

    #[tokio::test]
    async fn a_refused_change_leaves_the_value_as_it_was() {
        let session = kept(Some("[1]"), 8);
        let mut list = extract::<Vec<u32>>(Some(session.clone())).await.unwrap();
        let refused = list.update(|list| list.extend([1000, 2000])).unwrap_err();
        assert!(matches!(refused, SetError::Refused(SessionError::TooLarge { .. })), "{refused}");
        assert_eq!((list.get(), session.get().unwrap()), (Some(&vec![1]), Bytes::from("[1]")));

        let mut odd = extract::<HashMap<Vec<u8>, u8>>(Some(kept(None, 8))).await.unwrap();
        let refused = odd.set(HashMap::from([(vec![1], 1)])).unwrap_err();
        assert!(matches!(refused, SetError::Encode(_)), "{refused}");
        assert_eq!(odd.as_bytes().get(), None);
    }

    #[tokio::test]
    async fn without_a_session_the_rejection_says_what_to_declare() {
        let refused = extract::<u32>(None).await.unwrap_err();
        assert!(matches!(refused, SessionRejection::NotPortable));
        assert!(refused.to_string().contains("SessionMode::Portable"));
        let mut parts = parts(None);
        let optional =
            <Session<u32> as OptionalFromRequestParts<()>>::from_request_parts(&mut parts, &());
        assert!(optional.await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_session_of_another_type_is_refused_and_stays() {
        let session = kept(Some("\"secret\""), 100);
        let refused = extract::<u32>(Some(session.clone())).await.unwrap_err();
        assert!(matches!(refused, SessionRejection::Unreadable(_)));
        let response = refused.into_response();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["type"], "urn:warmhop:session-unreadable");
        assert!(!problem.to_string().contains("secret"), "{problem}");
        assert_eq!(session.get().unwrap(), "\"secret\"");
    }
}

//! A request that is in memory as a whole, lent to an app here for as long as it takes to answer: an
//! app that only writes it elsewhere needs no copy of it.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};

use crate::http::body::{Body, BoxError};
use crate::http::interim::Interim;
use crate::http::spare;

/// A request that is in memory as a whole, and asks for no upgrade.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WholeRequest<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its target.
    pub target: &'a PathAndQuery,
    /// Its fields.
    pub fields: &'a HeaderMap,
    /// A further field: the session of an app that
    /// [has it carried](crate::Running::with_carried_session).
    pub further: Option<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: &'a Bytes,
    /// The way to its client for interim responses, if that can get any.
    pub interim: Option<&'a Interim>,
}

impl<'a> WholeRequest<'a> {
    /// A request with these parts and no others, for tests of an [`AnswersWhole`].
    #[must_use]
    pub fn new(
        method: &'a Method,
        target: &'a PathAndQuery,
        fields: &'a HeaderMap,
        body: &'a Bytes,
    ) -> Self {
        Self { method, target, fields, further: None, body, interim: None }
    }

    /// An empty map for the fields of an answer, which may reuse the memory of an earlier message.
    #[must_use]
    pub fn spare_fields() -> HeaderMap {
        spare::take()
    }
}

/// How an app comes to the answer to a [`WholeRequest`].
pub type AnsweringWhole<'a> =
    Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send + 'a>>;

/// Answers requests that are in memory as a whole, in place of an app's service: see
/// [`Running::answers_whole`](crate::Running::answers_whole).
pub trait AnswersWhole: Send + Sync + 'static {
    /// Whether it answers this request. The service answers the others.
    fn takes(&self, request: &WholeRequest<'_>) -> bool;

    /// Answers a request that it takes. The outcome means the same as that of the service.
    fn answer<'a>(&'a self, request: WholeRequest<'a>) -> AnsweringWhole<'a>;
}

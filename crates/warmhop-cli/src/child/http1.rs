//! The connections to an app that speaks HTTP/1.1: a pool, one request at a time on each.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use warmhop::{BoxError, NotSent};

use super::request::RequestBody;
use super::service::FIELDS_MAX;
use super::socket::{Connector, Talk};

/// Idle connections that are kept to one app.
const IDLE_CONNECTIONS_MAX: usize = 256;
/// Shorter than the keep-alive time of common servers (Node.js: 5 s), so that the app is
/// seldom the one to close.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(4);
/// A connection on which a request that changes something is sent was used so lately: servers keep
/// connections open for longer.
const MOMENT: Duration = Duration::from_millis(500);

/// Requests to an app over HTTP/1.1.
#[derive(Clone)]
pub(super) struct Http1Client {
    /// For requests that change nothing.
    kept: Client<Connector, RequestBody>,
    /// For others: of these connections, only those that were used a moment ago.
    lately: Client<Connector, RequestBody>,
    /// For those whose body comes as a stream, and for what has failed on another.
    fresh: Client<Connector, RequestBody>,
}

impl Http1Client {
    pub(super) fn new(addr: SocketAddr) -> Self {
        Self {
            kept: client(addr, IDLE_CONNECTIONS_MAX, IDLE_CONNECTION_TIMEOUT),
            lately: client(addr, IDLE_CONNECTIONS_MAX, MOMENT),
            fresh: client(addr, 0, MOMENT),
        }
    }

    pub(super) async fn request(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, BoxError> {
        let again = twin(&request);
        let (safe, whole) = (request.method().is_safe(), again.is_some());
        let bodiless = request.body().is_end_stream();
        let first = match (safe, whole) {
            (true, _) => &self.kept,
            (false, true) => &self.lately,
            (false, false) => &self.fresh,
        };
        let error = match first.request(request).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        let talk = Talk::of(&error);
        let unsent = talk.as_ref().is_some_and(Talk::is_unsent);
        // The app closed a connection that had been kept just as the request was sent on it. What
        // changes nothing may be sent twice though the app may have acted on it (RFC 9112 section
        // 9.3.1).
        let stale = safe && bodiless && talk.is_some_and(|talk| talk.is_stale());
        match again {
            Some(again) if unsent || stale => self.fresh.request(again).await.map_err(told),
            _ => Err(told(error)),
        }
    }
}

/// The error as the mesh takes it: where the app can have seen nothing of the request, it says so.
fn told(error: Error) -> BoxError {
    let refused = error.is_connect() && is_refusal(&error);
    let unsent = Talk::of(&error).is_some_and(|talk| talk.is_unsent());
    if !refused && !unsent {
        return error.into();
    }
    let reason = if refused { "it refuses connections" } else { "it closes connections at once" };
    NotSent { reason: reason.into(), refuses: true }.into()
}

/// Whether the system says that nobody listens, rather than that it takes long.
pub(super) fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            let kind = error.kind();
            return matches!(
                kind,
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
            );
        }
        cause = error.source();
    }
    false
}

fn client(
    addr: SocketAddr,
    idle_connections_max: usize,
    idle: Duration,
) -> Client<Connector, RequestBody> {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(idle)
        .pool_max_idle_per_host(idle_connections_max)
        .http1_max_headers(FIELDS_MAX)
        .build(Connector { addr })
}

/// The same request once more, where all of it is there to be sent.
pub(super) fn twin(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let mut again = Request::new(request.body().try_clone()?);
    again.method_mut().clone_from(request.method());
    again.uri_mut().clone_from(request.uri());
    again.headers_mut().clone_from(request.headers());
    Some(again)
}

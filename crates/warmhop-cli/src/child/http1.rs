//! The connections to an app that speaks HTTP/1.1: a pool, one request at a time on each.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::request::RequestBody;
use super::service::FIELDS_MAX;
use super::socket::{Connector, Talk};

/// Idle connections that are kept to one app.
const IDLE_CONNECTIONS_MAX: usize = 256;
/// Shorter than the keep-alive time of common servers (Node.js: 5 s), so that the app is
/// seldom the one to close.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(4);

/// Requests to an app over HTTP/1.1.
#[derive(Clone)]
pub(super) struct Http1Client {
    addr: SocketAddr,
    pool: Client<Connector, RequestBody>,
}

impl Http1Client {
    pub(super) fn new(addr: SocketAddr) -> Self {
        Self { addr, pool: client(addr, IDLE_CONNECTIONS_MAX) }
    }

    pub(super) async fn request(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Error> {
        let again = repeatable(&request);
        let error = match self.pool.request(request).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        match again {
            // The app closed a connection that had been kept just as the request was sent on it.
            Some(again) if Talk::of(&error).is_some_and(|talk| talk.is_stale()) => {
                client(self.addr, 0).request(again).await
            }
            _ => Err(error),
        }
    }
}

fn client(addr: SocketAddr, idle_connections_max: usize) -> Client<Connector, RequestBody> {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_CONNECTION_TIMEOUT)
        .pool_max_idle_per_host(idle_connections_max)
        .http1_max_headers(FIELDS_MAX)
        .build(Connector { addr })
}

/// The same request once more, where it may be sent twice though the app may have acted on it
/// (RFC 9112 section 9.3.1) and is all there to be sent: it changes nothing and has no body.
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if !request.method().is_safe() || !request.body().is_end_stream() {
        return None;
    }
    let mut again = Request::new(RequestBody::empty());
    again.method_mut().clone_from(request.method());
    again.uri_mut().clone_from(request.uri());
    again.headers_mut().clone_from(request.headers());
    Some(again)
}

//! The record of a client's request once its answer has ended, from which an access log is made.
//!
//! Records are handed to an [`AccessSink`], set with
//! [`Builder::access_log`](crate::Builder::access_log); without one nothing is gathered. Health
//! checks of balancers ([`READY_PATH`](crate::READY_PATH)) are not requests of a client, and are
//! not recorded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;

use crate::http::body::Body;
use crate::http::body::followed::{Follow, Polled};
use crate::http::fields;
use crate::observe::recall::{Tracing, beginning};
use crate::observe::traffic::Received;

/// The limit on a recorded path, and on a recorded query, in bytes.
const TARGET_BYTES_MAX: usize = 2048;
/// The limit on a recorded host, in bytes.
const HOST_BYTES_MAX: usize = 256;

/// Takes the records of clients' requests.
pub trait AccessSink: Send + Sync + 'static {
    /// Takes one record. It is called by the thread that serves the client, and must not block.
    fn record(&self, access: Access);

    /// How many records it has lost so far, for the metric `warmhop_access_log_dropped_total`.
    /// Default: none.
    fn dropped(&self) -> u64 {
        0
    }
}

/// One request of a client.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Access {
    /// When it arrived.
    pub at: SystemTime,
    /// Where it came from, if that is known.
    pub client: Option<SocketAddr>,
    /// Its `Warmhop-Request-Id`.
    pub id: String,
    /// Its method.
    pub method: Method,
    /// The host that it asked for.
    pub host: Option<String>,
    /// The path of its target, cut where it is very long.
    pub path: String,
    /// The query of its target, which may hold secrets.
    pub query: Option<String>,
    /// The version of HTTP that its client speaks.
    pub version: Version,
    /// The app that it was for, if there is one.
    pub app: Option<String>,
    /// The way that it took: `serve`, `hop`, `page`, `refuse` or `server`; absent if its client
    /// left before that was known.
    pub way: Option<&'static str>,
    /// The peer that ran it, or that it had been sent to when its client left.
    pub peer: Option<String>,
    /// The status of its response; absent if its client left before there was one.
    pub status: Option<u16>,
    /// The name of the problem, if it was answered with one.
    pub problem: Option<&'static str>,
    /// Why it took this way, in the words of `warmhop why`.
    pub why: String,
    /// The bytes of the request's body that were read, or that the client of an upgraded connection
    /// sent in it.
    pub received: u64,
    /// The bytes of the response's body that were sent, or that the client of an upgraded connection
    /// was sent in it.
    pub bytes: u64,
    /// The time until the response's head.
    pub head: Option<Duration>,
    /// The time until the response's end.
    pub total: Duration,
    /// How it ended.
    pub end: AccessEnd,
}

impl Access {
    /// A request that arrives now, with nothing else known. It also serves tests of an
    /// [`AccessSink`].
    #[must_use]
    pub fn new(id: impl Into<String>, method: Method, path: impl Into<String>) -> Self {
        Self {
            at: SystemTime::now(),
            client: None,
            id: id.into(),
            method,
            host: None,
            path: path.into(),
            query: None,
            version: Version::HTTP_11,
            app: None,
            way: None,
            peer: None,
            status: None,
            problem: None,
            why: String::new(),
            received: 0,
            bytes: 0,
            head: None,
            total: Duration::ZERO,
            end: AccessEnd::ClientLeft,
        }
    }
}

/// How the answer to a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AccessEnd {
    /// All of it was sent.
    Complete,
    /// The connection was handed to another protocol, such as WebSocket, and has ended.
    Upgraded,
    /// The response had begun, and broke off.
    CutOff,
    /// The client left before there was a response.
    ClientLeft,
}

impl AccessEnd {
    /// The name of this end in the access log.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Upgraded => "upgraded",
            Self::CutOff => "cut-off",
            Self::ClientLeft => "client-left",
        }
    }
}

/// The sink for records, if there is one.
#[derive(Clone, Default)]
pub(crate) struct Accesses(Option<Arc<dyn AccessSink>>);

impl Accesses {
    pub(crate) fn new(sink: Arc<dyn AccessSink>) -> Self {
        Self(Some(sink))
    }

    /// How many records were lost; absent without a sink.
    pub(crate) fn dropped(&self) -> Option<u64> {
        self.0.as_ref().map(|sink| sink.dropped())
    }

    pub(crate) fn arrives(
        &self,
        request: &mut Request<Body>,
        client: Option<SocketAddr>,
        id: &str,
    ) -> Option<Accessing> {
        let sink = Arc::clone(self.0.as_ref()?);
        let received = Received::default();
        request.extensions_mut().insert(received.clone());
        let (uri, cut) = (request.uri(), |text: &str| beginning(text.into(), TARGET_BYTES_MAX));
        let host = fields::host_as_sent(request.headers());
        let access = Access {
            client,
            host: host.map(|host| beginning(host.into(), HOST_BYTES_MAX)),
            query: uri.query().map(cut),
            version: request.version(),
            ..Access::new(id, request.method().clone(), cut(uri.path()))
        };
        Some(Accessing { access: Some(access), since: Instant::now(), received, sink })
    }
}

/// A request under way. It is recorded when this is dropped, so that a request whose client left is
/// recorded as well.
pub(crate) struct Accessing {
    access: Option<Access>,
    since: Instant,
    received: Received,
    sink: Arc<dyn AccessSink>,
}

impl Accessing {
    pub(crate) fn refused(&mut self, problem: &'static str) {
        if let Some(access) = &mut self.access {
            access.problem = Some(problem);
        }
    }

    /// Notes that the client has left before there was an answer.
    pub(crate) fn left(&mut self, tracing: &Tracing) {
        if let Some(access) = &mut self.access {
            access.app = tracing.named_app();
            (access.way, access.peer) = tracing.under_way().unzip();
        }
    }

    /// Notes the head, and keeps counting until the response's body has been sent or given up.
    pub(crate) fn until_the_end_of(
        mut self,
        response: Response<Body>,
        way: &'static str,
        tracing: &Tracing,
    ) -> Response<Body> {
        self.answered(response.status(), way, tracing);
        let size = response.body().size_hint().exact();
        let mut has_body = !response.body().is_end_stream();
        if let Some(access) = &mut self.access {
            has_body &= access.method != Method::HEAD;
            access.end = if has_body { AccessEnd::CutOff } else { AccessEnd::Complete };
        }
        response.map(|body| body.followed(AccessedBody { size, has_body, access: self }))
    }

    /// Notes the head of an answer.
    pub(crate) fn answered(&mut self, status: StatusCode, way: &'static str, tracing: &Tracing) {
        if let Some(access) = &mut self.access {
            access.way = Some(way);
            access.status = Some(status.as_u16());
            access.head = Some(self.since.elapsed());
            access.app = tracing.named_app();
            access.peer = tracing.named_peer();
            access.why = tracing.last_reason();
            access.end = AccessEnd::Upgraded;
        }
    }

    /// Notes that the connection was upgraded and has ended, and what passed it.
    pub(crate) fn passed(mut self, received: u64, sent: u64) {
        if let Some(access) = &mut self.access {
            (access.received, access.bytes) = (received, sent);
        }
    }
}

impl Drop for Accessing {
    fn drop(&mut self) {
        if let Some(mut access) = self.access.take() {
            access.total = self.since.elapsed();
            access.received += self.received.bytes();
            if access.end == AccessEnd::ClientLeft {
                access.why = "the client left".into();
            }
            self.sink.record(access);
        }
    }
}

/// Counts the bytes of a response's body.
struct AccessedBody {
    /// Its length, if that is known.
    size: Option<u64>,
    has_body: bool,
    access: Accessing,
}

impl Follow for AccessedBody {
    fn has_polled(&mut self, polled: &Polled, is_at_end: bool) {
        let (size, has_body) = (self.size, self.has_body);
        let Some(access) = &mut self.access.access else { return };
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                access.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
                // Nobody polls a body of known length for its end.
                if has_body && (is_at_end || size.is_some_and(|size| access.bytes >= size)) {
                    access.end = AccessEnd::Complete;
                }
            }
            Poll::Ready(None) if has_body => access.end = AccessEnd::Complete,
            _ => {}
        }
    }
}

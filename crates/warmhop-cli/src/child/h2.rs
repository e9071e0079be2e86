//! The connections to an app that speaks HTTP/2: one as long as its streams suffice.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use warmhop::{Body, BoxError, NotSent};

use super::http1::{is_refusal, twin};
use super::request::{Lending, RequestBody, SESSION_FIELD_BYTES_MAX};
use super::socket::Socket;

/// The most requests at once on one connection; what comes beyond opens another. Servers allow
/// no fewer by RFC 9113's advice (section 6.5.2).
pub(super) const STREAMS_MAX: u32 = 100;
/// The most bytes that are held here for a client that does not read its response, and as many
/// for an app that does not read a request.
pub(super) const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Flow-control credit for all streams of a connection at once, so that unread streams can never
/// use it up and stall the others. It takes memory only for streams that nobody reads.
const CONNECTION_WINDOW_BYTES: u32 = STREAMS_MAX * STREAM_WINDOW_BYTES;

/// The largest head of a response as RFC 9113 section 6.5.2 counts it: beside the field of the largest
/// session as large as a front door takes in a request, which is room for
/// [`FIELDS_MAX`](super::plain::FIELDS_MAX) fields of some length.
const HEAD_BYTES_MAX: u32 = 64 * 1024 + SESSION_FIELD_BYTES_MAX as u32;

/// How many requests go on the first connection before the app has said how many it takes: with more,
/// those beyond would be refused. Further connections count on what it said before.
const STREAMS_AT_FIRST: usize = 1;
/// After this time without settings, an app is taken to allow no more than that.
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(1);
/// h2's limit on streams until the app's settings arrive; no app sends this number.
const UNSAID: usize = usize::MAX - 1;

/// On how many connections a request is tried if the app closes one after the other …
const TRIES_MAX: usize = 8;
/// … of which it shares so many with others. An app that leaves each connection after a few requests
/// may refuse the same one again and again, but not one that comes alone.
const TRIES_SHARED: usize = 2;

/// Requests to an app over HTTP/2.
pub(super) struct H2Client {
    addr: SocketAddr,
    connections: Arc<Connections>,
    /// How many requests at once it took on its latest connection; 0: nothing is known yet.
    known: Arc<AtomicUsize>,
}

type Connections = Mutex<Vec<Connection>>;

struct Connection {
    sender: http2::SendRequest<RequestBody>,
    /// Held by each request as well until its response has been read to its end.
    uses: Use,
}

/// The state that a connection's requests and the task that drives it share.
struct Shared {
    /// How many requests the app takes at once on it, as far as is known.
    streams_max: AtomicUsize,
    /// Whether the app has said so, on this connection or an earlier one, or had its time for it.
    settled: Arc<watch::Sender<bool>>,
    known: Arc<AtomicUsize>,
    /// The app takes no more requests on it.
    leaving: AtomicBool,
}

type Use = Arc<Shared>;

type Entered = (http2::SendRequest<RequestBody>, Use);

impl Shared {
    /// The app has said how many requests it takes.
    fn takes(&self, streams_max: usize) {
        self.streams_max.store(streams_max, Relaxed);
        self.known.store(streams_max, Relaxed);
        if !*self.settled.borrow() {
            self.settled.send_replace(true);
        }
    }
}

impl Connection {
    /// The task that drives the connection holds one count, too.
    fn in_use(&self) -> usize {
        Arc::strong_count(&self.uses).saturating_sub(2)
    }

    fn has_room(&self) -> bool {
        !self.uses.leaving.load(Relaxed)
            && self.in_use() < self.uses.streams_max.load(Relaxed).min(STREAMS_MAX as usize)
    }
}

impl H2Client {
    pub(super) fn new(addr: SocketAddr) -> Self {
        Self { addr, connections: Arc::default(), known: Arc::default() }
    }

    /// A connection with room for a request, a new one if there is none.
    async fn enter(&self) -> Result<Entered, BoxError> {
        loop {
            let unsettled = match self.look().await? {
                Ok(entered) => return Ok(entered),
                Err(unsettled) => unsettled,
            };
            let mut changes = unsettled.subscribe();
            let settled = changes.wait_for(|settled| *settled);
            if timeout(SETTINGS_TIMEOUT, settled).await.is_err() {
                unsettled.send_replace(true);
            }
        }
    }

    /// The same, unless it is to be known soon how much room a connection has.
    async fn look(&self) -> Result<Result<Entered, Arc<watch::Sender<bool>>>, BoxError> {
        let mut connections = self.connections.lock().await;
        // One connection without requests is kept, so that small changes of load do not open and
        // close a connection each time.
        let mut has_idle = false;
        connections.retain(|connection| {
            !connection.sender.is_closed()
                && !connection.uses.leaving.load(Relaxed)
                && (connection.in_use() > 0 || !std::mem::replace(&mut has_idle, true))
        });
        if let Some(connection) = connections.iter().find(|open| open.has_room()) {
            return Ok(Ok((connection.sender.clone(), Arc::clone(&connection.uses))));
        }
        if let Some(connection) = connections.iter().find(|open| !*open.uses.settled.borrow()) {
            return Ok(Err(Arc::clone(&connection.uses.settled)));
        }
        let (sender, uses) = self.connect().await?;
        connections.push(Connection { sender: sender.clone(), uses: Arc::clone(&uses) });
        Ok(Ok((sender, uses)))
    }

    async fn connect(&self) -> Result<Entered, BoxError> {
        // It is read to its end even when it can no longer be written to: an app that leaves resets
        // the connection if requests arrive that it will not read, and its `GOAWAY` is still to be
        // read.
        let socket = Socket::shared(self.addr).await.map_err(|error| -> BoxError {
            if is_refusal(&error) {
                return NotSent::new("it refuses connections")
                    .refuses(true)
                    .caused_by(error)
                    .into();
            }
            error.into()
        })?;
        let caught_up = socket.caught_up();
        let known = self.known.load(Relaxed).min(STREAMS_MAX as usize);
        let at_first = if known == 0 { STREAMS_AT_FIRST } else { known };
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_send_buf_size(STREAM_WINDOW_BYTES as usize)
            .initial_max_send_streams(UNSAID)
            .handshake(TokioIo::new(socket))
            .await?;
        let shared = Arc::new(Shared {
            streams_max: AtomicUsize::new(at_first),
            settled: Arc::new(watch::Sender::new(known > 0)),
            known: Arc::clone(&self.known),
            leaving: AtomicBool::new(false),
        });
        let (state, connections) = (Arc::clone(&shared), Arc::downgrade(&self.connections));
        // Each of its requests gets the error if it fails.
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let mut said = UNSAID;
            let driven = std::future::poll_fn(|cx| {
                // hyper does not wake it when settings arrive.
                if said == UNSAID {
                    caught_up.register(cx.waker());
                }
                let polled = connection.as_mut().poll(cx);
                let streams_max = connection.current_max_send_streams();
                if std::mem::replace(&mut said, streams_max) != streams_max {
                    state.takes(streams_max);
                }
                polled
            });
            let _ = driven.await;
            state.settled.send_replace(true);
            forget_closed(&connections).await;
        });
        Ok((sender, shared))
    }

    pub(super) async fn request(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Body>, BoxError> {
        // If the connection broke, a request that changes nothing may be sent once more though the
        // app may have acted on it: a `GOAWAY` that the app sent before may have been lost with the
        // rest.
        let mut may_repeat = request.method().is_safe();
        for tried in 0..TRIES_MAX {
            let (sent, mut again) = Again::of(request);
            let entered =
                if tried < TRIES_SHARED { self.enter().await } else { self.connect().await };
            let (mut sender, uses) = entered?;
            let answer = sender.try_send_request(sent);
            // A request sent as the connection ends may be left in its queue, and is returned once
            // the last sender is gone. The task that waits must not hold one.
            drop(sender);
            let mut error = match answer.await {
                Ok(response) => {
                    return Ok(response.map(|body| Body::new(InUse { body, uses: Some(uses) })));
                }
                Err(error) => error,
            };
            // Either the connection ended before a byte of the request had left, or the app reports
            // that it has not processed the request (RFC 9113 sections 6.8 and 8.7).
            let unsent = error.take_message();
            let error = error.into_error();
            let refused = is_unprocessed(&error);
            let broke = is_broken(&error);
            if unsent.is_some() || refused || broke {
                uses.leaving.store(true, Relaxed);
            }
            request = match unsent {
                Some(unsent) => unsent,
                None if refused => match again.request().await {
                    Some(request) => request,
                    // More of its body has left than is kept.
                    None => {
                        let reason = "it closed the connection before it took the request";
                        return Err(NotSent::new(reason).caused_by(error).into());
                    }
                },
                None if broke && std::mem::take(&mut may_repeat) => match again.twin() {
                    Some(request) => request,
                    None => return Err(error.into()),
                },
                None => return Err(error.into()),
            };
        }
        let reason = "it closed one connection after the other before it took the request";
        Err(NotSent::new(reason).into())
    }
}

/// What it takes to send a request once more that was sent.
enum Again {
    /// A copy of it: all of it is in memory.
    Twin(Box<Request<RequestBody>>),
    /// Its head, and the body, which may come back.
    Lent(Box<Request<RequestBody>>, Lending),
    Gone,
}

impl Again {
    /// The request to send, and what is kept of it.
    fn of(request: Request<RequestBody>) -> (Request<RequestBody>, Self) {
        if let Some(twin) = twin(&request) {
            return (request, Self::Twin(Box::new(twin)));
        }
        let mut head = Request::new(RequestBody::empty());
        head.method_mut().clone_from(request.method());
        head.uri_mut().clone_from(request.uri());
        head.headers_mut().clone_from(request.headers());
        *head.version_mut() = request.version();
        let (parts, body) = request.into_parts();
        let (body, lending) = body.lend();
        (Request::from_parts(parts, body), Self::Lent(Box::new(head), lending))
    }

    /// The request, if all of it was in memory.
    fn twin(&mut self) -> Option<Request<RequestBody>> {
        match std::mem::replace(self, Self::Gone) {
            Self::Twin(twin) => Some(*twin),
            Self::Lent(..) | Self::Gone => None,
        }
    }

    /// The request, if its connection gives the body back whole.
    async fn request(&mut self) -> Option<Request<RequestBody>> {
        match std::mem::replace(self, Self::Gone) {
            Self::Twin(twin) => Some(*twin),
            Self::Lent(mut head, lending) => {
                *head.body_mut() = lending.back().await?;
                Some(*head)
            }
            Self::Gone => None,
        }
    }
}

/// Drops the connections that have ended, and with them the requests in their queues.
async fn forget_closed(connections: &Weak<Connections>) {
    if let Some(connections) = connections.upgrade() {
        connections.lock().await.retain(|connection| !connection.sender.is_closed());
    }
}

/// Whether the connection ended, rather than the request's stream alone.
fn is_broken(error: &hyper::Error) -> bool {
    let Some(cause) = error.source() else { return error.is_closed() };
    let h2 = cause.downcast_ref::<h2::Error>();
    // hyper reports a reset connection by the system's error alone.
    error.is_closed()
        || cause.is::<io::Error>()
        || h2.is_some_and(|cause| cause.is_io() || cause.is_go_away())
}

/// Whether the app has reported that it did not process the request: by a `GOAWAY`, which names the
/// last stream that it has processed, or by `REFUSED_STREAM`.
fn is_unprocessed(error: &hyper::Error) -> bool {
    let Some(cause) = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>()) else {
        return false;
    };
    let refused = cause.is_reset() && cause.reason() == Some(h2::Reason::REFUSED_STREAM);
    cause.is_remote() && (cause.is_go_away() || refused)
}

/// A response's body, which keeps its place on the connection until its end.
struct InUse {
    body: Incoming,
    uses: Option<Use>,
}

impl http_body::Body for InUse {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = &polled {
            self.uses = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;

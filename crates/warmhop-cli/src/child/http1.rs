//! The connections to an app that speaks HTTP/1.1: one request at a time on each, kept between
//! requests.
//!
//! A request has no task of its own and its connection has none either: whoever waits for the answer
//! drives the connection, from the request's first byte to the answer's last. What a request costs
//! besides its bytes is one wake, when the app has answered.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use warmhop::{Body, BoxError, NotSent};

use super::pool::{IDLE_CONNECTION_TIMEOUT, Pool};
use super::request::RequestBody;
use super::service::FIELDS_MAX;
use super::socket::{Socket, Talk};

/// A connection on which a request that changes something is sent was used so lately: servers keep
/// connections open for longer.
const MOMENT: Duration = Duration::from_millis(500);

/// Requests to an app over HTTP/1.1.
#[derive(Clone)]
pub(super) struct Http1Client {
    pool: Arc<Pool>,
}

/// One connection and all that belongs to it.
pub(super) struct Line {
    sender: SendRequest<RequestBody>,
    /// Absent once it has ended.
    connection: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    talk: Talk,
    /// When it was last used.
    pub(super) used: Instant,
}

/// How a request failed.
struct Failed {
    error: hyper::Error,
    /// The request, where hyper has it still.
    unsent: Option<Request<RequestBody>>,
    /// What was said on the connection.
    talk: Talk,
}

impl Failed {
    /// Whether the app can have seen nothing of the request.
    fn is_unsent(&self) -> bool {
        self.unsent.is_some() || self.talk.is_unsent()
    }

    /// The error as the mesh takes it.
    fn told(self) -> BoxError {
        if self.is_unsent() {
            let reason = "it closes connections at once".into();
            return NotSent { reason, refuses: true }.into();
        }
        self.error.into()
    }
}

impl Http1Client {
    pub(super) fn new(addr: SocketAddr) -> Self {
        Self { pool: Arc::new(Pool::new(addr)) }
    }

    pub(super) async fn request(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<Body>, BoxError> {
        let again = twin(&request);
        let (safe, bodiless) = (request.method().is_safe(), request.body().is_end_stream());
        let idle = match (safe, again.is_some()) {
            (true, _) => IDLE_CONNECTION_TIMEOUT,
            (false, true) => MOMENT,
            (false, false) => Duration::ZERO,
        };
        let line = match self.pool.take(idle) {
            Some(line) => line,
            None => Box::pin(Line::open(self.pool.addr)).await?,
        };
        match self.exchange(line, request).await {
            Ok(response) => Ok(response),
            // Boxed, as what is rare: the future of every request is moved about.
            Err(failed) => Box::pin(self.once_more(failed, again, safe && bodiless)).await,
        }
    }

    /// Sends a request again that failed on its first connection, if it may be. `harmless`: it
    /// changes nothing, and has no body.
    async fn once_more(
        &self,
        mut failed: Failed,
        again: Option<Request<RequestBody>>,
        harmless: bool,
    ) -> Result<Response<Body>, BoxError> {
        // The app closed a connection that had been kept just as the request was sent on it. What
        // changes nothing may be sent twice though the app may have acted on it (RFC 9112 section
        // 9.3.1).
        let stale = harmless && failed.talk.is_stale();
        let again = match failed.unsent.take() {
            Some(unsent) => unsent,
            None => match again {
                Some(again) if stale || failed.talk.is_unsent() => again,
                _ => return Err(failed.told()),
            },
        };
        let line = Line::open(self.pool.addr).await?;
        self.exchange(line, again).await.map_err(Failed::told)
    }

    async fn exchange(
        &self,
        mut line: Box<Line>,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Body>, Failed> {
        let sending = request.body_mut().sending();
        let mut answer = std::pin::pin!(line.sender.try_send_request(request));
        let answer = std::future::poll_fn(|cx| {
            line.drive(cx);
            answer.as_mut().poll(cx)
        });
        let response = answer.await.map_err(|mut failed| Failed {
            unsent: failed.take_message(),
            error: failed.into_error(),
            talk: line.talk.clone(),
        })?;
        let (parts, mut incoming) = response.into_parts();
        let is_sent = sending.is_none_or(|sending| sending.strong_count() == 0);
        if !is_sent || parts.status == StatusCode::SWITCHING_PROTOCOLS {
            // The request goes on whether or not its answer is read: a client may send all of its
            // body before it reads anything.
            tokio::spawn(line.run_out(Arc::downgrade(&self.pool)));
            return Ok(Response::from_parts(parts, Body::from(incoming)));
        }
        // Most answers are short and have arrived with their heads: then the connection is free.
        let mut ahead = None;
        if !incoming.is_end_stream() {
            ahead = std::future::poll_fn(|cx| {
                line.drive(cx);
                Poll::Ready(match Pin::new(&mut incoming).poll_frame(cx) {
                    Poll::Ready(frame) => Some(frame),
                    Poll::Pending => None,
                })
            })
            .await;
        }
        let whole = match &ahead {
            _ if !incoming.is_end_stream() => None,
            None => Some(Body::empty()),
            Some(Some(Ok(frame))) => frame.data_ref().cloned().map(Body::from),
            Some(_) => None,
        };
        if let Some(whole) = whole {
            line.free(&self.pool);
            return Ok(Response::from_parts(parts, whole));
        }
        let pool = Arc::downgrade(&self.pool);
        let body = Answer { ahead, incoming, line: Some(line), pool };
        Ok(Response::from_parts(parts, Body::new(body)))
    }
}

impl Line {
    async fn open(addr: SocketAddr) -> Result<Box<Self>, BoxError> {
        let socket = Socket::connect(addr).await.map_err(|error| -> BoxError {
            if is_refusal(&error) {
                return NotSent { reason: "it refuses connections".into(), refuses: true }.into();
            }
            error.into()
        })?;
        let talk = socket.talk();
        let (sender, connection) =
            Builder::new().max_headers(FIELDS_MAX).handshake(TokioIo::new(socket)).await?;
        // Boxed for its type, which has no name outside of hyper.
        let connection: Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(connection.with_upgrades());
        Ok(Box::new(Self { sender, connection: Some(connection), talk, used: Instant::now() }))
    }

    /// Does what there is to do on the connection.
    fn drive(&mut self, cx: &mut Context<'_>) {
        // Whoever waits for an answer is told how it ended.
        if self.connection.as_mut().is_some_and(|it| it.as_mut().poll(cx).is_ready()) {
            self.connection = None;
        }
    }

    /// Whether another request can be sent on it, as far as is known.
    pub(super) fn is_free(&mut self) -> bool {
        // A connection that waits for a request only looks whether the app has closed it.
        self.drive(&mut Context::from_waker(std::task::Waker::noop()));
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Keeps it for the next request, once this one has ended on it.
    fn free(mut self: Box<Self>, pool: &Arc<Pool>) {
        if self.is_free() {
            pool.put(self);
        } else if self.connection.is_some() {
            tokio::spawn(self.run_out(Arc::downgrade(pool)));
        }
    }

    /// Drives the connection until it is free or has ended.
    async fn run_out(mut self: Box<Self>, pool: Weak<Pool>) {
        let freed = std::future::poll_fn(|cx| {
            self.drive(cx);
            match self.connection {
                Some(_) => self.sender.poll_ready(cx).map(|ready| ready.is_ok()),
                None => Poll::Ready(false),
            }
        });
        if freed.await
            && let Some(pool) = pool.upgrade()
        {
            pool.put(self);
        }
    }
}

/// The body of an answer, which drives its connection while it is read. Dropping it before its end
/// closes the connection.
struct Answer {
    ahead: Option<Option<Result<Frame<Bytes>, hyper::Error>>>,
    incoming: Incoming,
    line: Option<Box<Line>>,
    pool: Weak<Pool>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = match this.ahead.take() {
            Some(ahead) => ahead,
            None => {
                if let Some(line) = &mut this.line {
                    line.drive(cx);
                }
                ready!(Pin::new(&mut this.incoming).poll_frame(cx))
            }
        };
        let ended = matches!(frame, None | Some(Err(_))) || this.incoming.is_end_stream();
        if ended
            && let Some(line) = this.line.take()
            && let Some(pool) = this.pool.upgrade()
        {
            line.free(&pool);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_none() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.ahead {
            None => self.incoming.size_hint(),
            // What was read ahead has been taken off the length that was said.
            Some(ahead) => {
                let data = ahead.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
                let more = data.map_or(0, |data| data.len() as u64);
                match self.incoming.size_hint().exact() {
                    Some(rest) => SizeHint::with_exact(rest + more),
                    None => SizeHint::default(),
                }
            }
        }
    }
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

/// The same request once more, where all of it is there to be sent.
pub(super) fn twin(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let mut again = Request::new(request.body().try_clone()?);
    again.method_mut().clone_from(request.method());
    again.uri_mut().clone_from(request.uri());
    again.headers_mut().clone_from(request.headers());
    Some(again)
}

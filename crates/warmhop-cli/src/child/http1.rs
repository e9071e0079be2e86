//! Requests to an app that speaks HTTP/1.1: one at a time on each connection, kept between requests.
//!
//! Neither a request nor its connection has a task of its own: the task that waits for the answer
//! reads and writes it. Almost all requests arrive with their whole body and almost all answers
//! have a length; for those [`Plain`] suffices, at a fraction of the cost of a general client.
//! Everything else is left to hyper: bodies that are streamed or wait for `100 Continue`, upgrades,
//! and answers in chunks, or framed by the connection's end, or of another form.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use warmhop::{Body, BoxError, Interim, NotSent};

use super::interim;
use super::plain::{self, Asked, Exchanged, FIELDS_MAX, Failed, Plain};
use super::pool::{IDLE_CONNECTION_TIMEOUT, Pool};
use super::request::{RequestBody, SESSION_FIELD_BYTES_MAX};
use super::socket::{Socket, Talk};

/// A request that changes something is sent on a connection that was used within this time: servers
/// keep connections open for longer.
const MOMENT: Duration = Duration::from_millis(500);

/// The longest head of an answer, and the size of hyper's buffers. The largest session that may be carried
/// fits, beside the fields that every answer may have.
const HEAD_BYTES_MAX: usize = 408 * 1024 + SESSION_FIELD_BYTES_MAX;

/// Requests to an app over HTTP/1.1.
#[derive(Clone)]
pub(super) struct Http1Client {
    pool: Arc<Pool>,
}

impl Http1Client {
    pub(super) fn new(addr: SocketAddr) -> Self {
        Self { pool: Arc::new(Pool::new(addr)) }
    }

    pub(super) async fn request(
        &self,
        request: Request<RequestBody>,
        interim: Option<Interim>,
    ) -> Result<Response<Body>, BoxError> {
        let Some(body) = request.body().whole() else {
            return Box::pin(self.streamed(request, interim)).await;
        };
        if request.headers().contains_key(UPGRADE) {
            return Box::pin(self.streamed(request, interim)).await;
        }
        let asked = Asked {
            method: request.method(),
            target: request.uri().path_and_query().map_or("/", |target| target.as_str()),
            fields: request.headers(),
            further: None,
            body: &body,
        };
        self.whole(asked, interim.as_ref()).await
    }

    /// Sends a request whose body is in memory, and which asks for no upgrade.
    pub(super) async fn whole(
        &self,
        asked: Asked<'_>,
        interim: Option<&Interim>,
    ) -> Result<Response<Body>, BoxError> {
        let idle = if asked.method.is_safe() { IDLE_CONNECTION_TIMEOUT } else { MOMENT };
        let socket = match self.pool.take(idle) {
            Some(socket) => socket,
            None => Box::pin(open(self.pool.addr)).await?,
        };
        match Plain::new(socket, asked).await {
            Ok(Exchanged::Whole(response, socket)) => {
                self.pool.put(socket);
                Ok(response)
            }
            // Boxed, since it is rare: the future of every request would be as large.
            outcome => Box::pin(self.otherwise(outcome, asked, interim)).await,
        }
    }

    /// Handles a request whose answer has not come whole.
    async fn otherwise(
        &self,
        outcome: Result<Exchanged, Failed>,
        asked: Asked<'_>,
        interim: Option<&Interim>,
    ) -> Result<Response<Body>, BoxError> {
        let exchanged = match outcome {
            Ok(exchanged) => exchanged,
            // The app closed a kept connection just as the request was sent on it. A request that
            // changes nothing may be sent twice though the app may have acted on it (RFC 9112
            // section 9.3.1).
            Err(failed) if failed.unsent || (asked.is_harmless() && failed.stale) => {
                let socket = open(self.pool.addr).await?;
                Plain::new(socket, asked).await.map_err(Failed::into_error)?
            }
            Err(failed) => return Err(failed.into_error()),
        };
        match exchanged {
            Exchanged::Whole(response, socket) => {
                self.pool.put(socket);
                Ok(response)
            }
            Exchanged::Ends(response) => Ok(response),
            Exchanged::Begun(parts, reading) => {
                let body = plain::Answer::new(reading, Arc::downgrade(&self.pool));
                Ok(Response::from_parts(parts, Body::new(body)))
            }
            Exchanged::Other(socket) => {
                // This request is not sent to the app, which has the real one: it only informs
                // hyper which method the answer is for.
                let mut again = Request::new(RequestBody::empty());
                *again.method_mut() = asked.method.clone();
                interim::pass_on(&mut again, interim.cloned(), None);
                let line = Line::over(socket, false).await?;
                self.exchange(line, again).await.map_err(Failed::into_error)
            }
        }
    }

    /// Sends a request whose body is streamed, or that asks for an upgrade.
    async fn streamed(
        &self,
        mut request: Request<RequestBody>,
        interim: Option<Interim>,
    ) -> Result<Response<Body>, BoxError> {
        let upgrades = request.headers().contains_key(UPGRADE);
        // A body that waits for the app has its own way to hear of interim responses.
        if request.body().gate.is_none() {
            interim::pass_on(&mut request, interim.clone(), None);
        }
        let again = twin(&request);
        let (safe, bodiless) = (request.method().is_safe(), request.body().is_end_stream());
        let idle = match (safe, again.is_some()) {
            (true, _) => IDLE_CONNECTION_TIMEOUT,
            (false, true) => MOMENT,
            (false, false) => Duration::ZERO,
        };
        let socket = match self.pool.take(idle) {
            Some(socket) => socket,
            None => open(self.pool.addr).await?,
        };
        let failed = match self.exchange(Line::over(socket, upgrades).await?, request).await {
            Ok(response) => return Ok(response),
            Err(failed) => failed,
        };
        let may_go_again = failed.unsent || (safe && bodiless && failed.stale);
        let Some(mut again) = again.filter(|_| may_go_again) else {
            return Err(failed.into_error());
        };
        interim::pass_on(&mut again, interim, None);
        let line = Line::over(open(self.pool.addr).await?, upgrades).await?;
        self.exchange(line, again).await.map_err(Failed::into_error)
    }

    async fn exchange(
        &self,
        mut line: Box<Line>,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Body>, Failed> {
        let sending = request.body_mut().sending();
        let mut answer = std::pin::pin!(line.sender.try_send_request(request));
        let answer = std::future::poll_fn(|cx| {
            line.driven.drive(cx);
            answer.as_mut().poll(cx)
        });
        let response = answer.await.map_err(|mut failed| Failed {
            unsent: failed.take_message().is_some() || line.talk.is_unsent(),
            stale: line.talk.is_stale(),
            error: in_words(failed.into_error()),
        })?;
        let (parts, mut incoming) = response.into_parts();
        if is_coded(&parts.headers) {
            let error = "the app's answer has a transfer coding other than `chunked`".into();
            return Err(Failed { error, unsent: false, stale: false });
        }
        let is_sent = sending.is_none_or(|sending| sending.strong_count() == 0);
        if !is_sent || parts.status == StatusCode::SWITCHING_PROTOCOLS {
            // The request is sent on whether or not its answer is read: a client may send all of
            // its body before it reads anything.
            tokio::spawn(line.run_out(Arc::downgrade(&self.pool)));
            return Ok(Response::from_parts(parts, Body::from(incoming)));
        }
        // Most answers are short and have arrived with their heads: then the connection is free.
        let mut ahead = None;
        if !incoming.is_end_stream() {
            ahead = std::future::poll_fn(|cx| {
                line.driven.drive(cx);
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

/// An error of hyper's, which also calls a head with too many fields too large.
fn in_words(error: hyper::Error) -> BoxError {
    if error.is_parse_too_large() {
        let most = HEAD_BYTES_MAX / 1024;
        let words =
            format!("the head of its answer has more than {FIELDS_MAX} fields or {most} KiB");
        return words.into();
    }
    error.into()
}

/// A new connection to the app.
async fn open(addr: SocketAddr) -> Result<Box<Socket>, BoxError> {
    let socket = Socket::connect(addr).await.map_err(|error| -> BoxError {
        if is_refusal(&error) {
            return NotSent::new("it refuses connections").refuses(true).caused_by(error).into();
        }
        error.into()
    })?;
    Ok(Box::new(socket))
}

/// A connection under hyper, with everything that belongs to it.
struct Line {
    sender: SendRequest<RequestBody>,
    driven: Driven,
    talk: Talk,
}

/// hyper's end of a connection.
enum Driven {
    /// A connection that can be kept for another request.
    Plain(Box<Connection<TokioIo<Box<Socket>>, RequestBody>>),
    /// A connection that may be upgraded. Boxed, since its type has no name outside of hyper.
    Upgradable(Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>),
    /// It has ended.
    Over,
}

impl Driven {
    /// Drives the connection as far as it goes without waiting.
    fn drive(&mut self, cx: &mut Context<'_>) {
        let ended = match self {
            Self::Plain(connection) => connection.poll_without_shutdown(cx).is_ready(),
            Self::Upgradable(connection) => connection.as_mut().poll(cx).is_ready(),
            Self::Over => false,
        };
        // The task that waits for an answer gets the outcome.
        if ended {
            *self = Self::Over;
        }
    }

    fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }
}

impl Line {
    async fn over(mut socket: Box<Socket>, upgrades: bool) -> Result<Box<Self>, BoxError> {
        let talk = socket.talk();
        socket.reads_in_pieces();
        let (sender, connection) = Builder::new()
            .max_headers(FIELDS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(socket))
            .await?;
        let driven = if upgrades {
            Driven::Upgradable(Box::pin(connection.with_upgrades()))
        } else {
            Driven::Plain(Box::new(connection))
        };
        Ok(Box::new(Self { sender, driven, talk }))
    }

    /// Keeps its connection for the next request, once this one has ended on it.
    fn free(mut self: Box<Self>, pool: &Arc<Pool>) {
        // An idle connection only checks whether the app has closed it.
        self.driven.drive(&mut Context::from_waker(std::task::Waker::noop()));
        if self.driven.is_over() {
            return;
        }
        if self.sender.is_ready() {
            self.give_back(pool);
        } else {
            tokio::spawn(self.run_out(Arc::downgrade(pool)));
        }
    }

    /// A connection that may have been upgraded is not kept.
    fn give_back(self, pool: &Arc<Pool>) {
        if let Driven::Plain(connection) = self.driven {
            let parts = connection.into_parts();
            if parts.read_buf.is_empty() {
                pool.put(parts.io.into_inner());
            }
        }
    }

    /// Drives the connection until it is free or has ended.
    async fn run_out(mut self: Box<Self>, pool: Weak<Pool>) {
        let freed = std::future::poll_fn(|cx| {
            self.driven.drive(cx);
            if self.driven.is_over() {
                return Poll::Ready(false);
            }
            self.sender.poll_ready(cx).map(|ready| ready.is_ok())
        });
        if freed.await
            && let Some(pool) = pool.upgrade()
        {
            self.give_back(&pool);
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
                    line.driven.drive(cx);
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
            // What was read ahead has been subtracted from the declared length.
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

/// Whether the system reports that nobody listens, and not that it takes long.
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

/// Whether a body has a transfer coding besides `chunked`. Nobody asked for one (RFC 9110 section
/// 10.1.4), and clients would get the coded bytes as if they were plain.
fn is_coded(fields: &HeaderMap) -> bool {
    let values = fields.get_all(TRANSFER_ENCODING).iter();
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).any(|coding| {
        let coding = coding.trim_ascii();
        let plain: [&[u8]; 3] = [b"", b"chunked", b"identity"];
        !plain.iter().any(|plain| coding.eq_ignore_ascii_case(plain))
    })
}

/// A copy of the request, if all of it is in memory.
pub(super) fn twin(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let mut again = Request::new(request.body().try_clone()?);
    again.method_mut().clone_from(request.method());
    again.uri_mut().clone_from(request.uri());
    again.headers_mut().clone_from(request.headers());
    Some(again)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::Method;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::{advance, pause, resume};
    use tower::Service;

    use super::*;
    use crate::child::launch::Protocol;
    use crate::child::service::ChildService;

    #[tokio::test]
    async fn a_request_that_changes_something_takes_no_connection_that_was_idle_for_a_moment() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut service = ChildService::new(listener.local_addr().unwrap().port(), Protocol::Http1);
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&accepted);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    while stream.read(&mut [0; 4096]).await.is_ok_and(|bytes| bytes > 0) {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                        stream.write_all(answer).await.unwrap();
                    }
                });
            }
        });
        // How long after the one before, and how many connections there have been then.
        for (at, (method, after, connections)) in [
            (Method::POST, Duration::ZERO, 1),
            (Method::POST, MOMENT / 2, 1),
            (Method::GET, MOMENT, 1),
            (Method::POST, MOMENT / 2, 1),
            (Method::POST, MOMENT, 2),
            (Method::DELETE, MOMENT, 3),
            (Method::GET, MOMENT, 3),
            (Method::GET, IDLE_CONNECTION_TIMEOUT, 4),
        ]
        .into_iter()
        .enumerate()
        {
            pause();
            advance(after).await;
            resume();
            let request = Request::builder().method(method).uri("/").body(Body::empty()).unwrap();
            assert_eq!(service.call(request).await.unwrap().status(), StatusCode::OK);
            assert_eq!(accepted.load(Ordering::SeqCst), connections, "request {at}");
        }
    }
}

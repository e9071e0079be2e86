//! A peer's front door: the HTTP/1.1 and HTTP/2 listener for clients.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::Either;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::front::client_body::{ClientBody, Exchange};
use crate::front::ingress::Ingress;
use crate::front::interjected::Interjected;
use crate::front::newcomers::{self, Newcomer, Newcomers};
use crate::front::origin;
use crate::front::plain::{self, Ahead, Answers, Left};
use crate::http::accept::Acceptor;
use crate::http::aside::Aside;
use crate::http::body::{Body, BoxError};
use crate::http::client::ClientInfo;
use crate::http::clients::Account;
use crate::http::departure::{ConnectionRequests, CountedBody};
use crate::http::fields;
use crate::http::framing::{Framed, H2_PREFACE};
use crate::http::heads::{FIELDS_MAX, HEAD_BYTES_MAX};
use crate::http::interim;
use crate::http::refusals::Refusal;
use crate::http::tunnels::Tunnels;
use crate::http::willing;
use crate::http::writes_through::writes_through;
use crate::identity::handshake::HandshakeFailure;
use crate::observe::doors::Connected;
use crate::request::grpc;

/// How long a client may take to show which version of HTTP it speaks, and to send a request's
/// head, and how long a connection may stay idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection that has sent no request yet is kept open when the door closes.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_millis(500);
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most client connections of one listener, unless the builder sets another limit.
pub(crate) const CONNECTIONS_MAX: usize = 16 * 1024;
/// The most streams a client may open at once on an HTTP/2 connection: as many as RFC 9113 section
/// 6.5.2 has at least.
const H2_STREAMS_MAX: u32 = 100;
/// How much of one request's body a client may send before its app reads it.
const H2_STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// The same for all of a connection's requests together: enough for each to stall with a full
/// window, so that uploads whose apps do not read never stop the others. It is also the most memory
/// that the bodies of one connection take.
const H2_CONNECTION_WINDOW_BYTES: u32 = H2_STREAMS_MAX * H2_STREAM_WINDOW_BYTES;
/// How much of one answer is buffered before its client reads it.
const H2_SEND_BYTES: usize = 64 * 1024;
/// How long a connection may take to end gracefully.
const GOODBYE_WITHIN: Duration = Duration::from_secs(10);

/// A front door without its listeners.
pub(crate) struct Door {
    /// The gauge of its connections.
    pub(crate) connections: Gauge,
    pub(crate) tls: Option<TlsAcceptor>,
    /// Connections begin with a PROXY header.
    pub(crate) proxy_protocol: bool,
    pub(crate) ingress: Arc<Ingress>,
    /// Cancelled when the door closes: connections then end gracefully …
    pub(crate) closing: CancellationToken,
    /// … and are cut off when their grace time is over.
    pub(crate) tunnels: Tunnels,
    /// The places for further connections, at all its listeners.
    pub(crate) permits: Arc<Semaphore>,
}

/// Serves `listener` until the door closes. Each connection stays on the runtime that calls this.
pub(crate) async fn serve(listener: TcpListener, door: Arc<Door>, connections: TaskTracker) {
    let (clients, permits) = (Arc::clone(&door.ingress.clients), Arc::clone(&door.permits));
    let mut newcomers = Newcomers::new(Arc::clone(&clients), permits, door.proxy_protocol);
    let mut acceptor =
        Acceptor::new(listener, "a front door").on_failure(move || _ = clients.make_room(None));
    let serve_placed = |Newcomer { stream, peer }, permit: OwnedSemaphorePermit| {
        let door = Arc::clone(&door);
        connections.spawn(async move {
            accepted_one(stream, peer, door).await;
            drop(permit);
        });
    };
    loop {
        if door.ingress.clients.is_crowded() {
            tokio::task::yield_now().await;
        }
        let may_come_at = newcomers.may_come_at();
        let coming = async {
            if let Some(at) = may_come_at {
                sleep_until(at).await;
            }
            acceptor.next().await
        };
        tokio::select! {
            biased;
            () = door.closing.cancelled() => break,
            (newcomer, permit) = newcomers.next_placed() => serve_placed(newcomer, permit),
            (stream, peer) = coming => newcomers.comes(Newcomer { stream, peer }),
        }
    }
    // Clients that connected before the listener closed are served, not reset, as far as there are
    // places.
    let late = acceptor.close().map(|(stream, peer)| Newcomer { stream, peer });
    for newcomer in newcomers.without_place().into_iter().chain(late) {
        match Arc::clone(&door.permits).try_acquire_owned() {
            Ok(permit) => serve_placed(newcomer, permit),
            Err(_) => door.ingress.clients.refusals().note(Refusal::NoPlace),
        }
    }
}

async fn accepted_one(mut stream: TcpStream, peer: SocketAddr, door: Arc<Door>) {
    // It fails only if the connection is already closed.
    let _ = stream.set_nodelay(true);
    let connected = Connected::at(&door.connections);
    let mut client = ClientInfo { addr: Some(peer), secure: false };
    if door.proxy_protocol {
        let Some(proxied) = client_by_proxy(&mut stream, peer, client, &door).await else { return };
        client = proxied;
    }
    let address = client.addr.map_or(peer.ip(), |addr| addr.ip());
    // If places are short, it matters whether it is idle.
    let arrives = door.permits.available_permits() == 0 && newcomers::has_sent(&stream);
    let Some(admitted) = door.ingress.clients.admit(address, arrives) else { return };
    let account = admitted.account();
    let gives_way = Aside::new(account.gives_way().clone().cancelled_owned());
    let doors = &door.ingress.node.metrics.doors;
    let served = async {
        let Some(tls) = &door.tls else {
            return connection(stream, client, &door, account, connected).await;
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                let client = ClientInfo { secure: true, ..client };
                connection(stream, client, &door, account, connected).await;
            }
            Ok(Err(error)) => {
                debug!(%peer, %error, "TLS handshake failed");
                doors.front_failed(HandshakeFailure::of_tls(&error));
            }
            Err(_) => {
                debug!(%peer, "TLS handshake took too long");
                doors.front_failed(HandshakeFailure::TimedOut);
            }
        }
    };
    tokio::select! {
        biased;
        () = served => {}
        () = gives_way => debug!(%peer, "a client's connection was closed to free its place"),
    }
}

/// The client's address from the PROXY header; `None` if there is no header to trust.
async fn client_by_proxy(
    stream: &mut TcpStream,
    peer: SocketAddr,
    own: ClientInfo,
    door: &Door,
) -> Option<ClientInfo> {
    let (trusted, refusals) = (&door.ingress.trusted, door.ingress.clients.refusals());
    if !trusted.is_empty() && !trusted.trusts(peer.ip()) {
        refusals.note(Refusal::UntrustedProxy);
        debug!(%peer, "not a trusted proxy");
        return None;
    }
    match origin::proxied(stream, own).await {
        Ok(client) => Some(client),
        Err(error) => {
            refusals.note(Refusal::NoProxyHeader);
            debug!(%peer, %error, "no PROXY header");
            None
        }
    }
}

/// Resolves when the connection is to end once it is idle. A new connection is about to send a
/// request, and would be cut off before that is read.
async fn closes(closing: CancellationToken, begun: CancellationToken) {
    closing.cancelled().await;
    let _ = tokio::time::timeout(FIRST_REQUEST_WITHIN, begun.cancelled()).await;
}

async fn connection<IO>(
    stream: IO,
    client: ClientInfo,
    door: &Door,
    account: &Arc<Account>,
    connected: Connected,
) where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let begun = CancellationToken::new();
    let in_flight = ConnectionRequests::new(Arc::clone(account));
    let stream = Framed::new(Prompt::new(stream, HEAD_TIMEOUT, connected), in_flight.clone());
    let (interims, ingress) = (Arc::<interim::Queue>::default(), Arc::clone(&door.ingress));
    // The same fields are removed as from an app's response.
    let clean = move |headers: &mut HeaderMap| {
        fields::remove_our_cookie(headers, &ingress.node.store.policy().cookie);
    };
    let stream = Interjected::new(stream, Arc::clone(&interims), clean);
    let upgraded = Arc::new(AtomicBool::new(false));
    let visit = Visit {
        ingress: Arc::clone(&door.ingress),
        client,
        in_flight,
        begun: begun.clone(),
        has_begun: AtomicBool::new(false),
        gives_head_up: AtomicBool::new(false),
        upgraded: Arc::clone(&upgraded),
        interims,
    };
    let mut asides = Asides {
        closes: Aside::new(closes(door.closing.clone(), begun)),
        idle_too_long: Aside::new(idle_too_long(Arc::clone(account))),
    };
    let ends = AtomicBool::new(false);
    let serving = async {
        let left = {
            let mut serving = std::pin::pin!(plain::serve(stream, &visit, &ends));
            tokio::select! {
                biased;
                left = serving.as_mut() => left,
                () = &mut asides.closes => {
                    ends.store(true, Ordering::Relaxed);
                    serving.await
                }
                () = &mut asides.idle_too_long => {
                    if account.has_unread() {
                        account.refused(Refusal::SlowHead);
                        visit.gives_head_up.store(true, Ordering::Relaxed);
                    }
                    ends.store(true, Ordering::Relaxed);
                    match tokio::time::timeout(GOODBYE_WITHIN, serving).await {
                        Ok(left) => left,
                        Err(_) => return Ok(()),
                    }
                }
            }
        };
        let Left::Other { io, answer } = left else { return Ok(()) };
        let io = io.with_first(willing::with_field);
        // A connection that is to end says so in its last answer.
        let asides = (!ends.into_inner()).then_some(asides);
        Box::pin(by_hyper(io, visit, answer, asides)).await
    };
    // An upgraded HTTP/1.1 connection has left this task; an HTTP/2 connection carries its
    // WebSockets.
    let (closing, cut) = (door.tunnels.closing.clone(), door.tunnels.cut.clone());
    let cut_off = Aside::new(async move {
        closing.cancelled().await;
        if upgraded.load(Ordering::Relaxed) {
            cut.cancelled().await;
        }
    });
    tokio::select! {
        biased;
        outcome = serving => {
            if let Err(error) = outcome {
                if let Some(why) = Refusal::of_error(&*error) {
                    account.ended_by(why);
                }
                debug!(client = ?client.addr, %error, "client connection ended");
            }
        }
        () = cut_off => debug!(client = ?client.addr, "client connection cut off"),
    }
}

/// The events besides its client that end a connection.
struct Asides {
    closes: Aside<()>,
    idle_too_long: Aside<()>,
}

/// Serves a request of another kind, and all that follow it. `answer` is the answer to the first
/// request, if that has been served already. Without `asides` the connection ends after it.
async fn by_hyper<IO>(
    stream: IO,
    visit: Visit,
    answer: Option<Box<Response<Ahead>>>,
    asides: Option<Asides>,
) -> Result<(), BoxError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    visit.in_flight.account().goes_to_hyper();
    let answer = Mutex::new(answer);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        match answer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(answer) => Either::Left(async {
                // The whole body is there, and has been used: an unread body would end the
                // connection.
                let _ = request.into_body().collect().await;
                Ok(*answer)
            }),
            None => Either::Right(visit.answer_any(request)),
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        // A timer for each head costs more than the head: `idle_too_long` bounds all of them.
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(FIELDS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(H2_SEND_BYTES)
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let Some(Asides { closes, idle_too_long }) = asides else { return serving.await };
    tokio::select! {
        biased;
        outcome = serving.as_mut() => outcome,
        () = closes => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        () = idle_too_long => {
            serving.as_mut().graceful_shutdown();
            // The outcome does not matter.
            let _ = tokio::time::timeout(GOODBYE_WITHIN, serving).await;
            Ok(())
        }
    }
}

/// Resolves when no request has been in flight for long: a head has come too slowly, or none has.
/// For HTTP/2, answers to pings do not count.
async fn idle_too_long(account: Arc<Account>) {
    loop {
        match account.idle_for() {
            Some(idle) if idle >= HEAD_TIMEOUT => return,
            idle => sleep(HEAD_TIMEOUT.saturating_sub(idle.unwrap_or_default())).await,
        }
    }
}

/// Answers the requests of one connection.
struct Visit {
    ingress: Arc<Ingress>,
    client: ClientInfo,
    in_flight: ConnectionRequests,
    begun: CancellationToken,
    /// Whether `begun` was cancelled: this check costs less than another cancellation.
    has_begun: AtomicBool,
    /// The head of the next request was not complete in time.
    gives_head_up: AtomicBool,
    upgraded: Arc<AtomicBool>,
    interims: Arc<interim::Queue>,
}

impl Visit {
    fn begins(&self) {
        if !self.has_begun.load(Ordering::Relaxed) {
            self.has_begun.store(true, Ordering::Relaxed);
            self.begun.cancel();
        }
    }

    /// Answers a request of any kind.
    fn answer_any(
        &self,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Ahead>, Infallible>> + Send + use<> {
        self.begins();
        let account = self.in_flight.account();
        let in_frames = request.version() == Version::HTTP_2;
        if !in_frames {
            willing::take_out(request.headers_mut());
        }
        if request.method() == Method::CONNECT {
            self.upgraded.store(true, Ordering::Relaxed);
            if in_frames {
                account.stays_busy();
            }
        }
        let counted = self.in_flight.begin(&request);
        // hyper itself limits the fields of HTTP/1.
        let too_many_fields = request.headers().len() > FIELDS_MAX;
        if too_many_fields {
            account.refused(Refusal::HeadTooLarge);
        }
        let exchange = Exchange::new(Arc::clone(account), grpc::is_grpc(request.headers()));
        let request = request.map(|incoming| {
            if incoming.is_end_stream() {
                return Body::from(incoming);
            }
            let (limits, exchange) = (self.ingress.clients.limits(), Arc::clone(&exchange));
            Body::new(ClientBody::new(incoming, limits, in_frames, exchange))
        });
        let (ingress, client) = (Arc::clone(&self.ingress), self.client);
        // Without hyper there is no way to send any over HTTP/2, and HTTP/1.0 has none.
        let can_get = request.version() == Version::HTTP_11 && request.method() != Method::CONNECT;
        let interims = can_get.then(|| Arc::clone(&self.interims));
        async move {
            let response = if too_many_fields {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                response
            } else {
                let interim = interims.as_ref().map(interim::Queue::begin);
                let response = ingress.handle(Box::new(request), client, interim).await;
                if let Some(interims) = interims {
                    interims.end();
                }
                response
            };
            exchange.answers();
            Ok(counted.until_the_end_of(response).map(Ahead::from))
        }
    }
}

impl Answers for Visit {
    fn answer(
        &self,
        request: Box<Request<Body>>,
        bytes: usize,
    ) -> impl Future<Output = Response<CountedBody>> + Send + use<> {
        self.begins();
        let counted = self.in_flight.begin_of(bytes, true);
        let (ingress, client) = (Arc::clone(&self.ingress), self.client);
        let interims = Arc::clone(&self.interims);
        async move {
            let response = ingress.handle(request, client, Some(interims.begin())).await;
            interims.end();
            counted.until_the_end_of(response)
        }
    }

    fn gives_head_up(&self) -> bool {
        self.gives_head_up.load(Ordering::Relaxed)
    }
}

/// A connection whose client has a bounded time to show which version of HTTP it speaks: until then
/// nothing else watches it. HTTP/2 begins with a preface, so the version is clear once that is
/// complete or one byte differs from it.
struct Prompt<IO> {
    io: IO,
    /// How much of the preface has come, and when the time is over; absent once it is clear.
    undecided: Option<(usize, Pin<Box<Sleep>>)>,
    /// Kept here because an upgraded connection leaves the task that served it.
    _connected: Connected,
}

impl<IO> Prompt<IO> {
    fn new(io: IO, within: Duration, connected: Connected) -> Self {
        let undecided = Some((0, Box::pin(sleep(within))));
        Self { io, undecided, _connected: connected }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prompt<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.io).poll_read(cx, buf);
        let Some((have, end)) = &mut self.undecided else { return outcome };
        if outcome.is_pending() {
            std::task::ready!(end.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let fresh = &buf.filled()[before..];
        let awaited = &H2_PREFACE[*have..];
        if fresh.len() < awaited.len() && awaited.starts_with(fresh) {
            *have += fresh.len();
        } else {
            self.undecided = None;
        }
        outcome
    }
}

writes_through!(Prompt);

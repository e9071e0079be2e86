//! A peer's front door: the HTTP/1.1 and HTTP/2 listener for clients.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Method, Request};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::body::Body;
use crate::departure::InFlight;
use crate::framing::{FIELDS_MAX, Framed, H2_PREFACE, HEAD_BYTES_MAX};
use crate::identity::FrontDoorTls;
use crate::ingress::{ClientInfo, Ingress};
use crate::tunnels::Tunnels;

/// How long a client may take to show which version of HTTP it speaks, and to send a request's head,
/// and how long an idle connection may stay.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection that has brought no request yet is kept open when the door closes.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_millis(500);
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most client connections of one listener, unless the builder is told otherwise.
pub(crate) const CONNECTIONS_MAX: usize = 16 * 1024;
/// How often it is told that no connection can be accepted.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// The most streams a client may open at once on an HTTP/2 connection.
const H2_STREAMS_MAX: u32 = 256;
/// What a client may send of one request's body before its app reads it.
const H2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same for all of a connection's requests together: enough for each to stand still with a full
/// window, so that uploads whose apps do not read never stop the others. It is also the most that
/// one connection holds in memory.
const H2_CONNECTION_WINDOW_BYTES: u32 = H2_STREAMS_MAX * H2_STREAM_WINDOW_BYTES;

/// Serves `listener` until `closing` is cancelled; connections then end gracefully, and are cut off
/// when their grace time is over, which `tunnels` tell. Each connection stays on the runtime that
/// calls this, and takes one of `permits`.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<FrontDoorTls>,
    permits: Arc<Semaphore>,
    ingress: Arc<Ingress>,
    closing: CancellationToken,
    connections: TaskTracker,
    tunnels: Tunnels,
) {
    let tls = tls.map(|tls| TlsAcceptor::from(tls.config()));
    let mut told: Option<Instant> = None;
    loop {
        let permit = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            permit = Arc::clone(&permits).acquire_owned() => match permit {
                Ok(permit) => permit,
                Err(_) => break,
            },
        };
        let accepted = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let ingress = Arc::clone(&ingress);
                let (closing, tls, tunnels) = (closing.clone(), tls.clone(), tunnels.clone());
                connections.spawn(async move {
                    accepted_one(stream, peer, tls, ingress, closing, tunnels).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: waiting lets some be returned.
                if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                    warn!(%error, "cannot accept connections; clients wait");
                    told = Some(Instant::now());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // Clients that connected before the listener closed are served, not reset. The socket itself is
    // asked: the runtime has not heard of those that came just now.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, peer)) = listener.accept() {
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        let Ok(stream) = stream else { continue };
        let (ingress, closing, tunnels) = (Arc::clone(&ingress), closing.clone(), tunnels.clone());
        connections.spawn(accepted_one(stream, peer, tls.clone(), ingress, closing, tunnels));
    }
}

async fn accepted_one(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    ingress: Arc<Ingress>,
    closing: CancellationToken,
    tunnels: Tunnels,
) {
    // It fails only for a socket that has gone already.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        let client = ClientInfo { addr: Some(peer), secure: false };
        return connection(stream, client, ingress, closing, tunnels).await;
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let client = ClientInfo { addr: Some(peer), secure: true };
            connection(stream, client, ingress, closing, tunnels).await;
        }
        Ok(Err(error)) => debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => debug!(%peer, "TLS handshake took too long"),
    }
}

/// Resolves when the connection is to end once it is idle. One that has just been opened is about to
/// bring a request, and would be cut off before that is read.
async fn closes(closing: &CancellationToken, begun: &CancellationToken) {
    closing.cancelled().await;
    let _ = tokio::time::timeout(FIRST_REQUEST_WITHIN, begun.cancelled()).await;
}

async fn connection<IO>(
    stream: IO,
    client: ClientInfo,
    ingress: Arc<Ingress>,
    closing: CancellationToken,
    tunnels: Tunnels,
) where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let begun = CancellationToken::new();
    let beginning = begun.clone();
    let in_flight = InFlight::default();
    let counts = in_flight.clone();
    let stream = TokioIo::new(Framed::new(
        Prompt::new(stream, HEAD_TIMEOUT),
        in_flight,
        Arc::clone(&ingress.node.metrics.refusals),
    ));
    let upgraded = Arc::new(AtomicBool::new(false));
    let upgrades = Arc::clone(&upgraded);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        beginning.cancel();
        if request.method() == Method::CONNECT {
            upgrades.store(true, Ordering::Relaxed);
        }
        let (ingress, counted) = (Arc::clone(&ingress), counts.begin());
        async move {
            let response = ingress.handle(request.map(Body::from), client).await;
            Ok::<_, Infallible>(counted.until_the_end_of(response))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(FIELDS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let serving = async {
        let serving = builder.serve_connection_with_upgrades(stream, service);
        tokio::pin!(serving);
        tokio::select! {
            outcome = serving.as_mut() => outcome,
            () = closes(&closing, &begun) => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        }
    };
    // An upgraded HTTP/1.1 connection has left this task; an HTTP/2 one carries its WebSockets.
    let cut_off = async {
        tunnels.closing.cancelled().await;
        if upgraded.load(Ordering::Relaxed) {
            tunnels.cut.cancelled().await;
        }
    };
    tokio::select! {
        outcome = serving => {
            if let Err(error) = outcome {
                debug!(client = ?client.addr, %error, "client connection ended");
            }
        }
        () = cut_off => debug!(client = ?client.addr, "client connection cut off"),
    }
}

/// A connection whose client has a bounded time to show which version of HTTP it speaks: until then
/// nobody else watches it. HTTP/2 begins with a preface of its own, so it is clear once that is whole
/// or one byte differs from it.
struct Prompt<IO> {
    io: IO,
    /// How much of the preface has come, and the end of the time; absent once it is clear.
    undecided: Option<(usize, Pin<Box<Sleep>>)>,
}

impl<IO> Prompt<IO> {
    fn new(io: IO, within: Duration) -> Self {
        Self { io, undecided: Some((0, Box::pin(sleep(within)))) }
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
            ready!(end.as_mut().poll(cx));
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

impl<IO: AsyncWrite + Unpin> AsyncWrite for Prompt<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

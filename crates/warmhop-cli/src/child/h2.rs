//! The connections to an app that speaks HTTP/2: one as long as its streams suffice.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Mutex;
use warmhop::{Body, BoxError};

use super::request::RequestBody;
use super::socket::connect;

/// The most requests at once on one connection; what comes beyond opens another. Servers allow
/// no fewer by RFC 9113's advice (section 6.5.2).
pub(super) const STREAMS_MAX: u32 = 100;
/// The most bytes that are held here for a client that does not read its response, and as many
/// for an app that does not read a request.
pub(super) const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Credit for all streams of a connection at once, so that those that nobody reads can never use
/// it up and stall the others. It is memory only where so many do not read.
const CONNECTION_WINDOW_BYTES: u32 = STREAMS_MAX * STREAM_WINDOW_BYTES;

/// The largest head of a response as RFC 9113 section 6.5.2 counts it, as large as a front door
/// takes in a request: room for [`FIELDS_MAX`](super::service::FIELDS_MAX) fields of some length.
const HEAD_BYTES_MAX: u32 = 64 * 1024;

/// Requests to an app over HTTP/2.
pub(super) struct H2Client {
    addr: SocketAddr,
    connections: Mutex<Vec<Connection>>,
}

struct Connection {
    sender: http2::SendRequest<RequestBody>,
    /// Held once more by each request whose response has not been read to its end.
    uses: Use,
}

type Use = Arc<()>;

impl Connection {
    fn in_use(&self) -> usize {
        Arc::strong_count(&self.uses) - 1
    }
}

impl H2Client {
    pub(super) fn new(addr: SocketAddr) -> Self {
        Self { addr, connections: Mutex::default() }
    }

    /// A connection with room for a request, a fresh one if there is none.
    async fn enter(&self) -> Result<(http2::SendRequest<RequestBody>, Use), BoxError> {
        let mut connections = self.connections.lock().await;
        // Of those without a request one stays, so that a few requests more or less do not open
        // and close one each time.
        let mut has_idle = false;
        connections.retain(|connection| {
            !connection.sender.is_closed()
                && (connection.in_use() > 0 || !std::mem::replace(&mut has_idle, true))
        });
        let roomy = connections.iter().find(|open| open.in_use() < STREAMS_MAX as usize);
        if let Some(connection) = roomy {
            return Ok((connection.sender.clone(), Arc::clone(&connection.uses)));
        }
        let (sender, uses) = (self.connect().await?, Use::default());
        connections.push(Connection { sender: sender.clone(), uses: Arc::clone(&uses) });
        Ok((sender, uses))
    }

    async fn connect(&self) -> Result<http2::SendRequest<RequestBody>, BoxError> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_send_buf_size(STREAM_WINDOW_BYTES as usize)
            .handshake(TokioIo::new(connect(self.addr).await?))
            .await?;
        // How it ends is told to each of its requests.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    pub(super) async fn request(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Body>, BoxError> {
        let mut again = true;
        loop {
            let (mut sender, uses) = self.enter().await?;
            match sender.try_send_request(request).await {
                Ok(response) => {
                    return Ok(response.map(|body| Body::new(InUse { body, uses: Some(uses) })));
                }
                Err(mut error) => match error.take_message() {
                    // The connection ended before a byte of the request had left.
                    Some(unsent) if again => {
                        request = unsent;
                        again = false;
                    }
                    _ => return Err(error.into_error().into()),
                },
            }
        }
    }
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

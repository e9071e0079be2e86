//! Whether a front door takes nothing for a request's head that `framing.rs` did not check as one,
//! whether it is read in `plain.rs` or by hyper.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::front::plain::{self, Ahead, Answers, Left};
use crate::http::body::Body;
use crate::http::clients::{ClientLimits, Clients};
use crate::http::departure::{ConnectionRequests, CountedBody};
use crate::http::framing::{Framed, ends_connection};
use crate::http::heads::{FIELDS_MAX, HEAD_BYTES_MAX};

/// A request's method, version and fields, as one of the two readers has them.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    method: String,
    is_http_11: bool,
    fields: Vec<(String, Vec<u8>)>,
}

impl Seen {
    fn new<'a>(
        method: &str,
        is_http_11: bool,
        fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Self {
        let mut fields: Vec<_> =
            fields.map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec())).collect();
        fields.sort();
        Self { method: method.to_owned(), is_http_11, fields }
    }

    fn by_framing(head: &[u8]) -> Self {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        let parsed = request.parse(head);
        assert!(
            parsed.is_ok_and(|parsed| parsed.is_complete()),
            "a head that is none was let pass"
        );
        let (method, version) = (request.method.unwrap_or_default(), request.version);
        let fields = request.headers.iter().map(|field| (field.name, field.value));
        Self::new(method, version == Some(1), fields)
    }

    fn by_reader<B>(request: &Request<B>) -> Self {
        let fields =
            request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        Self::new(request.method().as_str(), request.version() == Version::HTTP_11, fields)
    }

    fn count(&self, name: &str) -> usize {
        self.fields.iter().filter(|field| field.0 == name).count()
    }
}

/// A client that sends its script, piece by piece, and reads everything that comes.
struct Client(VecDeque<Vec<u8>>);

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(mut piece) = self.0.pop_front() {
            let fits = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..fits]);
            if fits < piece.len() {
                piece.drain(..fits);
                self.0.push_front(piece);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Answers the requests that are read in `plain.rs`: every second one with an answer that is for
/// hyper.
struct Plainly {
    seen: Arc<Mutex<Vec<Seen>>>,
    in_flight: ConnectionRequests,
}

impl Answers for Plainly {
    fn answer(
        &self,
        request: Box<Request<Body>>,
        bytes: usize,
    ) -> impl Future<Output = Response<CountedBody>> + Send + use<> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push(Seen::by_reader(&request));
        let mut response = Response::new(Body::from("ok"));
        if seen.len().is_multiple_of(2) {
            *response.status_mut() = StatusCode::NO_CONTENT;
            *response.body_mut() = Body::empty();
        }
        ready(self.in_flight.begin_of(bytes, true).until_the_end_of(response))
    }
}

async fn by_hyper(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answer: Option<Box<Response<Ahead>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    reads_bodies: bool,
) {
    let answer = Mutex::new(answer);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let is_answered = answer.lock().unwrap_or_else(PoisonError::into_inner).take().is_some();
        let (requests, ends) = (Arc::clone(&seen), ends_connection(&request));
        if !is_answered {
            requests.lock().unwrap_or_else(PoisonError::into_inner).push(Seen::by_reader(&request));
        }
        async move {
            if reads_bodies {
                // A body that breaks off ends the connection.
                let _ = request.into_body().collect().await;
            }
            let mut response = Response::new(Full::<&[u8]>::default());
            if ends {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(http::header::CONNECTION, close);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(FIELDS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let _ = serving.await;
}

/// Serves what a client sends as a front door does; returns how many requests were read from it.
///
/// The first byte selects the length of the pieces in which the rest is sent, and whether bodies
/// are read.
///
/// # Panics
/// If a request was made of bytes that `framing.rs` did not check as that request's head, or if it
/// let one pass that two readers could understand differently.
pub fn framing(input: &[u8]) -> usize {
    let Some((how, text)) = input.split_first() else { return 0 };
    let (step, reads_bodies) = (usize::from(how >> 1).max(1), how & 1 == 0);
    let client = Client(text.chunks(step).map(<[u8]>::to_vec).collect());
    let clients = Clients::new(ClientLimits::default(), Arc::default(), Gauge::default());
    let Some(place) = clients.admit(IpAddr::from([127, 0, 0, 1]), false) else { return 0 };
    let account = Arc::clone(place.account());
    let framed = Framed::new(client, ConnectionRequests::new(Arc::clone(&account)));
    let looked = framed.looked();
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let plain = Plainly { seen: Arc::clone(&seen), in_flight: ConnectionRequests::new(account) };
    let serving = async {
        let left = plain::serve(framed, &plain, &AtomicBool::new(false)).await;
        let Left::Other { io, answer } = left else { return };
        by_hyper(io, answer, Arc::clone(&seen), reads_bodies).await;
    };
    // Everything is ready at once, so nothing is waited for; the outcome does not matter.
    let _ = futures_util::FutureExt::now_or_never(serving);

    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let looked = looked.lock().unwrap_or_else(PoisonError::into_inner);
    for (at, request) in seen.iter().enumerate() {
        let by_framing = looked.get(at).map(|head| Seen::by_framing(head));
        assert_eq!(by_framing.as_ref(), Some(request), "request {at} was not looked at");
        let hosts = request.count("host");
        assert!(
            hosts == 1 || (hosts == 0 && !request.is_http_11),
            "request {at} has {hosts} hosts"
        );
        let lengths = request.count("content-length") + request.count("transfer-encoding");
        assert!(lengths <= 1, "request {at} has {lengths} lengths");
    }
    seen.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::arbitrary::{Numbers, feed, strung};

    /// Parts of conversations, clear ones and ones that some readers understood differently.
    const WORDS: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive, upgrade\r\nUpgrade: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 400\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\n",
        b"POST / HTTP/1.0\r\n",
        b"Host: a\r\n",
        b"Content-Length: 4\r\n",
        b"Content-Length : 4\r\n",
        b"Content-Length: 4, 4\r\n",
        b"Content-Length: +4\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: \tChunked \r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\n",
        b"Connection: upgrade\r\n",
        b"Upgrade: x\r\n",
        b"Upgrade: h2c, x\r\n",
        b"X-Folded: a\r\n b\r\n",
        b"X-Bare: a\rb\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"0\r\n\r\n",
        b"0\r\nx: y\r\n\r\n",
        b"0\r\nx: y\n\r\n",
        b"0;x\r\n\r\n",
        b"0;x\n\r\n",
        b"4\r\nbody\r\n",
        b"4\nbody\n",
        b"4 ;x=\"\r\n\"\r\nbody\r\n",
        b"00000000000000004\r\nbody\r\n",
        b"fffffffffffffffff\r\n",
        b"body",
    ];

    #[test]
    fn hyper_reads_no_request_that_was_not_looked_at() {
        let make = |numbers: &mut Numbers| {
            let mut input = vec![numbers.below(256) as u8];
            input.extend(strung(numbers, WORDS, 8));
            input
        };
        let requests = feed("framing", 60_000, make, framing);
        assert!(requests > 10_000, "only {requests} requests came of it");
    }
}

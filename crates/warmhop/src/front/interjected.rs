//! A client's connection, with interim responses written in between: hyper's server cannot send any.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use http::{HeaderMap, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::interim::Queue;

/// A connection over HTTP/1.1 whose writer flushes whenever it has nothing more to write, as hyper
/// does. Interim responses are written at these boundaries alone: the request that they belong to
/// is the next to be answered, and its response has not begun.
pub(crate) struct Interjected<IO, F> {
    io: IO,
    queue: Arc<Queue>,
    /// Removes the fields that this client must not get.
    clean: F,
    /// The bytes of an interim response that are still to be written.
    out: BytesMut,
}

impl<IO, F> Interjected<IO, F>
where
    IO: AsyncWrite + Unpin,
    F: Fn(&mut HeaderMap),
{
    pub(crate) fn new(io: IO, queue: Arc<Queue>, clean: F) -> Self {
        Self { io, queue, clean, out: BytesMut::new() }
    }

    /// Writes the interim responses that wait, unless a response is half written.
    fn poll_interject(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.queue.is_amid() {
            return Poll::Ready(Ok(()));
        }
        loop {
            while !self.out.is_empty() {
                match ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    bytes => self.out.advance(bytes),
                }
            }
            let Some(mut head) = self.queue.take() else {
                // Frees the buffer: few connections need it again, and they may live for long.
                if self.out.capacity() > 0 {
                    self.out = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            };
            (self.clean)(head.headers_mut());
            put(&mut self.out, &head);
        }
    }
}

/// An interim response as it goes over the wire (RFC 9112 section 4).
fn put(out: &mut BytesMut, head: &Response<()>) {
    let status = head.status();
    let reason = status.canonical_reason().unwrap_or_default();
    for part in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in head.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b"\r\n");
}

impl<IO: AsyncRead + Unpin, F: Unpin> AsyncRead for Interjected<IO, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO, F> AsyncWrite for Interjected<IO, F>
where
    IO: AsyncWrite + Unpin,
    F: Fn(&mut HeaderMap) + Unpin,
{
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interject(cx))?;
        // Set even if the write has to wait: these bytes come before any interim response.
        self.queue.set_amid(true);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interject(cx))?;
        self.queue.set_amid(true);
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper has written all that it had.
        self.queue.set_amid(false);
        self.queue.listen(cx);
        ready!(self.poll_interject(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{HeaderValue, Request, StatusCode};
    use http_body_util::BodyExt;
    use hyper::body::Incoming;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::http::body::Body;
    use crate::http::interim::Interim;

    /// A connection that takes so many bytes more.
    #[derive(Default)]
    struct Taking {
        room: usize,
        took: String,
    }

    impl AsyncWrite for Taking {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let bytes = buf.len().min(self.room);
            if bytes == 0 {
                return Poll::Pending;
            }
            self.room -= bytes;
            self.took.push_str(std::str::from_utf8(&buf[..bytes]).unwrap());
            Poll::Ready(Ok(bytes))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn hint(interim: &Interim, of: &str) {
        let mut fields = HeaderMap::new();
        fields.insert("x-of", HeaderValue::from_str(of).unwrap());
        assert!(interim.send(StatusCode::EARLY_HINTS, &fields));
    }

    fn hint_of(of: &str) -> String {
        format!("HTTP/1.1 103 Early Hints\r\nx-of: {of}\r\n\r\n")
    }

    #[test]
    fn an_interim_response_is_written_only_between_others() {
        let queue = Arc::new(Queue::default());
        let io = Taking { room: 3, ..Taking::default() };
        let mut io = Interjected::new(io, Arc::clone(&queue), |_: &mut HeaderMap| {});
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut write = |io: &mut Interjected<Taking, _>, text: &str| {
            Pin::new(io).poll_write(&mut cx, text.as_bytes()).map(Result::unwrap)
        };
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut flush = |io: &mut Interjected<Taking, _>| Pin::new(io).poll_flush(&mut cx);

        // The end of the response before has not been written when the next request begins.
        assert_eq!(write(&mut io, "before"), Poll::Ready(3));
        let interim = queue.begin();
        hint(&interim, "a");
        assert_eq!(write(&mut io, "ore"), Poll::Pending);
        io.io.room = 1000;
        assert_eq!(write(&mut io, "ore"), Poll::Ready(3));
        assert_eq!(io.io.took, "before");
        assert!(flush(&mut io).is_ready());
        assert_eq!(io.io.took, format!("before{}", hint_of("a")));

        // It is written in part when its response begins, and whole before that.
        io.io.took.clear();
        io.io.room = 5;
        hint(&interim, "b");
        assert!(flush(&mut io).is_pending());
        hint(&interim, "c");
        queue.end();
        assert_eq!(write(&mut io, "response"), Poll::Pending);
        io.io.room = 1000;
        assert_eq!(write(&mut io, "response"), Poll::Ready(8));
        assert_eq!(io.io.took, format!("{}{}response", hint_of("b"), hint_of("c")));

        // Nobody has tried to write the end of a response before the connection took no more.
        assert!(flush(&mut io).is_ready());
        io.io.took.clear();
        io.io.room = 0;
        assert_eq!(write(&mut io, "end"), Poll::Pending);
        hint(&queue.begin(), "d");
        queue.end();
        io.io.room = 1000;
        assert_eq!(write(&mut io, "end and next response"), Poll::Ready(21));
        assert!(flush(&mut io).is_ready());
        assert_eq!(io.io.took, "end and next response");
    }

    /// How many hints request number `at` gets.
    fn hints(at: usize) -> usize {
        at % 4
    }

    async fn answer(
        at: usize,
        request: Request<Incoming>,
        queue: Arc<Queue>,
    ) -> Result<http::Response<Body>, Infallible> {
        let interim = queue.begin();
        let of = at.to_string();
        for _ in 0..hints(at) {
            hint(&interim, &of);
            if at.is_multiple_of(3) {
                tokio::task::yield_now().await;
            }
        }
        // Either the body passes through, or it is there before its answer begins.
        let body = if at.is_multiple_of(2) {
            Body::new(request.into_body())
        } else {
            Body::from(request.into_body().collect().await.unwrap().to_bytes())
        };
        queue.end();
        assert!(!interim.send(StatusCode::EARLY_HINTS, &HeaderMap::new()), "that is too late");
        Ok(http::Response::new(body))
    }

    #[tokio::test]
    async fn each_comes_directly_before_its_own_response_however_slowly_a_client_reads() {
        const REQUESTS: usize = 24;
        for room in [1, 7, 64, 300, 100_000] {
            let queue = Arc::new(Queue::default());
            let (near, far) = duplex(room);
            let io = Interjected::new(far, Arc::clone(&queue), |_: &mut HeaderMap| {});
            let next = std::sync::atomic::AtomicUsize::new(0);
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let at = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                answer(at, request, Arc::clone(&queue))
            });
            let serving = tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(io), service),
            );
            let (mut read, mut write) = tokio::io::split(near);
            let sending = tokio::spawn(async move {
                for at in 0..REQUESTS {
                    let body = "x".repeat(at * 10 + 1);
                    let head = format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n", body.len());
                    write.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
                }
                write
            });
            let mut seen = String::new();
            let mut piece = [0; 100];
            let end = |at: usize| format!("\r\n{}", "x".repeat(at * 10 + 1));
            while !seen.ends_with(&end(REQUESTS - 1)) {
                let bytes = read.read(&mut piece).await.unwrap();
                assert!(bytes > 0, "{seen}");
                seen.push_str(std::str::from_utf8(&piece[..bytes]).unwrap());
            }
            let mut rest = seen.as_str();
            for at in 0..REQUESTS {
                // One may be left out if its client read too slowly; none is misplaced.
                let mut hinted = 0;
                while let Some(next) = rest.strip_prefix(&hint_of(&at.to_string())) {
                    (rest, hinted) = (next, hinted + 1);
                }
                assert!(hinted <= hints(at), "{seen}");
                assert!(hinted == hints(at) || room < 100_000, "{hinted} of {}", hints(at));
                let (head, body) = rest.split_once("\r\n\r\n").expect("a head");
                assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{at}: {head}\n{seen}");
                let body_bytes = at * 10 + 1;
                assert!(body[..body_bytes].bytes().all(|byte| byte == b'x'), "{seen}");
                rest = &body[body_bytes..];
            }
            assert_eq!(rest, "");
            drop((read, sending.await.unwrap()));
            let _ = serving.await.unwrap();
        }
    }

    #[test]
    fn further_fields_are_removed_as_it_is_written() {
        let queue = Arc::new(Queue::default());
        let io = Taking { room: 1000, ..Taking::default() };
        let clean = |fields: &mut HeaderMap| _ = fields.remove("set-cookie");
        let mut io = Interjected::new(io, Arc::clone(&queue), clean);
        let mut fields = HeaderMap::new();
        fields.insert("set-cookie", HeaderValue::from_static("a=b"));
        fields.insert("link", HeaderValue::from_static("</a>"));
        assert!(queue.begin().send(StatusCode::from_u16(199).unwrap(), &fields));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut io).poll_flush(&mut cx).is_ready());
        assert_eq!(io.io.took, "HTTP/1.1 199 \r\nlink: </a>\r\n\r\n");
    }
}

//! Refuses requests whose length two readers could understand differently (RFC 9112 section
//! 6.3, CWE-444) before hyper settles the matter in silence.
//!
//! hyper accepts a request with both `Content-Length` and `Transfer-Encoding` and drops the
//! former. That keeps *us* safe, but a proxy in front that believed the other field has been
//! desynchronised already, so such a request gets 400. [`Framed`] reads along on an HTTP/1
//! connection, follows just enough of the framing to know where each head begins, and spoils a
//! head that is ambiguous so that hyper refuses it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::departure::{Departure, InFlight};
use crate::fields;

/// The largest request head in bytes; hyper is given the same bound.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The most fields in a request head.
pub(crate) const FIELDS_MAX: usize = 128;

/// What hyper takes for the end of a head that was spoilt.
const SPOILT_END: &[u8] = b"\r\n\r\n";
/// The start of an HTTP/2 connection (RFC 9113 section 3.4).
pub(crate) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose HTTP/1 framing is watched.
pub(crate) struct Framed<IO> {
    io: IO,
    watch: Watch,
    departure: Departure,
}

impl<IO> Framed<IO> {
    pub(crate) fn new(io: IO, in_flight: InFlight) -> Self {
        let watch = Watch { at: At::Head, head: Vec::new(), spoilt: false };
        Self { io, watch, departure: Departure::new(in_flight) }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Framed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.watch.spoilt) {
            buf.put_slice(&SPOILT_END[..SPOILT_END.len().min(buf.remaining())]);
            return Poll::Ready(Ok(()));
        }
        if self.departure.waits() {
            return self.departure.poll_left(cx).map(Ok);
        }
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.io).poll_read(cx, buf);
        if matches!(outcome, Poll::Ready(Ok(()))) {
            let ended = buf.filled().len() == before && buf.remaining() > 0;
            let fresh = &mut buf.filled_mut()[before..];
            self.watch.see(fresh);
            let between = self.watch.is_between();
            if ended && self.departure.sends_no_more(between) {
                return self.departure.poll_left(cx).map(Ok);
            }
        }
        outcome
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Framed<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, buf);
        self.departure.wrote(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.departure.wrote(&outcome);
        outcome
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

/// Where in the stream the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Head,
    /// In a body with so many bytes left.
    Fixed(u64),
    /// In a chunk-size line; whether a digit was seen, and the size so far.
    ChunkSize {
        size: u64,
        in_extension: bool,
    },
    /// In a chunk's bytes, its closing CRLF included.
    Chunk(u64),
    /// In the trailer section; how many bytes the current line has.
    Trailers {
        line_bytes: u32,
    },
    /// HTTP/2, a connection that may be upgraded, or one that hyper is about to refuse. Where it
    /// is not upgraded after all, [`ends_connection`] has it closed behind the answer.
    Opaque,
}

struct Watch {
    at: At,
    /// The head so far.
    head: Vec<u8>,
    /// The head was spoilt; the next read ends it.
    spoilt: bool,
}

impl Watch {
    /// Whether every request so far was whole; never on what is not HTTP/1.
    fn is_between(&self) -> bool {
        self.at == At::Head && self.head.is_empty()
    }

    fn see(&mut self, bytes: &mut [u8]) {
        let mut from = 0;
        while from < bytes.len() {
            from += match self.at {
                At::Opaque => return,
                At::Head => self.see_head(&mut bytes[from..]),
                At::Fixed(left) => {
                    let take = left.min((bytes.len() - from) as u64);
                    self.at = if left == take { At::Head } else { At::Fixed(left - take) };
                    take as usize
                }
                At::Chunk(left) => {
                    let take = left.min((bytes.len() - from) as u64);
                    self.at = if left == take {
                        At::ChunkSize { size: 0, in_extension: false }
                    } else {
                        At::Chunk(left - take)
                    };
                    take as usize
                }
                At::ChunkSize { size, in_extension } => {
                    self.at = see_chunk_size(bytes[from], size, in_extension);
                    1
                }
                At::Trailers { line_bytes } => {
                    self.at = match bytes[from] {
                        b'\n' if line_bytes == 0 => At::Head,
                        b'\n' => At::Trailers { line_bytes: 0 },
                        b'\r' => At::Trailers { line_bytes },
                        _ => At::Trailers { line_bytes: line_bytes.saturating_add(1) },
                    };
                    1
                }
            };
        }
    }

    /// Takes bytes up to the end of the head; decides what follows it. Returns how many.
    fn see_head(&mut self, bytes: &mut [u8]) -> usize {
        let held = self.head.len();
        // The end may straddle two reads: look from three bytes before the seam.
        let from = held.saturating_sub(3);
        self.head.extend_from_slice(bytes);
        if held < H2_PREFACE.len() && self.head.starts_with(b"PRI * HTTP/2.0") {
            self.at = At::Opaque;
            self.head = Vec::new();
            return bytes.len();
        }
        let Some(end) = head_end(&self.head, from) else {
            if self.head.len() > HEAD_BYTES_MAX {
                self.at = At::Opaque; // hyper refuses it for its size.
                self.head = Vec::new();
            }
            return bytes.len();
        };
        let taken = end - held;
        self.at = match framing(&self.head[..end]) {
            Ok(at) => at,
            Err(Ambiguous) => {
                // NUL is allowed nowhere in a head, so hyper answers 400 once it sees an end. The
                // head is not complete without these bytes: it has not been taken for a request.
                bytes.fill(0);
                self.spoilt = true;
                At::Opaque
            }
        };
        self.head.clear();
        self.head.shrink_to(8 * 1024);
        taken
    }
}

fn see_chunk_size(byte: u8, size: u64, in_extension: bool) -> At {
    match byte {
        b'\n' if size == 0 => At::Trailers { line_bytes: 0 },
        b'\n' => match size.checked_add(2) {
            Some(with_crlf) => At::Chunk(with_crlf),
            None => At::Opaque,
        },
        _ if in_extension => At::ChunkSize { size, in_extension },
        b';' | b' ' | b'\t' | b'\r' => At::ChunkSize { size, in_extension: true },
        digit => match char::from(digit).to_digit(16).and_then(|digit| {
            size.checked_mul(16).and_then(|size| size.checked_add(u64::from(digit)))
        }) {
            Some(size) => At::ChunkSize { size, in_extension },
            None => At::Opaque, // hyper refuses it.
        },
    }
}

fn head_end(head: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(newline) = head[at..].iter().position(|byte| *byte == b'\n') {
        let next = at + newline + 1;
        match &head[next..] {
            // A blank line before the request line is allowed (RFC 9112 section 2.2).
            [b'\n', ..] if !is_blank(&head[..next]) => return Some(next + 1),
            [b'\r', b'\n', ..] if !is_blank(&head[..next]) => return Some(next + 2),
            _ => at = next,
        }
    }
    None
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n'))
}

struct Ambiguous;

/// What follows a head, or why nobody should guess.
fn framing(head: &[u8]) -> Result<At, Ambiguous> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(_)) = request.parse(head) else {
        return Ok(At::Opaque); // hyper refuses it too, and says how.
    };
    let mut length: Option<u64> = None;
    let mut chunked = false;
    let mut hosts = 0;
    for field in &*request.headers {
        if field.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(field.value).map_err(|_| Ambiguous)?.trim();
            // A sign, a list or an empty value is read differently by different readers.
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(Ambiguous);
            }
            let value = text.parse().map_err(|_| Ambiguous)?;
            if length.is_some() {
                return Err(Ambiguous);
            }
            length = Some(value);
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            // Anything but the one coding that every reader knows invites disagreement.
            if chunked || !field.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(Ambiguous);
            }
            chunked = true;
        } else if field.name.eq_ignore_ascii_case("host") {
            hosts += 1;
        }
    }
    let values = |name: &'static str| {
        let named = request.headers.iter().filter(move |it| it.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value)
    };
    let upgrades = request.method == Some("CONNECT")
        || fields::asks_to_upgrade(values("connection"), values("upgrade"));
    let is_http_11 = request.version == Some(1);
    if hosts > 1 || (hosts == 0 && is_http_11) {
        return Err(Ambiguous); // RFC 9112 section 3.2 asks for 400.
    }
    match (length, chunked) {
        (Some(_), true) => Err(Ambiguous),
        (None, true) if !is_http_11 => Err(Ambiguous),
        // What follows may belong to another protocol, which is not ours to follow. A body comes
        // before it, and who sends one is not upgraded.
        (Some(0) | None, false) if upgrades => Ok(At::Opaque),
        (None, true) => Ok(At::ChunkSize { size: 0, in_extension: false }),
        (Some(0) | None, false) => Ok(At::Head),
        (Some(length), false) => Ok(At::Fixed(length)),
    }
}

/// Whether the connection of an HTTP/1 request is closed behind any answer but an upgrade: what
/// follows the request on it was not looked at.
pub(crate) fn ends_connection<B>(request: &http::Request<B>) -> bool {
    request.version() < http::Version::HTTP_2
        && (request.method() == http::Method::CONNECT
            || fields::wanted_upgrade(request.version(), request.headers()).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` in pieces of `step` bytes; returns what hyper would read and the end state.
    fn feed(text: &[u8], step: usize) -> (Vec<u8>, At) {
        let mut watch = Watch { at: At::Head, head: Vec::new(), spoilt: false };
        let mut out = Vec::new();
        for piece in text.chunks(step) {
            let mut piece = piece.to_vec();
            watch.see(&mut piece);
            out.extend(piece);
        }
        (out, watch.at)
    }

    /// Whether what was let through up to the spoilt head's end could pass for a request.
    fn is_request(seen: &[u8]) -> bool {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let head = seen.split_inclusive(|byte| *byte == 0).next().unwrap_or_default();
        let ended = [head, SPOILT_END].concat();
        matches!(
            httparse::Request::new(&mut fields).parse(&ended),
            Ok(httparse::Status::Complete(_))
        )
    }

    #[test]
    fn every_ambiguous_head_is_spoilt_however_it_is_cut() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length:\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Host: b\r\n",
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\nhello");
            for step in 1..text.len() {
                let (seen, at) = feed(text.as_bytes(), step);
                assert!(seen.contains(&0), "{fields:?} in steps of {step}");
                assert!(!is_request(&seen), "{fields:?} in steps of {step}");
                assert_eq!(at, At::Opaque);
            }
        }
    }

    #[test]
    fn a_clear_conversation_passes_unchanged_however_it_is_cut() {
        let text = b"\r\nPOST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\r\n\r\n\
            POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n\
            3;x=\"a\"\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n\
            GET /c HTTP/1.1\r\nhost: a\r\n\r\nGET /d HTTP/1.1\nhost: a\n\n";
        for step in 1..text.len() {
            let (seen, at) = feed(text, step);
            assert_eq!(seen, text, "in steps of {step}");
            assert_eq!(at, At::Head, "in steps of {step}");
        }
    }

    #[test]
    fn a_second_request_hidden_behind_a_body_is_watched_too() {
        let text = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nokPOST / HTTP/1.1\r\n\
            Host: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (seen, at) = feed(text, text.len());
        assert!(seen.contains(&0));
        assert_eq!(at, At::Opaque);
    }

    #[test]
    fn an_upgrade_that_is_none_hides_nothing_behind_it() {
        for (fields, body) in [
            ("Upgrade: h2c\r\nConnection: Upgrade\r\n", ""),
            ("Upgrade: websocket\r\n", ""),
            ("Upgrade: x\r\nConnection: upgrade\r\nContent-Length: 2\r\n", "ok"),
            ("Upgrade: x\r\nConnection: upgrade\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ] {
            let text = format!(
                "GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}POST / HTTP/1.1\r\nHost: a\r\n\
                 Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
            );
            let (seen, _) = feed(text.as_bytes(), text.len());
            assert!(seen.contains(&0), "{fields:?}");
        }
    }

    #[test]
    fn http_2_and_upgrades_are_left_alone() {
        let (seen, at) = feed(H2_PREFACE, 5);
        assert_eq!((seen.as_slice(), at), (H2_PREFACE, At::Opaque));
        let upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x05";
        let (seen, at) = feed(upgrade, 7);
        assert_eq!((seen.as_slice(), at), (upgrade.as_slice(), At::Opaque));
    }

    #[test]
    fn an_endless_head_is_not_kept() {
        let mut watch = Watch { at: At::Head, head: Vec::new(), spoilt: false };
        for _ in 0..200 {
            watch.see(&mut [b'a'; 1024]);
        }
        assert!(watch.head.capacity() <= HEAD_BYTES_MAX * 2);
        assert_eq!(watch.at, At::Opaque);
    }
}

//! One exchange on a connection to an app, of the most common kind: the request is whole in memory,
//! and the answer has a length.
//!
//! An exchange of another kind is recognised by the answer's head, before any of it was passed on,
//! and left to hyper together with every byte that was read ([`Exchanged::Other`]). So nothing here
//! interprets chunks, interim answers, ends of connections, or malformed heads.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, ETAG, HeaderName,
    HeaderValue, LAST_MODIFIED, SERVER, SET_COOKIE, TRANSFER_ENCODING, VARY,
};
use http::response::Parts;
use http::{HeaderMap, Method, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use hyper::ext::ReasonPhrase;
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;
use warmhop::app::WholeRequest;
use warmhop::{Body, BoxError, NotSent};

use super::pool::Pool;
use super::socket::Socket;

/// The most fields in the head of an app's response: as many as a front door accepts in a request.
pub(super) const FIELDS_MAX: usize = 128;
/// A longer head is left to hyper.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The size of the first read: most answers fit.
const FIRST_READ_BYTES: usize = 8 * 1024;
/// The size of each further read of a long answer.
const READ_BYTES: usize = 64 * 1024;
/// How many fields a peer usually adds to an answer.
const FIELDS_ADDED: usize = 3;
/// The most digits of a length: any number with so many fits into 64 bits.
const LENGTH_DIGITS_MAX: usize = 19;

/// A request whose body is in memory.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) target: &'a str,
    pub(super) fields: &'a HeaderMap,
    /// A field besides those.
    pub(super) further: Option<&'a (HeaderName, HeaderValue)>,
    pub(super) body: &'a Bytes,
}

impl Asked<'_> {
    /// Whether it may be sent twice, so that nobody needs to know whether the app got any of it.
    pub(super) fn is_harmless(&self) -> bool {
        self.method.is_safe() && self.body.is_empty()
    }
}

/// Why a request failed.
pub(super) struct Failed {
    pub(super) error: BoxError,
    /// The app can have received none of it.
    pub(super) unsent: bool,
    /// It used a connection that was kept after another's answer, and got no byte of one itself.
    pub(super) stale: bool,
}

impl Failed {
    /// The error in the form that the mesh takes.
    pub(super) fn into_error(self) -> BoxError {
        if self.unsent {
            let reason = "it closes connections at once";
            return NotSent::new(reason).refuses(true).caused_by(self.error).into();
        }
        self.error
    }
}

/// The outcome of an exchange.
pub(super) enum Exchanged {
    /// The whole answer, and the connection, which can take another request.
    Whole(Response<Body>, Box<Socket>),
    /// The whole answer; the connection cannot be used again.
    Ends(Response<Body>),
    /// The answer's head; its body is still to come.
    Begun(Parts, Reading),
    /// An answer of another kind; the bytes read of it are to be read again.
    Other(Box<Socket>),
}

/// A request on its way, until its answer's head has come.
pub(super) struct Plain<'a> {
    socket: Option<Box<Socket>>,
    method: &'a Method,
    /// The bytes to write, the body included.
    out: Out,
    read: BytesMut,
    /// The request may be sent twice, so nobody needs to know whether the app got any of it.
    harmless: bool,
}

/// An answer's body on its way.
pub(super) struct Reading {
    socket: Box<Socket>,
    out: Out,
    read: BytesMut,
    left: u64,
}

/// A request's bytes, and how many of them were written.
#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    written: usize,
}

impl Out {
    fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }
}

impl<'a> Plain<'a> {
    pub(super) fn new(mut socket: Box<Socket>, asked: Asked<'a>) -> Self {
        let (mut bytes, read) = socket.take_buffers();
        put_request(&mut bytes, asked);
        let (out, harmless) = (Out { bytes, written: 0 }, asked.is_harmless());
        Self { socket: Some(socket), method: asked.method, out, read, harmless }
    }

    fn failed(&mut self, error: io::Error) -> Failed {
        let talk = self.socket.take().map(|socket| socket.talk()).unwrap_or_default();
        Failed { error: error.into(), unsent: talk.is_unsent(), stale: talk.is_stale() }
    }

    /// Determines which kind of answer it is from what was read so far.
    fn look(&mut self) -> Poll<Exchanged> {
        let head = match read_head(&mut self.read, self.method) {
            Head::Partial => return Poll::Pending,
            Head::Other => {
                let Some(mut socket) = self.socket.take() else { return Poll::Pending };
                socket.reads_again(std::mem::take(&mut self.read).freeze());
                return Poll::Ready(Exchanged::Other(socket));
            }
            Head::Answer(head) => head,
        };
        let Some(socket) = self.socket.take() else { return Poll::Pending };
        let (parts, length) = *head;
        let (read, out) = (std::mem::take(&mut self.read), std::mem::take(&mut self.out));
        let mut reading = Reading { socket, out, read, left: length };
        if reading.left > reading.read.len() as u64 {
            return Poll::Ready(Exchanged::Begun(parts, reading));
        }
        let body = Body::from(reading.take());
        let response = Response::from_parts(parts, body);
        Poll::Ready(match reading.into_free() {
            Some(socket) => Exchanged::Whole(response, socket),
            None => Exchanged::Ends(response),
        })
    }
}

impl Future for Plain<'_> {
    type Output = Result<Exchanged, Failed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let Some(socket) = &mut this.socket else { return Poll::Pending };
            if !this.out.is_empty()
                && let Poll::Ready(Err(error)) = write(socket, &mut this.out, this.harmless, cx)
            {
                return Poll::Ready(Err(this.failed(error)));
            }
            this.read.reserve(FIRST_READ_BYTES);
            match ready!(poll_read_buf(Pin::new(&mut **socket), cx, &mut this.read)) {
                Ok(0) => {
                    let what = "the app closed the connection before it answered";
                    let error = io::Error::new(io::ErrorKind::UnexpectedEof, what);
                    return Poll::Ready(Err(this.failed(error)));
                }
                Err(error) => return Poll::Ready(Err(this.failed(error))),
                Ok(_) => {}
            }
            if let Poll::Ready(exchanged) = this.look() {
                return Poll::Ready(Ok(exchanged));
            }
        }
    }
}

/// Writes as much as possible. An error means that the app can have received nothing.
fn write(
    socket: &mut Socket,
    out: &mut Out,
    harmless: bool,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while !out.is_empty() {
        let outcome = if harmless {
            socket.poll_write_harmless(cx, &out.bytes[out.written..])
        } else {
            Pin::new(&mut *socket).poll_write(cx, &out.bytes[out.written..])
        };
        match ready!(outcome) {
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(bytes) => out.written += bytes,
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(()))
}

impl Reading {
    /// Takes the bytes of the body that have been read.
    fn take(&mut self) -> Bytes {
        let bytes = self.left.min(self.read.len() as u64);
        self.left -= bytes;
        // It is at most as much as there is.
        self.read.split_to(bytes as usize).freeze()
    }

    /// The connection, if the answer has been read to its end and nothing else arrived.
    fn into_free(self) -> Option<Box<Socket>> {
        let Self { mut socket, out, read, left } = self;
        if left > 0 || !out.is_empty() || !read.is_empty() || socket.is_deaf() {
            return None;
        }
        socket.give_back_buffers(out.bytes, read);
        Some(socket)
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        // An app may answer before it has read the whole request.
        if let Poll::Ready(Err(error)) = write(&mut self.socket, &mut self.out, false, cx) {
            return Poll::Ready(Err(error));
        }
        if self.read.is_empty() {
            let room = usize::try_from(self.left).unwrap_or(READ_BYTES).min(READ_BYTES);
            self.read.reserve(room);
            let read = poll_read_buf(Pin::new(&mut *self.socket), cx, &mut self.read);
            if ready!(read)? == 0 {
                let what = "the app closed the connection before the end of its answer";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, what)));
            }
        }
        Poll::Ready(Ok(self.take()))
    }
}

/// The body of an answer with a length. Dropping it before its end closes the connection.
pub(super) struct Answer {
    reading: Option<Reading>,
    /// How many bytes are missing and will not come: the connection broke.
    missing: u64,
    pool: Weak<Pool>,
}

impl Answer {
    pub(super) fn new(reading: Reading, pool: Weak<Pool>) -> Self {
        Self { reading: Some(reading), missing: 0, pool }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(reading) = &mut this.reading else { return Poll::Ready(None) };
        let data = ready!(reading.poll_more(cx));
        this.missing = if data.is_err() { reading.left } else { 0 };
        if (data.is_err() || reading.left == 0)
            && let Some(reading) = this.reading.take()
            && let Some(socket) = reading.into_free()
            && let Some(pool) = this.pool.upgrade()
        {
            pool.put(socket);
        }
        Poll::Ready(Some(data.map(Frame::data).map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.reading.is_none() && self.missing == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.reading.as_ref().map_or(self.missing, |reading| reading.left))
    }
}

/// A request's head and body as they go over the wire (RFC 9112 section 3).
fn put_request(out: &mut Vec<u8>, asked: Asked<'_>) {
    let Asked { method, target, fields, further, body } = asked;
    out.reserve(1024 + body.len());
    // A query may have no path before it, and `*` is no path.
    let root = if target.starts_with(['/', '*']) { "" } else { "/" };
    let line = [method.as_str(), " ", root, target, " HTTP/1.1\r\n"];
    for part in line {
        out.extend_from_slice(part.as_bytes());
    }
    let mut has_length = false;
    let further = further.map(|(name, value)| (name, value));
    for (name, value) in fields.iter().chain(further) {
        has_length |= *name == CONTENT_LENGTH;
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    if !body.is_empty() && !has_length {
        let mut digits = itoa::Buffer::new();
        for part in ["content-length: ", digits.format(body.len()), "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
}

/// How much of an answer's head has arrived.
enum Head {
    Partial,
    /// It is for hyper.
    Other,
    /// The head, and the length of the body.
    Answer(Box<(Parts, u64)>),
}

/// Where a part of a head begins and ends. No head is longer than that counts.
type Part = (u32, u32);

fn range(part: Part) -> std::ops::Range<usize> {
    part.0 as usize..part.1 as usize
}

/// Reads a head, and removes it from the bytes read if it is of the common kind.
fn read_head(read: &mut BytesMut, method: &Method) -> Head {
    let mut room = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut answer = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut answer,
        read,
        &mut room,
    );
    let bytes = match parsed {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) if read.len() <= HEAD_BYTES_MAX => return Head::Partial,
        _ => return Head::Other,
    };
    let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok());
    let Some(status) = status.filter(|it| answer.version == Some(1) && !it.is_informational())
    else {
        return Head::Other;
    };
    let Some(length) = length_of(answer.headers, method, status) else { return Head::Other };
    let reason = answer.reason.filter(|reason| Some(*reason) != status.canonical_reason());
    let reason = reason.map(|reason| ReasonPhrase::try_from(reason.as_bytes().to_vec()));
    // The address of an empty value is meaningless.
    let from = read.as_ptr() as usize;
    let part = |of: &[u8]| {
        let at = (of.as_ptr() as usize).wrapping_sub(from).min(bytes - of.len());
        (at as u32, (at + of.len()) as u32)
    };
    let mut parts = [((0, 0), (0, 0)); FIELDS_MAX];
    for (at, field) in parts.iter_mut().zip(&*answer.headers) {
        *at = (part(field.name.as_bytes()), part(field.value));
    }
    let fields = answer.headers.len();
    // The fields hold the buffer, as the body does, until they have been passed on.
    let head = read.split_to(bytes).freeze();
    let Some(headers) = headers_of(&head, &parts[..fields]) else {
        let mut whole = BytesMut::from(&head[..]);
        whole.unsplit(std::mem::take(read));
        *read = whole;
        return Head::Other;
    };
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = Version::HTTP_11;
    *response.headers_mut() = headers;
    if let Some(Ok(reason)) = reason {
        response.extensions_mut().insert(reason);
    }
    Head::Answer(Box::new((response.into_parts().0, length)))
}

/// The fields whose names and values are at these places of a head.
fn headers_of(head: &Bytes, parts: &[(Part, Part)]) -> Option<HeaderMap> {
    let mut headers = WholeRequest::spare_fields();
    headers.reserve(parts.len() + FIELDS_ADDED);
    for (name, value) in parts {
        let name = name_of(&head[range(*name)])?;
        // That the connection is kept concerns nobody but the two ends of it.
        if name == CONNECTION {
            continue;
        }
        let value = HeaderValue::from_maybe_shared(head.slice(range(*value))).ok()?;
        headers.append(name, value);
    }
    Some(headers)
}

/// The name of a field. Those that most answers have are distinguished by their lengths, which costs a
/// fraction of a look at each letter.
fn name_of(sent: &[u8]) -> Option<HeaderName> {
    let is = |name: &HeaderName| sent.eq_ignore_ascii_case(name.as_str().as_bytes());
    let usual = match sent.len() {
        4 if is(&DATE) => DATE,
        4 if is(&ETAG) => ETAG,
        4 if is(&VARY) => VARY,
        6 if is(&SERVER) => SERVER,
        10 if is(&CONNECTION) => CONNECTION,
        10 if is(&SET_COOKIE) => SET_COOKIE,
        12 if is(&CONTENT_TYPE) => CONTENT_TYPE,
        13 if is(&CACHE_CONTROL) => CACHE_CONTROL,
        13 if is(&LAST_MODIFIED) => LAST_MODIFIED,
        13 if is(&ACCEPT_RANGES) => ACCEPT_RANGES,
        14 if is(&CONTENT_LENGTH) => CONTENT_LENGTH,
        _ => return HeaderName::from_bytes(sent).ok(),
    };
    Some(usual)
}

/// The length of the body (RFC 9112 section 6.3), if the answer has one and leaves its connection
/// open; absent for another kind of answer.
fn length_of(fields: &[httparse::Header<'_>], method: &Method, status: StatusCode) -> Option<u64> {
    let mut length = None;
    for field in fields {
        // Names are compared by length first: this is called for each field of each answer.
        let is = |name: &HeaderName| field.name.eq_ignore_ascii_case(name.as_str());
        match field.name.len() {
            10 if is(&CONNECTION) && !field.value.eq_ignore_ascii_case(b"keep-alive") => {
                return None;
            }
            14 if is(&CONTENT_LENGTH) => {
                let digits = field.value;
                let in_form = (1..=LENGTH_DIGITS_MAX).contains(&digits.len())
                    && digits.iter().all(u8::is_ascii_digit);
                if !in_form || length.is_some() {
                    return None;
                }
                length =
                    Some(digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')));
            }
            17 if is(&TRANSFER_ENCODING) => return None,
            _ => {}
        }
    }
    let none = *method == Method::HEAD
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if none { Some(0) } else { length }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::child::request::RequestBody;

    fn read(text: &str, method: &Method) -> Option<(Parts, u64, BytesMut)> {
        let mut read = BytesMut::from(text);
        match read_head(&mut read, method) {
            Head::Answer(head) => Some((head.0, head.1, read)),
            Head::Partial | Head::Other => {
                assert_eq!(read, text, "what is not understood is left as it came");
                None
            }
        }
    }

    #[test]
    fn an_answer_that_says_how_long_it_is_is_read_and_what_follows_is_left() {
        let text = "HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-A: 1\r\nx-a: \r\n\r\nhello";
        let (parts, length, rest) = read(text, &Method::GET).unwrap();
        assert_eq!((parts.status, length, &rest[..]), (StatusCode::OK, 5, &b"hello"[..]));
        assert_eq!(parts.extensions.get::<ReasonPhrase>().unwrap().as_bytes(), b"Fine");
        assert_eq!(parts.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", ""]);
        for (method, head) in [
            (Method::HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
            (Method::GET, "HTTP/1.1 204 No Content\r\n\r\n"),
            (Method::GET, "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
        ] {
            let (parts, length, _) = read(head, &method).unwrap();
            assert_eq!(length, 0, "{head}");
            assert!(parts.extensions.get::<ReasonPhrase>().is_none());
        }
    }

    #[test]
    fn usual_names_are_known_in_any_case_and_a_connection_that_is_kept_is_not_passed_on() {
        let usual = [DATE, ETAG, VARY, SERVER, SET_COOKIE, CONTENT_TYPE, CACHE_CONTROL];
        for name in usual.into_iter().chain([LAST_MODIFIED, ACCEPT_RANGES, CONTENT_LENGTH]) {
            assert_eq!(name_of(name.as_str().to_ascii_uppercase().as_bytes()), Some(name));
        }
        let text = "HTTP/1.1 204 No Content\r\nConnection: Keep-Alive\r\nX-A: 1\r\n\r\n";
        let (parts, ..) = read(text, &Method::GET).unwrap();
        assert_eq!(parts.headers.keys().collect::<Vec<_>>(), ["x-a"]);
    }

    #[test]
    fn every_other_kind_of_answer_is_left_to_hyper() {
        let many = format!("HTTP/1.1 204 X\r\n{}", "a: b\r\n".repeat(FIELDS_MAX + 1));
        let long = "1".repeat(LENGTH_DIGITS_MAX + 1);
        for head in [
            "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n",
            "HTTP/1.1 100 Continue\r\n",
            "HTTP/1.1 101 Switching Protocols\r\ncontent-length: 2\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive, close\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length:\r\n",
            &format!("HTTP/1.1 200 OK\r\ncontent-length: {long}\r\n"),
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 2x0 OK\r\ncontent-length: 2\r\n",
            "HTTP/1.1 200 OK\r\n folded: 1\r\ncontent-length: 2\r\n",
            "no HTTP\r\n",
            &many,
        ] {
            assert!(read(&format!("{head}\r\nab"), &Method::GET).is_none(), "{head}");
        }
        assert!(read("HTTP/1.1 200 OK\r\ncontent-le", &Method::GET).is_none(), "it is not whole");
    }

    #[test]
    fn a_request_is_written_as_it_is() {
        let write = |target: &str, body: &'static str, fields: &[(&str, &str)]| {
            let mut request = Request::new(Body::from(body));
            *request.method_mut() = Method::PUT;
            *request.uri_mut() = target.parse().unwrap();
            for (name, value) in fields {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                request.headers_mut().append(name, value.parse().unwrap());
            }
            let (mut parts, body) = request.into_parts();
            let body = RequestBody::new(&mut parts.headers, body);
            let whole = body.whole().unwrap();
            let target = parts.uri.path_and_query().unwrap().as_str();
            let (method, fields) = (&parts.method, &parts.headers);
            let further = (HeaderName::from_static("x-further"), HeaderValue::from_static("3"));
            let further = fields.is_empty().then_some(&further);
            let mut out = Vec::new();
            put_request(&mut out, Asked { method, target, fields, further, body: &whole });
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            write("/a?b", "hi", &[("host", "h"), ("x", "1"), ("x", "2")]),
            "PUT /a?b HTTP/1.1\r\nhost: h\r\nx: 1\r\nx: 2\r\ncontent-length: 2\r\n\r\nhi"
        );
        assert_eq!(
            write("*", "hi", &[("content-length", "7")]),
            "PUT * HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi"
        );
        assert_eq!(write("/", "", &[]), "PUT / HTTP/1.1\r\nx-further: 3\r\n\r\n");
    }
}

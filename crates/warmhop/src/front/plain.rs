//! A client's connection while its requests and answers are of the most common kind: HTTP/1.1, a
//! request without demands on the connection and whose body, if it has one, came with its head, and
//! an answer whose length is known before it begins, whether it is whole in memory or still to
//! come.
//!
//! Anything else is left to hyper, with the connection from there on: hyper reads the request once
//! more, and if its answer is there already hyper sends that ([`Left::Other`]). So nothing here
//! interprets chunks, trailers, upgrades, interim answers, bodies that take time or malformed
//! heads. All bytes that are read here were checked in `framing.rs` before.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version, response};
use http_body::{Body as _, Frame, SizeHint};
use hyper::ext::ReasonPhrase;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_util::io::{poll_read_buf, poll_write_buf};

use crate::http::body::{Body, BoxError};
use crate::http::departure::CountedBody;
use crate::http::framing::READ_BYTES;
use crate::http::heads::HEAD_BYTES_MAX;
use crate::http::names::name_of;
use crate::http::spare;
use crate::http::writes_through::writes_through;

/// With less room than this in the buffer, it grows. A head that comes in small pieces does not make it
/// twice as large as the first read with its second piece.
const ROOM_BYTES_MIN: usize = 1024;
/// The most fields of a head that is read here.
const FIELDS_MAX: usize = 64;
/// How many fields a peer usually adds to a request.
const FIELDS_ADDED: usize = 6;
/// The longest body of a request that is read here.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// The most digits of its length.
const LENGTH_DIGITS_MAX: usize = 5;
/// The most digits of an answer's length: any number of so many fits into 64 bits.
const ANSWER_DIGITS_MAX: usize = 19;
/// An answer's body of at most this length is sent in one piece with its head.
const JOINED_BYTES_MAX: usize = 8 * 1024;

/// The answer to a head that is not complete in time.
const TOO_SLOW: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// Answers the requests of a connection.
pub(crate) trait Answers {
    /// Answers one request, which had so many bytes.
    fn answer(
        &self,
        request: Box<Request<Body>>,
        bytes: usize,
    ) -> impl Future<Output = Response<CountedBody>> + Send + use<Self>;

    /// Whether the connection ends because a request's head was not complete in time. Where it ends for
    /// another reason, its client gets no answer to such a request, and may send it elsewhere.
    fn gives_head_up(&self) -> bool {
        false
    }
}

/// How serving a connection ended.
pub(crate) enum Left<IO> {
    /// The connection has ended.
    Ended,
    /// What comes next is left to hyper, and an answer to it may exist already.
    Other { io: Reread<IO>, answer: Option<Box<Response<Ahead>>> },
}

/// Serves a connection until it ends or a request of another kind comes. Once `ends` is set, and
/// this is polled again, it takes no further request.
pub(crate) async fn serve<IO, A>(mut io: IO, answers: &A, ends: &AtomicBool) -> Left<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    A: Answers,
{
    let mut read = BytesMut::new();
    let mut out = Vec::new();
    loop {
        let mut looked_at = 0;
        let next =
            std::future::poll_fn(|cx| poll_next(&mut io, &mut read, &mut looked_at, ends, cx));
        let (request, taken) = match next.await {
            Next::Request(request, taken) => (request, taken),
            Next::Other => return Left::Other { io: Reread::new(read.freeze(), io), answer: None },
            Next::Ended => {
                if answers.gives_head_up() {
                    let _ = io.write_all(TOO_SLOW).await;
                }
                // A client that has left does not mind.
                let _ = io.shutdown().await;
                return Left::Ended;
            }
            Next::Broken => return Left::Ended,
        };
        let answered = {
            let mut answering = std::pin::pin!(answers.answer(request, taken.len()));
            let answered = std::future::poll_fn(|cx| {
                if let Poll::Ready(answer) = answering.as_mut().poll(cx) {
                    return Poll::Ready(Some(answer));
                }
                // Interim responses are written by a flush. A client that does not read them is
                // not waited for yet.
                if let Poll::Ready(Err(_)) = Pin::new(&mut io).poll_flush(cx) {
                    return Poll::Ready(None);
                }
                poll_left(&mut io, &mut read, cx).map(|()| None)
            });
            answered.await
        };
        let Some(answer) = answered else { return Left::Ended };
        let last = ends.load(Ordering::Relaxed);
        let (mut parts, body) = answer.into_parts();
        let mut body = Ahead::from(body);
        let Some(length) = length_of(&parts, &body) else {
            let mut other = Response::from_parts(parts, body);
            if last {
                other.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            let mut again = BytesMut::from(taken);
            again.extend_from_slice(&read);
            let answer = Some(Box::new(other));
            return Left::Other { io: Reread::new(again.freeze(), io), answer };
        };
        drop(taken);
        out.clear();
        put_head(&mut out, &parts, length, last);
        spare::keep(std::mem::take(&mut parts.headers));
        let sent = match body.whole(length) {
            Some(whole) => {
                drop(body);
                send(&mut io, &mut out, whole).await
            }
            // Boxed, since it is rare: the future of every connection would be as large.
            None => Box::pin(pass_on(&mut io, &mut read, &out, body, length)).await,
        };
        if sent.is_err() {
            return Left::Ended;
        }
        if last {
            let _ = io.shutdown().await;
            return Left::Ended;
        }
    }
}

/// What comes next on a connection.
enum Next {
    /// A request, and the bytes that it was read from.
    Request(Box<Request<Body>>, Bytes),
    Other,
    /// The client sends no more, or the connection is to end.
    Ended,
    Broken,
}

/// `looked_at` is how many bytes of the next head were found to be incomplete: a head that comes
/// byte by byte is not parsed again for each.
fn poll_next<IO: AsyncRead + Unpin>(
    io: &mut IO,
    read: &mut BytesMut,
    looked_at: &mut usize,
    ends: &AtomicBool,
    cx: &mut Context<'_>,
) -> Poll<Next> {
    loop {
        if ends.load(Ordering::Relaxed) {
            return Poll::Ready(Next::Ended);
        }
        let may_be_whole = match *looked_at {
            0 => !read.is_empty(),
            _ => ends_head(read, *looked_at),
        };
        if may_be_whole && let Some(next) = take_request(read) {
            return Poll::Ready(next);
        }
        if read.len() >= HEAD_BYTES_MAX {
            return Poll::Ready(Next::Other);
        }
        *looked_at = read.len();
        match ready!(poll_read(io, read, cx)) {
            Ok(0) if read.is_empty() => return Poll::Ready(Next::Ended),
            Ok(0) | Err(_) => return Poll::Ready(Next::Broken),
            Ok(_) => {}
        }
    }
}

/// Whether the bytes after the first ones may complete a head: with an empty line.
fn ends_head(read: &[u8], looked_at: usize) -> bool {
    let fresh = read.get(looked_at.saturating_sub(2)..).unwrap_or_default();
    fresh.windows(2).any(|two| two == b"\n\n") || fresh.windows(3).any(|three| three == b"\n\r\n")
}

fn poll_read<IO: AsyncRead + Unpin>(
    io: &mut IO,
    read: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if read.capacity() - read.len() < ROOM_BYTES_MIN {
        read.reserve(READ_BYTES);
    }
    // There may be room for more, which would be held for long.
    poll_read_buf(Pin::new(io), cx, &mut read.limit(READ_BYTES))
}

/// Resolves once the client has left. Bytes that it sends meanwhile are kept; once there are some,
/// nothing more is read.
fn poll_left<IO: AsyncRead + Unpin>(
    io: &mut IO,
    read: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<()> {
    if !read.is_empty() {
        return Poll::Pending;
    }
    match ready!(poll_read(io, read, cx)) {
        Ok(0) | Err(_) => Poll::Ready(()),
        Ok(_) => Poll::Pending,
    }
}

/// Where a part of a head begins and ends. No head is longer than that counts.
type Part = (u32, u32);

fn range(part: Part) -> std::ops::Range<usize> {
    part.0 as usize..part.1 as usize
}

/// Removes a request from the bytes read; `None` if the end of its head has not come.
fn take_request(read: &mut BytesMut) -> Option<Next> {
    let mut room = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let head = match request.parse_with_uninit_headers(read, &mut room) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return None,
        Err(_) => return Some(Next::Other),
    };
    let Some(body) = body_of(&request) else { return Some(Next::Other) };
    let bytes = head + body;
    if bytes > read.len() {
        return Some(Next::Other);
    }
    // The address of an empty value is meaningless.
    let from = read.as_ptr() as usize;
    let part = |of: &[u8]| {
        let at = (of.as_ptr() as usize).wrapping_sub(from).min(head - of.len());
        (at as u32, (at + of.len()) as u32)
    };
    let mut parts = [((0, 0), (0, 0)); FIELDS_MAX];
    for (at, field) in parts.iter_mut().zip(&*request.headers) {
        *at = (part(field.name.as_bytes()), part(field.value));
    }
    let fields = request.headers.len();
    let target = request.path.map(|path| part(path.as_bytes()));
    let method = request.method.map(|method| Method::from_bytes(method.as_bytes()));
    let (Some(target), Some(Ok(method))) = (target, method) else { return Some(Next::Other) };
    // It holds the buffer only as long as it takes: the next read needs another one until then.
    let taken = read.split_to(bytes).freeze();
    let (Some(headers), Ok(target)) =
        (headers_of(&taken, &parts[..fields]), Uri::from_maybe_shared(taken.slice(range(target))))
    else {
        let mut whole = BytesMut::from(&taken[..]);
        whole.unsplit(std::mem::take(read));
        *read = whole;
        return Some(Next::Other);
    };
    let mut request = Request::new(Body::from(taken.slice(head..)));
    *request.method_mut() = method;
    *request.uri_mut() = target;
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = headers;
    Some(Next::Request(Box::new(request), taken))
}

/// The fields whose names and values are at these places of a head.
fn headers_of(head: &Bytes, parts: &[(Part, Part)]) -> Option<HeaderMap> {
    let mut headers = spare::take();
    headers.reserve(parts.len() + FIELDS_ADDED);
    for (name, value) in parts {
        let name = name_of(&head[range(*name)])?;
        let value = HeaderValue::from_maybe_shared(head.slice(range(*value))).ok()?;
        headers.append(name, value);
    }
    Some(headers)
}

/// The length of the body of a request that leaves its connection as it is; `None` for other
/// requests.
fn body_of(request: &httparse::Request<'_, '_>) -> Option<usize> {
    let is_usual = request.version == Some(1)
        && request.path.is_some_and(|path| path.starts_with('/'))
        // An answer to HEAD has a length and no body; a CONNECT is not for an app.
        && !matches!(request.method, None | Some("HEAD" | "CONNECT"));
    if !is_usual {
        return None;
    }
    let mut length = None;
    for field in &*request.headers {
        // Names are compared by length first: this is called for each field of each request.
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        match field.name.len() {
            6 if is("expect") => return None,
            7 if is(UPGRADE.as_str()) => return None,
            10 if is(CONNECTION.as_str()) && !field.value.eq_ignore_ascii_case(b"keep-alive") => {
                return None;
            }
            14 if is(CONTENT_LENGTH.as_str()) => {
                let digits = field.value;
                let in_form = (1..=LENGTH_DIGITS_MAX).contains(&digits.len())
                    && digits.iter().all(u8::is_ascii_digit);
                if !in_form || length.is_some() {
                    return None;
                }
                let value = |sum, digit: &u8| sum * 10 + usize::from(digit - b'0');
                length = Some(digits.iter().fold(0, value)).filter(|it| *it <= BODY_BYTES_MAX);
                length?;
            }
            17 if is(TRANSFER_ENCODING.as_str()) => return None,
            _ => {}
        }
    }
    Some(length.unwrap_or(0))
}

/// The length of the body of an answer that leaves its connection as it is; `None` for other
/// answers, and if there is no length, or two different ones.
fn length_of(parts: &response::Parts, body: &Ahead) -> Option<u64> {
    if parts.status.is_informational() || parts.version != Version::HTTP_11 {
        return None;
    }
    // One pass over the fields costs less than a lookup of each of these names.
    let mut said = None;
    for (name, value) in &parts.headers {
        match name.as_str() {
            "connection" | "transfer-encoding" | "trailer" => return None,
            "content-length" if said.is_some() => return None,
            "content-length" => said = Some(value.as_bytes()),
            _ => {}
        }
    }
    if is_bodiless(parts.status) {
        return (body.is_end_stream() && said.is_none()).then_some(0);
    }
    let exact = body.size_hint().exact();
    let Some(digits) = said else { return exact };
    if !(1..=ANSWER_DIGITS_MAX).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let said = digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    // A body that comes by a hop does not know its length.
    exact.is_none_or(|exact| exact == said).then_some(said)
}

/// Whether an answer has no body whatever its fields say (RFC 9112 section 6.3).
fn is_bodiless(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// An answer's head as it goes over the wire (RFC 9112 section 4).
fn put_head(out: &mut Vec<u8>, parts: &response::Parts, length: u64, last: bool) {
    let status = parts.status;
    let reason = parts.extensions.get::<ReasonPhrase>();
    let canonical = status.canonical_reason().unwrap_or("<none>").as_bytes();
    let reason = reason.map_or(canonical, |reason| reason.as_bytes());
    for part in [b"HTTP/1.1 ", status.as_str().as_bytes(), b" ", reason, b"\r\n"] {
        out.extend_from_slice(part);
    }
    let (mut has_length, mut has_date) = (false, false);
    for (name, value) in &parts.headers {
        has_length |= name == CONTENT_LENGTH;
        has_date |= name == DATE;
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    if !has_length && !is_bodiless(status) {
        let mut digits = itoa::Buffer::new();
        for part in ["content-length: ", digits.format(length), "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    if last {
        out.extend_from_slice(b"connection: close\r\n");
    }
    if !has_date {
        put_date(out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the `Date` field (RFC 9110 section 6.6.1).
fn put_date(out: &mut Vec<u8>) {
    thread_local! {
        // The text and the second that it is for.
        static TEXT: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    TEXT.with_borrow_mut(|(of, text)| {
        if *of != second || text.is_empty() {
            *text = format!("date: {}\r\n", httpdate::fmt_http_date(now));
            *of = second;
        }
        out.extend_from_slice(text.as_bytes());
    });
}

async fn send<IO>(io: &mut IO, head: &mut Vec<u8>, mut body: Bytes) -> io::Result<()>
where
    IO: AsyncWrite + Unpin,
{
    if body.len() <= JOINED_BYTES_MAX {
        head.extend_from_slice(&body);
        io.write_all(head).await?;
    } else {
        let mut both = (&head[..]).chain(&mut body);
        while both.has_remaining() {
            let written =
                std::future::poll_fn(|cx| poll_write_buf(Pin::new(&mut *io), cx, &mut both));
            if written.await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
    }
    io.flush().await
}

/// Sends an answer whose body is streamed, piece by piece: the next is polled once the one before
/// it is sent. Returns an error if the body does not have its declared length, its client leaves,
/// or it cannot be sent: then the connection is of no further use.
async fn pass_on<IO>(
    io: &mut IO,
    read: &mut BytesMut,
    mut head: &[u8],
    mut body: Ahead,
    mut left: u64,
) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    // The earlier poll registered no waker, so the body is polled again here.
    body.asked_in_vain = false;
    let mut piece = Bytes::new();
    let mut failed = None;
    std::future::poll_fn(move |cx| {
        loop {
            let waits = left > 0 && piece.is_empty() && {
                // The buffer of this piece can be reused for the next read, once nobody holds it.
                piece = Bytes::new();
                match poll_piece(&mut body, &mut left, cx) {
                    Poll::Ready(Ok(next)) => {
                        piece = next;
                        false
                    }
                    // The client gets the head and the part that came, and then sees that the rest
                    // is missing.
                    Poll::Ready(Err(error)) => {
                        (failed, left) = (Some(error), 0);
                        false
                    }
                    Poll::Pending => true,
                }
            };
            let sending = poll_out(io, &mut head, &mut piece, cx)?;
            if sending.is_ready() && !waits {
                if left > 0 {
                    continue;
                }
                ready!(Pin::new(&mut *io).poll_flush(cx))?;
                return Poll::Ready(failed.take().map_or(Ok(()), Err));
            }
            if waits {
                let _ = Pin::new(&mut *io).poll_flush(cx)?;
            }
            ready!(poll_left(io, read, cx));
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
    })
    .await
}

/// The next piece of a body of which `left` bytes are left, and which is to end with them.
fn poll_piece(body: &mut Ahead, left: &mut u64, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    let frame =
        ready!(Pin::new(&mut *body).poll_frame(cx)).transpose().map_err(io::Error::other)?;
    let Some(piece) = frame.and_then(|frame| frame.into_data().ok()) else {
        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
    };
    let Some(rest) = left.checked_sub(piece.len() as u64) else {
        return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
    };
    *left = rest;
    if rest == 0 && !body.is_end_stream() {
        // The source of the body learns that all of it was read. Nothing else is expected of it.
        let _ = Pin::new(body).poll_frame(cx);
    }
    Poll::Ready(Ok(piece))
}

/// Sends what is buffered.
fn poll_out<IO: AsyncWrite + Unpin>(
    io: &mut IO,
    head: &mut &[u8],
    piece: &mut Bytes,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let mut both = head.chain(piece);
    while both.has_remaining() {
        if ready!(poll_write_buf(Pin::new(&mut *io), cx, &mut both))? == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
    }
    Poll::Ready(Ok(()))
}

/// An answer's body of which a part may have been read ahead.
pub(crate) struct Ahead {
    first: VecDeque<Result<Frame<Bytes>, BoxError>>,
    /// The rest was not ready when it was polled, or has failed: what is buffered is sent before it
    /// is polled again.
    asked_in_vain: bool,
    body: CountedBody,
}

impl From<CountedBody> for Ahead {
    fn from(body: CountedBody) -> Self {
        Self { first: VecDeque::new(), asked_in_vain: false, body }
    }
}

impl Ahead {
    /// All of it, if it is in memory and has this length; otherwise it is read ahead.
    fn whole(&mut self, length: u64) -> Option<Bytes> {
        let mut all = Bytes::new();
        // A waker is registered when the body is polled for sending.
        let mut noop = Context::from_waker(std::task::Waker::noop());
        while !self.body.is_end_stream() {
            match Pin::new(&mut self.body).poll_frame(&mut noop) {
                Poll::Ready(None) => break,
                Poll::Ready(Some(Ok(frame))) if all.is_empty() && frame.is_data() => {
                    all = frame.into_data().unwrap_or_default();
                }
                Poll::Ready(Some(frame)) => {
                    self.first.push_back(frame);
                    break;
                }
                Poll::Pending => {
                    self.asked_in_vain = true;
                    break;
                }
            }
        }
        if self.first.is_empty() && all.len() as u64 == length {
            return Some(all);
        }
        if !all.is_empty() {
            self.first.push_front(Ok(Frame::data(all)));
        }
        None
    }
}

impl http_body::Body for Ahead {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(frame) = self.first.pop_front() {
            return Poll::Ready(Some(frame));
        }
        if std::mem::take(&mut self.asked_in_vain) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let data = self.first.iter().flatten().filter_map(Frame::data_ref);
        let ahead = data.map(|data| data.len() as u64).sum::<u64>();
        let mut hint = self.body.size_hint();
        if ahead > 0 {
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper + ahead);
            }
            hint.set_lower(hint.lower() + ahead);
        }
        hint
    }
}

/// A connection of which the first bytes are read a second time.
pub(crate) struct Reread<IO> {
    first: Bytes,
    io: IO,
}

impl<IO> Reread<IO> {
    fn new(first: Bytes, io: IO) -> Self {
        Self { first, io }
    }

    /// The same with other first bytes.
    pub(crate) fn with_first(self, change: impl FnOnce(Bytes) -> Bytes) -> Self {
        Self { first: change(self.first), io: self.io }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Reread<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let bytes = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first.split_to(bytes));
        if self.first.is_empty() {
            // It is no longer held.
            self.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

writes_through!(Reread);

#[cfg(test)]
mod tests;

//! Refuses requests whose length two readers could understand differently (RFC 9112 section 6.3,
//! CWE-444) before hyper silently picks one reading.
//!
//! hyper accepts a request with both `Content-Length` and `Transfer-Encoding` and drops the
//! former. That keeps *us* safe, but a proxy in front that believed the other field has been
//! desynchronised already, so such a request gets 400. [`Framed`] reads along on an HTTP/1
//! connection, follows the framing to know where each head begins, and spoils a head that is
//! ambiguous so that hyper refuses it. Where it cannot follow, hyper is given nothing more to read:
//! no byte is taken for a request that was not looked at here.

#[cfg(feature = "admin")]
mod checked;

use std::io::{self, BufRead as _};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::http::chunks::{Chunked, Read};
use crate::http::clients::Account;
use crate::http::departure::{ConnectionRequests, Departure};
use crate::http::fields;
use crate::http::h2_frames::{BodyParts, Frames};
use crate::http::heads::{FIELDS_MAX, HEAD_BYTES_MAX};
use crate::http::refusals::Refusal;
use crate::http::willing;
use crate::http::writes_through::writes_through;

#[cfg(feature = "admin")]
pub(crate) use self::checked::Checked;

/// How much is read of a head at once.
pub(crate) const READ_BYTES: usize = 8 * 1024;
/// An incomplete head is kept in a buffer that grows by so much.
const HEAD_STEP_BYTES: usize = 2 * 1024;

/// The longest body that a head may announce: hyper counts no further.
const LENGTH_MAX: u64 = u64::MAX - 2;

/// The first byte of a TLS connection, a handshake record (RFC 8446 section 5.1). No HTTP begins with it.
const TLS_HANDSHAKE: u8 = 22;

/// A read that would make a connection hold more is put off for so long at once, and so often, while
/// those that are to end hold much: their tasks may be on a thread that does not get its turn.
const PUT_OFF_FOR: Duration = Duration::from_millis(1);
const PUT_OFF_MAX: u32 = 100;

/// What ends a spoilt head for hyper.
const SPOILT_END: &[u8] = b"\r\n\r\n";
/// The start of an HTTP/2 connection (RFC 9113 section 3.4).
pub(crate) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose HTTP/1 framing is watched.
pub(crate) struct Framed<IO> {
    io: IO,
    watch: Watch,
    departure: Departure,
    account: Arc<Account>,
    put_off: PutOff,
}

/// How often the next read was put off, and until when it is.
#[derive(Default)]
struct PutOff {
    times: u32,
    until: Option<Pin<Box<Sleep>>>,
}

impl<IO> Framed<IO> {
    pub(crate) fn new(io: IO, in_flight: ConnectionRequests) -> Self {
        let account = Arc::clone(in_flight.account());
        let departure = Departure::new(in_flight);
        Self { io, watch: Watch::default(), departure, account, put_off: PutOff::default() }
    }

    /// Resolves once the next read may begin.
    fn poll_may_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let put_off = &mut self.put_off;
        loop {
            if let Some(until) = &mut put_off.until {
                ready!(until.as_mut().poll(cx));
                put_off.until = None;
            }
            if !self.account.is_crowded() || put_off.times == PUT_OFF_MAX {
                break;
            }
            put_off.times += 1;
            if self.account.has_unread() {
                put_off.until = Some(Box::pin(sleep(PUT_OFF_FOR)));
            } else if put_off.times == 1 {
                // What a connection first sends fits into what it was charged when it came.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            } else {
                break;
            }
        }
        put_off.times = 0;
        Poll::Ready(())
    }

    fn wrote(&mut self, outcome: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = outcome {
            self.account.sent(*bytes);
        }
        self.departure.wrote(outcome);
    }

    /// The heads that were checked and passed, in order.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn looked(&self) -> Looked {
        Arc::clone(&self.watch.looked)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Framed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(instead) = self.watch.instead(buf) {
            return Poll::Ready(instead);
        }
        if self.departure.waits() {
            return self.departure.poll_left(cx).map(Ok);
        }
        ready!(self.poll_may_read(cx));
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.io).poll_read(cx, buf);
        if matches!(outcome, Poll::Ready(Ok(()))) {
            let ended = buf.filled().len() == before && buf.remaining() > 0;
            self.watch.asks_for_trailers = self.account.is_read_by_hyper();
            let fresh = &mut buf.filled_mut()[before..];
            let (seen, refusal) = self.watch.see(fresh);
            if let Some(why) = refusal {
                self.account.refused(why);
            }
            let came = self.watch.came(seen);
            if came != BodyParts::default() {
                self.account.came(came.bytes, came.frames);
            }
            buf.set_filled(before + seen);
            if !self.watch.places.is_empty() {
                let places = std::mem::take(&mut self.watch.places).into_iter();
                willing::put_into(buf, places.map(|at| before + at).collect());
            }
            if seen == 0 && self.watch.at == At::Refused {
                // A read of nothing would look like the end of the connection to the reader.
                return self.poll_read(cx, buf);
            }
            let between = self.watch.is_between();
            if ended && self.departure.sends_no_more(between) {
                return self.departure.poll_left(cx).map(Ok);
            }
        }
        outcome
    }
}

writes_through!(Framed, wrote);

/// The position of the next byte in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Head,
    /// In a body with this many bytes left.
    Fixed(u64),
    /// In a chunked body.
    Chunks(Chunked),
    /// In the frames of HTTP/2.
    Http2,
    /// A connection that may be upgraded. Where it is not upgraded after all,
    /// [`ends_connection`] has it closed behind the answer.
    Opaque,
    /// After a request that was refused, here or by hyper: nobody reads on.
    Refused,
}

struct Watch {
    at: At,
    /// The part of the head that arrived with earlier reads.
    head: Vec<u8>,
    /// What the incomplete head was reported to take.
    reported: usize,
    /// The head was spoilt; the next read ends it.
    spoilt: bool,
    /// The first head is not complete: a connection begins as HTTP/2 or never becomes it.
    first: bool,
    /// The position in the frames of an HTTP/2 connection, and which parts of bodies arrived with
    /// the latest read.
    frames: Frames,
    parts: BodyParts,
    /// hyper is to take each client for one that accepts trailers, unless it forbids them.
    asks_for_trailers: bool,
    /// Where in the latest read the field that says so is inserted.
    places: Vec<usize>,
    #[cfg(any(test, feature = "fuzzing"))]
    looked: Looked,
}

/// Heads that were passed on.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) type Looked = Arc<std::sync::Mutex<Vec<Vec<u8>>>>;

impl Default for Watch {
    fn default() -> Self {
        Self {
            at: At::Head,
            head: Vec::new(),
            reported: 0,
            spoilt: false,
            first: true,
            frames: Frames::default(),
            parts: BodyParts::default(),
            asks_for_trailers: false,
            places: Vec::new(),
            #[cfg(any(test, feature = "fuzzing"))]
            looked: Looked::default(),
        }
    }
}

/// The outcome of a look for a head's end.
enum Head {
    /// Its end has not come.
    Partial,
    /// It ends after this many bytes of the latest read, and `then` follows.
    /// `asks_at` of them come before the place for a field of ours.
    Ends { bytes: usize, then: At, asks_at: Option<usize> },
    /// It is refused here, and has to be spoilt.
    Refused(Refusal),
}

impl Head {
    fn ends(bytes: usize, then: At) -> Self {
        Self::Ends { bytes, then, asks_at: None }
    }
}

impl Watch {
    /// Whether every request so far was complete; always false for anything but HTTP/1.
    fn is_between(&self) -> bool {
        self.at == At::Head && self.head.is_empty()
    }

    /// What hyper reads in place of more bytes, once a request was refused: the end of its spoilt head,
    /// and then an error.
    fn instead(&mut self, buf: &mut ReadBuf<'_>) -> Option<io::Result<()>> {
        if std::mem::take(&mut self.spoilt) {
            buf.put_slice(&SPOILT_END[..SPOILT_END.len().min(buf.remaining())]);
            return Some(Ok(()));
        }
        let what = "what follows could be read in two ways";
        (self.at == At::Refused).then(|| Err(io::Error::new(io::ErrorKind::InvalidData, what)))
    }

    /// Follows `bytes`. Returns how many of them hyper may see, and the refusal, if there is one.
    fn see(&mut self, bytes: &mut [u8]) -> (usize, Option<Refusal>) {
        let mut from = 0;
        while from < bytes.len() {
            from += match self.at {
                At::Opaque => break,
                At::Http2 => {
                    let (parts, refusal) = self.frames.see(&mut bytes[from..]);
                    self.parts = parts;
                    return (bytes.len(), refusal);
                }
                At::Refused => return (from, None),
                At::Head => match self.see_head(&bytes[from..]) {
                    Head::Partial => break,
                    Head::Ends { bytes, then, asks_at } => {
                        self.at = then;
                        self.places.extend(asks_at.map(|at| from + at));
                        bytes
                    }
                    Head::Refused(why) => {
                        // NUL is allowed nowhere in a head, so hyper answers 400 once it sees an
                        // end. The head is not complete without these bytes: it has not been taken
                        // for a request.
                        bytes[from..].fill(0);
                        self.spoilt = true;
                        self.at = At::Refused;
                        return (bytes.len(), Some(why));
                    }
                },
                At::Fixed(left) => {
                    let take = left.min((bytes.len() - from) as u64);
                    self.at = if left == take { At::Head } else { At::Fixed(left - take) };
                    take as usize
                }
                At::Chunks(chunks) => match chunks.read(&bytes[from..]) {
                    Read::All(next) => {
                        self.at = At::Chunks(next);
                        break;
                    }
                    Read::Ended(bytes) => {
                        self.at = At::Head;
                        bytes
                    }
                    Read::Malformed(bytes) => {
                        self.at = At::Refused;
                        return (from + bytes, Some(Refusal::MalformedChunks));
                    }
                },
            };
        }
        (bytes.len(), None)
    }

    /// What the client made this peer hold with the `seen` bytes of the latest read.
    fn came(&mut self, seen: usize) -> BodyParts {
        match self.at {
            At::Http2 => std::mem::take(&mut self.parts),
            At::Opaque => BodyParts::default(),
            // An incomplete head is held here and by its reader, whose buffer doubles as it grows.
            At::Head if !self.head.is_empty() => {
                let readers = (self.head.len() + READ_BYTES).next_power_of_two();
                let takes = (self.head.capacity() + readers).max(self.reported);
                let more = takes - std::mem::replace(&mut self.reported, takes);
                BodyParts { frames: 0, bytes: more }
            }
            _ => {
                self.reported = 0;
                BodyParts { frames: 0, bytes: seen }
            }
        }
    }

    /// Looks for the end of the head; decides what follows it.
    fn see_head(&mut self, bytes: &[u8]) -> Head {
        let held = self.head.len();
        if held > 0 || self.first {
            self.keep(bytes);
            let head = std::mem::take(&mut self.head);
            let seen = self.look(&head, held);
            if matches!(seen, Head::Partial) {
                self.head = head;
            }
            return seen;
        }
        // Most heads arrive in one read, and need not be kept.
        let seen = self.look(bytes, 0);
        if matches!(seen, Head::Partial) {
            self.keep(bytes);
        }
        seen
    }

    /// Keeps more of the head. A buffer that doubles would be half empty in each of many connections.
    fn keep(&mut self, bytes: &[u8]) {
        let wanted = self.head.len() + bytes.len();
        if wanted > self.head.capacity() {
            let rounded = wanted.next_multiple_of(HEAD_STEP_BYTES);
            self.head.reserve_exact(rounded - self.head.len());
        }
        self.head.extend_from_slice(bytes);
    }

    /// Looks for the end in `head`, all that arrived of it so far; `held` bytes of it were looked
    /// at before.
    fn look(&mut self, head: &[u8], held: usize) -> Head {
        if self.first {
            if head.starts_with(H2_PREFACE) {
                return Head::ends(H2_PREFACE.len() - held, At::Http2);
            }
            if H2_PREFACE.starts_with(head) {
                return Head::Partial;
            }
            if head.first() == Some(&TLS_HANDSHAKE) {
                return Head::Refused(Refusal::TlsOnPlainDoor);
            }
        }
        // The end may straddle two reads: look from three bytes before the seam. What looked like a
        // preface and was none has not been looked at.
        let from = if held < H2_PREFACE.len() { 0 } else { held - 3 };
        let Some(end) = head_end(head, from) else {
            if head.len() <= HEAD_BYTES_MAX {
                return Head::Partial;
            }
            // hyper refuses it for its size.
            return Head::ends(head.len() - held, At::Refused);
        };
        if end > HEAD_BYTES_MAX {
            // Its reader sees no more than it may have, without an end.
            return Head::ends(HEAD_BYTES_MAX - held, At::Refused);
        }
        self.first = false;
        match framing(&head[..end]) {
            Ok(then) => {
                #[cfg(any(test, feature = "fuzzing"))]
                if then != At::Refused {
                    let mut looked =
                        self.looked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    looked.push(head[..end].to_vec());
                }
                let is_followed = matches!(then, At::Head | At::Fixed(_) | At::Chunks(_));
                let asks = self.asks_for_trailers && is_followed;
                let place = if asks { willing::place_in(&head[..end]) } else { None };
                // The place may have been in an earlier read.
                let asks_at = place.and_then(|at| at.checked_sub(held));
                Head::Ends { bytes: end - held, then, asks_at }
            }
            Err(Ambiguous) => Head::Refused(Refusal::AmbiguousHead),
        }
    }
}

fn head_end(head: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        // Finds the end of the line by many bytes at a time. Reading from memory does not fail.
        let line = head.get(at..)?.skip_until(b'\n').ok()?;
        let next = at + line;
        if !head[at..next].ends_with(b"\n") {
            return None;
        }
        match &head[next..] {
            // A blank line before the request line is allowed (RFC 9112 section 2.2).
            [b'\n', ..] if !is_blank(&head[..next]) => return Some(next + 1),
            [b'\r', b'\n', ..] if !is_blank(&head[..next]) => return Some(next + 2),
            _ => at = next,
        }
    }
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n'))
}

struct Ambiguous;

/// What follows a head, or that readers could disagree about it.
fn framing(head: &[u8]) -> Result<At, Ambiguous> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut fields) {
        Ok(httparse::Status::Complete(bytes)) if bytes == head.len() => {}
        // hyper and this file disagree about where it ends.
        Ok(_) => return Err(Ambiguous),
        Err(_) => return Ok(At::Refused), // hyper refuses it too, and says how.
    }
    // A fragment is not part of a target (RFC 9112 section 3.2). The http crate cuts it off, and another
    // reader takes it for a part of the path.
    if request.path.is_some_and(|target| target.contains('#')) {
        return Err(Ambiguous);
    }
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
            if length.is_some() || value > LENGTH_MAX {
                return Err(Ambiguous);
            }
            length = Some(value);
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            // Any coding but this one, which every reader knows, invites disagreement.
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
    let is_http_11 = request.version == Some(1);
    // As [`ends_connection`] sees it.
    let upgrades = request.method == Some("CONNECT")
        || (is_http_11 && fields::asks_to_upgrade(values("connection"), values("upgrade")));
    if hosts > 1 || (hosts == 0 && is_http_11) {
        return Err(Ambiguous); // RFC 9112 section 3.2 asks for 400.
    }
    match (length, chunked) {
        (Some(_), true) => Err(Ambiguous),
        (None, true) if !is_http_11 => Err(Ambiguous),
        // What follows may belong to another protocol, which is not followed here. A body comes
        // before it, and a request with a body is not upgraded.
        (Some(0) | None, false) if upgrades => Ok(At::Opaque),
        (None, true) => Ok(At::Chunks(Chunked::START)),
        (Some(0) | None, false) => Ok(At::Head),
        (Some(length), false) => Ok(At::Fixed(length)),
    }
}

/// Whether the connection of an HTTP/1 request is closed after any answer but an upgrade: what
/// follows the request on it was not checked.
pub(crate) fn ends_connection<B>(request: &http::Request<B>) -> bool {
    request.version() < http::Version::HTTP_2
        && (request.method() == http::Method::CONNECT
            || fields::wanted_upgrade(request.version(), request.headers()).is_some())
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::gauge::Gauge;
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::http::clients::{Admitted, ClientLimits, Clients};

    /// Feeds `text` in pieces of `step` bytes; returns what hyper would read and the end state.
    fn feed(text: &[u8], step: usize) -> (Vec<u8>, At) {
        let mut watch = Watch::default();
        let mut out = Vec::new();
        for piece in text.chunks(step) {
            let mut piece = piece.to_vec();
            let (seen, _) = watch.see(&mut piece);
            out.extend(&piece[..seen]);
        }
        (out, watch.at)
    }

    /// Whether the bytes let through up to the spoilt head's end could pass for a request.
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
            "Content-Length: 18446744073709551615\r\n",
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
                assert_eq!(at, At::Refused);
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
        assert_eq!(at, At::Refused);
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
    fn nothing_is_read_behind_a_body_that_two_readers_could_end_elsewhere() {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (good, bad) in
            [("0\r\n", "\n"), ("0\r\nx: y", "\n\r\n"), ("1", "\na\r\n0\r\n\r\n"), ("", "x")]
        {
            let text = format!("{head}{good}{bad}GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            for step in 1..text.len() {
                let (seen, at) = feed(text.as_bytes(), step);
                assert_eq!(seen, format!("{head}{good}").as_bytes(), "{bad:?} in steps of {step}");
                assert_eq!(at, At::Refused, "{bad:?} in steps of {step}");
            }
        }
    }

    #[test]
    fn an_upgrade_from_http_1_0_is_none_and_hides_nothing_behind_it() {
        let text = b"GET / HTTP/1.0\r\nConnection: keep-alive, upgrade\r\nUpgrade: x\r\n\r\n\
            GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
        for step in 1..text.len() {
            let (seen, at) = feed(text, step);
            assert!(seen.contains(&0), "in steps of {step}");
            assert_eq!(at, At::Refused, "in steps of {step}");
        }
    }

    #[test]
    fn http_2_begins_a_connection_or_never_comes() {
        let text = [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", H2_PREFACE, b"x"].concat();
        let (_, at) = feed(&text, 7);
        assert_eq!(at, At::Refused);
        let almost =
            [b"PRI * HTTP/2.0\r\n\r\n", &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..]].concat();
        for step in 1..almost.len() {
            let (seen, at) = feed(&almost, step);
            assert_eq!(at, At::Refused, "in steps of {step}");
            assert!(!seen.windows(3).any(|part| part == b"GET"), "in steps of {step}");
        }
    }

    #[test]
    fn http_2_and_upgrades_are_left_alone() {
        let (seen, at) = feed(H2_PREFACE, 5);
        assert_eq!((seen.as_slice(), at), (H2_PREFACE, At::Http2));
        let upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x05";
        let (seen, at) = feed(upgrade, 7);
        assert_eq!((seen.as_slice(), at), (upgrade.as_slice(), At::Opaque));
    }

    #[test]
    fn a_client_that_speaks_tls_is_known_by_its_first_byte() {
        let hello = [22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
        for step in 1..=hello.len() {
            let mut watch = Watch::default();
            let mut first = hello[..step].to_vec();
            assert_eq!(watch.see(&mut first), (step, Some(Refusal::TlsOnPlainDoor)));
            assert_eq!((watch.at, watch.spoilt), (At::Refused, true));
        }
        // Behind a request it is only garbage.
        let mut behind = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\x16\x03\r\n\r\n".to_vec();
        assert_eq!(Watch::default().see(&mut behind), (behind.len(), None));
    }

    #[test]
    fn a_head_that_is_too_long_is_not_whole_for_its_reader_however_it_is_cut() {
        for length in [HEAD_BYTES_MAX, HEAD_BYTES_MAX + 1, HEAD_BYTES_MAX + READ_BYTES] {
            let mut head = b"GET / HTTP/1.1\r\nHost: a\r\nX: ".to_vec();
            head.resize(length - SPOILT_END.len(), b'x');
            head.extend_from_slice(SPOILT_END);
            for step in [1, 1000, READ_BYTES, length] {
                let (seen, at) = feed(&head, step);
                if length == HEAD_BYTES_MAX {
                    assert_eq!((seen.len(), at), (length, At::Head), "in steps of {step}");
                } else {
                    let enough = HEAD_BYTES_MAX..length;
                    assert!(enough.contains(&seen.len()), "its reader sees that it is too long");
                    assert!(!seen.ends_with(SPOILT_END), "{length} in steps of {step}");
                    assert_eq!(at, At::Refused);
                }
            }
        }
    }

    /// A connection that arrives, among those of `clients`.
    fn from(clients: &Arc<Clients>, last: u8) -> (Admitted, Framed<&'static [u8]>) {
        let admitted = clients.admit(std::net::IpAddr::from([192, 0, 2, last]), true).unwrap();
        let in_flight = ConnectionRequests::new(Arc::clone(admitted.account()));
        (admitted, Framed::new(&b"X: more of a head\r\n"[..], in_flight))
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_grows_no_more_while_connections_that_are_to_end_hold_much() {
        let limits = ClientLimits::default().with(|it| it.memory = 1 << 20);
        let clients = Clients::new(limits, Arc::default(), Gauge::default());
        let (greedy, _) = from(&clients, 1);
        let (growing, mut grows) = from(&clients, 2);
        let (_new, mut comes) = from(&clients, 3);
        growing.account().came(60_000, 0);
        greedy.account().came(1 << 20, 0);
        assert!(clients.is_crowded());
        let mut read = [0; 4];
        let soon = Duration::from_millis(50);
        let waits = tokio::time::timeout(soon, grows.read(&mut read)).await;
        assert!(waits.is_err(), "{waits:?}");
        let comes = tokio::time::timeout(soon, comes.read(&mut read)).await;
        assert!(comes.is_ok(), "what it first sends is read");
        let bound = PUT_OFF_FOR * (2 * PUT_OFF_MAX);
        let waits = tokio::time::timeout(bound, grows.read(&mut read)).await;
        assert!(waits.is_ok(), "nobody waits for ever");
        drop(greedy);
        let reads = tokio::time::timeout(soon / 50, grows.read(&mut read)).await;
        assert!(reads.is_ok(), "there is room again");
    }

    #[test]
    fn an_endless_head_is_not_kept() {
        let mut watch = Watch::default();
        for _ in 0..200 {
            watch.see(&mut [b'a'; 1024]);
        }
        assert_eq!((watch.head.capacity(), watch.at), (0, At::Refused));
    }
}

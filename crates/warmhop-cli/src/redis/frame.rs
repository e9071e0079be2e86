//! Requests and replies in RESP, the Redis serialization protocol, versions 2 and 3.
//!
//! A request is an array of bulk strings, not nested, within bounds that are known before their
//! bytes arrive. A request that announces more is skipped as it arrives ([`Oversized`]): its client
//! gets an error and stays connected.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::numbers::double_text;

/// The longest key, in bytes.
pub(super) const KEY_BYTES_MAX: usize = 512;
/// The largest value, in bytes.
pub(super) const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// The most arguments of one command, its name included.
const ARGUMENTS_MAX: usize = 4096;
/// The largest request: a value, and room for what goes with it.
pub(super) const REQUEST_BYTES_MAX: usize = 2 * VALUE_BYTES_MAX;
/// The largest value that is skipped, which is the largest that Redis accepts; a larger one closes
/// the connection.
const PASSED_OVER_MAX: usize = 512 * VALUE_BYTES_MAX;
/// The longest line that announces a length.
const LENGTH_LINE_MAX: usize = 16;
/// The first bytes of a client that speaks TLS: a record of a handshake (RFC 8446 section 5.1).
const TLS_RECORD: [u8; 2] = [0x16, 0x03];
/// The longest command that a person types, as a line without lengths.
const INLINE_BYTES_MAX: usize = 4096;

/// Why a connection is closed after an error: the start of the next request is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtocolError {
    #[error("Protocol error: expected '{expected}', got '{found}'")]
    Expected { expected: char, found: char },
    #[error(
        "Protocol error: invalid multibulk length; a request has at most {ARGUMENTS_MAX} arguments"
    )]
    Arguments,
    #[error("Protocol error: invalid bulk length; a request has at most {REQUEST_BYTES_MAX} bytes")]
    Length,
    #[error("Protocol error: an argument is longer than was announced")]
    Argument,
    #[error("a request has at most {REQUEST_BYTES_MAX} bytes")]
    Oversized(Oversized),
    #[error("Protocol error: too big inline request")]
    Inline,
    #[error("Protocol error: unbalanced quotes in request")]
    Quotes,
    #[error("Protocol error: this is no HTTP server; nothing that follows is carried out")]
    Http,
    #[error("Protocol error: there is no TLS here, since only apps of this machine may ask")]
    Tls,
}

/// The rest of a request that is too large: it is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Oversized {
    /// What is left of the argument that has begun, its line's end included.
    bytes: usize,
    /// How many arguments follow it.
    arguments: usize,
}

impl Oversized {
    /// Skips the part that has arrived; whether that is all of it.
    pub(super) fn pass_over(&mut self, buffer: &mut BytesMut) -> Result<bool, ProtocolError> {
        loop {
            let here = self.bytes.min(buffer.len());
            buffer.advance(here);
            self.bytes -= here;
            if self.bytes > 0 {
                return Ok(false);
            }
            let Some(arguments) = self.arguments.checked_sub(1) else { return Ok(true) };
            let Some((len, at)) = length_line(buffer, 0, '$')? else { return Ok(false) };
            let len = usize::try_from(len).ok().filter(|len| *len <= PASSED_OVER_MAX);
            let len = len.ok_or(ProtocolError::Length)?;
            buffer.advance(at);
            *self = Self { bytes: len + 2, arguments };
        }
    }
}

/// A command's name and arguments.
pub(super) type Arguments = Vec<Bytes>;

/// For how many arguments room is made before any of them has arrived.
const PLACES_AT_FIRST: usize = 8;

/// What has arrived of a client's requests. How far the next one was understood is kept, so that none of
/// its arguments is looked for again whenever more arrives.
#[derive(Default)]
pub(super) struct Incoming {
    pub(super) bytes: BytesMut,
    begun: Option<Begun>,
}

/// A request whose head has arrived.
struct Begun {
    /// Up to where it was understood; once no argument is left, where it ends.
    at: usize,
    /// How many arguments were not found yet.
    left: usize,
    /// Where those are that were.
    places: Vec<Range<usize>>,
}

impl Incoming {
    /// Takes the next whole request; `None` if more has to arrive. Empty requests are skipped, as Redis
    /// does.
    pub(super) fn take_request(&mut self) -> Result<Option<Arguments>, ProtocolError> {
        loop {
            let Some(first) = self.bytes.first() else { return Ok(None) };
            if *first != b'*' {
                match take_line(&mut self.bytes)? {
                    Some(arguments) if arguments.is_empty() => continue,
                    other => return Ok(other),
                }
            }
            let measured = measure(&self.bytes, &mut self.begun);
            if measured == Ok(false) {
                return Ok(None);
            }
            let begun = self.begun.take();
            if let Err((at, error)) = measured {
                self.bytes.advance(at);
                return Err(error);
            }
            let Some(Begun { at, places, .. }) = begun else { return Ok(None) };
            let whole = self.bytes.split_to(at).freeze();
            if places.iter().any(|place| !whole[place.end..].starts_with(b"\r\n")) {
                return Err(ProtocolError::Argument);
            }
            if !places.is_empty() {
                return Ok(Some(places.into_iter().map(|place| whole.slice(place)).collect()));
            }
        }
    }

    /// Whether [`Incoming::take_request`] would return something, a request or an error.
    pub(super) fn is_complete(&mut self) -> bool {
        match self.bytes.first() {
            None => false,
            Some(b'*') => measure(&self.bytes, &mut self.begun) != Ok(false),
            Some(_) => {
                self.bytes.contains(&b'\n')
                    || self.bytes.len() >= INLINE_BYTES_MAX
                    || self.bytes.starts_with(&TLS_RECORD)
            }
        }
    }
}

impl From<&[u8]> for Incoming {
    fn from(bytes: &[u8]) -> Self {
        Self { bytes: BytesMut::from(bytes), begun: None }
    }
}

/// Whether all of the request is there that `buffer` begins with, of which a part may have `begun`. An
/// error comes with how much of `buffer` was understood before it.
fn measure(buffer: &[u8], begun: &mut Option<Begun>) -> Result<bool, (usize, ProtocolError)> {
    let failed = |error| (0, error);
    let begun = match begun {
        Some(begun) => begun,
        None => {
            let Some((count, at)) = length_line(buffer, 0, '*').map_err(failed)? else {
                return Ok(false);
            };
            // As Redis does: an array of length 0 or a negative length requests nothing.
            let left = usize::try_from(count.max(0)).map_err(|_| (0, ProtocolError::Arguments))?;
            if left > ARGUMENTS_MAX {
                return Err((0, ProtocolError::Arguments));
            }
            begun.insert(Begun { at, left, places: Vec::with_capacity(left.min(PLACES_AT_FIRST)) })
        }
    };
    while begun.left > 0 {
        let Some((len, begin)) = length_line(buffer, begun.at, '$').map_err(failed)? else {
            return Ok(false);
        };
        let len = usize::try_from(len).ok().filter(|len| *len <= PASSED_OVER_MAX);
        let len = len.ok_or((0, ProtocolError::Length))?;
        let end = begin + len + 2;
        if end > REQUEST_BYTES_MAX {
            let rest = Oversized { bytes: len + 2, arguments: begun.left - 1 };
            return Err((begin, ProtocolError::Oversized(rest)));
        }
        (begun.at, begun.left) = (end, begun.left - 1);
        begun.places.push(begin..begin + len);
    }
    Ok(begun.at <= buffer.len())
}

/// Reads an integer as Redis does: only in the form in which it writes one, without a plus sign or
/// a zero in front.
pub(super) fn integer(text: &[u8]) -> Option<i64> {
    let (sign, digits) = match text.split_first() {
        Some((b'-', digits)) => (1, digits),
        _ => (0, text),
    };
    let in_form = match digits {
        [b'0'] => sign == 0,
        [b'1'..=b'9', ..] => true,
        _ => false,
    };
    in_form.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
thread_local! {
    /// How often this thread looked for a length.
    pub(super) static LINES_READ: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Reads `MARK number CRLF` at `at`; returns the number and what comes behind it.
fn length_line(
    buffer: &[u8],
    at: usize,
    mark: char,
) -> Result<Option<(i64, usize)>, ProtocolError> {
    #[cfg(test)]
    LINES_READ.with(|count| count.set(count.get() + 1));
    let Some((first, rest)) = buffer.get(at..).and_then(<[u8]>::split_first) else {
        return Ok(None);
    };
    if char::from(*first) != mark {
        let found = char::from(*first);
        return Err(ProtocolError::Expected { expected: mark, found });
    }
    let invalid = || if mark == '*' { ProtocolError::Arguments } else { ProtocolError::Length };
    let line = &rest[..rest.len().min(LENGTH_LINE_MAX)];
    let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
        return if line.len() < LENGTH_LINE_MAX { Ok(None) } else { Err(invalid()) };
    };
    let number = integer(&line[..end]).ok_or_else(invalid)?;
    Ok(Some((number, at + 1 + end + 2)))
}

/// Whether a line belongs to an HTTP request. A web page may make its browser send one here with
/// commands in the body; the connection ends at the first line.
fn is_http(line: &[u8]) -> bool {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let Some(first) = words.next() else { return false };
    let last = words.next_back().unwrap_or(first);
    let begins = |word: &str| first.eq_ignore_ascii_case(word.as_bytes());
    last.starts_with(b"HTTP/") || ["POST", "PUT", "PATCH", "HOST:"].iter().any(|it| begins(it))
}

/// Takes a command that was typed as one line.
fn take_line(buffer: &mut BytesMut) -> Result<Option<Arguments>, ProtocolError> {
    if buffer.starts_with(&TLS_RECORD) {
        return Err(ProtocolError::Tls);
    }
    let head = &buffer[..buffer.len().min(INLINE_BYTES_MAX)];
    let Some(end) = head.iter().position(|byte| *byte == b'\n') else {
        return if head.len() < INLINE_BYTES_MAX { Ok(None) } else { Err(ProtocolError::Inline) };
    };
    let line = buffer.split_to(end).freeze();
    buffer.advance(1);
    if is_http(&line) {
        return Err(ProtocolError::Http);
    }
    words(&line).map(Some).ok_or(ProtocolError::Quotes)
}

/// Splits a line as Redis does (`sdssplitargs` in its `sds.c`): words may be quoted, in part as well,
/// with escapes between double quotes. `None` where a quote is not closed, or not followed by a space.
fn words(mut line: &[u8]) -> Option<Arguments> {
    let is_space = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
    let mut words = Vec::new();
    loop {
        line = &line[line.iter().take_while(|byte| is_space(byte)).count()..];
        if line.is_empty() {
            return Some(words);
        }
        let mut word = BytesMut::new();
        while let Some((first, rest)) = line.split_first().filter(|(first, _)| !is_space(first)) {
            line = match first {
                b'"' | b'\'' => {
                    let rest = quoted(*first, rest, &mut word)?;
                    if !rest.first().is_none_or(is_space) {
                        return None;
                    }
                    rest
                }
                byte => {
                    word.put_u8(*byte);
                    rest
                }
            };
        }
        words.push(word.freeze());
    }
}

/// Takes the text up to `quote` into `word`; returns the rest behind it.
fn quoted<'a>(quote: u8, mut text: &'a [u8], word: &mut BytesMut) -> Option<&'a [u8]> {
    let hex = |digit: u8| char::from(digit).to_digit(16).and_then(|it| u8::try_from(it).ok());
    loop {
        let (byte, rest) = match text {
            [end, rest @ ..] if *end == quote => return Some(rest),
            [b'\\', b'x', high, low, rest @ ..]
                if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                (hex(*high)? * 16 + hex(*low)?, rest)
            }
            [b'\\', escaped, rest @ ..] if quote == b'"' => {
                let byte = match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                };
                (byte, rest)
            }
            [b'\\', b'\'', rest @ ..] if quote == b'\'' => (b'\'', rest),
            [byte, rest @ ..] => (*byte, rest),
            [] => return None,
        };
        word.put_u8(byte);
        text = rest;
    }
}

/// The reply to a command.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Reply {
    /// A status, such as `OK`.
    Status(Cow<'static, str>),
    /// An error: a code in capitals, then a sentence.
    Error(String),
    /// A number.
    Number(i64),
    /// A number with a fraction; clients of version 2 get its text.
    Double(f64),
    /// Yes or no; clients of version 2 get 1 or 0.
    #[cfg_attr(not(feature = "lua"), expect(dead_code, reason = "scripts alone answer so"))]
    Bool(bool),
    /// Bytes.
    Bytes(Bytes),
    /// Nothing.
    Null,
    /// The null of arrays: a transaction that was not run, or an absent list.
    Aborted,
    /// Several, in order.
    Array(Vec<Reply>),
    /// Several, in no order; an array to clients of version 2.
    Set(Vec<Reply>),
    /// Names with their values; a flat array to clients of version 2.
    Map(Vec<(Reply, Reply)>),
    /// Pairs, in order: arrays of two, and a flat array to clients of version 2.
    Pairs(Vec<(Reply, Reply)>),
    /// A push that answers no request: a message. An array to clients of version 2.
    Push(Vec<Reply>),
    /// Several replies to one command, one after the other.
    Several(Vec<Reply>),
}

impl Reply {
    pub(super) const OK: Self = Self::Status(Cow::Borrowed("OK"));

    pub(super) fn status(text: impl Into<Cow<'static, str>>) -> Self {
        Self::Status(text.into())
    }

    pub(super) fn error(code: &str, detail: impl std::fmt::Display) -> Self {
        // A line break would end it, and what follows would be read as another reply.
        let detail = detail.to_string().replace(['\r', '\n'], " ");
        Self::Error(format!("{code} {detail}"))
    }

    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Bytes(Bytes::from(text.into()))
    }

    pub(super) fn optional(bytes: Option<Bytes>) -> Self {
        bytes.map_or(Self::Null, Self::Bytes)
    }

    pub(super) fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }

    /// How many bytes it will take, approximately.
    pub(super) fn size(&self) -> usize {
        let pairs = |pairs: &[(Self, Self)]| -> usize {
            pairs.iter().map(|(key, value)| key.size() + value.size()).sum()
        };
        match self {
            Self::Bytes(bytes) => bytes.len() + 16,
            Self::Error(text) => text.len() + 16,
            Self::Status(text) => text.len() + 16,
            Self::Array(parts) | Self::Set(parts) | Self::Push(parts) | Self::Several(parts) => {
                parts.iter().map(Self::size).sum::<usize>() + 16
            }
            Self::Map(parts) | Self::Pairs(parts) => pairs(parts) + 16,
            _ => 32,
        }
    }

    /// Appends it in the client's version of the protocol.
    pub(super) fn put(&self, version: u8, buffer: &mut BytesMut) {
        let is_new = version == 3;
        let line = |buffer: &mut BytesMut, mark: u8, text: &str| {
            buffer.put_u8(mark);
            buffer.put_slice(text.as_bytes());
            buffer.put_slice(b"\r\n");
        };
        let number = |buffer: &mut BytesMut, mark: u8, number: i64| {
            let mut digits = itoa::Buffer::new();
            line(buffer, mark, digits.format(number));
        };
        let count = |buffer: &mut BytesMut, mark: u8, len: usize| {
            number(buffer, mark, i64::try_from(len).unwrap_or(i64::MAX));
        };
        let all = |buffer: &mut BytesMut, mark: u8, parts: &[Self]| {
            count(buffer, mark, parts.len());
            parts.iter().for_each(|part| part.put(version, buffer));
        };
        match self {
            Self::Status(text) if text.contains(['\r', '\n']) => {
                line(buffer, b'+', &text.replace(['\r', '\n'], " "));
            }
            Self::Status(text) => line(buffer, b'+', text),
            Self::Error(text) => line(buffer, b'-', text),
            Self::Number(value) => number(buffer, b':', *value),
            Self::Double(value) if is_new => line(buffer, b',', &double_text(*value)),
            Self::Double(value) => Self::text(double_text(*value)).put(version, buffer),
            Self::Bool(yes) if is_new => line(buffer, b'#', if *yes { "t" } else { "f" }),
            Self::Bool(yes) => number(buffer, b':', i64::from(*yes)),
            Self::Bytes(bytes) => {
                count(buffer, b'$', bytes.len());
                buffer.put_slice(bytes);
                buffer.put_slice(b"\r\n");
            }
            Self::Null | Self::Aborted if is_new => buffer.put_slice(b"_\r\n"),
            Self::Null => buffer.put_slice(b"$-1\r\n"),
            Self::Aborted => buffer.put_slice(b"*-1\r\n"),
            Self::Array(parts) => all(buffer, b'*', parts),
            Self::Set(parts) => all(buffer, if is_new { b'~' } else { b'*' }, parts),
            Self::Push(parts) => all(buffer, if is_new { b'>' } else { b'*' }, parts),
            Self::Several(parts) => parts.iter().for_each(|part| part.put(version, buffer)),
            Self::Map(pairs) | Self::Pairs(pairs) => {
                let is_map = matches!(self, Self::Map(_));
                match (is_new, is_map) {
                    (true, true) => count(buffer, b'%', pairs.len()),
                    (true, false) => count(buffer, b'*', pairs.len()),
                    (false, _) => count(buffer, b'*', 2 * pairs.len()),
                }
                for (one, other) in pairs {
                    if is_new && !is_map {
                        count(buffer, b'*', 2);
                    }
                    one.put(version, buffer);
                    other.put(version, buffer);
                }
            }
        }
    }
}

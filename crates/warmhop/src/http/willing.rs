//! Trailers for clients that do not mention them.
//!
//! hyper sends the trailers of an answer over HTTP/1.1 only to a client whose request has the token
//! `trailers` in `TE` (RFC 9110 section 10.1.4). Few clients send that, and a client that cannot use
//! trailers may discard them (RFC 9112 section 7.1.2). So hyper is given the field with every
//! request but those that forbid it, and it is taken out before anybody else looks at the fields.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue, TE};
use tokio::io::ReadBuf;

use crate::http::heads::{FIELDS_MAX, HEAD_BYTES_MAX};

/// What is put before the empty line of a head. The empty value marks what was not the client's.
pub(crate) const ASKED: &[u8] = b"te: trailers\r\nte: \r\n";
/// How many fields that are.
const ASKED_FIELDS: usize = 2;

/// Where the field is put into a whole head; `None` if the client says itself whether it wants
/// trailers, or if the head cannot take more.
pub(crate) fn place_in(head: &[u8]) -> Option<usize> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(head, &mut fields);
    let is_whole = matches!(parsed, Ok(httparse::Status::Complete(bytes)) if bytes == head.len());
    let has_room = request.headers.len() + ASKED_FIELDS <= FIELDS_MAX
        && head.len() + ASKED.len() <= HEAD_BYTES_MAX;
    if !is_whole || !has_room || request.version != Some(1) {
        return None;
    }
    let says = |value: &[u8]| {
        let mut tokens = value.split(|byte| *byte == b',');
        tokens.any(|token| match token.trim_ascii() {
            token if token.eq_ignore_ascii_case(b"trailers") => true,
            token => forbids(token),
        })
    };
    let mut te = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("te"));
    if te.any(|field| says(field.value)) {
        return None;
    }
    Some(head.len() - if head.ends_with(b"\r\n") { 2 } else { 1 })
}

/// Puts the field into what was read last of a connection, of which whole heads had their places for
/// it: as far as there is room.
pub(crate) fn put_into(buf: &mut ReadBuf<'_>, places: Vec<usize>) {
    for at in places.into_iter().rev() {
        let end = buf.filled().len();
        if buf.remaining() < ASKED.len() {
            return;
        }
        buf.put_slice(ASKED);
        let filled = buf.filled_mut();
        filled.copy_within(at..end, at + ASKED.len());
        filled[at..at + ASKED.len()].copy_from_slice(ASKED);
    }
}

/// The same for bytes that begin with a whole head.
pub(crate) fn with_field(bytes: Bytes) -> Bytes {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(&bytes, &mut fields);
    let Ok(httparse::Status::Complete(head)) = parsed else { return bytes };
    let Some(at) = place_in(&bytes[..head]) else { return bytes };
    [&bytes[..at], ASKED, &bytes[at..]].concat().into()
}

/// Whether a member of `TE` is `trailers` with a weight of zero (RFC 9110 section 12.4.2).
fn forbids(token: &[u8]) -> bool {
    let mut parts = token.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let is_trailers = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(b"trailers"));
    let is_zero = |part: &[u8]| match part {
        [b'q' | b'Q', b'=', b'0', rest @ ..] => rest.iter().all(|it| matches!(it, b'.' | b'0')),
        _ => false,
    };
    is_trailers && parts.any(is_zero)
}

/// Takes the field out again.
pub(crate) fn take_out(headers: &mut HeaderMap) {
    let marked = headers.get_all(TE).iter().any(HeaderValue::is_empty);
    if !marked {
        return;
    }
    let own: Vec<_> = headers.get_all(TE).iter().cloned().collect();
    headers.remove(TE);
    // It was put behind those of the client.
    for value in own.iter().take(own.len().saturating_sub(ASKED_FIELDS)) {
        headers.append(TE, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
    }

    #[test]
    fn a_client_gets_trailers_unless_it_says_something_about_them_itself() {
        for fields in ["", "TE: gzip\r\n", "TE: gzip, trailers;q=0.5\r\n", "X-TE: trailers\r\n"] {
            let text = head(fields);
            let at = place_in(text.as_bytes()).expect(fields);
            let both = [&text.as_bytes()[..at], ASKED, &text.as_bytes()[at..]].concat();
            let mut room = [httparse::EMPTY_HEADER; 8];
            let mut request = httparse::Request::new(&mut room);
            assert!(request.parse(&both).expect("a head").is_complete(), "{fields}");
            let mut headers = HeaderMap::new();
            for field in request.headers.iter().filter(|it| it.name.eq_ignore_ascii_case("te")) {
                headers.append(TE, HeaderValue::from_bytes(field.value).expect("a value"));
            }
            take_out(&mut headers);
            let own: Vec<_> = headers.get_all(TE).iter().map(|it| it.as_bytes()).collect();
            let expected = fields.strip_prefix("TE: ").map(|it| it.trim_end().as_bytes());
            assert_eq!(own, expected.into_iter().collect::<Vec<_>>());
        }
        for fields in [
            "TE: trailers\r\n",
            "te: gzip, Trailers\r\n",
            "TE: trailers;q=0\r\n",
            "TE: gzip, trailers ; q=0.000\r\n",
            "TE: gzip\r\nTE: trailers;q=0.0\r\n",
        ] {
            assert_eq!(place_in(head(fields).as_bytes()), None, "{fields}");
        }
        assert_eq!(place_in(b"GET / HTTP/1.0\r\n\r\n"), None);
        assert_eq!(place_in(b"GET / HTTP/1.1\r\nHost: a\r\n"), None, "it is not whole");
        assert!(place_in(b"GET / HTTP/1.1\nHost: a\n\n").is_some());
    }

    #[test]
    fn it_is_put_into_each_head_of_a_read_that_has_room() {
        let (one, two) = (head(""), head("X: y\r\n"));
        let both = format!("{one}{two}body");
        let at = |of: &str| place_in(of.as_bytes()).expect("a place");
        let places = vec![at(&one), one.len() + at(&two)];
        for room in [2, 1, 0] {
            let mut room_for = vec![0; both.len() + room * ASKED.len()];
            let mut buf = ReadBuf::new(&mut room_for);
            buf.put_slice(both.as_bytes());
            put_into(&mut buf, places.clone());
            let asked = std::str::from_utf8(ASKED).expect("text");
            let mut expected = both.clone();
            for at in places.iter().rev().take(room) {
                expected.insert_str(*at, asked);
            }
            assert_eq!(std::str::from_utf8(buf.filled()), Ok(&*expected));
        }
        let first = with_field(Bytes::from(both.clone()));
        assert_eq!(first.len(), both.len() + ASKED.len());
        assert!(first.ends_with(&both.as_bytes()[at(&one)..]));
        assert_eq!(with_field(Bytes::from("GET / HT")), "GET / HT");
    }

    #[test]
    fn a_head_that_is_as_large_as_may_be_stays_so() {
        let most = |fields: usize| head(&"a: b\r\n".repeat(fields - 1));
        assert!(place_in(most(FIELDS_MAX - ASKED_FIELDS).as_bytes()).is_some());
        assert_eq!(place_in(most(FIELDS_MAX - 1).as_bytes()), None);
        let long = head(&format!("a: {}\r\n", "b".repeat(HEAD_BYTES_MAX - 40)));
        assert_eq!(place_in(long.as_bytes()), None);
    }
}

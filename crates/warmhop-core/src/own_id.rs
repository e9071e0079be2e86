//! Ids that an app gives its sessions itself, and where its messages carry them.
//!
//! Owns the reading of an id from a target, a field or a small body of JSON. Refuses to know which
//! peer holds the session: a register that the id names has that.

use alloc::string::String;
use alloc::vec::Vec;

/// The most bytes of an id; a longer text is not one.
pub const OWN_ID_BYTES_MAX: usize = 4096;
/// The most bytes of an id's name.
pub const OWN_ID_NAME_BYTES_MAX: usize = 64;

/// How an app's sessions are known besides by the affinity cookie: by an id of the app's own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OwnId {
    /// A field of this name, of requests and of answers.
    Header(String),
    /// A parameter of the query, of this name. A client learns it from an answer's JSON, or invents
    /// it.
    Query(String),
    /// A cookie of this name, which the app sets.
    Cookie(String),
}

impl OwnId {
    /// Where it is: `header`, `query` or `cookie`.
    #[must_use]
    pub fn place(&self) -> &'static str {
        match self {
            Self::Header(_) => "header",
            Self::Query(_) => "query",
            Self::Cookie(_) => "cookie",
        }
    }

    /// Its name there.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Header(name) | Self::Query(name) | Self::Cookie(name) => name,
        }
    }
}

/// The value of a field, if it can be an id.
#[must_use]
pub fn in_field(value: &[u8]) -> Option<Vec<u8>> {
    id(value.trim_ascii())
}

/// The id that a query has under `name`, percent-decoded.
#[must_use]
pub fn in_query(query: &str, name: &str) -> Option<Vec<u8>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        if decoded(key) != name.as_bytes() { None } else { id(&decoded(value)) }
    })
}

/// The id that a `Cookie` field has under `name`.
#[must_use]
pub fn in_cookies(field: &[u8], name: &str) -> Option<Vec<u8>> {
    field.split(|byte| *byte == b';').find_map(|pair| in_pair(pair, name))
}

/// The id that a `Set-Cookie` field gives the client under `name`.
#[must_use]
pub fn in_set_cookie(field: &[u8], name: &str) -> Option<Vec<u8>> {
    in_pair(field.split(|byte| *byte == b';').next()?, name)
}

/// The first text under `name` in JSON, at any depth and after any prefix: engine.io puts the
/// number of its packet before the JSON. A text with escapes does not count.
#[must_use]
pub fn in_json(text: &[u8], name: &str) -> Option<Vec<u8>> {
    let mut rest = text;
    loop {
        rest = &rest[rest.iter().position(|byte| *byte == b'"')? + 1..];
        let Some(after) = rest.strip_prefix(name.as_bytes()).and_then(|it| it.strip_prefix(b"\""))
        else {
            continue;
        };
        let value = after.trim_ascii_start().strip_prefix(b":").map(<[u8]>::trim_ascii_start);
        let Some(value) = value.and_then(|value| value.strip_prefix(b"\"")) else { continue };
        let found = value.iter().position(|byte| *byte == b'"').and_then(|end| id(&value[..end]));
        if let Some(found) = found.filter(|found| !found.contains(&b'\\')) {
            return Some(found);
        }
    }
}

fn in_pair(pair: &[u8], name: &str) -> Option<Vec<u8>> {
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    if pair[..equals].trim_ascii() != name.as_bytes() {
        return None;
    }
    let value = pair[equals + 1..].trim_ascii();
    id(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

fn id(bytes: &[u8]) -> Option<Vec<u8>> {
    (1..=OWN_ID_BYTES_MAX).contains(&bytes.len()).then(|| bytes.to_vec())
}

fn decoded(text: &str) -> Vec<u8> {
    let digit = |byte: Option<&u8>| (*byte? as char).to_digit(16);
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let pair = digit(bytes.get(at + 1)).zip(digit(bytes.get(at + 2)));
        match (byte, pair) {
            (b'%', Some((high, low))) => {
                out.extend(u8::try_from(high * 16 + low));
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(*byte),
        }
        at += 1;
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use alloc::string::ToString;

    use super::*;

    fn text(found: Option<Vec<u8>>) -> Option<String> {
        found.map(|found| String::from_utf8_lossy(&found).to_string())
    }

    #[test]
    fn an_id_is_found_in_a_query_a_cookie_and_a_field() {
        for (query, found) in [
            ("EIO=4&transport=polling&sid=a-B_1", Some("a-B_1")),
            ("s%69d=a%2Fb+c", Some("a/b c")),
            ("sid=%zz", Some("%zz")),
            ("sid=%", Some("%")),
            ("sid=&sid=2", Some("2")),
            ("xsid=1&sid", None),
            ("", None),
        ] {
            assert_eq!(text(in_query(query, "sid")).as_deref(), found, "{query}");
        }
        assert_eq!(text(in_cookies(b"a=1; sid=\"x\" ;b=2", "sid")).unwrap(), "x");
        assert_eq!(in_cookies(b"a=sid; xsid=1", "sid"), None);
        assert_eq!(text(in_set_cookie(b"sid=x=y; Path=/; sid=2", "sid")).unwrap(), "x=y");
        assert_eq!(in_set_cookie(b"sid=; Max-Age=0", "sid"), None);
        assert_eq!(text(in_field(b" 7 ")).unwrap(), "7");
        assert_eq!(in_field(&[b'x'; OWN_ID_BYTES_MAX + 1]), None);
        assert_eq!(in_field(b""), None);
    }

    #[test]
    fn an_id_is_found_in_the_json_of_a_small_body() {
        for (body, found) in [
            (r#"0{"sid":"Ab_1","upgrades":["websocket"]}"#, Some("Ab_1")),
            ("{ \"a\": {\"sid\" :\n \"x\"} }", Some("x")),
            (r#"{"not":"sid","sid":"x"}"#, Some("x")),
            (r#"{"sid":7}"#, None),
            (r#"{"sid":"a\"b"}"#, None),
            (r#"{"sid":""}"#, None),
            (r#"{"sid":"un"#, None),
            (r#""sid""#, None),
            ("", None),
        ] {
            assert_eq!(text(in_json(body.as_bytes(), "sid")).as_deref(), found, "{body}");
        }
    }
}

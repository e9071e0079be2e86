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

/// The text under `name` in JSON, after any prefix: engine.io puts the number of its packet before the
/// JSON. A member of the outermost object counts before those of others, and of these the first. A text
/// with escapes does not count.
#[must_use]
pub fn in_json(text: &[u8], name: &str) -> Option<Vec<u8>> {
    let mut nested = None;
    for (depth, found) in members(text, name) {
        if depth == OUTERMOST {
            return Some(found);
        }
        nested = nested.or(Some(found));
    }
    nested
}

/// Whether the beginning of a JSON text has such a text as a member of the outermost object: then the
/// rest does not matter.
#[must_use]
pub fn at_top_of_json(text: &[u8], name: &str) -> bool {
    members(text, name).any(|(depth, _)| depth == OUTERMOST)
}

/// The depth of the members of the outermost object.
const OUTERMOST: usize = 1;

/// The texts under `name` in JSON, each with its depth.
fn members<'t>(text: &'t [u8], name: &'t str) -> impl Iterator<Item = (usize, Vec<u8>)> + 't {
    let (mut rest, mut depth) = (text, 0_usize);
    core::iter::from_fn(move || {
        while let Some((byte, after)) = rest.split_first() {
            rest = after;
            match byte {
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                b'"' => {
                    let (key, after) = text_at(rest)?;
                    rest = after;
                    if key != name.as_bytes() {
                        continue;
                    }
                    let value = after.trim_ascii_start().strip_prefix(b":");
                    let value = value.and_then(|it| it.trim_ascii_start().strip_prefix(b"\""));
                    let Some(value) = value else { continue };
                    let (value, after) = text_at(value)?;
                    rest = after;
                    if let Some(found) = id(value).filter(|found| !found.contains(&b'\\')) {
                        return Some((depth, found));
                    }
                }
                _ => {}
            }
        }
        None
    })
}

/// The text that begins after its opening quote, and what follows it.
fn text_at(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut is_escaped = false;
    let end = bytes.iter().position(|byte| {
        let ends = *byte == b'"' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        ends
    })?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
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
            (r#"{"data":[{"sid":"a"}],"a":{"sid":"b"},"sid":"x"}"#, Some("x")),
            (r#"{"text":"}\",\"sid\":\"no\"","sid":"x"}"#, Some("x")),
            (r#"42["open",{"sid":"x"}]"#, Some("x")),
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

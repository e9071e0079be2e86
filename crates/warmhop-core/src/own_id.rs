//! Ids that an app gives its sessions itself, and where its messages carry them.
//!
//! Owns the reading of an id from a target, a field or a small body of JSON. Refuses to know which
//! peer holds the session: a register that the id names has that.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// The most bytes of an id; a longer text is not one.
pub const OWN_ID_BYTES_MAX: usize = 4096;
/// The most bytes of an id's name.
pub const OWN_ID_NAME_BYTES_MAX: usize = 64;
/// The most bytes of a path with an id.
pub const OWN_ID_PATH_BYTES_MAX: usize = 256;

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
    /// A segment of the path, which a client learns from an answer's JSON.
    Path(OwnIdPath),
}

impl OwnId {
    /// Where it is: `header`, `query`, `cookie` or `path`.
    #[must_use]
    pub fn place(&self) -> &'static str {
        match self {
            Self::Header(_) => "header",
            Self::Query(_) => "query",
            Self::Cookie(_) => "cookie",
            Self::Path(_) => "path",
        }
    }

    /// Its name there, or the whole path.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Header(name) | Self::Query(name) | Self::Cookie(name) => name,
            Self::Path(path) => path.as_str(),
        }
    }
}

/// The paths that have an id as one of their segments: `/gradio_api/call/*/{event_id}`. A `*` is any
/// segment, and the name in braces is that of the id in the JSON that issues it. Paths below it match as
/// well.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OwnIdPath {
    text: String,
    name: String,
}

/// What is wrong with a text that should be an [`OwnIdPath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OwnIdPathError {
    /// It is longer than [`OWN_ID_PATH_BYTES_MAX`].
    TooLong,
    /// It does not begin with a slash, or has an empty segment.
    NotAPath,
    /// It does not have exactly one segment of a name in braces.
    NotOneId,
    /// The name in the braces is empty, too long or no name.
    BadName,
    /// A segment has a character that is written otherwise in a path, or `*` among others.
    BadSegment,
}

impl fmt::Display for OwnIdPathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "the path has more than 256 bytes",
            Self::NotAPath => "expected a path that begins with a slash and has no empty segment",
            Self::NotOneId => "expected one segment in braces, which is the id",
            Self::BadName => {
                "the name in braces is that of the id in the app's JSON, such as event_id"
            }
            Self::BadSegment => {
                "expected segments of plain characters, not percent-encoded, or * for any segment"
            }
        })
    }
}

impl core::error::Error for OwnIdPathError {}

impl OwnIdPath {
    /// Reads it.
    ///
    /// # Errors
    /// If it is not such a path.
    pub fn new(text: &str) -> Result<Self, OwnIdPathError> {
        if text.len() > OWN_ID_PATH_BYTES_MAX {
            return Err(OwnIdPathError::TooLong);
        }
        let segments = text.strip_prefix('/').ok_or(OwnIdPathError::NotAPath)?;
        let mut name = None;
        for segment in segments.split('/') {
            match in_braces(segment) {
                _ if segment.is_empty() => return Err(OwnIdPathError::NotAPath),
                Some(_) if name.is_some() => return Err(OwnIdPathError::NotOneId),
                Some(inner) if !is_name(inner) => return Err(OwnIdPathError::BadName),
                Some(inner) => name = Some(inner),
                None if segment != "*" && !is_literal(segment) => {
                    return Err(OwnIdPathError::BadSegment);
                }
                None => {}
            }
        }
        let name = name.ok_or(OwnIdPathError::NotOneId)?.into();
        Ok(Self { text: text.into(), name })
    }

    /// The whole path, as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name of the id in the app's JSON.
    #[must_use]
    pub fn id_name(&self) -> &str {
        &self.name
    }

    /// The id that a request's path has, percent-decoded.
    #[must_use]
    pub fn id_in(&self, path: &str) -> Option<Vec<u8>> {
        let mut segments = path.strip_prefix('/')?.split('/');
        let mut found = None;
        for expected in self.text.split('/').skip(1) {
            let segment = segments.next()?;
            match in_braces(expected) {
                Some(_) => found = Some(id(&decoded(segment, Plus::IsPlus))?),
                None if expected == "*" && !segment.is_empty() => {}
                None if decoded(segment, Plus::IsPlus) == expected.as_bytes() => {}
                None => return None,
            }
        }
        found
    }
}

fn in_braces(segment: &str) -> Option<&str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}

/// Whether requests can have the segment in their path, as it is.
fn is_literal(segment: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()+,;=:@".contains(&byte);
    segment != "." && segment != ".." && segment.bytes().all(is_plain)
}

/// Whether a member of a JSON object can have the name, without escapes.
fn is_name(text: &str) -> bool {
    (1..=OWN_ID_NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"{}*/?#\"\\".contains(&byte))
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
        if decoded(key, Plus::IsSpace) != name.as_bytes() {
            return None;
        }
        id(&decoded(value, Plus::IsSpace))
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
/// JSON. A member of the outermost object counts before those of others, and of these the first.
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
                    if let Some(found) = unescaped(value).and_then(|found| id(&found)) {
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

/// The text that JSON writes so between quotes (RFC 8259 section 7); `None` if it is not of that form.
fn unescaped(written: &[u8]) -> Option<Vec<u8>> {
    let unit = |at: usize| {
        let digits = written.get(at..at + 4)?;
        digits.iter().try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?))
    };
    let (mut out, mut at) = (Vec::with_capacity(written.len()), 0);
    while let Some(byte) = written.get(at) {
        at += 1;
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        at += 1;
        match written.get(at - 1)? {
            byte @ (b'"' | b'\\' | b'/') => out.push(*byte),
            b'b' => out.push(0x08),
            b'f' => out.push(0x0c),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                let mut code = unit(at)?;
                at += 4;
                if (0xd800..0xdc00).contains(&code) {
                    // Two units are one character.
                    let low = unit(at + 2).filter(|low| (0xdc00..0xe000).contains(low))?;
                    written.get(at..at + 2).filter(|mark| *mark == b"\\u")?;
                    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                    at += 6;
                }
                let mut room = [0; 4];
                out.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut room).as_bytes());
            }
            _ => return None,
        }
    }
    Some(out)
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

/// What a plus is: a space in queries, itself in paths.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plus {
    IsSpace,
    IsPlus,
}

fn decoded(text: &str, plus: Plus) -> Vec<u8> {
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
            (b'+', _) if plus == Plus::IsSpace => out.push(b' '),
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
    fn an_id_is_found_in_a_path() {
        let of_gradio = OwnIdPath::new("/gradio_api/call/*/{event_id}").unwrap();
        assert_eq!(of_gradio.id_name(), "event_id");
        for (path, found) in [
            ("/gradio_api/call/predict/a-B_1", Some("a-B_1")),
            ("/gradio_api/call/predict/a-B_1/", Some("a-B_1")),
            ("/gradio_api/call/predict/a-B_1/more", Some("a-B_1")),
            ("/gradio%5Fapi/c%61ll/%20/a%2Fb+%41", Some("a/b+A")),
            ("/gradio_api/call/v2/predict", Some("predict")),
            ("/gradio_api/call/predict/%zz", Some("%zz")),
            ("/gradio_api/call/predict/", None),
            ("/gradio_api/call/predict", None),
            ("/gradio_api/call//a", None),
            ("/gradio_api/called/predict/a", None),
            ("//gradio_api/call/predict/a", None),
            ("gradio_api/call/predict/a", None),
            ("/", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(text(of_gradio.id_in(path)).as_deref(), found, "{path}");
        }
        let inner = OwnIdPath::new("/rooms/{room}/seats").unwrap();
        assert_eq!(text(inner.id_in("/rooms/7/seats/1")).unwrap(), "7");
        assert_eq!(inner.id_in("/rooms/7"), None);
        let long = alloc::format!("/rooms/{}/seats", "x".repeat(OWN_ID_BYTES_MAX + 1));
        assert_eq!(inner.id_in(&long), None);
    }

    #[test]
    fn a_path_without_exactly_one_id_is_refused() {
        for (path, error) in [
            ("gradio/{id}", OwnIdPathError::NotAPath),
            ("/a//{id}", OwnIdPathError::NotAPath),
            ("/a/{id}/", OwnIdPathError::NotAPath),
            ("/a/b", OwnIdPathError::NotOneId),
            ("/{a}/{b}", OwnIdPathError::NotOneId),
            ("/a/{}", OwnIdPathError::BadName),
            ("/a/{a b}", OwnIdPathError::BadName),
            ("/a/{{b}}", OwnIdPathError::BadName),
            ("/a/x{id}", OwnIdPathError::BadSegment),
            ("/a/b*/{id}", OwnIdPathError::BadSegment),
            ("/a%20b/{id}", OwnIdPathError::BadSegment),
            ("/a/../{id}", OwnIdPathError::BadSegment),
            ("/a/{id}?x", OwnIdPathError::BadSegment),
            (&alloc::format!("/{}/{{id}}", "a".repeat(256)), OwnIdPathError::TooLong),
        ] {
            assert_eq!(OwnIdPath::new(path), Err(error), "{path}");
        }
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
            (r#"{"sid":"a\"b\/c\\"}"#, Some("a\"b/c\\")),
            (r#"{"sid":"\u00e9\ud83d\ude00\u0041"}"#, Some("é😀A")),
            (r#"{"sid":"\ud83d"}"#, None),
            (r#"{"sid":"\ud83d\u0041"}"#, None),
            (r#"{"sid":"\ude00"}"#, None),
            (r#"{"sid":"\u00e"}"#, None),
            (r#"{"sid":"\x"}"#, None),
            (r#"{"sid":""}"#, None),
            (r#"{"sid":"un"#, None),
            (r#""sid""#, None),
            ("", None),
        ] {
            assert_eq!(text(in_json(body.as_bytes(), "sid")).as_deref(), found, "{body}");
        }
    }
}

//! The carried form of a session, the field `Warmhop-Session` between a peer and an app: an RFC
//! 9651 byte sequence, with the parameter `renew` if the app gives the session a new id.

use std::sync::atomic::Ordering;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use warmhop_core::problem::ProblemKind;

use crate::app::session::{Session, SessionError};
use crate::app::slot::{Copy, Slot};
use crate::http::body::Body;
use crate::http::fields::SESSION_FIELD;
use crate::http::refusals::ByReason;
use crate::request::local_error::LocalError;
use crate::request::node::Node;
use crate::request::problem::Problem;

/// Padding is optional, and is not checked (RFC 9651 section 4.2.7).
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What an app's response changes about its client's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Carried {
    /// The new state; empty: it is cleared.
    pub(crate) state: Bytes,
    /// Whether the session gets a new id.
    pub(crate) renew: bool,
}

/// The field for a request of this session; `None` if that is empty.
pub(crate) fn field_of(session: &Session) -> Option<HeaderValue> {
    session.get().and_then(|state| to_field(&state))
}

/// The field with this state.
fn to_field(state: &[u8]) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!(":{}:", STANDARD.encode(state))).ok()
}

/// Removes the field from a response: `None` if there is none, and an error if it is malformed or
/// occurs twice.
pub(crate) fn take(headers: &mut HeaderMap) -> Option<Result<Carried, &'static str>> {
    let mut values = headers.get_all(SESSION_FIELD).iter();
    let first = values.next()?;
    let read = match values.next() {
        Some(_) => Err("there is more than one"),
        None => read(first).ok_or("it is not a byte sequence, as in :BASE64: or :BASE64:;renew"),
    };
    headers.remove(SESSION_FIELD);
    Some(read)
}

fn read(value: &HeaderValue) -> Option<Carried> {
    let text = value.to_str().ok()?.trim_matches(' ').strip_prefix(':')?;
    let (encoded, parameters) = text.split_once(':')?;
    let state = Bytes::from(LENIENT.decode(encoded).ok()?);
    Some(Carried { state, renew: renews(parameters)? })
}

/// Whether the parameters contain `renew`; `None` if they are malformed (RFC 9651 section 4.2.3.2).
/// Of two with one name, the last one counts; others are ignored.
fn renews(mut text: &str) -> Option<bool> {
    let mut renew = false;
    while let Some(rest) = text.strip_prefix(';') {
        let rest = rest.trim_start_matches(' ');
        let key_ends = rest
            .find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.*".contains(c)))
            .unwrap_or(rest.len());
        let (key, rest) = rest.split_at(key_ends);
        if !key.starts_with(|c: char| c.is_ascii_lowercase() || c == '*') {
            return None;
        }
        let (value, rest) = match rest.strip_prefix('=') {
            Some(rest) => rest.split_at(bare_item_ends(rest)?),
            None => ("?1", rest),
        };
        if key == "renew" {
            renew = match value {
                "?1" => true,
                "?0" => false,
                _ => return None,
            };
        }
        text = rest;
    }
    text.is_empty().then_some(renew)
}

/// The end of the bare item that `text` begins with (RFC 9651 section 4.2.3.1).
fn bare_item_ends(text: &str) -> Option<usize> {
    let up_to =
        |allowed: fn(char) -> bool| text[1..].find(|c| !allowed(c)).map_or(text.len(), |at| at + 1);
    match text.chars().next()? {
        '?' => matches!(text.get(..2)?, "?0" | "?1").then_some(2),
        ':' => text[1..].find(':').map(|at| at + 2),
        '"' => quoted_ends(text, 1),
        '%' if text.starts_with("%\"") => quoted_ends(text, 2),
        '-' | '@' | '0'..='9' => {
            let ends = up_to(|c| c.is_ascii_digit() || c == '.');
            text[..ends].contains(|c: char| c.is_ascii_digit()).then_some(ends)
        }
        'a'..='z' | 'A'..='Z' | '*' => {
            Some(up_to(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/".contains(c)))
        }
        _ => None,
    }
}

fn quoted_ends(text: &str, from: usize) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(from) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The head of a request as an app got it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SentHead {
    /// The size of the field with its session; 0 if there is none.
    field_bytes: usize,
    /// The size of all its fields, if there is one.
    bytes: usize,
}

impl SentHead {
    /// A head with these fields, and with the carried `session`.
    pub(crate) fn of(headers: &HeaderMap, session: Option<&HeaderValue>) -> Self {
        let Some(session) = session else { return Self::default() };
        let others = headers.iter().map(|(name, value)| name.as_str().len() + value.len());
        let bytes = others.sum::<usize>() + SESSION_FIELD.as_str().len() + session.len();
        Self { field_bytes: session.len(), bytes }
    }
}

/// From this size on our field may be the reason why an app's server refuses a request: a browser's
/// own fields take as much.
const LARGE_FIELD_BYTES: usize = 2 * 1024;

/// How to keep a larger state than a field can carry.
const WAY_OUT: &str = "keep larger state in registers, which take 1 MiB a key, and carry a \
                       reference";

impl Node {
    /// Stores the contents of the app's field in `session`.
    pub(crate) fn set_carried(
        &self,
        slot: &Slot,
        session: &Session,
        field: Result<Carried, &'static str>,
    ) -> Result<(), LocalError> {
        let carried = field.map_err(|why| self.malformed(slot, why))?;
        let bytes = carried.state.len();
        let set = match carried.state.is_empty() {
            true => session.clear(),
            false => session.set(carried.state),
        };
        let set = set.and_then(|()| if carried.renew { session.renew() } else { Ok(()) });
        let Err(SessionError::TooLarge { bytes_max, .. }) = set else { return Ok(()) };
        tracing::warn!(app = %slot.name(), bytes, bytes_max, "the app set a larger session than is carried; it stays as it was");
        self.count_too_large("set");
        let detail = format!(
            "the app set a session of {bytes} bytes, but at most {bytes_max} are carried, and it \
             stays as it was; {WAY_OUT}"
        );
        Err(LocalError::Problem(Box::new(Problem::new(ProblemKind::SessionTooLarge, detail))))
    }

    /// The error for a field that this peer does not understand; the session stays as it was.
    fn malformed(&self, slot: &Slot, why: &'static str) -> LocalError {
        tracing::warn!(app = %slot.name(), why, "the app's Warmhop-Session field (RFC 9651) is malformed; its session stays as it was");
        self.metrics.session_malformed.inc();
        let detail = format!(
            "the app answered with a malformed Warmhop-Session field (RFC 9651), and its session stays \
             as it was: {why}"
        );
        LocalError::Problem(Box::new(Problem::new(ProblemKind::AppFailed, detail)))
    }

    /// The problem for the client if the app's server refused a request because our field made it
    /// too large: 431 (RFC 6585 section 5), or 400 with the connection closed, as servers answer
    /// what they do not read to the end. If it has served a head as large as this, a 400 is the app's
    /// own.
    pub(crate) fn field_refused(
        &self,
        slot: &Slot,
        copy: &Copy,
        response: &Response<Body>,
        head: SentHead,
    ) -> Option<Problem> {
        let SentHead { field_bytes, bytes } = head;
        let closes = || {
            let connection = response.headers().get_all(CONNECTION).iter();
            let mut values = connection.filter_map(|value| value.to_str().ok());
            values.any(|value| value.to_ascii_lowercase().contains("close"))
        };
        let refuses = match response.status() {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => true,
            StatusCode::BAD_REQUEST => closes() && bytes > copy.took_head.load(Ordering::Relaxed),
            _ => {
                copy.takes_head(bytes);
                false
            }
        };
        if !refuses || field_bytes < LARGE_FIELD_BYTES {
            return None;
        }
        let status = response.status().as_u16();
        tracing::warn!(app = %slot.name(), status, field_bytes, "the app's server refused a request with its client's session in it");
        self.count_too_large("field");
        let detail = format!(
            "the app's server answered {status} to a request that its client's session made \
             {field_bytes} bytes longer; the session stays where it is, and the client gets a new \
             one. Let the server take longer fields, or {WAY_OUT}"
        );
        Some(Problem::new(ProblemKind::SessionFieldRefused, detail))
    }

    fn count_too_large(&self, reason: &'static str) {
        self.metrics.session_too_large.get_or_create(&ByReason { reason }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Option<(Vec<u8>, bool)> {
        let read = read(&HeaderValue::from_str(text).unwrap())?;
        Some((read.state.to_vec(), read.renew))
    }

    #[test]
    fn the_carried_form_reads_back_and_refuses_what_is_no_byte_sequence() {
        let value = to_field(b"\x00state").unwrap();
        assert_eq!(read(&value).unwrap().state, &b"\x00state"[..]);
        assert_eq!(read_text("::"), Some((vec![], false)));
        assert_eq!(read_text(":YQ:"), Some((b"a".to_vec(), false)), "without padding");
        for bad in ["", ":", "YQ==", ":Y:", ":YQ==:x", "\"a\"", ":YQ==:, :YQ==:", ":YQ==: ;renew"] {
            assert_eq!(read_text(bad), None, "{bad}");
        }
    }

    #[test]
    fn renewal_is_a_parameter_of_which_the_last_one_counts() {
        for (parameters, renew) in [
            (";renew", true),
            ("; renew", true),
            (";renew=?1", true),
            (";renew=?0", false),
            (";renew;renew", true),
            (";renew;renew=?0", false),
            (";renew=?0;a=1;renew", true),
            (";renewal", false),
            (";a=\"x\\\";renew\";b=tok/en;c=-1.5;d=:YQ==:;e=@7;f=%\"%c3\";*g", false),
            ("", false),
        ] {
            assert_eq!(read_text(&format!(":YQ==:{parameters}")).map(|it| it.1), Some(renew));
        }
        for bad in [";", ";;renew", ";Renew", ";renew=", ";renew=1", ";a=\"x", ";renew x", ";=1"] {
            assert_eq!(read_text(&format!(":YQ==:{bad}")), None, "{bad}");
        }
    }

    #[test]
    fn two_fields_are_refused_for_nobody_knows_which_is_meant() {
        let mut headers = HeaderMap::new();
        assert_eq!(take(&mut headers), None);
        headers.append(SESSION_FIELD, HeaderValue::from_static(":YQ==:"));
        headers.append(SESSION_FIELD, HeaderValue::from_static(":Yg==:"));
        assert!(take(&mut headers).unwrap().is_err());
        assert!(headers.is_empty());
    }
}

//! The kinds of fields that a peer acts on, and which of them a message has.
//!
//! Most messages have few of the fields that mean something to a peer. One pass over the names that
//! are present costs less than a lookup of each name that might be.

use http::HeaderMap;

/// The names of the fields that concern one connection alone (RFC 9110 section 7.6.1), as a
/// pattern: a match compares lengths first, and this is asked of each field of most messages.
macro_rules! hop_by_hop {
    () => {
        "connection"
            | "te"
            | "upgrade"
            | "transfer-encoding"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "keep-alive"
            | "proxy-connection"
            | "http2-settings"
    };
}

/// The kinds of fields of which a message has at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct About(u8);

impl About {
    /// Fields that concern one connection alone, or frame the message.
    pub(crate) const CONNECTION: u8 = 1;
    /// Fields of the mesh's own name space.
    pub(crate) const OURS: u8 = 2;
    /// Fields that some readers could take for another field.
    pub(crate) const SHADOW: u8 = 4;
    /// `Cookie`.
    pub(crate) const COOKIE: u8 = 8;
    /// `Set-Cookie`.
    pub(crate) const SET_COOKIE: u8 = 16;
    /// `Expect`.
    pub(crate) const EXPECT: u8 = 32;
    /// `Idempotency-Key`.
    pub(crate) const KEY: u8 = 64;

    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self(headers.keys().map(|name| kind(name.as_str())).fold(0, |all, one| all | one))
    }

    /// Whether the message has a field of any of `kinds`.
    pub(crate) fn has(self, kinds: u8) -> bool {
        self.0 & kinds != 0
    }
}

fn kind(name: &str) -> u8 {
    match name {
        hop_by_hop!() => About::CONNECTION,
        "cookie" => About::COOKIE,
        "set-cookie" => About::SET_COOKIE,
        "expect" => About::EXPECT,
        "idempotency-key" => About::KEY,
        "proxy" => About::SHADOW,
        _ => {
            let shadow = if name.contains('_') { About::SHADOW } else { 0 };
            shadow | if is_ours(name) { About::OURS } else { 0 }
        }
    }
}

/// Whether a field concerns one connection alone.
pub(crate) fn is_hop_by_hop(name: &str) -> bool {
    matches!(name, hop_by_hop!())
}

/// Whether a field belongs to the mesh's own name space, also for a reader that equates `_` with
/// `-`.
pub(crate) fn is_ours(name: &str) -> bool {
    const OURS: &str = "warmhop-";
    // Hardly any name begins so: one byte tells most of them apart.
    name.as_bytes().first() == Some(&OURS.as_bytes()[0])
        && name.as_bytes().get(..OURS.len()).is_some_and(|beginning| {
            beginning
                .iter()
                .zip(OURS.bytes())
                .all(|(is, ours)| *is == ours || (*is == b'_' && ours == b'-'))
        })
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderName, HeaderValue};

    use super::*;
    use crate::http::fields::{remove_hop_by_hop, remove_reserved, remove_shadows};

    #[test]
    fn fields_that_have_to_be_removed_are_known_from_the_kinds_of_a_message() {
        let names = [
            "accept",
            "connection",
            "te",
            "upgrade",
            "transfer-encoding",
            "proxy-authenticate",
            "proxy-authorization",
            "keep-alive",
            "proxy-connection",
            "http2-settings",
            "cookie",
            "set-cookie",
            "expect",
            "idempotency-key",
            "proxy",
            "warmhop-session",
            "warmhop_peer",
            "x_request_id",
            "x-a",
            "warmhops",
            "content-length",
        ];
        for name in names {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
            let about = About::of(&headers);
            for (kind, remove) in [
                (About::CONNECTION, remove_hop_by_hop as fn(&mut HeaderMap)),
                (About::OURS, remove_reserved),
                (About::SHADOW, remove_shadows),
            ] {
                let mut left = headers.clone();
                remove(&mut left);
                assert!(about.has(kind) || left == headers, "{name}");
            }
        }
        let both = [("cookie", "a"), ("expect", "b")];
        let both = both
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let about = About::of(&both.into_iter().collect());
        assert!(about.has(About::COOKIE) && about.has(About::EXPECT | About::KEY));
        assert!(!about.has(About::KEY | About::SET_COOKIE | About::CONNECTION));
    }
}

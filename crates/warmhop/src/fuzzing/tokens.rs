//! Whether the affinity cookies of a client are read without harm, and none of them reaches an app.

use warmhop_core::affinity::{self, Authenticator};
use warmhop_core::cookie::CookieSpec;
use warmhop_core::ids::{PeerId, WallTime};

/// Accepts every tag, so that the bytes behind it are read.
struct Credulous;

impl Authenticator for Credulous {
    fn tag(&self, _: &[u8]) -> [u8; 16] {
        [0; 16]
    }

    fn verify(&self, _: &[u8], _: &[u8; 16]) -> bool {
        true
    }
}

/// Reads `input` as the `Cookie` field of a request, and each of our cookies in it as a token; returns
/// how many were tokens.
///
/// # Panics
/// If a token re-encodes to another one, or one of our cookies is left to the app.
pub fn tokens(input: &[u8]) -> usize {
    let spec = CookieSpec::default();
    if let Some(kept) = spec.strip(input, |_| true) {
        assert!(spec.values(&kept).next().is_none(), "one of our cookies is left");
    }
    let Ok(nobody) = PeerId::new("nobody") else { return 0 };
    let read = spec.values(input).filter_map(|value| {
        let (token, route) = affinity::read(value, &Credulous, WallTime(0)).ok()?;
        let route = route.as_ref().unwrap_or(&nobody);
        let plain = affinity::mint(&token, route, &Credulous);
        for minted in [plain, affinity::mint_veiled(&token, route, &Credulous)] {
            let again = affinity::read(&minted, &Credulous, WallTime(0));
            assert!(again.is_ok_and(|(again, _)| again == token), "a token reads back as another");
        }
        Some(())
    });
    read.count()
}

#[cfg(test)]
mod tests {
    use warmhop_core::affinity::{Entry, Kind, Token};
    use warmhop_core::ids::{AppName, Incarnation, SessionId};

    use super::*;
    use crate::fuzzing::arbitrary::{Numbers, feed, strung};

    #[test]
    fn tokens_read_back_as_they_were_read_and_no_cookie_of_ours_is_left() {
        let peer = PeerId::new("peer-1").unwrap();
        let entry = Entry {
            app: AppName::new("shop").unwrap(),
            sid: SessionId([7; 16]),
            expiry: WallTime(1 << 40),
            kind: Kind::Pinned { peer: peer.clone(), incarnation: Incarnation([9; 16]) },
            version: None,
        };
        let token = affinity::mint(&Token { entries: vec![entry] }, &peer, &Credulous);
        let cookie = format!("warmhop={token}");
        assert_eq!(tokens(cookie.as_bytes()), 1);
        let (opaque, _) = token.split_once('.').unwrap();
        let words: [&[u8]; 14] = [
            cookie.as_bytes(),
            token.as_bytes(),
            opaque.as_bytes(),
            &opaque.as_bytes()[..20],
            &opaque.as_bytes()[20..],
            b"warmhop=",
            b"; ",
            b";",
            b"a=b; ",
            b"AQ",
            b"AQE",
            b"\"",
            b".peer-1",
            b"warmhop = \"",
        ];
        let make = |numbers: &mut Numbers| strung(numbers, &words, 5);
        let read = feed("tokens", 30_000, make, tokens);
        assert!(read > 1_000, "only {read} were read");
    }
}

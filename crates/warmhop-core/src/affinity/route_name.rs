//! The name of a peer in a cookie: its own name, or an alias where clients are not to see names.
//!
//! An alias is the tag of the name under the key of cookies, in hexadecimal digits. Every peer with
//! that key computes the same alias of a name, nobody else can find out whose name it is, and a
//! load balancer compares it as it would compare the name. Aliases change with the key.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use super::{Authenticator, Entry, Kind};
use crate::cookie::RouteName;
use crate::ids::PeerId;

/// The prefix of the tagged bytes of an alias. Those of a token begin with its version, which is
/// never zero, so that no tag passes for one of the other kind.
const DOMAIN: &[u8] = b"\0route ";
/// Two digits for each byte of a tag: as long as the longest name of a peer.
const ALIAS_BYTES: usize = 32;

impl RouteName {
    /// The name of `peer` in cookies.
    #[must_use]
    pub fn of(self, peer: &PeerId, auth: &impl Authenticator) -> PeerId {
        match self {
            Self::Name => peer.clone(),
            Self::Opaque => alias(peer, auth),
        }
    }

    /// The entry as a cookie has it: the peer of a pinned session has its name in cookies.
    #[must_use]
    pub fn disguise(self, mut entry: Entry, auth: &impl Authenticator) -> Entry {
        if let Kind::Pinned { peer, .. } = &mut entry.kind {
            *peer = self.of(peer, auth);
        }
        entry
    }
}

/// The peer of `known` that a cookie calls `said`, be that a name or an alias: peers of one mesh
/// may use different kinds while their configurations change.
pub fn peer_called<'a>(
    said: &PeerId,
    known: impl Iterator<Item = &'a PeerId> + Clone,
    auth: &impl Authenticator,
) -> Option<&'a PeerId> {
    if let Some(peer) = known.clone().find(|peer| *peer == said) {
        return Some(peer);
    }
    let tag = tag_of(said)?;
    let mut known = known;
    known.find(|peer| auth.verify(&message(peer), &tag))
}

fn alias(peer: &PeerId, auth: &impl Authenticator) -> PeerId {
    let mut digits = String::with_capacity(ALIAS_BYTES);
    for byte in auth.tag(&message(peer)) {
        // Writing to a string does not fail.
        let _ = write!(digits, "{byte:02x}");
    }
    PeerId::new(&digits).unwrap_or_else(|_| peer.clone())
}

fn message(peer: &PeerId) -> Vec<u8> {
    [DOMAIN, peer.as_str().as_bytes()].concat()
}

/// The tag that an alias is made of, if the text has the form of an alias.
fn tag_of(alias: &PeerId) -> Option<[u8; 16]> {
    let digits = alias.as_str().as_bytes();
    if digits.len() != ALIAS_BYTES {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut tag = [0; 16];
    for (byte, pair) in tag.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(tag)
}

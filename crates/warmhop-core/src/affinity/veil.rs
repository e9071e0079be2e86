//! The veil of a token: where clients are not to see the mesh's inside, its bytes are not to be read
//! as names of apps, versions and lives of peers either.
//!
//! The bytes between a token's version and its tag are combined, by exclusive or, with a mask that the
//! tag and the key give: its n-th 16 bytes are the tag of `\0veil `, the token's tag and n. This is the
//! construction of a synthetic initialization vector (RFC 5297 section 2.4) with the cookie's tag as
//! the pseudo-random function: tokens of different contents have different masks, and anyone who has the
//! key needs nothing else to take the veil off.

use alloc::vec::Vec;

use super::{Authenticator, TAG_BYTES};

/// The prefix of the tagged bytes of a mask: see that of an alias.
const DOMAIN: &[u8] = b"\0veil ";

/// Puts the veil on `bytes`, or takes it off, with the key of this number.
pub(super) fn turn(bytes: &mut [u8], tag: &[u8; TAG_BYTES], key: usize, auth: &impl Authenticator) {
    let mut message = Vec::with_capacity(DOMAIN.len() + TAG_BYTES + 1);
    message.extend_from_slice(DOMAIN);
    message.extend_from_slice(tag);
    message.push(0);
    let number = message.len() - 1;
    // A token has fewer than 256 times 16 bytes.
    for (part, at) in bytes.chunks_mut(TAG_BYTES).zip(0_u8..=u8::MAX) {
        message[number] = at;
        let mask = auth.tag_by(key, &message);
        part.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
}

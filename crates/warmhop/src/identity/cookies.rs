//! The authenticator of cookies: tags under keys that only the peers of one cluster have.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ring::hmac;
use subtle::ConstantTimeEq;

use crate::identity::limits::COOKIE_KEY_BYTES;

/// One key for affinity cookies: HMAC-SHA256 cut to 16 bytes, under a key that only the peers of one
/// cluster have.
pub(super) struct CookieKey(hmac::Key);

impl CookieKey {
    pub(super) fn new(cookie_key: &[u8; COOKIE_KEY_BYTES], cluster: &str) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, cookie_key);
        let key = hmac::sign(&root, format!("warmhop cookie tag v1 {cluster}").as_bytes());
        Self(hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()))
    }

    pub(super) fn tag(&self, message: &[u8]) -> [u8; 16] {
        let full = hmac::sign(&self.0, message);
        full.as_ref()[..16].try_into().expect("HMAC-SHA256 gives 32 bytes")
    }

    /// Compares the two tags in constant time.
    pub(super) fn verify(&self, message: &[u8], tag: &[u8]) -> bool {
        self.tag(message).ct_eq(tag).into()
    }
}

const TAG_BYTES: usize = 16;
/// How many messages with verified tags are cached.
const KNOWN_MAX: usize = 1024;
/// A longer message is not cached: that of an affinity cookie with one entry is about 100 bytes
/// long.
const KNOWN_BYTES_MAX: usize = 512;

/// The keys in use, of which the first signs. A client sends the same cookie with each request, and
/// computing its tag is most of the cost of reading it. So verified tags are cached for as long as
/// these keys are in use.
pub(super) struct CookieKeys {
    keys: Vec<CookieKey>,
    /// Messages with their tags, each in the slot that its hash selects. The hash is keyed, so that
    /// nobody can choose which slot is used.
    known: Box<[Mutex<Vec<u8>>]>,
    hasher: RandomState,
}

impl CookieKeys {
    /// Takes at least one key.
    pub(super) fn new(keys: Vec<CookieKey>) -> Self {
        let known = (0..KNOWN_MAX).map(|_| Mutex::default()).collect();
        Self { keys, known, hasher: RandomState::new() }
    }

    /// The tag of `message` under the first key.
    pub(super) fn tag(&self, message: &[u8]) -> [u8; 16] {
        self.keys[0].tag(message)
    }

    /// How many keys there are.
    pub(super) fn count(&self) -> usize {
        self.keys.len()
    }

    /// The tag of `message` under the key of this number, or under the first if there is none.
    pub(super) fn tag_by(&self, number: usize, message: &[u8]) -> [u8; 16] {
        self.keys.get(number).unwrap_or(&self.keys[0]).tag(message)
    }

    /// Whether `tag` is the tag of `message` under any key.
    pub(super) fn verify(&self, message: &[u8], tag: &[u8]) -> bool {
        // A cached entry is split into message and tag by this length alone.
        if tag.len() != TAG_BYTES {
            return false;
        }
        let place = self.place(message);
        let is_known = place.strip_prefix(message).is_some_and(|known| known.ct_eq(tag).into());
        drop(place);
        if is_known {
            return true;
        }
        let is_right = self.keys.iter().any(|key| key.verify(message, tag));
        if is_right && message.len() + tag.len() <= KNOWN_BYTES_MAX {
            let mut place = self.place(message);
            place.clear();
            place.extend_from_slice(message);
            place.extend_from_slice(tag);
        }
        is_right
    }

    fn place(&self, message: &[u8]) -> MutexGuard<'_, Vec<u8>> {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(message);
        let at = hasher.finish() as usize % KNOWN_MAX;
        self.known[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_is_known_is_right_and_no_other_is() {
        let key = |byte| CookieKey::new(&[byte; COOKIE_KEY_BYTES], "c");
        let keys = CookieKeys::new(vec![key(1), key(2)]);
        let messages: Vec<Vec<u8>> = (0..2 * KNOWN_MAX).map(|at| at.to_be_bytes().into()).collect();
        // More messages than there are slots, each twice, with wrong tags between them.
        let again = messages.iter().chain(&messages).chain(messages.iter().rev());
        for (at, message) in again.enumerate() {
            let key = &keys.keys[at % 2];
            let tag = key.tag(message);
            assert!(keys.verify(message, &tag) && keys.verify(message, &tag));
            let mut other = tag;
            other[at % TAG_BYTES] ^= 1;
            assert!(!keys.verify(message, &other));
            assert!(!keys.verify(message, &tag[..15]) && !keys.verify(&message[1..], &tag));
            let moved = [&message[..], &tag[..1]].concat();
            assert!(!keys.verify(&moved, &tag[1..]), "the same bytes, parted elsewhere");
        }
        let kept: usize = keys.known.iter().map(|place| place.lock().unwrap().len()).sum();
        assert!(kept <= KNOWN_MAX * 24);
        let long = vec![7; KNOWN_BYTES_MAX];
        assert!(keys.verify(&long, &keys.tag(&long)));
        assert!(keys.place(&long).len() < KNOWN_BYTES_MAX);
        assert!(!CookieKeys::new(vec![key(2)]).verify(&messages[0], &key(1).tag(&messages[0])));
    }
}

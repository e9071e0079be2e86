//! The authenticator of cookies: tags under keys that only the peers of one cluster have.

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

    /// In time that does not depend on how far the two tags agree.
    pub(super) fn verify(&self, message: &[u8], tag: &[u8]) -> bool {
        self.tag(message).ct_eq(tag).into()
    }
}

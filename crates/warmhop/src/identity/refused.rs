//! Members that a peer refuses although the authority has issued their certificates.

use std::collections::BTreeSet;
use std::fmt;

use ring::digest::{SHA256, digest};
use warmhop_core::ids::{InvalidId, PeerId};

/// What [`RefusedPeers::add`] takes.
const EXPECTED: &str =
    "1 to 32 of the characters A-Z a-z 0-9 _ -, or \"sha256:\" and a certificate's fingerprint";

/// How the fingerprint of a certificate begins.
const SHA256_PREFIX: &str = "sha256:";

/// The SHA-256 of a certificate in DER, as `openssl x509 -fingerprint -sha256` computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub(crate) fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, der).as_ref());
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits, with colons between them or without.
    fn read(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
        let mut bytes = [0; 32];
        if digits.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16);
            *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHA256_PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Members that a peer refuses, by their names or by the certificates that they show.
///
/// Each peer applies its own list alone: no peer is excluded because another peer says so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefusedPeers {
    names: BTreeSet<PeerId>,
    certificates: BTreeSet<Fingerprint>,
}

impl RefusedPeers {
    /// Adds a peer's name, or the fingerprint of a certificate: `sha256:` and 64 hexadecimal digits,
    /// with colons between them or without.
    ///
    /// # Errors
    /// [`InvalidId`] says what is expected.
    pub fn add(&mut self, text: &str) -> Result<(), InvalidId> {
        let invalid = |expected| InvalidId::new("member to refuse", expected, text);
        if let Some(digits) = text.strip_prefix(SHA256_PREFIX) {
            let fingerprint = Fingerprint::read(digits)
                .ok_or_else(|| invalid("64 hexadecimal digits after \"sha256:\""))?;
            self.certificates.insert(fingerprint);
            return Ok(());
        }
        let name = PeerId::new(text).map_err(|_| invalid(EXPECTED))?;
        self.names.insert(name);
        Ok(())
    }

    /// The entries, in the form that [`RefusedPeers::add`] reads.
    pub fn texts(&self) -> impl Iterator<Item = String> + '_ {
        let names = self.names.iter().map(ToString::to_string);
        names.chain(self.certificates.iter().map(ToString::to_string))
    }

    /// Whether nobody is refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.certificates.is_empty()
    }

    pub(crate) fn has_name(&self, name: &PeerId) -> bool {
        self.names.contains(name)
    }

    /// Whether a peer of this name that showed this certificate is refused.
    pub(crate) fn has(&self, name: &PeerId, certificate: Option<Fingerprint>) -> bool {
        self.has_name(name) || certificate.is_some_and(|it| self.certificates.contains(&it))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_fingerprints_are_distinguished_and_read_back() {
        let fingerprint = Fingerprint::of(b"certificate");
        let plain = fingerprint.to_string();
        let digits = plain.strip_prefix(SHA256_PREFIX).unwrap().to_ascii_uppercase();
        let pairs: Vec<&str> = (0..32).map(|at| &digits[2 * at..2 * at + 2]).collect();
        let mut refused = RefusedPeers::default();
        assert!(refused.is_empty());
        refused.add("peer-3").unwrap();
        refused.add(&format!("sha256:{}", pairs.join(":"))).unwrap();
        refused.add(&plain).unwrap();
        assert_eq!(refused.texts().collect::<Vec<_>>(), ["peer-3", &plain]);
        let name = |name: &str| PeerId::new(name).unwrap();
        assert!(refused.has(&name("peer-3"), None));
        assert!(refused.has(&name("peer-4"), Some(fingerprint)));
        assert!(!refused.has(&name("peer-4"), Some(Fingerprint::of(b"another"))));
        assert!(!refused.has(&name("peer-4"), None));
        for wrong in ["", "peer 3", "sha256:", "sha256:zz", "sha1:00", &plain[..70]] {
            assert!(refused.add(wrong).is_err(), "{wrong}");
        }
    }
}

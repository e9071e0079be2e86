//! Why an identity could not be made or used. What to do about it depends on the program that embeds
//! the mesh, which knows the variant.

use std::path::PathBuf;

use crate::http::body::BoxError;
use crate::identity::limits::{CLUSTER_LEN_MAX, COOKIE_KEY_LABEL, COOKIE_KEY_NAME};

/// Why an identity could not be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A front door's certificate or key cannot be used.
    #[error("cannot use {path} for TLS at the front door: {source}")]
    FrontDoor {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BoxError,
    },
    /// A file is missing or unreadable.
    #[error("cannot read {path} of the identity: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The identity's folder.
        dir: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file of an authority is missing or unreadable.
    #[error("cannot read {path} of the authority: {source}")]
    ReadAuthority {
        /// The file.
        path: PathBuf,
        /// The authority's folder.
        dir: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file or its folder could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A private key is there already.
    #[error(
        "{path} exists already, and a private key is not overwritten unasked: choose another folder, or ask for it"
    )]
    Exists {
        /// The key's file.
        path: PathBuf,
    },
    /// The folder holds an identity of another authority.
    #[error(
        "{path} is the certificate of another authority than the one that issues: choose another folder, or ask to replace the identity in it"
    )]
    OtherAuthority {
        /// The `ca.pem` that is there.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{path} {what}; issue it again")]
    Malformed {
        /// The file, or a name in its place where nothing was read from disk.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The cookie key is missing.
    #[error(
        "{path} has no {COOKIE_KEY_LABEL} block and there is no {dir}/{COOKIE_KEY_NAME}, so affinity cookies could not be authenticated; issue the identity again, or give every peer the same file {COOKIE_KEY_NAME}, with 32 random bytes in base64"
    )]
    NoCookieKey {
        /// The key's file.
        path: PathBuf,
        /// The identity's folder.
        dir: String,
    },
    /// The file of the cookie key is missing, unreadable or malformed.
    #[error(
        "cannot take the cookie key from {path}: {what}; it has 32 random bytes in base64, the same at every peer of the cluster"
    )]
    CookieKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never what it holds.
        what: String,
    },
    /// The certificate was not issued by the authority beside it.
    #[error(
        "{path} was not issued by the authority in ca.pem beside it ({source}); copy the ca.pem of the authority that issued it, or issue it again"
    )]
    NotOfAuthority {
        /// The certificate's file.
        path: PathBuf,
        /// The verifier's error.
        #[source]
        source: BoxError,
    },
    /// The private key belongs to another certificate.
    #[error("{path} is not the private key of the cert.pem beside it; issue the identity again")]
    KeyMismatch {
        /// The key's file.
        path: PathBuf,
    },
    /// The certificate is past its date.
    #[error(
        "{path} expired {} ago by this machine's clock; issue it again, or set the clock if it is wrong",
        span(*ago_s)
    )]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// How long ago, in seconds.
        ago_s: u64,
    },
    /// The certificate is not valid yet.
    #[error(
        "{path} becomes valid only in {} by this machine's clock; the clock is probably wrong: set it, then start again",
        span(*in_s)
    )]
    NotYetValid {
        /// The certificate's file.
        path: PathBuf,
        /// In how many seconds it becomes valid.
        in_s: u64,
    },
    /// A cluster's name is malformed.
    #[error(
        "{found:?} is not a valid cluster name: expected 1 to {CLUSTER_LEN_MAX} of the characters A-Z a-z 0-9 _ -"
    )]
    ClusterName {
        /// The name, cut to 64 characters.
        found: String,
    },
    /// The files of a running peer were replaced by those of another.
    #[error(
        "the files in {dir} were replaced by the identity of {found}, but this peer runs as {expected}; it keeps the identity that it has"
    )]
    Replaced {
        /// The identity's folder.
        dir: PathBuf,
        /// The SPIFFE id in the new certificate.
        found: String,
        /// The SPIFFE id of this peer.
        expected: String,
    },
    /// A certificate was requested that would outlive the authority that issues it.
    #[error(
        "a certificate for {} would outlive its authority, which expires in {}: ask for fewer days, or make a new authority",
        days(*asked_days),
        days(*left_days)
    )]
    OutlivesAuthority {
        /// How long the certificate was to be valid, in days.
        asked_days: u64,
        /// How long the authority is valid, in days.
        left_days: u64,
    },
    /// A key or certificate could not be made: a fault of ours or of the machine's randomness.
    #[error("cannot make {what}: {source}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// The reason.
        #[source]
        source: BoxError,
    },
}

/// A span of time as people say it, in its largest unit.
fn span(seconds: u64) -> String {
    let (number, unit) = match seconds {
        86_400.. => return days(seconds / 86_400),
        3_600.. => (seconds / 3_600, "hour"),
        60.. => (seconds / 60, "minute"),
        _ => (seconds, "second"),
    };
    counted(number, unit)
}

/// A number of whole days.
fn days(number: u64) -> String {
    if number == 0 { "less than a day".into() } else { counted(number, "day") }
}

fn counted(number: u64, unit: &str) -> String {
    if number == 1 { format!("1 {unit}") } else { format!("{number} {unit}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_ago_a_certificate_expired_is_said_in_words() {
        let message = |ago_s| IdentityError::Expired { path: "cert.pem".into(), ago_s }.to_string();
        for (ago_s, words) in [
            (1, "expired 1 second ago"),
            (59, "expired 59 seconds ago"),
            (60, "expired 1 minute ago"),
            (7_300, "expired 2 hours ago"),
            (86_400, "expired 1 day ago"),
            (86_400 * 40 + 5, "expired 40 days ago"),
        ] {
            assert!(
                message(ago_s).starts_with(&format!("cert.pem {words} by ")),
                "{}",
                message(ago_s)
            );
        }
        let early = IdentityError::NotYetValid { path: "cert.pem".into(), in_s: 90_000 };
        assert!(early.to_string().contains("valid only in 1 day by"), "{early}");
        for (left_days, words) in [(0, "less than a day"), (1, "1 day"), (12, "12 days")] {
            let error = IdentityError::OutlivesAuthority { asked_days: 365, left_days };
            let expected =
                format!("for 365 days would outlive its authority, which expires in {words}:");
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }
}

//! Why an identity could not be made or used, and what to do about it.

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
    #[error(
        "cannot read {path}: {source}; make it with `warmhop cert peer NAME --ca DIR --out {dir}`"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The identity's folder.
        dir: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file of an authority is missing or unreadable.
    #[error("cannot read {path}: {source}; make an authority with `warmhop cert ca --out {dir}`")]
    ReadAuthority {
        /// The file.
        path: PathBuf,
        /// The authority's folder.
        dir: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file or its folder could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A private key is there already.
    #[error(
        "{path} exists already, and a private key is not overwritten: choose another folder, or give --force to replace it"
    )]
    Exists {
        /// The key's file.
        path: PathBuf,
    },
    /// The folder holds an identity of another authority.
    #[error(
        "{path} is the certificate of another authority than the one that issues: choose another folder, or give --force to replace the identity in it"
    )]
    OtherAuthority {
        /// The `ca.pem` that is there.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{path} {what}; issue it again")]
    Malformed {
        /// The file, or what stands for it where nothing was read from disk.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The cookie key is missing.
    #[error(
        "{path} has no {COOKIE_KEY_LABEL} block and there is no {dir}/{COOKIE_KEY_NAME}, so affinity cookies could not be authenticated; issue the identity again with `warmhop cert peer NAME --ca DIR --out {dir} --force`, or, where another tool issues it, give every peer the same file {COOKIE_KEY_NAME}, made once with `openssl rand -base64 32`"
    )]
    NoCookieKey {
        /// The key's file.
        path: PathBuf,
        /// The identity's folder.
        dir: String,
    },
    /// The file of the cookie key is missing, unreadable or out of form.
    #[error(
        "cannot take the cookie key from {path}: {what}; make it once with `openssl rand -base64 32` and give every peer of the cluster the same file"
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
        /// What verification said.
        #[source]
        source: BoxError,
    },
    /// The private key belongs to another certificate.
    #[error(
        "{path} is not the private key of the cert.pem beside it; issue the identity again with `warmhop cert peer`"
    )]
    KeyMismatch {
        /// The key's file.
        path: PathBuf,
    },
    /// The certificate is past its date.
    #[error(
        "{path} expired {ago_s} seconds ago by this machine's clock; issue it again with `warmhop cert peer … --force`, or set the clock if it is wrong"
    )]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// How long ago, in seconds.
        ago_s: u64,
    },
    /// The certificate is not valid yet.
    #[error(
        "{path} becomes valid only in {in_s} seconds by this machine's clock; the clock is probably wrong: set it, then start again"
    )]
    NotYetValid {
        /// The certificate's file.
        path: PathBuf,
        /// In how many seconds it becomes valid.
        in_s: u64,
    },
    /// A cluster's name is out of form.
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
    /// A certificate is to outlive the authority that issues it.
    #[error(
        "a certificate for {asked_days} days would outlive its authority, which expires in {left_days}: ask for fewer days, or make a new authority"
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

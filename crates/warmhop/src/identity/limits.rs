//! What files of identities and their parts are called, and how large they may be.

pub(super) const COOKIE_KEY_LABEL: &str = "WARMHOP COOKIE KEY";

/// The file of the cookie key beside the others.
pub(super) const COOKIE_KEY_NAME: &str = "cookie.key";

pub(super) const COOKIE_KEY_BYTES: usize = 32;

pub(super) const CLUSTER_LEN_MAX: usize = 64;

/// A larger file is not read as part of an identity.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

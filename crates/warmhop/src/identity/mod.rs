//! Who a peer is: certificates of a cluster authority, and how they are made, loaded and rotated.
//! The only room that names rcgen and rustls.
//!
//! A cluster has one authority: a self-signed certificate whose URI name is
//! `spiffe://CLUSTER`, a private key, and a *cookie key* of 32 random bytes that all peers of
//! the cluster share. A peer's certificate has two names: `TLS_NAME`, the same for every peer,
//! so that standard verification has a DNS name to check; and `spiffe://CLUSTER/peer/NAME`,
//! which says who it is. On disk an identity is the three files `ca.pem`, `cert.pem` and
//! `key.pem`; the last one holds the cookie key as a second PEM block. Identities may also come
//! from tools that know nothing of cookie keys: the cookie key is then in a separate file,
//! `cookie.key` beside the others or the one given to [`Identity::from_dir_and_cookie_key`], which
//! is the same for every peer.
//!
//! Credentials are checked as soon as they are loaded: that the chain leads to the authority, that
//! the key belongs to the certificate, that this machine's clock lies within the certificate's
//! dates. So a mistake is reported at the start with its remedy, and not by handshakes that fail
//! later.

mod authority;
mod cookies;
mod credentials;
pub(crate) mod expiry;
mod files;
pub(crate) mod front_tls;
pub(crate) mod handshake;
mod holder;
mod inspect;
mod limits;
mod loaded;
mod names;
mod problem;
pub(crate) mod refused;
pub(crate) mod tls;

pub use self::authority::{Authority, PEER_VALID};
pub use self::credentials::Identity;
pub use self::front_tls::FrontDoorTls;
pub use self::holder::{CertificateInfo, Holder};
pub use self::inspect::{Inspection, inspect};
pub(crate) use self::loaded::{CookieAuthenticator, InUse};
pub use self::problem::IdentityError;
pub use self::refused::{Fingerprint, RefusedPeers};
#[cfg(test)]
pub(crate) use self::tls::certificate_of;
pub(crate) use self::tls::{Proven, TLS_NAME, proven_identity};

#[cfg(test)]
mod tests;

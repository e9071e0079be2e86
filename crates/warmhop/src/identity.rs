//! Who a peer is: certificates of a cluster authority, their making, loading and rotation.
//! The only file that names rcgen and rustls.

use std::path::{Path, PathBuf};

/// A peer's certificate chain, private key, authority and cookie key.
#[derive(Clone)]
pub struct Identity {}

/// Why an identity could not be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file is missing or unreadable.
    #[error("cannot read {path}: {source}; make it with `warmhop cert peer NAME --ca DIR --out {dir}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The identity's folder.
        dir: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Identity {
    /// Reads `ca.pem`, `cert.pem` and `key.pem` from `dir` and checks that they belong
    /// together; [`Identity::reload`] reads them again.
    ///
    /// # Errors
    /// [`IdentityError`] names the file and the remedy.
    pub fn from_dir(_dir: impl AsRef<Path>) -> Result<Self, IdentityError> {
        todo!()
    }
}

/// A cluster's authority: issues the identities of its peers.
pub struct Authority {}

impl Authority {
    /// Makes a new authority for `cluster`.
    ///
    /// # Errors
    /// [`IdentityError`] if the cluster's name is out of form.
    pub fn generate(_cluster: &str) -> Result<Self, IdentityError> {
        todo!()
    }

    /// Reads an authority written by [`Authority::write`].
    ///
    /// # Errors
    /// [`IdentityError`] names the file and the remedy.
    pub fn from_dir(_dir: impl AsRef<Path>) -> Result<Self, IdentityError> {
        todo!()
    }

    /// The cluster whose authority this is.
    #[must_use]
    pub fn cluster(&self) -> &str {
        todo!()
    }

    /// Writes `ca.pem` and `ca-key.pem` (mode 0600) into `dir`, making it if need be.
    ///
    /// # Errors
    /// [`IdentityError`] if a key is there already and `force` is not set.
    pub fn write(&self, _dir: impl AsRef<Path>, _force: bool) -> Result<(), IdentityError> {
        todo!()
    }

    /// Issues an identity in memory.
    ///
    /// # Errors
    /// [`IdentityError`] if making it failed.
    pub fn issue(&self, _peer: &warmhop_core::ids::PeerId) -> Result<Identity, IdentityError> {
        todo!()
    }

    /// Issues an identity and writes `ca.pem`, `cert.pem` and `key.pem` (mode 0600) into `dir`.
    ///
    /// # Errors
    /// [`IdentityError`] if a key is there already and `force` is not set.
    pub fn issue_into(
        &self,
        _peer: &warmhop_core::ids::PeerId,
        _dir: impl AsRef<Path>,
        _force: bool,
    ) -> Result<(), IdentityError> {
        todo!()
    }
}

//! Who a certificate on disk is for, and until when.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use warmhop_core::ids::PeerId;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::files::{certificates, read_bounded};
use crate::identity::names::{cluster_checked, peer_name, unix_time, uri_names};
use crate::identity::problem::IdentityError;
use crate::identity::refused::Fingerprint;

/// Who a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holder {
    /// A cluster's authority.
    Authority {
        /// The cluster.
        cluster: String,
    },
    /// A peer.
    Peer {
        /// Its cluster.
        cluster: String,
        /// Its name.
        name: PeerId,
    },
}

/// A certificate as it is written on disk.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CertificateInfo {
    /// The file.
    pub path: PathBuf,
    /// Who it is for.
    pub holder: Holder,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// What names it among [`RefusedPeers`](crate::identity::RefusedPeers).
    pub fingerprint: Fingerprint,
}

impl CertificateInfo {
    /// How much longer it is valid at `now`; `None` once it has expired.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Option<Duration> {
        self.not_after.duration_since(now).ok()
    }
}

/// The first certificate of the file `path` in `dir`.
pub(super) fn certificate_in(dir: &Path, path: &Path) -> Result<CertificateInfo, IdentityError> {
    let file = read_bounded(path).map_err(|source| IdentityError::Read {
        path: path.to_owned(),
        dir: dir.display().to_string(),
        source,
    })?;
    let malformed =
        |what: &str| IdentityError::Malformed { path: path.to_owned(), what: what.into() };
    let der = certificates(&file).into_iter().next();
    let der = der.ok_or_else(|| malformed("holds no certificate"))?;
    let (_, parsed) = X509Certificate::from_der(&der)
        .map_err(|_| malformed("holds a certificate that cannot be read"))?;
    let holder = match peer_name(&parsed) {
        Some((cluster, name)) => Holder::Peer { cluster, name },
        None => {
            let names = uri_names(&parsed);
            let cluster = names.iter().find_map(|uri| uri.strip_prefix("spiffe://"));
            let cluster = cluster.and_then(|name| cluster_checked(name).ok());
            let cluster =
                cluster.ok_or_else(|| malformed("has no name of the form spiffe://CLUSTER"))?;
            Holder::Authority { cluster }
        }
    };
    let validity = parsed.validity();
    Ok(CertificateInfo {
        path: path.to_owned(),
        holder,
        not_before: unix_time(validity.not_before.timestamp()),
        not_after: unix_time(validity.not_after.timestamp()),
        serial: parsed.raw_serial_as_string(),
        fingerprint: Fingerprint::of(&der),
    })
}

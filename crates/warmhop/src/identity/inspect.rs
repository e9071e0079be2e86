//! What a certificate on disk says, whether or not it can be used: `warmhop cert show` reads an
//! expired identity as well as a valid one.

use std::path::Path;

use crate::identity::authority::Authority;
use crate::identity::credentials::Identity;
use crate::identity::holder::{CertificateInfo, certificate_in};
use crate::identity::problem::IdentityError;

/// An identity's folder, or an authority's, as it is on disk.
#[derive(Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// The certificates that were read: the holder's own first, then the authority's.
    pub certificates: Vec<CertificateInfo>,
    /// Why a peer could not run with it; `None` if it could.
    pub problem: Option<IdentityError>,
}

/// Reads the certificates in `dir`, which holds a peer's identity or an authority.
///
/// # Errors
/// [`IdentityError`] if there is no certificate that can be read.
pub fn inspect(dir: impl AsRef<Path>) -> Result<Inspection, IdentityError> {
    let dir = dir.as_ref();
    let (own, authority) = (dir.join("cert.pem"), dir.join("ca.pem"));
    if own.exists() {
        let certificates = vec![certificate_in(dir, &own)?, certificate_in(dir, &authority)?];
        return Ok(Inspection { certificates, problem: Identity::from_dir(dir).err() });
    }
    let certificates = vec![certificate_in(dir, &authority)?];
    Ok(Inspection { certificates, problem: Authority::from_dir(dir).err() })
}

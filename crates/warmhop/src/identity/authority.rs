//! A cluster's authority, which issues the identities of its peers.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use warmhop_core::ids::PeerId;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::credentials::Identity;
use crate::identity::files::{
    certificates, cookie_key, make_dir, pem_block, read_bounded, replace, to_pem, write_secret,
};
use crate::identity::holder::{self, Holder};
use crate::identity::limits::{COOKIE_KEY_BYTES, COOKIE_KEY_LABEL};
use crate::identity::loaded::{Loaded, check_dates};
use crate::identity::names::{cluster_checked, spiffe_id, unix_time, uri_names};
use crate::identity::problem::IdentityError;
use crate::identity::tls::TLS_NAME;

pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) const AUTHORITY_VALID: Duration = Duration::from_secs(3652 * 24 * 60 * 60);

/// How long a peer's certificate is valid by default.
pub const PEER_VALID: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A cluster's authority: issues the identities of its peers.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use warmhop::identity::Authority;
/// use warmhop::ids::PeerId;
///
/// let authority = Authority::generate("demo")?;
/// let identity = authority.issue(&PeerId::new("peer-1")?)?;
/// # Ok(())
/// # }
/// ```
pub struct Authority {
    pub(super) cluster: String,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key_der: Vec<u8>,
    pub(super) cookie_key: [u8; COOKIE_KEY_BYTES],
}

impl Authority {
    /// Makes a new authority for `cluster`.
    ///
    /// # Errors
    /// [`IdentityError`] if the cluster's name is malformed.
    pub fn generate(cluster: &str) -> Result<Self, IdentityError> {
        let cluster = cluster_checked(cluster)?;
        let key = new_key()?;
        let mut params =
            params(&format!("warmhop authority of {cluster}"), SystemTime::now() + AUTHORITY_VALID);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(ia5(&format!("spiffe://{cluster}"))?)];
        let certificate =
            params.self_signed(&key).map_err(making("the authority's certificate"))?;
        let cookie_key = rand::random();
        let certificate = certificate.der().clone();
        Ok(Self { cluster, certificate, key_der: key.serialize_der(), cookie_key })
    }

    /// Reads an authority written by [`Authority::write`].
    ///
    /// # Errors
    /// [`IdentityError`] names the file and what is wrong with it.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, IdentityError> {
        let dir = dir.as_ref();
        let [ca_path, key_path] = ["ca.pem", "ca-key.pem"].map(|name| dir.join(name));
        let read = |path: &Path| {
            read_bounded(path).map_err(|source| IdentityError::ReadAuthority {
                path: path.to_owned(),
                dir: dir.display().to_string(),
                source,
            })
        };
        let (ca, key_file) = (read(&ca_path)?, read(&key_path)?);
        let malformed = |path: &Path, what: &str| IdentityError::Malformed {
            path: path.to_owned(),
            what: what.into(),
        };

        let certificate = certificates(&ca)
            .into_iter()
            .next()
            .ok_or_else(|| malformed(&ca_path, "holds no certificate"))?;
        let (_, parsed) = X509Certificate::from_der(&certificate)
            .map_err(|_| malformed(&ca_path, "holds a malformed certificate"))?;
        let cluster = uri_names(&parsed)
            .iter()
            .find_map(|uri| cluster_checked(uri.strip_prefix("spiffe://")?).ok())
            .ok_or_else(|| malformed(&ca_path, "has no name of the form spiffe://CLUSTER"))?;
        let validity = parsed.validity();
        check_dates(
            &ca_path,
            unix_time(validity.not_before.timestamp()),
            unix_time(validity.not_after.timestamp()),
        )?;

        let key_der = pem_block(&key_file, "PRIVATE KEY")
            .ok_or_else(|| malformed(&key_path, "holds no PRIVATE KEY block (PKCS #8)"))?;
        let key = KeyPair::try_from(key_der.as_slice()).map_err(|_| {
            malformed(&key_path, "holds a private key of a kind that is not used here")
        })?;
        if key.public_key_raw() != parsed.public_key().subject_public_key.data.as_ref() {
            return Err(malformed(&key_path, "is not the private key of the ca.pem beside it"));
        }
        let cookie_key = cookie_key(&key_file)
            .ok_or_else(|| malformed(&key_path, "has no WARMHOP COOKIE KEY block"))?;
        Ok(Self { cluster, certificate, key_der, cookie_key })
    }

    /// The cluster whose authority this is.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Writes `ca.pem` and `ca-key.pem` (mode 0600) into `dir`, making it if need be.
    ///
    /// # Errors
    /// [`IdentityError`] if a key is there already and `force` is not set.
    pub fn write(&self, dir: impl AsRef<Path>, force: bool) -> Result<(), IdentityError> {
        let dir = dir.as_ref();
        make_dir(dir)?;
        write_secret(&dir.join("ca-key.pem"), &self.secret(&self.key_der), force)?;
        replace(&dir.join("ca.pem"), &self.ca_pem(), 0o644)
    }

    /// Issues an identity in memory.
    ///
    /// # Errors
    /// [`IdentityError`] if making it failed.
    pub fn issue(&self, peer: &PeerId) -> Result<Identity, IdentityError> {
        self.issue_until(peer, SystemTime::now() + PEER_VALID)
    }

    /// Issues an identity and writes `ca.pem`, `cert.pem` and `key.pem` (mode 0600) into `dir`;
    /// it is valid for [`PEER_VALID`].
    ///
    /// # Errors
    /// [`IdentityError`] if a key is there already and `force` is not set.
    pub fn issue_into(
        &self,
        peer: &PeerId,
        dir: impl AsRef<Path>,
        force: bool,
    ) -> Result<(), IdentityError> {
        self.issue_into_for(peer, dir, force, PEER_VALID)
    }

    /// As [`Authority::issue_into`], valid for `valid`.
    ///
    /// # Errors
    /// As there, and [`IdentityError::OutlivesAuthority`].
    pub fn issue_into_for(
        &self,
        peer: &PeerId,
        dir: impl AsRef<Path>,
        force: bool,
        valid: Duration,
    ) -> Result<(), IdentityError> {
        let until = self.until(valid)?;
        let dir = dir.as_ref();
        make_dir(dir)?;
        let ca_path = dir.join("ca.pem");
        let same = |present: &[u8]| certificates(present).contains(&self.certificate);
        if !force && read_bounded(&ca_path).is_ok_and(|present| !same(&present)) {
            return Err(IdentityError::OtherAuthority { path: ca_path });
        }
        let (cert, key) = self.certify(peer, until)?;
        write_secret(&dir.join("key.pem"), &key, force)?;
        replace(&dir.join("cert.pem"), &cert, 0o644)?;
        replace(&ca_path, &self.ca_pem(), 0o644)
    }

    /// Issues the identity in `dir` again, with a new key, for the peer that it names; it may have
    /// expired. Returns that peer. A peer that runs with it takes the new one without a restart.
    ///
    /// # Errors
    /// [`IdentityError`] if `dir` holds no identity of this authority, and as
    /// [`Authority::issue_into_for`].
    pub fn renew_in(
        &self,
        dir: impl AsRef<Path>,
        valid: Duration,
    ) -> Result<PeerId, IdentityError> {
        let dir = dir.as_ref();
        let path = dir.join("cert.pem");
        let Holder::Peer { name, .. } = holder::certificate_in(dir, &path)?.holder else {
            let what = "has no name of the form spiffe://CLUSTER/peer/NAME".into();
            return Err(IdentityError::Malformed { path, what });
        };
        let ca_path = dir.join("ca.pem");
        let issued_here = read_bounded(&ca_path)
            .is_ok_and(|present| certificates(&present).contains(&self.certificate));
        if !issued_here {
            return Err(IdentityError::OtherAuthority { path: ca_path });
        }
        self.issue_into_for(&name, dir, true, valid)?;
        Ok(name)
    }

    /// When a certificate that is issued now for `valid` ends.
    pub(super) fn until(&self, valid: Duration) -> Result<SystemTime, IdentityError> {
        let days = |span: Duration| span.as_secs() / DAY.as_secs();
        let now = SystemTime::now();
        let (_, parsed) = X509Certificate::from_der(&self.certificate).map_err(|error| {
            let source = error.to_string().into();
            IdentityError::Make { what: "use of the authority's certificate", source }
        })?;
        let ends = unix_time(parsed.validity().not_after.timestamp());
        match now.checked_add(valid) {
            Some(until) if until <= ends => Ok(until),
            _ => Err(IdentityError::OutlivesAuthority {
                asked_days: days(valid),
                left_days: days(ends.duration_since(now).unwrap_or_default()),
            }),
        }
    }

    /// As [`Authority::issue`], valid until then.
    pub(crate) fn issue_until(
        &self,
        peer: &PeerId,
        until: SystemTime,
    ) -> Result<Identity, IdentityError> {
        let (cert, key) = self.certify(peer, until)?;
        let loaded =
            Loaded::check(Path::new("(in memory)"), [self.ca_pem(), cert, key], Vec::new())?;
        Ok(Identity::new(None, loaded))
    }

    /// The same authority, but issuing for another cluster, as the holder of its key could do.
    #[cfg(test)]
    pub(crate) fn in_cluster(&self, cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            certificate: self.certificate.clone(),
            key_der: self.key_der.clone(),
            cookie_key: self.cookie_key,
        }
    }

    /// The texts of `cert.pem` and `key.pem` for `peer`.
    pub(super) fn certify(
        &self,
        peer: &PeerId,
        until: SystemTime,
    ) -> Result<(Vec<u8>, Vec<u8>), IdentityError> {
        let issuer_key = KeyPair::try_from(self.key_der.as_slice())
            .map_err(making("use of the authority's key"))?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, issuer_key)
            .map_err(making("use of the authority's certificate"))?;
        let key = new_key()?;
        let mut params = params(peer.as_str(), until);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![
            SanType::DnsName(ia5(TLS_NAME)?),
            SanType::URI(ia5(&spiffe_id(&self.cluster, peer))?),
        ];
        let certificate =
            params.signed_by(&key, &issuer).map_err(making("the peer's certificate"))?;
        Ok((to_pem("CERTIFICATE", certificate.der()).into(), self.secret(&key.serialize_der())))
    }

    /// A private key's file: the key and the cluster's cookie key.
    pub(super) fn secret(&self, key_der: &[u8]) -> Vec<u8> {
        (to_pem("PRIVATE KEY", key_der) + &to_pem(COOKIE_KEY_LABEL, &self.cookie_key)).into()
    }

    pub(super) fn ca_pem(&self) -> Vec<u8> {
        to_pem("CERTIFICATE", &self.certificate).into()
    }
}

impl fmt::Debug for Authority {
    /// Names the cluster; never shows a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authority").field(&self.cluster).finish()
    }
}

pub(super) fn new_key() -> Result<KeyPair, IdentityError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(making("a private key"))
}

/// Parameters that all certificates share: a name for people, and dates that tolerate a peer whose
/// clock is up to a day behind.
pub(super) fn params(name: &str, until: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = until.into();
    params
}

pub(super) fn ia5(text: &str) -> Result<Ia5String, IdentityError> {
    Ia5String::try_from(text).map_err(making("a certificate's name"))
}

pub(super) fn making(what: &'static str) -> impl Fn(rcgen::Error) -> IdentityError {
    move |error| IdentityError::Make { what, source: error.into() }
}

//! The certificate that a front door shows to TLS clients. This file owns the certificate in use
//! and replaces it when its files change; it has nothing to do with the cluster's own certificates.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::{info, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::http::body::BoxError;
use crate::identity::expiry::Expiry;
use crate::identity::files::read_bounded;
use crate::identity::names::unix_time;
use crate::identity::problem::IdentityError;
use crate::identity::tls::provider;

/// How often the files are checked for changes.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How errors name a certificate and a key that came from memory.
const IN_MEMORY: [&str; 2] = ["the certificate", "the private key"];
/// What to do about a certificate that is about to end.
const RENEW: [&str; 2] = [
    "clients refuse it",
    "renew it where it was issued: a running peer loads the new files by itself",
];

/// What a front door shows to clients over TLS: a certificate chain and its key, from any authority
/// that the clients trust. Clones share one state: they change together.
///
/// Clients may speak TLS 1.3 or 1.2: some balancers speak nothing newer to servers unless they are
/// configured to. HTTP/2 and HTTP/1.1 are offered by ALPN (RFC 7301), in this order; a client that
/// names neither gets HTTP/1.1.
#[derive(Clone)]
pub struct FrontDoorTls {
    config: Arc<ServerConfig>,
    files: Option<Arc<Files>>,
    /// When a certificate that came from memory ends.
    ends: Option<SystemTime>,
}

impl FrontDoorTls {
    /// Reads the certificate chain, the server's own first, and its private key from PEM files.
    /// While the peer runs they are read again when they change, so that a certificate is renewed
    /// without a restart; files that cannot be used are logged, and the certificate in use stays.
    ///
    /// # Errors
    /// [`IdentityError`] names the file and what is wrong with it.
    pub fn from_files(
        cert: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, IdentityError> {
        let (cert, key) = (cert.as_ref().to_owned(), key.as_ref().to_owned());
        let modified = modified(&cert, &key);
        let current = ArcSwap::from_pointee(read_files(&cert, &key)?);
        let files = Arc::new(Files { cert, key, current, seen: ArcSwap::from_pointee(modified) });
        let config = base(Path::new(IN_MEMORY[0]))?.with_cert_resolver(Arc::clone(&files) as _);
        Ok(Self { config: offering_both(config), files: Some(files), ends: None })
    }

    /// Takes the certificate chain, the server's own first, and its private key as PEM texts.
    ///
    /// # Errors
    /// [`IdentityError::FrontDoor`] says what is wrong with which.
    pub fn from_pem(cert: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let [cert_name, key_name] = IN_MEMORY.map(Path::new);
        let certified = certified(cert_name, cert, key_name, key)?;
        let ends = ends(&certified);
        let resolver = rustls::sign::SingleCertAndKey::from(certified);
        let config = base(cert_name)?.with_cert_resolver(Arc::new(resolver));
        Ok(Self { config: offering_both(config), files: None, ends })
    }

    /// Reads the files again at once and returns whether they changed. A certificate that does not
    /// come from files never changes.
    ///
    /// # Errors
    /// As [`FrontDoorTls::from_files`]; the certificate in use stays.
    pub fn reload(&self) -> Result<bool, IdentityError> {
        let Some(files) = &self.files else { return Ok(false) };
        let read = read_files(&files.cert, &files.key)?;
        if read.cert == files.current.load().cert {
            return Ok(false);
        }
        files.current.store(Arc::new(read));
        Ok(true)
    }

    /// When the certificate in use ends; `None` where it is not known, as with a configuration of
    /// your own.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        self.files.as_ref().map_or(self.ends, |files| ends(&files.current.load()))
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Warns before the certificate ends, and reads the files again whenever they change, until
    /// dropped.
    pub(crate) async fn follow(self) {
        let mut expiry = Expiry::default();
        loop {
            if let Some(ends) = self.expires() {
                expiry.look("the front door's certificate", RENEW, ends, SystemTime::now());
            }
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(files) = &self.files else { continue };
            let modified = modified(&files.cert, &files.key);
            if modified == **files.seen.load() {
                continue;
            }
            match self.reload() {
                Ok(changed) => {
                    files.seen.store(Arc::new(modified));
                    if changed {
                        info!(cert = %files.cert.display(), "the front door's certificate was reloaded");
                    }
                }
                // Perhaps only one of the two files has been replaced yet: try again.
                Err(error) => {
                    warn!(%error, "the front door's new certificate cannot be used; the former one stays")
                }
            }
        }
    }
}

impl From<ServerConfig> for FrontDoorTls {
    /// A configuration of your own: a resolver by server name, certificates of clients, an ACME
    /// client's. HTTP/2 and HTTP/1.1 are offered where it names no protocol.
    fn from(config: ServerConfig) -> Self {
        let config =
            if config.alpn_protocols.is_empty() { offering_both(config) } else { Arc::new(config) };
        Self { config, files: None, ends: None }
    }
}

impl fmt::Debug for FrontDoorTls {
    /// Never shows a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cert = self.files.as_ref().map(|files| &files.cert);
        f.debug_tuple("FrontDoorTls").field(&cert).finish()
    }
}

/// A certificate and its key on disk, and what was read of them last.
struct Files {
    cert: PathBuf,
    key: PathBuf,
    current: ArcSwap<CertifiedKey>,
    /// When the two files were last written, as of their last successful load.
    seen: ArcSwap<Option<[SystemTime; 2]>>,
}

impl ResolvesServerCert for Files {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Files({})", self.cert.display())
    }
}

/// When the server's own certificate of the chain ends.
fn ends(certified: &CertifiedKey) -> Option<SystemTime> {
    let (_, own) = X509Certificate::from_der(certified.cert.first()?).ok()?;
    Some(unix_time(own.validity().not_after.timestamp()))
}

fn modified(cert: &Path, key: &Path) -> Option<[SystemTime; 2]> {
    let at = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    Some([at(cert)?, at(key)?])
}

fn read_files(cert: &Path, key: &Path) -> Result<CertifiedKey, IdentityError> {
    let read = |path: &Path| read_bounded(path).map_err(|error| refused(path, error));
    certified(cert, &read(cert)?, key, &read(key)?)
}

/// Checks that the two are well-formed and belong together; the paths are for the messages.
fn certified(
    cert_path: &Path,
    cert: &[u8],
    key_path: &Path,
    key: &[u8],
) -> Result<CertifiedKey, IdentityError> {
    let chain = CertificateDer::pem_slice_iter(cert)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| refused(cert_path, error))?;
    if chain.is_empty() {
        return Err(refused(cert_path, "it holds no certificate in PEM"));
    }
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| refused(key_path, format!("it holds no private key in PEM: {error}")))?;
    CertifiedKey::from_der(chain, key, &provider())
        .map_err(|error| refused(cert_path, format!("it does not go with its key: {error}")))
}

fn base(
    path: &Path,
) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>, IdentityError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| refused(path, error))?;
    Ok(builder.with_no_client_auth())
}

fn offering_both(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

fn refused(path: &Path, why: impl Into<BoxError>) -> IdentityError {
    IdentityError::FrontDoor { path: path.to_owned(), source: why.into() }
}

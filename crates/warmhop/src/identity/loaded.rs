//! The contents of an identity's files, checked: that the chain leads to the authority, that the
//! key belongs to the certificate, that the dates fit this machine's clock.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use tokio::sync::watch;
use warmhop_core::ids::PeerId;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::cookies::{CookieKey, CookieKeys};
use crate::identity::files::{certificates, cookie_key, private_key, read_bounded};
use crate::identity::limits::{COOKIE_KEY_BYTES, COOKIE_KEY_NAME};
use crate::identity::names::{peer_name, unix_time};
use crate::identity::problem::IdentityError;
use crate::identity::tls::{TLS_NAME, provider};

pub(super) struct Shared {
    /// Where it was read from; `None` for one issued in memory.
    pub(super) source: Option<Source>,
    pub(super) loaded: ArcSwap<Loaded>,
    /// Counts the reloads that loaded new credentials.
    pub(super) changes: watch::Sender<u64>,
}

/// Where an identity is on disk.
pub(super) struct Source {
    pub(super) dir: PathBuf,
    /// The files of the cookie keys, where any were named.
    pub(super) cookie_keys: Vec<PathBuf>,
}

/// A file that holds nothing but the cookie key.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct CookieKeyFile {
    pub(super) path: PathBuf,
    pub(super) contents: Vec<u8>,
}

/// One checked set of credentials.
pub(super) struct Loaded {
    pub(super) cluster: String,
    pub(super) peer: PeerId,
    pub(super) expires: SystemTime,
    /// The PEM texts as read, to tell whether anything changed.
    pub(super) files: [Vec<u8>; 3],
    pub(super) cookie_key_files: Vec<CookieKeyFile>,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    /// The first makes tags; those of all are accepted.
    pub(super) cookie_keys: CookieKeys,
}

impl Source {
    pub(super) fn cookie_key_paths(&self) -> Vec<PathBuf> {
        if self.cookie_keys.is_empty() {
            return vec![self.dir.join(COOKIE_KEY_NAME)];
        }
        self.cookie_keys.clone()
    }

    /// Reads the cookie keys' own files; they must exist only if the configuration named them.
    pub(super) fn cookie_key_files(&self) -> Result<Vec<CookieKeyFile>, IdentityError> {
        let mut files = Vec::new();
        for path in self.cookie_key_paths() {
            match read_bounded(&path) {
                Ok(contents) => files.push(CookieKeyFile { path, contents }),
                Err(error)
                    if self.cookie_keys.is_empty()
                        && error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(IdentityError::CookieKey { path, what: error.to_string() });
                }
            }
        }
        Ok(files)
    }
}

impl CookieKeyFile {
    /// The key: a PEM block, or a line of base64.
    pub(super) fn key(&self) -> Result<[u8; COOKIE_KEY_BYTES], IdentityError> {
        let failed = |what: &str| IdentityError::CookieKey {
            path: self.path.clone(),
            what: what.to_owned(),
        };
        if let Some(key) = cookie_key(&self.contents) {
            return Ok(key);
        }
        let bytes = STANDARD
            .decode(self.contents.trim_ascii())
            .map_err(|_| failed("it is neither one line of base64 nor a PEM block of that name"))?;
        let key = <[u8; COOKIE_KEY_BYTES]>::try_from(bytes)
            .map_err(|bytes| failed(&format!("it holds {} bytes, not 32", bytes.len())))?;
        if key.iter().all(|byte| *byte == key[0]) {
            return Err(failed("one byte repeated is not random"));
        }
        Ok(key)
    }
}

impl Loaded {
    pub(super) fn read(source: &Source) -> Result<Self, IdentityError> {
        let dir = &source.dir;
        let read = |name: &str| {
            let path = dir.join(name);
            read_bounded(&path).map_err(|source| IdentityError::Read {
                path,
                dir: dir.display().to_string(),
                source,
            })
        };
        let files = [read("ca.pem")?, read("cert.pem")?, read("key.pem")?];
        Self::check(dir, files, source.cookie_key_files()?)
    }

    /// Checks three PEM texts and the cookie keys' files, if they have any; `dir` is for the messages.
    pub(super) fn check(
        dir: &Path,
        files: [Vec<u8>; 3],
        cookie_key_files: Vec<CookieKeyFile>,
    ) -> Result<Self, IdentityError> {
        let [ca_path, cert_path, key_path] =
            ["ca.pem", "cert.pem", "key.pem"].map(|name| dir.join(name));
        let [ca, cert, key_file] = &files;
        let malformed = |path: &Path, what: &str| IdentityError::Malformed {
            path: path.to_owned(),
            what: what.into(),
        };

        let mut roots = RootCertStore::empty();
        for der in certificates(ca) {
            roots.add(der).map_err(|_| malformed(&ca_path, "holds a malformed certificate"))?;
        }
        if roots.is_empty() {
            return Err(malformed(&ca_path, "holds no certificate"));
        }
        let roots = Arc::new(roots);

        let chain = certificates(cert);
        let Some(own) = chain.first() else {
            return Err(malformed(&cert_path, "holds no certificate"));
        };
        let (_, parsed) = X509Certificate::from_der(own)
            .map_err(|_| malformed(&cert_path, "holds a malformed certificate"))?;
        let (cluster, peer) = peer_name(&parsed).ok_or_else(|| {
            malformed(&cert_path, "has no name of the form spiffe://CLUSTER/peer/NAME")
        })?;
        let validity = parsed.validity();
        let expires = unix_time(validity.not_after.timestamp());
        check_dates(&cert_path, unix_time(validity.not_before.timestamp()), expires)?;

        let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider())
            .build()
            .map_err(|error| {
                malformed(&ca_path, &format!("cannot be used as an authority: {error}"))
            })?;
        let name = ServerName::try_from(TLS_NAME).expect("the constant is a DNS name");
        if let Err(error) =
            verifier.verify_server_cert(own, &chain[1..], &name, &[], UnixTime::now())
        {
            return Err(match error {
                // The leaf's dates were checked above, so this is the authority's.
                rustls::Error::InvalidCertificate(
                    CertificateError::Expired | CertificateError::ExpiredContext { .. },
                ) => malformed(&ca_path, "expired: make a new authority"),
                error => IdentityError::NotOfAuthority { path: cert_path, source: error.into() },
            });
        }

        let key = private_key(key_file).ok_or_else(|| {
            malformed(&key_path, "holds no PRIVATE KEY, EC PRIVATE KEY or RSA PRIVATE KEY block")
        })?;
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider())
            .and_then(|pair| pair.keys_match())
            .map_err(|_| IdentityError::KeyMismatch { path: key_path.clone() })?;
        let mut keys = Vec::new();
        for file in &cookie_key_files {
            keys.push(file.key()?);
        }
        if keys.is_empty() {
            keys.push(cookie_key(key_file).ok_or_else(|| IdentityError::NoCookieKey {
                path: key_path,
                dir: dir.display().to_string(),
            })?);
        }
        let cookie_keys = keys.iter().map(|key| CookieKey::new(key, &cluster)).collect();
        let cookie_keys = CookieKeys::new(cookie_keys);
        Ok(Self { cluster, peer, expires, roots, chain, key, cookie_keys, files, cookie_key_files })
    }
}

pub(super) fn check_dates(
    path: &Path,
    not_before: SystemTime,
    not_after: SystemTime,
) -> Result<(), IdentityError> {
    let now = SystemTime::now();
    if let Ok(ahead) = not_before.duration_since(now)
        && !ahead.is_zero()
    {
        return Err(IdentityError::NotYetValid { path: path.into(), in_s: ahead.as_secs() + 1 });
    }
    match now.duration_since(not_after) {
        Ok(past) => Err(IdentityError::Expired { path: path.into(), ago_s: past.as_secs() }),
        Err(_) => Ok(()),
    }
}

/// Authenticates affinity cookies under the keys that an identity has at that moment.
#[derive(Clone)]
pub(crate) struct CookieAuthenticator(pub(super) Arc<Shared>);

/// A handle on the credentials that were in use, for comparison with the current ones; it keeps
/// none of them alive.
#[derive(Clone)]
pub(crate) struct InUse(Weak<Loaded>);

impl PartialEq for InUse {
    fn eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

impl CookieAuthenticator {
    /// Which credentials are in use: what was authenticated under others may no longer be
    /// authentic.
    pub(crate) fn in_use(&self) -> InUse {
        InUse(Arc::downgrade(&self.0.loaded.load()))
    }

    /// The tag of `message` under the first key.
    pub(crate) fn tag(&self, message: &[u8]) -> [u8; 16] {
        self.0.loaded.load().cookie_keys.tag(message)
    }

    /// Whether `tag` is the tag of `message` under any key.
    pub(crate) fn verify(&self, message: &[u8], tag: &[u8]) -> bool {
        self.0.loaded.load().cookie_keys.verify(message, tag)
    }
}

impl warmhop_core::affinity::Authenticator for CookieAuthenticator {
    fn tag(&self, bytes: &[u8]) -> [u8; 16] {
        Self::tag(self, bytes)
    }

    fn verify(&self, bytes: &[u8], tag: &[u8; 16]) -> bool {
        Self::verify(self, bytes, tag)
    }

    fn keys(&self) -> usize {
        self.0.loaded.load().cookie_keys.count()
    }

    fn tag_by(&self, key: usize, bytes: &[u8]) -> [u8; 16] {
        self.0.loaded.load().cookie_keys.tag_by(key, bytes)
    }
}

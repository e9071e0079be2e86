//! Who a peer is: certificates of a cluster authority, their making, loading and rotation.
//! The only file that names rcgen, and with `front_tls.rs` the only one that names rustls.
//!
//! A cluster has one authority: a self-signed certificate whose URI name is
//! `spiffe://CLUSTER`, a private key, and a *cookie key* of 32 random bytes that all peers of
//! the cluster share. A peer's certificate has two names: `TLS_NAME`, the same for every peer,
//! so that standard verification has a DNS name to check; and `spiffe://CLUSTER/peer/NAME`,
//! which says who it is. On disk an identity is the three files `ca.pem`, `cert.pem` and
//! `key.pem`; the last one holds the cookie key as a second PEM block. Tools that know nothing of
//! cookie keys issue identities as well: the cookie key is then in a file of its own, `cookie.key`
//! beside the others or wherever [`Identity::from_dir_and_cookie_key`] is told, and one such file
//! is the same for every peer.
//!
//! What is loaded is checked at once: that the chain leads to the authority, that the key
//! belongs to the certificate, that this machine's clock lies within the certificate's dates. So
//! a mistake is told at the start and with its remedy, not by handshakes that fail later.

pub(crate) mod expiry;
pub(crate) mod front_tls;

use std::any::Any;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use ring::hmac;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
    ServerName, UnixTime,
};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use warmhop_core::ids::PeerId;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use self::front_tls::FrontDoorTls;
pub use self::inspect::{CertificateInfo, Holder, Inspection, inspect};
pub use self::refused::{Fingerprint, RefusedPeers};

mod inspect;
pub(crate) mod refused;

/// The DNS name in every peer's certificate. It is never resolved.
pub(crate) const TLS_NAME: &str = "warmhop.internal";

/// The protocol that links speak, negotiated in the handshake.
const ALPN: &[u8] = b"warmhop/1";

const COOKIE_KEY_LABEL: &str = "WARMHOP COOKIE KEY";
/// The file of the cookie key beside the others.
const COOKIE_KEY_NAME: &str = "cookie.key";
const COOKIE_KEY_BYTES: usize = 32;
const CLUSTER_LEN_MAX: usize = 64;

/// An identity file larger than this is not one.
const FILE_BYTES_MAX: u64 = 1 << 20;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const AUTHORITY_VALID: Duration = Duration::from_secs(3652 * 24 * 60 * 60);
/// How long a peer's certificate is valid where nobody says otherwise.
pub const PEER_VALID: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A peer's certificate chain, private key, authority and cookie key. Clones share what
/// [`Identity::reload`] reads.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Shared>,
}

struct Shared {
    /// Where it was read from; `None` for one issued in memory.
    source: Option<Source>,
    loaded: ArcSwap<Loaded>,
    /// Counts the reloads that brought something new.
    changes: watch::Sender<u64>,
}

/// Where an identity is on disk.
struct Source {
    dir: PathBuf,
    /// The files of the cookie keys, where any were named.
    cookie_keys: Vec<PathBuf>,
}

/// A file that holds nothing but the cookie key.
#[derive(Clone, PartialEq, Eq)]
struct CookieKeyFile {
    path: PathBuf,
    contents: Vec<u8>,
}

/// One checked set of credentials.
struct Loaded {
    cluster: String,
    peer: PeerId,
    expires: SystemTime,
    /// The PEM texts as read, to tell whether anything changed.
    files: [Vec<u8>; 3],
    cookie_key_files: Vec<CookieKeyFile>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// The first makes tags; all are believed.
    cookie_keys: Vec<CookieKey>,
}

/// Why an identity could not be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A front door's certificate or key cannot be used.
    #[error("cannot use {path} for TLS at the front door: {reason}")]
    FrontDoor {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
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
        "{path} was not issued by the authority in ca.pem beside it ({why}); copy the ca.pem of the authority that issued it, or issue it again"
    )]
    NotOfAuthority {
        /// The certificate's file.
        path: PathBuf,
        /// What verification said.
        why: String,
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
    #[error("cannot make {what}: {reason}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// The reason.
        reason: String,
    },
}

impl Identity {
    /// Reads `ca.pem`, `cert.pem` and `key.pem` from `dir` and checks that they belong
    /// together; [`Identity::reload`] reads them again.
    ///
    /// The cookie key is taken from `cookie.key` in `dir` if there is such a file, else from the
    /// block that `warmhop cert peer` put into `key.pem`.
    ///
    /// # Errors
    /// [`IdentityError`] names the file and the remedy.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, IdentityError> {
        Self::from_source(Source { dir: dir.as_ref().to_owned(), cookie_keys: Vec::new() })
    }

    /// As [`Identity::from_dir`], with the cookie key from the file `cookie_key`: 32 random bytes,
    /// as one line of base64 or as a PEM block `WARMHOP COOKIE KEY`. Every peer of the cluster has
    /// to have the same; one with another key does not know the clients of the others.
    ///
    /// # Errors
    /// As [`Identity::from_dir`], and [`IdentityError::CookieKey`].
    pub fn from_dir_and_cookie_key(
        dir: impl AsRef<Path>,
        cookie_key: impl AsRef<Path>,
    ) -> Result<Self, IdentityError> {
        Self::from_dir_and_cookie_keys(dir, [cookie_key])
    }

    /// As [`Identity::from_dir_and_cookie_key`], with more than one key: cookies are made with the
    /// first, and those of any are believed. So a key is replaced without losing a client: first every
    /// peer believes the new one as well, then every peer makes cookies with it, and once the last
    /// cookie of the old one has ended, it goes. While the peer runs, the files are read again when they
    /// change.
    ///
    /// # Errors
    /// As there.
    pub fn from_dir_and_cookie_keys(
        dir: impl AsRef<Path>,
        cookie_keys: impl IntoIterator<Item = impl AsRef<Path>>,
    ) -> Result<Self, IdentityError> {
        let cookie_keys = cookie_keys.into_iter().map(|file| file.as_ref().to_owned()).collect();
        Self::from_source(Source { dir: dir.as_ref().to_owned(), cookie_keys })
    }

    fn from_source(source: Source) -> Result<Self, IdentityError> {
        let loaded = Loaded::read(&source)?;
        Ok(Self::new(Some(source), loaded))
    }

    fn new(source: Option<Source>, loaded: Loaded) -> Self {
        let loaded = ArcSwap::from_pointee(loaded);
        let changes = watch::Sender::new(0);
        Self { inner: Arc::new(Shared { source, loaded, changes }) }
    }

    /// Reads the files again; what is wrong or another peer's is refused, and the credentials
    /// in use stay. Says whether they changed. An identity issued in memory never changes.
    ///
    /// # Errors
    /// As [`Identity::from_dir`], and [`IdentityError::Replaced`].
    pub fn reload(&self) -> Result<bool, IdentityError> {
        let Some(source) = &self.inner.source else { return Ok(false) };
        let before = self.inner.loaded.load();
        let loaded = Loaded::read(source)?;
        if (&loaded.files, &loaded.cookie_key_files) == (&before.files, &before.cookie_key_files) {
            return Ok(false);
        }
        if (&loaded.cluster, &loaded.peer) != (&before.cluster, &before.peer) {
            return Err(IdentityError::Replaced {
                dir: source.dir.clone(),
                found: spiffe_id(&loaded.cluster, &loaded.peer),
                expected: spiffe_id(&before.cluster, &before.peer),
            });
        }
        self.inner.loaded.store(Arc::new(loaded));
        self.inner.changes.send_modify(|count| *count += 1);
        Ok(true)
    }

    /// The cluster that the certificate is of.
    #[must_use]
    pub fn cluster(&self) -> String {
        self.inner.loaded.load().cluster.clone()
    }

    /// The peer that the certificate names.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.inner.loaded.load().peer.clone()
    }

    /// The certificate's URI name: `spiffe://CLUSTER/peer/NAME`.
    #[must_use]
    pub fn spiffe_id(&self) -> String {
        let loaded = self.inner.loaded.load();
        spiffe_id(&loaded.cluster, &loaded.peer)
    }

    /// When the certificate ends.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.inner.loaded.load().expires
    }

    /// Authenticates affinity cookies among the peers of the cluster.
    #[must_use]
    pub(crate) fn cookie_authenticator(&self) -> CookieAuthenticator {
        CookieAuthenticator(Arc::clone(&self.inner))
    }

    /// Changes when [`Identity::reload`] brought something new.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// When the files were last written, where they can be asked: a change of any of them calls
    /// for a reload. The last are those of the cookie keys, which need not have any of their own.
    pub(crate) fn modified(&self) -> Option<([SystemTime; 3], Vec<Option<SystemTime>>)> {
        let source = self.inner.source.as_ref()?;
        let at = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        let beside = |name| at(&source.dir.join(name));
        let files = [beside("ca.pem")?, beside("cert.pem")?, beside("key.pem")?];
        Some((files, source.cookie_key_paths().iter().map(|path| at(path)).collect()))
    }

    /// QUIC configurations for dialing and for accepting with the credentials as they are.
    /// Both ends verify each other. Sessions are never resumed, since resumption skips the
    /// verification of the client's chain, and 0-RTT is off, since it can be replayed.
    pub(crate) fn quic(&self) -> Result<(QuicClientConfig, QuicServerConfig), IdentityError> {
        let loaded = self.inner.loaded.load();
        let failed = |reason: String| IdentityError::Make { what: "the TLS configuration", reason };
        let tls = |error: rustls::Error| failed(error.to_string());
        let provider = provider();
        let versions = &[&rustls::version::TLS13];

        let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(tls)?
            .with_root_certificates(loaded.roots.clone())
            .with_client_auth_cert(loaded.chain.clone(), loaded.key.clone_key())
            .map_err(tls)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = rustls::client::Resumption::disabled();
        client.enable_early_data = false;

        let verifier =
            WebPkiClientVerifier::builder_with_provider(loaded.roots.clone(), provider.clone())
                // Naming the authority to whoever knocks would tell a stranger the cluster's name.
                .clear_root_hint_subjects()
                .build()
                .map_err(|error| failed(error.to_string()))?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(loaded.chain.clone(), loaded.key.clone_key())
            .map_err(tls)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;

        let suite = |error: quinn::crypto::rustls::NoInitialCipherSuite| failed(error.to_string());
        Ok((client.try_into().map_err(suite)?, server.try_into().map_err(suite)?))
    }
}

impl fmt::Debug for Identity {
    /// Names the peer; never shows a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.spiffe_id()).finish()
    }
}

/// The certificate that the other end of a link proved to have.
#[cfg(test)]
pub(crate) fn certificate_of(conn: &quinn::Connection) -> Option<Vec<u8>> {
    let chain = conn.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Some(chain.first()?.to_vec())
}

/// What the other end of a link proved to be.
pub(crate) struct Proven {
    pub(crate) cluster: String,
    pub(crate) peer: PeerId,
    pub(crate) certificate: Fingerprint,
}

/// Who the other end of a link is, from what `quinn::Connection::peer_identity` returns.
pub(crate) fn proven_identity(identity: Option<Box<dyn Any>>) -> Option<Proven> {
    let chain = identity?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let der = chain.first()?;
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let (cluster, peer) = peer_name(&certificate)?;
    Some(Proven { cluster, peer, certificate: Fingerprint::of(der) })
}

impl Source {
    fn cookie_key_paths(&self) -> Vec<PathBuf> {
        if self.cookie_keys.is_empty() {
            return vec![self.dir.join(COOKIE_KEY_NAME)];
        }
        self.cookie_keys.clone()
    }

    /// The cookie keys' own files; there have to be any only where they were named.
    fn cookie_key_files(&self) -> Result<Vec<CookieKeyFile>, IdentityError> {
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
    fn key(&self) -> Result<[u8; COOKIE_KEY_BYTES], IdentityError> {
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
    fn read(source: &Source) -> Result<Self, IdentityError> {
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
    fn check(
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
            roots.add(der).map_err(|_| malformed(&ca_path, "holds a certificate out of form"))?;
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
            .map_err(|_| malformed(&cert_path, "holds a certificate out of form"))?;
        let (cluster, peer) = peer_name(&parsed).ok_or_else(|| {
            malformed(&cert_path, "has no name of the form spiffe://CLUSTER/peer/NAME")
        })?;
        let validity = parsed.validity();
        let expires = unix_time(validity.not_after.timestamp());
        check_dates(&cert_path, unix_time(validity.not_before.timestamp()), expires)?;

        let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider())
            .build()
            .map_err(|error| malformed(&ca_path, &format!("is of no use as authority: {error}")))?;
        let name = ServerName::try_from(TLS_NAME).expect("the constant is a DNS name");
        if let Err(error) =
            verifier.verify_server_cert(own, &chain[1..], &name, &[], UnixTime::now())
        {
            return Err(match error {
                // The leaf's dates were checked above, so this is the authority's.
                rustls::Error::InvalidCertificate(
                    CertificateError::Expired | CertificateError::ExpiredContext { .. },
                ) => malformed(&ca_path, "expired: make a new authority"),
                error => IdentityError::NotOfAuthority { path: cert_path, why: error.to_string() },
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
        Ok(Self { cluster, peer, expires, roots, chain, key, cookie_keys, files, cookie_key_files })
    }
}

fn check_dates(
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

/// A cluster's authority: issues the identities of its peers.
pub struct Authority {
    cluster: String,
    certificate: CertificateDer<'static>,
    key_der: Vec<u8>,
    cookie_key: [u8; COOKIE_KEY_BYTES],
}

impl Authority {
    /// Makes a new authority for `cluster`.
    ///
    /// # Errors
    /// [`IdentityError`] if the cluster's name is out of form.
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
    /// [`IdentityError`] names the file and the remedy.
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
            .map_err(|_| malformed(&ca_path, "holds a certificate out of form"))?;
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
        let cookie_key = cookie_key(&key_file).ok_or_else(|| {
            malformed(
                &key_path,
                "has no WARMHOP COOKIE KEY block: make the authority with `warmhop cert ca`",
            )
        })?;
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
        let (cert, key) = self.certify(peer, SystemTime::now() + PEER_VALID)?;
        let loaded =
            Loaded::check(Path::new("(in memory)"), [self.ca_pem(), cert, key], Vec::new())?;
        Ok(Identity::new(None, loaded))
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
        let Holder::Peer { name, .. } = inspect::certificate_in(dir, &path)?.holder else {
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
    fn until(&self, valid: Duration) -> Result<SystemTime, IdentityError> {
        let days = |span: Duration| span.as_secs() / DAY.as_secs();
        let now = SystemTime::now();
        let (_, parsed) = X509Certificate::from_der(&self.certificate).map_err(|error| {
            let reason = error.to_string();
            IdentityError::Make { what: "use of the authority's certificate", reason }
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

    /// The same authority, issuing for another cluster, which its owner could do.
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
    fn certify(
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
    fn secret(&self, key_der: &[u8]) -> Vec<u8> {
        (to_pem("PRIVATE KEY", key_der) + &to_pem(COOKIE_KEY_LABEL, &self.cookie_key)).into()
    }

    fn ca_pem(&self) -> Vec<u8> {
        to_pem("CERTIFICATE", &self.certificate).into()
    }
}

impl fmt::Debug for Authority {
    /// Names the cluster; never shows a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authority").field(&self.cluster).finish()
    }
}

/// Authenticates affinity cookies under the keys that an identity has at the time.
#[derive(Clone)]
pub(crate) struct CookieAuthenticator(Arc<Shared>);

impl CookieAuthenticator {
    /// The tag of `message` under the first key.
    pub(crate) fn tag(&self, message: &[u8]) -> [u8; 16] {
        self.0.loaded.load().cookie_keys[0].tag(message)
    }

    /// Whether `tag` is the tag of `message` under any key.
    pub(crate) fn verify(&self, message: &[u8], tag: &[u8]) -> bool {
        self.0.loaded.load().cookie_keys.iter().any(|key| key.verify(message, tag))
    }
}

/// One key for affinity cookies: HMAC-SHA256 cut to 16 bytes, under a key that only the peers of one
/// cluster have.
struct CookieKey(hmac::Key);

impl CookieKey {
    fn new(cookie_key: &[u8; COOKIE_KEY_BYTES], cluster: &str) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, cookie_key);
        let key = hmac::sign(&root, format!("warmhop cookie tag v1 {cluster}").as_bytes());
        Self(hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()))
    }

    fn tag(&self, message: &[u8]) -> [u8; 16] {
        let full = hmac::sign(&self.0, message);
        full.as_ref()[..16].try_into().expect("HMAC-SHA256 gives 32 bytes")
    }

    /// In time that does not depend on how far the two tags agree.
    fn verify(&self, message: &[u8], tag: &[u8]) -> bool {
        self.tag(message).ct_eq(tag).into()
    }
}

impl warmhop_core::affinity::Authenticator for CookieAuthenticator {
    fn tag(&self, bytes: &[u8]) -> [u8; 16] {
        Self::tag(self, bytes)
    }

    fn verify(&self, bytes: &[u8], tag: &[u8; 16]) -> bool {
        Self::verify(self, bytes, tag)
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn spiffe_id(cluster: &str, peer: &PeerId) -> String {
    format!("spiffe://{cluster}/peer/{peer}")
}

fn uri_names<'a>(certificate: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let uri =
        |name: &GeneralName<'a>| if let GeneralName::URI(uri) = name { Some(*uri) } else { None };
    names.value.general_names.iter().filter_map(uri).collect()
}

/// SPIFFE allows a certificate one URI name only; one with several is nobody's.
fn peer_name(certificate: &X509Certificate<'_>) -> Option<(String, PeerId)> {
    let [uri] = uri_names(certificate)[..] else { return None };
    let (cluster, name) = uri.strip_prefix("spiffe://")?.split_once("/peer/")?;
    Some((cluster_checked(cluster).ok()?, PeerId::new(name).ok()?))
}

fn cluster_checked(name: &str) -> Result<String, IdentityError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if (1..=CLUSTER_LEN_MAX).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(name.to_owned())
    } else {
        Err(IdentityError::ClusterName { found: name.chars().take(64).collect() })
    }
}

fn new_key() -> Result<KeyPair, IdentityError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(making("a private key"))
}

/// What all certificates share: a name for people, and dates that forgive a peer whose clock
/// is up to a day behind.
fn params(name: &str, until: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = until.into();
    params
}

fn ia5(text: &str) -> Result<Ia5String, IdentityError> {
    Ia5String::try_from(text).map_err(making("a certificate's name"))
}

fn making(what: &'static str) -> impl Fn(rcgen::Error) -> IdentityError {
    move |error| IdentityError::Make { what, reason: error.to_string() }
}

fn unix_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
}

fn to_pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem + &format!("-----END {label}-----\n")
}

fn pem_blocks(file: &[u8]) -> impl Iterator<Item = Pem> {
    Pem::iter_from_buffer(file).map_while(Result::ok)
}

fn pem_block(file: &[u8], label: &str) -> Option<Vec<u8>> {
    pem_blocks(file).find(|block| block.label == label).map(|block| block.contents)
}

fn certificates(file: &[u8]) -> Vec<CertificateDer<'static>> {
    let certificate =
        |block: Pem| (block.label == "CERTIFICATE").then(|| CertificateDer::from(block.contents));
    pem_blocks(file).filter_map(certificate).collect()
}

/// The first private key of a file, in any of the three forms that tools write.
fn private_key(file: &[u8]) -> Option<PrivateKeyDer<'static>> {
    pem_blocks(file).find_map(|block| match &*block.label {
        "PRIVATE KEY" => Some(PrivatePkcs8KeyDer::from(block.contents).into()),
        "EC PRIVATE KEY" => Some(PrivateSec1KeyDer::from(block.contents).into()),
        "RSA PRIVATE KEY" => Some(PrivatePkcs1KeyDer::from(block.contents).into()),
        _ => None,
    })
}

fn cookie_key(file: &[u8]) -> Option<[u8; COOKIE_KEY_BYTES]> {
    pem_block(file, COOKIE_KEY_LABEL)?.try_into().ok()
}

pub(crate) fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn make_dir(dir: &Path) -> Result<(), IdentityError> {
    std::fs::create_dir_all(dir)
        .map_err(|source| IdentityError::Write { path: dir.to_owned(), source })
}

/// Writes a private key that only its owner can read from the moment it exists. Without
/// `force` the file is created by this call or not at all, whoever else tries.
fn write_secret(path: &Path, contents: &[u8], force: bool) -> Result<(), IdentityError> {
    if force {
        return replace(path, contents, 0o600);
    }
    create(path, contents, 0o600).map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => IdentityError::Exists { path: path.to_owned() },
        _ => IdentityError::Write { path: path.to_owned(), source },
    })
}

/// Replaces a file in one step, so that a reader never sees half of it.
fn replace(path: &Path, contents: &[u8], mode: u32) -> Result<(), IdentityError> {
    let mut temporary = path.to_owned().into_os_string();
    temporary.push(format!(".{:016x}", rand::random::<u64>()));
    let temporary = PathBuf::from(temporary);
    create(&temporary, contents, mode).and_then(|()| std::fs::rename(&temporary, path)).map_err(
        |source| {
            // What could not be put in place is of no use to anyone.
            let _ = std::fs::remove_file(&temporary);
            IdentityError::Write { path: path.to_owned(), source }
        },
    )
}

#[cfg_attr(not(unix), expect(unused_variables, reason = "file modes are a matter of Unix"))]
fn create(path: &Path, contents: &[u8], mode: u32) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    let mut file = options.open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct TempDir(PathBuf);

    impl TempDir {
        fn new() -> Self {
            let name = format!("warmhop-identity-{:032x}", rand::random::<u128>());
            Self(std::env::temp_dir().join(name))
        }

        fn join(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn id(name: &str) -> PeerId {
        PeerId::new(name).unwrap()
    }

    #[test]
    fn an_identity_says_who_it_is_and_for_how_long() {
        let authority = Authority::generate("demo").unwrap();
        assert_eq!(authority.cluster(), "demo");
        let identity = authority.issue(&id("peer-1")).unwrap();
        assert_eq!(identity.cluster(), "demo");
        assert_eq!(identity.peer(), id("peer-1"));
        assert_eq!(identity.spiffe_id(), "spiffe://demo/peer/peer-1");
        let left = identity.expires().duration_since(SystemTime::now()).unwrap();
        assert!(left > PEER_VALID - DAY && left <= PEER_VALID);
        assert!(!identity.reload().unwrap(), "one in memory never changes");
        assert!(format!("{identity:?} {authority:?}").len() < 100, "no keys are shown");
    }

    #[test]
    fn names_of_clusters_that_could_break_a_uri_are_refused() {
        assert!(Authority::generate(&"x".repeat(64)).is_ok());
        for bad in ["", "a b", "a/b", "é", "a.b", &"x".repeat(65)] {
            let error = Authority::generate(bad).err().unwrap();
            assert!(matches!(error, IdentityError::ClusterName { .. }), "{bad:?}");
        }
    }

    #[test]
    fn what_is_written_reads_back_and_works_with_what_is_issued_in_memory() {
        let (ca, peer) = (TempDir::new(), TempDir::new());
        let made = Authority::generate("demo").unwrap();
        made.write(&ca.0, false).unwrap();
        let authority = Authority::from_dir(&ca.0).unwrap();
        assert_eq!(authority.cluster(), "demo");
        authority.issue_into(&id("a"), &peer.0, false).unwrap();
        let a = Identity::from_dir(&peer.0).unwrap();
        let b = made.issue(&id("b")).unwrap();
        let tag = a.cookie_authenticator().tag(b"cookie");
        assert!(b.cookie_authenticator().verify(b"cookie", &tag));
        a.quic().unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn private_keys_are_for_their_owner_alone_and_never_overwritten_unasked() {
        use std::os::unix::fs::PermissionsExt;
        let (ca, peer) = (TempDir::new(), TempDir::new());
        let authority = Authority::generate("demo").unwrap();
        authority.write(&ca.0, false).unwrap();
        authority.issue_into(&id("a"), &peer.0, false).unwrap();
        for key in [ca.join("ca-key.pem"), peer.join("key.pem")] {
            let mode = std::fs::metadata(&key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", key.display());
        }
        let read = |path: PathBuf| std::fs::read(path).unwrap();
        let before =
            (read(ca.join("ca-key.pem")), read(peer.join("key.pem")), read(peer.join("cert.pem")));
        let other = Authority::generate("demo").unwrap();
        assert!(matches!(other.write(&ca.0, false), Err(IdentityError::Exists { .. })));
        let again = authority.issue_into(&id("a"), &peer.0, false);
        assert!(matches!(again, Err(IdentityError::Exists { .. })));
        let after =
            (read(ca.join("ca-key.pem")), read(peer.join("key.pem")), read(peer.join("cert.pem")));
        assert_eq!(before, after);

        authority.issue_into(&id("a"), &peer.0, true).unwrap();
        assert_ne!(read(peer.join("key.pem")), before.1);
        Identity::from_dir(&peer.0).unwrap();
        let left = std::fs::read_dir(&peer.0).unwrap().count();
        assert_eq!(left, 3, "no temporary file is left behind");
    }

    #[test]
    fn an_identity_of_another_authority_is_not_mixed_up_with_ones_own() {
        let peer = TempDir::new();
        Authority::generate("demo").unwrap().issue_into(&id("a"), &peer.0, false).unwrap();
        std::fs::remove_file(peer.join("key.pem")).unwrap();
        let other = Authority::generate("demo").unwrap();
        let error = other.issue_into(&id("a"), &peer.0, false).err().unwrap();
        assert!(matches!(error, IdentityError::OtherAuthority { .. }), "{error}");
        other.issue_into(&id("a"), &peer.0, true).unwrap();
        Identity::from_dir(&peer.0).unwrap();
    }

    /// Loads the files of `identity` with one of them replaced.
    fn with_file(identity: &Identity, at: usize, file: Vec<u8>) -> IdentityError {
        let mut files = identity.inner.loaded.load().files.clone();
        files[at] = file;
        Loaded::check(Path::new("dir"), files, Vec::new()).err().expect("it is refused")
    }

    #[test]
    fn files_that_do_not_belong_together_are_told_apart() {
        let authority = Authority::generate("demo").unwrap();
        let (a, b) = (authority.issue(&id("a")).unwrap(), authority.issue(&id("b")).unwrap());
        let foreign = Authority::generate("demo").unwrap();

        let error = with_file(&a, 0, foreign.ca_pem());
        assert!(matches!(error, IdentityError::NotOfAuthority { .. }), "{error}");
        let error = with_file(&a, 2, b.inner.loaded.load().files[2].clone());
        assert!(matches!(error, IdentityError::KeyMismatch { .. }), "{error}");
        let key = to_pem("PRIVATE KEY", a.inner.loaded.load().key.secret_der());
        let error = with_file(&a, 2, key.into());
        assert!(matches!(error, IdentityError::NoCookieKey { .. }), "{error}");
        assert!(error.to_string().contains("warmhop cert peer"), "{error}");
        let error = with_file(&a, 1, authority.ca_pem());
        assert!(matches!(error, IdentityError::Malformed { .. }), "{error}");
        for at in 0..3 {
            for garbage in [&b""[..], b"not PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n"] {
                let error = with_file(&a, at, garbage.to_vec());
                assert!(matches!(error, IdentityError::Malformed { .. }), "{at} {error}");
            }
        }
    }

    /// An identity as other tools issue it: its key.pem holds the private key and nothing else.
    fn without_cookie_key(authority: &Authority, peer: &str, dir: &TempDir) {
        authority.issue_into(&id(peer), &dir.0, false).unwrap();
        let key = pem_block(&std::fs::read(dir.join("key.pem")).unwrap(), "PRIVATE KEY").unwrap();
        std::fs::write(dir.join("key.pem"), to_pem("PRIVATE KEY", &key)).unwrap();
    }

    #[test]
    fn the_cookie_key_can_come_in_a_file_of_its_own() {
        let authority = Authority::generate("demo").unwrap();
        let (a_dir, b_dir) = (TempDir::new(), TempDir::new());
        without_cookie_key(&authority, "a", &a_dir);
        without_cookie_key(&authority, "b", &b_dir);
        let error = Identity::from_dir(&a_dir.0).err().unwrap();
        assert!(matches!(error, IdentityError::NoCookieKey { .. }), "{error}");
        assert!(error.to_string().contains("cookie.key"), "{error}");

        let key: [u8; 32] = rand::random();
        std::fs::write(a_dir.join("cookie.key"), STANDARD.encode(key) + "\n").unwrap();
        let elsewhere = b_dir.join("other.key");
        std::fs::write(&elsewhere, to_pem(COOKIE_KEY_LABEL, &key)).unwrap();
        let a = Identity::from_dir(&a_dir.0).unwrap();
        let b = Identity::from_dir_and_cookie_key(&b_dir.0, &elsewhere).unwrap();
        let tag = a.cookie_authenticator().tag(b"cookie");
        assert!(b.cookie_authenticator().verify(b"cookie", &tag));

        // The key is replaced in three steps, and no client is forgotten in any.
        let second = b_dir.join("second.key");
        std::fs::write(&second, STANDARD.encode(rand::random::<[u8; 32]>())).unwrap();
        let c = Identity::from_dir_and_cookie_keys(&b_dir.0, [&elsewhere, &second]).unwrap();
        let d = Identity::from_dir_and_cookie_keys(&b_dir.0, [&second, &elsewhere]).unwrap();
        let e = Identity::from_dir_and_cookie_key(&b_dir.0, &second).unwrap();
        let [b_made, d_made] = [&b, &d].map(|one| one.cookie_authenticator().tag(b"cookie"));
        assert_ne!(b_made, d_made);
        for (one, b_is_believed, d_is_believed) in
            [(&b, true, false), (&c, true, true), (&d, true, true), (&e, false, true)]
        {
            let one = one.cookie_authenticator();
            assert_eq!(one.verify(b"cookie", &b_made), b_is_believed);
            assert_eq!(one.verify(b"cookie", &d_made), d_is_believed);
        }
        let running = b.cookie_authenticator();

        assert!(!b.reload().unwrap());
        std::fs::write(&elsewhere, STANDARD.encode(rand::random::<[u8; 32]>())).unwrap();
        assert!(b.reload().unwrap(), "another cookie key is a change");
        assert!(!running.verify(b"cookie", &b_made), "and counts at once");
    }

    #[test]
    fn a_cookie_key_of_its_own_counts_before_the_one_in_key_pem() {
        let authority = Authority::generate("demo").unwrap();
        let dir = TempDir::new();
        authority.issue_into(&id("a"), &dir.0, false).unwrap();
        std::fs::write(dir.join("cookie.key"), STANDARD.encode(rand::random::<[u8; 32]>()))
            .unwrap();
        let a = Identity::from_dir(&dir.0).unwrap();
        let tag = a.cookie_authenticator().tag(b"cookie");
        let b = authority.issue(&id("b")).unwrap();
        assert!(!b.cookie_authenticator().verify(b"cookie", &tag));
    }

    #[test]
    fn a_cookie_key_out_of_form_names_the_remedy_and_never_itself() {
        let authority = Authority::generate("demo").unwrap();
        let dir = TempDir::new();
        authority.issue_into(&id("a"), &dir.0, false).unwrap();
        let file = dir.join("cookie.key");
        let short = STANDARD.encode([7; 31]);
        let zeros = STANDARD.encode([0; 32]);
        for bad in ["", "not base64 at all", &short, &zeros] {
            std::fs::write(&file, bad).unwrap();
            let error = Identity::from_dir(&dir.0).err().unwrap();
            assert!(matches!(error, IdentityError::CookieKey { .. }), "{bad:?} {error}");
            let text = error.to_string();
            assert!(text.contains("openssl rand -base64 32"), "{text}");
            assert!(bad.is_empty() || !text.contains(bad), "{text}");
        }
        let error = Identity::from_dir_and_cookie_key(&dir.0, dir.join("none")).err().unwrap();
        assert!(matches!(error, IdentityError::CookieKey { .. }), "{error}");
    }

    #[test]
    fn truncated_files_never_panic() {
        let authority = Authority::generate("demo").unwrap();
        let identity = authority.issue(&id("a")).unwrap();
        let files = identity.inner.loaded.load().files.clone();
        for at in 0..3 {
            for len in (0..files[at].len() - 1).step_by(7) {
                let mut cut = files.clone();
                cut[at].truncate(len);
                // A key file whose last line lost only its dashes may still pass.
                let _ = Loaded::check(Path::new("dir"), cut, Vec::new());
            }
        }
    }

    #[test]
    fn a_certificate_out_of_its_dates_names_the_clock() {
        let path = Path::new("cert.pem");
        let now = SystemTime::now();
        let error = check_dates(path, now - 2 * DAY, now - DAY).err().unwrap();
        assert!(matches!(error, IdentityError::Expired { ago_s: 86_400.., .. }), "{error}");
        let error = check_dates(path, now + DAY, now + 2 * DAY).err().unwrap();
        assert!(matches!(error, IdentityError::NotYetValid { in_s: 86_000.., .. }), "{error}");
        assert!(error.to_string().contains("clock"), "{error}");
        check_dates(path, now - DAY, now + DAY).unwrap();
    }

    #[test]
    fn an_expired_certificate_is_refused_when_it_is_loaded() {
        let authority = Authority::generate("demo").unwrap();
        let a = authority.issue(&id("a")).unwrap();
        let (cert, key) = authority.certify(&id("a"), SystemTime::now() - DAY / 2).unwrap();
        let mut files = a.inner.loaded.load().files.clone();
        (files[1], files[2]) = (cert, key);
        let error = Loaded::check(Path::new("dir"), files, Vec::new()).err().unwrap();
        assert!(matches!(error, IdentityError::Expired { .. }), "{error}");
    }

    #[test]
    fn a_missing_file_names_the_remedy() {
        let nowhere = TempDir::new();
        let error = Identity::from_dir(&nowhere.0).err().unwrap().to_string();
        assert!(error.contains("ca.pem") && error.contains("warmhop cert peer"), "{error}");
        let error = Authority::from_dir(&nowhere.0).err().unwrap().to_string();
        assert!(error.contains("ca.pem") && error.contains("warmhop cert ca"), "{error}");
    }

    #[test]
    fn a_reload_takes_what_is_new_and_refuses_what_is_anothers_or_broken() {
        let peer = TempDir::new();
        let authority = Authority::generate("demo").unwrap();
        authority.issue_into(&id("a"), &peer.0, false).unwrap();
        let identity = Identity::from_dir(&peer.0).unwrap();
        let changes = identity.changes();
        assert!(!identity.reload().unwrap());
        assert!(!changes.has_changed().unwrap());

        authority.issue_into(&id("a"), &peer.0, true).unwrap();
        assert!(identity.reload().unwrap());
        assert!(changes.has_changed().unwrap());

        authority.issue_into(&id("b"), &peer.0, true).unwrap();
        assert!(matches!(identity.reload(), Err(IdentityError::Replaced { .. })));
        std::fs::write(peer.join("cert.pem"), b"half").unwrap();
        assert!(identity.reload().is_err());
        assert_eq!(identity.peer(), id("a"));
        identity.quic().unwrap();
    }

    #[test]
    fn cookie_tags_are_of_one_cluster_and_one_message() {
        let authority = Authority::generate("demo").unwrap();
        let tags = authority.issue(&id("a")).unwrap().cookie_authenticator();
        let tag = tags.tag(b"message");
        assert!(tags.verify(b"message", &tag));
        assert!(!tags.verify(b"massage", &tag));
        for at in 0..tag.len() {
            let mut forged = tag;
            forged[at] ^= 1;
            assert!(!tags.verify(b"message", &forged));
        }
        for truncated in [&tag[..15], &[]] {
            assert!(!tags.verify(b"message", truncated));
        }
        let same_key = CookieKey::new(&authority.cookie_key, "other");
        assert!(!same_key.verify(b"message", &tag), "the cluster's name is part of the key");
        let other = Authority::generate("demo").unwrap().issue(&id("a")).unwrap();
        assert!(!other.cookie_authenticator().verify(b"message", &tag));
    }
}

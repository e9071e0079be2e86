//! The identity of a peer, as it is loaded and read again.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::server::WebPkiClientVerifier;
use tokio::sync::watch;
use warmhop_core::ids::PeerId;

use crate::identity::loaded::{CookieAuthenticator, Loaded, Shared, Source};
use crate::identity::names::spiffe_id;
use crate::identity::problem::IdentityError;
use crate::identity::tls::{ALPN, provider};

/// A peer's certificate chain, private key, authority and cookie key. Clones share what
/// [`Identity::reload`] reads.
#[derive(Clone)]
pub struct Identity {
    pub(super) inner: Arc<Shared>,
}

impl Identity {
    /// Reads `ca.pem`, `cert.pem` and `key.pem` from `dir` and checks that they belong
    /// together; [`Identity::reload`] reads them again.
    ///
    /// The cookie key is taken from `cookie.key` in `dir` if there is such a file, else from the
    /// block that `warmhop cert peer` put into `key.pem`.
    ///
    /// # Errors
    /// [`IdentityError`] names the file and what is wrong with it.
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

    /// As [`Identity::from_dir_and_cookie_key`], with more than one key: cookies are signed with
    /// the first key, and accepted under any. This replaces a key without losing a client: first
    /// every peer accepts the new key as well, then every peer signs cookies with it, and once the
    /// last cookie under the old key has expired, the old key is removed. While the peer runs, the
    /// files are read again when they change.
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

    pub(super) fn from_source(source: Source) -> Result<Self, IdentityError> {
        let loaded = Loaded::read(&source)?;
        Ok(Self::new(Some(source), loaded))
    }

    pub(super) fn new(source: Option<Source>, loaded: Loaded) -> Self {
        let loaded = ArcSwap::from_pointee(loaded);
        let changes = watch::Sender::new(0);
        Self { inner: Arc::new(Shared { source, loaded, changes }) }
    }

    /// Reads the files again and returns whether they changed. Files that are wrong or belong to
    /// another peer are refused, and the credentials in use stay. An identity issued in memory
    /// never changes.
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

    /// Changes when [`Identity::reload`] has loaded new credentials.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// When the files were last written, if their times can be read: a change of any of them calls
    /// for a reload. The second part is of the cookie keys' files, which are optional.
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
        let failed = |source| IdentityError::Make { what: "the TLS configuration", source };
        let tls = |error: rustls::Error| failed(error.into());
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
                // Naming the authority in the handshake would reveal the cluster's name to a stranger.
                .clear_root_hint_subjects()
                .build()
                .map_err(|error| failed(error.into()))?;
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

        let suite = |error: quinn::crypto::rustls::NoInitialCipherSuite| failed(error.into());
        Ok((client.try_into().map_err(suite)?, server.try_into().map_err(suite)?))
    }
}

impl fmt::Debug for Identity {
    /// Names the peer; never shows a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.spiffe_id()).finish()
    }
}

//! TLS between peers: what a link proves to either end.

use std::any::Any;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use warmhop_core::ids::PeerId;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::names::{peer_name, unix_time};
use crate::identity::refused::Fingerprint;

/// The DNS name in every peer's certificate. It is never resolved.
pub(crate) const TLS_NAME: &str = "warmhop.internal";

/// The protocol that links speak, negotiated in the handshake.
pub(super) const ALPN: &[u8] = b"warmhop/1";

/// The certificate that the other end of a link proved to have.
#[cfg(test)]
pub(crate) fn certificate_of(conn: &quinn::Connection) -> Option<Vec<u8>> {
    let chain = conn.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Some(chain.first()?.to_vec())
}

/// What the other end of a link proved about itself.
pub(crate) struct Proven {
    pub(crate) cluster: String,
    pub(crate) peer: PeerId,
    pub(crate) certificate: Fingerprint,
    /// When the certificate ends.
    pub(crate) ends: SystemTime,
}

/// Who the other end of a link is, from what `quinn::Connection::peer_identity` returns.
pub(crate) fn proven_identity(identity: Option<Box<dyn Any>>) -> Option<Proven> {
    let chain = identity?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let der = chain.first()?;
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let (cluster, peer) = peer_name(&certificate)?;
    let ends = unix_time(certificate.validity().not_after.timestamp());
    Some(Proven { cluster, peer, certificate: Fingerprint::of(der), ends })
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

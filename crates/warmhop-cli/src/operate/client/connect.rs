//! The way to an admin listener: TCP, with TLS if a proxy in front of it ends that.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, Error};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::host::https;

/// How users name the file of authorities.
const NAMED_BY: &str = "--ca-file FILE or WARMHOP_ADMIN_CA_FILE";

/// A connection of any kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Begins TLS over `stream` with `host`, by the authorities in `file` or those of this system.
///
/// # Errors
/// Why it failed and what to do, as the end of a sentence.
pub(super) async fn tls(
    stream: TcpStream,
    host: &str,
    file: Option<&Path>,
) -> Result<Box<dyn Stream>, String> {
    let mut config = https::client(file, NAMED_BY, "its certificate")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| format!("{host} is not a name that a certificate can have"))?;
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(reason(&error)),
    }
}

fn reason(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => format!(
            "its certificate was issued by an authority that is not trusted here; name the file of that \
             authority with {NAMED_BY}"
        ),
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "its certificate is for another name; ask for it by a name that it has".into(),
        Some(Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => "its certificate has expired; renew it there, or set this machine's clock".into(),
        Some(Error::InvalidMessage(_)) => {
            "it does not speak TLS; a peer's own admin listener is asked by http://".into()
        }
        Some(Error::AlertReceived(AlertDescription::CertificateRequired)) => {
            "it asks for a client's certificate, and this program has none; let it ask for a token \
             instead"
                .into()
        }
        _ => error.to_string(),
    }
}

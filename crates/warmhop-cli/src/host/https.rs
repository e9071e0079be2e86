//! TLS for the binary's own HTTPS clients: the authorities that they trust.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// A client that trusts the authorities in `file`, or those that this system trusts.
///
/// `named_by` is how users name the file, and `whose` is whose certificate is checked: both are for
/// the error.
///
/// # Errors
/// A sentence, if there is no authority to trust.
pub(crate) fn client(
    file: Option<&Path>,
    named_by: &str,
    whose: &str,
) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = file {
        let wrong = |why: &dyn fmt::Display| {
            let file = file.display();
            format!("{named_by}: {file}: {why}; expected a file of certificates in PEM")
        };
        let certificates = CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
        if roots.is_empty() {
            return Err(wrong(&"there is none in it"));
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(format!(
                "this system has no certificates of authorities to check {whose} by: install \
                 ca-certificates, or name a file with {named_by}"
            ));
        }
    }
    believing(roots)
}

/// A client that trusts no authority, for plain HTTP only.
///
/// # Errors
/// A sentence, if TLS cannot be set up at all.
#[cfg(feature = "otlp")]
pub(crate) fn nobody() -> Result<ClientConfig, String> {
    believing(RootCertStore::empty())
}

fn believing(roots: RootCertStore) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

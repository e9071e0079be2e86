//! Files of identities: PEM blocks, reading within bounds, writing for the owner's eyes only.

use std::io::Write;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
};
use x509_parser::pem::Pem;

use crate::identity::limits::{COOKIE_KEY_BYTES, COOKIE_KEY_LABEL, FILE_BYTES_MAX};
use crate::identity::problem::IdentityError;

pub(super) fn to_pem(label: &str, der: &[u8]) -> String {
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

pub(super) fn pem_blocks(file: &[u8]) -> impl Iterator<Item = Pem> {
    Pem::iter_from_buffer(file).map_while(Result::ok)
}

pub(super) fn pem_block(file: &[u8], label: &str) -> Option<Vec<u8>> {
    pem_blocks(file).find(|block| block.label == label).map(|block| block.contents)
}

pub(super) fn certificates(file: &[u8]) -> Vec<CertificateDer<'static>> {
    let certificate =
        |block: Pem| (block.label == "CERTIFICATE").then(|| CertificateDer::from(block.contents));
    pem_blocks(file).filter_map(certificate).collect()
}

/// The first private key of a file, in any of the three forms that tools write.
pub(super) fn private_key(file: &[u8]) -> Option<PrivateKeyDer<'static>> {
    pem_blocks(file).find_map(|block| match &*block.label {
        "PRIVATE KEY" => Some(PrivatePkcs8KeyDer::from(block.contents).into()),
        "EC PRIVATE KEY" => Some(PrivateSec1KeyDer::from(block.contents).into()),
        "RSA PRIVATE KEY" => Some(PrivatePkcs1KeyDer::from(block.contents).into()),
        _ => None,
    })
}

pub(super) fn cookie_key(file: &[u8]) -> Option<[u8; COOKIE_KEY_BYTES]> {
    pem_block(file, COOKIE_KEY_LABEL)?.try_into().ok()
}

pub(crate) fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn make_dir(dir: &Path) -> Result<(), IdentityError> {
    std::fs::create_dir_all(dir)
        .map_err(|source| IdentityError::Write { path: dir.to_owned(), source })
}

/// Writes a private key that only its owner can read from the moment it exists. Without
/// `force` the file is created by this call or not at all, even if another process tries at the same time.
pub(super) fn write_secret(path: &Path, contents: &[u8], force: bool) -> Result<(), IdentityError> {
    if force {
        return replace(path, contents, 0o600);
    }
    create(path, contents, 0o600).map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => IdentityError::Exists { path: path.to_owned() },
        _ => IdentityError::Write { path: path.to_owned(), source },
    })
}

/// Replaces a file in one step, so that a reader never sees half of it.
pub(super) fn replace(path: &Path, contents: &[u8], mode: u32) -> Result<(), IdentityError> {
    let mut temporary = path.to_owned().into_os_string();
    temporary.push(format!(".{:016x}", rand::random::<u64>()));
    let temporary = PathBuf::from(temporary);
    create(&temporary, contents, mode).and_then(|()| std::fs::rename(&temporary, path)).map_err(
        |source| {
            // The temporary file is of no use if it could not be renamed.
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

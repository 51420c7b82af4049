//! PEM files: certificate chains and private keys.
//!
//! Keys are never shown, not even their length. Whether key and chain belong together is not asked here.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use rustls::pki_types::pem::{self, PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;

/// The certificates of `path`, in the order of the file; at least one.
pub(super) fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    chain_in(path, &bytes(path)?)
}

/// The certificates in `text`, which messages call `path`; at least one.
pub(super) fn chain_in(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> = sections(path, text)?
        .into_iter()
        .filter_map(|(kind, der)| CertificateDer::from_pem(kind, der))
        .collect();
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: path.into() });
    }
    Ok(chain)
}

/// The one private key of `path`; other sections are passed over.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    key_in(path, &bytes(path)?)
}

/// The one private key in `text`, which messages call `path`.
pub(super) fn key_in(path: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    for mark in ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"] {
        if memchr::memmem::find(text, mark.as_bytes()).is_some() {
            return Err(TlsError::KeyEncrypted { path: path.into() });
        }
    }
    let mut keys = sections(path, text)?
        .into_iter()
        .filter_map(|(kind, der)| PrivateKeyDer::from_pem(kind, der));
    match (keys.next(), keys.next()) {
        (None, _) => Err(TlsError::NoKey { path: path.into() }),
        (Some(key), None) => Ok(key),
        (Some(_), Some(_)) => Err(TlsError::SeveralKeys { path: path.into() }),
    }
}

fn sections(path: &Path, text: &[u8]) -> Result<Vec<(SectionKind, Vec<u8>)>, TlsError> {
    let read: Result<_, pem::Error> = PemObject::pem_slice_iter(text).collect();
    read.map_err(|error| TlsError::NotPem {
        path: path.into(),
        why: error.to_string(),
    })
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    /// No chain and no key comes near.
    const FILE_BYTES_MAX: u64 = 1024 * 1024;
    let unreadable = |source| TlsError::Unreadable {
        path: path.into(),
        source,
    };
    // Looked at before it is opened: a pipe without a writer would hold us there.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(unreadable(std::io::Error::other(
            "it is not a regular file",
        )));
    }
    let mut bytes = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    read.map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

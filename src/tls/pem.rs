//! The files of a certificate: its chain and its private key.
//!
//! Keys are never shown, not even their length. Whether key and chain belong together is not asked here.

use std::io;
use std::path::Path;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;
use crate::pem::Sections;
use crate::{disk, pem};

/// No chain and no key comes near.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The certificates of `path`, in the order of the file; at least one.
pub(super) fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    chain_in(path, &bytes(path)?)
}

/// The certificates in `text`, which messages call `path`; at least one.
pub(super) fn chain_in(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> = found(path, pem::certificates(text))?;
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
    let mut keys = found(path, pem::keys(text))?.into_iter();
    match (keys.next(), keys.next()) {
        (None, _) => Err(TlsError::NoKey { path: path.into() }),
        (Some(key), None) => Ok(key),
        (Some(_), Some(_)) => Err(TlsError::SeveralKeys { path: path.into() }),
    }
}

fn found<T>(path: &Path, sections: Sections<T>) -> Result<Vec<T>, TlsError> {
    let all: io::Result<_> = sections.into_iter().collect();
    all.map_err(|error| TlsError::NotPem {
        path: path.into(),
        why: error.to_string(),
    })
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    disk::regular(path, FILE_BYTES_MAX).map_err(|source| TlsError::Unreadable {
        path: path.into(),
        source,
    })
}

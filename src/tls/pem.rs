//! PEM files: certificate chains and private keys.
//!
//! The only room that uses rustls_pemfile. It is no longer maintained (RUSTSEC-2025-0134) and is a thin layer over
//! rustls-pki-types, which reads the same bytes: leaving it means changing this file. Keys are never shown, not even
//! their length. Whether key and chain belong together is not asked here.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls_pemfile::Item;

use super::TlsError;

/// The certificates of `path`, in the order of the file; at least one.
pub(super) fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    chain_in(path, &bytes(path)?)
}

/// The certificates in `text`, which messages call `path`; at least one.
pub(super) fn chain_in(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let items = items(path, text)?.into_iter();
    let chain: Vec<_> = items
        .filter_map(|item| match item {
            Item::X509Certificate(certificate) => Some(certificate),
            _ => None,
        })
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
    let items = items(path, text)?.into_iter();
    let mut keys = items.filter_map(|item| match item {
        Item::Pkcs1Key(key) => Some(key.into()),
        Item::Pkcs8Key(key) => Some(key.into()),
        Item::Sec1Key(key) => Some(key.into()),
        _ => None,
    });
    match (keys.next(), keys.next()) {
        (None, _) => Err(TlsError::NoKey { path: path.into() }),
        (Some(key), None) => Ok(key),
        (Some(_), Some(_)) => Err(TlsError::SeveralKeys { path: path.into() }),
    }
}

fn items(path: &Path, mut text: &[u8]) -> Result<Vec<Item>, TlsError> {
    rustls_pemfile::read_all(&mut text)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::NotPem {
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

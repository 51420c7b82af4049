//! PEM: base64 between BEGIN and END lines, with anything around them.
//!
//! The only room that uses rustls_pemfile. It is no longer maintained (RUSTSEC-2025-0134) and is a thin layer over
//! rustls-pki-types, which reads the same bytes: leaving it means changing this file. Each function gives the sections
//! of its kind, in order, and passes over all others. What they hold is not looked into here.

use std::io;

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls_pemfile::Item;

/// Each section, or why it cannot be read.
pub(crate) type Sections<T> = Vec<io::Result<T>>;

/// The certificates in `text`.
pub(crate) fn certificates(text: &[u8]) -> Sections<CertificateDer<'static>> {
    sections(text, |item| match item {
        Item::X509Certificate(certificate) => Some(certificate),
        _ => None,
    })
}

/// The private keys in `text` that are not encrypted.
pub(crate) fn keys(text: &[u8]) -> Sections<PrivateKeyDer<'static>> {
    sections(text, |item| match item {
        Item::Pkcs1Key(key) => Some(key.into()),
        Item::Pkcs8Key(key) => Some(key.into()),
        Item::Sec1Key(key) => Some(key.into()),
        _ => None,
    })
}

/// The certificate revocation lists in `text`.
pub(crate) fn revocation_lists(text: &[u8]) -> Sections<CertificateRevocationListDer<'static>> {
    sections(text, |item| match item {
        Item::Crl(list) => Some(list),
        _ => None,
    })
}

fn sections<T>(mut text: &[u8], wanted: impl Fn(Item) -> Option<T>) -> Sections<T> {
    rustls_pemfile::read_all(&mut text)
        .filter_map(|item| item.map(&wanted).transpose())
        .collect()
}

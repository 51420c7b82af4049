//! Why certificates cannot be served: each text names the file, the cause and, after a semicolon, the mend.

use std::path::{Path, PathBuf};

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: cannot be read ({source}); check that the file exists and that this user may read it", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: is not valid PEM: {why}; export it again as PEM (base64 between BEGIN and END lines)", path.display())]
    NotPem { path: PathBuf, why: String },
    #[error("{}: holds no certificate; give the PEM file with the chain, leaf first", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{}: holds more than {most} certificates; give the chain of the leaf only, without a bundle of roots", path.display())]
    ChainTooLong { path: PathBuf, most: usize },
    #[error("{}: holds no private key; give the PEM file with the key (PKCS#8, PKCS#1 or SEC1)", path.display())]
    NoKey { path: PathBuf },
    #[error("{}: holds more than one private key; leave only the one that belongs to the certificate", path.display())]
    SeveralKeys { path: PathBuf },
    #[error("{}: the private key is encrypted; store it decrypted, readable by this user only (openssl pkey -in ... -out ...)", path.display())]
    KeyEncrypted { path: PathBuf },
    #[error("{}: the private key cannot be used: {why}; use RSA of at least 2048 bits, ECDSA P-256 or P-384, or Ed25519", path.display())]
    KeyUnusable { path: PathBuf, why: String },
    #[error("{}: is the key of another certificate than the first one in {}; give the key that belongs to it, and the leaf first", key.display(), cert.display())]
    KeyOfAnother { cert: PathBuf, key: PathBuf },
    #[error("{}: certificate {place} cannot be read: {why}; issue it again", path.display())]
    CertificateUnusable {
        path: PathBuf,
        place: usize,
        why: String,
    },
    #[error("{}: certificate {} did not issue certificate {place}; put the leaf first and after each certificate the one that issued it", path.display(), place + 1)]
    ChainBroken { path: PathBuf, place: usize },
    #[error("{}: certificate {place} ({subject}) has expired at {at}; renew it", path.display())]
    Expired {
        path: PathBuf,
        place: usize,
        subject: String,
        at: String,
    },
    #[error("{}: certificate {place} ({subject}) is not valid before {at}; check this machine's clock, or wait", path.display())]
    NotYetValid {
        path: PathBuf,
        place: usize,
        subject: String,
        at: String,
    },
    #[error("{}: the certificate is for {names}; it must be for the name that was ordered", path.display())]
    OtherName { path: PathBuf, names: String },
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

impl TlsError {
    /// The file that it is about.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unreadable { path, .. }
            | Self::NotPem { path, .. }
            | Self::NoCertificate { path }
            | Self::ChainTooLong { path, .. }
            | Self::NoKey { path }
            | Self::SeveralKeys { path }
            | Self::KeyEncrypted { path }
            | Self::KeyUnusable { path, .. }
            | Self::KeyOfAnother { key: path, .. }
            | Self::CertificateUnusable { path, .. }
            | Self::ChainBroken { path, .. }
            | Self::Expired { path, .. }
            | Self::OtherName { path, .. }
            | Self::NotYetValid { path, .. } => Some(path),
            Self::Setup(_) => None,
        }
    }
}

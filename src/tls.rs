//! TLS: placeholder until the room is built.

use std::sync::Arc;

use crate::config::typed::{Tls, TlsVersion};

/// Why certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(std::path::PathBuf, std::io::Error),
    /// The files are not a certificate chain and its key.
    #[error("{0}: {1}")]
    Unusable(std::path::PathBuf, String),
}

/// Reads the certificate chain and the key.
pub fn server_config(tls: &Tls) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|e| TlsError::Read(path.to_owned(), e))
    };
    let unusable = |path: &std::path::Path, e: &dyn std::fmt::Display| {
        TlsError::Unusable(path.to_owned(), e.to_string())
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(&tls.cert)?)
        .collect::<Result<_, _>>()
        .map_err(|e| unusable(&tls.cert, &e))?;
    let key =
        PrivateKeyDer::from_pem_slice(&read(&tls.key)?).map_err(|e| unusable(&tls.key, &e))?;
    let versions: &[_] = match tls.min_version {
        TlsVersion::V12 => rustls::ALL_VERSIONS,
        TlsVersion::V13 => &[&rustls::version::TLS13],
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|e| unusable(&tls.cert, &e))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map(Arc::new)
        .map_err(|e| unusable(&tls.cert, &e))
}

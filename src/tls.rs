//! The TLS side of the ingress: one rustls configuration from one certificate chain and its key.
//!
//! The provider is aws-lc-rs and named explicitly, so no process-wide default is needed; its key exchange prefers
//! X25519MLKEM768. Early data stays off: it could be replayed. Tickets are on, one per TLS 1.3 connection; their keys
//! live in the configuration made here, so a reload that makes a new one costs clients one full handshake.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};

use crate::config::typed::{Tls, TlsVersion};

mod client_auth;
mod pem;
mod principal;
mod tickets;

/// Why a certificate cannot be served. The text names the file and what mends it.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: cannot be read; check that the file exists and that this user may read it", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: is not valid PEM: {why}; export it again as PEM (base64 between BEGIN and END lines)", path.display())]
    NotPem { path: PathBuf, why: String },
    #[error("{}: holds no certificate; give the PEM file with the chain, leaf first", path.display())]
    NoCertificate { path: PathBuf },
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
    #[error("{}: the first certificate cannot be read: {why}; issue it again", path.display())]
    CertificateUnusable { path: PathBuf, why: String },
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// What listeners of `tls` serve with: reads the files, checks that they belong together.
pub fn server_config(tls: &Tls) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let versions = match tls.min_version {
        TlsVersion::V12 => &[&TLS13, &TLS12][..],
        TlsVersion::V13 => &[&TLS13],
    };
    let certified = certified(tls)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

fn certified(tls: &Tls) -> Result<CertifiedKey, TlsError> {
    let chain = pem::chain(&tls.cert)?;
    let key = pem::key(&tls.key)?;
    let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| TlsError::KeyUnusable {
        path: tls.key.clone(),
        why: error.to_string(),
    })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::KeyOfAnother {
            cert: tls.cert.clone(),
            key: tls.key.clone(),
        }),
        Err(error) => Err(TlsError::CertificateUnusable {
            path: tls.cert.clone(),
            why: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rcgen::{CertifiedKey as Generated, KeyPair, generate_simple_self_signed};

    use super::*;

    fn files(folder: &Path, cert: &str, key: &str) -> Tls {
        let tls = Tls {
            cert: folder.join("chain.pem"),
            key: folder.join("key.pem"),
            min_version: TlsVersion::V12,
        };
        fs::write(&tls.cert, cert).unwrap();
        fs::write(&tls.key, key).unwrap();
        tls
    }

    fn generated() -> Generated<KeyPair> {
        generate_simple_self_signed(["tools.example.com".to_owned()]).unwrap()
    }

    #[test]
    fn a_chain_and_its_key_are_served_with_both_protocols() {
        let folder = tempfile::tempdir().unwrap();
        let pair = generated();
        let tls = files(
            folder.path(),
            &pair.cert.pem(),
            &pair.signing_key.serialize_pem(),
        );
        let config = server_config(&tls).unwrap();
        assert_eq!(config.alpn_protocols, [&b"h2"[..], b"http/1.1"]);
        assert_eq!(config.max_early_data_size, 0);
        assert!(config.ticketer.enabled());
        let groups = &config.crypto_provider().kx_groups;
        assert_eq!(groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    }

    #[test]
    fn every_mistake_names_its_file_and_its_mend() {
        let folder = tempfile::tempdir().unwrap();
        let (pair, other) = (generated(), generated());
        let (cert, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        let encrypted =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMIIB\n-----END RSA PRIVATE KEY-----\n";
        let broken = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
        let other_key = other.signing_key.serialize_pem();
        let several = format!("{key}{other_key}");
        for (cert, key, file, says) in [
            (&*cert, "", "key.pem", "no private key"),
            ("", &*key, "chain.pem", "no certificate"),
            (&*key, &*key, "chain.pem", "no certificate"),
            (&*cert, encrypted, "key.pem", "openssl pkey"),
            (&*cert, legacy, "key.pem", "encrypted"),
            (&*cert, &*several, "key.pem", "more than one"),
            (&*cert, &*other_key, "key.pem", "another certificate"),
            (broken, &*key, "chain.pem", "not valid PEM"),
        ] {
            let error = server_config(&files(folder.path(), cert, key)).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(file) && text.contains(says), "{text}");
        }
        let mut tls = files(folder.path(), &cert, &key);
        tls.cert = folder.path().join("missing.pem");
        let text = server_config(&tls).unwrap_err().to_string();
        assert!(
            text.contains("missing.pem") && text.contains("exists"),
            "{text}"
        );
    }
}

//! A partner's side of client certificates: an authority, what it issues, what it revokes, and a client that shows it.
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::{ANSWER_LIMIT, read_for};
use super::gate::{HOST, Place};
use super::upstream::connect;

/// Issues client certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A client's certificate and its key.
pub(crate) struct Badge {
    pub(crate) der: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// A certificate for a client, good for so long.
    pub(crate) fn issue(&self, name: &str, serial: u64, life: Duration) -> Badge {
        let mut params =
            CertificateParams::new(vec![format!("{name}.partner.test")]).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (SystemTime::now() - DAY).into();
        params.not_after = (SystemTime::now() + life).into();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Badge {
            der: certificate.der().clone(),
            key: PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("PEM"),
        }
    }

    /// A revocation list, as PEM; `stale` ones should have been followed by another one already.
    pub(crate) fn list(&self, revoked: &[u64], stale: bool) -> String {
        let (before, now) = (SystemTime::now() - 2 * DAY, SystemTime::now());
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: before.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: before.into(),
            next_update: if stale { now - DAY } else { now + DAY }.into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let signed = params.signed_by(&self.issuer).expect("a list");
        signed.pem().expect("PEM")
    }
}

pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// Puts a file in its place as a careful program does.
pub(crate) fn replace(path: &Path, text: &str) {
    let draft = path.with_extension("new");
    std::fs::write(&draft, text).expect("it can be written");
    std::fs::rename(&draft, path).expect("it can be renamed");
}

/// A client that keeps its session tickets from one connection to the next.
pub(crate) struct Partner {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) to: SocketAddr,
}

/// What came of one request on a connection of its own.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) kind: HandshakeKind,
    /// The whole answer, head and body.
    pub(crate) text: String,
}

impl Partner {
    pub(crate) fn new(
        place: &Place,
        badge: Option<&Badge>,
        version: &'static SupportedProtocolVersion,
    ) -> Self {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(place.ca()).expect("the authority");
        roots.add(ca).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots);
        let config = match badge {
            None => builder.with_no_client_auth(),
            Some(badge) => builder
                .with_client_auth_cert(vec![badge.der.clone()], badge.key.clone_key())
                .expect("a certificate and its key"),
        };
        Self {
            config: Arc::new(config),
            to: (Ipv4Addr::LOCALHOST, place.https).into(),
        }
    }

    /// The same client, with its tickets, before another door.
    pub(crate) fn at(&self, place: &Place) -> Self {
        Self {
            config: Arc::clone(&self.config),
            to: (Ipv4Addr::LOCALHOST, place.https).into(),
        }
    }

    pub(crate) async fn tls(&self) -> io::Result<TlsStream<TcpStream>> {
        let stream = connect(Ipv4Addr::LOCALHOST, self.to).await?;
        let name = ServerName::try_from(HOST).map_err(io::Error::other)?;
        let connector = TlsConnector::from(Arc::clone(&self.config));
        connector.connect(name, stream).await
    }

    /// One request on a connection of its own. With TLS 1.3 a refusal may come as late as the answer.
    pub(crate) async fn get(&self, path: &str) -> io::Result<Answer> {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
        ))
        .await
    }

    pub(crate) async fn send(&self, request: &str) -> io::Result<Answer> {
        let mut stream = self.tls().await?;
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let kind = stream.get_ref().1.handshake_kind();
        let read = read_for(&mut stream, ANSWER_LIMIT).await;
        if read.is_empty() {
            // What ended it is found by reading once more.
            tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1]).await?;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Answer {
            kind: kind.expect("the handshake is over"),
            text: String::from_utf8_lossy(&read).into_owned(),
        })
    }
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        let word = self.text.split(' ').nth(1);
        word.and_then(|status| status.parse().ok())
            .expect("a status")
    }

    /// What the internal server saw.
    pub(crate) fn json(&self) -> serde_json::Value {
        let body = self.text.split_once("\r\n\r\n").expect("a body").1;
        serde_json::from_str(body.trim()).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }
}

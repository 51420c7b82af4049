//! A certificate authority of the tests' own, and clients that look closely at what they are shown.
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, RootCertStore,
    SignatureScheme, SupportedProtocolVersion,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::gate::write;
use super::upstream::connect;

/// Longest wait for a handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(30);

/// Signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A chain and its key.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
    pub(crate) leaf: CertificateDer<'static>,
}

/// From when and until when, in seconds from now.
#[derive(Clone, Copy)]
pub(crate) struct Life(pub(crate) i64, pub(crate) i64);

/// Most of it is left.
pub(crate) const FRESH: Life = Life(-3600, 90 * 86_400);

impl Authority {
    /// Its own root.
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(authority(name), key).expect("a certificate"))
    }

    /// One below this one, valid for `life`.
    pub(crate) fn below(&self, name: &str, life: Life) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = authority(name);
        life.set(&mut params);
        Self(CertifiedIssuer::signed_by(params, key, &self.0).expect("a certificate"))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A leaf for `names`, alone.
    pub(crate) fn issue(&self, names: &[&str], life: Life) -> Pair {
        self.issue_for(names, life, &[])
    }

    /// A leaf for these uses alone; none: for any.
    pub(crate) fn issue_for(
        &self,
        names: &[&str],
        life: Life,
        uses: &[ExtendedKeyUsagePurpose],
    ) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut leaf = CertificateParams::new(names).expect("names");
        leaf.distinguished_name.push(DnType::CommonName, "leaf");
        leaf.extended_key_usages = uses.to_vec();
        life.set(&mut leaf);
        let leaf = leaf.signed_by(&key, &self.0).expect("a certificate");
        Pair {
            cert: leaf.pem(),
            key: key.serialize_pem(),
            leaf: leaf.der().clone(),
        }
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Life {
    fn set(self, params: &mut CertificateParams) {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("after 1970");
        let now = i64::try_from(now.as_secs()).expect("not that late");
        let at = |offset: i64| {
            let second = u64::try_from(now + offset).expect("after 1970");
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(second)
        };
        (params.not_before, params.not_after) = (at(self.0), at(self.1));
    }
}

impl Pair {
    /// Writes both files, in place.
    pub(crate) fn write(&self, cert: &Path, key: &Path) {
        write(cert, &self.cert);
        write(key, &self.key);
    }
}

/// A TLS client that remembers sessions.
#[derive(Clone)]
pub(crate) struct Looker {
    config: Arc<ClientConfig>,
    to: SocketAddr,
}

/// What a client was shown.
pub(crate) struct Shown {
    pub(crate) leaf: CertificateDer<'static>,
    pub(crate) kind: HandshakeKind,
    pub(crate) stream: TlsStream<TcpStream>,
}

/// Takes any certificate, so that a test sees which one it was.
#[derive(Debug)]
struct Anything(Arc<WebPkiServerVerifier>);

impl Looker {
    /// Takes whatever certificate it is shown.
    pub(crate) fn credulous(to: u16, authority: &Authority) -> Self {
        let verifier = Anything(verifier(authority));
        Self::with(to, Arc::new(verifier), rustls::ALL_VERSIONS)
    }

    /// Takes what `authority` issued for the name asked for, and is valid.
    pub(crate) fn strict(to: u16, authority: &Authority) -> Self {
        Self::with(to, verifier(authority), rustls::ALL_VERSIONS)
    }

    /// As [`Looker::strict`], by one version of TLS.
    pub(crate) fn speaking(
        to: u16,
        authority: &Authority,
        version: &'static SupportedProtocolVersion,
    ) -> Self {
        Self::with(to, verifier(authority), &[version])
    }

    fn with(
        to: u16,
        verifier: Arc<dyn ServerCertVerifier>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Self {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let to = (Ipv4Addr::LOCALHOST, to).into();
        let config = Arc::new(config);
        Self { config, to }
    }

    /// One that never resumes.
    pub(crate) fn forgetful(mut self) -> Self {
        Arc::make_mut(&mut self.config).resumption = Resumption::disabled();
        self
    }

    /// One that names no server.
    pub(crate) fn nameless(mut self) -> Self {
        Arc::make_mut(&mut self.config).enable_sni = false;
        self
    }

    /// One handshake for `name`, which may be an address.
    pub(crate) async fn look(&self, name: &str) -> io::Result<Shown> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let tcp = connect(Ipv4Addr::LOCALHOST, self.to).await?;
        tcp.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = timeout(HANDSHAKE_LIMIT, connector.connect(name, tcp)).await??;
        let tls = stream.get_ref().1;
        let leaf = tls.peer_certificates().and_then(<[_]>::first);
        Ok(Shown {
            leaf: leaf.ok_or(io::ErrorKind::NotFound)?.clone().into_owned(),
            kind: tls.handshake_kind().ok_or(io::ErrorKind::NotFound)?,
            stream,
        })
    }
}

impl Looker {
    /// The same, with a greeting of so many bytes to a TLS record, each record on its own. Blocks.
    pub(crate) fn look_in_pieces(&self, name: &str, bytes: usize) -> CertificateDer<'static> {
        const HEADER_BYTES: usize = 5;
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let mut tls = ClientConnection::new(Arc::clone(&self.config), name).expect("a client");
        let mut greeting = Vec::new();
        tls.write_tls(&mut greeting).expect("a greeting");
        let mut tcp = std::net::TcpStream::connect(self.to).expect("a connection");
        tcp.set_nodelay(true).expect("an option");
        tcp.set_read_timeout(Some(HANDSHAKE_LIMIT))
            .expect("an option");
        for piece in greeting[HEADER_BYTES..].chunks(bytes) {
            let length = u16::try_from(piece.len()).expect("a record");
            let mut record = vec![22, 3, 1];
            record.extend_from_slice(&length.to_be_bytes());
            record.extend_from_slice(piece);
            tcp.write_all(&record).expect("it takes the piece");
        }
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp).expect("a handshake");
        }
        let shown = tls.peer_certificates().expect("a certificate");
        shown[0].clone().into_owned()
    }
}

impl Shown {
    /// The status of a GET for `host` on this connection, which stays open.
    pub(crate) async fn get(&mut self, host: &str) -> u16 {
        let request = format!("GET /headers HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let sent = self.stream.write_all(request.as_bytes()).await;
        sent.expect("it takes the request");
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        loop {
            let count = timeout(HANDSHAKE_LIMIT, self.stream.read(&mut buffer)).await;
            let count = count.expect("an answer in time").expect("an answer");
            assert!(count > 0, "it ended within an answer: {text}");
            text += &String::from_utf8_lossy(&buffer[..count]);
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let head = head.to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1).expect("a length");
            let length = length.lines().next().expect("a number");
            if body.len() >= length.parse().expect("a number") {
                let status = head.split(' ').nth(1).expect("a status");
                return status.parse().expect("a number");
            }
        }
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn verifier(authority: &Authority) -> Arc<WebPkiServerVerifier> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.0.der().clone()).expect("a root");
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .expect("a verifier")
}

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

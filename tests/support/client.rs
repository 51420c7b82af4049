//! Browsers and other clients of the ingress, well behaved or not.
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::WebSocketStream;

use super::body::Payload;
use super::gate::{HOST, Place};
use super::upstream::connect;

/// HTTP/1.1 or HTTP/2, as settled by ALPN.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Version {
    H1,
    H2,
}

/// Longest wait of a test for one answer.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Whoever comes to the ingress of a place, from one address.
#[derive(Clone)]
pub(crate) struct Client {
    tls: Arc<RootCertStore>,
    to: SocketAddr,
    from: Ipv4Addr,
}

impl Client {
    pub(crate) fn of(place: &Place) -> Self {
        Self::from(place, Ipv4Addr::LOCALHOST)
    }

    pub(crate) fn from(place: &Place, from: Ipv4Addr) -> Self {
        Self::trusting(place, &place.ca(), from)
    }

    /// Who believes the authority in the file `root`.
    pub(crate) fn trusting(place: &Place, root: &Path, from: Ipv4Addr) -> Self {
        let mut roots = RootCertStore::empty();
        let pem = fs::read(root).expect("the authority's certificate");
        roots
            .add(CertificateDer::from_pem_slice(&pem).expect("PEM"))
            .expect("a certificate");
        Self {
            tls: Arc::new(roots),
            to: (Ipv4Addr::LOCALHOST, place.https).into(),
            from,
        }
    }

    /// A TLS stream for whatever bytes the test wants to send.
    pub(crate) async fn tls(&self, version: Version) -> io::Result<TlsStream<TcpStream>> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(Arc::clone(&self.tls))
            .with_no_client_auth();
        config.alpn_protocols = vec![match version {
            Version::H1 => b"http/1.1".to_vec(),
            Version::H2 => b"h2".to_vec(),
        }];
        let stream = connect(self.from, self.to).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(HOST).map_err(io::Error::other)?;
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    /// A connection that is kept.
    pub(crate) async fn open(&self, version: Version) -> io::Result<Connection> {
        let stream = TokioIo::new(self.tls(version).await?);
        Ok(match version {
            Version::H1 => {
                let (sender, connection) =
                    http1::handshake(stream).await.map_err(io::Error::other)?;
                tokio::spawn(connection.with_upgrades());
                Connection::H1(sender)
            }
            Version::H2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream)
                    .await
                    .map_err(io::Error::other)?;
                tokio::spawn(connection);
                Connection::H2(sender)
            }
        })
    }

    /// One GET on a connection of its own.
    pub(crate) async fn get(&self, version: Version, path: &str) -> Reply {
        self.send(
            request(version, "GET", path)
                .body(Payload::empty())
                .expect("a request"),
        )
        .await
    }

    /// One request on a connection of its own; its version says which protocol.
    pub(crate) async fn send(&self, request: Request<Payload>) -> Reply {
        let version = match request.version() {
            hyper::Version::HTTP_2 => Version::H2,
            _ => Version::H1,
        };
        let mut connection = self.open(version).await.expect("a connection");
        connection.send(request).await.expect("an answer")
    }

    /// Sends these bytes through TLS and reads until the other side ends, at most `limit` long.
    pub(crate) async fn raw(&self, bytes: &[u8], limit: Duration) -> Vec<u8> {
        let mut stream = self.tls(Version::H1).await.expect("TLS");
        stream.write_all(bytes).await.expect("it takes the bytes");
        read_for(&mut stream, limit).await
    }

    /// A websocket on this path.
    pub(crate) async fn websocket(&self, path: &str) -> WebSocketStream<TlsStream<TcpStream>> {
        let stream = self.tls(Version::H1).await.expect("TLS");
        let url = format!("wss://{HOST}{path}");
        let (socket, response) = tokio_tungstenite::client_async(url, stream)
            .await
            .expect("a websocket");
        assert_eq!(response.status(), 101);
        socket
    }
}

/// Reads until the end, an error, or for so long.
pub(crate) async fn read_for(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    limit: Duration,
) -> Vec<u8> {
    let mut found = Vec::new();
    let read = async {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            found.extend_from_slice(&buffer[..count]);
        }
    };
    timeout(limit, read).await.ok(); // what came until then
    found
}

/// A request for [`HOST`], in the form that the version asks for.
pub(crate) fn request(version: Version, method: &str, path: &str) -> http::request::Builder {
    let builder = Request::builder().method(method);
    match version {
        Version::H1 => builder.uri(path).header("host", HOST),
        Version::H2 => builder
            .uri(format!("https://{HOST}{path}"))
            .version(hyper::Version::HTTP_2),
    }
}

/// A connection that is kept.
pub(crate) enum Connection {
    H1(http1::SendRequest<Payload>),
    H2(http2::SendRequest<Payload>),
}

/// Why there was no answer.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The connection had ended before the request was sent on it: trying again is safe.
    pub(crate) unsent: bool,
    pub(crate) why: String,
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        Self {
            unsent: error.is_canceled() || error.is_closed(),
            why: format!("{error:?}"),
        }
    }
}

impl Failure {
    fn late(what: &str) -> Self {
        Self {
            unsent: false,
            why: format!("no {what} within {ANSWER_LIMIT:?}"),
        }
    }
}

impl Connection {
    /// The response as soon as its head is there.
    pub(crate) async fn begin(
        &mut self,
        request: Request<Payload>,
    ) -> Result<Response<Incoming>, Failure> {
        let response = async {
            match self {
                Self::H1(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                Self::H2(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
            }
        };
        let response = timeout(ANSWER_LIMIT, response).await;
        Ok(response.map_err(|_| Failure::late("response head"))??)
    }

    /// The whole response.
    pub(crate) async fn send(&mut self, request: Request<Payload>) -> Result<Reply, Failure> {
        let (head, body) = self.begin(request).await?.into_parts();
        let body = timeout(ANSWER_LIMIT, body.collect()).await;
        let body = body.map_err(|_| Failure::late("whole body"))??.to_bytes();
        Ok(Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().expect("ASCII"))
    }

    /// The entry's identifier.
    pub(crate) fn id(&self) -> &str {
        self.header("x-request-id")
            .expect("every response has the entry's identifier")
    }
}

/// TLS for a test peer.
pub(crate) fn server_config(cert: &Path, key: &Path) -> TlsAcceptor {
    let certs = CertificateDer::pem_file_iter(cert)
        .expect("a certificate file")
        .collect::<Result<_, _>>()
        .expect("PEM");
    let key = PrivateKeyDer::from_pem_file(key).expect("a key file");
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .expect("a certificate and its key");
    TlsAcceptor::from(Arc::new(config))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

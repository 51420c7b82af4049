//! Our own connections to services that we use: a certificate authority, a store that replicas share.
//!
//! Trust is configured, not inherited: the roots that browsers trust are built in, and a file with others takes their
//! place. These connections leave from any local address; the fixed address is for data sources, and what is dialled
//! here is named by the operator, never by a client.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::addr::{Destination, Families, Host};
use crate::resolve::Resolver;
use crate::{disk, pem, socket};

/// For one address of several.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 8;
/// A file of roots; the whole of Mozilla's list is a fifth of it.
const ROOTS_BYTES_MAX: u64 = 1 << 20;

/// Resolves and connects. Cheap to clone; stays on the runtime where it is first used.
#[derive(Clone)]
pub struct Reach(Arc<Inner>);

struct Inner {
    name_servers: Vec<SocketAddr>,
    resolver: OnceLock<Resolver>,
}

/// Whom we believe on the other end.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

/// Why a file of roots cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("{}: cannot be read; check that the file exists and that this user may read it", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: holds no certificate authority that can be used; give its root certificate as PEM", path.display())]
    NoRoot { path: PathBuf },
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

impl Reach {
    /// Asks `name_servers`, or those of `/etc/resolv.conf` if there are none.
    pub fn new(name_servers: &[SocketAddr]) -> Self {
        Self(Arc::new(Inner {
            name_servers: name_servers.to_vec(),
            resolver: OnceLock::new(),
        }))
    }

    /// The first address of `to` that answers.
    pub async fn connect(&self, to: &Destination) -> io::Result<TcpStream> {
        let mut last = io::Error::other(format!("{} has no address", to.host));
        for address in self.addresses(&to.host).await? {
            let address = SocketAddr::new(address, to.port);
            match timeout(CONNECT_LIMIT, socket::connect(address)).await {
                Ok(Ok(tcp)) => return Ok(tcp),
                Ok(Err(error)) => {
                    last = io::Error::new(error.kind(), format!("{address}: {error}"))
                }
                Err(_) => {
                    let text = format!("{address} does not answer");
                    last = io::Error::new(io::ErrorKind::TimedOut, text);
                }
            }
        }
        Err(last)
    }

    /// As [`Self::connect`], then TLS; whoever answers must show that it is `to`.
    pub async fn connect_tls(
        &self,
        to: &Destination,
        trust: &Trust,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = server_name(&to.host).map_err(io::Error::other)?;
        let tcp = self.connect(to).await?;
        let connector = TlsConnector::from(Arc::clone(&trust.0));
        let handshake = timeout(HANDSHAKE_LIMIT, connector.connect(name, tcp)).await;
        handshake.unwrap_or_else(|_| {
            let text = format!("{to} does not finish the TLS handshake");
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        })
    }

    async fn addresses(&self, host: &Host) -> io::Result<Vec<IpAddr>> {
        match host {
            Host::Address(address) => Ok(vec![*address]),
            Host::Name(name) if &**name == "localhost" => {
                Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
            }
            Host::Name(name) => {
                let found = self.resolver()?.resolve(name, Families::BOTH).await;
                let mut found =
                    found.map_err(|refusal| io::Error::other(format!("{name}: {refusal}")))?;
                found.truncate(ADDRESSES_MAX);
                Ok(found)
            }
        }
    }

    fn resolver(&self) -> io::Result<&Resolver> {
        if let Some(resolver) = self.0.resolver.get() {
            return Ok(resolver);
        }
        let made = Resolver::new(&self.0.name_servers).map_err(io::Error::other)?;
        Ok(self.0.resolver.get_or_init(|| made))
    }
}

impl Trust {
    /// The roots in the file at `path`, or the built-in ones.
    pub fn new(path: Option<&Path>) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        match path {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(path) => {
                for certificate in certificates(path)? {
                    roots.add(certificate).ok(); // one that cannot be used is as if it were not there
                }
                if roots.is_empty() {
                    return Err(TrustError::NoRoot { path: path.into() });
                }
            }
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let unreadable = |source| TrustError::Unreadable {
        path: path.into(),
        source,
    };
    let text = disk::regular(path, ROOTS_BYTES_MAX).map_err(unreadable)?;
    Ok(pem::certificates(&text).into_iter().flatten().collect()) // a section that cannot be read is as if it were not there
}

fn server_name(host: &Host) -> Result<ServerName<'static>, InvalidDnsNameError> {
    match host {
        Host::Address(address) => Ok(ServerName::from(*address)),
        Host::Name(name) => ServerName::try_from(name.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn built_in_roots_or_those_of_a_file_and_nothing_else() {
        assert!(Trust::new(None).is_ok());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let refused = |says: &str| {
            let text = Trust::new(Some(&file)).err().unwrap().to_string();
            assert!(text.contains("ca.pem") && text.contains(says), "{text}");
        };
        refused("exists");
        fs::write(&file, "no certificate").unwrap();
        refused("root certificate");
        let pair = rcgen::generate_simple_self_signed(["ca.example".to_owned()]).unwrap();
        fs::write(&file, pair.cert.pem()).unwrap();
        assert!(Trust::new(Some(&file)).is_ok());
    }

    #[tokio::test]
    async fn what_does_not_answer_is_named() {
        let nobody = socket::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = nobody.local_addr().unwrap();
        drop(nobody);
        let to = Destination::parse(&address.to_string()).unwrap();
        let error = Reach::new(&[]).connect(&to).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}

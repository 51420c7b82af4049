//! One connection from the fixed address, made to find out what stands in its way.
//!
//! It is made by the operator at the shell, so it is not in the audit log. It says nothing to a data source but what a
//! driver would say first: an SSLRequest, a ClientHello. What the other side says is shown printable and short.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::addr::Host;
use crate::config::typed::Protocol;
use crate::socket::fixed::{Failure, Source, Stage};

/// For connecting, and again for what follows.
pub(in crate::cli) const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Whoever hangs up does so at once; whoever waits to be asked says nothing.
const FIRST_WORD_LIMIT: Duration = Duration::from_secs(1);
const HEARD_BYTES_MAX: usize = 512;
const SHOWN_CHARS_MAX: usize = 120;
const ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];
/// PostgreSQL's request for TLS: length 8, code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f];

/// What became of it.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Finding {
    Answers(String),
    Closed,
    FixedAddressMissing,
    NoAnswer,
    PortsExhausted,
    Refused,
    Reset,
    TlsFailed(String),
    Unreachable(String),
}

/// Dials `to` and hears how it answers.
pub(super) async fn attempt(
    source: &Source,
    to: SocketAddr,
    host: &Host,
    protocol: Protocol,
) -> Finding {
    match timeout(ANSWER_LIMIT, source.connect(to)).await {
        Err(_) => Finding::NoAnswer,
        Ok(Err(failure)) => failed(&failure),
        Ok(Ok(tcp)) => match timeout(ANSWER_LIMIT, hear(tcp, host, protocol)).await {
            Err(_) => Finding::Answers("accepts connections, then says nothing".to_owned()),
            Ok(Err(error)) => broken(&error),
            Ok(Ok(finding)) => finding,
        },
    }
}

/// TLS to `host`, verified against the system's authorities.
pub(in crate::cli) async fn encrypt(
    tcp: TcpStream,
    host: &Host,
) -> Result<TlsStream<TcpStream>, String> {
    let name = match host {
        Host::Address(address) => ServerName::from(*address),
        Host::Name(name) => {
            ServerName::try_from(name.to_string()).map_err(|error| error.to_string())?
        }
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots()?)
        .with_no_client_auth();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    connecting
        .await
        .map_err(|error| printable(&error.to_string()))
}

fn roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for file in ROOTS {
        if let Ok(found) = CertificateDer::pem_file_iter(file) {
            roots.add_parsable_certificates(found.filter_map(Result::ok));
        }
        if !roots.is_empty() {
            return Ok(roots);
        }
    }
    Err(
        "no certificate authorities on this machine to verify it with; install `ca-certificates`"
            .to_owned(),
    )
}

async fn hear(mut tcp: TcpStream, host: &Host, protocol: Protocol) -> io::Result<Finding> {
    match protocol {
        Protocol::Tls => Ok(encrypted(tcp, host).await),
        Protocol::Postgres => {
            tcp.write_all(&SSL_REQUEST).await?;
            match tcp.read_u8().await? {
                b'S' => Ok(encrypted(tcp, host).await),
                b'N' => Ok(Finding::Answers("PostgreSQL without TLS".to_owned())),
                _ => Ok(Finding::Answers("but not as PostgreSQL does".to_owned())),
            }
        }
        Protocol::Mongodb
        | Protocol::Mysql
        | Protocol::None
        | Protocol::Redis
        | Protocol::Sqlserver => {
            let mut heard = vec![0; HEARD_BYTES_MAX];
            let Ok(read) = timeout(FIRST_WORD_LIMIT, tcp.read(&mut heard)).await else {
                return Ok(Finding::Answers("accepts connections".to_owned()));
            };
            heard.truncate(read?);
            Ok(match (&*heard, protocol) {
                ([], _) => Finding::Closed,
                ([_, _, _, _, 10, greeting @ ..], Protocol::Mysql) => {
                    let version = greeting.split(|b| *b == 0).next().unwrap_or_default();
                    let version = String::from_utf8_lossy(version);
                    Finding::Answers(format!("MySQL {}", printable(&version)))
                }
                ([_, _, _, _, 0xff, _, _, text @ ..], Protocol::Mysql) => {
                    Finding::Answers(format!("with an error: {}", shown(text)))
                }
                (text, _) => Finding::Answers(shown(text)),
            })
        }
    }
}

async fn encrypted(tcp: TcpStream, host: &Host) -> Finding {
    match encrypt(tcp, host).await {
        Ok(tls) => {
            let version = tls.get_ref().1.protocol_version();
            let version = version.and_then(|v| v.as_str()).unwrap_or("TLS");
            Finding::Answers(format!("{version}, its certificate is good for {host}"))
        }
        Err(why) => Finding::TlsFailed(why),
    }
}

fn failed(failure: &Failure) -> Finding {
    match (failure.stage, failure.error.kind()) {
        (Stage::Bind, io::ErrorKind::AddrInUse)
        | (Stage::Connect, io::ErrorKind::AddrNotAvailable) => Finding::PortsExhausted,
        (Stage::Bind | Stage::Family | Stage::Verify, _) => Finding::FixedAddressMissing,
        (Stage::Open | Stage::Connect, _) => broken(&failure.error),
    }
}

fn broken(error: &io::Error) -> Finding {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Finding::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Finding::Reset,
        io::ErrorKind::TimedOut => Finding::NoAnswer,
        io::ErrorKind::UnexpectedEof => Finding::Closed,
        _ => Finding::Unreachable(error.to_string()),
    }
}

impl Finding {
    /// The stable word for programs.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Answers(_) => "answers",
            Self::Closed => "closed",
            Self::FixedAddressMissing => "fixed_address_missing",
            Self::NoAnswer => "no_answer",
            Self::PortsExhausted => "ports_exhausted",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::TlsFailed(_) => "tls_failed",
            Self::Unreachable(_) => "unreachable",
        }
    }

    /// What it means; `seen` is how the outside sees us.
    pub(super) fn says(&self, seen: Option<IpAddr>) -> String {
        match self {
            Self::Answers(how) => format!("answers: {how}"),
            Self::Closed => "accepts connections and closes them at once: something in front of it may not know us".to_owned(),
            Self::FixedAddressMissing => "not tried: the fixed address is not on this machine".to_owned(),
            Self::NoAnswer => {
                let seen = seen.map_or_else(|| "the fixed address".to_owned(), |s| s.to_string());
                let limit = ANSWER_LIMIT.as_secs();
                format!("no answer in {limit} s: the firewall there has probably not allowed {seen}")
            }
            Self::PortsExhausted => "not tried: all local ports to it are in use".to_owned(),
            Self::Refused => "refused: it is reached, but nothing listens on that port".to_owned(),
            Self::Reset => "reset: it is reached, but hangs up".to_owned(),
            Self::TlsFailed(why) => format!("TLS failed: {why}"),
            Self::Unreachable(why) => format!("unreachable: {why}"),
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    printable(&String::from_utf8_lossy(bytes))
}

/// One short line without control characters.
fn printable(text: &str) -> String {
    let good = |c: &char| !c.is_control() && *c != char::REPLACEMENT_CHARACTER;
    text.chars().filter(good).take(SHOWN_CHARS_MAX).collect()
}

/// Runs `task` on a runtime of this thread.
pub(in crate::cli) fn block_on<T>(task: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(task))
}

//! The configuration with meaning: what `raw` becomes once every value has been read and every name has been found.
//!
//! Nothing here can be wrong in itself: durations are durations, names of sets and limits have been replaced by what
//! they stand for or are known to exist. It is never exposed in the file's own form.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::addr::{Destination, Host};

use super::remark::Source;

mod acme;
mod egress;

pub use acme::{Acme, AcmeStore, Binding, Challenge, Hook, Issuer, RedisStore};
pub use egress::{
    Action, DestinationPattern, Diversion, Egress, EgressClient, EgressListener, Forward,
    ForwardTo, Password, PasswordHash, PolicyRule, Protocol, Synthetic, Transparent,
};

/// One whole configuration.
#[derive(Debug)]
pub struct Config {
    pub process: Process,
    pub admin: Admin,
    pub log: Log,
    pub audit: Audit,
    pub limits: BTreeMap<String, Limit>,
    /// What replicas share.
    pub store: Option<RedisStore>,
    pub ingress: Vec<Ingress>,
    pub upstreams: BTreeMap<String, Upstream>,
    pub egress: Option<Egress>,
    /// When the first entry of a set that is in force expires, in nanoseconds since 1970: a reload then leaves it
    /// out.
    pub next_expiry_ns: Option<u64>,
    /// What it was read from, and where each key stands.
    pub source: Source,
}

impl Config {
    /// Every address that is listened on but the admin's, under its key.
    pub fn listens(&self) -> Vec<(String, SocketAddr)> {
        let mut listens = Vec::new();
        for (at, ingress) in self.ingress.iter().enumerate() {
            let lists = [
                ("listen", &ingress.listen),
                ("redirect_http", &ingress.redirect_http),
            ];
            for (name, list) in lists {
                let keyed = list.iter().enumerate();
                listens.extend(keyed.map(|(n, a)| (format!("ingress[{at}].{name}[{n}]"), *a)));
            }
        }
        listens.extend(self.egress.iter().flat_map(Egress::listens));
        listens
    }
}

/// `[process]`
#[derive(Debug)]
pub struct Process {
    /// The only place that is written to.
    pub state_dir: PathBuf,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// From the signal to the forced end.
    pub drain_deadline: Duration,
    /// Sessions of each way.
    pub max_sessions: usize,
    /// Ingress connections of one client address (IPv6: of one /64).
    pub max_sessions_per_client: usize,
    /// The keys that seal what others can read.
    pub key_file: Option<PathBuf>,
    pub tickets: Tickets,
}

/// `tickets` of `[process]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tickets {
    /// How often the keys of session tickets change.
    pub every: Duration,
    /// Where replicas share them; there is a key file then.
    pub store: Option<TicketStore>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TicketStore {
    Folder(PathBuf),
    Redis(RedisStore),
}

/// `[admin]`
#[derive(Debug)]
pub struct Admin {
    /// Loopback only in this release.
    pub listen: SocketAddr,
}

/// `[log]`
#[derive(Debug)]
pub struct Log {
    pub format: LogFormat,
    pub level: tracing::Level,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    Json,
    Text,
}

/// `[audit]`
#[derive(Debug)]
pub struct Audit {
    pub durability: Durability,
    pub on_failure: OnFailure,
    /// How long a request waits for its record.
    pub wait_budget: Duration,
    /// Where the log goes on when the state directory's disk fails or hangs.
    pub standby_dir: Option<PathBuf>,
    /// After this time a call to the disk hangs.
    pub stall_after: Duration,
    /// Size of one segment file.
    pub segment_bytes: u64,
    /// Bytes of free space below which it is told that the disk runs full.
    pub min_free: u64,
    pub retain: Retain,
    /// Records are sealed after this time at the latest.
    pub seal_every: Duration,
    pub anchors: Vec<Anchor>,
    /// What receipts are made with; there whenever a route gives them.
    pub receipt_key: Option<Secret>,
    /// Names of query parameters whose values are written as they are.
    pub query_values: Vec<String>,
    /// Path patterns whose `*` segments are secrets, as in `/invitations/*`.
    pub secret_paths: Vec<String>,
}

/// Which closed segments of the log are kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Retain {
    /// Those whose last record is not older.
    pub days: u32,
    /// And of them the newest, up to so much altogether.
    pub max_bytes: Option<u64>,
}

/// `[[audit.anchor]]`: where the notes of seals go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Anchor {
    /// Inherited from whoever started the process.
    Descriptor(u32),
    /// Appended to.
    File(PathBuf),
}

impl std::fmt::Display for Anchor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Descriptor(number) => write!(f, "descriptor {number}"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Durability {
    /// On the device before the request is forwarded.
    Sync,
    /// In the operating system's cache: survives a crash of the process only.
    Write,
}

/// What happens to a request whose record cannot be made durable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnFailure {
    Continue,
    Refuse,
}

/// `[limits.NAME]`, keyed by client: `burst` at once, then `rate` per second.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limit {
    /// Tokens per `per`.
    pub rate: u32,
    pub per: Duration,
    pub burst: u32,
}

/// `[[ingress]]`
#[derive(Debug)]
pub struct Ingress {
    pub listen: Vec<SocketAddr>,
    pub redirect_http: Vec<SocketAddr>,
    pub tls: Tls,
    /// How long browsers shall not come without TLS.
    pub hsts: Option<Duration>,
    /// PROXY v1/v2 is required from these peers and not looked for from others.
    pub proxy_protocol_from: Vec<IpNet>,
    /// `None`: everyone.
    pub allow: Option<Vec<IpNet>>,
    pub deny: Vec<IpNet>,
    /// Names in [`Config::limits`].
    pub limits: Vec<String>,
    /// At least one. `hosts`/`upstream` given on the listener itself become its last route.
    pub routes: Vec<Route>,
}

/// `[ingress.tls]`
#[derive(Debug)]
pub struct Tls {
    /// The first certificate is for clients that no other is for, if those are served. None only if some are ordered.
    pub certificates: Vec<CertificateFiles>,
    /// Those that are ordered stand behind those from files.
    pub acme: Option<Arc<Acme>>,
    /// What may be ordered: the hosts of the listener's routes, nothing else.
    pub hosts: Vec<HostPattern>,
    pub unknown_sni: UnknownSni,
    pub min_version: TlsVersion,
    /// `None`: no client is asked for a certificate.
    pub client_auth: Option<ClientAuth>,
}

/// A chain, leaf first, and the leaf's private key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What a client gets whose server name no certificate is for, or that sends none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UnknownSni {
    /// The first certificate.
    Default,
    Refuse,
}

/// `client_auth`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientAuth {
    /// Authorities that issue client certificates.
    pub ca: PathBuf,
    /// Revocation lists; if there is any, each issuer must have one.
    pub crl: Vec<PathBuf>,
    pub mode: ClientAuthMode,
    /// Whether the upstream gets `Client-Cert-Chain` beside `Client-Cert`.
    pub forward_chain: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClientAuthMode {
    /// Asked for, and verified if there is one.
    Optional,
    /// No handshake without.
    Required,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsVersion {
    V12,
    V13,
}

/// `[[ingress.route]]`
#[derive(Debug)]
pub struct Route {
    /// Empty: any host.
    pub hosts: Vec<HostPattern>,
    /// A prefix of the path, beginning with `/`.
    pub path: String,
    pub allow: Option<Vec<IpNet>>,
    pub deny: Vec<IpNet>,
    pub limits: Vec<String>,
    /// Only for clients with a verified certificate.
    pub require_client_cert: bool,
    /// A name in [`Config::upstreams`].
    pub upstream: String,
    pub timeouts: Timeouts,
    /// Bytes of a request body; `None`: unbounded.
    pub max_body: Option<u64>,
    pub on_failure: OnFailure,
    /// Whether forwarded requests carry a receipt.
    pub receipt: bool,
}

/// A host name, or `*.` and a name for everything below it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HostPattern {
    Below(Box<str>),
    Exact(Host),
}

#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the whole request sent to the response head.
    pub response_head: Duration,
    /// Without a byte of a body, either way.
    pub idle: Duration,
    /// Without a byte of an event stream or an upgraded connection, both ways.
    pub stream_idle: Duration,
}

/// `[upstreams.NAME]`, or made from a URL given in place of a name.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Plain HTTP/1.1 servers, at least one; taken in turn.
    pub servers: Vec<Destination>,
    /// Idle connections kept, per worker.
    pub max_idle: usize,
    pub connect_timeout: Duration,
}
/// A password or key that is used as it is, and does not show itself.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(pub Box<[u8]>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

//! The configuration with meaning: what `raw` becomes once every value has been read and every name has been found.
//!
//! Nothing here can be wrong in itself: durations are durations, names of sets and limits have been replaced by what
//! they stand for or are known to exist. It is never exposed in the file's own form.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::addr::{Destination, Host};

use super::remark::Source;

mod acme;

pub use acme::{Acme, AcmeStore, Binding, Challenge, Hook, Issuer, RedisStore};

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
        if let Some(egress) = &self.egress {
            for (at, listener) in egress.listeners.iter().enumerate() {
                listens.push((format!("egress.listener[{at}].listen"), listener.listen));
            }
            for (at, forward) in egress.forwards.iter().enumerate() {
                listens.push((format!("egress.forward[{at}].listen"), forward.listen));
            }
        }
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
    /// Size of one segment file.
    pub segment_bytes: u64,
    /// Names of query parameters whose values are written as they are.
    pub query_values: Vec<String>,
    /// Path patterns whose `*` segments are secrets, as in `/invitations/*`.
    pub secret_paths: Vec<String>,
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

/// `[egress]`
#[derive(Debug)]
pub struct Egress {
    pub fixed_v4: Option<Ipv4Addr>,
    pub fixed_v6: Option<Ipv6Addr>,
    /// Local ports to dial from, inclusive; `None`: the system's range.
    pub ports: Option<(u16, u16)>,
    /// Name servers; empty: those of `/etc/resolv.conf`, without its search domains.
    pub resolvers: Vec<SocketAddr>,
    pub dial_timeout: Duration,
    /// Without a byte either way.
    pub idle: Duration,
    pub listeners: Vec<EgressListener>,
    pub forwards: Vec<Forward>,
    /// Empty: every public destination is allowed. Otherwise the first rule that matches decides, and none means deny.
    pub policy: Vec<PolicyRule>,
}

/// `[[egress.listener]]`
#[derive(Debug)]
pub struct EgressListener {
    pub listen: SocketAddr,
    pub http: bool,
    pub socks5: bool,
    /// At least one.
    pub clients: Vec<EgressClient>,
    /// Names in [`Config::limits`].
    pub limits: Vec<String>,
}

/// Who may use an egress listener. The first whose `from` holds the peer and whose password is right is the client.
#[derive(Debug)]
pub struct EgressClient {
    pub name: String,
    pub from: Vec<IpNet>,
    /// Basic or SOCKS5 password; the user is `name`. `None`: the address is enough.
    pub password: Option<Password>,
}

/// A password that does not show itself.
#[derive(Clone, Eq, PartialEq)]
pub struct Password(pub Box<[u8]>);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(..)")
    }
}

/// `[[egress.forward]]`; allows its own destination.
#[derive(Debug)]
pub struct Forward {
    pub name: String,
    pub listen: SocketAddr,
    pub to: Destination,
    /// Who may connect; loopback by default.
    pub from: Vec<IpNet>,
    /// Special-purpose addresses that `to` may nevertheless resolve to.
    pub addresses: Vec<IpNet>,
    /// Names in [`Config::limits`].
    pub limits: Vec<String>,
}

/// `[[egress.policy]]`
#[derive(Clone, Debug)]
pub struct PolicyRule {
    pub name: String,
    /// Names of egress clients; empty: all.
    pub clients: Vec<String>,
    pub destinations: Vec<DestinationPattern>,
    /// Inclusive ranges; empty: every port but 25.
    pub ports: Vec<(u16, u16)>,
    /// Special-purpose addresses that the destinations may nevertheless resolve to.
    pub addresses: Vec<IpNet>,
    pub action: Action,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    Allow,
    Deny,
    /// Allowed, and recorded as what would have been denied.
    Report,
}

/// What an egress rule matches: a name, everything below a name, any name, or addresses.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DestinationPattern {
    /// `*`
    Any,
    /// `*.example.com`
    Below(Box<str>),
    Exact(Host),
    /// Literal addresses within a CIDR.
    Net(IpNet),
}

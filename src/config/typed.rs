//! The configuration with meaning: what `raw` becomes once every value has been read and every name has been found.
//!
//! Nothing here can be wrong in itself: durations are durations, names of sets and limits have been replaced by what
//! they stand for or are known to exist. It is never exposed in the file's own form.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::addr::{Destination, Host};

use super::remark::Source;

mod egress;

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

#[derive(Debug)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub min_version: TlsVersion,
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

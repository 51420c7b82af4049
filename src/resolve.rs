//! Names to addresses: by the configured name servers and nothing else.
//!
//! Never getaddrinfo, no search domains, no hosts file: a name means the same on every machine. Answers are kept as
//! long as they say, in a bounded cache. What comes out is not judged yet; `policy/address` does that, and nothing is
//! resolved a second time. Pinned to the runtime on which it is first used.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::{TokioResolver, system_conf};
use tokio::time::timeout;

use crate::addr::Families;
use crate::outcome::Refusal;
use crate::wire::dns::Data;

/// For a whole name, all families and attempts together.
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);
/// For one query to one server.
const QUERY_LIMIT: Duration = Duration::from_secs(2);
/// Queries for one record type before giving up.
const ATTEMPTS: usize = 2;
/// How long the other family is waited for once one has answered (RFC 8305 section 3, widened for busy name servers).
const FAMILY_GRACE: Duration = Duration::from_millis(250);
/// Answers held.
const CACHE_ENTRIES: u64 = 4096;
/// However long an answer says it is good: a data source that moves is found again within it.
const ANSWER_AGE_MAX: Duration = Duration::from_secs(3600);
/// Records of one answer that are passed on.
const RECORDS_MAX: usize = 64;
/// A name that does not exist may exist soon.
const ABSENCE_AGE_MAX: Duration = Duration::from_secs(30);

/// Asks name servers.
pub struct Resolver {
    inner: TokioResolver,
}

/// No resolver can be made: no name server is configured, or the system's cannot be read.
#[derive(Debug)]
pub struct Unusable(NetError);

impl Resolver {
    /// Asks `servers`, or those of `/etc/resolv.conf` if there are none.
    pub fn new(servers: &[SocketAddr]) -> Result<Self, Unusable> {
        let name_servers = if servers.is_empty() {
            let (system, _) = system_conf::read_system_conf().map_err(Unusable)?;
            system.name_servers().to_vec()
        } else {
            servers.iter().copied().map(name_server).collect()
        };
        let config = ResolverConfig::from_name_servers(name_servers);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options();
        let inner = builder.build().map_err(Unusable)?;
        Ok(Self { inner })
    }

    /// The addresses of `name` in the families that can be dialled.
    pub async fn resolve(&self, name: &str, families: Families) -> Result<Vec<IpAddr>, Refusal> {
        // The final dot keeps every search rule out.
        let name = Name::from_ascii(format!("{name}.")).map_err(|_| Refusal::NameInvalid)?;
        timeout(RESOLVE_LIMIT, self.families(&name, families))
            .await
            .unwrap_or(Err(Refusal::ResolveTimeout))
    }

    /// The records of `name` that say where a service is (SRV) or what to know about it (TXT). No address is in them.
    pub async fn records(&self, name: &str, kind: u16) -> Result<Vec<Data>, Refusal> {
        let name = Name::from_ascii(format!("{name}.")).map_err(|_| Refusal::NameInvalid)?;
        let lookup = self.inner.lookup(name, RecordType::from(kind));
        let lookup = timeout(RESOLVE_LIMIT, lookup).await;
        let found = lookup.map_err(|_| Refusal::ResolveTimeout)?;
        let found = found.map_err(|error| refusal(&error))?;
        Ok(found
            .answers()
            .iter()
            .filter_map(data)
            .take(RECORDS_MAX)
            .collect())
    }

    async fn families(&self, name: &Name, families: Families) -> Result<Vec<IpAddr>, Refusal> {
        let v4 = || self.one(name, RecordType::A);
        let v6 = || self.one(name, RecordType::AAAA);
        let (found, other) = match (families.v4, families.v6) {
            (true, true) => return both(v4(), v6()).await,
            (true, false) => (v4().await, RecordType::AAAA),
            (false, true) => (v6().await, RecordType::A),
            (false, false) => return Err(Refusal::FamilyWithoutAddress),
        };
        match found {
            // Only now does it matter whether the other family would have had an address: for the answer.
            Err(Refusal::NameNotFound) if self.one(name, other).await.is_ok() => {
                Err(Refusal::FamilyWithoutAddress)
            }
            found => found,
        }
    }

    /// At least one address.
    async fn one(&self, name: &Name, kind: RecordType) -> Result<Vec<IpAddr>, Refusal> {
        let lookup = self.inner.lookup(name.clone(), kind).await;
        let found: Vec<IpAddr> = lookup
            .map_err(|error| refusal(&error))?
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::A(v4) => Some(IpAddr::V4(v4.0)),
                RData::AAAA(v6) => Some(IpAddr::V6(v6.0)),
                _ => None,
            })
            .collect();
        if found.is_empty() {
            return Err(Refusal::NameNotFound);
        }
        Ok(found)
    }
}

/// What both give; the slower one is waited for only briefly once the other has an address.
async fn both(
    v4: impl Future<Output = Result<Vec<IpAddr>, Refusal>>,
    v6: impl Future<Output = Result<Vec<IpAddr>, Refusal>>,
) -> Result<Vec<IpAddr>, Refusal> {
    let (mut v4, mut v6) = (pin!(v4), pin!(v6));
    let (first, second) = tokio::select! {
        first = &mut v4 => match first {
            Ok(found) => (Ok(found), timeout(FAMILY_GRACE, v6).await.ok()),
            Err(refusal) => (Err(refusal), Some(v6.await)),
        },
        first = &mut v6 => match first {
            Ok(found) => (Ok(found), timeout(FAMILY_GRACE, v4).await.ok()),
            Err(refusal) => (Err(refusal), Some(v4.await)),
        },
    };
    match (first, second) {
        (Ok(mut found), Some(Ok(more))) => {
            found.extend(more);
            Ok(found)
        }
        (Ok(found), _) | (Err(_), Some(Ok(found))) => Ok(found),
        // A server that failed for one family says less than one that knows there is nothing.
        (Err(Refusal::NameNotFound), Some(Err(other))) => Err(other),
        (Err(refusal), _) => Err(refusal),
    }
}

fn data(record: &Record) -> Option<Data> {
    match &record.data {
        RData::SRV(srv) => Some(Data::Service {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            target: srv.target.to_ascii().into(),
        }),
        RData::TXT(txt) => Some(Data::Text(txt.txt_data.clone())),
        _ => None,
    }
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(address.ip());
    let on_port = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    config.connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()]
        .map(on_port)
        .into();
    config
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = QUERY_LIMIT;
    options.attempts = ATTEMPTS;
    options.cache_size = CACHE_ENTRIES;
    options.positive_max_ttl = Some(ANSWER_AGE_MAX);
    options.negative_max_ttl = Some(ABSENCE_AGE_MAX);
    options.case_randomization = false; // some authoritative servers do not keep the case
    options
}

fn refusal(error: &NetError) -> Refusal {
    match error {
        NetError::Timeout => Refusal::ResolveTimeout,
        NetError::Dns(DnsError::NoRecordsFound(none))
            if matches!(
                none.response_code,
                ResponseCode::NoError | ResponseCode::NXDomain
            ) =>
        {
            Refusal::NameNotFound
        }
        _ => {
            tracing::debug!(%error, "a name could not be resolved");
            Refusal::ResolveFailed
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no name server can be used")
    }
}

impl std::error::Error for Unusable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

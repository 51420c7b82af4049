//! The way out, with meaning: `[egress]` and what is in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{HostPattern, Secret};
use crate::addr::{Destination, Host};

/// `[egress]`
#[derive(Debug)]
pub struct Egress {
    pub fixed_v4: Option<Ipv4Addr>,
    pub fixed_v6: Option<Ipv6Addr>,
    /// How the outside sees them, where an address translation sits in between.
    pub advertised_v4: Option<Ipv4Addr>,
    pub advertised_v6: Option<Ipv6Addr>,
    /// Local ports to dial from, inclusive; `None`: the system's range.
    pub ports: Option<(u16, u16)>,
    /// Name servers; empty: those of `/etc/resolv.conf`, without its search domains.
    pub resolvers: Vec<SocketAddr>,
    pub dial_timeout: Duration,
    /// Without a byte either way.
    pub idle: Duration,
    pub listeners: Vec<EgressListener>,
    pub forwards: Vec<Forward>,
    pub transparent: Option<Transparent>,
    /// Empty: every public destination is allowed. Otherwise the first rule that matches decides, and none means deny.
    pub policy: Vec<PolicyRule>,
}

impl Egress {
    /// Every client, whichever way it comes, once and in order.
    pub fn client_names(&self) -> Vec<&str> {
        let gates = self.listeners.iter().map(|l| &l.clients);
        let clients = gates.chain(self.transparent.iter().map(|t| &t.clients));
        let names = clients.flatten().map(|client| &*client.name);
        let mut names: Vec<&str> = names
            .chain(self.forwards.iter().map(|f| &*f.name))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Every address that is listened on, under its key.
    pub(super) fn listens(&self) -> Vec<(String, SocketAddr)> {
        let mut listens = Vec::new();
        for (at, listener) in self.listeners.iter().enumerate() {
            listens.push((format!("egress.listener[{at}].listen"), listener.listen));
        }
        for (at, forward) in self.forwards.iter().enumerate() {
            listens.push((format!("egress.forward[{at}].listen"), forward.listen));
        }
        if let Some(transparent) = &self.transparent {
            let lists = [
                ("listen", &transparent.listen),
                ("dns_listen", &transparent.dns_listen),
            ];
            for (name, list) in lists {
                let keyed = list.iter().enumerate();
                listens.extend(keyed.map(|(n, a)| (format!("egress.transparent.{name}[{n}]"), *a)));
            }
        }
        listens
    }
}

/// `[[egress.listener]]`
#[derive(Debug)]
pub struct EgressListener {
    pub listen: SocketAddr,
    pub http: bool,
    /// SOCKS4 and 4a: for clients without password only.
    pub socks4: bool,
    pub socks5: bool,
    /// At least one.
    pub clients: Vec<EgressClient>,
    /// Names in [`super::Config::limits`].
    pub limits: Vec<String>,
}

/// Who may use an egress listener. The first whose `from` holds the peer and whose password is right is the client.
#[derive(Debug)]
pub struct EgressClient {
    pub name: String,
    pub from: Vec<IpNet>,
    /// Basic or SOCKS5 password; the user is `name`. `None`: the address is enough.
    pub password: Option<Password>,
    /// Connections out at the same time, in each process; `None`: as many as sessions.
    pub max_tunnels: Option<usize>,
}

/// What a client's password is compared with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Password {
    Plain(Secret),
    Hashed(PasswordHash),
}

/// What is left of a password: PBKDF2-HMAC-SHA256 (RFC 8018).
#[derive(Clone, Eq, PartialEq)]
pub struct PasswordHash {
    pub iterations: NonZeroU32,
    pub salt: Box<[u8]>,
    pub hash: Box<[u8]>,
}

impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

/// `[[egress.forward]]`; allows its own destination.
#[derive(Debug)]
pub struct Forward {
    pub name: String,
    pub listen: SocketAddr,
    pub to: Destination,
    /// In which a refusal is told.
    pub protocol: Protocol,
    /// Who may connect; loopback by default.
    pub from: Vec<IpNet>,
    /// As that of a listener's client.
    pub max_tunnels: Option<usize>,
    /// Special-purpose addresses that `to` may nevertheless resolve to.
    pub addresses: Vec<IpNet>,
    /// Names in [`super::Config::limits`].
    pub limits: Vec<String>,
}

/// What a data source speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    Mongodb,
    Mysql,
    /// Unknown: a refused connection is reset.
    None,
    Postgres,
    Redis,
    Sqlserver,
    /// TLS from the first byte, whatever is inside.
    Tls,
}

impl Protocol {
    /// What is usually spoken at this port.
    pub fn usual(port: u16) -> Self {
        match port {
            443 => Self::Tls,
            1433 => Self::Sqlserver,
            3306 => Self::Mysql,
            5432 => Self::Postgres,
            6379 => Self::Redis,
            27017 => Self::Mongodb,
            _ => Self::None,
        }
    }
}

/// `[egress.transparent]`
#[derive(Debug)]
pub struct Transparent {
    /// At least one.
    pub listen: Vec<SocketAddr>,
    pub mode: Diversion,
    /// At least one; UDP and TCP.
    pub dns_listen: Vec<SocketAddr>,
    pub synthetic: Synthetic,
    /// At least one; none of them has a password.
    pub clients: Vec<EgressClient>,
    /// How long a client may remember a synthetic address.
    pub ttl: Duration,
    /// Names in [`super::Config::limits`], for connections.
    pub limits: Vec<String>,
    /// Names in [`super::Config::limits`], for questions.
    pub dns_limits: Vec<String>,
    pub forward_to: Option<ForwardTo>,
}

/// How the firewall brings connections that were meant for somebody else.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Diversion {
    /// It rewrites the destination, and tells the original one on request.
    Redirect,
    /// It leaves the destination as it is; the listener takes connections to any address, which needs a privilege.
    Tproxy,
}

/// Where synthetic addresses are taken from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Synthetic {
    pub v4: Ipv4Net,
    pub v6: Option<Ipv6Net>,
}

impl Synthetic {
    /// The blocks.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> {
        let v6 = self.v6.map(IpNet::V6);
        [IpNet::V4(self.v4)].into_iter().chain(v6)
    }

    /// Whether `address` is one of them, handed out or not.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.v4.contains(&v4),
            IpAddr::V6(v6) => self.v6.is_some_and(|net| net.contains(&v6)),
        }
    }
}

/// `egress.transparent.forward_to`: names that somebody else answers for.
#[derive(Debug)]
pub struct ForwardTo {
    pub names: Vec<HostPattern>,
    /// At least one; asked in turn.
    pub servers: Vec<SocketAddr>,
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

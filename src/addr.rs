//! Names and addresses: one canonical form each, so that a list, a limit, the log and a dial mean the same thing.
//!
//! A [`Host`] is canonical once made: lower case, no trailing dot, IDNA applied, and never a spelling of an address
//! that only a lenient resolver would understand (`2130706433`, `0x7f.1`, `127.1`). An IPv4-mapped IPv6 address is
//! folded to IPv4 on the way in. Nothing here does I/O.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

mod host;
mod prefix_set;

pub use host::{Host, HostError};
pub use prefix_set::PrefixSet;

/// The other end of an accepted socket, canonical.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Peer(SocketAddr);

impl Peer {
    /// Folds an IPv4-mapped IPv6 address to IPv4.
    pub fn new(socket: SocketAddr) -> Self {
        Self(SocketAddr::new(socket.ip().to_canonical(), socket.port()))
    }

    /// Address and port.
    pub fn socket(self) -> SocketAddr {
        self.0
    }
}

/// The families of addresses that are asked for or can be dialled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Families {
    pub v4: bool,
    pub v6: bool,
}

impl Families {
    /// Both of them.
    pub const BOTH: Self = Self { v4: true, v6: true };

    /// Whether the family of `address` is among them.
    pub fn have(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }
}

/// A host and a port, as an egress client named them.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Destination {
    /// Canonical.
    pub host: Host,
    /// 1 to 65535.
    pub port: u16,
}

impl Destination {
    /// Reads `host:port` and `[v6]:port`. IPv6 without brackets and port 0 are refused.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let (host, port) = text.rsplit_once(':').ok_or(HostError::NoPort)?;
        let port = port
            .parse::<u16>()
            .ok()
            .filter(|p| *p != 0)
            .ok_or(HostError::NoPort)?;
        Ok(Self {
            host: Host::parse(host)?,
            port,
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(v6)) => write!(f, "[{v6}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

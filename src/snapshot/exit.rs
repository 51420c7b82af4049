//! The egress part of a snapshot: lists as sets, limits as quotas, rules as judges.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Leads, Listen, quotas, set};
use crate::addr::PrefixSet;
use crate::config::typed::{self, Config, Diversion, HostPattern, Synthetic};
use crate::limit::Quota;
use crate::policy::destination::Destinations;

/// The egress part, compiled.
pub struct Exit {
    pub listeners: Vec<Arc<Gate>>,
    pub forwards: Vec<Arc<Forward>>,
    pub transparent: Option<Arc<Transparent>>,
    pub destinations: Destinations,
}

/// An egress listener, compiled.
pub struct Gate {
    pub listen: SocketAddr,
    pub http: bool,
    pub socks4: bool,
    pub socks5: bool,
    pub clients: Vec<GateClient>,
    pub quotas: Vec<Quota>,
}

/// Who may use a [`Gate`].
pub struct GateClient {
    pub name: Arc<str>,
    pub from: PrefixSet,
    pub password: Option<typed::Password>,
    pub max_tunnels: Option<usize>,
}

/// A named forward, compiled.
pub struct Forward {
    pub name: Arc<str>,
    pub listen: SocketAddr,
    pub from: PrefixSet,
    pub to: crate::addr::Destination,
    pub protocol: typed::Protocol,
    pub max_tunnels: Option<usize>,
    /// Allows `to`, and the addresses given beside it.
    pub destinations: Destinations,
    pub quotas: Vec<Quota>,
}

/// What the firewall redirects, and the names it was meant for, compiled.
pub struct Transparent {
    pub listen: Vec<SocketAddr>,
    pub dns_listen: Vec<SocketAddr>,
    pub synthetic: Synthetic,
    pub clients: Vec<GateClient>,
    /// Whole seconds.
    pub ttl: Duration,
    /// Of connections.
    pub quotas: Vec<Quota>,
    /// Of questions.
    pub dns_quotas: Vec<Quota>,
    pub forward_to: Option<ForwardTo>,
}

/// Names that somebody else answers for.
pub struct ForwardTo {
    pub names: Vec<HostPattern>,
    /// At least one.
    pub servers: Arc<[SocketAddr]>,
}

pub(super) fn exit(config: &Config, egress: &typed::Egress) -> Exit {
    Exit {
        listeners: egress
            .listeners
            .iter()
            .map(|l| Arc::new(gate(config, l)))
            .collect(),
        forwards: egress
            .forwards
            .iter()
            .map(|f| Arc::new(forward(config, f)))
            .collect(),
        transparent: egress
            .transparent
            .as_ref()
            .map(|t| Arc::new(transparent(config, t))),
        destinations: Destinations::new(&egress.policy),
    }
}

fn gate(config: &Config, listener: &typed::EgressListener) -> Gate {
    Gate {
        listen: listener.listen,
        http: listener.http,
        socks4: listener.socks4,
        socks5: listener.socks5,
        clients: clients(&listener.clients),
        quotas: quotas(config, &listener.limits),
    }
}

fn clients(clients: &[typed::EgressClient]) -> Vec<GateClient> {
    let client = |client: &typed::EgressClient| GateClient {
        name: client.name.as_str().into(),
        from: set(&client.from),
        password: client.password.clone(),
        max_tunnels: client.max_tunnels,
    };
    clients.iter().map(client).collect()
}

fn transparent(config: &Config, transparent: &typed::Transparent) -> Transparent {
    let forward_to = transparent.forward_to.as_ref().map(|to| ForwardTo {
        names: to.names.clone(),
        servers: to.servers.as_slice().into(),
    });
    Transparent {
        listen: transparent.listen.clone(),
        dns_listen: transparent.dns_listen.clone(),
        synthetic: transparent.synthetic.clone(),
        clients: clients(&transparent.clients),
        ttl: transparent.ttl,
        quotas: quotas(config, &transparent.limits),
        dns_quotas: quotas(config, &transparent.dns_limits),
        forward_to,
    }
}

/// The sockets of the transparent way.
pub(super) fn diverted(transparent: &typed::Transparent) -> impl Iterator<Item = Listen> {
    let leads = match transparent.mode {
        Diversion::Redirect => Leads::Out,
        Diversion::Tproxy => Leads::Tproxy,
    };
    let streams = transparent.listen.iter().map(move |a| (leads, *a));
    let names = transparent.dns_listen.iter().map(|a| (Leads::Names, *a));
    streams.chain(names)
}

fn forward(config: &Config, forward: &typed::Forward) -> Forward {
    Forward {
        name: forward.name.as_str().into(),
        listen: forward.listen,
        from: set(&forward.from),
        to: forward.to.clone(),
        max_tunnels: forward.max_tunnels,
        protocol: forward.protocol,
        destinations: Destinations::only(&forward.name, &forward.to, &forward.addresses),
        quotas: quotas(config, &forward.limits),
    }
}

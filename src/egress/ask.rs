//! What a client wants, and which rules are asked about it.
//!
//! The same question is put twice: when the ask is made, and again when a newer snapshot is in force while it is being
//! carried out.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::addr::{Destination, Peer};
use crate::clock::Id;
use crate::limit::Quota;
use crate::outcome::Refusal;
use crate::policy::destination::Destinations;
use crate::snapshot::{Gate, GateClient, Snapshot};

/// What a client wants, and through which door it asked.
pub(super) struct Ask {
    pub(super) id: Id,
    pub(super) listen: SocketAddr,
    pub(super) peer: Peer,
    pub(super) client: Arc<str>,
    pub(super) door: Door,
    pub(super) destination: Destination,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Door {
    Connect,
    Forward,
    Http,
    Socks4,
    Socks5,
    Transparent,
}

impl Door {
    /// The word in the record.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Forward => "forward",
            Self::Http => "http",
            Self::Socks4 => "socks4",
            Self::Socks5 => "socks5",
            Self::Transparent => "transparent",
        }
    }
}

/// What an ask is judged and counted by.
pub(super) struct Rules<'a> {
    pub(super) destinations: &'a Destinations,
    pub(super) quotas: &'a [Quota],
    pub(super) max_tunnels: Option<usize>,
}

/// The rules for this ask, if its listener is still there and still lets this client in.
pub(super) fn permitted<'a>(snapshot: &'a Snapshot, ask: &Ask) -> Result<Rules<'a>, Refusal> {
    let exit = snapshot.egress.as_ref().ok_or(Refusal::PolicyChanged)?;
    let address = ask.peer.socket().ip();
    if ask.door == Door::Forward {
        let forward = exit.forwards.iter().find(|f| f.listen == ask.listen);
        let forward = forward.ok_or(Refusal::PolicyChanged)?;
        return if forward.from.contains(address) {
            Ok(Rules {
                destinations: &forward.destinations,
                quotas: &forward.quotas,
                max_tunnels: forward.max_tunnels,
            })
        } else {
            Err(Refusal::ClientDenied)
        };
    }
    let (clients, quotas) = if ask.door == Door::Transparent {
        let transparent = exit.transparent.as_ref().ok_or(Refusal::PolicyChanged)?;
        if !transparent.listen.contains(&ask.listen) {
            return Err(Refusal::PolicyChanged);
        }
        (&transparent.clients, &transparent.quotas)
    } else {
        let gate = gate(snapshot, ask.listen)?;
        (&gate.clients, &gate.quotas)
    };
    let known = |c: &&GateClient| c.name == ask.client && c.from.contains(address);
    let client = clients.iter().find(known).ok_or(Refusal::ClientDenied)?;
    Ok(Rules {
        destinations: &exit.destinations,
        quotas,
        max_tunnels: client.max_tunnels,
    })
}

/// The gate at `listen`, if it is still configured.
pub(super) fn gate(snapshot: &Snapshot, listen: SocketAddr) -> Result<&Arc<Gate>, Refusal> {
    snapshot
        .egress
        .as_ref()
        .and_then(|exit| exit.listeners.iter().find(|g| g.listen == listen))
        .ok_or(Refusal::PolicyChanged)
}

//! The transparent door: connections that the firewall redirected, taken for what they were meant for.
//!
//! The address that a connection was meant for says which name the client had looked up, if it is synthetic;
//! otherwise it is the destination itself, and judged as an address. Not a byte is waited for: some servers speak
//! first. A connection that nobody redirected is closed; a refusal is told in what is usually spoken at the port.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::identify::expected;
use super::named_forward::Caller;
use super::names::InUse;
use super::{Ask, Door, Egress, Reply};
use crate::addr::{Destination, Host, Peer};
use crate::clock::Id;
use crate::config::typed::Protocol;
use crate::outcome::Refusal;
use crate::sessions::Session;
use crate::snapshot::{Snapshot, Transparent};
use crate::socket;

/// Serves one connection.
pub(super) async fn serve(
    egress: &Egress,
    tcp: TcpStream,
    session: &Session,
    listen: SocketAddr,
    peer: Peer,
) {
    let snapshot = egress.live.load();
    let exit = snapshot.egress.as_ref();
    let Some(transparent) = exit.and_then(|exit| exit.transparent.clone()) else {
        return; // taken away a moment ago
    };
    let meant = socket::original_destination(&tcp);
    let Ok(meant) = meant.map(|m| SocketAddr::new(m.ip().to_canonical(), m.port())) else {
        return; // gone before it was served
    };
    let caller = Caller::new(tcp, Protocol::usual(meant.port()));
    let found = match expected(&transparent.clients, peer) {
        None => Err(Refusal::ClientDenied),
        Some(client) => wanted(egress, &snapshot, &transparent, meant)
            .map(|(destination, in_use)| (Arc::clone(client), destination, in_use)),
    };
    drop((snapshot, transparent));
    let id = Id::new();
    let (client, destination, in_use) = match found {
        Ok(found) => found,
        Err(refusal) => {
            egress.denied(listen, peer, Some(id), &meant.to_string(), refusal);
            if refusal == Refusal::SyntheticUnknown {
                caller.refuse(id, refusal.into(), session);
            } else {
                caller.reset(); // no client of ours
            }
            return;
        }
    };
    let ask = Ask {
        id,
        listen,
        peer,
        client,
        door: Door::Transparent,
        destination,
    };
    let reply = Reply::Forward(caller);
    egress.pass(ask, session, reply).await;
    drop(in_use);
}

/// What a connection to `meant` is for.
fn wanted(
    egress: &Egress,
    snapshot: &Snapshot,
    transparent: &Transparent,
    meant: SocketAddr,
) -> Result<(Destination, Option<InUse>), Refusal> {
    let port = meant.port();
    if transparent.synthetic.contains(meant.ip()) {
        let in_use = egress.names.open(snapshot, meant.ip());
        let in_use = in_use.ok_or(Refusal::SyntheticUnknown)?;
        let host = Host::Name((&*in_use.name).into());
        return Ok((Destination { host, port }, Some(in_use)));
    }
    if egress.grounds.of(snapshot).own.is_door(meant.ip(), port) {
        return Err(Refusal::NotRedirected);
    }
    let host = Host::Address(meant.ip());
    Ok((Destination { host, port }, None))
}

//! Named forwards: a listener that stands for one data source.
//!
//! A refusal is told in the data source's own protocol where that is known (`dialects`); otherwise the connection is
//! reset, so that a driver notices at once. What was refused and why is in the audit log either way.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::dialects::{Says, tell};
use super::problem::Refused;
use super::{Ask, Carried, Door, Egress, Reply, outcome};
use crate::addr::Peer;
use crate::clock::Id;
use crate::config::typed::Protocol;
use crate::dial::Dialled;
use crate::outcome::Refusal;
use crate::relay::{Flow, relay, reset};
use crate::sessions::Session;
use crate::snapshot::Forward;

/// A client of a forward, waiting.
pub(super) struct Caller {
    tcp: TcpStream,
    protocol: Protocol,
}

/// Serves one connection.
pub(super) async fn serve(
    egress: &Egress,
    tcp: TcpStream,
    session: &Session,
    peer: Peer,
    forward: &Forward,
) {
    if !forward.from.contains(peer.socket().ip()) {
        // A stranger is told nothing.
        egress.denied(forward.listen, peer, None, "", Refusal::ClientDenied);
        return reset(&tcp);
    }
    let ask = Ask {
        id: Id::new(),
        listen: forward.listen,
        peer,
        client: Arc::clone(&forward.name),
        door: Door::Forward,
        destination: forward.to.clone(),
    };
    let reply = Reply::Forward(Caller::new(tcp, forward.protocol));
    egress.pass(ask, session, reply).await;
}

impl Caller {
    pub(super) fn new(tcp: TcpStream, protocol: Protocol) -> Self {
        Self { tcp, protocol }
    }

    /// Closes without a word.
    pub(super) fn reset(self) {
        reset(&self.tcp);
    }

    pub(super) fn refuse(self, id: Id, refused: Refused, session: &Session) -> Option<u16> {
        tell(self.tcp, self.protocol, Says::new(id, refused), session);
        None
    }

    pub(super) async fn carry(
        self,
        dialled: Dialled,
        flow: &Flow,
        idle: Duration,
        stop: impl Future<Output = Refusal>,
    ) -> Carried {
        let end = relay((self.tcp, &[]), dialled.stream, flow, idle, stop).await;
        Carried {
            outcome: outcome(&end),
            status: None,
        }
    }
}

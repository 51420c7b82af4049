//! Named forwards: a listener that stands for one data source.
//!
//! There is no protocol in which to say no: a refused connection is reset, so that a driver notices at once. What was
//! refused and why is in the audit log.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::{Ask, Carried, Door, Egress, Reply, outcome};
use crate::addr::Peer;
use crate::clock::Id;
use crate::dial::Dialled;
use crate::outcome::Refusal;
use crate::relay::{Flow, relay, reset};
use crate::sessions::Session;
use crate::snapshot::Forward;

/// A client of a forward, waiting.
pub(super) struct Caller(TcpStream);

/// Serves one connection.
pub(super) async fn serve(
    egress: &Egress,
    tcp: TcpStream,
    session: &Session,
    peer: Peer,
    forward: &Forward,
) {
    let ask = Ask {
        id: Id::new(),
        listen: forward.listen,
        peer,
        client: Arc::clone(&forward.name),
        door: Door::Forward,
        destination: forward.to.clone(),
    };
    let reply = Reply::Forward(Caller::new(tcp));
    egress.pass(ask, session, reply).await;
}

impl Caller {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self(tcp)
    }

    pub(super) fn refuse(self) -> Option<u16> {
        reset(&self.0);
        None
    }

    pub(super) async fn carry(
        self,
        dialled: Dialled,
        flow: &Flow,
        idle: Duration,
        stop: impl Future<Output = Refusal>,
    ) -> Carried {
        let end = relay((self.0, &[]), dialled.stream, flow, idle, stop).await;
        Carried {
            outcome: outcome(&end),
            status: None,
        }
    }
}

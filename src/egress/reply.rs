//! How the doors say no, say yes, and carry out: one variant for each.

use std::sync::Arc;
use std::time::Duration;

use super::problem::Refused;
use super::{http_proxy, named_forward, socks};
use crate::clock::Id;
use crate::dial::Dialled;
use crate::outcome::{Outcome, Refusal};
use crate::relay::{End, Flow};
use crate::sessions::Session;

/// How an ask is answered and, if the answer is yes, carried out.
pub(super) enum Reply {
    Connect(http_proxy::Tunnel),
    Forward(named_forward::Caller),
    Http(http_proxy::Exchange),
    Socks5(socks::Caller),
}

/// How carrying out ended.
pub(super) struct Carried {
    pub(super) outcome: Outcome,
    pub(super) status: Option<u16>,
}

impl Reply {
    /// Ends when the client has gone away, as far as its door can tell.
    pub(super) async fn gone(&mut self) {
        match self {
            Self::Connect(tunnel) => tunnel.gone().await,
            Self::Http(exchange) => exchange.gone().await,
            Self::Forward(_) | Self::Socks5(_) => std::future::pending().await,
        }
    }

    /// Says no; gives the HTTP status of the answer, if it has one.
    pub(super) async fn refuse(self, id: Id, refused: Refused, session: &Session) -> Option<u16> {
        match self {
            Self::Connect(tunnel) => tunnel.refuse(id, refused, session),
            Self::Http(exchange) => exchange.refuse(id, refused),
            Self::Forward(caller) => caller.refuse(id, refused, session),
            Self::Socks5(caller) => caller.refuse(refused.refusal, session).await,
        }
    }

    /// Says yes, and moves bytes until the end or until `stop`.
    pub(super) async fn carry(
        self,
        id: Id,
        dialled: Dialled,
        flow: &Arc<Flow>,
        idle: Duration,
        stop: impl Future<Output = Refusal> + Send,
    ) -> Carried {
        match self {
            Self::Connect(tunnel) => tunnel.carry(dialled, flow, idle, stop).await,
            Self::Http(exchange) => exchange.carry(id, dialled, flow, idle, stop).await,
            Self::Forward(caller) => caller.carry(dialled, flow, idle, stop).await,
            Self::Socks5(caller) => caller.carry(dialled, flow, idle, stop).await,
        }
    }
}

impl Carried {
    pub(super) fn aborted() -> Self {
        Self {
            outcome: Outcome::Aborted,
            status: None,
        }
    }
}

/// What the terminal record says of a relay that ended so.
pub(super) fn outcome(end: &End<Refusal>) -> Outcome {
    match end {
        End::Finished => Outcome::Served,
        End::Idle => Outcome::Failed(Refusal::ConnectionIdle),
        End::Broken {
            destination: true, ..
        } => Outcome::Failed(Refusal::DestinationBroken),
        End::Broken {
            destination: false, ..
        } => Outcome::Aborted,
        End::Stopped(refusal) => Outcome::Failed(*refusal),
    }
}

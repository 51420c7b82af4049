//! The open listeners: which address leads to which wing.
//!
//! A reload binds what is new before anything is closed, leaves alone what stays, and closes the rest last. A wing is
//! one instance per worker; the worker that a connection was handed to picks its own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::egress::Egress;
use crate::ingress::Ingress;
use crate::listener::{BindError, Bound, BoundDatagrams, Listener, Reception};
use crate::snapshot::{Leads, Listen, Snapshot};
use crate::telemetry::Way;
use crate::wire::dns::QUESTION_BYTES_MAX;

/// Both wings, one instance per worker.
#[derive(Clone)]
pub(super) struct Wings {
    pub(super) ingress: Arc<[Arc<Ingress>]>,
    pub(super) egress: Arc<[Arc<Egress>]>,
}

/// What was bound for one [`Listen`].
pub(super) struct Laid {
    stream: Bound,
    /// Beside it, at the same address.
    datagrams: Option<BoundDatagrams>,
}

/// Every accepting listener.
pub(super) struct Doors {
    open: HashMap<Listen, Vec<Listener>>,
    wings: Wings,
    reception: Reception,
}

impl Doors {
    /// None open yet.
    pub(super) fn new(wings: Wings, reception: Reception) -> Self {
        Self {
            open: HashMap::new(),
            wings,
            reception,
        }
    }

    /// Binds what `snapshot` listens on and is not open yet; nothing is accepted or closed so far.
    pub(super) fn bind(&self, snapshot: &Snapshot) -> Result<Vec<(Listen, Laid)>, BindError> {
        snapshot
            .listens()
            .into_iter()
            .filter(|listen| !self.open.contains_key(listen))
            .map(|listen| Ok((listen, Laid::new(listen)?)))
            .collect()
    }

    /// Accepts on what was bound, and closes what `snapshot` no longer names.
    pub(super) fn open(&mut self, bound: Vec<(Listen, Laid)>, snapshot: &Snapshot) {
        for (listen, bound) in bound {
            let seat = self.open.len();
            tracing::info!(address = %bound.stream.address(), leads = ?listen.0, "listening");
            let listeners = self.lead(listen, bound, seat);
            self.open.insert(listen, listeners);
        }
        let named = snapshot.listens();
        self.open.retain(|key, _| {
            let stays = named.contains(key);
            if !stays {
                tracing::info!(address = %key.1, leads = ?key.0, "no longer listening");
            }
            stays
        });
    }

    /// Stops accepting everywhere.
    pub(super) fn close(&mut self) {
        self.open.clear();
    }

    /// The address as the configuration has it is how the wing finds its listener in the snapshot.
    fn lead(&self, (leads, named): Listen, laid: Laid, seat: usize) -> Vec<Listener> {
        let (reception, bound) = (self.reception.clone(), laid.stream);
        let (ingress, egress) = (
            Arc::clone(&self.wings.ingress),
            Arc::clone(&self.wings.egress),
        );
        let stream = match leads {
            Leads::In => bound.accept(Way::Ingress, seat, reception, move |seat, tcp, session| {
                Arc::clone(&ingress[seat]).connection(tcp, session, named)
            }),
            Leads::Redirect => {
                bound.accept(Way::Ingress, seat, reception, move |seat, tcp, session| {
                    Arc::clone(&ingress[seat]).redirect(tcp, session, named)
                })
            }
            Leads::Out | Leads::Tproxy => {
                bound.accept(Way::Egress, seat, reception, move |seat, tcp, session| {
                    Arc::clone(&egress[seat]).connection(tcp, session, named)
                })
            }
            Leads::Names => {
                bound.accept(Way::Egress, seat, reception, move |seat, tcp, session| {
                    Arc::clone(&egress[seat]).questions(tcp, session, named)
                })
            }
        };
        let datagrams = laid.datagrams.map(|bound| self.answer(named, bound, seat));
        [stream].into_iter().chain(datagrams).collect()
    }

    fn answer(&self, named: SocketAddr, bound: BoundDatagrams, seat: usize) -> Listener {
        let egress = Arc::clone(&self.wings.egress[seat % self.wings.egress.len()]);
        bound.receive(seat, &self.reception, QUESTION_BYTES_MAX, move |datagram| {
            Arc::clone(&egress).question(datagram, named)
        })
    }
}

impl Laid {
    fn new((leads, address): Listen) -> Result<Self, BindError> {
        let stream = match leads {
            Leads::Tproxy => Bound::to_any(address)?,
            _ => Bound::new(address)?,
        };
        let datagrams = match leads {
            Leads::Names => Some(BoundDatagrams::new(stream.address())?),
            _ => None,
        };
        Ok(Self { stream, datagrams })
    }
}

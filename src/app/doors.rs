//! The open listeners: which address leads to which wing.
//!
//! A reload binds what is new before anything is closed, leaves alone what stays, and closes the rest last. A wing is
//! one instance per worker; the worker that a connection was handed to picks its own.

use std::collections::HashMap;
use std::sync::Arc;

use crate::egress::Egress;
use crate::ingress::Ingress;
use crate::listener::{BindError, Bound, Listener, Reception};
use crate::snapshot::{Leads, Listen, Snapshot};
use crate::telemetry::Way;

/// Both wings, one instance per worker.
#[derive(Clone)]
pub(super) struct Wings {
    pub(super) ingress: Arc<[Arc<Ingress>]>,
    pub(super) egress: Arc<[Arc<Egress>]>,
}

/// Every accepting listener.
pub(super) struct Doors {
    open: HashMap<Listen, Listener>,
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
    pub(super) fn bind(&self, snapshot: &Snapshot) -> Result<Vec<(Listen, Bound)>, BindError> {
        snapshot
            .listens()
            .into_iter()
            .filter(|listen| !self.open.contains_key(listen))
            .map(|listen| Ok((listen, Bound::new(listen.1)?)))
            .collect()
    }

    /// Accepts on what was bound, and closes what `snapshot` no longer names.
    pub(super) fn open(&mut self, bound: Vec<(Listen, Bound)>, snapshot: &Snapshot) {
        for (listen, bound) in bound {
            let seat = self.open.len();
            tracing::info!(address = %bound.address(), leads = ?listen.0, "listening");
            let listener = self.lead(listen, bound, seat);
            self.open.insert(listen, listener);
        }
        let named = snapshot.listens();
        self.open.retain(|key, listener| {
            let stays = named.contains(key);
            if !stays {
                tracing::info!(address = %listener.address(), "no longer listening");
            }
            stays
        });
    }

    /// Stops accepting everywhere.
    pub(super) fn close(&mut self) {
        self.open.clear();
    }

    /// The address as the configuration has it is how the wing finds its listener in the snapshot.
    fn lead(&self, (leads, named): Listen, bound: Bound, seat: usize) -> Listener {
        let reception = self.reception.clone();
        let (ingress, egress) = (
            Arc::clone(&self.wings.ingress),
            Arc::clone(&self.wings.egress),
        );
        match leads {
            Leads::In => bound.accept(Way::Ingress, seat, reception, move |seat, tcp, session| {
                Arc::clone(&ingress[seat]).connection(tcp, session, named)
            }),
            Leads::Redirect => {
                bound.accept(Way::Ingress, seat, reception, move |seat, tcp, session| {
                    Arc::clone(&ingress[seat]).redirect(tcp, session, named)
                })
            }
            Leads::Out => bound.accept(Way::Egress, seat, reception, move |seat, tcp, session| {
                Arc::clone(&egress[seat]).connection(tcp, session, named)
            }),
        }
    }
}

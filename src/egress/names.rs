//! Who holds which synthetic address, for the whole process.
//!
//! Shared by all workers and following the snapshot: one lock, taken for a question, and when a connection to a
//! synthetic address begins and ends. It outlives every reload. Which name may have an address is decided by whoever
//! asks.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock;
use crate::snapshot::Snapshot;
use crate::telemetry::Metrics;

mod table;

pub(super) use table::Synthesized;

use table::Table;

/// Questions of one client that wait for name servers at the same time.
const WAITING_PER_CLIENT_MAX: usize = 128;

/// Who holds which synthetic address, for the whole process.
pub struct Names {
    held: Mutex<Held>,
    waiting: Mutex<HashMap<Arc<str>, usize>>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Held {
    /// Of the snapshot that `table` follows.
    generation: u64,
    table: Option<Table>,
}

/// A connection that came by a synthetic address; the address stands for its name at least as long as this lives.
pub(super) struct InUse {
    pub(super) name: Arc<str>,
    names: Arc<Names>,
    block: u64,
    place: u32,
}

/// One of the questions of a client that wait.
#[must_use = "it waits as long as this is held"]
pub(super) struct Waiting {
    names: Arc<Names>,
    client: Arc<str>,
}

impl Names {
    /// Nothing is held yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            held: Mutex::default(),
            waiting: Mutex::default(),
            metrics,
        }
    }

    /// The name that a connection to `address` is meant for.
    pub(super) fn open(self: &Arc<Self>, snapshot: &Snapshot, address: IpAddr) -> Option<InUse> {
        let mut held = self.held(snapshot);
        let table = held.table.as_mut()?;
        let (place, name) = table.open(address, clock::now())?;
        Some(InUse {
            name,
            names: Arc::clone(self),
            block: table.block,
            place,
        })
    }

    /// The addresses for a name that exists and that `client` could be allowed; `None` if there are no more.
    pub(super) fn give(
        &self,
        snapshot: &Snapshot,
        client: &Arc<str>,
        name: &str,
    ) -> Option<Synthesized> {
        let mut held = self.held(snapshot);
        let table = held.table.as_mut()?;
        let given = table.give(client, name, clock::now());
        self.count(table);
        given
    }

    /// The name that `address` stands for.
    pub(super) fn name(&self, snapshot: &Snapshot, address: IpAddr) -> Option<Arc<str>> {
        self.held(snapshot).table.as_ref()?.name(address)
    }

    /// The table, as `snapshot` has it. No code that panics runs under this lock.
    fn held(&self, snapshot: &Snapshot) -> MutexGuard<'_, Held> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let exit = snapshot.egress.as_ref();
        if let Some((exit, transparent)) = exit.and_then(|e| Some((e, e.transparent.as_ref()?)))
            && held.generation < snapshot.generation
        {
            held.generation = snapshot.generation;
            let clients = transparent.clients.iter().map(|c| &c.name);
            let clients = clients.collect::<HashSet<_>>().len();
            let synthetic = &transparent.synthetic;
            let table = held
                .table
                .get_or_insert_with(|| Table::new(synthetic.clone()));
            let policy = exit.destinations.exact_names();
            table.follow(synthetic, clients, policy, clock::now());
            self.count(table);
        }
        held
    }

    fn count(&self, table: &Table) {
        let names = i64::try_from(table.len()).unwrap_or(i64::MAX);
        self.metrics.questions.names.set(names);
    }

    /// Counts one more question of `client` that waits for name servers, unless too many do.
    pub(super) fn wait(self: &Arc<Self>, client: &Arc<str>) -> Option<Waiting> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.entry(Arc::clone(client)).or_default();
        if *count >= WAITING_PER_CLIENT_MAX {
            return None;
        }
        *count += 1;
        Some(Waiting {
            names: Arc::clone(self),
            client: Arc::clone(client),
        })
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut held = (self.names.held.lock()).unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = held.table.as_mut().filter(|t| t.block == self.block) {
            table.close(self.place, clock::now());
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiting = (self.names.waiting.lock()).unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(&self.client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                waiting.remove(&self.client);
            }
        }
    }
}

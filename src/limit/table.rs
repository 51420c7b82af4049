//! The bounded table of the limits: one time per client and limit, in shards.
//!
//! A time that is past says nothing (its client has a full burst), so its entry may be dropped at any moment. Each
//! insertion looks at a few entries behind the shard's hand and drops what is past; when the whole table is full it
//! looks further, but never at more than [`LOOKS_FULL`] in two shards, and an entry whose time is not past is never
//! dropped. Keys
//! are hashed with a random seed, because outsiders choose their addresses.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use governor::nanos::Nanos;
use governor::state::StateStore;

use crate::telemetry::Metrics;

/// Clients that are held, over all limits. The shared bucket of each limit comes on top.
pub const KEYS_MAX: usize = 100_000;
/// A power of two, far above the number of workers.
const SHARDS: usize = 64;
/// Entries looked at per insertion, below and at the bound.
const LOOKS: usize = 2;
const LOOKS_FULL: usize = 64;

/// Who is counted, against which limit.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    quota: u64,
    who: Who,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Who {
    V4(u32),
    /// The first 64 bits: what one customer is given at least.
    V6(u64),
    /// Everybody who came when the table was full.
    Rest,
}

impl Key {
    pub(super) fn new(quota: u64, client: IpAddr) -> Self {
        let who = match client.to_canonical() {
            IpAddr::V4(v4) => Who::V4(v4.to_bits()),
            IpAddr::V6(v6) => {
                let [network @ .., _, _, _, _, _, _, _, _] = v6.octets();
                Who::V6(u64::from_be_bytes(network))
            }
        };
        Self { quota, who }
    }

    fn rest(self) -> Self {
        Self {
            who: Who::Rest,
            ..self
        }
    }
}

/// All times of one process.
pub(super) struct Table {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    /// Entries in all shards but for the shared buckets.
    held: AtomicUsize,
    /// The shard that is searched next for a newcomer to a shard with nothing past.
    turn: AtomicUsize,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Shard {
    places: HashMap<Key, usize>,
    entries: Vec<(Key, Nanos)>,
    /// Where the next look begins.
    hand: usize,
}

/// The table as one check sees it.
pub(super) struct Seat<'t> {
    table: &'t Table,
    now: Nanos,
    /// From an exhausted burst to a full one, by the numbers in force.
    full: Nanos,
}

impl Table {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            held: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            metrics,
        }
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        let hash = self.hasher.hash_one(key).to_be_bytes();
        let shard = self.at(usize::from(hash[0]));
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, number: usize) -> &Mutex<Shard> {
        let [first, ..] = &self.shards;
        self.shards.get(number % SHARDS).unwrap_or(first)
    }

    /// Claims a place among [`KEYS_MAX`] for a newcomer to `shard`. At the bound what is past is looked for in this
    /// shard and then in one other, taken in turn.
    fn room(&self, shard: &mut Shard, now: Nanos) -> bool {
        self.left(shard.forget(now, LOOKS));
        if self.claim() {
            return true;
        }
        let mut freed = shard.forget(now, LOOKS_FULL);
        if freed == 0 {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            // Never waits, since it holds a shard already; a shard that is in use is passed over.
            if let Ok(mut other) = self.at(turn).try_lock() {
                freed = other.forget(now, LOOKS_FULL);
            }
        }
        self.left(freed);
        self.claim()
    }

    fn claim(&self) -> bool {
        let more = |held: usize| (held < KEYS_MAX).then(|| held.saturating_add(1));
        let (relaxed, all) = (Ordering::Relaxed, &self.held);
        let claimed = all.fetch_update(relaxed, relaxed, more).is_ok();
        if claimed {
            self.metrics.limiter_keys.inc();
        }
        claimed
    }

    fn left(&self, count: u32) {
        if count > 0 {
            self.held.fetch_sub(count as usize, Ordering::Relaxed);
            self.metrics.limiter_keys.dec_by(i64::from(count));
        }
    }
}

impl Shard {
    fn time(&mut self, key: &Key) -> Option<&mut Nanos> {
        let place = self.places.get(key)?;
        self.entries.get_mut(*place).map(|(_, time)| time)
    }

    fn insert(&mut self, key: Key, time: Nanos) {
        self.places.insert(key, self.entries.len());
        self.entries.push((key, time));
    }

    /// Drops what is past among the next `looks` entries, at most [`LOOKS`] of them; gives how many places that frees.
    fn forget(&mut self, now: Nanos, looks: usize) -> u32 {
        let (mut dropped, mut freed) = (0usize, 0u32);
        for _ in 0..looks.min(self.entries.len()) {
            if dropped == LOOKS {
                break;
            }
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            match self.entries.get(self.hand) {
                Some((_, time)) if *time <= now => {
                    dropped = dropped.saturating_add(1);
                    freed = freed.saturating_add(u32::from(self.drop_at_hand()));
                }
                _ => self.hand = self.hand.saturating_add(1),
            }
        }
        freed
    }

    /// Whether a counted place was freed: a shared bucket is not counted.
    fn drop_at_hand(&mut self) -> bool {
        let (key, _) = self.entries.swap_remove(self.hand);
        self.places.remove(&key);
        if let Some((moved, _)) = self.entries.get(self.hand) {
            self.places.insert(*moved, self.hand);
        }
        key.who != Who::Rest
    }
}

impl<'t> Seat<'t> {
    pub(super) fn new(table: &'t Table, now: Nanos, full: Nanos) -> Self {
        Self { table, now, full }
    }
}

impl StateStore for Seat<'_> {
    type Key = Key;

    fn measure_and_replace<T, F, E>(&self, key: &Key, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut shard = self.table.shard(key);
        if let Some(time) = shard.time(key) {
            // Under smaller numbers of an earlier snapshot the time may lie further ahead than an exhausted burst does
            // under the present ones.
            let latest = self.now.as_u64().saturating_add(self.full.as_u64());
            *time = Nanos::new(time.as_u64().min(latest));
            let (taken, next) = measure(Some(*time))?;
            *time = next;
            return Ok(taken);
        }
        if key.who != Who::Rest && !self.table.room(&mut shard, self.now) {
            drop(shard);
            self.table.metrics.limiter_overflow.inc();
            return self.measure_and_replace(&key.rest(), measure);
        }
        let (taken, next) = measure(None)?;
        shard.insert(*key, next);
        Ok(taken)
    }
}

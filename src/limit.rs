//! Limits: how often one client may ask.
//!
//! Each named limit is a generic cell rate algorithm (governor's) over one number per client: the time at which its
//! burst would be full again. The numbers of a limit come with the snapshot, the times live in one table that
//! outlives every reload, so a changed limit forgets nobody. A client is an IPv4 address or an IPv6 /64. The table is
//! bounded ([`KEYS_MAX`]); when it is full of clients that still count, newcomers share one bucket per limit: they
//! are neither let through unlimited nor refused outright, and no active offender is forgotten for them.

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::indexing_slicing
    )
)]

use std::cell::Cell;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::{Quota as Numbers, RateLimiter};

use crate::clock;
use crate::config::typed::Limit;
use crate::telemetry::Metrics;

mod table;

pub use table::KEYS_MAX;

use table::{Key, Seat, Table};

type Limiter<'t> = RateLimiter<Key, Seat<'t>, Reading, NoOpMiddleware<Nanos>>;

/// An exhausted burst is full again after at most this; larger numbers are cut to it.
const REFILL_MAX: Duration = Duration::from_secs(24 * 3600);

/// Proof that a request was counted and is within its limits.
///
/// Only [`Limits::take`] makes one:
///
/// ```compile_fail
/// let slot = tollgate::limit::Slot(());
/// ```
#[derive(Debug)]
#[must_use = "a request that was counted must go on"]
pub struct Slot(());

/// Over a limit: when to try again, in whole seconds, at least 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Over {
    pub retry_after: Duration,
}

/// The times of one process; made once, outlives every snapshot.
pub struct Limits {
    table: Table,
    /// All times in the table count from here.
    epoch: Instant,
}

/// The numbers of one named limit, compiled.
#[derive(Clone, Debug)]
pub struct Quota {
    pub name: Box<str>,
    /// Stands for the name in the table: its clients are the same after a reload.
    tag: u64,
    numbers: Numbers,
}

impl Limits {
    /// An empty table, counted by `limiter_keys` and `limiter_overflow` of `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let (table, epoch) = (Table::new(metrics), clock::now());
        Self { table, epoch }
    }

    /// Counts one request of `client` against each of `quotas`, in order, up to the first that it is over. An
    /// IPv4-mapped address counts as IPv4. What was counted before a refusal stays counted.
    ///
    /// # Errors
    /// [`Over`] with the time after which the quota that refused would let one request through.
    pub fn take(&self, quotas: &[Quota], client: IpAddr) -> Result<Slot, Over> {
        if quotas.is_empty() {
            return Ok(Slot(()));
        }
        self.take_at(quotas, client, clock::now())
    }

    fn take_at(&self, quotas: &[Quota], client: IpAddr, now: Instant) -> Result<Slot, Over> {
        let since = now.saturating_duration_since(self.epoch).as_nanos();
        let now = Nanos::new(u64::try_from(since).unwrap_or(u64::MAX));
        for quota in quotas {
            let key = Key::new(quota.tag, client);
            // Only the numbers live in a limiter, so making one costs nothing. Made at zero, it counts from our epoch.
            let seat = Seat::new(&self.table, now, quota.full());
            let limiter = Limiter::new(quota.numbers, seat, Reading::default());
            limiter.clock().0.set(now);
            limiter.check_key(&key).map_err(|until| {
                let wait = until.wait_time_from(now);
                Over {
                    retry_after: whole_seconds(wait),
                }
            })?;
        }
        Ok(Slot(()))
    }
}

impl Quota {
    /// The numbers of `limit`, under the name by which its clients are remembered.
    pub fn new(name: &str, limit: &Limit) -> Self {
        let digest = digest::digest(&digest::SHA256, name.as_bytes());
        let tag = digest
            .as_ref()
            .first_chunk()
            .map_or(0, |head| u64::from_be_bytes(*head));
        let one = NonZeroU32::MIN;
        let (rate, burst) = (
            NonZeroU32::new(limit.rate).unwrap_or(one),
            NonZeroU32::new(limit.burst).unwrap_or(one),
        );
        // Rounded up, so that never more than the rate is let through; and within a day for the whole burst, because
        // governor multiplies the two without looking.
        let interval = limit.per.as_nanos().div_ceil(u128::from(rate.get()));
        let longest = REFILL_MAX.checked_div(burst.get()).unwrap_or(REFILL_MAX);
        let interval =
            Duration::from_nanos(u64::try_from(interval).unwrap_or(u64::MAX)).min(longest);
        let interval = interval.max(Duration::from_nanos(1));
        let numbers = Numbers::with_period(interval).unwrap_or(Numbers::per_second(one));
        Self {
            name: name.into(),
            tag,
            numbers: numbers.allow_burst(burst),
        }
    }

    /// From an exhausted burst to a full one.
    fn full(&self) -> Nanos {
        self.numbers.burst_size_replenished_in().into()
    }
}

/// A clock that says what it was told.
#[derive(Default)]
struct Reading(Cell<Nanos>);

impl Clock for Reading {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.get()
    }
}

/// Rounded up, at least 1.
fn whole_seconds(wait: Duration) -> Duration {
    let started = u64::from(wait.subsec_nanos() > 0);
    Duration::from_secs(wait.as_secs().saturating_add(started).max(1))
}

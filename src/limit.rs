//! Limits: how often one client may ask, how much it may hold, how often it may be wrong about a password.
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
use crate::outcome::Refusal;
use crate::telemetry::Metrics;

mod failures;
mod holds;
mod table;

pub use holds::Held;
pub use table::KEYS_MAX;

use failures::Failures;
use holds::Holds;
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
    failures: Failures,
    holds: Arc<Holds>,
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
        Self {
            table,
            failures: Failures::default(),
            holds: Arc::default(),
            epoch,
        }
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

    /// One more tunnel of the egress client of that name, which may have `max` at the same time.
    ///
    /// # Errors
    /// [`Refusal::ClientSessionLimit`] if it has.
    pub fn hold(&self, name: &Arc<str>, max: usize) -> Result<Held, Refusal> {
        self.holds
            .hold(name, max)
            .ok_or(Refusal::ClientSessionLimit)
    }

    /// Counts that `client` tries the password of `user`; [`Limits::password_was_right`] takes it back.
    ///
    /// # Errors
    /// [`Refusal::CredentialsBarred`] if too many were wrong lately.
    pub fn try_password(&self, client: IpAddr, user: &Arc<str>) -> Result<(), Refusal> {
        let listened_to = self.failures.begin(client, user, clock::now());
        listened_to.then_some(()).ok_or(Refusal::CredentialsBarred)
    }

    /// Takes back what [`Limits::try_password`] counted.
    pub fn password_was_right(&self, client: IpAddr, user: &Arc<str>) {
        self.failures.succeeded(client, user);
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn quota(name: &str, rate: u32, per: Duration, burst: u32) -> Quota {
        Quota::new(name, &Limit { rate, per, burst })
    }

    fn v4(n: usize) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(n).unwrap()).into()
    }

    /// A table, its metrics, and its time zero.
    fn limits() -> (Limits, Arc<Metrics>, Instant) {
        let metrics = Arc::new(Metrics::new());
        let limits = Limits::new(Arc::clone(&metrics));
        let epoch = limits.epoch;
        (limits, metrics, epoch)
    }

    #[test]
    fn a_burst_then_the_rate_then_the_time_to_wait() {
        let (limits, _, zero) = limits();
        let q = [quota("q", 2, SECOND, 3)];
        for _ in 0..3 {
            assert!(limits.take_at(&q, v4(1), zero).is_ok());
        }
        let over = limits.take_at(&q, v4(1), zero).unwrap_err();
        assert_eq!(over.retry_after, SECOND, "half a second, rounded up");
        let later = zero + Duration::from_millis(501);
        assert!(limits.take_at(&q, v4(1), later).is_ok());
        assert!(limits.take_at(&q, v4(1), later).is_err());
        assert!(limits.take_at(&q, v4(2), later).is_ok(), "another client");

        let slow = [quota("slow", 1, 60 * SECOND, 1)];
        assert!(limits.take_at(&slow, v4(1), zero).is_ok());
        let over = limits.take_at(&slow, v4(1), zero + Duration::from_millis(500));
        assert_eq!(over.unwrap_err().retry_after, 60 * SECOND);
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_an_ipv6_64() {
        let (limits, _, zero) = limits();
        let q = [quota("q", 1, SECOND, 1)];
        let take = |text: &str| limits.take_at(&q, text.parse().unwrap(), zero).is_ok();
        assert!(take("192.0.2.1"));
        assert!(!take("::ffff:192.0.2.1"));
        assert!(take("192.0.2.2"));
        assert!(take("2001:db8:0:1::1"));
        assert!(!take("2001:db8:0:1:ffff::2"));
        assert!(take("2001:db8:0:2::1"));
        assert!(take("::"), "the /64 of :: is not the mapped IPv4 space");
        assert!(take("0.0.0.0"));
    }

    #[test]
    fn limits_do_not_mix_and_all_must_agree() {
        let (limits, _, zero) = limits();
        let (a, b) = (quota("a", 1, SECOND, 1), quota("b", 1, SECOND, 2));
        assert!(limits.take_at(&[a.clone(), b.clone()], v4(1), zero).is_ok());
        assert!(
            limits
                .take_at(&[a.clone(), b.clone()], v4(1), zero)
                .is_err()
        );
        assert!(
            limits
                .take_at(std::slice::from_ref(&b), v4(1), zero)
                .is_ok()
        );
        assert!(limits.take_at(&[b], v4(1), zero).is_err());
        assert!(limits.take_at(&[], v4(1), zero).is_ok());
    }

    #[test]
    fn a_reload_with_other_numbers_forgets_nobody() {
        let (limits, _, zero) = limits();
        let old = [quota("q", 1, SECOND, 10)];
        for _ in 0..10 {
            assert!(limits.take_at(&old, v4(1), zero).is_ok());
        }
        let new = [quota("q", 2, SECOND, 4)];
        assert!(
            limits.take_at(&new, v4(1), zero).is_err(),
            "still exhausted"
        );
        // Not for the ten seconds that the old numbers would take, but for the half that the new ones do.
        assert!(limits.take_at(&new, v4(1), zero + SECOND / 2).is_ok());
        assert!(limits.take_at(&new, v4(1), zero + SECOND / 2).is_err());
        assert!(
            limits
                .take_at(&[quota("other", 2, SECOND, 4)], v4(1), zero)
                .is_ok()
        );
    }

    #[test]
    fn a_full_table_keeps_its_offenders_and_lets_newcomers_share_one_bucket() {
        let (limits, metrics, zero) = limits();
        let q = [quota("q", 1, 60 * SECOND, 2)];
        for n in 0..KEYS_MAX {
            assert!(limits.take_at(&q, v4(n), zero).is_ok());
        }
        let max = i64::try_from(KEYS_MAX).unwrap();
        assert_eq!(metrics.limiter_keys.get(), max);
        assert_eq!(metrics.limiter_overflow.get(), 0);
        // Two newcomers use up the shared bucket, so a third is over. Another limit has a bucket of its own.
        assert!(limits.take_at(&q, v4(KEYS_MAX), zero).is_ok());
        assert!(limits.take_at(&q, v4(KEYS_MAX + 1), zero).is_ok());
        assert!(limits.take_at(&q, v4(KEYS_MAX + 2), zero).is_err());
        assert!(
            limits
                .take_at(&[quota("r", 1, SECOND, 1)], v4(KEYS_MAX + 2), zero)
                .is_ok()
        );
        assert_eq!(metrics.limiter_overflow.get(), 4);
        // Nobody was forgotten for them.
        for n in 0..KEYS_MAX {
            assert!(limits.take_at(&q, v4(n), zero).is_ok());
            assert!(limits.take_at(&q, v4(n), zero).is_err());
        }
        assert_eq!(metrics.limiter_keys.get(), max);
        // Once their time is past they make room, and the table never grows.
        let later = zero + 121 * SECOND;
        let overflow = metrics.limiter_overflow.get();
        for n in KEYS_MAX..KEYS_MAX + KEYS_MAX * 4 / 5 {
            assert!(limits.take_at(&q, v4(n), later).is_ok());
        }
        assert_eq!(metrics.limiter_overflow.get(), overflow);
        assert!(metrics.limiter_keys.get() <= max);
    }

    #[test]
    fn past_entries_go_away_while_others_come() {
        let (limits, metrics, zero) = limits();
        let q = [quota("q", 1, SECOND, 1)];
        for n in 0..50_000 {
            let now = zero + Duration::from_millis(n as u64);
            assert!(limits.take_at(&q, v4(n), now).is_ok());
        }
        // A thousand a second, each remembered for one second.
        assert!(
            metrics.limiter_keys.get() < 5_000,
            "{}",
            metrics.limiter_keys.get()
        );
    }

    #[test]
    fn threads_together_get_no_more_than_the_burst() {
        let (limits, _, zero) = limits();
        let q = [quota("q", 1, 3600 * SECOND, 100)];
        let taken = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        if limits.take_at(&q, v4(1), zero).is_ok() {
                            taken.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), 100);
    }

    #[test]
    fn numbers_beyond_all_bounds_do_not_overflow() {
        let (limits, _, zero) = limits();
        for (rate, burst) in [(0, 0), (1, u32::MAX), (u32::MAX, 1), (u32::MAX, u32::MAX)] {
            let q = [quota(
                &format!("{rate}-{burst}"),
                rate,
                3600 * SECOND,
                burst,
            )];
            assert!(limits.take_at(&q, v4(1), zero).is_ok());
        }
    }

    proptest! {
        /// Against the definition itself: in no window more than the burst and what the rate gives, and a refused
        /// client that waits as told is let through.
        #[test]
        fn in_no_window_more_than_burst_and_rate(
            rate in 1..50u32,
            burst in 1..20u32,
            gaps in prop::collection::vec(0..400u64, 1..300),
            v6 in any::<u128>(),
        ) {
            let (limits, _, zero) = limits();
            let q = [quota("q", rate, SECOND, burst)];
            let client = IpAddr::V6(Ipv6Addr::from_bits(v6));
            let (mut now, mut accepted) = (zero, Vec::new());
            for gap in gaps {
                now += Duration::from_millis(gap);
                match limits.take_at(&q, client, now) {
                    Ok(Slot(())) => accepted.push(now),
                    Err(over) => {
                        now += over.retry_after;
                        prop_assert!(limits.take_at(&q, client, now).is_ok());
                        accepted.push(now);
                    }
                }
            }
            for (at, start) in accepted.iter().enumerate() {
                for (further, end) in accepted.iter().enumerate().skip(at) {
                    let window = (*end - *start).as_nanos();
                    let most = u128::from(burst) + window * u128::from(rate) / 1_000_000_000;
                    prop_assert!((further - at + 1) as u128 <= most);
                }
            }
        }

        /// And exactly as much: against a bucket that is filled and emptied in whole tokens of time.
        #[test]
        fn agrees_with_a_bucket(
            rate in prop::sample::select(vec![1u32, 2, 4, 5, 10, 20, 50]),
            burst in 1..20u32,
            gaps in prop::collection::vec(0..400u64, 1..300),
        ) {
            let (limits, _, zero) = limits();
            let q = [quota("q", rate, SECOND, burst)];
            let (token, mut now) = (1000 / u64::from(rate), 0);
            let full = token * u64::from(burst);
            let mut level = full;
            for gap in gaps {
                now += gap;
                level = (level + gap).min(full);
                let expected = level >= token;
                if expected {
                    level -= token;
                }
                let at = zero + Duration::from_millis(now);
                prop_assert_eq!(limits.take_at(&q, v4(1), at).is_ok(), expected);
            }
        }
    }
}

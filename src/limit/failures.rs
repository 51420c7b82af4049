//! How often an address was wrong about a password lately: who guesses is not listened to for a while.
//!
//! Counted for each address and user, so that one program with a wrong password does not shut out its neighbours. A try
//! counts as wrong until it was right, so that many at once do not slip through before the first is known. An address is
//! an IPv4 address or an IPv6 /64; the table is bounded, and newcomers to a full one share an entry for each user.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Wrong ones in [`WINDOW`]: a person mistypes less often, a program that has the wrong one is told by then.
const FAILURES_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
const KEYS_MAX: usize = 4096;
/// The address of what newcomers to a full table share.
const SHARED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

type Table = HashMap<(IpAddr, Arc<str>), (u32, Instant)>;

/// The failures of one process.
#[derive(Default)]
pub(super) struct Failures(Mutex<Table>);

impl Failures {
    /// Counts a try, unless there were too many.
    pub(super) fn begin(&self, client: IpAddr, user: &Arc<str>, now: Instant) -> bool {
        let mut table = self.lock();
        let mut key = (network(client), Arc::clone(user));
        if table.len() >= KEYS_MAX && !table.contains_key(&key) {
            table.retain(|_, (_, since)| now.saturating_duration_since(*since) < WINDOW);
            if table.len() >= KEYS_MAX {
                key.0 = SHARED;
            }
        }
        let (count, since) = table.entry(key).or_insert((0, now));
        if now.saturating_duration_since(*since) >= WINDOW {
            (*count, *since) = (0, now);
        }
        let within = *count < FAILURES_MAX;
        *count = count.saturating_add(u32::from(within));
        within
    }

    /// Takes back a try that was right.
    pub(super) fn succeeded(&self, client: IpAddr, user: &Arc<str>) {
        let mut table = self.lock();
        let mut key = (network(client), Arc::clone(user));
        if !table.contains_key(&key) {
            key.0 = SHARED; // it came when the table was full
        }
        if let Some((count, _)) = table.get_mut(&key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                table.remove(&key);
            }
        }
    }

    /// No code that panics runs under this lock, so a poisoned one is as good as new.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// IPv4 as it is, IPv6 as its /64.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + n).into()
    }

    #[test]
    fn whoever_guesses_is_not_listened_to_for_a_while() {
        let (failures, app, zero) = (Failures::default(), Arc::from("app"), crate::clock::now());
        for _ in 0..100 {
            assert!(failures.begin(v4(1), &app, zero));
            failures.succeeded(v4(1), &app); // who is right is never counted
        }
        for _ in 0..FAILURES_MAX {
            assert!(failures.begin(v4(1), &app, zero));
        }
        assert!(!failures.begin(v4(1), &app, zero + WINDOW / 2));
        assert!(failures.begin(v4(2), &app, zero), "another address");
        assert!(
            failures.begin(v4(1), &Arc::from("jobs"), zero),
            "another user"
        );
        assert!(failures.begin(v4(1), &app, zero + WINDOW));
    }

    #[test]
    fn the_table_is_bounded_and_a_full_one_is_no_way_in() {
        let (failures, app, zero) = (Failures::default(), Arc::from("app"), crate::clock::now());
        let max = u32::try_from(KEYS_MAX).unwrap();
        let within = (0..2 * max)
            .filter(|n| failures.begin(v4(*n), &app, zero))
            .count();
        assert_eq!(within, KEYS_MAX + FAILURES_MAX as usize);
        assert!(failures.lock().len() <= KEYS_MAX + 1);
        assert!(failures.begin(v4(3 * max), &app, zero + WINDOW));
        assert_eq!(failures.lock().len(), 1);
    }
}

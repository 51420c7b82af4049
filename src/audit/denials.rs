//! Denials under a flood: one by one up to a rate, then counted exactly.
//!
//! A denial is never waited for, so it must not cost more than it may. Beyond the rate, equal ones (way, listener,
//! reason, client as a /32 or /64) share a count; when the table is full, the rest of one reason share one count. The
//! counts add up always: nothing is dropped here. It reads no clock.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::outcome::Refusal;
use crate::record::{Denied, DeniedCount};
use crate::telemetry::Way;

/// Denials recorded one by one, in each second, by the whole process.
pub(super) const SINGLE_PER_SECOND_MAX: u32 = 100;
/// Counts held at once, by the whole process.
pub(super) const KEYS_MAX: usize = 4096;

/// One seat's share.
pub(super) struct Denials {
    singles_max: u32,
    keys_max: usize,
    second: Instant,
    singles: u32,
    counts: HashMap<Key, (u64, u64)>,
}

#[derive(Clone, Copy, Eq, Hash, PartialEq)]
struct Key {
    way: Way,
    refusal: Refusal,
    whose: Option<(SocketAddr, IpAddr)>,
}

impl Denials {
    /// A share of 1 in `seats`.
    pub(super) fn new(seats: usize, now: Instant) -> Self {
        let seats = seats.max(1);
        Self {
            singles_max: (SINGLE_PER_SECOND_MAX / u32::try_from(seats).unwrap_or(u32::MAX)).max(1),
            keys_max: (KEYS_MAX / seats).max(1),
            second: now,
            singles: 0,
            counts: HashMap::new(),
        }
    }

    /// Whether one more may be recorded by itself.
    pub(super) fn single(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            (self.second, self.singles) = (now, 0);
        }
        let within = self.singles < self.singles_max;
        self.singles += u32::from(within);
        within
    }

    /// Counts one.
    pub(super) fn count(&mut self, denied: &Denied<'_>, wall_ns: u64) {
        let mut key = Key {
            way: denied.way,
            refusal: denied.refusal,
            whose: Some((denied.listener, network(denied.client))),
        };
        if self.counts.len() >= self.keys_max && !self.counts.contains_key(&key) {
            key.whose = None;
        }
        self.counts.entry(key).or_insert((0, wall_ns)).0 += 1;
    }

    /// Gives out all counts and forgets them.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = DeniedCount> {
        self.counts
            .drain()
            .map(|(key, (count, since_ns))| DeniedCount {
                way: key.way,
                refusal: key.refusal,
                whose: key.whose,
                count,
                since_ns,
            })
    }
}

/// The address itself for IPv4, the /64 for IPv6: what one subscriber can have without asking.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::clock;

    fn denied(client: IpAddr) -> Denied<'static> {
        Denied {
            way: Way::Ingress,
            listener: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 443),
            client,
            refusal: Refusal::ClientDenied,
            id: None,
            target: "",
        }
    }

    #[test]
    fn a_flood_from_rotating_networks_is_bounded_and_counted_exactly() {
        let start = clock::now();
        let mut denials = Denials::new(1, start);
        let (mut singles, total) = (0, 50_000_u64);
        for at in 0..total {
            let client = IpAddr::V6(Ipv6Addr::from_bits(u128::from(at) << 63));
            if denials.single(start) {
                singles += 1;
            } else {
                denials.count(&denied(client), at);
            }
        }
        let counts: Vec<_> = denials.drain().collect();
        assert_eq!(singles, u64::from(SINGLE_PER_SECOND_MAX));
        assert_eq!(counts.len(), KEYS_MAX + 1);
        assert_eq!(counts.iter().map(|c| c.count).sum::<u64>() + singles, total);
        let other = counts.iter().filter(|c| c.whose.is_none());
        assert!(
            other
                .map(|c| c.count)
                .eq([total - singles - 2 * KEYS_MAX as u64])
        );
        assert!(denials.single(start + Duration::from_secs(1)));
    }
}

//! Denials under a flood: one by one up to a rate, then counted exactly.
//!
//! A denial is never waited for, so it must not cost more than it may. Beyond the rate, equal ones (way, listener,
//! reason, client as a /32 or /64) share a count. When half of the table is full, newcomers share the count of a wider
//! network, a /24 or /48, which is what one who floods can have; when it is full, the rest of one reason share one
//! count. The counts add up always: nothing is dropped here. It reads no clock.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::outcome::Refusal;
use crate::record::{Denied, DeniedCount};
use crate::telemetry::Way;

/// Denials recorded one by one, in each second, by the whole process.
pub(super) const SINGLE_PER_SECOND_MAX: u32 = 100;
/// Counts held at once, by the whole process. Each becomes a record each second while a flood lasts.
pub(super) const KEYS_MAX: usize = 512;

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
    whose: Option<(SocketAddr, IpNet)>,
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
        let key = |network: Option<IpNet>| Key {
            way: denied.way,
            refusal: denied.refusal,
            whose: network.map(|network| (denied.listener, network)),
        };
        let (held, max) = (self.counts.len(), self.keys_max);
        let steps = [(32, 64, max / 2), (24, 48, max)];
        let mut keys = steps
            .map(|(v4, v6, max)| (key(Some(network(denied.client, v4, v6))), max))
            .into_iter();
        let fits = |(key, max): &(Key, usize)| held < *max || self.counts.contains_key(key);
        let key = keys.find(fits).map_or_else(|| key(None), |(key, _)| key);
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

/// The network of this size that `client` is in.
fn network(client: IpAddr, v4: u8, v6: u8) -> IpNet {
    let length = if client.is_ipv4() { v4 } else { v6 };
    IpNet::new(client, length).map_or(client.into(), |net| net.trunc())
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
            target: "",
        }
    }

    /// What is counted of so many denials, by client, beyond those recorded by themselves.
    fn counted(clients: impl Iterator<Item = IpAddr>) -> Vec<(Option<String>, u64)> {
        let start = clock::now();
        let mut denials = Denials::new(1, start);
        let (mut singles, mut total) = (0, 0);
        for client in clients {
            total += 1;
            if denials.single(start) {
                singles += 1;
            } else {
                denials.count(&denied(client), total);
            }
        }
        let shown = |c: DeniedCount| (c.whose.map(|(_, network)| network.to_string()), c.count);
        let counts: Vec<_> = denials.drain().map(shown).collect();
        assert_eq!(singles, u64::from(SINGLE_PER_SECOND_MAX));
        assert_eq!(
            counts.iter().map(|(_, count)| count).sum::<u64>() + singles,
            total
        );
        assert!(denials.single(start + Duration::from_secs(1)));
        counts
    }

    #[test]
    fn a_flood_from_one_large_network_becomes_few_counts() {
        let clients =
            (0..50_000_u128).map(|at| IpAddr::V6((0x2001_0db8_0007_u128 << 80 | at << 63).into()));
        let counts = counted(clients);
        assert_eq!(counts.len(), KEYS_MAX / 2 + 1);
        let wide = counts
            .iter()
            .find(|(whose, _)| whose.as_deref() == Some("2001:db8:7::/48"));
        assert_eq!(wide.unwrap().1, 50_000 - 100 - KEYS_MAX as u64);
    }

    #[test]
    fn a_flood_from_everywhere_is_bounded() {
        let counts = counted((0..50_000_u32).map(|at| IpAddr::V4((at << 12).into())));
        assert_eq!(counts.len(), KEYS_MAX + 1);
        assert!(
            counts
                .iter()
                .any(|(whose, count)| whose.is_none() && *count > 10_000)
        );
    }
}

//! A set of CIDR prefixes, compiled for look-up.
//!
//! Sorted, merged ranges with an index over the top 16 bits (IPv4) and plain ranges (IPv6): built once, aside, and
//! swapped in with its snapshot. It holds no owner, note or expiry; those belong to the configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An immutable set of addresses.
#[derive(Clone, Debug, Default)]
pub struct PrefixSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
    /// For each value of the top 16 bits: the first range that ends at or after its first address. Empty below
    /// [`INDEXED_FROM`] ranges, where a binary search over a few lines of cache is as fast.
    index: Box<[u32]>,
}

const INDEXED_FROM: usize = 64;

impl PrefixSet {
    /// Compiles `prefixes`; order and overlap do not matter.
    pub fn new(prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match prefix {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        let v4 = merge(v4, u32::checked_add);
        let index = if v4.len() < INDEXED_FROM {
            Box::default()
        } else {
            index(&v4)
        };
        Self {
            v4,
            v6: merge(v6, u128::checked_add),
            index,
        }
    }

    /// Whether `address` is in the set; an IPv4-mapped address counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.contains_v4(v4),
            IpAddr::V6(v6) => self.contains_v6(v6),
        }
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    fn contains_v4(&self, address: Ipv4Addr) -> bool {
        let bits = address.to_bits();
        let near = match self.index.get((bits >> 16) as usize) {
            None => &*self.v4,
            Some(first) => {
                let last = self
                    .index
                    .get((bits >> 16) as usize + 1)
                    .map_or(self.v4.len(), |n| *n as usize + 1);
                self.v4
                    .get(*first as usize..last.min(self.v4.len()))
                    .unwrap_or_default()
            }
        };
        let at = near.partition_point(|(_, end)| *end < bits);
        near.get(at).is_some_and(|(start, _)| *start <= bits)
    }

    fn contains_v6(&self, address: Ipv6Addr) -> bool {
        let bits = address.to_bits();
        let at = self.v6.partition_point(|(_, end)| *end < bits);
        self.v6.get(at).is_some_and(|(start, _)| *start <= bits)
    }
}

impl FromIterator<IpNet> for PrefixSet {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        Self::new(prefixes)
    }
}

/// Sorts, and joins ranges that touch or overlap.
fn merge<T: Copy + From<u8> + Ord>(
    mut ranges: Vec<(T, T)>,
    add: fn(T, T) -> Option<T>,
) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match merged.last_mut() {
            Some((_, last)) if add(*last, T::from(1)).is_none_or(|next| start <= next) => {
                *last = (*last).max(end)
            }
            _ => merged.push((start, end)),
        }
    }
    merged.into_boxed_slice()
}

fn index(ranges: &[(u32, u32)]) -> Box<[u32]> {
    (0..1u32 << 16)
        .map(|top| {
            u32::try_from(ranges.partition_point(|(_, end)| *end < top << 16)).unwrap_or(u32::MAX)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<u32>(), 0..=32u8).prop_map(|(a, l)| IpNet::new(
                Ipv4Addr::from_bits(a).into(),
                l
            )
            .unwrap()),
            (any::<u128>(), 0..=128u8).prop_map(|(a, l)| IpNet::new(
                Ipv6Addr::from_bits(a).into(),
                l
            )
            .unwrap()),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_scan(nets in prop::collection::vec(net(), 0..200), asked in prop::collection::vec(any::<u32>(), 50)) {
            let set = PrefixSet::new(nets.iter().copied());
            let edges = nets.iter().flat_map(|n| [n.network(), n.broadcast()]);
            for address in asked.into_iter().map(|a| IpAddr::V4(Ipv4Addr::from_bits(a))).chain(edges) {
                // A mapped IPv6 address counts as IPv4 in the set, so the scan must not ask about one.
                prop_assume!(address == address.to_canonical());
                prop_assert_eq!(set.contains(address), nets.iter().any(|n| n.contains(&address)), "{}", address);
            }
        }
    }

    #[test]
    fn mapped_addresses_count_as_ipv4() {
        let set = PrefixSet::new(["10.0.0.0/8".parse().unwrap()]);
        assert!(set.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!set.contains("11.0.0.1".parse().unwrap()));
    }
}

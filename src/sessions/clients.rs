//! How many sessions each client has.
//!
//! One entry per client that has any, so never more entries than sessions. An IPv6 client is its /64: whoever has one
//! has all of its addresses. One lock, taken when a connection begins and when it ends.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::outcome::Refusal;

/// The table of one process.
pub(super) struct Clients {
    counts: Mutex<HashMap<IpAddr, usize>>,
    max: usize,
}

/// One session of a client; given back when dropped.
pub(super) struct Place {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Clients {
    /// At most `max` sessions of one client.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            counts: Mutex::default(),
            max,
        })
    }

    /// One more of `client`, if it may have it.
    pub(super) fn claim(self: &Arc<Self>, client: IpAddr) -> Result<Place, Refusal> {
        let client = network(client);
        let mut counts = self.lock();
        let count = counts.entry(client).or_default();
        if *count >= self.max {
            return Err(Refusal::ClientSessionLimit);
        }
        *count += 1;
        Ok(Place {
            clients: Arc::clone(self),
            client,
        })
    }

    /// No code that panics runs under this lock, so a poisoned one is as good as new.
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.clients.lock();
        if let Entry::Occupied(mut count) = counts.entry(self.client) {
            match count.get() {
                0 | 1 => drop(count.remove()),
                _ => *count.get_mut() -= 1,
            }
        }
    }
}

/// IPv4 as it is, IPv6 as its /64.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_and_gives_them_back() {
        let clients = Clients::new(2);
        let claim = |text: &str| clients.claim(text.parse().unwrap());
        let (one, _two) = (claim("203.0.113.1"), claim("::ffff:203.0.113.1"));
        assert_eq!(
            claim("203.0.113.1").err(),
            Some(Refusal::ClientSessionLimit)
        );
        assert!(claim("203.0.113.2").is_ok());
        drop(one);
        assert!(claim("203.0.113.1").is_ok());
        assert_eq!(clients.lock().len(), 1, "who has no session has no entry");
    }

    #[test]
    fn an_ipv6_client_is_its_64() {
        let clients = Clients::new(1);
        let claim = |text: &str| clients.claim(text.parse().unwrap());
        let _one = claim("2001:db8:0:1::1");
        assert!(claim("2001:db8:0:1:ffff::2").is_err());
        assert!(claim("2001:db8:0:2::1").is_ok());
    }
}

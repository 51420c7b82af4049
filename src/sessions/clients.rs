//! How many sessions each client has, and how many requests in flight.
//!
//! One entry per client that has a session, so never more entries than sessions. An IPv6 client is its /64: whoever has
//! one has all of its addresses. One lock, taken when a connection begins and when it ends; a request only counts on
//! what its connection holds.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::outcome::Refusal;

/// The table of one process.
pub(super) struct Clients {
    shares: Mutex<HashMap<IpAddr, Share>>,
    /// Sessions of one client, and as many requests in flight.
    max: usize,
}

#[derive(Default)]
struct Share {
    sessions: usize,
    requests: Arc<AtomicUsize>,
}

/// One session of a client; given back when dropped.
pub(super) struct Place {
    clients: Arc<Clients>,
    client: IpAddr,
    requests: Arc<AtomicUsize>,
}

/// One of so many; given back when dropped.
pub(super) struct Taken(Arc<AtomicUsize>);

impl Clients {
    /// At most `max` sessions of one client, and `max` requests in flight.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            shares: Mutex::default(),
            max,
        })
    }

    /// One more session of `client`, if it may have it.
    pub(super) fn claim(self: &Arc<Self>, client: IpAddr) -> Result<Place, Refusal> {
        let client = network(client);
        let mut shares = self.lock();
        let share = shares.entry(client).or_default();
        if share.sessions >= self.max {
            return Err(Refusal::ClientSessionLimit);
        }
        share.sessions += 1;
        Ok(Place {
            clients: Arc::clone(self),
            client,
            requests: Arc::clone(&share.requests),
        })
    }

    /// No code that panics runs under this lock, so a poisoned one is as good as new.
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Share>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// One more request in flight, if its client may have it.
    pub(super) fn begin(&self) -> Result<Taken, Refusal> {
        Taken::one_of(&self.requests, self.clients.max).ok_or(Refusal::ClientSessionLimit)
    }
}

impl Taken {
    /// One more on `count`, unless that would be more than `max`.
    pub(super) fn one_of(count: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let taken = Self(Arc::clone(count));
        let now = count.fetch_add(1, Ordering::Relaxed) + 1;
        (now <= max).then_some(taken) // dropped, it is given back
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut shares = self.clients.lock();
        if let Entry::Occupied(mut share) = shares.entry(self.client) {
            match share.get().sessions {
                0 | 1 => drop(share.remove()),
                _ => share.get_mut().sessions -= 1,
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
    fn requests_are_counted_over_all_sessions_of_a_client() {
        let clients = Clients::new(2);
        let claim = || clients.claim("203.0.113.1".parse().unwrap()).unwrap();
        let (one, two) = (claim(), claim());
        let (first, _second) = (one.begin().unwrap(), two.begin().unwrap());
        assert_eq!(two.begin().err(), Some(Refusal::ClientSessionLimit));
        assert_eq!(one.begin().err(), Some(Refusal::ClientSessionLimit));
        drop(first);
        assert!(two.begin().is_ok());
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

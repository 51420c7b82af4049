//! Session tickets: what a client brings back so that the next handshake costs a tenth of the first.
//!
//! A ticket is the session itself, sealed under a key that changes every period and is erased three periods later: what
//! it sealed can then be opened by nobody. The key after the present one exists a whole period ahead, so that every
//! replica that shares the keys can read a ticket that another has just issued. Without a present key no ticket is
//! issued and every handshake is a full one. A listener that asks for client certificates seals under keys derived from
//! whom it trusts, so a ticket never outlives a change of that, and never opens at another listener.
//!
//! A ticket: name of the key (16 bytes), nonce (12), ciphertext, tag (16). AES-256-GCM-SIV, because the same key seals
//! on every replica and nothing counts how often.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use base64::engine::general_purpose::STANDARD;
use rustls::server::ProducesTickets;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::clock;

pub(super) mod shared;

/// Periods for which a key opens tickets after it has sealed its last.
pub(super) const PERIODS_AFTER: u64 = 3;
/// Keys that are kept: those before, the present one, the next, and what replicas with other periods may add.
const KEYS_MAX: usize = 32;
const NAME_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;
/// No client is told to keep a ticket for longer than a day (RFC 8446 section 4.6.1 allows seven).
const LIFETIME_SECONDS_MAX: u64 = 86_400;

/// The ticket keys of one process. They survive a reload.
pub(super) struct TicketKeys {
    /// Milliseconds.
    every: u64,
    ring: ArcSwap<Ring>,
}

/// Keys in the order in which they seal.
#[derive(Clone, Default, Deserialize, Serialize)]
pub(super) struct Ring {
    keys: Vec<TicketKey>,
}

/// One key. Times are in milliseconds since 1970, so that replicas agree on them.
#[derive(Clone, Deserialize, Serialize)]
struct TicketKey {
    #[serde(with = "coded")]
    name: Zeroizing<[u8; NAME_BYTES]>,
    #[serde(with = "coded")]
    secret: Zeroizing<[u8; SECRET_BYTES]>,
    /// From when on it seals.
    from: u64,
    /// From when on the next one seals.
    until: u64,
    /// From when on it opens nothing.
    gone: u64,
}

/// Seals and opens the tickets of listeners that trust the same.
pub(super) struct Ticketer {
    keys: Arc<TicketKeys>,
    trust: Vec<u8>,
    derived: ArcSwap<Derived>,
}

/// The keys of a ring, as one ticketer uses them.
struct Derived {
    of: Arc<Ring>,
    keys: Vec<(TicketKey, RandomizedNonceKey)>,
}

impl TicketKeys {
    /// None yet.
    pub(super) fn new(every: Duration) -> Arc<Self> {
        let every = u64::try_from(every.as_millis()).unwrap_or(u64::MAX).max(1);
        let ring = ArcSwap::default();
        Arc::new(Self { every, ring })
    }

    /// The keys as they are now.
    pub(super) fn ring(&self) -> Arc<Ring> {
        self.ring.load_full()
    }

    /// Takes over keys, but for those that are gone.
    pub(super) fn install(&self, mut ring: Ring, now: u64) {
        ring.tidy(now);
        self.ring.store(Arc::new(ring));
    }

    /// How long a key seals, in milliseconds.
    pub(super) fn every(&self) -> u64 {
        self.every
    }

    /// Erases what is gone and draws what is missing, for a process that shares its keys with nobody.
    pub(super) fn turn(&self, now: u64) {
        let mut ring = Ring::clone(&self.ring());
        if ring.extend(self.every, now) {
            self.install(ring, now);
        }
    }
}

impl Ring {
    /// Draws the present key and the next one where they are missing; whether anything changed.
    pub(super) fn extend(&mut self, every: u64, now: u64) -> bool {
        let before = self.keys.len();
        self.tidy(now);
        let mut changed = self.keys.len() != before;
        if !self.keys.iter().any(|key| key.seals(now)) {
            self.keys.push(TicketKey::draw(now, every));
            self.tidy(now);
            changed = true;
        }
        if let Some(last) = self.keys.last().filter(|last| last.from <= now) {
            self.keys.push(TicketKey::draw(last.until, every));
            changed = true;
        }
        changed
    }

    /// Whether there is a present key and a next one, so that nobody needs to draw any.
    pub(super) fn is_whole(&self, now: u64) -> bool {
        let next = self.keys.last().is_some_and(|last| last.from > now);
        next && self.keys.iter().any(|key| key.seals(now))
    }

    fn tidy(&mut self, now: u64) {
        self.keys.retain(|key| now < key.gone);
        self.keys.sort_by_key(|key| key.from);
        let surplus = self.keys.len().saturating_sub(KEYS_MAX);
        self.keys.drain(..surplus);
    }
}

impl TicketKey {
    fn draw(from: u64, every: u64) -> Self {
        let mut name = Zeroizing::new([0; NAME_BYTES]);
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        clock::draw(&mut *name);
        clock::draw(&mut *secret);
        let until = from.saturating_add(every);
        Self {
            name,
            secret,
            from,
            until,
            gone: until.saturating_add(every.saturating_mul(PERIODS_AFTER)),
        }
    }

    fn seals(&self, now: u64) -> bool {
        self.from <= now && now < self.until
    }

    fn derive(&self, trust: &[u8]) -> Option<RandomizedNonceKey> {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &*self.secret);
        let mut derive = hmac::Context::with_key(&secret);
        derive.update(b"tollgate session ticket v1\0");
        derive.update(trust);
        RandomizedNonceKey::new(&AES_256_GCM_SIV, derive.sign().as_ref()).ok()
    }
}

impl Ticketer {
    /// For listeners that trust `trust`: a digest of it, empty where no client certificate is asked for.
    pub(super) fn new(keys: Arc<TicketKeys>, trust: Vec<u8>) -> Arc<Self> {
        let (of, none) = (Arc::default(), Vec::new());
        let derived = ArcSwap::from_pointee(Derived { of, keys: none });
        Arc::new(Self {
            keys,
            trust,
            derived,
        })
    }

    fn derived(&self) -> Arc<Derived> {
        let (ring, derived) = (self.keys.ring(), self.derived.load_full());
        if Arc::ptr_eq(&ring, &derived.of) {
            return derived;
        }
        // Once per period and listener; two workers that do it at once come to the same.
        let keys = ring
            .keys
            .iter()
            .filter_map(|key| Some((key.clone(), key.derive(&self.trust)?)));
        let keys = keys.collect();
        let made = Arc::new(Derived { of: ring, keys });
        self.derived.store(Arc::clone(&made));
        made
    }

    fn seal(&self, plain: &[u8], now: u64) -> Option<Vec<u8>> {
        let derived = self.derived();
        let (key, sealing) = derived.keys.iter().rev().find(|(key, _)| key.seals(now))?;
        let mut body = plain.to_vec();
        let nonce = sealing.seal_in_place_append_tag(Aad::from(*key.name), &mut body);
        let nonce = nonce.ok()?;
        let mut ticket = Vec::with_capacity(NAME_BYTES + NONCE_LEN + body.len());
        ticket.extend_from_slice(&*key.name);
        ticket.extend_from_slice(nonce.as_ref());
        ticket.extend_from_slice(&body);
        Some(ticket)
    }

    fn open(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME_BYTES)?;
        let (nonce, body) = rest.split_at_checked(NONCE_LEN)?;
        let derived = self.derived();
        let mut keys = derived.keys.iter();
        let (key, opening) = keys.find(|(key, _)| *key.name == *name && now < key.gone)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut body = body.to_vec();
        let plain = opening.open_in_place(nonce, Aad::from(*key.name), &mut body);
        let plain = plain.ok()?.len();
        body.truncate(plain);
        Some(body)
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    /// A hint: the least time that a ticket issued now will be good for.
    fn lifetime(&self) -> u32 {
        let seconds = self.keys.every.saturating_mul(PERIODS_AFTER) / 1000;
        u32::try_from(seconds.clamp(1, LIFETIME_SECONDS_MAX)).unwrap_or(1)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, now())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher, now())
    }
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticketer(..)")
    }
}

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    clock::wall_ns() / 1_000_000
}

/// Bytes as base64 in JSON.
mod coded {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use base64::Engine as _;

    use super::{STANDARD, Zeroizing};

    pub(super) fn serialize<S: Serializer, const N: usize>(
        bytes: &Zeroizing<[u8; N]>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&Zeroizing::new(STANDARD.encode(**bytes)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        from: D,
    ) -> Result<Zeroizing<[u8; N]>, D::Error> {
        let text = Zeroizing::new(String::deserialize(from)?);
        let bytes = Zeroizing::new(STANDARD.decode(&*text).map_err(D::Error::custom)?);
        let mut room = Zeroizing::new([0; N]);
        if bytes.len() != N {
            return Err(D::Error::custom("not as many bytes as there must be"));
        }
        room.copy_from_slice(&bytes);
        Ok(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(10);
    const T: u64 = 1_000_000_000;

    /// A process at time `at`, in periods of ten seconds after [`T`].
    fn at(period: u64) -> u64 {
        T + 10_000 * period
    }

    fn ticketer(keys: &Arc<TicketKeys>) -> Arc<Ticketer> {
        Ticketer::new(Arc::clone(keys), Vec::new())
    }

    #[test]
    fn a_ticket_is_good_for_three_periods_after_its_own_and_then_not() {
        let keys = TicketKeys::new(EVERY);
        let tickets = ticketer(&keys);
        assert_eq!(tickets.seal(b"session", T), None, "there is no key yet");
        keys.turn(T);
        let ticket = tickets.seal(b"session", T).unwrap();
        assert!(memchr::memmem::find(&ticket, b"session").is_none());
        for period in 0..4 {
            keys.turn(at(period));
            let opened = tickets.open(&ticket, at(period) + 9_999);
            assert_eq!(opened.as_deref(), Some(&b"session"[..]), "{period}");
        }
        // Neither by the time alone nor after the key is erased.
        assert_eq!(tickets.open(&ticket, at(4)), None);
        keys.turn(at(4));
        assert_eq!(tickets.open(&ticket, at(3)), None, "its key is erased");
        assert_eq!(
            keys.ring().keys.len(),
            5,
            "three before, the present one, the next"
        );
    }

    #[test]
    fn each_period_has_a_key_of_its_own_and_the_next_is_known_before() {
        let keys = TicketKeys::new(EVERY);
        let tickets = ticketer(&keys);
        keys.turn(T);
        let (first, second) = (
            tickets.seal(b"s", T).unwrap(),
            tickets.seal(b"s", T).unwrap(),
        );
        assert_eq!(first[..NAME_BYTES], second[..NAME_BYTES]);
        assert_ne!(first, second);
        let early = Ring::clone(&keys.ring());
        keys.turn(at(1));
        let next = tickets.seal(b"s", at(1)).unwrap();
        assert_ne!(first[..NAME_BYTES], next[..NAME_BYTES]);
        // A replica that last looked a period ago can read it.
        let behind = TicketKeys::new(EVERY);
        behind.install(early, T);
        assert!(ticketer(&behind).open(&next, at(1)).is_some());
    }

    #[test]
    fn without_a_present_key_nothing_is_sealed() {
        let keys = TicketKeys::new(EVERY);
        keys.turn(T);
        let tickets = ticketer(&keys);
        assert!(
            tickets.seal(b"s", at(1)).is_some(),
            "the next key takes over by itself"
        );
        assert_eq!(
            tickets.seal(b"s", at(2)),
            None,
            "nobody has turned the keys"
        );
        assert!(!keys.ring().is_whole(at(1)));
        keys.turn(at(7));
        assert!(keys.ring().is_whole(at(7)) && tickets.seal(b"s", at(7)).is_some());
    }

    #[test]
    fn a_replica_whose_clock_is_ahead_leaves_the_others_their_keys() {
        let keys = TicketKeys::new(EVERY);
        keys.turn(at(100));
        keys.turn(T);
        assert!(keys.ring().is_whole(T) && ticketer(&keys).seal(b"s", T).is_some());
    }

    #[test]
    fn a_ticket_opens_only_where_the_same_is_trusted() {
        let keys = TicketKeys::new(EVERY);
        keys.turn(T);
        let [none, one, other] = [&b""[..], b"one", b"other"]
            .map(|trust| Ticketer::new(Arc::clone(&keys), trust.to_vec()));
        let ticket = one.seal(b"s", T).unwrap();
        assert!(one.open(&ticket, T).is_some());
        assert_eq!(other.open(&ticket, T), None);
        assert_eq!(none.open(&ticket, T), None);
        assert_eq!(one.open(&none.seal(b"s", T).unwrap(), T), None);
    }

    #[test]
    fn a_ticket_that_was_changed_or_cut_does_not_open() {
        let keys = TicketKeys::new(EVERY);
        keys.turn(T);
        let tickets = ticketer(&keys);
        let ticket = tickets.seal(b"session", T).unwrap();
        for at in 0..ticket.len() {
            let mut bent = ticket.clone();
            bent[at] ^= 0x80;
            assert_eq!(tickets.open(&bent, T), None, "byte {at}");
            assert_eq!(tickets.open(&ticket[..at], T), None, "cut at {at}");
        }
        assert_eq!(tickets.open(&vec![0; 70_000], T), None);
    }

    #[test]
    fn keys_that_travel_are_the_same_and_bounded() {
        let keys = TicketKeys::new(EVERY);
        keys.turn(T);
        let ticket = ticketer(&keys).seal(b"s", T).unwrap();
        let text = serde_json::to_string(&*keys.ring()).unwrap();
        let (other, read) = (TicketKeys::new(EVERY), serde_json::from_str(&text).unwrap());
        other.install(read, T);
        assert!(ticketer(&other).open(&ticket, T).is_some());
        assert!(
            serde_json::from_str::<Ring>(&text.replace("\"secret\":\"", "\"secret\":\"AAAA"))
                .is_err()
        );
        let drawn = (0..1000).map(|n| TicketKey::draw(T + n, 10_000));
        let many = Ring {
            keys: drawn.collect(),
        };
        other.install(many, T);
        assert_eq!(other.ring().keys.len(), KEYS_MAX);
        assert_eq!(other.ring().keys[KEYS_MAX - 1].from, T + 999);
    }

    #[test]
    fn the_hint_is_what_a_ticket_is_good_for_and_a_day_at_most() {
        for (every, hint) in [(1, 3), (3600, 3 * 3600), (12 * 3600, 86_400)] {
            let keys = TicketKeys::new(Duration::from_secs(every));
            assert_eq!(ticketer(&keys).lifetime(), hint);
        }
    }
}

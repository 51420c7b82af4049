//! Which synthetic address stands for which name.
//!
//! A name's address follows from the name and the block alone, but for collisions, so a restart or another replica
//! gives it the same; names that stand in the policy as themselves are given theirs before anybody asks. An address
//! that was asked for or connected to within [`LIVE_FOR`], or that carries a connection, is never given to another
//! name. Bounded by half the block; each client may take its share of that, so that none can use it up for others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;

use crate::config::typed::Synthetic;

/// How long an address goes on standing for a name that nobody asks for or connects to. Longer than any client
/// remembers an answer; some remember it until they are started again, and connect at least daily.
pub(super) const LIVE_FOR: Duration = Duration::from_secs(24 * 3600);
/// However large the block is.
const NAMES_MAX: u32 = 65_536;
/// With at most every second address taken, this many in a row are practically never all taken.
const PROBES_MAX: u8 = 64;
/// A table that is full is not searched for idle names more often.
const SEARCH_EVERY: Duration = Duration::from_secs(1);

/// The table of one process.
pub(super) struct Table {
    synthetic: Synthetic,
    key: hmac::Key,
    /// Changes when the block does: what was held of an earlier one is not given back to this.
    pub(super) block: u64,
    /// By place in the block.
    entries: HashMap<u32, Entry>,
    places: HashMap<Arc<str>, u32>,
    /// Names that each client asked for first.
    taken: HashMap<Arc<str>, u32>,
    share: u32,
    /// No name is idle for long enough before.
    search_after: Option<Instant>,
}

struct Entry {
    name: Arc<str>,
    owner: Owner,
    /// Connections that came by it.
    open: u32,
    used: Instant,
}

/// On whose account a name is held.
#[derive(Clone, Eq, PartialEq)]
enum Owner {
    /// Whoever asked first.
    Client(Arc<str>),
    /// It stood in a policy that is no longer in force.
    Nobody,
    /// It stands in the policy; held as long as that is in force.
    Policy,
}

/// What stands for a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::egress) struct Synthesized {
    pub(in crate::egress) v4: Ipv4Addr,
    pub(in crate::egress) v6: Option<Ipv6Addr>,
}

impl Table {
    /// Empty.
    pub(super) fn new(synthetic: Synthetic) -> Self {
        Self {
            key: key(&synthetic),
            synthetic,
            block: 0,
            entries: HashMap::new(),
            places: HashMap::new(),
            taken: HashMap::new(),
            share: NAMES_MAX,
            search_after: None,
        }
    }

    /// What a newer configuration says: the block, how many clients share it, and the names in its policy.
    pub(super) fn follow<'n>(
        &mut self,
        synthetic: &Synthetic,
        clients: usize,
        policy: impl Iterator<Item = &'n str>,
        now: Instant,
    ) {
        if self.synthetic.v4 == synthetic.v4 {
            self.synthetic.v6 = synthetic.v6; // every name keeps its place
        } else {
            let block = self.block + 1;
            *self = Self {
                block,
                ..Self::new(synthetic.clone())
            };
        }
        let clients = u32::try_from(clients.max(1)).unwrap_or(u32::MAX);
        for entry in self.entries.values_mut() {
            if entry.owner == Owner::Policy {
                entry.owner = Owner::Nobody;
            }
        }
        // Sorted, so that the order of the rules does not decide who gives way when two names meet.
        let mut names: Vec<&str> = policy.collect();
        names.sort_unstable();
        names.dedup();
        for name in names.into_iter().take(self.capacity() as usize / 2) {
            self.adopt(name, Owner::Policy, now);
        }
        // What is left of the names that the policy holds, to each client the same.
        let held = self.entries.values();
        let held = held.filter(|e| matches!(e.owner, Owner::Policy)).count();
        let left = self
            .capacity()
            .saturating_sub(u32::try_from(held).unwrap_or(u32::MAX));
        self.share = (left / clients).max(1);
    }

    /// The addresses for `name`, which `client` asks for; `None` if no more names can be held for it.
    pub(super) fn give(
        &mut self,
        client: &Arc<str>,
        name: &str,
        now: Instant,
    ) -> Option<Synthesized> {
        let place = match self.places.get(name) {
            Some(place) => *place,
            None => {
                if !self.has_room(client) {
                    self.search(now);
                }
                if !self.has_room(client) {
                    return None;
                }
                self.adopt(name, Owner::Client(Arc::clone(client)), now)?
            }
        };
        if let Some(entry) = self.entries.get_mut(&place) {
            entry.used = now;
        }
        Some(self.addresses(place))
    }

    /// The name that `address` stands for.
    pub(super) fn name(&self, address: IpAddr) -> Option<Arc<str>> {
        let entry = self.entries.get(&self.place(address)?)?;
        Some(Arc::clone(&entry.name))
    }

    /// The same, for a connection: the address is held until [`Self::close`] with the same place.
    pub(super) fn open(&mut self, address: IpAddr, now: Instant) -> Option<(u32, Arc<str>)> {
        let place = self.place(address)?;
        let entry = self.entries.get_mut(&place)?;
        entry.open = entry.open.saturating_add(1);
        entry.used = now;
        Some((place, Arc::clone(&entry.name)))
    }

    /// A connection is over.
    pub(super) fn close(&mut self, place: u32, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&place) {
            entry.open = entry.open.saturating_sub(1);
            entry.used = now;
        }
    }

    /// How many names are held.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn capacity(&self) -> u32 {
        (size(&self.synthetic) / 2).min(NAMES_MAX)
    }

    fn has_room(&self, client: &str) -> bool {
        let taken = self.taken.get(client).copied().unwrap_or_default();
        taken < self.share && self.entries.len() < self.capacity() as usize
    }

    /// Holds `name` on the account of `owner`, and gives its place.
    fn adopt(&mut self, name: &str, owner: Owner, now: Instant) -> Option<u32> {
        if let Some(place) = self.places.get(name).copied() {
            let entry = self.entries.get_mut(&place)?;
            let before = std::mem::replace(&mut entry.owner, owner);
            self.uncount(&before);
            return Some(place);
        }
        let place = self.free_place(name)?;
        let name: Arc<str> = name.into();
        if let Owner::Client(client) = &owner {
            *self.taken.entry(Arc::clone(client)).or_default() += 1;
        }
        self.places.insert(Arc::clone(&name), place);
        let (open, used) = (0, now);
        let entry = Entry {
            name,
            owner,
            open,
            used,
        };
        self.entries.insert(place, entry);
        Some(place)
    }

    fn free_place(&self, name: &str) -> Option<u32> {
        (0..PROBES_MAX)
            .map(|probe| self.hashed(name, probe))
            .find(|place| !self.entries.contains_key(place))
    }

    /// The `probe`-th place for `name`. The first address of a block names the network, the last one is broadcast.
    fn hashed(&self, name: &str, probe: u8) -> u32 {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&[probe]);
        context.update(name.as_bytes());
        let tag = context.sign();
        let head = tag
            .as_ref()
            .first_chunk()
            .map_or(0, |b| u64::from_be_bytes(*b));
        let place = head % u64::from(size(&self.synthetic).max(1));
        u32::try_from(place).unwrap_or_default() + 1
    }

    fn addresses(&self, place: u32) -> Synthesized {
        let v4 = self.synthetic.v4.network().to_bits().saturating_add(place);
        let v6 = self.synthetic.v6.map(|net| {
            let bits = net.network().to_bits().saturating_add(u128::from(place));
            Ipv6Addr::from_bits(bits)
        });
        Synthesized {
            v4: Ipv4Addr::from_bits(v4),
            v6,
        }
    }

    fn place(&self, address: IpAddr) -> Option<u32> {
        match address.to_canonical() {
            IpAddr::V4(v4) => v4
                .to_bits()
                .checked_sub(self.synthetic.v4.network().to_bits()),
            IpAddr::V6(v6) => {
                let first = self.synthetic.v6?.network().to_bits();
                u32::try_from(v6.to_bits().checked_sub(first)?).ok()
            }
        }
    }

    /// Forgets what nobody has used for long, unless that was tried a moment ago or is known to be in vain.
    fn search(&mut self, now: Instant) {
        if self.search_after.is_some_and(|after| now < after) {
            return;
        }
        let idle = |entry: &Entry| {
            let held = entry.owner == Owner::Policy || entry.open > 0;
            !held && now.saturating_duration_since(entry.used) >= LIVE_FOR
        };
        let gone: Vec<u32> = (self.entries.iter())
            .filter(|(_, entry)| idle(entry))
            .map(|(place, _)| *place)
            .collect();
        for place in gone {
            if let Some(entry) = self.entries.remove(&place) {
                self.places.remove(&entry.name);
                self.uncount(&entry.owner);
            }
        }
        let soon = now + SEARCH_EVERY;
        let next = self
            .entries
            .values()
            .map(|entry| entry.used + LIVE_FOR)
            .min();
        self.search_after = Some(next.map_or(soon, |next| next.max(soon)));
    }

    fn uncount(&mut self, owner: &Owner) {
        let Owner::Client(client) = owner else { return };
        if let Some(taken) = self.taken.get_mut(client) {
            *taken = taken.saturating_sub(1);
            if *taken == 0 {
                self.taken.remove(client);
            }
        }
    }
}

/// Addresses of the block that may stand for names.
fn size(synthetic: &Synthetic) -> u32 {
    let bits = 32 - u32::from(synthetic.v4.prefix_len());
    1_u32
        .checked_shl(bits)
        .unwrap_or(u32::MAX)
        .saturating_sub(2)
}

/// The same wherever the same block is configured. It is no secret: it spreads names, and hides nothing.
fn key(synthetic: &Synthetic) -> hmac::Key {
    let text = format!("tollgate synthetic addresses in {}", synthetic.v4);
    hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::clock;

    fn block(v4: &str, v6: Option<&str>) -> Synthetic {
        Synthetic {
            v4: v4.parse().unwrap(),
            v6: v6.map(|net| net.parse().unwrap()),
        }
    }

    fn table(v4: &str, clients: usize, policy: &[&str]) -> Table {
        let mut table = Table::new(block(v4, None));
        table.follow(
            &block(v4, None),
            clients,
            policy.iter().copied(),
            clock::now(),
        );
        table
    }

    fn app() -> Arc<str> {
        "app".into()
    }

    #[test]
    fn a_name_keeps_its_address_over_restarts_and_the_address_tells_the_name() {
        let now = clock::now();
        let both = block("198.18.0.0/15", Some("fd00:198:18::/64"));
        let mut tables = [(); 2].map(|()| Table::new(both.clone()));
        let names: Vec<String> = (0..200).map(|n| format!("db{n}.customer.test")).collect();
        let mut seen = HashSet::new();
        for name in &names {
            let [one, other] = tables
                .each_mut()
                .map(|t| t.give(&app(), name, now).unwrap());
            assert_eq!(one, other);
            assert!(both.v4.contains(&one.v4) && both.v6.unwrap().contains(&one.v6.unwrap()));
            assert!(seen.insert(one.v4), "given twice");
            for address in [IpAddr::V4(one.v4), IpAddr::V6(one.v6.unwrap())] {
                assert_eq!(tables[0].name(address).as_deref(), Some(&**name));
            }
        }
        for stranger in ["198.17.255.255", "198.20.0.0", "8.8.8.8", "fd01::1", "::1"] {
            assert_eq!(
                tables[0].name(stranger.parse().unwrap()),
                None,
                "{stranger}"
            );
        }
    }

    #[test]
    fn names_of_the_policy_are_there_before_anybody_asks_whatever_the_order() {
        let names = ["b.test", "a.test", "c.test"];
        let mut sorted = names;
        sorted.sort_unstable();
        let mut one = table("10.9.0.0/24", 1, &names);
        let other = table("10.9.0.0/24", 1, &sorted);
        for name in names {
            let given = one.give(&app(), name, clock::now()).unwrap();
            assert_eq!(other.name(given.v4.into()).as_deref(), Some(name));
        }
    }

    /// A block of 254 addresses, half of which may be handed out, to two clients.
    #[test]
    fn a_client_that_takes_all_it_may_leaves_the_rest_to_others() {
        let (mut table, now) = (table("10.9.0.0/24", 2, &["db.test"]), clock::now());
        let (greedy, app) = (Arc::<str>::from("greedy"), app());
        let given = (0..1000).filter(|n| table.give(&greedy, &format!("x{n}.test"), now).is_some());
        assert_eq!(given.count(), 63);
        assert!(
            table.give(&greedy, "x0.test", now).is_some(),
            "what it has it keeps"
        );
        assert!(
            table.give(&greedy, "db.test", now).is_some(),
            "the policy's own"
        );
        let given = (0..1000).filter(|n| table.give(&app, &format!("y{n}.test"), now).is_some());
        assert_eq!(given.count(), 63);
        assert_eq!(table.len(), 127);
    }

    #[test]
    fn only_what_is_idle_for_long_gives_way() {
        let (mut table, start) = (table("10.9.0.0/24", 1, &["policy.test"]), clock::now());
        let app = app();
        let names: Vec<String> = (0..126).map(|n| format!("x{n}.test")).collect();
        for name in &names {
            table.give(&app, name, start).unwrap();
        }
        let address =
            |table: &Table, name: &str| IpAddr::V4(table.addresses(table.places[name]).v4);
        let [asked, connected, open, policy] =
            ["x0.test", "x1.test", "x2.test", "policy.test"].map(|n| address(&table, n));
        let later = start + LIVE_FOR - Duration::from_secs(1);
        assert_eq!(
            table.give(&app, "new.test", later),
            None,
            "all of them are live"
        );
        table.give(&app, "x0.test", later).unwrap();
        let (place, _) = table.open(connected, later).unwrap();
        table.close(place, later);
        table.open(open, start).unwrap();
        let later = start + LIVE_FOR + Duration::from_secs(1);
        table.give(&app, "new.test", later).unwrap();
        assert_eq!(table.len(), 5);
        for (address, name) in [
            (asked, "x0.test"),
            (connected, "x1.test"),
            (open, "x2.test"),
            (policy, "policy.test"),
        ] {
            assert_eq!(table.name(address).as_deref(), Some(name));
        }
    }

    #[test]
    fn another_block_forgets_everything_and_another_policy_nothing() {
        let (mut table, now) = (table("10.9.0.0/24", 1, &["a.test"]), clock::now());
        let given = table.give(&app(), "a.test", now).unwrap();
        table.follow(&block("10.9.0.0/24", None), 1, ["b.test"].into_iter(), now);
        assert_eq!(table.name(given.v4.into()).as_deref(), Some("a.test"));
        let before = table.block;
        table.follow(&block("10.8.0.0/24", None), 1, std::iter::empty(), now);
        assert_eq!((table.len(), table.name(given.v4.into())), (0, None));
        assert_ne!(table.block, before);
    }

    proptest! {
        /// Whatever is asked in whatever order: bounded, and no address stands for two names while it is live.
        #[test]
        fn no_address_changes_hands_while_it_is_live(asked in prop::collection::vec((0..400_u16, 0..3_usize, 0..7200_u64), 1..600)) {
            let mut table = table("10.9.0.0/24", 3, &["x1.test", "x2.test"]);
            let clients = ["a", "b", "c"].map(Arc::<str>::from);
            let (mut now, mut seen) = (clock::now(), HashMap::<Ipv4Addr, (String, Instant)>::new());
            for (name, client, seconds) in asked {
                now += Duration::from_secs(seconds);
                let name = format!("x{name}.test");
                let Some(given) = table.give(&clients[client], &name, now) else { continue };
                if let Some((before, used)) = seen.insert(given.v4, (name.clone(), now)) {
                    prop_assert!(before == name || now - used >= LIVE_FOR, "{} was live", before);
                }
                prop_assert!(table.len() <= 127);
                prop_assert!(table.taken.values().sum::<u32>() as usize <= table.len());
            }
        }
    }
}

//! The journal against a disk that forgets, tears, fails, fills up and hangs.
//!
//! One thread plays askers and writer in turn, so that every run can be repeated. The model is small: who was told
//! that a record is durable, and who was told that it is not.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::board::{Board, Patience};
use super::device::Device;
use super::frame::{self, Kind};
use super::keeper::Rules;
use super::keys::{Keys, Vault};
use super::ledger::{Batch, Ledger};
use super::office::{Office, PRIMARY};
use super::order::{Placed, order};
use super::seal::Sealer;
use super::seat::{BOUNDS, Seat, Ticket};
use super::segment::{Spares, Store};
use super::writer::Writer;
use super::{OnDamage, OpenError, Report, Trust, recover, standby, verify};
use crate::addr::{Destination, Peer};
use crate::clock::{self, Id};
use crate::config::typed::{Durability, Retain};
use crate::disk::Disk;
use crate::disk::memory::{Fault, Memory, Torn};
use crate::outcome::{Outcome, Refusal};
use crate::record::{After, Before, Denied, Dial};
use crate::telemetry::{Metrics, Way};

mod crowd;
mod keeping;
mod mishaps;
mod proofs;
mod takeover;
mod tamper;

const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3128);
const BUDGET: Duration = Duration::from_secs(60);
/// A turn takes a second.
const SEAL_EVERY: Duration = Duration::from_secs(3);
const PATIENCE: Patience = Patience {
    budget: BUDGET,
    stall_after: BUDGET,
};

const RULES: Rules = Rules {
    retain: Retain {
        days: 1,
        max_bytes: None,
    },
    min_free: 0,
};

/// A journal without threads.
struct House {
    stores: Vec<Store>,
    seats: Arc<[Arc<Seat>]>,
    office: Arc<Office>,
    /// One for each store; away while its thread hangs.
    writers: Vec<Option<Writer>>,
    calls: Vec<Receiver<Ledger>>,
    /// Whose writer has the ledger.
    at: usize,
    now: Instant,
    entries: Vec<Asker>,
}

struct Asker {
    id: Id,
    ticket: Ticket,
    /// What it was told.
    told: Option<bool>,
    ended: bool,
}

fn store(memory: &Memory) -> Store {
    Store {
        disk: Disk::Memory(memory.clone()),
        dir: "/state/audit".into(),
        segment_bytes: 4096,
        durability: Durability::Sync,
    }
}

fn dial(destination: &Destination) -> Dial<'_> {
    Dial {
        listener: HERE,
        peer: Peer::new(HERE),
        client: "app",
        door: "connect",
        destination,
        rule: "data",
        would_deny: false,
        addresses: &[],
    }
}

fn denied(client: IpAddr) -> Denied<'static> {
    Denied {
        way: Way::Ingress,
        listener: HERE,
        client,
        refusal: Refusal::ClientDenied,
        target: "",
    }
}

impl House {
    fn open(memory: &Memory) -> Result<Self, OpenError> {
        Self::open_on(vec![store(memory)], PATIENCE)
    }

    /// On the disks of `stores`, primary first.
    fn open_on(stores: Vec<Store>, patience: Patience) -> Result<Self, OpenError> {
        Self::open_despite(OnDamage::Refuse, stores, patience)
    }

    fn open_despite(
        on_damage: OnDamage,
        stores: Vec<Store>,
        patience: Patience,
    ) -> Result<Self, OpenError> {
        standby::bond(&stores[PRIMARY], stores.get(PRIMARY + 1))?;
        let recovered = recover::recover(&stores, on_damage)?;
        let board = Arc::new(Board::new(patience));
        let seats = super::start::make_seats(&board, BOUNDS, 0);
        let metrics = Arc::new(Metrics::new());
        // A thread of its own keeps the keys, which may hang with the primary; there is none here.
        let (vault, key) = Vault::recover(stores.last().unwrap(), &stores, &recovered)?;
        let edge = recovered.tail.edge.clone();
        let sealer = Sealer::new(edge, key, Keys::Here(vault), Vec::new(), SEAL_EVERY);
        let dirs = stores.iter().map(|store| store.dir.clone());
        let (office, calls) = Office::open(&board, &seats, metrics, RULES, dirs);
        let device = |store: &Store| Device::new(store.clone(), Spares::here(store.clone()));
        let writer = |(at, store)| Writer::new(&office, at, device(store));
        let mut writers: Vec<_> = stores.iter().enumerate().map(writer).map(Some).collect();
        let primary = writers[PRIMARY].as_mut().unwrap();
        primary.ledger = Ledger {
            batch: Batch::new(seats.len()),
            sealer: Some(Box::new(sealer)),
            ..Ledger::default()
        };
        primary
            .begin(&recovered)
            .map_err(|error| OpenError::io(&stores[PRIMARY].dir, "write", error))?;
        Ok(Self {
            stores,
            seats,
            office,
            writers,
            calls,
            at: PRIMARY,
            now: clock::now(),
            entries: Vec::new(),
        })
    }

    fn store(&self) -> &Store {
        &self.stores[PRIMARY]
    }

    /// Gives the ledger to the writer that was called.
    fn follow(&mut self) {
        for (at, calls) in self.calls.iter().enumerate() {
            if let Ok(ledger) = calls.try_recv() {
                self.writers[at].as_mut().unwrap().ledger = ledger;
                self.at = at;
            }
        }
    }

    fn ask(&mut self) {
        let (id, seat) = (Id::new(), &self.seats[0]);
        let destination = Destination::parse("db.example.com:5432").unwrap();
        let encode = |out: &mut Vec<u8>| Before::Dial(&dial(&destination)).encode(id, 0, out);
        if let Some(ticket) = seat.begin(clock::now(), Waker::noop(), None, encode) {
            self.entries.push(Asker {
                id,
                ticket,
                told: None,
                ended: false,
            });
        }
    }

    /// Ends the oldest entry that has not ended.
    fn end(&mut self, outcome: Outcome) {
        if let Some(asker) = self.entries.iter_mut().find(|a| !a.ended) {
            asker.end(&self.seats[0], outcome);
        }
    }

    fn turn(&mut self) {
        self.now += Duration::from_secs(1);
        while self.writers[self.at]
            .as_mut()
            .unwrap()
            .turn(self.now)
            .is_err()
        {
            self.follow();
        }
        self.listen();
    }

    /// Hears what the askers are told.
    fn listen(&mut self) {
        let context = Context::from_waker(Waker::noop());
        for asker in &mut self.entries {
            if asker.told.is_some() || asker.ended {
                continue;
            }
            if let Poll::Ready(durable) = self.seats[0].poll(&asker.ticket, &context) {
                asker.told = Some(durable);
                if !durable {
                    asker.end(&self.seats[0], Outcome::Refused(Refusal::AuditUnavailable));
                }
            }
        }
    }

    /// A day in its life; long enough for several segments.
    fn live(&mut self) {
        for round in 0..4 {
            self.ask();
            self.ask();
            self.turn();
            self.end(Outcome::Served);
            self.seats[0].deny(&denied(HERE.ip()), self.now, 0);
            self.turn();
            if round % 2 == 0 {
                self.end(Outcome::Aborted);
            }
        }
    }

    /// Ids whose BEFORE record was said to be durable.
    fn durable(&self) -> Vec<Id> {
        let told = self.entries.iter().filter(|a| a.told == Some(true));
        told.map(|a| a.id).collect()
    }
}

impl Asker {
    fn end(&mut self, seat: &Seat, outcome: Outcome) {
        self.ended = true;
        seat.end(self.ticket.segment, |out| {
            After::nothing_moved(outcome).encode(self.id, 0, Way::Egress, Some(BUDGET), out);
        });
    }
}

fn check(stores: &[Store]) -> Report {
    verify::check(stores, &Trust::default(), &mut |_| {}).unwrap()
}

/// Checks the log as `verify` does, then that nothing promised is missing and every entry has one end.
fn whole(stores: &[Store], promised: &[Id]) -> HashMap<Id, u32> {
    let report = check(stores);
    assert!(report.problem.is_none(), "{report:?}");
    assert!(report.unfinished.is_none(), "{report:?}");
    assert_eq!(report.open, 0, "{report:?}");
    assert_eq!(report.first_seq, 1);
    let mut ends = HashMap::new();
    for line in lines(stores) {
        match frame::check(&line).unwrap().kind {
            Kind::Before(id, _) => drop(ends.insert(id, 0)),
            Kind::After(id) => *ends.get_mut(&id).unwrap() += 1,
            _ => {}
        }
    }
    for id in promised {
        assert_eq!(ends.get(id), Some(&1), "{id}");
    }
    ends
}

fn lines(stores: &[Store]) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    for Placed { at, name, .. } in order(stores).unwrap().segments {
        let store = &stores[at];
        let bytes = store.disk.read(&store.path(name)).unwrap();
        let records = bytes
            .split(|b| *b == b'\n')
            .filter(|l| l.first() == Some(&b'{'));
        lines.extend(records.map(<[u8]>::to_vec));
    }
    lines
}

fn calls_of_a_life() -> u64 {
    let memory = Memory::default();
    House::open(&memory).unwrap().live();
    memory.calls()
}

/// Lives until the power is cut at call `at`, then starts again, cut once more at call `again` of that start.
fn live_and_die(at: u64, torn: Torn, again: Option<(u64, Torn)>) {
    let memory = Memory::default();
    memory.set_fault(Some(Fault::Cut { at, torn }));
    let mut promised = Vec::new();
    if let Ok(mut house) = House::open(&memory) {
        house.live();
        promised = house.durable();
    }
    let mut memory = memory.crash();
    if let Some((at, torn)) = again {
        memory.set_fault(Some(Fault::Cut { at, torn }));
        if let Ok(mut house) = House::open(&memory) {
            house.live();
            promised.extend(house.durable());
        }
        memory = memory.crash();
    }
    let mut house = House::open(&memory).unwrap_or_else(|error| panic!("{at} {torn:?}: {error}"));
    whole(&house.stores, &promised);
    house.live();
    promised.extend(house.durable());
    drop(house);
    let house = House::open(&memory.crash()).unwrap();
    whole(&house.stores, &promised);
}

#[test]
fn a_power_cut_at_any_call_loses_nothing_that_was_promised() {
    for at in 1..=calls_of_a_life() {
        for torn in [
            Torn::NONE,
            Torn { from: 0, to: 100 },
            Torn {
                from: 300,
                to: usize::MAX,
            },
            Torn::ALL,
        ] {
            live_and_die(at, torn, None);
        }
    }
}

#[test]
fn a_power_cut_during_recovery_loses_nothing_either() {
    let torn = Torn { from: 0, to: 500 };
    for at in (1..=calls_of_a_life()).step_by(3) {
        for again in 1..12 {
            live_and_die(at, torn, Some((again, torn)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_write_torn_anywhere_is_no_damage(at in 1..60_u64, from in 0..900_usize, length in 0..900_usize, again in proptest::option::of((1..60_u64, 0..900_usize))) {
        let torn = Torn { from, to: from + length };
        live_and_die(at, torn, again.map(|(at, to)| (at, Torn { from: 0, to })));
    }

    /// Calls fail for a while: nobody is promised what is not there, and it recovers by itself.
    #[test]
    fn errors_of_the_disk_lose_nothing(at in 1..60_u64, count in 1..12_u64, to in 0..900_usize) {
        let memory = Memory::default();
        let mut house = House::open(&memory).unwrap();
        memory.set_fault(Some(Fault::Fail { at: memory.calls() + at, count, torn: Torn { from: 0, to } }));
        house.live();
        memory.set_fault(None);
        for _ in 0..3 {
            house.turn();
        }
        house.ask();
        house.turn();
        prop_assert_eq!(house.entries.last().unwrap().told, Some(true), "healthy again");
        let told: Vec<_> = house.entries.iter().map(|a| (a.id, a.told)).collect();
        let mut promised = house.durable();
        promised.extend(told.iter().filter(|(_, told)| told.is_none()).map(|(id, _)| *id));
        drop(house);
        let house = House::open(&memory.crash()).unwrap();
        let ends = whole(&house.stores, &promised);
        prop_assert!(ends.values().all(|count| *count == 1));
        for (id, told) in told {
            if told == Some(false) {
                prop_assert_eq!(ends.get(&id), Some(&1), "a refused entry keeps its pair");
            }
        }
    }
}

//! The journal against a disk that forgets, tears, fails, fills up and hangs.
//!
//! One thread plays askers and writer in turn, so that every run can be repeated. The model is small: who was told
//! that a record is durable, and who was told that it is not.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::board::Board;
use super::frame::{self, Kind};
use super::seat::{BOUNDS, Bounds, Seat, Ticket};
use super::segment::{Spares, Store};
use super::writer::Writer;
use super::{Journal, OpenError, recover, verify};
use crate::addr::{Destination, Peer};
use crate::clock::{self, Id};
use crate::config::typed::{Durability, OnFailure};
use crate::disk::Disk;
use crate::disk::memory::{Fault, Memory, Torn};
use crate::outcome::{Outcome, Refusal};
use crate::record::{After, Before, Denied, Dial};
use crate::telemetry::{Metrics, Way};
use crate::workers::{Hooks, Workers};

const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3128);
const BUDGET: Duration = Duration::from_secs(60);

/// A journal without threads.
struct House {
    store: Store,
    seats: Arc<[Arc<Seat>]>,
    writer: Writer,
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
        segment_bytes: 2048,
        durability: Durability::Sync,
    }
}

fn with_dial<T>(take: impl FnOnce(&Before<'_>) -> T) -> T {
    let destination = Destination::parse("db.example.com:5432").unwrap();
    take(&Before::Dial(&Dial {
        listener: HERE,
        peer: Peer::new(HERE),
        client: "app",
        door: "connect",
        destination: &destination,
        rule: "data",
        would_deny: false,
        addresses: &[HERE.ip()],
    }))
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
        let store = store(memory);
        let recovered = recover::recover(&store)?;
        let board = Arc::new(Board::new(BUDGET));
        let seats = super::make_seats(&board, BOUNDS, 0);
        let spares = Spares::Here(store.clone());
        let metrics = Arc::new(Metrics::new());
        let mut writer = Writer::new(&board, &seats, store.clone(), spares, metrics);
        writer
            .begin(&recovered)
            .map_err(|error| OpenError::io(&store.dir, "write", error))?;
        Ok(Self {
            store,
            seats,
            writer,
            now: clock::now(),
            entries: Vec::new(),
        })
    }

    fn ask(&mut self) {
        let (id, seat) = (Id::new(), &self.seats[0]);
        let encode = |out: &mut Vec<u8>| with_dial(|before| before.encode(id, 0, out));
        if let Some(ticket) = seat.begin(clock::now(), Waker::noop(), encode) {
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
        self.writer.turn(self.now);
        let mut context = Context::from_waker(Waker::noop());
        for asker in &mut self.entries {
            if asker.told.is_some() || asker.ended {
                continue;
            }
            if let Poll::Ready(durable) = self.seats[0].poll(&asker.ticket, &mut context) {
                asker.told = Some(durable);
                if !durable {
                    asker.end(&self.seats[0], Outcome::Refused(Refusal::AuditUnavailable));
                }
            }
        }
    }

    /// A day in its life; long enough for several segments.
    fn live(&mut self) {
        for round in 0..6 {
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

/// Checks the log as `verify` does, then that nothing promised is missing and every entry has one end.
fn whole(store: &Store, promised: &[Id]) -> HashMap<Id, u32> {
    let report = verify::check(store).unwrap();
    assert!(report.problem.is_none(), "{report:?}");
    assert!(report.unfinished.is_none(), "{report:?}");
    assert_eq!(report.open, 0, "{report:?}");
    assert_eq!(report.first_seq, 1);
    let mut ends = HashMap::new();
    for line in lines(store) {
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

fn lines(store: &Store) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    for name in store.segments().unwrap() {
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
    whole(&house.store, &promised);
    house.live();
    promised.extend(house.durable());
    drop(house);
    let house = House::open(&memory.crash()).unwrap();
    whole(&house.store, &promised);
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
    #![proptest_config(ProptestConfig::with_cases(400))]

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
        let store = house.store.clone();
        drop(house);
        let house = House::open(&memory.crash()).unwrap();
        let ends = whole(&house.store, &promised);
        prop_assert!(ends.values().all(|count| *count == 1));
        for (id, told) in told {
            if told == Some(false) {
                prop_assert_eq!(ends.get(&id), Some(&1), "a refused entry keeps its pair");
            }
        }
        drop(store);
    }
}

#[test]
fn a_full_disk_refuses_and_recovers_by_itself() {
    let memory = Memory::default();
    let mut house = House::open(&memory).unwrap();
    memory.set_bytes_max(Some(1));
    for _ in 0..20 {
        house.ask();
        house.turn();
    }
    assert!(house.entries.iter().any(|a| a.told == Some(false)));
    let let_in = house.entries.len();
    house.ask();
    assert_eq!(house.entries.len(), let_in, "refused at once while down");
    memory.set_bytes_max(None);
    house.turn();
    house.ask();
    house.turn();
    assert_eq!(house.entries.last().unwrap().told, Some(true));
    let lines = lines(&house.store);
    let degraded = lines
        .iter()
        .any(|l| memchr::memmem::find(l, b"\"degraded\"").is_some());
    assert!(degraded, "the time without a log is on record");
}

#[test]
fn a_live_segment_that_is_removed_is_noticed() {
    let memory = Memory::default();
    let mut house = House::open(&memory).unwrap();
    let name = house.store.segments().unwrap()[0];
    house.store.disk.remove(&house.store.path(name)).unwrap();
    house.ask();
    house.turn();
    assert_eq!(house.entries[0].told, Some(true));
    let lines = lines(&house.store);
    assert!(
        lines
            .iter()
            .any(|l| memchr::memmem::find(l, b"segment_lost").is_some())
    );
    assert!(
        verify::check(&house.store).unwrap().problem.is_some(),
        "and the gap is reported"
    );
}

/// A log of several closed segments, and the lines of each with their places.
fn closed_log() -> (Memory, Store) {
    let memory = Memory::default();
    let mut house = House::open(&memory).unwrap();
    house.live();
    house.turn();
    while house.entries.iter().any(|a| !a.ended) {
        house.end(Outcome::Served);
    }
    let House { store, writer, .. } = house;
    writer.finish();
    (memory, store)
}

#[test]
fn every_changed_byte_is_named_by_file_and_line() {
    let (memory, store) = closed_log();
    let names = store.segments().unwrap();
    assert!(names.len() > 3 && names.iter().all(|n| n.closed));
    whole(&store, &[]);
    for name in names {
        let path = store.path(name);
        let good = memory.read(&path).unwrap();
        let mut start = 0;
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x20 >> (at % 3);
            memory.put(&path, &bad);
            let problem = verify::check(&store).unwrap().problem.unwrap();
            assert_eq!((&problem.file, problem.offset), (&path, start), "byte {at}");
            if good[at] == b'\n' {
                start = at as u64 + 1;
            }
        }
        memory.put(&path, &good);
    }
}

#[test]
fn every_dropped_swapped_or_cut_line_is_noticed() {
    let (memory, store) = closed_log();
    let names = store.segments().unwrap();
    for (nth, name) in names.iter().enumerate() {
        let path = store.path(*name);
        let good = memory.read(&path).unwrap();
        let lines: Vec<_> = good.split_inclusive(|b| *b == b'\n').collect();
        for at in 0..lines.len() {
            let mut dropped = lines.clone();
            dropped.remove(at);
            noticed(&memory, &store, &path, &dropped.concat());
            if at > 0 {
                let mut swapped = lines.clone();
                swapped.swap(at, at - 1);
                noticed(&memory, &store, &path, &swapped.concat());
            }
            noticed(&memory, &store, &path, &lines[..at].concat());
        }
        memory.put(&path, &good);
        if nth + 1 < names.len() {
            store.disk.remove(&path).unwrap();
            let whole = verify::check(&store).unwrap();
            assert!(nth == 0 || whole.problem.is_some(), "segment {nth} removed");
            memory.put(&path, &good);
        }
    }
}

fn noticed(memory: &Memory, store: &Store, path: &Path, bytes: &[u8]) {
    memory.put(path, bytes);
    let report = verify::check(store).unwrap();
    assert!(report.problem.is_some() || report.unfinished.is_some());
}

#[test]
fn damage_in_the_middle_refuses_to_open_and_touches_nothing() {
    let memory = Memory::default();
    let mut house = House::open(&memory).unwrap();
    house.ask();
    house.turn();
    house.ask();
    house.turn();
    let path = house
        .store
        .path(*house.store.segments().unwrap().last().unwrap());
    let memory = memory.crash();
    let mut bytes = memory.read(&path).unwrap();
    let second = bytes.iter().position(|b| *b == b'\n').unwrap() + 1;
    bytes[second + 30] ^= 1;
    memory.put(&path, &bytes);
    match House::open(&memory).err() {
        Some(OpenError::Damaged { file, offset, .. }) => {
            assert_eq!((file, offset), (path.clone(), second as u64));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(memory.read(&path).unwrap(), bytes);
}

fn journal(
    memory: &Memory,
    budget: Duration,
    workers: usize,
    bounds: Bounds,
) -> (Journal, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(memory);
    store.segment_bytes = 1 << 20;
    let metrics = Arc::new(Metrics::new());
    let journal = Journal::start(dir.path(), store, budget, workers, bounds, metrics).unwrap();
    (journal, dir)
}

async fn admit(journal: &Journal, on_failure: OnFailure) -> Result<super::Admitted, Refusal> {
    let destination = Destination::parse("db.example.com:5432").unwrap();
    let dial = Dial {
        listener: HERE,
        peer: Peer::new(HERE),
        client: "app",
        door: "connect",
        destination: &destination,
        rule: "data",
        would_deny: false,
        addresses: &[HERE.ip()],
    };
    journal
        .admit(Id::new(), &Before::Dial(&dial), on_failure)
        .await
}

/// Runs `count` tasks of `body` on one worker and waits for all of them.
fn crowd<F: Future<Output = ()> + Send + 'static>(
    journal: &Journal,
    count: usize,
    body: impl Fn(Journal) -> F,
) {
    let park = journal.clone();
    let hooks = Hooks {
        start: Box::new(Journal::sit),
        park: Box::new(move |seat| park.park(seat)),
    };
    let workers = Workers::start(1, hooks).unwrap();
    let (done, ended) = std::sync::mpsc::sync_channel(count);
    for _ in 0..count {
        let (task, done) = (body(journal.clone()), done.clone());
        workers.crew().run_on(0, async move {
            task.await;
            done.send(()).unwrap();
        });
    }
    for _ in 0..count {
        ended
            .recv_timeout(Duration::from_secs(30))
            .expect("nobody hangs");
    }
    workers.stop();
}

#[test]
fn five_hundred_askers_over_a_tiny_queue_are_answered() {
    let memory = Memory::default();
    let tiny = Bounds {
        intention_bytes_max: crate::record::RECORD_BYTES_MAX + 2000,
        open_max: 7,
    };
    let (journal, _dir) = journal(&memory, BUDGET, 1, tiny);
    crowd(&journal, 500, |journal| async move {
        let mut admitted = 0;
        while admitted < 3 {
            match admit(&journal, OnFailure::Refuse).await {
                Ok(entry) => {
                    entry.complete(After::nothing_moved(Outcome::Served));
                    admitted += 1;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    });
    journal.close();
    let ends = whole(&store(&memory), &[]);
    assert_eq!(ends.len(), 1500);
}

#[test]
fn a_hanging_disk_refuses_within_the_budget_and_loses_nothing() {
    let memory = Memory::default();
    let (journal, _dir) = journal(&memory, Duration::from_millis(50), 1, BOUNDS);
    memory.set_hangs(true);
    crowd(&journal, 50, |journal| async move {
        let begun = clock::now();
        assert!(admit(&journal, OnFailure::Refuse).await.is_err());
        assert!(begun.elapsed() < Duration::from_secs(2));
    });
    assert!(!journal.healthy());
    crowd(&journal, 1, |journal| async move {
        let begun = clock::now();
        assert!(admit(&journal, OnFailure::Refuse).await.is_err());
        assert!(
            begun.elapsed() < Duration::from_millis(40),
            "at once while it hangs"
        );
        drop(admit(&journal, OnFailure::Continue).await.unwrap());
    });
    memory.set_hangs(false);
    for _ in 0..200 {
        if journal.healthy() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    crowd(&journal, 1, |journal| async move {
        drop(admit(&journal, OnFailure::Refuse).await.unwrap());
    });
    journal.close();
    let ends = whole(&store(&memory), &[]);
    assert_eq!(
        ends.len(),
        51,
        "the refused and the one admitted; the one let through has no record"
    );
    let lines = lines(&store(&memory));
    assert!(
        lines
            .iter()
            .any(|l| memchr::memmem::find(l, b"degraded").is_some())
    );
}

#[test]
fn waits_that_are_dropped_end_as_aborted() {
    let memory = Memory::default();
    let (journal, _dir) = journal(&memory, BUDGET, 1, BOUNDS);
    memory.set_hangs(true);
    let release = memory.clone();
    crowd(&journal, 20, move |journal| {
        let release = release.clone();
        async move {
            let wait = admit(&journal, OnFailure::Refuse);
            let cut = tokio::time::timeout(Duration::from_millis(20), wait).await;
            assert!(cut.is_err());
            release.set_hangs(false);
            drop(admit(&journal, OnFailure::Refuse).await.unwrap());
        }
    });
    journal.close();
    assert_eq!(whole(&store(&memory), &[]).len(), 40);
}

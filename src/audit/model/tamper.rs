//! A log that somebody changed: `verify` names the place, and recovery does not bury it.

use std::path::Path;
use std::slice::from_ref;

use super::{House, PATIENCE, check, lines, store, whole};
use crate::audit::frame::{self, Kind};
use crate::audit::seal::{self, Tail};
use crate::audit::segment::{Name, Store};
use crate::audit::{OnDamage, OpenError, PublicKey, Report, Trust, verify};
use crate::disk;
use crate::disk::memory::Memory;
use crate::outcome::Outcome;

/// A log of several closed segments, and the lines of each with their places.
pub(super) fn closed_log() -> (Memory, Store) {
    let memory = Memory::default();
    let mut house = House::open(&memory).unwrap();
    house.live();
    house.turn();
    while house.entries.iter().any(|a| !a.ended) {
        house.end(Outcome::Served);
    }
    let House {
        stores,
        mut writers,
        ..
    } = house;
    writers[0].as_mut().unwrap().finish().unwrap();
    let store = stores[0].clone();
    (memory, store)
}

#[test]
fn every_changed_byte_is_named_by_file_and_line() {
    let (memory, store) = closed_log();
    let names = store.segments().unwrap();
    assert!(names.len() > 2 && names.iter().all(|n| n.closed));
    whole(from_ref(&store), &[]);
    for name in names {
        // Alone: the others are pruned.
        let alone = Memory::default();
        let store = super::store(&alone);
        let path = store.path(name);
        let good = memory.read(&path).unwrap();
        let mut start = 0;
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x20 >> (at % 3);
            alone.put(&path, &bad);
            let problem = check(from_ref(&store)).problem.unwrap();
            assert_eq!((&problem.file, problem.offset), (&path, start), "byte {at}");
            if good[at] == b'\n' {
                start = at as u64 + 1;
            }
        }
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
            let whole = check(from_ref(&store));
            assert!(nth == 0 || whole.problem.is_some(), "segment {nth} removed");
            memory.put(&path, &good);
        }
    }
}

fn noticed(memory: &Memory, store: &Store, path: &Path, bytes: &[u8]) {
    memory.put(path, bytes);
    let report = check(from_ref(store));
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
        .store()
        .path(*house.store().segments().unwrap().last().unwrap());
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

#[test]
fn damage_that_is_accepted_is_kept_told_and_leaves_a_gap_of_its_size() {
    let memory = Memory::default();
    let mut house = House::open(&memory).unwrap();
    house.live();
    let names = house.store().segments().unwrap();
    let path = house.store().path(*names.last().unwrap());
    let memory = memory.crash();
    let good = memory.read(&path).unwrap();
    let lines: Vec<_> = good.split_inclusive(|b| *b == b'\n').collect();
    let (first, next) = (names.last().unwrap().first, lines.len() as u64 - 1);
    assert!(next > 3, "{next} lines and zeros");
    let hole = lines[0].len();
    let mut bad = good.clone();
    bad[hole + 30] ^= 1;
    memory.put(&path, &bad);
    assert!(House::open(&memory).is_err());
    let open = || House::open_despite(OnDamage::Accept, vec![store(&memory)], PATIENCE);
    let house = open().unwrap();
    let told = lines_of(&house, "damage_accepted");
    let fact = |name: &str| frame_fact(&told, name).parse::<u64>().unwrap();
    assert_eq!((fact("first"), fact("last")), (first + 1, first + next - 1));
    let kept = lines_of(&house, "quarantined");
    let kept = house.store().quarantine().join(frame_fact(&kept, "file"));
    let used = bad.iter().rposition(|b| *b != 0).unwrap() + 1;
    assert_eq!(memory.read(&kept).unwrap(), bad[hole..used]);
    let report = check(&house.stores);
    let what = report.problem.unwrap().what;
    let gap = format!("records {} to {} are missing", first + 1, first + next - 1);
    assert!(what.starts_with(&gap), "{what}");
    drop(house);
    assert!(House::open(&memory).is_ok(), "accepted once and for all");
}

fn lines_of(house: &House, event: &str) -> String {
    let lines = lines(&house.stores);
    let name = format!("\"{event}\"");
    let told = |l: &&Vec<u8>| memchr::memmem::find(l, name.as_bytes()).is_some();
    String::from_utf8(lines.iter().find(told).unwrap().clone()).unwrap()
}

fn frame_fact(line: &str, name: &str) -> String {
    crate::audit::recover::fact(line, name).unwrap().to_owned()
}

/// Somebody who can write all files of the log, and knows its format, but has none of its old keys.
struct Forger {
    memory: Memory,
    store: Store,
    lines: Vec<Vec<u8>>,
}

impl Forger {
    fn new() -> Self {
        let (memory, store) = closed_log();
        let lines = lines(from_ref(&store));
        Self {
            memory,
            store,
            lines,
        }
    }

    fn kind(&self, at: usize) -> Kind<'_> {
        frame::check(&self.lines[at]).unwrap().kind
    }

    /// Writes `lines` in place of the log, all numbers and checksums in order, in the segments that they name.
    fn write(&self, lines: &[Vec<u8>]) -> Report {
        for name in self.store.segments().unwrap() {
            self.store.disk.remove(&self.store.path(name)).unwrap();
        }
        let mut file = (Vec::new(), 1);
        let mut files = Vec::new();
        for (seq, line) in (1..).zip(lines) {
            let line = forged(line, seq);
            let begins = frame::check(&line)
                .is_ok_and(|line| matches!(line.kind, Kind::Event("segment", _)));
            if begins && !file.0.is_empty() {
                files.push(std::mem::replace(&mut file, (Vec::new(), seq)));
            }
            file.0.extend_from_slice(&line);
            file.0.push(b'\n');
        }
        files.push(file);
        for (bytes, first) in files {
            let name = Name {
                first,
                closed: true,
            };
            self.memory.put(&self.store.path(name), &bytes);
        }
        check(from_ref(&self.store))
    }

    /// The number of the record at which a change of record `changed` must show at the latest: its seal, or the next
    /// segment, which tells the tree.
    fn shows_at(&self, changed: usize) -> u64 {
        let shows = |at: &usize| matches!(self.kind(*at), Kind::Seal | Kind::Event("segment", _));
        (changed..self.lines.len()).find(shows).unwrap() as u64 + 1
    }
}

/// The line as number `seq`, with its checksum.
fn forged(line: &[u8], seq: u64) -> Vec<u8> {
    let text = String::from_utf8_lossy(line);
    let (_, rest) = text.split_once(',').unwrap();
    let (body, _) = rest.rsplit_once(",\"crc\":").unwrap();
    let body = format!("{{\"seq\":{seq},{body}");
    let crc = crc32c::crc32c(body.as_bytes());
    format!("{body},\"crc\":\"{crc:08x}\"}}").into_bytes()
}

#[test]
fn a_forger_who_mends_every_checksum_is_named_at_the_next_seal() {
    let forger = Forger::new();
    assert!(forger.write(&forger.lines).problem.is_none());
    for at in 0..forger.lines.len() {
        let mut lines = forger.lines.clone();
        let text = String::from_utf8(lines[at].clone()).unwrap();
        // Another time: a digit of the second.
        let place = text.find("T").map(|t| t + 8).unwrap();
        let digit = if lines[at][place] == b'0' { b'1' } else { b'0' };
        lines[at][place] = digit;
        let report = forger.write(&lines);
        let last = at == forger.lines.len() - 1; // a seal's time is covered by the next one only
        let problem = report.problem.map(|problem| problem.seq);
        let shows = match forger.kind(at) {
            Kind::Seal | Kind::Event("segment", _) if !last => forger.shows_at(at + 1),
            _ => forger.shows_at(at),
        };
        assert_eq!(problem, (!last).then_some(shows), "record {}", at + 1);
    }
}

#[test]
fn a_forger_who_drops_or_swaps_records_and_renumbers_the_rest_is_found() {
    let forger = Forger::new();
    for at in 0..forger.lines.len() - 2 {
        let mut dropped = forger.lines.clone();
        dropped.remove(at);
        let mut swapped = forger.lines.clone();
        swapped.swap(at, at + 1);
        for lines in [dropped, swapped] {
            let problem = forger.write(&lines).problem.unwrap();
            let shows = forger.shows_at(at + 2);
            assert!(problem.seq <= shows, "record {}: {problem:?}", at + 1);
        }
    }
}

/// Notes of all seals, as an anchor has them.
fn anchored(lines: &[Vec<u8>]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    for note in lines.iter().filter_map(|line| seal::note(line)) {
        disk::append(file.path(), format!("{note}\n").as_bytes()).unwrap();
    }
    file
}

pub(super) fn first_key(lines: &[Vec<u8>]) -> PublicKey {
    let Kind::Event("segment", facts) = frame::check(&lines[0]).unwrap().kind else {
        panic!("the log does not begin with a segment");
    };
    PublicKey(Tail::read(facts).unwrap().key.unwrap())
}

fn judge(store: &Store, trust: &Trust) -> Report {
    verify::check(from_ref(store), trust, &mut |_| {}).unwrap()
}

#[test]
fn a_log_cut_anywhere_is_shown_by_an_anchor() {
    let forger = Forger::new();
    let anchor = anchored(&forger.lines);
    let trust = Trust {
        key: Some(first_key(&forger.lines)),
        anchors: vec![anchor.path().to_owned()],
    };
    let report = judge(&forger.store, &trust);
    assert!(report.problem.is_none() && report.key_given, "{report:?}");
    assert_eq!(report.anchors[0].matched, report.seals);
    assert_eq!(report.unsealed, 1, "the last seal itself");
    for count in 1..forger.lines.len() - 1 {
        forger.write(&forger.lines[..count]);
        let problem = judge(&forger.store, &trust).problem.unwrap();
        assert!(problem.what.contains("its end was cut"), "{problem:?}");
        assert_eq!(problem.seq, count as u64);
    }
}

#[test]
fn a_log_without_a_seal_follows_from_no_key() {
    let forger = Forger::new();
    forger.write(&forger.lines[..1]);
    let trust = Trust {
        key: Some(first_key(&forger.lines)),
        anchors: Vec::new(),
    };
    let report = judge(&forger.store, &trust);
    assert!(!report.key_given);
    let problem = report.problem.unwrap();
    assert!(problem.what.contains("no seal leads"), "{problem:?}");
}

#[test]
fn a_log_made_anew_holds_against_itself_only() {
    let (original, other) = (Forger::new(), Forger::new());
    let anchor = anchored(&original.lines);
    let trust = |key, anchors| Trust { key, anchors };
    let alone = judge(&other.store, &Trust::default());
    assert!(alone.problem.is_none() && !alone.key_given);
    let key = Some(first_key(&original.lines));
    let problem = judge(&other.store, &trust(key, Vec::new()))
        .problem
        .unwrap();
    assert!(problem.what.contains("another log"), "{problem:?}");
    let anchors = vec![anchor.path().to_owned()];
    let report = judge(&other.store, &trust(None, anchors));
    assert_eq!(report.anchors[0].matched, 0);
    assert!(report.problem.unwrap().what.contains("made anew"));
}

#[test]
fn an_earlier_key_is_nowhere_once_its_segment_is_closed() {
    let memory = Memory::default();
    let mut house = House::open(&memory).unwrap();
    let path = house.store().dir.join("seal.key");
    let mut keys = Vec::new();
    for _ in 0..3 {
        for _ in 0..12 {
            let key = memory.read(&path).unwrap();
            if keys.last() != Some(&key) {
                keys.push(key);
            }
            house.ask();
            house.turn();
            house.end(Outcome::Served);
        }
        house = House::open(&memory).unwrap();
    }
    assert!(keys.len() > 2, "{} keys", keys.len());
    let last = keys.pop().unwrap();
    assert!(memory.holds(&last));
    for key in keys {
        let secret = key.splitn(5, |b| *b == b'+').last().unwrap();
        let secret = secret.strip_suffix(b"\n").unwrap();
        assert!(secret.len() > 40 && !memory.holds(secret));
    }
}

#[test]
fn a_pruned_log_follows_from_its_first_key_by_the_chain() {
    let forger = Forger::new();
    let anchor = anchored(&forger.lines);
    let trust = Trust {
        key: Some(first_key(&forger.lines)),
        anchors: vec![anchor.path().to_owned()],
    };
    let names = forger.store.segments().unwrap();
    let (last, pruned) = names.split_last().unwrap();
    for name in pruned {
        forger.store.disk.remove(&forger.store.path(*name)).unwrap();
        let report = judge(&forger.store, &trust);
        assert!(report.problem.is_none() && report.key_given, "{report:?}");
        assert!(report.first_seq > name.first);
        assert!(report.anchors[0].before_first > 0 && report.anchors[0].matched > 0);
    }
    let chain = forger.store.dir.join("seal.chain");
    forger.store.disk.remove(&chain).unwrap();
    let problem = judge(&forger.store, &trust).problem.unwrap();
    assert!(problem.what.contains("no seal leads"), "{problem:?}");
    assert_eq!(problem.file, forger.store.path(*last));
}

//! A log that somebody changed: `verify` names the place, and recovery does not bury it.

use std::path::Path;
use std::slice::from_ref;

use super::{House, PATIENCE, lines, store, whole};
use crate::audit::segment::Store;
use crate::audit::{OnDamage, OpenError, verify};
use crate::disk::memory::Memory;
use crate::outcome::Outcome;

/// A log of several closed segments, and the lines of each with their places.
fn closed_log() -> (Memory, Store) {
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
        let path = store.path(name);
        let good = memory.read(&path).unwrap();
        let mut start = 0;
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x20 >> (at % 3);
            memory.put(&path, &bad);
            let problem = verify::check(from_ref(&store)).unwrap().problem.unwrap();
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
            let whole = verify::check(from_ref(&store)).unwrap();
            assert!(nth == 0 || whole.problem.is_some(), "segment {nth} removed");
            memory.put(&path, &good);
        }
    }
}

fn noticed(memory: &Memory, store: &Store, path: &Path, bytes: &[u8]) {
    memory.put(path, bytes);
    let report = verify::check(from_ref(store)).unwrap();
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
    let report = verify::check(&house.stores).unwrap();
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

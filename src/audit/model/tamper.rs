//! A log that somebody changed: `verify` names the place, and recovery does not bury it.

use std::path::Path;
use std::slice::from_ref;

use super::{House, whole};
use crate::audit::segment::Store;
use crate::audit::{OpenError, verify};
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

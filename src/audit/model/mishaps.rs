//! One disk that fills up, and files that disappear from it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{HERE, House, PATIENCE, check, denied, lines, store, whole};
use crate::audit::Trouble;
use crate::audit::frame;
use crate::audit::recover::fact;
use crate::audit::segment::Store;
use crate::disk::Disk;
use crate::disk::memory::Memory;
use crate::outcome::Outcome;

#[test]
fn a_full_disk_refuses_and_recovers_by_itself() {
    let memory = Memory::default();
    let mut house = House::open(&memory).unwrap();
    memory.set_bytes_max(Some(1));
    for _ in 0..20 {
        house.ask();
        house.turn();
    }
    let let_in = house.entries.len();
    assert!(let_in < 20);
    assert!(house.entries.iter().all(|a| a.told == Some(true)));
    house.ask();
    assert_eq!(house.entries.len(), let_in, "refused at once while down");
    memory.set_bytes_max(None);
    house.turn();
    house.ask();
    house.turn();
    assert_eq!(house.entries.last().unwrap().told, Some(true));
    let lines = lines(&house.stores);
    let degraded = lines
        .iter()
        .any(|l| memchr::memmem::find(l, b"\"degraded\"").is_some());
    assert!(degraded, "the time without a log is on record");
}

#[test]
fn on_a_full_disk_the_ends_of_what_was_let_in_find_their_place() {
    let memory = Memory::default();
    let large = Store {
        segment_bytes: 256 << 10,
        ..store(&memory)
    };
    let mut house = House::open_on(vec![large], PATIENCE).unwrap();
    memory.set_bytes_max(Some(1));
    while house.store().segments().unwrap().len() < 2 {
        house.ask(); // the next segment was made ahead; behind it there is none
        house.turn();
    }
    let board = Arc::clone(&house.office.board);
    let mut asked = 0;
    while board.trouble() != Some(Trouble::Full) {
        house.ask();
        if house.entries.len().is_multiple_of(7) {
            house.turn();
        }
        asked += 1;
        assert!(asked < 10_000 && board.trouble() != Some(Trouble::Failing));
    }
    let let_in = house.entries.len();
    house.ask();
    assert_eq!(house.entries.len(), let_in, "refused at once");
    while house.entries.iter().any(|a| !a.ended) {
        house.end(Outcome::Served);
        house.seats[0].deny(&denied(HERE.ip()), house.now, 0);
        house.turn();
        assert_ne!(board.trouble(), Some(Trouble::Failing));
    }
    let told = house
        .entries
        .iter()
        .filter(|a| a.told == Some(true))
        .count();
    assert_eq!(told, let_in, "and all of them were let in");
    let after = House::open(&memory.crash()).unwrap();
    let text = lines(&after.stores).concat();
    let told = memchr::memmem::find(&text, br#"not_closed","facts":{"last":""#).unwrap();
    let rest = &text[told..told + 100];
    assert!(memchr::memmem::find(rest, br#""degraded":"yes""#).is_some());
    memory.set_bytes_max(None);
    house.turn();
    house.turn();
    assert_eq!(board.trouble(), None);
    house.ask();
    house.turn();
    let text = lines(&house.stores).concat();
    for event in ["space_short", "degraded", "\"count\":"] {
        assert!(
            memchr::memmem::find(&text, event.as_bytes()).is_some(),
            "{event}"
        );
    }
    let promised = house.durable();
    let house = House::open(&memory.crash()).unwrap();
    whole(&house.stores, &promised);
}

/// A live segment, and a record in it.
fn with_a_record(memory: &Memory) -> (House, PathBuf) {
    let mut house = House::open(memory).unwrap();
    house.ask();
    house.turn();
    let name = house.store().segments().unwrap()[0];
    let path = house.store().path(name);
    (house, path)
}

fn goes_on_whole(mut house: House, memory: &Memory) {
    house.ask();
    house.turn();
    assert_eq!(house.entries[1].told, Some(true));
    let lost = |l: &Vec<u8>| memchr::memmem::find(l, b"segment_lost").is_some();
    assert!(lines(&house.stores).iter().any(lost));
    house.turn();
    let promised = house.durable();
    let house = House::open(&memory.crash()).unwrap();
    whole(&house.stores, &promised);
}

#[test]
fn a_live_segment_that_is_removed_is_put_back() {
    let memory = Memory::default();
    let (house, path) = with_a_record(&memory);
    house.store().disk.remove(&path).unwrap();
    goes_on_whole(house, &memory);
}

#[test]
fn a_live_segment_in_whose_place_is_another_file_is_put_back_beside_it() {
    let memory = Memory::default();
    let (house, path) = with_a_record(&memory);
    let disk = &house.store().disk;
    disk.rename(&path, &path.with_extension("moved")).unwrap();
    memory.put(&path, b"foreign");
    let quarantine = house.store().quarantine();
    goes_on_whole(house, &memory);
    let names = Disk::Memory(memory.clone()).names(&quarantine).unwrap();
    assert_eq!(
        memory.read(&quarantine.join(&names[0])).unwrap(),
        b"foreign"
    );
}

#[test]
fn a_live_segment_that_cannot_be_put_back_is_a_gap() {
    let memory = Memory::default();
    let (mut house, path) = with_a_record(&memory);
    house.store().disk.remove(&path).unwrap();
    memory.set_bytes_max(Some(1));
    house.turn();
    memory.set_bytes_max(None);
    house.turn();
    house.ask();
    house.turn();
    assert_eq!(house.entries[1].told, Some(true));
    let report = check(&house.stores);
    assert_ne!(report.first_seq, 1, "{report:?}");
}

#[test]
fn a_live_segment_that_is_removed_is_put_back_even_if_it_fills_up_before_anybody_looks() {
    let memory = Memory::default();
    let (mut house, path) = with_a_record(&memory);
    house.store().disk.remove(&path).unwrap();
    for _ in 0..10 {
        house.ask();
    }
    house.now -= Duration::from_secs(1); // no tick yet
    goes_on_whole(house, &memory);
}

#[test]
fn the_first_segment_of_a_process_says_how_far_back_the_next_must_read() {
    let (mut memory, mut before) = (Memory::default(), 1);
    for _ in 0..5 {
        let names = store(&memory).segments().unwrap();
        let last = names.last().map_or(0, |name| name.first);
        let mut house = House::open(&memory).unwrap();
        let names = house.store().segments().unwrap();
        let first = names
            .iter()
            .map(|name| name.first)
            .find(|first| *first > last);
        let first = first.unwrap();
        let header = lines(&house.stores)
            .into_iter()
            .find(|line| frame::check(line).is_ok_and(|line| line.seq == first && line.begins));
        let header = String::from_utf8(header.unwrap()).unwrap();
        let since: u64 = fact(&header, "open_since").unwrap().parse().unwrap();
        assert!(since >= before, "{since} is before {before}");
        before = first;
        house.ask(); // left open
        house.turn();
        memory = memory.crash();
    }
}

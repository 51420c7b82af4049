//! One disk that fills up, and files that disappear from it.

use super::{House, lines};
use crate::audit::verify;
use crate::disk::memory::Memory;

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
    let lines = lines(&house.stores);
    let degraded = lines
        .iter()
        .any(|l| memchr::memmem::find(l, b"\"degraded\"").is_some());
    assert!(degraded, "the time without a log is on record");
}

#[test]
fn a_live_segment_that_is_removed_is_noticed() {
    let memory = Memory::default();
    let mut house = House::open(&memory).unwrap();
    let name = house.store().segments().unwrap()[0];
    house
        .store()
        .disk
        .remove(&house.store().path(name))
        .unwrap();
    house.ask();
    house.turn();
    assert_eq!(house.entries[0].told, Some(true));
    let lines = lines(&house.stores);
    assert!(
        lines
            .iter()
            .any(|l| memchr::memmem::find(l, b"segment_lost").is_some())
    );
    let report = verify::check(&house.stores).unwrap();
    assert_ne!(report.first_seq, 1, "and so is what went with it");
}

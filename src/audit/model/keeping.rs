//! Old segments are removed: recorded before, oldest first, and nothing that must stay.

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use super::{House, RULES, check, lines, whole};
use crate::audit::keeper::{Keeper, Rules};
use crate::audit::recover::fact;
use crate::clock;
use crate::config::typed::Retain;
use crate::disk::memory::{Fault, Memory, Torn};
use crate::outcome::Outcome;
use crate::workers;

const DAY_NS: u64 = 24 * 3600 * 1_000_000_000;

/// Lets the keeper prune at that time, and the writer write what the keeper waits for. Gives how many went.
fn prune(house: &mut House, wall_ns: u64) -> usize {
    let keeper = Keeper::new(&house.office, house.stores.clone());
    let (done, count) = sync_channel(1);
    workers::thread("keeper", move || done.send(keeper.prune(wall_ns)).unwrap()).unwrap();
    loop {
        if let Ok(count) = count.recv_timeout(Duration::from_millis(5)) {
            return count;
        }
        house.turn();
    }
}

fn lived() -> (Memory, House) {
    let memory = Memory::default();
    let mut house = House::open(&memory).unwrap();
    house.live();
    house.live();
    while house.entries.iter().any(|a| !a.ended) {
        house.end(Outcome::Served);
    }
    house.turn();
    (memory, house)
}

fn pruned(house: &House) -> Vec<(u64, u64)> {
    let lines = lines(&house.stores);
    let pruned = lines
        .iter()
        .filter(|l| memchr::memmem::find(l, b"\"pruned\"").is_some());
    let number = |line: &str, name| fact(line, name).unwrap().parse().unwrap();
    let range = |line: &Vec<u8>| {
        let line = std::str::from_utf8(line).unwrap();
        (number(line, "first"), number(line, "last"))
    };
    pruned.map(range).collect()
}

#[test]
fn what_is_too_old_goes_and_says_so_but_never_the_live_segment() {
    let (memory, mut house) = lived();
    let now = clock::wall_ns();
    assert_eq!(prune(&mut house, now + DAY_NS / 2), 0);
    let closed = house
        .store()
        .segments()
        .unwrap()
        .iter()
        .filter(|n| n.closed)
        .count();
    assert!(closed > 2);
    assert_eq!(prune(&mut house, now + 2 * DAY_NS), closed);
    let left = house.store().segments().unwrap();
    let first = left[0].first;
    assert_eq!(pruned(&house), [(1, first - 1)]);
    let report = check(&house.stores);
    assert!(report.problem.is_none(), "{report:?}");
    assert_eq!((report.first_seq, report.pruned_seq), (first, first - 1));
    house.live();
    let house = House::open(&memory.crash()).unwrap();
    let report = check(&house.stores);
    assert!(report.problem.is_none(), "{report:?}");
}

#[test]
fn what_is_too_much_goes() {
    let (_memory, mut house) = lived();
    let total = |house: &House| {
        let store = house.store();
        let names = store.segments().unwrap();
        let len = |name| store.disk.len(&store.path(name)).unwrap();
        names.into_iter().map(len).sum::<u64>()
    };
    let max = total(&house) - 1;
    let days = RULES.retain.days;
    let max_bytes = Some(max);
    let retain = Retain { days, max_bytes };
    house.office.set_rules(Rules { retain, ..RULES });
    assert_eq!(prune(&mut house, clock::wall_ns()), 1);
    assert_eq!(pruned(&house).len(), 1);
}

#[test]
fn nothing_goes_before_it_is_recorded_and_a_power_cut_in_between_is_no_gap() {
    let cut = |at: u64| {
        let (memory, mut house) = lived();
        let before = house.store().segments().unwrap().len();
        let at = memory.calls() + at;
        memory.set_fault(Some(Fault::Cut {
            at,
            torn: Torn::NONE,
        }));
        let keeper = Keeper::new(&house.office, house.stores.clone());
        let later = clock::wall_ns() + 2 * DAY_NS;
        let (done, count) = sync_channel(1);
        let body = move || done.send(keeper.prune(later)).unwrap_or_default();
        workers::thread("keeper", body).unwrap();
        for _ in 0..20 {
            if count.recv_timeout(Duration::from_millis(2)).is_ok() {
                break;
            }
            house.turn();
        }
        house.office.end();
        let memory = memory.crash();
        let house = House::open(&memory).unwrap();
        let left = house.store().segments().unwrap();
        let report = check(&house.stores);
        assert!(report.problem.is_none(), "{report:?}");
        if report.first_seq > 1 {
            let (first, last) = pruned(&house)[0];
            assert!(
                first == 1 && last + 1 >= report.first_seq,
                "recorded before"
            );
        } else {
            assert!(left.len() >= before);
            whole(&house.stores, &[]);
        }
        report.first_seq > 1
    };
    let went = (1..60).step_by(3).filter(|at| cut(*at)).count();
    assert!(went > 0);
}

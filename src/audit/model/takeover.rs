//! Two disks: one fails or hangs, the log goes on upon the other, and comes back.
//!
//! The promise: who was told that a record is durable finds it on the disk that was in use when he was told, whatever
//! happens to either disk afterwards, short of being lost; no number stands for two lines that count; and what a call
//! that hung does when it wakes changes nothing of that.

use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use proptest::prelude::*;

use super::{BUDGET, House, lines, store, whole};
use crate::audit::board::Patience;
use crate::audit::segment::Store;
use crate::audit::writer::{Relieved, Writer};
use crate::disk::memory::{Fault, Memory, Torn};
use crate::outcome::Outcome;

const QUICK: Patience = Patience {
    budget: BUDGET,
    stall_after: Duration::from_millis(1),
};

/// What becomes of the call that hung.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Late {
    Fails,
    Lands,
    Never,
}

type Thread = JoinHandle<(Writer, Result<(), Relieved>)>;

fn stores(first: &Memory, second: &Memory) -> Vec<Store> {
    let standby = Store {
        dir: "/standby".into(),
        ..store(second)
    };
    vec![store(first), standby]
}

impl House {
    /// A turn of the present writer on a thread of its own.
    fn spawn_turn(&mut self) -> Thread {
        let (now, at) = (self.now, self.at);
        let mut writer = self.writers[at].take().unwrap();
        #[expect(clippy::disallowed_methods, reason = "it must be able to hang")]
        let thread: Thread = spawn(move || {
            let result = writer.turn(now);
            (writer, result)
        });
        thread
    }

    /// A turn of the primary's writer. If it hangs there, the standby takes over.
    fn turn_that_may_hang(&mut self, disk: &Memory) -> Option<Thread> {
        self.now += Duration::from_secs(1);
        let at = self.at;
        let thread = self.spawn_turn();
        while !thread.is_finished() {
            if disk.is_stuck() && self.office.relieve() {
                self.follow();
                self.turn();
                return Some(thread);
            }
            sleep(Duration::from_micros(50));
        }
        let (writer, result) = thread.join().unwrap();
        result.unwrap();
        self.writers[at] = Some(writer);
        self.listen();
        None
    }

    /// Lives until the disk hangs, and gives the thread that hangs there.
    fn live_until_it_hangs(&mut self, disk: &Memory) -> Option<Thread> {
        for round in 0..4 {
            self.ask();
            self.ask();
            if let Some(thread) = self.turn_that_may_hang(disk) {
                return Some(thread);
            }
            self.end(Outcome::Served);
            if let Some(thread) = self.turn_that_may_hang(disk) {
                return Some(thread);
            }
            if round % 2 == 0 {
                self.end(Outcome::Aborted);
            }
        }
        None
    }

    /// The writer of a disk that works again rests.
    fn mend(&mut self, at: usize) {
        let writer = self.writers[at].as_mut().unwrap();
        assert!(writer.probe());
        self.office.rest(at);
    }
}

/// Gives whether it came to a hang.
fn hang(at: u64, landed: bool, late: Late) -> bool {
    let (first, second) = (Memory::default(), Memory::default());
    let mut house = House::open_on(stores(&first, &second), QUICK).unwrap();
    let at = first.calls() + at;
    first.set_fault(Some(Fault::Hang { at, landed }));
    let Some(thread) = house.live_until_it_hangs(&first) else {
        return false;
    };
    assert_eq!(house.at, 1);
    house.live();
    let told = house.entries.iter().filter(|a| a.told == Some(true));
    assert!(told.count() >= 8, "the standby serves");
    if late != Late::Never {
        let (fails, torn) = (u64::from(late == Late::Fails), Torn { from: 0, to: 300 });
        let count = fails;
        first.set_fault(Some(Fault::Fail { at, count, torn }));
        let (writer, result) = thread.join().unwrap();
        assert_eq!(result, Err(Relieved::Failing));
        house.writers[0] = Some(writer);
        first.set_fault(None);
        house.live();
        house.mend(0);
        house.live();
        assert_eq!(house.at, 0, "the log has come back");
        let lines = lines(&house.stores);
        for event in ["standby_in_use", "primary_in_use", "degraded"] {
            let told = |l: &Vec<u8>| memchr::memmem::find(l, event.as_bytes()).is_some();
            assert!(lines.iter().any(told), "{event}");
        }
    }
    let promised = house.durable();
    let after = stores(&first.crash(), &second.crash());
    first.set_fault(None); // whoever hangs there may go
    let mut house = House::open_on(after, QUICK).unwrap();
    whole(&house.stores, &promised);
    house.live();
    true
}

#[test]
fn a_hang_at_any_call_passes_the_log_to_the_standby_and_loses_nothing() {
    let mut hung = 0;
    for (late, step) in [(Late::Never, 3), (Late::Fails, 3), (Late::Lands, 1)] {
        for at in (1..40).step_by(step) {
            for landed in [false, true] {
                hung += u32::from(hang(at, landed, late));
            }
        }
    }
    assert!(hung > 40, "{hung}");
}

/// The primary's call wakes while the standby's is under way.
fn wake_between(at: u64, second_at: u64) {
    let (first, second) = (Memory::default(), Memory::default());
    let mut house = House::open_on(stores(&first, &second), QUICK).unwrap();
    let at = first.calls() + at;
    first.set_fault(Some(Fault::Hang { at, landed: true }));
    house.ask();
    house.ask();
    house.now += Duration::from_secs(1);
    let stuck = house.spawn_turn();
    loop {
        if stuck.is_finished() {
            return;
        }
        if first.is_stuck() && house.office.relieve() {
            break;
        }
        sleep(Duration::from_micros(50));
    }
    house.follow();
    let at = second.calls() + second_at;
    second.set_fault(Some(Fault::Hang { at, landed: false }));
    let standby = house.spawn_turn();
    while !standby.is_finished() && !second.is_stuck() {
        sleep(Duration::from_micros(50));
    }
    first.set_fault(None);
    let (writer, result) = stuck.join().unwrap();
    assert_eq!(result, Err(Relieved::Failing), "{at} {second_at}");
    house.writers[0] = Some(writer);
    second.set_fault(None);
    let (writer, result) = standby.join().unwrap();
    result.unwrap();
    house.writers[1] = Some(writer);
    house.listen();
    house.live();
    let promised = house.durable();
    let house = House::open_on(stores(&first.crash(), &second.crash()), QUICK).unwrap();
    whole(&house.stores, &promised);
}

#[test]
fn a_call_that_wakes_while_the_standby_writes_changes_nothing() {
    for at in 1..6 {
        for second_at in 1..6 {
            wake_between(at, second_at);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, ..ProptestConfig::default() })]

    /// Both disks fail now and then: nobody is promised what is not there.
    #[test]
    fn errors_of_two_disks_lose_nothing(one in (1..60_u64, 1..60_u64), other in (1..60_u64, 1..20_u64), to in 0..900_usize) {
        let (first, second) = (Memory::default(), Memory::default());
        let mut house = House::open_on(stores(&first, &second), QUICK).unwrap();
        let torn = Torn { from: 0, to };
        let fail = |disk: &Memory, (at, count)| disk.set_fault(Some(Fault::Fail { at: disk.calls() + at, count, torn }));
        fail(&first, one);
        fail(&second, other);
        for _ in 0..6 {
            house.live();
            for at in 0..2 {
                if at != house.at && house.writers[at].as_mut().unwrap().probe() {
                    house.office.rest(at);
                }
            }
        }
        let promised = house.durable();
        let house = House::open_on(stores(&first.crash(), &second.crash()), QUICK);
        whole(&house.unwrap().stores, &promised);
    }
}

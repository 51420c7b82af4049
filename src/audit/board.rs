//! What the seats and the writer tell each other: who wants a write, and how the disk is. No lock is in the way of a
//! record.
//!
//! Attention has three states. A worker that has run out of ready tasks raises it to `WANTED` if somebody waits for a
//! record, to `LAZY` if there are only records for which nobody waits; only the first to raise it wakes the writer.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::room::Room;
use crate::clock;
use crate::config::typed::Audit;

/// Nothing to write.
pub(super) const IDLE: u8 = 0;
/// Something to write soon.
pub(super) const LAZY: u8 = 1;
/// Somebody waits.
pub(super) const WANTED: u8 = 2;

/// Records for which nobody waits are written after this time at the latest.
const LAZY_WAIT: Duration = Duration::from_millis(20);

/// Shared by all seats and the writer.
pub(super) struct Board {
    attention: AtomicU8,
    /// Locked once per wake-up, which costs a system call anyway.
    writer: Mutex<Option<Thread>>,
    origin: Instant,
    /// Nanoseconds since `origin` at which the call to the device was begun; 0 if there is none under way.
    busy_since_ns: AtomicU64,
    down: AtomicBool,
    closing: AtomicBool,
    pub(super) room: Room,
    ended: AtomicBool,
    /// First `seq` of the segment that is being written.
    segment: AtomicU64,
    budget_ns: AtomicU64,
    stall_after_ns: AtomicU64,
    pub(super) counts: Counts,
}

/// How long is too long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Anybody waits so long for a record.
    pub(super) budget: Duration,
    /// A call to the device that lasts longer hangs.
    pub(super) stall_after: Duration,
}

impl Patience {
    pub(super) fn of(settings: &Audit) -> Self {
        Self {
            budget: settings.wait_budget,
            stall_after: settings.stall_after,
        }
    }
}

/// What happened while records could not be made durable.
#[derive(Default)]
pub(super) struct Counts {
    /// Entries refused before anything was recorded.
    pub(super) refused: AtomicU64,
    /// Entries let through without a record, or without waiting for it.
    pub(super) unrecorded: AtomicU64,
    /// Events that found no room.
    pub(super) events_lost: AtomicU64,
}

/// Why records cannot be made durable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trouble {
    Closing,
    /// The last write failed.
    Failing,
    /// The disk has no room but for the ends of what was let in.
    Full,
    /// A call to the disk does not return.
    Hanging,
}

impl Trouble {
    /// In one line, with the mend.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closing => "the audit log is closed",
            Self::Failing => "the audit log cannot be written; look at the state directory's disk",
            Self::Full => {
                "the disk of the audit log is full; make room on the state directory's disk, or keep less by `audit.retain`"
            }
            Self::Hanging => {
                "the audit log's disk hangs; look at the state directory's disk, and give `audit.standby_dir` another one"
            }
        }
    }
}

impl Board {
    pub(super) fn new(patience: Patience) -> Self {
        let board = Self {
            attention: AtomicU8::new(IDLE),
            writer: Mutex::new(None),
            origin: clock::now(),
            busy_since_ns: AtomicU64::new(0),
            down: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            room: Room::new(),
            ended: AtomicBool::new(false),
            segment: AtomicU64::new(0),
            budget_ns: AtomicU64::new(0),
            stall_after_ns: AtomicU64::new(0),
            counts: Counts::default(),
        };
        board.set_patience(patience);
        board
    }

    /// May change while running.
    pub(super) fn set_patience(&self, patience: Patience) {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.budget_ns.store(ns(patience.budget), Ordering::Relaxed);
        self.stall_after_ns
            .store(ns(patience.stall_after), Ordering::Relaxed);
    }

    /// How long anybody waits for a record.
    pub(super) fn budget(&self) -> Duration {
        Duration::from_nanos(self.budget_ns.load(Ordering::Relaxed))
    }

    /// After what time a call to the device hangs.
    pub(super) fn stall_after(&self) -> Duration {
        Duration::from_nanos(self.stall_after_ns.load(Ordering::Relaxed))
    }

    /// Asks for a write.
    pub(super) fn raise(&self, to: u8) {
        if self.attention.load(Ordering::Relaxed) >= to {
            return;
        }
        if self.attention.fetch_max(to, Ordering::AcqRel) < to {
            self.wake();
        }
    }

    /// Asks the writer to write what there is and end.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Says that nobody writes any more, or that nobody waits for it.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Called by the writer on its own thread.
    pub(super) fn attend(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        *writer = Some(thread::current());
    }

    /// Called by the writer: sleeps until a write is wanted, or for `rest`.
    pub(super) fn wait(&self, rest: Duration) {
        let begun = clock::now();
        loop {
            let bound = match self.attention.load(Ordering::Acquire) {
                IDLE => rest,
                LAZY => rest.min(LAZY_WAIT),
                _ => return,
            };
            let left = bound.saturating_sub(begun.elapsed());
            if left.is_zero() || self.is_closing() {
                return;
            }
            thread::park_timeout(left);
        }
    }

    /// Called by the writer: sleeps for `rest` whoever wants a write.
    pub(super) fn pause(&self, rest: Duration) {
        let begun = clock::now();
        while !self.is_closing() {
            let left = rest.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return;
            }
            thread::park_timeout(left);
        }
    }

    /// Called by the writer before it takes what is there: what comes later raises anew.
    pub(super) fn lower(&self) {
        self.attention.swap(IDLE, Ordering::AcqRel);
    }

    pub(super) fn set_busy(&self, busy: bool) {
        let since = if busy { self.since_origin().max(1) } else { 0 };
        self.busy_since_ns.store(since, Ordering::Release);
    }

    pub(super) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// Why records cannot be made durable at present.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        if self.is_closing() {
            Some(Trouble::Closing)
        } else if self.down.load(Ordering::SeqCst) {
            Some(Trouble::Failing)
        } else if self.stalled().is_some() {
            Some(Trouble::Hanging)
        } else if self.room.is_full() {
            Some(Trouble::Full)
        } else {
            None
        }
    }

    pub(super) fn set_segment(&self, first: u64) {
        self.segment.store(first, Ordering::Release);
    }

    pub(super) fn segment(&self) -> u64 {
        self.segment.load(Ordering::Acquire)
    }

    /// For how long the call to the device has lasted, if that is too long.
    pub(super) fn stalled(&self) -> Option<Duration> {
        let since = self.busy_since_ns.load(Ordering::Acquire);
        if since == 0 {
            return None;
        }
        let lasted = Duration::from_nanos(self.since_origin().saturating_sub(since));
        (lasted > self.stall_after()).then_some(lasted)
    }

    fn since_origin(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn wake(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = writer.as_ref() {
            writer.unpark();
        }
    }
}

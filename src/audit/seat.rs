//! One worker's place at the journal: where its records wait for the writer, and its requests for their records.
//!
//! A seat is one uncontended lock around three byte buffers. `intentions` are BEFORE records, for which somebody
//! waits; `endings` are AFTER records, whose place was set aside when the entry was let in, so that an ending can
//! neither be lost nor block; `notes` are denials and events. The writer swaps all three out at once and takes them in
//! this order, so an ending never comes before its intention. A waiting request holds a ticket; tickets become durable
//! in order, so "durable up to" is one number, and one wake-up per batch releases all of them.

use std::cell::Cell;
use std::collections::VecDeque;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::sync::Notify;

use super::board::{Board, IDLE, LAZY, WANTED};
use super::denials::Denials;
use super::epochs::Epochs;
use super::receipt::{Mark, Wanted};
use crate::clock;
use crate::record::{AFTER_BYTES_MAX, Denied, RECORD_BYTES_MAX};
use crate::workers;

mod collect;
mod release;

/// What one seat holds at most. A value, so that a test can have less.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// BEFORE records that wait.
    pub(super) intention_bytes_max: usize,
    /// Entries whose AFTER record is not durable yet; AFTER records take this times `AFTER_BYTES_MAX`.
    pub(super) open_max: u64,
}

pub(super) const BOUNDS: Bounds = Bounds {
    intention_bytes_max: 4 << 20,
    open_max: 65_536,
};

/// Bytes of denials and events that wait at one seat.
const NOTE_BYTES_MAX: usize = 1 << 20;
/// A buffer larger than this is given back after use.
const KEPT_BYTES_MAX: usize = 1 << 20;

thread_local! {
    static HERE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Says that the current thread is worker `at`.
pub(super) fn sit(at: usize) {
    HERE.set(at);
}

/// The number of the worker that this thread is; larger than any if it is none.
pub(super) fn here() -> usize {
    HERE.get()
}

pub(super) struct Seat {
    board: Arc<Board>,
    bounds: Bounds,
    at: usize,
    /// Shared by all threads that are no workers: nothing parks there, so everything is handed over at once.
    shared: bool,
    /// The last ticket whose record is durable, and the last whose record could not be made so.
    durable: AtomicU64,
    failed: AtomicU64,
    /// What the next park will raise attention to.
    mark: AtomicU8,
    release: Notify,
    inside: Mutex<Inside>,
}

struct Inside {
    queues: Queues,
    open: Epochs,
    /// The last ticket.
    issued: u64,
    /// One place per ticket, up to `issued`.
    waiting: VecDeque<Waiting>,
    denials: Denials,
    closed: bool,
    /// Whether a task releases the waiting, and whether its timer is set.
    released: bool,
    timed: bool,
}

struct Waiting {
    waker: Waker,
    deadline: Instant,
}

/// Records on their way to the writer, one per line.
#[derive(Default)]
pub(super) struct Queues {
    pub(super) intentions: Vec<u8>,
    pub(super) endings: Vec<u8>,
    pub(super) notes: Vec<u8>,
    /// What the endings end.
    pub(super) ended: Epochs,
    /// How many intentions there are, and who wants to know the place of theirs.
    lines: usize,
    pub(super) wanted: Vec<Wanted>,
}

/// A place in the queue, and the entry that took it.
pub(super) struct Ticket {
    number: u64,
    deadline: Instant,
    /// The segment that was being written.
    pub(super) segment: u64,
}

impl Seat {
    /// The seat of worker `at` out of `workers`; the shared one if there is no such worker.
    pub(super) fn new(board: Arc<Board>, bounds: Bounds, at: usize, workers: usize) -> Self {
        Self {
            board,
            bounds,
            at,
            shared: at >= workers,
            durable: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            mark: AtomicU8::new(IDLE),
            release: Notify::new(),
            inside: Mutex::new(Inside {
                queues: Queues::default(),
                open: Epochs::default(),
                issued: 0,
                waiting: VecDeque::new(),
                denials: Denials::new(workers + 1, clock::now()),
                closed: false,
                released: false,
                timed: false,
            }),
        }
    }

    /// Queues a BEFORE record; `None` if there is no room, or no hope that it becomes durable. `mark` is set by the time
    /// that it is durable.
    pub(super) fn begin(
        self: &Arc<Self>,
        now: Instant,
        waker: &Waker,
        mark: Option<&Arc<OnceLock<Mark>>>,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Option<Ticket> {
        let mut inside = self.lock();
        let full = inside.queues.intentions.len() + RECORD_BYTES_MAX
            > self.bounds.intention_bytes_max
            || inside.open.total() >= self.bounds.open_max;
        if full || inside.closed || self.board.trouble().is_some() {
            return None;
        }
        let intentions = &mut inside.queues.intentions;
        let start = intentions.len();
        encode(intentions);
        intentions.push(b'\n');
        if self.board.room.is_short() && !self.board.room.take_entry(intentions.len() - start) {
            intentions.truncate(start);
            return None;
        }
        let line = inside.queues.lines;
        inside.queues.lines += 1;
        if let Some(mark) = mark {
            let mark = Arc::clone(mark);
            inside.queues.wanted.push(Wanted { line, mark });
        }
        let segment = self.board.segment();
        inside.open.add(segment, 1);
        inside.issued += 1;
        let (number, deadline) = (inside.issued, now + self.board.budget());
        let waker = waker.clone();
        inside.waiting.push_back(Waiting { waker, deadline });
        let (spawn, kick) = (!inside.released, !inside.timed);
        if !self.shared {
            (inside.released, inside.timed) = (true, true);
        }
        drop(inside);
        self.mark(WANTED);
        if !self.shared && spawn {
            workers::spawn(release::release(Arc::clone(self)));
        } else if !self.shared && kick {
            self.release.notify_one();
        }
        Some(Ticket {
            number,
            deadline,
            segment,
        })
    }

    /// Ready with `true` when the ticket's record is durable, with `false` when it was not in time.
    pub(super) fn poll(&self, ticket: &Ticket, context: &Context<'_>) -> Poll<bool> {
        if self.durable.load(Ordering::Acquire) >= ticket.number {
            return Poll::Ready(true);
        }
        let late = clock::now() >= ticket.deadline;
        let mut inside = self.lock();
        if self.durable.load(Ordering::Acquire) >= ticket.number {
            return Poll::Ready(true);
        }
        if late || self.failed.load(Ordering::Acquire) >= ticket.number {
            return Poll::Ready(false);
        }
        let first = inside.first();
        let place = ticket
            .number
            .checked_sub(first)
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| inside.waiting.get_mut(at));
        match place {
            None => Poll::Ready(false), // released already: it was late by the releaser's clock
            Some(waiting) => {
                waiting.waker.clone_from(context.waker());
                Poll::Pending
            }
        }
    }

    /// Queues the AFTER record of an entry that began while `segment` was written. There is always room for it.
    pub(super) fn end(&self, segment: u64, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut inside = self.lock();
        if inside.closed {
            return; // the writer has gone; the next start finds the entry open
        }
        let queue = &mut inside.queues.endings;
        let start = queue.len();
        encode(queue);
        debug_assert!(queue.len() - start <= AFTER_BYTES_MAX);
        queue.push(b'\n');
        inside.queues.ended.add(segment, 1);
        drop(inside);
        self.mark(LAZY);
    }

    /// Counts an entry of an earlier process as open, so that its AFTER record can be queued.
    pub(super) fn adopt(&self, segment: u64) {
        self.lock().open.add(segment, 1);
    }

    /// Queues a denial, or counts it.
    pub(super) fn deny(&self, denied: &Denied<'_>, now: Instant, wall_ns: u64) {
        let mut inside = self.lock();
        let room = inside.queues.notes.len() + RECORD_BYTES_MAX <= NOTE_BYTES_MAX
            && !self.board.room.is_short();
        if room && inside.denials.single(now) {
            denied.encode(wall_ns, &mut inside.queues.notes);
            inside.queues.notes.push(b'\n');
            drop(inside);
            self.mark(LAZY);
        } else {
            inside.denials.count(denied, wall_ns);
        }
    }

    /// Queues a note, if there is room.
    pub(super) fn note(&self, encode: impl FnOnce(&mut Vec<u8>)) -> bool {
        let queued = self.lock().note(encode);
        if queued {
            self.mark(LAZY);
        }
        queued
    }

    /// Queues a note, if there is room, and gives the number of its ticket; nobody is woken for it.
    pub(super) fn announce(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Option<u64> {
        let mut inside = self.lock();
        if !inside.note(encode) {
            return None;
        }
        inside.issued += 1;
        let number = inside.issued;
        inside.waiting.push_back(Waiting {
            waker: Waker::noop().clone(),
            deadline: clock::now(),
        });
        drop(inside);
        self.mark(LAZY);
        Some(number)
    }

    /// Whether what the ticket of this number is for is durable.
    pub(super) fn is_durable(&self, number: u64) -> bool {
        self.durable.load(Ordering::Acquire) >= number
    }

    /// Called when the seat's thread has run out of ready tasks.
    pub(super) fn park(&self) {
        if self.mark.load(Ordering::Relaxed) != IDLE {
            self.board.raise(self.mark.swap(IDLE, Ordering::AcqRel));
        }
    }

    /// Has what was queued handed over: by the next park, or at once where no park will come soon.
    fn mark(&self, to: u8) {
        if self.shared || self.at != here() {
            self.board.raise(to);
        } else if self.mark.load(Ordering::Relaxed) < to {
            self.mark.fetch_max(to, Ordering::AcqRel);
        }
    }

    pub(super) fn is_shared(&self) -> bool {
        self.shared
    }

    fn wake(&self) {
        if self.shared {
            self.release_waiting(clock::now(), &mut Vec::new());
        } else {
            self.release.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn note(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> bool {
        let notes = &mut self.queues.notes;
        if self.closed || notes.len() + RECORD_BYTES_MAX > NOTE_BYTES_MAX {
            return false;
        }
        encode(notes);
        notes.push(b'\n');
        true
    }

    /// The ticket of the first who waits.
    fn first(&self) -> u64 {
        self.issued + 1 - self.waiting.len() as u64
    }
}

impl Queues {
    /// Empties it, keeping what is worth keeping.
    pub(super) fn clear(&mut self) {
        self.lines = 0;
        self.wanted.clear();
        for queue in [&mut self.intentions, &mut self.endings, &mut self.notes] {
            queue.clear();
            if queue.capacity() > KEPT_BYTES_MAX {
                *queue = Vec::new();
            }
        }
    }
}

//! The writer at a seat: it takes what waits there, and tells how it went.

use std::mem;
use std::sync::atomic::Ordering;

use super::{Queues, Seat};
use crate::audit::epochs::Epochs;
use crate::audit::frame::OVERHEAD_BYTES_MAX;
use crate::audit::room::ENDING_BYTES_MAX;
use crate::record::DeniedCount;

impl Seat {
    /// Called by the writer: swaps what waits with the empty `queues`, and gives the last ticket in it.
    pub(in crate::audit) fn take(&self, queues: &mut Queues) -> u64 {
        let mut inside = self.lock();
        mem::swap(&mut inside.queues, queues);
        inside.issued
    }

    /// Called by the writer: bytes that what waits, and the ends of what is open, will take at most.
    pub(in crate::audit) fn owed(&self) -> u64 {
        let inside = self.lock();
        let Queues {
            intentions,
            endings,
            notes,
            ..
        } = &inside.queues;
        let waiting = [intentions, endings, notes].map(|queue| {
            let lines = memchr::memchr_iter(b'\n', queue).count();
            queue.len() + lines * OVERHEAD_BYTES_MAX
        });
        let waiting: usize = waiting.iter().sum();
        waiting as u64 + inside.open.total() * ENDING_BYTES_MAX
    }

    /// Called by the writer: gives out the counted denials.
    pub(in crate::audit) fn take_denials(&self, out: &mut Vec<DeniedCount>) {
        out.extend(self.lock().denials.drain());
    }

    /// Called by the writer: everything up to ticket `upto` and all of `ended` is durable.
    pub(in crate::audit) fn publish(&self, upto: u64, ended: &mut Epochs) {
        self.lock().open.subtract(ended);
        self.durable.store(upto, Ordering::Release);
        self.wake();
    }

    /// Called by the writer: nobody who waits now gets a durable record in time. Gives how many were told.
    pub(in crate::audit) fn fail(&self) -> u64 {
        let inside = self.lock();
        self.failed.store(inside.issued, Ordering::Release);
        let told = inside.waiting.len() as u64;
        drop(inside);
        self.wake();
        told
    }

    /// Called by the writer: takes no more records. Gives whether any had come since the last look, and how many
    /// entries are open.
    pub(in crate::audit) fn close(&self) -> (bool, u64) {
        let mut inside = self.lock();
        let Queues {
            intentions,
            endings,
            notes,
            ..
        } = &inside.queues;
        let empty = intentions.is_empty() && endings.is_empty() && notes.is_empty();
        inside.closed = empty;
        (empty, inside.open.total())
    }

    /// The oldest segment that holds an open entry.
    pub(in crate::audit) fn oldest(&self) -> Option<u64> {
        self.lock().open.oldest()
    }
}

//! The ledger: the number of the next record, and what has been taken from the seats and is not published yet.
//!
//! Whoever holds the ledger writes, and there is one. A call to a device may hang, and then cannot be cancelled; so a
//! writer lays the ledger on the shelf before each call and takes it back after. Meanwhile it may be taken by the
//! watch, for a writer on another device, who lays it there again for each call of its own. Who comes back and finds
//! nothing that it laid there itself has been relieved: what that last call wrote does not count, and the same lines
//! have been written elsewhere under the ledger's numbers.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::board::Board;
use super::epochs::Epochs;
use super::frame;
use super::receipt::{Mark, Wanted};
use super::seal::Sealer;
use super::seat::{Queues, Seat};
use super::spell::Spell;
use crate::clock;
use crate::record::Event;

/// A buffer larger than this is given back after use.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// What one writer leaves to the next. The default one is what a relieved writer is left with: nothing.
#[derive(Default)]
pub(super) struct Ledger {
    /// The number of the next record.
    pub(super) next: u64,
    pub(super) batch: Batch,
    /// The tree of everything before `next`; there whenever the ledger is.
    pub(super) sealer: Option<Box<Sealer>>,
    /// Since when nothing can be written, and why.
    pub(super) down: Option<Spell>,
    /// Since when there is no next segment, and why.
    pub(super) short: Option<Spell>,
    /// Where to say that the log is closed.
    pub(super) done: Option<SyncSender<()>>,
}

/// Lines on their way to the device.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) lines: Vec<u8>,
    /// How much of `lines` is durable.
    done: usize,
    /// Whether the seats have been emptied into it. They are not again before it is published.
    taken: bool,
    /// Per seat: empty buffers to swap with, the last ticket taken and the endings taken.
    seats: Vec<(Queues, u64, Epochs)>,
    /// Who wants to know the place of a line.
    wanted: Vec<Wanted>,
    /// The places of the durable lines, if anybody wants to know one.
    marks: Vec<Mark>,
}

/// Where the ledger lies while its writer is at the device.
pub(super) struct Shelf {
    board: Arc<Board>,
    /// With the device of the writer who laid it there.
    ledger: Mutex<Option<(usize, Ledger)>>,
}

impl Ledger {
    /// Adds an event to the batch.
    pub(super) fn note(&mut self, event: &Event) {
        event.encode(clock::wall_ns(), &mut self.batch.lines);
        self.batch.lines.push(b'\n');
    }
}

impl Batch {
    pub(super) fn new(seats: usize) -> Self {
        let mut batch = Self::default();
        batch.seats.resize_with(seats, Default::default);
        batch
    }

    /// Empties the seats into it, unless it holds what they held before. Gives whether there is anything to write.
    pub(super) fn take(&mut self, from: &[Arc<Seat>]) -> bool {
        if self.taken {
            return true;
        }
        for (seat, (queues, upto, ended)) in from.iter().zip(&mut self.seats) {
            *upto = seat.take(queues);
            if !queues.wanted.is_empty() {
                let before = memchr::memchr_iter(b'\n', &self.lines).count();
                let placed = queues.wanted.drain(..).map(|Wanted { line, mark }| Wanted {
                    line: before + line,
                    mark,
                });
                self.wanted.extend(placed);
            }
            for queue in [&queues.intentions, &queues.endings, &queues.notes] {
                self.lines.extend_from_slice(queue);
            }
            std::mem::swap(ended, &mut queues.ended);
            queues.clear();
        }
        self.taken = !self.lines.is_empty();
        self.taken
    }

    /// Whether it holds what the seats held before.
    pub(super) fn is_taken(&self) -> bool {
        self.taken
    }

    /// Where the places of lines go that are durable now; `None` if nobody wants to know.
    pub(super) fn marks(&mut self) -> Option<&mut Vec<Mark>> {
        (!self.wanted.is_empty()).then_some(&mut self.marks)
    }

    /// Tells every seat that all of it is durable, and begins anew.
    pub(super) fn publish(&mut self, to: &[Arc<Seat>]) {
        for Wanted { line, mark } in self.wanted.drain(..) {
            if let Some(known) = self.marks.get(line) {
                mark.set(*known).ok(); // nobody else sets it
            }
        }
        self.marks.clear();
        if std::mem::take(&mut self.taken) {
            for (seat, (_, upto, ended)) in to.iter().zip(&mut self.seats) {
                seat.publish(*upto, ended);
            }
        }
        self.done = 0;
        self.lines.clear();
        if self.lines.capacity() > KEPT_BYTES_MAX {
            self.lines = Vec::new();
        }
    }

    /// What is not durable yet.
    pub(super) fn rest(&self) -> Option<&[u8]> {
        self.lines.get(self.done..).filter(|rest| !rest.is_empty())
    }

    /// Says that the first `bytes` of the rest are durable.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.done += bytes;
    }

    /// Frames as many lines of the rest as fit into `room`, from number `next` on. Gives how many, and their bytes
    /// in the rest.
    pub(super) fn frame(&self, next: u64, room: u64, out: &mut Vec<u8>) -> (u64, usize) {
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let (mut count, mut end, mut bytes) = (0_u64, 0, 0);
        let rest = self.rest().unwrap_or_default();
        for at in memchr::memchr_iter(b'\n', rest) {
            bytes += at + 1 - end + frame::OVERHEAD_BYTES_MAX;
            if bytes > room {
                break;
            }
            (count, end) = (count + 1, at + 1);
        }
        let taken = rest.get(..end).unwrap_or_default();
        out.clear();
        let lines = taken.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        for (seq, inside) in (next..).zip(lines) {
            let batch = (seq == next).then_some(count);
            frame::append(out, seq, batch, inside);
        }
        (count, end)
    }
}

impl Shelf {
    pub(super) fn new(board: &Arc<Board>) -> Self {
        Self {
            board: Arc::clone(board),
            ledger: Mutex::new(None),
        }
    }

    /// Leaves the ledger here for the length of a call to device `at`.
    pub(super) fn lay(&self, at: usize, ledger: Ledger) {
        let mut place = self.lock();
        debug_assert!(place.is_none(), "a second ledger");
        self.board.set_busy(true);
        *place = Some((at, ledger));
    }

    /// Takes back what the writer of device `at` laid there; `None` if it has been given to somebody else, who may have
    /// laid it there again by now.
    pub(super) fn take(&self, at: usize) -> Option<Ledger> {
        let (_, ledger) = self.lock().take_if(|(whose, _)| *whose == at)?;
        self.board.set_busy(false);
        Some(ledger)
    }

    /// Puts down how long the call has hung, and tells of it now and then.
    pub(super) fn note_stall(&self) {
        let mut place = self.lock();
        if let (Some(lasted), Some((_, ledger))) = (self.board.stalled(), place.as_mut()) {
            let hang = || Spell::lasting(lasted, "a call to the disk hangs".to_owned());
            let spell = ledger.down.get_or_insert_with(hang);
            if let Some(event) = spell.due(clock::now(), &self.board.counts) {
                ledger.note(&event);
            }
        }
    }

    /// Takes it if the call hangs, and says since how long it has lasted.
    pub(super) fn take_stalled(&self) -> Option<(Ledger, Duration)> {
        let mut place = self.lock();
        let lasted = self.board.stalled()?;
        let (_, ledger) = place.take()?;
        self.board.set_busy(false);
        Some((ledger, lasted))
    }

    fn lock(&self) -> MutexGuard<'_, Option<(usize, Ledger)>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::board::Patience;

    #[test]
    fn who_wakes_late_does_not_take_what_another_laid_there() {
        let patience = Patience {
            budget: Duration::ZERO,
            stall_after: Duration::ZERO,
        };
        let board = Arc::new(Board::new(patience));
        let shelf = Shelf::new(&board);
        shelf.lay(0, Ledger::default());
        std::thread::sleep(Duration::from_millis(2));
        let (ledger, _) = shelf.take_stalled().unwrap();
        shelf.lay(1, ledger);
        assert!(shelf.take(0).is_none());
        assert!(shelf.take(1).is_some());
    }
}

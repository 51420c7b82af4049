//! What a writer does to keep the log sealed: after a batch is published, never before.
//!
//! What was written goes into the tree only once it counts, and always before anything else is framed, so that the
//! sealer of a ledger that passes to another writer has all of the log behind it.

use std::time::{Duration, Instant};

use super::{Halt, Relieved, Writer};
use crate::audit::ledger::Ledger;
use crate::audit::seal::SEAL_BYTES_MAX;
use crate::clock;

impl Writer {
    /// How long until a seal is due; `None` while there is nothing to seal.
    pub(super) fn seal_due(&self, now: Instant) -> Option<Duration> {
        self.ledger.sealer.as_ref()?.due_in(now)
    }

    /// Seals when it is time, and leaves a segment that is nearly full.
    pub(super) fn keep_sealed(&mut self, now: Instant) -> Result<(), Relieved> {
        let step = match self.seal_due(now) {
            _ if self.ledger.down.is_some() => return Ok(()),
            _ if self.device.is_nearly_full() && !self.office.board.room.is_short() => {
                Self::turn_over
            }
            Some(Duration::ZERO) if !self.office.board.room.take(SEAL_BYTES_MAX) => return Ok(()),
            Some(Duration::ZERO) => Self::seal_now,
            _ => return Ok(()),
        };
        let begun = clock::now();
        match self.attempt(step) {
            Ok(()) => {
                self.absorb();
                self.recovered(begun.elapsed());
                Ok(())
            }
            Err(Halt::Relieved) => Err(Relieved::Failing),
            Err(Halt::Failed(error)) if self.office.relief().is_some() => self.failed(&error),
            Err(Halt::Failed(error)) => {
                tracing::warn!(%error, "the audit log could not be sealed; it is tried again");
                if let Some(sealer) = &mut self.ledger.sealer {
                    sealer.put_off(); // nobody has been refused yet: the next batch will tell
                }
                Ok(())
            }
        }
    }

    /// Seals all records, in a segment in which there is room for it.
    pub(super) fn seal_now(&mut self) -> Result<(), Halt> {
        if self.device.room() == 0 {
            self.turn_over()?;
        }
        self.seal(false)
    }

    /// Seals the segment, if there is one, as a whole.
    pub(super) fn seal_segment(&mut self) -> Result<(), Halt> {
        self.absorb();
        if self.device.has_segment() {
            self.seal(true)?;
        }
        Ok(())
    }

    /// Seals and closes the segment, if there is one.
    pub(super) fn close_segment(&mut self) -> Result<(), Halt> {
        match self.seal_segment() {
            Err(Halt::Failed(error)) => {
                tracing::warn!(%error, "audit segment could not be sealed; the next one seals its records");
            }
            sealed => sealed?, // who was relieved meanwhile has no ledger to go on with
        }
        if let Some(lost) = self.call(|device| Ok(device.close()))? {
            self.tell_lost(&lost);
        }
        Ok(())
    }

    /// Puts what was written last into the tree.
    pub(super) fn absorb(&mut self) {
        self.absorb_lines(false);
    }

    /// As [`Self::absorb`], for lines of the batch: who waits for one may want to know its place.
    pub(super) fn absorb_batch(&mut self) {
        if self.ledger.batch.marks().is_some() {
            self.absorb_lines(true);
        }
    }

    fn absorb_lines(&mut self, of_batch: bool) {
        let Ledger { sealer, batch, .. } = &mut self.ledger;
        if std::mem::take(&mut self.fresh)
            && let Some(sealer) = sealer
        {
            let marks = batch.marks().filter(|_| of_batch);
            sealer.add(&self.device.framed, marks);
            debug_assert_eq!(sealer.size() + 1, self.ledger.next);
            self.device.forget();
        }
    }

    fn seal(&mut self, last: bool) -> Result<(), Halt> {
        self.absorb();
        let Some(sealer) = &mut self.ledger.sealer else {
            return Ok(()); // only without a ledger, and then nobody writes
        };
        let made = sealer.seal(last, &mut self.device.framed);
        self.append(1)?;
        self.fresh = false;
        if let Some(sealer) = &mut self.ledger.sealer {
            sealer.sealed(&made, &self.device.framed);
        }
        self.device.forget();
        self.office.metrics.seals.durable.inc();
        Ok(())
    }
}

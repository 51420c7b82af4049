//! The life of one device's writer: called, writing until relieved, mending what failed, and called again; and its end.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use super::{Halt, Relieved, TICK, Writer};
use crate::audit::ledger::Ledger;
use crate::audit::office::PRIMARY;
use crate::clock;

/// How often a log that is down is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// How often it is seen whether a device that failed works again.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// So often in a row it has to; twice as often each time that it fails before it has worked for `CALM`.
const PROBES_MIN: u32 = 8;
const PROBES_MAX: u32 = 256;
const CALM: Duration = Duration::from_secs(600);
/// Looks at the seats after which closing waits no longer for them to fall silent.
const CLOSING_TURNS_MAX: u32 = 100;

impl Writer {
    /// Writes whenever it is called, until the journal is closed.
    pub(in crate::audit) fn run(mut self, calls: &Receiver<Ledger>) {
        while let Ok(ledger) = calls.recv() {
            self.ledger = ledger;
            self.office.board.attend();
            let begun = clock::now();
            match self.work() {
                Ok(()) => return self.close(),
                Err(Relieved::Failing) => self.mend(begun.elapsed()),
                Err(Relieved::Willingly) => {}
            }
            self.office.rest(self.at);
        }
    }

    pub(super) fn close(mut self) {
        self.office.end();
        if let Some(done) = self.ledger.done.take() {
            done.send(()).ok(); // nobody may wait any more
        }
    }

    pub(super) fn work(&mut self) -> Result<(), Relieved> {
        let office = Arc::clone(&self.office);
        while !office.board.is_closing() {
            self.turn(clock::now())?;
            if self.ledger.down.is_some() {
                office.board.pause(RETRY);
            } else {
                let tick = TICK.saturating_sub(self.ticked.elapsed());
                let seal = self.seal_due(clock::now()).unwrap_or(tick);
                office.board.wait(tick.min(seal));
            }
        }
        self.finish()
    }

    /// Tries a device that failed until it works: the longer, the sooner it has failed.
    fn mend(&mut self, lasted: Duration) {
        self.probes = match lasted {
            short if short < CALM => (self.probes * 2).clamp(PROBES_MIN, PROBES_MAX),
            _ => PROBES_MIN,
        };
        let board = Arc::clone(&self.office.board);
        let mut good = 0;
        while good < self.probes && !board.is_closing() {
            board.pause(PROBE_EVERY);
            let begun = clock::now();
            let works = self.probe() && begun.elapsed() <= board.stall_after();
            good = if works { good + 1 } else { 0 };
        }
    }

    /// Whether the device can be used from the beginning.
    pub(in crate::audit) fn probe(&mut self) -> bool {
        self.device.abandon(&"the log has gone on elsewhere");
        self.device.probe().is_ok()
    }

    /// Goes on upon the other device before this one is full.
    pub(super) fn leave(&mut self, why: &str) -> Result<(), Relieved> {
        let Some(to) = self.office.relief() else {
            return Ok(());
        };
        if self.close_segment().is_err() {
            return Err(Relieved::Failing);
        }
        let ledger = std::mem::take(&mut self.ledger);
        self.office.hand_over(to, ledger, why);
        Err(Relieved::Failing)
    }

    pub(super) fn hand_back(&mut self) -> Result<(), Relieved> {
        if self.close_segment().is_err() {
            return Err(Relieved::Failing);
        }
        let ledger = std::mem::take(&mut self.ledger);
        self.office.hand_over(PRIMARY, ledger, "it works again");
        Err(Relieved::Willingly)
    }

    /// Writes what is left, then that nothing more comes, and closes the segment.
    pub(in crate::audit) fn finish(&mut self) -> Result<(), Relieved> {
        let office = Arc::clone(&self.office);
        let mut open = 0;
        for _ in 0..CLOSING_TURNS_MAX {
            self.count_out();
            self.turn(clock::now())?;
            let seats = office.seats.iter().map(|seat| seat.close());
            let (empty, left) =
                seats.fold((true, 0), |(all, sum), (one, open)| (all & one, sum + open));
            open = left;
            if empty || self.ledger.down.is_some() {
                break;
            }
        }
        self.look_for_segment()?;
        self.note("closed", vec![("open", open.to_string())]);
        match self.attempt(Self::write_rest) {
            Ok(()) => self.publish(),
            Err(Halt::Failed(error)) => {
                tracing::error!(%error, "the last audit records could not be written; the next start records how far they got");
            }
            Err(Halt::Relieved) => return Err(Relieved::Failing),
        }
        for seat in office.seats.iter() {
            seat.fail();
        }
        if let Err(Halt::Relieved) = self.close_segment() {
            return Err(Relieved::Failing);
        }
        if let Some(sealer) = &mut self.ledger.sealer {
            sealer.end();
        }
        Ok(())
    }
}

//! What a writer does besides: the chores of each second, and the account of the time in which nothing was recorded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Relieved, Writer};
use crate::audit::board::LAZY;
use crate::audit::device::Lost;
use crate::audit::office::PRIMARY;
use crate::clock;

impl Writer {
    /// What is to be done once a second: counted denials become records, the live file is looked for, and the log
    /// goes back to the primary if that works again.
    pub(super) fn tick(&mut self) -> Result<(), Relieved> {
        self.count_out();
        self.look_for_segment()?;
        if self.at != PRIMARY && self.office.can_return() {
            self.hand_back()?;
        }
        Ok(())
    }

    /// Puts the live segment back if it was removed or renamed.
    pub(super) fn look_for_segment(&mut self) -> Result<(), Relieved> {
        match self.call(|device| Ok(device.lost())) {
            Ok(Some(lost)) => self.tell_lost(&lost),
            Ok(None) => {}
            Err(_) => return Err(Relieved::Failing),
        }
        Ok(())
    }

    pub(super) fn tell_lost(&mut self, lost: &Lost) {
        let file = lost.file.display().to_string();
        let (name, told) = match &lost.restored {
            Ok(restored) => ("restored", restored.display().to_string()),
            Err(error) => ("error", error.to_string()),
        };
        tracing::error!(
            file,
            restored = lost.restored.is_ok(),
            "the live audit segment was removed or renamed; going on in a new one"
        );
        self.note("segment_lost", vec![("file", file), (name, told)]);
    }

    pub(super) fn count_out(&mut self) {
        let mut counts = Vec::new();
        for seat in self.office.seats.iter() {
            seat.take_denials(&mut counts);
        }
        let (now, lines) = (clock::wall_ns(), &mut self.ledger.batch.lines);
        for count in counts {
            count.encode(now, lines);
            lines.push(b'\n');
        }
    }

    /// Records how long nothing could be written, if it was longer than anybody waits.
    pub(super) fn recovered(&mut self, lasted: Duration) {
        let board = &self.office.board;
        let (since, cause) = match self.ledger.down.take() {
            Some((since, cause)) => (since.elapsed(), cause),
            None if lasted > board.stall_after() => (lasted, "a write took too long".to_owned()),
            None => return,
        };
        self.office.metrics.journal_healthy.set(1);
        board.set_down(false);
        let taken = |count: &AtomicU64| count.swap(0, Ordering::AcqRel).to_string();
        let facts = vec![
            ("lasted_ms", since.as_millis().to_string()),
            ("cause", cause),
            ("refused", taken(&board.counts.refused)),
            ("unrecorded", taken(&board.counts.unrecorded)),
            ("events_lost", taken(&board.counts.events_lost)),
        ];
        let lasted_ms = since.as_millis();
        tracing::warn!(lasted_ms, "audit log can be written again");
        self.note("degraded", facts);
        self.office.board.raise(LAZY);
    }
}

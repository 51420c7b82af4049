//! What a writer does besides: the chores of each second, and the account of the time in which nothing was recorded.

use std::sync::Arc;
use std::time::Duration;

use super::{Relieved, Writer};
use crate::audit::board::{Counts, LAZY};
use crate::audit::device::Lost;
use crate::audit::office::PRIMARY;
use crate::audit::spell::Spell;
use crate::clock;
use crate::record::DeniedCount;

/// Of a segment after which there is none, so much is kept for events, but no more than this part of it.
const EVENT_BYTES: u64 = 64 << 10;
const EVENT_PART: u64 = 8;

impl Writer {
    /// What is to be done once a second: counted denials become records, the live file is looked for, and the log
    /// goes back to the primary if that works again.
    pub(super) fn tick(&mut self) -> Result<(), Relieved> {
        if !self.office.board.room.is_short() {
            self.count_out();
        }
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
        if self.office.board.room.is_short() {
            counts = DeniedCount::by_reason(&counts);
        }
        let (now, lines) = (clock::wall_ns(), &mut self.ledger.batch.lines);
        for count in counts {
            count.encode(now, lines);
            lines.push(b'\n');
        }
    }

    /// Records how long nothing could be written, if it was longer than anybody waits.
    pub(super) fn recovered(&mut self, lasted: Duration) {
        let board = Arc::clone(&self.office.board);
        let spell = match self.ledger.down.take() {
            Some(spell) => spell,
            None if lasted > board.stall_after() => {
                Spell::lasting(lasted, "a write took too long".to_owned())
            }
            None => return,
        };
        self.office.metrics.journal_healthy.set(1);
        board.set_down(false);
        let now = clock::now();
        let lasted_ms = spell.lasted(now).as_millis();
        tracing::warn!(lasted_ms, "audit log can be written again");
        self.ledger.note(&spell.over(now, &board.counts));
        board.raise(LAZY);
    }

    /// Tells, now and then, that nothing can be written, for when it can.
    pub(super) fn tell_spell(&mut self) {
        let counts = &self.office.board.counts;
        let spell = self.ledger.down.as_mut();
        if let Some(event) = spell.and_then(|spell| spell.due(clock::now(), counts)) {
            self.ledger.note(&event);
        }
    }

    /// Lets nothing in for which there is no room: when no next segment can be made, what is left of this one is
    /// counted out.
    pub(super) fn mind_room(&mut self, ticks: bool) -> Result<(), Relieved> {
        if self.ledger.down.is_some() {
            return Ok(()); // nothing is let in anyhow
        }
        let was = self.ledger.short.is_some();
        match self.device.lack(ticks) {
            None if was => self.enough(),
            None => {}
            Some((why, _)) if self.office.relief().is_some() => self.leave(&why)?,
            Some((why, left)) if !was || ticks => self.ration(why, left),
            Some(_) => {}
        }
        Ok(())
    }

    /// Counts out what is left.
    fn ration(&mut self, why: String, left: u64) {
        let board = Arc::clone(&self.office.board);
        if self.ledger.short.is_some() && board.room.is_full() {
            return self.tell_short(&board.counts); // it stays so until there is a next segment
        }
        board.room.set(Some(0)); // nobody comes in while it is counted
        let owed: u64 = self.office.seats.iter().map(|seat| seat.owed()).sum();
        let kept = EVENT_BYTES.min(left / EVENT_PART);
        board.room.set(Some(left.saturating_sub(owed + kept)));
        if self.ledger.short.is_some() {
            return;
        }
        let dir = self.device.store.dir.display().to_string();
        tracing::error!(
            dir,
            error = why,
            left,
            "no next audit segment can be made; what is left is for what was let in"
        );
        let facts = vec![
            ("dir", dir),
            ("cause", why.clone()),
            ("left", left.to_string()),
        ];
        self.ledger.short = Some(Spell::lasting(Duration::ZERO, why));
        self.note("space_short", facts);
        board.raise(LAZY);
    }

    fn tell_short(&mut self, counts: &Counts) {
        let spell = self.ledger.short.as_mut();
        if let Some(event) = spell.and_then(|spell| spell.due(clock::now(), counts)) {
            self.ledger.note(&event);
        }
    }

    /// There is a next segment again.
    pub(super) fn enough(&mut self) {
        let board = Arc::clone(&self.office.board);
        board.room.set(None);
        if let Some(spell) = self.ledger.short.take() {
            tracing::warn!("audit segments can be made again");
            self.ledger.note(&spell.over(clock::now(), &board.counts));
            board.raise(LAZY);
        }
    }
}

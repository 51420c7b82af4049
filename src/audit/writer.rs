//! Takes what waits at all seats, writes it as one batch, publishes, and begins again; one thread for each device.
//!
//! A batch stays in the ledger until all of it is durable. When a write fails, the segment is given up and the rest of
//! the batch goes to a fresh one; when that fails too, to the other device, if there is one that works; otherwise the
//! log is down: everybody who waits is told, nobody is let in, and a fresh segment is tried again and again. Nothing
//! that was queued is dropped, and no number is given twice to records that both count: the number of a batch that
//! failed is used again by the same batch.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::Device;
use super::frame;
use super::ledger::Ledger;
use super::office::Office;
use super::recover::Recovered;
use super::spell::Spell;
use crate::clock;
use crate::outcome::Outcome;
use crate::record::{After, Event};

/// How often denials are counted out, and the live file is looked for.
const TICK: Duration = Duration::from_secs(1);
/// Attempts to write one batch before the log counts as down.
const ATTEMPTS: u32 = 2;
mod chores;
mod sealing;
mod shift;

pub(super) struct Writer {
    office: Arc<Office>,
    /// The number of the device.
    at: usize,
    device: Device,
    pub(super) ledger: Ledger,
    /// Whether what the device has framed counts, but is not in the tree yet.
    fresh: bool,
    ticked: Instant,
    /// How often in a row the device had to work before it was used again.
    probes: u32,
}

/// Why a writer stops before it is done.
pub(super) enum Halt {
    /// The device said no.
    Failed(io::Error),
    /// The ledger has passed to another device's writer.
    Relieved,
}

/// The ledger has passed to another device's writer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Relieved {
    /// Because the primary works again.
    Willingly,
    /// Because a call failed or hung.
    Failing,
}

impl Writer {
    /// Of device number `at`; without the ledger.
    pub(super) fn new(office: &Arc<Office>, at: usize, device: Device) -> Self {
        Self {
            office: Arc::clone(office),
            at,
            device,
            ledger: Ledger::default(),
            fresh: false,
            ticked: clock::now(),
            probes: 0,
        }
    }

    /// Takes what is there and writes it. One that failed before is tried again first.
    pub(super) fn turn(&mut self, now: Instant) -> Result<(), Relieved> {
        let ticks = now.saturating_duration_since(self.ticked) >= TICK;
        if self.ledger.down.is_none() && ticks {
            self.ticked = now;
            self.tick()?;
        }
        if self.take() {
            let written = self.attempt(Self::write_rest);
            let lasted = now.elapsed();
            match written {
                Ok(()) => {
                    let metrics = &self.office.metrics;
                    metrics.journal_sync_seconds.observe(lasted.as_secs_f64());
                    self.publish();
                    self.recovered(lasted);
                }
                Err(Halt::Failed(error)) => return self.failed(&error),
                Err(Halt::Relieved) => return Err(Relieved::Failing),
            }
        } else if self.ledger.down.is_some() {
            self.recovered(Duration::ZERO); // a call hung for which nobody waited
        }
        self.keep_sealed(now)?;
        self.mind_room(ticks)
    }

    /// Goes on from what was recovered: begins a segment, and ends in it what an earlier process left open.
    pub(super) fn begin(&mut self, recovered: &Recovered) -> io::Result<()> {
        self.ledger.next = recovered.next;
        if let Some(seat) = self.office.seats.last() {
            let after = After::nothing_moved(Outcome::Unknown);
            for (id, (way, segment)) in &recovered.open {
                seat.adopt(*segment);
                seat.end(*segment, |out| {
                    after.encode(*id, clock::wall_ns(), *way, None, out);
                });
            }
        }
        for event in &recovered.events {
            self.ledger.note(event);
        }
        self.take();
        let mut written = self.attempt(Self::write_rest);
        if written.is_ok() {
            self.publish();
            if recovered.next > 1 {
                written = self.attempt(Self::seal_now); // what an earlier process could not
            }
        }
        match written {
            Ok(()) => {}
            Err(Halt::Failed(error)) => return Err(error),
            Err(Halt::Relieved) => return Err(io::ErrorKind::TimedOut.into()),
        }
        self.office.metrics.journal_healthy.set(1);
        Ok(())
    }

    fn take(&mut self) -> bool {
        if !self.ledger.batch.is_taken() {
            self.office.board.lower(); // otherwise what has been queued since is still to be taken
        }
        self.ledger.batch.take(&self.office.seats)
    }

    /// Tells every seat that the batch is durable.
    fn publish(&mut self) {
        self.ledger.batch.publish(&self.office.seats);
        self.absorb(); // nobody waits for it
    }

    /// Takes a step that writes; when that fails, once more in a fresh segment.
    fn attempt(&mut self, step: fn(&mut Self) -> Result<(), Halt>) -> Result<(), Halt> {
        let mut attempts = 1;
        loop {
            match step(self) {
                Err(Halt::Failed(error)) => {
                    self.office.metrics.journal_failures.inc();
                    self.call(|device| {
                        device.abandon(&error);
                        Ok(())
                    })?;
                    if attempts == ATTEMPTS {
                        return Err(Halt::Failed(error));
                    }
                    attempts += 1;
                }
                done => return done,
            }
        }
    }

    /// Makes the rest of the batch durable.
    fn write_rest(&mut self) -> Result<(), Halt> {
        while let Some(rest) = self.ledger.batch.rest() {
            let line = memchr::memchr(b'\n', rest).unwrap_or_default() + 1;
            let needed = (line + frame::OVERHEAD_BYTES_MAX) as u64;
            let room = self.device.room();
            if room < needed {
                self.turn_over()?;
                continue;
            }
            self.absorb();
            let Ledger { next, batch, .. } = &self.ledger;
            let (count, bytes) = batch.frame(*next, room, &mut self.device.framed);
            self.append(count)?;
            self.ledger.batch.advance(bytes);
            self.absorb_batch();
        }
        if !self.device.has_segment() {
            self.turn_over()?;
        }
        Ok(())
    }

    /// Begins a new segment; seals and closes the one before, whose records are durable already.
    fn turn_over(&mut self) -> Result<(), Halt> {
        self.seal_segment()?;
        if let Some(lost) = self.call(|device| Ok(device.close()))? {
            self.tell_lost(&lost);
        }
        let first = self.ledger.next;
        self.call(|device| device.begin(first))?;
        let oldest = self.office.seats.iter().filter_map(|seat| seat.oldest());
        let durability = format!("{:?}", self.device.store.durability).to_lowercase();
        let sealer = self.ledger.sealer.as_ref();
        let log_id = sealer.map_or("", |sealer| sealer.log_id());
        let mut facts = vec![
            ("log_id", log_id.to_owned()),
            ("process", self.office.process.to_string()),
            ("previous", (first - 1).to_string()),
            ("open_since", oldest.min().unwrap_or(first).to_string()),
            ("durability", durability),
        ];
        facts.extend(sealer.into_iter().flat_map(|sealer| sealer.facts()));
        let (mut inside, name) = (Vec::new(), "segment");
        Event { name, facts }.encode(clock::wall_ns(), &mut inside);
        self.device.forget();
        frame::append(&mut self.device.framed, first, Some(1), &inside);
        self.append(1)?;
        self.office.board.set_segment(first);
        Ok(())
    }

    /// Writes what is framed: the next `count` records.
    fn append(&mut self, count: u64) -> Result<(), Halt> {
        self.call(Device::append)?;
        self.device.count();
        self.fresh = true;
        self.ledger.next += count;
        self.office.metrics.journal_syncs.inc();
        self.office.metrics.journal_records.inc_by(count);
        Ok(())
    }

    /// Makes a call that may hang. The ledger lies on the shelf meanwhile.
    fn call<T>(&mut self, call: impl FnOnce(&mut Device) -> io::Result<T>) -> Result<T, Halt> {
        self.office
            .shelf
            .lay(self.at, std::mem::take(&mut self.ledger));
        let result = call(&mut self.device);
        self.ledger = self.office.shelf.take(self.at).ok_or(Halt::Relieved)?;
        result.map_err(Halt::Failed)
    }

    /// Goes on elsewhere, or the log is down: nobody who waits is let in.
    fn failed(&mut self, error: &io::Error) -> Result<(), Relieved> {
        if let Some(to) = self.office.relief() {
            let ledger = std::mem::take(&mut self.ledger);
            self.office.hand_over(to, ledger, &error.to_string());
            return Err(Relieved::Failing);
        }
        if self.ledger.down.is_none() {
            tracing::error!(dir = %self.device.store.dir.display(), %error, "audit log cannot be written; requests are refused until it can");
            self.ledger.down = Some(Spell::lasting(Duration::ZERO, error.to_string()));
        }
        self.tell_spell();
        self.office.metrics.journal_healthy.set(0);
        self.office.board.set_down(true); // first, so that nobody comes in after being told
        for seat in self.office.seats.iter() {
            seat.fail();
        }
        Ok(())
    }

    fn note(&mut self, name: &'static str, facts: Vec<(&'static str, String)>) {
        self.ledger.note(&Event { name, facts });
    }
}

//! Takes what waits at all seats, writes it as one batch, publishes, and begins again; one thread for each device.
//!
//! A batch stays in the ledger until all of it is durable. When a write fails, the segment is given up and the rest of
//! the batch goes to a fresh one; when that fails too, to the other device, if there is one that works; otherwise the
//! log is down: everybody who waits is told, nobody is let in, and a fresh segment is tried again and again. Nothing
//! that was queued is dropped, and no number is given twice to records that both count: the number of a batch that
//! failed is used again by the same batch.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::board::LAZY;
use super::device::Device;
use super::frame;
use super::ledger::Ledger;
use super::office::{Office, PRIMARY};
use super::recover::Recovered;
use crate::clock;
use crate::outcome::Outcome;
use crate::record::{After, Event};

/// How often denials are counted out, and the live file is looked for.
const TICK: Duration = Duration::from_secs(1);
/// How often a log that is down is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// Attempts to write one batch before the log counts as down.
const ATTEMPTS: u32 = 2;
/// How often it is seen whether a device that failed works again.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// So often in a row it has to; twice as often each time that it fails before it has worked for `CALM`.
const PROBES_MIN: u32 = 8;
const PROBES_MAX: u32 = 256;
const CALM: Duration = Duration::from_secs(600);
/// Looks at the seats after which closing waits no longer for them to fall silent.
const CLOSING_TURNS_MAX: u32 = 100;

pub(super) struct Writer {
    office: Arc<Office>,
    /// The number of the device.
    at: usize,
    device: Device,
    pub(super) ledger: Ledger,
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
            ticked: clock::now(),
            probes: 0,
        }
    }

    /// Writes whenever it is called, until the journal is closed.
    pub(super) fn run(mut self, calls: &Receiver<Ledger>) {
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

    fn close(mut self) {
        self.office.end();
        if let Some(done) = self.ledger.done.take() {
            done.send(()).ok(); // nobody may wait any more
        }
    }

    fn work(&mut self) -> Result<(), Relieved> {
        let office = Arc::clone(&self.office);
        while !office.board.is_closing() {
            self.turn(clock::now())?;
            if self.ledger.down.is_some() {
                office.board.pause(RETRY);
            } else {
                office
                    .board
                    .wait(TICK.saturating_sub(self.ticked.elapsed()));
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
            let works = self.probe() && begun.elapsed() <= board.patience.stall_after;
            good = if works { good + 1 } else { 0 };
        }
    }

    /// Whether the device can be used from the beginning.
    pub(super) fn probe(&mut self) -> bool {
        self.device.abandon(&"the log has gone on elsewhere");
        self.device.probe().is_ok()
    }

    /// Takes what is there and writes it. One that failed before is tried again first.
    pub(super) fn turn(&mut self, now: Instant) -> Result<(), Relieved> {
        let ticks = now.saturating_duration_since(self.ticked) >= TICK;
        if self.ledger.down.is_none() && ticks {
            self.ticked = now;
            self.tick()?;
        }
        if !self.take() {
            return Ok(());
        }
        let written = self.write();
        let lasted = now.elapsed();
        match written {
            Ok(()) => {
                let metrics = &self.office.metrics;
                metrics.journal_sync_seconds.observe(lasted.as_secs_f64());
                self.ledger.batch.publish(&self.office.seats);
                self.recovered(lasted);
                Ok(())
            }
            Err(Halt::Failed(error)) => self.failed(&error),
            Err(Halt::Relieved) => Err(Relieved::Failing),
        }
    }

    /// Goes on from what was recovered: begins a segment, and ends in it what an earlier process left open.
    pub(super) fn begin(&mut self, recovered: &Recovered) -> io::Result<()> {
        self.ledger.next = recovered.next;
        if let Some(seat) = self.office.seats.last() {
            seat.adopt(recovered.since, recovered.open.len() as u64);
            let after = After::nothing_moved(Outcome::Unknown);
            for (id, way) in &recovered.open {
                seat.end(recovered.since, |out| {
                    after.encode(*id, clock::wall_ns(), *way, None, out);
                });
            }
        }
        for event in &recovered.events {
            self.ledger.note(event);
        }
        self.take();
        match self.write() {
            Ok(()) => {}
            Err(Halt::Failed(error)) => return Err(error),
            Err(Halt::Relieved) => return Err(io::ErrorKind::TimedOut.into()),
        }
        self.ledger.batch.publish(&self.office.seats);
        self.office.metrics.journal_healthy.set(1);
        Ok(())
    }

    fn take(&mut self) -> bool {
        self.office.board.lower();
        self.ledger.batch.take(&self.office.seats)
    }

    /// Makes the rest of the batch durable.
    fn write(&mut self) -> Result<(), Halt> {
        let mut attempts = 1;
        loop {
            match self.write_rest() {
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

    fn write_rest(&mut self) -> Result<(), Halt> {
        while let Some(rest) = self.ledger.batch.rest() {
            let line = memchr::memchr(b'\n', rest).unwrap_or_default() + 1;
            let needed = (line + frame::OVERHEAD_BYTES_MAX) as u64;
            let room = self.device.room();
            if room < needed {
                self.turn_over()?;
                continue;
            }
            let Ledger { next, batch, .. } = &self.ledger;
            let (count, bytes) = batch.frame(*next, room, &mut self.device.framed);
            self.append(count)?;
            self.ledger.batch.advance(bytes);
        }
        if !self.device.has_segment() {
            self.turn_over()?;
        }
        Ok(())
    }

    /// Begins a new segment; closes the one before, whose records are durable already.
    fn turn_over(&mut self) -> Result<(), Halt> {
        let first = self.ledger.next;
        self.call(|device| {
            device.close();
            device.begin(first)
        })?;
        let oldest = self.office.seats.iter().filter_map(|seat| seat.oldest());
        let durability = format!("{:?}", self.device.store.durability).to_lowercase();
        let facts = vec![
            ("log_id", self.office.log_id.to_string()),
            ("previous", (first - 1).to_string()),
            ("open_since", oldest.min().unwrap_or(first).to_string()),
            ("durability", durability),
        ];
        let (mut inside, name) = (Vec::new(), "segment");
        Event { name, facts }.encode(clock::wall_ns(), &mut inside);
        self.device.framed.clear();
        frame::append(&mut self.device.framed, first, Some(1), &inside);
        self.append(1)?;
        self.office.board.set_segment(first);
        Ok(())
    }

    /// Writes what is framed: the next `count` records.
    fn append(&mut self, count: u64) -> Result<(), Halt> {
        self.call(Device::append)?;
        self.device.count();
        self.ledger.next += count;
        self.office.metrics.journal_syncs.inc();
        self.office.metrics.journal_records.inc_by(count);
        Ok(())
    }

    /// Makes a call that may hang. The ledger lies on the shelf meanwhile.
    fn call<T>(&mut self, call: impl FnOnce(&mut Device) -> io::Result<T>) -> Result<T, Halt> {
        self.office.shelf.lay(std::mem::take(&mut self.ledger));
        let result = call(&mut self.device);
        self.ledger = self.office.shelf.take().ok_or(Halt::Relieved)?;
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
            self.ledger.down = Some((clock::now(), error.to_string()));
        }
        self.office.metrics.journal_healthy.set(0);
        self.office.board.set_down(true); // first, so that nobody comes in after being told
        for seat in self.office.seats.iter() {
            seat.fail();
        }
        Ok(())
    }

    /// Records how long nothing could be written, if it was longer than anybody waits.
    fn recovered(&mut self, lasted: Duration) {
        let board = &self.office.board;
        let (since, cause) = match self.ledger.down.take() {
            Some((since, cause)) => (since.elapsed(), cause),
            None if lasted > board.patience.stall_after => {
                (lasted, "a write took too long".to_owned())
            }
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

    /// What is to be done once a second: counted denials become records, the live file is looked for, and the log
    /// goes back to the primary if that works again.
    fn tick(&mut self) -> Result<(), Relieved> {
        self.count_out();
        let missing = match self.call(|device| Ok(device.missing())) {
            Ok(missing) => missing,
            Err(_) => return Err(Relieved::Failing),
        };
        if let Some(file) = missing {
            let file = file.display().to_string();
            tracing::error!(
                file,
                "the live audit segment was removed or renamed; going on in a new one"
            );
            self.note("segment_lost", vec![("file", file)]);
        }
        if self.at != PRIMARY && self.office.can_return() {
            self.hand_back()?;
        }
        Ok(())
    }

    fn hand_back(&mut self) -> Result<(), Relieved> {
        let closed = self.call(|device| {
            device.close();
            Ok(())
        });
        if closed.is_err() {
            return Err(Relieved::Failing);
        }
        let ledger = std::mem::take(&mut self.ledger);
        self.office.hand_over(PRIMARY, ledger, "it works again");
        Err(Relieved::Willingly)
    }

    fn count_out(&mut self) {
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

    /// Writes what is left, then that nothing more comes, and closes the segment.
    pub(super) fn finish(&mut self) -> Result<(), Relieved> {
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
        self.note("closed", vec![("open", open.to_string())]);
        match self.write() {
            Ok(()) => self.ledger.batch.publish(&office.seats),
            Err(Halt::Failed(error)) => {
                tracing::error!(%error, "the last audit records could not be written; the next start records how far they got");
            }
            Err(Halt::Relieved) => return Err(Relieved::Failing),
        }
        for seat in office.seats.iter() {
            seat.fail();
        }
        let closed = self.call(|device| {
            device.close();
            Ok(())
        });
        match closed {
            Err(Halt::Relieved) => Err(Relieved::Failing),
            _ => Ok(()),
        }
    }

    fn note(&mut self, name: &'static str, facts: Vec<(&'static str, String)>) {
        self.ledger.note(&Event { name, facts });
    }
}

//! The one thread that writes: takes what waits at all seats, writes it as one batch, publishes, and begins again.
//!
//! A batch stays in memory until all of it is durable. When a write fails, the segment is given up and the rest of the
//! batch goes to a fresh one; when that fails too the log is down: everybody who waits is told, nobody is let in, and
//! a fresh segment is tried again and again. Nothing that was queued is dropped, and no number is given twice to
//! records that both count: the number of a batch that failed is used again by the same batch.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::board::{Board, LAZY};
use super::epochs::Epochs;
use super::frame;
use super::recover::Recovered;
use super::seat::{Queues, Seat};
use super::segment::{Segment, Spares, Store};
use crate::clock::{self, Id};
use crate::outcome::Outcome;
use crate::record::{After, Event};
use crate::telemetry::Metrics;

/// How often denials are counted out, and the live file is looked for.
const TICK: Duration = Duration::from_secs(1);
/// How often a log that is down is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// Attempts to write one batch before the log counts as down.
const ATTEMPTS: u32 = 2;
/// Looks at the seats after which closing waits no longer for them to fall silent.
const CLOSING_TURNS_MAX: u32 = 100;
/// A buffer larger than this is given back after use.
const KEPT_BYTES_MAX: usize = 4 << 20;

pub(super) struct Writer {
    board: Arc<Board>,
    seats: Arc<[Arc<Seat>]>,
    store: Store,
    spares: Spares,
    metrics: Arc<Metrics>,
    log_id: Id,
    segment: Option<Segment>,
    /// The number of the next record.
    next: u64,
    batch: Batch,
    framed: Vec<u8>,
    ticked: Instant,
    /// Since when the log is down, and why.
    down: Option<(Instant, String)>,
}

/// What has been taken from the seats and is not published yet.
#[derive(Default)]
struct Batch {
    lines: Vec<u8>,
    /// How much of `lines` is durable.
    done: usize,
    /// Per seat: empty buffers to swap with, the last ticket taken and the endings taken.
    seats: Vec<(Queues, u64, Epochs)>,
}

impl Writer {
    pub(super) fn new(
        board: &Arc<Board>,
        seats: &Arc<[Arc<Seat>]>,
        store: Store,
        spares: Spares,
        metrics: Arc<Metrics>,
    ) -> Self {
        let mut batch = Batch::default();
        batch.seats.resize_with(seats.len(), Default::default);
        Self {
            board: Arc::clone(board),
            seats: Arc::clone(seats),
            store,
            spares,
            metrics,
            log_id: Id::new(),
            segment: None,
            next: 1,
            batch,
            framed: Vec::new(),
            ticked: clock::now(),
            down: None,
        }
    }

    /// Writes until the journal is closed.
    pub(super) fn run(mut self) {
        self.board.attend();
        while !self.board.is_closing() {
            if self.down.is_some() {
                self.board.pause(RETRY);
            } else {
                self.board.wait(TICK.saturating_sub(self.ticked.elapsed()));
            }
            self.turn(clock::now());
        }
        self.finish();
    }

    /// Takes what is there and writes it. One that failed before is tried again first.
    pub(super) fn turn(&mut self, now: Instant) {
        if self.down.is_none() && now.saturating_duration_since(self.ticked) >= TICK {
            self.ticked = now;
            self.tick();
        }
        if self.down.is_none() {
            self.take();
        }
        if self.batch.lines.is_empty() {
            return;
        }
        self.board.set_busy(true);
        let written = self.write();
        self.board.set_busy(false);
        let lasted = now.elapsed();
        match written {
            Ok(()) => {
                self.metrics
                    .journal_sync_seconds
                    .observe(lasted.as_secs_f64());
                self.publish();
                self.recovered(lasted);
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Goes on from what was recovered: begins a segment, and ends in it what an earlier process left open.
    pub(super) fn begin(&mut self, recovered: &Recovered) -> io::Result<()> {
        self.next = recovered.next;
        if let Some(seat) = self.seats.last() {
            seat.adopt(recovered.since, recovered.open.len() as u64);
            let after = After::nothing_moved(Outcome::Unknown);
            for (id, way) in &recovered.open {
                seat.end(recovered.since, |out| {
                    after.encode(*id, clock::wall_ns(), *way, None, out);
                });
            }
        }
        for event in &recovered.events {
            self.add(event);
        }
        self.take();
        self.write()?;
        self.publish();
        self.metrics.journal_healthy.set(1);
        Ok(())
    }

    fn take(&mut self) {
        self.board.lower();
        let Batch { lines, seats, .. } = &mut self.batch;
        for (seat, (queues, upto, ended)) in self.seats.iter().zip(seats) {
            *upto = seat.take(queues);
            for queue in [&queues.intentions, &queues.endings, &queues.notes] {
                lines.extend_from_slice(queue);
            }
            std::mem::swap(ended, &mut queues.ended);
            queues.clear();
        }
    }

    /// Makes the rest of the batch durable.
    fn write(&mut self) -> io::Result<()> {
        let mut attempts = 1;
        loop {
            match self.write_rest() {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.metrics.journal_failures.inc();
                    if let Some(segment) = self.segment.take() {
                        tracing::warn!(file = %segment.path().display(), %error, "audit segment given up");
                        segment.abandon(&self.store).ok(); // recovery and `verify` cope with what it leaves
                    }
                    if attempts == ATTEMPTS {
                        return Err(error);
                    }
                    attempts += 1;
                }
            }
        }
    }

    fn write_rest(&mut self) -> io::Result<()> {
        while let Some(rest) = self.batch.rest() {
            let line = rest.iter().position(|b| *b == b'\n').unwrap_or_default() + 1;
            let needed = (line + frame::OVERHEAD_BYTES_MAX) as u64;
            let room = self.segment.as_ref().map_or(0, Segment::room);
            if room < needed {
                self.turn_over()?;
                continue;
            }
            self.write_some(room)?;
        }
        if self.segment.is_none() {
            self.turn_over()?;
        }
        Ok(())
    }

    /// Writes as many lines of the batch as fit into `room`.
    fn write_some(&mut self, room: u64) -> io::Result<()> {
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let (mut count, mut end, mut bytes) = (0_u64, 0, 0);
        let rest = self.batch.rest().unwrap_or_default();
        for at in memchr::memchr_iter(b'\n', rest) {
            bytes += at + 1 - end + frame::OVERHEAD_BYTES_MAX;
            if bytes > room {
                break;
            }
            (count, end) = (count + 1, at + 1);
        }
        let taken = rest.get(..end).unwrap_or_default();
        self.framed.clear();
        let mut next = self.next;
        for inside in taken.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let batch = (next == self.next).then_some(count);
            frame::append(&mut self.framed, next, batch, inside);
            next += 1;
        }
        self.append()?;
        (self.next, self.batch.done) = (next, self.batch.done + end);
        self.metrics.journal_records.inc_by(count);
        Ok(())
    }

    /// Begins a new segment; closes the one before, whose records are durable already.
    fn turn_over(&mut self) -> io::Result<()> {
        if let Some(full) = self.segment.take()
            && let Err(error) = full.close(&self.store)
        {
            tracing::warn!(%error, "audit segment could not be closed; the next start does it");
        }
        let segment = Segment::begin(&self.store, &mut self.spares, self.next)?;
        let oldest = self.seats.iter().filter_map(|seat| seat.oldest()).min();
        let facts = vec![
            ("log_id", self.log_id.to_string()),
            ("previous", (self.next - 1).to_string()),
            ("open_since", oldest.unwrap_or(self.next).to_string()),
            (
                "durability",
                format!("{:?}", self.store.durability).to_lowercase(),
            ),
        ];
        self.framed.clear();
        let mut inside = Vec::new();
        let name = "segment";
        Event { name, facts }.encode(clock::wall_ns(), &mut inside);
        frame::append(&mut self.framed, self.next, Some(1), &inside);
        self.segment = Some(segment);
        self.append()?;
        self.board.set_segment(self.next);
        self.next += 1;
        self.metrics.journal_records.inc();
        Ok(())
    }

    fn append(&mut self) -> io::Result<()> {
        let segment = self.segment.as_mut().ok_or(io::ErrorKind::NotFound)?;
        segment.append(&self.framed)?;
        self.metrics.journal_syncs.inc();
        Ok(())
    }

    /// Tells every seat what is durable now.
    fn publish(&mut self) {
        for (seat, (_, upto, ended)) in self.seats.iter().zip(&mut self.batch.seats) {
            seat.publish(*upto, ended);
        }
        self.batch.done = 0;
        for buffer in [&mut self.batch.lines, &mut self.framed] {
            buffer.clear();
            if buffer.capacity() > KEPT_BYTES_MAX {
                *buffer = Vec::new();
            }
        }
    }

    /// The log is down: nobody who waits is let in.
    fn failed(&mut self, error: &io::Error) {
        if self.down.is_none() {
            tracing::error!(dir = %self.store.dir.display(), %error, "audit log cannot be written; requests are refused until it can");
            self.down = Some((clock::now(), error.to_string()));
        }
        self.metrics.journal_healthy.set(0);
        self.board.set_down(true); // first, so that nobody comes in after being told
        for seat in self.seats.iter() {
            seat.fail();
        }
    }

    /// Records how long nothing could be written, if it was longer than anybody waits.
    fn recovered(&mut self, lasted: Duration) {
        let (since, cause) = match self.down.take() {
            Some((since, cause)) => (since.elapsed(), cause),
            None if lasted > self.board.budget => (lasted, "a write took too long".to_owned()),
            None => return,
        };
        self.metrics.journal_healthy.set(1);
        self.board.set_down(false);
        let counts = &self.board.counts;
        let taken =
            |count: &std::sync::atomic::AtomicU64| count.swap(0, Ordering::AcqRel).to_string();
        let facts = vec![
            ("lasted_ms", since.as_millis().to_string()),
            ("cause", cause),
            ("refused", taken(&counts.refused)),
            ("unrecorded", taken(&counts.unrecorded)),
            ("events_lost", taken(&counts.events_lost)),
        ];
        tracing::warn!(
            lasted_ms = since.as_millis(),
            "audit log can be written again"
        );
        self.note("degraded", facts);
        self.board.raise(LAZY);
    }

    /// What is to be done once a second: counted denials become records, and the live file is looked for.
    fn tick(&mut self) {
        self.count_out();
        if self.segment.as_ref().is_some_and(|s| !s.is_there())
            && let Some(segment) = self.segment.take()
        {
            let file = segment.path().display().to_string();
            tracing::error!(
                file,
                "the live audit segment was removed or renamed; going on in a new one"
            );
            self.note("segment_lost", vec![("file", file)]);
        }
    }

    fn count_out(&mut self) {
        let mut counts = Vec::new();
        for seat in self.seats.iter() {
            seat.take_denials(&mut counts);
        }
        let now = clock::wall_ns();
        for count in counts {
            count.encode(now, &mut self.batch.lines);
            self.batch.lines.push(b'\n');
        }
    }

    /// Writes what is left, then that nothing more comes, and closes the segment.
    pub(super) fn finish(mut self) {
        let mut open = 0;
        for _ in 0..CLOSING_TURNS_MAX {
            self.count_out();
            self.turn(clock::now());
            let seats = self.seats.iter().map(|seat| seat.close());
            let (empty, left) =
                seats.fold((true, 0), |(all, sum), (one, open)| (all & one, sum + open));
            open = left;
            if empty || self.down.is_some() {
                break;
            }
        }
        self.note("closed", vec![("open", open.to_string())]);
        match self.write() {
            Ok(()) => self.publish(),
            Err(error) => {
                tracing::error!(%error, "the last audit records could not be written; the next start records how far they got");
            }
        }
        for seat in self.seats.iter() {
            seat.fail();
        }
        if let Some(segment) = self.segment.take()
            && let Err(error) = segment.close(&self.store)
        {
            tracing::warn!(%error, "audit segment could not be closed; the next start does it");
        }
    }

    fn note(&mut self, name: &'static str, facts: Vec<(&'static str, String)>) {
        self.add(&Event { name, facts });
    }

    /// Adds an event to the batch.
    fn add(&mut self, event: &Event) {
        event.encode(clock::wall_ns(), &mut self.batch.lines);
        self.batch.lines.push(b'\n');
    }
}

impl Batch {
    /// What is not durable yet.
    fn rest(&self) -> Option<&[u8]> {
        self.lines.get(self.done..).filter(|rest| !rest.is_empty())
    }
}

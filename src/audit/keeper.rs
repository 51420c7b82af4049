//! Room for the log: tells when it runs short, and removes whole closed segments that need not be kept any longer.
//!
//! What is removed is recorded first, and that record is durable before the first file goes: a log that begins late
//! says so itself, and a process that ends in between removes the rest at its next start. The oldest go first, so that
//! there is never a gap; the segment that is being written never goes. It has a thread of its own, since it asks disks
//! that may hang.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::frame;
use super::office::Office;
use super::order::{Placed, order};
use super::scan::Pieces;
use super::segment::Store;
use crate::clock;
use crate::config::typed::{Audit, Retain};
use crate::record::Event;

/// How often the free space is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked for what need not be kept.
const PRUNE: Duration = Duration::from_secs(60);
/// Segments removed at once, at most.
const SEGMENTS_MAX: usize = 1000;
/// How long the record of a removal is waited for before it is given up until the next look.
const RECORD_WAIT: Duration = Duration::from_secs(30);
const RECORD_LOOK: Duration = Duration::from_millis(20);
const DAY_SECONDS: i64 = 24 * 3600;
/// Room counts as enough again when there is so much more than the least, as a divisor of it.
const ENOUGH_MORE: u64 = 16;

/// What is asked of the keeper; may change while running.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) retain: Retain,
    /// Bytes below which it tells that the disk runs full.
    pub(super) min_free: u64,
}

impl Rules {
    pub(super) fn of(settings: &Audit) -> Self {
        Self {
            retain: settings.retain,
            min_free: settings.min_free,
        }
    }
}

pub(super) struct Keeper {
    office: Arc<Office>,
    stores: Vec<Store>,
    /// Whether the last look found too little room; for each store.
    short: Vec<bool>,
    pruned: Option<Instant>,
}

/// Segments that need not be kept, oldest first.
struct Spent {
    segments: Vec<Placed>,
    bytes: u64,
    because: &'static str,
}

impl Keeper {
    pub(super) fn new(office: &Arc<Office>, stores: Vec<Store>) -> Self {
        Self {
            office: Arc::clone(office),
            short: vec![false; stores.len()],
            stores,
            pruned: None,
        }
    }

    /// Until the log has ended.
    pub(super) fn run(mut self) {
        while !self.office.board.has_ended() {
            let ran_short = self.look();
            let due = self.pruned.is_none_or(|at| at.elapsed() >= PRUNE);
            if due || ran_short {
                self.pruned = Some(clock::now());
                self.prune(clock::wall_ns());
            }
            thread::sleep(LOOK);
        }
    }

    /// Looks at the free space of each directory. Gives whether one has just run short of it.
    fn look(&mut self) -> bool {
        let min_free = self.office.rules().min_free;
        let (mut least, mut ran_short) = (u64::MAX, false);
        for (store, short) in self.stores.iter().zip(&mut self.short) {
            let Ok(free) = store.disk.free(&store.dir) else {
                continue; // the writer will tell what is the matter
            };
            least = least.min(free);
            let enough = min_free.saturating_add(if *short { min_free / ENOUGH_MORE } else { 0 });
            let was = std::mem::replace(short, free < enough);
            if was == *short {
                continue;
            }
            ran_short |= *short;
            let dir = store.dir.display().to_string();
            let name = if *short {
                tracing::warn!(dir, free, min_free, "the audit log's disk runs full");
                "space_low"
            } else {
                tracing::info!(dir, free, "the audit log's disk has room again");
                "space_enough"
            };
            let facts = vec![
                ("dir", dir),
                ("free", free.to_string()),
                ("min_free", min_free.to_string()),
            ];
            self.office.announce(&Event { name, facts });
        }
        let disks = &self.office.metrics.journal_disks;
        let least = i64::try_from(least).unwrap_or(i64::MAX);
        disks.free_bytes.set(least);
        disks.space_low.set(self.short.contains(&true).into());
        ran_short
    }

    /// Removes what need not be kept any longer. Gives how many segments.
    pub(super) fn prune(&self, wall_ns: u64) -> usize {
        match self.try_prune(wall_ns) {
            Ok(count) => count,
            Err(error) => {
                tracing::warn!(%error, "old audit segments could not be removed; it is tried again");
                0
            }
        }
    }

    fn try_prune(&self, wall_ns: u64) -> io::Result<usize> {
        let segments = order(&self.stores)?.segments;
        let Some(spent) = self.spent(&segments, wall_ns)? else {
            return Ok(0);
        };
        let Spent {
            segments,
            bytes,
            because,
        } = spent;
        let count = segments.len();
        let first = segments.first().map_or(0, |s| s.name.first);
        let last = segments.last().map_or(0, |s| s.limit - 1);
        tracing::info!(first, last, bytes, because, "removing old audit segments");
        let event = Event {
            name: "pruned",
            facts: vec![
                ("first", first.to_string()),
                ("last", last.to_string()),
                ("segments", count.to_string()),
                ("bytes", bytes.to_string()),
                ("because", because.to_owned()),
            ],
        };
        if !self.is_recorded(&event) {
            return Ok(0);
        }
        for segment in &segments {
            let store = self.store(segment)?;
            store.disk.remove(&store.path(segment.name))?;
        }
        for store in &self.stores {
            store.disk.sync_dir(&store.dir)?;
        }
        Ok(count)
    }

    /// The oldest closed segments whose records are all too old, or that are too much.
    fn spent(&self, segments: &[Placed], wall_ns: u64) -> io::Result<Option<Spent>> {
        let Retain { days, max_bytes } = self.office.rules().retain;
        let mut total = 0;
        let mut sizes = Vec::new();
        for segment in segments {
            let size = self.size(segment)?;
            total += size;
            sizes.push(size);
        }
        let now = i64::try_from(wall_ns / 1_000_000_000).unwrap_or(i64::MAX);
        let oldest = now.saturating_sub(i64::from(days) * DAY_SECONDS);
        let mut spent = Spent {
            segments: Vec::new(),
            bytes: 0,
            because: "age",
        };
        let pairs = segments.windows(2).zip(sizes).take(SEGMENTS_MAX);
        for (pair, size) in pairs {
            let [segment, next] = pair else { break };
            let too_much = max_bytes.is_some_and(|max| total - spent.bytes > max);
            // The next one was begun when this one's last record was written.
            let too_old = || Ok::<_, io::Error>(self.begun(next)?.is_some_and(|at| at < oldest));
            if !segment.name.closed || !(too_much || too_old()?) {
                break;
            }
            if too_much {
                spent.because = "size";
            }
            spent.segments.push(*segment);
            spent.bytes += size;
        }
        Ok((!spent.segments.is_empty()).then_some(spent))
    }

    fn store(&self, segment: &Placed) -> io::Result<&Store> {
        let store = self.stores.get(segment.at);
        store.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn size(&self, segment: &Placed) -> io::Result<u64> {
        let store = self.store(segment)?;
        match store.disk.len(&store.path(segment.name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0), // it was closed meanwhile
            size => size,
        }
    }

    /// The time of a segment's first record, in seconds since 1970.
    fn begun(&self, segment: &Placed) -> io::Result<Option<i64>> {
        let store = self.store(segment)?;
        let mut pieces = Pieces::open(store, segment.name)?;
        let Some(piece) = pieces.next()? else {
            return Ok(None);
        };
        if frame::check(piece.bytes).is_err() {
            return Ok(None);
        }
        let time = std::str::from_utf8(piece.bytes)
            .ok()
            .and_then(|line| line.split_once("\"time\":\""))
            .and_then(|(_, rest)| rest.split_once('"'))
            .and_then(|(time, _)| time.parse::<Timestamp>().ok());
        Ok(time.map(Timestamp::as_second))
    }

    /// Records an event and waits until that is durable.
    fn is_recorded(&self, event: &Event) -> bool {
        let Some((seat, ticket)) = self.office.announce(event) else {
            return false;
        };
        let begun = clock::now();
        while !seat.is_durable(ticket) {
            if self.office.board.has_ended() || begun.elapsed() > RECORD_WAIT {
                return false;
            }
            thread::sleep(RECORD_LOOK);
        }
        true
    }
}

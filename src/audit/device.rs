//! One directory of the log, on one device, and the segment that is written there.
//!
//! It belongs to the one thread that makes calls to that device, for good: a call that hangs hangs there, and what it
//! does when it wakes at last meets nobody else's work in this directory. Whether what was written counts is not known
//! here, but by whoever holds the ledger.

use std::io;
use std::path::PathBuf;

use super::seal::SEAL_BYTES_MAX;
use super::segment::{Segment, Spares, Store};

pub(super) struct Device {
    pub(super) store: Store,
    spares: Spares,
    segment: Option<Segment>,
    /// The write under way, apart from the ledger, so that it stays where it is when the ledger is taken.
    pub(super) framed: Vec<u8>,
}

/// The file with which it is seen whether a device works again.
const PROBE: &str = "probe";
/// A buffer larger than this is given back after use.
const KEPT_BYTES_MAX: usize = 4 << 20;
/// A segment is left when less than this part of it is free and nobody waits, so that its last seal holds nobody up.
const LAST_PART: u64 = 32;

impl Device {
    pub(super) fn new(store: Store, spares: Spares) -> Self {
        Self {
            store,
            spares,
            segment: None,
            framed: Vec::new(),
        }
    }

    /// Bytes that still fit into the segment beside its last seal; 0 if there is no segment.
    pub(super) fn room(&self) -> u64 {
        let room = self.segment.as_ref().map_or(0, Segment::room);
        room.saturating_sub(SEAL_BYTES_MAX)
    }

    /// Whether it is time for another segment, before a batch does not fit.
    pub(super) fn is_nearly_full(&self) -> bool {
        let full = |segment: &Segment| segment.room() < segment.size() / LAST_PART;
        self.segment.as_ref().is_some_and(full)
    }

    /// Why there is no next segment, and how much fits into this one; `None` while there is one, or may be soon. If
    /// `again`, one is tried to be made.
    pub(super) fn lack(&mut self, again: bool) -> Option<(String, u64)> {
        let room = self.room();
        let why = self.spares.lack(again)?;
        self.segment.is_some().then(|| (why.to_owned(), room))
    }

    pub(super) fn has_segment(&self) -> bool {
        self.segment.is_some()
    }

    /// Writes what is framed behind what counts.
    pub(super) fn append(&mut self) -> io::Result<()> {
        let segment = self.segment.as_ref().ok_or(io::ErrorKind::NotFound)?;
        segment.append(&self.framed)
    }

    /// Says that what was appended counts. It stays in `framed` until it is forgotten.
    pub(super) fn count(&mut self) {
        if let Some(segment) = &mut self.segment {
            segment.count(self.framed.len());
        }
    }

    /// Empties the buffer.
    pub(super) fn forget(&mut self) {
        self.framed.clear();
        if self.framed.capacity() > KEPT_BYTES_MAX {
            self.framed = Vec::new();
        }
    }

    /// Begins the segment whose first record will be number `first`.
    pub(super) fn begin(&mut self, first: u64) -> io::Result<()> {
        self.segment = Some(Segment::begin(&self.store, &mut self.spares, first)?);
        Ok(())
    }

    /// Closes the segment, if there is one. All of it is durable already.
    pub(super) fn close(&mut self) -> Option<Lost> {
        let lost = self.lost();
        if let Some(full) = self.segment.take()
            && let Err(error) = full.close(&self.store)
        {
            tracing::warn!(%error, "audit segment could not be closed; the next start does it");
        }
        lost
    }

    /// Gives up the segment, if there is one, after a call that failed or came too late.
    pub(super) fn abandon(&mut self, why: &dyn std::fmt::Display) {
        if let Some(segment) = self.segment.take() {
            tracing::warn!(file = %segment.path().display(), error = %why, "audit segment given up");
            segment.abandon(&self.store).ok(); // recovery and `verify` cope with what it leaves
        }
    }

    /// Whether it can be used: a small file is made, on the device, and removed; and there is a spare.
    pub(super) fn probe(&mut self) -> io::Result<()> {
        let (disk, dir) = (&self.store.disk, &self.store.dir);
        let path = dir.join(PROBE);
        disk.create_with(&path, PROBE.as_bytes())?;
        disk.remove(&path)?;
        disk.sync_dir(dir)?;
        self.spares.ready()
    }

    /// Gives up the segment if its name does not lead to it any more, and puts back what it holds: its bytes are there
    /// as long as it is open.
    pub(super) fn lost(&mut self) -> Option<Lost> {
        let segment = self.segment.take_if(|segment| !segment.is_there())?;
        Some(Lost {
            file: segment.path().to_owned(),
            restored: segment.restore(&self.store),
        })
    }
}

/// A segment that was removed or renamed while it was written.
pub(super) struct Lost {
    pub(super) file: PathBuf,
    /// The file that holds its records now.
    pub(super) restored: io::Result<PathBuf>,
}

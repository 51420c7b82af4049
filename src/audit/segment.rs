//! The files of the log, and the one that is being written.
//!
//! ```text
//! state_dir/audit/00000000000000000001.jsonl   closed: plain JSON Lines, exactly as long as its records
//! state_dir/audit/00000000000000004711.open    open: records, then zeros up to the size it was made with
//! state_dir/audit/spare                        the next one, made ahead: zeros only
//! state_dir/audit/quarantine/                  bytes that recovery could not read, never deleted
//! state_dir/audit/tag.key                      the key of the tags in records
//! state_dir/audit/seal.*                       keys of the seals, drawn in `keys`
//! ```
//!
//! The number is the `seq` of the first record, which is an event `segment`. A file is written front to back, each
//! batch once. After a failed write it is never written or synced again: what the device holds of it is what the
//! operating system reported as durable before, and nothing else is believed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use crate::clock::Id;
use crate::config::typed::Durability;
use crate::disk::{Access, Disk, File};
use crate::workers;

const CLOSED: &str = ".jsonl";
const OPEN: &str = ".open";
const SPARE: &str = "spare";
/// Digits of the largest `seq`.
const SEQ_DIGITS: usize = 20;
/// When the disk is short of room, a segment is halved down to this, or to its own size if that is less.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;
/// The first segment of a process is no larger, so that a start does not wait for a whole one to be filled.
const FIRST_BYTES_MAX: u64 = 4 << 20;

/// Where the files are and how they are written.
#[derive(Clone)]
pub(super) struct Store {
    pub(super) disk: Disk,
    pub(super) dir: PathBuf,
    pub(super) segment_bytes: u64,
    pub(super) durability: Durability,
}

/// The name of a segment, read.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Name {
    pub(super) first: u64,
    pub(super) closed: bool,
}

/// The segment that is being written.
pub(super) struct Segment {
    file: File,
    path: PathBuf,
    first: u64,
    len: u64,
    size: u64,
}

/// The next segment, made ahead.
pub(super) struct Spares {
    maker: Maker,
    held: Option<Spare>,
    /// Why the last one could not be made.
    failed: Option<(io::ErrorKind, String)>,
}

enum Maker {
    /// A thread of its own makes them; `asked` while it does, or has done.
    Ahead {
        ask: SyncSender<u64>,
        made: Receiver<io::Result<Spare>>,
        size: u64,
        asked: bool,
    },
    /// Made by who asks.
    #[cfg(test)]
    Here(Store),
}

/// An empty segment that has no name yet.
pub(super) struct Spare {
    file: File,
    size: u64,
}

impl Name {
    pub(super) fn read(text: &str) -> Option<Self> {
        let (digits, closed) = match text.strip_suffix(CLOSED) {
            Some(digits) => (digits, true),
            None => (text.strip_suffix(OPEN)?, false),
        };
        let first = digits.parse().ok().filter(|first| *first > 0)?;
        let name = Self { first, closed };
        (name.text() == text).then_some(name)
    }

    pub(super) fn text(self) -> String {
        let suffix = if self.closed { CLOSED } else { OPEN };
        format!("{:0SEQ_DIGITS$}{suffix}", self.first)
    }
}

impl Store {
    /// All segments, oldest first.
    pub(super) fn segments(&self) -> io::Result<Vec<Name>> {
        let names = self.disk.names(&self.dir)?;
        let mut segments: Vec<_> = names.iter().filter_map(|n| Name::read(n)).collect();
        segments.sort_unstable();
        Ok(segments)
    }

    /// Whether it is the machine's own, not a test's.
    pub(super) fn is_on_machine(&self) -> bool {
        matches!(self.disk, Disk::Machine)
    }

    /// Whether both are on one device, as far as that can be told.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        let device = |store: &Self| store.disk.device(&store.dir).ok();
        device(self).is_some_and(|ours| device(other) == Some(ours))
    }

    pub(super) fn path(&self, name: Name) -> PathBuf {
        self.dir.join(name.text())
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.dir.join("quarantine")
    }

    /// Gives a segment whose bytes are final its closed name.
    pub(super) fn set_closed(&self, first: u64) -> io::Result<()> {
        let name = |closed| self.path(Name { first, closed });
        self.disk.rename(&name(false), &name(true))?;
        self.disk.sync_dir(&self.dir)
    }

    /// Removes a spare that an earlier process left.
    pub(super) fn remove_spare(&self) -> io::Result<()> {
        match self.disk.remove(&self.dir.join(SPARE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// One of `size` bytes, or of as many as there is room for.
    fn spare(&self, mut size: u64) -> io::Result<Spare> {
        let path = self.dir.join(SPARE);
        let access = match self.durability {
            Durability::Sync => Access::Durable,
            Durability::Write => Access::Write,
        };
        loop {
            match self.disk.create_zeroed(&path, size, access) {
                Ok(()) => break,
                Err(error)
                    if error.kind() == io::ErrorKind::StorageFull
                        && size / 2 >= SEGMENT_BYTES_MIN =>
                {
                    size /= 2;
                }
                Err(error) => return Err(error),
            }
        }
        let file = self.disk.open(&path, access)?;
        Ok(Spare { file, size })
    }
}

impl Spares {
    /// Starts the thread that makes them, and asks for the first.
    pub(super) fn start(store: Store) -> io::Result<Self> {
        let (ask, asked) = sync_channel::<u64>(1);
        let size = store.segment_bytes;
        let (give, made) = sync_channel(1);
        workers::thread("tollgate-spare", move || {
            while let Ok(size) = asked.recv() {
                if give.send(store.spare(size)).is_err() {
                    return;
                }
            }
        })?;
        ask.send(size.min(FIRST_BYTES_MAX)).map_err(|_| gone())?;
        Ok(Self::by(Maker::Ahead {
            ask,
            made,
            size,
            asked: true,
        }))
    }

    /// Without a thread.
    #[cfg(test)]
    pub(super) fn here(store: Store) -> Self {
        Self::by(Maker::Here(store))
    }

    fn by(maker: Maker) -> Self {
        Self {
            maker,
            held: None,
            failed: None,
        }
    }

    /// Makes sure that there is one, and waits for it.
    pub(super) fn ready(&mut self) -> io::Result<()> {
        self.keep(true);
        if self.held.is_none() {
            self.ahead();
            self.keep(true);
        }
        match (&self.held, &self.failed) {
            (Some(_), _) => Ok(()),
            (None, Some((kind, error))) => Err(io::Error::new(*kind, error.clone())),
            (None, None) => Err(gone()),
        }
    }

    /// Why there is none and none can be made; it is tried again if `again`.
    pub(super) fn lack(&mut self, again: bool) -> Option<&str> {
        self.keep(false);
        if again && self.failed.is_some() {
            self.ahead();
            self.keep(false);
        }
        self.failed.as_ref().map(|(_, error)| error.as_str())
    }

    fn take(&mut self) -> io::Result<Spare> {
        self.ready()?;
        self.held.take().ok_or_else(gone)
    }

    /// Has the next one made.
    fn ahead(&mut self) {
        match &mut self.maker {
            Maker::Ahead {
                ask, size, asked, ..
            } => *asked = *asked || ask.send(*size).is_ok(),
            #[cfg(test)]
            Maker::Here(store) => {
                let made = store.spare(store.segment_bytes);
                self.set(made);
            }
        }
    }

    /// Takes in what was asked for, if it is made, or when it is if that can be waited for.
    fn keep(&mut self, wait: bool) {
        match &mut self.maker {
            Maker::Ahead { made, asked, .. } if *asked => {
                let result = if wait {
                    made.recv().map_err(|_| gone())
                } else {
                    match made.try_recv() {
                        Err(TryRecvError::Empty) => return,
                        result => result.map_err(|_| gone()),
                    }
                };
                *asked = false;
                self.set(result.flatten());
            }
            _ => {}
        }
    }

    fn set(&mut self, made: io::Result<Spare>) {
        match made {
            Ok(spare) => (self.held, self.failed) = (Some(spare), None),
            Err(error) => self.failed = Some((error.kind(), error.to_string())),
        }
    }
}

impl Segment {
    /// Begins the segment whose first record will be number `first`.
    pub(super) fn begin(store: &Store, spares: &mut Spares, first: u64) -> io::Result<Self> {
        let Spare { file, size } = spares.take()?;
        let path = store.path(Name {
            first,
            closed: false,
        });
        store.disk.rename(&store.dir.join(SPARE), &path)?;
        store.disk.sync_dir(&store.dir)?;
        spares.ahead();
        Ok(Self {
            file,
            path,
            first,
            len: 0,
            size,
        })
    }

    /// Bytes that still fit.
    pub(super) fn room(&self) -> u64 {
        self.size.saturating_sub(self.len)
    }

    /// Bytes that fit into it.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Writes one batch behind what counts. After an error the segment is good for [`Self::abandon`] only.
    pub(super) fn append(&self, batch: &[u8]) -> io::Result<()> {
        self.file.write_all_at(batch, self.len)
    }

    /// Says that the batch of so many bytes counts, which was appended.
    pub(super) fn count(&mut self, bytes: usize) {
        self.len += bytes as u64;
    }

    /// Whether its name still leads to it.
    pub(super) fn is_there(&self) -> bool {
        self.file.is_at(&self.path)
    }

    /// Copies its records to where they belong. What has its name now, if anything, goes to quarantine.
    pub(super) fn restore(&self, store: &Store) -> io::Result<PathBuf> {
        let (disk, first) = (&store.disk, self.first);
        if disk.open(&self.path, Access::Read).is_ok() {
            let dir = store.quarantine();
            disk.make_dir(&dir)?;
            let foreign = format!("{first:0SEQ_DIGITS$}.foreign.{}", Id::new());
            disk.rename(&self.path, &dir.join(foreign))?;
            disk.sync_dir(&dir)?;
        }
        let closed = store.path(Name {
            first,
            closed: true,
        });
        disk.create_from(&closed, &self.file, 0, self.len)?;
        disk.sync_dir(&store.dir)?;
        Ok(closed)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Cuts it to its records and gives it its closed name.
    pub(super) fn close(self, store: &Store) -> io::Result<()> {
        self.file.truncate(self.len)?;
        store.set_closed(self.first)
    }

    /// Ends a segment that could not be written: cuts what is not known to be durable, as far as that goes. Recovery
    /// and `verify` know what to make of one that could not even be cut.
    pub(super) fn abandon(self, store: &Store) -> io::Result<()> {
        if self.len == 0 {
            store.disk.remove(&self.path)?;
            return store.disk.sync_dir(&store.dir);
        }
        self.close(store)
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that prepares segments has ended")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_number_and_nothing_else_is_a_segment() {
        let name = Name {
            first: 4711,
            closed: false,
        };
        assert_eq!(name.text(), "00000000000000004711.open");
        assert_eq!(Name::read(&name.text()), Some(name));
        for other in [
            "spare",
            "4711.open",
            "00000000000000000000.open",
            "00000000000000004711.jsonl.gz",
            "0000000000000000471x.jsonl",
            "+0000000000000004711.open",
        ] {
            assert_eq!(Name::read(other), None, "{other}");
        }
    }
}

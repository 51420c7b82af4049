//! Reads a segment line by line and says how far it is whole.
//!
//! A line is whole when its checksum holds and its number is the next one. Behind the last whole line there may be
//! zeros (the file was made longer than it is used), a write that was torn, records that a later segment holds again
//! (the file was given up after an error), or damage. Damage differs from a torn write in that a later write begins
//! behind it: a write is only begun when the one before is durable.

use std::io;

use super::frame::{self, Bad, Line, OVERHEAD_BYTES_MAX};
use super::segment::{Name, Store};
use crate::disk::{Access, File};
use crate::record::RECORD_BYTES_MAX;

/// No line is longer.
pub(super) const LINE_BYTES_MAX: usize = RECORD_BYTES_MAX + OVERHEAD_BYTES_MAX;
const READ_BYTES: usize = 64 << 10;

/// What a segment holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Bytes of whole lines at its beginning.
    pub(super) whole: u64,
    /// Bytes up to the last that is not zero.
    pub(super) used: u64,
    /// The number behind the last whole line.
    pub(super) next: u64,
    /// The number behind the last line that is whole by itself, damage before it or not.
    pub(super) beyond: u64,
    pub(super) damage: Option<Damage>,
    /// Whether its bytes were synced before anybody relied on them.
    pub(super) synced: bool,
    /// Whether its last whole lines say that nothing more was to come, and seal it.
    pub(super) finished: bool,
    /// Whether records follow that another segment holds again.
    pub(super) superseded: bool,
}

/// The first place where a segment is not whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Damage {
    pub(super) place: Place,
    pub(super) what: What,
    /// Whether a later write begins behind it.
    pub(super) followed: bool,
}

/// A place in a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// In bytes, from the beginning of the file.
    pub(super) offset: u64,
    /// From 1.
    pub(super) line: u64,
}

impl Place {
    pub(super) const BEGIN: Self = Self { offset: 0, line: 1 };
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum What {
    #[error(transparent)]
    Bad(#[from] Bad),
    #[error("record {found} where {expected} is expected")]
    Seq { expected: u64, found: u64 },
}

/// Pieces of a file: lines, runs of zeros, and what is too long or too torn to be a line.
pub(super) struct Pieces {
    file: File,
    buffer: Vec<u8>,
    /// Of the buffer's first byte.
    offset: u64,
    at: usize,
    ended: bool,
}

/// One piece with its place in the file; `whole` if a line feed ended it.
pub(super) struct Piece<'a> {
    pub(super) offset: u64,
    pub(super) bytes: &'a [u8],
    pub(super) whole: bool,
}

/// Reads segment `name`; whatever is numbered from `limit` on is another segment's. `each` gets every whole line, read
/// and as it is.
pub(super) fn scan(
    store: &Store,
    name: Name,
    limit: u64,
    mut each: impl FnMut(&Line<'_>, &[u8], Place),
) -> io::Result<Found> {
    let mut pieces = Pieces::open(store, name)?;
    let mut found = Found {
        next: name.first,
        synced: true,
        ..Found::default()
    };
    let (mut lines, mut closed) = (0, false);
    while let Some(piece) = pieces.next()? {
        match piece.bytes.first() {
            Some(0) => continue,
            _ => found.used = piece.end(),
        }
        lines += 1;
        let checked = if piece.whole {
            frame::check(piece.bytes)
        } else {
            Err(Bad::Shape)
        };
        if let Some(seq) = checked.ok().map(|line| line.seq).filter(|seq| *seq < limit) {
            found.beyond = found.beyond.max(seq + 1);
        }
        if let Some(damage) = &mut found.damage {
            damage.followed |= checked.is_ok_and(|line| line.begins && line.seq < limit);
            continue;
        }
        let clean = found.whole == piece.offset;
        let what = match checked {
            Ok(line) if line.seq >= limit => {
                found.superseded = true;
                found.used = pieces.used()?.max(found.used);
                return Ok(found);
            }
            Ok(line) if line.seq == found.next && clean => {
                found.synced &= !is_unsynced(&line);
                found.finished = closed && line.kind == frame::Kind::Seal;
                closed = matches!(line.kind, frame::Kind::Event("closed", _));
                each(
                    &line,
                    piece.bytes,
                    Place {
                        offset: piece.offset,
                        line: lines,
                    },
                );
                found.next += 1;
                found.whole = piece.end();
                continue;
            }
            Ok(line) if line.seq == found.next => What::Bad(Bad::Shape),
            Ok(line) => What::Seq {
                expected: found.next,
                found: line.seq,
            },
            Err(bad) => What::Bad(bad),
        };
        found.damage = Some(Damage {
            place: Place {
                offset: found.whole,
                line: lines,
            },
            what,
            followed: checked.is_ok_and(|line| line.begins),
        });
    }
    Ok(found)
}

/// The `segment` event of a log that does not sync: a power cut can leave holes anywhere in it.
fn is_unsynced(line: &Line<'_>) -> bool {
    matches!(line.kind, frame::Kind::Event("segment", facts) if facts.contains(r#""durability":"write""#))
}

impl Piece<'_> {
    /// The byte behind it.
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64 + u64::from(self.whole)
    }
}

impl Pieces {
    pub(super) fn open(store: &Store, name: Name) -> io::Result<Self> {
        Ok(Self::of(open(store, name)?))
    }

    pub(super) fn of(file: File) -> Self {
        Self {
            file,
            buffer: Vec::new(),
            offset: 0,
            at: 0,
            ended: false,
        }
    }

    /// The next piece.
    pub(super) fn next(&mut self) -> io::Result<Option<Piece<'_>>> {
        let mut searched = 0;
        let (length, whole) = loop {
            let rest = self.buffer.get(self.at..).unwrap_or_default();
            if rest.first() == Some(&0) {
                break (rest.iter().take_while(|b| **b == 0).count(), false);
            }
            let fresh = rest.get(searched..).unwrap_or_default();
            if let Some(at) = memchr::memchr2(b'\n', 0, fresh) {
                break (searched + at, fresh.get(at) == Some(&b'\n'));
            }
            if rest.len() > LINE_BYTES_MAX || self.ended {
                break (rest.len(), false);
            }
            searched = rest.len();
            self.fill()?;
        };
        if length == 0 && !whole {
            return Ok(None);
        }
        let (start, offset) = (self.at, self.offset + self.at as u64);
        self.at += length + usize::from(whole);
        let bytes = self.buffer.get(start..start + length).unwrap_or_default();
        Ok(Some(Piece {
            offset,
            bytes,
            whole,
        }))
    }

    /// Reads to the end; bytes up to the last that is not zero.
    fn used(&mut self) -> io::Result<u64> {
        let mut used = 0;
        while let Some(piece) = self.next()? {
            if piece.bytes.first() != Some(&0) {
                used = piece.end();
            }
        }
        Ok(used)
    }

    fn fill(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.at);
        self.offset += self.at as u64;
        self.at = 0;
        let held = self.buffer.len();
        self.buffer.resize(held + READ_BYTES, 0);
        let room = self.buffer.get_mut(held..).unwrap_or_default();
        let read = self.file.read_at(room, self.offset + held as u64)?;
        self.buffer.truncate(held + read);
        self.ended = read == 0;
        Ok(())
    }
}

/// Opens a segment for reading, also one that a running process has just closed.
fn open(store: &Store, name: Name) -> io::Result<File> {
    match store.disk.open(&store.path(name), Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !name.closed => {
            let closed = Name {
                closed: true,
                ..name
            };
            store.disk.open(&store.path(closed), Access::Read)
        }
        opened => opened,
    }
}

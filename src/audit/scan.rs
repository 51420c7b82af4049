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
const READ_BYTES: usize = 1 << 20;

/// What a segment holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Bytes of whole lines at its beginning.
    pub(super) whole: u64,
    /// Bytes up to the last that is not zero.
    pub(super) used: u64,
    /// The number behind the last whole line.
    pub(super) next: u64,
    pub(super) damage: Option<Damage>,
    /// Whether its bytes were synced before anybody relied on them.
    pub(super) synced: bool,
}

/// The first place where a segment is not whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Damage {
    /// In bytes, from the beginning of the file.
    pub(super) offset: u64,
    /// From 1.
    pub(super) line: u64,
    pub(super) what: What,
    /// Whether a later write begins behind it.
    pub(super) followed: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum What {
    #[error(transparent)]
    Bad(#[from] Bad),
    #[error("record {found} where {expected} is expected")]
    Seq { expected: u64, found: u64 },
}

/// Pieces of a file: lines, or what is too long to be one.
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

/// Reads segment `name`; whatever is numbered from `limit` on is another segment's. `each` gets every whole line.
pub(super) fn scan(
    store: &Store,
    name: Name,
    limit: u64,
    mut each: impl FnMut(&Line<'_>, &[u8]),
) -> io::Result<Found> {
    let mut pieces = Pieces::open(store, name)?;
    let mut found = Found {
        next: name.first,
        synced: true,
        ..Found::default()
    };
    let mut lines = 0;
    while let Some(piece) = pieces.next()? {
        let zeros = piece.bytes.iter().take_while(|b| **b == 0).count();
        let text = piece.bytes.get(zeros..).unwrap_or_default();
        if let Some(last) = piece.bytes.iter().rposition(|b| *b != 0) {
            found.used = piece.offset + last as u64 + 1 + u64::from(piece.whole);
        } else if !piece.whole {
            continue;
        }
        lines += 1;
        let checked = if piece.whole {
            frame::check(text)
        } else {
            Err(Bad::Shape)
        };
        if let Some(damage) = &mut found.damage {
            damage.followed |= checked.is_ok_and(|line| line.begins && line.seq < limit);
            continue;
        }
        let clean = zeros == 0 && found.whole == piece.offset;
        let what = match checked {
            Ok(line) if line.seq >= limit => {
                found.used = pieces.used()?.max(found.used);
                return Ok(found);
            }
            Ok(line) if line.seq == found.next && clean => {
                found.synced &= !is_unsynced(&line);
                each(&line, text);
                found.next += 1;
                found.whole = piece.offset + piece.bytes.len() as u64 + 1;
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
            offset: found.whole,
            line: lines,
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

impl Pieces {
    pub(super) fn open(store: &Store, name: Name) -> io::Result<Self> {
        Ok(Self {
            file: store.disk.open(&store.path(name), Access::Read)?,
            buffer: Vec::new(),
            offset: 0,
            at: 0,
            ended: false,
        })
    }

    /// The next piece.
    pub(super) fn next(&mut self) -> io::Result<Option<Piece<'_>>> {
        let mut searched = 0;
        let (length, whole) = loop {
            let rest = self.buffer.get(self.at..).unwrap_or_default();
            let fresh = rest.get(searched..).unwrap_or_default();
            if let Some(at) = memchr::memchr(b'\n', fresh) {
                break (searched + at, true);
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
            if let Some(last) = piece.bytes.iter().rposition(|b| *b != 0) {
                used = piece.offset + last as u64 + 1 + u64::from(piece.whole);
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

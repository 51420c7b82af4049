//! What is left on the disk when no next segment can be made: kept for the ends of what was let in, and for events.
//!
//! As long as there is a next segment, room is no question, and asking costs one load. When there is none, each entry
//! that is let in takes from what is left the bytes of both its records; when it is used up, nothing is let in. So an
//! ending always finds its place on the disk, however long the disk stays full.

use std::sync::atomic::{AtomicU64, Ordering};

use super::frame::OVERHEAD_BYTES_MAX;
use crate::record::{AFTER_BYTES_MAX, RECORD_BYTES_MAX};

/// What the end of an entry takes at most.
pub(super) const ENDING_BYTES_MAX: u64 = (AFTER_BYTES_MAX + OVERHEAD_BYTES_MAX) as u64;
/// What one entry takes at most. With less room than that nothing is let in.
const ENTRY_BYTES_MAX: u64 = (RECORD_BYTES_MAX + OVERHEAD_BYTES_MAX) as u64 + ENDING_BYTES_MAX;
const PLENTY: u64 = u64::MAX;

/// Bytes that may still be promised.
pub(super) struct Room(AtomicU64);

impl Room {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(PLENTY))
    }

    /// `None` is plenty.
    pub(super) fn set(&self, bytes: Option<u64>) {
        let bytes = bytes.map_or(PLENTY, |bytes| bytes.min(PLENTY - 1));
        self.0.store(bytes, Ordering::SeqCst);
    }

    pub(super) fn is_short(&self) -> bool {
        self.0.load(Ordering::SeqCst) != PLENTY
    }

    /// Whether an entry may not find room.
    pub(super) fn is_full(&self) -> bool {
        self.0.load(Ordering::SeqCst) < ENTRY_BYTES_MAX
    }

    /// Takes room for an entry whose BEFORE record has so many bytes.
    pub(super) fn take_entry(&self, before: usize) -> bool {
        self.take((before + OVERHEAD_BYTES_MAX) as u64 + ENDING_BYTES_MAX)
    }

    pub(super) fn take(&self, bytes: u64) -> bool {
        let rest = |left: u64| match left {
            PLENTY => Some(PLENTY),
            _ => left.checked_sub(bytes),
        };
        let (set, fetch) = (Ordering::SeqCst, Ordering::SeqCst);
        self.0.fetch_update(set, fetch, rest).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_plenty_until_it_is_counted_and_never_promised_twice() {
        let room = Room::new();
        assert!(room.take(u64::MAX - 1) && !room.is_short() && !room.is_full());
        room.set(Some(ENTRY_BYTES_MAX + 10));
        assert!(room.is_short() && !room.is_full());
        assert!(room.take(11) && room.is_full());
        assert!(!room.take(ENTRY_BYTES_MAX) && room.take(ENTRY_BYTES_MAX - 1));
        assert!(!room.take(1));
        room.set(None);
        assert!(room.take(1) && !room.is_short());
    }
}

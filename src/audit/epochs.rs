//! How many entries are open, by the segment that was being written when they began.
//!
//! The oldest of these segments is as far back as a recovery has to read; each new segment names it.

/// A few counts, oldest segment first.
#[derive(Default)]
pub(super) struct Epochs(Vec<(u64, u64)>);

impl Epochs {
    /// Adds `count` entries that began in the segment whose first `seq` is `segment`.
    pub(super) fn add(&mut self, segment: u64, count: u64) {
        match self.0.iter_mut().rev().find(|(first, _)| *first == segment) {
            Some((_, held)) => *held += count,
            None if count == 0 => {}
            None => self.0.push((segment, count)),
        }
    }

    /// Takes away what `other` holds, and empties it.
    pub(super) fn subtract(&mut self, other: &mut Self) {
        for (segment, count) in other.0.drain(..) {
            if let Some((_, held)) = self.0.iter_mut().find(|(first, _)| *first == segment) {
                *held = held.saturating_sub(count);
            }
        }
        self.0.retain(|(_, held)| *held > 0);
    }

    /// All entries.
    pub(super) fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// The oldest segment with an open entry.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.0.iter().map(|(segment, _)| *segment).min()
    }
}

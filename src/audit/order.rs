//! The segments of one log in their order, whichever of its directories they are in.
//!
//! What a segment holds from the first number of the next one on does not count: it was being written when the log
//! went on elsewhere, and the same lines stand there again. Two segments can begin with the same number, when the one
//! could not be begun in time: then its first record, which is about the segment itself, is all that it can hold.
//! [`Order::rivals`] are those; one that holds more is a copy, and nothing here decides which is the right one.

use std::io;

use super::scan;
use super::segment::{Name, Store};

/// All segments of a log.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Oldest first.
    pub(super) segments: Vec<Placed>,
    /// Those that do not count, because another one begins with the same number.
    pub(super) rivals: Vec<Rival>,
}

/// A segment, and where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    /// Which of the directories.
    pub(super) at: usize,
    pub(super) name: Name,
    /// What is numbered from here on is another segment's.
    pub(super) limit: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Rival {
    pub(super) at: usize,
    pub(super) name: Name,
    /// Whole lines at its beginning.
    pub(super) lines: u64,
}

impl Rival {
    /// Whether all that it holds is told again by the segment that counts.
    pub(super) fn is_superseded(&self) -> bool {
        self.lines <= 1
    }
}

/// Finds all segments in the directories of `stores`.
pub(super) fn order(stores: &[Store]) -> io::Result<Order> {
    let mut all = Vec::new();
    for (at, store) in stores.iter().enumerate() {
        all.extend(store.segments()?.into_iter().map(|name| (at, name)));
    }
    all.sort_by_key(|(at, name)| (name.first, *at));
    let mut order = Order::default();
    for same in all.chunk_by(|(_, one), (_, other)| one.first == other.first) {
        let counts = longest(stores, same, &mut order.rivals)?;
        order.segments.extend(counts.map(|(at, name)| Placed {
            at,
            name,
            limit: u64::MAX,
        }));
    }
    let mut limit = u64::MAX;
    for segment in order.segments.iter_mut().rev() {
        segment.limit = limit;
        limit = segment.name.first;
    }
    Ok(order)
}

/// The one with most lines; the later directory's if none has more. The others are rivals.
fn longest(
    stores: &[Store],
    same: &[(usize, Name)],
    rivals: &mut Vec<Rival>,
) -> io::Result<Option<(usize, Name)>> {
    if same.len() == 1 {
        return Ok(same.first().copied());
    }
    let mut measured = Vec::new();
    for (at, name) in same {
        let Some(store) = stores.get(*at) else {
            continue;
        };
        let found = scan::scan(store, *name, u64::MAX, |_, _, _| {})?;
        measured.push(Rival {
            at: *at,
            name: *name,
            lines: found.next - name.first,
        });
    }
    measured.sort_by_key(|rival| (rival.lines, rival.at));
    let counts = measured.pop();
    rivals.extend(measured);
    Ok(counts.map(|rival| (rival.at, rival.name)))
}

//! What an earlier process left: how far the log goes, which entries it left open, and bytes that are no records.
//!
//! Recovery reads back to the oldest segment in which an entry can still be open, which every segment's first record
//! names. It cuts the tail of a torn write, keeping the bytes in `quarantine/`; it never cuts anything else. Where a
//! file is damaged it refuses to start: going on would bury the damage.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::OpenError;
use super::frame::{Kind, Line};
use super::order::{Order, Placed, Rival, order};
use super::scan::{self, Found};
use super::segment::{Name, Store};
use crate::clock::Id;
use crate::disk::Access;
use crate::record::Event;
use crate::telemetry::Way;

/// What the next process goes on from.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// The number of the next record.
    pub(super) next: u64,
    /// Entries without a terminal record. Bounded by what one process lets in.
    pub(super) open: HashMap<Id, Way>,
    /// The oldest segment that holds one of them.
    pub(super) since: u64,
    /// What there is to tell.
    pub(super) events: Vec<Event>,
}

/// Reads what is in the directories of `stores`, primary first.
pub(super) fn recover(stores: &[Store]) -> Result<Recovered, OpenError> {
    for store in stores {
        let failed = |error| OpenError::io(&store.dir, "read", error);
        store.remove_spare().map_err(failed)?;
    }
    let here = stores.first().map_or(Path::new(""), |store| &store.dir);
    let failed = |error| OpenError::io(here, "read", error);
    let Order { segments, rivals } = order(stores).map_err(failed)?;
    let since = open_since(stores, &segments).map_err(failed)?;
    let mut recovered = Recovered {
        next: segments.first().map_or(1, |segment| segment.name.first),
        since,
        ..Recovered::default()
    };
    for (store, rival) in rivals.iter().filter_map(|r| Some((stores.get(r.at)?, r))) {
        recovered.set_aside(store, rival)?;
    }
    let unclosed = segments.iter().position(|segment| !segment.name.closed);
    let begin = segments
        .partition_point(|segment| segment.name.first < since)
        .min(unclosed.unwrap_or(usize::MAX));
    for (at, segment) in segments.iter().enumerate().skip(begin) {
        let Some(store) = stores.get(segment.at) else {
            continue;
        };
        if at > begin && segment.name.first != recovered.next {
            recovered.gap(segment.name);
        }
        recovered.read(store, segment)?;
    }
    if !recovered.open.is_empty() {
        let count = recovered.open.len().to_string();
        recovered.event("left_open", vec![("entries", count)]);
    }
    Ok(recovered)
}

/// The first number of the oldest segment that may hold an open entry: named by the newest segment that has a record.
fn open_since(stores: &[Store], segments: &[Placed]) -> io::Result<u64> {
    for segment in segments.iter().rev() {
        let Some(store) = stores.get(segment.at) else {
            continue;
        };
        let mut pieces = scan::Pieces::open(store, segment.name)?;
        let since =
            pieces
                .next()?
                .and_then(|piece| match super::frame::check(piece.bytes).ok()?.kind {
                    Kind::Event("segment", facts) => fact(facts, "open_since")?.parse().ok(),
                    _ => None,
                });
        if let Some(since) = since {
            return Ok(since);
        }
    }
    Ok(0)
}

/// The value of a fact in the text of an event of ours.
pub(super) fn fact<'a>(facts: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = facts.split_once(&format!("\"{name}\":\""))?;
    Some(rest.split_once('"')?.0)
}

fn follow(open: &mut HashMap<Id, Way>, line: &Line<'_>) {
    match line.kind {
        Kind::Before(id, way) => drop(open.insert(id, way)),
        Kind::After(id) => drop(open.remove(&id)),
        Kind::Denied | Kind::Event(..) => {}
    }
}

fn refuse_damage(store: &Store, name: Name, found: &Found) -> Result<(), OpenError> {
    match found.damage {
        Some(damage) if name.closed || (damage.followed && found.synced) => {
            Err(OpenError::Damaged {
                file: store.path(name),
                offset: damage.place.offset,
                what: damage.what.to_string(),
            })
        }
        _ => Ok(()),
    }
}

impl Recovered {
    /// Goes through one segment; closes it if it is open.
    fn read(&mut self, store: &Store, segment: &Placed) -> Result<(), OpenError> {
        let (name, open) = (segment.name, &mut self.open);
        let found = scan::scan(store, name, segment.limit, |line, _| follow(open, line))
            .map_err(|error| OpenError::io(&store.path(name), "read", error))?;
        refuse_damage(store, name, &found)?;
        self.next = found.next;
        if !name.closed {
            self.close(store, name, &found)?;
        }
        Ok(())
    }

    /// Moves a segment to quarantine whose only record stands in another one too.
    fn set_aside(&mut self, store: &Store, rival: &Rival) -> Result<(), OpenError> {
        let file = store.path(rival.name);
        if !rival.is_superseded() {
            let first = rival.name.first;
            return Err(OpenError::Rivals { file, first });
        }
        let dir = store.quarantine();
        let copy = format!("{}.0.{}", rival.name.text(), Id::new());
        store
            .disk
            .make_dir(&dir)
            .and_then(|()| store.disk.rename(&file, &dir.join(&copy)))
            .and_then(|()| store.disk.sync_dir(&dir))
            .and_then(|()| store.disk.sync_dir(&store.dir))
            .map_err(|error| OpenError::io(&file, "quarantine", error))?;
        self.event("superseded", vec![("file", copy)]);
        Ok(())
    }

    /// Closes a segment that was left open; what is behind its last whole line goes to quarantine.
    fn close(&mut self, store: &Store, name: Name, found: &Found) -> Result<(), OpenError> {
        let path = store.path(name);
        let failed = |doing| {
            let path = path.clone();
            move |error| OpenError::io(&path, doing, error)
        };
        if found.used > found.whole {
            let file = quarantine(store, name, found).map_err(failed("quarantine the tail of"))?;
            let bytes = (found.used - found.whole).to_string();
            self.event("quarantined", vec![("file", file), ("bytes", bytes)]);
        }
        if found.whole == 0 {
            store.disk.remove(&path).map_err(failed("remove"))?;
            return store.disk.sync_dir(&store.dir).map_err(failed("remove"));
        }
        store
            .disk
            .open(&path, Access::Write)
            .and_then(|file| file.truncate(found.whole))
            .and_then(|()| store.set_closed(name.first))
            .map_err(failed("close"))
    }

    fn gap(&mut self, name: Name) {
        let facts = vec![
            ("expected", self.next.to_string()),
            ("found", name.first.to_string()),
        ];
        tracing::warn!(
            expected = self.next,
            found = name.first,
            "audit records are missing"
        );
        self.event("records_missing", facts);
    }

    fn event(&mut self, name: &'static str, facts: Vec<(&'static str, String)>) {
        self.events.push(Event { name, facts });
    }
}

/// Copies what is behind the whole lines, durably, and gives the name of the copy.
fn quarantine(store: &Store, name: Name, found: &Found) -> io::Result<String> {
    let file = store.disk.open(&store.path(name), Access::Read)?;
    let length = usize::try_from(found.used - found.whole).unwrap_or(usize::MAX);
    let (mut bytes, mut at) = (vec![0; length], 0);
    while let Some(room) = bytes.get_mut(at..).filter(|room| !room.is_empty()) {
        match file.read_at(room, found.whole + at as u64)? {
            0 => break,
            read => at += read,
        }
    }
    let dir = store.quarantine();
    store.disk.make_dir(&dir)?;
    let copy = format!("{}.{}.{}", name.text(), found.whole, Id::new());
    store.disk.create_with(&dir.join(&copy), &bytes)?;
    store.disk.sync_dir(&dir)?;
    store.disk.sync_dir(&store.dir)?;
    Ok(copy)
}

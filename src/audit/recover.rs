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
use super::scan::{self, Damage, Found};
use super::seal::{self, Tail};
use super::segment::{Name, Store};
use super::tree;
use crate::clock::Id;
use crate::disk::Access;
use crate::record::Event;
use crate::telemetry::Way;

/// What the next process goes on from.
#[derive(Default)]
pub(super) struct Recovered {
    /// The number of the next record.
    pub(super) next: u64,
    /// Entries without a terminal record, each with the first number of the segment in which it began. Bounded by what
    /// one process lets in.
    pub(super) open: HashMap<Id, (Way, u64)>,
    on_damage: OnDamage,
    /// Whether the log ends in a time in which not everything was recorded as it should.
    degraded: bool,
    /// Whether the log ends by saying that it is closed.
    finished: bool,
    /// Whether damage was accepted.
    pub(super) is_damaged: bool,
    /// What there is to tell.
    pub(super) events: Vec<Event>,
    /// The tree of all records, and the key to seal it with; none if there are none.
    pub(super) tail: Tail,
    /// The seal that announced that key, if one did in what was read.
    pub(super) announced: Option<Vec<u8>>,
}

/// No line is shorter.
const BYTES_MIN: u64 = 32;

/// What to do about a record that is damaged.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnDamage {
    /// Go on without it, and put down that it was so.
    Accept,
    /// Do not start.
    #[default]
    Refuse,
}

/// Reads what is in the directories of `stores`, primary first.
pub(super) fn recover(stores: &[Store], on_damage: OnDamage) -> Result<Recovered, OpenError> {
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
        on_damage,
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
    if recovered.next > 1 && !recovered.finished {
        let degraded = if recovered.degraded { "yes" } else { "no" };
        let facts = vec![
            ("last", (recovered.next - 1).to_string()),
            ("degraded", degraded.to_owned()),
        ];
        recovered.event("not_closed", facts);
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

/// What is damage, and no write that was cut short.
fn damage(name: Name, found: &Found) -> Option<Damage> {
    let is_later = |damage: &Damage| name.closed || (damage.followed && found.synced);
    found.damage.filter(is_later)
}

impl Recovered {
    fn follow(&mut self, line: &Line<'_>, bytes: &[u8], segment: u64) {
        match line.kind {
            Kind::Before(id, way) => drop(self.open.insert(id, (way, segment))),
            Kind::After(id) => drop(self.open.remove(&id)),
            Kind::Event("segment", facts) => {
                if let Some(tail) = Tail::read(facts).filter(|tail| tail.edge.size() < line.seq) {
                    self.tail = tail; // what it says of records that are not read, or are missing
                }
            }
            Kind::Seal => {
                let next = seal::announces(bytes);
                if next.is_some() {
                    self.tail.key = next;
                    self.announced = Some([bytes, b"\n"].concat());
                }
            }
            Kind::Event("space_short", _) => self.degraded = true,
            Kind::Event("degraded", facts) => self.degraded = fact(facts, "over") == Some("no"),
            Kind::Denied | Kind::Event(..) => {}
        }
        self.tail.edge.push(tree::leaf(bytes));
    }

    /// Goes through one segment; closes it if it is open.
    fn read(&mut self, store: &Store, segment: &Placed) -> Result<(), OpenError> {
        let name = segment.name;
        let each = |line: &Line<'_>, bytes: &[u8], _| self.follow(line, bytes, name.first);
        let found = scan::scan(store, name, segment.limit, each)
            .map_err(|error| OpenError::io(&store.path(name), "read", error))?;
        (self.next, self.finished) = (found.next, found.finished);
        match (damage(name, &found), self.on_damage) {
            (None, _) if name.closed => Ok(()),
            (None, _) => self.close(store, name, &found),
            (Some(damage), OnDamage::Accept) => self.accept(store, name, &found, damage),
            (Some(damage), OnDamage::Refuse) => Err(OpenError::Damaged {
                file: store.path(name),
                offset: damage.place.offset,
                what: damage.what.to_string(),
            }),
        }
    }

    /// Goes on without what is damaged, and what is behind it in the same file: all of that goes to quarantine, and
    /// its numbers are not given again.
    fn accept(
        &mut self,
        store: &Store,
        name: Name,
        found: &Found,
        damage: Damage,
    ) -> Result<(), OpenError> {
        self.next = found.next.max(found.beyond);
        // Records are no shorter than this; a larger number is forged.
        if self.next - found.next > (found.used - found.whole) / BYTES_MIN {
            return Err(OpenError::Damaged {
                file: store.path(name),
                offset: damage.place.offset,
                what: "a record has a number that cannot be".to_owned(),
            });
        }
        self.is_damaged = true;
        for _ in found.next..self.next {
            self.tail.edge.push(tree::leaf(b"")); // the tree has a place for what is missing
        }
        let facts = vec![
            ("file", store.path(name).display().to_string()),
            ("offset", damage.place.offset.to_string()),
            ("what", damage.what.to_string()),
            ("first", found.next.to_string()),
            ("last", self.next.saturating_sub(1).to_string()),
        ];
        self.event("damage_accepted", facts);
        self.close(store, name, found)
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

    /// Cuts a segment to its whole lines, and closes it if it was left open; what is behind them goes to quarantine.
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
            .and_then(|()| match name.closed {
                true => Ok(()),
                false => store.set_closed(name.first),
            })
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
    let dir = store.quarantine();
    store.disk.make_dir(&dir)?;
    let copy = format!("{}.{}.{}", name.text(), found.whole, Id::new());
    let disk = &store.disk;
    disk.create_from(&dir.join(&copy), &file, found.whole, found.used)?;
    store.disk.sync_dir(&dir)?;
    store.disk.sync_dir(&store.dir)?;
    Ok(copy)
}

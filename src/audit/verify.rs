//! Checks a log from outside: every byte, every number, and that every entry has exactly one end.
//!
//! It needs no lock and no process: it works on copied files, and beside a running process (where the end of the open
//! segment may be in the middle of a write). It does not prove that nobody rewrote the whole log: a checksum is
//! against accidents.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::frame::{Kind, Line};
use super::order::{Order, Placed, order};
use super::recover::fact;
use super::scan::{self, Found, Place};
use super::segment::{Name, Store};
use super::standby;
use crate::clock::Id;
use crate::config::typed::Durability;
use crate::disk::Disk;

/// What a log holds, and the first place where it is not as it must be.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub segments: u64,
    pub records: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    /// BEFORE records.
    pub entries: u64,
    /// Entries without a terminal record yet: in flight, or left by a process that was killed, until the next start.
    pub open: u64,
    /// Terminal records of entries that began in segments which are no longer there.
    pub begun_earlier: u64,
    /// Where the write begins that was under way when the last segment was read, or its process ended.
    pub unfinished: Option<Problem>,
    pub problem: Option<Problem>,
}

/// A place in the log, and what is the matter there.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1.
    pub line: u64,
    /// In bytes, from the beginning of the file.
    pub offset: u64,
    pub what: String,
}

#[derive(Default)]
struct Check {
    report: Report,
    open: HashMap<Id, ()>,
    /// Whether entries may have begun before the first record that is there.
    begun_earlier: bool,
}

/// Checks the log of a state directory, or a directory of copied segments. An error is one of reading.
pub fn verify(dir: &Path) -> io::Result<Report> {
    check(&stores(dir)?)
}

/// The directories of a log: `dir/audit` or `dir` itself, and the standby that it names, if that can be reached.
pub(super) fn stores(dir: &Path) -> io::Result<Vec<Store>> {
    let primary = store(dir);
    let standby = standby::of(&primary)?;
    Ok([primary].into_iter().chain(standby).collect())
}

/// The segments in `dir/audit`, or in `dir` itself.
pub(super) fn store(dir: &Path) -> Store {
    let audit = dir.join("audit");
    Store {
        disk: Disk::Machine,
        dir: if audit.is_dir() {
            audit
        } else {
            dir.to_owned()
        },
        segment_bytes: 0,
        durability: Durability::Sync,
    }
}

pub(super) fn check(stores: &[Store]) -> io::Result<Report> {
    let Order { segments, rivals } = order(stores)?;
    let mut check = Check::default();
    let mut next = segments.first().map_or(1, |segment| segment.name.first);
    check.report.first_seq = next;
    for (store, rival) in rivals.iter().filter_map(|r| Some((stores.get(r.at)?, r))) {
        if !rival.is_superseded() {
            let what = "another file holds the same records: one is a copy".to_owned();
            let place = Place { offset: 0, line: 1 };
            check.problem(&store.path(rival.name), place, what);
        }
    }
    for Placed { at, name, limit } in segments {
        let Some(store) = stores.get(at) else {
            continue;
        };
        let file = store.path(name);
        if name.first > next {
            let what = format!("records {next} to {} are missing before it", name.first - 1);
            check.problem(&file, Place { offset: 0, line: 1 }, what);
        }
        let found = scan::scan(store, name, limit, |line, place| {
            check.line(&file, line, place);
        })?;
        check.segment(&file, name, &found, limit == u64::MAX);
        next = found.next;
        if check.report.problem.is_some() {
            break;
        }
    }
    check.report.last_seq = next - 1;
    check.report.open = check.open.len() as u64;
    Ok(check.report)
}

impl Check {
    fn line(&mut self, file: &Path, line: &Line<'_>, place: Place) {
        self.report.records += 1;
        let what = match line.kind {
            Kind::Before(id, _) => {
                self.report.entries += 1;
                match self.open.insert(id, ()) {
                    Some(()) => "a second BEFORE record of an open entry",
                    None => return,
                }
            }
            Kind::After(id) => match self.open.remove(&id) {
                Some(()) => return,
                None if self.begun_earlier => {
                    self.report.begun_earlier += 1;
                    return;
                }
                None => "a terminal record without a BEFORE record, or a second one",
            },
            Kind::Event("segment", facts) => {
                let since: Option<u64> = fact(facts, "open_since").and_then(|f| f.parse().ok());
                self.begun_earlier |= since.is_some_and(|since| since < self.report.first_seq);
                return;
            }
            Kind::Event("closed", facts) => {
                let open: Option<usize> = fact(facts, "open").and_then(|f| f.parse().ok());
                if self.begun_earlier || open == Some(self.open.len()) {
                    return;
                }
                "closed with another number of open entries than the log has"
            }
            Kind::Denied | Kind::Event(..) => return,
        };
        self.problem(file, place, what.to_owned());
    }

    fn segment(&mut self, file: &Path, name: Name, found: &Found, last: bool) {
        self.report.segments += 1;
        let Some(damage) = found.damage else {
            if last && name.closed && !found.finished {
                let (offset, line) = (found.whole, found.next - name.first + 1);
                let what = "the log ends without saying so".to_owned();
                self.report.unfinished = Some(problem(file, Place { offset, line }, what));
            }
            return;
        };
        // In a segment that was never closed this is where a write was under way, unless a later one begins behind it.
        if name.closed || damage.followed {
            self.problem(file, damage.place, damage.what.to_string());
        } else if last {
            self.report.unfinished = Some(problem(file, damage.place, damage.what.to_string()));
        }
    }

    fn problem(&mut self, file: &Path, place: Place, what: String) {
        let first = &mut self.report.problem;
        first.get_or_insert_with(|| problem(file, place, what));
    }
}

fn problem(file: &Path, place: Place, what: String) -> Problem {
    Problem {
        file: file.to_owned(),
        line: place.line,
        offset: place.offset,
        what,
    }
}

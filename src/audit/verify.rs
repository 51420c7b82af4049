//! Checks a log from outside: every byte, every number, that every entry has exactly one end, and every seal.
//!
//! It needs no lock and no process: it works on copied files, in any order, with pruned beginnings, and beside a running
//! process (where the end of the open segment may be in the middle of a write). It reads front to back once and holds
//! what is open, not what it has read. What it cannot know by itself is whether somebody rewrote the whole log: for
//! that it takes a public key or the notes of an anchor from somebody who could not ([`Trust`]).

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use super::frame::{Kind, Line};
use super::note::VerifierKey;
use super::order::{Order, Placed, order};
use super::recover::fact;
use super::scan::{self, Damage, Found, Place};
use super::segment::{Name, Store};
use super::standby;
use crate::clock::Id;
use crate::config::typed::Durability;
use crate::disk::Disk;

mod anchors;
mod report;
mod seals;

use anchors::Anchors;
pub use report::{AnchorReport, OpenEntry, Problem, Report};
use seals::Seals;
pub(super) use seals::leads_to;

/// Entries that may be open at one time, a hundred times what one process lets in.
const OPEN_MAX: usize = 8_000_000;
/// Progress is told after so many records.
const TOLD_EVERY: u64 = 1 << 14;

/// What somebody holds who does not trust the files alone.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// A public key of the log, of any of its segments.
    pub key: Option<PublicKey>,
    /// Files with notes of seals, as an anchor holds them.
    pub anchors: Vec<PathBuf>,
}

/// A public key of a log, as `seal.pub` holds it.
#[derive(Clone, Debug)]
pub struct PublicKey(pub(super) VerifierKey);

struct Check<'a> {
    report: Report,
    open: HashMap<Id, (u64, PathAt)>,
    /// Whether entries may have begun before the first record that is there.
    begun_earlier: bool,
    /// How long a time without records had lasted when it was told last; 0 if it was over then.
    lasting_ms: u64,
    seals: Seals,
    anchors: Anchors,
    file: PathBuf,
    /// Which of the files that is.
    files: Vec<PathBuf>,
    told: &'a mut dyn FnMut(u64),
}

/// A file by its number, and a place in it.
type PathAt = (usize, Place);

impl PublicKey {
    /// Reads `name+hash+key`.
    pub fn parse(text: &str) -> Option<Self> {
        VerifierKey::parse(text.trim()).map(Self)
    }
}

/// Checks the log whose files are in `dirs`: state directories, or directories of copied segments. `told` hears the
/// number of the last record now and then. An error is one of reading.
pub fn verify(dirs: &[PathBuf], trust: &Trust, told: &mut dyn FnMut(u64)) -> io::Result<Report> {
    check(&stores(dirs)?, trust, told)
}

/// The directories of a log: those that are named, and the standby that one of them names, if that can be reached.
pub(super) fn stores(dirs: &[PathBuf]) -> io::Result<Vec<Store>> {
    let mut stores: Vec<Store> = dirs.iter().map(|dir| store(dir)).collect();
    for at in 0..dirs.len() {
        let Some(standby) = stores.get(at).map(standby::of).transpose()?.flatten() else {
            continue;
        };
        if stores.iter().all(|store| store.dir != standby.dir) {
            stores.push(standby);
        }
    }
    Ok(stores)
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

pub(super) fn check(
    stores: &[Store],
    trust: &Trust,
    told: &mut dyn FnMut(u64),
) -> io::Result<Report> {
    // First, so that no seal is there of which the log does not know yet.
    let anchors = Anchors::open(&trust.anchors)?;
    let Order { segments, rivals } = order(stores)?;
    let Some(first) = segments.first() else {
        let what =
            "there is no segment of an audit log; name the state directory, or one with its files";
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    };
    let mut check = Check {
        report: Report::default(),
        open: HashMap::new(),
        begun_earlier: false,
        lasting_ms: 0,
        seals: Seals::new(trust.key.as_ref().map(|key| key.0.clone()), stores),
        anchors,
        file: PathBuf::new(),
        files: Vec::new(),
        told,
    };
    check.report.first_seq = first.name.first;
    for rival in &rivals {
        let Some(store) = stores.get(rival.at) else {
            continue;
        };
        if rival.is_superseded() {
            check.report.superseded += 1;
        } else {
            check.file = store.path(rival.name);
            let what = "another file holds the same records: one is a copy".to_owned();
            check.problem(rival.name.first, Place::BEGIN, what);
        }
    }
    let mut next = first.name.first;
    let last = segments.len() - 1;
    for (at, segment) in segments.iter().enumerate() {
        let Some(store) = stores.get(segment.at) else {
            continue;
        };
        next = check.read(store, segment, next, at == last)?;
    }
    check.finish(next)
}

impl Check<'_> {
    /// Reads one segment; gives the number behind its last whole record.
    fn read(&mut self, store: &Store, segment: &Placed, next: u64, last: bool) -> io::Result<u64> {
        let name = segment.name;
        self.file = store.path(name);
        self.files.push(self.file.clone());
        if name.first > next && !self.report.is_damaged {
            let what = format!("records {next} to {} are missing before it", name.first - 1);
            self.problem(name.first, Place::BEGIN, what);
        }
        if name.first > next {
            self.seals.lose();
        }
        let found = scan::scan(store, name, segment.limit, |line, bytes, place| {
            self.line(line, bytes, place);
        })?;
        self.segment(name, &found, last);
        Ok(found.next)
    }

    fn line(&mut self, line: &Line<'_>, bytes: &[u8], place: Place) {
        self.report.records += 1;
        if self.report.records.is_multiple_of(TOLD_EVERY) {
            (self.told)(line.seq);
        }
        if let Some(what) = self.entry(line, place) {
            self.problem(line.seq, place, what);
        }
        if let Err(what) = self.seals.line(line, bytes, place.line == 1) {
            self.problem(line.seq, place, what);
        }
        if let Some((edge, key)) = self.seals.tree()
            && self.anchors.awaits(edge.size())
            && let Err(what) = self.anchors.check(edge, key)
        {
            self.problem(line.seq, place, what);
        }
    }

    /// Follows entries from their beginning to their end. Gives what is wrong.
    fn entry(&mut self, line: &Line<'_>, place: Place) -> Option<String> {
        match line.kind {
            Kind::Before(id, _) => {
                self.report.entries += 1;
                if self.open.len() == OPEN_MAX {
                    return Some(format!("more than {OPEN_MAX} entries are open at once"));
                }
                let at = (line.seq, (self.files.len() - 1, place));
                let twice = self.open.insert(id, at).is_some();
                twice.then(|| "a second BEFORE record of an open entry".to_owned())
            }
            Kind::After(id) => match self.open.remove(&id) {
                Some(_) => None,
                None if self.begun_earlier => {
                    self.report.begun_earlier += 1;
                    None
                }
                None => {
                    Some("a terminal record without a BEFORE record, or a second one".to_owned())
                }
            },
            Kind::Event(name, facts) => self.event(name, facts),
            Kind::Denied | Kind::Seal => None,
        }
    }

    fn event(&mut self, name: &str, facts: &str) -> Option<String> {
        let number = |name| fact(facts, name).and_then(|f| f.parse::<u64>().ok());
        match name {
            "segment" => {
                let since = number("open_since");
                self.begun_earlier |= since.is_some_and(|since| since < self.report.first_seq);
            }
            "closed" => {
                let open = number("open");
                if !self.begun_earlier && open != Some(self.open.len() as u64) {
                    let what = "closed with another number of open entries than the log has";
                    return Some(what.to_owned());
                }
            }
            "pruned" => {
                let last = number("last").unwrap_or_default();
                self.report.pruned_seq = self.report.pruned_seq.max(last);
            }
            "degraded" => {
                let lasted_ms = number("lasted_ms").unwrap_or_default();
                self.report.unrecorded += number("unrecorded").unwrap_or_default();
                if fact(facts, "over") == Some("no") {
                    self.lasting_ms = lasted_ms;
                } else {
                    self.degraded(lasted_ms);
                }
            }
            // A process ended in the middle of one.
            "not_closed" if self.lasting_ms > 0 => self.degraded(self.lasting_ms),
            _ => {}
        }
        None
    }

    fn degraded(&mut self, lasted_ms: u64) {
        self.report.degraded += 1;
        self.report.degraded_ms += lasted_ms;
        self.lasting_ms = 0;
    }

    fn segment(&mut self, name: Name, found: &Found, last: bool) {
        self.report.segments += 1;
        self.report.superseded += u64::from(found.superseded);
        let told = |damage: &Damage| name.closed || damage.followed;
        self.report.is_damaged = found.damage.as_ref().is_some_and(told);
        let Some(damage) = found.damage else {
            if last && name.closed && !found.finished {
                let (offset, line) = (found.whole, found.next - name.first + 1);
                let what = "the log ends without saying so".to_owned();
                let end = self.place(found.next, Place { offset, line }, what);
                self.report.unfinished = Some(end);
            }
            return;
        };
        let what = damage.what.to_string();
        // In a segment that was never closed this is where a write was under way, unless a later one begins behind it.
        if name.closed || damage.followed {
            self.seals.lose();
            self.problem(found.next, damage.place, what);
        } else if last {
            self.report.unfinished = Some(self.place(found.next, damage.place, what));
        }
    }

    fn finish(mut self, next: u64) -> io::Result<Report> {
        self.report.last_seq = next - 1;
        self.report.list_open(&self.open, &self.files);
        let end = Place::BEGIN;
        let (unproven, log) = (self.seals.finish(&mut self.report), self.file.clone());
        for (file, result) in std::mem::take(&mut self.anchors).finish(next - 1) {
            match result {
                Ok(anchor) => self.report.anchors.push(anchor),
                Err((anchor, offset, what)) => {
                    self.report.anchors.push(anchor);
                    self.file = file;
                    self.problem(next - 1, Place { offset, line: 1 }, what);
                }
            }
        }
        // Behind what an anchor says, which tells more.
        if let Some(what) = unproven {
            self.file = log;
            self.problem(next - 1, end, what);
        }
        Ok(self.report)
    }

    fn problem(&mut self, seq: u64, place: Place, what: String) {
        let problem = self.place(seq, place, what);
        self.report.add(problem);
    }

    fn place(&self, seq: u64, place: Place, what: String) -> Problem {
        Problem {
            file: self.file.clone(),
            line: place.line,
            offset: place.offset,
            seq,
            what,
        }
    }
}

//! Follows the tree, the seals and their keys through a log that goes by line by line.
//!
//! Where lines are missing or damaged the tree is lost; the next segment's first record tells it anew, so that one bad
//! place is told once. What such a record tells is believed only as far as the seals behind it bear it out.

use crate::audit::frame::{Kind, Line};
use crate::audit::keys;
use crate::audit::note::{Note, VerifierKey};
use crate::audit::scan::Pieces;
use crate::audit::seal::{self, Tail};
use crate::audit::segment::Store;
use crate::audit::tree::{self, Edge};
use crate::disk::Access;

use super::report::Report;

pub(super) struct Seals {
    given: Option<VerifierKey>,
    /// Whether what is read follows from the given key.
    reached: bool,
    /// Whether a seal was signed with a key that follows from it.
    borne: bool,
    first: Option<VerifierKey>,
    /// `None` where lines are missing, until a segment begins.
    edge: Option<Edge>,
    key: Option<VerifierKey>,
    /// What the last seal has announced.
    next: Option<VerifierKey>,
    count: u64,
    sealed: u64,
    stores: Vec<Store>,
}

impl Seals {
    pub(super) fn new(given: Option<VerifierKey>, stores: &[Store]) -> Self {
        Self {
            given,
            reached: false,
            borne: false,
            first: None,
            edge: None,
            key: None,
            next: None,
            count: 0,
            sealed: 0,
            stores: stores.to_vec(),
        }
    }

    /// Says that lines are missing, or cannot be read.
    pub(super) fn lose(&mut self) {
        self.edge = None;
        self.key = None;
        self.next = None;
    }

    /// The tree of all lines so far and the key that a seal of them is signed with, unless they are lost.
    pub(super) fn tree(&self) -> Option<(&Edge, &VerifierKey)> {
        self.edge.as_ref().zip(self.key.as_ref())
    }

    /// Takes the next line, the `first` of its segment or not. An error says what is wrong with it, or shows in it.
    pub(super) fn line(
        &mut self,
        line: &Line<'_>,
        bytes: &[u8],
        first: bool,
    ) -> Result<(), String> {
        let judged = match line.kind {
            Kind::Event("segment", facts) => self.begin(line.seq, Tail::read(facts)),
            _ if first => {
                self.lose();
                Err("the segment does not begin with its first record".to_owned())
            }
            Kind::Seal => self.seal(line.seq, bytes),
            _ => Ok(()),
        };
        if let Some(edge) = &mut self.edge {
            edge.push(tree::leaf(bytes));
        }
        judged
    }

    /// Takes the first record of a segment.
    fn begin(&mut self, seq: u64, tail: Option<Tail>) -> Result<(), String> {
        let Some(Tail {
            edge,
            key: Some(key),
        }) = tail.filter(|tail| tail.edge.size() + 1 == seq)
        else {
            self.lose();
            return Err("it does not tell the tree and the key that it begins with".to_owned());
        };
        let expected = self.next.take().or(self.key.take());
        let told = self.edge.replace(edge);
        self.key = Some(key.clone());
        self.first.get_or_insert_with(|| key.clone());
        self.follow(&key, expected.is_some());
        if expected.is_some_and(|expected| expected != key) {
            return Err("its key is not the one that the last seal announces".to_owned());
        }
        if told.is_some() && told != self.edge {
            return Err(
                "it tells another tree of the records before it: they were changed since"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Notes whether `key` follows from the one that was given; `chained` if it follows from the one before.
    fn follow(&mut self, key: &VerifierKey, chained: bool) {
        let Some(given) = &self.given else { return };
        let follows = given == key
            || (chained && self.reached)
            || (!chained
                && self
                    .stores
                    .iter()
                    .any(|store| leads_to(store, given, key).is_some()));
        self.reached = follows;
    }

    fn seal(&mut self, seq: u64, bytes: &[u8]) -> Result<(), String> {
        self.count += 1;
        let (Some(edge), Some(key)) = (&self.edge, &self.key) else {
            return Ok(()); // told already
        };
        let text = seal::note(bytes).unwrap_or_default();
        let note = Note::parse(&text).and_then(|note| note.open(key));
        let Some(checkpoint) = note else {
            self.edge = None;
            return Err("the seal is not signed with the key in force".to_owned());
        };
        self.next = checkpoint.next;
        if checkpoint.size + 1 != seq || checkpoint.size != edge.size() {
            self.edge = None;
            return Err(format!(
                "the seal is over {} records, and {} are before it",
                checkpoint.size,
                seq - 1
            ));
        }
        if checkpoint.root != edge.root() {
            self.edge = None;
            return Err(format!(
                "the seal does not match the records before it: one from {} to {} was changed",
                self.sealed + 1,
                seq - 1
            ));
        }
        self.sealed = checkpoint.size;
        self.borne |= self.reached;
        Ok(())
    }

    /// Puts down what was found. Gives what is wrong with the whole.
    pub(super) fn finish(&self, report: &mut Report) -> Option<String> {
        report.seals = self.count;
        report.sealed_seq = self.sealed;
        report.unsealed = report.last_seq.saturating_sub(self.sealed);
        report.key_given = self.reached && self.borne;
        if let Some(first) = &self.first {
            report.log_id = first.log_id().to_owned();
            report.key = first.to_string();
        }
        let given = self.given.as_ref()?;
        if self
            .first
            .as_ref()
            .is_some_and(|first| first.name() != given.name())
        {
            return Some(format!(
                "the key that was given is of another log: {}",
                given.name()
            ));
        }
        (!self.reached || !self.borne)
            .then(|| "no seal leads from the key that was given to the keys of this log".to_owned())
    }
}

/// The seals of the directory's chain that lead from key `from` to key `to`, each exactly as in the log; `None` if they
/// do not.
pub(in crate::audit) fn leads_to(
    store: &Store,
    from: &VerifierKey,
    to: &VerifierKey,
) -> Option<Vec<String>> {
    let (mut key, mut notes) = (from.clone(), Vec::new());
    if &key == to {
        return Some(notes);
    }
    let path = store.dir.join(keys::CHAIN);
    let mut pieces = Pieces::of(store.disk.open(&path, Access::Read).ok()?);
    while let Some(piece) = pieces.next().ok()? {
        let Some(note) = seal::note(piece.bytes) else {
            continue;
        };
        let opened = Note::parse(&note).and_then(|note| note.open(&key));
        let Some(next) = opened.and_then(|checkpoint| checkpoint.next) else {
            continue;
        };
        key = next;
        notes.push(note);
        if &key == to {
            return Some(notes);
        }
    }
    None
}

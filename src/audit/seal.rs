//! What a writer knows to seal the log: the edge of its tree, the key in force, and when the last seal was.
//!
//! A seal is a record like any other. It says how many records are before it and what their root is, so each seal
//! covers all earlier ones. It goes with the ledger from one writer to the next. Making one takes no lock and no call
//! to a disk; who writes it, and that it counts only once it is durable, is the writer's business.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::anchor::Anchor;
use super::frame;
use super::keys::{Keys, Vault};
use super::note::{Note, SigningKey, VerifierKey, read_hashes, show_hashes};
use super::opening::OpenError;
use super::receipt::Mark;
use super::recover::{Recovered, fact};
use super::seat::Seat;
use super::segment::Store;
use super::tree::{self, Edge};
use crate::clock;
use crate::config::typed::Anchor as Place;
use crate::record::Seal;
use crate::telemetry::Metrics;

/// No seal takes more room in a segment.
pub(super) const SEAL_BYTES_MAX: u64 = 1024;

pub(super) struct Sealer {
    edge: Edge,
    /// The size of the tree behind the last seal: while it is that, there is nothing to seal.
    quiet: u64,
    key: SigningKey,
    /// The key of the next segment, not announced yet.
    next: Option<SigningKey>,
    keys: Keys,
    anchors: Vec<Anchor>,
    every: Duration,
    sealed: Instant,
}

/// When the log is sealed, and where the seals go.
pub(super) struct Sealing {
    pub(super) every: Duration,
    pub(super) anchors: Vec<Place>,
}

/// A seal that is not durable yet.
pub(super) struct Made {
    note: Arc<str>,
    announces: bool,
}

/// What the first record of a segment tells of the log before it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Tail {
    pub(super) edge: Edge,
    /// The key that the next seal is signed with.
    pub(super) key: Option<VerifierKey>,
}

impl Tail {
    /// Reads the facts of a `segment` event.
    pub(super) fn read(facts: &str) -> Option<Self> {
        let size = fact(facts, "tree_size")?.parse().ok()?;
        let edge = Edge::new(size, read_hashes(fact(facts, "tree_edge")?)?)?;
        let key = Some(VerifierKey::parse(fact(facts, "seal_key")?)?);
        Some(Self { edge, key })
    }
}

/// The note in the line of a seal.
pub(super) fn note(line: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        note: String,
    }
    serde_json::from_slice::<Line>(line)
        .ok()
        .map(|line| line.note)
}

/// The key that the seal in `line` announces, unproven.
pub(super) fn announces(line: &[u8]) -> Option<VerifierKey> {
    Note::parse(&note(line)?)?.unproven()?.next
}

impl Sealer {
    /// Goes on sealing the log that was recovered in the directories `log`, primary first; `seat` takes what the anchors have to tell.
    pub(super) fn open(
        log: &[Store],
        recovered: &Recovered,
        sealing: Sealing,
        seat: Option<Arc<Seat>>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, OpenError> {
        let Some(store) = log.first() else {
            return Err(OpenError::io(
                Path::new(""),
                "find",
                io::ErrorKind::NotFound.into(),
            ));
        };
        let failed = |error| OpenError::io(&store.dir, "begin to seal", error);
        let (vault, key) = Vault::recover(store, log, recovered)?;
        let keys = Keys::start(vault).map_err(failed)?;
        let start = |(place, seat)| Anchor::start(place, seat, Arc::clone(metrics));
        let places = sealing.anchors.into_iter();
        let places = places.filter_map(|place| Some((place, seat.clone()?)));
        let anchors: io::Result<_> = places.map(start).collect();
        let edge = recovered.tail.edge.clone();
        Ok(Self::new(
            edge,
            key,
            keys,
            anchors.map_err(failed)?,
            sealing.every,
        ))
    }

    /// Goes on from the tree that `edge` is the edge of, signing with `key`.
    pub(super) fn new(
        edge: Edge,
        key: SigningKey,
        keys: Keys,
        anchors: Vec<Anchor>,
        every: Duration,
    ) -> Self {
        Self {
            edge,
            quiet: 0,
            key,
            next: None,
            keys,
            anchors,
            every,
            sealed: clock::now(),
        }
    }

    /// Takes framed lines that are durable. `marks` gets the place of each, if somebody asks.
    pub(super) fn add(&mut self, framed: &[u8], mut marks: Option<&mut Vec<Mark>>) {
        for line in framed.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let leaf = tree::leaf(line);
            self.edge.push(leaf);
            if let Some(marks) = &mut marks {
                let seq = self.edge.size();
                marks.push(Mark { seq, leaf });
            }
        }
    }

    /// Records in the tree.
    pub(super) fn size(&self) -> u64 {
        self.edge.size()
    }

    /// The identifier of the log.
    pub(super) fn log_id(&self) -> &str {
        self.key.public().log_id()
    }

    /// How long until there is something to seal; `None` while there is nothing.
    pub(super) fn due_in(&self, now: Instant) -> Option<Duration> {
        let since = now.saturating_duration_since(self.sealed);
        (self.edge.size() > self.quiet).then(|| self.every.saturating_sub(since))
    }

    /// Frames a seal over all records, in place of what is in `out`. The `last` of a segment announces the next key.
    pub(super) fn seal(&mut self, last: bool, out: &mut Vec<u8>) -> Made {
        if last && self.next.is_none() {
            self.next = self.keys.next();
        }
        let next = self.next.as_ref().filter(|_| last);
        let announced = next.map(|key| key.public().clone());
        let announces = announced.is_some();
        let (size, root) = (self.edge.size(), self.edge.root());
        let note: Arc<str> = self.key.sign(size, root, announced).into();
        let mut inside = Vec::new();
        Seal { note: &note }.encode(clock::wall_ns(), &mut inside);
        out.clear();
        frame::append(out, size + 1, Some(1), &inside);
        debug_assert!(out.len() as u64 <= SEAL_BYTES_MAX);
        Made { note, announces }
    }

    /// Takes a seal that is durable, as it was framed.
    pub(super) fn sealed(&mut self, made: &Made, line: &[u8]) {
        self.add(line, None);
        self.quiet = self.edge.size();
        self.sealed = clock::now();
        for anchor in &self.anchors {
            anchor.give(&made.note);
        }
        if made.announces
            && let Some(next) = self.next.take()
        {
            self.key = next;
            self.keys.announced(line);
        }
    }

    /// Puts off a seal that could not be written.
    pub(super) fn put_off(&mut self) {
        self.sealed = clock::now();
    }

    /// What the first record of a segment says of the log before it.
    pub(super) fn facts(&self) -> [(&'static str, String); 3] {
        [
            ("tree_size", self.edge.size().to_string()),
            ("tree_edge", show_hashes(self.edge.hashes())),
            ("seal_key", self.key.public().to_string()),
        ]
    }

    /// Puts the last key away, as far as that goes quickly.
    pub(super) fn end(&mut self) {
        self.keys.end();
    }
}

//! Makes proofs from the files of a log, also where earlier segments are gone: each begins with the edge of the tree.
//!
//! It reads from the segment of the record (or of the earlier seal) to the seal that covers it. What it gives out has
//! passed the check that a stranger would make; a log that is damaged there gives none.

use std::io;
use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;

use super::frame::{Kind, Line};
use super::keys;
use super::note::{Checkpoint, Note, VerifierKey};
use super::order::{Placed, order};
use super::proof::{Disproof, Proof};
use super::scan;
use super::seal::{self, Tail};
use super::segment::Store;
use super::tree::{self, Edge, Gather, Hash, Span};
use super::verify::{PublicKey, leads_to, stores};

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("record {0} is not in the segments that are there")]
    Missing(u64),
    #[error(
        "record {0} is not sealed yet; it will be within `audit.seal_every` while the log is written"
    )]
    Unsealed(u64),
    #[error("the note is none of a seal of this log")]
    Note,
    #[error("the log is damaged there; `tollgate audit verify` says where")]
    Damaged,
    #[error(
        "what the log there would prove does not hold: {0}; `tollgate audit verify` says where"
    )]
    Disproved(Disproof),
}

/// What stands between a place in the log and the seal that is to cover it.
struct Stretch<'a> {
    stores: &'a [Store],
    segments: &'a [Placed],
}

/// A seal, and the key that must have signed it.
struct Sealed {
    note: String,
    checkpoint: Checkpoint,
    key: VerifierKey,
}

/// Proves that the log in `dirs` has record `seq`, to somebody who holds `key`: without one, the first key of the log.
pub fn prove(dirs: &[PathBuf], seq: u64, key: Option<&PublicKey>) -> Result<Proof, ProveError> {
    prove_in(&stores(dirs)?, seq, key)
}

pub(super) fn prove_in(
    stores: &[Store],
    seq: u64,
    key: Option<&PublicKey>,
) -> Result<Proof, ProveError> {
    let segments = order(stores)?.segments;
    let stretch = Stretch::from(stores, &segments, seq).ok_or(ProveError::Missing(seq))?;
    let (mut record, mut found) = (None, None);
    stretch.read(|key, line, bytes| {
        if line.seq == seq {
            record = String::from_utf8(bytes.to_vec()).ok();
        }
        if found.is_none() {
            found = sealed(key, line, bytes).filter(|seal| seal.checkpoint.size >= seq);
        }
        found.is_none()
    })?;
    let record = record.ok_or(ProveError::Missing(seq))?;
    let seal = found.ok_or(ProveError::Unsealed(seq))?;
    let index = seq.saturating_sub(1);
    let spans = tree::inclusion(index, seal.checkpoint.size);
    let path = stretch.gather(spans, seal.checkpoint.size)?;
    let from = first_key(stores, key, &seal.key);
    let proof = Proof::Record {
        record,
        index,
        path: shown(&path),
        chain: chain(stores, &from, &seal.key)?,
        checkpoint: seal.note,
    };
    checked(proof, from)
}

/// Proves that the log of the seal whose note is `old` is the beginning of that of the newest seal in `dirs`.
pub fn prove_growth(
    dirs: &[PathBuf],
    old: &str,
    key: Option<&PublicKey>,
) -> Result<Proof, ProveError> {
    prove_growth_in(&stores(dirs)?, old, key)
}

pub(super) fn prove_growth_in(
    stores: &[Store],
    old: &str,
    key: Option<&PublicKey>,
) -> Result<Proof, ProveError> {
    let was = Note::parse(old).and_then(|note| note.unproven());
    let was = was.ok_or(ProveError::Note)?;
    let segments = order(stores)?.segments;
    let at = was.size.max(1);
    let stretch = Stretch::from(stores, &segments, at).ok_or(ProveError::Missing(at))?;
    let mut newest = None;
    stretch.read(|key, line, bytes| {
        newest = sealed(key, line, bytes).or(newest.take());
        true
    })?;
    let seal: Sealed = newest.ok_or(ProveError::Unsealed(at))?;
    if seal.checkpoint.size < was.size {
        return Err(ProveError::Note);
    }
    let spans = tree::consistency(was.size, seal.checkpoint.size);
    let path = stretch.gather(spans, seal.checkpoint.size)?;
    let from = first_key(stores, key, &seal.key);
    let proof = Proof::Growth {
        old: old.to_owned(),
        path: shown(&path),
        chain: chain(stores, &from, &seal.key)?,
        checkpoint: seal.note,
    };
    checked(proof, from)
}

impl<'a> Stretch<'a> {
    /// From the segment that holds record `seq` on.
    fn from(stores: &'a [Store], segments: &'a [Placed], seq: u64) -> Option<Self> {
        let behind = segments.partition_point(|segment| segment.name.first <= seq);
        let segments = segments.get(behind.checked_sub(1)?..)?;
        Some(Self { stores, segments })
    }

    /// Gives every line to `each`, with the key in force, until that has enough.
    fn read(
        &self,
        mut each: impl FnMut(Option<&VerifierKey>, &Line<'_>, &[u8]) -> bool,
    ) -> Result<(), ProveError> {
        let (mut key, mut more) = (None, true);
        for segment in self.segments {
            let Some(store) = self.stores.get(segment.at) else {
                continue;
            };
            scan::scan(store, segment.name, segment.limit, |line, bytes, _| {
                if let Kind::Event("segment", facts) = line.kind {
                    key = Tail::read(facts).and_then(|tail| tail.key);
                }
                more = more && each(key.as_ref(), line, bytes);
            })?;
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// The hashes of `spans` in the tree of the log's first `size` records.
    fn gather(&self, spans: Vec<Span>, size: u64) -> Result<Vec<Hash>, ProveError> {
        let (mut gather, mut edge) = (None, None);
        self.read(|_, line, bytes| {
            if let Kind::Event("segment", facts) = line.kind
                && edge.is_none()
            {
                let told = Tail::read(facts).map(|tail| tail.edge);
                gather = told
                    .as_ref()
                    .and_then(|edge| Gather::new(spans.clone(), edge));
                edge = told.map(|edge: Edge| edge.size());
            }
            let wanted = line.seq <= size;
            if let Some(gather) = gather.as_mut().filter(|_| wanted) {
                gather.push(line.seq.saturating_sub(1), tree::leaf(bytes));
            }
            wanted
        })?;
        gather.and_then(Gather::finish).ok_or(ProveError::Damaged)
    }
}

fn sealed(key: Option<&VerifierKey>, line: &Line<'_>, bytes: &[u8]) -> Option<Sealed> {
    if line.kind != Kind::Seal {
        return None;
    }
    let (note, key) = (seal::note(bytes)?, key?.clone());
    let checkpoint = Note::parse(&note)?.open(&key)?;
    Some(Sealed {
        note,
        checkpoint,
        key,
    })
}

/// The key that the proof begins with: the one that was given, the first of the log, or the one that signed.
fn first_key(stores: &[Store], given: Option<&PublicKey>, signer: &VerifierKey) -> VerifierKey {
    let kept = || {
        stores
            .iter()
            .find_map(keys::first)
            .filter(|key| key.name() == signer.name())
    };
    given
        .map(|key| key.0.clone())
        .or_else(kept)
        .unwrap_or_else(|| signer.clone())
}

fn chain(
    stores: &[Store],
    from: &VerifierKey,
    to: &VerifierKey,
) -> Result<Vec<String>, ProveError> {
    let mut chains = stores.iter().filter_map(|store| leads_to(store, from, to));
    chains.next().ok_or(ProveError::Disproved(Disproof::Chain))
}

fn shown(path: &[Hash]) -> Vec<String> {
    path.iter().map(|hash| BASE64.encode(hash)).collect()
}

fn checked(proof: Proof, key: VerifierKey) -> Result<Proof, ProveError> {
    proof
        .check(&PublicKey(key))
        .map_err(ProveError::Disproved)?;
    Ok(proof)
}

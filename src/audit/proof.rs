//! A proof about the log, for somebody who must not or cannot see the log: small, and checked with a public key alone.
//!
//! A proof of a *record* holds that record and no other: its place, the hashes beside its way to the root, and the seal
//! with that root. A proof of *growth* holds two seals and the hashes that show that the log of the first is the
//! beginning of the second's. Both hold the seals that announce each key between the verifier's and the signer's, and
//! only those. The file is JSON; `docs/verify.md` tells how to check one without this program.

use serde::{Deserialize, Serialize};

use super::frame;
use super::note::{self, Checkpoint, Note, VerifierKey};
use super::tree::{self, Hash};
use super::verify::PublicKey;

/// A proof, as its file says it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "proof")]
pub enum Proof {
    /// That the log has this record.
    #[serde(rename = "tollgate/record/1")]
    Record {
        /// The line exactly as stored, without its line feed.
        record: String,
        /// Its place in the tree: its `seq` less one.
        index: u64,
        /// Hashes in Base64, the leaf's neighbour first.
        path: Vec<String>,
        /// The note of a seal that covers it.
        checkpoint: String,
        /// Notes of the seals that lead from the verifier's key to the one that signed `checkpoint`.
        chain: Vec<String>,
    },
    /// That the log of one seal is the beginning of that of another.
    #[serde(rename = "tollgate/growth/1")]
    Growth {
        old: String,
        checkpoint: String,
        path: Vec<String>,
        chain: Vec<String>,
    },
}

/// What a proof proves.
#[derive(Debug)]
pub enum Proven {
    /// The log with this identifier has the record numbered `seq`; a seal over `size` records says so.
    Record { log_id: String, seq: u64, size: u64 },
    /// The log's first `old` records are those that it had when it was sealed so; it has `size` now.
    Growth { log_id: String, old: u64, size: u64 },
}

/// Why a proof proves nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Disproof {
    #[error(
        "its chain of seals does not lead from the key that was given to the one that signed the seal"
    )]
    Chain,
    #[error(
        "the record does not lead to the root that the seal signs: it is another record, or at another place"
    )]
    Record,
    #[error("the earlier seal is none of this log")]
    Old,
    #[error(
        "the log of the earlier seal is not the beginning of the later one's: it was rewritten"
    )]
    Growth,
}

impl Proof {
    /// Checks it, trusting `key` alone.
    pub fn check(&self, key: &PublicKey) -> Result<Proven, Disproof> {
        let log_id = key.0.log_id().to_owned();
        match self {
            Self::Record {
                record,
                index,
                path,
                checkpoint,
                chain,
            } => {
                let seal = sealed(checkpoint, chain, &key.0, |_| {}).ok_or(Disproof::Chain)?;
                let path = hashes(path).ok_or(Disproof::Record)?;
                let leaf = tree::leaf(record.as_bytes());
                let seq = frame::check(record.as_bytes()).map_or(0, |line| line.seq);
                if tree::root_of(leaf, *index, seal.size, &path) != Some(seal.root)
                    || index.checked_add(1) != Some(seq)
                {
                    return Err(Disproof::Record);
                }
                let size = seal.size;
                Ok(Proven::Record { log_id, seq, size })
            }
            Self::Growth {
                old,
                checkpoint,
                path,
                chain,
            } => {
                let mut was = None;
                let seal = sealed(checkpoint, chain, &key.0, |key| {
                    let opened = Note::parse(old).and_then(|note| note.open(key));
                    was = was.take().or(opened);
                })
                .ok_or(Disproof::Chain)?;
                let was = was.ok_or(Disproof::Old)?;
                let path = hashes(path).ok_or(Disproof::Growth)?;
                if !tree::is_consistent((was.size, was.root), (seal.size, seal.root), &path) {
                    return Err(Disproof::Growth);
                }
                Ok(Proven::Growth {
                    log_id,
                    old: was.size,
                    size: seal.size,
                })
            }
        }
    }

    /// The record that it is about.
    pub fn record(&self) -> Option<&str> {
        match self {
            Self::Record { record, .. } => Some(record),
            Self::Growth { .. } => None,
        }
    }
}

/// What `checkpoint` says, if the seals of `chain` lead from `key` to the key that signed it. `each` hears every key on
/// the way.
fn sealed(
    checkpoint: &str,
    chain: &[String],
    key: &VerifierKey,
    mut each: impl FnMut(&VerifierKey),
) -> Option<Checkpoint> {
    let mut key = key.clone();
    each(&key);
    for note in chain {
        key = Note::parse(note)?.open(&key)?.next?;
        each(&key);
    }
    Note::parse(checkpoint)?.open(&key)
}

fn hashes(texts: &[String]) -> Option<Vec<Hash>> {
    texts.iter().map(|text| note::read_hash(text)).collect()
}

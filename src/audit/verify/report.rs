//! What a log holds, and where it is not as it must be.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Serialize;

use super::PathAt;
use crate::clock::Id;

/// Problems that are told one by one; the others are counted.
const PROBLEMS_MAX: usize = 100;
/// Open entries that are named.
const OPEN_NAMED_MAX: usize = 20;

/// What a log holds, and the places where it is not as it must be.
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
    /// The oldest of them.
    pub open_entries: Vec<OpenEntry>,
    /// Terminal records of entries that began in segments which are no longer there.
    pub begun_earlier: u64,
    /// The last record that the log itself says was removed on purpose.
    pub pruned_seq: u64,
    /// How often no record could be made durable for longer than anybody waits, and for how long in all.
    pub degraded: u64,
    pub degraded_ms: u64,
    /// Entries that were let through without a durable record meanwhile.
    pub unrecorded: u64,
    /// Segments whose end was written again in another one: a device had failed or hung.
    pub superseded: u64,
    pub log_id: String,
    /// The public key of the first record that is there, which the files themselves name.
    pub key: String,
    /// Whether the seals follow from a key that was given. Without one the files could have been made by anybody.
    pub key_given: bool,
    pub seals: u64,
    /// The last record that a seal covers.
    pub sealed_seq: u64,
    /// Records behind it.
    pub unsealed: u64,
    pub anchors: Vec<AnchorReport>,
    /// Where the write begins that was under way when the last segment was read, or its process ended.
    pub unfinished: Option<Problem>,
    /// The first place where the log is not as it must be.
    pub problem: Option<Problem>,
    /// The further ones.
    pub more_problems: Vec<Problem>,
    pub problem_count: u64,
    /// Whether the segment that was read last is.
    #[serde(skip)]
    pub(super) is_damaged: bool,
}

/// A place in the log, and what is the matter there.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1.
    pub line: u64,
    /// In bytes, from the beginning of the file.
    pub offset: u64,
    /// The record that is there, or should be.
    pub seq: u64,
    pub what: String,
}

/// An entry that has no end.
#[derive(Clone, Debug, Serialize)]
pub struct OpenEntry {
    pub id: String,
    pub seq: u64,
    pub file: PathBuf,
    pub line: u64,
    pub offset: u64,
}

/// What the notes of one anchor say of the log.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AnchorReport {
    pub file: PathBuf,
    /// Notes of this log.
    pub notes: u64,
    /// Those that the log here was held against, and agrees with.
    pub matched: u64,
    /// Those about records that are not here any more.
    pub before_first: u64,
    /// Notes of other logs, and pieces that are no note.
    pub passed_over: u64,
    /// The last record that a matching note covers.
    pub last_seq: u64,
}

impl Report {
    pub(super) fn add(&mut self, problem: Problem) {
        self.problem_count += 1;
        if self.problem.is_none() {
            self.problem = Some(problem);
        } else if self.more_problems.len() + 1 < PROBLEMS_MAX {
            self.more_problems.push(problem);
        }
    }

    pub(super) fn list_open(&mut self, open: &HashMap<Id, (u64, PathAt)>, files: &[PathBuf]) {
        self.open = open.len() as u64;
        let mut oldest: Vec<_> = open.iter().map(|(id, at)| (at.0, *id, at.1)).collect();
        oldest.sort_unstable_by_key(|(seq, ..)| *seq);
        oldest.truncate(OPEN_NAMED_MAX);
        self.open_entries = oldest
            .into_iter()
            .map(|(seq, id, (file, place))| OpenEntry {
                id: id.to_string(),
                seq,
                file: files.get(file).cloned().unwrap_or_default(),
                line: place.line,
                offset: place.offset,
            })
            .collect();
    }
}

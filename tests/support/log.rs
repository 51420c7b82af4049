//! The audit log as an auditor finds it: JSON Lines in closed and open segments.
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::upstream::Upstream;

/// Every record of a state directory, in order of `seq`.
pub(crate) struct Log {
    pub(crate) records: Vec<Value>,
}

/// The files of a log directory, by the number of their first record.
fn segments(audit: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(audit).unwrap_or_else(|e| panic!("{}: {e}", audit.display()));
    let mut segments: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|e| e == "jsonl" || e == "open")
        })
        .map(|path| {
            let stem = path.file_stem().and_then(|s| s.to_str()).expect("ASCII");
            (stem.parse().expect("a number"), path)
        })
        .collect();
    segments.sort_unstable();
    segments
}

/// The content of a segment, also of one that is being closed at this moment.
fn content(path: &Path) -> Vec<u8> {
    match fs::read(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => fs::read(path.with_extension("jsonl")),
        read => read,
    }
    .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The identifiers that have a BEFORE record on disk now, in the last `files` segments of this state directory. Looks
/// at no more of a line than it must: a test asks again and again while requests are under way.
pub(crate) fn admitted_now(state: &Path, files: usize) -> HashSet<String> {
    const BEFORE: &str = "\"kind\":\"before\",\"id\":\"";
    let segments = segments(&state.join("audit"));
    let mut found = HashSet::new();
    for (_, path) in segments.iter().rev().take(files) {
        let bytes = content(path);
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let text = String::from_utf8_lossy(line);
            let whole = text.ends_with("\"}\n");
            if let Some((_, rest)) = text.split_once(BEFORE).filter(|_| whole) {
                found.extend(rest.split('"').next().map(str::to_owned));
            }
        }
    }
    found
}

impl Log {
    /// Reads what is there now; the last line of an open segment may be half written while the process runs.
    pub(crate) fn read(state: &Path) -> Self {
        let segments = segments(&state.join("audit"));
        let mut records = Vec::new();
        for (at, (_, path)) in segments.iter().enumerate() {
            // What a segment holds from the first number of the next one on was written there again.
            let limit = segments.get(at + 1).map_or(u64::MAX, |(first, _)| *first);
            let closed = path.extension().is_some_and(|e| e == "jsonl");
            let bytes = content(path);
            assert!(
                !closed || !bytes.contains(&0),
                "{}: NUL in a closed segment",
                path.display()
            );
            let written = bytes.split(|b| *b == 0).next().unwrap_or_default();
            for line in written.split_inclusive(|b| *b == b'\n') {
                match serde_json::from_slice(line) {
                    Ok(record) if seq(&record) < limit => {
                        assert_checksum(line);
                        records.push(record);
                    }
                    Ok(_) => {}
                    Err(e) => assert!(
                        !closed && (!line.ends_with(b"\n") || limit != u64::MAX),
                        "{}: {e}: {}",
                        path.display(),
                        String::from_utf8_lossy(line)
                    ),
                }
            }
        }
        records.sort_by_key(seq);
        Self { records }
    }

    pub(crate) fn kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.records.iter().filter(move |r| r["kind"] == kind)
    }

    /// The identifiers of all BEFORE records.
    pub(crate) fn admitted(&self) -> BTreeSet<&str> {
        self.kind("before").map(id).collect()
    }

    /// The BEFORE record of an entry.
    pub(crate) fn before(&self, wanted: &str) -> &Value {
        self.kind("before")
            .find(|r| id(r) == wanted)
            .unwrap_or_else(|| panic!("no BEFORE record of {wanted}"))
    }

    /// The terminal record of an entry.
    pub(crate) fn after(&self, wanted: &str) -> Option<&Value> {
        self.kind("after").find(|r| id(r) == wanted)
    }

    /// Fails unless the log is whole: no gap, each entry with one end, and whoever reached the upstream is in it.
    pub(crate) fn assert_whole(&self, upstream: &Upstream) {
        self.assert_gapless();
        self.assert_paired();
        let admitted = self.admitted();
        let seen = upstream.ids();
        let lost: Vec<_> = seen
            .iter()
            .filter(|id| !admitted.contains(id.as_str()))
            .collect();
        assert!(
            lost.is_empty(),
            "{} reached the upstream unlogged: {lost:?}",
            lost.len()
        );
    }

    /// Fails if a `seq` is missing or given twice.
    pub(crate) fn assert_gapless(&self) {
        let first = self.records.first().map_or(0, seq);
        for (expected, record) in (first..).zip(&self.records) {
            assert_eq!(seq(record), expected, "seq has a gap or a double: {record}");
        }
    }

    /// Fails unless every BEFORE has exactly one AFTER, which stands behind it, and no AFTER is without its BEFORE.
    pub(crate) fn assert_paired(&self) {
        let mut open = BTreeMap::new();
        for record in &self.records {
            match record["kind"].as_str() {
                Some("before") => {
                    let double = open.insert(id(record), 0);
                    assert!(
                        double.is_none(),
                        "two BEFORE records of one entry: {record}"
                    );
                }
                Some("after") => match open.get_mut(id(record)) {
                    Some(0) => *open.get_mut(id(record)).expect("just found") = 1,
                    Some(_) => panic!("two terminal records of one entry: {record}"),
                    None => panic!("a terminal record without its BEFORE: {record}"),
                },
                _ => {}
            }
        }
        let without: Vec<_> = open
            .iter()
            .filter(|(_, ends)| **ends == 0)
            .map(|(id, _)| id)
            .collect();
        assert!(
            without.is_empty(),
            "BEFORE records without a terminal one: {without:?}"
        );
    }
}

/// The last field is the CRC32C of everything before it, as stored.
fn assert_checksum(line: &[u8]) {
    let text = std::str::from_utf8(line).expect("UTF-8").trim_end();
    let (body, rest) = text
        .rsplit_once(",\"crc\":\"")
        .expect("a checksum at the end");
    let stored = rest
        .strip_suffix("\"}")
        .expect("nothing behind the checksum");
    assert_eq!(
        stored,
        format!("{:08x}", crc32c::crc32c(body.as_bytes())),
        "{text}"
    );
}

fn seq(record: &Value) -> u64 {
    record["seq"].as_u64().expect("seq")
}

fn id(record: &Value) -> &str {
    record["id"].as_str().expect("id")
}

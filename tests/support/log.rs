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

/// One file of a log.
struct Segment {
    first: u64,
    path: PathBuf,
    /// What it holds from this number on does not count: the log went on elsewhere, where the same lines stand again.
    limit: u64,
}

/// The files of a log that lies in these directories, in order. Of two that begin with the same number the longer one
/// counts: the other could not be begun in time.
fn segments(dirs: &[PathBuf]) -> Vec<Segment> {
    let names = |dir: &PathBuf| {
        let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        entries
            .map(|entry| entry.expect("an entry").path())
            .collect::<Vec<_>>()
    };
    let mut paths: Vec<_> = dirs.iter().flat_map(names).collect();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|e| e == "jsonl" || e == "open")
    });
    let first = |path: &PathBuf| -> u64 {
        let stem = path.file_stem().and_then(|s| s.to_str()).expect("ASCII");
        stem.parse().expect("a number")
    };
    paths.sort_by_cached_key(first);
    let mut segments: Vec<Segment> = Vec::new();
    for same in paths.chunk_by(|one, other| first(one) == first(other)) {
        let lines = |path: &&PathBuf| match same.len() {
            1 => 0,
            _ => memchr::memchr_iter(b'\n', &content(path)).count(),
        };
        let path = same.iter().max_by_key(lines).expect("one at least");
        if let Some(before) = segments.last_mut() {
            before.limit = first(path);
        }
        segments.push(Segment {
            first: first(path),
            path: path.clone(),
            limit: u64::MAX,
        });
    }
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

/// The identifiers that have a BEFORE record on disk now, in the last `files` segments of the log in these directories.
/// Looks at no more of a line than it must: a test asks again and again while requests are under way.
pub(crate) fn admitted_now(dirs: &[PathBuf], files: usize) -> HashSet<String> {
    const BEFORE: &str = "\"kind\":\"before\",\"id\":\"";
    let mut found = HashSet::new();
    for segment in segments(dirs).iter().rev().take(files) {
        let bytes = content(&segment.path);
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let text = String::from_utf8_lossy(line);
            let counts = || {
                let rest = text.trim_start_matches('\0').strip_prefix("{\"seq\":")?;
                let seq: u64 = rest.split_once(',')?.0.parse().ok()?;
                (text.ends_with("\"}\n") && seq < segment.limit).then_some(())
            };
            if let Some((_, rest)) = text.split_once(BEFORE).filter(|_| counts().is_some()) {
                found.extend(rest.split('"').next().map(str::to_owned));
            }
        }
    }
    found
}

impl Log {
    /// Reads what is there now; the last line of an open segment may be half written while the process runs.
    pub(crate) fn read(state: &Path) -> Self {
        Self::read_in(&[state.join("audit")])
    }

    /// The same of a log that lies in several directories.
    pub(crate) fn read_in(dirs: &[PathBuf]) -> Self {
        let mut records = Vec::new();
        for Segment { first, path, limit } in segments(dirs) {
            let closed = path.extension().is_some_and(|e| e == "jsonl");
            let bytes = content(&path);
            assert!(
                !closed || !bytes.contains(&0),
                "{}: NUL in a closed segment",
                path.display()
            );
            let written = bytes.split(|b| *b == 0).next().unwrap_or_default();
            for (line, expected) in written.split_inclusive(|b| *b == b'\n').zip(first..limit) {
                match serde_json::from_slice(line) {
                    Ok(record) => {
                        assert_checksum(line);
                        assert_eq!(seq(&record), expected, "{}: {record}", path.display());
                        records.push(record);
                    }
                    Err(e) => assert!(
                        !closed && !line.ends_with(b"\n"),
                        "{}: {e}: {}",
                        path.display(),
                        String::from_utf8_lossy(line)
                    ),
                }
            }
        }
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

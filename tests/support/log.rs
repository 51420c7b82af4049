//! The audit log as an auditor finds it: JSON Lines in closed and open segments.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Every record of a state directory, in order of `seq`.
pub(crate) struct Log {
    pub(crate) records: Vec<Value>,
}

impl Log {
    /// Reads what is there now; the last line of an open segment may be half written while the process runs.
    pub(crate) fn read(state: &Path) -> Self {
        let mut records = Vec::new();
        for entry in fs::read_dir(state.join("audit")).expect("an audit directory") {
            let path = entry.expect("an entry").path();
            let closed = match path.extension().and_then(|e| e.to_str()) {
                Some("jsonl") => true,
                Some("open") => false,
                _ => continue,
            };
            let bytes = fs::read(&path).expect("a readable segment");
            assert!(
                !closed || !bytes.contains(&0),
                "{}: NUL in a closed segment",
                path.display()
            );
            let written = bytes.split(|b| *b == 0).next().unwrap_or_default();
            for line in written.split_inclusive(|b| *b == b'\n') {
                match serde_json::from_slice(line) {
                    Ok(record) => {
                        assert_checksum(line);
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

//! Follows the audit log of the demo: every record, as it becomes durable.
//!
//! It reads what the files hold and nothing else, so what it shows is what a reader of the log would find.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A place in the log.
#[derive(Default)]
pub(super) struct Tail {
    /// Number of the segment, as its name has it.
    segment: String,
    offset: u64,
}

/// Read at one look; the rest comes with the next.
const LOOK_BYTES_MAX: u64 = 1 << 20;

impl Tail {
    /// The whole lines that have come since the last look.
    pub(super) fn read(&mut self, log: &Path) -> io::Result<Vec<u8>> {
        let mut lines = Vec::new();
        for (number, path) in segments(log)? {
            if number < self.segment {
                continue;
            }
            if number > self.segment {
                (self.segment, self.offset) = (number, 0);
            }
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(self.offset))?;
            let mut new = Vec::new();
            file.take(LOOK_BYTES_MAX).read_to_end(&mut new)?;
            // Behind the last record stand zeros, made ahead.
            let end = new.iter().position(|byte| *byte == 0).unwrap_or(new.len());
            let whole = new
                .iter()
                .take(end)
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            lines.extend(new.iter().take(whole));
            self.offset += whole as u64;
        }
        Ok(lines)
    }
}

/// Numbers and paths, oldest first.
fn segments(log: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(log)? {
        let path = entry?.path();
        let kind = path.extension().and_then(|e| e.to_str());
        if let (Some("open" | "jsonl"), Some(stem)) = (kind, path.file_stem()) {
            found.push((stem.to_string_lossy().into_owned(), path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

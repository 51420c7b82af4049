//! `[[audit.anchor]]` and `[audit.receipt]`: how others can check the log.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::raw::{Table, Value};
use super::typed::{Anchor, Secret};

const ANCHORS_MAX: usize = 8;
/// 0 to 2 are standard input, output and error.
const DESCRIPTORS: std::ops::RangeInclusive<u32> = 3..=1023;

const KEY_BYTES_MIN: usize = 32;
const KEY_BYTES_MAX: usize = 1024;

/// `[audit.receipt]`
pub(super) fn receipt_key(audit: &Table<'_>, folder: &Path) -> Option<Secret> {
    let table = audit.table("receipt")?;
    let Some(value) = table.value("key_file") else {
        table.missing(
            "key_file",
            r#"add `key_file = "FILE"`, which the upstream has too"#,
        );
        return None;
    };
    let path = folder.join(value.text()?);
    let mut bytes = Vec::new();
    let read = std::fs::File::open(&path)
        .and_then(|file| file.take(2 * KEY_BYTES_MAX as u64).read_to_end(&mut bytes));
    if let Err(error) = read {
        let problem = format!("cannot read {}: {error}", path.display());
        value.wrong(problem, "check the path and its permissions");
        return None;
    }
    let key = bytes.trim_ascii();
    if !(KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&key.len()) {
        let problem = format!(
            "{} does not hold a key of {KEY_BYTES_MIN} bytes or more",
            path.display()
        );
        value.wrong(problem, "make one with `openssl rand -hex 32`");
        return None;
    }
    Some(Secret(key.into()))
}

/// `[[audit.anchor]]`
pub(super) fn anchors(audit: &Table<'_>) -> Vec<Anchor> {
    let list = audit.list("anchor");
    if let Some(value) = list.get(ANCHORS_MAX) {
        let mend = format!("keep at most {ANCHORS_MAX}");
        value.wrong(format!("{} anchors", list.len()), mend);
    }
    let mut anchors = Vec::new();
    for value in &list {
        let Some(anchor) = value.table().and_then(|table| anchor(&table, value)) else {
            continue;
        };
        if anchors.contains(&anchor) {
            value.wrong(format!("{anchor} is named twice"), "remove one");
        } else {
            anchors.push(anchor);
        }
    }
    anchors
}

fn anchor(table: &Table<'_>, value: &Value<'_>) -> Option<Anchor> {
    let (file, number) = (table.value("file"), table.value("fd"));
    match (file, number) {
        (Some(file), None) => Some(Anchor::File(file.parsed(absolute)?)),
        (None, Some(number)) => number.integer(DESCRIPTORS).map(Anchor::Descriptor),
        _ => {
            value.wrong(
                "an anchor is one file or one descriptor",
                r#"write `file = "/mnt/elsewhere/tollgate.anchor"`, or `fd = 3`"#,
            );
            None
        }
    }
}

fn absolute(text: &str) -> Result<PathBuf, (String, String)> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        return Ok(path);
    }
    let mend = r#"write the whole path, as in "/mnt/elsewhere/tollgate.anchor""#.to_owned();
    Err((format!("{text:?} is not an absolute path"), mend))
}

//! `[[audit.anchor]]` and `[audit.receipt]`: how others can check the log.

use std::path::PathBuf;

use super::raw::{Table, Value};
use super::typed::Anchor;

const ANCHORS_MAX: usize = 8;
/// 0 to 2 are standard input, output and error.
const DESCRIPTORS: std::ops::RangeInclusive<u32> = 3..=1023;

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

//! Named sets of networks: `[sets.X]`, the files they name, and `@X` wherever a list of networks is expected.
//!
//! An entry with `expires` is in force through that day (UTC) and left out afterwards; what it was for stays in the
//! file. A set is expanded where it is used, so that nothing in force refers to a name. No URL is fetched.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;

use ipnet::IpNet;

use crate::clock;

use super::raw::{Table, Value};
use super::units;

/// Bytes of a file of networks.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Entries of one set, or of one list.
const ENTRIES_MAX: usize = 1_000_000;
/// Lines of one file of networks that are reported as wrong, one by one.
const BAD_LINES_MAX: usize = 10;

/// All named sets.
#[derive(Debug, Default)]
pub(super) struct Sets {
    named: BTreeMap<String, Vec<IpNet>>,
    used: RefCell<BTreeSet<String>>,
    /// When the next entry expires, in nanoseconds since 1970.
    pub(super) next_expiry_ns: Option<u64>,
}

impl Sets {
    /// Reads `[sets]`; files are relative to `folder`.
    pub(super) fn read(root: &Table<'_>, folder: &Path) -> Self {
        let mut sets = Self::default();
        let Some(table) = root.table("sets") else {
            return sets;
        };
        for (name, value) in table.named() {
            if let Some(set) = value.table() {
                let nets = sets.read_one(&set, folder);
                sets.named.insert(name.to_owned(), nets);
            }
        }
        sets
    }

    fn read_one(&mut self, set: &Table<'_>, folder: &Path) -> Vec<IpNet> {
        let fetch = "fetch the list into a `file` with a timer, and reload";
        set.not_yet("url", fetch);
        set.not_yet("refresh", fetch);
        let entries = set.value("entries");
        let file = set.value("file");
        match (&entries, &file) {
            (None, None) if set.value("url").is_none() => {
                let mend = r#"add `entries = ["203.0.113.0/24"]` or `file = "FILE"`"#;
                set.wrong("the set says neither `entries` nor `file`", mend);
            }
            (Some(_), Some(file)) => file.wrong(
                "both `entries` and `file`",
                "make two sets and name both where they are used",
            ),
            _ => {}
        }
        let mut nets = Vec::new();
        for entry in entries.iter().flat_map(Value::list) {
            nets.extend(self.entry(&entry));
        }
        if let Some(file) = file {
            nets.extend(from_file(&file, folder));
        }
        bounded(set, nets)
    }

    fn entry(&mut self, entry: &Value<'_>) -> Option<IpNet> {
        if !entry.is_table() {
            return entry.parsed(units::net);
        }
        let table = entry.table()?;
        let cidr = table.value("cidr");
        if cidr.is_none() {
            table.missing("cidr", r#"add `cidr = "203.0.113.0/24"`"#);
        }
        let net = cidr.and_then(|v| v.parsed(units::net));
        let owner = table.value("owner").and_then(|v| v.text());
        table.value("note").and_then(|v| v.text());
        if let Some(value) = table.value("expires") {
            let end = expiry_ns(&value)?;
            if end <= clock::wall_ns() {
                let whose = owner.map_or_else(String::new, |o| format!(" of {o:?}"));
                let problem = format!("this entry{whose} has expired and is left out");
                value.warn(problem, "remove the entry, or give it a later date");
                return None;
            }
            self.next_expiry_ns = Some(self.next_expiry_ns.map_or(end, |next| next.min(end)));
        }
        net
    }

    /// The networks of a list of CIDRs, addresses and `@name`s.
    pub(super) fn nets(&self, list: &[Value<'_>]) -> Vec<IpNet> {
        let mut nets = Vec::new();
        for item in list {
            if item.is_table() {
                let mend = "write the network as text; owner, note and expiry belong in `[sets]`";
                item.wrong("expected text, found table", mend);
                continue;
            }
            let Some(text) = item.text() else { continue };
            match text.strip_prefix('@') {
                None => nets.extend(item.parsed(units::net)),
                Some(name) => match self.named.get(name) {
                    Some(set) => {
                        nets.extend_from_slice(set);
                        self.used.borrow_mut().insert(name.to_owned());
                    }
                    None => self.unknown(item, name),
                },
            }
        }
        nets
    }

    /// The sets that no list has named so far.
    pub(super) fn unused(&self) -> impl Iterator<Item = &String> {
        let used = self.used.borrow();
        self.named.keys().filter(move |name| !used.contains(*name))
    }

    fn unknown(&self, item: &Value<'_>, name: &str) {
        let known: Vec<_> = self.named.keys().map(String::as_str).collect();
        let mend = match units::nearest(name, &known) {
            Some(near) => format!("did you mean `@{near}`?"),
            None => format!("add `[sets.{name}]` with its `entries`"),
        };
        item.wrong(format!("no set is called `{name}`"), mend);
    }

    /// The networks of `name` in `table`; `None` if it is absent. An empty list is refused: it would let nobody in.
    pub(super) fn allow(&self, table: &Table<'_>, name: &'static str) -> Option<Vec<IpNet>> {
        let value = table.value(name)?;
        let list = value.list();
        if list.is_empty() {
            let mend = format!("name who is let in, or leave `{name}` out to let everyone in");
            value.wrong("an empty list lets nobody in", mend);
        }
        let nets = self.nets(&list);
        if nets.is_empty() && !list.is_empty() {
            let mend = "add entries to the sets that it names";
            value.warn("nothing is left of this list: nobody is let in", mend);
        }
        Some(nets)
    }

    /// The networks of `name` in `table`, none if it is absent; `/0` is refused, since it would mean everybody.
    pub(super) fn some(&self, table: &Table<'_>, name: &'static str, why: &str) -> Vec<IpNet> {
        let mut nets = Vec::new();
        for item in table.list(name) {
            let part = self.nets(std::slice::from_ref(&item));
            if part.iter().any(|net| net.prefix_len() == 0) {
                item.wrong("everybody is on this list", why);
            }
            nets.extend(part);
        }
        nets
    }
}

fn bounded(set: &Table<'_>, nets: Vec<IpNet>) -> Vec<IpNet> {
    if nets.len() > ENTRIES_MAX {
        let problem = format!("{} entries, more than {ENTRIES_MAX}", nets.len());
        set.wrong(problem, "join networks, or split the set");
    }
    nets
}

/// The end of the day that `expires` names.
fn expiry_ns(value: &Value<'_>) -> Option<u64> {
    let text = value.date()?;
    let end = text
        .parse::<jiff::civil::Date>()
        .and_then(|day| day.tomorrow())
        .and_then(|next| jiff::tz::TimeZone::UTC.to_timestamp(next.at(0, 0, 0, 0)));
    match end {
        Ok(end) => Some(u64::try_from(end.as_nanosecond().max(0)).unwrap_or(u64::MAX)),
        Err(_) => {
            value.wrong(
                "not a date",
                r#"write year, month and day, as in "2027-01-31""#,
            );
            None
        }
    }
}

/// One CIDR a line; `#` begins a comment.
fn from_file(value: &Value<'_>, folder: &Path) -> Vec<IpNet> {
    let Some(name) = value.text() else {
        return Vec::new();
    };
    let path = folder.join(name);
    let mut text = String::new();
    let read = std::fs::File::open(&path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    match read {
        Err(error) => {
            let problem = format!("cannot read {}: {error}", path.display());
            value.wrong(problem, "check the path and its permissions");
        }
        Ok(bytes) if bytes as u64 == FILE_BYTES_MAX => value.wrong(
            format!("{} is too large", path.display()),
            format!("keep it below {}", units::show_size(&FILE_BYTES_MAX)),
        ),
        Ok(_) => return lines(value, &path, &text),
    }
    Vec::new()
}

fn lines(value: &Value<'_>, path: &Path, text: &str) -> Vec<IpNet> {
    let (mut nets, mut bad) = (Vec::new(), 0);
    for (at, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        match units::net(entry) {
            Ok(net) => nets.push(net),
            Err((problem, mend)) => {
                bad += 1;
                if bad <= BAD_LINES_MAX {
                    let line = at + 1;
                    value.wrong(format!("{}:{line}: {problem}", path.display()), mend);
                }
            }
        }
    }
    if bad > BAD_LINES_MAX {
        let problem = format!("{}: {bad} lines are wrong", path.display());
        value.wrong(problem, "write one CIDR a line; # begins a comment");
    }
    nets
}

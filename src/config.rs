//! From the file to its meaning: `raw` is what the file says, `typed` what that means.
//!
//! Reading finds every mistake of one run at once, each with its place and the way to mend it, and gives either a
//! whole configuration or none. It reads the files that the configuration names for its own use (sets, passwords);
//! certificates are read when it is compiled. Nothing here binds, connects or writes.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;

use toml::de::DeTable;

mod acme;
mod client_auth;
mod egress;
mod gate;
mod general;
mod ingress;
mod notes;
mod raw;
mod remark;
mod seals;
mod sets;
mod tickets;
mod tls;
mod transparent;
pub mod typed;
mod units;

pub use gate::{HASH_MARK, PASSWORD_BYTES_MAX};
pub use remark::{Mistakes, REMARKS_MAX, Remark, Source, Warning};

use notes::Notes;
use raw::Table;
use sets::Sets;
use typed::{Config, OnFailure};

/// Bytes of the configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;
const ON_FAILURE: [(&str, OnFailure); 2] = [
    ("refuse", OnFailure::Refuse),
    ("continue", OnFailure::Continue),
];

/// Reads the configuration at `path`, and the sets and passwords that it names.
///
/// # Errors
/// Every mistake that was found. While the text is not TOML only that is reported, since what follows such a mistake
/// cannot be read reliably.
pub fn load(path: &Path) -> Result<(Config, Vec<Warning>), Mistakes> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        let mend = "check the path and its permissions, or name another file with --config";
        return Err(Remark::on_file(
            path,
            format!("cannot read the configuration: {error}"),
            mend,
        )
        .into());
    }
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let mend = "keep it below 1MiB; move long lists of networks to files of their own";
        return Err(Remark::on_file(path, "the configuration is too large", mend).into());
    }
    match String::from_utf8(bytes) {
        Ok(text) => parse(path, text),
        Err(_) => {
            let mend = "save the file as UTF-8";
            Err(Remark::on_file(path, "the configuration is not UTF-8", mend).into())
        }
    }
}

/// Reads `text` as if it stood in the file at `path`.
///
/// # Errors
/// As [`load`].
pub fn parse(path: &Path, text: String) -> Result<(Config, Vec<Warning>), Mistakes> {
    let mut source = Source::new(path, text);
    let (tree, errors) = DeTable::parse_recoverable(source.text());
    let broken: Vec<_> = errors
        .iter()
        .take(REMARKS_MAX)
        .map(|e| broken(&source, e))
        .collect();
    if let Some(mistakes) = Mistakes::new(broken) {
        return Err(mistakes);
    }
    let notes = Notes::new(&source);
    let folder = path.parent().unwrap_or(Path::new(""));
    let draft = whole(&Table::root(&notes, tree.get_ref()), folder);
    let (warnings, places) = notes.finish()?;
    drop(tree);
    source.set_places(places);
    let config = Config { source, ..draft };
    Ok((config, warnings))
}

/// Words of the parser, what they come from, and what mends it. The first that fits counts.
const SYNTAX: [(&str, &str, &str); 13] = [
    (
        "duplicate key",
        "given twice",
        "keep one of them; a table may be opened once",
    ),
    (
        "must be quoted",
        "neither a number nor text in quotes",
        QUOTE,
    ),
    (
        "invalid float",
        "neither a number nor text in quotes",
        QUOTE,
    ),
    (
        "invalid integer",
        "neither a number nor text in quotes",
        QUOTE,
    ),
    (
        "invalid boolean",
        "neither true, false nor text in quotes",
        QUOTE,
    ),
    ("invalid date", "neither a date nor text in quotes", QUOTE),
    ("invalid time", "neither a time nor text in quotes", QUOTE),
    (
        "string",
        "the quote is not closed",
        "close text with the quote that it begins with, on the same line",
    ),
    (
        "array",
        "the list is not well formed",
        r#"write ["a", "b"], with a comma between the values"#,
    ),
    (
        "inline table",
        "the table is not well formed",
        "write { key = value, key = value }",
    ),
    (
        "table",
        "the header is not well formed",
        "write [section], or [[section]] for one of several",
    ),
    (
        "with no value",
        "a key without a value",
        "write `key = value`",
    ),
    (
        "unquoted key",
        "not a key",
        "write `key = value`, the key from letters, digits, `-` and `_`",
    ),
];
const QUOTE: &str = r#"write text, addresses, durations and sizes in double quotes, as in "30s""#;

/// What is not TOML, and the usual cause.
fn broken(source: &Source, error: &toml::de::Error) -> Remark {
    let message = error.message();
    let known = SYNTAX.iter().find(|(words, ..)| message.contains(words));
    let (problem, mend) = known.map_or((message, "write `key = value`"), |(_, p, m)| (*p, *m));
    let place = error.span().unwrap_or_default();
    // Where the text ends too early the parser names a place without length.
    let place = place.start..place.end.max(place.start + 1);
    source.remark_at(place, "", format!("not TOML: {problem}"), mend.to_owned())
}

/// Every section, whether or not an earlier one is right.
fn whole(root: &Table<'_>, folder: &Path) -> Config {
    let (limits, store) = general::limits(root, folder);
    let process = general::process(root, folder, store.as_ref());
    let admin = general::admin(root);
    let (log, audit) = (general::log(root), general::audit(root, folder));
    let sets = Sets::read(root, folder);
    let names: Vec<&str> = limits.keys().map(String::as_str).collect();
    let mut around = ingress::Around {
        sets: &sets,
        limits: &names,
        folder,
        process: &process,
        redis: store.as_ref(),
        on_failure: audit.on_failure,
        asks: false,
        receipts: audit.receipt_key.is_some(),
        upstreams: ingress::upstreams(root),
    };
    let mut entrances = Vec::new();
    for value in root.list("ingress") {
        entrances.extend(
            value
                .table()
                .and_then(|t| ingress::ingress(&t, &mut around)),
        );
    }
    let upstreams = around.upstreams;
    let egress = root
        .table("egress")
        .map(|t| egress::egress(&t, &sets, &names, folder));
    if root.value("ingress").is_none() && root.value("egress").is_none() {
        let mend = "add `[[ingress]]` for the way in, `[egress]` for the way out, or both";
        root.wrong(
            "neither `ingress` nor `egress`: there is nothing to do",
            mend,
        );
    }
    let config = Config {
        process,
        admin,
        log,
        audit,
        limits,
        store,
        ingress: entrances,
        upstreams,
        egress,
        next_expiry_ns: sets.next_expiry_ns,
        source: Source::default(),
    };
    unused(root, &config, &sets);
    config
}

/// Warns of limits, upstreams and sets that nothing names.
fn unused(root: &Table<'_>, config: &Config, sets: &Sets) {
    let routes = || config.ingress.iter().flat_map(|i| &i.routes);
    let egress = || config.egress.iter();
    let transparent = || egress().flat_map(|e| &e.transparent);
    let limits: BTreeSet<_> = (config.ingress.iter().flat_map(|i| &i.limits))
        .chain(routes().flat_map(|r| &r.limits))
        .chain(egress().flat_map(|e| &e.listeners).flat_map(|l| &l.limits))
        .chain(egress().flat_map(|e| &e.forwards).flat_map(|f| &f.limits))
        .chain(transparent().flat_map(|t| t.limits.iter().chain(&t.dns_limits)))
        .collect();
    for name in config.limits.keys() {
        if !limits.contains(name) {
            root.notes.unused(&format!("limits.{name}"));
        }
    }
    for name in config.upstreams.keys() {
        if !routes().any(|r| r.upstream == *name) {
            root.notes.unused(&format!("upstreams.{name}"));
        }
    }
    for name in sets.unused() {
        root.notes.unused(&format!("sets.{name}"));
    }
}

//! From the file to its meaning: `raw` is what the file says, `typed` what that means.
//!
//! Reading finds every mistake of one run at once, each with its place and the way to mend it, and gives either a
//! whole configuration or none. It reads the files that the configuration names for its own use (sets, passwords);
//! certificates are read when it is compiled. Nothing here binds, connects or writes.

use std::io::Read as _;
use std::path::Path;

use toml::de::DeTable;

mod egress;
mod general;
mod ingress;
mod notes;
mod raw;
mod remark;
mod sets;
pub mod typed;
mod units;

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

/// What is not TOML, and the usual cause.
fn broken(source: &Source, error: &toml::de::Error) -> Remark {
    let message = error.message();
    let mend = [
        (
            "duplicate key",
            "keep one of them; a table may be opened once",
        ),
        (
            "string values must be quoted",
            r#"write text in double quotes, as in "30s""#,
        ),
        (
            "quote",
            "close the text with the quote that it was opened with, on the same line",
        ),
        (
            "invalid basic string",
            "close the text with a double quote on the same line",
        ),
        (
            "array",
            "write a list as [\"a\", \"b\"], with a comma between its values",
        ),
        ("inline table", "write `{ key = value, key = value }`"),
        (
            "table header",
            "write `[section]`, or `[[section]]` for one of several",
        ),
        ("key with no value", "write `key = value`"),
    ]
    .iter()
    .find(|(words, _)| message.contains(words))
    .map_or(
        "write `key = value`, with text in double quotes",
        |(_, mend)| mend,
    );
    let place = error.span().unwrap_or_default();
    source.remark_at(place, "", format!("not TOML: {message}"), mend.to_owned())
}

/// Every section, whether or not an earlier one is right.
fn whole(root: &Table<'_>, folder: &Path) -> Config {
    let (process, admin) = (general::process(root), general::admin(root));
    let (log, audit) = (general::log(root), general::audit(root));
    let (sets, limits) = (Sets::read(root, folder), general::limits(root));
    let names: Vec<&str> = limits.keys().map(String::as_str).collect();
    let mut around = ingress::Around {
        sets: &sets,
        limits: &names,
        folder,
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
        .map(|t| egress::egress(&t, &sets, folder));
    if root.value("ingress").is_none() && root.value("egress").is_none() {
        let mend = "add `[[ingress]]` for the way in, `[egress]` for the way out, or both";
        root.wrong(
            "neither `ingress` nor `egress`: there is nothing to do",
            mend,
        );
    }
    Config {
        process,
        admin,
        log,
        audit,
        limits,
        ingress: entrances,
        upstreams,
        egress,
        next_expiry_ns: sets.next_expiry_ns,
        source: Source::default(),
    }
}

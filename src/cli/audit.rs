//! `tollgate audit`: the log, read by somebody who need not trust the process that wrote it.
//!
//! The commands read a state directory, or directories of copied segments, without a lock and without a running
//! process; they change nothing.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};

use super::{Exit, complain};
use crate::audit::{self, Filter};
use crate::clock::{self, Id};

mod prove;
mod verify;

/// Read the audit log: verify it or search it, while it is written or on a copy
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prove one record to somebody who does not see the others
    Prove(prove::Prove),
    /// Prove that the log of an earlier seal is the beginning of the log now
    ProveGrowth(prove::Growth),
    /// Print the records that match, as JSON Lines, oldest first
    Search(Box<Search>),
    /// Check every byte, that no record is missing, that every entry has exactly one end, and every seal
    Verify(verify::Verify),
    /// Check a proof with a public key, without the log
    VerifyProof(prove::VerifyProof),
}

#[derive(clap::Args, Debug)]
struct Dirs {
    /// The state directory, or directories with copied segments of one log
    #[arg(value_name = "DIR", default_value = "/var/lib/tollgate")]
    dirs: Vec<PathBuf>,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  tollgate audit search --client 203.0.113.0/24 --since 1h
  tollgate audit search --kind after --outcome failed --since 2026-11-24T00:00:00Z | jq .reason
  tollgate audit search --host db.example.com --limit 10
  tollgate audit search --certificate 'CN=acme' --kind denied
  tollgate audit search --tag 'value-of-a-query-parameter'")]
struct Search {
    #[command(flatten)]
    dirs: Dirs,
    /// Both records of one entry, or that of a refusal: the request id that a client was told
    #[arg(long, value_parser = id)]
    id: Option<Id>,
    /// Records of one kind
    #[arg(long)]
    kind: Option<KindOf>,
    /// An address, a CIDR, or the name of an egress client
    #[arg(long, value_name = "CLIENT")]
    client: Option<String>,
    /// Host of a request, destination of a connection, with or without its port
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Subject, serial number or SHA-256 fingerprint of a client certificate, shown or only claimed
    #[arg(long, value_name = "CERTIFICATE")]
    certificate: Option<String>,
    /// How an entry ended
    #[arg(long)]
    outcome: Option<Ended>,
    /// Not before: a time as in 2026-11-24T08:00:00Z, or how long ago, as in 90s, 15m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Before: likewise
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// Records in which this value stands as a tag: what was redacted can be found by who knows it
    #[arg(long, value_name = "VALUE")]
    tag: Option<String>,
    /// At most so many records
    #[arg(long, value_name = "NUMBER")]
    limit: Option<u64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindOf {
    After,
    Before,
    Denied,
    Event,
    Seal,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Ended {
    Aborted,
    Failed,
    Refused,
    Served,
    Unknown,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    match &arguments.command {
        Command::Prove(prove) => prove::record(prove),
        Command::ProveGrowth(growth) => prove::growth(growth),
        Command::Search(search) => self::search(search),
        Command::Verify(verify) => verify::run(verify),
        Command::VerifyProof(proof) => prove::verify(proof),
    }
}

fn search(search: &Search) -> Exit {
    let tag = match search
        .tag
        .as_deref()
        .map(|value| audit::tag_of(&search.dirs.dirs, value))
    {
        Some(Err(error)) => {
            complain(&error);
            return Exit::Failed;
        }
        tag => tag.and_then(Result::ok),
    };
    let filter = Filter {
        id: search.id,
        kind: search.kind.map(word),
        client: search.client.clone(),
        host: search.host.clone(),
        certificate: search.certificate.clone(),
        outcome: search.outcome.map(word),
        since: search.since,
        until: search.until,
        tag,
        limit: search.limit,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let found = audit::search(&search.dirs.dirs, &filter, |line| {
        out.write_all(line)?;
        out.write_all(b"\n")
    });
    match found.and_then(|_| out.flush()) {
        Ok(()) => Exit::Done,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => unreadable(&search.dirs, error),
    }
}

fn unreadable(dirs: &Dirs, error: io::Error) -> Exit {
    let dirs: Vec<_> = dirs.dirs.iter().map(|dir| dir.to_string_lossy()).collect();
    let what = format!("the audit log in {} cannot be read", dirs.join(", "));
    complain(anyhow::Error::new(error).context(what).as_ref());
    Exit::Failed
}

fn id(text: &str) -> Result<Id, &'static str> {
    Id::parse(text).ok_or("an identifier as in X-Request-ID is needed")
}

/// A point in time, or how long ago.
fn moment(text: &str) -> Result<Timestamp, &'static str> {
    const FORM: &str =
        "a time as in 2026-11-24T08:00:00Z, or how long ago as in 90s, 15m, 2h or 7d";
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(FORM),
    };
    let count = text
        .get(..text.len() - 1)
        .and_then(|n| n.parse::<i64>().ok())
        .filter(|n| *n >= 0);
    let ago = count
        .and_then(|n| n.checked_mul(unit))
        .map(SignedDuration::from_secs)
        .ok_or(FORM)?;
    Timestamp::from_nanosecond(clock::wall_ns().into())
        .ok()
        .and_then(|now| now.checked_sub(ago).ok())
        .ok_or(FORM)
}

/// The word as it stands in a record.
fn word(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |v| v.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_times_or_ages() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("2h", 7200), ("7d", 604_800)] {
            let before = i128::from(clock::wall_ns());
            let moment = moment(text).unwrap().as_nanosecond();
            let after = i128::from(clock::wall_ns());
            let age = i128::from(seconds as i64) * 1_000_000_000;
            assert!((before - age..=after - age).contains(&moment), "{text}");
        }
        let exact = moment("2026-11-24T08:00:00Z").unwrap();
        assert_eq!(exact.to_string(), "2026-11-24T08:00:00Z");
        for bad in [
            "",
            "h",
            "-1h",
            "1y",
            "99999999999999999999d",
            "9999999999999d",
            "€",
        ] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }
}

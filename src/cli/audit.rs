//! `tollgate audit`: the log, read by somebody who need not trust the process that wrote it.
//!
//! Both commands read a state directory, or a directory of copied segments, without a lock and without a running
//! process; they change nothing.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};

use super::{Exit, complain, print};
use crate::audit::{self, Filter, Problem, Report};
use crate::clock::{self, Id};

/// Read the audit log: verify it or search it, while it is written or on a copy
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the records that match, as JSON Lines, oldest first
    Search(Box<Search>),
    /// Check every byte, that no record is missing, and that every entry has exactly one end
    Verify(Verify),
}

#[derive(clap::Args, Debug)]
struct StateDir {
    /// The state directory, or a directory of copied segments
    #[arg(long, value_name = "DIR", default_value = "/var/lib/tollgate")]
    state_dir: PathBuf,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  tollgate audit search --state-dir /var/lib/tollgate --client 203.0.113.0/24 --since 1h
  tollgate audit search --kind after --outcome failed --since 2026-11-24T00:00:00Z | jq .reason
  tollgate audit search --host db.example.com --limit 10
  tollgate audit search --certificate 'CN=acme' --kind denied
  tollgate audit search --tag 'value-of-a-query-parameter'")]
struct Search {
    #[command(flatten)]
    dir: StateDir,
    /// Both records of one entry
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

#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exit status: 0 the log is whole, 1 it is not (the first place is named), 3 it cannot be read.

Examples:
  tollgate audit verify --state-dir /var/lib/tollgate
  tollgate audit verify --state-dir ./copied-segments --json | jq .problem")]
struct Verify {
    #[command(flatten)]
    dir: StateDir,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindOf {
    After,
    Before,
    Denied,
    Event,
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
        Command::Search(search) => self::search(search),
        Command::Verify(verify) => self::verify(verify),
    }
}

fn search(search: &Search) -> Exit {
    let tag = match search
        .tag
        .as_deref()
        .map(|value| audit::tag_of(&search.dir.state_dir, value))
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
    let found = audit::search(&search.dir.state_dir, &filter, |line| {
        out.write_all(line)?;
        out.write_all(b"\n")
    });
    match found.and_then(|_| out.flush()) {
        Ok(()) => Exit::Done,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => unreadable(&search.dir, error),
    }
}

fn verify(verify: &Verify) -> Exit {
    let report = match audit::verify(&verify.dir.state_dir) {
        Ok(report) => report,
        Err(error) => return unreadable(&verify.dir, error),
    };
    let said = if verify.json {
        print(&format!("{}\n", serde_json::json!(report)))
    } else {
        print(&told(&report))
    };
    match (said, &report.problem) {
        (Exit::Done, Some(_)) => Exit::DoesNotHold,
        (said, _) => said,
    }
}

fn told(report: &Report) -> String {
    let Report {
        segments,
        records,
        first_seq,
        last_seq,
        entries,
        open,
        ..
    } = report;
    let mut text = format!(
        "segments  {segments}\nrecords   {records} ({first_seq} to {last_seq})\nentries   {entries}, {open} still open\n"
    );
    if report.begun_earlier > 0 {
        text.push_str(&format!(
            "earlier   {} ended that began before the first segment\n",
            report.begun_earlier
        ));
    }
    if let Some(unfinished) = &report.unfinished {
        text.push_str(&format!("end       {}\n", place(unfinished)));
    }
    text.push_str(&match &report.problem {
        Some(problem) => format!("NOT WHOLE {}\n", place(problem)),
        None => "whole\n".to_owned(),
    });
    text
}

fn place(problem: &Problem) -> String {
    let Problem {
        file,
        line,
        offset,
        what,
    } = problem;
    format!("{what}, in {}, line {line}, byte {offset}", file.display())
}

fn unreadable(dir: &StateDir, error: io::Error) -> Exit {
    let what = format!(
        "the audit log in {} cannot be read",
        dir.state_dir.display()
    );
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

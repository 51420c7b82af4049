//! `tollgate audit verify`: what the log holds, the first place where it does not, and what that does not prove.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use super::{Dirs, unreadable};
use crate::audit::{self, Problem, PublicKey, Report, Trust};
use crate::cli::{Exit, print};
use crate::clock;

#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exit status: 0 the log holds, 1 it does not (the first place is named), 2 usage, 3 it cannot be read.

Copied files are enough, in any number of directories; their beginning may be pruned. Without --pub the files are only
held against themselves: whoever could write all of them could have made such a log. With --anchor a cut end shows too.

Examples:
  tollgate audit verify
  tollgate audit verify ./copied --pub ./seal.pub --anchor /mnt/elsewhere/tollgate.anchor
  tollgate audit verify /var/lib/tollgate /mnt/standby/tollgate --json | jq .problem")]
pub(super) struct Verify {
    #[command(flatten)]
    dirs: Dirs,
    /// Notes of seals that an anchor took; may be given more than once
    #[arg(long, value_name = "FILE")]
    anchor: Vec<PathBuf>,
    /// A public key of the log, or a file that holds one: what `seal.pub` was when the log began
    #[arg(long = "pub", value_name = "KEY|FILE", value_parser = public_key)]
    key: Option<PublicKey>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Progress is told after this time, and again so often.
const PATIENCE: Duration = Duration::from_secs(1);
/// Further problems that are printed; `--json` has more.
const PROBLEMS_SHOWN_MAX: usize = 10;

pub(super) fn run(verify: &Verify) -> Exit {
    let trust = Trust {
        key: verify.key.clone(),
        anchors: verify.anchor.clone(),
    };
    let mut told = clock::now();
    let mut busy = false;
    let mut progress = |seq| {
        if told.elapsed() >= PATIENCE {
            (told, busy) = (clock::now(), true);
            let begin = if io::stderr().is_terminal() { "\r" } else { "" };
            let end = if begin.is_empty() { "\n" } else { "" };
            write!(io::stderr(), "{begin}record {seq} ...{end}").ok(); // only told
        }
    };
    let checked = audit::verify(&verify.dirs.dirs, &trust, &mut progress);
    if busy && io::stderr().is_terminal() {
        writeln!(io::stderr()).ok(); // only told
    }
    let report = match checked {
        Ok(report) => report,
        Err(error) => return unreadable(&verify.dirs, error),
    };
    let said = if verify.json {
        print(&format!("{}\n", serde_json::json!(report)))
    } else {
        print(&text(&report, verify.key.is_some()))
    };
    match (said, &report.problem) {
        (Exit::Done, Some(_)) => Exit::DoesNotHold,
        (said, _) => said,
    }
}

/// A key, or a file whose first line is one.
pub(super) fn public_key(text: &str) -> Result<PublicKey, String> {
    if let Some(key) = PublicKey::parse(text) {
        return Ok(key);
    }
    let read = std::fs::read_to_string(text);
    let held = read.map_err(|error| format!("neither a public key nor a file: {error}"))?;
    let first = held.lines().next().unwrap_or_default();
    PublicKey::parse(first).ok_or_else(|| {
        "the file does not begin with a public key such as tollgate.log/...+12345678+AbC...".into()
    })
}

fn text(report: &Report, key_given: bool) -> String {
    let mut text = counts(report);
    seals(report, &mut text);
    for anchor in &report.anchors {
        let file = anchor.file.display();
        text.push_str(&format!(
            "anchor    {} of {} notes match, up to record {}, in {file}",
            anchor.matched, anchor.notes, anchor.last_seq
        ));
        if anchor.before_first > 0 {
            let before = anchor.before_first;
            text.push_str(&format!("; {before} are about records that are not here"));
        }
        if anchor.passed_over > 0 {
            let other = anchor.passed_over;
            text.push_str(&format!("; {other} torn or of other logs"));
        }
        text.push('\n');
    }
    if let Some(unfinished) = &report.unfinished {
        text.push_str(&format!("end       {}\n", place(unfinished)));
    }
    let Some(problem) = &report.problem else {
        text.push_str(match key_given {
            true => "holds\n",
            false => {
                "holds against itself only: its files could have been made by whoever can write them all; \
                 give --pub a key that was kept elsewhere\n"
            }
        });
        return text;
    };
    text.push_str(&format!("DOES NOT HOLD: {}\n", place(problem)));
    for problem in report.more_problems.iter().take(PROBLEMS_SHOWN_MAX) {
        text.push_str(&format!("          and: {}\n", place(problem)));
    }
    let shown = 1 + report.more_problems.len().min(PROBLEMS_SHOWN_MAX) as u64;
    if report.problem_count > shown {
        let rest = report.problem_count - shown;
        text.push_str(&format!("          and {rest} more\n"));
    }
    text
}

fn counts(report: &Report) -> String {
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
        "log       {}\nsegments  {segments}\nrecords   {records} ({first_seq} to {last_seq})\nentries   {entries}, {open} still open\n",
        report.log_id
    );
    for entry in &report.open_entries {
        let (file, line) = (entry.file.display(), entry.line);
        text.push_str(&format!(
            "open      {} since record {}, {file}, line {line}\n",
            entry.id, entry.seq
        ));
    }
    if *first_seq > 1 {
        let before = first_seq - 1;
        text.push_str(&format!("earlier   {before} records are not here"));
        if report.pruned_seq >= before {
            text.push_str("; the log says that they were removed");
        }
        if report.begun_earlier > 0 {
            let ended = report.begun_earlier;
            text.push_str(&format!("; {ended} entries that began there ended here"));
        }
        text.push('\n');
    }
    if report.degraded > 0 {
        let (times, ms) = (report.degraded, report.degraded_ms);
        text.push_str(&format!(
            "degraded  {times} times, {}.{:03} s in all, {} entries let through unrecorded\n",
            ms / 1000,
            ms % 1000,
            report.unrecorded
        ));
    }
    if report.superseded > 0 {
        let count = report.superseded;
        text.push_str(&format!(
            "twice     {count} segments end in records that were written again in another\n"
        ));
    }
    text
}

fn seals(report: &Report, text: &mut String) {
    let Report {
        seals,
        sealed_seq,
        unsealed,
        ..
    } = report;
    text.push_str(&format!(
        "seals     {seals}, up to record {sealed_seq}; {unsealed} records behind it are not sealed\n"
    ));
    let given = if report.key_given {
        "it follows from the key that was given"
    } else {
        "named by the log itself"
    };
    text.push_str(&format!("key       {} ({given})\n", report.key));
}

fn place(problem: &Problem) -> String {
    let Problem {
        file,
        line,
        offset,
        seq,
        what,
    } = problem;
    let file = file.display();
    format!("{what}, at record {seq}, in {file}, line {line}, byte {offset}")
}

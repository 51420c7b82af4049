//! `tollgate audit prove`, `prove-growth` and `verify-proof`: one fact about the log, shown to somebody who does not
//! see the log.

use std::path::PathBuf;

use super::Dirs;
use super::verify::public_key;
use crate::audit::{self, Proof, ProveError, Proven, PublicKey};
use crate::cli::{Exit, complain, print};

#[derive(clap::Args, Debug)]
#[command(after_help = "\
The proof holds the record, and of all others only hashes. Give it, with the public key (`seal.pub`, kept elsewhere), to
whoever is to be convinced; `tollgate audit verify-proof`, or 50 lines of Python (docs/verify.md), check it.

Examples:
  tollgate audit prove 4711 > record-4711.proof.json
  tollgate audit prove 4711 ./copied --pub ./a-later-key.pub")]
pub(super) struct Prove {
    /// The number of the record: its `seq`
    seq: u64,
    #[command(flatten)]
    dirs: Dirs,
    /// The public key that the proof is to be checked with; the first key of the log if not given
    #[arg(long = "pub", value_name = "KEY|FILE", value_parser = public_key)]
    key: Option<PublicKey>,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "\
Somebody holds the note of a seal, as an anchor takes it. The proof shows that the log then is the beginning of the log
now: nothing was changed or removed since.

Example:
  tollgate audit prove-growth ./note-of-last-year > growth.proof.json")]
pub(super) struct Growth {
    /// A file that holds the note of an earlier seal
    note: PathBuf,
    #[command(flatten)]
    dirs: Dirs,
    /// The public key that the proof is to be checked with; the first key of the log if not given
    #[arg(long = "pub", value_name = "KEY|FILE", value_parser = public_key)]
    key: Option<PublicKey>,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exit status: 0 it is proven, 1 it is not, 2 usage, 3 the file cannot be read.

Example:
  tollgate audit verify-proof record-4711.proof.json --pub ./seal.pub")]
pub(super) struct VerifyProof {
    /// What `tollgate audit prove` or `prove-growth` has printed
    file: PathBuf,
    /// The public key of the log, or a file that holds it: from somebody who can be trusted, not from the proof's giver
    #[arg(long = "pub", value_name = "KEY|FILE", value_parser = public_key)]
    key: PublicKey,
}

pub(super) fn record(prove: &Prove) -> Exit {
    told(audit::prove(
        &prove.dirs.dirs,
        prove.seq,
        prove.key.as_ref(),
    ))
}

pub(super) fn growth(growth: &Growth) -> Exit {
    let note = match std::fs::read_to_string(&growth.note) {
        Ok(note) => note,
        Err(error) => return unreadable(&growth.note, error),
    };
    let note = format!("{}\n", note.trim_end());
    told(audit::prove_growth(
        &growth.dirs.dirs,
        &note,
        growth.key.as_ref(),
    ))
}

fn told(proof: Result<Proof, ProveError>) -> Exit {
    match proof {
        Ok(proof) => match serde_json::to_string_pretty(&proof) {
            Ok(text) => print(&format!("{text}\n")),
            Err(error) => failed(&error),
        },
        Err(error @ (ProveError::Damaged | ProveError::Disproved(_))) => {
            complain(&error);
            Exit::DoesNotHold
        }
        Err(error) => failed(&error),
    }
}

pub(super) fn verify(verify: &VerifyProof) -> Exit {
    let text = match std::fs::read_to_string(&verify.file) {
        Ok(text) => text,
        Err(error) => return unreadable(&verify.file, error),
    };
    let proof: Proof = match serde_json::from_str(&text) {
        Ok(proof) => proof,
        Err(error) => {
            let what = format!("{} is not a proof", verify.file.display());
            complain(anyhow::Error::new(error).context(what).as_ref());
            return Exit::DoesNotHold;
        }
    };
    let said = match proof.check(&verify.key) {
        Ok(Proven::Record { log_id, seq, size }) => {
            format!("proven: this is record {seq} of log {log_id}, sealed among {size} records\n")
        }
        Ok(Proven::Growth { log_id, old, size }) => {
            format!(
                "proven: the first {old} of the {size} records of log {log_id} are those that were sealed then\n"
            )
        }
        Err(why) => {
            print(&format!("NOT PROVEN: {why}\n"));
            return Exit::DoesNotHold;
        }
    };
    print(
        &(said
            + &proof
                .record()
                .map_or_else(String::new, |record| format!("{record}\n"))),
    )
}

fn unreadable(file: &std::path::Path, error: std::io::Error) -> Exit {
    let what = format!("{} cannot be read", file.display());
    failed(anyhow::Error::new(error).context(what).as_ref())
}

fn failed(error: &dyn std::error::Error) -> Exit {
    complain(error);
    Exit::Failed
}

//! `tollgate secret`: keys to seal with.

use std::io;
use std::path::PathBuf;

use clap::Subcommand;

use super::{Exit, complain, print};
use crate::disk;
use crate::secret;

/// Keys to seal with
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key for `process.key_file`
    #[command(after_help = "\
Every replica needs the same file, readable by Tollgate alone. To change the key, put the new one on a line above the
old one and restart: the first line seals, every line opens. Remove the old one when nothing sealed with it is left.

Examples:
  tollgate secret keygen --out /etc/tollgate/seal.key
  tollgate secret keygen | kubectl create secret generic tollgate-seal --from-file=key=/dev/stdin")]
    Keygen(Keygen),
}

#[derive(clap::Args, Debug)]
struct Keygen {
    /// Write it to a new file that only this user may read, instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What went wrong with the file, and what mends it.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot be made; name a file that is not there yet, in a directory that this user may write to", path.display())]
struct NotMade {
    path: PathBuf,
    source: io::Error,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    let Command::Keygen(Keygen { out }) = &arguments.command;
    let line = zeroize::Zeroizing::new(format!("{}\n", &*secret::draw()));
    let Some(path) = out else {
        return print(&line);
    };
    match disk::create_new(path, line.as_bytes()) {
        Ok(()) => Exit::Done,
        Err(source) => {
            let path = path.clone();
            complain(&NotMade { path, source });
            Exit::Failed
        }
    }
}

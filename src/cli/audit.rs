//! `tollgate audit`: the log, read by somebody who need not trust the process that wrote it.

use super::Exit;

/// Read the audit log: verify it or search it, while it is written or on a copy
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {}

pub(super) fn run(_: &Arguments) -> Exit {
    Exit::Failed
}

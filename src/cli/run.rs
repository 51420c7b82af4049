//! `tollgate run`: serve until told to stop.

use super::{ConfigFile, Exit, complain};
use crate::app::{self, AppError};

/// Serve, until SIGTERM or SIGINT; SIGHUP reloads the configuration
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  tollgate run --config /etc/tollgate/tollgate.toml")]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    match app::run(&arguments.file.config) {
        Ok(()) => Exit::Done,
        Err(error @ AppError::Config(_)) => {
            complain(&error);
            Exit::Usage
        }
        Err(error) => {
            complain(&error);
            Exit::Failed
        }
    }
}

//! `tollgate run`: serve until told to stop.

use super::{ConfigFile, Exit, complain};
use crate::app::{self, AppError};
use crate::audit::OnDamage;

/// Serve, until SIGTERM or SIGINT; SIGHUP reloads the configuration
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  tollgate run --config /etc/tollgate/tollgate.toml")]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Start although records of the audit log are damaged: they go to quarantine, and that is recorded
    #[arg(long)]
    accept_damage: bool,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    let damage = match arguments.accept_damage {
        true => OnDamage::Accept,
        false => OnDamage::Refuse,
    };
    match app::run(&arguments.file.config, damage) {
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

//! `tollgate egress`: what belongs to the way out and is done outside of the process.

use clap::Subcommand;

use super::{ConfigFile, Exit, complain, print};

mod rules;

/// The way out: print the firewall rules that redirect connections to it
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the nftables rules for `[egress.transparent]`, as a script for sh; nothing is changed
    Rules(rules::Arguments),
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    match &arguments.command {
        Command::Rules(arguments) => rules::run(arguments),
    }
}

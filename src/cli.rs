//! The commands. Results go to standard output, diagnostics to standard error.
//!
//! Exit status: 0 done, 1 the thing checked does not hold, 2 usage or configuration error, 3 runtime failure.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod acme;
mod audit;
mod check;
mod demo;
mod egress;
mod explain;
mod run;
mod secret;

/// The edge of a low-code platform: every request in is recorded before it is forwarded, every connection out leaves
/// from one fixed address.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Certificates that are ordered: how they are, and a new one now
    Acme(acme::Arguments),
    /// Read the audit log: verify it, search it, prove one record; while it is written or on a copy
    Audit(audit::Arguments),
    /// Check a configuration and everything it names, and change nothing
    Check(check::Arguments),
    /// Start a sample server, the edge before it and the gateway out, with no file, no network and no root
    Demo(demo::Arguments),
    /// The way out: prove the fixed address, print the firewall rules that lead to it, hash a password
    Egress(egress::Arguments),
    /// Say which rule decides about a destination, which addresses it has, and whether it answers
    Explain(explain::Arguments),
    /// Serve, until SIGTERM or SIGINT; SIGHUP reloads the configuration
    Run(run::Arguments),
    /// Keys to seal with: what lies on a shared volume or in Redis is sealed
    Secret(secret::Arguments),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Exit {
    Done,
    DoesNotHold,
    Usage,
    Failed,
}

const EXAMPLES: &str = "\
Examples:
  tollgate demo
  tollgate check --config /etc/tollgate/tollgate.toml
  tollgate run --config /etc/tollgate/tollgate.toml
  tollgate explain egress --client app --try db.example.com:5432
  tollgate audit search --client 203.0.113.9 --since 1h";

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let exit = match Arguments::parse().command {
        Command::Acme(arguments) => acme::run(&arguments),
        Command::Audit(arguments) => audit::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Egress(arguments) => egress::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Secret(arguments) => secret::run(&arguments),
    };
    ExitCode::from(match exit {
        Exit::Done => 0,
        Exit::DoesNotHold => 1,
        Exit::Usage => 2,
        Exit::Failed => 3,
    })
}

/// `--config FILE`, shared by the commands that read one.
#[derive(clap::Args, Debug)]
struct ConfigFile {
    /// The configuration file
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/tollgate/tollgate.toml"
    )]
    config: PathBuf,
}

/// Prints a result. A reader that went away (`| head`) is no failure.
fn print(text: &str) -> Exit {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Exit::Done,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(_) => Exit::Failed,
    }
}

/// Prints a diagnostic, with the whole chain of causes.
fn complain(error: &dyn std::error::Error) {
    let mut text = format!("tollgate: {error}");
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(&format!(": {source}"));
        cause = source.source();
    }
    text.push('\n');
    io::stderr().write_all(text.as_bytes()).ok(); // there is nowhere else to say it
}

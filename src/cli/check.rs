//! `tollgate check`: is this configuration usable, and everything that it names?

use std::io::{self, Write};
use std::sync::Arc;

use super::{ConfigFile, Exit, print};
use crate::acme::Plan;
use crate::config::typed::Config;
use crate::config::{self, Mistakes, Remark, Warning};
use crate::record::TagKey;
use crate::snapshot::Snapshot;
use crate::tls::{Dates, Keyring};

/// Check a configuration and everything it names, and change nothing
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exit status: 0 the configuration can be used, 2 it has mistakes (all are printed).

Examples:
  tollgate check --config /etc/tollgate/tollgate.toml
  tollgate check --config tollgate.toml --json | jq '.mistakes[].key'")]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    // The tags of this snapshot are never written, so any key will do.
    let compile = |config: Config| {
        let keyring = Keyring::new(config.process.tickets.every, Arc::default(), |_| ()).map_err(
            |error| {
                let mend = "try again; if it stays so, this build does not fit the machine";
                Remark::on_file(&arguments.file.config, error.to_string(), mend)
            },
        )?;
        let made = Snapshot::compile(config, 1, TagKey::draw(), &keyring, Dates::Heed)?;
        Plan::new(&made.0.config, made.0.ordered())?;
        Ok(made)
    };
    let (warnings, mistakes) = match config::load(&arguments.file.config) {
        Err(mistakes) => (Vec::new(), Some(mistakes)),
        Ok((config, mut warnings)) => match compile(config) {
            Err(mistakes) => (warnings, Some(mistakes)),
            Ok((_, more)) => {
                warnings.extend(more);
                (warnings, None)
            }
        },
    };
    let exit = if mistakes.is_some() {
        Exit::Usage
    } else {
        Exit::Done
    };
    let said = if arguments.json {
        print(&format!("{}\n", report(&warnings, mistakes.as_ref())))
    } else {
        tell(arguments, &warnings, mistakes.as_ref())
    };
    if said == Exit::Done { exit } else { said }
}

fn report(warnings: &[Warning], mistakes: Option<&Mistakes>) -> serde_json::Value {
    let mistakes = mistakes.map_or_else(|| serde_json::json!([]), |m| serde_json::json!(m));
    serde_json::json!({ "usable": mistakes == serde_json::json!([]), "mistakes": mistakes, "warnings": warnings })
}

/// Mistakes and warnings are diagnostics; that there are none is the result.
fn tell(arguments: &Arguments, warnings: &[Warning], mistakes: Option<&Mistakes>) -> Exit {
    let mut text = String::new();
    for warning in warnings {
        text.push_str(&format!("{warning}\n"));
    }
    if let Some(mistakes) = mistakes {
        text.push_str(&format!("{mistakes}\n"));
    }
    io::stderr().write_all(text.as_bytes()).ok(); // there is nowhere else to say it
    match mistakes {
        Some(_) => Exit::Done,
        None => print(&format!(
            "{}: the configuration can be used\n",
            arguments.file.config.display()
        )),
    }
}

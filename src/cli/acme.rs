//! `tollgate acme`: what has become of the certificates that are ordered, and a new one now.
//!
//! It works on the store, beside the running process, which does what is asked for: this one orders nothing.

use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use tokio::runtime::Builder;
use tokio::time::sleep;

use super::{ConfigFile, Exit, complain, print};
use crate::acme::{AcmeError, Desk, Status};
use crate::clock;
use crate::config::{self, Mistakes};
use crate::record::TagKey;
use crate::snapshot::Snapshot;
use crate::tls::{Dates, Keyring};

/// Certificates that are ordered: how they are, and a new one now
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Order a new certificate for a name now, with a new key
    #[command(after_help = "\
The running process, any of the replicas, does it and serves what comes; this command waits for it. Run it as the same
user. With --revoke the certificate in use is revoked, as one whose key is known to others, once there is a new one.

Exit status: 0 a new certificate is there, 1 the certificate authority or the running process did not give one, 2 the
configuration or the name is wrong, 3 the store cannot be used.

Examples:
  tollgate acme renew tools.example.com
  runuser -u tollgate -- tollgate acme renew tools.example.com --revoke")]
    Renew(Renew),
    /// List the names that certificates are ordered for, and how they are
    #[command(
        after_help = "Example:\n  tollgate acme status --json | jq '.[] | select(.failures > 0)'"
    )]
    Status(List),
}

#[derive(clap::Args, Debug)]
struct Renew {
    /// As it stands in `hosts`
    name: String,
    /// Revoke the certificate that is in use now
    #[arg(long)]
    revoke: bool,
    #[command(flatten)]
    file: ConfigFile,
}

#[derive(clap::Args, Debug)]
struct List {
    /// Print a JSON list
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    file: ConfigFile,
}

/// An order with the slowest of hooks takes less.
const WAIT: Duration = Duration::from_secs(900);
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
enum AcmeCommandError {
    #[error("the configuration cannot be used\n\n{0}")]
    Config(#[from] Mistakes),
    #[error("TLS cannot be set up")]
    Tls(#[from] crate::tls::TlsError),
    #[error("no certificate is ordered for `{name}`; name one of {known}")]
    Unknown { name: String, known: String },
    #[error("no certificate is ordered here; add `tls.acme` to an `[[ingress]]`")]
    Nothing,
    #[error(transparent)]
    Acme(#[from] AcmeError),
    #[error("no new certificate came: {said}")]
    Failed { said: String },
    #[error("no new certificate came; is tollgate running with this configuration?")]
    Nobody,
    #[error("cannot start a runtime")]
    System(#[from] std::io::Error),
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    let done = Builder::new_current_thread().enable_all().build();
    let done = done.map_err(Into::into).and_then(|runtime| {
        runtime.block_on(async {
            match &arguments.command {
                Command::Renew(renew) => self::renew(renew).await,
                Command::Status(list) => status(list).await,
            }
        })
    });
    let error = match done {
        Ok(text) => return print(&text),
        Err(error) => error,
    };
    complain(&error);
    match error {
        AcmeCommandError::Config(_)
        | AcmeCommandError::Nothing
        | AcmeCommandError::Unknown { .. } => Exit::Usage,
        AcmeCommandError::Failed { .. } | AcmeCommandError::Nobody => Exit::DoesNotHold,
        AcmeCommandError::Acme(_) | AcmeCommandError::System(_) | AcmeCommandError::Tls(_) => {
            Exit::Failed
        }
    }
}

async fn renew(arguments: &Renew) -> Result<String, AcmeCommandError> {
    let name = arguments.name.trim().to_ascii_lowercase();
    let desks = desks(&arguments.file)?;
    let known = || desks.iter().map(Desk::name).collect::<Vec<_>>().join(", ");
    let desk = desks.iter().find(|desk| desk.name() == name);
    let desk = desk.ok_or_else(|| AcmeCommandError::Unknown {
        name: name.clone(),
        known: known(),
    })?;
    let before = desk.status().await?;
    let revoke = before.serial.as_deref().filter(|_| arguments.revoke);
    desk.wish(revoke).await?;
    let begun = clock::now();
    while begun.elapsed() < WAIT {
        sleep(LOOK_EVERY).await;
        let now = desk.status().await?;
        if let Some(serial) = now
            .serial
            .as_deref()
            .filter(|_| now.serial != before.serial)
        {
            return Ok(format!(
                "{name} has a new certificate with serial number {serial}\n"
            ));
        }
        if now.failures > before.failures {
            return Err(AcmeCommandError::Failed { said: now.said });
        }
    }
    Err(AcmeCommandError::Nobody)
}

async fn status(arguments: &List) -> Result<String, AcmeCommandError> {
    let mut listed = Vec::new();
    for desk in desks(&arguments.file)? {
        listed.push((desk.name().to_owned(), desk.status().await?));
    }
    if arguments.json {
        let all = listed.iter().map(|(name, status)| {
            let Status {
                serial,
                not_after,
                failures,
                said,
            } = status;
            json!({ "name": name, "serial": serial, "not_after": not_after, "failures": failures, "said": said })
        });
        return Ok(format!("{}\n", all.collect::<serde_json::Value>()));
    }
    let line = |(name, status): &(String, Status)| {
        let served = match (&status.serial, &status.not_after) {
            (Some(serial), Some(end)) => format!("until {end}, serial number {serial}"),
            _ => "no certificate yet".to_owned(),
        };
        let failed = match status.failures {
            0 => String::new(),
            count => format!("; {count} failed attempts: {}", status.said),
        };
        format!("{name}: {served}{failed}\n")
    };
    Ok(listed.iter().map(line).collect())
}

fn desks(file: &ConfigFile) -> Result<Vec<Desk>, AcmeCommandError> {
    let (config, _) = config::load(&file.config)?;
    let keyring = Keyring::new(config.process.tickets.every, Arc::default(), |_| ())?;
    // The tags of this snapshot are never written, so any key will do.
    let dates = Dates::Ignore; // what files hold is not asked about here
    let (snapshot, _) = Snapshot::compile(config, 1, TagKey::draw(), &keyring, dates)?;
    let ordered = snapshot.ordered();
    if ordered.is_empty() {
        return Err(AcmeCommandError::Nothing);
    }
    let desks = ordered
        .into_iter()
        .map(|ordered| Desk::new(&snapshot.config, ordered));
    Ok(desks.collect::<Result<_, _>>()?)
}

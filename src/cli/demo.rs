//! `tollgate demo`: the whole house on loopback, with no file, no network and no root.
//!
//! It writes a configuration and a certificate into a temporary directory and runs the same `app` as `run` does; only
//! the sample server and the sample destination are its own.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Exit, complain};
use crate::app;
use crate::audit::OnDamage;
use crate::{clock, workers};

mod sample;
mod tail;

use tail::Tail;

/// Start a sample server, the edge before it and the gateway out, with no file, no network and no root
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  tollgate demo\n  tollgate demo --https 127.0.0.1:9443 --proxy 127.0.0.1:9128"
)]
pub(super) struct Arguments {
    /// Where the edge listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443")]
    https: SocketAddr,
    /// Where the egress gateway listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3128")]
    proxy: SocketAddr,
    /// Where health and metrics are
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9911")]
    admin: SocketAddr,
}

/// How often the audit log is looked at for new records.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(super) fn run(arguments: &Arguments) -> Exit {
    match demo(arguments) {
        Ok(()) => Exit::Done,
        Err(error) => {
            complain(error.as_ref());
            Exit::Failed
        }
    }
}

fn demo(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("tollgate-demo-{}", clock::Id::new()));
    fs::create_dir_all(&folder)?;
    let swept = Swept(folder.clone());
    write_certificate(&folder)?;
    let (server, destination) = sample::start()?;
    let file = folder.join("demo.toml");
    fs::write(&file, configuration(arguments, &folder, server))?;
    let log = folder.join("state/audit");
    let invitation = invitation(arguments, &folder, destination);
    app::run_with(&file, OnDamage::Refuse, move || {
        let shown = workers::thread("demo-records", move || show(&log, &invitation));
        shown.map(drop)
    })?;
    drop(swept);
    Ok(())
}

/// A certificate for `localhost` and 127.0.0.1, and its key, both new.
fn write_certificate(folder: &Path) -> anyhow::Result<()> {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names)?;
    fs::write(folder.join("cert.pem"), made.cert.pem())?;
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem())?;
    Ok(())
}

fn configuration(arguments: &Arguments, folder: &Path, server: SocketAddr) -> String {
    let Arguments {
        https,
        proxy,
        admin,
    } = arguments;
    format!(
        r#"[process]
state_dir = '{state}'
drain_deadline = "2s"
max_sessions = 200
[admin]
listen = "{admin}"
[log]
format = "text"
level = "warn"
[[ingress]]
listen = "{https}"
upstream = "http://{server}"
tls.certificates = [{{ cert = "cert.pem", key = "key.pem" }}]
[egress]
fixed = ["127.0.0.7"]
[[egress.listener]]
listen = "{proxy}"
[[egress.policy]]
destinations = ["127.0.0.1"]
addresses = ["127.0.0.1/32"]
"#,
        state = folder.join("state").display(),
    )
}

fn invitation(arguments: &Arguments, folder: &Path, destination: SocketAddr) -> String {
    let Arguments {
        https,
        proxy,
        admin,
    } = arguments;
    let cert = folder.join("cert.pem");
    format!(
        "Tollgate is running. The edge: https://{https}  The gateway out: {proxy}  Its fixed address: 127.0.0.7\n\
         Try, in another terminal:\n\n  \
         curl --cacert {cert} 'https://{https}/api/hello?page=1&token=secret'\n  \
         curl --cacert {cert} -N --max-time 5 https://{https}/events\n  \
         curl --noproxy '' -x socks5h://{proxy} http://{destination}/whoami\n  \
         curl --noproxy '' -x http://{proxy} http://169.254.169.254/\n\n\
         Or open https://{https} in a browser. Metrics: http://{admin}/metrics\n\
         The audit records, as they happen (Ctrl-C ends the demo and removes {folder}):\n\n",
        cert = cert.display(),
        folder = folder.display(),
    )
}

/// Prints the invitation, then every record as it becomes durable, until nobody reads it.
fn show(log: &Path, invitation: &str) {
    let mut out = io::stdout();
    let mut tail = Tail::default();
    let mut told = out.write_all(invitation.as_bytes());
    while told.is_ok() {
        std::thread::sleep(LOOK_EVERY);
        let lines = tail.read(log).unwrap_or_default(); // between two segments; the next look finds it
        told = out.write_all(&lines).and_then(|()| out.flush());
    }
}

/// Removes the demo's folder at the end.
struct Swept(PathBuf);

impl Drop for Swept {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok(); // left behind, it is a few files in the temporary directory
    }
}

//! `tollgate egress`: proves the fixed address, from this machine and, with an echo service, from outside; and hashes the
//! passwords of clients.
//!
//! That a socket can be bound proves nothing where an address translation is in between; only somebody outside can say
//! what is seen there. Whom to ask is the operator's choice; nobody is asked without `--echo`.

use std::fmt::Write as _;
use std::io::{BufRead as _, Read as _};
use std::net::{IpAddr, SocketAddr};

use std::num::NonZeroU32;

use aws_lc_rs::pbkdf2;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use clap::Subcommand;
use http::Uri;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::explain::find;
use super::explain::trial::{ANSWER_LIMIT, block_on, encrypt};
use super::{ConfigFile, Exit, complain, print};
use crate::addr::{Destination, Families, Host};
use crate::config::typed::Config;
use crate::config::{self, HASH_MARK, PASSWORD_BYTES_MAX};
use crate::socket::fixed::{Source, has_route, is_here};
use crate::{clock, dial, workers};

mod rules;

/// Of an echo service's answer: an address and a little around it.
const ECHO_BYTES_MAX: usize = 4096;
/// What OWASP recommends for PBKDF2-HMAC-SHA256: about a fifth of a second.
const ITERATIONS: NonZeroU32 = NonZeroU32::MIN.saturating_add(599_999);

/// The way out: prove the fixed address, print the firewall rules that lead to it, hash a password
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Is the fixed address here, do connections leave from it, and how does the outside see it?
    Check(Check),
    /// Hash a proxy password, for the file that `password_file` names
    HashPassword(HashPassword),
    /// Print the nftables rules for `[egress.transparent]`, as a script for sh; nothing is changed
    Rules(rules::Arguments),
}

#[derive(clap::Args, Debug)]
#[command(after_help = "\
The password is read from standard input, so that no process listing shows it.

Example:
  tollgate egress hash-password < password > /etc/tollgate/jobs.password")]
struct HashPassword {}

#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exit status: 0 everything holds, 1 something does not, 2 usage or configuration error.

Examples:
  tollgate egress check
  tollgate egress check --echo https://api.ipify.org --json")]
struct Check {
    #[command(flatten)]
    file: ConfigFile,
    /// Ask this address, from each fixed address, what it sees; its answer must hold the address in plain text
    #[arg(long, value_name = "URL")]
    echo: Option<Uri>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was found out about one fixed address.
struct Proof {
    fixed: IpAddr,
    /// How the outside should see it.
    expected: IpAddr,
    here: bool,
    route: Result<(), String>,
    /// What an echo service saw, if it was asked.
    echo: Option<Result<IpAddr, String>>,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    match &arguments.what {
        What::Check(asked) => check(asked),
        What::HashPassword(HashPassword {}) => hash_password(),
        What::Rules(asked) => rules::run(asked),
    }
}

/// Reads one line, prints what is left of it.
fn hash_password() -> Exit {
    let mut line = String::new();
    let mut input = std::io::stdin().lock().take(PASSWORD_BYTES_MAX + 2);
    if let Err(error) = input.read_line(&mut line) {
        complain(&error);
        return Exit::Failed;
    }
    let password = line.trim_ascii();
    if password.is_empty() || password.len() as u64 > PASSWORD_BYTES_MAX {
        let text = format!("write a password of 1 to {PASSWORD_BYTES_MAX} bytes to standard input");
        complain(&*Box::<dyn std::error::Error>::from(text));
        return Exit::Usage;
    }
    let (mut salt, mut hash) = ([0; 16], [0; 32]);
    clock::draw(&mut salt);
    let sha256 = pbkdf2::PBKDF2_HMAC_SHA256;
    pbkdf2::derive(sha256, ITERATIONS, &salt, password.as_bytes(), &mut hash);
    let [salt, hash] = [&salt[..], &hash].map(|bytes| BASE64_STANDARD.encode(bytes));
    print(&format!("{HASH_MARK}{ITERATIONS}:{salt}:{hash}\n"))
}

fn check(check: &Check) -> Exit {
    let config = match config::load(&check.file.config) {
        Ok((config, _)) => config,
        Err(mistakes) => {
            complain(&mistakes);
            return Exit::Usage;
        }
    };
    let proofs = match prove(&config, check.echo.as_ref()) {
        Ok(proofs) => proofs,
        Err(error) => {
            complain(&*error);
            return Exit::Usage;
        }
    };
    let said = if check.json {
        let proofs: Vec<_> = proofs.iter().map(Proof::json).collect();
        print(&format!("{}\n", json!({ "addresses": proofs })))
    } else {
        print(&proofs.iter().map(Proof::text).collect::<String>())
    };
    match (said, proofs.iter().all(Proof::holds)) {
        (Exit::Done, false) => Exit::DoesNotHold,
        (said, _) => said,
    }
}

fn prove(config: &Config, echo: Option<&Uri>) -> Result<Vec<Proof>, Box<dyn std::error::Error>> {
    let egress = config.egress.as_ref().ok_or("there is no [egress]")?;
    let source = dial::source(egress);
    let advertised = [
        egress.advertised_v4.map(IpAddr::V4),
        egress.advertised_v6.map(IpAddr::V6),
    ];
    let fixed = [source.v4.map(IpAddr::V4), source.v6.map(IpAddr::V6)];
    let mut proofs = Vec::new();
    for (fixed, advertised) in fixed.into_iter().zip(advertised) {
        let Some(fixed) = fixed else { continue };
        let here = is_here(fixed);
        let echo = match echo {
            Some(url) if here => Some(block_on(asked(config, source, fixed, url))?),
            _ => None,
        };
        proofs.push(Proof {
            fixed,
            expected: advertised.unwrap_or(fixed),
            here,
            route: has_route(fixed).map_err(|error| error.to_string()),
            echo,
        });
    }
    Ok(proofs)
}

/// The address in the answer of the echo service to a question from `fixed`.
async fn asked(
    config: &Config,
    source: Source,
    fixed: IpAddr,
    url: &Uri,
) -> Result<IpAddr, String> {
    let asking = timeout(4 * ANSWER_LIMIT, ask(config, source, fixed, url)).await;
    asking.unwrap_or_else(|_| Err("it did not answer in time".to_owned()))
}

async fn ask(config: &Config, source: Source, fixed: IpAddr, url: &Uri) -> Result<IpAddr, String> {
    let secure = url.scheme_str() == Some("https");
    let host = url
        .host()
        .ok_or("it is not a URL; write it as in https://api.ipify.org")?;
    let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let host = Host::parse(host).map_err(|error| error.to_string())?;
    let families = Families {
        v4: fixed.is_ipv4(),
        v6: fixed.is_ipv6(),
    };
    let found = find(config, &host, families).await;
    let found = found.map_err(|refusal| refusal.to_string())?;
    let mut of_family = found.into_iter().filter(|a| a.is_ipv4() == fixed.is_ipv4());
    let address = of_family.next().ok_or("it has no address of this family")?;
    let tcp = timeout(ANSWER_LIMIT, source.connect(SocketAddr::new(address, port))).await;
    let tcp = tcp
        .map_err(|_| "it did not answer; something on the way may not let the fixed address out")?;
    let tcp = tcp.map_err(|failure| failure.error.to_string())?;
    let to = Destination { host, port };
    if secure {
        let tls = encrypt(tcp, &to.host).await?;
        fetch(tls, url, &to).await
    } else {
        fetch(tcp, url, &to).await
    }
}

async fn fetch(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    url: &Uri,
    to: &Destination,
) -> Result<IpAddr, String> {
    let failed = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    workers::spawn(async move {
        connection.await.ok(); // whoever reads the answer is told
    });
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = http::Request::get(path)
        .header(http::header::HOST, to.to_string())
        .header(http::header::USER_AGENT, "tollgate")
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(format!("it answered {}", response.status()));
    }
    let body = Limited::new(response.into_body(), ECHO_BYTES_MAX)
        .collect()
        .await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    let mut words = text.split(|c: char| !c.is_ascii_hexdigit() && !matches!(c, '.' | ':'));
    let address = words.find_map(|word| word.parse::<IpAddr>().ok());
    address.ok_or_else(|| "its answer holds no address".to_owned())
}

impl Proof {
    fn holds(&self) -> bool {
        let seen = self
            .echo
            .as_ref()
            .is_none_or(|seen| *seen == Ok(self.expected));
        self.here && self.route.is_ok() && seen
    }

    fn text(&self) -> String {
        let mut out = format!("{}\n", self.fixed);
        let mark = |good| if good { "ok " } else { "NO " };
        let mut line = |good, text: &str| {
            writeln!(out, "  {} {text}", mark(good)).ok(); // writing to text cannot fail
        };
        if self.here {
            line(
                true,
                "it is on this machine, and sockets can be bound to it",
            );
        } else {
            line(
                false,
                "it is not on this machine; see `ip address`, or correct `egress.fixed`",
            );
        }
        match &self.route {
            Ok(()) => line(true, "connections can leave from it"),
            Err(error) => line(
                false,
                &format!(
                    "nothing can leave from it: {error}; see `ip route get 192.0.2.1 from {}`",
                    self.fixed
                ),
            ),
        }
        let expected = self.expected;
        match &self.echo {
            None => line(
                true,
                &format!("it should be seen outside as {expected}; prove it with --echo URL"),
            ),
            Some(Ok(seen)) if *seen == expected => {
                line(true, &format!("it is seen outside as {seen}"))
            }
            Some(Ok(seen)) => line(
                false,
                &format!(
                    "it is seen outside as {seen}, not as {expected}: correct the translation, or `egress.advertised`"
                ),
            ),
            Some(Err(why)) => line(
                false,
                &format!("how it is seen outside is not known: {why}"),
            ),
        }
        out
    }

    fn json(&self) -> serde_json::Value {
        let (seen, error) = match &self.echo {
            None => (None, None),
            Some(Ok(seen)) => (Some(seen), None),
            Some(Err(why)) => (None, Some(why)),
        };
        json!({
            "address": self.fixed, "expected_outside": self.expected, "here": self.here,
            "route": self.route.is_ok(), "seen_outside": seen, "echo_error": error, "holds": self.holds(),
        })
    }
}

//! `tollgate explain`: which rule decides, and why; for a destination also whether it answers.
//!
//! It reads the configuration as `run` does and judges with the same judges; it asks no running process. A name that is
//! not allowed is not resolved.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use clap::Subcommand;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{ConfigFile, Exit, complain, print};
use crate::addr::{Destination, Families, Host};
use crate::config::typed::{Action, Config, Egress, Forward, Protocol};
use crate::config::{self};
use crate::dial;
use crate::egress::{families, own};
use crate::outcome::Refusal;
use crate::policy::address::{Verdict, verdict};
use crate::policy::destination::{Allowed, Destinations};
use crate::resolve::Resolver;
use crate::socket::fixed::{Source, is_here, local_addresses};

pub(super) mod trial;

use trial::{Finding, attempt, block_on};

/// Say which rule decides, and why
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    of: Of,
}

#[derive(Debug, Subcommand)]
enum Of {
    /// About a destination: the rule, its addresses, and whether it answers
    Egress(Question),
}

#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exit status: 0 allowed (with --try: and it answers), 1 denied or no answer, 2 usage or configuration error.

A trial is made from the fixed address and to allowed addresses only. It is yours, not a client's: the audit log does not
have it.

Examples:
  tollgate explain egress --client app db.example.com:5432
  tollgate explain egress --client app --try db.example.com:5432
  tollgate explain egress --client customer-db --try --json | jq '.addresses[].tried'")]
struct Question {
    #[command(flatten)]
    file: ConfigFile,
    /// The egress client that asks, or the name of a forward; may be left out where there is only one
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// Dial it from the fixed address and tell what stands in the way
    #[arg(long = "try")]
    trial: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Host and port, as the client asks for them; may be left out for a forward
    #[arg(value_name = "HOST:PORT")]
    destination: Option<String>,
}

/// What there is to know.
struct Explained {
    client: String,
    destination: Destination,
    /// The rule that decides, and what it says.
    rule: Option<(String, Action)>,
    refusal: Option<Refusal>,
    source: Source,
    seen_as: [Option<IpAddr>; 2],
    addresses: Vec<(IpAddr, Verdict, Option<Finding>)>,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    let Of::Egress(question) = &arguments.of;
    let config = match config::load(&question.file.config) {
        Ok((config, _)) => config,
        Err(mistakes) => {
            complain(&mistakes);
            return Exit::Usage;
        }
    };
    let explained = match explain(&config, question) {
        Ok(explained) => explained,
        Err(error) => {
            complain(&*error);
            return Exit::Usage;
        }
    };
    let said = if question.json {
        print(&format!("{}\n", explained.json()))
    } else {
        print(&explained.text())
    };
    match (said, explained.holds(question.trial)) {
        (Exit::Done, false) => Exit::DoesNotHold,
        (said, _) => said,
    }
}

fn explain(config: &Config, question: &Question) -> Result<Explained, Box<dyn std::error::Error>> {
    let egress = config.egress.as_ref().ok_or("there is no [egress]")?;
    let client = client(egress, question.client.as_deref())?;
    let forward = egress.forwards.iter().find(|f| f.name == client);
    let destination = match (&question.destination, forward) {
        (Some(text), _) => Destination::parse(text).map_err(|e| format!("{text:?}: {e}"))?,
        (None, Some(forward)) => forward.to.clone(),
        (None, None) => return Err("say which destination, as in db.example.com:5432".into()),
    };
    let rules = match forward {
        Some(f) => Destinations::only(&f.name, &f.to, &f.addresses),
        None => Destinations::new(&egress.policy),
    };
    let source = dial::source(egress);
    let rule = rules.deciding(&client, &destination);
    let mut explained = Explained {
        rule: rule.map(|(name, action)| (name.to_owned(), action)),
        refusal: None,
        source,
        seen_as: dial::seen_as(egress),
        addresses: Vec::new(),
        client,
        destination: destination.clone(),
    };
    match rules.judge(&explained.client, destination) {
        Err(refusal) => explained.refusal = Some(refusal),
        Ok(allowed) => block_on(explained.look(config, forward, &allowed, question.trial))?,
    }
    Ok(explained)
}

/// The one that was named, or the only one there is.
fn client(egress: &Egress, named: Option<&str>) -> Result<String, String> {
    let known = egress.client_names();
    match (named, known.as_slice()) {
        (Some(name), _) if known.contains(&name) => Ok(name.to_owned()),
        (None, [only]) => Ok((*only).to_owned()),
        _ => Err(format!(
            "say which egress client asks, with --client: {}",
            known.join(", ")
        )),
    }
}

impl Explained {
    /// Resolves, judges each address and, if asked to, dials.
    async fn look(
        &mut self,
        config: &Config,
        forward: Option<&Forward>,
        allowed: &Allowed,
        trial: bool,
    ) {
        let families = families(self.source);
        let found = match find(config, &self.destination.host, families).await {
            Ok(found) => found,
            Err(refusal) => return self.refusal = Some(refusal),
        };
        let own = own(config, local_addresses().unwrap_or_default());
        let judged = found
            .into_iter()
            .map(|address| (address, verdict(allowed, address, &own, families)));
        let judged: Vec<_> = judged.collect();
        let has = |wanted| judged.iter().any(|(_, verdict)| *verdict == wanted);
        if !has(Verdict::Dialled) {
            self.refusal = Some(if has(Verdict::NoFixedAddress) {
                Refusal::FamilyWithoutAddress
            } else {
                Refusal::AddressDenied
            });
        }
        let port = self.destination.port;
        let protocol = forward.map_or_else(|| Protocol::usual(port), |f| f.protocol);
        let trials = judged.iter().map(|(address, verdict)| {
            let (to, dialled) = (
                SocketAddr::new(*address, port),
                *verdict == Verdict::Dialled,
            );
            let (source, host) = (&self.source, &self.destination.host);
            async move {
                if trial && dialled {
                    Some(attempt(source, to, host, protocol).await)
                } else {
                    None
                }
            }
        });
        let trials = join_all(trials).await;
        let together = judged.into_iter().zip(trials);
        self.addresses = together.map(|((a, v), t)| (a, v, t)).collect();
    }

    fn holds(&self, trial: bool) -> bool {
        let answers =
            |(_, _, tried): &(_, _, Option<Finding>)| matches!(tried, Some(Finding::Answers(_)));
        self.refusal.is_none() && (!trial || self.addresses.iter().any(answers))
    }

    fn rule(&self) -> String {
        match &self.rule {
            Some((name, Action::Allow)) => format!("`{name}` allows it"),
            Some((name, Action::Deny)) => format!("`{name}` denies it"),
            Some((name, Action::Report)) => {
                format!("`{name}` allows it, and reports what it would have denied")
            }
            None if self.refusal == Some(Refusal::DestinationDenied) => {
                "none matches; port 25, metadata services and names of this machine or network need one that names them"
                    .to_owned()
            }
            None => "there is none, so every public destination is allowed".to_owned(),
        }
    }

    fn fixed(&self) -> impl Iterator<Item = (IpAddr, Option<IpAddr>)> {
        let fixed = [
            self.source.v4.map(IpAddr::V4),
            self.source.v6.map(IpAddr::V6),
        ];
        let pairs = fixed.into_iter().zip(self.seen_as);
        pairs.filter_map(|(fixed, seen)| Some((fixed?, seen)))
    }

    fn seen(&self, address: IpAddr) -> Option<IpAddr> {
        let mut seen = self.seen_as.iter().flatten();
        seen.find(|s| s.is_ipv4() == address.is_ipv4()).copied()
    }

    fn text(&self) -> String {
        let mut out = format!(
            "{} -> {}\n  rule     {}\n",
            self.client,
            self.destination,
            self.rule()
        );
        for (fixed, seen) in self.fixed() {
            let outside = match seen {
                Some(seen) if seen != fixed => format!(", seen outside as {seen}"),
                _ => String::new(),
            };
            let here = if is_here(fixed) {
                ""
            } else {
                "; it is not on this machine"
            };
            writeln!(out, "  leaves   from {fixed}{outside}{here}").ok(); // writing to text cannot fail
        }
        for (address, verdict, tried) in &self.addresses {
            let verdict = says(*verdict);
            let tried = tried
                .as_ref()
                .map(|t| format!("; {}", t.says(self.seen(*address))));
            writeln!(
                out,
                "  address  {address}: {verdict}{}",
                tried.unwrap_or_default()
            )
            .ok();
        }
        match self.refusal {
            Some(refusal) => writeln!(out, "denied ({}): {refusal}", refusal.code()).ok(),
            None => writeln!(out, "allowed").ok(),
        };
        out
    }

    fn json(&self) -> Value {
        let leaves = |(fixed, seen): (IpAddr, Option<IpAddr>)| json!({ "address": fixed, "seen_as": seen, "here": is_here(fixed) });
        let addresses = self.addresses.iter().map(|(address, verdict, tried)| {
            let tried = tried.as_ref().map(|t| json!({ "outcome": t.code(), "says": t.says(self.seen(*address)) }));
            json!({ "address": address, "allowed": *verdict == Verdict::Dialled, "says": says(*verdict), "tried": tried })
        });
        json!({
            "client": self.client,
            "destination": self.destination.to_string(),
            "allowed": self.refusal.is_none(),
            "reason": self.refusal.map(Refusal::code),
            "says": self.refusal.map(Refusal::says),
            "rule": self.rule.as_ref().map(|(name, _)| name),
            "would_deny": matches!(self.rule, Some((_, Action::Report))),
            "leaves": self.fixed().map(leaves).collect::<Vec<_>>(),
            "addresses": addresses.collect::<Vec<_>>(),
        })
    }
}

fn says(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Dialled => "may be dialled",
        Verdict::NoFixedAddress => "not dialled: no fixed address of its family",
        Verdict::Ours => "denied: it is our own; a rule can allow it by naming this very address",
        Verdict::Denied => "denied: an earlier rule denies this address",
        Verdict::Special => {
            "denied: special-purpose or private; a rule can allow it with `addresses`"
        }
    }
}

/// The addresses of `host`, as the gateway would resolve it.
pub(super) async fn find(
    config: &Config,
    host: &Host,
    families: Families,
) -> Result<Vec<IpAddr>, Refusal> {
    match host {
        Host::Address(address) => Ok(vec![*address]),
        Host::Name(name) => {
            let servers = config.egress.as_ref().map(|e| e.resolvers.as_slice());
            let resolver = Resolver::new(servers.unwrap_or_default());
            let resolver = resolver.map_err(|_| Refusal::ResolveFailed)?;
            resolver.resolve(name, families).await
        }
    }
}

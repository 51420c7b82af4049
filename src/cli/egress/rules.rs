//! `tollgate egress rules`: the firewall rules that go with `[egress.transparent]`, for the three usual placements.
//!
//! They are printed, never applied: whoever runs the script sees what it does. What an application may not do (leave
//! past Tollgate, by another protocol or in a family without a listener) is rejected, not left open. Tollgate's own
//! connections are never matched, or they would come back to it.

use std::fmt::Write as _;
use std::net::SocketAddr;

use clap::ValueEnum;
use ipnet::IpNet;

use super::{ConfigFile, Exit, complain, print};
use crate::config;
use crate::config::typed::{Diversion, Transparent};

/// Where marked packets are routed to ourselves, and the mark.
const ROUTE_TABLE: u32 = 746;
const MARK: u32 = 0x746f;
const NAME_BYTES_MAX: usize = 32;

/// Print the nftables rules for `[egress.transparent]`, as a script for sh; nothing is changed
#[derive(clap::Args, Debug)]
#[command(
    group = clap::ArgGroup::new("placement").required(true),
    after_help = "\
Say whose connections are redirected: those of the application's user on this machine (--user), of everybody in this
network namespace but Tollgate's user (--except-user, as in a Kubernetes pod), or of the networks behind this machine
(--from). Everything else that they send is rejected, except to this machine and to the networks of --direct.

Examples:
  tollgate egress rules --print --user tooljet --direct 10.0.5.0/24 | sudo sh
  tollgate egress rules --print --except-user 1337 --direct 10.0.0.0/8 | sh
  tollgate egress rules --print --from 172.18.0.0/16 --mode tproxy"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Print them; the firewall is never changed by Tollgate itself
    #[arg(long, required = true)]
    print: bool,
    /// Redirect what this user of this machine sends, a name or a number
    #[arg(long, value_name = "USER", value_parser = user, group = "placement")]
    user: Vec<String>,
    /// Redirect what everybody in this network namespace sends but this user, who must be Tollgate's
    #[arg(long, value_name = "USER", value_parser = user, group = "placement")]
    except_user: Vec<String>,
    /// Redirect what comes from this network
    #[arg(long, value_name = "CIDR", group = "placement")]
    from: Vec<IpNet>,
    /// Leave connections to this network alone, such as to the application's own database
    #[arg(long, value_name = "CIDR")]
    direct: Vec<IpNet>,
    /// How connections are handed over; as in the configuration if not given
    #[arg(long)]
    mode: Option<Mode>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Redirect,
    Tproxy,
}

/// A mistake in how the command is used, and what mends it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Misfit(String);

/// What goes into the rules of one family.
struct Family {
    /// `ip` or `ip6`.
    word: &'static str,
    /// As in `meta nfproto ipv4`.
    protocol: &'static str,
    listen: Option<SocketAddr>,
    dns_listen: Option<SocketAddr>,
    /// Everything, as a prefix.
    all: &'static str,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    let (config, _) = match config::load(&arguments.file.config) {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            complain(&mistakes);
            return Exit::Usage;
        }
    };
    let egress = config.egress.as_ref();
    let Some(transparent) = egress.and_then(|egress| egress.transparent.as_ref()) else {
        let file = arguments.file.config.display();
        complain(&Misfit(format!(
            "{file} has no [egress.transparent], so nothing would take what is redirected; add it"
        )));
        return Exit::Usage;
    };
    match arguments.script(transparent) {
        Ok(script) => print(&script),
        Err(misfit) => {
            complain(&misfit);
            Exit::Usage
        }
    }
}

impl Arguments {
    fn script(&self, transparent: &Transparent) -> Result<String, Misfit> {
        let mode = match self.mode {
            None => transparent.mode,
            Some(Mode::Redirect) => Diversion::Redirect,
            Some(Mode::Tproxy) => Diversion::Tproxy,
        };
        let families = families(transparent);
        self.fits(mode, &families)?;
        self.keeps_clear(transparent)?;
        let mut out = self.preface(mode != transparent.mode);
        let hook = if self.from.is_empty() {
            "output"
        } else {
            "prerouting"
        };
        out += "nft -f - <<'RULES'\ntable inet tollgate\ndelete table inet tollgate\ntable inet tollgate {\n";
        chain(
            &mut out,
            "divert",
            &format!("nat hook {hook} priority -100"),
            &self.matches("diverted"),
        );
        let mut diverted = families.iter().flat_map(Family::names).collect::<Vec<_>>();
        if mode == Diversion::Redirect {
            diverted.extend(self.spared());
            diverted.extend(families.iter().filter_map(Family::redirect));
        }
        plain_chain(&mut out, "diverted", &diverted);
        if mode == Diversion::Tproxy {
            let mut handed = vec![
                "ct direction reply return".to_owned(), // answers of servers in there
                "meta l4proto != tcp return".to_owned(),
                "tcp dport 53 return".to_owned(),
            ];
            handed.extend(self.spared());
            handed.extend(families.iter().filter_map(Family::tproxy));
            chain(
                &mut out,
                "hand_over",
                "filter hook prerouting priority -150",
                &self.matches("handed"),
            );
            plain_chain(&mut out, "handed", &handed);
        }
        let hook = if self.from.is_empty() {
            "output"
        } else {
            "forward"
        };
        chain(
            &mut out,
            "confine",
            &format!("filter hook {hook} priority 0"),
            &self.matches("confined"),
        );
        let mut confined = vec!["ct direction reply accept".to_owned()];
        if self.from.is_empty() {
            // Where a redirected packet leaves by is not known to this hook yet; where it goes to is.
            confined.push("fib daddr type local accept".to_owned());
        }
        confined.extend(self.direct_to().map(|to| format!("{to} accept")));
        confined.push("reject with icmpx admin-prohibited".to_owned());
        plain_chain(&mut out, "confined", &confined);
        out += "}\nRULES\n";
        if mode == Diversion::Tproxy {
            families
                .iter()
                .filter(|f| f.listen.is_some())
                .for_each(|f| f.routing(&mut out));
        }
        self.epilogue(&mut out, &families);
        Ok(out)
    }

    /// What would lead past us is not printed.
    fn keeps_clear(&self, transparent: &Transparent) -> Result<(), Misfit> {
        let over = |net: &&IpNet| {
            let mut blocks = transparent.synthetic.nets();
            blocks.any(|block| net.contains(&block) || block.contains(*net))
        };
        match self.direct.iter().find(over) {
            None => Ok(()),
            Some(net) => Err(Misfit(format!(
                "--direct {net} overlaps `egress.transparent.synthetic`, so that connections to names would go past Tollgate; give a narrower network, or choose another block"
            ))),
        }
    }

    /// What could not work is not printed.
    fn fits(&self, mode: Diversion, families: &[Family; 2]) -> Result<(), Misfit> {
        let misfit = |text: &str| Err(Misfit(text.to_owned()));
        if self.from.is_empty() {
            return match mode {
                Diversion::Redirect => Ok(()),
                Diversion::Tproxy => misfit(
                    "tproxy takes what comes from other machines or namespaces (--from); use --mode redirect on the same one",
                ),
            };
        }
        for family in families {
            let local = |address: Option<SocketAddr>| address.is_some_and(|a| a.ip().is_loopback());
            if mode == Diversion::Redirect && local(family.listen) {
                return misfit(
                    "`egress.transparent.listen` is on loopback, where nothing from --from can be redirected to; name this machine's address in their network, or use tproxy",
                );
            }
            if local(family.dns_listen) {
                return misfit(
                    "`egress.transparent.dns_listen` is on loopback, where nobody from --from can ask; name this machine's address in their network",
                );
            }
        }
        Ok(())
    }

    fn preface(&self, other_mode: bool) -> String {
        let mut out = "# Apply as root, and again after every restart of the machine. Take back with: nft delete table inet tollgate\n".to_owned();
        out += if self.from.is_empty() {
            "# Tollgate itself must run as a user that is not redirected here.\n"
        } else {
            "# Tollgate's own connections begin on this machine and are not redirected.\n"
        };
        if !self.from.is_empty() && self.from.iter().all(|net| matches!(net, IpNet::V4(_))) {
            out += "# No IPv6 network is named with --from: what comes by IPv6 is neither redirected nor rejected.\n";
        }
        if other_mode {
            out += "# This is not the mode that the configuration has: set `egress.transparent.mode` too.\n";
        }
        out += "set -e\n";
        out
    }

    fn epilogue(&self, out: &mut String, families: &[Family; 2]) {
        let server = families.iter().find_map(|f| f.dns_listen);
        let server = match server.map(|s| s.ip()) {
            Some(ip) if !ip.is_unspecified() => ip.to_string(),
            _ if self.from.is_empty() => "127.0.0.1".to_owned(),
            _ => "ADDRESS".to_owned(),
        };
        let whose = if self.from.is_empty() {
            "this machine (a pod: dnsPolicy None, dnsConfig)"
        } else {
            "those who are redirected (a container: --dns)"
        };
        *out += &format!("# /etc/resolv.conf of {whose}:\n#   nameserver {server}\n");
        if server == "ADDRESS" {
            *out += "# where ADDRESS is this machine's in their network.\n";
        }
    }

    /// Whose packets go to `chain`.
    fn matches(&self, chain: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for user in &self.user {
            lines.push(format!("meta skuid {user} goto {chain}"));
        }
        if !self.except_user.is_empty() {
            let users = self.except_user.join(", ");
            lines.push(format!("meta skuid != {{ {users} }} goto {chain}"));
        }
        for net in &self.from {
            lines.push(format!("{} saddr {net} goto {chain}", word(net)));
        }
        lines
    }

    /// What is left alone: this machine itself, and what was asked for.
    fn spared(&self) -> Vec<String> {
        let own = "fib daddr type local return".to_owned();
        let direct = self.direct_to().map(|to| format!("{to} return"));
        [own].into_iter().chain(direct).collect()
    }

    fn direct_to(&self) -> impl Iterator<Item = String> {
        (self.direct.iter()).map(|net| format!("{} daddr {net}", word(net)))
    }
}

impl Family {
    fn names(&self) -> Vec<String> {
        let Some(listen) = self.dns_listen else {
            return Vec::new();
        };
        let line = |protocol| {
            let to = self.to(listen);
            format!("meta nfproto {} {protocol} dport 53 {to}", self.protocol)
        };
        ["udp", "tcp"].map(line).into()
    }

    fn redirect(&self) -> Option<String> {
        let to = self.to(self.listen?);
        Some(format!(
            "meta nfproto {} meta l4proto tcp {to}",
            self.protocol
        ))
    }

    fn tproxy(&self) -> Option<String> {
        let listen = self.listen?;
        let at = if listen.ip().is_unspecified() {
            format!(":{}", listen.port())
        } else {
            listen.to_string()
        };
        let (word, protocol) = (self.word, self.protocol);
        Some(format!(
            "meta nfproto {protocol} meta l4proto tcp tproxy {word} to {at} meta mark set {MARK:#x} accept"
        ))
    }

    /// Marked packets are for ourselves, whatever their address.
    fn routing(&self, out: &mut String) {
        let ip = if self.word == "ip" { "ip" } else { "ip -6" };
        let rule = format!("fwmark {MARK:#x} lookup {ROUTE_TABLE}");
        writeln!(out, "{ip} rule delete {rule} 2>/dev/null || true").ok(); // writing to a String cannot fail
        writeln!(out, "{ip} rule add {rule}").ok();
        writeln!(
            out,
            "{ip} route replace local {} dev lo table {ROUTE_TABLE}",
            self.all
        )
        .ok();
    }

    fn to(&self, listen: SocketAddr) -> String {
        if listen.ip().is_unspecified() {
            format!("redirect to :{}", listen.port())
        } else {
            format!("dnat {} to {listen}", self.word)
        }
    }
}

fn families(transparent: &Transparent) -> [Family; 2] {
    let first = |list: &[SocketAddr], v4| list.iter().find(|a| a.is_ipv4() == v4).copied();
    let family = |word, protocol, all, v4| Family {
        word,
        protocol,
        listen: first(&transparent.listen, v4),
        dns_listen: first(&transparent.dns_listen, v4),
        all,
    };
    [
        family("ip", "ipv4", "0.0.0.0/0", true),
        family("ip6", "ipv6", "::/0", false),
    ]
}

fn chain(out: &mut String, name: &str, hook: &str, lines: &[String]) {
    let mut all = vec![format!("type {hook}; policy accept;")];
    all.extend_from_slice(lines);
    plain_chain(out, name, &all);
}

fn plain_chain(out: &mut String, name: &str, lines: &[String]) {
    let body: String = lines.iter().map(|line| format!("\t\t{line}\n")).collect();
    *out += &format!("\tchain {name} {{\n{body}\t}}\n");
}

fn word(net: &IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    }
}

/// A user as nftables reads one; nothing that a shell or nftables would read otherwise.
fn user(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let plain = !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(good);
    if plain && !text.starts_with(['-', '.']) {
        return Ok(text.to_owned());
    }
    Err("give the name or the number of a user".to_owned())
}

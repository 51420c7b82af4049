//! `[egress.transparent]`: connections that the firewall redirects, and the names they were meant for.
//!
//! What could not work is refused here: synthetic addresses that belong to somebody, a family that nothing listens in,
//! a responder that would ask itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::raw::{Table, Value};
use super::sets::Sets;
use super::typed::{Diversion, EgressClient, ForwardTo, Synthetic, Transparent};
use super::{gate, ingress, units};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3129);
const DEFAULT_DNS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5353);
/// Long enough to connect to what was just looked up, short enough that a reload is felt soon.
const DEFAULT_TTL: Duration = Duration::from_secs(10);
/// For benchmarks within a network (RFC 2544): the one large block that nobody's own network uses.
const DEFAULT_SYNTHETIC: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15);
/// Blocks that belong to nobody in the internet: a synthetic address must not hide somebody's server.
const FREE_V4: [Ipv4Net; 5] = [
    DEFAULT_SYNTHETIC,
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
];
/// Unique local addresses (RFC 4193).
const FREE_V6: Ipv6Net =
    Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7);
/// A /24 has 254 addresses, half of which are handed out.
const PREFIX_LENGTH_V4_MAX: u8 = 24;
/// Room for as many addresses as any IPv4 block has.
const PREFIX_LENGTH_V6_MAX: u8 = 96;

/// `[egress.transparent]`
pub(super) fn transparent(table: &Table<'_>, sets: &Sets, limits: &[&str]) -> Transparent {
    let dns_listen = listen(table, "dns_listen", DEFAULT_DNS_LISTEN);
    let listen = listen(table, "listen", DEFAULT_LISTEN);
    let synthetic = synthetic(table, &listen);
    let modes = [
        ("redirect", Diversion::Redirect),
        ("tproxy", Diversion::Tproxy),
    ];
    Transparent {
        mode: table.word("mode", &modes, Diversion::Redirect),
        clients: clients(table, sets),
        ttl: table.duration("ttl", SECOND..=HOUR, DEFAULT_TTL),
        limits: ingress::limits(table, "limits", limits),
        dns_limits: ingress::limits(table, "dns_limits", limits),
        forward_to: table
            .table("forward_to")
            .map(|t| forward_to(&t, &dns_listen)),
        listen,
        dns_listen,
        synthetic,
    }
}

fn listen(table: &Table<'_>, name: &'static str, default: SocketAddr) -> Vec<SocketAddr> {
    let Some(value) = table.value(name) else {
        table.notes.listens(&table.key(name), default);
        return vec![default];
    };
    let list = value.list();
    if list.is_empty() {
        value.wrong(
            "an empty list listens nowhere",
            format!(r#"write `{name} = "{default}"`, or leave it out"#),
        );
    }
    list.iter().filter_map(Value::listen).collect()
}

fn synthetic(table: &Table<'_>, listen: &[SocketAddr]) -> Synthetic {
    let (mut v4, mut v6) = (None, None);
    let value = table.value("synthetic");
    for item in value.iter().flat_map(Value::list) {
        let Some(net) = item.parsed(block) else {
            continue;
        };
        let taken = match net {
            IpNet::V4(net) => v4.replace(net).is_some(),
            IpNet::V6(net) => v6.replace(net).is_some(),
        };
        if taken {
            let mend = "keep one IPv4 block, and one IPv6 block if IPv6 is wanted";
            item.wrong("a second block of this family", mend);
        }
        if !listen.iter().any(|l| l.is_ipv4() == net.addr().is_ipv4()) {
            let mend = "add an address of that family to `listen`, or leave the block out";
            item.wrong("nothing listens in this family", mend);
        }
    }
    if let (Some(value), None, Some(_)) = (&value, v4, v6) {
        let mend = format!(r#"add an IPv4 block, such as "{DEFAULT_SYNTHETIC}""#);
        value.wrong("no IPv4 block: many clients ask for nothing else", mend);
    }
    Synthetic {
        v4: v4.unwrap_or(DEFAULT_SYNTHETIC),
        v6,
    }
}

fn block(text: &str) -> units::Read<IpNet> {
    let net = units::net(text)?;
    let (free, longest) = match net {
        IpNet::V4(net) => (
            FREE_V4.iter().any(|free| free.contains(&net)),
            PREFIX_LENGTH_V4_MAX,
        ),
        IpNet::V6(net) => (FREE_V6.contains(&net), PREFIX_LENGTH_V6_MAX),
    };
    if !free {
        let mend = format!(r#"use "{DEFAULT_SYNTHETIC}", a private block, or one of {FREE_V6}"#);
        return Err((format!("{text} may belong to somebody"), mend));
    }
    if net.prefix_len() > longest {
        let mend = format!("give a /{longest} or a larger block");
        return Err((format!("{text} has too few addresses"), mend));
    }
    Ok(net)
}

/// A driver that knows of no proxy cannot give a password: its address must be enough.
fn clients(table: &Table<'_>, sets: &Sets) -> Vec<EgressClient> {
    let example = r#"add `clients = [{ name = "app", from = ["10.0.3.0/24"] }]`; for an application on this machine name its own addresses, and loopback"#;
    gate::clients(&table.some("clients", example), sets, None)
}

fn forward_to(table: &Table<'_>, dns_listen: &[SocketAddr]) -> ForwardTo {
    let mend = r#"add `names = ["*.cluster.local"]`"#;
    let names = table.some("names", mend);
    let mend = r#"add `servers = ["10.96.0.10:53"]`"#;
    let mut servers = Vec::new();
    for item in table.some("servers", mend) {
        let Some(server) = item.parsed(units::name_server) else {
            continue;
        };
        if dns_listen.contains(&server) {
            let mend = "name the server that knows these names";
            item.wrong("this is our own responder", mend);
        }
        servers.push(server);
    }
    ForwardTo {
        names: names
            .iter()
            .filter_map(|v| v.parsed(units::host_pattern))
            .collect(),
        servers,
    }
}

/// What can only be told beside the rest of `[egress]`.
pub(super) fn beside(
    egress: &Table<'_>,
    transparent: &Transparent,
    resolvers: &[SocketAddr],
    fixed: &[IpAddr],
) {
    let key = "egress.transparent";
    if resolvers.is_empty() {
        let mend = r#"add `resolver = { servers = ["10.0.0.2:53"] }` to `[egress]`"#;
        let problem =
            "no name servers of our own: /etc/resolv.conf of this machine may name Tollgate itself";
        egress.wrong_at(key, problem, mend);
    }
    if resolvers.iter().any(|r| transparent.dns_listen.contains(r)) {
        let mend = "name the servers that know the destinations";
        egress.wrong_at(
            "egress.resolver.servers",
            "one of them is our own responder",
            mend,
        );
    }
    for address in fixed {
        if transparent.synthetic.contains(*address) {
            let mend = "choose another block: synthetic addresses stand for names, and stand on no interface";
            let problem = format!("the fixed address {address} is in it");
            egress.wrong_at("egress.transparent.synthetic", &problem, mend);
        }
    }
}

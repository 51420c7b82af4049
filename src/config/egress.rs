//! `[egress]`: the fixed addresses, the named forwards and the policy; `gate` reads the listeners.
//!
//! Without listener and forward there is one gate, for HTTP and SOCKS5, on loopback for loopback. What would let
//! everybody use a data source, or reach every private address, is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::gate;
use super::ingress;
use super::raw::{Table, Value};
use super::sets::Sets;
use super::typed::{Action, Egress, Forward, PolicyRule, Protocol};
use super::{transparent, units};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DEFAULT_DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pools of database drivers keep connections for about half an hour and more.
const DEFAULT_IDLE: Duration = HOUR;
/// Ports to dial from; fewer would be used up by the waiting time of closed connections.
const PORTS_MIN: u16 = 1024;
const PROTOCOLS: [(&str, Protocol); 7] = [
    ("mongodb", Protocol::Mongodb),
    ("mysql", Protocol::Mysql),
    ("none", Protocol::None),
    ("postgres", Protocol::Postgres),
    ("redis", Protocol::Redis),
    ("sqlserver", Protocol::Sqlserver),
    ("tls", Protocol::Tls),
];

/// `[egress]`
pub(super) fn egress(table: &Table<'_>, sets: &Sets, limits: &[&str], folder: &Path) -> Egress {
    not_yet(table);
    let mend = r#"add `fixed = ["203.0.113.7"]` with an address of this machine"#;
    let (fixed_v4, fixed_v6) = pair(&table.some("fixed", mend));
    let (advertised_v4, advertised_v6) = advertised(table, fixed_v4, fixed_v6);
    let mut listeners = Vec::new();
    for value in table.list("listener") {
        listeners.extend(
            value
                .table()
                .and_then(|t| gate::listener(&t, sets, limits, folder)),
        );
    }
    let mut forwards = Vec::new();
    for value in table.list("forward") {
        forwards.extend(value.table().and_then(|t| forward(&t, sets, limits)));
    }
    let transparent = table
        .table("transparent")
        .map(|t| transparent::transparent(&t, sets, limits));
    if names_no_door(table) {
        table.notes.listens("egress", gate::DEFAULT_LISTEN);
        listeners.push(gate::default_listener());
    }
    let clients: Vec<&str> = listeners
        .iter()
        .flat_map(|l| &l.clients)
        .map(|c| &*c.name)
        .chain(forwards.iter().map(|f| &*f.name))
        .chain(
            transparent
                .iter()
                .flat_map(|t| &t.clients)
                .map(|c| &*c.name),
        )
        .collect();
    let policy = policy(table, sets, &clients);
    let resolvers = resolvers(table);
    if let Some(transparent) = &transparent {
        let fixed = fixed_v4.map(IpAddr::V4).into_iter();
        let fixed: Vec<IpAddr> = fixed.chain(fixed_v6.map(IpAddr::V6)).collect();
        transparent::beside(table, transparent, &resolvers, &fixed);
    }
    Egress {
        fixed_v4,
        fixed_v6,
        advertised_v4,
        advertised_v6,
        ports: ports(table),
        resolvers,
        dial_timeout: table.duration("dial_timeout", SECOND..=MINUTE, DEFAULT_DIAL_TIMEOUT),
        idle: table.duration("idle", SECOND..=24 * HOUR, DEFAULT_IDLE),
        listeners,
        forwards,
        transparent,
        policy,
    }
}

/// Whether there is no way in but the default one.
fn names_no_door(table: &Table<'_>) -> bool {
    ["listener", "forward", "transparent"]
        .iter()
        .all(|door| table.value(door).is_none())
}

fn not_yet(table: &Table<'_>) {
    table.not_yet(
        "inject",
        "leave it out; the platform sends its own credentials",
    );
    table.not_yet(
        "via",
        "run one gateway on the machine that holds the fixed address",
    );
}

/// How the outside sees the fixed addresses.
fn advertised(
    table: &Table<'_>,
    fixed_v4: Option<Ipv4Addr>,
    fixed_v6: Option<Ipv6Addr>,
) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let Some(value) = table.value("advertised") else {
        return (None, None);
    };
    let (v4, v6) = pair(&value.list());
    if (v4.is_some() && fixed_v4.is_none()) || (v6.is_some() && fixed_v6.is_none()) {
        value.wrong(
            "an address of a family that has none in `fixed`",
            "remove it, or add the address of this machine that is seen so to `fixed`",
        );
    }
    (v4, v6)
}

/// At most one address of each family.
fn pair(list: &[Value<'_>]) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let (mut v4, mut v6) = (None, None);
    for item in list {
        let Some(address) = item.parsed(source_address) else {
            continue;
        };
        let taken = match address {
            IpAddr::V4(address) => v4.replace(address).is_some(),
            IpAddr::V6(address) => v6.replace(address).is_some(),
        };
        if taken {
            item.wrong(
                "a second address of this family",
                "keep one IPv4 and one IPv6 address at most: all traffic leaves from it",
            );
        }
    }
    (v4, v6)
}

fn source_address(text: &str) -> units::Read<IpAddr> {
    let mend = r#"write one address, without port and prefix, as in "203.0.113.7""#;
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err((format!("{text:?} is not an address"), mend.to_owned()));
    };
    let address = address.to_canonical();
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || link_local || broadcast {
        return Err((
            format!("{text} cannot be a source address"),
            mend.to_owned(),
        ));
    }
    Ok(address)
}

fn ports(table: &Table<'_>) -> Option<(u16, u16)> {
    let value = table.value("ports")?;
    let (low, high) = value.parsed(units::ports)?;
    if high - low + 1 < PORTS_MIN {
        let mend = format!("give at least {PORTS_MIN}, or leave it out to use the system's range");
        value.wrong("too few local ports", mend);
    }
    Some((low, high))
}

fn resolvers(table: &Table<'_>) -> Vec<SocketAddr> {
    let Some(table) = table.table("resolver") else {
        return Vec::new();
    };
    table.not_yet("search", "leave it out; destinations are complete names");
    let list = table.list("servers");
    list.iter()
        .filter_map(|v| v.parsed(units::name_server))
        .collect()
}

fn forward(table: &Table<'_>, sets: &Sets, limits: &[&str]) -> Option<Forward> {
    let listen = gate::one_listen(table, "127.0.0.1:15432");
    let to = match table.value("to") {
        Some(value) => value.parsed(units::destination),
        None => {
            table.missing("to", r#"add `to = "db.example.com:5432"`"#);
            None
        }
    };
    let usual = to
        .as_ref()
        .map_or(Protocol::None, |to| Protocol::usual(to.port));
    let protocol = table.word("protocol", &PROTOCOLS, usual);
    let called = table.value("name").map(|v| gate::name(&v));
    let from = match table.value("from") {
        None => gate::loopback(),
        Some(value) => {
            let nets = sets.nets(&value.list());
            if nets.iter().any(|net| net.prefix_len() == 0) {
                let mend = "name those who need it, as in `from = [\"10.0.3.0/24\"]`";
                value.wrong("everybody could use this data source", mend);
            }
            nets
        }
    };
    let addresses = special(table, sets);
    let limits = ingress::limits(table, "limits", limits);
    let max_tunnels = gate::max_tunnels(table);
    let to = to?;
    Some(Forward {
        name: match called {
            None => to.to_string(),
            Some(called) => called?,
        },
        listen: listen?,
        to,
        protocol,
        from,
        max_tunnels,
        addresses,
        limits,
    })
}

fn special(table: &Table<'_>, sets: &Sets) -> Vec<IpNet> {
    let mend = "name the private network that the destination is in, as in \"10.0.5.0/24\"";
    sets.some(table, "addresses", mend)
}

fn policy(egress: &Table<'_>, sets: &Sets, clients: &[&str]) -> Vec<PolicyRule> {
    let mut policy: Vec<PolicyRule> = Vec::new();
    for (at, value) in egress.list("policy").into_iter().enumerate() {
        let rule = value.table().and_then(|t| rule(&t, at, sets, clients));
        let Some(rule) = rule else { continue };
        if policy.iter().any(|earlier| earlier.name == rule.name) {
            let problem = format!("an earlier rule is called `{}`", rule.name);
            value.wrong(
                problem,
                "give each a name of its own: the audit log says which decided",
            );
        }
        policy.push(rule);
    }
    policy
}

fn rule(table: &Table<'_>, at: usize, sets: &Sets, known: &[&str]) -> Option<PolicyRule> {
    let called = match table.value("name") {
        None => Some(format!("policy-{}", at + 1)),
        Some(value) => gate::name(&value),
    };
    let mut clients = Vec::new();
    for item in table.list("clients") {
        let Some(name) = item.text() else { continue };
        if !known.contains(&name) {
            let mend = match units::nearest(name, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "add it to the `clients` of an egress listener".to_owned(),
            };
            item.wrong(format!("no egress client is called `{name}`"), mend);
        }
        clients.push(name.to_owned());
    }
    let mend = r#"add `destinations = ["*.example.com"]`, or `["*"]` for any"#;
    let list = table.some("destinations", mend);
    let destinations = list
        .iter()
        .filter_map(|v| v.parsed(units::destination_pattern));
    let ports = table.list("ports");
    let actions = [
        ("allow", Action::Allow),
        ("deny", Action::Deny),
        ("report", Action::Report),
    ];
    Some(PolicyRule {
        clients,
        destinations: destinations.collect(),
        ports: ports.iter().filter_map(Value::ports).collect(),
        addresses: special(table, sets),
        action: table.word("action", &actions, Action::Allow),
        name: called?,
    })
}

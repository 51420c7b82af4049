//! `[egress]`: the fixed addresses, the listeners, the named forwards and the policy.
//!
//! Without listener and forward there is one gate, for HTTP and SOCKS5, on loopback for loopback. An open proxy (a
//! client without password from everywhere) is refused.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::raw::{Table, Value};
use super::sets::Sets;
use super::typed::{Action, Egress, EgressClient, EgressListener, Forward, Password, PolicyRule};
use super::units;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3128);
const DEFAULT_DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pools of database drivers keep connections for about half an hour and more.
const DEFAULT_IDLE: Duration = HOUR;
/// What both SOCKS5 (RFC 1929) and we take.
const PASSWORD_BYTES_MAX: u64 = 255;
const NAME_BYTES_MAX: usize = 64;
/// Ports to dial from; fewer would be used up by the waiting time of closed connections.
const PORTS_MIN: u16 = 1024;

/// `[egress]`
pub(super) fn egress(table: &Table<'_>, sets: &Sets, folder: &Path) -> Egress {
    not_yet(table);
    let (fixed_v4, fixed_v6) = fixed(table);
    let mut listeners = Vec::new();
    for value in table.list("listener") {
        listeners.extend(value.table().and_then(|t| listener(&t, sets, folder)));
    }
    let mut forwards = Vec::new();
    for value in table.list("forward") {
        forwards.extend(value.table().and_then(|t| forward(&t, sets)));
    }
    if table.value("listener").is_none() && table.value("forward").is_none() {
        table.notes.listens("egress", DEFAULT_LISTEN);
        listeners.push(default_listener());
    }
    let clients: Vec<&str> = listeners
        .iter()
        .flat_map(|l| &l.clients)
        .map(|c| &*c.name)
        .chain(forwards.iter().map(|f| &*f.name))
        .collect();
    let mut policy = Vec::new();
    for (at, value) in table.list("policy").into_iter().enumerate() {
        policy.extend(value.table().and_then(|t| rule(&t, at, sets, &clients)));
    }
    Egress {
        fixed_v4,
        fixed_v6,
        ports: ports(table),
        resolvers: resolvers(table),
        dial_timeout: table.duration("dial_timeout", SECOND..=MINUTE, DEFAULT_DIAL_TIMEOUT),
        idle: table.duration("idle", SECOND..=24 * HOUR, DEFAULT_IDLE),
        listeners,
        forwards,
        policy,
    }
}

fn not_yet(table: &Table<'_>) {
    table.not_yet("advertised", "leave it out; only `fixed` has an effect");
    table.not_yet(
        "transparent",
        "use `[[egress.forward]]` for what cannot use a proxy",
    );
    table.not_yet(
        "inject",
        "leave it out; the platform sends its own credentials",
    );
    table.not_yet(
        "via",
        "run one gateway on the machine that holds the fixed address",
    );
}

fn fixed(table: &Table<'_>) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let (mut v4, mut v6) = (None, None);
    let list = table.list("fixed");
    if list.is_empty() {
        let mend = r#"add `fixed = ["203.0.113.7"]` with an address of this machine"#;
        table.missing("fixed", mend);
    }
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
                "a second fixed address of this family",
                "keep one IPv4 and one IPv6 address at most: all traffic leaves from it",
            );
        }
    }
    (v4, v6)
}

fn source_address(text: &str) -> units::Read<IpAddr> {
    let mend = r#"write an address of this machine, without port and prefix, as in "203.0.113.7""#;
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
    let server = |text: &str| match text.parse::<IpAddr>() {
        Ok(address) => Ok(SocketAddr::new(address.to_canonical(), 53)),
        Err(_) => text.parse::<SocketAddr>().map_err(|_| {
            let mend = r#"write the address of a name server, as in "10.0.0.2:53""#;
            (format!("{text:?} is not an address"), mend.to_owned())
        }),
    };
    let list = table.list("servers");
    list.iter().filter_map(|v| v.parsed(server)).collect()
}

fn loopback() -> Vec<IpNet> {
    let (v4, v6) = (Ipv4Addr::new(127, 0, 0, 0), Ipv6Addr::LOCALHOST);
    vec![
        IpNet::new_assert(v4.into(), 8),
        IpNet::new_assert(v6.into(), 128),
    ]
}

fn default_listener() -> EgressListener {
    EgressListener {
        listen: DEFAULT_LISTEN,
        http: true,
        socks5: true,
        clients: vec![local()],
    }
}

fn local() -> EgressClient {
    EgressClient {
        name: "local".to_owned(),
        from: loopback(),
        password: None,
    }
}

fn one_listen(table: &Table<'_>, example: &str) -> Option<SocketAddr> {
    match table.value("listen") {
        Some(value) => value.listen(),
        None => {
            table.missing("listen", &format!(r#"add `listen = "{example}"`"#));
            None
        }
    }
}

fn listener(table: &Table<'_>, sets: &Sets, folder: &Path) -> Option<EgressListener> {
    let listen = one_listen(table, "127.0.0.1:3128");
    let (http, socks5) = accept(table);
    let mut clients: Vec<EgressClient> = Vec::new();
    for value in table.list("clients") {
        let client = value.table().and_then(|t| client(&t, sets, folder));
        let Some(client) = client else { continue };
        if clients
            .iter()
            .any(|c| c.name == client.name && c.from == client.from)
        {
            value.wrong("the same client twice", "remove one");
        }
        clients.push(client);
    }
    if table.list("clients").is_empty() {
        if listen.is_none_or(|l| l.ip().is_loopback()) {
            clients.push(local());
        } else {
            let mend = r#"add `clients = [{ name = "app", from = ["10.0.3.0/24"] }]`"#;
            table.missing("clients", mend);
        }
    }
    Some(EgressListener {
        listen: listen?,
        http,
        socks5,
        clients,
    })
}

fn accept(table: &Table<'_>) -> (bool, bool) {
    let Some(value) = table.value("accept") else {
        return (true, true);
    };
    let (mut http, mut socks5) = (false, false);
    let list = value.list();
    if list.is_empty() {
        let mend = r#"write `accept = ["http", "socks5"]` or leave it out"#;
        value.wrong("an empty list accepts nothing", mend);
    }
    for item in list {
        match item.text() {
            Some("http") => http = true,
            Some("socks5") => socks5 = true,
            Some(other) => {
                let mend = r#"choose "http" or "socks5""#;
                item.wrong(format!("unknown value {other:?}"), mend);
            }
            None => {}
        }
    }
    (http, socks5)
}

/// A name that is also a user name: no colon (RFC 7617), nothing that would have to be escaped.
fn name(value: &Value<'_>) -> Option<String> {
    value.parsed(|text| {
        let plain = |b: u8| b.is_ascii_graphic() && b != b':' && b != b'"' && b != b'\\';
        if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(plain) {
            let mend = format!(
                "use 1 to {NAME_BYTES_MAX} ASCII letters, digits and signs, without colon, quote, backslash and space"
            );
            return Err((format!("{text:?} is not a usable name"), mend));
        }
        Ok(text.to_owned())
    })
}

fn client(table: &Table<'_>, sets: &Sets, folder: &Path) -> Option<EgressClient> {
    table.not_yet(
        "password",
        "put it in a file of its own and name that in `password_file`",
    );
    let called = match table.value("name") {
        Some(value) => name(&value),
        None => {
            table.missing(
                "name",
                r#"add `name = "app"`; it is written to the audit log"#,
            );
            None
        }
    };
    let password = table.value("password_file").map(|v| password(&v, folder));
    let from = table.value("from").map(|v| (sets.nets(&v.list()), v));
    let from = match from {
        None => {
            table.missing("from", r#"add `from = ["10.0.3.0/24"]`"#);
            None
        }
        Some((nets, value)) => {
            if password.is_none() && nets.iter().any(|net| net.prefix_len() == 0) {
                let mend = "narrow `from`, or add `password_file`";
                value.wrong("an open proxy: everybody, without a password", mend);
            }
            Some(nets)
        }
    };
    let password = match password {
        None => None,
        Some(read) => Some(read?),
    };
    Some(EgressClient {
        name: called?,
        from: from?,
        password,
    })
}

fn password(value: &Value<'_>, folder: &Path) -> Option<Password> {
    let path = folder.join(value.text()?);
    let mut bytes = Vec::new();
    let read = std::fs::File::open(&path)
        .and_then(|file| file.take(4 * PASSWORD_BYTES_MAX).read_to_end(&mut bytes));
    if let Err(error) = read {
        let problem = format!("cannot read {}: {error}", path.display());
        value.wrong(problem, "check the path and its permissions");
        return None;
    }
    let password = bytes.trim_ascii();
    if password.is_empty() || password.len() as u64 > PASSWORD_BYTES_MAX {
        let problem = format!("{} does not hold a password", path.display());
        let mend = format!("write 1 to {PASSWORD_BYTES_MAX} bytes to it, and nothing else");
        value.wrong(problem, mend);
        return None;
    }
    Some(Password(password.into()))
}

fn forward(table: &Table<'_>, sets: &Sets) -> Option<Forward> {
    let listen = one_listen(table, "127.0.0.1:15432");
    let to = match table.value("to") {
        Some(value) => value.parsed(units::destination),
        None => {
            table.missing("to", r#"add `to = "db.example.com:5432"`"#);
            None
        }
    };
    let called = table.value("name").map(|v| name(&v));
    let from = match table.value("from") {
        None => loopback(),
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
    let to = to?;
    Some(Forward {
        name: match called {
            None => to.to_string(),
            Some(called) => called?,
        },
        listen: listen?,
        to,
        from,
        addresses,
    })
}

fn special(table: &Table<'_>, sets: &Sets) -> Vec<IpNet> {
    let mend = "name the private network that the destination is in, as in \"10.0.5.0/24\"";
    sets.some(table, "addresses", mend)
}

fn rule(table: &Table<'_>, at: usize, sets: &Sets, known: &[&str]) -> Option<PolicyRule> {
    let called = match table.value("name") {
        None => Some(format!("policy-{}", at + 1)),
        Some(value) => name(&value),
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
    let list = table.list("destinations");
    if list.is_empty() {
        table.missing(
            "destinations",
            r#"add `destinations = ["*.example.com"]`, or `["*"]` for any"#,
        );
    }
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

//! `[[egress.listener]]`: where egress clients come in, and who they are.
//!
//! An open proxy (a client without password from everywhere) is refused. A password never stands in the file itself, and
//! its own file may hold a hash of it.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use ipnet::IpNet;

use super::ingress;
use super::raw::{Table, Value};
use super::sets::Sets;
use super::typed::{EgressClient, EgressListener, Password, PasswordHash, Secret};

pub(super) const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3128);
/// What both SOCKS5 (RFC 1929) and we take.
pub const PASSWORD_BYTES_MAX: u64 = 255;
const NAME_BYTES_MAX: usize = 64;
const TUNNELS_MAX: usize = 1_000_000;
/// How a stored hash begins.
pub const HASH_MARK: &str = "pbkdf2-sha256:";
/// Fewer are guessed too fast, more take seconds.
const ITERATIONS: RangeInclusive<u32> = 100_000..=10_000_000;
const SALT_BYTES_MIN: usize = 8;
const HASH_BYTES: usize = 32;

/// The gate of an `[egress]` that names none.
pub(super) fn default_listener() -> EgressListener {
    EgressListener {
        listen: DEFAULT_LISTEN,
        http: true,
        socks4: true,
        socks5: true,
        clients: vec![local()],
        limits: Vec::new(),
    }
}

fn local() -> EgressClient {
    EgressClient {
        name: "local".to_owned(),
        from: loopback(),
        password: None,
        max_tunnels: None,
    }
}

/// One `[[egress.listener]]`
pub(super) fn listener(
    table: &Table<'_>,
    sets: &Sets,
    limits: &[&str],
    folder: &Path,
) -> Option<EgressListener> {
    let limits = ingress::limits(table, "limits", limits);
    let listen = one_listen(table, "127.0.0.1:3128");
    let Accept {
        http,
        socks4,
        socks5,
    } = accept(table);
    let mut clients: Vec<EgressClient> = Vec::new();
    let example = r#"add `clients = [{ name = "app", from = ["10.0.3.0/24"] }]`"#;
    let local_only = listen.is_none_or(|l| l.ip().is_loopback());
    let list = if table.value("clients").is_none() && local_only {
        clients.push(local());
        Vec::new()
    } else {
        table.some("clients", example)
    };
    clients.extend(self::clients(&list, sets, Some(folder)));
    Some(EgressListener {
        listen: listen?,
        http,
        socks4,
        socks5,
        clients,
        limits,
    })
}

/// Every one of `list`. Files of passwords are relative to `folder`; without one there are no passwords.
pub(super) fn clients(list: &[Value<'_>], sets: &Sets, folder: Option<&Path>) -> Vec<EgressClient> {
    let mut clients: Vec<EgressClient> = Vec::new();
    for value in list {
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
    clients
}

/// What a listener speaks.
#[derive(Default)]
struct Accept {
    http: bool,
    socks4: bool,
    socks5: bool,
}

fn accept(table: &Table<'_>) -> Accept {
    let Some(value) = table.value("accept") else {
        return Accept {
            http: true,
            socks4: true,
            socks5: true,
        };
    };
    let mut accept = Accept::default();
    let list = value.list();
    if list.is_empty() {
        let mend = r#"write `accept = ["http", "socks5"]` or leave it out"#;
        value.wrong("an empty list accepts nothing", mend);
    }
    for item in list {
        match item.text() {
            Some("http") => accept.http = true,
            Some("socks4") => accept.socks4 = true,
            Some("socks5") => accept.socks5 = true,
            Some(other) => {
                let mend = r#"choose "http", "socks5" or "socks4""#;
                item.wrong(format!("unknown value {other:?}"), mend);
            }
            None => {}
        }
    }
    accept
}

/// A name that is also a user name: no colon (RFC 7617), nothing that would have to be escaped.
pub(super) fn name(value: &Value<'_>) -> Option<String> {
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

fn client(table: &Table<'_>, sets: &Sets, folder: Option<&Path>) -> Option<EgressClient> {
    if folder.is_some() {
        table.not_yet(
            "password",
            "put it in a file of its own and name that in `password_file`",
        );
    }
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
    let password = folder.and_then(|folder| {
        let value = table.value("password_file")?;
        Some(password(&value, folder))
    });
    let from = table.value("from").map(|v| (sets.nets(&v.list()), v));
    let from = match from {
        None => {
            table.missing("from", r#"add `from = ["10.0.3.0/24"]`"#);
            None
        }
        Some((nets, value)) => {
            if password.is_none() && nets.iter().any(|net| net.prefix_len() == 0) {
                let mend = match folder {
                    Some(_) => "narrow `from`, or add `password_file`",
                    None => "narrow `from` to those who need it",
                };
                value.wrong("an open proxy: everybody, without a password", mend);
            }
            Some(nets)
        }
    };
    let password = match password {
        None => None,
        Some(read) => Some(read?),
    };
    let max_tunnels = max_tunnels(table);
    Some(EgressClient {
        name: called?,
        from: from?,
        password,
        max_tunnels,
    })
}

/// Connections out that one client may have at the same time.
pub(super) fn max_tunnels(table: &Table<'_>) -> Option<usize> {
    let value = table.value("max_tunnels")?;
    value.integer(1..=TUNNELS_MAX)
}

/// `pbkdf2-sha256:ITERATIONS:SALT:HASH`, both in Base64: what `tollgate egress hash-password` prints.
fn hashed(text: &str) -> Option<PasswordHash> {
    let mut parts = text.split(':');
    let mut next = || parts.next();
    let iterations = next()?.parse().ok().filter(|n| ITERATIONS.contains(n))?;
    let decode = |text: &str| BASE64_STANDARD.decode(text).ok().map(Vec::into_boxed_slice);
    let (salt, hash) = (decode(next()?)?, decode(next()?)?);
    let whole = next().is_none() && salt.len() >= SALT_BYTES_MIN && hash.len() == HASH_BYTES;
    Some(PasswordHash {
        iterations: NonZeroU32::new(iterations)?,
        salt,
        hash,
    })
    .filter(|_| whole)
}

/// The password or key in the file that `value` names.
pub(super) fn secret(value: &Value<'_>, folder: &Path) -> Option<Secret> {
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
    Some(Secret(password.into()))
}

/// The password in the file that `value` names, or its hash.
fn password(value: &Value<'_>, folder: &Path) -> Option<Password> {
    let secret = secret(value, folder)?;
    let Some(hash) = str::from_utf8(&secret.0)
        .ok()
        .and_then(|p| p.strip_prefix(HASH_MARK))
    else {
        return Some(Password::Plain(secret));
    };
    let hash = hashed(hash);
    if hash.is_none() {
        let file = value.text().unwrap_or_default();
        let problem = format!("{file} does not hold a password hash that can be used");
        let mend = "make it anew with `tollgate egress hash-password`";
        value.wrong(problem, mend);
    }
    hash.map(Password::Hashed)
}

/// The one address of a listener.
pub(super) fn one_listen(table: &Table<'_>, example: &str) -> Option<SocketAddr> {
    match table.value("listen") {
        Some(value) => value.listen(),
        None => {
            table.missing("listen", &format!(r#"add `listen = "{example}"`"#));
            None
        }
    }
}

/// This machine alone.
pub(super) fn loopback() -> Vec<IpNet> {
    let (v4, v6) = (Ipv4Addr::new(127, 0, 0, 0), Ipv6Addr::LOCALHOST);
    vec![
        IpNet::new_assert(v4.into(), 8),
        IpNet::new_assert(v6.into(), 128),
    ]
}

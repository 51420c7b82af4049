//! `acme` of `[ingress.tls]`: certificates that are ordered, and `[limits.store]`, where replicas may share them.
//!
//! The names to order are those of the listener's routes and no others. What cannot be ordered by the chosen challenge
//! is a mistake here, not a failure at midnight.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use crate::addr::{Destination, Host};

use super::gate::password;
use super::raw::{Table, Value};
use super::typed::{
    Acme, AcmeStore, Binding, Challenge, Hook, HostPattern, Issuer, Password, Process, RedisStore,
    Route,
};
use super::units::Read;

const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";
const CHALLENGES: [(&str, Challenge); 4] = [
    ("tls-alpn-01", Challenge::TlsAlpn),
    ("http-01", Challenge::Http),
    ("dns-01", Challenge::Dns),
    ("dns-persist-01", Challenge::DnsPersist),
];
const ISSUERS_MAX: usize = 4;
const HOOK_WORDS_MAX: usize = 16;
/// Each is an order of its own; certificate authorities bound orders by the hour.
const NAMES_MAX: usize = 256;
const REDIS_PORT: u16 = 6379;

/// What was read before, and matters here.
#[derive(Clone, Copy)]
pub(super) struct Ground<'a> {
    pub(super) folder: &'a Path,
    pub(super) process: &'a Process,
    pub(super) redis: Option<&'a RedisStore>,
    /// Of the same ingress.
    pub(super) routes: &'a [Route],
    pub(super) redirect_http: &'a [SocketAddr],
}

/// `acme` of a `tls` table.
pub(super) fn acme(tls: &Table<'_>, ground: Ground<'_>) -> Option<Acme> {
    let table = tls.table("acme")?;
    let contact = table.value("contact").and_then(|v| v.parsed(contact));
    let challenge = table.word("challenge", &CHALLENGES, Challenge::TlsAlpn);
    let hook = hook(&table, challenge, ground.folder);
    let first = issuer(&table, Some(LETS_ENCRYPT), ground.folder);
    let mut issuers = Vec::from_iter(first);
    let fallback = table.list("fallback");
    if fallback.len() >= ISSUERS_MAX {
        let mend = format!("keep at most {}", ISSUERS_MAX - 1);
        table.wrong(format!("{} in `fallback`", fallback.len()), mend);
    }
    issuers.extend(fallback.iter().filter_map(|v| other(v, ground.folder)));
    let store = store(&table, ground);
    let known = issuers.iter().enumerate();
    for (at, issuer) in known {
        let before = issuers.iter().take(at);
        if before.clone().any(|i| i.directory == issuer.directory) {
            let problem = format!("{} is named twice", issuer.directory);
            table.wrong(problem, "name each directory once");
        }
    }
    let acme = Acme {
        contact,
        issuers,
        challenge,
        hook,
        store: store?,
    };
    possible(&table, &acme, &hosts(ground.routes), ground);
    Some(acme)
}

/// The hosts of `routes`, each once.
pub(super) fn hosts(routes: &[Route]) -> Vec<HostPattern> {
    let mut hosts = Vec::new();
    for host in routes.iter().flat_map(|route| &route.hosts) {
        if !hosts.contains(host) {
            hosts.push(host.clone());
        }
    }
    hosts
}

/// Refuses what could never be ordered.
fn possible(table: &Table<'_>, acme: &Acme, hosts: &[HostPattern], ground: Ground<'_>) {
    let wrong = |problem: String, mend: &str| table.wrong(problem, mend);
    if hosts.is_empty() && !ground.routes.is_empty() {
        wrong(
            "no host is named, so there is nothing to order a certificate for".to_owned(),
            r#"add `hosts = ["tools.example.com"]` beside `listen`"#,
        );
    }
    if hosts.len() > NAMES_MAX {
        let mend = "spread them over several `[[ingress]]`, or use a wildcard";
        wrong(format!("{} names", hosts.len()), mend);
    }
    if acme.challenge == Challenge::Http && ground.redirect_http.is_empty() {
        wrong(
            "the challenge http-01 is answered on port 80, and nothing listens there".to_owned(),
            r#"add `redirect_http = "0.0.0.0:80"` beside `listen`, or choose another challenge"#,
        );
    }
    let by_dns = matches!(acme.challenge, Challenge::Dns | Challenge::DnsPersist);
    for name in hosts {
        match name {
            HostPattern::Below(below) if !by_dns => wrong(
                format!("`*.{below}` can only be ordered by a DNS challenge"),
                r#"choose `challenge = "dns-persist-01"` or "dns-01", or name each host"#,
            ),
            HostPattern::Exact(Host::Address(address)) if by_dns => wrong(
                format!("the address {address} cannot be ordered by a DNS challenge"),
                r#"choose `challenge = "tls-alpn-01"` or "http-01", or remove it from `hosts`"#,
            ),
            HostPattern::Exact(Host::Address(address))
                if acme.issuers.iter().any(|i| i.profile.is_none()) =>
            {
                wrong(
                    format!("the address {address} needs a profile that allows addresses"),
                    r#"add `profile = "shortlived"` to `acme`, or remove the address from `hosts`"#,
                );
            }
            HostPattern::Below(_) | HostPattern::Exact(_) => {}
        }
    }
}

/// A certificate authority: `directory` and what goes with it.
fn issuer(table: &Table<'_>, default: Option<&str>, folder: &Path) -> Option<Issuer> {
    let directory = match table.value("directory") {
        None => default.and_then(|default| directory(default).ok()),
        Some(value) => value.parsed(directory),
    };
    let profile = table.value("profile").and_then(|v| v.parsed(profile));
    let binding = match table.table("eab") {
        None => None,
        Some(eab) => Some(binding(&eab, folder)?),
    };
    let ca_file = table.value("ca_file").and_then(|v| v.text());
    let (directory, authority) = directory?;
    Some(Issuer {
        directory,
        authority,
        profile,
        binding,
        ca_file: ca_file.map(|text| folder.join(text)),
    })
}

/// One of `fallback`: a directory, or a table with one.
fn other(value: &Value<'_>, folder: &Path) -> Option<Issuer> {
    if !value.is_table() {
        let (directory, authority) = value.parsed(directory)?;
        return Some(Issuer {
            directory,
            authority,
            profile: None,
            binding: None,
            ca_file: None,
        });
    }
    let table = value.table()?;
    if table.value("directory").is_none() {
        table.missing("directory", r#"add `directory = "https://..."`"#);
    }
    issuer(&table, None, folder)
}

/// The URL, and whom it is asked of.
fn directory(text: &str) -> Read<(String, Destination)> {
    let url = match text {
        "letsencrypt" => LETS_ENCRYPT,
        "letsencrypt-staging" => LETS_ENCRYPT_STAGING,
        url => url,
    };
    let wrong = |problem: String| {
        let mend = r#"write "letsencrypt", "letsencrypt-staging", or the https URL that the certificate authority gives as its ACME directory"#;
        Err((problem, mend.to_owned()))
    };
    let Some(rest) = url.strip_prefix("https://") else {
        return wrong(format!("{text:?} is not the https URL of a directory"));
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let plain = url.bytes().all(|b| b.is_ascii_graphic()) && !url.contains(['#', '@', '"', '\\']);
    match destination(authority, 443) {
        Some(destination) if plain => Ok((url.to_owned(), destination)),
        Some(_) | None => wrong(format!("{text:?} is not the URL of a directory")),
    }
}

/// A mail address, with or without `mailto:`.
fn contact(text: &str) -> Read<String> {
    let address = text.strip_prefix("mailto:").unwrap_or(text);
    let good = address.split_once('@').is_some_and(|(user, host)| {
        let plain = |b: u8| b.is_ascii_graphic() && !b"@,?&\"<>".contains(&b);
        !user.is_empty() && user.bytes().all(plain) && host.contains('.') && {
            matches!(Host::parse(host), Ok(Host::Name(_)))
        }
    });
    if good {
        return Ok(address.to_owned());
    }
    let mend = r#"write one mail address, as in "ops@example.com""#.to_owned();
    Err((format!("{text:?} is not a mail address"), mend))
}

fn profile(text: &str) -> Read<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if !text.is_empty() && text.len() <= 64 && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    let mend = r#"write the name of one that the directory offers, as in "shortlived""#.to_owned();
    Err((format!("{text:?} is not a profile"), mend))
}

/// `eab`: what a certificate authority that knows its customers gives them.
fn binding(table: &Table<'_>, folder: &Path) -> Option<Binding> {
    let kid = match table.value("kid") {
        Some(value) => value.text().map(str::to_owned),
        None => {
            let mend =
                r#"add `kid = "..."`, the key identifier that the certificate authority gave you"#;
            table.missing("kid", mend);
            None
        }
    };
    let Some(value) = table.value("key_file") else {
        let mend = r#"add `key_file = "eab.key"`, a file with the HMAC key that belongs to `kid`"#;
        table.missing("key_file", mend);
        return None;
    };
    let text = password(&value, folder)?;
    let decoded = URL_SAFE_NO_PAD.decode(text.0.trim_ascii_end());
    let Ok(key) = decoded.or_else(|_| STANDARD.decode(&text.0)) else {
        let mend = "write the key to it as the certificate authority shows it, and nothing else";
        value.wrong("the file does not hold a base64url key", mend);
        return None;
    };
    let key = Password(key.into());
    Some(Binding { kid: kid?, key })
}

/// `hook`: a program and its first arguments.
fn hook(table: &Table<'_>, challenge: Challenge, folder: &Path) -> Option<Hook> {
    let Some(value) = table.value("hook") else {
        if challenge == Challenge::Dns {
            let mend = r#"add `hook = "/etc/tollgate/dns-hook"`, a program that sets a TXT record; or choose "dns-persist-01", which needs none"#;
            table.missing("hook", mend);
        }
        return None;
    };
    if challenge != Challenge::Dns {
        let mend = r#"remove it, or choose `challenge = "dns-01"`"#;
        value.wrong("only the challenge dns-01 has a hook", mend);
    }
    let list = value.list();
    let mut words = list.iter().filter_map(Value::text).map(str::to_owned);
    let program = words.next().filter(|program| !program.is_empty());
    let arguments: Vec<String> = words.collect();
    let Some(program) = program.filter(|_| arguments.len() < HOOK_WORDS_MAX) else {
        let mend = r#"write the program, or a list of it and its arguments, as in ["/etc/tollgate/dns-hook", "--zone", "example.com"]"#;
        value.wrong("not a command", mend);
        return None;
    };
    Some(Hook {
        program: folder.join(program),
        arguments,
    })
}

/// Where accounts and certificates are kept.
fn store(table: &Table<'_>, ground: Ground<'_>) -> Option<AcmeStore> {
    let own = ground.process.state_dir.join("acme");
    let value = table.value("store");
    let (place, value) = match (value, ground.redis) {
        (None, None) => return Some(AcmeStore::Own(own)),
        (None, Some(redis)) => (AcmeStore::Redis(redis.clone()), None),
        (Some(value), redis) if value.is("redis") => {
            let Some(redis) = redis else {
                let mend = r#"add `[limits.store]` with `redis = "redis://127.0.0.1:6379"`"#;
                value.wrong("no Redis is named", mend);
                return None;
            };
            (AcmeStore::Redis(redis.clone()), Some(value))
        }
        (Some(value), _) => {
            let path = ground.folder.join(value.text()?);
            if path.starts_with(&ground.process.state_dir) {
                return Some(AcmeStore::Own(path));
            }
            (AcmeStore::Shared(path), Some(value))
        }
    };
    if ground.process.key_file.is_none() {
        let problem = "what replicas share is sealed, and there is no key to seal with";
        let mend = "make one with `tollgate secret keygen` and name it in `process.key_file`, the same for every replica";
        match value {
            Some(value) => value.wrong(problem, mend),
            None => table.wrong(problem, mend),
        }
    }
    Some(place)
}

/// `[limits.store]`
pub(super) fn redis(value: &Value<'_>, folder: &Path) -> Option<RedisStore> {
    let table = value.table()?;
    table.not_yet("on_error", "leave it out; certificates alone are shared");
    let user = table.value("user").and_then(|v| v.text());
    let password = match table.value("password_file") {
        None => None,
        Some(value) => Some(password(&value, folder)?),
    };
    let ca_file = table.value("ca_file").and_then(|v| v.text());
    let Some(url) = table.value("redis") else {
        table.missing("redis", r#"add `redis = "rediss://limits.internal:6379"`"#);
        return None;
    };
    let (tls, address, database) = url.parsed(redis_url)?;
    if let (false, Some(_)) = (tls, ca_file) {
        url.warn(
            "`ca_file` is for rediss://, and this is not encrypted",
            "write rediss://, or remove `ca_file`",
        );
    }
    Some(RedisStore {
        address,
        tls,
        user: user.map(str::to_owned),
        password,
        database,
        ca_file: ca_file.map(|text| -> PathBuf { folder.join(text) }),
    })
}

/// `redis://host:port/database`, or `rediss://` for TLS; port 6379 and database 0 if absent.
fn redis_url(text: &str) -> Read<(bool, Destination, i64)> {
    let mend = r#"write "redis://", or "rediss://" for TLS, then host and port, as in "rediss://limits.internal:6379""#;
    let wrong = |problem: String| Err((problem, mend.to_owned()));
    let (tls, rest) = match (
        text.strip_prefix("redis://"),
        text.strip_prefix("rediss://"),
    ) {
        (Some(rest), _) => (false, rest),
        (None, Some(rest)) => (true, rest),
        (None, None) => return wrong("not the URL of a Redis".to_owned()),
    };
    if rest.contains('@') {
        let mend = "put the user in `user` and the password in a file that `password_file` names";
        return Err(("a user or password in the URL".to_owned(), mend.to_owned()));
    }
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let database = match database {
        "" => Some(0),
        digits => digits.parse().ok().filter(|n| (0..1024).contains(n)),
    };
    match (destination(authority, REDIS_PORT), database) {
        (Some(address), Some(database)) => Ok((tls, address, database)),
        (None, _) | (_, None) => wrong(format!("{text:?} is not the URL of a Redis")),
    }
}

/// A host, with `port` if it has none of its own.
fn destination(text: &str, port: u16) -> Option<Destination> {
    let whole = match Host::parse(text) {
        Ok(_) => format!("{text}:{port}"),
        Err(_) => text.to_owned(),
    };
    Destination::parse(&whole).ok()
}

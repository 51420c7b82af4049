//! How durations, sizes, rates, addresses and names are written in the file.
//!
//! Each reader gives the value, or what is wrong and how to mend it. None of them knows where the text stood.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::addr::{Destination, Host};

use super::typed::{DestinationPattern, HostPattern, Limit};

/// A value, or what is wrong and how to mend it.
pub(super) type Read<T> = Result<T, (String, String)>;

const DURATIONS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];
const SIZES: [(&str, u64); 5] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

fn wrong<T>(problem: impl Into<String>, mend: impl Into<String>) -> Read<T> {
    Err((problem.into(), mend.into()))
}

/// A whole number and one of `units`, multiplied.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(at)?;
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

/// The largest unit that needs no fraction.
fn shown(value: u64, units: &[(&str, u64)]) -> String {
    let fits = |(_, scale): &&(&str, u64)| value != 0 && value.is_multiple_of(*scale);
    match units.iter().rev().find(fits) {
        Some((unit, scale)) => format!("{}{unit}", value / scale),
        None => format!("0{}", units.first().map_or("", |(unit, _)| unit)),
    }
}

/// `"250ms"`, `"30s"`, `"15m"`, `"1h"`, `"7d"`
pub(super) fn duration(text: &str) -> Read<Duration> {
    match scaled(text, &DURATIONS) {
        Some(ms) => Ok(Duration::from_millis(ms)),
        None => wrong(
            "not a duration",
            r#"write a whole number and ms, s, m, h or d, as in "30s""#,
        ),
    }
}

pub(super) fn show_duration(duration: &Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    shown(ms, &DURATIONS)
}

/// `"512B"`, `"64KiB"`, `"50MiB"`, `"2GiB"`
pub(super) fn size(text: &str) -> Read<u64> {
    match scaled(text, &SIZES) {
        Some(bytes) => Ok(bytes),
        None => wrong(
            "not a size",
            r#"write a whole number and B, KiB, MiB, GiB or TiB, as in "64KiB""#,
        ),
    }
}

pub(super) fn show_size(bytes: &u64) -> String {
    shown(*bytes, &SIZES)
}

/// `"50/s"`, `"600/m"`, `"1000/h"`; `burst` is filled in by the caller.
pub(super) fn rate(text: &str) -> Read<Limit> {
    let read = || {
        let (number, unit) = text.split_once('/')?;
        let (_, ms) = DURATIONS
            .iter()
            .find(|(name, _)| *name == unit && matches!(unit, "s" | "m" | "h"))?;
        let digits = number.bytes().all(|b| b.is_ascii_digit());
        let rate = number.parse::<u32>().ok().filter(|n| digits && *n > 0)?;
        let per = Duration::from_millis(*ms);
        Some(Limit {
            rate,
            per,
            burst: rate,
        })
    };
    match read() {
        Some(limit) => Ok(limit),
        None => wrong(
            "not a rate",
            r#"write a number above 0 and s, m or h, as in "50/s" or "600/m""#,
        ),
    }
}

/// `"0.0.0.0:443"`, `"[::]:443"`. Port 0, any free port, is for loopback only.
pub(super) fn listen(text: &str) -> Read<SocketAddr> {
    let Ok(address) = text.parse::<SocketAddr>() else {
        let port = text.strip_prefix(':').unwrap_or(text);
        return match port.parse::<u16>() {
            Ok(port) => wrong(
                "no address",
                format!(r#"write the address too, as in "0.0.0.0:{port}" or "[::]:{port}""#),
            ),
            Err(_) => wrong(
                "not an address and port",
                r#"write an address, not a name, and a port, as in "0.0.0.0:443" or "[::]:443""#,
            ),
        };
    };
    if let IpAddr::V6(v6) = address.ip()
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        let mend = format!(r#"write "{v4}:{}""#, address.port());
        return wrong("an IPv4 address in IPv6 form", mend);
    }
    if address.port() == 0 && !address.ip().is_loopback() {
        return wrong("port 0 is any free port", "choose a port from 1 to 65535");
    }
    Ok(address)
}

/// The address of a name server; port 53 if absent.
pub(super) fn name_server(text: &str) -> Read<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address.to_canonical(), 53));
    }
    text.parse::<SocketAddr>().or_else(|_| {
        wrong(
            format!("{text:?} is not an address"),
            r#"write the address of a name server, as in "10.0.0.2:53""#,
        )
    })
}

/// A CIDR, or a bare address that stands for itself alone.
pub(super) fn net(text: &str) -> Read<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    let Ok(net) = text.parse::<IpNet>() else {
        let mend =
            r#"write a CIDR such as "203.0.113.0/24", an address, or "@" and the name of a set"#;
        return wrong(format!("{text:?} is not an address or CIDR"), mend);
    };
    if let IpNet::V6(v6) = net
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        let length = v6.prefix_len().saturating_sub(96);
        let mend = format!(r#"write "{v4}/{length}""#);
        return wrong("an IPv4 network in IPv6 form", mend);
    }
    if net.addr() != net.network() {
        let (cidr, alone) = (net.trunc(), net.addr());
        let problem = format!("{text} has bits set beyond its prefix length");
        let mend = format!(r#"write "{cidr}" for the network, or "{alone}" for the one address"#);
        return wrong(problem, mend);
    }
    Ok(net)
}

/// `tools.example.com`, `*.example.com`, or an address.
pub(super) fn host_pattern(text: &str) -> Read<HostPattern> {
    if text == "*" {
        return wrong(
            "`*` alone is not a host",
            "leave `hosts` out to serve any host",
        );
    }
    if let Some(below) = below(text) {
        return Ok(HostPattern::Below(below?));
    }
    host(text).map(HostPattern::Exact)
}

/// `*`, `*.example.com`, a name, an address or a CIDR.
pub(super) fn destination_pattern(text: &str) -> Read<DestinationPattern> {
    if text == "*" {
        return Ok(DestinationPattern::Any);
    }
    if let Some(below) = below(text) {
        return Ok(DestinationPattern::Below(below?));
    }
    if text.contains('/') && !text.contains("://") {
        return net(text).map(DestinationPattern::Net);
    }
    match host(text)? {
        Host::Address(address) => Ok(DestinationPattern::Net(IpNet::from(address))),
        host => Ok(DestinationPattern::Exact(host)),
    }
}

fn below(text: &str) -> Option<Read<Box<str>>> {
    let rest = text.strip_prefix("*.")?;
    Some(match host(rest) {
        Ok(Host::Name(name)) => Ok(name),
        Ok(Host::Address(_)) => wrong(
            "`*.` needs a name behind it",
            r#"write a name, as in "*.example.com""#,
        ),
        Err(error) => Err(error),
    })
}

fn host(text: &str) -> Read<Host> {
    if text.contains("://") {
        let mend = "write the host alone, without scheme and path";
        return wrong(format!("{text:?} is a URL"), mend);
    }
    if text.contains('*') {
        let mend = r#"`*` may only stand for everything below a name, as in "*.example.com""#;
        return wrong(format!("{text:?} is not a host"), mend);
    }
    Host::parse(text).or_else(|error| match Destination::parse(text) {
        Ok(_) => wrong(
            format!("{text:?} has a port"),
            "write the host alone, without port",
        ),
        Err(_) => wrong(
            format!("{text:?}: {error}"),
            r#"write a name such as "tools.example.com", or an address"#,
        ),
    })
}

/// `host:port`
pub(super) fn destination(text: &str) -> Read<Destination> {
    if text.contains("://") {
        let mend = r#"write host and port alone, as in "db.example.com:5432""#;
        return wrong(format!("{text:?} is a URL"), mend);
    }
    Destination::parse(text).or_else(|error| {
        wrong(
            format!("{text:?}: {error}"),
            r#"write host and port, as in "db.example.com:5432""#,
        )
    })
}

/// `http://host:port`; port 80 if absent.
pub(super) fn server(text: &str) -> Read<Destination> {
    if text.starts_with("https://") {
        return wrong(
            "TLS to the internal server is not available in this release",
            "use http:// over loopback or a private network",
        );
    }
    let mend = r#"write "http://", host and port, as in "http://127.0.0.1:3000""#;
    let Some(rest) = text.strip_prefix("http://") else {
        return wrong(format!("{text:?} is not the URL of a server"), mend);
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#', '@']) {
        let mend = "write scheme, host and port only; the request's own path is forwarded";
        return wrong("more than host and port in the URL of a server", mend);
    }
    let whole = match Host::parse(rest) {
        Ok(_) => format!("{rest}:80"),
        Err(_) => rest.to_owned(),
    };
    Destination::parse(&whole).or_else(|error| wrong(format!("{text:?}: {error}"), mend))
}

/// A port, or an inclusive range such as `8000-8100`.
pub(super) fn ports(text: &str) -> Read<(u16, u16)> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (low.trim().parse(), high.trim().parse()) {
        (Ok(low), Ok(high)) if 0 < low && low <= high => Ok((low, high)),
        _ => wrong(
            "not a range of ports",
            r#"write two ports from 1 to 65535, the lower first, as in "8000-8100""#,
        ),
    }
}

/// The word of `known` that `text` was probably meant to be: at most a third of its letters away.
pub(super) fn nearest<'k>(text: &str, known: &[&'k str]) -> Option<&'k str> {
    let far = known.iter().map(|word| (distance(text, word), *word));
    let (edits, word) = far.min()?;
    (edits <= text.chars().count().max(3) / 3).then_some(word)
}

/// Letters to insert, drop, replace, or swap with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    const LETTERS_MAX: usize = 64;
    let a: Vec<char> = a.chars().take(LETTERS_MAX).collect();
    let b: Vec<char> = b.chars().take(LETTERS_MAX).collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j] + 1)
                .min(rows[i][j - 1] + 1)
                .min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

//! The canonical host: a DNS name or an IP address, nothing that could be read as either by somebody else.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A DNS name in canonical form, or an address.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Host {
    /// IPv4, or IPv6 that is not IPv4-mapped.
    Address(IpAddr),
    /// Lower-case ASCII, without trailing dot, at most 253 bytes; the last label is not a number.
    Name(Box<str>),
}

/// Why a text is not a host (or not `host:port`).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HostError {
    /// Empty, too long, a bad label or a forbidden character.
    #[error("not a valid host name")]
    Invalid,
    /// No port, or port 0.
    #[error("a port from 1 to 65535 is needed, as in host:443 or [2001:db8::1]:443")]
    NoPort,
    /// The last label is a number: some resolvers would read it as an IPv4 address.
    #[error(
        "a name that ends in a number could be read as an address; write the address in its usual form"
    )]
    Numeric,
    /// A zone identifier (`%eth0`).
    #[error("an IPv6 zone is not accepted")]
    Zone,
}

impl Host {
    /// Reads a name, an IPv4 address, or an IPv6 address in brackets or bare.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(HostError::Invalid)?;
            if inner.contains('%') {
                return Err(HostError::Zone);
            }
            let v6 = inner.parse::<Ipv6Addr>().map_err(|_| HostError::Invalid)?;
            return Ok(Self::Address(IpAddr::V6(v6).to_canonical()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        Self::name(text)
    }

    /// The name, or `None` for an address.
    pub fn as_name(&self) -> Option<&str> {
        match self {
            Self::Address(_) => None,
            Self::Name(name) => Some(name),
        }
    }

    fn name(text: &str) -> Result<Self, HostError> {
        let ascii = idna::domain_to_ascii_strict(text.strip_suffix('.').unwrap_or(text))
            .or_else(|_| plain(text.strip_suffix('.').unwrap_or(text)))?;
        let name = plain(&ascii)?;
        let last = name.rsplit('.').next().unwrap_or_default();
        if is_numeric(last) {
            return Err(HostError::Numeric);
        }
        Ok(Self::Name(name.into_boxed_str()))
    }
}

/// Lower-case letters, digits, `-` and `_` in labels of 1 to 63 bytes (`_` occurs in real service names).
fn plain(text: &str) -> Result<String, HostError> {
    const NAME_BYTES_MAX: usize = 253;
    const LABEL_BYTES_MAX: usize = 63;
    let good = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.split('.').all(good) {
        return Err(HostError::Invalid);
    }
    Ok(text.to_ascii_lowercase())
}

/// All digits, or `0x` and hexadecimal digits: what `inet_aton` would take for a part of an address.
fn is_numeric(label: &str) -> bool {
    match label.strip_prefix("0x") {
        Some(hex) => hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => label.bytes().all(|b| b.is_ascii_digit()),
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_canonical() {
        for (text, name) in [
            ("Tools.Example.COM", "tools.example.com"),
            ("example.com.", "example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("_srv.example", "_srv.example"),
        ] {
            assert_eq!(
                Host::parse(text).unwrap(),
                Host::Name(name.into()),
                "{text}"
            );
        }
    }

    #[test]
    fn addresses_become_canonical() {
        for (text, address) in [
            ("127.0.0.1", "127.0.0.1"),
            ("[::ffff:127.0.0.1]", "127.0.0.1"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(
                Host::parse(text).unwrap(),
                Host::Address(address.parse().unwrap()),
                "{text}"
            );
        }
    }

    #[test]
    fn spellings_that_others_read_as_addresses_are_refused() {
        for text in [
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "127.1",
            "0",
            "169.254.43518",
            "127.0.0.1.",
            "a.0x7f",
            "①②⑦.0.0.1",
            "１２７.0.0.1",
            "",
            ".",
            "a..b",
            "a b",
            "a@b",
            "a\\b",
            "a\0b",
            "a\r\nb",
            "[::1",
            "::1]",
            "[fe80::1%1]",
            "fe80::1%1",
            "[127.0.0.1]",
            "a/b",
            "[[::1]]",
        ] {
            assert!(
                Host::parse(text).is_err(),
                "{text:?} gave {:?}",
                Host::parse(text)
            );
        }
    }
}

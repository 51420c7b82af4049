//! What a record in an answer says, and names and addresses in each other's form.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::indexing_slicing
    )
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{LABEL_BYTES_MAX, NAME_BYTES_MAX, kind};

/// The data of a record in an answer, whose name is always that of the question.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Data {
    Address(IpAddr),
    Name(Box<str>),
    Service {
        priority: u16,
        weight: u16,
        port: u16,
        target: Box<str>,
    },
    /// Strings of at most 255 bytes.
    Text(Box<[Box<[u8]>]>),
}

impl Data {
    /// Type and bytes; `None` if it cannot be written.
    pub(super) fn encode(&self) -> Option<(u16, Vec<u8>)> {
        Some(match self {
            Self::Address(IpAddr::V4(v4)) => (kind::A, v4.octets().to_vec()),
            Self::Address(IpAddr::V6(v6)) => (kind::AAAA, v6.octets().to_vec()),
            Self::Name(name) => (kind::PTR, labels(name)?),
            Self::Service {
                priority,
                weight,
                port,
                target,
            } => {
                let mut out = Vec::new();
                for number in [priority, weight, port] {
                    out.extend(number.to_be_bytes());
                }
                out.extend(labels(target)?);
                (kind::SRV, out)
            }
            Self::Text(strings) => {
                let mut out = Vec::new();
                for string in strings {
                    out.push(u8::try_from(string.len()).ok()?);
                    out.extend_from_slice(string);
                }
                (kind::TXT, out)
            }
        })
    }
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for (RFC 1035 section 3.5, RFC 3596 section 2.5).
pub fn reversed(name: &str) -> Option<IpAddr> {
    let name = name.to_ascii_lowercase();
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let numbers: Vec<&str> = rest.split('.').rev().collect();
        return numbers.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let digits: Vec<&str> = name.strip_suffix(".ip6.arpa")?.split('.').rev().collect();
    if digits.len() != 32 || digits.iter().any(|digit| digit.len() != 1) {
        return None;
    }
    let bits = u128::from_str_radix(&digits.concat(), 16).ok()?;
    Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

/// A name as it stands in a message, uncompressed.
pub(super) fn labels(name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for label in name.strip_suffix('.').unwrap_or(name).split('.') {
        let length = u8::try_from(label.len()).ok()?;
        if !(1..=LABEL_BYTES_MAX).contains(&length) {
            return None;
        }
        out.push(length);
        out.extend(label.as_bytes());
    }
    out.push(0);
    (out.len() <= NAME_BYTES_MAX).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names_are_read() {
        for (name, address) in [
            ("5.0.18.198.in-addr.arpa", Some("198.18.0.5")),
            ("5.0.18.198.IN-ADDR.ARPA", Some("198.18.0.5")),
            ("0.18.198.in-addr.arpa", None),
            ("1.5.0.18.198.in-addr.arpa", None),
            ("x.0.18.198.in-addr.arpa", None),
            (
                "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
                Some("fd00::5"),
            ),
            (
                "05.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
                None,
            ),
            ("d.f.ip6.arpa", None),
            ("a.test", None),
        ] {
            assert_eq!(
                reversed(name),
                address.map(|a| a.parse().unwrap()),
                "{name}"
            );
        }
    }
}

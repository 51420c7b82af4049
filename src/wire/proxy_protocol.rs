//! The PROXY protocol header, versions 1 and 2: who is behind a load balancer.
//!
//! A pure parser over the first bytes of a connection. It never reads past the header, gives no meaning to what follows
//! the addresses (TLVs are skipped), and knows nothing of trust: whether a header is wanted is the caller's to say.
//!
//! ```text
//! v1: "PROXY " ("TCP4"|"TCP6") SP source SP destination SP port SP port CRLF, or "PROXY UNKNOWN" ... CRLF; <= 107 bytes
//! v2: 12 bytes signature | version 2, command | family, protocol | u16 length | addresses | TLVs
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of a version 1 header, with its line end.
const V1_BYTES_MAX: usize = 107;
/// Bytes of a version 2 header: addresses and TLVs of every known load balancer fit several times.
const V2_BYTES_MAX: usize = 2048;
const V2_FIXED_BYTES: usize = 16;
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// No header is longer.
pub const BYTES_MAX: usize = V2_BYTES_MAX;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Read {
    /// The beginning of a header.
    More,
    /// A whole header of `bytes`; `source` is `None` where the sender speaks for itself (`LOCAL`, `UNKNOWN`).
    Whole {
        bytes: usize,
        source: Option<SocketAddr>,
    },
}

/// Not a PROXY header.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a PROXY protocol header")]
pub struct Invalid;

/// Reads the header at the beginning of `bytes`.
pub fn read(bytes: &[u8]) -> Result<Read, Invalid> {
    match bytes.first() {
        None => Ok(Read::More),
        Some(b'P') => read_v1(bytes),
        Some(_) => read_v2(bytes),
    }
}

fn read_v1(bytes: &[u8]) -> Result<Read, Invalid> {
    const BEGINNING: &[u8] = b"PROXY ";
    let common = bytes.len().min(BEGINNING.len());
    if bytes.get(..common) != BEGINNING.get(..common) {
        return Err(Invalid);
    }
    let line = bytes.get(..V1_BYTES_MAX).unwrap_or(bytes);
    let Some(end) = line.iter().position(|b| *b == b'\n') else {
        let whole = line.len() < V1_BYTES_MAX;
        return if whole { Ok(Read::More) } else { Err(Invalid) };
    };
    let text = line.get(..end).and_then(|line| line.strip_suffix(b"\r"));
    let text = std::str::from_utf8(text.ok_or(Invalid)?).map_err(|_| Invalid)?;
    Ok(Read::Whole {
        bytes: end.saturating_add(1),
        source: source_v1(text)?,
    })
}

fn source_v1(line: &str) -> Result<Option<SocketAddr>, Invalid> {
    let mut words = line.split(' ').skip(1);
    let protocol = words.next().ok_or(Invalid)?;
    if protocol == "UNKNOWN" {
        return Ok(None);
    }
    let mut word = || words.next().ok_or(Invalid);
    let [source, destination, from, to] = [word()?, word()?, word()?, word()?];
    if words.next().is_some() {
        return Err(Invalid);
    }
    let address = |text: &str| -> Result<IpAddr, Invalid> {
        match protocol {
            "TCP4" => text.parse().map(IpAddr::V4).map_err(|_| Invalid),
            "TCP6" => text.parse().map(IpAddr::V6).map_err(|_| Invalid),
            _ => Err(Invalid),
        }
    };
    let (source, _) = (address(source)?, address(destination)?);
    let (from, _) = (port_v1(from)?, port_v1(to)?);
    Ok(Some(SocketAddr::new(source, from)))
}

/// Decimal, without sign and without leading zero.
fn port_v1(text: &str) -> Result<u16, Invalid> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain).ok_or(Invalid)
}

fn read_v2(bytes: &[u8]) -> Result<Read, Invalid> {
    let common = bytes.len().min(V2_SIGNATURE.len());
    if bytes.get(..common) != V2_SIGNATURE.get(..common) {
        return Err(Invalid);
    }
    let Some([command, kind, high, low]) = bytes.get(12..V2_FIXED_BYTES) else {
        return Ok(Read::More);
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let whole = V2_FIXED_BYTES.saturating_add(length);
    if whole > V2_BYTES_MAX {
        return Err(Invalid);
    }
    let source = match command {
        0x20 => None,
        0x21 => Some(kind),
        _ => return Err(Invalid),
    };
    let Some(addresses) = bytes.get(V2_FIXED_BYTES..whole) else {
        return Ok(Read::More);
    };
    let source = match source {
        None => None,
        Some(kind) => source_v2(*kind, addresses)?,
    };
    Ok(Read::Whole {
        bytes: whole,
        source,
    })
}

/// Source address, destination address, source port, destination port: all in network order.
fn source_v2(kind: u8, addresses: &[u8]) -> Result<Option<SocketAddr>, Invalid> {
    let (address, port) = match kind {
        0x00 => return Ok(None),
        0x11 => (
            array::<4>(addresses, 0).map(|a| IpAddr::V4(Ipv4Addr::from(a))),
            array(addresses, 8).filter(|_| addresses.len() >= 12),
        ),
        0x21 => (
            array::<16>(addresses, 0).map(|a| IpAddr::V6(Ipv6Addr::from(a))),
            array(addresses, 32).filter(|_| addresses.len() >= 36),
        ),
        _ => return Err(Invalid),
    };
    let (address, port) = address.zip(port).ok_or(Invalid)?;
    Ok(Some(SocketAddr::new(address, u16::from_be_bytes(port))))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(bytes: &[u8]) -> Option<(usize, Option<String>)> {
        match read(bytes).ok()? {
            Read::More => None,
            Read::Whole { bytes, source } => Some((bytes, source.map(|s| s.to_string()))),
        }
    }

    fn v2(command: u8, kind: u8, addresses: &[u8]) -> Vec<u8> {
        let mut header = V2_SIGNATURE.to_vec();
        header.extend([command, kind]);
        header.extend(u16::try_from(addresses.len()).unwrap().to_be_bytes());
        header.extend(addresses);
        header
    }

    #[test]
    fn headers_are_read_to_their_last_byte_and_no_further() {
        let v4: Vec<u8> = [
            &[192, 0, 2, 7, 10, 0, 0, 1, 0x1f, 0x90, 1, 0xbb][..],
            b"TLVs",
        ]
        .concat();
        let mut v6 = vec![0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
        v6.extend([0; 16]);
        v6.extend([0x1f, 0x90, 1, 0xbb]);
        let cases: [(Vec<u8>, Option<&str>); 8] = [
            (
                b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 443\r\n".to_vec(),
                Some("192.0.2.7:8080"),
            ),
            (
                b"PROXY TCP6 2001:db8::9 ::1 8080 443\r\n".to_vec(),
                Some("[2001:db8::9]:8080"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN what ever 1 2\r\n".to_vec(), None),
            (v2(0x21, 0x11, &v4), Some("192.0.2.7:8080")),
            (v2(0x21, 0x21, &v6), Some("[2001:db8::9]:8080")),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &v4), None),
        ];
        for (header, source) in cases {
            let mut sent = header.clone();
            sent.extend_from_slice(b"\x16\x03\x01");
            assert_eq!(
                whole(&sent),
                Some((header.len(), source.map(str::to_owned)))
            );
            for cut in 0..header.len() {
                assert_eq!(read(&header[..cut]), Ok(Read::More), "{cut} of {header:?}");
            }
        }
    }

    #[test]
    fn what_is_not_a_header_is_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_BYTES_MAX));
        for sent in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01\x02\x00",
            b"PROXX ",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 443\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 8080\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 443 1\r\n",
            b"PROXY TCP4  192.0.2.7 10.0.0.1 8080 443\r\n",
            b"PROXY TCP4 2001:db8::9 ::1 8080 443\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 +80 443\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 080 443\r\n",
            b"PROXY TCP4 192.0.2.007 10.0.0.1 80 443\r\n",
            b"PROXY UDP4 192.0.2.7 10.0.0.1 80 443\r\n",
            b"PROXY\r\n",
            long.as_bytes(),
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x21, 0x31, &[0; 216]),
            &v2(0x21, 0x12, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x21, &[0; 35]),
            &v2(0x21, 0x11, &[0; V2_BYTES_MAX]),
        ] {
            assert_eq!(
                read(sent),
                Err(Invalid),
                "{:?}",
                String::from_utf8_lossy(sent)
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_surprise_it(sent in prop::collection::vec(any::<u8>(), 0..300), begin in 0..3usize) {
            let begin = [&b""[..], b"PROXY ", V2_SIGNATURE][begin];
            let sent = [begin, &sent].concat();
            if let Ok(Read::Whole { bytes, .. }) = read(&sent) {
                prop_assert!(bytes <= sent.len() && bytes <= BYTES_MAX);
                prop_assert_eq!(read(&sent[..bytes]), read(&sent));
            }
        }

        #[test]
        fn a_source_survives(address in any::<u32>(), port in any::<u16>()) {
            let source = SocketAddr::new(Ipv4Addr::from_bits(address).into(), port);
            let line = format!("PROXY TCP4 {} 10.0.0.1 {port} 443\r\n", source.ip());
            prop_assert_eq!(read(line.as_bytes()), Ok(Read::Whole { bytes: line.len(), source: Some(source) }));
        }
    }
}

//! SOCKS5 on the wire (RFC 1928, RFC 1929), and SOCKS4 with its extension for names, 4a.
//!
//! ```text
//! greeting     05 n method{n}                      -> 05 method
//! credentials  01 n user{n} m password{m}          -> 01 status
//! request      05 command 00 type address port     -> 05 reply 00 01 0.0.0.0 0
//!
//! SOCKS4       04 command port address user 00     -> 00 reply 0 0.0.0.0
//! SOCKS4a      04 command port 0.0.0.x user 00 name 00
//! ```
//!
//! Each parser looks at what has arrived so far and gives what it found with its length, `None` if more is needed, or
//! why it can never become right. Nothing here reads or writes a socket. A reply never tells an address of ours.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::addr::{Destination, Host};

/// First byte of SOCKS5.
pub const VERSION_5: u8 = 5;
/// First byte of SOCKS4 and 4a.
pub const VERSION_4: u8 = 4;
/// No message of a client is longer.
pub const MESSAGE_BYTES_MAX: usize = 1 + 1 + 2 + 4 + (TEXT_BYTES_MAX + 1) + (TEXT_BYTES_MAX + 1);
/// Method: the address is enough.
pub const NO_AUTHENTICATION: u8 = 0;
/// Method: RFC 1929.
pub const USER_PASSWORD: u8 = 2;
/// Method: none of those offered.
pub const NO_METHOD: u8 = 0xff;

/// Of a text that ends with a zero byte; what SOCKS5 can count in one byte.
const TEXT_BYTES_MAX: usize = 255;
const CREDENTIALS_VERSION: u8 = 1;
const CONNECT: u8 = 1;
const ADDRESS_V4: u8 = 1;
const ADDRESS_NAME: u8 = 3;
const ADDRESS_V6: u8 = 4;

/// Why bytes can never become a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SocksError {
    #[error("not a SOCKS5 message")]
    Malformed,
    /// Well-formed, but not CONNECT: BIND, UDP ASSOCIATE or unknown.
    #[error("only the CONNECT command is served")]
    Command,
    /// An address type that RFC 1928 does not know.
    #[error("unknown address type")]
    AddressType,
    /// The name or the port is not one.
    #[error("not a valid destination")]
    Destination,
}

/// A message and how many bytes it took; `None`: more bytes are needed.
pub type Parsed<T> = Result<Option<(T, usize)>, SocksError>;

/// Which methods the client offers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offered {
    pub no_authentication: bool,
    pub user_password: bool,
}

/// RFC 1929 credentials, as they were sent.
#[derive(Clone, Eq, PartialEq)]
pub struct Credentials {
    pub user: Box<[u8]>,
    pub password: Box<[u8]>,
}

/// Reads the greeting.
pub fn greeting(bytes: &[u8]) -> Parsed<Offered> {
    let mut rest = Rest(bytes);
    let Some(version) = rest.byte() else {
        return Ok(None);
    };
    if version != VERSION_5 {
        return Err(SocksError::Malformed);
    }
    let Some(methods) = rest.counted() else {
        return Ok(None);
    };
    let offered = Offered {
        no_authentication: methods.contains(&NO_AUTHENTICATION),
        user_password: methods.contains(&USER_PASSWORD),
    };
    Ok(Some((offered, rest.used(bytes))))
}

/// Reads user and password.
pub fn credentials(bytes: &[u8]) -> Parsed<Credentials> {
    let mut rest = Rest(bytes);
    let Some(version) = rest.byte() else {
        return Ok(None);
    };
    if version != CREDENTIALS_VERSION {
        return Err(SocksError::Malformed);
    }
    let (Some(user), Some(password)) = (rest.counted(), rest.counted()) else {
        return Ok(None);
    };
    let found = Credentials {
        user: user.into(),
        password: password.into(),
    };
    Ok(Some((found, rest.used(bytes))))
}

/// Reads the request. An unknown command is reported once the whole request is there, so that the reply is read.
pub fn request(bytes: &[u8]) -> Parsed<Destination> {
    let mut rest = Rest(bytes);
    let Some(version) = rest.byte() else {
        return Ok(None);
    };
    if version != VERSION_5 {
        return Err(SocksError::Malformed);
    }
    let Some([command, _reserved, kind]) = rest.array() else {
        return Ok(None);
    };
    let host = match kind {
        ADDRESS_V4 => rest.array::<4>().map(|a| Ok(v4(a))),
        ADDRESS_V6 => rest.array::<16>().map(|a| Ok(v6(a))),
        ADDRESS_NAME => rest.counted().map(name),
        _ => return Err(SocksError::AddressType),
    };
    let (Some(host), Some(port)) = (host, rest.array().map(u16::from_be_bytes)) else {
        return Ok(None);
    };
    if command != CONNECT {
        return Err(SocksError::Command);
    }
    let host = host?;
    if port == 0 {
        return Err(SocksError::Destination);
    }
    Ok(Some((Destination { host, port }, rest.used(bytes))))
}

/// Reads a request of SOCKS4 or 4a; whatever it says of its user is passed over, because nothing proves it.
pub fn request_4(bytes: &[u8]) -> Parsed<Destination> {
    let mut rest = Rest(bytes);
    let Some(version) = rest.byte() else {
        return Ok(None);
    };
    if version != VERSION_4 {
        return Err(SocksError::Malformed);
    }
    let (Some(command), Some(port), Some(address)) = (
        rest.byte(),
        rest.array().map(u16::from_be_bytes),
        rest.array::<4>(),
    ) else {
        return Ok(None);
    };
    if rest.text()?.is_none() {
        return Ok(None);
    }
    let host = match address {
        [0, 0, 0, last] if last > 0 => match rest.text()? {
            Some(text) => name(text),
            None => return Ok(None),
        },
        _ => Ok(v4(address)),
    };
    if command != CONNECT {
        return Err(SocksError::Command);
    }
    let host = host?;
    if port == 0 {
        return Err(SocksError::Destination);
    }
    Ok(Some((Destination { host, port }, rest.used(bytes))))
}

/// Answers a request of SOCKS4: granted, or "rejected or failed".
pub fn reply_4(granted: bool) -> [u8; 8] {
    [0, if granted { 0x5a } else { 0x5b }, 0, 0, 0, 0, 0, 0]
}

/// Chooses a method.
pub fn choose(method: u8) -> [u8; 2] {
    [VERSION_5, method]
}

/// Answers credentials.
pub fn verdict(right: bool) -> [u8; 2] {
    [CREDENTIALS_VERSION, u8::from(!right)]
}

/// Answers a request; 0 is success, other codes are [`crate::outcome::Refusal::socks_reply`].
pub fn reply(code: u8) -> [u8; 10] {
    [VERSION_5, code, 0, ADDRESS_V4, 0, 0, 0, 0, 0, 0]
}

fn v4(octets: [u8; 4]) -> Host {
    Host::Address(IpAddr::V4(Ipv4Addr::from(octets)))
}

fn v6(octets: [u8; 16]) -> Host {
    Host::Address(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical())
}

/// Some clients send an address in the place of a name; it means the same.
fn name(bytes: &[u8]) -> Result<Host, SocksError> {
    let text = str::from_utf8(bytes).map_err(|_| SocksError::Destination)?;
    Host::parse(text).map_err(|_| SocksError::Destination)
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (found, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*found)
    }

    /// A length byte and that many bytes.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        let (found, rest) = self.0.split_at_checked(usize::from(length))?;
        self.0 = rest;
        Some(found)
    }

    /// Up to a zero byte, which is passed over; `None` if it has not come yet.
    fn text(&mut self) -> Result<Option<&'a [u8]>, SocksError> {
        let Some(at) = memchr::memchr(0, self.0) else {
            let too_long = self.0.len() > TEXT_BYTES_MAX;
            return if too_long {
                Err(SocksError::Malformed)
            } else {
                Ok(None)
            };
        };
        if at > TEXT_BYTES_MAX {
            return Err(SocksError::Malformed);
        }
        let found = self.0.split_at_checked(at);
        Ok(found.map(|(text, rest)| {
            self.0 = rest.strip_prefix(&[0]).unwrap_or_default();
            text
        }))
    }

    fn used(&self, whole: &[u8]) -> usize {
        whole.len().saturating_sub(self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(kind: u8, address: &[u8], port: u16) -> Vec<u8> {
        [&[5, 1, 0, kind], address, &port.to_be_bytes()].concat()
    }

    #[test]
    fn the_three_kinds_of_address_are_read() {
        for (bytes, destination) in [
            (asked(1, &[192, 0, 2, 1], 443), "192.0.2.1:443"),
            (asked(3, b"\x0eDB.example.COM", 5432), "db.example.com:5432"),
            (asked(3, b"\x09192.0.2.1", 80), "192.0.2.1:80"),
            (
                asked(4, &"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets(), 443),
                "[2001:db8::1]:443",
            ),
            (
                asked(
                    4,
                    &"::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets(),
                    443,
                ),
                "10.0.0.1:443",
            ),
        ] {
            let (found, used) = request(&bytes).unwrap().unwrap();
            assert_eq!(found, Destination::parse(destination).unwrap());
            assert_eq!(used, bytes.len());
        }
    }

    #[test]
    fn what_is_not_served_is_told_apart() {
        let udp = [&[5, 3, 0, 1], &[0; 6][..]].concat();
        assert_eq!(request(&udp).unwrap_err(), SocksError::Command);
        assert_eq!(request(&[5, 1, 0, 9]).unwrap_err(), SocksError::AddressType);
        assert_eq!(request(&[4, 1, 0, 1]).unwrap_err(), SocksError::Malformed);
        assert_eq!(greeting(b"GET ").unwrap_err(), SocksError::Malformed);
        assert_eq!(credentials(&[5, 0]).err(), Some(SocksError::Malformed));
        for bad in [
            asked(3, b"\x09127.1.1.1", 0),
            asked(3, b"\x0a2130706433", 80),
            asked(3, b"\x00", 80),
            asked(3, b"\x03a\0b", 80),
            asked(3, b"\x02\xff\xfe", 80),
        ] {
            assert_eq!(
                request(&bad).unwrap_err(),
                SocksError::Destination,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn socks4_names_an_address_or_a_name() {
        for (bytes, destination) in [
            (&b"\x04\x01\x01\xbb\xc0\0\x02\x01\0"[..], "192.0.2.1:443"),
            (b"\x04\x01\x01\xbb\xc0\0\x02\x01root\0", "192.0.2.1:443"),
            (
                b"\x04\x01\x15\x38\0\0\0\x01me\0DB.example.COM\0",
                "db.example.com:5432",
            ),
            (
                b"\x04\x01\x15\x38\0\0\0\xff\x00192.0.2.1\0",
                "192.0.2.1:5432",
            ),
            (b"\x04\x01\x15\x38\0\0\0\0\0", "0.0.0.0:5432"),
        ] {
            for cut in 0..bytes.len() {
                assert_eq!(request_4(bytes.get(..cut).unwrap()), Ok(None), "{cut}");
            }
            let (found, used) = request_4(bytes).unwrap().unwrap();
            assert_eq!(found, Destination::parse(destination).unwrap());
            assert_eq!(used, bytes.len());
        }
        for (bytes, error) in [
            (
                &b"\x04\x02\x01\xbb\xc0\0\x02\x01\0"[..],
                SocksError::Command,
            ),
            (b"\x04\x01\0\0\xc0\0\x02\x01\0", SocksError::Destination),
            (
                b"\x04\x01\x01\xbb\0\0\0\x01\x00127.1\0",
                SocksError::Destination,
            ),
            (b"\x04\x01\x01\xbb\0\0\0\x01\0\0", SocksError::Destination),
            (b"\x05", SocksError::Malformed),
        ] {
            assert_eq!(request_4(bytes).unwrap_err(), error, "{bytes:?}");
        }
        let endless = [&b"\x04\x01\x01\xbb\xc0\0\x02\x01"[..], &[b'a'; 256]].concat();
        assert_eq!(request_4(&endless).unwrap_err(), SocksError::Malformed);
    }

    #[test]
    fn what_follows_a_message_is_left_alone() {
        let (offered, used) = greeting(&[5, 2, 0, 2, 0xaa]).unwrap().unwrap();
        assert!(offered.no_authentication && offered.user_password);
        assert_eq!(used, 4);
        let (found, used) = credentials(b"\x01\x03app\x02pw\x05").unwrap().unwrap();
        assert_eq!(
            (&*found.user, &*found.password, used),
            (&b"app"[..], &b"pw"[..], 8)
        );
    }

    proptest! {
        #[test]
        fn a_message_is_whole_or_more_is_needed(name in "[a-z]{1,20}\\.example", port in 1..=u16::MAX, tail in prop::collection::vec(any::<u8>(), 0..8)) {
            let whole = [&[5, 1, 0, 3, u8::try_from(name.len()).unwrap()], name.as_bytes(), &port.to_be_bytes()].concat();
            for cut in 0..whole.len() {
                prop_assert_eq!(request(whole.get(..cut).unwrap()), Ok(None));
            }
            let (found, used) = request(&[whole.clone(), tail].concat()).unwrap().unwrap();
            prop_assert_eq!(used, whole.len());
            prop_assert_eq!(found, Destination { host: Host::Name(name.into()), port });
        }

        #[test]
        fn no_bytes_break_a_parser_and_none_waits_for_more_than_the_bound(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let long = bytes.len() >= MESSAGE_BYTES_MAX;
            for used in [greeting(&bytes).map(|p| p.map(|p| p.1)), credentials(&bytes).map(|p| p.map(|p| p.1)), request(&bytes).map(|p| p.map(|p| p.1)), request_4(&bytes).map(|p| p.map(|p| p.1))].into_iter().flatten() {
                prop_assert!(used.is_some() || !long);
                prop_assert!(used.unwrap_or_default() <= bytes.len());
            }
        }
    }
}

//! MySQL and MariaDB: an ERR packet in the place of the greeting, which the server sends first.
//!
//! ```text
//! length (3, little-endian)  sequence 00  FF  error (2, little-endian)  text
//! ```
//!
//! Without the SQL state that later errors have: before the greeting nobody has agreed to it.

use super::{Kind, Says, Step, length};

/// `ER_HOST_NOT_PRIVILEGED`
const HOST_NOT_ALLOWED: u16 = 1130;
/// `ER_CON_COUNT_ERROR`
const TOO_MANY_CONNECTIONS: u16 = 1040;
/// `ER_CONNECT_TO_FOREIGN_DATA_SOURCE`
const UNABLE_TO_CONNECT: u16 = 1429;
const ERR: u8 = 0xff;

pub(super) fn step(says: &Says) -> Step {
    let error = match says.kind {
        Kind::Forbidden => HOST_NOT_ALLOWED,
        Kind::Crowded => TOO_MANY_CONNECTIONS,
        Kind::Unreachable | Kind::Ours => UNABLE_TO_CONNECT,
    };
    let mut body = vec![ERR];
    body.extend(error.to_le_bytes());
    body.extend(says.text.as_bytes());
    let [a, b, ..] = length::<u32>(body.len()).to_le_bytes();
    Step::Last([&[a, b, 0, 0][..], &body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_packet_and_its_length() {
        let says = Says {
            text: "egress: no".into(),
            kind: Kind::Forbidden,
        };
        let Step::Last(bytes) = step(&says) else {
            panic!("the server speaks first")
        };
        assert_eq!(bytes, b"\x0d\0\0\0\xff\x6a\x04egress: no");
    }
}

//! SQL Server (MS-TDS): an answer to PRELOGIN, then an error to LOGIN7.
//!
//! ```text
//! packet     type (1)  status (1; 1 is the last of its message)  length (2, counts itself)  0 0 (2)  number (1)  0
//! PRELOGIN   { option (1)  offset (2)  length (2) }  FF  values       big-endian
//! ERROR      AA  length (2)  number (4)  state (1)  class (1)  text  server  procedure  line (4)   little-endian
//! DONE       FD  status (2)  command (2)  rows (8)
//! ```
//!
//! A client that wants encryption is not led to send its password in the clear, which a "not supported" from here would
//! do: it gets no answer.

use super::{Kind, Says, Step, length};

const HEAD_BYTES: usize = 8;
/// Of one message: a LOGIN7 with the longest names and a token.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;
const PRELOGIN: u8 = 0x12;
const LOGIN7: u8 = 0x10;
const TABULAR: u8 = 0x04;
const LAST: u8 = 1;
const VERSION: u8 = 0;
const ENCRYPTION: u8 = 1;
const END: u8 = 0xff;
const NOT_SUPPORTED: u8 = 2;
/// A version that every driver knows: SQL Server 2019.
const SERVER_VERSION: [u8; 6] = [15, 0, 7, 208, 0, 0];
/// Of `LOGIN7`: "Login failed".
const LOGIN_FAILED: u32 = 18_456;
/// The first number for errors that are not the server's own.
const OTHER: u32 = 50_000;

pub(super) fn step(heard: &[u8], says: &Says) -> Step {
    let mut rest = heard;
    let mut body = Vec::new();
    loop {
        let Some(([kind, status, high, low, ..], _)) = rest.split_first_chunk::<HEAD_BYTES>()
        else {
            return Step::More;
        };
        let bytes = usize::from(u16::from_be_bytes([*high, *low]));
        if !matches!(*kind, PRELOGIN | LOGIN7) || bytes < HEAD_BYTES {
            return Step::Mute;
        }
        if heard.len() > MESSAGE_BYTES_MAX {
            return Step::Mute;
        }
        let Some((packet, after)) = rest.split_at_checked(bytes) else {
            return Step::More;
        };
        body.extend(packet.iter().skip(HEAD_BYTES));
        rest = after;
        match (*kind, status & LAST) {
            (_, 0) => {}
            (PRELOGIN, _) if wants_encryption(&body) => return Step::Mute,
            (PRELOGIN, _) => {
                return Step::Say {
                    used: heard.len().saturating_sub(rest.len()),
                    bytes: packet_of(&prelogin()),
                };
            }
            _ => return Step::Last(packet_of(&error(says))),
        }
    }
}

/// Anything but "I cannot encrypt".
fn wants_encryption(prelogin: &[u8]) -> bool {
    let options = prelogin.chunks_exact(5);
    let value = options
        .take_while(|option| option.first() != Some(&END))
        .find_map(|option| match option {
            [ENCRYPTION, high, low, ..] => {
                prelogin.get(usize::from(u16::from_be_bytes([*high, *low])))
            }
            _ => None,
        });
    value != Some(&NOT_SUPPORTED)
}

/// Our version, and no encryption.
fn prelogin() -> Vec<u8> {
    const OPTIONS: [u8; 11] = [VERSION, 0, 11, 0, 6, ENCRYPTION, 0, 17, 0, 1, END];
    [&OPTIONS[..], &SERVER_VERSION, &[NOT_SUPPORTED]].concat()
}

fn error(says: &Says) -> Vec<u8> {
    const NAME: &str = "tollgate";
    let number = match says.kind {
        Kind::Forbidden => LOGIN_FAILED,
        Kind::Crowded | Kind::Unreachable | Kind::Ours => OTHER,
    };
    let wide = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    let mut token = Vec::new();
    token.extend(number.to_le_bytes());
    token.extend([1, 14]); // state and class: 14 is "permission"
    token.extend(length::<u16>(says.text.encode_utf16().count()).to_le_bytes());
    token.extend(wide(&says.text));
    token.push(length(NAME.len()));
    token.extend(wide(NAME));
    token.extend([0, 0, 0, 0, 0]); // no procedure, no line
    let mut tokens = vec![0xaa];
    tokens.extend(length::<u16>(token.len()).to_le_bytes());
    tokens.extend(token);
    tokens.extend([0xfd, 2, 0, 0, 0]); // ended by an error
    tokens.extend([0; 8]);
    tokens
}

fn packet_of(body: &[u8]) -> Vec<u8> {
    let [high, low] = length::<u16>(body.len().saturating_add(HEAD_BYTES)).to_be_bytes();
    [&[TABULAR, LAST, high, low, 0, 0, 1, 0][..], body].concat()
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "a test may panic"
    )]

    use super::*;

    fn hear(bytes: &[u8]) -> Step {
        step(
            bytes,
            &Says {
                text: "no".into(),
                kind: Kind::Forbidden,
            },
        )
    }

    fn packet(kind: u8, last: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + body.len()).unwrap().to_be_bytes();
        [&[kind, last, length[0], length[1], 0, 0, 0, 0][..], body].concat()
    }

    fn prelogin_of(encryption: u8) -> Vec<u8> {
        packet(
            PRELOGIN,
            1,
            &[
                0, 0, 11, 0, 6, 1, 0, 17, 0, 1, 255, 9, 0, 0, 0, 0, 0, encryption,
            ],
        )
    }

    #[test]
    fn a_prelogin_is_answered_and_a_login_refused() {
        let asked = prelogin_of(NOT_SUPPORTED);
        for cut in 0..asked.len() {
            assert_eq!(hear(&asked[..cut]), Step::More, "{cut}");
        }
        let Step::Say { used, bytes } = hear(&[&asked[..], b"next"].concat()) else {
            panic!("an answer")
        };
        assert_eq!(
            (used, &bytes[..8]),
            (asked.len(), &b"\x04\x01\0\x1a\0\0\x01\0"[..])
        );
        assert_eq!(bytes.last(), Some(&NOT_SUPPORTED));
        let login = [packet(LOGIN7, 0, b"half"), packet(LOGIN7, 1, b"rest")].concat();
        for cut in 0..login.len() {
            assert_eq!(hear(&login[..cut]), Step::More, "{cut}");
        }
        let Step::Last(bytes) = hear(&login) else {
            panic!("the last word")
        };
        assert_eq!(usize::from(bytes[3]), bytes.len());
        assert_eq!(
            bytes[8..],
            *b"\xaa\x22\0\x18\x48\0\0\x01\x0e\x02\0n\0o\0\x08t\0o\0l\0l\0g\0a\0t\0e\0\0\0\0\0\0\xfd\x02\0\0\0\0\0\0\0\0\0\0\0"
        );
    }

    #[test]
    fn nobody_is_led_to_send_a_password_in_the_clear() {
        for encryption in [0, 1, 3, 0x81] {
            assert_eq!(hear(&prelogin_of(encryption)), Step::Mute, "{encryption}");
        }
        assert_eq!(hear(&packet(PRELOGIN, 1, &[255])), Step::Mute);
    }

    #[test]
    fn what_is_no_packet_gets_no_answer() {
        for bytes in [
            packet(1, 1, b"select 1"),
            b"\x12\x01\0\x07\0\0\0\0".to_vec(),
            packet(LOGIN7, 0, &[0; 8000]).repeat(3),
        ] {
            assert_eq!(hear(&bytes), Step::Mute, "{bytes:?}");
        }
    }
}

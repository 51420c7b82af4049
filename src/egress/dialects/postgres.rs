//! PostgreSQL, protocol 3: `N` to whoever asks for TLS or GSSAPI, then an ErrorResponse to the startup message.
//!
//! ```text
//! request        length (4)  code (4)  rest     length counts itself; big-endian
//! ErrorResponse  'E'  length (4)  { field (1)  text  00 }  00
//! ```

use super::{Kind, Says, Step, length};

/// The server's own bound (`MAX_STARTUP_PACKET_LENGTH`).
const STARTUP_BYTES_MAX: usize = 10_000;
const HEAD_BYTES: usize = 8;
const CANCEL: u32 = 80_877_102;
const TLS: u32 = 80_877_103;
const GSSAPI: u32 = 80_877_104;
const VERSION_MAJOR: u32 = 3;

pub(super) fn step(heard: &[u8], says: &Says) -> Step {
    let Some(([a, b, c, d, e, f, g, h], _)) = heard.split_first_chunk() else {
        return Step::More;
    };
    let bytes = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    let code = u32::from_be_bytes([*e, *f, *g, *h]);
    if !(HEAD_BYTES..=STARTUP_BYTES_MAX).contains(&bytes) {
        return Step::Mute;
    }
    match code {
        TLS | GSSAPI => Step::Say {
            used: HEAD_BYTES,
            bytes: b"N".to_vec(),
        },
        CANCEL => Step::Mute, // nobody reads an answer to it
        _ if code >> 16 != VERSION_MAJOR => Step::Mute,
        _ if heard.len() < bytes => Step::More,
        _ => Step::Last(error(says)),
    }
}

fn error(says: &Says) -> Vec<u8> {
    let state = match says.kind {
        Kind::Forbidden => "28000",   // invalid_authorization_specification
        Kind::Crowded => "53300",     // too_many_connections
        Kind::Unreachable => "08001", // sqlclient_unable_to_establish_sqlconnection
        Kind::Ours => "57P03",        // cannot_connect_now
    };
    let mut body = Vec::new();
    for (field, text) in [
        (b'S', "FATAL"),
        (b'V', "FATAL"),
        (b'C', state),
        (b'M', &*says.text),
    ] {
        body.push(field);
        body.extend(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    let bytes = length::<u32>(body.len().saturating_add(4));
    [b"E", &bytes.to_be_bytes()[..], &body].concat()
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "a test may panic"
    )]

    use super::*;

    fn says() -> Says {
        Says {
            text: "egress: no".into(),
            kind: Kind::Forbidden,
        }
    }

    fn request(code: u32, rest: &[u8]) -> Vec<u8> {
        let length = u32::try_from(8 + rest.len()).unwrap();
        [&length.to_be_bytes()[..], &code.to_be_bytes(), rest].concat()
    }

    #[test]
    fn tls_and_gssapi_are_declined_one_by_one_then_the_startup_is_refused() {
        let no = Step::Say {
            used: 8,
            bytes: b"N".to_vec(),
        };
        assert_eq!(step(&request(TLS, b""), &says()), no);
        assert_eq!(step(&request(GSSAPI, b""), &says()), no);
        let startup = request(3 << 16, b"user\0a\0\0");
        for cut in 0..startup.len() {
            assert_eq!(step(&startup[..cut], &says()), Step::More, "{cut}");
        }
        assert_eq!(
            step(&startup, &says()),
            Step::Last(b"E\0\0\0\x26SFATAL\0VFATAL\0C28000\0Megress: no\0\0".to_vec())
        );
    }

    #[test]
    fn what_is_no_startup_gets_no_answer() {
        for bytes in [
            request(CANCEL, b"12345678"),
            request(2 << 16, b""),
            b"GET / HTTP/1.1\r\n".to_vec(),
            7_u32.to_be_bytes().repeat(2),
            [10_001_u32, 3 << 16].map(u32::to_be_bytes).concat(),
        ] {
            assert_eq!(step(&bytes, &says()), Step::Mute, "{bytes:?}");
        }
    }
}

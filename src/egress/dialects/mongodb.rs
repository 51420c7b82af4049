//! MongoDB: `ok: 0` to the first `hello` and to whatever follows it, as OP_QUERY (how drivers begin) or as OP_MSG.
//!
//! ```text
//! message   length (4)  id (4)  answers (4)  kind (4)  body      little-endian; length counts itself
//! OP_REPLY  flags (4)  cursor (8)  from (4)  count (4)  document
//! OP_MSG    flags (4)  00  document
//! document  length (4)  { type (1)  name 00  value }  00
//! ```

use super::{Kind, Says, Step, length};

const OP_REPLY: i32 = 1;
const OP_QUERY: i32 = 2004;
const OP_MSG: i32 = 2013;
const HEAD_BYTES: usize = 16;
/// A `hello` with everything a driver says of itself is below 2 KiB.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;

pub(super) fn step(heard: &[u8], says: &Says) -> Step {
    let Some((bytes, asked, kind)) = head(heard) else {
        return Step::More;
    };
    let mut body = match kind {
        OP_QUERY => [&[0; 16][..], &1_i32.to_le_bytes()].concat(),
        OP_MSG => vec![0; 5],
        _ => return Step::Mute,
    };
    if !(HEAD_BYTES..=MESSAGE_BYTES_MAX).contains(&bytes) {
        return Step::Mute;
    }
    if heard.len() < bytes {
        return Step::More;
    }
    body.extend(document(says));
    let kind = if kind == OP_QUERY { OP_REPLY } else { OP_MSG };
    let length = length::<i32>(body.len().saturating_add(HEAD_BYTES));
    let mut message = Vec::new();
    for word in [length, 0, asked, kind] {
        message.extend(word.to_le_bytes());
    }
    message.extend(body);
    Step::Say {
        used: bytes,
        bytes: message,
    }
}

/// Length, identifier and kind of the message that begins here.
fn head(heard: &[u8]) -> Option<(usize, i32, i32)> {
    let (head, _) = heard.split_first_chunk::<HEAD_BYTES>()?;
    let (words, _) = head.as_chunks::<4>();
    let [length, id, _, kind] = words else {
        return None;
    };
    let length = usize::try_from(i32::from_le_bytes(*length)).unwrap_or_default();
    Some((length, i32::from_le_bytes(*id), i32::from_le_bytes(*kind)))
}

fn document(says: &Says) -> Vec<u8> {
    let (code, name) = match says.kind {
        Kind::Forbidden => (13_i32, "Unauthorized"),
        Kind::Crowded => (50, "MaxTimeMSExpired"),
        Kind::Unreachable => (6, "HostUnreachable"),
        Kind::Ours => (91, "ShutdownInProgress"),
    };
    let mut fields = Vec::new();
    fields.extend(b"\x01ok\0");
    fields.extend(0_f64.to_le_bytes());
    text(&mut fields, b"\x02errmsg\0", &says.text);
    fields.extend(b"\x10code\0");
    fields.extend(code.to_le_bytes());
    text(&mut fields, b"\x02codeName\0", name);
    let length = length::<i32>(fields.len().saturating_add(5));
    [&length.to_le_bytes()[..], &fields, &[0]].concat()
}

fn text(fields: &mut Vec<u8>, name: &[u8], value: &str) {
    fields.extend(name);
    fields.extend(length::<i32>(value.len().saturating_add(1)).to_le_bytes());
    fields.extend(value.as_bytes());
    fields.push(0);
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "a test may panic")]

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

    fn message(length: i32, kind: i32, body: &[u8]) -> Vec<u8> {
        let words = [length, 7, 0, kind].map(i32::to_le_bytes).concat();
        [words, body.to_vec()].concat()
    }

    #[test]
    fn a_query_gets_a_reply_and_a_message_a_message() {
        let document = b"\x45\0\0\0\x01ok\0\0\0\0\0\0\0\0\0\x02errmsg\0\x03\0\0\0no\0\x10code\0\x0d\0\0\0\x02codeName\0\x0d\0\0\0Unauthorized\0\0";
        for (asked, answered, between) in [(OP_QUERY, OP_REPLY, 20), (OP_MSG, OP_MSG, 5)] {
            let whole = message(20, asked, b"body");
            for cut in 0..whole.len() {
                assert_eq!(hear(&whole[..cut]), Step::More, "{cut}");
            }
            let Step::Say { used, bytes } = hear(&[&whole[..], b"next"].concat()) else {
                panic!("an answer")
            };
            assert_eq!(used, 20);
            assert_eq!(
                bytes[..4],
                i32::try_from(bytes.len()).unwrap().to_le_bytes()
            );
            assert_eq!(bytes[8..12], 7_i32.to_le_bytes());
            assert_eq!(bytes[12..16], answered.to_le_bytes());
            assert_eq!(&bytes[16 + between..], document);
            assert_eq!(document.len(), 0x45);
        }
    }

    #[test]
    fn what_is_no_message_gets_no_answer() {
        for bytes in [
            message(15, OP_MSG, b""),
            message(-1, OP_MSG, b""),
            message(16 * 1024 + 1, OP_QUERY, b""),
            message(20, 2012, b"body"),
        ] {
            assert_eq!(hear(&bytes), Step::Mute, "{bytes:?}");
        }
    }
}

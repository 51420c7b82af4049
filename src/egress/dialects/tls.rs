//! TLS: a fatal alert in the place of a ServerHello (RFC 8446 section 6), which every library names to its user.

use super::{Kind, Says};

/// Of a record with the first byte of a handshake message in it.
pub(super) const HEAD_BYTES: usize = 6;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const ALERT: u8 = 21;
const FATAL: u8 = 2;
const ACCESS_DENIED: u8 = 49;
const INTERNAL_ERROR: u8 = 80;

/// Whether this is the beginning of a ClientHello.
pub(super) fn begins(heard: &[u8]) -> bool {
    matches!(heard, [HANDSHAKE, 3, 1..=4, _, _, CLIENT_HELLO, ..])
}

/// As a record of TLS 1.2, which 1.3 looks like too until keys are agreed on.
pub(super) fn alert(says: &Says) -> Vec<u8> {
    let why = match says.kind {
        Kind::Forbidden => ACCESS_DENIED,
        Kind::Crowded | Kind::Unreachable | Kind::Ours => INTERNAL_ERROR,
    };
    vec![ALERT, 3, 3, 0, 2, FATAL, why]
}

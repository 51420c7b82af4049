//! The receipt: what a forwarded request carries so that the upstream can tell that it is on record, and refuse it
//! otherwise.
//!
//! ```text
//! Tollgate-Receipt: v1;log=<id>;seq=<n>;leaf=<hex>;time=<ms since 1970>;mac=<hex>
//!
//! mac = HMAC-SHA-256(key, "tollgate-receipt v1" LF log LF seq LF leaf LF time LF request id LF method LF host LF target)
//! ```
//!
//! `leaf` is the hash of the BEFORE record as it is on disk: with it and `seq` the record can be asked for, and a proof
//! of it be checked, later. The MAC binds the receipt to this one request. It is a MAC and no signature because only
//! the upstream has to be convinced, at the time, which shares a key with us; who is to be convinced later, of the log,
//! holds the log's public key and asks for a proof.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::hmac;

use super::tree::Hash;

/// The shortest key that is taken.
pub const RECEIPT_KEY_BYTES_MIN: usize = 32;
const DOMAIN: &str = "tollgate-receipt v1";
/// Bytes of a value, about.
const VALUE_BYTES: usize = 256;

/// A durable BEFORE record: its number, and its leaf in the log's tree.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mark {
    pub seq: u64,
    pub leaf: Hash,
}

/// Where the writer puts the mark of one intention, before it says that it is durable.
pub(super) struct Wanted {
    /// Which of the intentions.
    pub(super) line: usize,
    pub(super) mark: Arc<OnceLock<Mark>>,
}

/// The key that is shared with the upstream.
#[derive(Clone, Debug)]
pub struct ReceiptKey(hmac::Key);

/// What a receipt is bound to: the request as it is forwarded.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    pub id: &'a [u8],
    pub method: &'a str,
    pub host: &'a [u8],
    /// Path and query.
    pub target: &'a str,
}

impl ReceiptKey {
    pub fn new(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The value of the field.
    pub fn receipt(&self, log_id: &str, mark: &Mark, bound: &Bound<'_>, wall_ns: u64) -> String {
        let mut value = String::with_capacity(VALUE_BYTES);
        let (mut seq, mut time) = (itoa::Buffer::new(), itoa::Buffer::new());
        let (seq, time) = (seq.format(mark.seq), time.format(wall_ns / 1_000_000));
        let mut leaf = [0; 64];
        let leaf = hex(&mark.leaf, &mut leaf);
        let mut context = hmac::Context::with_key(&self.0);
        context.update(DOMAIN.as_bytes());
        let texts = [log_id, seq, leaf, time].map(str::as_bytes);
        let request = [
            bound.id,
            bound.method.as_bytes(),
            bound.host,
            bound.target.as_bytes(),
        ];
        for part in texts.into_iter().chain(request) {
            context.update(b"\n");
            context.update(part);
        }
        let tag = context.sign();
        let mut mac = [0; 64];
        let mac = hex(tag.as_ref(), &mut mac);
        // Writing to a string cannot fail.
        write!(
            value,
            "v1;log={log_id};seq={seq};leaf={leaf};time={time};mac={mac}"
        )
        .ok();
        value
    }
}

/// Two digits for each of 32 bytes.
fn hex<'a>(bytes: &[u8], out: &'a mut [u8; 64]) -> &'a str {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
        pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
    std::str::from_utf8(out).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's `hmac`: see `docs/receipt.md` for what goes into it.
    #[test]
    fn a_receipt_is_what_another_implementation_computes() {
        let key = ReceiptKey::new(&[7; 32]);
        let mark = Mark {
            seq: 4711,
            leaf: [0xab; 32],
        };
        let bound = Bound {
            id: b"01a2",
            method: "GET",
            host: b"tools.example.com",
            target: "/a?b=c",
        };
        let receipt = key.receipt("log-1", &mark, &bound, 1_700_000_000_123_456_789);
        let leaf = "ab".repeat(32);
        assert_eq!(
            receipt,
            format!(
                "v1;log=log-1;seq=4711;leaf={leaf};time=1700000000123;mac=1f38a0b19f03bdce26d195d1403c667335845c637664cfaf1c72056d730c2f29"
            )
        );
    }
}

//! Time and identifiers: the one room through which both enter.
//!
//! Nothing else in the crate reads a clock or draws a random number for an identifier, so a test that needs another
//! time has one place to change. Order in the journal is its `seq`, never a time from here.

use std::cell::RefCell;
use std::fmt;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The monotonic clock: for durations and deadlines.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the room that reads the clock"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock, in nanoseconds since 1970 (UTC); 0 if the machine's clock is before that.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the room that reads the clock"
)]
pub fn wall_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// An identifier of one request or dial: UUID version 7 (RFC 9562 section 5.7), so that it sorts by time.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Id(uuid::Uuid);

impl Id {
    /// A new one. Unique with 74 random bits in each millisecond; not a secret.
    pub fn new() -> Self {
        let mut random = [0; 10];
        draw(&mut random);
        Self(uuid::Builder::from_unix_timestamp_millis(wall_ns() / 1_000_000, &random).into_uuid())
    }

    /// Reads the hyphenated form that [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        uuid::Uuid::try_parse(text).ok().map(Self)
    }

    /// The 36 characters of the hyphenated lower-case form.
    pub fn encode(self, buffer: &mut [u8; 36]) -> &str {
        let mut whole = uuid::Uuid::encode_buffer();
        let text = self.0.hyphenated().encode_lower(&mut whole);
        buffer.copy_from_slice(text.as_bytes());
        std::str::from_utf8(buffer).unwrap_or_default()
    }
}

impl Default for Id {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Writes `wall_ns` as RFC 3339 with nanoseconds, UTC, 30 bytes: `2026-11-24T08:15:00.123456789Z`.
pub fn stamp(wall_ns: u64, out: &mut Vec<u8>) {
    thread_local! {
        static SECOND: RefCell<(u64, [u8; 19])> = const { RefCell::new((u64::MAX, [0; 19])) };
    }
    let (second, mut fraction) = (wall_ns / 1_000_000_000, wall_ns % 1_000_000_000);
    SECOND.with_borrow_mut(|(cached, text)| {
        if *cached != second {
            *text = civil(second);
            *cached = second;
        }
        out.extend_from_slice(text);
    });
    let mut digits = *b".000000000Z";
    for digit in digits.iter_mut().skip(1).take(9).rev() {
        *digit = b'0' + (fraction % 10) as u8;
        fraction /= 10;
    }
    out.extend_from_slice(&digits);
}

/// A second since 1970 as `2026-11-24T08:15:00Z`; as a number if no calendar has it.
pub fn moment(second: i64) -> String {
    jiff::Timestamp::from_second(second).map_or_else(|_| second.to_string(), |at| at.to_string())
}

/// Fills `out` from the operating system's generator, through a small pool per thread.
pub fn draw(out: &mut [u8]) {
    const POOL_BYTES: usize = 640;
    thread_local! {
        static POOL: RefCell<(usize, [u8; POOL_BYTES])> = const { RefCell::new((POOL_BYTES, [0; POOL_BYTES])) };
    }
    POOL.with_borrow_mut(|(used, pool)| {
        for byte in out {
            if *used == POOL_BYTES {
                refill(pool);
                *used = 0;
            }
            *byte = pool[*used];
            *used += 1;
        }
    });
}

#[expect(
    clippy::expect_used,
    reason = "without randomness no key and no identifier can be trusted: stop"
)]
fn refill(pool: &mut [u8]) {
    aws_lc_rs::rand::fill(pool).expect("the operating system gives random bytes");
}

/// `YYYY-MM-DDTHH:MM:SS` of a second since 1970.
fn civil(second: u64) -> [u8; 19] {
    let mut text = *b"1970-01-01T00:00:00";
    let stamp = i64::try_from(second)
        .ok()
        .and_then(|s| jiff::Timestamp::from_second(s).ok());
    if let Some(stamp) = stamp {
        let written = stamp.to_string();
        if let Some(head) = written.as_bytes().get(..19) {
            text.copy_from_slice(head);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_rfc_3339() {
        let mut out = Vec::new();
        stamp(1_795_508_100_000_000_007, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2026-11-24T08:15:00.000000007Z"
        );
    }

    #[test]
    fn identifiers_differ_and_survive_their_text() {
        let (a, b) = (Id::new(), Id::new());
        assert_ne!(a, b);
        assert_eq!(Id::parse(&a.to_string()), Some(a));
        assert_eq!(a.encode(&mut [0; 36]), a.to_string());
    }
}

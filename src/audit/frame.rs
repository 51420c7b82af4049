//! One record on disk: one line of JSON between a number in front and a checksum behind.
//!
//! ```text
//! {"seq":17,"batch":2,"kind":"before","id":"…","time":"…","way":"ingress",…,"crc":"0a1b2c3d"}\n
//! |---------------------------------------------------------------------|
//!   CRC32C (Castagnoli) over these bytes, in 8 lower-case hexadecimal digits
//! ```
//!
//! `seq` counts from 1 without gaps over all files. `batch` stands on the first line of every write, with the number
//! of its lines: a batch is durable as a whole or not at all, and the next is only begun when it is. That is how
//! recovery tells a write that was torn (nothing begins after the damage) from a file that was damaged later.
//! The inside is written by `record/encode`; its first fields have a fixed order, so this room finds them without
//! parsing JSON. It never re-serialises a line: what is checked is what is stored.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use crate::clock::Id;
use crate::telemetry::Way;

/// Bytes that a frame adds to its inside, at most.
pub(super) const OVERHEAD_BYTES_MAX: usize = 96;
/// `,"crc":"xxxxxxxx"}`
const TAIL_BYTES: usize = 18;

/// A line that was checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Line<'a> {
    pub(super) seq: u64,
    /// Whether a write began with it.
    pub(super) begins: bool,
    pub(super) kind: Kind<'a>,
}

/// What a line says, as far as the log itself must know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind<'a> {
    After(Id),
    Before(Id, Way),
    Denied,
    /// Its name, and what follows it.
    Event(&'a str, &'a str),
    Seal,
}

/// Why a line is none of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Bad {
    #[error("the checksum does not match")]
    Checksum,
    #[error("not a record")]
    Shape,
}

/// Appends `inside` as line number `seq`; `batch` is the number of lines that one write begins with it.
pub(super) fn append(out: &mut Vec<u8>, seq: u64, batch: Option<u64>, inside: &[u8]) {
    let start = out.len();
    let mut digits = itoa::Buffer::new();
    out.extend_from_slice(b"{\"seq\":");
    out.extend_from_slice(digits.format(seq).as_bytes());
    if let Some(lines) = batch {
        out.extend_from_slice(b",\"batch\":");
        out.extend_from_slice(digits.format(lines).as_bytes());
    }
    out.push(b',');
    out.extend_from_slice(inside);
    let crc = crc32c::crc32c(out.get(start..).unwrap_or_default());
    out.extend_from_slice(b",\"crc\":\"");
    out.extend_from_slice(&hex(crc));
    out.extend_from_slice(b"\"}\n");
}

/// Checks one line, given without its line feed.
pub(super) fn check(line: &[u8]) -> Result<Line<'_>, Bad> {
    let at = line.len().checked_sub(TAIL_BYTES).ok_or(Bad::Shape)?;
    let (body, tail) = line.split_at_checked(at).ok_or(Bad::Shape)?;
    let digits = tail
        .strip_prefix(b",\"crc\":\"")
        .and_then(|t| t.strip_suffix(b"\"}"))
        .ok_or(Bad::Shape)?;
    if digits != hex(crc32c::crc32c(body)) {
        return Err(Bad::Checksum);
    }
    let text = std::str::from_utf8(body).map_err(|_| Bad::Shape)?;
    read(text).ok_or(Bad::Shape)
}

fn read(text: &str) -> Option<Line<'_>> {
    let (seq, rest) = text.strip_prefix("{\"seq\":")?.split_once(',')?;
    let (begins, rest) = match rest.strip_prefix("\"batch\":") {
        Some(batch) => (true, batch.split_once(',')?.1),
        None => (false, rest),
    };
    let (kind, rest) = rest.strip_prefix("\"kind\":\"")?.split_once('"')?;
    let kind = match kind {
        "before" => {
            let (id, rest) = id(rest)?;
            Kind::Before(id, way(rest)?)
        }
        "after" => Kind::After(id(rest)?.0),
        "denied" => Kind::Denied,
        "event" => {
            let (_, rest) = rest.split_once("\"name\":\"")?;
            let (name, rest) = rest.split_once('"')?;
            Kind::Event(name, rest)
        }
        "seal" => Kind::Seal,
        _ => return None,
    };
    Some(Line {
        seq: seq.parse().ok()?,
        begins,
        kind,
    })
}

fn id(rest: &str) -> Option<(Id, &str)> {
    let (id, rest) = rest.strip_prefix(",\"id\":\"")?.split_once('"')?;
    Some((Id::parse(id)?, rest))
}

fn way(rest: &str) -> Option<Way> {
    let (_, rest) = rest.strip_prefix(",\"time\":\"")?.split_once('"')?;
    let (way, _) = rest.strip_prefix(",\"way\":\"")?.split_once('"')?;
    [Way::Egress, Way::Ingress]
        .into_iter()
        .find(|w| w.as_str() == way)
}

fn hex(crc: u32) -> [u8; 8] {
    let mut digits = [0; 8];
    for (digit, shift) in digits.iter_mut().zip([28, 24, 20, 16, 12, 8, 4, 0]) {
        let nibble = char::from_digit((crc >> shift) & 0xf, 16).unwrap_or('0');
        *digit = u8::try_from(nibble).unwrap_or(b'0');
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: &str = r#""kind":"before","id":"0198f0a0-0000-7000-8000-000000000001","time":"2026-11-24T08:15:00.000000000Z","way":"egress","client":"app""#;

    fn line(seq: u64, batch: Option<u64>) -> Vec<u8> {
        let mut out = Vec::new();
        append(&mut out, seq, batch, INSIDE.as_bytes());
        assert!(out.len() <= INSIDE.len() + OVERHEAD_BYTES_MAX);
        assert_eq!(out.pop(), Some(b'\n'));
        out
    }

    #[test]
    fn a_line_is_json_and_reads_back() {
        let out = line(u64::MAX, Some(u64::MAX));
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            (&json["seq"], &json["client"]),
            (&u64::MAX.into(), &"app".into())
        );
        let id = Id::parse("0198f0a0-0000-7000-8000-000000000001").unwrap();
        let read = check(&out).unwrap();
        assert_eq!(
            read,
            Line {
                seq: u64::MAX,
                begins: true,
                kind: Kind::Before(id, Way::Egress)
            }
        );
        assert!(!check(&line(3, None)).unwrap().begins);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let good = line(17, Some(1));
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(check(&bad).is_err(), "bit {bit} of byte {at}");
            }
            assert!(check(&good[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_checksum_is_castagnoli() {
        assert_eq!(hex(crc32c::crc32c(b"123456789")), *b"e3069283");
    }
}

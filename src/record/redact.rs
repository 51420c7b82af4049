//! What may be written as it is, and what becomes a tag.
//!
//! A tag is a keyed digest: whoever holds the value and the key can find its records, and nobody can guess a value
//! from the log alone, however short it is. The lists name what is harmless; everything else is treated as a secret.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::hmac;

use super::json::Text;
use crate::clock;

/// The key of all tags of one installation.
#[derive(Clone)]
pub struct TagKey(Arc<hmac::Key>);

/// Which values may be written as they are. Compiled with the snapshot.
#[derive(Debug)]
pub struct Redaction {
    query_values: Vec<Box<[u8]>>,
    secret_paths: Vec<Vec<Part>>,
    key: TagKey,
}

#[derive(Debug)]
enum Part {
    Literal(Box<[u8]>),
    Secret,
}

/// Bytes of a tag's key.
pub const TAG_KEY_BYTES: usize = 32;
/// Hexadecimal digits of a tag: 64 bits, enough to tell apart what one log holds.
const TAG_DIGITS: usize = 16;
const TAG_PREFIX: &[u8] = b"tag:";
const TAG_BYTES: usize = TAG_PREFIX.len() + TAG_DIGITS;
/// A longer name of a query parameter is probably a value.
const QUERY_NAME_BYTES_MAX: usize = 64;

impl TagKey {
    /// A new one.
    pub fn draw() -> Self {
        let mut bytes = [0; TAG_KEY_BYTES];
        clock::draw(&mut bytes);
        Self::new(&bytes)
    }

    /// From 32 random bytes.
    pub fn new(bytes: &[u8; TAG_KEY_BYTES]) -> Self {
        Self(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// The tag that stands for `value` (percent-decoded) in every record.
    pub fn tag(&self, value: &[u8]) -> String {
        String::from_utf8_lossy(&self.digest(value)).into_owned()
    }

    fn digest(&self, value: &[u8]) -> [u8; TAG_BYTES] {
        let mut context = hmac::Context::with_key(&self.0);
        let (mut chunk, mut used) = ([0; 128], 0);
        for byte in decoded(value) {
            if used == chunk.len() {
                context.update(&chunk);
                used = 0;
            }
            chunk[used] = byte;
            used += 1;
        }
        context.update(chunk.get(..used).unwrap_or_default());
        let digest = context.sign();
        let mut tag = [0; TAG_BYTES];
        let (prefix, digits) = tag.split_at_mut(TAG_PREFIX.len());
        prefix.copy_from_slice(TAG_PREFIX);
        for (pair, byte) in digits.chunks_exact_mut(2).zip(digest.as_ref()) {
            for (digit, nibble) in pair.iter_mut().zip([byte >> 4, byte & 0xf]) {
                *digit = b"0123456789abcdef"[usize::from(nibble)];
            }
        }
        tag
    }
}

impl fmt::Debug for TagKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TagKey(..)")
    }
}

impl Redaction {
    /// `query_values`: names of query parameters whose values are harmless. `secret_paths`: patterns such as
    /// `/invitations/*`, whose `*` segments are secrets wherever in a path they match.
    pub fn new(query_values: &[String], secret_paths: &[String], key: TagKey) -> Self {
        let part = |segment: &str| match segment {
            "*" => Part::Secret,
            literal => Part::Literal(literal.as_bytes().into()),
        };
        let pattern = |text: &String| {
            text.split('/')
                .filter(|segment| !segment.is_empty())
                .map(part)
                .collect()
        };
        Self {
            query_values: query_values.iter().map(|n| n.as_bytes().into()).collect(),
            secret_paths: secret_paths.iter().map(pattern).collect(),
            key,
        }
    }

    /// Writes `path` without its fragment, secret segments replaced.
    pub(super) fn path(&self, path: &str, text: &mut Text<'_, '_>) {
        let path = path.split('#').next().unwrap_or_default();
        let mut before = 0;
        for (at, segment) in path.split('/').enumerate() {
            if at > 0 {
                text.push(b"/");
            }
            let passed = path.get(..before).unwrap_or_default();
            if !segment.is_empty() && self.is_secret(passed) {
                text.push(&self.key.digest(segment.as_bytes()));
            } else {
                text.push(segment.as_bytes());
            }
            if text.is_full() {
                return;
            }
            before += segment.len() + 1;
        }
    }

    /// Writes `query`: names as they are, values only where the name is on the list. What has no `=` is a value.
    pub(super) fn query(&self, query: &str, text: &mut Text<'_, '_>) {
        let query = query.split('#').next().unwrap_or_default();
        for (at, item) in query.split('&').enumerate() {
            if at > 0 {
                text.push(b"&");
            }
            match item.split_once('=') {
                Some((name, value)) if name.len() <= QUERY_NAME_BYTES_MAX => {
                    text.push(name.as_bytes());
                    text.push(b"=");
                    let harmless = self.query_values.iter().any(|n| **n == *name.as_bytes());
                    if harmless || value.is_empty() {
                        text.push(value.as_bytes());
                    } else {
                        text.push(&self.key.digest(value.as_bytes()));
                    }
                }
                _ if item.is_empty() => {}
                _ => text.push(&self.key.digest(item.as_bytes())),
            }
            if text.is_full() {
                return;
            }
        }
    }

    /// Whether some pattern has a secret behind parts that match the last segments of `passed`.
    fn is_secret(&self, passed: &str) -> bool {
        self.secret_paths.iter().any(|pattern| {
            (0..pattern.len())
                .filter(|at| matches!(pattern.get(*at), Some(Part::Secret)))
                .any(|at| ends_with(passed, pattern.get(..at).unwrap_or_default()))
        })
    }
}

/// Whether the last segments of `passed` are `parts`. Empty and `.` segments do not count.
fn ends_with(passed: &str, parts: &[Part]) -> bool {
    let mut segments = passed
        .rsplit('/')
        .filter(|segment| !segment.is_empty() && *segment != ".");
    parts.iter().rev().all(|part| match segments.next() {
        None => false,
        Some(segment) => match part {
            Part::Secret => true,
            Part::Literal(literal) => decoded(segment.as_bytes())
                .map(|b| b.to_ascii_lowercase())
                .eq(literal.iter().map(u8::to_ascii_lowercase)),
        },
    })
}

/// Percent-decoded (RFC 3986 section 2.1); what is not an escape stands for itself.
fn decoded(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if let [b'%', high, low, tail @ ..] = rest
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            rest = tail;
            return Some(high << 4 | low);
        }
        let (first, tail) = rest.split_first()?;
        rest = tail;
        Some(*first)
    })
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|d| u8::try_from(d).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::json::Fields;

    fn redaction() -> Redaction {
        let list = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        Redaction::new(
            &list(&["page"]),
            &list(&["/invitations/*", "/org/*/reset/*"]),
            TagKey::new(&[7; TAG_KEY_BYTES]),
        )
    }

    fn shown(write: impl FnOnce(&Redaction, &mut Text<'_, '_>)) -> String {
        let (mut out, redaction) = (Vec::new(), redaction());
        let mut fields = Fields::new(&mut out);
        let mut text = fields.open("t", 4096);
        write(&redaction, &mut text);
        text.close();
        let out = String::from_utf8(out).unwrap();
        out.strip_prefix("\"t\":\"")
            .unwrap()
            .trim_end_matches('"')
            .to_owned()
    }

    #[test]
    fn query_values_stay_only_if_listed() {
        let secret = redaction().key.tag(b"s3cr+t/");
        assert_eq!(
            shown(|r, t| r.query("page=2&token=s3cr%2Bt%2f&empty=&&page=x#frag", t)),
            format!("page=2&token={secret}&empty=&&page=x")
        );
        let bare = redaction().key.tag(b"eyJhbGciOi");
        assert_eq!(shown(|r, t| r.query("eyJhbGciOi", t)), bare);
        let name = "n".repeat(QUERY_NAME_BYTES_MAX + 1);
        assert!(!shown(|r, t| r.query(&format!("{name}=1"), t)).contains(&name));
    }

    #[test]
    fn secret_segments_are_replaced_however_they_are_spelled() {
        let tag = redaction().key.tag(b"abc");
        for path in [
            "/invitations/abc",
            "/INVITATIONS/abc",
            "/%69nvitations/abc",
            "//invitations//abc",
            "/invitations/./abc",
            "/invitations/%61bc",
            "/sub/path/invitations/abc/accept#abc",
            "/org/acme/reset/abc",
        ] {
            let shown = shown(|r, t| r.path(path, t));
            assert!(
                shown.contains(&tag) && !shown.contains("abc"),
                "{path}: {shown}"
            );
        }
        assert_eq!(
            shown(|r, t| r.path("/invitation/abc/x", t)),
            "/invitation/abc/x"
        );
        assert_eq!(shown(|r, t| r.path("/", t)), "/");
    }

    #[test]
    fn a_tag_needs_its_key() {
        let other = TagKey::new(&[8; TAG_KEY_BYTES]);
        assert_ne!(other.tag(b"abc"), redaction().key.tag(b"abc"));
        assert_ne!(
            redaction().key.tag(&[b'a'; 128]),
            redaction().key.tag(&[b'a'; 256])
        );
        assert_eq!(redaction().key.tag(b"abc").len(), TAG_BYTES);
        assert_eq!(format!("{other:?}"), "TagKey(..)");
    }
}

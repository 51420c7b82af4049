//! The inside of one JSON object, written field by field into a buffer that the caller owns.
//!
//! Whatever comes in, what goes out is valid UTF-8 and valid JSON on one line: control characters and the marks that
//! reorder text on a screen are escaped, bytes that are not UTF-8 become U+FFFD, and a text longer than its bound ends
//! in `…` and is owned up to by a last field `"truncated":true`. Nothing here allocates but the buffer itself.

use std::fmt::Display;
use std::io::Write as _;

/// Appends fields; the braces are the caller's.
pub(crate) struct Fields<'a> {
    out: &'a mut Vec<u8>,
    begun: bool,
    truncated: bool,
}

/// One text field that is being written piece by piece; at most `left` bytes more.
pub(crate) struct Text<'a, 'b> {
    fields: &'b mut Fields<'a>,
    left: usize,
    full: bool,
}

/// Ends a text that was cut.
const CUT: &str = "…";

impl<'a> Fields<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>) -> Self {
        Self {
            out,
            begun: false,
            truncated: false,
        }
    }

    /// A word of ours, which needs no escaping.
    pub(crate) fn word(&mut self, key: &'static str, word: &str) {
        self.key(key);
        self.out.push(b'"');
        self.out.extend_from_slice(word.as_bytes());
        self.out.push(b'"');
    }

    /// A value whose text needs neither escaping nor a bound: an address, a name that is canonical already.
    pub(crate) fn shown(&mut self, key: &'static str, value: impl Display) {
        self.key(key);
        self.out.push(b'"');
        write!(self.out, "{value}").ok(); // writing to a Vec cannot fail
        self.out.push(b'"');
    }

    pub(crate) fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        self.out
            .extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// A time, in nanoseconds since 1970.
    pub(crate) fn time(&mut self, key: &'static str, wall_ns: u64) {
        self.key(key);
        self.out.push(b'"');
        crate::clock::stamp(wall_ns, self.out);
        self.out.push(b'"');
    }

    pub(crate) fn yes(&mut self, key: &'static str) {
        self.key(key);
        self.out.extend_from_slice(b"true");
    }

    /// A text from outside, at most `max` bytes of it once escaped. Gives how many.
    pub(crate) fn text(&mut self, key: &'static str, bytes: &[u8], max: usize) -> usize {
        let mut text = self.open(key, max);
        text.push(bytes);
        let used = max - text.left;
        text.close();
        used
    }

    /// A list of values that need no escaping, the first `max` of them.
    pub(crate) fn list(
        &mut self,
        key: &'static str,
        values: impl ExactSizeIterator<Item = impl Display>,
        max: usize,
    ) {
        self.key(key);
        self.truncated |= values.len() > max;
        self.out.push(b'[');
        for (at, value) in values.take(max).enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(self.out, "{comma}\"{value}\"").ok(); // writing to a Vec cannot fail
        }
        self.out.push(b']');
    }

    /// A list of texts from outside: the first `max` of them, at most `text_max` bytes of each once escaped.
    pub(crate) fn texts<'t>(
        &mut self,
        key: &'static str,
        values: impl ExactSizeIterator<Item = &'t [u8]>,
        max: usize,
        text_max: usize,
    ) {
        self.key(key);
        self.truncated |= values.len() > max;
        self.out.push(b'[');
        for (at, value) in values.take(max).enumerate() {
            if at > 0 {
                self.out.push(b',');
            }
            self.out.push(b'"');
            let mut text = Text {
                fields: self,
                left: text_max,
                full: false,
            };
            text.push(value);
            text.close();
        }
        self.out.push(b']');
    }

    /// An object whose inside was encoded before, by this room.
    pub(crate) fn encoded_object(&mut self, key: &'static str, inside: &[u8]) {
        self.key(key);
        self.out.push(b'{');
        self.out.extend_from_slice(inside);
        self.out.push(b'}');
    }

    /// An object within this one.
    pub(crate) fn object(&mut self, key: &'static str, inside: impl FnOnce(&mut Fields<'_>)) {
        self.key(key);
        self.out.push(b'{');
        let mut inner = Fields::new(self.out);
        inside(&mut inner);
        let truncated = inner.truncated;
        self.truncated |= truncated;
        self.out.push(b'}');
    }

    /// Begins a text that is written in pieces.
    pub(crate) fn open<'b>(&'b mut self, key: &'static str, max: usize) -> Text<'a, 'b> {
        self.key(key);
        self.out.push(b'"');
        Text {
            fields: self,
            left: max,
            full: false,
        }
    }

    /// Says so if anything was cut.
    pub(crate) fn close(mut self) {
        if self.truncated {
            self.yes("truncated");
        }
    }

    fn key(&mut self, key: &'static str) {
        if self.begun {
            self.out.push(b',');
        }
        self.begun = true;
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }
}

impl Text<'_, '_> {
    /// Appends `bytes`, or as much of them as has room.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if bytes.len() <= self.left && !self.full && bytes.iter().all(|b| is_plain(*b)) {
            self.left -= bytes.len();
            self.fields.out.extend_from_slice(bytes);
            return;
        }
        for chunk in bytes.utf8_chunks() {
            chunk.valid().chars().for_each(|c| self.push_char(c));
            if !chunk.invalid().is_empty() {
                self.push_char(char::REPLACEMENT_CHARACTER);
            }
            if self.full {
                return;
            }
        }
    }

    /// Whether nothing more has room.
    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    pub(crate) fn close(self) {
        if self.full {
            self.fields.out.extend_from_slice(CUT.as_bytes());
            self.fields.truncated = true;
        }
        self.fields.out.push(b'"');
    }

    fn push_char(&mut self, c: char) {
        let mut room = [0; ESCAPED_BYTES_MAX];
        let piece = escaped(c, &mut room);
        if self.full || piece.len() > self.left {
            self.full = true;
            return;
        }
        self.left -= piece.len();
        self.fields.out.extend_from_slice(piece);
    }
}

/// Bytes of the longest piece that one character becomes: `\u202e`.
const ESCAPED_BYTES_MAX: usize = 6;

fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

fn escaped(c: char, room: &mut [u8; ESCAPED_BYTES_MAX]) -> &[u8] {
    match c {
        '"' => b"\\\"",
        '\\' => b"\\\\",
        c if c.is_control() || reorders(c) => {
            let code = u32::from(c);
            *room = *b"\\u0000";
            for (at, digit) in room.iter_mut().skip(2).enumerate() {
                let nibble = (code >> (12 - 4 * at)) & 0xf;
                *digit = b"0123456789abcdef"[nibble as usize];
            }
            room
        }
        c => c.encode_utf8(room).as_bytes(),
    }
}

/// Line separators and the marks of Unicode's bidirectional algorithm: a log must not look other than it is.
fn reorders(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(bytes: &[u8], max: usize) -> serde_json::Value {
        let mut out = b"{".to_vec();
        let mut fields = Fields::new(&mut out);
        fields.text("t", bytes, max);
        fields.close();
        out.push(b'}');
        assert!(!out.contains(&b'\n'));
        serde_json::from_slice(&out).unwrap()
    }

    proptest! {
        #[test]
        fn anything_becomes_json_and_keeps_its_meaning(bytes: Vec<u8>) {
            let read = one(&bytes, usize::MAX);
            prop_assert_eq!(read["t"].as_str().unwrap(), String::from_utf8_lossy(&bytes));
            prop_assert!(read.get("truncated").is_none());
        }

        #[test]
        fn a_cut_text_is_a_prefix_and_says_so(text in "\\PC*|[\\x00-\\x7f]*", max in 0_usize..40) {
            let read = one(text.as_bytes(), max);
            let shown = read["t"].as_str().unwrap();
            if read.get("truncated").is_some() {
                prop_assert!(text.starts_with(shown.strip_suffix(CUT).unwrap()));
            } else {
                prop_assert_eq!(shown, text);
            }
        }
    }

    #[test]
    fn what_could_deceive_a_reader_is_escaped() {
        let mut out = Vec::new();
        let mut fields = Fields::new(&mut out);
        fields.text("t", "a\u{1b}[2J\u{202e}\n\u{85}é".as_bytes(), 99);
        fields.close();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#""t":"a\u001b[2J\u202e\u000a\u0085é""#
        );
    }
}

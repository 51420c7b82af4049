//! Redis and Valkey: `-ERR` to every command that comes, as arrays (RESP2 and 3) or as lines.
//!
//! ```text
//! command  *2 CRLF  $4 CRLF AUTH CRLF  $6 CRLF secret CRLF     or     PING CRLF
//! answer   -ERR text CRLF
//! ```
//!
//! Drivers send several at once and report what the first was told, or the last; so each gets its answer.

use super::{Says, Step};

/// Of one command; drivers send two or three words when they connect.
const WORDS_MAX: usize = 64;
/// In one step: an empty line is a command too, and each is answered with many more bytes than it has.
const ANSWERS_MAX: usize = 16;

pub(super) fn step(heard: &[u8], says: &Says) -> Step {
    let mut rest = Rest(heard);
    let (mut used, mut answers) = (0, Vec::new());
    for _ in 0..ANSWERS_MAX {
        match rest.command() {
            Some(true) => {
                used = heard.len().saturating_sub(rest.0.len());
                answers.extend(format!("-ERR {}\r\n", says.text).into_bytes());
            }
            Some(false) if used == 0 => return Step::Mute,
            None if used == 0 => return Step::More,
            Some(false) | None => break,
        }
    }
    Step::Say {
        used,
        bytes: answers,
    }
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    /// Passes over one command: `None` if it is not whole yet, false if it cannot become one.
    fn command(&mut self) -> Option<bool> {
        let line = self.line()?;
        let Some(count) = line.strip_prefix(b"*") else {
            return Some(line.iter().all(u8::is_ascii));
        };
        let Some(count) = number(count).filter(|count| *count <= WORDS_MAX) else {
            return Some(false);
        };
        for _ in 0..count {
            let Some(bytes) = self.line()?.strip_prefix(b"$").and_then(number) else {
                return Some(false);
            };
            self.0 = self.0.get(bytes..)?.strip_prefix(b"\r\n")?;
        }
        Some(true)
    }

    fn line(&mut self) -> Option<&'a [u8]> {
        let at = memchr::memchr(b'\n', self.0)?;
        let (line, rest) = self.0.split_at_checked(at)?;
        self.0 = rest.strip_prefix(b"\n")?;
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

fn number(digits: &[u8]) -> Option<usize> {
    str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "a test may panic")]

    use super::super::Kind;
    use super::*;

    fn hear(bytes: &[u8]) -> Step {
        step(
            bytes,
            &Says {
                text: "egress: no".into(),
                kind: Kind::Forbidden,
            },
        )
    }

    #[test]
    fn empty_lines_do_not_become_a_flood_of_answers() {
        let Step::Say { used, bytes } = hear(&[b'\n'; 32 * 1024]) else {
            panic!("nothing is said");
        };
        assert_eq!(used, ANSWERS_MAX);
        assert_eq!(bytes.len(), ANSWERS_MAX * b"-ERR egress: no\r\n".len());
    }

    #[test]
    fn every_whole_command_gets_its_answer() {
        let answer = b"-ERR egress: no\r\n";
        let (one, two) = (b"PING\r\n", b"*2\r\n$4\r\nAUTH\r\n$6\r\nse\r\net\r\n");
        for (bytes, used, answers) in [
            (one.to_vec(), one.len(), 1),
            (two.to_vec(), two.len(), 1),
            ([&one[..], two, two].concat(), 6 + 2 * two.len(), 3),
            ([&two[..], b"*1\r\n$4\r\nPI"].concat(), two.len(), 1),
            ([&two[..], b"*x\r\n"].concat(), two.len(), 1),
        ] {
            let bytes_said = answer.repeat(answers);
            let expected = Step::Say {
                used,
                bytes: bytes_said,
            };
            assert_eq!(hear(&bytes), expected, "{bytes:?}");
        }
        for cut in 0..two.len() {
            assert_eq!(hear(&two[..cut]), Step::More, "{cut}");
        }
    }

    #[test]
    fn what_is_no_command_gets_no_answer() {
        for bytes in [
            &b"*-1\r\n"[..],
            b"*65\r\n",
            b"*1\r\nPING\r\n",
            b"\xff\xfe\n",
        ] {
            assert_eq!(hear(bytes), Step::Mute, "{bytes:?}");
        }
    }
}

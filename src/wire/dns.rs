//! DNS messages (RFC 1035, RFC 6891), as far as a responder needs them: one question in, one answer out.
//!
//! ```text
//! header    id flags questions answers authorities additionals      (2 bytes each)
//! question  label{..} 0 type class                                  (a label: its length, then 1 to 63 bytes)
//! record    name type class ttl{4} length{2} data{length}
//! ```
//!
//! A name in a question is never compressed; names of further records are stepped over, and a pointer in them is not
//! followed, so no message makes the reader go back. Nothing here reads or writes a socket, and records of others
//! are not understood: of what a client sends besides its question only the EDNS0 record counts.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::indexing_slicing
    )
)]

mod data;

pub use data::{Data, reversed};

/// No question is longer: header, name, one EDNS0 record and its options.
pub const QUESTION_BYTES_MAX: usize = 1024;
/// What is sent in one datagram at most, whatever the client takes (the flag-day size of 2020: no fragments).
pub const DATAGRAM_BYTES_MAX: usize = 1232;
/// What every client takes (RFC 1035 section 2.3.4).
const DATAGRAM_BYTES_MIN: usize = 512;
/// The length of a message over TCP has two bytes.
pub const STREAM_BYTES_MAX: usize = 65_535;
/// Records besides the question that are stepped over; a stub resolver sends one.
const RECORDS_MAX: u16 = 8;
const HEADER_BYTES: usize = 12;
/// Of a name with its lengths and the final zero (RFC 1035 section 2.3.4).
const NAME_BYTES_MAX: usize = 255;
const LABEL_BYTES_MAX: u8 = 63;
/// The two high bits of a length: the rest is a place in the message (RFC 1035 section 4.1.4).
const POINTER: u8 = 0xc0;
/// To the name of the question, which stands behind the header.
const TO_QUESTION: [u8; 2] = [0xc0, 12];
const IN: u16 = 1;

const IS_ANSWER: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;

/// Types that are told apart.
pub mod kind {
    pub const A: u16 = 1;
    pub const PTR: u16 = 12;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub(super) const OPT: u16 = 41;
}

/// Response codes (RFC 1035 section 4.1.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Code {
    NoError = 0,
    Malformed = 1,
    ServerFailure = 2,
    NoSuchName = 3,
    NotImplemented = 4,
    Refused = 5,
}

/// A question, and what its answer has to repeat.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question {
    id: u16,
    recursion_desired: bool,
    /// The question section as it was sent: clients compare it letter by letter.
    section: Box<[u8]>,
    /// With dots between its labels and no final one; `None` if a byte of it could not stand in a host name.
    name: Option<Box<str>>,
    kind: u16,
    /// Bytes that the client takes in a datagram, if it says so.
    edns: Option<u16>,
}

/// What is not a question that can be served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Unfit {
    /// Too short, or itself an answer: answering would start an exchange between two servers.
    Silence,
    /// The whole answer.
    Answer(Box<[u8]>),
}

impl Question {
    /// Reads a message that should hold one question.
    pub fn read(bytes: &[u8]) -> Result<Self, Unfit> {
        let mut rest = Rest(bytes);
        let [Some(id), Some(flags)] = [rest.number(), rest.number()] else {
            return Err(Unfit::Silence);
        };
        if flags & IS_ANSWER != 0 {
            return Err(Unfit::Silence);
        }
        let fail = |code| Unfit::Answer(header(id, flags & (OPCODE | RECURSION_DESIRED), code));
        if flags & OPCODE != 0 {
            return Err(fail(Code::NotImplemented));
        }
        Self::sections(id, flags, &mut rest).map_err(fail)
    }

    fn sections(id: u16, flags: u16, rest: &mut Rest<'_>) -> Result<Self, Code> {
        let bad = || Code::Malformed;
        let questions = rest.number().ok_or_else(bad)?;
        let mut records: u16 = 0;
        for _ in 0..3 {
            records = records.saturating_add(rest.number().ok_or_else(bad)?);
        }
        if questions != 1 || records > RECORDS_MAX {
            return Err(Code::Malformed);
        }
        let whole = rest.0;
        let name = rest.name().ok_or_else(bad)?;
        let (kind, class) = (
            rest.number().ok_or_else(bad)?,
            rest.number().ok_or_else(bad)?,
        );
        let used = whole.len().saturating_sub(rest.0.len());
        let section = whole.get(..used).ok_or_else(bad)?;
        let mut edns = None;
        for _ in 0..records {
            let (kind, class) = rest.record().ok_or_else(bad)?;
            if kind == kind::OPT && edns.replace(class).is_some() {
                return Err(Code::Malformed); // RFC 6891 section 6.1.1: one at most
            }
        }
        if class != IN {
            return Err(Code::NotImplemented);
        }
        Ok(Self {
            id,
            recursion_desired: flags & RECURSION_DESIRED != 0,
            section: section.into(),
            name,
            kind,
            edns,
        })
    }

    /// The name that is asked for, as it was written; `None` if it cannot be a host name.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The type that is asked for: one of [`kind`], or another.
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// What the client takes in one datagram.
    pub fn datagram_bytes(&self) -> usize {
        let says = self.edns.map_or(0, usize::from);
        says.clamp(DATAGRAM_BYTES_MIN, DATAGRAM_BYTES_MAX)
    }

    /// The whole answer in at most `limit` bytes: records that do not fit are left out, and the client is told to ask
    /// again over TCP.
    pub fn answer(&self, code: Code, ttl: u32, data: &[Data], limit: usize) -> Box<[u8]> {
        let whole = self.message(code, ttl, data, false);
        match whole {
            Some(whole) if whole.len() <= limit => whole.into(),
            _ => self.truncated(),
        }
    }

    /// An answer without records that says: ask again over TCP.
    pub fn truncated(&self) -> Box<[u8]> {
        let empty = self.message(Code::NoError, 0, &[], true);
        empty.unwrap_or_default().into()
    }

    /// An answer that says no more than `code`.
    pub fn no(&self, code: Code) -> Box<[u8]> {
        self.answer(code, 0, &[], DATAGRAM_BYTES_MIN)
    }

    /// The same question for another server, under an identifier of its own.
    pub fn again(&self, id: u16) -> Box<[u8]> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        for number in [
            id,
            RECURSION_DESIRED,
            1,
            0,
            0,
            u16::from(self.edns.is_some()),
        ] {
            out.extend(number.to_be_bytes());
        }
        out.extend_from_slice(&self.section);
        self.own_edns(&mut out);
        out.into()
    }

    /// Another server's answer to [`Self::again`], made into one for our client; `None` if it answers something else.
    pub fn passed_on(&self, id: u16, mut answer: Vec<u8>) -> Option<Vec<u8>> {
        let mut rest = Rest(&answer);
        let (theirs, flags, questions) = (rest.number()?, rest.number()?, rest.number()?);
        let section = answer.get(HEADER_BYTES..)?.get(..self.section.len())?;
        let same = theirs == id
            && flags & IS_ANSWER != 0
            && questions == 1
            && section.eq_ignore_ascii_case(&self.section);
        if !same {
            return None;
        }
        answer.get_mut(..2)?.copy_from_slice(&self.id.to_be_bytes());
        let section = answer.get_mut(HEADER_BYTES..)?;
        section
            .get_mut(..self.section.len())?
            .copy_from_slice(&self.section);
        Some(answer)
    }

    /// Whether another server's answer says that it did not fit.
    pub fn is_cut(answer: &[u8]) -> bool {
        let mut rest = Rest(answer);
        rest.number();
        rest.number().is_some_and(|flags| flags & TRUNCATED != 0)
    }

    fn message(&self, code: Code, ttl: u32, data: &[Data], cut: bool) -> Option<Vec<u8>> {
        let desired = if self.recursion_desired {
            RECURSION_DESIRED
        } else {
            0
        };
        let truncated = if cut { TRUNCATED } else { 0 };
        let flags = IS_ANSWER | desired | truncated | RECURSION_AVAILABLE | code as u16;
        let count = u16::try_from(data.len()).ok()?;
        let mut out = Vec::with_capacity(DATAGRAM_BYTES_MIN);
        for number in [self.id, flags, 1, count, 0, u16::from(self.edns.is_some())] {
            out.extend(number.to_be_bytes());
        }
        out.extend_from_slice(&self.section);
        for data in data {
            let (kind, bytes) = data.encode()?;
            out.extend(TO_QUESTION);
            out.extend(kind.to_be_bytes());
            out.extend(IN.to_be_bytes());
            out.extend(ttl.to_be_bytes());
            out.extend(u16::try_from(bytes.len()).ok()?.to_be_bytes());
            out.extend(bytes);
        }
        self.own_edns(&mut out);
        Some(out)
    }

    /// Our own EDNS0 record, if the client has sent one: version 0, no flags, no options.
    fn own_edns(&self, out: &mut Vec<u8>) {
        if self.edns.is_some() {
            out.push(0); // the root
            out.extend(kind::OPT.to_be_bytes());
            let size = u16::try_from(DATAGRAM_BYTES_MAX).unwrap_or(u16::MAX);
            out.extend(size.to_be_bytes());
            out.extend([0; 6]);
        }
    }
}

/// A header without any section.
fn header(id: u16, flags: u16, code: Code) -> Box<[u8]> {
    let flags = IS_ANSWER | RECURSION_AVAILABLE | flags | code as u16;
    let numbers = [id, flags, 0, 0, 0, 0].map(u16::to_be_bytes);
    numbers.as_flattened().into()
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u16> {
        let bytes = self.take(2)?.first_chunk()?;
        Some(u16::from_be_bytes(*bytes))
    }

    /// An uncompressed name; the inner `None` is one that cannot be a host name.
    fn name(&mut self) -> Option<Option<Box<str>>> {
        let (mut name, mut length, mut plain) = (String::new(), 1_usize, true);
        loop {
            let label = match self.byte()? {
                0 => break,
                count if count <= LABEL_BYTES_MAX => self.take(usize::from(count))?,
                _ => return None, // compressed, or of a kind that nobody uses
            };
            length = length.saturating_add(label.len()).saturating_add(1);
            if length > NAME_BYTES_MAX {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            for byte in label {
                plain &= byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
                name.push(char::from(*byte));
            }
        }
        Some(plain.then(|| name.into_boxed_str()))
    }

    /// Steps over a record, and gives its type and class.
    fn record(&mut self) -> Option<(u16, u16)> {
        loop {
            match self.byte()? {
                0 => break,
                high if high >= POINTER => {
                    self.byte()?; // where it points does not matter
                    break;
                }
                count if count <= LABEL_BYTES_MAX => self.take(usize::from(count))?,
                _ => return None,
            };
        }
        let (kind, class) = (self.number()?, self.number()?);
        self.take(4)?;
        let length = self.number()?;
        self.take(usize::from(length))?;
        Some((kind, class))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::data::labels;
    use super::*;

    /// A question with these counts, `name` as bytes, and `more` behind it.
    fn message(flags: u16, counts: [u16; 4], name: &[u8], kind: u16, more: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for number in [0x1234, flags].into_iter().chain(counts) {
            out.extend(number.to_be_bytes());
        }
        out.extend(name);
        out.extend(kind.to_be_bytes());
        out.extend(IN.to_be_bytes());
        out.extend(more);
        out
    }

    fn edns(size: u16) -> Vec<u8> {
        let mut out = vec![0];
        out.extend(kind::OPT.to_be_bytes());
        out.extend(size.to_be_bytes());
        out.extend([0; 6]);
        out
    }

    fn asked(name: &str, kind: u16) -> Vec<u8> {
        message(0x0100, [1, 0, 0, 0], &labels(name).unwrap(), kind, &[])
    }

    #[test]
    fn a_question_is_read_and_repeated_as_it_was_written() {
        let question = Question::read(&asked("Db.Customer.Test", kind::A)).unwrap();
        assert_eq!(question.name(), Some("Db.Customer.Test"));
        assert_eq!((question.kind(), question.datagram_bytes()), (kind::A, 512));
        let data = [Data::Address("198.18.0.5".parse().unwrap())];
        let answer = question.answer(Code::NoError, 10, &data, 512);
        let expected = [
            &[0x12, 0x34, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0][..],
            b"\x02Db\x08Customer\x04Test\0\0\x01\0\x01",
            &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 10, 0, 4, 198, 18, 0, 5],
        ]
        .concat();
        assert_eq!(&*answer, expected);
    }

    #[test]
    fn every_kind_of_record_is_written() {
        let question = Question::read(&asked("x.test", kind::SRV)).unwrap();
        for (data, wire) in [
            (
                Data::Address("fd00::5".parse().unwrap()),
                &b"\0\x1c\0\x01\0\0\0\x01\0\x10\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05"[..],
            ),
            (
                Data::Name("a.b".into()),
                b"\0\x0c\0\x01\0\0\0\x01\0\x05\x01a\x01b\0",
            ),
            (
                Data::Service {
                    priority: 1,
                    weight: 2,
                    port: 27017,
                    target: "db.test".into(),
                },
                b"\0\x21\0\x01\0\0\0\x01\0\x0f\0\x01\0\x02\x69\x89\x02db\x04test\0",
            ),
            (
                Data::Text([b"one"[..].into(), b"two"[..].into()].into()),
                b"\0\x10\0\x01\0\0\0\x01\0\x08\x03one\x03two",
            ),
        ] {
            let answer = question.answer(Code::NoError, 1, std::slice::from_ref(&data), 512);
            assert!(answer.ends_with(wire), "{data:?}: {answer:x?}");
        }
        let long = Data::Text([vec![0; 256].into()].into());
        assert_eq!(
            question.answer(Code::NoError, 1, &[long], 512),
            question.truncated()
        );
    }

    #[test]
    fn edns_says_how_much_fits_and_is_answered() {
        for (size, takes) in [
            (0, 512),
            (512, 512),
            (900, 900),
            (4096, 1232),
            (65535, 1232),
        ] {
            let name = labels("a.test").unwrap();
            let question = message(0x0100, [1, 0, 0, 1], &name, kind::A, &edns(size));
            let question = Question::read(&question).unwrap();
            assert_eq!(question.datagram_bytes(), takes);
            assert!(question.no(Code::Refused).ends_with(&edns(1232)));
        }
        let two = [edns(512), edns(512)].concat();
        let twice = message(0, [1, 0, 0, 2], b"\x01a\0", kind::A, &two);
        assert!(matches!(Question::read(&twice), Err(Unfit::Answer(_))));
    }

    #[test]
    fn what_does_not_fit_asks_for_tcp() {
        let question = Question::read(&asked("x.test", kind::TXT)).unwrap();
        let data = vec![Data::Text([vec![b'x'; 255].into()].into()); 3];
        let cut = question.answer(Code::NoError, 1, &data, 512);
        assert!(cut.len() <= 512 && Question::is_cut(&cut), "{cut:x?}");
        let whole = question.answer(Code::NoError, 1, &data, STREAM_BYTES_MAX);
        assert!(whole.len() > 3 * 255 && !Question::is_cut(&whole));
    }

    #[test]
    fn what_is_not_one_question_is_refused_or_ignored() {
        let name = labels("a.test").unwrap();
        let code = |bytes: &[u8]| match Question::read(bytes) {
            Err(Unfit::Answer(answer)) => {
                assert_eq!(answer.len(), HEADER_BYTES);
                assert_eq!(answer[..2], [0x12, 0x34]);
                u16::from(answer[3] & 0xf)
            }
            other => panic!("{bytes:x?}: {other:?}"),
        };
        let malformed = Code::Malformed as u16;
        for counts in [
            [0, 0, 0, 0],
            [2, 0, 0, 0],
            [1, 0, 0, 1],
            [1, 4, 4, 1],
            [1, 65535, 65535, 65535],
        ] {
            assert_eq!(
                code(&message(0, counts, &name, 1, &[])),
                malformed,
                "{counts:?}"
            );
        }
        for bad in [
            &b"\xc0\x0c"[..],                               // points at itself
            b"\xc0\x00",                                    // points at the header
            b"\x01a\xc0\x0c",                               // points back to its own beginning
            b"\x40abc\0",                                   // a label of an unknown kind
            b"\x3fabc",                                     // a label that is not there
            &[b"\x3f", &[b'a'; 63][..]].concat().repeat(4), // 256 bytes and no end
        ] {
            assert_eq!(
                code(&message(0, [1, 0, 0, 0], bad, 1, &[])),
                malformed,
                "{bad:x?}"
            );
        }
        assert_eq!(
            code(&message(0x2800, [1, 0, 0, 0], &name, 1, &[])),
            4,
            "an update"
        );
        let chaos = [
            &message(0, [1, 0, 0, 0], &name, 16, &[])[..name.len() + 14],
            &[0, 3],
        ]
        .concat();
        assert_eq!(code(&chaos), 4);
        let reply = message(0x8000, [1, 0, 0, 0], &name, 1, &[]);
        assert_eq!(Question::read(&reply), Err(Unfit::Silence));
        for short in [&[][..], &[1], &[0x12, 0x34, 1]] {
            assert_eq!(Question::read(short), Err(Unfit::Silence));
        }
    }

    #[test]
    fn a_name_that_no_host_has_is_none() {
        for (wire, name) in [
            (&b"\x03a.b\x04test\0"[..], None),
            (b"\x01\0\0", None),
            (b"\x02a*\0", None),
            (b"\0", Some("")),
            (b"\x05_mgdb\x04test\0", Some("_mgdb.test")),
        ] {
            let question = Question::read(&message(0, [1, 0, 0, 0], wire, 1, &[])).unwrap();
            assert_eq!(question.name(), name);
        }
    }

    #[test]
    fn only_the_answer_to_our_own_question_is_passed_on() {
        let question = Question::read(&asked("A.test", kind::A)).unwrap();
        let sent = question.again(7);
        assert_eq!(sent[..4], [0, 7, 1, 0]);
        let mut answer = sent.to_vec();
        answer[2] = 0x81;
        answer[13] = b'a'; // another server may write it in its own way
        answer.extend(b"\xc0\x0c rest");
        let passed = question.passed_on(7, answer.clone()).unwrap();
        assert_eq!(passed[..2], [0x12, 0x34]);
        assert_eq!(passed[13], b'A');
        assert!(passed.ends_with(b"\xc0\x0c rest"));
        assert_eq!(
            question.passed_on(8, answer.clone()),
            None,
            "another identifier"
        );
        let mut other = answer.clone();
        other[13] = b'b';
        assert_eq!(question.passed_on(7, other), None, "another name");
        answer[2] = 1;
        assert_eq!(question.passed_on(7, answer), None, "no answer");
        assert_eq!(
            question.passed_on(7, vec![0, 7, 0x80, 0, 0, 1]),
            None,
            "cut short"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_answer_more_than_fits(
            head in prop::array::uniform12(any::<u8>()), rest in prop::collection::vec(any::<u8>(), 0..600), limit in 512..1232_usize
        ) {
            let bytes = [&head[..], &rest].concat();
            match Question::read(&bytes) {
                Ok(question) => {
                    let data = vec![Data::Address(Ipv4Addr::LOCALHOST.into()); 100];
                    prop_assert!(question.answer(Code::NoError, 1, &data, limit).len() <= limit);
                    prop_assert_eq!(Question::read(&question.again(1)).unwrap().section, question.section.clone());
                    question.passed_on(1, bytes);
                }
                Err(Unfit::Answer(answer)) => prop_assert_eq!(answer.len(), HEADER_BYTES),
                Err(Unfit::Silence) => {}
            }
        }

        /// Almost right ones: every place of a good message changed, cut or repeated.
        #[test]
        fn no_change_of_a_good_message_makes_it_panic(at in 0..60_usize, byte in any::<u8>(), cut in 0..60_usize) {
            let good = message(0x0100, [1, 0, 0, 1], &labels("db.customer.test").unwrap(), kind::A, &edns(1232));
            let mut bytes = good.clone();
            if let Some(place) = bytes.get_mut(at) { *place = byte; }
            Question::read(&bytes).ok();
            bytes.truncate(cut);
            if let Ok(question) = Question::read(&bytes) {
                prop_assert!(question.no(Code::NoSuchName).len() <= 512);
            }
        }
    }
}

//! Signed notes and checkpoints, as C2SP's `signed-note` and `tlog-checkpoint` write them, and the keys they name.
//!
//! ```text
//! tollgate.log/0198f0a0-0000-7000-8000-000000000001      origin, which is also the name of every key of the log
//! 4711                                                   records covered
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=           root of their tree
//! next tollgate.log/0198…+5d7a1c02+AZ…=                  only in the last seal of a segment: the key of the next
//!                                                        (empty)
//! — tollgate.log/0198… Xz7…=                             Base64 of 4 bytes of key hash and an Ed25519 signature
//! ```
//!
//! Pure text and arithmetic. A key that signs says nothing of itself but by [`SigningKey::to_text`].

use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::encoding::AsBigEndian as _;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;

use super::tree::{HASH_BYTES, Hash};

/// No note of ours is longer; a witness may have added signatures.
pub(super) const NOTE_BYTES_MAX: usize = 16 << 10;
/// Begins the name of every key, before the identifier of the log.
const NAMESPACE: &str = "tollgate.log/";
const ED25519_ALGORITHM: u8 = 1;
const KEY_BYTES: usize = 32;
const KEY_HASH_BYTES: usize = 4;
const SIGNATURE_BYTES: usize = 64;
/// Begins the line of a signature.
pub(super) const SIGNATURE: &str = "\u{2014} ";
const PRIVATE: &str = "PRIVATE+KEY+";
/// Begins the line that announces the key of the next segment.
const NEXT: &str = "next ";

/// A public key with its name: `name+hash+key`, as verifiers of signed notes take it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct VerifierKey {
    name: String,
    hash: [u8; KEY_HASH_BYTES],
    key: [u8; KEY_BYTES],
}

/// A private key with its name.
pub(super) struct SigningKey {
    pair: Ed25519KeyPair,
    public: VerifierKey,
}

/// What a seal says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Checkpoint {
    pub(super) origin: String,
    pub(super) size: u64,
    pub(super) root: Hash,
    /// The key that signs from the next segment on.
    pub(super) next: Option<VerifierKey>,
}

/// A text with signatures under it.
pub(super) struct Note<'a> {
    text: &'a str,
    signatures: &'a str,
}

impl VerifierKey {
    fn new(name: String, key: [u8; KEY_BYTES]) -> Self {
        let hashed = [name.as_bytes(), b"\n", &[ED25519_ALGORITHM], &key].concat();
        let mut hash = [0; KEY_HASH_BYTES];
        let digest = digest::digest(&digest::SHA256, &hashed);
        hash.iter_mut()
            .zip(digest.as_ref())
            .for_each(|(to, from)| *to = *from);
        Self { name, hash, key }
    }

    /// Reads `name+hash+key`; `None` unless it is an Ed25519 key with the hash that it must have.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, hash, key) = split_key(text)?;
        let read = Self::new(name.to_owned(), key);
        (hash == hex(&read.hash)).then_some(read)
    }

    /// Name of the log that it belongs to.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The identifier of the log.
    pub(super) fn log_id(&self) -> &str {
        self.name.strip_prefix(NAMESPACE).unwrap_or(&self.name)
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = BASE64.encode([&[ED25519_ALGORITHM], &self.key[..]].concat());
        write!(f, "{}+{}+{key}", self.name, hex(&self.hash))
    }
}

impl SigningKey {
    /// Draws a key for the log `log_id`; `None` if no randomness is to be had.
    pub(super) fn draw(log_id: &str) -> Option<Self> {
        let pair = Ed25519KeyPair::generate().ok()?;
        Self::new(format!("{NAMESPACE}{log_id}"), pair)
    }

    fn new(name: String, pair: Ed25519KeyPair) -> Option<Self> {
        let key = pair.public_key().as_ref().try_into().ok()?;
        let public = VerifierKey::new(name, key);
        Some(Self { pair, public })
    }

    /// Reads what [`Self::to_text`] has written.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, hash, seed) = split_key(text.trim_end().strip_prefix(PRIVATE)?)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).ok()?;
        Self::new(name.to_owned(), pair).filter(|key| hash == hex(&key.public.hash))
    }

    /// The secret, as text: `PRIVATE+KEY+name+hash+seed`.
    pub(super) fn to_text(&self) -> Option<String> {
        let seed = self.pair.seed().ok()?.as_be_bytes().ok()?;
        let seed = BASE64.encode([&[ED25519_ALGORITHM], seed.as_ref()].concat());
        let VerifierKey { name, hash, .. } = &self.public;
        Some(format!("{PRIVATE}{name}+{}+{seed}\n", hex(hash)))
    }

    pub(super) fn public(&self) -> &VerifierKey {
        &self.public
    }

    /// The note of a checkpoint of its log.
    pub(super) fn sign(&self, size: u64, root: Hash, next: Option<VerifierKey>) -> String {
        let origin = self.public.name.clone();
        let text = Checkpoint {
            origin,
            size,
            root,
            next,
        }
        .to_string();
        let signature = self.pair.sign(text.as_bytes());
        let signature = [&self.public.hash[..], signature.as_ref()].concat();
        let (name, signature) = (&self.public.name, BASE64.encode(signature));
        format!("{text}\n{SIGNATURE}{name} {signature}\n")
    }
}

impl Checkpoint {
    /// Reads the text of a note; lines behind the root that are not ours are passed over.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        let origin = lines.next().filter(|origin| !origin.is_empty())?;
        let size = lines.next()?;
        let read: u64 = size.parse().ok()?;
        let root = BASE64.decode(lines.next()?).ok()?;
        let mut next = None;
        for line in lines {
            match line.strip_prefix(NEXT) {
                Some(_) if next.is_some() => return None,
                Some(key) => next = Some(VerifierKey::parse(key)?),
                None => {}
            }
        }
        (read.to_string() == size).then_some(Self {
            origin: origin.to_owned(),
            size: read,
            root: root.as_slice().try_into().ok()?,
            next,
        })
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = BASE64.encode(self.root);
        write!(f, "{}\n{}\n{root}\n", self.origin, self.size)?;
        match &self.next {
            Some(key) => writeln!(f, "{NEXT}{key}"),
            None => Ok(()),
        }
    }
}

impl<'a> Note<'a> {
    /// Tells the text and the signatures apart.
    pub(super) fn parse(note: &'a str) -> Option<Self> {
        let (at, _) = note.rmatch_indices("\n\n").next()?;
        let (text, rest) = note.split_at_checked(at + 1)?;
        let signatures = rest.strip_prefix('\n')?;
        let shaped = |line: &str| line.starts_with(SIGNATURE);
        let whole = note.len() <= NOTE_BYTES_MAX && signatures.ends_with('\n');
        (whole && signatures.lines().all(shaped)).then_some(Self { text, signatures })
    }

    /// Whether no signature was cut off.
    pub(super) fn is_whole(&self) -> bool {
        self.signatures.lines().all(|line| {
            let signature = line.rsplit(' ').next().map(|text| BASE64.decode(text));
            signature.is_some_and(|bytes| {
                bytes.is_ok_and(|bytes| bytes.len() >= KEY_HASH_BYTES + SIGNATURE_BYTES)
            })
        })
    }

    /// What it says, unproven.
    pub(super) fn unproven(&self) -> Option<Checkpoint> {
        Checkpoint::parse(self.text)
    }

    /// What it says, if `key` has signed it and it is about the key's log.
    pub(super) fn open(&self, key: &VerifierKey) -> Option<Checkpoint> {
        let checkpoint = self.unproven()?;
        (checkpoint.origin == key.name && self.is_signed_by(key)).then_some(checkpoint)
    }

    /// Whether `key` has signed it.
    pub(super) fn is_signed_by(&self, key: &VerifierKey) -> bool {
        let public = UnparsedPublicKey::new(&ED25519, &key.key);
        self.signatures.lines().any(|line| {
            let signature = line
                .strip_prefix(SIGNATURE)
                .and_then(|line| line.strip_prefix(&key.name)?.strip_prefix(' '))
                .and_then(|text| BASE64.decode(text).ok());
            signature
                .as_deref()
                .and_then(|bytes| bytes.strip_prefix(&key.hash))
                .is_some_and(|signature| public.verify(self.text.as_bytes(), signature).is_ok())
        })
    }
}

/// Hashes as text, parted by spaces.
pub(super) fn show_hashes(hashes: &[Hash]) -> String {
    let texts: Vec<_> = hashes.iter().map(|hash| BASE64.encode(hash)).collect();
    texts.join(" ")
}

/// Reads what [`show_hashes`] has written.
pub(super) fn read_hashes(text: &str) -> Option<Vec<Hash>> {
    text.split_ascii_whitespace().map(read_hash).collect()
}

pub(super) fn read_hash(text: &str) -> Option<Hash> {
    let bytes = BASE64.decode(text).ok()?;
    <[u8; HASH_BYTES]>::try_from(bytes.as_slice()).ok()
}

/// Name, hash and the 32 bytes behind the number of the algorithm.
fn split_key(text: &str) -> Option<(&str, &str, [u8; KEY_BYTES])> {
    let mut parts = text.splitn(3, '+');
    let (name, hash, key) = (parts.next()?, parts.next()?, parts.next()?);
    let named = !name.is_empty() && !name.contains(char::is_whitespace);
    let key = BASE64.decode(key).ok()?;
    let key = key.strip_prefix(&[ED25519_ALGORITHM])?.try_into().ok()?;
    named.then_some((name, hash, key))
}

fn hex(hash: &[u8; KEY_HASH_BYTES]) -> String {
    format!("{:08x}", u32::from_be_bytes(*hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Go package `golang.org/x/mod/sumdb/note`.
    const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const PETERS_NOTE: &str = "If you think cryptography is the answer to your problem,\n\
        then you don't know what your problem is.\n\
        \n\
        \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
    fn log_key() -> SigningKey {
        SigningKey::draw("0198f0a0-0000-7000-8000-000000000001").unwrap()
    }

    #[test]
    fn a_published_note_is_read_and_its_key_is_the_published_one() {
        let key = VerifierKey::parse(PETER).unwrap();
        assert_eq!(key.to_string(), PETER);
        let note = Note::parse(PETERS_NOTE).unwrap();
        assert!(note.is_signed_by(&key));
        assert!(note.open(&key).is_none(), "it is no checkpoint");
        let altered = PETERS_NOTE.replace("answer", "anſwer");
        assert!(!Note::parse(&altered).unwrap().is_signed_by(&key));
    }

    #[test]
    fn a_private_key_that_was_written_down_is_the_same_key() {
        let key = log_key();
        let read = SigningKey::parse(&key.to_text().unwrap()).unwrap();
        assert_eq!(read.public(), key.public());
        let note = read.sign(1, [0; HASH_BYTES], None);
        assert!(Note::parse(&note).unwrap().open(key.public()).is_some());
        assert!(SigningKey::parse(&key.public().to_string()).is_none());
    }

    #[test]
    fn a_seal_reads_back_and_any_other_byte_is_refused() {
        let (key, next) = (log_key(), log_key());
        let note = key.sign(4711, [7; HASH_BYTES], Some(next.public().clone()));
        let read = Note::parse(&note).unwrap().open(key.public()).unwrap();
        assert_eq!((read.size, read.root), (4711, [7; HASH_BYTES]));
        assert_eq!(read.next.as_ref(), Some(next.public()));
        assert_eq!(read.origin, key.public().name());
        assert!(Note::parse(&note).unwrap().open(next.public()).is_none());
        for at in 0..note.len() {
            let mut bytes = note.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(altered) = String::from_utf8(bytes) else {
                continue;
            };
            let opened = Note::parse(&altered).and_then(|note| note.open(key.public()));
            assert!(opened.is_none(), "byte {at}");
            assert!(
                note.get(..at)
                    .and_then(Note::parse)
                    .and_then(|note| note.open(key.public()))
                    .is_none(),
                "cut at {at}"
            );
        }
    }

    #[test]
    fn a_note_with_a_signature_of_somebody_else_too_is_still_ours() {
        let (key, witness) = (log_key(), SigningKey::draw("witness").unwrap());
        let note = key.sign(1, [0; HASH_BYTES], None);
        let theirs = witness.sign(1, [0; HASH_BYTES], None);
        let note = format!("{note}{}\n", theirs.lines().last().unwrap());
        assert!(Note::parse(&note).unwrap().open(key.public()).is_some());
    }

    #[test]
    fn what_is_no_key_is_none() {
        let good = log_key().public().to_string();
        assert!(VerifierKey::parse(&good).is_some());
        let (name, rest) = good.split_once('+').unwrap();
        for bad in [
            "",
            name,
            rest,
            &format!("other+{rest}"),
            &format!("+{rest}"),
            &good.replace("+A", "+B"),
            &format!("{good}AAAA"),
        ] {
            assert!(VerifierKey::parse(bad).is_none(), "{bad}");
        }
    }
}

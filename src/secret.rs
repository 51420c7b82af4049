//! Sealing: small blobs that may lie where others can read them (a shared volume, Redis) stay secret and unchanged.
//!
//! AES-256-GCM under the key of `[process] key_file`, with a random nonce for each seal. What is sealed is bound to a
//! context, the place that it belongs to, so that one blob cannot be put in the place of another. Keys and what was
//! sealed never show in `Debug` or in an error. It does not keep an old blob from being put back: whoever needs that
//! puts a number into the blob.
//!
//! The text form, on one line: `sealed:v1:` key mark (8 hexadecimal digits) `:` base64url of nonce, ciphertext, tag.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::clock;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Keys in one file: the one that seals and those before it.
const KEYS_MAX: usize = 8;
/// Bytes of a key file; eight keys with a comment each stay below it.
const FILE_BYTES_MAX: usize = 4096;
/// Bytes that are sealed at once.
pub const PLAIN_BYTES_MAX: usize = 1 << 20;

const PREFIX: &str = "sealed:v1:";
const MARK_BYTES: usize = 4;
/// What the file may not allow: anything to others, writing to the group.
const MODE_FORBIDDEN: u32 = 0o027;

/// The keys of one process: the first seals, all of them open. Cheap to clone.
#[derive(Clone)]
pub struct SealKeys(Arc<[SealKey]>);

struct SealKey {
    mark: String,
    key: RandomizedNonceKey,
}

/// Why there is no key to seal with. The text names the file and what mends it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{}: cannot be read; check that the file exists and that this user may read it", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: others may read or change it (mode {mode:03o}); chmod 600 it, or 640 where its group is this service's own", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{}: line {line} is not a key; write 32 bytes as base64 or hexadecimal, as `tollgate secret keygen` does", path.display())]
    NotAKey { path: PathBuf, line: usize },
    #[error("{}: holds no key; make one with `tollgate secret keygen`", path.display())]
    Empty { path: PathBuf },
    #[error("{}: holds more than {KEYS_MAX} keys; leave the one that seals and those whose blobs are still in use", path.display())]
    TooMany { path: PathBuf },
}

/// Why a sealed text could not be opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OpenError {
    #[error("it is not a sealed text of this version")]
    Unknown,
    #[error(
        "it was sealed with a key that is not in `process.key_file`; give every replica the same file"
    )]
    OtherKey,
    #[error("it was changed, or belongs to another place")]
    Changed,
}

/// What cannot be sealed: more than [`PLAIN_BYTES_MAX`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("too large to be sealed")]
pub struct TooLarge;

impl SealKeys {
    /// Reads a key file: one key a line, the one that seals first; `#` begins a comment.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let path = path.to_owned();
        let text = match read_private(&path) {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(mode)) => return Err(KeyError::Exposed { path, mode }),
            Err(source) => return Err(KeyError::Unreadable { path, source }),
        };
        let mut keys = Vec::new();
        for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let key = decode(line).and_then(|key| SealKey::new(&key));
            let line = at + 1;
            keys.push(key.ok_or_else(|| KeyError::NotAKey {
                path: path.clone(),
                line,
            })?);
        }
        match keys.len() {
            0 => Err(KeyError::Empty { path }),
            1..=KEYS_MAX => Ok(Self(keys.into())),
            _ => Err(KeyError::TooMany { path }),
        }
    }

    /// Seals `plain` for the place that `context` names.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<String, TooLarge> {
        let key = self.0.first().ok_or(TooLarge)?; // there is one: `load` sees to it
        if plain.len() > PLAIN_BYTES_MAX {
            return Err(TooLarge);
        }
        let mut room = Zeroizing::new(plain.to_vec());
        let nonce = key.key.seal_in_place_append_tag(aad(context), &mut *room);
        let nonce = nonce.map_err(|_| TooLarge)?; // its only cause
        let mut whole = nonce.as_ref().to_vec();
        whole.extend_from_slice(&room);
        let (mark, text) = (&key.mark, URL_SAFE_NO_PAD.encode(whole));
        Ok(format!("{PREFIX}{mark}:{text}"))
    }

    /// Opens what [`SealKeys::seal`] made for the same place.
    pub fn open(&self, context: &str, sealed: &str) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let rest = sealed.trim_ascii().strip_prefix(PREFIX);
        let (mark, text) = rest
            .and_then(|rest| rest.split_once(':'))
            .ok_or(OpenError::Unknown)?;
        let key = self.0.iter().find(|key| key.mark == mark);
        let key = key.ok_or(OpenError::OtherKey)?;
        let mut whole = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| OpenError::Unknown)?;
        let (nonce, body) = whole
            .split_at_mut_checked(NONCE_LEN)
            .ok_or(OpenError::Unknown)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| OpenError::Unknown)?;
        let plain = key.key.open_in_place(nonce, aad(context), body);
        let plain = plain.map_err(|_| OpenError::Changed)?;
        Ok(Zeroizing::new(plain.to_vec()))
    }
}

impl SealKey {
    fn new(bytes: &[u8; KEY_BYTES]) -> Option<Self> {
        let digest = digest::digest(
            &digest::SHA256,
            &[b"tollgate key mark", &bytes[..]].concat(),
        );
        let mark = digest.as_ref().iter().take(MARK_BYTES);
        Some(Self {
            mark: mark.map(|byte| format!("{byte:02x}")).collect(),
            key: RandomizedNonceKey::new(&AES_256_GCM, bytes).ok()?,
        })
    }
}

impl fmt::Debug for SealKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKeys(..)")
    }
}

/// A new key as a line of a key file.
pub fn draw() -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    clock::draw(&mut *bytes);
    Zeroizing::new(STANDARD.encode(*bytes))
}

fn aad(context: &str) -> Aad<String> {
    Aad::from(format!("{PREFIX}{context}"))
}

/// The whole of a key file. The inner error is its mode, if that allows too much.
fn read_private(path: &Path) -> io::Result<Result<Zeroizing<Vec<u8>>, u32>> {
    // Asked of the open file: the name may lead elsewhere a moment later. A pipe must not be waited for.
    let mut options = File::options();
    options.custom_flags(i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default());
    let file = options.read(true).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mode = found.mode() & 0o777;
    if mode & MODE_FORBIDDEN != 0 {
        return Ok(Err(mode));
    }
    let mut bytes = Zeroizing::new(vec![0; FILE_BYTES_MAX + 1]);
    let mut read = 0;
    while let Some(room) = bytes.get_mut(read..).filter(|room| !room.is_empty()) {
        match (&file).read(room)? {
            0 => break,
            count => read += count,
        }
    }
    if read > FILE_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    bytes.truncate(read);
    Ok(Ok(bytes))
}

/// 64 hexadecimal digits, or base64 with or without padding, of either alphabet.
fn decode(line: &[u8]) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    if line.len() == 2 * KEY_BYTES {
        for (byte, pair) in key.iter_mut().zip(line.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).ok()?;
            let digits = pair.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = u8::from_str_radix(pair, 16).ok().filter(|_| digits)?;
        }
        return Some(key);
    }
    let plain = line.strip_suffix(b"=").unwrap_or(line).iter();
    let url: Vec<u8> = plain
        .map(|byte| match byte {
            b'+' => b'-',
            b'/' => b'_',
            other => *other,
        })
        .collect();
    let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(Zeroizing::new(url)).ok()?);
    key.copy_from_slice(bytes.get(..).filter(|b| b.len() == KEY_BYTES)?);
    Some(key)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(folder: &Path, text: &str, mode: u32) -> PathBuf {
        let path = folder.join("key");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn keys(text: &str) -> SealKeys {
        let folder = tempfile::tempdir().unwrap();
        SealKeys::load(&file(folder.path(), text, 0o600)).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_only() {
        let keys = keys(&draw());
        let sealed = keys.seal("tickets", b"forty-two").unwrap();
        assert!(sealed.starts_with("sealed:v1:"), "{sealed}");
        assert_eq!(**keys.open("tickets", &sealed).unwrap(), *b"forty-two");
        assert_eq!(keys.open("account", &sealed), Err(OpenError::Changed));
        assert_ne!(sealed, keys.seal("tickets", b"forty-two").unwrap());
    }

    #[test]
    fn not_one_bit_can_be_changed() {
        let keys = keys(&draw());
        let sealed = keys.seal("a", b"secret").unwrap();
        let (head, body) = sealed.rsplit_once(':').unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(body).unwrap();
        for at in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 1;
            let bent = format!("{head}:{}", URL_SAFE_NO_PAD.encode(bent));
            assert_eq!(keys.open("a", &bent), Err(OpenError::Changed), "byte {at}");
        }
        for cut in 0..sealed.len() {
            let short = sealed.get(..cut).unwrap();
            assert!(keys.open("a", short).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_key_that_came_later_seals_and_the_older_one_still_opens() {
        let (old, new) = (draw(), draw());
        let before = keys(&old).seal("a", b"1").unwrap();
        let both = keys(&format!("# since May\n{}\n\n{} # before\n", &*new, &*old));
        assert_eq!(**both.open("a", &before).unwrap(), *b"1");
        let after = both.seal("a", b"2").unwrap();
        assert_eq!(**keys(&new).open("a", &after).unwrap(), *b"2");
        assert_eq!(keys(&old).open("a", &after), Err(OpenError::OtherKey));
    }

    #[test]
    fn a_key_is_32_bytes_in_base64_or_hexadecimal() {
        let hexadecimal = "00ff".repeat(16);
        let bytes: Vec<u8> = [0, 255].repeat(16);
        let sealed = keys(&hexadecimal).seal("a", b"x").unwrap();
        for same in [
            hexadecimal.to_uppercase(),
            STANDARD.encode(&bytes),
            URL_SAFE_NO_PAD.encode(&bytes),
        ] {
            assert!(keys(&same).open("a", &sealed).is_ok(), "{same}");
        }
        let folder = tempfile::tempdir().unwrap();
        for wrong in [
            "00".repeat(31),
            "+0".repeat(32),
            STANDARD.encode([0; 33]),
            "my password".into(),
        ] {
            let path = file(folder.path(), &format!("\n{wrong}"), 0o600);
            let error = SealKeys::load(&path).unwrap_err();
            assert!(
                matches!(error, KeyError::NotAKey { line: 2, .. }),
                "{error}"
            );
            assert!(!error.to_string().contains(&wrong), "the key is shown");
        }
        let path = file(folder.path(), "# nothing\n", 0o600);
        assert!(matches!(SealKeys::load(&path), Err(KeyError::Empty { .. })));
        let path = file(folder.path(), &format!("{}\n", &*draw()).repeat(9), 0o600);
        assert!(matches!(
            SealKeys::load(&path),
            Err(KeyError::TooMany { .. })
        ));
        let path = file(folder.path(), &"#".repeat(5000), 0o600);
        assert!(matches!(
            SealKeys::load(&path),
            Err(KeyError::Unreadable { .. })
        ));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (mode, good) in [
            (0o400, true),
            (0o640, true),
            (0o644, false),
            (0o660, false),
            (0o601, false),
        ] {
            let path = file(folder.path(), &draw(), mode);
            let loaded = SealKeys::load(&path);
            assert_eq!(loaded.is_ok(), good, "{mode:o}");
            if let Err(error) = loaded {
                let text = error.to_string();
                assert!(
                    text.contains("chmod 600") && text.contains("/key"),
                    "{text}"
                );
            }
        }
        assert!(SealKeys::load(folder.path()).is_err(), "a directory");
    }

    #[test]
    fn nothing_too_large_is_sealed_and_nothing_shows() {
        let keys = keys(&draw());
        assert_eq!(keys.seal("a", &vec![0; PLAIN_BYTES_MAX + 1]), Err(TooLarge));
        assert_eq!(format!("{keys:?}"), "SealKeys(..)");
    }
}

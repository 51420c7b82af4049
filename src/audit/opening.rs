//! What can keep the log from being opened, told so that it can be mended; and the two files beside the segments.

use std::io;
use std::path::{Path, PathBuf};

use super::segment::Store;
use crate::clock;
use crate::disk;
use crate::record::{TAG_KEY_BYTES, TagKey};

const TAG_KEY: &str = "tag.key";

/// Why the log cannot be opened. Each text names the file, the cause and the mend.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A record is damaged and later ones are not: this is no torn write.
    #[error(
        "{file}: damaged at byte {offset}: {what}, and this is no write that was cut short; restore the file from a copy, or go on \
         without what is damaged by `tollgate run --accept-damage`, which keeps it in quarantine, records that it was so, and \
         leaves a gap that `tollgate audit verify` reports"
    )]
    Damaged {
        file: PathBuf,
        offset: u64,
        what: String,
    },
    /// The operating system said no.
    #[error("cannot {doing} {path}: {error}; {mend}")]
    Io {
        path: PathBuf,
        doing: &'static str,
        error: io::Error,
        mend: &'static str,
    },
    /// Another process writes here.
    #[error(
        "{path} is locked by another process; stop it, or give this one its own `process.state_dir`"
    )]
    Locked { path: PathBuf },
    /// The key that the log was last sealed with is gone.
    #[error(
        "{path} does not hold the key that the audit log is sealed with ({key}); restore it from a copy, or move the segments to \
         another directory, where they can still be verified, to begin a new log here"
    )]
    SealKey { path: PathBuf, key: String },
    /// Its segments have no tree that could be gone on with.
    #[error(
        "{dir}: the audit log there was begun by a release without seals; move its segments to another directory, where they can \
         still be verified, to begin a new log here"
    )]
    Unsealed { dir: PathBuf },
    /// Two segments begin with the same record, and hold more than that.
    #[error(
        "{file} and a file in another directory of the log both hold record {first} and later ones; one is a copy: move it out"
    )]
    Rivals { file: PathBuf, first: u64 },
    /// The configured standby directory is another one than before, or not mounted.
    #[error(
        "{dir} is not the standby directory that this log has used before; mount that one, or, if it is lost for good, remove \
         {file} (`tollgate audit verify` will then report the records that were in it as missing)"
    )]
    StandbyForeign { dir: PathBuf, file: PathBuf },
    /// None is configured any more, but there was one.
    #[error(
        "this log has a standby directory, {dir}, which may hold records; set `audit.standby_dir` to it, or move its files \
         (*.jsonl) into {primary} and remove {file}"
    )]
    StandbyLeft {
        dir: PathBuf,
        primary: PathBuf,
        file: PathBuf,
    },
    /// The file with the key of the tags is not one.
    #[error(
        "{path} does not hold a key of 32 bytes; restore it from a copy, or remove it to begin a new one (values in old \
         records are then found with the old key only)"
    )]
    TagKey { path: PathBuf },
}

impl OpenError {
    pub(super) fn io(path: &Path, doing: &'static str, error: io::Error) -> Self {
        let mend = match error.kind() {
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                "it, or what is above it, is not a directory; set `process.state_dir` to one"
            }
            io::ErrorKind::PermissionDenied => {
                "give the user that runs tollgate the right to write there, or set `process.state_dir` elsewhere"
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                "mount it writable, or set `process.state_dir` elsewhere"
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "make room on the disk, or lower `audit.segment_bytes`"
            }
            _ => "check the disk, or set `process.state_dir` elsewhere",
        };
        Self::Io {
            path: path.to_owned(),
            doing,
            error,
            mend,
        }
    }
}

impl Store {
    /// Makes a directory of the log.
    pub(super) fn make_dir(&self, dir: &Path) -> Result<(), OpenError> {
        let made = self.disk.make_dir(dir);
        made.map_err(|error| OpenError::io(dir, "make the directory", error))
    }
}

/// Takes the lock that keeps a second process away.
pub(super) fn lock(state_dir: &Path) -> Result<std::fs::File, OpenError> {
    let path = state_dir.join("lock");
    match disk::lock(&path) {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => Err(OpenError::Locked { path }),
        Err(error) => Err(OpenError::io(&path, "lock", error)),
    }
}

/// Reads the key of the tags.
pub(super) fn read_tag_key(store: &Store) -> Result<TagKey, OpenError> {
    let path = store.dir.join(TAG_KEY);
    let read = store.disk.read(&path);
    let bytes = read.map_err(|error| OpenError::io(&path, "read", error))?;
    match bytes.as_slice().try_into() {
        Ok(bytes) => Ok(TagKey::new(bytes)),
        Err(_) => Err(OpenError::TagKey { path }),
    }
}

/// Reads the key of the tags; makes one if there is none.
pub(super) fn tag_key(store: &Store) -> Result<TagKey, OpenError> {
    match read_tag_key(store) {
        Err(OpenError::Io { path, error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            let mut bytes = [0; TAG_KEY_BYTES];
            clock::draw(&mut bytes);
            store
                .disk
                .create_with(&path, &bytes)
                .and_then(|()| store.disk.sync_dir(&store.dir))
                .map_err(|error| OpenError::io(&path, "write", error))?;
            Ok(TagKey::new(&bytes))
        }
        read => read,
    }
}

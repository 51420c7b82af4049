//! The one door to files that must survive: the machine's disk, or in tests one in memory that fails on demand.
//!
//! What is written through a [`File`] opened as [`Access::Durable`] is on the device when the call returns. A changed
//! directory is so only after [`Disk::sync_dir`]. Nothing here retries: what to believe after an error is the caller's
//! business. Directories are 0700, files 0600.

use std::fs::{DirBuilder, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, fallocate};

#[cfg(test)]
pub(crate) mod memory;

/// Where files live; cheap to clone.
#[derive(Clone)]
pub(crate) enum Disk {
    /// The machine's own.
    Machine,
    #[cfg(test)]
    Memory(memory::Memory),
}

/// An open file.
pub(crate) enum File {
    /// The machine's own.
    Machine(std::fs::File),
    #[cfg(test)]
    Memory(memory::Handle),
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    /// Each write is on the device when it returns.
    Durable,
    Read,
    /// Writes reach the operating system's cache.
    Write,
}

/// Bytes written at once when a file is filled with zeros.
const FILL_BYTES: usize = 1 << 20;
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

impl Disk {
    /// Makes a directory and those above it; no error if it is there.
    pub(crate) fn make_dir(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::Machine => DirBuilder::new()
                .recursive(true)
                .mode(DIR_MODE)
                .create(path),
            #[cfg(test)]
            Self::Memory(memory) => memory.make_dir(path),
        }
    }

    /// The names of the files in `dir`, sorted.
    pub(crate) fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        match self {
            Self::Machine => {
                let mut names = Vec::new();
                for entry in std::fs::read_dir(dir)? {
                    names.extend(entry?.file_name().into_string().ok()); // ours are ASCII
                }
                names.sort_unstable();
                Ok(names)
            }
            #[cfg(test)]
            Self::Memory(memory) => memory.names(dir),
        }
    }

    /// Makes a file of `bytes` zeros, space and metadata on the device; replaces what is there. After an error there
    /// is none.
    pub(crate) fn create_zeroed(&self, path: &Path, bytes: u64, access: Access) -> io::Result<()> {
        match self {
            Self::Machine => {
                let made = zeroed(path, bytes, access);
                if made.is_err() {
                    std::fs::remove_file(path).ok(); // the first error is the one to report
                }
                made
            }
            #[cfg(test)]
            Self::Memory(memory) => memory.create_zeroed(path, bytes),
        }
    }

    /// The whole of a small file.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match self {
            Self::Machine => std::fs::read(path),
            #[cfg(test)]
            Self::Memory(memory) => memory.read(path),
        }
    }

    /// Makes a new file with `content`, on the device; an error if it is there.
    pub(crate) fn create_with(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        match self {
            Self::Machine => {
                let file = create().create_new(true).open(path)?;
                file.write_all_at(content, 0)?;
                file.sync_all()
            }
            #[cfg(test)]
            Self::Memory(memory) => memory.create_with(path, content),
        }
    }

    /// Opens a file that is there.
    pub(crate) fn open(&self, path: &Path, access: Access) -> io::Result<File> {
        match self {
            Self::Machine => {
                let mut options = OpenOptions::new();
                options.read(true).write(access != Access::Read);
                if access == Access::Durable {
                    options.custom_flags(i32::try_from(OFlags::DSYNC.bits()).unwrap_or_default());
                }
                options.open(path).map(File::Machine)
            }
            #[cfg(test)]
            Self::Memory(memory) => memory.open(path, access).map(File::Memory),
        }
    }

    /// Gives a file another name, replacing what has it.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match self {
            Self::Machine => std::fs::rename(from, to),
            #[cfg(test)]
            Self::Memory(memory) => memory.rename(from, to),
        }
    }

    /// Removes a file.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::Machine => std::fs::remove_file(path),
            #[cfg(test)]
            Self::Memory(memory) => memory.remove(path),
        }
    }

    /// Makes the names in `dir` durable.
    pub(crate) fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match self {
            Self::Machine => std::fs::File::open(dir)?.sync_all(),
            #[cfg(test)]
            Self::Memory(memory) => memory.sync_dir(dir),
        }
    }
}

impl File {
    /// Writes all of `bytes` at `offset`.
    pub(crate) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Self::Machine(file) => file.write_all_at(bytes, offset),
            #[cfg(test)]
            Self::Memory(file) => file.write_all_at(bytes, offset),
        }
    }

    /// Reads some bytes at `offset` into `room`; 0 at the end.
    pub(crate) fn read_at(&self, room: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Self::Machine(file) => file.read_at(room, offset),
            #[cfg(test)]
            Self::Memory(file) => file.read_at(room, offset),
        }
    }

    /// Cuts it to `bytes`, on the device.
    pub(crate) fn truncate(&self, bytes: u64) -> io::Result<()> {
        match self {
            Self::Machine(file) => file.set_len(bytes).and_then(|()| file.sync_all()),
            #[cfg(test)]
            Self::Memory(file) => file.truncate(bytes),
        }
    }

    /// Gives up the lock of [`lock`] at once. Closing it would do so only once no other process has it open, and one that
    /// is just being started has for a moment.
    pub(crate) fn unlock(&self) {
        match self {
            Self::Machine(file) => file.unlock().unwrap_or(()), // closed in any case
            #[cfg(test)]
            Self::Memory(_) => {}
        }
    }

    /// Whether `path` still names this file.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        match self {
            Self::Machine(file) => match (file.metadata(), std::fs::metadata(path)) {
                (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
                (_, Err(error)) => error.kind() != io::ErrorKind::NotFound,
                (Err(_), _) => true, // nothing is known: a write will tell
            },
            #[cfg(test)]
            Self::Memory(file) => file.is_at(path),
        }
    }
}

/// Takes the exclusive lock of the file at `path`, held until the file is dropped; `None` if somebody else has it.
pub(crate) fn lock(path: &Path) -> io::Result<Option<std::fs::File>> {
    let file = create().create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn create() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(FILE_MODE);
    options
}

fn zeroed(path: &Path, bytes: u64, access: Access) -> io::Result<()> {
    let file = create().create(true).truncate(true).open(path)?;
    // Asked for first, so that a disk without room says so at once. Some file systems cannot, which is no error.
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Err(error) if io::Error::from(error).kind() == io::ErrorKind::StorageFull => {
            return Err(error.into());
        }
        Ok(()) if access == Access::Write => return file.sync_all(), // nobody will wait for a sync
        Ok(()) | Err(_) => {}
    }
    // Then written: space that was only set aside costs a metadata commit at each sync.
    let zeros = vec![0; FILL_BYTES];
    let mut at = 0;
    while at < bytes {
        let piece = usize::try_from(bytes - at)
            .unwrap_or(FILL_BYTES)
            .min(FILL_BYTES);
        file.write_all_at(zeros.get(..piece).unwrap_or_default(), at)?;
        at += piece as u64;
    }
    file.sync_all()
}

//! The one door to files that must survive: the machine's disk, or in tests one in memory that fails on demand.
//!
//! What is written through a [`File`] opened as [`Access::Durable`] is on the device when the call returns. A changed
//! directory is so only after [`Disk::sync_dir`]. Nothing here retries: what to believe after an error is the caller's
//! business. Directories are 0700, files 0600.

use std::fs::{DirBuilder, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use rustix::fs::{FallocateFlags, fallocate, statvfs};

#[cfg(test)]
pub(crate) mod memory;
mod whole;

pub(crate) use whole::{create_new, regular};

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
/// Bytes read at once when a file is copied.
const COPY_BYTES: usize = 256 << 10;
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

impl Disk {
    /// Makes a directory and those above it, names on the device; no error if it is there.
    pub(crate) fn make_dir(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::Machine => made_dir(path),
            #[cfg(test)]
            Self::Memory(memory) => memory.make_dir(path),
        }
    }

    /// The number of the device that `path` is on.
    pub(crate) fn device(&self, path: &Path) -> io::Result<u64> {
        match self {
            Self::Machine => Ok(std::fs::metadata(path)?.dev()),
            #[cfg(test)]
            Self::Memory(memory) => Ok(memory.device()),
        }
    }

    /// Bytes that can still be written where `path` is.
    pub(crate) fn free(&self, path: &Path) -> io::Result<u64> {
        match self {
            Self::Machine => {
                let of = statvfs(path)?;
                Ok(of.f_bavail.saturating_mul(of.f_frsize))
            }
            #[cfg(test)]
            Self::Memory(memory) => Ok(memory.free()),
        }
    }

    /// The length of a file.
    pub(crate) fn len(&self, path: &Path) -> io::Result<u64> {
        match self {
            Self::Machine => Ok(std::fs::metadata(path)?.len()),
            #[cfg(test)]
            Self::Memory(memory) => Ok(memory.read(path)?.len() as u64),
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

    /// Makes a file with `content`, on the device; replaces what is there. It has its name only once it is whole.
    pub(crate) fn create_with(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        match self {
            Self::Machine => {
                let part = path.with_added_extension("part");
                let file = create().create(true).truncate(true).open(&part)?;
                file.write_all_at(content, 0)?;
                file.sync_all()?;
                std::fs::rename(&part, path)
            }
            #[cfg(test)]
            Self::Memory(memory) => memory.create_with(path, content),
        }
    }

    /// As [`Self::create_with`], with the bytes of another file from `start` up to `end`, however many.
    pub(crate) fn create_from(
        &self,
        path: &Path,
        from: &File,
        start: u64,
        end: u64,
    ) -> io::Result<()> {
        match self {
            Self::Machine => {
                let part = path.with_added_extension("part");
                let file = create().create(true).truncate(true).open(&part)?;
                from.each_piece(start, end, |piece, at| file.write_all_at(piece, at))?;
                file.sync_all()?;
                std::fs::rename(&part, path)
            }
            #[cfg(test)]
            Self::Memory(memory) => {
                let mut content = Vec::new();
                from.each_piece(start, end, |piece, _| {
                    content.extend_from_slice(piece);
                    Ok(())
                })?;
                memory.create_with(path, &content)
            }
        }
    }

    /// Opens a file that is there.
    pub(crate) fn open(&self, path: &Path, access: Access) -> io::Result<File> {
        match self {
            Self::Machine => {
                let mut options = OpenOptions::new();
                options.read(true).write(access != Access::Read);
                if access == Access::Durable {
                    // Not rustix's `OFlags::DSYNC`: on Linux that is `O_SYNC`, which syncs times as well at each write.
                    options.custom_flags(OFlag::O_DSYNC.bits());
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

    /// Gives what is from `start` up to `end` in pieces, each with its place in all of them.
    fn each_piece(
        &self,
        start: u64,
        end: u64,
        mut give: impl FnMut(&[u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut buffer, mut at) = (vec![0; COPY_BYTES], start);
        while at < end {
            let most = usize::try_from(end - at).map_or(COPY_BYTES, |rest| rest.min(COPY_BYTES));
            let read = self.read_at(buffer.get_mut(..most).unwrap_or_default(), at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            give(buffer.get(..read).unwrap_or_default(), at - start)?;
            at += read as u64;
        }
        Ok(())
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

/// Appends `bytes` to a file outside of the log, made if it is not there, on the device when the call returns. An empty
/// line parts them from what is there, which may have been torn.
pub(crate) fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    const PARTED: [u8; 2] = *b"\n\n";
    let mut file = create().read(true).append(true).create(true).open(path)?;
    let (length, mut last) = (file.metadata()?.len(), PARTED);
    if length > 0 {
        last = [0; 2];
        file.read_at(&mut last, length.saturating_sub(2))?;
    }
    if last != PARTED {
        file.write_all(&PARTED)?;
    }
    file.write_all(bytes)?;
    file.sync_data()
}

/// A descriptor that whoever started the process left open for it. One of our own is never given out: those are closed
/// on exec, which an inherited one was not.
pub(crate) fn inherited(number: u32) -> io::Result<std::fs::File> {
    let facts = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
    let flags = facts
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    let ours = flags.is_none_or(|flags| flags & OFlag::O_CLOEXEC.bits() != 0);
    if ours {
        let what = format!("descriptor {number} was not left open by whoever started the process");
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    }
    OpenOptions::new()
        .append(true)
        .open(format!("/proc/self/fd/{number}"))
}

fn create() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(FILE_MODE);
    options
}

fn made_dir(path: &Path) -> io::Result<()> {
    let above = match path.parent() {
        None => return Ok(()), // the root
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
    };
    let sync = || std::fs::File::open(above)?.sync_all();
    if path.is_dir() {
        sync().ok(); // in case an earlier process ended before its sync; somebody else's may not be for us to open
        return Ok(());
    }
    made_dir(above)?;
    DirBuilder::new().mode(DIR_MODE).create(path)?;
    sync()
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

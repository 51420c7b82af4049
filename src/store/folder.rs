//! A store in a folder: one file a blob, replaced by rename; one file a lock, held as the operating system's.
//!
//! Files are 0600, folders 0700. A lock ends with its holder, however that ends. On a volume of another machine this
//! needs a file system that knows locks between machines (NFS 4, CephFS, GlusterFS do; SMB and object stores do not).

use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::clock::Id;
use crate::disk::{self, Disk, File};

use super::{BLOB_BYTES_MAX, StoreError};

pub(super) struct Folder {
    root: PathBuf,
}

/// Held until it is dropped.
pub(super) struct Lock {
    name: String,
    path: PathBuf,
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.file.unlock();
    }
}

/// A sealed blob is longer than what it holds.
const FILE_BYTES_MAX: u64 = 2 * BLOB_BYTES_MAX as u64;

impl Folder {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    pub(super) fn get(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let path = self.root.join(name);
        match disk::regular(&path, FILE_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(StoreError::Foreign {
                name: name.to_owned(),
                why: "too large".to_owned(),
            }),
            Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Folder { path, source }),
        }
    }

    pub(super) fn put(&self, name: &str, blob: &[u8]) -> Result<(), StoreError> {
        let path = self.root.join(name);
        self.replace(&path, blob)
            .map_err(|source| StoreError::Folder { path, source })
    }

    fn replace(&self, path: &Path, blob: &[u8]) -> io::Result<()> {
        let folder = path.parent().unwrap_or(&self.root);
        Disk::Machine.make_dir(folder)?;
        // Beside its place, under a name that no other process chooses.
        let draft = folder.join(format!(".{}", Id::new()));
        let written =
            disk::create_new(&draft, blob).and_then(|()| Disk::Machine.rename(&draft, path));
        if written.is_err() {
            Disk::Machine.remove(&draft).ok(); // the first error is the one to report
        }
        written?;
        Disk::Machine.sync_dir(folder)
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.root.join(name);
        match Disk::Machine.remove(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Folder { path, source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    pub(super) fn lock(&self, name: &str) -> Result<Option<Lock>, StoreError> {
        let path = self.root.join(format!("{name}.lock"));
        let folder = path.parent().unwrap_or(&self.root);
        let locked = Disk::Machine
            .make_dir(folder)
            .and_then(|()| disk::lock(&path));
        match locked {
            Ok(file) => Ok(file.map(|file| Lock {
                name: name.to_owned(),
                path,
                file: File::Machine(file),
            })),
            Err(source) => Err(StoreError::Folder { path, source }),
        }
    }

    /// A lock file that somebody removed and made anew is another lock.
    pub(super) fn still_held(&self, lock: &Lock) -> Result<(), StoreError> {
        if lock.file.is_at(&lock.path) {
            return Ok(());
        }
        Err(StoreError::Lost {
            name: lock.name.clone(),
        })
    }
}

//! Whole small files outside of the log: keys that are made, and files of the operator that are read.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::create;

/// Makes a new file with `content`, on the device; an error, and nothing lost, if there is one of that name.
pub(crate) fn create_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = create().create_new(true).open(path)?;
    file.write_all_at(content, 0)?;
    file.sync_all()
}

/// The whole of a regular file of at most `bytes_max`.
pub(crate) fn regular(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    // Looked at before it is opened: a pipe without a writer would hold us there.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

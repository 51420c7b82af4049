//! The bond between the log's first directory and its standby: a file `standby` in each, with the same random name.
//!
//! Without it a standby that is not mounted would look like an empty one, the log would go on from the last record of
//! the first directory, and numbers would be given twice. The first directory's file also says where the standby is,
//! so that a reader finds all of a log from its state directory.
//!
//! ```text
//! 0198f0a0-0000-7000-8000-000000000001\n
//! /mnt/other/tollgate\n                        in the first directory only
//! ```

use std::io;
use std::path::{Path, PathBuf};

use super::OpenError;
use super::segment::Store;
use crate::clock::Id;

const BOND: &str = "standby";

/// What such a file says.
struct Bond {
    id: Id,
    dir: PathBuf,
}

/// The standby of the log in `primary`, if it has one and that can be reached.
pub(super) fn of(primary: &Store) -> io::Result<Option<Store>> {
    let Some(bond) = read(primary)? else {
        return Ok(None);
    };
    let standby = Store {
        dir: bond.dir,
        ..primary.clone()
    };
    let same = read(&standby)?.is_some_and(|there| there.id == bond.id);
    Ok(same.then_some(standby))
}

/// Makes sure that `standby` is the one that the log has used before; bonds them if there is none yet.
pub(super) fn bond(primary: &Store, standby: Option<&Store>) -> Result<(), OpenError> {
    let failed = |store: &Store, doing| {
        let path = store.dir.join(BOND);
        move |error| OpenError::io(&path, doing, error)
    };
    let before = read(primary).map_err(failed(primary, "read"))?;
    let Some(standby) = standby else {
        return match before {
            Some(bond) => Err(OpenError::StandbyLeft {
                dir: bond.dir,
                primary: primary.dir.clone(),
                file: primary.dir.join(BOND),
            }),
            None => Ok(()),
        };
    };
    let there = read(standby).map_err(failed(standby, "read"))?;
    let foreign = || OpenError::StandbyForeign {
        dir: standby.dir.clone(),
        file: primary.dir.join(BOND),
    };
    let id = match (&before, &there) {
        (Some(before), Some(there)) if before.id == there.id => before.id,
        (None, Some(there)) if standby.segments().is_ok_and(|held| held.is_empty()) => there.id,
        (None, None) => {
            let id = Id::new();
            write(standby, &format!("{id}\n")).map_err(failed(standby, "write"))?;
            id
        }
        _ => return Err(foreign()),
    };
    if before.is_none_or(|before| before.dir != standby.dir) {
        let text = format!("{id}\n{}\n", standby.dir.display());
        write(primary, &text).map_err(failed(primary, "write"))?;
    }
    Ok(())
}

fn read(store: &Store) -> io::Result<Option<Bond>> {
    let bytes = match store.disk.read(&store.dir.join(BOND)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let text = String::from_utf8_lossy(&bytes);
    let (id, dir) = text.split_once('\n').ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some(Bond {
        id: Id::parse(id).ok_or(io::ErrorKind::InvalidData)?,
        dir: Path::new(dir.trim_end_matches('\n')).to_owned(),
    }))
}

/// Replaces the file, on the device.
fn write(store: &Store, text: &str) -> io::Result<()> {
    let path = store.dir.join(BOND);
    store.disk.create_with(&path, text.as_bytes())?;
    store.disk.sync_dir(&store.dir)
}

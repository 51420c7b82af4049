//! Follows a pair of files: tells a replaced one from one that is just being written, and a good one from a bad one.
//!
//! What the paths lead to is looked at several times a second (device, inode, size and times, behind every symbolic
//! link), and read when two looks agree on something new. That sees renames, swapped links and writes in place alike,
//! also on network volumes, and cannot miss an event that came while nobody listened. Files that are no pair, or not
//! valid now, are told of once; what was served before stays. Nothing here decides who is served with it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::config::typed::CertificateFiles;

use super::{Certificate, TlsError};

/// A pair of files, and what it was when it was last judged.
#[derive(Debug)]
pub(super) struct Following {
    files: CertificateFiles,
    judged: Look,
    /// Another look than `judged`, which the next one must agree with.
    unsettled: Option<Look>,
    /// When what was judged becomes valid, in seconds since 1970.
    valid_from: Option<i64>,
}

/// What both paths lead to. `None`: nothing that can be looked at.
type Look = [Option<Identity>; 2];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Also moved by a change of owner or mode: a file that becomes readable is another one.
    changed: (i64, i64),
}

impl Following {
    /// Reads `files` for the first time; the error is why there is nothing to serve.
    pub(super) fn begin(
        files: &CertificateFiles,
        second: i64,
    ) -> Result<(Self, Certificate), TlsError> {
        let judged = look(files);
        let certificate = Certificate::read(files)?;
        certificate.timely(second)?;
        let following = Self {
            files: files.clone(),
            judged,
            unsettled: None,
            valid_from: None,
        };
        Ok((following, certificate))
    }

    /// Whether it follows `files`.
    pub(super) fn follows(&self, files: &CertificateFiles) -> bool {
        self.files == *files
    }

    /// Looks once. Gives what the files hold, good or bad, once for each time that they have settled on something new.
    pub(super) fn look(&mut self, second: i64) -> Option<Result<Certificate, TlsError>> {
        let now = look(&self.files);
        let due = self.valid_from.is_some_and(|from| second >= from);
        if now == self.judged && !due {
            self.unsettled = None;
            return None;
        }
        if self.unsettled != Some(now) {
            self.unsettled = Some(now);
            return None;
        }
        self.judge(now, second)
    }

    /// As [`Following::look`], without waiting for a second look: somebody says that the files are as they should be.
    pub(super) fn look_at_once(&mut self, second: i64) -> Option<Result<Certificate, TlsError>> {
        let now = look(&self.files);
        if now == self.judged && self.valid_from.is_none() {
            return None;
        }
        self.judge(now, second)
    }

    fn judge(&mut self, now: Look, second: i64) -> Option<Result<Certificate, TlsError>> {
        self.unsettled = None;
        let read = Certificate::read(&self.files);
        if look(&self.files) != now {
            return None; // changed while it was read: halves of two pairs, perhaps
        }
        self.judged = now;
        self.valid_from = None;
        let timely = read.and_then(|certificate| match certificate.timely(second) {
            Ok(()) => Ok(certificate),
            Err(error) => {
                let early = second < certificate.not_before;
                self.valid_from = early.then_some(certificate.not_before);
                Err(error)
            }
        });
        Some(timely)
    }
}

fn look(files: &CertificateFiles) -> Look {
    [identity(&files.cert), identity(&files.key)]
}

pub(super) fn identity(path: &Path) -> Option<Identity> {
    let found = fs::metadata(path).ok()?;
    Some(Identity {
        device: found.dev(),
        inode: found.ino(),
        bytes: found.size(),
        modified: (found.mtime(), found.mtime_nsec()),
        changed: (found.ctime(), found.ctime_nsec()),
    })
}

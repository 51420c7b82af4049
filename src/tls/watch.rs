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

/// How often files are read at first that change while they are read.
const READS_MAX: usize = 5;

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
    pub(super) fn begin(files: &CertificateFiles) -> Result<(Self, Certificate), TlsError> {
        let mut judged = look(files);
        let mut read = Certificate::read(files);
        for _ in 1..READS_MAX {
            let before = std::mem::replace(&mut judged, look(files));
            if before == judged {
                break;
            }
            read = Certificate::read(files); // it was changed while it was read
        }
        let following = Self {
            files: files.clone(),
            judged,
            unsettled: None,
            valid_from: None,
        };
        Ok((following, read?))
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::*;

    /// Within the days of every certificate here but those that say otherwise.
    const NOW: i64 = 1_800_000_000;

    struct Place {
        folder: TempDir,
        files: CertificateFiles,
    }

    struct Pair {
        cert: String,
        key: String,
    }

    impl Place {
        fn new(pair: &Pair) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let files = CertificateFiles {
                cert: folder.path().join("tls.crt"),
                key: folder.path().join("tls.key"),
            };
            let place = Self { folder, files };
            place.write(pair);
            place
        }

        fn write(&self, pair: &Pair) {
            tick();
            fs::write(&self.files.cert, &pair.cert).unwrap();
            fs::write(&self.files.key, &pair.key).unwrap();
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn follow(&self) -> Following {
            Following::begin(&self.files).unwrap().0
        }
    }

    fn pair_of(from: i32, until: i32) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["a.test".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        Pair {
            cert: params.self_signed(&key).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    fn pair() -> Pair {
        pair_of(2000, 4000)
    }

    /// Until times of files are others: the system counts them by its own clock's tick.
    fn tick() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }

    /// What so many looks give.
    fn looks(following: &mut Following, count: usize) -> Vec<String> {
        let mut given = Vec::new();
        for _ in 0..count {
            given.extend(following.look(NOW).map(|read| match read {
                Ok(_) => "good".to_owned(),
                Err(error) => error.to_string(),
            }));
        }
        given
    }

    #[test]
    fn a_change_counts_when_two_looks_agree_and_is_given_once() {
        let place = Place::new(&pair());
        let mut following = place.follow();
        assert_eq!(looks(&mut following, 3), Vec::<String>::new());
        place.write(&pair());
        assert!(following.look(NOW).is_none());
        place.write(&pair()); // still being written
        assert!(following.look(NOW).is_none());
        assert!(following.look(NOW).unwrap().is_ok());
        assert_eq!(looks(&mut following, 3), Vec::<String>::new());
        // Who says that the files are as they should be is believed at once.
        place.write(&pair());
        assert!(following.look_at_once(NOW).unwrap().is_ok());
        assert!(following.look_at_once(NOW).is_none());
        assert!(following.look(NOW).is_none());
    }

    #[test]
    fn renames_links_and_the_same_size_in_place_are_seen() {
        let (old, new) = (pair(), pair());
        let place = Place::new(&old);
        let mut following = place.follow();
        for name in ["crt", "key"] {
            fs::write(
                place.path("new"),
                [&*new.cert, &new.key][usize::from(name == "key")],
            )
            .unwrap();
            fs::rename(place.path("new"), place.path(&format!("tls.{name}"))).unwrap();
        }
        assert_eq!(looks(&mut following, 3), ["good"]);
        // A link in place of the file, then another target behind the same link.
        for version in ["one", "two"] {
            let folder = place.path(version);
            fs::create_dir(&folder).unwrap();
            let pair = pair();
            fs::write(folder.join("tls.crt"), &pair.cert).unwrap();
            fs::write(folder.join("tls.key"), &pair.key).unwrap();
            let link = place.path("link");
            std::os::unix::fs::symlink(&folder, &link).unwrap();
            fs::rename(link, place.path("..data")).unwrap();
            if version == "one" {
                for name in ["tls.crt", "tls.key"] {
                    fs::remove_file(place.path(name)).unwrap();
                    let target = place.path("..data").join(name);
                    std::os::unix::fs::symlink(target, place.path(name)).unwrap();
                }
            }
            assert_eq!(looks(&mut following, 3), ["good"], "{version}");
        }
        // In place, the same number of bytes: only the times tell.
        let text = fs::read_to_string(&place.files.cert).unwrap();
        tick();
        fs::write(
            &place.files.cert,
            text.replace("CERTIFICATE", "CERTIFICATF"),
        )
        .unwrap();
        let given = looks(&mut following, 3);
        assert!(
            given.len() == 1 && given[0].contains("holds no certificate"),
            "{given:?}"
        );
    }

    #[test]
    fn what_is_bad_is_given_once_and_what_is_early_again_when_its_time_comes() {
        let place = Place::new(&pair());
        let mut following = place.follow();
        tick();
        fs::write(&place.files.key, &pair().key).unwrap();
        let given = looks(&mut following, 4);
        assert!(
            given.len() == 1 && given[0].contains("another certificate"),
            "{given:?}"
        );
        fs::remove_file(&place.files.cert).unwrap();
        let given = looks(&mut following, 4);
        assert!(
            given.len() == 1 && given[0].contains("cannot be read"),
            "{given:?}"
        );
        place.write(&pair_of(2000, 2020));
        let given = looks(&mut following, 4);
        assert!(
            given.len() == 1 && given[0].contains("has expired"),
            "{given:?}"
        );
        place.write(&pair_of(3000, 6000));
        let given = looks(&mut following, 4);
        assert!(
            given.len() == 1 && given[0].contains("is not valid before"),
            "{given:?}"
        );
        let then = 32_503_680_000; // the year 3000
        assert!(following.look(then - 1).is_none());
        assert!(following.look(then).is_none());
        assert!(following.look(then).unwrap().is_ok());
        assert!(following.look(then).is_none());
    }

    #[test]
    fn halves_of_two_pairs_are_never_taken_for_one() {
        const VERSIONS: usize = 200;
        let pairs = [pair(), pair()];
        let place = Place::new(&pairs[0]);
        let data = place.path("..data");
        for at in 0..VERSIONS {
            let folder = place.path(&format!("..{at}"));
            fs::create_dir(&folder).unwrap();
            let pair = &pairs[at % pairs.len()];
            fs::write(folder.join("tls.crt"), &pair.cert).unwrap();
            fs::write(folder.join("tls.key"), &pair.key).unwrap();
        }
        let folder = place.folder.path().to_owned();
        let swap = move |at: usize| {
            let link = folder.join("link");
            std::os::unix::fs::symlink(format!("..{at}"), &link).unwrap();
            fs::rename(link, folder.join("..data")).unwrap();
        };
        swap(0);
        let files = CertificateFiles {
            cert: data.join("tls.crt"),
            key: data.join("tls.key"),
        };
        let mut following = Following::begin(&files).unwrap().0;
        let swaps = crate::workers::thread("swaps", move || (1..VERSIONS).for_each(swap)).unwrap();
        let mut given = 0;
        while !swaps.is_finished() {
            if let Some(read) = following.look_at_once(NOW) {
                assert!(read.is_ok(), "{read:?}");
                given += 1;
            }
        }
        swaps.join().unwrap();
        assert!(given > 0 || following.look_at_once(NOW).is_some());
    }
}

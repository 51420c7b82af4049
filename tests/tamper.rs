//! Promise 8: whoever changes a log that the binary wrote is found out, and the place is named.
//!
//! A real log, of two processes, is changed in every way at every place, and verified with the public
//! key that was noted when it began.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::client::{Client, Version};
use support::gate::Place;
use support::upstream::Upstream;
use tollgate::audit::{Problem, PublicKey, Report, Trust, verify};

const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A closed log, in files.
struct Sample {
    place: Place,
    /// Oldest first.
    files: Vec<(String, Vec<u8>)>,
    trust: Trust,
}

impl Sample {
    /// Two processes, each with a request.
    async fn make() -> Self {
        let (place, upstream) = (Place::new(), Upstream::start());
        let anchor = format!("[[audit.anchor]]\nfile = {:?}\n\n", place.path("anchor"));
        let config = place.head() + &anchor + &place.ingress(upstream.address, "");
        for version in [Version::H1, Version::H2] {
            let mut gate = place.start(&config);
            let client = Client::of(&place);
            assert_eq!(client.get(version, "/headers").await.status, 200);
            assert!(gate.stop(STOP_LIMIT).success());
        }
        let audit = place.state().join("audit");
        let key = fs::read_to_string(audit.join("seal.pub")).unwrap();
        let mut files: Vec<_> = fs::read_dir(&audit)
            .unwrap()
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
            .map(|path| {
                (
                    path.file_name().unwrap().to_str().unwrap().to_owned(),
                    fs::read(&path).unwrap(),
                )
            })
            .collect();
        files.sort_unstable();
        assert_eq!(files.len(), 2);
        let trust = Trust {
            key: Some(PublicKey::parse(&key).unwrap()),
            anchors: Vec::new(),
        };
        let sample = Self {
            place,
            files,
            trust,
        };
        let report = sample.verify();
        assert!(
            report.problem.is_none()
                && report.key_given
                && report.sealed_seq + 1 == report.last_seq,
            "{report:?}"
        );
        sample
    }

    /// Verifies these files, in a directory of their own.
    fn verify(&self) -> Report {
        let dir = self.place.path("copied");
        if dir.exists() {
            fs::remove_dir_all(&dir).unwrap();
        }
        fs::create_dir(&dir).unwrap();
        for (name, bytes) in &self.files {
            fs::write(dir.join(name), bytes).unwrap();
        }
        self.verify_in(dir)
    }

    /// The same after only `file` has changed.
    fn verify_changed(&self, file: usize, bytes: &[u8]) -> Report {
        let dir = self.place.path("copied");
        let path = dir.join(&self.files[file].0);
        fs::write(&path, bytes).unwrap();
        let report = self.verify_in(dir);
        fs::write(&path, &self.files[file].1).unwrap();
        report
    }

    fn verify_in(&self, dir: PathBuf) -> Report {
        verify(&[dir], &self.trust, &mut |_| {}).unwrap()
    }

    /// The problem that a changed file must lead to.
    fn problem(&self, file: usize, bytes: &[u8], what: &str) -> Problem {
        let report = self.verify_changed(file, bytes);
        report
            .problem
            .clone()
            .unwrap_or_else(|| panic!("{what} was not noticed: {report:?}"))
    }
}

/// Where the lines of a file begin, and its end.
fn edges(bytes: &[u8]) -> Vec<usize> {
    let ends = bytes
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'\n')
        .map(|(at, _)| at + 1);
    std::iter::once(0).chain(ends).collect()
}

fn is_in(problem: &Problem, name: &str) -> bool {
    problem.file.file_name() == Path::new(name).file_name()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_changed_byte_is_named_by_file_line_and_record() {
    let sample = Sample::make().await;
    let mut cases = 0;
    for (file, (name, bytes)) in sample.files.iter().enumerate() {
        let edges = edges(bytes);
        let first: u64 = name.split('.').next().unwrap().parse().unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            let what = format!("{name}: bit {} of byte {at}", at % 8);
            let problem = sample.problem(file, &changed, &what);
            let line = edges.partition_point(|edge| *edge <= at) as u64;
            let places = (problem.line, problem.offset, problem.seq);
            let expected = (line, edges[line as usize - 1] as u64, first + line - 1);
            assert!(
                is_in(&problem, name) && places == expected,
                "{what}: {problem:?}, not {expected:?}"
            );
            cases += 1;
        }
    }
    eprintln!("{cases} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_dropped_record_and_every_swapped_pair_is_named() {
    let sample = Sample::make().await;
    let mut cases = 0;
    for (file, (name, bytes)) in sample.files.iter().enumerate() {
        let edges = edges(bytes);
        let lines: Vec<&[u8]> = edges
            .windows(2)
            .map(|pair| &bytes[pair[0]..pair[1]])
            .collect();
        for at in 0..lines.len() {
            let mut dropped = lines.clone();
            dropped.remove(at);
            let (dropped, what) = (dropped.concat(), format!("{name}: line {} dropped", at + 1));
            if at + 1 == lines.len() && file + 1 == sample.files.len() {
                continue; // the end of the log: `a_log_cut_at_any_byte_is_found_out`
            }
            let problem = sample.problem(file, &dropped, &what);
            // The last line of a file is missed where the next file goes on.
            assert!(
                is_in(&problem, name) || at + 1 == lines.len(),
                "{what}: {problem:?}"
            );
            if at + 1 < lines.len() {
                assert_eq!(problem.line, at as u64 + 1, "{what}: {problem:?}");
                let mut swapped = lines.clone();
                swapped.swap(at, at + 1);
                let problem = sample.problem(
                    file,
                    &swapped.concat(),
                    &format!("{name}: line {} swapped", at + 1),
                );
                assert!(is_in(&problem, name), "{problem:?}");
                assert_eq!(problem.line, at as u64 + 1, "{problem:?}");
            }
            cases += 1;
        }
    }
    eprintln!("{cases} records");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_log_cut_at_any_byte_is_found_out() {
    let sample = Sample::make().await;
    let anchored = Trust {
        anchors: vec![sample.place.path("anchor")],
        ..sample.trust.clone()
    };
    let end: usize = sample.files.len() - 1;
    for (file, (name, bytes)) in sample.files.iter().enumerate() {
        for length in 0..bytes.len() {
            let report = sample.verify_changed(file, &bytes[..length]);
            // The files themselves show that the end is missing; only an anchor shows that it has been there.
            let said = report.problem.is_some() || file == end && report.unfinished.is_some();
            assert!(said, "{name} cut to {length} bytes: {report:?}");
        }
    }
    let path = sample.place.path("copied").join(&sample.files[end].0);
    let bytes = &sample.files[end].1;
    let whole = verify(&[sample.place.path("copied")], &anchored, &mut |_| {}).unwrap();
    assert!(
        whole.problem.is_none() && whole.anchors[0].last_seq == whole.sealed_seq,
        "{whole:?}"
    );
    for edge in edges(bytes).iter().rev().skip(2) {
        fs::write(&path, &bytes[..*edge]).unwrap();
        let report = verify(&[sample.place.path("copied")], &anchored, &mut |_| {}).unwrap();
        assert!(
            report.problem.is_some(),
            "cut to {edge} bytes, and the anchor knows better: {report:?}"
        );
    }
}

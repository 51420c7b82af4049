//! Promise 1 while a system call fails: every call that the log makes goes wrong once, in each way that it can.
//!
//! strace lists the calls of one start, of one segment's life and of one stop, and then makes one of them fail. What
//! must hold after each: nobody was let in whose record is not on disk, the log is whole, and a later start works.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::client::{Client, Version};
use support::eventually;
use support::gate::{Gate, Place, binary};
use support::load::Load;
use support::log::{Log, admitted_now};
use support::peer::must;
use support::strace::{Attached, Call, calls, strace, threads};
use support::upstream::Upstream;

const LIMIT: Duration = Duration::from_secs(30);
/// A record of such a request is long, so that a segment is soon full.
const LONG_PATH_BYTES: usize = 1500;

/// A process under load, and who has reached the upstream.
struct Scene {
    place: Place,
    upstream: Upstream,
    config: String,
    gate: Gate,
    /// So many of the upstream's identifiers have been found in the log.
    checked: usize,
}

impl Scene {
    fn new() -> Self {
        let (place, upstream) = (Place::new(), Upstream::start());
        let audit = "[audit]\nsegment = \"64KiB\"\nwait_budget = \"5s\"\n\n";
        let config = place.head() + audit + &place.ingress(upstream.address, "");
        let gate = place.start(&config);
        Self {
            place,
            upstream,
            config,
            gate,
            checked: 0,
        }
    }

    fn load(&self) -> Load {
        let path = format!("/headers/{}", "x".repeat(LONG_PATH_BYTES));
        Load::start(Client::of(&self.place), Version::H1, 2, &path)
    }

    /// Whoever has reached the upstream by now is on disk by now.
    fn nobody_was_let_in_early(&mut self) {
        let seen = self.upstream.ids().split_off(self.checked);
        if seen.is_empty() {
            return;
        }
        let dir = [self.place.state().join("audit")];
        let missing = |files| {
            let admitted = admitted_now(&dir, files);
            let missing = seen.iter().filter(|id| !admitted.contains(*id));
            missing.cloned().collect::<Vec<_>>()
        };
        let mut early = missing(6);
        if !early.is_empty() {
            early = missing(usize::MAX); // this thread has had to wait, and much has been written since
        }
        assert!(early.is_empty(), "let in before it was on disk: {early:?}");
        self.checked += seen.len();
    }

    /// Waits for `done`, looking at the log all the time.
    fn watch(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            assert!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
            self.nobody_was_let_in_early();
            std::thread::sleep(Duration::from_millis(5));
        }
        self.nobody_was_let_in_early();
    }

    /// Requests pass again, and the log is whole so far.
    fn recovers(&mut self) {
        let seen = self.upstream.ids().len();
        self.watch("requests to pass again", |scene| {
            scene.upstream.ids().len() > seen + 3
        });
        self.gate.wait_ready();
        self.place.verify();
    }

    /// A thread gives itself its name, once it runs.
    fn thread(&self, name: &str) -> u32 {
        eventually(name, LIMIT, || {
            let mut threads = threads(self.gate.pid()).into_iter();
            threads.find(|(_, n)| n == name).map(|(thread, _)| thread)
        })
    }

    fn end(mut self) {
        if self.gate.is_running() {
            self.gate.stop(LIMIT);
        }
        restart_and_check(&self.place, &self.config, &self.upstream);
    }
}

/// A later start works, and leaves a whole log.
fn restart_and_check(place: &Place, config: &str, upstream: &Upstream) {
    assert!(place.start(config).stop(LIMIT).success());
    Log::read(&place.state()).assert_whole(upstream);
    place.verify();
}

/// The calls that the log's threads make in the life of a segment, by thread.
fn record() -> BTreeMap<String, Vec<Call>> {
    let scene = Scene::new();
    let audit = scene.place.state().join("audit");
    let mut found = BTreeMap::new();
    for (thread, name) in threads(scene.gate.pid()) {
        if !name.starts_with("tollgate-") {
            continue;
        }
        let out = scene.place.path(&format!("strace.{thread}"));
        let attached = Attached::to(thread, &out, None);
        let load = scene.load();
        let closed = segments(&audit);
        eventually("two segments to be full", LIMIT, || {
            (segments(&audit) > closed + 2).then_some(())
        });
        load.stop();
        let mut calls = calls(&attached.detach());
        calls.retain(|call| call.is_below(&audit));
        different(&mut calls);
        if !calls.is_empty() {
            found.insert(name, calls);
        }
    }
    found
}

/// Leaves out what is the same call behind the same call as one before it.
fn different(calls: &mut Vec<Call>) {
    let mut seen = BTreeSet::new();
    let mut before = String::new();
    calls.retain(|call| {
        let shape = call.line.replace(|c: char| c.is_ascii_digit(), "");
        let shape = match shape.split_once('"') {
            Some((before, _)) if call.name.starts_with('p') => before.to_owned(), // behind it are the data
            _ => shape,
        };
        let pair = (std::mem::replace(&mut before, shape.clone()), shape);
        seen.insert(pair)
    });
}

fn segments(audit: &Path) -> usize {
    let names = fs::read_dir(audit).unwrap();
    names
        .filter(|n| {
            n.as_ref()
                .is_ok_and(|n| n.path().extension().is_some_and(|e| e == "jsonl"))
        })
        .count()
}

#[test]
#[ignore = "needs strace and the right to trace; run by tests/run"]
fn every_call_of_a_running_log_fails_once() {
    let recorded = record();
    let names = |thread: &str| -> Vec<&str> {
        recorded
            .get(thread)
            .into_iter()
            .flatten()
            .map(|call| call.name.as_str())
            .collect()
    };
    for call in ["pwrite64", "ftruncate", "fsync", "rename", "openat"] {
        assert!(
            names("tollgate-journa").contains(&call),
            "{call} of {recorded:#?}"
        );
    }
    assert!(
        names("tollgate-spare").contains(&"fallocate"),
        "{recorded:#?}"
    );

    let mut cases = 0;
    for (thread, calls) in &recorded {
        // A log of its own for each call, so that it stays short.
        for call in calls {
            let mut scene = Scene::new();
            for fault in call.faults() {
                cases += 1;
                eprintln!("{thread}: {} of {}", call.with(fault), call.line);
                let out = scene.place.path("strace.out");
                let attached = Attached::to(scene.thread(thread), &out, Some(&call.with(fault)));
                let load = scene.load();
                scene.watch("the call to fail", |_| attached.has_injected());
                attached.detach();
                scene.recovers();
                let tally = load.stop();
                assert!(tally.failures.is_empty(), "{:?}", tally.failures.first());
            }
            scene.end();
        }
    }
    eprintln!("{cases} cases");
    assert!(cases > 25, "only {cases} cases");
}

#[test]
#[ignore = "needs strace and the right to trace; run by tests/run"]
fn while_every_write_fails_nobody_is_let_in() {
    let mut scene = Scene::new();
    for fault in ["error=EIO", "error=ENOSPC", "retval=0"] {
        let out = scene.place.path("strace.out");
        let inject = format!("pwrite64:{fault}:when=1+");
        let attached = Attached::to(scene.thread("tollgate-journa"), &out, Some(&inject));
        let load = scene.load();
        scene.watch("a write to fail", |_| attached.has_injected());
        scene.gate.wait_readyz(503);
        let seen = scene.upstream.ids().len();
        let begin = Instant::now();
        scene.watch("half a second", |_| {
            begin.elapsed() > Duration::from_millis(500)
        });
        assert_eq!(
            scene.upstream.ids().len(),
            seen,
            "{fault}: let in without a log"
        );
        attached.detach();
        scene.recovers();
        let tally = load.stop();
        assert!(
            tally.of(503) > 0 && tally.without_retry_after == 0,
            "{tally:?}"
        );
    }
    scene.end();
}

#[test]
#[ignore = "needs strace and the right to trace; run by tests/run"]
fn a_request_waits_for_its_write() {
    const HELD: Duration = Duration::from_millis(400);
    let scene = Scene::new();
    let out = scene.place.path("strace.out");
    let inject = format!("pwrite64:delay_exit={}:when=1+", HELD.as_micros());
    let attached = Attached::to(scene.thread("tollgate-journa"), &out, Some(&inject));
    let begin = Instant::now();
    let load = scene.load();
    eventually("a request to arrive", LIMIT, || {
        (!scene.upstream.ids().is_empty()).then_some(())
    });
    assert!(
        begin.elapsed() >= HELD,
        "it did not wait: {:?}",
        begin.elapsed()
    );
    attached.detach();
    load.stop();
    scene.end();
}

/// Fails each call of a start on a copy of `template` once, with each of its faults that `takes` takes.
fn fail_each_call_of_a_start(
    place: &Place,
    upstream: &Upstream,
    template: &Path,
    takes: fn(&str) -> bool,
) -> usize {
    let config =
        place.head() + "[audit]\nsegment = \"64KiB\"\n\n" + &place.ingress(upstream.address, "");
    let out = place.path("strace.out");
    restore(template, &place.state());
    let mut gate = start(place, &config, strace(&out, None));
    gate.wait_ready();
    assert!(gate.stop(LIMIT).success());
    let mut calls = calls(&fs::read_to_string(&out).unwrap());
    calls.retain(|call| call.is_below(&place.state()));
    different(&mut calls);
    let mut cases = 0;
    for call in &calls {
        for fault in call.faults().into_iter().filter(|fault| takes(fault)) {
            cases += 1;
            eprintln!("start: {} of {}", call.with(fault), call.line);
            restore(template, &place.state());
            let said = fs::read_to_string(place.path("stderr")).unwrap().len();
            let mut gate = start(place, &config, strace(&out, Some(&call.with(fault))));
            let ended = eventually("it to be ready, or to end", LIMIT, || {
                let ready = gate.admin_get("/readyz").is_some_and(|(s, _)| s == 200);
                (ready || !gate.is_running()).then_some(!ready)
            });
            let status = if ended {
                gate.wait_exit(LIMIT)
            } else {
                gate.stop(LIMIT)
            };
            let text = gate.stderr().split_off(said);
            if ended {
                assert_eq!(status.code(), Some(3), "{text}");
                let named = text.contains(place.state().to_str().unwrap());
                assert!(named, "names no file: {text}");
            }
            let injected = fs::read_to_string(&out).unwrap().contains("(INJECTED)");
            assert!(injected, "nothing went wrong: the test tests nothing");
            restart_and_check(place, &config, upstream);
        }
    }
    eprintln!("{cases} cases");
    cases
}

#[test]
#[ignore = "needs strace and the right to trace; run by tests/run"]
fn every_call_of_the_first_start_fails_once() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let empty = place.path("empty");
    fs::create_dir(&empty).unwrap();
    let takes = |fault: &str| fault != "error=EINTR"; // a start behind a kill makes the same calls, and more
    let cases = fail_each_call_of_a_start(&place, &upstream, &empty, takes);
    assert!(cases > 20, "only {cases} cases");
}

#[test]
#[ignore = "needs strace and the right to trace; run by tests/run"]
fn every_call_of_a_start_behind_a_kill_fails_once() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let config = place.head() + &place.ingress(upstream.address, "");
    let mut gate = place.start(&config);
    let load = Load::start(Client::of(&place), Version::H1, 2, "/headers");
    eventually("requests", LIMIT, || {
        (upstream.ids().len() > 20).then_some(())
    });
    gate.kill();
    load.stop();
    // Something to put aside.
    tear(&place.state().join("audit"));
    let killed = place.path("killed");
    fs::rename(place.state(), &killed).unwrap();
    let cases = fail_each_call_of_a_start(&place, &upstream, &killed, |_| true);
    assert!(cases > 40, "only {cases} cases");
}

#[test]
#[ignore = "needs strace and the right to trace; run by tests/run"]
fn every_call_of_a_stop_fails_once() {
    let (recorded, _) = stop_with(None);
    let (mut cases, mut failed) = (0, 0);
    for call in &recorded {
        for fault in call.faults() {
            cases += 1;
            eprintln!("stop: {} of {}", call.with(fault), call.line);
            failed += usize::from(stop_with(Some(&call.with(fault))).1);
        }
    }
    eprintln!("{failed} of {cases} cases");
    // One stop may need a write more than the next: not each call is made each time.
    assert!(
        failed > 10 && failed * 4 > cases * 3,
        "{failed} of {cases} cases"
    );
}

/// Stops it under load. Gives the calls that it made, and whether one was made to fail.
fn stop_with(inject: Option<&str>) -> (Vec<Call>, bool) {
    let mut scene = Scene::new();
    let audit = scene.place.state().join("audit");
    let load = scene.load();
    scene.watch("requests", |scene| scene.upstream.ids().len() > 5);
    load.stop();
    // All is written, so that each stop makes much the same calls.
    scene.watch("the last terminal records", |scene| {
        let log = Log::read(&scene.place.state());
        log.kind("before").count() == log.kind("after").count()
    });
    let out = scene.place.path("strace.out");
    let attached = Attached::to(scene.thread("tollgate-journa"), &out, inject);
    let status = scene.gate.stop(LIMIT);
    assert!(matches!(status.code(), Some(0 | 3)), "{status:?}");
    let failed = attached.has_injected();
    let mut calls = calls(&attached.detach());
    calls.retain(|call| call.is_below(&audit));
    scene.end();
    (calls, failed)
}

/// Runs it below strace, which does not follow its threads.
fn start(place: &Place, config: &str, mut strace: Command) -> Gate {
    let config = place.write(config);
    // A tracer that is a grandchild: what is started is Tollgate itself.
    strace.args(["-D", binary(), "run", "--config"]).arg(config);
    place.launch(strace)
}

fn restore(template: &Path, state: &Path) {
    if state.exists() {
        fs::remove_dir_all(state).unwrap();
    }
    must(Command::new("cp").arg("-a").arg(template).arg(state));
}

/// Half a record behind the last one of the open segment, as a power cut leaves it.
fn tear(audit: &Path) {
    let mut names = fs::read_dir(audit).unwrap().map(|n| n.unwrap().path());
    let open = names
        .find(|path| path.extension().is_some_and(|e| e == "open"))
        .unwrap();
    let mut bytes = fs::read(&open).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
    let half = b"{\"seq\":99999,\"batch\":1,\"kind\":";
    bytes[end..end + half.len()].copy_from_slice(half);
    fs::write(&open, bytes).unwrap();
}

//! Promise 1 on a disk that hangs, that forgets what was not synced, and that writes less than it is asked to.
//!
//! Needs root and `/dev/fuse`; `tests/support/disk.rs` is the disk. Where the kernel has no FUSE, `tests/run` says so
//! and sets `TOLLGATE_NO_FUSE`; nothing else leaves these tests out.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use support::client::{Client, Version};
use support::disk::{Disk, Trouble};
use support::gate::{Gate, Place};
use support::load::Load;
use support::log::{Log, admitted_now};
use support::upstream::Upstream;
use support::{eventually, rounds};

const LIMIT: Duration = Duration::from_secs(30);
const AUDIT: &str = "[audit]\nsegment = \"64KiB\"\n";

/// A place whose state is on such a disk. The order matters: the process ends before its disk does.
struct Scene {
    gate: Gate,
    disk: Disk,
    upstream: Upstream,
    config: String,
    place: Place,
}

impl Scene {
    /// `None` where there is no FUSE, and the environment says so.
    fn new(audit: &str) -> Option<Self> {
        if std::env::var_os("TOLLGATE_NO_FUSE").is_some() {
            return None;
        }
        let (place, upstream) = (Place::new(), Upstream::start());
        let disk = Disk::mount(&place.state());
        let config = place.head() + AUDIT + audit + "\n" + &place.ingress(upstream.address, "");
        let gate = place.start(&config);
        Some(Self {
            gate,
            disk,
            upstream,
            config,
            place,
        })
    }

    fn load(&self, connections: usize) -> Load {
        Load::start(
            Client::of(&self.place),
            Version::H1,
            connections,
            "/headers",
        )
    }

    /// One request: its status, and how long the answer took.
    fn ask(&self) -> (u16, Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let begin = Instant::now();
        let reply = runtime.block_on(Client::of(&self.place).get(Version::H1, "/headers"));
        (reply.status, begin.elapsed())
    }

    fn arrived(&self) -> usize {
        self.upstream.ids().len()
    }

    fn more_arrive(&self, count: usize) {
        let seen = self.arrived();
        eventually("requests to pass", LIMIT, || {
            (self.arrived() >= seen + count).then_some(())
        });
    }

    /// Stops it; the log is whole.
    fn end(mut self) -> Log {
        assert!(self.gate.stop(LIMIT).success());
        let log = Log::read(&self.place.state());
        log.assert_whole(&self.upstream);
        self.place.verify();
        log
    }
}

#[test]
#[ignore = "needs root and FUSE; run by tests/run"]
fn a_power_cut_at_any_moment_leaves_whoever_was_let_in() {
    let Some(mut scene) = Scene::new("") else {
        return;
    };
    let copy = scene.place.path("remains");
    let (cuts, mut looks, mut checked) = (rounds("TOLLGATE_POWER_CUTS", 12), 0_u64, 0);
    for cut in 0..cuts as u64 {
        let load = scene.load(4);
        scene.more_arrive(1);
        for look in 0..8 {
            std::thread::sleep(Duration::from_micros(1700 * (1 + (cut * 8 + look) % 11)));
            looks += 1;
            let seen = scene.upstream.ids();
            let whim = (looks % 2 == 0).then_some(looks);
            scene.disk.remains(whim, &copy);
            let admitted = admitted_now(&[copy.join("audit")], usize::MAX);
            let lost: Vec<_> = seen.iter().filter(|id| !admitted.contains(*id)).collect();
            assert!(
                lost.is_empty(),
                "cut {cut}, look {look}: let in, and not on disk: {lost:?}"
            );
            checked += seen.len();
        }
        scene.gate.kill();
        load.stop();
        scene.disk.lose_power((cut % 2 == 0).then_some(cut));
        scene.gate = scene.place.start(&scene.config);
    }
    assert!(checked > 100, "too few requests for a test: {checked}");
    let upstream = scene.arrived();
    let log = scene.end();
    let unknown = log
        .kind("after")
        .filter(|r| r["outcome"] == "unknown")
        .count();
    eprintln!(
        "{cuts} power cuts, {looks} looks between, {upstream} requests, {unknown} of them cut off"
    );
    assert!(unknown > 0, "nothing was under way when the power went");
}

#[test]
#[ignore = "needs root and FUSE; run by tests/run"]
fn the_first_start_survives_a_power_cut() {
    let Some(mut scene) = Scene::new("") else {
        return;
    };
    assert_eq!(scene.ask().0, 200);
    scene.gate.kill();
    scene.disk.lose_power(None);
    scene.gate = scene.place.start(&scene.config);
    assert_eq!(scene.arrived(), 1);
    scene.end();
}

#[test]
#[ignore = "needs root and FUSE; run by tests/run"]
fn while_the_disk_hangs_requests_are_refused_within_the_budget_and_then_it_goes_on_by_itself() {
    const BUDGET: Duration = Duration::from_secs(1);
    /// What a busy machine may add.
    const SLACK: Duration = Duration::from_secs(2);
    let Some(scene) = Scene::new("wait_budget = \"1s\"\nstall_after = \"500ms\"\n") else {
        return;
    };
    assert_eq!(scene.ask().0, 200);
    let mut said = String::new();
    for lasts in [Duration::from_secs(2), Duration::from_secs(3)] {
        let load = scene.load(4);
        scene.more_arrive(20);
        let hung = scene.disk.hang();
        let begin = Instant::now();
        std::thread::sleep(Duration::from_millis(50)); // what was durable already may pass
        let before = scene.arrived();
        let (status, took) = scene.ask();
        assert_eq!(status, 503);
        assert!(took < BUDGET + SLACK, "the first refusal took {took:?}");
        scene.gate.wait_readyz(503);
        let unready = begin.elapsed();
        let (status, at_once) = scene.ask();
        assert_eq!(status, 503);
        assert!(at_once < BUDGET, "it queues still: {at_once:?}");
        assert_eq!(scene.gate.admin_get("/healthz").expect("it lives").0, 200);
        std::thread::sleep(lasts.saturating_sub(begin.elapsed()));
        assert_eq!(scene.arrived(), before, "let in while the disk hung");
        drop(hung);
        let resumed = Instant::now();
        scene.gate.wait_ready();
        scene.more_arrive(20);
        let tally = load.stop();
        assert!(tally.failures.is_empty(), "{:?}", tally.failures.first());
        assert_eq!(tally.without_retry_after, 0, "{tally:?}");
        writeln!(
            said,
            "hung {lasts:?}: first refusal after {took:?}, later ones {at_once:?}, not ready after {unready:?}, ready again {:?} after the disk, {} refused",
            resumed.elapsed(),
            tally.of(503),
        )
        .unwrap();
    }
    let log = scene.end();
    let degraded: Vec<_> = log
        .kind("event")
        .filter(|e| e["name"] == "degraded")
        .collect();
    assert_eq!(degraded.len(), 2, "{degraded:?}");
    for event in degraded {
        let lasted: u64 = event["facts"]["lasted_ms"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1500..20_000).contains(&lasted), "{event}");
        assert_ne!(event["facts"]["refused"], "0", "{event}");
    }
    eprint!("{said}");
}

#[test]
#[ignore = "needs root and FUSE; run by tests/run"]
fn a_process_whose_disk_hangs_can_be_stopped() {
    let Some(mut scene) = Scene::new("") else {
        return;
    };
    let load = scene.load(2);
    scene.more_arrive(5);
    let hung = scene.disk.hang();
    scene.gate.wait_readyz(503);
    scene.gate.signal(rustix::process::Signal::TERM);
    load.stop();
    // What is stuck in the kernel ends with the disk; the process itself must have ended before.
    let stat = format!("/proc/{}/stat", scene.gate.pid());
    let begin = Instant::now();
    eventually("it to end", LIMIT, || {
        let stat = std::fs::read_to_string(&stat).unwrap();
        stat.contains(") Z ").then_some(())
    });
    let took = begin.elapsed();
    assert!(
        took < Duration::from_secs(15),
        "it waited {took:?} for a disk that hangs"
    );
    drop(hung);
    scene.gate.wait_exit(LIMIT);
    scene.gate = scene.place.start(&scene.config);
    scene.end();
}

#[test]
#[ignore = "needs root and FUSE; run by tests/run"]
fn a_write_that_takes_less_than_it_got_is_finished_or_given_up() {
    let Some(scene) = Scene::new("") else { return };
    let load = scene.load(4);
    scene.more_arrive(10);
    scene.disk.set_trouble(Trouble::Short);
    scene.more_arrive(50);
    for _ in 0..10 {
        scene.disk.set_trouble(Trouble::ShortThenFails);
        eventually("a write to fail", LIMIT, || {
            (scene.disk.trouble() == Trouble::None).then_some(())
        });
        scene.more_arrive(10);
    }
    let tally = load.stop();
    assert!(tally.failures.is_empty(), "{:?}", tally.failures.first());
    scene.end();
}

/// A process with a disk and a standby. The order matters: the process ends before its disks do.
struct Pair {
    gate: Gate,
    first: Disk,
    standby: Disk,
    dirs: [PathBuf; 2],
    upstream: Upstream,
    config: String,
    place: Place,
}

impl Pair {
    /// `None` where there is no FUSE, and the environment says so.
    fn new() -> Option<Self> {
        if std::env::var_os("TOLLGATE_NO_FUSE").is_some() {
            return None;
        }
        let (place, upstream) = (Place::new(), Upstream::start());
        let (first, there) = (Disk::mount(&place.state()), place.path("standby"));
        let standby = Disk::another(&there);
        let audit =
            format!("stall_after = \"300ms\"\nwait_budget = \"2s\"\nstandby_dir = {there:?}\n\n");
        let config = place.head() + AUDIT + &audit + &place.ingress(upstream.address, "");
        Some(Self {
            gate: place.start(&config),
            first,
            standby,
            dirs: [place.state().join("audit"), there],
            upstream,
            config,
            place,
        })
    }

    fn load(&self) -> Load {
        Load::start(Client::of(&self.place), Version::H1, 4, "/headers")
    }

    fn more_arrive(&self, count: usize) {
        let seen = self.upstream.ids().len();
        eventually("requests to pass", LIMIT, || {
            (self.upstream.ids().len() > seen + count).then_some(())
        });
    }

    fn wait_for_standby(&self, used: bool) {
        let line = format!("tollgate_journal_standby {}", u8::from(used));
        eventually(&line, LIMIT, || {
            self.gate.metrics().lines().any(|l| l == line).then_some(())
        });
    }

    /// Whoever was let in would be on one disk or the other, if the power went at any moment.
    fn nobody_was_let_in_early(&self) {
        let copies = ["left-here", "left-there"].map(|name| self.place.path(name));
        let left = [copies[0].join("audit"), copies[1].clone()];
        for look in 0..10 {
            std::thread::sleep(Duration::from_millis(7));
            let seen = self.upstream.ids();
            let whim = (look % 2 == 0).then_some(look);
            self.first.remains(whim, &copies[0]);
            self.standby.remains(whim, &copies[1]);
            let admitted = admitted_now(&left, usize::MAX);
            let lost: Vec<_> = seen.iter().filter(|id| !admitted.contains(*id)).collect();
            assert!(lost.is_empty(), "let in, and on neither disk: {lost:?}");
        }
    }

    /// The first disk hangs or dies under load, and comes back.
    fn lose_the_first_for_a_while(&self, dies: bool) {
        const STALL_AFTER: Duration = Duration::from_millis(300);
        /// What a busy machine may add.
        const SLACK: Duration = Duration::from_secs(5);
        let load = self.load();
        self.more_arrive(20);
        let begin = Instant::now();
        let hung = (!dies).then(|| self.first.hang());
        if dies {
            self.first.set_trouble(Trouble::Dead);
        }
        self.wait_for_standby(true);
        self.more_arrive(1);
        let took = begin.elapsed();
        assert!(took < STALL_AFTER + SLACK, "served again after {took:?}");
        self.gate.wait_ready();
        self.nobody_was_let_in_early();
        self.first.set_trouble(Trouble::None);
        drop(hung);
        let begin = Instant::now();
        self.wait_for_standby(false);
        let back = begin.elapsed();
        eprintln!("dies {dies}: served again after {took:?}, back {back:?} after the disk");
        self.more_arrive(20);
        let tally = load.stop();
        assert!(tally.failures.is_empty(), "{:?}", tally.failures.first());
    }
}

#[test]
#[ignore = "needs root and FUSE; run by tests/run"]
fn when_the_disk_hangs_or_dies_the_standby_takes_over_and_gives_back() {
    let Some(mut pair) = Pair::new() else { return };
    pair.lose_the_first_for_a_while(false);
    pair.lose_the_first_for_a_while(true);
    // And once more, with the end of everything while the standby is in use.
    let load = pair.load();
    pair.more_arrive(20);
    let hung = pair.first.hang();
    pair.wait_for_standby(true);
    pair.gate.signal(rustix::process::Signal::KILL);
    drop(hung);
    pair.gate.kill();
    load.stop();
    pair.first.lose_power(None);
    pair.standby.lose_power(None);
    pair.gate = pair.place.start(&pair.config);
    assert!(pair.gate.stop(LIMIT).success());
    let log = Log::read_in(&pair.dirs);
    log.assert_whole(&pair.upstream);
    pair.place.verify();
    let names = log
        .kind("event")
        .map(|event| event["name"].as_str().unwrap());
    let moves: Vec<_> = names.filter(|name| name.ends_with("_in_use")).collect();
    let (there, back) = ("standby_in_use", "primary_in_use");
    assert!(moves.starts_with(&[there, back, there, back]), "{moves:?}");
}

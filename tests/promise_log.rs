//! Promise 1: nothing reaches the internal server unlogged, whatever ends the process or fills the disk.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use support::client::{Client, Version};
use support::gate::{Gate, HOST, Place, binary};
use support::load::Load;
use support::log::Log;
use support::peer::must;
use support::upstream::Upstream;
use support::{eventually, rounds};

const STOP_LIMIT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_request_is_recorded_with_who_what_and_how_it_ended() {
    let place = Place::new();
    let upstream = Upstream::start();
    let audit = "[audit]\nquery_values = [\"page\"]\n\n";
    let config = place.head() + audit + &place.ingress(upstream.address, "");
    let mut gate = place.start(&config);
    let client = Client::from(&place, [127, 0, 0, 21].into());
    for version in [Version::H1, Version::H2] {
        let reply = client.get(version, "/bytes/1234?page=7&token=hidden").await;
        assert_eq!((reply.status, reply.body.len()), (200, 1234));
        let log = eventually("the terminal record", Duration::from_secs(5), || {
            let log = Log::read(&place.state());
            log.after(reply.id()).is_some().then_some(log)
        });
        let before = log.before(reply.id());
        let expected = [
            ("way", "ingress"),
            ("method", "GET"),
            ("host", HOST),
            ("path", "/bytes/1234"),
            ("client", "127.0.0.21"),
        ];
        for (field, value) in expected {
            assert_eq!(before[field], value, "{field} of {before}");
        }
        let query = before["query"].to_string();
        assert!(
            query.contains("page=7") && !query.contains("hidden"),
            "{before}"
        );
        let after = log.after(reply.id()).unwrap();
        assert_eq!(after["outcome"], "served", "{after}");
        assert_eq!(after["status"], 200, "{after}");
        assert_eq!(after["bytes_out"], 1234, "{after}");
        assert_eq!(upstream.ids().last().unwrap(), reply.id());
    }
    assert!(gate.stop(STOP_LIMIT).success());
    let log = Log::read(&place.state());
    log.assert_gapless();
    log.assert_paired();
    place.verify();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn search_finds_what_was_recorded_while_the_process_runs() {
    let place = Place::new();
    let upstream = Upstream::start();
    let _gate = place.start(&(place.head() + &place.ingress(upstream.address, "")));
    let reply = Client::of(&place).get(Version::H1, "/wanted").await;
    let state = place.state();
    let args = ["audit", "search", state.to_str().unwrap()];
    let found = place.tollgate(&args).ok();
    let records: Vec<serde_json::Value> = found
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    assert!(
        records
            .iter()
            .any(|r| r["id"] == reply.id() && r["kind"] == "before" && r["path"] == "/wanted"),
        "{found}"
    );
    place.verify();
}

#[test]
fn kill_9_loses_no_record_a_few_times() {
    kill_under_load(5);
}

#[test]
#[ignore = "takes minutes; run by tests/run"]
fn kill_9_loses_no_record_200_times() {
    kill_under_load(rounds("TOLLGATE_KILL_ROUNDS", 200));
}

/// Kills it in the middle of requests, again and again, in one state directory.
fn kill_under_load(rounds: usize) {
    let place = Place::new();
    let upstream = Upstream::start();
    // Small segments are made quickly, and are many.
    let audit = "[audit]\nsegment = \"1MiB\"\n\n";
    let config = place.head() + audit + &place.ingress(upstream.address, "");
    let client = Client::of(&place);
    for round in 0..rounds {
        let mut gate = place.start(&config);
        let version = if round % 2 == 0 {
            Version::H1
        } else {
            Version::H2
        };
        let load = Load::start(client.clone(), version, 4, "/headers");
        let seen = upstream.ids().len();
        eventually("a request to arrive", Duration::from_secs(20), || {
            (upstream.ids().len() > seen).then_some(())
        });
        // Anywhere within the life of some requests: the moment moves on with every round.
        std::thread::sleep(Duration::from_micros(700 * (round as u64 % 53)));
        gate.kill();
        load.stop();
    }
    assert!(place.start(&config).stop(STOP_LIMIT).success());

    let log = Log::read(&place.state());
    log.assert_whole(&upstream);
    // However often it was killed in its first segment, a start reads back no further than it must.
    let headers: Vec<_> = log
        .kind("event")
        .filter(|e| e["name"] == "segment")
        .collect();
    let since = headers.last().unwrap()["facts"]["open_since"]
        .as_str()
        .unwrap();
    let since: u64 = since.parse().unwrap();
    let read_back = headers
        .iter()
        .filter(|e| e["seq"].as_u64() > Some(since))
        .count();
    assert!(read_back <= 3, "a start would read {read_back} segments");
    let unknown = log
        .kind("after")
        .filter(|r| r["outcome"] == "unknown")
        .count();
    let requests = upstream.ids().len();
    eprintln!("{rounds} kills, {requests} requests, {unknown} of them cut off, none unlogged");
    assert!(
        unknown > 0,
        "no round was killed in the middle of a request: the test tests nothing"
    );
    place.verify();
}

/// A small file system of its own, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf, bytes: u64) -> Self {
        fs::create_dir(&at).unwrap();
        let size = format!("size={bytes},mode=0700");
        must(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "tollgate-test"])
                .arg(&at),
        );
        Self(at)
    }

    /// Takes all the room there is.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let mut file = File::create(&path).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, so that it goes even if a process still holds a file.
        Command::new("umount")
            .arg("--lazy")
            .arg(&self.0)
            .status()
            .ok();
    }
}

#[test]
#[ignore = "needs root to mount a small file system; run by tests/run"]
fn a_full_disk_refuses_and_recovers_by_itself() {
    let place = Place::new();
    let disk = Disk::mount(place.state(), 8 << 20);
    let upstream = Upstream::start();
    let audit = "[audit]\nsegment = \"256KiB\"\n\n";
    let config = place.head() + audit + &place.ingress(upstream.address, "");
    let mut gate = place.start(&config);
    let long = format!("/headers/{}", "x".repeat(1500));

    let ballast = disk.fill();
    let load = Load::start(Client::of(&place), Version::H1, 4, &long);
    gate.wait_readyz(503);
    let seen = upstream.ids().len();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        assert_eq!(gate.admin_get("/healthz").expect("it is alive").0, 200);
        std::thread::sleep(Duration::from_millis(100));
    }
    let full = upstream.ids().len();
    fs::remove_file(ballast).unwrap();
    gate.wait_ready();
    eventually(
        "requests to be forwarded again",
        Duration::from_secs(20),
        || (upstream.ids().len() > full + 10).then_some(()),
    );
    let tally = load.stop();
    assert!(tally.failures.is_empty(), "{:?}", tally.failures.first());
    assert!(
        tally.of(200) > 0 && tally.of(503) > 0,
        "{:?}",
        tally.statuses
    );
    assert_eq!(
        tally.of(200) + tally.of(503),
        tally.statuses.values().sum::<usize>()
    );
    assert_eq!(tally.without_retry_after, 0, "a 503 without Retry-After");
    assert!(
        full - seen < 5,
        "{} requests were forwarded with a full disk",
        full - seen
    );
    after_trouble(&mut gate, &place, &upstream);
}

/// Lets no file of the process grow any more, or lets all of them.
fn may_write(gate: &Gate, yes: bool) {
    let limit = Rlimit {
        current: (!yes).then_some(0),
        maximum: None,
    };
    let pid = Pid::from_raw(gate.pid().try_into().unwrap());
    prlimit(pid, Resource::Fsize, limit).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_a_log_only_the_route_that_says_so_goes_on_and_its_requests_are_counted() {
    let place = Place::new();
    let upstream = Upstream::start();
    let route = format!(
        "[[ingress.route]]\nhosts = [\"{HOST}\"]\npath = \"/bytes\"\non_failure = \"continue\"\nupstream = \"http://{}\"\n",
        upstream.address
    );
    let audit = "[audit]\nsegment = \"256KiB\"\n\n";
    let config =
        place.write(&(place.head() + audit + &place.ingress(upstream.address, "") + &route));
    // A limit on file size is an error to the process, not a signal that ends it.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh", binary(), "run"]);
    command.arg("--config").arg(config);
    let mut gate = place.launch(command);
    gate.wait_ready();
    let client = Client::of(&place);
    assert_eq!(client.get(Version::H1, "/headers").await.status, 200);

    may_write(&gate, false);
    let refused = client.get(Version::H2, "/headers").await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["code"], "audit_unavailable");
    assert_eq!(refused.header("retry-after"), Some("1"));
    gate.wait_readyz(503);
    let mut unrecorded = Vec::new();
    for _ in 0..3 {
        assert_eq!(client.get(Version::H1, "/headers").await.status, 503);
        let passed = client.get(Version::H1, "/bytes/10").await;
        assert_eq!(passed.status, 200);
        unrecorded.push(passed.id().to_owned());
    }
    may_write(&gate, true);
    gate.wait_ready();
    assert_eq!(client.get(Version::H1, "/headers").await.status, 200);

    assert!(gate.stop(STOP_LIMIT).success());
    let log = Log::read(&place.state());
    log.assert_gapless();
    log.assert_paired();
    let degraded = log.kind("event").find(|e| e["name"] == "degraded").unwrap();
    assert_eq!(degraded["facts"]["unrecorded"], "3", "{degraded}");
    let admitted = log.admitted();
    let seen = upstream.ids();
    let strays: Vec<_> = seen
        .iter()
        .filter(|id| !admitted.contains(id.as_str()))
        .collect();
    assert!(
        strays.iter().all(|id| unrecorded.contains(id)),
        "reached the upstream unlogged: {strays:?}"
    );
    assert_eq!(seen.len(), 5, "two recorded, three let through: {seen:?}");
    place.verify();
}

/// Whatever happened, the log is whole.
fn after_trouble(gate: &mut Gate, place: &Place, upstream: &Upstream) {
    assert!(gate.stop(STOP_LIMIT).success());
    let log = Log::read(&place.state());
    log.assert_whole(upstream);
    place.verify();
}

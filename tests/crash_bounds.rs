//! Promise 1 at the edges of what there is: no room left, the live file gone, a flood of denials, reloads under load,
//! and a log far larger than anything that is held in memory.
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
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use support::body::Payload;
use support::client::{Client, Version, request};
use support::gate::Place;
use support::load::Load;
use support::log::Log;
use support::peer::must;
use support::upstream::Upstream;
use support::{eventually, rounds};

const LIMIT: Duration = Duration::from_secs(30);
const AUDIT: &str = "[audit]\nsegment = \"64KiB\"\n\n";

/// A small file system, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, bytes: u64) -> Self {
        fs::create_dir(&at).unwrap();
        let (kind, size) = (Some("tmpfs"), format!("size={bytes},mode=0700"));
        mount(
            Some("tollgate-test"),
            &at,
            kind,
            MsFlags::empty(),
            Some(size.as_str()),
        )
        .unwrap();
        Self(at)
    }

    /// Takes all the room there is, but for so much.
    fn leave(&self, bytes: u64) {
        let path = self.0.join("ballast");
        fs::remove_file(&path).ok(); // there may be none yet
        let mut file = File::create(&path).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(bytes)).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).ok(); // lazily, so that it goes even if a process still holds a file
    }
}

#[test]
#[ignore = "needs root to mount a small file system; run by tests/run"]
fn a_disk_that_fills_at_run_time_and_again_during_recovery_loses_nothing() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let disk = SmallDisk::mount(place.state(), 2 << 20);
    let config = place.head() + AUDIT + &place.ingress(upstream.address, "");
    let mut gate = place.start(&config);
    let long = format!("/headers/{}", "x".repeat(1500));
    let load = Load::start(Client::of(&place), Version::H1, 4, &long);
    eventually("requests", LIMIT, || {
        (upstream.ids().len() > 20).then_some(())
    });
    disk.leave(0);
    gate.wait_readyz(503);
    gate.kill();
    load.stop();

    // A little more room each time: wherever a start runs out of it, nothing is lost and it says what to do.
    let (mut refused, mut started) = (0, 0);
    for free in [0, 4, 8, 16, 32, 64, 68, 80, 128, 132, 192, 256] {
        disk.leave(free << 10);
        let said = gate.stderr().len();
        gate = place.spawn(&config);
        let ready = eventually("it to be ready, or to end", LIMIT, || {
            let ready = gate
                .admin_get("/readyz")
                .is_some_and(|(status, _)| status == 200);
            (ready || !gate.is_running()).then_some(ready)
        });
        if ready {
            started += 1;
            gate.kill();
            continue;
        }
        refused += 1;
        let text = gate.stderr().split_off(said);
        assert_eq!(gate.wait_exit(LIMIT).code(), Some(3), "{text}");
        assert!(text.contains("make room on the disk"), "no mend: {text}");
    }
    assert!(
        refused > 0 && started > 0,
        "{refused} refused, {started} started"
    );
    fs::remove_file(place.state().join("ballast")).unwrap();
    assert!(place.start(&config).stop(LIMIT).success());
    Log::read(&place.state()).assert_whole(&upstream);
    place.verify();
}

#[test]
fn reloads_under_load_lose_no_record_and_make_none_twice() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let config = place.head() + AUDIT + &place.ingress(upstream.address, "");
    let mut gate = place.start(&config);
    let (stop, numbers) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let senders: Vec<_> = [Version::H1, Version::H2, Version::H1, Version::H2]
        .map(|version| {
            let (client, stop, numbers) =
                (Client::of(&place), Arc::clone(&stop), Arc::clone(&numbers));
            std::thread::spawn(move || send_numbered(&client, version, &stop, &numbers))
        })
        .into();
    let reloads = rounds("TOLLGATE_RELOADS", 15);
    for round in 0..reloads {
        // Something changes each time, so that it is a new generation.
        place.write(&config.replace(
            "[audit]",
            &format!("[audit]\nquery_values = [\"r{round}\"]"),
        ));
        gate.reload();
        let sent = numbers.load(Ordering::Relaxed);
        eventually("requests between reloads", LIMIT, || {
            (numbers.load(Ordering::Relaxed) > sent + 20).then_some(())
        });
    }
    stop.store(true, Ordering::Relaxed);
    let sent: BTreeMap<String, String> = senders
        .into_iter()
        .flat_map(|s| s.join().unwrap())
        .collect();
    assert!(sent.len() > 100, "too few requests: {}", sent.len());
    assert!(gate.stop(LIMIT).success());

    let log = Log::read(&place.state());
    log.assert_whole(&upstream);
    place.verify();
    let mut recorded = BTreeMap::new();
    for before in log.kind("before") {
        let number = before["claimed_id"].as_str().unwrap().to_owned();
        let double = recorded.insert(number, before["id"].as_str().unwrap().to_owned());
        assert!(double.is_none(), "recorded twice: {before}");
    }
    let missing: Vec<_> = sent
        .iter()
        .filter(|(number, id)| recorded.get(*number) != Some(id))
        .collect();
    assert!(
        missing.is_empty(),
        "answered, and not in the log: {missing:?}"
    );
    eprintln!(
        "{reloads} reloads, {} requests, 0 missing, 0 twice",
        sent.len()
    );
}

/// Sends numbered requests until told to stop; gives each number that was answered, with the entry's identifier.
fn send_numbered(
    client: &Client,
    version: Version,
    stop: &AtomicBool,
    numbers: &AtomicU64,
) -> BTreeMap<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut answered = BTreeMap::new();
        let mut connection = client.open(version).await.unwrap();
        while !stop.load(Ordering::Relaxed) {
            let number = format!("n-{}", numbers.fetch_add(1, Ordering::Relaxed));
            let request = request(version, "GET", "/headers").header("x-request-id", &number);
            match connection
                .send(request.body(Payload::empty()).unwrap())
                .await
            {
                Ok(reply) => {
                    assert_eq!(reply.status, 200);
                    answered.insert(number, reply.id().to_owned());
                }
                Err(failure) if failure.unsent => connection = client.open(version).await.unwrap(),
                Err(failure) => panic!("no answer: {}", failure.why),
            }
        }
        answered
    })
}

#[test]
fn a_flood_of_denials_from_a_whole_network_is_counted_exactly_in_little_room() {
    /// One second's worth by itself, and one count per network and second that has a place in the table.
    const RECORDS_PER_SECOND_MAX: u64 = 100 + 512 + 1;
    const RECORD_BYTES_MAX: u64 = 400;
    let (place, upstream) = (Place::new(), Upstream::start());
    let listener = "proxy_protocol_from = [\"127.0.0.1\"]\nallow = [\"192.0.2.0/24\"]\n";
    let audit = "[audit]\nsegment = \"1MiB\"\n\n";
    let config = place.head() + audit + &place.ingress(upstream.address, listener);
    let mut gate = place.start(&config);
    let flood = rounds("TOLLGATE_DENIALS", 6000);
    let begin = Instant::now();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let port = place.https;
            std::thread::spawn(move || {
                for at in (thread..flood).step_by(4) {
                    knock(port, at);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let lasted = begin.elapsed();
    assert!(gate.stop(LIMIT).success());
    place.verify();
    let log = Log::read(&place.state());
    let (mut single, mut counted, mut counts) = (0, 0, 0);
    let mut networks = BTreeSet::new();
    for record in log.kind("denied") {
        assert_eq!(record["reason"], "client_denied", "{record}");
        networks.insert(record["client"].to_string());
        match record["count"].as_u64() {
            Some(count) => (counted, counts) = (counted + count, counts + 1),
            None => single += 1,
        }
    }
    assert_eq!(
        single + counted,
        flood as u64,
        "{single} by themselves, {counted} in {counts} counts"
    );
    let seconds = lasted.as_secs() + 2;
    let records = single + counts;
    assert!(
        records <= seconds * RECORDS_PER_SECOND_MAX,
        "{records} records in {lasted:?}"
    );
    let bytes: u64 = fs::read_dir(place.state().join("audit"))
        .unwrap()
        .map(|file| file.unwrap())
        .filter(|file| file.path().extension().is_some_and(|e| e == "jsonl"))
        .map(|file| file.metadata().unwrap().len())
        .sum();
    assert!(
        bytes < 4096 + records * RECORD_BYTES_MAX,
        "{bytes} bytes for {records} records"
    );
    assert!(
        networks.len() > 50,
        "the addresses did not rotate: {}",
        networks.len()
    );
    eprintln!(
        "{flood} denials from {} networks in {lasted:?}: {single} records of their own, {counted} in {counts} counts, {bytes} bytes",
        networks.len()
    );
}

/// Comes from one of many addresses in a /48, and is not let in.
fn knock(port: u16, at: usize) {
    let network = at.wrapping_mul(40_503) % 65_536;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head = format!("PROXY TCP6 2001:db8:7:{network:x}::{at:x} 2001:db8::1 40000 443\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    // Until it hangs up, which it does once the denial is counted.
    assert!(
        !matches!(stream.read(&mut [0; 16]), Ok(1..)),
        "it was let in"
    );
}

#[test]
fn a_live_file_that_is_deleted_or_renamed_is_noticed_and_the_log_goes_on() {
    for (renamed, segment) in [
        (false, "16MiB"),
        (true, "16MiB"),
        (false, "64KiB"),
        (true, "64KiB"),
    ] {
        let (place, upstream) = (Place::new(), Upstream::start());
        let audit = format!("[audit]\nsegment = \"{segment}\"\n\n");
        let config = place.head() + &audit + &place.ingress(upstream.address, "");
        let mut gate = place.start(&config);
        let load = Load::start(Client::of(&place), Version::H1, 2, "/headers");
        eventually("requests", LIMIT, || {
            (upstream.ids().len() > 10).then_some(())
        });
        let live = live(&place.state());
        if renamed {
            fs::rename(&live, place.path("taken")).unwrap();
        } else {
            fs::remove_file(&live).unwrap();
        }
        let seen = eventually("another live file", LIMIT, || {
            let another = self::live(&place.state());
            (another != live && another.exists()).then(|| upstream.ids().len())
        });
        eventually("requests to pass", LIMIT, || {
            (upstream.ids().len() > seen + 10).then_some(())
        });
        let tally = load.stop();
        assert!(tally.failures.is_empty(), "{:?}", tally.failures.first());
        assert_eq!(
            tally.statuses.keys().collect::<Vec<_>>(),
            [&200],
            "{tally:?}"
        );
        assert!(gate.stop(LIMIT).success());
        let log = Log::read(&place.state());
        let lost = log
            .kind("event")
            .find(|e| e["name"] == "segment_lost")
            .unwrap();
        assert_eq!(lost["facts"]["file"], live.to_str().unwrap(), "{lost}");
        // What the open descriptor still held was put back: nothing is missing.
        log.assert_whole(&upstream);
        place.verify();
    }
}

/// The newest open segment; a path that does not exist if there is none at this moment.
fn live(state: &Path) -> PathBuf {
    let names = fs::read_dir(state.join("audit"))
        .unwrap()
        .map(|name| name.unwrap().path());
    names
        .filter(|path| path.extension().is_some_and(|e| e == "open"))
        .max()
        .unwrap_or_default()
}

/// What a start may need beyond that of an empty log, however long the log is.
const BACKLOG_MEMORY_BYTES_MAX: u64 = 48 << 20;

#[test]
fn a_backlog_larger_than_every_bound_is_recovered_in_little_memory() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let config = place.head() + &place.ingress(upstream.address, "");
    let gate = place.start(&config);
    let empty = gate.memory_peak();
    drop(gate);
    fs::remove_dir_all(place.state()).unwrap();

    // One entry stays open from the first segment on, so that recovery has to read all of them.
    let entries = rounds("TOLLGATE_BACKLOG", 40_000);
    let begin = Instant::now();
    let kept_open = backlog::write(&place.path("written"), entries);
    let written = begin.elapsed();
    must(
        Command::new("cp")
            .arg("-a")
            .arg(place.path("written"))
            .arg(place.state()),
    );
    let audit = place.state().join("audit");
    let files: Vec<_> = fs::read_dir(&audit)
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .collect();
    assert!(files.len() > 10, "too few segments: {files:?}");

    let begin = Instant::now();
    let mut gate = place.spawn(&config);
    eventually("the start", 10 * LIMIT, || {
        assert!(gate.is_running(), "{}", gate.stderr());
        gate.admin_get("/readyz")
            .filter(|(status, _)| *status == 200)
    });
    let (took, peak) = (begin.elapsed(), gate.memory_peak());
    eprintln!(
        "{} records in {} files, {} MiB, written in {written:?}: ready after {took:?}, peak {} MiB against {} MiB with an empty log",
        2 * entries,
        files.len(),
        files.iter().sum::<u64>() >> 20,
        peak >> 20,
        empty >> 20,
    );
    assert!(
        peak < empty + BACKLOG_MEMORY_BYTES_MAX,
        "{peak} bytes, {empty} with an empty log"
    );
    assert!(gate.stop(LIMIT).success());
    place.verify();
    let state = place.state();
    let found = place
        .tollgate(&[
            "audit",
            "search",
            "--id",
            &kept_open,
            state.to_str().unwrap(),
        ])
        .ok();
    let ends = found
        .lines()
        .filter(|line| line.contains(r#""outcome":"unknown""#))
        .count();
    assert_eq!(ends, 1, "the entry that was left open has one end: {found}");
}

/// A log as long as wanted, by the writer itself.
mod backlog {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tollgate::addr::Peer;
    use tollgate::audit::{Admitted, Journal};
    use tollgate::clock::Id;
    use tollgate::config::{self, typed::OnFailure};
    use tollgate::outcome::Outcome;
    use tollgate::record::{After, Before, Redaction, Request};
    use tollgate::telemetry::Metrics;
    use tollgate::workers::{Hooks, Workers};

    const TASKS: usize = 64;
    const CONFIG: &str = "[audit]\nsegment = \"1MiB\"\ndurability = \"write\"\nwait_budget = \"30s\"\n\
        [egress]\nfixed = [\"127.0.0.1\"]\nresolver = { servers = [\"127.0.0.1:53\"] }\n";

    /// Writes so many entries, the first of which never ends, and leaves the log as a killed process does. Gives the
    /// identifier of the first.
    pub(super) fn write(state: &Path, entries: usize) -> String {
        let settings = config::parse(Path::new("backlog.toml"), CONFIG.to_owned())
            .unwrap()
            .0
            .audit;
        let journal = Journal::open(state, &settings, 1, Arc::new(Metrics::new())).unwrap();
        let park = journal.clone();
        let hooks = Hooks {
            start: Box::new(Journal::sit),
            park: Box::new(move |seat| park.park(seat)),
        };
        let workers = Workers::start(1, hooks).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let first = runtime.block_on(admit(&journal));
        let id = first.id().to_string();
        std::mem::forget(first);
        let begun = Arc::new(AtomicUsize::new(1));
        let ended = Arc::new(AtomicUsize::new(1));
        for _ in 0..TASKS {
            let (journal, begun, ended) = (journal.clone(), Arc::clone(&begun), Arc::clone(&ended));
            workers.crew().run_on(0, async move {
                while begun.fetch_add(1, Ordering::Relaxed) < entries {
                    admit(&journal).await.complete(After {
                        outcome: Outcome::Served,
                        status: Some(200),
                        bytes_in: 0,
                        bytes_out: 1024,
                        ends: None,
                    });
                    ended.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        super::eventually("the backlog", 20 * super::LIMIT, || {
            (ended.load(Ordering::Relaxed) == entries).then_some(())
        });
        // Beyond what is written a moment later, nothing more comes.
        std::thread::sleep(Duration::from_millis(2500));
        std::mem::forget((journal, workers));
        id
    }

    async fn admit(journal: &Journal) -> Admitted {
        let client = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), 41_000);
        let redaction = Redaction::new(&["page".to_owned()], &[], journal.tag_key());
        let request = Request {
            listener: client,
            client: client.ip(),
            peer: Peer::new(client),
            tls: "TLSv1.3",
            principal: None,
            version: "HTTP/1.1",
            method: "GET",
            host: "tools.example.com",
            path: "/api/apps/42f0b1de/versions",
            query: Some("page=1"),
            user_agent: Some(
                b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
            ),
            claimed_id: None,
            route: "tools.example.com/",
            upstream: "app",
            redaction: &redaction,
        };
        journal
            .admit(Id::new(), &Before::Request(&request), OnFailure::Refuse)
            .await
            .unwrap_or_else(|r| panic!("{r:?}"))
    }
}

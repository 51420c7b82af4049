//! The journal whole, on a real disk: what it promises to those who hold an `Admitted`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tollgate::addr::{Destination, Peer};
use tollgate::audit::{Admitted, Filter, Journal, OpenError, search, tag_of, verify};
use tollgate::clock::Id;
use tollgate::config::typed::{Audit, Durability, OnFailure};
use tollgate::outcome::{Outcome, Refusal};
use tollgate::record::{After, Before, Denied, Dial, Event, Redaction, Request};
use tollgate::telemetry::{Metrics, Way};
use tollgate::workers::{Hooks, Workers};

const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3128);

fn settings() -> Audit {
    Audit {
        durability: Durability::Sync,
        on_failure: OnFailure::Refuse,
        wait_budget: Duration::from_secs(5),
        segment_bytes: 1 << 20,
        query_values: Vec::new(),
        secret_paths: Vec::new(),
    }
}

fn open(dir: &Path, seats: usize) -> Journal {
    Journal::open(dir, &settings(), seats, Arc::new(Metrics::new())).unwrap()
}

async fn admit(journal: &Journal) -> Result<Admitted, Refusal> {
    let destination = Destination::parse("db.example.com:5432").unwrap();
    let dial = Dial {
        listener: HERE,
        peer: Peer::new(HERE),
        client: "app",
        door: "connect",
        destination: &destination,
        rule: "data",
        would_deny: false,
        addresses: &[HERE.ip()],
    };
    journal
        .admit(Id::new(), &Before::Dial(&dial), OnFailure::Refuse)
        .await
}

fn served() -> After {
    After {
        outcome: Outcome::Served,
        status: None,
        bytes_in: 1,
        bytes_out: 2,
        ends: None,
    }
}

/// All records, in the order of the files.
fn records(dir: &Path) -> Vec<Value> {
    let mut files: Vec<_> = std::fs::read_dir(dir.join("audit"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|e| e == "jsonl" || e == "open")
        })
        .collect();
    files.sort();
    let mut records = Vec::new();
    for file in files {
        let bytes = std::fs::read(file).unwrap();
        for line in bytes.split(|b| *b == b'\n') {
            if line.first() == Some(&b'{') {
                records.push(serde_json::from_slice(line).unwrap());
            }
        }
    }
    records
}

fn of_kind<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|r| r["kind"] == kind).collect()
}

#[tokio::test]
async fn a_record_is_on_disk_when_admit_returns() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 0);
    let admitted = admit(&journal).await.unwrap();
    let before = records(dir.path());
    let before = of_kind(&before, "before");
    assert_eq!(before[0]["id"], admitted.id().to_string());
    admitted.complete(served());
    drop(admit(&journal).await.unwrap());
    journal.close();
    let all = records(dir.path());
    let seqs: Vec<_> = all.iter().map(|r| r["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    let outcomes: Vec<_> = of_kind(&all, "after")
        .iter()
        .map(|r| r["outcome"].clone())
        .collect();
    assert_eq!(outcomes, ["served", "aborted"]);
    assert_eq!(all.last().unwrap()["facts"]["open"], "0");
    assert_eq!(admit(&journal).await.err(), Some(Refusal::AuditUnavailable));
}

#[test]
fn workers_hand_over_when_they_park() {
    const TASKS: usize = 64;
    const ROUNDS: usize = 50;
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 2);
    let park = journal.clone();
    let workers = Workers::start(
        2,
        Hooks {
            start: Box::new(Journal::sit),
            park: Box::new(move |seat| park.park(seat)),
        },
    )
    .unwrap();
    let (done, ended) = std::sync::mpsc::sync_channel(2 * TASKS);
    for at in 0..2 * TASKS {
        let (journal, done) = (journal.clone(), done.clone());
        workers.crew().run_on(at, async move {
            for _ in 0..ROUNDS {
                admit(&journal).await.unwrap().complete(served());
            }
            done.send(()).unwrap();
        });
    }
    for _ in 0..2 * TASKS {
        ended.recv_timeout(Duration::from_secs(30)).unwrap();
    }
    workers.stop();
    journal.close();
    let all = records(dir.path());
    assert_eq!(of_kind(&all, "before").len(), 2 * TASKS * ROUNDS);
    assert_eq!(of_kind(&all, "after").len(), 2 * TASKS * ROUNDS);
}

#[tokio::test]
async fn denials_and_events_are_written_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 1);
    for _ in 0..1000 {
        journal.deny(&Denied {
            way: Way::Ingress,
            listener: HERE,
            client: HERE.ip(),
            refusal: Refusal::ClientDenied,
            id: None,
            target: "tools.example.com",
        });
    }
    journal.event(Event {
        name: "reloaded",
        facts: vec![("generation", "2".to_owned())],
    });
    journal.close();
    let all = records(dir.path());
    let denied: u64 = of_kind(&all, "denied")
        .iter()
        .map(|r| r["count"].as_u64().unwrap_or(1))
        .sum();
    assert_eq!(denied, 1000);
    assert!(of_kind(&all, "denied").len() < 110);
    assert!(
        of_kind(&all, "event")
            .iter()
            .any(|e| e["name"] == "reloaded" && e["facts"]["generation"] == "2")
    );
}

#[tokio::test]
async fn what_was_left_open_is_ended_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 0);
    let left = admit(&journal).await.unwrap();
    let id = left.id();
    journal.close();
    left.complete(served()); // too late
    drop(journal);
    let journal = open(dir.path(), 0);
    journal.close();
    let all = records(dir.path());
    let after = of_kind(&all, "after");
    assert_eq!(after.len(), 1);
    assert_eq!(
        (&after[0]["id"], &after[0]["outcome"]),
        (&id.to_string().into(), &"unknown".into())
    );
    let seqs: Vec<_> = all.iter().map(|r| r["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn records_are_found_by_what_is_known_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 0);
    let redaction = Redaction::new(&[], &["/invitations/*".to_owned()], journal.tag_key());
    let request = Request {
        listener: HERE,
        client: "2001:db8::9".parse().unwrap(),
        peer: Peer::new(HERE),
        tls: "TLSv1.3",
        version: "HTTP/2.0",
        method: "GET",
        host: "tools.example.com",
        path: "/invitations/s3cret",
        query: Some("q=s3cret"),
        user_agent: None,
        claimed_id: None,
        route: "tools.example.com/",
        upstream: "app",
        redaction: &redaction,
    };
    let id = Id::new();
    let before = Before::Request(&request);
    let admitted = journal.admit(id, &before, OnFailure::Refuse).await.unwrap();
    drop(admit(&journal).await.unwrap());
    admitted.complete(served());
    let find = |filter: Filter| {
        let mut lines = Vec::new();
        let count = search(dir.path(), &filter, |line| {
            lines.push(String::from_utf8(line.to_vec()).unwrap());
            Ok(())
        });
        assert_eq!(count.unwrap(), lines.len() as u64);
        lines
    };
    let text = |text: &str| Some(text.to_owned());
    let none = Filter::default();
    let tag = Some(tag_of(dir.path(), "s3cret").unwrap());
    let tagged = find(Filter {
        tag,
        ..none.clone()
    });
    assert!(tagged.len() == 1 && !tagged[0].contains("s3cret"));
    assert_eq!(
        find(Filter {
            client: text("2001:db8::/32"),
            ..none.clone()
        }),
        tagged
    );
    assert_eq!(
        find(Filter {
            host: text("tools.example.com"),
            ..none.clone()
        }),
        tagged
    );
    assert_eq!(
        find(Filter {
            host: text("db.example.com"),
            ..none.clone()
        })
        .len(),
        1
    );
    assert_eq!(
        find(Filter {
            client: text("app"),
            ..none.clone()
        })
        .len(),
        1
    );
    assert_eq!(
        find(Filter {
            limit: Some(2),
            ..none.clone()
        })
        .len(),
        2
    );
    assert!(
        find(Filter {
            until: "2020-01-01T00:00:00Z".parse().ok(),
            ..none.clone()
        })
        .is_empty()
    );
    let open = verify(dir.path()).unwrap();
    assert!(
        open.problem.is_none() && open.unfinished.is_none(),
        "beside the running process: {open:?}"
    );
    journal.close();
    assert_eq!(
        find(Filter {
            id: Some(id),
            ..none.clone()
        })
        .len(),
        2
    );
    assert_eq!(
        find(Filter {
            outcome: text("served"),
            ..none.clone()
        })
        .len(),
        1
    );
    let report = verify(&dir.path().join("audit")).unwrap();
    assert!(
        report.problem.is_none() && report.open == 0 && report.entries == 2,
        "{report:?}"
    );
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), 0);
    let second = Journal::open(dir.path(), &settings(), 0, Arc::new(Metrics::new()));
    assert!(matches!(second, Err(OpenError::Locked { .. })));
    drop(journal);
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Journal::open(&file, &settings(), 0, Arc::new(Metrics::new()))
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(
        text.contains(file.to_str().unwrap()) && text.contains("not a directory"),
        "{text}"
    );
}

/// Needs the right to mount.
#[tokio::test]
#[ignore = "mounts a tmpfs"]
async fn a_full_disk_refuses_and_recovers_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| {
        let done = std::process::Command::new(args[0])
            .args(&args[1..])
            .arg(dir.path())
            .status();
        assert!(done.unwrap().success(), "{args:?}");
    };
    mount(&["mount", "-t", "tmpfs", "-o", "size=5m", "tollgate-test"]);
    let journal = open(dir.path(), 0);
    let ballast = dir.path().join("ballast");
    std::fs::write(&ballast, vec![1; 16 << 20]).unwrap_err();
    let mut admitted = 0;
    while let Ok(entry) = admit(&journal).await {
        entry.complete(served());
        admitted += 1;
        assert!(admitted < 100_000);
    }
    assert!(!journal.healthy());
    std::fs::remove_file(&ballast).unwrap();
    let mut recovered = false;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        recovered |= admit(&journal).await.is_ok();
    }
    assert!(recovered && journal.healthy());
    journal.close();
    let report = verify(dir.path()).unwrap();
    drop(journal);
    mount(&["umount", "-l"]);
    assert!(report.problem.is_none() && report.open == 0, "{report:?}");
    assert!(report.entries > admitted);
}

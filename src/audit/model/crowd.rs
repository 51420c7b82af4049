//! The journal with its threads and many askers: nobody hangs, whatever the disk does.

use std::sync::Arc;
use std::time::Duration;

use super::{PATIENCE, RULES, dial, lines, store, whole};

use crate::addr::Destination;
use crate::audit::board::Patience;
use crate::audit::seal::Sealing;
use crate::audit::seat::{BOUNDS, Bounds};
use crate::audit::start::{Plan, start};
use crate::audit::{Admitted, Journal, OnDamage, Trouble};
use crate::clock::{self, Id};
use crate::config::typed::OnFailure;
use crate::disk::memory::Memory;
use crate::outcome::{Outcome, Refusal};
use crate::record::{After, Before};
use crate::telemetry::Metrics;
use crate::workers::{Hooks, Workers};

const SHORT: Patience = Patience {
    budget: Duration::from_millis(50),
    stall_after: Duration::from_millis(30),
};

fn journal(
    memory: &Memory,
    patience: Patience,
    workers: usize,
    bounds: Bounds,
) -> (Journal, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(memory);
    store.segment_bytes = 1 << 20;
    let metrics = Arc::new(Metrics::new());
    let plan = Plan {
        primary: store,
        standby: None,
        patience,
        rules: RULES,
        sealing: Sealing {
            every: Duration::from_millis(100),
            anchors: Vec::new(),
        },
        bounds,
        workers,
        on_damage: OnDamage::Refuse,
    };
    let desk = start(dir.path(), plan, metrics).unwrap();
    let journal = Journal(Arc::new(desk));
    (journal, dir)
}

async fn admit(journal: &Journal, on_failure: OnFailure) -> Result<Admitted, Refusal> {
    let destination = Destination::parse("db.example.com:5432").unwrap();
    journal
        .admit(Id::new(), &Before::Dial(&dial(&destination)), on_failure)
        .await
}

/// Runs `count` tasks of `body` on one worker and waits for all of them.
fn crowd<F: Future<Output = ()> + Send + 'static>(
    journal: &Journal,
    count: usize,
    body: impl Fn(Journal) -> F,
) {
    let park = journal.clone();
    let hooks = Hooks {
        start: Box::new(Journal::sit),
        park: Box::new(move |seat| park.park(seat)),
    };
    let workers = Workers::start(1, hooks).unwrap();
    let (done, ended) = std::sync::mpsc::sync_channel(count);
    for _ in 0..count {
        let (task, done) = (body(journal.clone()), done.clone());
        workers.crew().run_on(0, async move {
            task.await;
            done.send(()).unwrap();
        });
    }
    for _ in 0..count {
        ended
            .recv_timeout(Duration::from_secs(120))
            .expect("nobody hangs");
    }
    workers.stop();
}

#[test]
fn five_hundred_askers_over_a_tiny_queue_are_answered() {
    let memory = Memory::default();
    let tiny = Bounds {
        intention_bytes_max: crate::record::RECORD_BYTES_MAX + 2000,
        open_max: 7,
    };
    let (journal, _dir) = journal(&memory, PATIENCE, 1, tiny);
    crowd(&journal, 500, |journal| async move {
        let mut admitted = 0;
        while admitted < 3 {
            match admit(&journal, OnFailure::Refuse).await {
                Ok(entry) => {
                    entry.complete(After::nothing_moved(Outcome::Served));
                    admitted += 1;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    });
    journal.close();
    let ends = whole(&[store(&memory)], &[]);
    assert_eq!(ends.len(), 1500);
}

#[test]
fn a_hanging_disk_refuses_within_the_budget_and_loses_nothing() {
    let memory = Memory::default();
    let (journal, _dir) = journal(&memory, SHORT, 1, BOUNDS);
    memory.set_hangs(true);
    crowd(&journal, 50, |journal| async move {
        let begun = clock::now();
        assert!(admit(&journal, OnFailure::Refuse).await.is_err());
        assert!(begun.elapsed() < Duration::from_secs(2));
    });
    assert_eq!(journal.trouble(), Some(Trouble::Hanging));
    crowd(&journal, 1, |journal| async move {
        let begun = clock::now();
        assert!(admit(&journal, OnFailure::Refuse).await.is_err());
        assert!(
            begun.elapsed() < Duration::from_millis(40),
            "at once while it hangs"
        );
        drop(admit(&journal, OnFailure::Continue).await.unwrap());
    });
    memory.set_hangs(false);
    for _ in 0..200 {
        if journal.trouble().is_none() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    crowd(&journal, 1, |journal| async move {
        drop(admit(&journal, OnFailure::Refuse).await.unwrap());
    });
    journal.close();
    let ends = whole(&[store(&memory)], &[]);
    assert_eq!(
        ends.len(),
        51,
        "the refused and the one admitted; the one let through has no record"
    );
    let lines = lines(&[store(&memory)]);
    assert!(
        lines
            .iter()
            .any(|l| memchr::memmem::find(l, b"degraded").is_some())
    );
}

#[test]
fn waits_that_are_dropped_end_as_aborted() {
    let memory = Memory::default();
    let (journal, _dir) = journal(&memory, PATIENCE, 1, BOUNDS);
    memory.set_hangs(true);
    let release = memory.clone();
    crowd(&journal, 20, move |journal| {
        let release = release.clone();
        async move {
            let wait = admit(&journal, OnFailure::Refuse);
            let cut = tokio::time::timeout(Duration::from_millis(20), wait).await;
            assert!(cut.is_err());
            tokio::time::sleep(Duration::from_millis(300)).await; // until all the others have given up too
            release.set_hangs(false);
            drop(admit(&journal, OnFailure::Refuse).await.unwrap());
        }
    });
    journal.close();
    assert_eq!(whole(&[store(&memory)], &[]).len(), 40);
}

//! Many requests at once, on a thread of their own, until told to stop.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::body::Payload;
use super::client::{Client, Version, request};

/// Requests under way.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Tally>,
}

/// What became of them.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) statuses: BTreeMap<u16, usize>,
    /// Whether each answer with a status of 429 or 503 said when to come back.
    pub(crate) without_retry_after: usize,
    /// Requests that got no answer though they had been sent.
    pub(crate) failures: Vec<String>,
    /// Connections that could not be made.
    pub(crate) unconnected: usize,
}

impl Tally {
    pub(crate) fn of(&self, status: u16) -> usize {
        self.statuses.get(&status).copied().unwrap_or_default()
    }

    fn add(&mut self, other: Self) {
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.without_retry_after += other.without_retry_after;
        self.failures.extend(other.failures);
        self.unconnected += other.unconnected;
    }
}

impl Load {
    /// So many kept connections, one GET after the other on each.
    pub(crate) fn start(client: Client, version: Version, connections: usize, path: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, path) = (Arc::clone(&stop), path.to_owned());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let tasks: Vec<_> = (0..connections)
                    .map(|_| {
                        let (client, path) = (client.clone(), path.clone());
                        tokio::spawn(one(client, version, path, Arc::clone(&told)))
                    })
                    .collect();
                let mut tally = Tally::default();
                for task in tasks {
                    tally.add(task.await.expect("no panic"));
                }
                tally
            })
        });
        Self { stop, thread }
    }

    /// Lets the requests under way end, and counts.
    pub(crate) fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic")
    }
}

async fn one(client: Client, version: Version, path: String, stop: Arc<AtomicBool>) -> Tally {
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut connection) = client.open(version).await else {
            tally.unconnected += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            let request = request(version, "GET", &path).body(Payload::empty());
            match connection.send(request.expect("a request")).await {
                Ok(reply) => {
                    *tally.statuses.entry(reply.status).or_default() += 1;
                    let busy = matches!(reply.status, 429 | 503);
                    if busy && reply.header("retry-after").is_none() {
                        tally.without_retry_after += 1;
                    }
                }
                Err(failure) => {
                    if !failure.unsent {
                        tally.failures.push(failure.why);
                    }
                    break;
                }
            }
        }
    }
    tally
}

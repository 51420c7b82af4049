//! Threads: one single-threaded runtime per worker, and the hand-over of accepted sockets to the least busy one.
//!
//! Everything that is handed over stays `Send`, so this is the only room to change for a shared runtime. A worker
//! calls its park hook each time it has run out of ready tasks: that is where the journal learns that a batch of
//! records is complete. Nothing here decides what a task does.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};

use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;

/// What a worker thread does at its edges. `seat` counts from 0.
pub struct Hooks {
    /// Called once, on the thread, before anything else.
    pub start: Box<dyn Fn(usize) + Send + Sync>,
    /// Called whenever the thread has run out of ready tasks; must be cheap and must not block.
    pub park: Box<dyn Fn(usize) + Send + Sync>,
}

/// The worker threads of one process.
pub struct Workers {
    seats: Arc<[Seat]>,
    threads: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

struct Seat {
    handle: Handle,
    load: AtomicUsize,
}

/// A way to run tasks on the workers; cheap to clone.
#[derive(Clone)]
pub struct Crew(Arc<[Seat]>);

/// One unit of load on a worker; given back when dropped.
pub struct Load {
    seats: Arc<[Seat]>,
    at: usize,
}

impl Workers {
    /// Starts `count` (at least 1) threads named `tollgate-N`.
    pub fn start(count: usize, hooks: Hooks) -> io::Result<Self> {
        let hooks = Arc::new(hooks);
        let (mut seats, mut threads) = (Vec::new(), Vec::new());
        for at in 0..count.max(1) {
            let park = Arc::clone(&hooks);
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .on_thread_park(move || (park.park)(at))
                .build()?;
            seats.push(Seat {
                handle: runtime.handle().clone(),
                load: AtomicUsize::new(0),
            });
            let (stop, stopped) = oneshot::channel::<()>();
            let hooks = Arc::clone(&hooks);
            let thread = Builder::new()
                .name(format!("tollgate-{at}"))
                .spawn(move || {
                    (hooks.start)(at);
                    runtime.block_on(stopped).ok(); // a dropped sender means stop as well
                    runtime.shutdown_background();
                })?;
            threads.push((stop, thread));
        }
        Ok(Self {
            seats: seats.into(),
            threads,
        })
    }

    /// A handle to run tasks with.
    pub fn crew(&self) -> Crew {
        Crew(Arc::clone(&self.seats))
    }

    /// Ends every worker and whatever still runs on it.
    pub fn stop(self) {
        for (stop, thread) in self.threads {
            drop(stop);
            thread.join().ok(); // a panic of a worker has been reported by its hook
        }
    }
}

impl Crew {
    /// How many workers there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never true: there is at least one worker.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes a place on the least loaded worker.
    pub fn least_busy(&self) -> Load {
        let mut best = 0;
        for (at, seat) in self.0.iter().enumerate() {
            if seat.load.load(Ordering::Relaxed) < self.0[best].load.load(Ordering::Relaxed) {
                best = at;
            }
        }
        self.0[best].load.fetch_add(1, Ordering::Relaxed);
        Load {
            seats: Arc::clone(&self.0),
            at: best,
        }
    }

    /// Runs `task` on worker `at` (modulo their number).
    pub fn run_on(&self, at: usize, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(seat) = self.0.get(at % self.0.len().max(1)) {
            seat.handle.spawn(task);
        }
    }
}

impl Load {
    /// The worker's number.
    pub fn seat(&self) -> usize {
        self.at
    }

    /// Runs `task` on this worker; the load is given back when it ends.
    pub fn run_owned(self, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.seats[self.at].handle.clone();
        let task = Box::pin(task); // otherwise it would take its room twice: captured, and awaited
        handle.spawn(async move {
            task.await;
            drop(self);
        });
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.seats[self.at].load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs `task` beside the present one, on the same worker. Whoever calls this makes sure that drain waits for it, by
/// letting the task own the session, or that it ends with a connection that drain ends.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where a task is spawned beside another"
)]
pub fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

/// Computes what takes long on a thread beside the workers; `None` if it panicked, or the runtime is ending.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// Starts a named thread outside the workers.
pub fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(body)
}

//! Whether an HTTP/2 client takes what it is given, stream by stream.
//!
//! A client that leaves a stream's window shut keeps the response, and the upstream connection behind it, for as long
//! as it likes, while the connection itself looks alive. hyper does not ask a body for more while the window is shut,
//! so the body cannot time that itself: the task of the stream does. The body says when it has given a piece and when
//! it was asked again; in between the clock runs, and when it runs out the task is dropped, which resets the stream.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::Executor;

use crate::{clock, workers};

use super::pulse::Timer;

tokio::task_local! {
    static STREAM: Arc<Taking>;
}

/// What the body of a stream and the task of the stream know of each other.
#[derive(Default)]
pub(super) struct Taking {
    /// By when the piece that was given must have been taken.
    due: Mutex<Option<Instant>>,
    lost: AtomicBool,
}

/// Runs the streams of an HTTP/2 connection beside it; they end with it.
#[derive(Clone, Copy)]
pub(super) struct Beside;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Beside {
    fn execute(&self, stream: F) {
        let taking = Arc::new(Taking::default());
        let timed = Arc::clone(&taking).time(stream);
        workers::spawn(STREAM.scope(taking, timed));
    }
}

impl Taking {
    /// That of the present stream; `None` for HTTP/1, where a client that takes nothing stalls its connection.
    pub(super) fn present() -> Option<Arc<Self>> {
        STREAM.try_with(Arc::clone).ok()
    }

    /// A piece was given and must be taken within `limit`.
    pub(super) fn given(&self, limit: Duration) {
        self.set(Some(clock::now() + limit));
    }

    /// It was taken: another one is asked for.
    pub(super) fn taken(&self) {
        self.set(None);
    }

    /// Whether the stream was given up because it was not.
    pub(super) fn lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    fn set(&self, due: Option<Instant>) {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = due;
    }

    async fn time(self: Arc<Self>, stream: impl Future<Output = ()>) {
        let mut stream = pin!(stream);
        let mut timer = Timer::default();
        poll_fn(|cx| {
            if stream.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let due = *self.due.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(due) = due else {
                return Poll::Pending;
            };
            ready!(timer.poll(cx, due));
            self.lost.store(true, Ordering::Relaxed);
            Poll::Ready(())
        })
        .await;
    }
}

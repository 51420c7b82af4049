//! The journal: nothing is forwarded or dialled before its record is durable.
//!
//! [`Journal::admit`] is the only maker of [`Admitted`], and gives it out only when the BEFORE record is on disk (or
//! the route was told to continue without). Whoever holds an [`Admitted`] ends it with [`Admitted::complete`]; one
//! that is dropped ends itself as aborted. Every BEFORE therefore has exactly one terminal record.
//!
//! ```compile_fail,E0063
//! let forged = tollgate::audit::Admitted {};
//! ```

use std::future::poll_fn;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::clock::{self, Id};
use crate::config::typed::{Audit, OnFailure};
use crate::outcome::{Outcome, Refusal};
use crate::record::{After, Before, Denied, Event, TagKey};
use crate::telemetry::{Metrics, Way};

mod anchor;
mod board;
mod denials;
mod device;
mod epochs;
mod frame;
mod keeper;
mod keys;
mod ledger;
#[cfg(test)]
mod model;
mod note;
mod office;
mod opening;
mod order;
mod proof;
mod prove;
mod receipt;
mod recover;
mod room;
mod scan;
mod seal;
mod search;
mod seat;
mod segment;
mod spell;
mod standby;
mod start;
mod tree;
mod verify;
mod writer;

pub use board::Trouble;
use board::{Board, Patience};
use keeper::Rules;
use office::Office;
pub use opening::OpenError;
pub use proof::{Disproof, Proof, Proven};
pub use prove::{ProveError, prove, prove_growth};
pub use receipt::{Bound, Mark, RECEIPT_KEY_BYTES_MIN, ReceiptKey};
pub use recover::OnDamage;
pub use search::{Filter, search, tag_of};
use seat::{Seat, Ticket};
use start::Plan;
pub use verify::{AnchorReport, OpenEntry, Problem, PublicKey, Report, Trust, verify};

/// How long [`Journal::close`] waits for a disk that hangs.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// Writes the audit log. Cheap to clone; closed when the last clone is dropped.
#[derive(Clone)]
pub struct Journal(Arc<Desk>);

struct Desk {
    board: Arc<Board>,
    office: Arc<Office>,
    /// One per worker, and the last for all other threads.
    seats: Arc<[Arc<Seat>]>,
    tag_key: TagKey,
    log_id: Box<str>,
    /// Ends when the writer does; `None` once that has been waited for.
    written: Mutex<Option<Receiver<()>>>,
    /// Held as long as the log may be written.
    _locks: Vec<std::fs::File>,
}

/// Proof that the BEFORE record of an entry is durable.
#[must_use = "dropping it records the entry as aborted"]
pub struct Admitted {
    entry: Entry,
    mark: Option<Mark>,
}

/// One entry; ends itself when dropped.
struct Entry {
    seat: Arc<Seat>,
    id: Id,
    way: Way,
    started: Instant,
    /// The segment in which it began; `None` when it has no BEFORE record, or its terminal record is written.
    open: Option<u64>,
}

impl Journal {
    /// Opens the log in `state_dir/audit`, recovering what an earlier process left, for `seats` workers. Blocks.
    pub fn open(
        state_dir: &Path,
        settings: &Audit,
        seats: usize,
        metrics: Arc<Metrics>,
    ) -> Result<Self, OpenError> {
        Self::open_despite(OnDamage::Refuse, state_dir, settings, seats, metrics)
    }

    /// As [`Self::open`], with or without damaged records.
    pub fn open_despite(
        damage: OnDamage,
        state_dir: &Path,
        settings: &Audit,
        seats: usize,
        metrics: Arc<Metrics>,
    ) -> Result<Self, OpenError> {
        let plan = Plan::of(state_dir, settings, seats, damage);
        start::start(state_dir, plan, metrics).map(|desk| Self(Arc::new(desk)))
    }

    /// Says that the current thread is worker `seat`, whose park hook calls [`Journal::park`].
    pub fn sit(seat: usize) {
        seat::sit(seat);
    }

    /// To be called whenever worker `seat` has run out of ready tasks: hands over what it has queued.
    pub fn park(&self, seat: usize) {
        if let Some(seat) = self.0.seats.get(seat) {
            seat.park();
        }
    }

    /// The identifier of this log.
    pub fn log_id(&self) -> &str {
        &self.0.log_id
    }

    /// The key of the tags in this log, for [`crate::record::Redaction`].
    pub fn tag_key(&self) -> TagKey {
        self.0.tag_key.clone()
    }

    /// Hands over the BEFORE record of entry `id` and waits until it is durable, at most for the wait budget.
    pub async fn admit(
        &self,
        id: Id,
        before: &Before<'_>,
        on_failure: OnFailure,
    ) -> Result<Admitted, Refusal> {
        self.admit_with(id, before, on_failure, None).await
    }

    /// As [`Self::admit`], with the place of the record, for a receipt.
    pub async fn admit_marked(
        &self,
        id: Id,
        before: &Before<'_>,
        on_failure: OnFailure,
    ) -> Result<Admitted, Refusal> {
        let mark = Arc::new(OnceLock::new());
        let admitted = self.admit_with(id, before, on_failure, Some(&mark)).await;
        admitted.map(|admitted| Admitted {
            mark: mark.get().copied(),
            ..admitted
        })
    }

    async fn admit_with(
        &self,
        id: Id,
        before: &Before<'_>,
        on_failure: OnFailure,
        mark: Option<&Arc<OnceLock<Mark>>>,
    ) -> Result<Admitted, Refusal> {
        let (seat, started, way) = (self.seat(), clock::now(), before.way());
        let ticket = poll_fn(|context| {
            Poll::Ready(seat.begin(started, context.waker(), mark, |out| {
                before.encode(id, clock::wall_ns(), out);
            }))
        })
        .await;
        let entry = Entry {
            seat: Arc::clone(seat),
            id,
            way,
            started,
            open: ticket.as_ref().map(|ticket| ticket.segment),
        };
        let durable = match &ticket {
            Some(ticket) => self.durable(seat, ticket).await,
            None => false,
        };
        if durable {
            return Ok(Admitted { entry, mark: None });
        }
        let counts = &self.0.board.counts;
        match on_failure {
            OnFailure::Continue => {
                counts.unrecorded.fetch_add(1, Ordering::Relaxed);
                Ok(Admitted { entry, mark: None })
            }
            OnFailure::Refuse => {
                counts.refused.fetch_add(1, Ordering::Relaxed);
                entry.refuse();
                Err(Refusal::AuditUnavailable)
            }
        }
    }

    /// Records a denial, soon; nobody waits.
    pub fn deny(&self, denied: &Denied<'_>) {
        self.seat().deny(denied, clock::now(), clock::wall_ns());
    }

    /// Records something that happened to Tollgate itself, soon; nobody waits.
    pub fn event(&self, event: Event) {
        let queued = self
            .shared()
            .is_some_and(|seat| seat.note(|out| event.encode(clock::wall_ns(), out)));
        if !queued {
            tracing::error!(event = event.name, "no room for an event in the audit log");
            let lost = &self.0.board.counts.events_lost;
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Goes by changed settings, as far as they can change while running; the others must be the same.
    pub fn adapt(&self, settings: &Audit) {
        self.0.board.set_patience(Patience::of(settings));
        self.0.office.set_rules(Rules::of(settings));
    }

    /// Why records cannot be made durable at present; `None` if they can.
    pub fn trouble(&self) -> Option<Trouble> {
        self.0.board.trouble()
    }

    /// Writes everything that was handed over, closes the segment and stops. Blocks, at most for ten seconds. What is
    /// admitted still is recorded as left open, and its end by the next start.
    pub fn close(&self) {
        self.0.close();
    }

    /// Until the ticket's record is durable or too late.
    async fn durable(&self, seat: &Seat, ticket: &Ticket) -> bool {
        let mut begun = false;
        let wait = poll_fn(|context| {
            // The first look comes at once after queueing, with the same waker.
            if std::mem::replace(&mut begun, true) {
                seat.poll(ticket, context)
            } else {
                Poll::Pending
            }
        });
        if seat.is_shared() {
            let budget = self.0.board.budget();
            timeout(budget, wait).await.unwrap_or(false)
        } else {
            wait.await
        }
    }

    fn seat(&self) -> &Arc<Seat> {
        let seats = &self.0.seats;
        let last = seats.len() - 1; // there is always the shared one
        &seats[seat::here().min(last)]
    }

    fn shared(&self) -> Option<&Arc<Seat>> {
        self.0.seats.last()
    }
}

impl Desk {
    fn close(&self) {
        self.board.close();
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(written) = written.take() else {
            return;
        };
        if written.recv_timeout(CLOSE_WAIT) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the audit log's disk hangs; the last records may be missing");
        }
        self.office.end();
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.close();
    }
}

impl Admitted {
    /// The entry's identifier.
    pub fn id(&self) -> Id {
        self.entry.id
    }

    /// When the entry was handed to the journal.
    pub fn started(&self) -> Instant {
        self.entry.started
    }

    /// The place of its record, if that was asked for and is durable.
    pub fn mark(&self) -> Option<&Mark> {
        self.mark.as_ref()
    }

    /// Writes the terminal record.
    pub fn complete(mut self, after: After) {
        self.entry.end(&after);
    }
}

impl Entry {
    fn refuse(mut self) {
        self.end(&After::nothing_moved(Outcome::Refused(
            Refusal::AuditUnavailable,
        )));
    }

    fn end(&mut self, after: &After) {
        let Some(segment) = self.open.take() else {
            return;
        };
        let (id, way, lasted) = (self.id, self.way, self.started.elapsed());
        self.seat.end(segment, |out| {
            after.encode(id, clock::wall_ns(), way, Some(lasted), out);
        });
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.end(&After::nothing_moved(Outcome::Aborted));
    }
}

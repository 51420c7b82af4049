//! What all writers of one log share, and how the ledger passes from one to another.
//!
//! There is one writer for each device, on its own thread: the primary, and the standby if there is one. One of them
//! has the ledger; each of the others rests, ready to be called, or mends what failed under it. The ledger passes when
//! a call fails or hangs, to whoever rests, and back to the primary as soon as that rests again. The watch is the
//! thread that notices a hang, since the writer cannot.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::board::Board;
use super::keeper::Rules;
use super::ledger::{Ledger, Shelf};
use super::seat::Seat;
use super::spell::Spell;
use crate::clock::{self, Id};
use crate::record::Event;
use crate::telemetry::Metrics;

/// The number of the device that is used whenever it works.
pub(super) const PRIMARY: usize = 0;
/// The watch looks so often within the time after which a call hangs.
const LOOKS: u32 = 4;
const LOOK_MIN: Duration = Duration::from_millis(2);
const LOOK_MAX: Duration = Duration::from_secs(1);

pub(super) struct Office {
    pub(super) board: Arc<Board>,
    pub(super) seats: Arc<[Arc<Seat>]>,
    pub(super) metrics: Arc<Metrics>,
    /// Names this run of the program.
    pub(super) process: Id,
    pub(super) shelf: Shelf,
    rules: Mutex<Rules>,
    /// Primary first.
    posts: Vec<Post>,
    /// Whose writer has the ledger.
    writing: AtomicUsize,
}

/// How to reach the writer of one device.
struct Post {
    dir: PathBuf,
    rests: AtomicBool,
    /// `None` when nobody will be called any more.
    call: Mutex<Option<SyncSender<Ledger>>>,
}

impl Office {
    /// For the devices whose directories are `dirs`, primary first; and where each one's writer waits for its call.
    pub(super) fn open(
        board: &Arc<Board>,
        seats: &Arc<[Arc<Seat>]>,
        metrics: Arc<Metrics>,
        rules: Rules,
        dirs: impl IntoIterator<Item = PathBuf>,
    ) -> (Arc<Self>, Vec<Receiver<Ledger>>) {
        let (mut posts, mut calls) = (Vec::new(), Vec::new());
        for (at, dir) in dirs.into_iter().enumerate() {
            let (call, called) = sync_channel(1);
            calls.push(called);
            posts.push(Post {
                dir,
                rests: AtomicBool::new(at != PRIMARY), // it begins
                call: Mutex::new(Some(call)),
            });
        }
        let office = Self {
            board: Arc::clone(board),
            seats: Arc::clone(seats),
            metrics,
            process: Id::new(),
            shelf: Shelf::new(board),
            rules: Mutex::new(rules),
            posts,
            writing: AtomicUsize::new(PRIMARY),
        };
        (Arc::new(office), calls)
    }

    /// The directory of device `at`, which is one of ours.
    pub(super) fn dir(&self, at: usize) -> &Path {
        self.posts.get(at).map_or(Path::new(""), |post| &post.dir)
    }

    /// What is asked of the keeper.
    pub(super) fn rules(&self) -> Rules {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_rules(&self, rules: Rules) {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    /// Has an event recorded, soon; gives by what to ask whether it is durable, unless there is no room for it.
    pub(super) fn announce(&self, event: &Event) -> Option<(&Seat, u64)> {
        let seat = self.seats.last()?;
        let ticket = seat.announce(|out| event.encode(clock::wall_ns(), out))?;
        Some((seat, ticket))
    }

    /// A device whose writer rests.
    pub(super) fn relief(&self) -> Option<usize> {
        self.posts
            .iter()
            .position(|post| post.rests.load(Ordering::Acquire))
    }

    /// Whether the writer of the primary rests while another one writes.
    pub(super) fn can_return(&self) -> bool {
        self.relief() == Some(PRIMARY)
    }

    /// Says that the writer of device `at` waits for a call.
    pub(super) fn rest(&self, at: usize) {
        if let Some(post) = self.posts.get(at) {
            post.rests.store(true, Ordering::Release);
        }
    }

    /// Gives the ledger to the writer of device `to`, which rests. Only who has the ledger can, so two never call.
    pub(super) fn call(&self, to: usize, ledger: Ledger) {
        let Some(post) = self.posts.get(to) else {
            return; // `to` came from `relief`
        };
        post.rests.store(false, Ordering::Release);
        self.writing.store(to, Ordering::Release);
        self.metrics
            .journal_disks
            .standby
            .set(i64::from(to != PRIMARY));
        let call = post.call.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(call) = call.as_ref() {
            call.send(ledger).ok(); // it rests, so it is there; at the end of the process nobody minds
        }
    }

    /// As [`Self::call`], with a note of why.
    pub(super) fn hand_over(&self, to: usize, mut ledger: Ledger, cause: &str) {
        let dir = |at| self.dir(at).display().to_string();
        let (from, into) = (dir(self.writing.load(Ordering::Acquire)), dir(to));
        let name = if to == PRIMARY {
            tracing::info!(
                dir = into,
                cause,
                "the audit log is written to its first directory again"
            );
            "primary_in_use"
        } else {
            tracing::error!(
                dir = into,
                left = from,
                cause,
                "the audit log is written to its standby directory"
            );
            "standby_in_use"
        };
        ledger.note(&Event {
            name,
            facts: vec![("dir", into), ("left", from), ("cause", cause.to_owned())],
        });
        self.call(to, ledger);
    }

    /// Takes the ledger from a writer whose call hangs and gives it to one that rests. False if there is none of
    /// either.
    pub(super) fn relieve(&self) -> bool {
        let Some(to) = self.relief() else {
            return false;
        };
        let Some((mut ledger, lasted)) = self.shelf.take_stalled() else {
            return false;
        };
        let cause = format!("a call to the disk hangs for {} ms", lasted.as_millis());
        let hang = || Spell::lasting(lasted, cause.clone());
        ledger.down.get_or_insert_with(hang);
        self.hand_over(to, ledger, &cause);
        true
    }

    /// Notices a hang and ends it, if somebody rests; until the log has ended.
    pub(super) fn watch(&self) {
        let mut told = false;
        while !self.board.has_ended() {
            thread::sleep((self.board.stall_after() / LOOKS).clamp(LOOK_MIN, LOOK_MAX));
            let healthy = self.board.trouble().is_none();
            self.metrics.journal_healthy.set(i64::from(healthy));
            if self.board.stalled().is_none() {
                told = false;
            } else if !self.relieve() {
                self.shelf.note_stall();
                if !std::mem::replace(&mut told, true) {
                    tracing::error!(
                        "a call to the audit log's disk hangs; requests are refused until it returns"
                    );
                }
            }
        }
    }

    /// Lets every writer that rests go home.
    pub(super) fn end(&self) {
        self.board.end();
        for post in &self.posts {
            let mut call = post.call.lock().unwrap_or_else(PoisonError::into_inner);
            drop(call.take());
        }
    }
}

//! Pipes for splice(2), lent from a bounded pool.
//!
//! The kernel gives an unprivileged user 64 MiB of pipe buffers; past that, new pipes shrink and are worth nothing. So
//! the process has at most [`PIPES_MAX`], each thread keeps its idle ones, and a pipe that still holds bytes of a
//! broken connection is closed, never lent again. When none is to be had the caller copies.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::net::TcpStream;

/// Of one process: 256 pipes of 256 KiB are the 64 MiB.
const PIPES_MAX: usize = 256;
/// More gains nothing, 64 KiB costs a fifth more.
const PIPE_BYTES: usize = 256 * 1024;
/// Idle ones that a thread keeps; the rest are closed, so that other threads can have theirs.
const KEPT_MAX: usize = 32;

/// After a pipe could not be made or made large, this many asks are answered without trying.
const ASKS_SKIPPED: usize = 1024;

static PIPES: AtomicUsize = AtomicUsize::new(0);
static SKIP: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static KEPT: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
}

/// A pipe on loan; goes back when dropped.
pub(super) struct Pipe {
    ends: Option<Ends>,
    holds: usize,
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// What filling gave.
pub(super) enum Moved {
    End,
    Some,
}

impl Pipe {
    /// An empty one, if there is one.
    pub(super) fn lend() -> Option<Self> {
        let kept = KEPT.try_with(|kept| kept.borrow_mut().pop()).ok()?;
        let ends = kept.or_else(Ends::new)?;
        Some(Self {
            ends: Some(ends),
            holds: 0,
        })
    }

    /// Bytes in it.
    pub(super) fn holds(&self) -> usize {
        self.holds
    }

    /// Takes what has arrived at `from`.
    pub(super) fn fill(&mut self, from: &TcpStream) -> io::Result<Moved> {
        let Some(ends) = &self.ends else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let moved = splice(from, None, &ends.write, None, PIPE_BYTES, FLAGS)?;
        self.holds += moved;
        Ok(if moved == 0 { Moved::End } else { Moved::Some })
    }

    /// Hands to `to` what it takes, and says how many bytes that was.
    pub(super) fn empty(&mut self, to: &TcpStream) -> io::Result<usize> {
        let Some(ends) = &self.ends else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let moved = splice(&ends.read, None, to, None, self.holds, FLAGS)?;
        if moved == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.holds = self.holds.saturating_sub(moved);
        Ok(moved)
    }
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

impl Ends {
    fn new() -> Option<Self> {
        let skipped = |left: usize| left.checked_sub(1);
        if SKIP
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, skipped)
            .is_ok()
        {
            return None;
        }
        if PIPES.fetch_add(1, Ordering::Relaxed) >= PIPES_MAX {
            PIPES.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let made = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok();
        let ends = match made {
            Some((read, write)) => Self { read, write }, // from here on its drop counts
            None => {
                PIPES.fetch_sub(1, Ordering::Relaxed);
                SKIP.store(ASKS_SKIPPED, Ordering::Relaxed);
                return None;
            }
        };
        if fcntl_setpipe_size(&ends.write, PIPE_BYTES).is_err() {
            SKIP.store(ASKS_SKIPPED, Ordering::Relaxed);
            return None;
        }
        Some(ends)
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        PIPES.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take().filter(|_| self.holds == 0) else {
            return;
        };
        // A thread that is ending keeps nothing.
        KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < KEPT_MAX {
                kept.push(ends);
            }
        })
        .ok();
    }
}

//! The heartbeat of a client connection: how long it may stay silent, and how long it may refuse to take what we send.
//!
//! Sits between the socket and TLS, so it sees every byte. Between requests a connection may be idle; from the first
//! byte of a head the head timer runs; while a request is in flight reading is not timed here (bodies have timers of
//! their own). A write that makes no progress is timed always. Timers are moved lazily: one per connection and
//! direction, armed when a read or write has to wait, re-armed when it fires too early; a busy connection pays nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

use crate::clock;
use crate::outcome::Refusal;

/// What the requests of a connection and its timers know of each other.
pub(super) struct Pulse {
    began: Instant,
    /// Requests in flight.
    busy: AtomicU32,
    phase: AtomicU8,
    /// Milliseconds after `began` at which the phase began.
    since: AtomicU64,
    idle: AtomicU64,
    head: Duration,
    stall: AtomicU64,
    expired: AtomicU8,
    /// Bytes of the preface that are still to come.
    preface: AtomicUsize,
}

/// Before the first request could come, and whenever there is nothing to time.
const UNTIMED: u8 = 0;
const IDLE: u8 = 1;
const HEAD: u8 = 2;
/// As [`IDLE`], but bytes do not begin a head: HTTP/2 has frames that belong to no request.
const IDLE_FRAMES: u8 = 3;
const STALL: u8 = 4;
/// Before the preface of HTTP/2 is complete: timed as a head is, and then it is [`IDLE_FRAMES`].
const PREFACE: u8 = 5;
/// The preface (RFC 9113 section 3.4) in one record, as it comes from the socket.
const PREFACE_BYTES: usize = 24 + RECORD_BYTES;
/// What TLS 1.3 adds to a record: header, content type and tag (RFC 8446 section 5.2).
const RECORD_BYTES: usize = 5 + 1 + 16;

/// One request in flight, until its response is over.
pub(super) struct Busy(Arc<Pulse>);

impl Pulse {
    pub(super) fn new(head: Duration, stall: Duration) -> Arc<Self> {
        Arc::new(Self {
            began: clock::now(),
            busy: AtomicU32::new(0),
            phase: AtomicU8::new(UNTIMED),
            since: AtomicU64::new(0),
            idle: AtomicU64::new(0),
            head,
            stall: AtomicU64::new(ms(stall)),
            expired: AtomicU8::new(UNTIMED),
            preface: AtomicUsize::new(PREFACE_BYTES),
        })
    }

    /// The handshake is over: from now on silence is timed. `frames`: the client speaks HTTP/2.
    pub(super) fn serve(&self, frames: bool, idle: Duration) {
        self.idle.store(ms(idle), Ordering::Relaxed);
        self.enter(if frames { PREFACE } else { IDLE });
    }

    /// Something is in flight until what is returned is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// For how long the client may refuse to take what is sent, from now on.
    pub(super) fn allow_stall(&self, stall: Duration) {
        self.stall.store(ms(stall), Ordering::Relaxed);
    }

    /// Which timer ended the connection, if one did.
    pub(super) fn expired(&self) -> Option<Refusal> {
        match self.expired.load(Ordering::Relaxed) {
            HEAD | PREFACE => Some(Refusal::HeadTimeout),
            STALL => Some(Refusal::BodyIdle),
            _ => None,
        }
    }

    fn enter(&self, phase: u8) {
        self.since
            .store(ms(self.began.elapsed()), Ordering::Relaxed);
        self.phase.store(phase, Ordering::Relaxed);
    }

    /// So many bytes of what follows the handshake came in one piece with its end, and were read with it.
    pub(super) fn heard_early(&self, bytes: usize) {
        if bytes > 0 {
            self.heard(bytes + RECORD_BYTES);
        }
    }

    /// Bytes have come: between requests of HTTP/1 they begin a head.
    fn heard(&self, bytes: usize) {
        match self.phase.load(Ordering::Relaxed) {
            IDLE if self.busy.load(Ordering::Relaxed) == 0 => self.enter(HEAD),
            PREFACE => {
                let left = self.preface.load(Ordering::Relaxed).saturating_sub(bytes);
                self.preface.store(left, Ordering::Relaxed);
                if left == 0 {
                    self.enter(IDLE_FRAMES);
                }
            }
            _ => {}
        }
    }

    fn silence_ends(&self) -> Option<Instant> {
        if self.busy.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let since = self.began + Duration::from_millis(self.since.load(Ordering::Relaxed));
        match self.phase.load(Ordering::Relaxed) {
            UNTIMED => None,
            HEAD | PREFACE => Some(since + self.head),
            _ => Some(since + Duration::from_millis(self.idle.load(Ordering::Relaxed))),
        }
    }
}

impl Busy {
    /// For how long the client may refuse to take what is sent.
    pub(super) fn stall(&self) -> Duration {
        Duration::from_millis(self.0.stall.load(Ordering::Relaxed))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.busy.fetch_sub(1, Ordering::Relaxed) == 1 {
            let phase = self.0.phase.load(Ordering::Relaxed);
            let frames = matches!(phase, IDLE_FRAMES | PREFACE);
            self.0.enter(if frames { IDLE_FRAMES } else { IDLE });
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A socket that ends itself when its [`Pulse`] says so.
pub(super) struct Timed<S> {
    io: S,
    pulse: Arc<Pulse>,
    read: Timer,
    write: Timer,
    /// Since when a write has been waiting.
    stalled: Option<Instant>,
    /// What the client began with; `None` while that is of interest and not known.
    first: Option<u8>,
    /// It began with plain HTTP: what TLS has to say to it is kept back, so that it can be told in its own language.
    muted: bool,
}

/// A timer that is only ever moved when it has fired or a nearer deadline comes.
#[derive(Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready when `deadline` has passed; otherwise the task is woken by then.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let at = tokio::time::Instant::from_std(deadline);
        loop {
            if clock::now() >= deadline {
                return Poll::Ready(());
            }
            let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if sleep.deadline() > at {
                sleep.as_mut().reset(at);
            }
            ready!(sleep.as_mut().poll(cx));
            sleep.as_mut().reset(at + Duration::from_millis(1)); // it counts whole milliseconds
        }
    }
}

impl<S> Timed<S> {
    pub(super) fn new(io: S, pulse: Arc<Pulse>) -> Self {
        Self {
            io,
            pulse,
            read: Timer::default(),
            write: Timer::default(),
            stalled: None,
            first: Some(0),
            muted: false,
        }
    }

    /// As [`Timed::new`], below TLS: looks whether the client speaks it.
    pub(super) fn below_tls(io: S, pulse: Arc<Pulse>) -> Self {
        Self {
            first: None,
            ..Self::new(io, pulse)
        }
    }

    /// To answer a client that began with plain HTTP; `None` if it did not.
    pub(super) fn unmuted(mut self) -> Option<Self> {
        std::mem::take(&mut self.muted).then_some(self)
    }

    fn hear(&mut self, read: &[u8]) {
        self.pulse.heard(read.len());
        if self.first.is_none()
            && let Some(first) = read.first()
        {
            self.first = Some(*first);
            self.muted = first.is_ascii_uppercase(); // a method; a TLS record begins with 22
        }
    }

    /// Whether what was written last still waits for the peer.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// Passes on the result of a write that may have had to wait.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let since = *self.stalled.get_or_insert_with(clock::now);
        let stall = Duration::from_millis(self.pulse.stall.load(Ordering::Relaxed));
        ready!(self.write.poll(cx, since + stall));
        self.pulse.expired.store(STALL, Ordering::Relaxed);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let known = buf.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut this.io).poll_read(cx, buf) {
            this.hear(buf.filled().get(known..).unwrap_or_default());
            return Poll::Ready(result);
        }
        let Some(deadline) = this.pulse.silence_ends() else {
            return Poll::Pending;
        };
        ready!(this.read.poll(cx, deadline));
        let phase = this.pulse.phase.load(Ordering::Relaxed);
        this.pulse.expired.store(phase, Ordering::Relaxed);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.muted {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = Pin::new(&mut this.io).poll_write(cx, buf);
        this.watch(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.muted {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.watch(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

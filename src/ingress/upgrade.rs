//! Upgraded connections: after the 101, bytes both ways until one side ends, nothing moves for too long, or they must
//! go.
//!
//! Nothing in the stream is read or changed; close frames are the two ends' own. Bytes that came early, behind either
//! head, are delivered first: hyper hands them over with the stream.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{sleep_until, timeout};

use crate::clock;
use crate::outcome::{Outcome, Refusal};
use crate::snapshot::Live;

use super::passage::Passage;
use super::visitor::Visitor;

/// Of each direction: messages are small and connections many.
const BUFFER_BYTES: usize = 8 * 1024;

/// An upgraded connection before its streams are there.
pub(super) struct Stream {
    pub(super) visitor: Arc<Visitor>,
    pub(super) passage: Passage,
    pub(super) live: Live,
    pub(super) idle: Duration,
    /// For the other side, when one has ended.
    pub(super) linger: Duration,
}

/// What both directions have in common.
struct Flow {
    began: Instant,
    /// Milliseconds after `began` at which a byte was last moved.
    moved: AtomicU64,
    inward: AtomicU64,
    outward: AtomicU64,
}

impl Stream {
    /// Takes both streams over and relays until the end, which is the end of the passage.
    pub(super) async fn run(mut self, client: OnUpgrade, upstream: OnUpgrade) {
        let session = self.visitor.session.fork();
        let _busy = self.visitor.pulse.begin();
        let flow = Flow {
            began: clock::now(),
            moved: AtomicU64::new(0),
            inward: AtomicU64::new(0),
            outward: AtomicU64::new(0),
        };
        let relayed = async {
            let (client, upstream) = (client.await.ok()?, upstream.await.ok()?);
            let (mut client_read, mut client_write) = split(TokioIo::new(client));
            let (mut upstream_read, mut upstream_write) = split(TokioIo::new(upstream));
            let inward = flow.copy(&flow.inward, &mut client_read, &mut upstream_write);
            let outward = flow.copy(&flow.outward, &mut upstream_read, &mut client_write);
            either_then_both(inward, outward, self.linger).await
        };
        let outcome = tokio::select! {
            done = relayed => done.map(|()| Outcome::Served),
            () = flow.still(self.idle) => Some(Outcome::Failed(Refusal::BodyIdle)),
            () = session.ended() => Some(Outcome::Failed(Refusal::Draining)),
            refusal = self.unwelcome() => Some(Outcome::Failed(refusal)),
        };
        self.passage.bytes_in = flow.inward.load(Ordering::Relaxed);
        self.passage.bytes_out = flow.outward.load(Ordering::Relaxed);
        if let Some(outcome) = outcome {
            self.passage.complete(outcome);
        } // otherwise a side broke off: what the end of a passage means by itself
    }

    /// Ends when a reload, or a changed list of who is believed, has taken the client's permission away.
    async fn unwelcome(&self) -> Refusal {
        let mut occasion = self.visitor.occasion;
        loop {
            occasion = self.visitor.judged_again(occasion).await;
            if let Err(refusal) = self.visitor.welcome(&self.live.load()) {
                return refusal;
            }
        }
    }
}

/// Waits for one direction to end, and then a little for the other: a websocket has no use for half a connection.
async fn either_then_both(
    inward: impl Future<Output = std::io::Result<()>>,
    outward: impl Future<Output = std::io::Result<()>>,
    linger: Duration,
) -> Option<()> {
    let (mut inward, mut outward) = (pin!(inward), pin!(outward));
    tokio::select! {
        ended = &mut inward => {
            ended.ok()?;
            timeout(linger, outward).await.ok(); // what still came was delivered
        }
        ended = &mut outward => {
            ended.ok()?;
            timeout(linger, inward).await.ok();
        }
    }
    Some(())
}

impl Flow {
    /// Copies until the reader's end, then ends the writer.
    async fn copy(
        &self,
        bytes: &AtomicU64,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> std::io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = from.read(&mut buffer).await?;
            if count == 0 {
                return to.shutdown().await;
            }
            to.write_all(buffer.get(..count).unwrap_or_default())
                .await?;
            to.flush().await?;
            bytes.fetch_add(count as u64, Ordering::Relaxed);
            let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.moved.store(ms, Ordering::Relaxed);
        }
    }

    /// Ends when nothing has moved for `idle`.
    async fn still(&self, idle: Duration) {
        loop {
            let moved = Duration::from_millis(self.moved.load(Ordering::Relaxed));
            let deadline = self.began + moved + idle;
            if clock::now() >= deadline {
                return;
            }
            sleep_until(deadline.into()).await;
        }
    }
}

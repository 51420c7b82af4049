//! Bodies, piece by piece: the client's on its way to the upstream, and the upstream's on its way to the client.
//!
//! Nothing is buffered: a piece is asked for only when the other side has taken the one before. Each side is timed
//! while it is waited for, and only then; there is no timer over a whole body. The end of a response is the end of its
//! [`Passage`].

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::clock;
use crate::outcome::{Outcome, Refusal};
use crate::wire::http::clean_trailers;

use super::passage::{Flow, Passage};
use super::pulse::{Busy, Timer};
use super::taking::Taking;
use super::upstream::Link;

/// Times a side while it is waited for.
struct Patience {
    limit: Duration,
    since: Option<Instant>,
    timer: Timer,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: None,
            timer: Timer::default(),
        }
    }

    /// To be called when the side has nothing: ready when that has been so for too long.
    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(clock::now);
        self.timer.poll(cx, since + self.limit)
    }

    /// To be called when the side has given something.
    fn renew(&mut self) {
        self.since = None;
    }
}

/// A request body on its way to the upstream.
pub(super) struct Upload(Option<Uploading>);

struct Uploading {
    body: Incoming,
    flow: Arc<Flow>,
    left: u64,
    patience: Patience,
}

impl Upload {
    /// No body.
    pub(super) const NONE: Self = Self(None);

    /// At most `max` bytes; each piece within `idle`.
    pub(super) fn new(body: Incoming, flow: Arc<Flow>, max: Option<u64>, idle: Duration) -> Self {
        Self(Some(Uploading {
            body,
            flow,
            left: max.unwrap_or(u64::MAX),
            patience: Patience::new(idle),
        }))
    }
}

impl Uploading {
    fn fail(&self, fault: Option<Refusal>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        self.flow.fault.set(fault).ok(); // the first one counts
        Poll::Ready(Some(Err(fault.unwrap_or(Refusal::Malformed))))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        let Some(this) = &mut self.get_mut().0 else {
            return Poll::Ready(None);
        };
        let mut frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Pending => {
                ready!(this.patience.poll_lost(cx));
                return this.fail(Some(Refusal::BodyIdle));
            }
            Poll::Ready(None) => {
                this.flow.ended.store(true, Ordering::Relaxed);
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => return this.fail(broken(&error)),
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        this.patience.renew();
        if let Some(trailers) = frame.trailers_mut() {
            clean_trailers(trailers);
        }
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        match this.left.checked_sub(bytes as u64) {
            None => return this.fail(Some(Refusal::BodyTooLarge)),
            Some(left) => this.left = left,
        }
        this.flow.moved(bytes);
        if this.body.is_end_stream() {
            this.flow.ended.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|this| this.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            None => SizeHint::with_exact(0),
            Some(this) => this.body.size_hint(),
        }
    }
}

/// A body that is not what its framing says is malformed; any other error means that the client is gone.
fn broken(error: &hyper::Error) -> Option<Refusal> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{InvalidData, InvalidInput};
            return matches!(io.kind(), InvalidData | InvalidInput).then_some(Refusal::Malformed);
        }
        source = cause.source();
    }
    None
}

/// The body of a response to the client.
pub(super) struct Reply {
    content: Content,
    /// The connection is not idle before this is gone.
    busy: Busy,
}

enum Content {
    Relay(Box<Relay>),
    Text(Option<Bytes>),
}

struct Relay {
    body: Incoming,
    link: Option<Link>,
    passage: Passage,
    patience: Patience,
    taking: Option<Arc<Taking>>,
}

impl Reply {
    /// A text of our own; empty where there is none.
    pub(super) fn text(text: Bytes, busy: Busy) -> Self {
        Self {
            content: Content::Text((!text.is_empty()).then_some(text)),
            busy,
        }
    }

    /// The same without a text of our own: what answers HEAD.
    pub(super) fn silent(mut self) -> Self {
        if let Content::Text(text) = &mut self.content {
            *text = None;
        }
        self
    }

    /// The upstream's body, each piece within `idle`; `link` is free for another request at its end.
    pub(super) fn relay(
        body: Incoming,
        link: Link,
        passage: Passage,
        idle: Duration,
        busy: Busy,
    ) -> Self {
        let relay = Relay {
            body,
            link: Some(link),
            passage,
            patience: Patience::new(idle),
            taking: Taking::present(),
        };
        Self {
            content: Content::Relay(Box::new(relay)),
            busy,
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        let this = self.get_mut();
        match &mut this.content {
            Content::Text(text) => {
                let text = text.take();
                if text.is_some()
                    && let Some(taking) = Taking::present()
                {
                    taking.given(this.busy.stall()); // it is the last piece: nobody will ask again
                }
                Poll::Ready(text.map(|text| Ok(Frame::data(text))))
            }
            Content::Relay(relay) => relay.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Text(text) => text.is_none(),
            Content::Relay(relay) => relay.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Content::Relay(relay) => relay.body.size_hint(),
        }
    }
}

impl Relay {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        if let Some(taking) = &self.taking {
            taking.taken();
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => {
                ready!(self.patience.poll_lost(cx));
                self.fail(Refusal::UpstreamIdle)
            }
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(_))) => self.broke(),
            Poll::Ready(Some(Ok(frame))) => {
                self.patience.renew();
                if let Some(taking) = &self.taking {
                    taking.given(self.patience.limit);
                }
                self.passage.bytes_out += frame.data_ref().map_or(0, Bytes::len) as u64;
                if self.body.is_end_stream() {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn fail(&mut self, refusal: Refusal) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        self.passage.complete(Outcome::Failed(refusal));
        Poll::Ready(Some(Err(refusal)))
    }

    /// The upstream broke off: of its own accord, or because its request did before.
    fn broke(&mut self) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        let flow = self.passage.flow.as_ref();
        match flow.and_then(|flow| flow.fault.get().copied()) {
            None => self.fail(Refusal::UpstreamBroken),
            Some(Some(fault)) => self.fail(fault),
            Some(None) => {
                self.passage.complete(Outcome::Aborted);
                Poll::Ready(Some(Err(Refusal::Malformed))) // nobody is there to see it
            }
        }
    }

    /// The last byte was handed over.
    fn end(&mut self) {
        self.passage.complete(Outcome::Served);
        let sent = |flow: &Arc<Flow>| flow.ended.load(Ordering::Relaxed);
        if let Some(link) = self.link.take()
            && self.passage.flow.as_ref().is_none_or(sent)
        {
            link.release();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A body without bytes (HEAD, 204, 304, length 0) is never asked for its end.
        if self.body.is_end_stream() {
            self.end();
        } else if self.taking.as_ref().is_some_and(|taking| taking.lost()) {
            self.passage.complete(Outcome::Failed(Refusal::BodyIdle));
        }
    }
}

//! One absolute-form request and its answer, over a connection dialled for them alone.
//!
//! Bodies are streamed both ways and counted as they pass. The exchange is over when the client has the last byte of
//! the answer, or has gone away; only then is its terminal record written.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;

use super::{Answer, head};
use super::{Refused, problem};
use crate::addr::Destination;
use crate::clock::Id;
use crate::dial::Dialled;
use crate::egress::Carried;
use crate::outcome::{Outcome, Refusal};
use crate::relay::{Flow, stalled};

/// A client that waits for the answer to its request.
pub(in crate::egress) struct Exchange {
    answer: oneshot::Sender<Answer>,
    request: Box<Request<Incoming>>,
}

/// A body that is counted while it passes.
pub(super) struct Counted {
    body: Incoming,
    flow: Arc<Flow>,
    ends: Arc<Ends>,
    direction: Direction,
}

enum Direction {
    /// Dropping the sender tells that nobody reads the answer any more.
    Down {
        _reader: oneshot::Sender<()>,
    },
    Up,
}

/// How the two bodies ended.
#[derive(Default)]
struct Ends {
    /// The answer was passed on to its end.
    whole: AtomicBool,
    /// The destination broke off its answer.
    cut: AtomicBool,
    /// The client broke off its request.
    abandoned: AtomicBool,
}

impl Exchange {
    pub(super) fn new(
        answer: oneshot::Sender<Answer>,
        mut request: Request<Incoming>,
        destination: &Destination,
    ) -> Self {
        head::towards(&mut request, destination);
        let request = Box::new(request);
        Self { answer, request }
    }

    pub(in crate::egress) async fn gone(&mut self) {
        self.answer.closed().await;
    }

    pub(in crate::egress) fn refuse(self, id: Id, refused: Refused) -> Option<u16> {
        refuse(self.answer, id, refused)
    }

    /// Sends the request, then streams the answer.
    pub(in crate::egress) async fn carry(
        self,
        id: Id,
        dialled: Dialled,
        flow: &Arc<Flow>,
        idle: Duration,
        stop: impl Future<Output = Refusal>,
    ) -> Carried {
        let Self {
            mut answer,
            request,
        } = self;
        let Ok((mut sender, connection)) = http1::handshake(TokioIo::new(dialled.stream)).await
        else {
            return failed(answer, id, Refusal::DestinationBroken);
        };
        let ends = Arc::new(Ends::default());
        let request = request.map(|body| Counted::new(body, flow, &ends, Direction::Up));
        let (mut connection, mut stop) = (pin!(fused(connection)), pin!(stop));
        let mut idling = pin!(stalled(flow, idle));
        let head = tokio::select! {
            head = sender.send_request(request) => head,
            never = connection.as_mut() => match never {},
            refusal = stop.as_mut() => return failed(answer, id, refusal),
            () = idling.as_mut() => return failed(answer, id, Refusal::ConnectionIdle),
            () = answer.closed() => return Carried::aborted(),
        };
        let mut response = match head {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                return failed(answer, id, Refusal::DestinationBroken); // nobody asked for that
            }
            Ok(response) => response,
            Err(_) if ends.abandoned.load(Ordering::Acquire) => return Carried::aborted(),
            Err(error) => {
                tracing::debug!(%id, %error, "no answer from the destination");
                return failed(answer, id, Refusal::DestinationBroken);
            }
        };
        drop(sender);
        head::back(&mut response);
        let status = Some(response.status().as_u16());
        let (reader, read) = oneshot::channel();
        let down = Direction::Down { _reader: reader };
        let counted = |body| Either::Right(Counted::new(body, flow, &ends, down));
        let sent = answer.send(response.map(counted));
        if sent.is_err() {
            return Carried::aborted();
        }
        let outcome = tokio::select! {
            _ = read => ends.outcome(),
            never = connection.as_mut() => match never {},
            refusal = stop.as_mut() => Outcome::Failed(refusal),
            () = idling.as_mut() => Outcome::Failed(Refusal::ConnectionIdle),
        };
        Carried { outcome, status }
    }
}

/// Drives the connection for as long as it lasts, then leaves the end to whoever reads from it.
async fn fused(
    connection: impl Future<Output = Result<(), hyper::Error>>,
) -> std::convert::Infallible {
    connection.await.ok(); // the same error reaches the reader of the answer
    std::future::pending().await
}

impl Ends {
    /// Once nobody reads the answer any more.
    fn outcome(&self) -> Outcome {
        let [whole, cut, abandoned] =
            [&self.whole, &self.cut, &self.abandoned].map(|mark| mark.load(Ordering::Acquire));
        match (whole, cut, abandoned) {
            (true, _, _) => Outcome::Served,
            (_, true, false) => Outcome::Failed(Refusal::DestinationBroken),
            _ => Outcome::Aborted,
        }
    }
}

fn failed(answer: oneshot::Sender<Answer>, id: Id, refusal: Refusal) -> Carried {
    Carried {
        outcome: Outcome::Failed(refusal),
        status: refuse(answer, id, refusal.into()),
    }
}

fn refuse(answer: oneshot::Sender<Answer>, id: Id, refused: Refused) -> Option<u16> {
    let problem: Response<_> = problem(id, refused).map(Either::Left);
    answer.send(problem).ok()?; // a client that is gone does not read it
    Some(refused.refusal.status())
}

impl Counted {
    fn new(body: Incoming, flow: &Arc<Flow>, ends: &Arc<Ends>, direction: Direction) -> Self {
        let counted = Self {
            body,
            flow: Arc::clone(flow),
            ends: Arc::clone(ends),
            direction,
        };
        counted.mark_end();
        counted
    }

    fn mark_end(&self) {
        if self.body.is_end_stream() {
            self.ended();
        }
    }

    fn ended(&self) {
        if let Direction::Down { .. } = self.direction {
            self.ends.whole.store(true, Ordering::Release);
        }
    }

    fn broke_off(&self) {
        let mark = match self.direction {
            Direction::Down { .. } => &self.ends.cut,
            Direction::Up => &self.ends.abandoned,
        };
        mark.store(true, Ordering::Release);
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |data| data.remaining() as u64);
                let count = match self.direction {
                    Direction::Down { .. } => &self.flow.down,
                    Direction::Up => &self.flow.up,
                };
                count.fetch_add(bytes, Ordering::Relaxed);
                if frame.is_trailers() {
                    self.ended(); // nothing comes behind them, and nobody asks whether
                }
                self.mark_end();
            }
            None => self.ended(),
            Some(Err(_)) => self.broke_off(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

//! The internal servers: connections to them, kept, lent and given back.
//!
//! Plain HTTP/1.1. Connections of a server are lent last in, first out, and closed by us after [`IDLE_LIFE`], before
//! the server would; one with an unfinished body is never lent again. Servers are taken in turn; one that cannot be
//! connected to is passed over once. A request is sent a second time only if the first cannot have had an effect. One
//! instance per worker: the locks here are never waited for.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{Method, Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::addr::Destination;
use crate::outcome::Refusal;
use crate::snapshot::Route;
use crate::{clock, socket, workers};

use super::body::Upload;
use super::names::Names;
use super::passage::{Flow, Passage};
use super::pulse::Timer;

/// How long a connection may wait for its next request: Node closes after 5 s, and the client must be first.
const IDLE_LIFE: Duration = Duration::from_secs(4);
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Every server that was ever forwarded to: as many as configurations named.
#[derive(Default)]
pub(super) struct Upstreams {
    servers: Mutex<Vec<Arc<Server>>>,
    turn: AtomicUsize,
    names: Names,
}

struct Server {
    destination: Destination,
    idle: Mutex<Vec<Idle>>,
    swept: AtomicBool,
}

/// A connection that waits for its next request.
struct Idle {
    sender: SendRequest<Upload>,
    timer: Timer,
    since: Instant,
}

/// A connection that is lent.
pub(super) struct Link {
    server: Arc<Server>,
    sender: SendRequest<Upload>,
    /// For the head of a response; kept with the connection, so that a request costs no timer of its own.
    timer: Timer,
    max_idle: usize,
    /// It has served before, so the server may be closing it just now.
    used: bool,
}

/// Why an attempt on one connection failed.
enum Setback {
    /// Nothing was sent: the request as it was.
    Unsent(Box<Request<Upload>>),
    /// The connection broke before an answer.
    Broken,
    /// It is for a reason that another connection would not mend; `None`: the client went away.
    Final(Option<Refusal>),
}

impl Upstreams {
    /// Sends `request` and waits for the head of the response, for as long as the route says after the last piece of
    /// the request was sent. The error `None` means that the client went away.
    pub(super) async fn exchange(
        &self,
        route: &Route,
        request: Request<Upload>,
        passage: &Passage,
    ) -> Result<(Response<Incoming>, Link), Option<Refusal>> {
        let (flow, patience) = (passage.flow.as_deref(), route.timeouts.response_head);
        let mut link = self.lend(route, true).await?;
        let copy = if link.used { copy(&request) } else { None };
        let second = match link.send(request, patience, flow).await {
            Ok(response) => return Ok((response, link)),
            Err(Setback::Final(refusal)) => return Err(refusal),
            Err(Setback::Unsent(request)) => *request,
            Err(Setback::Broken) => copy.ok_or(Refusal::UpstreamBroken)?,
        };
        link = self.lend(route, false).await?;
        match link.send(second, patience, flow).await {
            Ok(response) => Ok((response, link)),
            Err(Setback::Final(refusal)) => Err(refusal),
            Err(Setback::Unsent(_) | Setback::Broken) => Err(Some(Refusal::UpstreamBroken)),
        }
    }

    /// A connection to the server whose turn it is, or to the next one; a kept one only if `kept`.
    async fn lend(&self, route: &Route, kept: bool) -> Result<Link, Refusal> {
        const ATTEMPTS_MAX: usize = 2;
        let upstream = &route.upstream;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = upstream.servers.len().max(1);
        let mut refusal = Refusal::UpstreamUnreachable;
        for attempt in 0..count.min(ATTEMPTS_MAX) {
            let Some(destination) = upstream.servers.get(turn.wrapping_add(attempt) % count) else {
                break;
            };
            let server = self.server(destination);
            let waiting = if kept { server.take() } else { None };
            let (sender, timer, used) = match waiting {
                Some(idle) => (idle.sender, idle.timer, true),
                // Boxed: hardly any request connects, and none should carry the room for it.
                None => match Box::pin(self.connect(destination, route)).await {
                    Ok(sender) => (sender, Timer::default(), false),
                    Err(error) => {
                        refusal = error;
                        continue;
                    }
                },
            };
            return Ok(Link {
                server,
                sender,
                timer,
                max_idle: upstream.max_idle,
                used,
            });
        }
        Err(refusal)
    }

    async fn connect(
        &self,
        destination: &Destination,
        route: &Route,
    ) -> Result<SendRequest<Upload>, Refusal> {
        let Destination { host, port } = destination;
        let addresses = self.names.addresses(host, &route.name_servers).await?;
        let reached = timeout(route.upstream.connect_timeout, reach(addresses, *port)).await;
        let stream = reached.ok().flatten().ok_or(Refusal::UpstreamUnreachable)?;
        let made = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = made.map_err(|_| Refusal::UpstreamUnreachable)?;
        workers::spawn(async move {
            connection.with_upgrades().await.ok(); // whoever waits for an answer on it has the error
        }); // ends when its sender is dropped
        Ok(sender)
    }

    fn server(&self, destination: &Destination) -> Arc<Server> {
        let mut servers = lock(&self.servers);
        if let Some(server) = servers.iter().find(|s| s.destination == *destination) {
            return Arc::clone(server);
        }
        let server = Arc::new(Server {
            destination: destination.clone(),
            idle: Mutex::default(),
            swept: AtomicBool::new(false),
        });
        servers.push(Arc::clone(&server));
        server
    }
}

impl Server {
    /// The kept connection that served last, if it is still good.
    fn take(&self) -> Option<Idle> {
        let mut idle = lock(&self.idle);
        while let Some(last) = idle.pop() {
            if last.since.elapsed() >= IDLE_LIFE {
                idle.clear(); // those below have waited longer
                return None;
            }
            if !last.sender.is_closed() {
                return Some(last);
            }
        }
        None
    }

    /// Closes what has waited for too long, until nothing waits.
    async fn sweep(self: Arc<Self>) {
        loop {
            sleep(SWEEP_EVERY).await;
            let mut idle = lock(&self.idle);
            idle.retain(|idle| idle.since.elapsed() < IDLE_LIFE && !idle.sender.is_closed());
            if idle.is_empty() {
                self.swept.store(false, Ordering::Relaxed);
                return;
            }
        }
    }
}

impl Link {
    async fn send(
        &mut self,
        request: Request<Upload>,
        patience: Duration,
        flow: Option<&Flow>,
    ) -> Result<Response<Incoming>, Setback> {
        let Self { sender, timer, .. } = self;
        let answer = async {
            if sender.ready().await.is_err() {
                return Err(Setback::Unsent(Box::new(request)));
            }
            let answer = sender.try_send_request(request).await;
            answer.map_err(|mut error| match error.take_message() {
                Some(request) => Setback::Unsent(Box::new(request)),
                None => Setback::Broken,
            })
        };
        let (mut answer, began) = (pin!(answer), clock::now());
        let answered = poll_fn(|cx| {
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(Some(answer));
            }
            let sent = flow.map_or(began, Flow::last_moved);
            timer.poll(cx, sent + patience).map(|()| None)
        });
        match (answered.await, flow.and_then(|flow| flow.fault.get())) {
            (Some(Ok(response)), _) => Ok(response),
            (_, Some(fault)) => Err(Setback::Final(*fault)),
            (Some(Err(setback)), None) => Err(setback),
            (None, None) => Err(Setback::Final(Some(Refusal::UpstreamHeadTimeout))),
        }
    }

    /// Gives the connection back; the response must have been read to its end, and the request sent to its end.
    pub(super) fn release(self) {
        if self.sender.is_closed() {
            return;
        }
        let mut idle = lock(&self.server.idle);
        if idle.len() >= self.max_idle {
            return;
        }
        idle.push(Idle {
            sender: self.sender,
            timer: self.timer,
            since: clock::now(),
        });
        if !self.server.swept.swap(true, Ordering::Relaxed) {
            workers::spawn(Arc::clone(&self.server).sweep()); // ends by itself soon after the last request
        }
    }
}

/// The same request once more, if sending it twice is the same as sending it once (RFC 9110 section 9.2.2).
fn copy(request: &Request<Upload>) -> Option<Request<Upload>> {
    let idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
    );
    if !idempotent || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Upload::NONE);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// To the first of `addresses` that takes it.
async fn reach(addresses: Vec<IpAddr>, port: u16) -> Option<TcpStream> {
    for address in addresses {
        if let Ok(stream) = socket::connect(SocketAddr::new(address, port)).await {
            return Some(stream);
        }
    }
    None
}

/// No code that panics runs under these locks, so a poisoned one is as good as new.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

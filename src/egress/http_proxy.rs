//! The HTTP door: CONNECT and absolute-form requests (RFC 9110 section 9.3.6, RFC 9112 section 3.2.2).
//!
//! hyper reads the head; each request becomes an ask and walks the corridor as a task of its own, which owns a session.
//! An answer to CONNECT leaves in one write, because there are clients that take the first segment for the whole of it.
//! A refusal closes the connection, so that what came behind the request is never taken for another one. What is here
//! keeps no connection to a destination for a second request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{HeaderMap, PROXY_AUTHORIZATION};
use http::{Method, Request, Response};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::identify::Claim;
use super::problem::{Refused, problem};
use super::{Ask, Carried, Door, Egress, HELLO_LIMIT, Reply, gate, outcome};
use crate::addr::{Destination, Peer};
use crate::clock::Id;
use crate::dial::Dialled;
use crate::outcome::Refusal;
use crate::relay::{Flow, relay};
use crate::sessions::Session;
use crate::workers;

mod entry;
mod exchange;
mod head;

use entry::Entry;
use exchange::Counted;
pub(super) use exchange::Exchange;

/// Of a request head; hyper's own least is 8 KiB.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HTTP_PORT: u16 = 80;

type Answer = Response<Either<Full<Bytes>, Counted>>;

/// The HTTP side of a client connection.
struct Client {
    egress: Arc<Egress>,
    session: Session,
    listen: SocketAddr,
    peer: Peer,
}

/// A client that waits for the answer to its CONNECT.
pub(super) struct Tunnel {
    answer: oneshot::Sender<Answer>,
    upgrade: OnUpgrade,
}

/// Serves one connection until it is upgraded or ends.
pub(super) async fn serve(
    egress: Arc<Egress>,
    tcp: TcpStream,
    session: Session,
    listen: SocketAddr,
    peer: Peer,
) {
    let client = Arc::new(Client {
        egress,
        session,
        listen,
        peer,
    });
    let service = service_fn(|request| {
        let client = Arc::clone(&client);
        async move { Ok::<_, Infallible>(client.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HELLO_LIMIT)
        .max_buf_size(HEAD_BYTES_MAX)
        .writev(false)
        .serve_connection(TokioIo::new(Entry::new(tcp)), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let mut leaving = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = client.session.asked_to_leave(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            () = client.session.ended() => return,
        }
    };
    if let Err(error) = ended {
        client.broke_off(&error);
    }
}

impl Client {
    /// Walks one request through the corridor, in a task that outlives the HTTP side of a tunnel.
    async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Answer {
        let id = Id::new();
        let basic = Basic::read(request.headers());
        let client = self.client(basic).await;
        let ask = match client.and_then(|client| self.read(id, client, &request)) {
            Ok(ask) => ask,
            Err(refusal) => {
                let target = request.uri().authority().map_or("", |a| a.as_str());
                self.egress
                    .denied(self.listen, self.peer, Some(id), target, refusal);
                if request.method() == Method::CONNECT {
                    close(hyper::upgrade::on(&mut request), &self.session);
                }
                return problem(id, refusal).map(Either::Left);
            }
        };
        let (answer, answered) = oneshot::channel();
        let reply = match ask.door {
            Door::Connect => Reply::Connect(Tunnel {
                answer,
                upgrade: hyper::upgrade::on(&mut request),
            }),
            _ => Reply::Http(Exchange::new(answer, request, &ask.destination)),
        };
        let (egress, session) = (Arc::clone(&self.egress), self.session.fork());
        workers::spawn(async move { egress.pass(ask, &session, reply).await });
        answered
            .await
            .unwrap_or_else(|_| problem(id, Refusal::Draining).map(Either::Left))
    }

    /// Who is asking.
    async fn client(&self, basic: Option<Basic>) -> Result<Arc<str>, Refusal> {
        let gate = Arc::clone(gate(&self.egress.live.load(), self.listen)?);
        if !gate.http {
            return Err(Refusal::Unsupported);
        }
        let claim = basic.as_ref().map(Basic::claim);
        self.egress.who(&gate, self.peer, claim).await
    }

    fn read(&self, id: Id, client: Arc<str>, request: &Request<Incoming>) -> Result<Ask, Refusal> {
        let (door, destination) = target(request)?;
        Ok(Ask {
            id,
            listen: self.listen,
            peer: self.peer,
            client,
            door,
            destination,
        })
    }

    /// What hyper could not read it has answered itself; it is counted here.
    fn broke_off(&self, error: &hyper::Error) {
        let refusal = if error.is_parse_too_large() {
            Refusal::HeadTooLarge
        } else if error.is_parse() {
            Refusal::Malformed
        } else {
            return; // the client went away, or has been idle
        };
        self.egress
            .denied(self.listen, self.peer, None, "", refusal);
    }
}

/// hyper hands the connection over after any answer to CONNECT, and after a refusal it is ours to close: in a task
/// beside, because the record of the refusal is not to wait for it.
fn close(upgrade: OnUpgrade, session: &Session) {
    let session = session.fork();
    workers::spawn(async move {
        if let Ok(Ok(upgraded)) = timeout(HELLO_LIMIT, upgrade).await {
            // A client that is gone needs no closing.
            TokioIo::new(upgraded).shutdown().await.ok();
        }
        drop(session);
    });
}

/// What is asked for, and through which door.
fn target(request: &Request<Incoming>) -> Result<(Door, Destination), Refusal> {
    let invalid = |_| Refusal::NameInvalid;
    let uri = request.uri();
    if request.method() == Method::CONNECT {
        let authority = uri.authority().ok_or(Refusal::NameInvalid)?.as_str();
        let destination = Destination::parse(authority).map_err(invalid)?;
        return Ok((Door::Connect, destination));
    }
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(Refusal::NotForAProxy);
    };
    match scheme {
        "http" => {}
        "https" => return Err(Refusal::HttpsNeedsConnect),
        _ => return Err(Refusal::Unsupported),
    }
    head::acceptable(request.headers())?;
    let destination = match authority.port() {
        Some(_) => Destination::parse(authority.as_str()),
        None => Destination::parse(&format!("{authority}:{HTTP_PORT}")),
    };
    Ok((Door::Http, destination.map_err(invalid)?))
}

/// `Proxy-Authorization: Basic` (RFC 7617), decoded.
struct Basic {
    decoded: Vec<u8>,
    colon: usize,
}

impl Basic {
    fn read(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(PROXY_AUTHORIZATION)?.to_str().ok()?;
        let (scheme, text) = value.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = BASE64_STANDARD.decode(text.trim()).ok()?;
        let colon = decoded.iter().position(|b| *b == b':')?;
        Some(Self { decoded, colon })
    }

    fn claim(&self) -> Claim<'_> {
        let (user, rest) = self.decoded.split_at(self.colon);
        Claim {
            user,
            password: rest.strip_prefix(b":").unwrap_or_default(),
        }
    }
}

impl Tunnel {
    pub(super) async fn gone(&mut self) {
        self.answer.closed().await;
    }

    pub(super) fn refuse(self, id: Id, refused: Refused, session: &Session) -> Option<u16> {
        // A client that is gone does not read it.
        let answer = problem(id, refused).map(Either::Left);
        self.answer.send(answer).ok()?;
        close(self.upgrade, session);
        Some(refused.refusal.status())
    }

    /// Bytes that came behind the CONNECT are the first to go to the destination.
    pub(super) async fn carry(
        self,
        dialled: Dialled,
        flow: &Flow,
        idle: Duration,
        stop: impl Future<Output = Refusal>,
    ) -> Carried {
        let yes = Response::new(Either::Left(Full::default()));
        if self.answer.send(yes).is_err() {
            return Carried::aborted();
        }
        let Ok(Ok(upgraded)) = timeout(HELLO_LIMIT, self.upgrade).await else {
            return Carried::aborted(); // it went away, or does not read even its answer
        };
        let Ok(parts) = upgraded.downcast::<TokioIo<Entry>>() else {
            return Carried::aborted(); // cannot be: that is what hyper was given
        };
        let (tcp, behind) = parts.io.into_inner().into_parts();
        let early = [&parts.read_buf[..], &behind].concat();
        let end = relay((tcp, &early), dialled.stream, flow, idle, stop).await;
        Carried {
            outcome: outcome(&end),
            status: Some(200),
        }
    }
}

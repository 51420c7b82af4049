//! The way in: from an accepted socket to an answered request.
//!
//! PROXY header, client address, allow-list, TLS, HTTP, and for each request: head, route, allow-list, limit, record,
//! upstream (`pass` reads that part straight down). Nothing is forwarded without an [`Admitted`](crate::audit::Admitted).
//! It dials nobody but the configured upstreams, stores no body, and knows nothing of the way out.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use rustls::server::Acceptor;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;

use crate::addr::Peer;
use crate::audit::Journal;
use crate::limit::Limits;
use crate::outcome::Refusal;
use crate::policy::allow_list::Client;
use crate::record::{self, Who};
use crate::sessions::Session;
use crate::snapshot::{Entrance, Live};
use crate::telemetry::Metrics;
use crate::tls::{self, Certificate, Served};
use crate::wire::proxy_protocol::{self, Read};

mod body;
mod forward;
mod names;
mod pass;
mod passage;
mod pulse;
mod redirect;
mod reply;
mod serve;
mod taking;
mod upgrade;
mod upstream;
mod visitor;

use pulse::{Pulse, Timed};
use reply::last_words;
use serve::Io;
use upstream::Upstreams;
use visitor::{Shown, Visitor, entrance, tls_version};

/// Serves the clients of one worker.
pub struct Ingress {
    live: Live,
    journal: Journal,
    limits: Arc<Limits>,
    metrics: Arc<Metrics>,
    upstreams: Upstreams,
    timers: Timers,
}

/// How long a client connection may take. Timers of requests belong to their routes.
#[derive(Clone, Copy, Debug)]
pub struct Timers {
    /// From accept to the end of the TLS handshake.
    pub handshake: Duration,
    /// For the PROXY header, within `handshake`.
    pub proxy_header: Duration,
    /// From the first byte of a request head to its last.
    pub head: Duration,
    /// Between requests, HTTP/1.
    pub idle: Duration,
    /// Without a request, HTTP/2.
    pub idle_frames: Duration,
    /// Between pings of an HTTP/2 connection.
    pub ping: Duration,
    /// For the answer to a ping.
    pub pong: Duration,
    /// For a client to read our last answer and close.
    pub linger: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            proxy_header: Duration::from_secs(3),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            idle_frames: Duration::from_secs(120),
            ping: Duration::from_secs(30),
            pong: Duration::from_secs(20),
            linger: Duration::from_secs(2),
        }
    }
}

/// How long a write may make no progress before a route has said otherwise.
const STALL_DEFAULT: Duration = Duration::from_secs(60);

/// A record (RFC 8446 section 5.1) with the fatal alert 112 (RFC 6066 section 3), which rustls does not send for us.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

impl Ingress {
    /// One for each worker: what it keeps of upstream connections is not shared.
    pub fn new(
        live: Live,
        journal: Journal,
        limits: Arc<Limits>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Self::timed(live, journal, limits, metrics, Timers::default())
    }

    /// As [`Ingress::new`], with other timers.
    pub fn timed(
        live: Live,
        journal: Journal,
        limits: Arc<Limits>,
        metrics: Arc<Metrics>,
        timers: Timers,
    ) -> Arc<Self> {
        Arc::new(Self {
            live,
            journal,
            limits,
            metrics,
            upstreams: Upstreams::default(),
            timers,
        })
    }

    /// Serves a client that connected to the TLS listener `listen`, until it leaves or must go.
    pub async fn connection(self: Arc<Self>, tcp: TcpStream, session: Session, listen: SocketAddr) {
        let Ok(peer) = tcp.peer_addr().map(Peer::new) else {
            return; // already gone
        };
        // Its room is given back before the connection begins to wait for requests.
        let handshake = Box::pin(self.handshake(tcp, peer, session, listen));
        let entered = timeout(self.timers.handshake, handshake).await;
        let late = (peer.socket().ip(), Refusal::HandshakeTimeout);
        match entered.unwrap_or_else(|_| Err(late.into())) {
            Err(rejected) => {
                let who = rejected.claimed.as_ref().map(Who::Claimed);
                let Rejected {
                    client, refusal, ..
                } = rejected;
                self.turn_away(listen, client, refusal, &rejected.name, who);
            }
            Ok((visitor, io)) if visitor.frames => Box::pin(self.serve_http2(visitor, io)).await,
            Ok((visitor, io)) => Box::pin(self.serve_http1(visitor, io)).await,
        }
    }

    /// Serves a client that connected to the plain listener `listen`: redirects to HTTPS, nothing else.
    pub async fn redirect(
        self: Arc<Self>,
        tcp: TcpStream,
        mut session: Session,
        listen: SocketAddr,
    ) {
        let Ok(peer) = tcp.peer_addr().map(Peer::new) else {
            return; // already gone
        };
        let snapshot = self.live.load();
        let Some(entrance) = entrance(&snapshot, listen).cloned() else {
            return; // the listener was taken away by a reload
        };
        drop(snapshot);
        match self.admit(tcp, peer, &entrance, &mut session).await {
            Ok((tcp, client)) => self.redirect_client(tcp, client, session, listen).await,
            Err((client, refusal)) => self.turn_away(listen, client, refusal, "", None),
        }
    }

    /// From the socket to a connection that carries requests.
    async fn handshake(
        &self,
        tcp: TcpStream,
        peer: Peer,
        mut session: Session,
        listen: SocketAddr,
    ) -> Result<(Arc<Visitor>, Io), Rejected> {
        let unknown = |refusal| Rejected::from((peer.socket().ip(), refusal));
        let occasion = session.occasion(); // before the snapshot: a newer one than this judges it again
        let snapshot = self.live.load();
        let entrance = entrance(&snapshot, listen).cloned();
        drop(snapshot);
        let entrance = entrance.ok_or(unknown(Refusal::PolicyChanged))?;
        let local = tcp
            .local_addr()
            .map_err(|_| unknown(Refusal::HandshakeFailed))?;
        tcp.set_nodelay(true)
            .map_err(|_| unknown(Refusal::HandshakeFailed))?;

        let admitted = self.admit(tcp, peer, &entrance, &mut session).await;
        let (tcp, client) = admitted?;
        let pulse = Pulse::new(self.timers.head, STALL_DEFAULT);
        let timed = Timed::below_tls(tcp, Arc::clone(&pulse));
        let agreed = self.agree(timed, client, &entrance.tls).await?;
        let Agreed {
            mut io,
            certificate,
            shown,
        } = agreed;

        let tls = &mut io.get_mut().1;
        let early = tls.reader().into_first_chunk().map_or(0, <[u8]>::len);
        let frames = tls.alpn_protocol() == Some(b"h2");
        let idle = if frames {
            self.timers.idle_frames
        } else {
            self.timers.idle
        };
        pulse.serve(frames, idle);
        pulse.heard_early(early);
        let visitor = Visitor {
            listen,
            local: local.ip().to_canonical(),
            peer,
            client,
            address: address_value(client),
            tls: tls_version(tls.protocol_version()),
            certificate,
            shown,
            frames,
            pulse,
            session,
            occasion,
            addressed: Mutex::default(),
        };
        Ok((Arc::new(visitor), io))
    }

    /// The handshake itself: what the client asks for decides what it is shown, and what it shows in turn is judged,
    /// also where a session is resumed that began with a judgement of its own.
    async fn agree(
        &self,
        timed: Timed<TcpStream>,
        client: Client,
        served: &Served,
    ) -> Result<Agreed, Rejected> {
        let client = client.address();
        let mut greeting = LazyConfigAcceptor::new(Acceptor::default(), timed);
        let started = match (&mut greeting).await {
            Ok(started) => started,
            Err(_) => {
                let refusal = match greeting.take_io() {
                    Some(timed) => self.no_tls(timed).await,
                    None => Refusal::HandshakeFailed,
                };
                return Err((client, refusal).into());
            }
        };
        let hello = started.client_hello();
        let name: Box<str> = hello.server_name().unwrap_or_default().into();
        let choice = match served.choose(&hello) {
            Ok(choice) => choice,
            Err(refusal) => {
                let alert = Bytes::from_static(&UNRECOGNIZED_NAME);
                self.farewell(started.io, alert).await;
                return Err(Rejected::of(client, refusal, name, None));
            }
        };
        let handshake = started.into_stream(choice.config);
        let (done, claimed) = if served.asks() {
            tls::noting(handshake).await
        } else {
            (handshake.await, None)
        };
        let io = done.map_err(|error| {
            let (refusal, name) = match why(&error) {
                Some(refusal) => (refusal, name.clone()),
                None => (Refusal::HandshakeFailed, Box::default()),
            };
            Rejected::of(client, refusal, name, claimed)
        })?;
        let chain = io.get_ref().1.peer_certificates();
        match served.judge(chain.unwrap_or_default()) {
            Ok(principal) => Ok(Agreed {
                io,
                certificate: choice.certificate,
                shown: principal.map(|p| Box::new(Shown::new(p, served.forwards_chain()))),
            }),
            Err(unbelieved) => {
                if io.get_ref().1.alpn_protocol() != Some(b"h2") {
                    self.farewell(io, last_words(unbelieved.refusal)).await;
                }
                let (refusal, claimed) = (unbelieved.refusal, unbelieved.claimed);
                Err(Rejected::of(client, refusal, name, claimed))
            }
        }
    }

    /// Why the handshake failed. A person who forgot the `s` of `https` is told.
    async fn no_tls(&self, timed: Timed<TcpStream>) -> Refusal {
        let Some(plain) = timed.unmuted() else {
            return Refusal::HandshakeFailed;
        };
        self.farewell(plain, last_words(Refusal::PlainHttp)).await;
        Refusal::PlainHttp
    }

    /// Who it is, whether the listener's list names them, and whether they may have another connection.
    async fn admit(
        &self,
        mut tcp: TcpStream,
        peer: Peer,
        entrance: &Entrance,
        session: &mut Session,
    ) -> Result<(TcpStream, Client), (IpAddr, Refusal)> {
        let mut address = peer.socket().ip();
        if entrance.proxy_protocol_from.contains(address) {
            let told = timeout(self.timers.proxy_header, proxy_header(&mut tcp)).await;
            let told = told.unwrap_or(Err(Refusal::HandshakeTimeout));
            if let Some(source) = told.map_err(|refusal| (address, refusal))? {
                address = source.ip().to_canonical();
            }
        }
        let judged = entrance.list.admit(address).and_then(|client| {
            session.claim(client.address())?;
            Ok((tcp, client))
        });
        judged.map_err(|refusal| (address, refusal))
    }
}

/// A connection over which both sides know of each other what they will.
struct Agreed {
    io: Io,
    /// What the client was shown.
    certificate: Arc<Certificate>,
    shown: Option<Box<Shown>>,
}

/// Who does not get as far as a request, as far as is known.
struct Rejected {
    client: IpAddr,
    refusal: Refusal,
    /// The server name that was asked for.
    name: Box<str>,
    /// Whose certificate was refused, as it says.
    claimed: Option<record::Certificate>,
}

impl Rejected {
    fn of(
        client: IpAddr,
        refusal: Refusal,
        name: Box<str>,
        claimed: Option<record::Certificate>,
    ) -> Self {
        Self {
            client,
            refusal,
            name,
            claimed,
        }
    }
}

impl From<(IpAddr, Refusal)> for Rejected {
    fn from((client, refusal): (IpAddr, Refusal)) -> Self {
        Self::of(client, refusal, Box::default(), None)
    }
}

/// Why a handshake failed, if that was about the client's certificate.
fn why(error: &std::io::Error) -> Option<Refusal> {
    tls::refusal(error.get_ref()?.downcast_ref()?)
}

/// Reads a PROXY header and not a byte more: what follows belongs to TLS.
async fn proxy_header(tcp: &mut TcpStream) -> Result<Option<SocketAddr>, Refusal> {
    let mut header = Vec::with_capacity(128);
    let mut ahead = [0; 256];
    loop {
        let count = tcp.peek(&mut ahead).await.map_err(|_| Refusal::Malformed)?;
        let known = header.len();
        header.extend_from_slice(ahead.get(..count).unwrap_or_default());
        let (taken, source) = match proxy_protocol::read(&header) {
            Ok(Read::Whole { bytes, source }) => (bytes.saturating_sub(known), Some(source)),
            Ok(Read::More) if count > 0 => (count, None),
            Ok(Read::More) | Err(proxy_protocol::Invalid) => return Err(Refusal::Malformed),
        };
        let seen = ahead.get_mut(..taken).unwrap_or_default();
        tcp.read_exact(seen).await.map_err(|_| Refusal::Malformed)?;
        if let Some(source) = source {
            return Ok(source);
        }
    }
}

fn address_value(client: Client) -> HeaderValue {
    let text = client.address().to_string();
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("unknown"))
}

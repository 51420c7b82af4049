//! The way in: from an accepted socket to an answered request.
//!
//! PROXY header, client address, allow-list, TLS, HTTP, and for each request: head, route, allow-list, limit, record,
//! upstream (`pass` reads that part straight down). Nothing is forwarded without an [`Admitted`](crate::audit::Admitted).
//! It dials nobody but the configured upstreams, stores no body, and knows nothing of the way out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderValue;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::addr::Peer;
use crate::audit::Journal;
use crate::limit::Limits;
use crate::outcome::Refusal;
use crate::policy::allow_list::Client;
use crate::record::Who;
use crate::sessions::Session;
use crate::snapshot::{Entrance, Live};
use crate::telemetry::Metrics;
use crate::wire::proxy_protocol::{self, Read};

mod body;
mod corridor;
mod forward;
mod handshake;
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

use upstream::Upstreams;
use visitor::entrance;

/// Serves the clients of one worker.
pub struct Ingress {
    live: Live,
    journal: Journal,
    limits: Arc<Limits>,
    metrics: Arc<Metrics>,
    upstreams: Upstreams,
    timers: Timers,
    /// Room in the corridor.
    strangers: Semaphore,
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
            strangers: Semaphore::new(corridor::STRANGERS_MAX),
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
                let (client, refusal) = (rejected.client, rejected.refusal);
                let who = rejected.claimed.as_ref().map(Who::Claimed);
                self.turn_away(listen, client, refusal, &rejected.name, who);
            }
            Ok(None) => {} // a challenge, answered
            Ok(Some((visitor, io))) if visitor.frames => {
                Box::pin(self.serve_http2(visitor, io)).await;
            }
            Ok(Some((visitor, io))) => Box::pin(self.serve_http1(visitor, io)).await,
        }
    }

    /// Serves a client that connected to the plain listener `listen`: redirects to HTTPS, nothing else.
    pub async fn redirect(
        self: Arc<Self>,
        mut tcp: TcpStream,
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
        let client = match self.client_address(&mut tcp, peer, &entrance).await {
            Ok(client) => client,
            Err((client, refusal)) => return self.turn_away(listen, client, refusal, "", None),
        };
        let challenges = entrance.tls.challenges().filter(|c| c.http_pending());
        let refused = match (admit(client, &entrance, &mut session), challenges) {
            (Ok(client), _) => return self.redirect_client(tcp, client, session, listen).await,
            (Err(Refusal::ClientDenied), Some(challenges)) => match session.claim(client) {
                Ok(()) => self.stranger_http(tcp, client, listen, challenges).await,
                full => full,
            },
            (Err(refusal), _) => Err(refusal),
        };
        if let Err(refusal) = refused {
            self.turn_away(listen, client, refusal, "", None);
        }
    }

    /// Who it is: not judged yet.
    async fn client_address(
        &self,
        tcp: &mut TcpStream,
        peer: Peer,
        entrance: &Entrance,
    ) -> Result<IpAddr, (IpAddr, Refusal)> {
        let mut address = peer.socket().ip();
        if entrance.proxy_protocol_from.contains(address) {
            let told = timeout(self.timers.proxy_header, proxy_header(tcp)).await;
            let told = told.unwrap_or(Err(Refusal::HandshakeTimeout));
            if let Some(source) = told.map_err(|refusal| (address, refusal))? {
                address = source.ip().to_canonical();
            }
        }
        Ok(address)
    }
}

/// Whether the listener's list names them, and whether they may have another connection.
fn admit(address: IpAddr, entrance: &Entrance, session: &mut Session) -> Result<Client, Refusal> {
    let client = entrance.list.admit(address)?;
    session.claim(client.address())?;
    Ok(client)
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

//! Accepting: bind, accept, back off, hand over to the least busy worker.
//!
//! An accept that fails never ends the loop. A listener that is replaced by a reload is bound before the old one is
//! closed, and one that stays is not touched, so no queued connection is lost. Datagrams are received in `datagrams`.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::sessions::{Session, Sessions};
use crate::socket;
use crate::telemetry::{Metrics, Way};
use crate::workers::Crew;

mod datagrams;

pub use datagrams::BoundDatagrams;

/// A bound socket that nobody accepts from yet.
pub struct Bound {
    address: SocketAddr,
    socket: std::net::TcpListener,
}

/// An accepting listener; stops when dropped.
pub struct Listener {
    address: SocketAddr,
    /// Never sent on: the accept loop ends when it is dropped.
    _stop: oneshot::Sender<()>,
}

/// Why an address could not be bound; says what mends it.
#[derive(Debug)]
pub struct BindError {
    address: SocketAddr,
    /// Whether it was to take connections to any address.
    any: bool,
    source: io::Error,
}

/// What a listener hands its connections to, and where it counts them.
#[derive(Clone)]
pub struct Reception {
    pub crew: Crew,
    pub sessions: Sessions,
    pub metrics: Arc<Metrics>,
}

/// How long to wait after an accept failed for want of descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(50);

impl Bound {
    /// Binds `address`; port 0 takes a free one.
    pub fn new(address: SocketAddr) -> Result<Self, BindError> {
        let made = socket::listen(address);
        Self::of(made).map_err(|source| BindError::new(address, source))
    }

    /// As [`Bound::new`], for connections to any address that the firewall hands over (TPROXY).
    pub fn to_any(address: SocketAddr) -> Result<Self, BindError> {
        let made = socket::listen_to_any(address);
        Self::of(made).map_err(|source| BindError {
            any: true,
            ..BindError::new(address, source)
        })
    }

    fn of(made: io::Result<std::net::TcpListener>) -> io::Result<Self> {
        let socket = made?;
        let address = socket.local_addr()?;
        Ok(Self { address, socket })
    }

    /// The bound address, with its real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The socket itself, for whoever accepts on a runtime of its own.
    pub fn into_socket(self) -> std::net::TcpListener {
        self.socket
    }

    /// Starts to accept on worker `seat`; `serve` runs on the worker that a connection was handed to.
    pub fn accept<F, S>(self, way: Way, seat: usize, reception: Reception, serve: S) -> Listener
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(usize, TcpStream, Session) -> F + Clone + Send + 'static,
    {
        let (stop, mut stopped) = oneshot::channel();
        let (crew, address) = (reception.crew.clone(), self.address);
        let seats = crew.len().max(1);
        crew.run_on(seat, async move {
            let Ok(listener) = TcpListener::from_std(self.socket) else {
                tracing::error!(%address, "the listener could not be registered; nothing is accepted on it");
                return;
            };
            loop {
                let accepted = select! {
                    biased;
                    _ = &mut stopped => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((tcp, _)) => hand_over(tcp, way, seat % seats, &reception, serve.clone()),
                    Err(error) if is_peers_doing(&error) => {}
                    Err(error) => {
                        tracing::warn!(%address, %error, "accept failed; trying again");
                        sleep(BACK_OFF).await;
                    }
                }
            }
        });
        Listener {
            address,
            _stop: stop,
        }
    }
}

impl Listener {
    /// The bound address, with its real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Gives the connection to the least busy worker; refuses it when the house is full or leaving.
fn hand_over<F, S>(tcp: TcpStream, way: Way, here: usize, reception: &Reception, serve: S)
where
    F: Future<Output = ()> + Send + 'static,
    S: Fn(usize, TcpStream, Session) -> F + Send + 'static,
{
    let Reception {
        crew,
        sessions,
        metrics,
    } = reception;
    metrics.accepted[way as usize].inc();
    let session = match sessions.enter(way) {
        Ok(session) => session,
        Err(refusal) => return metrics.refused(way, refusal),
    };
    let load = crew.least_busy();
    let there = load.seat();
    if there == here {
        let task = serve(there, tcp, session);
        load.run_owned(task);
        return;
    }
    // A socket is registered with the runtime that accepted it; the other worker registers it anew.
    let Ok(socket) = tcp.into_std() else { return };
    load.run_owned(async move {
        if let Ok(tcp) = TcpStream::from_std(socket) {
            serve(there, tcp, session).await;
        }
    });
}

/// The peer was gone before we looked: no reason to wait.
fn is_peers_doing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

impl BindError {
    fn new(address: SocketAddr, source: io::Error) -> Self {
        let any = false;
        Self {
            address,
            any,
            source,
        }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mend = match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                "another process listens there; stop it or choose another port"
            }
            io::ErrorKind::AddrNotAvailable => "no interface has that address; check `ip address`",
            io::ErrorKind::PermissionDenied if self.any => {
                "taking connections to any address needs CAP_NET_ADMIN; grant it, or set `egress.transparent.mode` to \"redirect\""
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need CAP_NET_BIND_SERVICE; grant it or choose another port"
            }
            _ => "check the address",
        };
        write!(f, "cannot listen on {}: {mend}", self.address)
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

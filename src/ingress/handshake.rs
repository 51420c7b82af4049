//! The TLS handshake: from an admitted socket to a connection on which both sides know of each other what they will.
//!
//! What the client asks for decides what it is shown, and what it shows in turn is judged: by the handshake, and once
//! more behind it, because a resumed session verifies nothing. Whoever is refused for a certificate is told so before
//! the socket is closed. A challenge of a certificate authority is answered and ends here.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use crate::addr::Peer;
use crate::outcome::Refusal;
use crate::policy::allow_list::Client;
use crate::record;
use crate::sessions::Session;
use crate::tls::{self, Certificate, Choice, Served};

use super::pulse::{Pulse, Timed};
use super::reply::last_words;
use super::serve::Io;
use super::visitor::{Shown, Visitor, entrance, tls_version};
use super::{Ingress, STALL_DEFAULT, address_value, admit};

/// Who does not get as far as a request, as far as is known.
pub(super) struct Rejected {
    pub(super) client: IpAddr,
    pub(super) refusal: Refusal,
    /// The server name that was asked for.
    pub(super) name: Box<str>,
    /// Whose certificate was refused, as it says.
    pub(super) claimed: Option<record::Certificate>,
}

/// A connection over which both sides know of each other what they will.
struct Agreed {
    io: Io,
    /// What the client was shown for the name that it asked for.
    certificate: Option<Arc<Certificate>>,
    /// What it has shown.
    shown: Option<Box<Shown>>,
}

/// A record (RFC 8446 section 5.1) with the fatal alert 112 (RFC 6066 section 3), which rustls does not send for us.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

impl Ingress {
    /// From the socket to a connection that carries requests. Nothing comes of one that was a challenge.
    pub(super) async fn handshake(
        &self,
        mut tcp: TcpStream,
        peer: Peer,
        mut session: Session,
        listen: SocketAddr,
    ) -> Result<Option<(Arc<Visitor>, Io)>, Rejected> {
        let unknown = |refusal| Rejected::from((peer.socket().ip(), refusal));
        let occasion = session.occasion(); // before the snapshot: whatever is newer than this judges it again
        let entrance = entrance(&self.live.load(), listen).cloned();
        let entrance = entrance.ok_or(unknown(Refusal::PolicyChanged))?;
        let local = tcp
            .local_addr()
            .map_err(|_| unknown(Refusal::HandshakeFailed))?;
        tcp.set_nodelay(true)
            .map_err(|_| unknown(Refusal::HandshakeFailed))?;

        let address = self.client_address(&mut tcp, peer, &entrance).await?;
        let challenges = entrance.tls.challenges().filter(|c| c.tls_pending());
        let client = match admit(address, &entrance, &mut session) {
            Err(Refusal::ClientDenied) if challenges.is_some() => {
                let refused = |refusal| Rejected::from((address, refusal));
                session.claim(address).map_err(refused)?;
                let answer = self.stranger(tcp, address, listen, &entrance.tls);
                return Box::pin(answer).await.map(|()| None).map_err(refused);
            }
            admitted => admitted.map_err(|refusal| (address, refusal))?,
        };
        let pulse = Pulse::new(self.timers.head, STALL_DEFAULT);
        let timed = Timed::below_tls(tcp, Arc::clone(&pulse));
        let agreed = self.agree(timed, client, listen, &entrance.tls).await?;
        let Some(mut agreed) = agreed else {
            return Ok(None);
        };

        let tls = &mut agreed.io.get_mut().1;
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
            certificate: agreed.certificate,
            shown: agreed.shown,
            hsts: entrance.hsts.clone(),
            frames,
            pulse,
            session,
            occasion,
            addressed: Mutex::default(),
        };
        Ok(Some((Arc::new(visitor), agreed.io)))
    }

    /// The greeting, and what is answered to it.
    async fn agree(
        &self,
        timed: Timed<TcpStream>,
        client: Client,
        listen: SocketAddr,
        served: &Served,
    ) -> Result<Option<Agreed>, Rejected> {
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
        let challenged = self.challenged(started, client, listen, served);
        let Err(started) = challenged.await else {
            return Ok(None);
        };
        let name: Box<str> = {
            let hello = started.client_hello();
            hello.server_name().unwrap_or_default().into()
        };
        let agreed = match served.choose(&started.client_hello()) {
            Ok(choice) => self.finish(started, choice, served).await,
            Err(refusal) => {
                let alert = Bytes::from_static(&UNRECOGNIZED_NAME);
                self.farewell(started.io, alert).await;
                Err((refusal, None))
            }
        };
        let rejected = |(refusal, claimed)| Rejected {
            client,
            refusal,
            name: if refusal == Refusal::HandshakeFailed {
                Box::default() // not about the name
            } else {
                name
            },
            claimed,
        };
        agreed.map(Some).map_err(rejected)
    }

    /// The rest of the handshake, and the judgement of whoever is on the other side.
    async fn finish(
        &self,
        started: StartHandshake<Timed<TcpStream>>,
        choice: Choice,
        served: &Served,
    ) -> Result<Agreed, (Refusal, Option<record::Certificate>)> {
        let handshake = started.into_stream(choice.config).into_fallible();
        let (done, claimed) = if served.asks() {
            tls::noting(handshake).await
        } else {
            (handshake.await, None)
        };
        let io = match done {
            Ok(io) => io,
            Err((error, timed)) => {
                let why = why(&error);
                if why.is_some() {
                    self.farewell(timed, Bytes::new()).await; // closed at once, the alert could get lost
                }
                return Err((why.unwrap_or(Refusal::HandshakeFailed), claimed));
            }
        };
        let chain = io.get_ref().1.peer_certificates();
        match served.judge(chain.unwrap_or_default()) {
            Ok(principal) => Ok(Agreed {
                io,
                certificate: choice.certificate,
                shown: principal.map(|p| Box::new(Shown::new(p, served.forwards_chain()))),
            }),
            Err(unbelieved) => {
                // In HTTP/2 it would take a conversation to say it.
                let last = match io.get_ref().1.alpn_protocol() {
                    Some(b"h2") => Bytes::new(),
                    _ => last_words(unbelieved.refusal),
                };
                self.farewell(io, last).await;
                Err((unbelieved.refusal, unbelieved.claimed))
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
}

impl From<(IpAddr, Refusal)> for Rejected {
    fn from((client, refusal): (IpAddr, Refusal)) -> Self {
        Self {
            client,
            refusal,
            name: Box::default(),
            claimed: None,
        }
    }
}

/// Why a handshake failed, if that was about the client's certificate.
fn why(error: &std::io::Error) -> Option<Refusal> {
    tls::refusal(error.get_ref()?.downcast_ref()?)
}

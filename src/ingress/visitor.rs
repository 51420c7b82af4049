//! One client connection, and everything about it that is worked out once instead of with every request.

use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::HeaderValue;
use http::request;
use rustls::ProtocolVersion;
use tokio::time::sleep;

use crate::addr::{Host, Peer};
use crate::clock;
use crate::outcome::Refusal;
use crate::policy::allow_list::Client;
use crate::record;
use crate::sessions::{Occasion, Session};
use crate::snapshot::{Entrance, Live, Snapshot};
use crate::tls::{Certificate, Principal};
use crate::wire::http::{Authority, authority};

use super::pulse::Pulse;

/// A certificate between that of a client and an authority may end at any time: how often the whole chain is judged.
const CHAIN_AGAIN: Duration = Duration::from_secs(60);

/// A client connection after its handshake.
pub(super) struct Visitor {
    pub(super) listen: SocketAddr,
    /// Our end of the socket: the host of an HTTP/1.0 request that names none.
    pub(super) local: IpAddr,
    pub(super) peer: Peer,
    pub(super) client: Client,
    /// The client address, for the forwarded fields.
    pub(super) address: HeaderValue,
    pub(super) tls: &'static str,
    /// What it was shown for the server name that it asked for. Who asked for none would be shown the same on every
    /// connection: it is served every host on this one.
    pub(super) certificate: Option<Arc<Certificate>>,
    /// What it has shown.
    pub(super) shown: Option<Box<Shown>>,
    /// `Strict-Transport-Security`, for answers that have none.
    pub(super) hsts: Option<HeaderValue>,
    /// It speaks HTTP/2.
    pub(super) frames: bool,
    pub(super) pulse: Arc<Pulse>,
    pub(super) session: Session,
    /// When it was last judged.
    pub(super) occasion: Occasion,
    /// Whom the last request was addressed to: hardly ever another one.
    pub(super) addressed: Mutex<Option<(Box<str>, Addressed)>>,
}

/// Whom a request is addressed to.
#[derive(Clone)]
pub(super) struct Addressed {
    pub(super) authority: Arc<Authority>,
    /// It should have come on another connection: see [`Served::misdirected`](crate::tls::Served::misdirected).
    pub(super) misdirected: bool,
}

impl Visitor {
    /// Whom a request of this connection is addressed to, judged by the certificates of `live` if it is somebody new.
    pub(super) fn addressed(
        &self,
        parts: &request::Parts,
        live: &Live,
    ) -> Result<Addressed, Refusal> {
        let Some(text) = authority(parts)? else {
            let host = Host::Address(self.local).to_string();
            return Ok(Addressed {
                authority: Arc::new(Authority::parse(&host)?),
                misdirected: false,
            });
        };
        let mut last = self
            .addressed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((written, read)) = &*last
            && **written == *text
        {
            return Ok(read.clone());
        }
        let authority = Arc::new(Authority::parse(text)?);
        let misdirected = self.certificate.as_ref().is_some_and(|given| {
            entrance(&live.load(), self.listen)
                .is_some_and(|entrance| entrance.tls.misdirected(given, &authority.host))
        });
        let read = Addressed {
            authority,
            misdirected,
        };
        *last = Some((text.into(), read.clone()));
        Ok(read)
    }

    /// Whether a connection of this client would be let in under `snapshot`.
    pub(super) fn welcome(&self, snapshot: &Snapshot) -> Result<(), Refusal> {
        let entrance = entrance(snapshot, self.listen).ok_or(Refusal::PolicyChanged)?;
        let admitted = entrance.list.admit(self.client.address());
        admitted.map_err(|_| Refusal::PolicyChanged)?;
        let principal = self.shown.as_ref().map(|shown| &shown.principal);
        entrance.tls.welcomes(principal)
    }

    /// Ends when this client must be judged again: everyone was told to since `occasion`, or its certificate is over,
    /// or what stands between that and an authority may be.
    pub(super) async fn judged_again(&self, occasion: Occasion) -> Occasion {
        let over = async {
            match &self.shown {
                None => pending().await,
                Some(shown) => {
                    // Its last second is still its own.
                    let end = Duration::from_secs(shown.principal.expires().saturating_add(1));
                    let now = Duration::from_nanos(clock::wall_ns());
                    sleep(end.saturating_sub(now).min(CHAIN_AGAIN)).await;
                }
            }
        };
        tokio::select! {
            newer = self.session.judged_again(occasion) => newer,
            () = over => occasion,
        }
    }

    /// Whose certificate was verified, as it is recorded.
    pub(super) fn principal(&self) -> Option<&record::Certificate> {
        self.shown.as_ref().map(|shown| shown.principal.record())
    }
}

/// The certificate that a client has shown, and what the upstream is told of it (RFC 9440).
pub(super) struct Shown {
    pub(super) principal: Principal,
    /// `Client-Cert`
    pub(super) leaf: HeaderValue,
    /// `Client-Cert-Chain`
    pub(super) chain: Option<HeaderValue>,
}

impl Shown {
    pub(super) fn new(principal: Principal, with_chain: bool) -> Self {
        let value = |text: String| HeaderValue::try_from(text).ok(); // base64, colons and commas: always one
        let chain = with_chain.then(|| principal.client_cert_chain()).flatten();
        Self {
            leaf: value(principal.client_cert()).unwrap_or(HeaderValue::from_static("::")),
            chain: chain.and_then(value),
            principal,
        }
    }
}

/// The entrance behind a listening address.
pub(super) fn entrance(snapshot: &Snapshot, listen: SocketAddr) -> Option<&Arc<Entrance>> {
    let mut entrances = snapshot.ingress.iter();
    entrances.find(|entrance| {
        entrance.listen.contains(&listen) || entrance.redirect_http.contains(&listen)
    })
}

/// The protocol version as it is recorded.
pub(super) fn tls_version(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLS",
    }
}

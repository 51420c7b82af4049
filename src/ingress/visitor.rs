//! One client connection, and everything about it that is worked out once instead of with every request.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use http::header::HeaderValue;
use http::request;
use rustls::ProtocolVersion;

use crate::addr::{Host, Peer};
use crate::outcome::Refusal;
use crate::policy::allow_list::Client;
use crate::sessions::Session;
use crate::snapshot::{Entrance, Snapshot};
use crate::wire::http::{Authority, authority};

use super::pulse::Pulse;

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
    /// It speaks HTTP/2.
    pub(super) frames: bool,
    pub(super) pulse: Arc<Pulse>,
    pub(super) session: Session,
    /// Under which snapshot it was let in.
    pub(super) generation: u64,
    /// The authority of the last request, as it was written and as it was read: hardly ever another one.
    pub(super) addressed: Mutex<Option<(Box<str>, Arc<Authority>)>>,
}

impl Visitor {
    /// Whom a request of this connection is addressed to.
    pub(super) fn authority(&self, parts: &request::Parts) -> Result<Arc<Authority>, Refusal> {
        let Some(text) = authority(parts)? else {
            let host = Host::Address(self.local).to_string();
            return Authority::parse(&host).map(Arc::new);
        };
        let mut last = self
            .addressed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((written, read)) = &*last
            && **written == *text
        {
            return Ok(Arc::clone(read));
        }
        let read = Arc::new(Authority::parse(text)?);
        *last = Some((text.into(), Arc::clone(&read)));
        Ok(read)
    }

    /// Whether a connection of this client would be let in under `snapshot`.
    pub(super) fn welcome(&self, snapshot: &Snapshot) -> Result<(), Refusal> {
        let entrance = entrance(snapshot, self.listen).ok_or(Refusal::PolicyChanged)?;
        let admitted = entrance.list.admit(self.client.address());
        admitted.map(drop).map_err(|_| Refusal::PolicyChanged)
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

//! What one listener serves TLS with, and what a connection is told before its handshake goes on.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, NoServerSessionStorage};
use rustls::version::{TLS12, TLS13};

use crate::addr::Host;
use crate::config::typed::{ClientAuth, TlsVersion};
use crate::outcome::Refusal;

use super::asking::Believed;
use super::client_auth::{Trust, Unbelieved};
use super::names::Names;
use super::principal::Principal;
use super::tickets::{TicketKeys, Ticketer};
use super::{Certificate, Challenges, Given, Ordered};

/// What one listener serves TLS with. Its certificates, and whom it believes, are replaced in place; everything else is
/// as configured.
pub struct Served {
    names: Arc<Names>,
    manner: Manner,
    asks: Option<Asks>,
    front: ArcSwap<Front>,
    acme: Acme,
}

/// What is ordered for a listener, and what a certificate authority may ask of it meanwhile.
pub(super) struct Acme {
    pub(super) ordered: Vec<Ordered>,
    pub(super) challenges: Arc<Challenges>,
}

/// What all configurations of a listener have in common.
pub(super) struct Manner {
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) min_version: TlsVersion,
    pub(super) tickets: Arc<TicketKeys>,
}

/// A listener that asks its clients for certificates.
pub(super) struct Asks {
    pub(super) auth: ClientAuth,
    pub(super) believed: Arc<Believed>,
}

/// The configuration in use, and who was believed when it was made.
struct Front {
    config: Arc<ServerConfig>,
    trust: Option<Arc<Trust>>,
}

/// How the handshake with one client goes on.
pub struct Choice {
    pub config: Arc<ServerConfig>,
    /// What the client is shown for the name that it asked for. `None` if it asked for none.
    pub certificate: Option<Arc<Certificate>>,
}

impl Served {
    pub(super) fn new(
        names: Arc<Names>,
        manner: Manner,
        asks: Option<Asks>,
        acme: Acme,
    ) -> Result<Self, rustls::Error> {
        let trust = asks.as_ref().map(|asks| asks.believed.load_full());
        let front = ArcSwap::from_pointee(manner.front(&names, trust)?);
        Ok(Self {
            names,
            manner,
            asks,
            front,
            acme,
        })
    }

    /// By what the client said first.
    ///
    /// # Errors
    /// [`Refusal::ServerNameUnknown`] if no certificate is for the name, and such clients are refused; also while there
    /// is no certificate at all, or one for this very name has been ordered and has not come yet.
    pub fn choose(&self, hello: &ClientHello<'_>) -> Result<Choice, Refusal> {
        let name = hello.server_name();
        if name.is_some_and(|name| !self.names.knows(name) && self.awaits(name)) {
            return Err(Refusal::ServerNameUnknown);
        }
        let found = self.names.find(name, hello.signature_schemes());
        let found = found.ok_or(Refusal::ServerNameUnknown)?;
        Ok(Choice {
            config: self.config().map_err(|_| Refusal::HandshakeFailed)?,
            certificate: name.is_some().then_some(found),
        })
    }

    /// The configuration of a handshake that begins now.
    pub(super) fn config(&self) -> Result<Arc<ServerConfig>, rustls::Error> {
        let front = self.front.load();
        let Some(asks) = &self.asks else {
            return Ok(Arc::clone(&front.config));
        };
        let trust = asks.believed.load_full();
        if front.trust.as_ref().is_some_and(|t| Arc::ptr_eq(t, &trust)) {
            return Ok(Arc::clone(&front.config));
        }
        // Once for each change; two workers that do it at once come to the same.
        let made = self.manner.front(&self.names, Some(trust))?;
        let config = Arc::clone(&made.config);
        self.front.store(Arc::new(made));
        Ok(config)
    }

    /// Whether clients are asked for a certificate.
    pub fn asks(&self) -> bool {
        self.asks.is_some()
    }

    /// Whether the upstream gets the whole chain that a client has sent.
    pub fn forwards_chain(&self) -> bool {
        self.asks.as_ref().is_some_and(|a| a.auth.forward_chain)
    }

    /// Who shows this chain, judged by whom is believed at this moment: after every handshake, full or resumed.
    ///
    /// # Errors
    /// Whoever would not be let in with it.
    pub fn judge(
        &self,
        chain: &[CertificateDer<'static>],
    ) -> Result<Option<Principal>, Unbelieved> {
        match &self.asks {
            Some(asks) => asks.believed.load().judge(chain),
            None => Ok(None),
        }
    }

    /// Whether the client, a principal or nobody known, would be let in at this moment.
    pub fn welcomes(&self, principal: Option<&Principal>) -> Result<(), Refusal> {
        if self.asks.is_none() && principal.is_some() {
            return Err(Refusal::PolicyChanged); // nobody vouches for it any more
        }
        let judged = self.judge(principal.map_or(&[][..], Principal::chain));
        judged.map(drop).map_err(|unbelieved| unbelieved.refusal)
    }

    /// Whether a certificate for `name` has been ordered and has not come yet.
    fn awaits(&self, name: &str) -> bool {
        let empty = self.acme.ordered.iter().filter(|o| o.slot.load().is_none());
        empty.into_iter().any(|ordered| ordered.is_for(name))
    }

    /// The certificates that are ordered for it.
    pub fn ordered(&self) -> &[Ordered] {
        &self.acme.ordered
    }

    /// Whether a certificate authority may ask something at present by a handshake, or by a request on port 80.
    pub fn challenges(&self) -> Option<&Challenges> {
        (!self.acme.ordered.is_empty()).then_some(&*self.acme.challenges)
    }

    /// What answers a handshake that is a challenge.
    pub fn answer(&self, hello: &ClientHello<'_>) -> Option<Given<Arc<ServerConfig>>> {
        self.challenges()?.answer_tls(hello)
    }

    /// Whether a request for `host` should have come on another connection: its certificate, `given`, is not for that
    /// host, but another one here is (RFC 9110 section 15.5.20).
    pub fn misdirected(&self, given: &Certificate, host: &Host) -> bool {
        !given.covers(host) && self.names.covers(host)
    }

    /// Every certificate there is now, in the configuration's order.
    pub fn certificates(&self) -> Vec<Arc<Certificate>> {
        self.names.all()
    }
}

impl Manner {
    fn front(&self, names: &Arc<Names>, trust: Option<Arc<Trust>>) -> Result<Front, rustls::Error> {
        let versions = match self.min_version {
            TlsVersion::V12 => &[&TLS13, &TLS12][..],
            TlsVersion::V13 => &[&TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(versions)?;
        let builder = match &trust {
            Some(trust) => builder.with_client_cert_verifier(trust.verifier()),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::clone(names) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Tickets alone: a session kept here would be known to one listener of one process, until the next reload, and
        // by nothing but its number to whoever was believed when it began.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let mark = trust.as_ref().map_or_else(Vec::new, |trust| trust.mark());
        config.ticketer = Ticketer::new(Arc::clone(&self.tickets), mark);
        config.send_tls13_tickets = TICKETS;
        config.max_early_data_size = 0;
        let config = Arc::new(config);
        Ok(Front { config, trust })
    }
}

/// Tickets for each TLS 1.3 connection.
const TICKETS: usize = 1;

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

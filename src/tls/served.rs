//! What one listener serves TLS with, and what a connection is told before its handshake goes on.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::ClientHello;

use crate::addr::Host;
use crate::outcome::Refusal;

use super::names::Names;
use super::{Certificate, Challenges, Given, Ordered};

/// What one listener serves TLS with. Its certificates are replaced in place; everything else is as configured.
#[derive(Debug)]
pub struct Served {
    pub(super) config: Arc<ServerConfig>,
    pub(super) names: Arc<Names>,
    pub(super) ordered: Vec<Ordered>,
    pub(super) challenges: Arc<Challenges>,
}

/// How the handshake with one client goes on.
pub struct Choice {
    pub config: Arc<ServerConfig>,
    /// What the client is shown for the name that it asked for. `None` if it asked for none.
    pub certificate: Option<Arc<Certificate>>,
}

impl Served {
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
            config: Arc::clone(&self.config),
            certificate: name.is_some().then_some(found),
        })
    }

    /// Whether a certificate for `name` has been ordered and has not come yet.
    fn awaits(&self, name: &str) -> bool {
        let empty = self.ordered.iter().filter(|o| o.slot.load().is_none());
        empty.into_iter().any(|ordered| ordered.is_for(name))
    }

    /// The certificates that are ordered for it.
    pub fn ordered(&self) -> &[Ordered] {
        &self.ordered
    }

    /// Whether a certificate authority may ask something at present by a handshake, or by a request on port 80.
    pub fn challenges(&self) -> Option<&Challenges> {
        (!self.ordered.is_empty()).then_some(&*self.challenges)
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

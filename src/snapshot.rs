//! The configuration in force: compiled, immutable, replaced whole.
//!
//! Loaded once per connection and once per request or ask, never held across a body. No counter lives in it.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::addr::PrefixSet;
use crate::config::typed::{Config, OnFailure, Timeouts, Upstream};
use crate::limit::Quota;
use crate::policy::allow_list::AllowList;
use crate::policy::destination::Destinations;
use crate::policy::route::Routes;
use crate::record::Redaction;

/// One compiled configuration.
pub struct Snapshot {
    /// Counts from 1, one more with each reload.
    pub generation: u64,
    pub ingress: Vec<Arc<Entrance>>,
    pub egress: Option<Arc<Exit>>,
    pub redaction: Arc<Redaction>,
    /// What it was compiled from.
    pub config: Config,
}

/// An ingress listener, compiled.
pub struct Entrance {
    pub listen: Vec<SocketAddr>,
    pub redirect_http: Vec<SocketAddr>,
    pub tls: Arc<rustls::ServerConfig>,
    pub proxy_protocol_from: PrefixSet,
    pub list: AllowList,
    pub quotas: Vec<Quota>,
    pub routes: Routes,
    /// By the place that [`Routes::find`] names.
    pub way: Vec<Arc<Route>>,
}

/// A route, compiled.
pub struct Route {
    /// For the record: first host and path, as in `tools.example.com/api/`.
    pub name: Box<str>,
    pub list: AllowList,
    pub quotas: Vec<Quota>,
    pub upstream_name: Arc<str>,
    pub upstream: Arc<Upstream>,
    pub timeouts: Timeouts,
    pub max_body: Option<u64>,
    pub on_failure: OnFailure,
}

/// The egress part, compiled.
pub struct Exit {
    pub listeners: Vec<Arc<Gate>>,
    pub forwards: Vec<Arc<Forward>>,
    pub destinations: Destinations,
}

/// An egress listener, compiled.
pub struct Gate {
    pub listen: SocketAddr,
    pub http: bool,
    pub socks5: bool,
    pub clients: Vec<GateClient>,
}

/// Who may use a [`Gate`].
pub struct GateClient {
    pub name: Arc<str>,
    pub from: PrefixSet,
    pub password: Option<crate::config::typed::Password>,
}

/// A named forward, compiled.
pub struct Forward {
    pub name: Arc<str>,
    pub listen: SocketAddr,
    pub from: PrefixSet,
    pub to: crate::addr::Destination,
    /// Allows `to`, and the addresses given beside it.
    pub destinations: Destinations,
}

/// The snapshot in force; cheap to clone.
#[derive(Clone)]
pub struct Live(Arc<ArcSwap<Snapshot>>);

impl Live {
    /// Puts the first snapshot in force.
    pub fn new(snapshot: Snapshot) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(snapshot)))
    }

    /// The one in force now.
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    /// Replaces it.
    pub fn replace(&self, snapshot: Snapshot) {
        self.0.store(Arc::new(snapshot));
    }
}

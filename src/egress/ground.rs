//! What the corridor stands on: the resolver and the set of our own addresses.
//!
//! Both follow the snapshot. The resolver, and with it its cache, is made anew with each generation, so that changed
//! name servers count at once; our own addresses are also read again every few seconds, because interfaces change
//! without a reload.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::config::typed::{Config, Egress};
use crate::outcome::Refusal;
use crate::policy::address::Own;
use crate::resolve::Resolver;
use crate::snapshot::Snapshot;
use crate::socket::fixed::local_addresses;

/// How old the list of local addresses may be.
const LOCAL_AGE_MAX: Duration = Duration::from_secs(5);

/// The ground of one worker.
#[derive(Default)]
pub(super) struct Grounds(Mutex<Option<(u64, Instant, Ground)>>);

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Ground {
    resolver: Option<Arc<Resolver>>,
    pub(super) own: Arc<Own>,
}

impl Grounds {
    /// For the configuration in force.
    pub(super) fn of(&self, snapshot: &Snapshot) -> Ground {
        let now = clock::now();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kept.take().filter(|(g, ..)| *g == snapshot.generation);
        let (made, ground) = match known {
            Some((_, made, ground)) if now.duration_since(made) < LOCAL_AGE_MAX => (made, ground),
            Some((_, _, ground)) => (now, ground.looked_again(&snapshot.config)),
            None => (now, Ground::new(&snapshot.config)),
        };
        *kept = Some((snapshot.generation, made, ground.clone()));
        ground
    }
}

impl Ground {
    fn new(config: &Config) -> Self {
        let own = Arc::new(own(config, HashSet::new()));
        let resolver = None;
        Self { resolver, own }.looked_again(config)
    }

    /// With the addresses that the machine has now. If they cannot be read, those known before still count.
    /// If there was no resolver, there may be one now.
    fn looked_again(mut self, config: &Config) -> Self {
        self.resolver = self.resolver.or_else(|| resolver(config));
        match local_addresses() {
            Ok(local) => Self {
                own: Arc::new(own(config, local)),
                ..self
            },
            Err(error) => {
                tracing::warn!(%error, "the addresses of this machine cannot be read");
                self
            }
        }
    }

    /// The resolver, if a name server is known.
    pub(super) fn resolver(&self) -> Result<&Resolver, Refusal> {
        self.resolver.as_deref().ok_or(Refusal::ResolveFailed)
    }
}

fn resolver(config: &Config) -> Option<Arc<Resolver>> {
    let servers = config.egress.as_ref().map(|e| e.resolvers.as_slice());
    match Resolver::new(servers.unwrap_or_default()) {
        Ok(resolver) => Some(Arc::new(resolver)),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, cause, "names cannot be resolved; set `egress.resolver.servers` or mend /etc/resolv.conf");
            None
        }
    }
}

/// `local`, the fixed and advertised addresses and all that we listen on; the doors of egress and administration.
pub fn own(config: &Config, local: HashSet<IpAddr>) -> Own {
    let doors = match &config.egress {
        Some(egress) => doors(egress).chain([config.admin.listen]).collect(),
        None => vec![config.admin.listen],
    };
    let entrances = config
        .ingress
        .iter()
        .flat_map(|i| i.listen.iter().chain(&i.redirect_http));
    let listening = entrances.chain(&doors).map(|socket| socket.ip());
    let fixed = config.egress.iter().flat_map(|egress| {
        let v4 = [egress.fixed_v4, egress.advertised_v4].map(|a| a.map(IpAddr::V4));
        let v6 = [egress.fixed_v6, egress.advertised_v6].map(|a| a.map(IpAddr::V6));
        v4.into_iter().chain(v6).flatten()
    });
    let addresses = listening
        .filter(|ip| !ip.is_unspecified())
        .chain(fixed)
        .chain(local)
        .map(|ip| ip.to_canonical())
        .collect();
    let synthetic = config.egress.iter().flat_map(|e| &e.transparent);
    let synthetic = synthetic.flat_map(|t| t.synthetic.nets());
    Own {
        addresses,
        doors,
        synthetic: synthetic.collect(),
    }
}

fn doors(egress: &Egress) -> impl Iterator<Item = SocketAddr> {
    let gates = egress.listeners.iter().map(|l| l.listen);
    let forwards = egress.forwards.iter().map(|f| f.listen);
    let transparent = egress.transparent.iter();
    let transparent = transparent.flat_map(|t| t.listen.iter().chain(&t.dns_listen));
    gates.chain(forwards).chain(transparent.copied())
}

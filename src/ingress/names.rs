//! Addresses of upstream hosts.
//!
//! An upstream is named by the operator, so no egress policy judges it. Names go to the same name servers as those of
//! data sources, never to getaddrinfo; `localhost` is what it says. Answers are the resolver's to keep. One instance
//! per worker.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::addr::{Families, Host};
use crate::outcome::Refusal;
use crate::resolve::Resolver;

/// The resolver, once a name was met.
#[derive(Default)]
pub(super) struct Names(Mutex<Option<Asked>>);

struct Asked {
    servers: Arc<[SocketAddr]>,
    resolver: Arc<Resolver>,
}

impl Names {
    /// The addresses of `host`, in the order to try; `servers` as in `egress.resolver`.
    pub(super) async fn addresses(
        &self,
        host: &Host,
        servers: &Arc<[SocketAddr]>,
    ) -> Result<Vec<IpAddr>, Refusal> {
        match host {
            Host::Address(address) => Ok(vec![*address]),
            Host::Name(name) if &**name == "localhost" => {
                Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
            }
            Host::Name(name) => {
                let resolver = self.resolver(servers)?;
                let found = resolver.resolve(name, Families::BOTH).await;
                found.map_err(|refusal| {
                    tracing::warn!(
                        upstream = &**name,
                        reason = refusal.code(),
                        "an upstream's name has no address"
                    );
                    Refusal::UpstreamUnreachable
                })
            }
        }
    }

    fn resolver(&self, servers: &Arc<[SocketAddr]>) -> Result<Arc<Resolver>, Refusal> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = &*kept
            && asked.servers == *servers
        {
            return Ok(Arc::clone(&asked.resolver));
        }
        let made = Resolver::new(servers).map(Arc::new).map_err(|error| {
            tracing::error!(%error, "names of upstreams cannot be resolved; set `egress.resolver.servers` or mend /etc/resolv.conf");
            Refusal::UpstreamUnreachable
        })?;
        *kept = Some(Asked {
            servers: Arc::clone(servers),
            resolver: Arc::clone(&made),
        });
        Ok(made)
    }
}

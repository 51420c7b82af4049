//! The facts of a typical request, for benchmarks of the log.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tollgate::addr::Peer;
use tollgate::record::{Redaction, Request, TagKey};

/// What a request is made from.
pub(crate) struct Facts(Redaction);

const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), 41_000);
const LISTENER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 443);

impl Facts {
    pub(crate) fn new(key: TagKey) -> Self {
        let (values, paths) = (["page".to_owned()], ["/invitations/*".to_owned()]);
        Self(Redaction::new(&values, &paths, key))
    }

    pub(crate) fn request(&self) -> Request<'_> {
        Request {
            listener: LISTENER,
            client: CLIENT.ip(),
            peer: Peer::new(CLIENT),
            tls: "TLSv1.3",
            version: "HTTP/1.1",
            method: "GET",
            host: "tools.example.com",
            path: "/api/apps/42f0b1de/versions",
            query: Some("page=1&search=orders"),
            user_agent: Some(
                b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
            ),
            claimed_id: None,
            route: "tools.example.com/",
            upstream: "app",
            redaction: &self.0,
        }
    }
}

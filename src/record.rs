//! What is written down: the facts of a record, bounded and redacted when they become text.
//!
//! A record never holds a body, a cookie, an `Authorization` value or any other header value but `User-Agent`; a
//! query value only if its name is on the list, otherwise a keyed tag in its place; a secret path segment never. The
//! encoder writes the inside of one JSON object, without braces: the journal adds `seq` in front and `crc` behind.

use std::net::{IpAddr, SocketAddr};

use crate::addr::{Destination, Peer};
use crate::clock::Id;
use crate::outcome::{Outcome, Refusal};
use crate::telemetry::Way;

mod encode;
mod json;
mod redact;

pub(crate) use encode::{AFTER_BYTES_MAX, DeniedCount};
pub use redact::{Redaction, TAG_KEY_BYTES, TagKey};

/// No BEFORE, denied or event record is longer, its frame not counted.
pub(crate) const RECORD_BYTES_MAX: usize = 40 * 1024;

/// What must be durable before a request is forwarded or a destination dialled.
#[derive(Clone, Copy, Debug)]
pub enum Before<'a> {
    Dial(&'a Dial<'a>),
    Request(&'a Request<'a>),
}

/// The facts of an ingress request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub listener: SocketAddr,
    pub client: IpAddr,
    pub peer: Peer,
    /// `TLSv1.3` and the like.
    pub tls: &'static str,
    /// `HTTP/1.1`, `HTTP/2.0`.
    pub version: &'static str,
    pub method: &'a str,
    pub host: &'a str,
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub user_agent: Option<&'a [u8]>,
    /// What the client claimed as `X-Request-ID`; never adopted.
    pub claimed_id: Option<&'a [u8]>,
    pub route: &'a str,
    pub upstream: &'a str,
    pub redaction: &'a Redaction,
}

/// The facts of an egress connection.
#[derive(Clone, Copy, Debug)]
pub struct Dial<'a> {
    pub listener: SocketAddr,
    pub peer: Peer,
    /// The name of the egress client.
    pub client: &'a str,
    /// `connect`, `http`, `socks5`, `forward`.
    pub door: &'static str,
    pub destination: &'a Destination,
    /// The name of the rule that allowed it.
    pub rule: &'a str,
    /// True if the rule only reports what it would have denied.
    pub would_deny: bool,
    /// The addresses that may be dialled, in order.
    pub addresses: &'a [IpAddr],
}

/// How an entry ended: the terminal record.
#[derive(Clone, Copy, Debug)]
pub struct After {
    pub outcome: Outcome,
    /// HTTP status that the client got.
    pub status: Option<u16>,
    /// From the client.
    pub bytes_in: u64,
    /// To the client.
    pub bytes_out: u64,
    /// Egress: the dialled address with its port, and our own.
    pub ends: Option<Ends>,
}

/// Both ends of a dialled socket.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// Something refused before it was admitted: nobody waits for its record, and equal ones collapse under a flood.
#[derive(Clone, Copy, Debug)]
pub struct Denied<'a> {
    pub way: Way,
    pub listener: SocketAddr,
    pub client: IpAddr,
    pub refusal: Refusal,
    /// What the client was told as the request id, if it was. Not part of what makes denials equal, nor is `target`.
    pub id: Option<Id>,
    /// Host of a request, destination of a dial, empty if not known yet.
    pub target: &'a str,
}

/// Something that happened to Tollgate itself.
#[derive(Clone, Debug)]
pub struct Event {
    /// A stable snake_case word: `started`, `reloaded`, `drained`, ...
    pub name: &'static str,
    /// Further facts, name and value.
    pub facts: Vec<(&'static str, String)>,
}

impl Before<'_> {
    /// Which way it is.
    pub fn way(&self) -> Way {
        match self {
            Self::Dial(_) => Way::Egress,
            Self::Request(_) => Way::Ingress,
        }
    }
}

impl After {
    /// The end of an entry for which nothing was moved.
    pub(crate) fn nothing_moved(outcome: Outcome) -> Self {
        Self {
            outcome,
            status: None,
            bytes_in: 0,
            bytes_out: 0,
            ends: None,
        }
    }
}

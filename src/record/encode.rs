//! Facts become text: the inside of one JSON object per record, bounded and redacted.
//!
//! The order of the first fields is part of the format, so that a reader finds them without parsing: `kind`, `id`
//! (before and after only), `time`, `way` (not for events). Every field from outside has a bound, named here.

use std::time::Duration;

use ipnet::IpNet;

use super::json::Fields;
use super::{After, Before, Denied, Dial, Event, Request};
use crate::clock::Id;
use crate::outcome::Refusal;
use crate::telemetry::Way;

const METHOD_BYTES_MAX: usize = 32;
const HOST_BYTES_MAX: usize = 256;
const PATH_BYTES_MAX: usize = 2048;
const QUERY_BYTES_MAX: usize = 2048;
const USER_AGENT_BYTES_MAX: usize = 256;
const CLAIMED_ID_BYTES_MAX: usize = 128;
/// Names from the configuration: routes, upstreams, clients, rules.
const NAME_BYTES_MAX: usize = 256;
const ADDRESSES_MAX: usize = 16;
const TARGET_BYTES_MAX: usize = 256;
/// The edge of a tree of 2^64 - 1 records has room.
const FACT_BYTES_MAX: usize = 3 * 1024;
/// All facts of one event, their names not counted.
const FACTS_BYTES_MAX: usize = 32 * 1024;
const FACTS_MAX: usize = 32;
const NOTE_BYTES_MAX: usize = 2048;
/// No terminal record is longer: it holds nothing from outside.
pub(crate) const AFTER_BYTES_MAX: usize = 512;

impl Before<'_> {
    /// Appends the BEFORE record of entry `id`.
    pub(crate) fn encode(&self, id: Id, wall_ns: u64, out: &mut Vec<u8>) {
        let mut fields = head("before", id, wall_ns, self.way(), out);
        match self {
            Self::Request(request) => request.fields(&mut fields),
            Self::Dial(dial) => dial.fields(&mut fields),
        }
        fields.close();
    }
}

impl Request<'_> {
    fn fields(&self, fields: &mut Fields<'_>) {
        fields.shown("listener", self.listener);
        fields.shown("client", self.client);
        fields.shown("peer", self.peer.socket());
        fields.word("tls", self.tls);
        if let Some(principal) = self.principal {
            principal.write("principal", fields);
        }
        fields.word("version", self.version);
        fields.text("method", self.method.as_bytes(), METHOD_BYTES_MAX);
        fields.text("host", without_userinfo(self.host), HOST_BYTES_MAX);
        let mut path = fields.open("path", PATH_BYTES_MAX);
        self.redaction.path(self.path, &mut path);
        path.close();
        if let Some(query) = self.query {
            let mut text = fields.open("query", QUERY_BYTES_MAX);
            self.redaction.query(query, &mut text);
            text.close();
        }
        if let Some(agent) = self.user_agent {
            fields.text("user_agent", agent, USER_AGENT_BYTES_MAX);
        }
        if let Some(claimed) = self.claimed_id {
            fields.text("claimed_id", claimed, CLAIMED_ID_BYTES_MAX);
        }
        fields.text("route", self.route.as_bytes(), NAME_BYTES_MAX);
        fields.text("upstream", self.upstream.as_bytes(), NAME_BYTES_MAX);
    }
}

impl Dial<'_> {
    fn fields(&self, fields: &mut Fields<'_>) {
        fields.shown("listener", self.listener);
        fields.text("client", self.client.as_bytes(), NAME_BYTES_MAX);
        fields.shown("peer", self.peer.socket());
        fields.word("door", self.door);
        fields.shown("destination", self.destination);
        fields.text("rule", self.rule.as_bytes(), NAME_BYTES_MAX);
        if self.would_deny {
            fields.yes("would_deny");
        }
        fields.list("addresses", self.addresses.iter(), ADDRESSES_MAX);
    }
}

impl After {
    /// Appends the terminal record of entry `id`; `lasted` is `None` if nobody knows.
    pub(crate) fn encode(
        &self,
        id: Id,
        wall_ns: u64,
        way: Way,
        lasted: Option<Duration>,
        out: &mut Vec<u8>,
    ) {
        let mut fields = head("after", id, wall_ns, way, out);
        fields.word("outcome", self.outcome.as_str());
        if let Some(refusal) = self.outcome.refusal() {
            reason(refusal, &mut fields);
        }
        if let Some(status) = self.status {
            fields.number("status", status.into());
        }
        let Some(lasted) = lasted else { return };
        fields.number("bytes_in", self.bytes_in);
        fields.number("bytes_out", self.bytes_out);
        fields.number(
            "duration_us",
            u64::try_from(lasted.as_micros()).unwrap_or(u64::MAX),
        );
        if let Some(ends) = self.ends {
            fields.shown("address", ends.remote.ip());
            fields.number("remote_port", ends.remote.port().into());
            fields.shown("local_address", ends.local.ip());
            fields.number("local_port", ends.local.port().into());
        }
        fields.close();
    }
}

impl Denied<'_> {
    /// Appends one denial.
    pub(crate) fn encode(&self, wall_ns: u64, out: &mut Vec<u8>) {
        let mut fields = denied(self.way, wall_ns, out);
        fields.shown("listener", self.listener);
        fields.shown("client", self.client);
        reason(self.refusal, &mut fields);
        if let Some(id) = self.id {
            fields.word("id", id.encode(&mut [0; 36]));
        }
        if !self.target.is_empty() {
            let target = without_userinfo(self.target);
            fields.text("target", target, TARGET_BYTES_MAX);
        }
        if let Some(who) = self.who {
            who.write(&mut fields);
        }
        fields.close();
    }
}

/// Equal denials that were only counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeniedCount {
    pub(crate) way: Way,
    pub(crate) refusal: Refusal,
    /// Listener and client network; `None` for all that found no place of their own.
    pub(crate) whose: Option<(std::net::SocketAddr, IpNet)>,
    pub(crate) count: u64,
    /// When counting began.
    pub(crate) since_ns: u64,
}

impl DeniedCount {
    /// All of one way and one reason in one count.
    pub(crate) fn by_reason(counts: &[Self]) -> Vec<Self> {
        let mut sums: Vec<Self> = Vec::new();
        for count in counts {
            let same = |sum: &&mut Self| (sum.way, sum.refusal) == (count.way, count.refusal);
            if let Some(sum) = sums.iter_mut().find(same) {
                sum.count += count.count;
                sum.since_ns = sum.since_ns.min(count.since_ns);
            } else {
                let whose = None;
                sums.push(Self { whose, ..*count });
            }
        }
        sums
    }

    /// Appends one record for all of them. A client is a network, or one IPv4 address.
    pub(crate) fn encode(&self, wall_ns: u64, out: &mut Vec<u8>) {
        let mut fields = denied(self.way, wall_ns, out);
        match self.whose {
            Some((listener, IpNet::V4(one))) if one.prefix_len() == 32 => {
                fields.shown("listener", listener);
                fields.shown("client", one.addr());
            }
            Some((listener, network)) => {
                fields.shown("listener", listener);
                fields.shown("client", network);
            }
            None => fields.word("client", "other"),
        }
        reason(self.refusal, &mut fields);
        fields.number("count", self.count);
        fields.time("since", self.since_ns);
    }
}

impl Event {
    /// Appends the event.
    pub(crate) fn encode(&self, wall_ns: u64, out: &mut Vec<u8>) {
        let mut fields = Fields::new(out);
        fields.word("kind", "event");
        fields.time("time", wall_ns);
        fields.word("name", self.name);
        if !self.facts.is_empty() {
            fields.object("facts", |inner| {
                let mut left = FACTS_BYTES_MAX;
                for (name, value) in self.facts.iter().take(FACTS_MAX) {
                    left -= inner.text(name, value.as_bytes(), left.min(FACT_BYTES_MAX));
                }
            });
        }
        fields.close();
    }
}

/// A signed checkpoint over all records before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seal<'a> {
    pub(crate) note: &'a str,
}

impl Seal<'_> {
    /// Appends the seal.
    pub(crate) fn encode(&self, wall_ns: u64, out: &mut Vec<u8>) {
        let mut fields = Fields::new(out);
        fields.word("kind", "seal");
        fields.time("time", wall_ns);
        fields.text("note", self.note.as_bytes(), NOTE_BYTES_MAX);
        fields.close();
    }
}

fn head<'a>(
    kind: &'static str,
    id: Id,
    wall_ns: u64,
    way: Way,
    out: &'a mut Vec<u8>,
) -> Fields<'a> {
    let mut fields = Fields::new(out);
    fields.word("kind", kind);
    fields.word("id", id.encode(&mut [0; 36]));
    fields.time("time", wall_ns);
    fields.word("way", way.as_str());
    fields
}

fn denied(way: Way, wall_ns: u64, out: &mut Vec<u8>) -> Fields<'_> {
    let mut fields = Fields::new(out);
    fields.word("kind", "denied");
    fields.time("time", wall_ns);
    fields.word("way", way.as_str());
    fields
}

fn reason(refusal: Refusal, fields: &mut Fields<'_>) {
    fields.word("reason", refusal.code());
    fields.word("fault", refusal.fault().as_str());
}

/// What follows the last `@`: a password may stand before it.
fn without_userinfo(host: &str) -> &[u8] {
    host.rsplit('@').next().unwrap_or_default().as_bytes()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

    use serde_json::Value;

    use super::*;
    use crate::addr::{Destination, Peer};
    use crate::outcome::Outcome;
    use crate::record::{Ends, Redaction, TAG_KEY_BYTES, TagKey};

    const LISTENER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 443);

    fn read(write: impl FnOnce(&mut Vec<u8>)) -> Value {
        let mut out = b"{".to_vec();
        write(&mut out);
        out.push(b'}');
        serde_json::from_slice(&out).unwrap()
    }

    fn request(redaction: &Redaction) -> Request<'_> {
        Request {
            listener: LISTENER,
            client: LISTENER.ip(),
            peer: Peer::new(LISTENER),
            tls: "TLSv1.3",
            principal: None,
            version: "HTTP/1.1",
            method: "GET",
            host: "user:pass@tools.example.com",
            path: "/a/\u{7}\"",
            query: Some("token=hunter2&page=3"),
            user_agent: Some(b"curl/8\xff"),
            claimed_id: None,
            route: "tools.example.com/",
            upstream: "app",
            redaction,
        }
    }

    #[test]
    fn a_request_is_written_without_its_secrets() {
        let redaction = Redaction::new(&["page".into()], &[], TagKey::new(&[1; TAG_KEY_BYTES]));
        let (id, mut out) = (Id::new(), Vec::new());
        Before::Request(&request(&redaction)).encode(id, 0, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(
            !text.contains("hunter2") && !text.contains("pass"),
            "{text}"
        );
        let read: Value = serde_json::from_str(&format!("{{{text}}}")).unwrap();
        assert_eq!(read["host"], "tools.example.com");
        assert_eq!(read["path"], "/a/\u{7}\"");
        assert_eq!(read["user_agent"], "curl/8\u{fffd}");
        assert!(text.starts_with(&format!(
            r#""kind":"before","id":"{id}","time":"1970-01-01T00:00:00.000000000Z","way":"ingress","#
        )));
    }

    #[test]
    fn a_long_request_is_cut_and_bounded() {
        let redaction = Redaction::new(&[], &[], TagKey::new(&[1; TAG_KEY_BYTES]));
        let long = "\u{1}".repeat(100_000);
        let long = long.as_str();
        let mut huge = request(&redaction);
        (huge.method, huge.host, huge.path, huge.route, huge.upstream) =
            (long, long, long, long, long);
        (huge.query, huge.user_agent, huge.claimed_id) =
            (Some(long), Some(long.as_bytes()), Some(long.as_bytes()));
        let mut out = Vec::new();
        Before::Request(&huge).encode(Id::new(), 0, &mut out);
        assert!(out.len() < crate::record::RECORD_BYTES_MAX, "{}", out.len());
        let read = read(|o| o.extend_from_slice(&out));
        assert_eq!(read["truncated"], true);
        assert!(read["path"].as_str().unwrap().ends_with('…'));
    }

    #[test]
    fn a_dial_and_its_end() {
        let destination = Destination::parse("db.example.com:5432").unwrap();
        let addresses = [IpAddr::V6(Ipv6Addr::LOCALHOST); 20];
        let dial = Dial {
            listener: LISTENER,
            peer: Peer::new(LISTENER),
            client: "app",
            door: "socks5",
            destination: &destination,
            rule: "data",
            would_deny: true,
            addresses: &addresses,
        };
        let before = read(|out| Before::Dial(&dial).encode(Id::new(), 1, out));
        assert_eq!(before["destination"], "db.example.com:5432");
        assert_eq!(before["addresses"].as_array().unwrap().len(), ADDRESSES_MAX);
        assert_eq!(
            (&before["would_deny"], &before["truncated"]),
            (&true.into(), &true.into())
        );
        let widest = SocketAddr::new(IpAddr::V6(Ipv6Addr::from([0xff; 16])), u16::MAX);
        let after = After {
            outcome: Outcome::Failed(Refusal::FamilyWithoutAddress),
            status: Some(u16::MAX),
            bytes_in: u64::MAX,
            bytes_out: u64::MAX,
            ends: Some(Ends {
                local: widest,
                remote: widest,
            }),
        };
        let mut out = Vec::new();
        after.encode(
            Id::new(),
            u64::MAX,
            Way::Ingress,
            Some(Duration::MAX),
            &mut out,
        );
        assert!(out.len() <= AFTER_BYTES_MAX, "{}", out.len());
        let after = read(|o| o.extend_from_slice(&out));
        assert_eq!(after["reason"], "family_without_address");
        assert_eq!(after["local_port"], u16::MAX);
    }
}

//! Finds records: reads all segments, oldest first, and gives out the lines that match, byte for byte as stored.
//!
//! Lines that are not whole are passed over; telling of them is for `verify`. It needs no lock and no running process.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Deserialize;

use super::frame;
use super::opening::{self, OpenError};
use super::order::{Placed, order};
use super::scan::Pieces;
use super::verify::{store, stores};
use crate::clock::Id;

/// What a record must be to match: everything that is given.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub id: Option<Id>,
    /// `before`, `after`, `denied`, `event`, `seal`.
    pub kind: Option<String>,
    /// An address, a CIDR, or the name of an egress client.
    pub client: Option<String>,
    /// Host of a request, destination of a dial (with or without its port), target of a denial.
    pub host: Option<String>,
    /// Subject, serial number or fingerprint of a client certificate, verified or only claimed.
    pub certificate: Option<String>,
    /// `served`, `failed`, `refused`, `aborted`, `unknown`.
    pub outcome: Option<String>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
    /// A tag, as [`tag_of`] gives it.
    pub tag: Option<String>,
    /// Records to find at most.
    pub limit: Option<u64>,
}

/// The fields that a filter looks at.
#[derive(Deserialize)]
struct Facts<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    kind: Cow<'a, str>,
    time: Cow<'a, str>,
    client: Option<Cow<'a, str>>,
    peer: Option<SocketAddr>,
    host: Option<Cow<'a, str>>,
    destination: Option<Cow<'a, str>>,
    target: Option<Cow<'a, str>>,
    outcome: Option<Cow<'a, str>>,
    principal: Option<Shown<'a>>,
    claimed: Option<Shown<'a>>,
}

/// What a certificate is found by.
#[derive(Deserialize)]
struct Shown<'a> {
    #[serde(borrow)]
    subject: Cow<'a, str>,
    serial: Cow<'a, str>,
    fingerprint: Cow<'a, str>,
}

/// Gives every record of a log, whose files are in `dirs`, that matches to `found`, without its
/// line feed. Gives how many there were.
pub fn search(
    dirs: &[PathBuf],
    filter: &Filter,
    mut found: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let stores = stores(dirs)?;
    let mut count = 0;
    for Placed { at, name, limit } in order(&stores)?.segments {
        let Some(store) = stores.get(at) else {
            continue;
        };
        let mut pieces = Pieces::open(store, name)?;
        while let Some(piece) = pieces.next()? {
            if filter.limit.is_some_and(|most| count >= most) {
                return Ok(count);
            }
            let ours = frame::check(piece.bytes).is_ok_and(|line| line.seq < limit);
            if piece.whole && ours && filter.matches(piece.bytes) {
                found(piece.bytes)?;
                count += 1;
            }
        }
    }
    Ok(count)
}

/// The tag that stands for `value` in the records of a log; the first of its directories that holds the key counts.
pub fn tag_of(dirs: &[PathBuf], value: &str) -> Result<String, OpenError> {
    let read = |dir: &PathBuf| opening::read_tag_key(&store(dir));
    let (first, others) = dirs.split_first().unzip();
    let first = read(first.unwrap_or(&PathBuf::new()));
    let key = first.or_else(|error| {
        let mut others = others.unwrap_or_default().iter();
        others.find_map(|dir| read(dir).ok()).ok_or(error)
    })?;
    Ok(key.tag(value.as_bytes()))
}

impl Filter {
    fn matches(&self, line: &[u8]) -> bool {
        let tagged = |tag: &String| memchr::memmem::find(line, tag.as_bytes()).is_some();
        self.tag.as_ref().is_none_or(tagged)
            && serde_json::from_slice::<Facts<'_>>(line).is_ok_and(|facts| self.fits(&facts))
    }

    fn fits(&self, facts: &Facts<'_>) -> bool {
        let same = |wanted: &Option<String>, have: Option<&Cow<'_, str>>| {
            wanted
                .as_deref()
                .is_none_or(|w| have.is_some_and(|h| **h == *w))
        };
        same(&self.kind, Some(&facts.kind))
            && same(&self.outcome, facts.outcome.as_ref())
            && self
                .id
                .is_none_or(|id| facts.id.as_deref().and_then(Id::parse) == Some(id))
            && self.client.as_deref().is_none_or(|c| facts.is_from(c))
            && self.host.as_deref().is_none_or(|h| facts.is_to(h))
            && self.certificate.as_deref().is_none_or(|c| facts.shows(c))
            && self.is_within(&facts.time)
    }

    fn is_within(&self, time: &str) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        time.parse::<Timestamp>().is_ok_and(|time| {
            self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|u| time < u)
        })
    }
}

impl Facts<'_> {
    fn is_from(&self, client: &str) -> bool {
        if self.client.as_deref() == Some(client) {
            return true;
        }
        let net = client.parse::<IpNet>().ok();
        let net = net.or_else(|| client.parse::<IpAddr>().ok().map(IpNet::from));
        let Some(net) = net else { return false };
        let held = self
            .client
            .as_deref()
            .map(|c| c.split('/').next().unwrap_or(c));
        let address = held.and_then(|c| c.parse::<IpAddr>().ok());
        address
            .or(self.peer.map(|peer| peer.ip()))
            .is_some_and(|address| net.contains(&address))
    }

    fn shows(&self, certificate: &str) -> bool {
        let mut shown = self.principal.iter().chain(&self.claimed);
        shown.any(|shown| {
            [&shown.subject, &shown.serial, &shown.fingerprint]
                .iter()
                .any(|text| text.eq_ignore_ascii_case(certificate))
        })
    }

    fn is_to(&self, host: &str) -> bool {
        let port = |text: &str| {
            text.strip_prefix(host).is_some_and(|rest| {
                rest.strip_prefix(':')
                    .is_some_and(|p| p.parse::<u16>().is_ok())
            })
        };
        [&self.host, &self.destination, &self.target]
            .into_iter()
            .flatten()
            .any(|text| text.eq_ignore_ascii_case(host) || port(text))
    }
}

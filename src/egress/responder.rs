//! The responder: names that a client may reach get a synthetic address, everything else does not exist.
//!
//! A name is answered if some port of it could be allowed to the client that asks, and if the name servers know it: so
//! the search lists of clients work, and nobody fills the table with names that are none. What was answered is no
//! permission: a connection to the address is judged like every ask. Real addresses are never in an answer, but for
//! names that the configuration forwards.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::identify::expected;
use super::{Egress, families};
use crate::addr::{Host, Peer};
use crate::config::typed::HostPattern;
use crate::dial;
use crate::outcome::Refusal;
use crate::sessions::Session;
use crate::snapshot::{Snapshot, Transparent};
use crate::socket::datagram::Datagram;
use crate::telemetry::Answered;
use crate::wire::dns::{self, Code, Data, Question, STREAM_BYTES_MAX, Unfit, kind};

mod forward;

/// Silence on a connection before it is closed, and the time a message may take.
const STREAM_IDLE: Duration = Duration::from_secs(10);

/// What is done about a question.
enum Verdict {
    Answer(Answered, Box<[u8]>),
    Deny(Refusal),
}

impl Egress {
    /// Answers one datagram. `listen` is the address as it is configured.
    pub async fn question(self: Arc<Self>, datagram: Datagram, listen: SocketAddr) {
        let peer = Peer::new(datagram.peer);
        let answer = self.heard(listen, peer, &datagram.bytes, false).await;
        if let Some(answer) = answer {
            datagram.answer(&answer).await.ok(); // as good as lost on the way
        }
    }

    /// Answers the questions of one connection (RFC 7766), one after another.
    pub async fn questions(
        self: Arc<Self>,
        mut tcp: TcpStream,
        mut session: Session,
        listen: SocketAddr,
    ) {
        let Ok(peer) = tcp.peer_addr().map(Peer::new) else {
            return; // gone before it was served
        };
        let snapshot = self.live.load();
        let exit = snapshot.egress.as_ref();
        let transparent = exit.and_then(|exit| exit.transparent.clone());
        drop(snapshot);
        if transparent.is_none_or(|t| expected(&t.clients, peer).is_none()) {
            // Who is no client may not hold a session by being silent.
            return self.denied(listen, peer, None, "", Refusal::ClientDenied);
        }
        if let Err(refusal) = session.claim(peer.socket().ip()) {
            return self.denied(listen, peer, None, "", refusal);
        }
        tcp.set_nodelay(true).ok(); // a socket that cannot take an option is about to fail by itself
        loop {
            let heard = tokio::select! {
                heard = timeout(STREAM_IDLE, hear(&mut tcp)) => heard,
                () = session.asked_to_leave() => return,
            };
            let Ok(Some(bytes)) = heard else { return };
            let Some(answer) = self.heard(listen, peer, &bytes, true).await else {
                return;
            };
            let Ok(length) = u16::try_from(answer.len()) else {
                return;
            };
            let message = [&length.to_be_bytes()[..], &answer].concat();
            let said = timeout(STREAM_IDLE, tcp.write_all(&message)).await;
            if !matches!(said, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// The answer to a message, if it gets one.
    async fn heard(
        &self,
        listen: SocketAddr,
        peer: Peer,
        bytes: &[u8],
        stream: bool,
    ) -> Option<Box<[u8]>> {
        let snapshot = self.live.load();
        let transparent = snapshot.egress.as_ref()?.transparent.clone()?;
        if !transparent.dns_listen.contains(&listen) {
            return None; // taken away by a reload
        }
        let question = match Question::read(bytes) {
            Ok(question) => question,
            Err(unfit) => {
                self.metrics.questions.count(Answered::Malformed);
                self.denied(listen, peer, None, "", Refusal::Malformed);
                return match unfit {
                    Unfit::Silence => None,
                    // Whoever is no client may not know that anybody listens here.
                    Unfit::Answer(answer) => expected(&transparent.clients, peer).map(|_| answer),
                };
            }
        };
        let asker = Asker {
            egress: self,
            snapshot: &snapshot,
            transparent: &transparent,
            question: &question,
            peer,
            limit: if stream {
                STREAM_BYTES_MAX
            } else {
                question.datagram_bytes()
            },
        };
        match asker.verdict().await {
            Verdict::Answer(answered, answer) => {
                self.metrics.questions.count(answered);
                Some(answer)
            }
            Verdict::Deny(refusal) => {
                let (answered, code) = denial(refusal);
                self.metrics.questions.count(answered);
                self.denied(
                    listen,
                    peer,
                    None,
                    question.name().unwrap_or_default(),
                    refusal,
                );
                Some(question.no(code))
            }
        }
    }
}

/// One question and all that decides it.
struct Asker<'a> {
    egress: &'a Egress,
    snapshot: &'a Snapshot,
    transparent: &'a Transparent,
    question: &'a Question,
    peer: Peer,
    /// Bytes of an answer.
    limit: usize,
}

impl Asker<'_> {
    async fn verdict(&self) -> Verdict {
        let Some(client) = expected(&self.transparent.clients, self.peer) else {
            return Verdict::Deny(Refusal::ClientDenied);
        };
        let counted =
            (self.egress.limits).take(&self.transparent.dns_quotas, self.peer.socket().ip());
        if counted.is_err() {
            return Verdict::Deny(Refusal::RateLimited);
        }
        let name = self.question.name().unwrap_or_default();
        if let Some(address) =
            dns::reversed(name).filter(|a| self.transparent.synthetic.contains(*a))
        {
            return self.reverse(client, address);
        }
        let Ok(host @ Host::Name(_)) = Host::parse(name) else {
            return Verdict::Deny(Refusal::NameInvalid);
        };
        if let Some(to) = &self.transparent.forward_to
            && to.names.iter().any(|pattern| is_in(pattern, &host))
        {
            return self.forward(client, &to.servers).await;
        }
        let Some(exit) = &self.snapshot.egress else {
            return Verdict::Deny(Refusal::PolicyChanged);
        };
        if !exit.destinations.could_allow(client, &host) {
            return Verdict::Deny(Refusal::DestinationDenied);
        }
        self.allowed(client, &host).await
    }

    /// For a name that some rule could allow.
    async fn allowed(&self, client: &Arc<str>, host: &Host) -> Verdict {
        let name = host.as_name().unwrap_or_default();
        let Some(_waiting) = self.egress.names.wait(client) else {
            return Verdict::Deny(Refusal::ClientSessionLimit);
        };
        let ground = self.egress.grounds.of(self.snapshot);
        let resolver = match ground.resolver() {
            Ok(resolver) => resolver,
            Err(refusal) => return Verdict::Deny(refusal),
        };
        if matches!(self.question.kind(), kind::SRV | kind::TXT) {
            return match resolver.records(name, self.question.kind()).await {
                Ok(records) => self.says(&records),
                Err(refusal) => self.unknown(refusal),
            };
        }
        let source = self.snapshot.config.egress.as_ref().map(dial::source);
        let Some(families) = source.map(families) else {
            return Verdict::Deny(Refusal::PolicyChanged);
        };
        match resolver.resolve(name, families).await {
            // Whoever connects is told why it does not work.
            Ok(_) | Err(Refusal::FamilyWithoutAddress) => {}
            Err(refusal) => return self.unknown(refusal),
        }
        let Some(given) = self.egress.names.give(self.snapshot, client, name) else {
            return Verdict::Deny(Refusal::NamesExhausted);
        };
        let address = match self.question.kind() {
            kind::A => Some(IpAddr::V4(given.v4)),
            kind::AAAA => given.v6.map(IpAddr::V6),
            // Among them those that would tell a real address in passing (HTTPS, RFC 9460 section 7.3).
            _ => None,
        };
        let data: Vec<Data> = address.into_iter().map(Data::Address).collect();
        self.says(&data)
    }

    /// For a name that the name servers gave nothing for. That there is no such name is nobody's refusal, and common:
    /// clients try the domains of their search lists.
    fn unknown(&self, refusal: Refusal) -> Verdict {
        match refusal {
            Refusal::NameNotFound => self.absent(),
            refusal => Verdict::Deny(refusal),
        }
    }

    fn absent(&self) -> Verdict {
        Verdict::Answer(Answered::Absent, self.question.no(Code::NoSuchName))
    }

    /// Which name a synthetic address stands for, if the client could have asked for that.
    fn reverse(&self, client: &str, address: IpAddr) -> Verdict {
        let name = self.egress.names.name(self.snapshot, address);
        let destinations = self.snapshot.egress.as_ref().map(|exit| &exit.destinations);
        let may_know = |name: &Arc<str>| {
            let host = Host::Name((&**name).into());
            destinations.is_some_and(|d| d.could_allow(client, &host))
        };
        match name.filter(may_know) {
            None => self.absent(),
            Some(name) if self.question.kind() == kind::PTR => {
                self.says(&[Data::Name((&*name).into())])
            }
            Some(_) => self.says(&[]),
        }
    }

    async fn forward(&self, client: &Arc<str>, servers: &[SocketAddr]) -> Verdict {
        let Some(_waiting) = self.egress.names.wait(client) else {
            return Verdict::Deny(Refusal::ClientSessionLimit);
        };
        match forward::ask(self.question, servers, self.limit).await {
            Some(answer) => Verdict::Answer(Answered::Forwarded, answer),
            None => Verdict::Deny(Refusal::ResolveFailed),
        }
    }

    fn says(&self, data: &[Data]) -> Verdict {
        let ttl = u32::try_from(self.transparent.ttl.as_secs()).unwrap_or(u32::MAX);
        let answer = self.question.answer(Code::NoError, ttl, data, self.limit);
        Verdict::Answer(Answered::Told, answer)
    }
}

/// How a refusal is counted, and what it looks like to the client.
fn denial(refusal: Refusal) -> (Answered, Code) {
    match refusal {
        Refusal::ClientDenied | Refusal::RateLimited => (Answered::Refused, Code::Refused),
        Refusal::DestinationDenied | Refusal::NameInvalid => (Answered::Denied, Code::NoSuchName),
        _ => (Answered::Failed, Code::ServerFailure),
    }
}

fn is_in(pattern: &HostPattern, host: &Host) -> bool {
    match (pattern, host) {
        (HostPattern::Exact(exact), host) => exact == host,
        (HostPattern::Below(zone), Host::Name(name)) => name
            .strip_suffix(&**zone)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        (HostPattern::Below(_), Host::Address(_)) => false,
    }
}

/// The next message of a stream; `None` at its end, or if it is longer than any question.
async fn hear(tcp: &mut TcpStream) -> Option<Vec<u8>> {
    let length = usize::from(tcp.read_u16().await.ok()?);
    if length > dns::QUESTION_BYTES_MAX {
        return None;
    }
    let mut bytes = vec![0; length];
    tcp.read_exact(&mut bytes).await.ok()?;
    Some(bytes)
}

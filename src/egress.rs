//! The way of a connection out, read straight down.
//!
//! Doors differ in how they read an [`Ask`] and how they say yes or no; behind them lies one corridor, [`Egress::pass`]:
//! judge (which may refuse freely), admit, reach, complete with what `reach` returned. One [`Egress`] serves one worker.
//! It holds no pool: each ask has a connection of its own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::addr::{Families, Host, Peer};
use crate::audit::{Admitted, Journal};
use crate::clock::Id;
use crate::config::typed::OnFailure;
use crate::dial;
use crate::limit::{Held, Limits, Slot};
use crate::outcome::{Outcome, Refusal};
use crate::policy::address::{self, Checked};
use crate::policy::destination::Allowed;
use crate::record::{After, Before, Denied, Dial, Ends};
use crate::relay::Flow;
use crate::sessions::Session;
use crate::snapshot::{Gate, Live, Snapshot};
use crate::socket::fixed::{Source, is_here, keep_alive};
use crate::telemetry::{Metrics, Way};
use crate::wire::socks::{VERSION_4, VERSION_5};

mod ask;
mod dialects;
mod ground;
mod http_proxy;
mod identify;
mod linger;
mod named_forward;
mod names;
mod problem;
mod reply;
mod responder;
mod socks;
mod transparent;

pub use ground::own;
pub use names::Names;

use ask::{Ask, Door, gate, permitted};
use ground::{Ground, Grounds};
use identify::{Claim, Verified};
use problem::Refused;
use reply::{Carried, Reply, outcome};
use socks::Version;

/// First byte, SOCKS messages, request head: each within this.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked whether a missing address is back after all.
const LOST_EVERY: Duration = Duration::from_secs(1);

/// The way out, for one worker.
pub struct Egress {
    live: Live,
    journal: Journal,
    limits: Arc<Limits>,
    metrics: Arc<Metrics>,
    names: Arc<Names>,
    grounds: Grounds,
    verified: Verified,
}

/// What the configuration in force says about one ask; the snapshot itself is not held longer.
struct Judged {
    allowed: Allowed,
    checked: Checked,
    source: Source,
    /// How the outside sees it, for the families that are dialled.
    seen_as: [Option<IpAddr>; 2],
    /// Among the tunnels of the client, if they are counted.
    _held: Option<Held>,
    dial_timeout: Duration,
    idle: Duration,
    on_failure: OnFailure,
    generation: u64,
}

impl Egress {
    /// For one worker; all but the grounds are shared by all.
    pub fn new(
        live: Live,
        journal: Journal,
        limits: Arc<Limits>,
        metrics: Arc<Metrics>,
        names: Arc<Names>,
    ) -> Self {
        Self {
            live,
            journal,
            limits,
            metrics,
            names,
            grounds: Grounds::default(),
            verified: Verified::new(),
        }
    }

    /// Serves one accepted connection to its end. `listen` is the address as it is configured; what listens there is
    /// looked up now, so a connection to a listener that was just taken away is closed.
    pub async fn connection(self: Arc<Self>, tcp: TcpStream, session: Session, listen: SocketAddr) {
        let Ok(peer) = tcp.peer_addr().map(Peer::new) else {
            return; // gone before it was served
        };
        // A socket that cannot take an option is about to fail by itself.
        tcp.set_nodelay(true).and_then(|()| keep_alive(&tcp)).ok();
        let snapshot = self.live.load();
        let Some(exit) = &snapshot.egress else { return };
        if let Some(forward) = exit.forwards.iter().find(|f| f.listen == listen) {
            let forward = Arc::clone(forward);
            drop(snapshot);
            return named_forward::serve(&self, tcp, &session, peer, &forward).await;
        }
        if (exit.transparent.iter()).any(|transparent| transparent.listen.contains(&listen)) {
            drop(snapshot);
            return transparent::serve(&self, tcp, &session, listen, peer).await;
        }
        let Some(gate) = exit.listeners.iter().find(|g| g.listen == listen) else {
            return;
        };
        if !identify::is_expected(gate, peer) {
            self.denied(listen, peer, None, "", Refusal::ClientDenied);
            return;
        }
        drop(snapshot);
        self.gate(tcp, session, listen, peer).await;
    }

    /// Tells the protocols of a gate apart by the first byte.
    async fn gate(
        self: Arc<Self>,
        tcp: TcpStream,
        session: Session,
        listen: SocketAddr,
        peer: Peer,
    ) {
        let mut first = [0];
        let peeked = tokio::select! {
            peeked = tokio::time::timeout(HELLO_LIMIT, tcp.peek(&mut first)) => peeked,
            () = session.asked_to_leave() => return, // it has not asked for anything yet
        };
        match (peeked, first) {
            (Ok(Ok(0) | Err(_)), _) => {}
            (Err(_), _) => self.denied(listen, peer, None, "", Refusal::HandshakeTimeout),
            (_, [VERSION_4]) => {
                socks::serve(&self, tcp, &session, listen, peer, Version::Four).await;
            }
            (_, [VERSION_5]) => {
                socks::serve(&self, tcp, &session, listen, peer, Version::Five).await;
            }
            _ => http_proxy::serve(self, tcp, session, listen, peer).await,
        }
    }

    /// The corridor: the one way from an ask to the end of its connection. A client that goes away early is noticed
    /// only once its ask is recorded: asking may have resolved a name.
    async fn pass(&self, ask: Ask, session: &Session, reply: Reply) {
        let judged = match self.judge(&ask).await {
            Ok(judged) => judged,
            Err(refused) => {
                let target = ask.destination.to_string();
                self.denied(ask.listen, ask.peer, Some(ask.id), &target, refused.refusal);
                reply.refuse(ask.id, refused, session).await;
                return;
            }
        };
        let admitted = match self.admit(&ask, &judged).await {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.metrics.refused(Way::Egress, refusal);
                reply.refuse(ask.id, refusal.into(), session).await;
                return;
            }
        };
        let after = self.reach(&ask, &admitted, judged, session, reply).await;
        self.metrics
            .moved(Way::Egress, after.bytes_in, after.bytes_out);
        if let Some(refusal) = after.outcome.refusal() {
            self.metrics.refused(Way::Egress, refusal);
        }
        admitted.complete(after);
    }

    async fn judge(&self, ask: &Ask) -> Result<Judged, Refused> {
        let snapshot = self.live.load();
        let egress = snapshot
            .config
            .egress
            .as_ref()
            .ok_or(Refusal::PolicyChanged)?;
        let rules = permitted(&snapshot, ask)?;
        let allowed = rules
            .destinations
            .judge(&ask.client, ask.destination.clone())?;
        let slot = self.limits.take(rules.quotas, ask.peer.socket().ip())?;
        let hold = |max| self.limits.hold(&ask.client, max);
        let held = rules.max_tunnels.map(hold).transpose()?;
        let ground = self.grounds.of(&snapshot);
        let source = dial::source(egress);
        let families = families(source);
        let (dial_timeout, idle) = (egress.dial_timeout, egress.idle);
        let seen_as = dial::seen_as(egress);
        let (on_failure, generation) = (snapshot.config.audit.on_failure, snapshot.generation);
        drop(snapshot);
        let found = find(slot, &allowed, &ground, families).await?;
        let checked = address::check(&allowed, &found, &ground.own, families)?;
        let dialled = |seen: IpAddr| {
            checked
                .addresses()
                .iter()
                .any(|a| a.is_ipv4() == seen.is_ipv4())
        };
        let seen_as = seen_as.map(|seen| seen.filter(|seen| dialled(*seen)));
        Ok(Judged {
            allowed,
            checked,
            source,
            seen_as,
            _held: held,
            dial_timeout,
            idle,
            on_failure,
            generation,
        })
    }

    async fn admit(&self, ask: &Ask, judged: &Judged) -> Result<Admitted, Refusal> {
        let dial = Dial {
            listener: ask.listen,
            peer: ask.peer,
            client: &ask.client,
            door: ask.door.as_str(),
            destination: &ask.destination,
            rule: judged.allowed.rule(),
            would_deny: judged.allowed.would_deny(),
            addresses: judged.checked.addresses(),
        };
        let before = Before::Dial(&dial);
        self.journal.admit(ask.id, &before, judged.on_failure).await
    }

    /// Dials and carries out; whatever happens, the caller gets what the terminal record says.
    async fn reach(
        &self,
        ask: &Ask,
        admitted: &Admitted,
        judged: Judged,
        session: &Session,
        mut reply: Reply,
    ) -> After {
        let dialled = tokio::select! {
            biased;
            () = reply.gone() => return after(Carried::aborted(), None, &Flow::default()),
            () = session.ended() => Err(Refusal::Draining),
            dialled = dial::dial(admitted, &judged.checked, &judged.source, judged.dial_timeout) => dialled,
        };
        let dialled = match dialled {
            Ok(dialled) => dialled,
            Err(refusal) => {
                let refused = Refused::dialled_from(refusal, judged.seen_as);
                let status = reply.refuse(ask.id, refused, session).await;
                let outcome = Outcome::Failed(refusal);
                return after(Carried { outcome, status }, None, &Flow::default());
            }
        };
        let (ends, flow) = (dialled.ends, Arc::new(Flow::default()));
        let stop = self.withdrawn(ask, session, ends, judged.generation);
        let carried = reply.carry(ask.id, dialled, &flow, judged.idle, stop).await;
        after(carried, Some(ends), &flow)
    }

    /// Ends when the connection may not go on: drain is over, a reload took the permission away, or the address that it
    /// left from is gone.
    async fn withdrawn(
        &self,
        ask: &Ask,
        session: &Session,
        ends: Ends,
        mut generation: u64,
    ) -> Refusal {
        loop {
            tokio::select! {
                () = session.ended() => return Refusal::Draining,
                () = lost(session, ends.local.ip()) => return Refusal::FixedAddressMissing,
                newer = session.reloaded(generation) => generation = newer,
            }
            let snapshot = self.live.load();
            if self.still_permitted(&snapshot, ask, ends).is_err() {
                return Refusal::PolicyChanged;
            }
            generation = generation.max(snapshot.generation);
        }
    }

    /// Judges an open connection by `snapshot`: its client, its destination, its address and where it leaves from.
    fn still_permitted(&self, snapshot: &Snapshot, ask: &Ask, ends: Ends) -> Result<(), Refusal> {
        let egress = snapshot
            .config
            .egress
            .as_ref()
            .ok_or(Refusal::PolicyChanged)?;
        let rules = permitted(snapshot, ask)?;
        let allowed = rules
            .destinations
            .judge(&ask.client, ask.destination.clone())?;
        let source = dial::source(egress);
        let Ground { own, .. } = self.grounds.of(snapshot);
        address::check(&allowed, &[ends.remote.ip()], &own, families(source))?;
        if source.facing(ends.remote.ip()) != Some(ends.local.ip()) {
            return Err(Refusal::FixedAddressMissing);
        }
        Ok(())
    }

    /// Which client of `gate` is asking.
    async fn who(
        &self,
        gate: &Gate,
        peer: Peer,
        claim: Option<Claim<'_>>,
    ) -> Result<Arc<str>, Refusal> {
        identify::who(&self.verified, &self.limits, gate, peer, claim).await
    }

    /// Counts and records what was refused before it was admitted.
    fn denied(
        &self,
        listener: SocketAddr,
        peer: Peer,
        id: Option<Id>,
        target: &str,
        refusal: Refusal,
    ) {
        self.metrics.refused(Way::Egress, refusal);
        self.metrics
            .unanswered(listener, peer.socket().ip(), refusal);
        self.journal.deny(&Denied {
            way: Way::Egress,
            listener,
            client: peer.socket().ip(),
            refusal,
            id,
            target,
            who: None,
        });
    }
}

/// The addresses of what is allowed, for an ask that is within its limits.
async fn find(
    _: Slot,
    allowed: &Allowed,
    ground: &Ground,
    families: Families,
) -> Result<Vec<IpAddr>, Refusal> {
    match &allowed.destination().host {
        Host::Address(address) => Ok(vec![*address]),
        Host::Name(name) => ground.resolver()?.resolve(name, families).await,
    }
}

/// Ends when `address` is not on this machine any more.
async fn lost(session: &Session, address: IpAddr) {
    loop {
        session.missing(address).await;
        if !is_here(address) {
            return;
        }
        sleep(LOST_EVERY).await; // it is back, and that will be told too
    }
}

fn after(carried: Carried, ends: Option<Ends>, flow: &Flow) -> After {
    let (bytes_in, bytes_out) = flow.get();
    After {
        outcome: carried.outcome,
        status: carried.status,
        bytes_in,
        bytes_out,
        ends,
    }
}

/// The families that `source` has an address of.
pub fn families(source: Source) -> Families {
    Families {
        v4: source.v4.is_some(),
        v6: source.v6.is_some(),
    }
}

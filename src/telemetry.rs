//! Every metric name, once, and the diagnostics subscriber.
//!
//! Labels are closed sets (way, refusal code, status class): never an address, a host, a path or a user, so that no
//! outsider can grow a table. Counters are made at start; counting is one atomic addition.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::clock;
use crate::outcome::Refusal;

/// The two ways through the house, as a label and a record field.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Way {
    /// A connection out.
    Egress,
    /// A request in.
    Ingress,
}

impl Way {
    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// All metrics of one process. Cheap to share behind an `Arc`; nothing in it locks on the hot path.
pub struct Metrics {
    registry: Registry,
    /// The second in which something was said by [`Self::unanswered`].
    told: AtomicU64,
    refusals: Box<[[Counter; Refusal::ALL.len()]; 2]>,
    responses: [Counter; 6],
    /// Sessions open now, per way.
    pub sessions: [Gauge; 2],
    /// Connections accepted, per way.
    pub accepted: [Counter; 2],
    /// Bytes of request bodies and of responses, ingress; bytes to and from destinations, egress.
    pub bytes: [[Counter; 2]; 2],
    /// Records that are durable.
    pub journal_records: Counter,
    /// Syncs of the audit log.
    pub journal_syncs: Counter,
    /// Duration of one batch: write and sync.
    pub journal_sync_seconds: Histogram,
    /// 1 while records can be made durable, else 0.
    pub journal_healthy: Gauge,
    /// Failures to write or sync.
    pub journal_failures: Counter,
    pub journal_disks: Disks,
    /// Seals of the audit log.
    pub seals: Seals,
    /// 1 while the fixed address is on this machine; IPv4, IPv6. -1 where none is configured.
    pub fixed_address: [Gauge; 2],
    /// Generation of the snapshot in force.
    pub generation: Gauge,
    /// Reloads that were refused.
    pub reload_failures: Counter,
    /// Keys that the rate limiter holds.
    pub limiter_keys: Gauge<i64>,
    /// Requests counted against the shared overflow bucket because the table was full.
    pub limiter_overflow: Counter,
}

/// Of the disks that the audit log is on.
#[derive(Default)]
pub struct Disks {
    /// 1 while the standby directory is in use, else 0.
    pub standby: Gauge,
    /// Bytes that can still be written; where there is least.
    pub free_bytes: Gauge,
    /// 1 while that is less than `audit.min_free`, else 0.
    pub space_low: Gauge,
}

impl Disks {
    fn register(&self, r: &mut Registry) {
        r.register(
            "journal_standby",
            "1 while the audit log is written to its standby directory",
            self.standby.clone(),
        );
        r.register(
            "journal_free_bytes",
            "Bytes that can still be written where the audit log is",
            self.free_bytes.clone(),
        );
        r.register(
            "journal_space_low",
            "1 while the audit log has less free space than audit.min_free",
            self.space_low.clone(),
        );
    }
}

/// Counts of seals.
#[derive(Default)]
pub struct Seals {
    pub durable: Counter,
    /// Taken by an anchor; and not.
    pub anchored: Counter,
    pub not_anchored: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RefusalLabels {
    way: &'static str,
    code: &'static str,
    fault: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct WayLabel {
    way: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FlowLabels {
    way: &'static str,
    direction: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ClassLabel {
    class: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FamilyLabel {
    family: &'static str,
}

const WAYS: [Way; 2] = [Way::Egress, Way::Ingress];
const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

impl Metrics {
    /// Registers everything, with every label value present from the start.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("tollgate");
        let refusals = Family::<RefusalLabels, Counter>::default();
        registry.register(
            "refusals",
            "Requests and connections not served, by reason",
            refusals.clone(),
        );
        let per_way = |family: &Family<WayLabel, Gauge>| {
            WAYS.map(|w| one(family, WayLabel { way: w.as_str() }))
        };
        let sessions = Family::<WayLabel, Gauge>::default();
        registry.register("sessions", "Connections open now", sessions.clone());
        let accepted = Family::<WayLabel, Counter>::default();
        registry.register(
            "accepted_connections",
            "Connections accepted",
            accepted.clone(),
        );
        let responses = Family::<ClassLabel, Counter>::default();
        registry.register(
            "responses",
            "Responses of the ingress, by status class",
            responses.clone(),
        );
        let bytes = Family::<FlowLabels, Counter>::default();
        registry.register(
            "relayed_bytes",
            "Body and tunnel bytes; in: from the client, out: to the client",
            bytes.clone(),
        );
        let family = Family::<FamilyLabel, Gauge>::default();
        registry.register(
            "fixed_address_present",
            "1 if the fixed address is on this machine, -1 if none is configured",
            family.clone(),
        );
        let mut metrics = Self {
            refusals: Box::new(WAYS.map(|way| per_refusal(&refusals, way))),
            responses: CLASSES.map(|class| one(&responses, ClassLabel { class })),
            sessions: per_way(&sessions),
            accepted: WAYS.map(|w| one(&accepted, WayLabel { way: w.as_str() })),
            bytes: WAYS.map(|w| {
                let way = w.as_str();
                ["in", "out"].map(|direction| one(&bytes, FlowLabels { way, direction }))
            }),
            journal_sync_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 18)),
            fixed_address: ["ipv4", "ipv6"].map(|f| one(&family, FamilyLabel { family: f })),
            registry,
            told: AtomicU64::new(0),
            journal_records: Counter::default(),
            journal_syncs: Counter::default(),
            journal_healthy: Gauge::default(),
            journal_failures: Counter::default(),
            seals: Seals::default(),
            journal_disks: Disks::default(),
            generation: Gauge::default(),
            reload_failures: Counter::default(),
            limiter_keys: Gauge::default(),
            limiter_overflow: Counter::default(),
        };
        metrics.register_single();
        metrics
    }

    fn register_single(&mut self) {
        let r = &mut self.registry;
        r.register(
            "journal_records",
            "Records that are durable",
            self.journal_records.clone(),
        );
        r.register(
            "journal_syncs",
            "Batches written and synced",
            self.journal_syncs.clone(),
        );
        r.register(
            "journal_sync_seconds",
            "Duration of one batch, write and sync",
            self.journal_sync_seconds.clone(),
        );
        r.register(
            "journal_healthy",
            "1 while records can be made durable",
            self.journal_healthy.clone(),
        );
        r.register(
            "journal_failures",
            "Failed writes and syncs of the audit log",
            self.journal_failures.clone(),
        );
        r.register("journal_seals", "Seals written", self.seals.durable.clone());
        r.register(
            "anchored_seals",
            "Seals that an anchor took",
            self.seals.anchored.clone(),
        );
        r.register(
            "anchor_failures",
            "Seals that an anchor did not take",
            self.seals.not_anchored.clone(),
        );
        self.journal_disks.register(r);
        r.register(
            "snapshot_generation",
            "Generation of the configuration in force",
            self.generation.clone(),
        );
        r.register(
            "reload_failures",
            "Reloads that were refused",
            self.reload_failures.clone(),
        );
        r.register(
            "limiter_keys",
            "Clients that the rate limiter holds",
            self.limiter_keys.clone(),
        );
        r.register(
            "limiter_overflow",
            "Requests counted in the shared overflow bucket",
            self.limiter_overflow.clone(),
        );
    }

    /// Counts one refusal.
    pub fn refused(&self, way: Way, refusal: Refusal) {
        if let Some(counter) = self
            .refusals
            .get(way as usize)
            .and_then(|w| w.get(refusal as usize))
        {
            counter.inc();
        }
    }

    /// Says on standard error what a client did wrong where it may have got no answer that says so: at most one line a
    /// second, so that nobody can fill the diagnostics. The record of the denial is there in any case.
    pub fn unanswered(&self, listener: SocketAddr, client: IpAddr, refusal: Refusal) {
        let mute = !matches!(
            refusal,
            Refusal::HandshakeFailed
                | Refusal::HandshakeTimeout
                | Refusal::HeadTooLarge
                | Refusal::Malformed
        );
        let second = clock::wall_ns() / 1_000_000_000;
        if mute || self.told.swap(second, Ordering::Relaxed) == second {
            return;
        }
        tracing::info!(%listener, %client, reason = refusal.code(), "not served: {refusal}");
    }

    /// Counts one response of the ingress.
    pub fn responded(&self, status: u16) {
        if let Some(counter) = self
            .responses
            .get(usize::from(status / 100))
            .or(self.responses.first())
        {
            counter.inc();
        }
    }

    /// Counts body bytes: `inward` from the client, `outward` to the client.
    pub fn moved(&self, way: Way, inward: u64, outward: u64) {
        let [from_client, to_client] = &self.bytes[way as usize];
        from_client.inc_by(inward);
        to_client.inc_by(outward);
    }

    /// The OpenMetrics text that Prometheus scrapes.
    pub fn render(&self) -> String {
        let mut out = String::new();
        if text::encode(&mut out, &self.registry).is_err() {
            out.clear();
            writeln!(out, "# metrics could not be encoded").ok(); // writing to a String cannot fail
        }
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn per_refusal(family: &Family<RefusalLabels, Counter>, way: Way) -> [Counter; Refusal::ALL.len()] {
    std::array::from_fn(|at| {
        let refusal = Refusal::ALL[at];
        let (code, fault) = (refusal.code(), refusal.fault().as_str());
        one(
            family,
            RefusalLabels {
                way: way.as_str(),
                code,
                fault,
            },
        )
    })
}

/// Sends diagnostics to standard error. Once per process; a second call changes nothing.
pub fn subscribe(json: bool, level: tracing::Level) {
    // Libraries warn of what a peer did, and at their finest levels print what it sent: neither belongs here.
    let ours = Targets::new()
        .with_target("tollgate", level)
        .with_default(tracing::Level::ERROR);
    // Told of its own errors it would print them where it just could not, which panics: nobody's thread may end of that.
    let layer = fmt::layer()
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(ours);
    let set = if json {
        registry.with(layer.json().flatten_event(true)).try_init()
    } else {
        registry
            .with(layer.with_target(false).with_ansi(false))
            .try_init()
    };
    set.ok(); // already set: the first one stays
}

/// The metric of `labels`, made if it is new: called at start only.
fn one<L, M>(family: &Family<L, M>, labels: L) -> M
where
    L: Clone + Eq + std::hash::Hash,
    M: Clone + Default,
{
    family.get_or_create(&labels).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_rendered_from_the_start() {
        let metrics = Metrics::new();
        metrics.refused(Way::Egress, Refusal::DestinationDenied);
        let text = metrics.render();
        assert!(text.contains(r#"tollgate_refusals_total{way="egress",code="destination_denied",fault="policy"} 1"#), "{text}");
        assert_eq!(
            text.matches("tollgate_refusals_total{").count(),
            2 * Refusal::ALL.len()
        );
    }
}

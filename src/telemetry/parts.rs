//! Metrics of one part of the house each, registered together.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Certificates that are ordered.
#[derive(Default)]
pub struct Orders {
    /// Those that came.
    pub issued: Counter,
    /// Orders that failed, by each certificate authority that was asked.
    pub failed: Counter,
    /// Challenges of certificate authorities that were answered.
    pub answered: Counter,
}

impl Orders {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "certificates_issued",
            "Certificates that were ordered and came",
            self.issued.clone(),
        );
        r.register(
            "certificate_failures",
            "Orders of certificates that failed, by each certificate authority that was asked",
            self.failed.clone(),
        );
        r.register(
            "challenges_answered",
            "Challenges of certificate authorities that were answered, on port 80 and 443",
            self.answered.clone(),
        );
    }
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
    pub(super) fn register(&self, r: &mut Registry) {
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

impl Seals {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register("journal_seals", "Seals written", self.durable.clone());
        r.register(
            "anchored_seals",
            "Seals that an anchor took",
            self.anchored.clone(),
        );
        r.register(
            "anchor_failures",
            "Seals that an anchor did not take",
            self.not_anchored.clone(),
        );
    }
}

//! What happens to an order, said to whoever reads the audit log and the diagnostics.

use std::sync::PoisonError;
use std::time::Duration;

use crate::config::typed::Issuer;
use crate::record::Event;
use crate::store::StoreError;

use super::answer::{Record, now, word};
use super::problem::Failure;
use super::tend::Tended;

/// A store that fails is told of as often.
const STORE_TOLD_EVERY: Duration = Duration::from_secs(60);

impl Tended {
    pub(super) fn tell_failures(&self, failures: &[(String, Failure)], failed: u32, again: &str) {
        let label = &self.ordered.label;
        for (directory, failure) in failures {
            let said = failure.to_string();
            let served = match self.ordered.certificate() {
                Some(_) => "the certificate before it is served",
                None => "nothing is served for this name until then",
            };
            tracing::error!(name = %label, %directory, reason = failure.code(), "no certificate: {said}; {served}, and it is tried again at {again}");
            self.tools.metrics.orders.failed.inc();
            self.tools.journal.event(Event {
                name: "certificate_failed",
                facts: vec![
                    ("certificate", label.to_string()),
                    ("directory", directory.clone()),
                    ("reason", failure.code().to_owned()),
                    ("why", said),
                    ("failures", failed.to_string()),
                    ("next_attempt", again.to_owned()),
                ],
            });
        }
    }

    /// Once: it is the same record for every order.
    pub(super) fn tell_of(&self, issuer: &Issuer, record: &Record) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.as_ref() == Some(record) {
            return;
        }
        *told = Some(record.clone());
        drop(told);
        let (name, value) = (&record.name, &record.value);
        tracing::warn!(%name, %value, "this TXT record must stand in DNS, once and for all; the certificate is ordered as soon as the certificate authority sees it");
        let facts = vec![("record", name.clone()), ("value", value.clone())];
        self.record("certificate_needs_record", issuer, facts);
    }

    pub(super) fn record(
        &self,
        name: &'static str,
        issuer: &Issuer,
        more: Vec<(&'static str, String)>,
    ) {
        let mut facts = vec![
            ("certificate", self.ordered.label.to_string()),
            ("directory", issuer.directory.clone()),
            ("challenge", word(self.ordered.acme.challenge).to_owned()),
        ];
        facts.extend(more);
        self.tools.journal.event(Event { name, facts });
    }

    /// A store that cannot be used is told of, but not at every look.
    pub(super) fn complain(&mut self, error: &StoreError) {
        let every = i64::try_from(STORE_TOLD_EVERY.as_secs()).unwrap_or(i64::MAX);
        if now() < self.store_told.saturating_add(every) {
            return;
        }
        self.store_told = now();
        tracing::error!(name = %self.ordered.label, "{error}");
        self.tools.journal.event(Event {
            name: "certificate_store_failed",
            facts: vec![
                ("certificate", self.ordered.label.to_string()),
                ("why", error.to_string()),
            ],
        });
    }
}

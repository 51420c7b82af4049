//! One name over time: serve what is kept, order when it is due, answer for other replicas, heed a wish.
//!
//! Only the holder of the lock orders, and it looks again at what is kept before it does: of many replicas one orders.
//! What was good before is served until something better has been checked. A failure is recorded, and spaced from the
//! next attempt, for all replicas together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::audit::Journal;
use crate::clock;
use crate::reach::Reach;
use crate::store::{Lease, StoreError};
use crate::telemetry::Metrics;
use crate::tls::{Certificate, Challenge, Keyring, Ordered};

use super::answer::{Record, now, pose};
use super::jose::sha256;
use super::problem::Failure;
use super::renewal::{back_off, by_life};
use super::shelf::{Attempts, KeptCertificate, Kind, Posed, Shelf, Wish};

/// Between two looks at the store.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// While another replica orders what we wait for.
const LOOK_AT_OTHERS_EVERY: Duration = Duration::from_secs(1);

/// What every name is tended with.
#[derive(Clone)]
pub(super) struct Tools {
    pub(super) keyring: Keyring,
    pub(super) journal: Journal,
    pub(super) metrics: Arc<Metrics>,
    pub(super) reach: Reach,
    /// Which process this is: drawn.
    pub(super) process: Arc<str>,
    pub(super) turns: Arc<Turns>,
}

/// Who may order now.
pub(super) struct Turns {
    /// Orders at once, of all names.
    pub(super) orders: Semaphore,
    /// By the name of a TXT record: a hook that sets one value would overwrite that of `*.` with that of the name itself.
    records: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// A certificate authority that is slow for some names does not hold up others for long.
const ORDERS_MAX: usize = 16;

impl Default for Turns {
    fn default() -> Self {
        Self {
            orders: Semaphore::new(ORDERS_MAX),
            records: Mutex::default(),
        }
    }
}

impl Turns {
    /// Held by whoever sets the record called `name`. There are as many as names in the configuration.
    pub(super) fn record(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(records.entry(name.to_owned()).or_default())
    }
}

/// One name, and what is known of its certificate.
pub(super) struct Tended {
    pub(super) ordered: Ordered,
    pub(super) shelf: Shelf,
    pub(super) tools: Tools,
    pub(super) kept: Option<KeptCertificate>,
    /// What was kept and could not be served.
    refused: Option<KeptCertificate>,
    /// The second since 1970 at which to order again.
    pub(super) due: i64,
    /// The second since 1970 at which to ask for the window again.
    pub(super) ask_at: i64,
    /// Not before this second, whatever is due.
    patience: i64,
    /// In a row, here.
    failures: u32,
    pub(super) wish: Option<Wish>,
    /// A challenge of another replica that is answered here.
    posed: Option<(Posed, Challenge)>,
    /// The record that a person was told of.
    pub(super) told: Mutex<Option<Record>>,
    pub(super) store_told: i64,
}

/// What an attempt came to.
enum Attempt {
    Done,
    /// Somebody else holds the lock.
    Busy,
    Failed,
}

impl Tended {
    pub(super) fn new(ordered: Ordered, shelf: Shelf, tools: Tools) -> Self {
        Self {
            ordered,
            shelf,
            tools,
            kept: None,
            refused: None,
            failures: 0,
            due: 0,
            ask_at: 0,
            patience: 0,
            wish: None,
            posed: None,
            told: Mutex::default(),
            store_told: 0,
        }
    }

    /// Tends it until it is dropped.
    pub(super) async fn tend(mut self) {
        loop {
            let wait = match Box::pin(self.round()).await {
                Ok(wait) => wait,
                Err(error) => {
                    self.complain(&error);
                    LOOK_EVERY
                }
            };
            sleep(wait).await;
        }
    }

    /// One look, and what follows from it; gives when to look again.
    async fn round(&mut self) -> Result<Duration, StoreError> {
        self.adopt().await?;
        // Neither of these is worth an expired certificate.
        if self.shelf.is_shared()
            && let Err(error) = self.answer_for_others().await
        {
            self.complain(&error);
        }
        let wished = self.wished().await.unwrap_or_else(|error| {
            self.complain(&error);
            false
        });
        self.ask_for_window().await;
        if !wished && now() < self.due.max(self.patience) {
            return Ok(LOOK_EVERY);
        }
        let attempted = Box::pin(self.attempt(wished)).await;
        if attempted.is_err() {
            self.wish = None; // it is not heeded yet
        }
        match attempted? {
            Attempt::Done | Attempt::Failed => Ok(Duration::ZERO),
            Attempt::Busy => Ok(LOOK_AT_OTHERS_EVERY),
        }
    }

    /// Serves what is kept, if that is another certificate than what is served.
    async fn adopt(&mut self) -> Result<(), StoreError> {
        let label = &self.ordered.label;
        let found: Option<KeptCertificate> = self.shelf.get(Kind::Certificate, label).await?;
        let Some(found) = found else {
            return self.adopt_last().await;
        };
        // An older one than we have is a store that was set back, or somebody who would like a leaked key served again.
        if self
            .kept
            .as_ref()
            .is_some_and(|kept| *kept == found || found.issued < kept.issued)
        {
            return Ok(());
        }
        let (chain, key) = (found.chain.as_bytes(), found.key.as_bytes());
        match self.ordered.read(chain, key) {
            Ok(certificate) => self.serve(found, certificate),
            // Looked at again: a clock may be set right.
            Err(error) if self.refused.as_ref() != Some(&found) => {
                tracing::warn!(name = %label, "what is kept cannot be served: {error}");
                self.refused = Some(found);
            }
            Err(_) => {}
        }
        Ok(())
    }

    /// Where nothing has been ordered at this directory yet: what came last for this name from another one is better
    /// than nothing until it has.
    async fn adopt_last(&mut self) -> Result<(), StoreError> {
        if self.ordered.certificate().is_some() {
            return Ok(());
        }
        let last = self.shelf.last(&self.ordered.label).await?;
        let read = last.map(|last| {
            let (chain, key) = (last.chain.as_bytes(), last.key.as_bytes());
            self.ordered.read(chain, key)
        });
        if let Some(Ok(certificate)) = read {
            self.tools.keyring.put(&self.ordered, certificate);
        }
        Ok(())
    }

    pub(super) fn serve(&mut self, kept: KeptCertificate, certificate: Certificate) {
        // One that was old when it came is not ordered again at once, and for ever.
        let from = certificate.not_before.max(kept.issued);
        self.due = by_life(from, certificate.not_after, drawn());
        self.ask_at = 0;
        self.patience = 0;
        self.failures = 0;
        self.kept = Some(kept);
        self.tools.keyring.put(&self.ordered, certificate);
    }

    /// Answers the challenge that another replica poses, as long as it does.
    async fn answer_for_others(&mut self) -> Result<(), StoreError> {
        let posed: Option<Posed> = self.shelf.get(Kind::Posed, &self.ordered.label).await?;
        let foreign = posed.filter(|p| *p.by != *self.tools.process && p.until > now());
        match foreign {
            None => self.posed = None,
            Some(posed) if self.posed.as_ref().is_some_and(|(held, _)| *held == posed) => {}
            Some(posed) => {
                let (keyring, way) = (&self.tools.keyring, self.ordered.acme.challenge);
                let held = pose(keyring, way, &self.ordered.name, &posed);
                self.posed = held.ok().map(|held| (posed, held));
            }
        }
        Ok(())
    }

    /// Whether somebody wants a new certificate now who has not been heeded yet.
    async fn wished(&mut self) -> Result<bool, StoreError> {
        let wish: Option<Wish> = self.shelf.get(Kind::Wish, &self.ordered.label).await?;
        let new = wish.is_some() && wish != self.wish;
        self.wish = wish;
        Ok(new)
    }

    /// Orders under the lock.
    async fn attempt(&mut self, wished: bool) -> Result<Attempt, StoreError> {
        let label = self.ordered.label.clone();
        let Some(lease) = self.shelf.lock(&label).await? else {
            if wished {
                self.wish = None; // whoever orders may not have seen it
            }
            return Ok(Attempt::Busy);
        };
        let before = self.kept.clone();
        self.adopt().await?;
        // Somebody else may have heeded it while we waited for the lock.
        let wished = wished && self.shelf.has(Kind::Wish, &label).await?;
        let attempts: Option<Attempts> = self.shelf.get(Kind::Attempts, &label).await?;
        let ours = attempts.filter(|attempts| attempts.settings == self.settings());
        let attempts = ours.unwrap_or_default();
        let overtaken = self.kept != before && now() < self.due;
        if !wished && (overtaken || now() < attempts.next) {
            self.patience = attempts.next;
            lease.release().await;
            return Ok(Attempt::Done);
        }
        self.begin(&lease, &attempts).await?;
        let done = lease.during(Box::pin(self.ask_each(&lease))).await;
        let done = match done {
            Ok(Ok(())) => {
                self.shelf.remove(Kind::Attempts, &label).await?;
                Attempt::Done
            }
            Ok(Err(failures)) => {
                self.fail(&lease, attempts, &failures).await?;
                Attempt::Failed
            }
            Err(lost) => {
                let failures = [(self.first_directory(), Failure::Store(lost))];
                self.fail(&lease, attempts, &failures).await?;
                Attempt::Failed
            }
        };
        lease.release().await;
        Ok(done)
    }

    /// Says beforehand when to try again: a process that dies in every order does not do so for ever anew, and a store
    /// that cannot be written is noticed before a certificate is lost in it.
    async fn begin(&self, lease: &Lease, attempts: &Attempts) -> Result<(), StoreError> {
        let wait = back_off(attempts.failures.saturating_add(1), None, drawn());
        let seconds = i64::try_from(wait.as_secs()).unwrap_or(i64::MAX);
        let attempts = Attempts {
            next: now().saturating_add(seconds),
            settings: self.settings(),
            ..attempts.clone()
        };
        let label = &self.ordered.label;
        self.shelf
            .put_under(lease, Kind::Attempts, label, &attempts)
            .await
    }

    /// Records what each certificate authority said, and when it is tried again.
    async fn fail(
        &mut self,
        lease: &Lease,
        attempts: Attempts,
        failures: &[(String, Failure)],
    ) -> Result<(), StoreError> {
        // One that did not ask for patience may be tried soon.
        let asked = failures
            .iter()
            .map(|(_, f)| f.retry_after().unwrap_or_default())
            .min();
        // Replicas with other settings than ours do not make us hurry.
        let failed = attempts.failures.max(self.failures).saturating_add(1);
        self.failures = failed;
        let wait = back_off(failed, asked, drawn());
        let seconds = i64::try_from(wait.as_secs()).unwrap_or(i64::MAX);
        self.patience = now().saturating_add(seconds);
        self.tell_failures(failures, failed, &clock::moment(self.patience));
        let label = self.ordered.label.clone();
        self.shelf.remove(Kind::Wish, &label).await.ok(); // who wished is told
        let said = failures.first().map(|(_, failure)| failure.to_string());
        let attempts = Attempts {
            failures: failed,
            next: self.patience,
            said: said.unwrap_or_default(),
            settings: self.settings(),
        };
        let kept = self
            .shelf
            .put_under(lease, Kind::Attempts, &label, &attempts);
        match kept.await {
            Err(StoreError::Lost { .. }) => Ok(()), // whoever has the lock by now keeps its own
            kept => kept,
        }
    }

    /// Other settings are worth an attempt at once.
    fn settings(&self) -> String {
        let settings = format!("{:?}", self.ordered.acme);
        URL_SAFE_NO_PAD.encode(sha256(settings.as_bytes()))
    }

    fn first_directory(&self) -> String {
        let first = self.ordered.acme.issuers.first();
        first.map_or_else(String::new, |issuer| issuer.directory.clone())
    }
}

pub(super) fn drawn() -> u64 {
    let mut bytes = [0; 8];
    clock::draw(&mut bytes);
    u64::from_le_bytes(bytes)
}

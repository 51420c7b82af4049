//! One name over time: serve what is kept, order when it is due, answer for other replicas, heed a wish.
//!
//! Only the holder of the lock orders, and it looks again at what is kept before it does: of many replicas one orders.
//! What was good before is served until something better has been checked. A failure is recorded, and spaced from the
//! next attempt, for all replicas together.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use tokio::time::sleep;

use crate::audit::Journal;
use crate::clock;
use crate::config::typed::Issuer;
use crate::reach::Reach;
use crate::record::Event;
use crate::store::{Lease, StoreError};
use crate::telemetry::Metrics;
use crate::tls::{Certificate, Challenge, Keyring, Ordered};

use super::account::Account;
use super::answer::{Ground, Record, now, pose, word};
use super::client::Client;
use super::jose::sha256;
use super::order::order;
use super::problem::Failure;
use super::renewal::{RenewalInfo, back_off, by_life, by_window, suggestion_age};
use super::shelf::{Attempts, KeptCertificate, Kind, Posed, Shelf, Wish};

/// Between two looks at the store.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// While another replica orders what we wait for.
const LOOK_AT_OTHERS_EVERY: Duration = Duration::from_secs(1);
/// A store that fails is told of as often.
const STORE_TOLD_EVERY: Duration = Duration::from_secs(60);

/// A certificate authority whose windows always lie behind is asked once an hour, not for ever anew.
const HURRY_SECONDS: i64 = 3600;

/// What every name is tended with.
#[derive(Clone)]
pub(super) struct Tools {
    pub(super) keyring: Keyring,
    pub(super) journal: Journal,
    pub(super) metrics: Arc<Metrics>,
    pub(super) reach: Reach,
    /// Which process this is: drawn.
    pub(super) process: Arc<str>,
}

/// One name, and what is known of its certificate.
pub(super) struct Tended {
    ordered: Ordered,
    shelf: Shelf,
    tools: Tools,
    kept: Option<KeptCertificate>,
    /// The second since 1970 at which to order again.
    due: i64,
    /// The second since 1970 at which to ask for the window again.
    ask_at: i64,
    /// Not before this second, whatever is due.
    patience: i64,
    /// When it was last ordered because a window said at once.
    hurried: i64,
    wish: Option<Wish>,
    /// A challenge of another replica that is answered here.
    posed: Option<(Posed, Challenge)>,
    /// The record that a person was told of.
    told: Mutex<Option<Record>>,
    store_told: i64,
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
            due: 0,
            ask_at: 0,
            patience: 0,
            hurried: 0,
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
        match Box::pin(self.attempt(wished)).await? {
            Attempt::Done | Attempt::Failed => Ok(Duration::ZERO),
            Attempt::Busy => Ok(LOOK_AT_OTHERS_EVERY),
        }
    }

    /// Serves what is kept, if that is another certificate than what is served.
    async fn adopt(&mut self) -> Result<(), StoreError> {
        let label = &self.ordered.label;
        let found: Option<KeptCertificate> = self.shelf.get(Kind::Certificate, label).await?;
        let Some(found) = found.filter(|found| self.kept.as_ref() != Some(found)) else {
            return Ok(());
        };
        match self
            .ordered
            .read(found.chain.as_bytes(), found.key.as_bytes())
        {
            Ok(certificate) => self.serve(found, certificate),
            Err(error) => {
                tracing::warn!(name = %label, "what is kept cannot be served: {error}");
                self.kept = Some(found); // told once
            }
        }
        Ok(())
    }

    fn serve(&mut self, kept: KeptCertificate, certificate: Certificate) {
        self.due = by_life(certificate.not_before, certificate.not_after, drawn());
        self.ask_at = 0;
        self.patience = 0;
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

    /// Asks the certificate authority when it wants to be asked for the next certificate (RFC 9773).
    async fn ask_for_window(&mut self) {
        if now() < self.ask_at {
            return;
        }
        let (Some(kept), Some(certificate)) = (&self.kept, self.ordered.certificate()) else {
            return;
        };
        let issuers = &self.ordered.acme.issuers;
        let issuer = issuers.iter().find(|i| i.directory == kept.directory);
        let asked = match issuer {
            Some(issuer) => self.window(issuer, &certificate).await,
            None => Ok((None, None)),
        };
        let age = match asked {
            Ok((due, age)) => {
                self.due = due.unwrap_or(self.due);
                if self.due <= now() {
                    self.hurried = now();
                }
                age
            }
            Err(failure) => {
                tracing::debug!(name = %self.ordered.label, "no renewal window: {failure}");
                failure.retry_after()
            }
        };
        let seconds = suggestion_age(age).as_secs();
        self.ask_at = now().saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// When to order, by the window that `issuer` suggests, and when to ask again.
    async fn window(
        &self,
        issuer: &Issuer,
        certificate: &Certificate,
    ) -> Result<(Option<i64>, Option<Duration>), Failure> {
        let client = Client::new(issuer, &self.tools.reach).await?;
        let (Some(url), Some(identifier)) =
            (&client.directory.renewal_info, identifier(certificate))
        else {
            return Ok((None, None));
        };
        let url = format!("{}/{identifier}", url.trim_end_matches('/'));
        let reply = client.get(&url).await?;
        let age = reply.retry_after();
        let info: RenewalInfo = reply.json()?;
        let window = info.window();
        let window = window.ok_or_else(|| reply.not_acme("the window is none"))?;
        let kept = self.due >= window.start && self.due < window.end && self.ask_at > 0;
        let (from, to) = (certificate.not_before, certificate.not_after);
        let due = if kept {
            self.due
        } else {
            by_window(window, from, to, drawn()).max(self.hurried + HURRY_SECONDS)
        };
        if let Some(why) = info.explanation.filter(|_| due <= now()) {
            let why = super::problem::shown(&why);
            tracing::warn!(name = %self.ordered.label, %why, "the certificate authority wants this certificate renewed now");
        }
        Ok((Some(due), age))
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

    /// Asks one certificate authority after the other; the error is what each of them said.
    async fn ask_each(&mut self, lease: &Lease) -> Result<(), Vec<(String, Failure)>> {
        let mut failures = Vec::new();
        let acme = Arc::clone(&self.ordered.acme);
        for issuer in &acme.issuers {
            match Box::pin(self.ask(lease, issuer)).await {
                Ok(()) => {
                    let again = format!("now, at {}", issuer.directory);
                    self.tell_failures(&failures, 0, &again);
                    return Ok(());
                }
                Err(failure) => failures.push((issuer.directory.clone(), failure)),
            }
        }
        Err(failures)
    }

    async fn ask(&mut self, lease: &Lease, issuer: &Issuer) -> Result<(), Failure> {
        let acme = Arc::clone(&self.ordered.acme);
        let label = self.ordered.label.clone();
        self.record("certificate_ordered", issuer, Vec::new());
        tracing::info!(name = %label, directory = %issuer.directory, challenge = word(acme.challenge), "ordering a certificate");
        let client = Client::new(issuer, &self.tools.reach).await?;
        let account = Account::open(client, &self.shelf, issuer, acme.contact.as_deref()).await?;
        let replaced = self.replaced(&account, issuer);
        let ground = Ground {
            keyring: &self.tools.keyring,
            shelf: &self.shelf,
            label: &label,
            name: &self.ordered.name,
            way: acme.challenge,
            hook: acme.hook.as_ref(),
            process: &self.tools.process,
        };
        let tell = |record: &Record| self.tell_of(issuer, record);
        let came = order(&account, issuer, &ground, replaced.as_deref(), tell).await;
        let came = match came {
            Err(Failure::Problem(problem)) if problem.is("accountDoesNotExist") => {
                self.shelf.forget_account(&issuer.directory).await?;
                return Err(Failure::Problem(problem));
            }
            came => came?,
        };
        let read = self
            .ordered
            .read(came.chain.as_bytes(), came.key.as_bytes());
        let certificate = read.map_err(|error| Failure::WrongCertificate {
            why: error.to_string(),
        })?;
        let kept = KeptCertificate {
            directory: issuer.directory.clone(),
            key: came.key.to_string(),
            chain: came.chain,
        };
        // Kept before it is served: a certificate that only this process knows would be ordered again.
        self.shelf
            .put_under(lease, Kind::Certificate, &label, &kept)
            .await?;
        let facts = vec![
            ("serial", certificate.serial.to_string()),
            ("not_after", clock::moment(certificate.not_after)),
            ("challenges_answered", came.answers.to_string()),
        ];
        self.tools.metrics.certificates_issued.inc();
        self.record("certificate_issued", issuer, facts);
        let before = self.ordered.certificate();
        self.serve(kept, certificate);
        self.fulfil(&account, issuer, before.as_deref()).await;
        Ok(())
    }

    /// What the order replaces, if the certificate authority wants to know (RFC 9773 section 5).
    fn replaced(&self, account: &Account, issuer: &Issuer) -> Option<String> {
        let kept = self.kept.as_ref()?;
        let same = kept.directory == issuer.directory;
        let wants = account.client.directory.renewal_info.is_some();
        let certificate = self.ordered.certificate()?;
        identifier(&certificate).filter(|_| same && wants)
    }

    /// Revokes what a wish asks for, now that there is another certificate.
    async fn fulfil(&mut self, account: &Account, issuer: &Issuer, before: Option<&Certificate>) {
        let Some(wish) = self.wish.take() else {
            return;
        };
        let leaked = before.filter(|before| wish.revoke.as_deref() == Some(&*before.serial));
        if let Some(leaked) = leaked {
            match revoke(account, leaked).await {
                Ok(()) => {
                    let facts = vec![("serial", leaked.serial.to_string())];
                    self.record("certificate_revoked", issuer, facts);
                    tracing::info!(name = %self.ordered.label, serial = %leaked.serial, "revoked");
                }
                Err(failure) => {
                    let facts = vec![
                        ("serial", leaked.serial.to_string()),
                        ("why", failure.to_string()),
                    ];
                    self.record("certificate_not_revoked", issuer, facts);
                    tracing::error!(name = %self.ordered.label, serial = %leaked.serial, "not revoked: {failure}");
                }
            }
        }
        self.shelf
            .remove(Kind::Wish, &self.ordered.label)
            .await
            .ok(); // seen again it is a new certificate too many, no harm
    }

    /// Records what each certificate authority said, and when it is tried again.
    async fn fail(
        &mut self,
        lease: &Lease,
        attempts: Attempts,
        failures: &[(String, Failure)],
    ) -> Result<(), StoreError> {
        let asked = failures.iter().filter_map(|(_, f)| f.retry_after()).min();
        let failed = attempts.failures.saturating_add(1);
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

    fn tell_failures(&self, failures: &[(String, Failure)], failed: u32, again: &str) {
        let label = &self.ordered.label;
        for (directory, failure) in failures {
            let said = failure.to_string();
            let served = match self.ordered.certificate() {
                Some(_) => "the certificate before it is served",
                None => "nothing is served for this name until then",
            };
            tracing::error!(name = %label, %directory, reason = failure.code(), "no certificate: {said}; {served}, and it is tried again at {again}");
            self.tools.metrics.certificate_failures.inc();
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

    /// Other settings are worth an attempt at once.
    fn settings(&self) -> String {
        let settings = format!("{:?}", self.ordered.acme);
        URL_SAFE_NO_PAD.encode(sha256(settings.as_bytes()))
    }

    /// Once: it is the same record for every order.
    fn tell_of(&self, issuer: &Issuer, record: &Record) {
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

    fn record(&self, name: &'static str, issuer: &Issuer, more: Vec<(&'static str, String)>) {
        let mut facts = vec![
            ("certificate", self.ordered.label.to_string()),
            ("directory", issuer.directory.clone()),
            ("challenge", word(self.ordered.acme.challenge).to_owned()),
        ];
        facts.extend(more);
        self.tools.journal.event(Event { name, facts });
    }

    fn first_directory(&self) -> String {
        let first = self.ordered.acme.issuers.first();
        first.map_or_else(String::new, |issuer| issuer.directory.clone())
    }

    /// A store that cannot be used is told of, but not at every look.
    fn complain(&mut self, error: &StoreError) {
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

async fn revoke(account: &Account, certificate: &Certificate) -> Result<(), Failure> {
    /// The key was compromised (RFC 5280 section 5.3.1).
    const KEY_COMPROMISE: u8 = 1;
    let url = account.client.directory.revoke_cert.as_deref();
    let url = url.ok_or(Failure::NotOffered {
        wanted: "revocation",
        offered: "orders only".to_owned(),
    })?;
    let leaf = URL_SAFE_NO_PAD.encode(certificate.leaf());
    let payload = json!({ "certificate": leaf, "reason": KEY_COMPROMISE });
    account.post(url, Some(&payload)).await.map(drop)
}

fn identifier(certificate: &Certificate) -> Option<String> {
    let (issuer, serial) = certificate.renewal_identifier()?;
    let encode = |bytes| URL_SAFE_NO_PAD.encode::<Vec<u8>>(bytes);
    Some(format!("{}.{}", encode(issuer), encode(serial)))
}

fn drawn() -> u64 {
    let mut bytes = [0; 8];
    clock::draw(&mut bytes);
    u64::from_le_bytes(bytes)
}

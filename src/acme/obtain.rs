//! Under the lock: ask one certificate authority after the other, check what comes, keep it, serve it.
//!
//! A certificate is kept before it is served, and served only after it has been checked. What a wish wants revoked is
//! revoked when there is something in its place.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::clock;
use crate::config::typed::Issuer;
use crate::store::Lease;
use crate::tls::Certificate;

use super::account::Account;
use super::answer::{Ground, Record, now, word};
use super::client::Client;
use super::order::order;
use super::problem::Failure;
use super::shelf::{KeptCertificate, Kind};
use super::tend::Tended;
use super::window::identifier;

impl Tended {
    /// Asks one certificate authority after the other; the error is what each of them said.
    pub(super) async fn ask_each(&mut self, lease: &Lease) -> Result<(), Vec<(String, Failure)>> {
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
        let turns = Arc::clone(&self.tools.turns);
        let turn = turns.orders.acquire().await;
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
            turns: &turns,
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
            issued: now(),
            key: came.key.to_string(),
            chain: came.chain,
        };
        // Kept before it is served: a certificate that only this process knows would be ordered again.
        self.shelf
            .put_under(lease, Kind::Certificate, &label, &kept)
            .await?;
        self.shelf.keep_last(lease, &label, &kept).await?;
        let facts = vec![
            ("serial", certificate.serial.to_string()),
            ("not_after", clock::moment(certificate.not_after)),
            ("challenges_answered", came.answers.to_string()),
        ];
        self.tools.metrics.orders.issued.inc();
        self.record("certificate_issued", issuer, facts);
        let before = self.ordered.certificate();
        self.serve(kept, certificate);
        self.fulfil(&account, issuer, before.as_deref()).await;
        drop(turn);
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

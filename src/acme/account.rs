//! The account at a certificate authority: made once, kept, and used by every replica.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::time::{Duration, sleep};
use zeroize::Zeroizing;

use crate::config::typed::Issuer;
use crate::store::Lease;

use super::client::Client;
use super::jose::{AccountKey, Signer};
use super::problem::Failure;
use super::shelf::{KeptAccount, Shelf};
use super::transport::Reply;

/// An account, and the certificate authority that knows it.
pub(super) struct Account {
    pub(super) client: Client,
    pub(super) url: String,
    key: AccountKey,
}

/// How long another replica may take to make the account.
const OTHER_ROUNDS_MAX: u32 = 60;
const OTHER_ROUND: Duration = Duration::from_millis(500);

impl Account {
    /// The kept account at `issuer`, or a new one.
    pub(super) async fn open(
        client: Client,
        shelf: &Shelf,
        issuer: &Issuer,
        contact: Option<&str>,
    ) -> Result<Self, Failure> {
        for _ in 0..OTHER_ROUNDS_MAX {
            if let Some(kept) = shelf.account(&issuer.directory).await?
                && let Some(key) = key(&kept)
            {
                let account = Self {
                    client,
                    url: kept.url.clone(),
                    key,
                };
                if let Err(failure) = account.tell(shelf, issuer, kept, contact).await {
                    // No reason to let a certificate expire.
                    tracing::warn!(directory = %issuer.directory, "the contact could not be changed: {failure}");
                }
                return Ok(account);
            }
            if let Some(lease) = shelf.lock_account(&issuer.directory).await? {
                // Whoever held it before may have made one in between.
                if shelf
                    .account(&issuer.directory)
                    .await?
                    .is_some_and(|kept| key(&kept).is_some())
                {
                    lease.release().await;
                    continue;
                }
                let made = Self::make(client, shelf, &lease, issuer, contact).await;
                lease.release().await;
                return made;
            }
            sleep(OTHER_ROUND).await;
        }
        Err(Failure::Slow {
            what: "the account that another replica makes",
        })
    }

    /// A signed request of this account.
    pub(super) async fn post(&self, url: &str, payload: Option<&Value>) -> Result<Reply, Failure> {
        let signer = Signer::Account(&self.url);
        self.client.post(&self.key, &signer, url, payload).await
    }

    /// What answers a challenge with `token`.
    pub(super) fn authorization(&self, token: &str) -> String {
        self.key.authorization(token)
    }

    /// Makes and keeps a new one. Terms of service are agreed to: a certificate cannot be had without.
    async fn make(
        client: Client,
        shelf: &Shelf,
        lease: &Lease,
        issuer: &Issuer,
        contact: Option<&str>,
    ) -> Result<Self, Failure> {
        let key = AccountKey::draw().ok_or(Failure::NoKey)?;
        let url = client.directory.new_account.clone();
        let mut payload = json!({ "termsOfServiceAgreed": true, "contact": contacts(contact) });
        if let Some(binding) = &issuer.binding {
            let bound = key.bound(&binding.kid, &binding.key.0, &url);
            payload["externalAccountBinding"] = bound.ok_or(Failure::NoKey)?;
        } else if client.directory.meta.external_account_required {
            return Err(Failure::Problem(super::problem::Problem::binding_needed()));
        }
        let made = lease
            .during(client.post(&key, &Signer::Key, &url, Some(&payload)))
            .await??;
        let account = made.field("location").map(str::to_owned);
        let account = account.ok_or_else(|| made.not_acme("no account came"))?;
        let kept = KeptAccount {
            url: account.clone(),
            key: URL_SAFE_NO_PAD.encode(key.pkcs8()),
            contact: contact.map(str::to_owned),
        };
        shelf.keep_account(lease, &issuer.directory, &kept).await?;
        Ok(Self {
            client,
            url: account,
            key,
        })
    }

    /// Tells the certificate authority of a changed contact.
    async fn tell(
        &self,
        shelf: &Shelf,
        issuer: &Issuer,
        kept: KeptAccount,
        contact: Option<&str>,
    ) -> Result<(), Failure> {
        if kept.contact.as_deref() == contact {
            return Ok(());
        }
        let payload = json!({ "contact": contacts(contact) });
        self.post(&self.url, Some(&payload)).await?;
        if let Some(lease) = shelf.lock_account(&issuer.directory).await? {
            let contact = contact.map(str::to_owned);
            let kept = KeptAccount { contact, ..kept };
            shelf.keep_account(&lease, &issuer.directory, &kept).await?;
            lease.release().await;
        }
        Ok(())
    }
}

fn contacts(contact: Option<&str>) -> Value {
    contact
        .map(|contact| format!("mailto:{contact}"))
        .into_iter()
        .collect()
}

fn key(kept: &KeptAccount) -> Option<AccountKey> {
    let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(&kept.key).ok()?);
    AccountKey::from_pkcs8(&bytes)
}

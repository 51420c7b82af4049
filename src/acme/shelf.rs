//! What is kept in the store: accounts, certificates with their keys, attempts, and what one replica tells the others.
//!
//! Everything stands under a short name of the first certificate authority of the listener, so that an order at a
//! staging directory is never taken for one at the real one. A certificate and its key are one blob: they cannot come
//! apart.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::store::{Lease, Store, StoreError};

use super::jose::sha256;

/// The part of a store that belongs to one directory.
#[derive(Clone)]
pub(super) struct Shelf {
    store: Store,
    directory: String,
}

/// An account at a certificate authority.
#[derive(Clone, Deserialize, Serialize)]
pub(super) struct KeptAccount {
    pub(super) url: String,
    /// PKCS#8, base64url.
    pub(super) key: String,
    /// As it was last told; a mail address.
    pub(super) contact: Option<String>,
}

/// A certificate that was ordered.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct KeptCertificate {
    /// The directory that issued it, one of the listener's.
    pub(super) directory: String,
    /// The second since 1970 at which it came.
    pub(super) issued: i64,
    /// PEM.
    pub(super) key: String,
    /// PEM, leaf first.
    pub(super) chain: String,
}

/// What became of the attempts since the last certificate.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Attempts {
    pub(super) failures: u32,
    /// Not before this second since 1970.
    pub(super) next: i64,
    /// Why the last one failed.
    pub(super) said: String,
    /// Which settings they were made with.
    pub(super) settings: String,
}

/// That somebody wants a new certificate now.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Wish {
    /// Nanoseconds since 1970: which wish it is.
    pub(super) at: u64,
    /// The serial number of the certificate to be revoked once there is another one.
    pub(super) revoke: Option<String>,
}

/// A challenge that any replica may be asked for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Posed {
    pub(super) token: String,
    pub(super) authorization: String,
    /// Of the process that poses it: it answers by itself.
    pub(super) by: String,
    /// A second since 1970: who posed it may be gone.
    pub(super) until: i64,
}

/// What a blob is about.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Attempts,
    Certificate,
    Posed,
    Wish,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Certificate => "certificates",
            Self::Posed => "challenges",
            Self::Wish => "wishes",
        }
    }
}

impl Shelf {
    pub(super) fn new(store: Store, directory: &str) -> Self {
        let directory = short(directory);
        Self { store, directory }
    }

    /// Whether there may be other replicas.
    pub(super) fn is_shared(&self) -> bool {
        self.store.is_shared()
    }

    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        kind: Kind,
        label: &str,
    ) -> Result<Option<T>, StoreError> {
        let name = self.name(kind, label);
        let blob = self.store.get(&name).await?;
        blob.map(|blob| read(&name, &blob)).transpose()
    }

    pub(super) async fn has(&self, kind: Kind, label: &str) -> Result<bool, StoreError> {
        Ok(self.store.get(&self.name(kind, label)).await?.is_some())
    }

    pub(super) async fn put<T: Serialize>(
        &self,
        kind: Kind,
        label: &str,
        value: &T,
    ) -> Result<(), StoreError> {
        let name = self.name(kind, label);
        self.store.put(&name, &written(&name, value)?).await
    }

    /// As [`Self::put`], unless the lock is somebody else's by now.
    pub(super) async fn put_under<T: Serialize>(
        &self,
        lease: &Lease,
        kind: Kind,
        label: &str,
        value: &T,
    ) -> Result<(), StoreError> {
        let name = self.name(kind, label);
        lease.put(&name, &written(&name, value)?).await
    }

    pub(super) async fn remove(&self, kind: Kind, label: &str) -> Result<(), StoreError> {
        self.store.remove(&self.name(kind, label)).await
    }

    /// Whoever holds it orders for `label`.
    pub(super) async fn lock(&self, label: &str) -> Result<Option<Lease>, StoreError> {
        self.store.lock(&self.name(Kind::Certificate, label)).await
    }

    /// What came last for `label` from any directory.
    pub(super) async fn last(&self, label: &str) -> Result<Option<KeptCertificate>, StoreError> {
        let name = last(label);
        let blob = self.store.get(&name).await?;
        blob.map(|blob| read(&name, &blob)).transpose()
    }

    pub(super) async fn keep_last(
        &self,
        lease: &Lease,
        label: &str,
        kept: &KeptCertificate,
    ) -> Result<(), StoreError> {
        let name = last(label);
        lease.put(&name, &written(&name, kept)?).await
    }

    pub(super) async fn account(&self, directory: &str) -> Result<Option<KeptAccount>, StoreError> {
        let name = account(directory);
        let blob = self.store.get(&name).await?;
        blob.map(|blob| read(&name, &blob)).transpose()
    }

    pub(super) async fn keep_account(
        &self,
        lease: &Lease,
        directory: &str,
        kept: &KeptAccount,
    ) -> Result<(), StoreError> {
        let name = account(directory);
        lease.put(&name, &written(&name, kept)?).await
    }

    pub(super) async fn forget_account(&self, directory: &str) -> Result<(), StoreError> {
        self.store.remove(&account(directory)).await
    }

    /// Whoever holds it makes the account.
    pub(super) async fn lock_account(&self, directory: &str) -> Result<Option<Lease>, StoreError> {
        self.store.lock(&account(directory)).await
    }

    fn name(&self, kind: Kind, label: &str) -> String {
        format!("{}/{}/{}", kind.folder(), self.directory, file(label))
    }
}

fn last(label: &str) -> String {
    format!("certificates/last/{}", file(label))
}

fn file(label: &str) -> String {
    let plain = |c: char| match c {
        '*' => '_',
        ':' => '-',
        c => c,
    };
    label.chars().map(plain).collect()
}

fn account(directory: &str) -> String {
    format!("accounts/{}", short(directory))
}

/// The host of a directory and four bytes of a digest of the whole: readable, and never the same for two.
fn short(directory: &str) -> String {
    let rest = directory.strip_prefix("https://").unwrap_or(directory);
    let host = rest.split(['/', ':', '?']).next().unwrap_or_default();
    let host: String = host
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
        .collect();
    let digest = sha256(directory.as_bytes());
    let mark: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
    format!("{}-{mark}", host.trim_start_matches('.'))
}

fn read<T: DeserializeOwned>(name: &str, blob: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(blob).map_err(|error| StoreError::Foreign {
        name: name.to_owned(),
        why: error.to_string(),
    })
}

fn written<T: Serialize>(name: &str, value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Foreign {
        name: name.to_owned(),
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_directory_has_a_name_of_its_own() {
        let one = short("https://acme-v02.api.letsencrypt.org/directory");
        assert!(one.starts_with("acme-v02.api.letsencrypt.org-"), "{one}");
        assert_ne!(one, short("https://acme-v02.api.letsencrypt.org/other"));
        assert!(short("https://[::1]:14000/dir").starts_with('-'));
    }

    #[tokio::test]
    async fn what_is_kept_comes_back_and_labels_become_plain_names() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(Store::own(folder.path()), "https://ca.example/dir");
        let wish = Wish {
            at: 7,
            revoke: None,
        };
        for label in ["*.apps.example", "2001:db8::1", "tools.example"] {
            assert_eq!(shelf.get::<Wish>(Kind::Wish, label).await.unwrap(), None);
            shelf.put(Kind::Wish, label, &wish).await.unwrap();
            let found = shelf.get::<Wish>(Kind::Wish, label).await.unwrap();
            assert_eq!(found, Some(wish.clone()));
            assert!(shelf.get::<KeptAccount>(Kind::Wish, label).await.is_err());
            shelf.remove(Kind::Wish, label).await.unwrap();
            shelf.remove(Kind::Wish, label).await.unwrap();
        }
        let lease = shelf.lock("tools.example").await.unwrap().unwrap();
        assert!(shelf.lock("tools.example").await.unwrap().is_none());
        lease.release().await;
        assert!(shelf.lock("tools.example").await.unwrap().is_some());
    }
}

//! Named blobs that outlive the process, and that replicas share: in a folder, or in Redis or Valkey.
//!
//! A blob is replaced whole or not at all, and what [`Store::put`] returned from is durable (in Redis: as durable as it
//! is set up to be). A [`Lease`] says that one process at a time works on something; what is put under it is refused
//! once somebody else holds it. What lies where others could read it is sealed, bound to its name. Nothing here knows
//! what a blob means.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::config::typed::RedisStore;
use crate::reach::{Reach, TrustError};
use crate::secret::{OpenError, SealKeys};

mod folder;
mod redis;

use folder::Folder;
use redis::Redis;

/// One store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    place: Arc<Place>,
    /// `None`: only this user of this machine can read it.
    seal: Option<SealKeys>,
}

enum Place {
    Folder(Folder),
    Redis(Box<Redis>),
}

/// Held by one process at a time: in a folder until it ends, in Redis as long as it is renewed.
#[must_use = "dropping it lets others in"]
pub struct Lease {
    store: Store,
    held: Held,
}

enum Held {
    Folder(folder::Lock),
    Redis(redis::Lock),
}

/// Why a store cannot be used at present. The text says what mends it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store {}: {source}; check that it exists, and that this user may write there", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("the store {address}: {why}; check `limits.store` and that the server runs")]
    Redis { address: String, why: String },
    #[error("the store holds something called `{name}` that is not ours: {why}; remove it there")]
    Foreign { name: String, why: String },
    #[error("the store holds `{name}` sealed: {source}")]
    Sealed { name: String, source: OpenError },
    #[error("`{name}` is larger than a store takes")]
    TooLarge { name: String },
    #[error("somebody else holds the lock on `{name}` by now")]
    Lost { name: String },
}

/// Bytes of one blob: a certificate chain with its key is a twentieth of it.
const BLOB_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a name.
const NAME_BYTES_MAX: usize = 512;

impl Store {
    /// A folder that only this user of this machine can read; made at the first use.
    pub fn own(folder: &Path) -> Self {
        Self {
            place: Arc::new(Place::Folder(Folder::new(folder))),
            seal: None,
        }
    }

    /// A folder on a volume that replicas share.
    pub fn shared(folder: &Path, seal: SealKeys) -> Self {
        Self {
            place: Arc::new(Place::Folder(Folder::new(folder))),
            seal: Some(seal),
        }
    }

    /// A Redis or Valkey server that replicas share; connected to at the first use.
    ///
    /// # Errors
    /// Its file of roots cannot be used.
    pub fn redis(server: &RedisStore, reach: Reach, seal: SealKeys) -> Result<Self, TrustError> {
        Ok(Self {
            place: Arc::new(Place::Redis(Box::new(Redis::new(server, reach)?))),
            seal: Some(seal),
        })
    }

    /// Whether other replicas may read and write it too.
    pub fn is_shared(&self) -> bool {
        self.seal.is_some()
    }

    /// The blob called `name`, if there is one.
    pub async fn get(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        check(name)?;
        let found = match &*self.place {
            Place::Folder(folder) => folder.get(name)?,
            Place::Redis(redis) => redis.get(name).await?,
        };
        let (Some(found), Some(keys)) = (&found, &self.seal) else {
            return Ok(found);
        };
        let text = std::str::from_utf8(found).map_err(|_| StoreError::Sealed {
            name: name.to_owned(),
            source: OpenError::Unknown,
        })?;
        let opened = keys.open(name, text).map_err(|source| StoreError::Sealed {
            name: name.to_owned(),
            source,
        })?;
        Ok(Some(opened))
    }

    /// Puts `blob` in the place of what was called `name`.
    pub async fn put(&self, name: &str, blob: &[u8]) -> Result<(), StoreError> {
        let bytes = self.sealed(name, blob)?;
        match &*self.place {
            Place::Folder(folder) => folder.put(name, &bytes),
            Place::Redis(redis) => redis.put(name, &bytes).await,
        }
    }

    /// Removes the blob called `name`; no error if there is none.
    pub async fn remove(&self, name: &str) -> Result<(), StoreError> {
        check(name)?;
        match &*self.place {
            Place::Folder(folder) => folder.remove(name),
            Place::Redis(redis) => redis.remove(name).await,
        }
    }

    /// The lock called `name`; `None` while somebody else holds it.
    pub async fn lock(&self, name: &str) -> Result<Option<Lease>, StoreError> {
        check(name)?;
        let held = match &*self.place {
            Place::Folder(folder) => folder.lock(name)?.map(Held::Folder),
            Place::Redis(redis) => redis.lock(name).await?.map(Held::Redis),
        };
        let store = self.clone();
        Ok(held.map(|held| Lease { store, held }))
    }

    fn sealed(&self, name: &str, blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        check(name)?;
        let too_large = || StoreError::TooLarge {
            name: name.to_owned(),
        };
        if blob.len() > BLOB_BYTES_MAX {
            return Err(too_large());
        }
        match &self.seal {
            None => Ok(Zeroizing::new(blob.to_vec())),
            Some(keys) => {
                let text = keys.seal(name, blob).map_err(|_| too_large())?;
                Ok(Zeroizing::new(text.into_bytes()))
            }
        }
    }
}

impl Lease {
    /// Does `work` and keeps the lock meanwhile; gives up the work when the lock is lost.
    ///
    /// # Errors
    /// The lock is somebody else's, or could not be renewed before it expired.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> Result<T, StoreError> {
        match (&self.held, &*self.store.place) {
            (Held::Redis(lock), Place::Redis(redis)) => tokio::select! {
                done = work => Ok(done),
                lost = redis.keep(lock) => Err(lost),
            },
            _ => Ok(work.await), // the operating system keeps it
        }
    }

    /// As [`Store::put`], unless the lock is somebody else's by now.
    pub async fn put(&self, name: &str, blob: &[u8]) -> Result<(), StoreError> {
        let bytes = self.store.sealed(name, blob)?;
        match (&self.held, &*self.store.place) {
            (Held::Redis(lock), Place::Redis(redis)) => redis.put_under(lock, name, &bytes).await,
            (Held::Folder(lock), Place::Folder(folder)) => {
                folder.still_held(lock)?;
                folder.put(name, &bytes)
            }
            _ => Ok(()), // a lease is of its own store
        }
    }

    /// Lets others in.
    pub async fn release(self) {
        if let (Held::Redis(lock), Place::Redis(redis)) = (&self.held, &*self.store.place) {
            redis.release(lock).await;
        }
    }
}

/// A name is a relative path of plain words: it becomes a file name and a key.
fn check(name: &str) -> Result<(), StoreError> {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
    };
    if name.len() <= NAME_BYTES_MAX && name.split('/').all(plain) {
        return Ok(());
    }
    Err(StoreError::Foreign {
        name: name.to_owned(),
        why: "not a name".to_owned(),
    })
}

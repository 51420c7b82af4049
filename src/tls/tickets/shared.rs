//! Ticket keys that replicas share: one blob in a store, sealed, read by all and written by one.
//!
//! Whoever finds that the present or the next key is missing takes the store's lock, looks again, and draws it; the
//! others take over what stands there. A store that cannot be reached costs nothing at first: the next key is known a
//! whole period ahead, and after that each replica goes on with keys of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::config::typed::{Process, TicketStore};
use crate::reach::Reach;
use crate::secret::SealKeys;
use crate::store::{Store, StoreError};

use super::{Ring, TicketKeys, now};

const NAME: &str = "tickets/keys";
const LOCK: &str = "tickets/lock";
/// Until somebody else has drawn the keys, or the store can be reached again.
const SOON: Duration = Duration::from_millis(250);
const LATE: Duration = Duration::from_secs(30);

/// Where the keys of one process are shared.
#[derive(Clone)]
pub(in crate::tls) struct Sharing {
    keys: Arc<TicketKeys>,
    store: Store,
}

impl Sharing {
    /// As configured; `None` if they are not shared. A key file is read in any case: it is no use if it cannot be.
    ///
    /// # Errors
    /// Which key of `[process]` it is about, and the text.
    pub(in crate::tls) fn open(
        keys: &Arc<TicketKeys>,
        process: &Process,
        reach: Reach,
    ) -> Result<Option<Self>, (&'static str, String)> {
        let seal = process.key_file.as_deref().map(seal).transpose()?;
        let (Some(place), Some(seal)) = (&process.tickets.store, seal) else {
            return Ok(None); // without a key the configuration names no store
        };
        let store = match place {
            TicketStore::Folder(folder) => Store::shared(folder, seal),
            TicketStore::Redis(server) => Store::redis(server, reach, seal)
                .map_err(|error| ("process.tickets.store", error.to_string()))?,
        };
        let keys = Arc::clone(keys);
        Ok(Some(Self { keys, store }))
    }

    /// Takes over the keys that are shared, and draws those that are missing unless somebody else does. Gives how long
    /// it may rest.
    pub(in crate::tls) async fn turn(&self) -> Result<Duration, StoreError> {
        let mut ring = self.read().await?;
        if !ring.is_whole(now()) {
            match self.store.lock(LOCK).await? {
                None => {
                    self.keys.install(ring, now()); // what there is
                    return Ok(SOON);
                }
                Some(lease) => {
                    ring = self.read().await?; // somebody may have been faster
                    let written = if ring.extend(self.keys.every(), now()) {
                        lease.put(NAME, &encode(&ring)?).await
                    } else {
                        Ok(())
                    };
                    lease.release().await;
                    written?;
                }
            }
        }
        self.keys.install(ring, now());
        Ok((Duration::from_millis(self.keys.every()) / 4).clamp(SOON, LATE))
    }

    /// How long to rest after a failure.
    pub(in crate::tls) fn rest(&self) -> Duration {
        (Duration::from_millis(self.keys.every()) / 16).clamp(SOON, LATE)
    }

    async fn read(&self) -> Result<Ring, StoreError> {
        let Some(blob) = self.store.get(NAME).await? else {
            return Ok(Ring::default());
        };
        let mut ring: Ring = serde_json::from_slice(&blob).map_err(|error| foreign(&error))?;
        ring.tidy(now());
        Ok(ring)
    }
}

fn seal(path: &Path) -> Result<SealKeys, (&'static str, String)> {
    SealKeys::load(path).map_err(|error| ("process.key_file", error.to_string()))
}

fn encode(ring: &Ring) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let text = serde_json::to_vec(ring).map_err(|error| foreign(&error))?;
    Ok(Zeroizing::new(text))
}

/// The position alone: the text holds keys.
fn foreign(error: &serde_json::Error) -> StoreError {
    StoreError::Foreign {
        name: NAME.to_owned(),
        why: format!("no keys at line {} column {}", error.line(), error.column()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustls::server::ProducesTickets as _;

    use super::*;
    use crate::secret;
    use crate::tls::tickets::Ticketer;

    const HOUR: Duration = Duration::from_secs(3600);

    fn replica(folder: &Path, every: Duration) -> (Sharing, Arc<Ticketer>) {
        let key = folder.join("key");
        if !key.exists() {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::write(&key, &**secret::draw()).unwrap();
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        let keys = TicketKeys::new(every);
        let store = Store::shared(&folder.join("shared"), SealKeys::load(&key).unwrap());
        let ticketer = Ticketer::new(Arc::clone(&keys), Vec::new());
        (Sharing { keys, store }, ticketer)
    }

    #[tokio::test]
    async fn replicas_that_share_a_store_open_each_others_tickets() {
        let folder = tempfile::tempdir().unwrap();
        let (one, of_one) = replica(folder.path(), HOUR);
        let (two, of_two) = replica(folder.path(), HOUR);
        assert_eq!(one.turn().await.unwrap(), LATE);
        two.turn().await.unwrap();
        let ticket = of_one.encrypt(b"session").unwrap();
        assert_eq!(of_two.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        let back = of_two.encrypt(b"session").unwrap();
        assert!(of_one.decrypt(&back).is_some());
        // Nothing of it lies open in the folder.
        let file = folder.path().join("shared").join(NAME);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("sealed:v1:") && !text.contains("secret"));
    }

    #[tokio::test]
    async fn only_who_holds_the_lock_draws_keys() {
        let folder = tempfile::tempdir().unwrap();
        let (one, _) = replica(folder.path(), HOUR);
        let (two, of_two) = replica(folder.path(), HOUR);
        let lease = one.store.lock(LOCK).await.unwrap().unwrap();
        assert_eq!(two.turn().await.unwrap(), SOON);
        assert!(of_two.encrypt(b"session").is_none());
        assert!(one.store.get(NAME).await.unwrap().is_none());
        drop(lease);
        two.turn().await.unwrap();
        assert!(of_two.encrypt(b"session").is_some());
        // One that looks again changes nothing.
        let before = one.store.get(NAME).await.unwrap();
        two.turn().await.unwrap();
        one.turn().await.unwrap();
        assert_eq!(one.store.get(NAME).await.unwrap(), before);
    }

    #[tokio::test]
    async fn what_is_not_ours_is_left_alone_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let (one, _) = replica(folder.path(), HOUR);
        let other = tempfile::tempdir().unwrap();
        let (stranger, _) = replica(other.path(), HOUR);
        let store = Store::shared(
            &folder.path().join("shared"),
            SealKeys::load(&other.path().join("key")).unwrap(),
        );
        let stranger = Sharing { store, ..stranger };
        stranger.turn().await.unwrap();
        let error = one.turn().await.unwrap_err();
        assert!(error.to_string().contains("tickets/keys"), "{error}");
        assert!(stranger.turn().await.is_ok(), "it was overwritten");
        stranger.store.put(NAME, b"[1]").await.unwrap();
        let error = stranger.turn().await.unwrap_err().to_string();
        assert!(error.contains("no keys at line 1"), "{error}");
    }
}

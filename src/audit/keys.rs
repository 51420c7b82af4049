//! The keys that sign seals, one for each segment: what the log was sealed with before cannot be sealed again.
//!
//! ```text
//! state_dir/audit/seal.key     the private key in force
//! state_dir/audit/seal.next    the one that the last seal of the segment will announce, made ahead
//! state_dir/audit/seal.pub     the first public key of the log, never changed: keep a copy elsewhere
//! state_dir/audit/seal.chain   every seal that announced a key, exactly as in the log, so that the chain outlives
//!                              segments that are pruned
//! ```
//!
//! A key is on the disk before it is announced, and takes the place of its predecessor only once the announcement is.
//! In between both are there, and the log says which one counts. The predecessor is overwritten where the file system
//! writes in place, and removed.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::frame::Kind;
use super::note::{SigningKey, VerifierKey};
use super::opening::OpenError;
use super::order::order;
use super::recover::Recovered;
use super::segment::Store;
use super::{scan, seal};
use crate::clock::Id;
use crate::disk::Access;
use crate::workers;

const KEY: &str = "seal.key";
const NEXT: &str = "seal.next";
const PUB: &str = "seal.pub";
pub(super) const CHAIN: &str = "seal.chain";
/// How often what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How long the end of the log waits for the last key to be put away.
const END_WAIT: Duration = Duration::from_secs(2);

/// Where the key of the next segment comes from.
pub(super) enum Keys {
    /// A thread of its own makes it, so that a writer never waits for it.
    Ahead {
        made: Receiver<SigningKey>,
        announced: Option<SyncSender<Vec<u8>>>,
    },
    /// Made when needed.
    #[cfg(test)]
    Here(Vault),
}

/// The files.
pub(super) struct Vault {
    store: Store,
    log_id: String,
    /// Bytes of the chain.
    chain: u64,
    /// The seal that announced the key in `seal.next`, while that has not taken its place.
    owed: Option<Vec<u8>>,
}

impl Vault {
    /// Goes on with what was recovered, or begins anew where there is nothing.
    pub(super) fn recover(
        store: &Store,
        log: &[Store],
        recovered: &Recovered,
    ) -> Result<(Self, SigningKey), OpenError> {
        match &recovered.tail.key {
            None if recovered.next > 1 => Err(OpenError::Unsealed {
                dir: store.dir.clone(),
            }),
            None => Self::create(store),
            Some(key) => {
                let opened = Self::open(store, key, || match &recovered.announced {
                    Some(seal) => Ok(Some(seal.clone())),
                    None => announcement(log, key),
                });
                match opened {
                    Err(OpenError::SealKey { .. }) if recovered.is_damaged => {
                        Self::open_despite(store, key).map_or(opened, Ok)
                    }
                    opened => opened,
                }
            }
        }
    }

    /// Goes on with a key that is there, whose announcement is among what is damaged; `verify` tells that it is missing.
    fn open_despite(store: &Store, lost: &VerifierKey) -> Option<(Self, SigningKey)> {
        let bytes = Self::new(store, lost.log_id().to_owned()).read(KEY).ok()?;
        let key = SigningKey::parse(std::str::from_utf8(&bytes).ok()?)?;
        let (vault, key) = Self::open(store, key.public(), || Ok(None)).ok()?;
        (key.public().name() == lost.name()).then_some((vault, key))
    }

    /// Begins the chain of a new log.
    fn create(store: &Store) -> Result<(Self, SigningKey), OpenError> {
        let log_id = Id::new().to_string();
        let vault = Self::new(store, log_id);
        let path = vault.path(KEY);
        let made = vault.first();
        let key = made.map_err(|error| OpenError::io(&path, "write", error))?;
        tracing::info!(key = %key.public(), "a new audit log; keep its key elsewhere, to verify the log with");
        Ok((vault, key))
    }

    /// Goes on with the key that is in force at the end of the log. `announced` finds the seal that says so.
    fn open(
        store: &Store,
        in_force: &VerifierKey,
        announced: impl FnOnce() -> io::Result<Option<Vec<u8>>>,
    ) -> Result<(Self, SigningKey), OpenError> {
        let mut vault = Self::new(store, in_force.log_id().to_owned());
        let path = vault.path(KEY);
        let failed = |error| OpenError::io(&path, "read or replace", error);
        // A torn end is written over.
        let chain = vault.read(CHAIN).map_err(failed)?;
        vault.chain = memchr::memrchr(b'\n', &chain).map_or(0, |at| at as u64 + 1);
        let held = |name| -> io::Result<Option<SigningKey>> {
            let bytes = vault.read(name)?;
            let key = std::str::from_utf8(&bytes).ok().and_then(SigningKey::parse);
            Ok(key.filter(|key| key.public() == in_force))
        };
        if let Some(key) = held(KEY).map_err(failed)? {
            return Ok((vault, key));
        }
        let next = held(NEXT).map_err(failed)?;
        let seal = match next {
            Some(_) => announced().map_err(failed)?,
            None => None,
        };
        match (next, seal) {
            (Some(key), Some(announced)) => {
                vault.owed = Some(announced);
                vault.settle().map_err(failed)?;
                Ok((vault, key))
            }
            _ => Err(OpenError::SealKey {
                path,
                key: in_force.to_string(),
            }),
        }
    }

    fn new(store: &Store, log_id: String) -> Self {
        Self {
            store: store.clone(),
            log_id,
            chain: 0,
            owed: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.store.dir.join(name)
    }

    /// A small file; empty if it is not there.
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        match self.store.disk.read(&self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read,
        }
    }

    /// The first key, in place of whatever another log has left here.
    fn first(&self) -> io::Result<SigningKey> {
        for name in [KEY, NEXT, PUB, CHAIN] {
            self.remove(name)?;
        }
        let key = self.draw()?;
        self.create_with(KEY, &secret(&key)?)?;
        self.create_with(PUB, format!("{}\n", key.public()).as_bytes())?;
        self.create_with(CHAIN, b"")?;
        self.sync()?;
        Ok(key)
    }

    /// Puts away what is owed, then makes the key of the next segment.
    fn prepare(&mut self) -> io::Result<SigningKey> {
        self.settle()?;
        self.remove(NEXT)?; // of an earlier process, never announced
        let key = self.draw()?;
        self.create_with(NEXT, &secret(&key)?)?;
        self.sync()?;
        Ok(key)
    }

    /// Puts the announced key in the place of its predecessor, which is gone then.
    fn settle(&mut self) -> io::Result<()> {
        let Some(line) = &self.owed else {
            return Ok(());
        };
        let (path, disk) = (self.path(CHAIN), &self.store.disk);
        if !self.read(CHAIN)?.ends_with(line) {
            disk.open(&path, Access::Durable)?
                .write_all_at(line, self.chain)?;
            self.chain += line.len() as u64;
        }
        if !self.read(NEXT)?.is_empty() {
            let zeros = vec![b'0'; self.read(KEY)?.len()];
            disk.open(&self.path(KEY), Access::Durable)
                .and_then(|file| file.write_all_at(&zeros, 0))
                .ok(); // renaming removes it in any case
            disk.rename(&self.path(NEXT), &self.path(KEY))?;
        }
        self.sync()?;
        self.owed = None;
        Ok(())
    }

    fn draw(&self) -> io::Result<SigningKey> {
        SigningKey::draw(&self.log_id).ok_or_else(no_key)
    }

    fn create_with(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.store.disk.create_with(&self.path(name), content)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match self.store.disk.remove(&self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.store.disk.sync_dir(&self.store.dir)
    }

    /// Makes keys and puts them away, until nobody asks any more.
    fn run(mut self, give: &SyncSender<SigningKey>, announced: &Receiver<Vec<u8>>) {
        let mut told = false;
        loop {
            match self.prepare() {
                Ok(key) => {
                    told = false;
                    if give.send(key).is_err() {
                        return;
                    }
                    match announced.recv() {
                        Ok(line) => self.owed = Some(line),
                        Err(_) => return,
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "the next key of the audit log's seals cannot be made; the present one stays");
                    }
                    match announced.recv_timeout(RETRY) {
                        Err(RecvTimeoutError::Disconnected) => {
                            self.settle().ok(); // the next start does it otherwise
                            return;
                        }
                        _ => continue,
                    }
                }
            }
        }
    }
}

impl Keys {
    /// Starts the thread that keeps them.
    pub(super) fn start(vault: Vault) -> io::Result<Self> {
        let (give, made) = sync_channel(1);
        let (announce, announced) = sync_channel(1);
        workers::thread("tollgate-keys", move || vault.run(&give, &announced))?;
        Ok(Self::Ahead {
            made,
            announced: Some(announce),
        })
    }

    /// The next key, if it is made; it is on the disk then.
    pub(super) fn next(&mut self) -> Option<SigningKey> {
        match self {
            Self::Ahead { made, .. } => made.try_recv().ok(),
            #[cfg(test)]
            Self::Here(vault) => vault.prepare().ok(),
        }
    }

    /// Says that the key last given by [`Self::next`] is announced, by the durable line `seal`.
    pub(super) fn announced(&mut self, seal: &[u8]) {
        match self {
            Self::Ahead { announced, .. } => {
                if let Some(announced) = announced {
                    announced.try_send(seal.to_vec()).ok(); // one key is under way at most
                }
            }
            #[cfg(test)]
            Self::Here(vault) => {
                vault.owed = Some(seal.to_vec());
                vault.settle().ok(); // tried again with the next key
            }
        }
    }

    /// Waits a little for the last key to be put away; the next start does it otherwise.
    pub(super) fn end(&mut self) {
        match self {
            Self::Ahead { made, announced } => {
                *announced = None;
                // One that was made is of no use any more; then the thread ends.
                while made.recv_timeout(END_WAIT).is_ok() {}
            }
            #[cfg(test)]
            Self::Here(_) => {}
        }
    }
}

fn secret(key: &SigningKey) -> io::Result<Vec<u8>> {
    key.to_text().map(String::into_bytes).ok_or_else(no_key)
}

fn no_key() -> io::Error {
    io::Error::other("no key can be made")
}

/// The first key of the log in the directory of `store`, as its file has it.
pub(super) fn first(store: &Store) -> Option<VerifierKey> {
    let bytes = store.disk.read(&store.dir.join(PUB)).ok()?;
    VerifierKey::parse(std::str::from_utf8(&bytes).ok()?.trim())
}

/// The seal that announced `key`, which a process could not put down in the chain for as long as it ran.
fn announcement(log: &[Store], key: &VerifierKey) -> io::Result<Option<Vec<u8>>> {
    for segment in order(log)?.segments.iter().rev() {
        let Some(store) = log.get(segment.at) else {
            continue;
        };
        let mut found = None;
        scan::scan(store, segment.name, segment.limit, |line, bytes, _| {
            if line.kind == Kind::Seal && seal::announces(bytes).as_ref() == Some(key) {
                found = Some([bytes, b"\n"].concat());
            }
        })?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

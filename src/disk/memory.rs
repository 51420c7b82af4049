//! A disk in memory that forgets what was not synced, tears what was being written and fails when told to.
//!
//! Every changing call counts. A [`Fault`] says what happens from the n-th on; [`Memory::crash`] gives what would be
//! there after a power cut.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Access;

#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<(Mutex<State>, Condvar)>);

pub(crate) struct Handle {
    disk: Memory,
    file: usize,
    durable: bool,
}

#[derive(Clone, Default)]
struct State {
    files: Vec<Content>,
    /// As the running system sees them, and as a power cut would leave them.
    seen: BTreeMap<PathBuf, usize>,
    kept: BTreeMap<PathBuf, usize>,
    calls: u64,
    fault: Option<Fault>,
    bytes_max: Option<u64>,
    hangs: bool,
    stuck: bool,
}

#[derive(Clone, Default)]
struct Content {
    seen: Vec<u8>,
    kept: Vec<u8>,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Call number `at` and the `count - 1` after it fail; a write leaves `torn` of its bytes behind.
    Fail { at: u64, count: u64, torn: Torn },
    /// From call number `at` on nothing works any more; that call, if a write, leaves `torn` of its bytes.
    Cut { at: u64, torn: Torn },
    /// Call number `at` hangs until the fault is taken away: before it has done anything, or when it has `landed`.
    Hang { at: u64, landed: bool },
}

/// Which bytes of a failing write arrive: a device need not write in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Torn {
    pub(crate) from: usize,
    pub(crate) to: usize,
}

impl Torn {
    pub(crate) const ALL: Self = Self {
        from: 0,
        to: usize::MAX,
    };
    pub(crate) const NONE: Self = Self { from: 0, to: 0 };
}

impl Memory {
    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
        self.0.1.notify_all();
    }

    /// Whether a call hangs at present.
    pub(crate) fn is_stuck(&self) -> bool {
        self.state().stuck
    }

    /// Room for all files together.
    pub(crate) fn set_bytes_max(&self, bytes: Option<u64>) {
        self.state().bytes_max = bytes;
    }

    /// Whether writes hang until told otherwise.
    pub(crate) fn set_hangs(&self, hangs: bool) {
        self.state().hangs = hangs;
        self.0.1.notify_all();
    }

    fn until_it_moves(&self) {
        let mut state = self.state();
        while state.hangs {
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn free(&self) -> u64 {
        let state = self.state();
        state
            .bytes_max
            .map_or(u64::MAX, |max| max.saturating_sub(state.used()))
    }

    /// Its own.
    pub(super) fn device(&self) -> u64 {
        Arc::as_ptr(&self.0).addr() as u64
    }

    /// Changing calls until now.
    pub(crate) fn calls(&self) -> u64 {
        self.state().calls
    }

    /// The disk after a power cut: a new one with what was durable.
    pub(crate) fn crash(&self) -> Self {
        let state = self.state();
        let mut after = State {
            files: state.files.clone(),
            seen: state.kept.clone(),
            kept: state.kept.clone(),
            ..State::default()
        };
        for file in &mut after.files {
            file.seen = file.kept.clone();
        }
        drop(state);
        Self(Arc::new((Mutex::new(after), Condvar::new())))
    }

    /// Reads a whole file.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state();
        let file = state.seen.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.files[*file].seen.clone())
    }

    /// Replaces a whole file, behind everybody's back.
    pub(crate) fn put(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state();
        let file = match state.seen.get(path) {
            Some(file) => *file,
            None => state.add(path),
        };
        state.kept.insert(path.to_owned(), file);
        state.files[file] = Content {
            seen: bytes.to_vec(),
            kept: bytes.to_vec(),
        };
    }

    /// Whether `bytes` are anywhere, files included that have no name any more.
    pub(crate) fn holds(&self, bytes: &[u8]) -> bool {
        let state = self.state();
        let mut contents = state.files.iter().flat_map(|file| [&file.seen, &file.kept]);
        contents.any(|content| memchr::memmem::find(content, bytes).is_some())
    }

    pub(super) fn make_dir(&self, _: &Path) -> io::Result<()> {
        let (state, called) = self.enter();
        called?;
        self.leave(state);
        Ok(())
    }

    pub(super) fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        let name = |path: &PathBuf| path.file_name()?.to_str().map(str::to_owned);
        Ok(self
            .state()
            .seen
            .keys()
            .filter(|path| path.parent() == Some(dir))
            .filter_map(name)
            .collect())
    }

    pub(super) fn create_zeroed(&self, path: &Path, bytes: u64) -> io::Result<()> {
        self.create(path, vec![0; usize::try_from(bytes).unwrap()])
    }

    pub(super) fn create_with(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.create(path, content.to_vec())
    }

    fn create(&self, path: &Path, content: Vec<u8>) -> io::Result<()> {
        let (mut state, called) = self.enter();
        called?;
        if state
            .bytes_max
            .is_some_and(|max| state.used() + content.len() as u64 > max)
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = state.add(path);
        state.files[file] = Content {
            seen: content.clone(),
            kept: content,
        };
        self.leave(state);
        Ok(())
    }

    pub(super) fn open(&self, path: &Path, access: Access) -> io::Result<Handle> {
        let file = *self.state().seen.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Handle {
            disk: self.clone(),
            file,
            durable: access == Access::Durable,
        })
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut state, called) = self.enter();
        called?;
        let file = state.seen.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.seen.insert(to.to_owned(), file);
        self.leave(state);
        Ok(())
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        let (mut state, called) = self.enter();
        called?;
        state.seen.remove(path).ok_or(io::ErrorKind::NotFound)?;
        self.leave(state);
        Ok(())
    }

    pub(super) fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let (mut state, called) = self.enter();
        called?;
        let seen = state.seen.clone();
        state.kept.retain(|path, _| path.parent() != Some(dir));
        state.kept.extend(
            seen.into_iter()
                .filter(|(path, _)| path.parent() == Some(dir)),
        );
        self.leave(state);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a call.
    fn enter(&self) -> (MutexGuard<'_, State>, Result<(), Injected>) {
        let mut state = self.state();
        state.calls += 1;
        let state = self.hang(state, false);
        let result = state.verdict();
        (state, result)
    }

    /// Ends a call that has done what it does.
    fn leave(&self, state: MutexGuard<'_, State>) {
        drop(self.hang(state, true));
    }

    fn hang<'a>(&self, mut state: MutexGuard<'a, State>, now: bool) -> MutexGuard<'a, State> {
        let call = state.calls;
        let hangs = |state: &State| matches!(state.fault, Some(Fault::Hang { at, landed }) if at == call && landed == now);
        while hangs(&state) {
            state.stuck = true;
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.stuck = false;
        }
        state
    }
}

impl State {
    /// Bytes of all files that have a name.
    fn used(&self) -> u64 {
        let lengths = self.seen.values().map(|f| self.files[*f].seen.len() as u64);
        lengths.sum()
    }

    fn add(&mut self, path: &Path) -> usize {
        self.files.push(Content::default());
        let file = self.files.len() - 1;
        self.seen.insert(path.to_owned(), file);
        file
    }

    /// Of the call that was counted last; an error carries how many bytes a write leaves behind.
    fn verdict(&self) -> Result<(), Injected> {
        match self.fault {
            Some(Fault::Fail { at, count, torn }) if (at..at + count).contains(&self.calls) => {
                Err(Injected(torn))
            }
            Some(Fault::Cut { at, torn }) if self.calls == at => Err(Injected(torn)),
            Some(Fault::Cut { at, .. }) if self.calls > at => Err(Injected(Torn::NONE)),
            _ => Ok(()),
        }
    }
}

struct Injected(Torn);

impl From<Injected> for io::Error {
    fn from(_: Injected) -> Self {
        Self::other("injected")
    }
}

impl Handle {
    pub(super) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.until_it_moves();
        let (mut state, called) = self.disk.enter();
        let (torn, result) = match called {
            Ok(()) => (Torn::ALL, Ok(())),
            Err(injected) => (injected.0, Err(injected.into())),
        };
        let to = torn.to.min(bytes.len());
        let (from, durable) = (torn.from.min(to), self.durable);
        let (at, written) = (usize::try_from(offset).unwrap() + from, &bytes[from..to]);
        let content = &mut state.files[self.file];
        let lay = |into: &mut Vec<u8>| {
            into.resize(into.len().max(at + written.len()), 0);
            into[at..at + written.len()].copy_from_slice(written);
        };
        lay(&mut content.seen);
        if durable {
            lay(&mut content.kept);
        }
        self.disk.leave(state);
        result
    }

    pub(super) fn read_at(&self, room: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.state();
        let seen = &state.files[self.file].seen;
        let rest = seen
            .get(usize::try_from(offset).unwrap()..)
            .unwrap_or_default();
        let count = rest.len().min(room.len());
        room[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    pub(super) fn truncate(&self, bytes: u64) -> io::Result<()> {
        let (mut state, called) = self.disk.enter();
        called?;
        let content = &mut state.files[self.file];
        content.seen.truncate(usize::try_from(bytes).unwrap());
        content.kept = content.seen.clone();
        self.disk.leave(state);
        Ok(())
    }

    pub(super) fn is_at(&self, path: &Path) -> bool {
        self.disk.state().seen.get(path) == Some(&self.file)
    }
}

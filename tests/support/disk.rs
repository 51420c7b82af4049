//! A disk that does what disks do: it hangs, it writes less than it was asked to, and when the power goes it has
//! nothing but what was synced.
//!
//! A file system in memory, served through FUSE by a thread of the test and mounted where no other process sees it.
//! What every process sees is one thing, what a power cut leaves is another: data is kept by `fsync`, or by a write
//! through a descriptor with `O_DSYNC`; a name is kept by an `fsync` of its directory, and by nothing else. Writes
//! come in pieces of 4 KiB, so a power cut finds batches half written.
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, Session, TimeOrNow, WriteFlags,
};
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Nothing is cached by the kernel.
const TTL: Duration = Duration::ZERO;
const PIECE_BYTES: u32 = 4096;
const BLOCK_BYTES: u32 = 4096;
const BLOCKS: u64 = 1 << 20;
const ROOT: u64 = 1;

/// The mounted disk; unmounted when dropped.
pub(crate) struct Disk {
    shared: Arc<Shared>,
    at: PathBuf,
    session: Option<BackgroundSession>,
}

/// As long as it is held, no call to the disk returns.
pub(crate) struct Hung(Arc<Shared>);

/// What is the matter with writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Trouble {
    None,
    /// Each takes half of what it gets.
    Short,
    /// The next takes half of what it gets; the one after it fails. Then there is none.
    ShortThenFails,
    /// The next one fails.
    Fails,
    /// All of them fail.
    Dead,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    nodes: HashMap<u64, Node>,
    next: u64,
    hung: bool,
    trouble: Trouble,
}

#[derive(Clone)]
enum Node {
    Dir { seen: Names, kept: Names },
    File(Content),
}

type Names = BTreeMap<OsString, u64>;

#[derive(Clone, Default)]
struct Content {
    seen: Vec<u8>,
    kept: Vec<u8>,
    /// Ranges written since the last sync.
    loose: Vec<(usize, usize)>,
}

/// What a power cut keeps beyond what it must, chosen by a seed; `None` keeps nothing.
type Whim = Option<u64>;

impl Disk {
    /// Mounts an empty one, which only this thread and the processes that it starts will see.
    pub(crate) fn mount(at: &Path) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("root may have a mount namespace of its own");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        Self::another(at)
    }

    /// Mounts one more in the namespace of the first.
    pub(crate) fn another(at: &Path) -> Self {
        fs::create_dir_all(at).expect("a mount point");
        let mut disk = Self {
            shared: Arc::default(),
            at: at.to_owned(),
            session: None,
        };
        disk.attach();
        disk
    }

    fn attach(&mut self) {
        let session = Session::new(
            Served(Arc::clone(&self.shared)),
            &self.at,
            &Config::default(),
        )
        .and_then(Session::spawn);
        self.session = Some(session.expect("/dev/fuse and the right to mount"));
    }

    fn detach(&mut self) {
        if let Some(session) = self.session.take() {
            session.umount_and_join().expect("nobody uses it any more");
        }
    }

    /// No call returns from now on.
    pub(crate) fn hang(&self) -> Hung {
        self.shared.state().hung = true;
        Hung(Arc::clone(&self.shared))
    }

    pub(crate) fn set_trouble(&self, trouble: Trouble) {
        self.shared.state().trouble = trouble;
    }

    pub(crate) fn trouble(&self) -> Trouble {
        self.shared.state().trouble
    }

    /// What a power cut at this moment would leave, as files in `to`.
    pub(crate) fn remains(&self, whim: Whim, to: &Path) {
        let left = self.shared.state().after_power_cut(whim);
        if to.exists() {
            fs::remove_dir_all(to).expect("an earlier one can be removed");
        }
        left.dump(ROOT, to).expect("a copy");
    }

    /// The power goes, and comes back. Nothing may use the disk at this moment.
    pub(crate) fn lose_power(&mut self, whim: Whim) {
        self.detach();
        let left = self.shared.state().after_power_cut(whim);
        *self.shared.state() = left;
        self.attach();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            session.umount_and_join().ok(); // a failing test may still have it in use; the namespace ends with it
        }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.0.state().hung = false;
        self.0.moved.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    /// The state, once the disk does not hang.
    fn awake(&self) -> MutexGuard<'_, State> {
        let state = self.state();
        self.moved
            .wait_while(state, |state| state.hung)
            .expect("no panic")
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            nodes: HashMap::from([(ROOT, Node::dir())]),
            next: ROOT + 1,
            hung: false,
            trouble: Trouble::None,
        }
    }
}

impl Node {
    fn dir() -> Self {
        Self::Dir {
            seen: Names::new(),
            kept: Names::new(),
        }
    }
}

impl Content {
    fn write(&mut self, at: usize, data: &[u8], synced: bool) {
        put(&mut self.seen, at, data);
        if synced {
            put(&mut self.kept, at, data);
        } else {
            self.loose.push((at, data.len()));
        }
    }

    fn sync(&mut self) {
        self.kept = self.seen.clone();
        self.loose.clear();
    }

    /// Cut, or made longer with zeros; kept with the next sync.
    fn resize(&mut self, bytes: usize) {
        self.seen.resize(bytes, 0);
        self.loose.retain(|(at, length)| at + length <= bytes);
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    let end = at + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(data);
}

impl State {
    fn names(&mut self, dir: u64) -> Result<&mut Names, Errno> {
        match self.nodes.get_mut(&dir) {
            Some(Node::Dir { seen, .. }) => Ok(seen),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn file(&mut self, node: u64) -> Result<&mut Content, Errno> {
        match self.nodes.get_mut(&node) {
            Some(Node::File(content)) => Ok(content),
            _ => Err(Errno::EISDIR),
        }
    }

    fn find(&mut self, dir: u64, name: &OsStr) -> Result<u64, Errno> {
        self.names(dir)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn make(&mut self, dir: u64, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
        let number = self.next;
        let names = self.names(dir)?;
        if names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        names.insert(name.to_owned(), number);
        self.next += 1;
        self.nodes.insert(number, node);
        self.attributes(number)
    }

    fn remove(&mut self, dir: u64, name: &OsStr) -> Result<(), Errno> {
        self.names(dir)?.remove(name).map(drop).ok_or(Errno::ENOENT)
    }

    fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), Errno> {
        let number = self.find(from.0, from.1)?;
        self.names(from.0)?.remove(from.1);
        self.names(to.0)?.insert(to.1.to_owned(), number);
        Ok(())
    }

    fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        let (kind, size, perm) = match self.nodes.get(&number).ok_or(Errno::ENOENT)? {
            Node::Dir { .. } => (FileType::Directory, 0, 0o700),
            Node::File(content) => (FileType::RegularFile, content.seen.len() as u64, 0o600),
        };
        Ok(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: BLOCK_BYTES,
        })
    }

    /// How many bytes of a write are taken.
    fn take(&mut self, offered: usize) -> Result<usize, Errno> {
        match self.trouble {
            Trouble::None => Ok(offered),
            Trouble::Short => Ok(offered.div_ceil(2)),
            Trouble::ShortThenFails if offered > 1 => {
                self.trouble = Trouble::Fails;
                Ok(offered / 2)
            }
            Trouble::ShortThenFails => Ok(offered),
            Trouble::Fails => {
                self.trouble = Trouble::None;
                Err(Errno::EIO)
            }
            Trouble::Dead => Err(Errno::EIO),
        }
    }

    /// What the power leaves.
    fn after_power_cut(&self, whim: Whim) -> Self {
        let mut dice = Dice(whim);
        let mut numbers: Vec<_> = self.nodes.keys().copied().collect();
        numbers.sort_unstable(); // the same seed shall choose the same
        let survive = |number: &u64| {
            let node = match &self.nodes[number] {
                Node::Dir { seen, kept } => {
                    let names = if dice.says_yes() { seen } else { kept };
                    Node::Dir {
                        seen: names.clone(),
                        kept: names.clone(),
                    }
                }
                Node::File(content) => {
                    let mut kept = content.kept.clone();
                    for (at, length) in &content.loose {
                        if dice.says_yes() {
                            put(&mut kept, *at, &content.seen[*at..at + length]);
                        }
                    }
                    Node::File(Content {
                        seen: kept.clone(),
                        kept,
                        loose: Vec::new(),
                    })
                }
            };
            (*number, node)
        };
        Self {
            nodes: numbers.iter().map(survive).collect(),
            next: self.next,
            hung: false,
            trouble: Trouble::None,
        }
    }

    fn dump(&self, number: u64, to: &Path) -> io::Result<()> {
        match &self.nodes[&number] {
            Node::File(content) => fs::write(to, &content.seen),
            Node::Dir { seen, .. } => {
                fs::create_dir(to)?;
                seen.iter()
                    .try_for_each(|(name, child)| self.dump(*child, &to.join(name)))
            }
        }
    }
}

/// Throws a coin, from a seed; without one it always says no.
struct Dice(Whim);

impl Dice {
    fn says_yes(&mut self) -> bool {
        let Some(state) = &mut self.0 else {
            return false;
        };
        // Numerical Recipes' constants for a linear congruential generator.
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *state >> 63 == 1
    }
}

/// What the kernel talks to.
struct Served(Arc<Shared>);

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config
            .set_max_write(PIECE_BYTES)
            .map(drop)
            .map_err(|_| io::ErrorKind::InvalidInput.into())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.0.awake();
        match state
            .find(parent.0, name)
            .and_then(|number| state.attributes(number))
        {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.awake().attributes(ino.0) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.0.awake();
        let resized = match size {
            Some(bytes) => state.file(ino.0).map(|file| file.resize(index(bytes))),
            None => Ok(()),
        };
        match resized.and_then(|()| state.attributes(ino.0)) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        match self.0.awake().make(parent.0, name, Node::dir()) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let file = Node::File(Content::default());
        match self.0.awake().make(parent.0, name, file) {
            Ok(attributes) => {
                let (handle, uncached) = (FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
                reply.created(&TTL, &attributes, Generation(0), handle, uncached);
            }
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        drop(self.0.awake());
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(self.0.awake().remove(parent.0, name), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self
            .0
            .awake()
            .rename((parent.0, name), (newparent.0, newname));
        answer(renamed, reply);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.awake().file(ino.0) {
            Ok(file) => {
                let start = index(offset).min(file.seen.len());
                let end = (start + size as usize).min(file.seen.len());
                reply.data(&file.seen[start..end]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let synced = OFlag::from_bits_truncate(flags.0).contains(OFlag::O_DSYNC);
        let mut state = self.0.awake();
        let written = state.take(data.len()).and_then(|taken| {
            state
                .file(ino.0)?
                .write(index(offset), &data[..taken], synced);
            Ok(taken)
        });
        match written {
            Ok(taken) => reply.written(u32::try_from(taken).expect("a piece")),
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        let mut state = self.0.awake();
        let grown = state.file(ino.0).map(|file| {
            let bytes = index(offset + length).max(file.seen.len());
            file.resize(bytes);
        });
        answer(grown, reply);
    }

    /// Closing a file does not touch a disk; the kernel asks no more after this answer.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(self.0.awake().file(ino.0).map(Content::sync), reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.0.awake();
        let synced = match state.nodes.get_mut(&ino.0) {
            Some(Node::Dir { seen, kept }) => {
                kept.clone_from(seen);
                Ok(())
            }
            _ => Err(Errno::ENOTDIR),
        };
        answer(synced, reply);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut state = self.0.awake();
        let names = match state.names(ino.0) {
            Ok(names) => names.clone(),
            Err(error) => return reply.error(error),
        };
        for (at, (name, number)) in names.iter().enumerate().skip(index(offset)) {
            let kind = state
                .attributes(*number)
                .map_or(FileType::RegularFile, |a| a.kind);
            if reply.add(INodeNo(*number), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        drop(self.0.awake());
        reply.statfs(
            BLOCKS,
            BLOCKS,
            BLOCKS,
            BLOCKS,
            BLOCKS,
            BLOCK_BYTES,
            255,
            BLOCK_BYTES,
        );
    }
}

fn answer(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("64 bits")
}

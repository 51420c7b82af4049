//! System calls of the running process, as strace tells them; and one of them made to go wrong.
//!
//! strace counts calls by thread and by name, so a call is named the same way here: the third `fsync` of this thread.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::eventually;

/// What touches files, as far as Tollgate uses it for its log.
pub(crate) const FILE_CALLS: &str = "openat,pwrite64,pwritev,pwritev2,write,fsync,fdatasync,sync_file_range,rename,renameat,\
    renameat2,unlink,unlinkat,ftruncate,fallocate,mkdir,mkdirat,pread64,flock";
/// Calls that can find the disk full.
const NEED_ROOM: [&str; 11] = [
    "openat",
    "pwrite64",
    "pwritev",
    "write",
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "fallocate",
    "mkdir",
    "mkdirat",
];

/// One system call.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// Which of the thread's calls of this name it is, from 1.
    pub(crate) nth: usize,
    /// As strace showed it.
    pub(crate) line: String,
}

impl Call {
    /// What can honestly go wrong with it: in each case the kernel does nothing, and says so.
    pub(crate) fn faults(&self) -> Vec<&'static str> {
        let mut faults = vec!["error=EIO"];
        if self.nth == 1 {
            faults.push("error=EINTR"); // once is enough: what it means depends on the name alone
        }
        let opens = self.name == "openat" && !self.line.contains("O_CREAT");
        if NEED_ROOM.contains(&self.name.as_str()) && !opens {
            faults.push("error=ENOSPC");
        }
        if self.name == "pwrite64" {
            faults.push("retval=0"); // a write that wrote nothing
        }
        faults
    }

    /// An injection as strace takes it.
    pub(crate) fn with(&self, fault: &str) -> String {
        format!("{}:{fault}:when={}", self.name, self.nth)
    }

    /// Whether it was about a file below `dir`.
    pub(crate) fn is_below(&self, dir: &Path) -> bool {
        self.line.contains(dir.to_str().expect("UTF-8"))
    }
}

/// Reads a recording: every call, numbered within its name.
pub(crate) fn calls(recording: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for line in recording.lines() {
        let Some((name, _)) = line.split_once('(').filter(|_| line.contains(" = ")) else {
            continue; // an exit, or a signal
        };
        let nth = calls.iter().filter(|call| call.name == name).count() + 1;
        calls.push(Call {
            name: name.to_owned(),
            nth,
            line: line.to_owned(),
        });
    }
    calls
}

/// strace with what every use of it has: paths beside descriptors, output into `out`, no signals.
pub(crate) fn strace(out: &Path, inject: Option<&str>) -> Command {
    fs::remove_file(out).ok(); // of an earlier use
    let mut command = Command::new("strace");
    command.args(["-qqq", "-y", "-s", "16", "-e", "signal=none", "-o"]);
    command.arg(out);
    let traced = inject.and_then(|i| i.split(':').next());
    command.args(["-e", &format!("trace={}", traced.unwrap_or(FILE_CALLS))]);
    if let Some(inject) = inject {
        command.args(["-e", &format!("inject={inject}")]);
    }
    command
}

/// strace on one running thread; let go when dropped.
pub(crate) struct Attached {
    child: Child,
    out: PathBuf,
}

impl Attached {
    /// Returns once every further call of the thread is seen.
    pub(crate) fn to(thread: u32, out: &Path, inject: Option<&str>) -> Self {
        let child = strace(out, inject)
            .args(["-p", &thread.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace can be started");
        let status = format!("/proc/{thread}/status");
        eventually("strace to attach", Duration::from_secs(20), || {
            let status = fs::read_to_string(&status).expect("the thread is alive");
            let untraced = status.lines().any(|l| l == "TracerPid:\t0");
            (!untraced).then_some(())
        });
        Self {
            child,
            out: out.to_owned(),
        }
    }

    /// What it saw so far.
    pub(crate) fn text(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    pub(crate) fn has_injected(&self) -> bool {
        self.text().contains("(INJECTED)")
    }

    /// Lets the thread go on by itself, and gives what was seen.
    pub(crate) fn detach(mut self) -> String {
        self.end();
        self.text()
    }

    fn end(&mut self) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        if let Ok(None) = self.child.try_wait() {
            kill_process(Pid::from_raw(pid).expect("a process id"), Signal::INT).ok(); // it may have just ended
        }
        self.child.wait().ok();
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.end();
    }
}

/// The threads of a process with their names, as the kernel cuts them.
pub(crate) fn threads(pid: u32) -> Vec<(u32, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it is running");
    let mut threads: Vec<(u32, String)> = tasks
        .filter_map(|task| {
            let path = task.ok()?.path();
            let name = fs::read_to_string(path.join("comm")).ok()?; // it may have just ended
            let thread = path.file_name()?.to_str()?.parse().ok()?;
            Some((thread, name.trim_end().to_owned()))
        })
        .collect();
    threads.sort_unstable();
    threads
}

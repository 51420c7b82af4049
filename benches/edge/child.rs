//! Processes of the benchmark: started on a core, read, and ended by their id whatever happens.
//!
//! A child is told by the kernel to end when the benchmark itself dies (`setpriv --pdeathsig`), and is ended when its
//! [`Child`] is dropped. Nothing is ever ended by name.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::time::ClockId;
use rustix::process::{Pid, Signal, geteuid, kill_process};

const POLL: Duration = Duration::from_millis(5);
const START_LIMIT: Duration = Duration::from_secs(10);
const END_LIMIT: Duration = Duration::from_secs(3);
/// Commands the benchmark calls and the Debian packages they are in.
const TOOLS: [(&str, &str); 9] = [
    ("haproxy", "haproxy"),
    ("nginx", "nginx-light"),
    ("squid", "squid"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("taskset", "util-linux"),
    ("setpriv", "util-linux"),
    ("prlimit", "util-linux"),
    ("ss", "iproute2"),
];
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// A process that ends with this value.
pub(crate) struct Child {
    name: String,
    process: std::process::Child,
    said: PathBuf,
}

/// The user that a process runs as: some servers refuse to be root.
#[derive(Clone, Copy)]
pub(crate) enum User {
    Own,
    /// This one if the benchmark is run by root.
    Instead(&'static str),
}

/// Says which of the tools are missing, and how to get them.
pub(crate) fn require_tools() -> Result<()> {
    let missing: Vec<_> = TOOLS
        .iter()
        .filter(|(tool, _)| found(tool).is_none())
        .collect();
    let commands: Vec<_> = missing.iter().map(|(tool, _)| *tool).collect();
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    ensure!(
        missing.is_empty(),
        "not installed: {}\n  apt-get install --no-install-recommends {}",
        commands.join(", "),
        packages.join(" ")
    );
    Ok(())
}

/// Where `tool` is installed; `sbin` is looked at whether it is in `PATH` or not.
fn found(tool: &str) -> Option<PathBuf> {
    let paths = FOLDERS.iter().map(|folder| Path::new(folder).join(tool));
    paths.into_iter().find(|path| path.is_file())
}

impl Child {
    /// Starts `program` on `core`; what it says goes to `NAME.said` in `folder`.
    pub(crate) fn start(
        name: &str,
        core: usize,
        user: User,
        folder: &Path,
        program: &Path,
        args: &[&str],
    ) -> Result<Self> {
        let said = folder.join(format!("{name}.said"));
        let file = File::create(&said)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]);
        match user {
            User::Instead(user) if geteuid().is_root() => {
                let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
                command.args([&uid, &gid, "--clear-groups"]);
            }
            User::Instead(_) | User::Own => {}
        }
        let program = program
            .to_str()
            .and_then(found)
            .unwrap_or(program.to_owned());
        // A limit on file size is an error to the process, not a signal that ends it.
        command.args(["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"]);
        command
            .args(["taskset", "-c", &core.to_string()])
            .arg(&program)
            .args(args);
        let process = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("{name}: {}", program.display()))?;
        Ok(Self {
            name: name.to_owned(),
            process,
            said,
        })
    }

    /// Waits until something listens on `address`.
    pub(crate) fn listens(&mut self, address: SocketAddr) -> Result<()> {
        let start = Instant::now();
        while TcpStream::connect_timeout(&address, START_LIMIT).is_err() {
            if let Some(status) = self.process.try_wait()? {
                bail!(
                    "{} ended ({status}) before it listened on {address}; it said:\n{}",
                    self.name,
                    self.said()
                );
            }
            ensure!(
                start.elapsed() < START_LIMIT,
                "{} does not listen on {address} after {START_LIMIT:?}; it said:\n{}",
                self.name,
                self.said()
            );
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// From now on no file of it can grow: writes fail, as they do on a full disk.
    pub(crate) fn forbid_files(&self) -> Result<()> {
        let pid = self.process.id().to_string();
        let done = Command::new("prlimit")
            .args(["--pid", &pid, "--fsize=0"])
            .status()?;
        ensure!(done.success(), "prlimit: {done}");
        Ok(())
    }

    /// What it wrote to standard output and standard error.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }

    /// CPU time of the process and its children, all threads, ended ones included, in ns.
    pub(crate) fn cpu_ns(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in self.family() {
            let clock = ClockId::pid_cpu_clock_id(nix::unistd::Pid::from_raw(pid))
                .with_context(|| format!("{} has ended: {}", self.name, self.said()))?;
            let time = Duration::from(clock.now()?);
            sum += u64::try_from(time.as_nanos())?;
        }
        Ok(sum)
    }

    /// Proportional set size of the process and its children, in KiB.
    pub(crate) fn pss_kib(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in self.family() {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = fs::read_to_string(&path).context(path)?;
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            let number = line.and_then(|rest| rest.split_whitespace().next());
            sum += number.context("no Pss")?.parse::<u64>()?;
        }
        Ok(sum)
    }

    /// The process and everything that descends from it: nginx's master and its worker.
    fn family(&self) -> Vec<i32> {
        let mut family: Vec<i32> = self.process.id().try_into().into_iter().collect();
        let mut at = 0;
        while let Some(pid) = family.get(at).copied() {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let children = children.unwrap_or_default();
            family.extend(
                children
                    .split_whitespace()
                    .filter_map(|p| p.parse::<i32>().ok()),
            );
            at += 1;
        }
        family
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let family: Vec<_> = self
            .family()
            .into_iter()
            .filter_map(Pid::from_raw)
            .collect();
        if matches!(self.process.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Some(first) = family.first() {
            kill_process(*first, Signal::TERM).ok(); // it may have ended just now
        }
        let start = Instant::now();
        while start.elapsed() < END_LIMIT {
            if matches!(self.process.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(POLL);
        }
        for pid in family {
            kill_process(pid, Signal::KILL).ok();
        }
        self.process.wait().ok();
    }
}

/// Runs a load tool to its end, or ends it at `limit`.
pub(crate) fn run_bounded(program: &str, args: &[&str], limit: Duration) -> Result<Output> {
    let mut process = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", program])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(program.to_owned())?;
    let start = Instant::now();
    while process.try_wait()?.is_none() {
        if start.elapsed() > limit {
            process.kill()?;
            process.wait()?;
            bail!("{program} did not end within {limit:?}");
        }
        std::thread::sleep(POLL);
    }
    Ok(process.wait_with_output()?)
}

/// A loopback address that nothing listens on.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Send and receive queues of every connection that touches `port`, for a transfer that stands still.
pub(crate) fn socket_queues(port: u16) -> String {
    let filter = format!("( sport = :{port} or dport = :{port} )");
    let output = Command::new("ss").args(["-tnoim", &filter]).output();
    output.map_or_else(
        |error| format!("ss: {error}"),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

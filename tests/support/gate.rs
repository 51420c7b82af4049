//! Tollgate itself: a place to run in, and the running process.
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::eventually;

/// The host that every ingress of these tests serves.
pub(crate) const HOST: &str = "tools.test";
/// The fixed address of every egress of these tests.
pub(crate) const FIXED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 7);
const START_LIMIT: Duration = Duration::from_secs(20);

/// A directory of its own, certificates and free ports.
pub(crate) struct Place {
    dir: TempDir,
    pub(crate) admin: u16,
    pub(crate) https: u16,
    pub(crate) http: u16,
    pub(crate) proxy: u16,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("tollgate-test-")
            .tempdir()
            .expect("a temporary directory");
        let place = Self {
            dir,
            admin: free_port(),
            https: free_port(),
            http: free_port(),
            proxy: free_port(),
        };
        place.make_certificates();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// The certificate authority that clients of this place trust.
    pub(crate) fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// An authority and a certificate for every name that the tests use, on both sides.
    fn make_certificates(&self) {
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Names of their own: OpenSSL takes a certificate whose subject is its issuer for self-signed.
        ca.distinguished_name
            .push(DnType::CommonName, "test authority");
        let ca_cert = ca.self_signed(&ca_key).expect("a certificate");
        let key = KeyPair::generate().expect("a key");
        let names = [
            HOST,
            "other.test",
            "localhost",
            "127.0.0.1",
            "api.customer.test",
        ];
        let mut leaf =
            CertificateParams::new(names.map(str::to_owned).to_vec()).expect("parameters");
        leaf.distinguished_name.push(DnType::CommonName, HOST);
        let leaf = leaf
            .signed_by(&key, &Issuer::new(ca, ca_key))
            .expect("a certificate");
        write(&self.ca(), &ca_cert.pem());
        write(&self.path("cert.pem"), &leaf.pem());
        write(&self.path("key.pem"), &key.serialize_pem());
    }

    /// The sections that every configuration has.
    pub(crate) fn head(&self) -> String {
        format!(
            "[process]\nstate_dir = {:?}\ndrain_deadline = \"10s\"\n\n[admin]\nlisten = \"127.0.0.1:{}\"\n\n",
            self.state(),
            self.admin
        )
    }

    /// A listener with TLS for [`HOST`] in front of `upstream`; `more` holds further keys and sub-tables of it.
    pub(crate) fn ingress(&self, upstream: SocketAddr, more: &str) -> String {
        self.listener(&format!(
            "hosts = [\"{HOST}\"]\nupstream = \"http://{upstream}\"\n{more}"
        ))
    }

    /// A listener with TLS; `more` says what it leads to.
    pub(crate) fn listener(&self, more: &str) -> String {
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        format!(
            "[[ingress]]\nlisten = [\"127.0.0.1:{}\"]\n\
             tls.certificates = [{{ cert = {cert:?}, key = {key:?} }}]\n{more}\n",
            self.https,
        )
    }

    /// The fixed address, a listener for every door, and `more`: policies and forwards.
    pub(crate) fn egress(&self, resolver: SocketAddr, more: &str) -> String {
        format!(
            "[egress]\nfixed = [\"{FIXED}\"]\nresolver = {{ servers = [\"{resolver}\"] }}\n\n\
             [[egress.listener]]\nlisten = \"127.0.0.1:{}\"\naccept = [\"http\", \"socks5\"]\n\
             clients = [{{ name = \"app\", from = [\"127.0.0.0/8\"] }}]\n\n{more}\n",
            self.proxy,
        )
    }

    /// Writes the configuration file.
    pub(crate) fn write(&self, text: &str) -> PathBuf {
        let path = self.path("tollgate.toml");
        write(&path, text);
        path
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start(&self, text: &str) -> Gate {
        let gate = self.spawn(text);
        gate.wait_ready();
        gate
    }

    /// Starts it without waiting.
    pub(crate) fn spawn(&self, text: &str) -> Gate {
        let config = self.write(text);
        let mut command = Command::new(binary());
        command.arg("run").arg("--config").arg(config);
        self.launch(command)
    }

    /// Runs a command that becomes Tollgate, such as one inside a network namespace.
    pub(crate) fn launch(&self, mut command: Command) -> Gate {
        let stderr = self.path("stderr");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&stderr)
            .expect("a file for standard error");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("tollgate can be started");
        Gate {
            child,
            admin: self.admin,
            stderr,
        }
    }

    /// `tollgate ARGS`, to its end.
    pub(crate) fn tollgate(&self, args: &[&str]) -> Done {
        run(Command::new(binary()).args(args))
    }

    /// Fails unless `tollgate audit verify` finds nothing wrong with the log.
    pub(crate) fn verify(&self) {
        let state = self.state();
        let done = self.tollgate(&["audit", "verify", state.to_str().expect("UTF-8")]);
        assert_eq!(done.code, Some(0), "audit verify: {done:?}");
    }
}

/// The running process; dropping it ends it.
pub(crate) struct Gate {
    child: Child,
    admin: u16,
    stderr: PathBuf,
}

impl Gate {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `/readyz` says 200.
    pub(crate) fn wait_ready(&self) {
        self.wait_readyz(200);
    }

    /// Waits until `/readyz` answers with this status.
    pub(crate) fn wait_readyz(&self, status: u16) {
        let begin = Instant::now();
        while self.admin_get("/readyz").is_none_or(|(s, _)| s != status) {
            assert!(
                begin.elapsed() < START_LIMIT,
                "/readyz was not {status} within {START_LIMIT:?}; standard error:\n{}",
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// GET on the admin listener: status and body, `None` if it cannot be reached.
    pub(crate) fn admin_get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let status = text.split(' ').nth(1)?.parse().ok()?;
        let body = text.split_once("\r\n\r\n")?.1;
        Some((status, body.to_owned()))
    }

    pub(crate) fn metrics(&self) -> String {
        self.admin_get("/metrics").expect("/metrics answers").1
    }

    /// Everything it wrote to standard error and standard output so far.
    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill_process(Pid::from_raw(pid).expect("a process id"), signal)
            .expect("it can be signalled");
    }

    /// `kill -9`, and gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().ok(); // it may have ended already
        self.child.wait().expect("it can be waited for");
    }

    /// SIGTERM, and the exit status that must come within `limit`.
    pub(crate) fn stop(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_exit(limit)
    }

    pub(crate) fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let Self { child, stderr, .. } = self;
        let begin = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("it can be waited for") {
                return status;
            }
            let said = || fs::read_to_string(&*stderr).unwrap_or_default();
            assert!(
                begin.elapsed() < limit,
                "still running after {limit:?}:\n{}",
                said()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("it can be waited for")
            .is_none()
    }

    /// SIGHUP, and the reload is over: either generation or failures have gone up.
    pub(crate) fn reload(&self) {
        let count = |text: &str| {
            text.lines()
                .filter(|l| {
                    l.starts_with("tollgate_snapshot_generation")
                        || l.starts_with("tollgate_reload_failures")
                })
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let before = count(&self.metrics());
        self.signal(Signal::HUP);
        eventually("the reload", Duration::from_secs(10), || {
            (count(&self.metrics()) != before).then_some(())
        });
    }

    /// Peak resident memory in bytes (`VmHWM`).
    pub(crate) fn memory_peak(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it is running");
        let line = status
            .lines()
            .find(|l| l.starts_with("VmHWM:"))
            .expect("VmHWM");
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .and_then(|n| n.parse().ok())
            .expect("a number");
        kib * 1024
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.child.kill().ok(); // it may have ended already
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- what tollgate wrote ---\n{}", self.stderr());
        }
    }
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    /// Its standard output, if it ended well.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stderr, self.stdout);
        self.stdout
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Done {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    Done {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub(crate) fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_tollgate")
}

/// A port that nothing listens on, below those that the kernel gives to outgoing connections.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let spread = (std::process::id().wrapping_mul(7919) + u32::from(step)) % u32::from(COUNT);
        let port = FIRST + u16::try_from(spread).expect("below the count");
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

pub(crate) fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

//! The real binary on loopback, blocking sockets around it, and its log read back.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) const SOON: Duration = Duration::from_secs(8);

/// A running gateway; ends with the test.
pub(crate) struct Edge {
    pub(crate) gate: SocketAddr,
    pub(crate) forward: SocketAddr,
    child: Child,
    dir: tempfile::TempDir,
}

impl Edge {
    /// `extra` is put behind the gate; `policy` behind the rest. `{forward}` is a free local address in both.
    pub(crate) fn start(extra: &str, policy: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [gate, forward, admin] = [(); 3].map(|()| free());
        let edge = |text: &str| text.replace("{forward}", &forward.to_string());
        let text = format!(
            r#"
            [process]
            state_dir = "{dir}/state"
            workers = 2
            drain_deadline = "1s"
            [admin]
            listen = "{admin}"
            [audit]
            segment = "1MiB"
            [limits.few]
            rate = "1/h"
            burst = 3
            [egress]
            fixed = ["127.0.0.7"]
            dial_timeout = "2s"
            [[egress.listener]]
            listen = "{gate}"
            clients = [{{ name = "app", from = ["127.0.0.0/8"] }}]
            {extra}
            {policy}
            "#,
            dir = dir.path().display(),
            extra = edge(extra),
            policy = edge(policy),
        );
        std::fs::create_dir(dir.path().join("state")).unwrap();
        std::fs::write(dir.path().join("t.toml"), text).unwrap();
        // Few descriptors at first, as a shell gives them, but fewer: a test reaches them sooner.
        let child = Command::new("sh")
            .args(["-c", "ulimit -Sn 128 && exec \"$0\" run --config \"$1\""])
            .arg(env!("CARGO_BIN_EXE_tollgate"))
            .arg(dir.path().join("t.toml"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let edge = Self {
            gate,
            forward,
            child,
            dir,
        };
        let began = Instant::now();
        while TcpStream::connect(admin).is_err() {
            assert!(began.elapsed() < SOON, "it does not start");
            thread::sleep(Duration::from_millis(20));
        }
        edge
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let tcp = TcpStream::connect(self.gate).unwrap();
        tcp.set_read_timeout(Some(SOON)).unwrap();
        tcp
    }

    /// Sends `request`, ends sending nothing, and reads to the end or until `until` has come.
    pub(crate) fn ask(&self, request: &str, until: &str) -> String {
        let mut tcp = self.connect();
        tcp.write_all(request.as_bytes()).unwrap();
        read_until(&mut tcp, until)
    }

    /// The terminal record of the entry that went to `remote`.
    pub(crate) fn after(&self, remote: SocketAddr) -> Value {
        self.record(|line| line["kind"] == "after" && line["remote_port"] == remote.port())
    }

    pub(crate) fn record(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let found = records(&self.dir.path().join("state/audit"))
                .into_iter()
                .find(&wanted);
            if let Some(found) = found {
                return found;
            }
            assert!(began.elapsed() < SOON, "no such record");
            thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn read_until(tcp: &mut TcpStream, until: &str) -> String {
    let (mut all, mut block) = (Vec::new(), [0; 4096]);
    loop {
        match tcp.read(&mut block) {
            Ok(0) => break,
            Ok(read) => all.extend_from_slice(&block[..read]),
            Err(error) => {
                all.extend_from_slice(format!("[{:?}]", error.kind()).as_bytes());
                break;
            }
        }
        if !until.is_empty() && String::from_utf8_lossy(&all).contains(until) {
            break;
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn records(folder: &Path) -> Vec<Value> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        found.extend(text.lines().filter_map(|line| {
            let line = line.get(line.find('{')?..)?;
            serde_json::from_str(line.trim_end_matches('\0')).ok()
        }));
    }
    found
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// Serves every connection on 127.0.0.9 in a thread of its own.
pub(crate) fn destination(serve: impl Fn(TcpStream) + Send + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.9:0").unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(tcp));
        }
    });
    at
}

/// Reads one head, answers with `answer`, closes; by a reset if `reset`.
pub(crate) fn answers(answer: &'static str, reset: bool) -> SocketAddr {
    destination(move |mut tcp| {
        tcp.set_read_timeout(Some(SOON)).unwrap();
        read_until(&mut tcp, "\r\n\r\n");
        tcp.write_all(answer.as_bytes()).ok();
        thread::sleep(Duration::from_millis(100));
        if reset {
            let linger = Some(Duration::ZERO);
            socket2::SockRef::from(&tcp).set_linger(linger).unwrap();
        }
    })
}

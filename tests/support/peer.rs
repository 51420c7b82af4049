//! Programs that others wrote: curl, Node.js, nginx, PostgreSQL. `tests/run` installs them.
use std::fs::File;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::gate::{HOST, Place};

/// A program that runs until it is dropped.
pub(crate) struct Peer {
    child: Child,
    output: PathBuf,
}

impl Peer {
    /// Starts it; `output` takes what it says.
    pub(crate) fn start(command: &mut Command, output: PathBuf) -> Self {
        let file = File::create(&output).expect("a file for its output");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| {
                panic!("{command:?}: {e}; tests/run installs what the tests talk to")
            });
        Self { child, output }
    }

    /// Waits until its port takes connections.
    pub(crate) fn wait_port(&mut self, port: u16) {
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = self.child.try_wait().expect("it can be waited for");
            assert!(
                ended.is_none() && begin.elapsed() < Duration::from_secs(60),
                "port {port} did not open ({ended:?}):\n{}",
                std::fs::read_to_string(&self.output).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until it has said this.
    pub(crate) fn wait_output(&mut self, text: &str) {
        let limit = Duration::from_secs(60);
        super::eventually(text, limit, || {
            let said = std::fs::read_to_string(&self.output).unwrap_or_default();
            let ended = self.child.try_wait().expect("it can be waited for");
            assert!(ended.is_none(), "it ended ({ended:?}):\n{said}");
            said.contains(text).then_some(())
        });
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // Gently, so that a master ends its children.
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        }
        for _ in 0..200 {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Where `tests/run` puts what npm brings.
pub(crate) fn node_modules() -> PathBuf {
    let cache = std::env::var_os("TOLLGATE_TEST_CACHE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-peers"),
        PathBuf::from,
    );
    let modules = cache.join("node/node_modules");
    assert!(
        modules.is_dir(),
        "{} is missing; tests/run installs it",
        modules.display()
    );
    modules
}

/// A script of `tests/support`.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/support")
        .join(name)
}

/// `node SCRIPT ARGS`, with the packages of [`node_modules`].
pub(crate) fn node(name: &str) -> Command {
    let mut command = Command::new("node");
    command.env("NODE_PATH", node_modules()).arg(script(name));
    command
}

/// curl that knows where [`HOST`] is and whom to trust, says nothing but the body, and gives up after a minute.
pub(crate) fn curl(place: &Place) -> Command {
    let mut command = Command::new("curl");
    command
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "60",
            "--noproxy",
            "",
            "--cacert",
        ])
        .arg(place.ca())
        .arg("--resolve")
        .arg(format!("{HOST}:{}:127.0.0.1", place.https));
    command
}

/// Runs a command that must succeed.
pub(crate) fn must(command: &mut Command) -> String {
    super::gate::run(command).ok()
}

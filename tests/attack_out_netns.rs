//! The way out attacked in namespaces of its own: the fixed address comes and goes, ports run out.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic, and speaks to sockets itself"
)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A gateway and a destination, each in its namespace, with a wire between them.
struct Net {
    names: [String; 2],
    children: Vec<Child>,
    dir: tempfile::TempDir,
}

impl Net {
    /// The gateway has 10.77.0.1 and, behind it, 10.77.0.7; the destination 10.77.0.9, with a web server on port 8000.
    fn new(test: &str, egress: &str) -> Self {
        let id = std::process::id();
        let names = [format!("{test}-g{id}"), format!("{test}-d{id}")];
        let [gate, far] = &names;
        let mut net = Self {
            names: names.clone(),
            children: Vec::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        for name in &names {
            run(&format!("ip netns add {name}"));
            run(&format!("ip -n {name} link set lo up"));
        }
        run(&format!(
            "ip link add v0 netns {gate} type veth peer name v1 netns {far}"
        ));
        run(&format!("ip -n {gate} addr add 10.77.0.1/24 dev v0"));
        run(&format!("ip -n {gate} addr add 10.77.0.7/24 dev v0"));
        run(&format!("ip -n {far} addr add 10.77.0.9/24 dev v1"));
        run(&format!("ip -n {gate} link set v0 up"));
        run(&format!("ip -n {far} link set v1 up"));
        let pages = net.path("pages");
        std::fs::create_dir(&pages).unwrap();
        std::fs::write(format!("{pages}/index.html"), "here").unwrap();
        let serve = format!("python3 -m http.server 8000 --directory {pages}");
        net.spawn(1, &serve);
        let config = net.path("t.toml");
        std::fs::create_dir(net.path("state")).unwrap();
        let text = format!(
            "[process]\nstate_dir = '{}'\n[admin]\nlisten = '127.0.0.1:9911'\n[egress]\nfixed = ['10.77.0.7']\ndial_timeout = '2s'\n{egress}\n",
            net.path("state")
        );
        std::fs::write(&config, text).unwrap();
        let binary = env!("CARGO_BIN_EXE_tollgate");
        net.spawn(0, &format!("{binary} run --config {config}"));
        net.until_ready("ready");
        net.until(|| net.gets("http://10.77.0.9:8000/").starts_with("200"));
        net
    }

    fn path(&self, name: &str) -> String {
        Path::new(self.dir.path()).join(name).display().to_string()
    }

    fn spawn(&mut self, at: usize, command: &str) {
        let child = Command::new("ip")
            .args(["netns", "exec", &self.names[at]])
            .args(command.split(' '))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.children.push(child.unwrap());
    }

    /// In the namespace of the gateway.
    fn here(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.names[0]))
    }

    /// Status and body of an absolute-form request.
    fn gets(&self, url: &str) -> String {
        self.here(&format!(
            "curl -s -m 6 -x http://127.0.0.1:3128 {url} -w {}",
            "%{stderr}%{http_code}"
        ))
    }

    fn ready(&self) -> String {
        self.here("curl -s -m 2 http://127.0.0.1:9911/readyz")
    }

    fn until_ready(&self, wanted: &str) {
        self.until(|| self.ready().trim().starts_with(wanted));
    }

    fn until(&self, holds: impl Fn() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < Duration::from_secs(8), "{}", self.ready());
            sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
        for name in &self.names {
            run(&format!("ip netns del {name}"));
        }
    }
}

/// What it wrote to standard error, then to standard output.
fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    let text = [output.stderr, output.stdout].concat();
    String::from_utf8_lossy(&text).into_owned()
}

const ALL: &str = "[[egress.listener]]\nlisten = '127.0.0.1:3128'\n[[egress.policy]]\ndestinations = ['*']\naddresses = ['10.77.0.0/24']";

#[test]
#[ignore = "needs root; run by tests/run"]
fn a_missing_fixed_address_stops_dialling_also_where_everything_can_be_bound() {
    let net = Net::new("fixed", ALL);
    for (switch, removed) in [("0", "10.77.0.7/24"), ("1", "10.77.0.7/24")] {
        net.here(&format!("sysctl -qw net.ipv4.ip_nonlocal_bind={switch}"));
        assert!(net.gets("http://10.77.0.9:8000/").starts_with("200"));
        net.here(&format!("ip addr del {removed} dev v0"));
        let answer = net.gets("http://10.77.0.9:8000/");
        assert!(
            answer.contains("fixed_address_missing"),
            "{switch}: {answer}"
        );
        net.until_ready("not ready");
        sleep(Duration::from_millis(2500)); // the next look at it changes nothing
        assert!(net.ready().starts_with("not ready"), "{}", net.ready());
        net.here("ip addr add 10.77.0.7/24 dev v0");
        net.until_ready("ready");
    }
    // A secondary address goes with its primary.
    net.here("ip addr del 10.77.0.1/24 dev v0");
    let answer = net.gets("http://10.77.0.9:8000/");
    assert!(answer.contains("fixed_address_missing"), "{answer}");
}

#[test]
#[ignore = "needs root; run by tests/run"]
fn our_own_machine_is_reached_only_by_its_very_address() {
    let mut net = Net::new("own", ALL);
    let pages = net.path("pages");
    net.spawn(
        0,
        &format!("python3 -m http.server 8001 --directory {pages}"),
    );
    net.until(|| {
        net.here("curl -s -m 1 http://10.77.0.1:8001/")
            .contains("here")
    });
    for address in ["10.77.0.1", "10.77.0.7"] {
        let answer = net.gets(&format!("http://{address}:8001/"));
        assert!(answer.contains("address_denied"), "{address}: {answer}");
    }
}

/// Removing the address does not break a connection by itself: it hangs, and a pool goes on using it.
#[test]
#[ignore = "needs root; run by tests/run"]
fn tunnels_end_soon_after_their_fixed_address_went() {
    let net = Net::new("lost", ALL);
    net.here("ip addr add 10.77.0.8/24 dev v0");
    let space = std::fs::File::open(format!("/run/netns/{}", net.names[0])).unwrap();
    let network = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&space), network).unwrap();
    let mut tunnel = TcpStream::connect("127.0.0.1:3128").unwrap();
    tunnel
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    tunnel
        .write_all(b"CONNECT 10.77.0.9:8000 HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut answer = [0; 512];
    let read = tunnel.read(&mut answer).unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
    net.here("ip addr del 10.77.0.7/24 dev v0");
    let began = Instant::now();
    let end = tunnel.read(&mut answer).unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    let state = net.path("state");
    net.until(|| {
        let found = run(&format!(
            "{} audit search {state}",
            env!("CARGO_BIN_EXE_tollgate")
        ));
        found.lines().any(|line| {
            line.contains("\"outcome\":\"failed\"")
                && line.contains("\"reason\":\"fixed_address_missing\"")
        })
    });
}

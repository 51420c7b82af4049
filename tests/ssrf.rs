//! Every forbidden address and every trick to name one, through every way in, in namespaces of their own.
//!
//! Behind the gateway lies a network in which every address there is leads to a canary, and on the gateway itself every
//! port that is tried has one too. A canary that hears anything fails the test; that they can hear is shown first.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic, and speaks to sockets itself"
)]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use support::dns::{Answer, Dns};
use support::gate::{Gate, Place, binary, free_port};
use support::log::Log;
use support::peer::must;
use support::{eventually, gate};

const SOON: Duration = Duration::from_secs(10);
const CANARY: u16 = 7777;
const FIXED: [&str; 2] = ["203.0.113.7", "2a00:1450:4001::7"];
/// Public, and on the gateway's own interface.
const OWN: &str = "8.8.4.4";
/// Public, and how the outside sees the fixed one.
const ADVERTISED: &str = "198.41.0.4";
/// Public, and nobody's business: this one may be dialled.
const PUBLIC: [&str; 2] = ["8.8.8.8", "2606:4700::1111"];

/// Research, section 3.1: one or more of each block, its first and last address among them.
const ADDRESSES: &str = "
0.0.0.0 0.0.0.1 0.255.255.255
10.0.0.0 10.1.2.3 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 192.168.255.255
100.64.0.1 100.100.100.200 100.127.255.255
127.0.0.1 127.0.0.53 127.255.255.254
169.254.169.254 169.254.170.2 169.254.170.23 169.254.0.1
192.0.0.1 192.0.0.192
192.0.2.1 198.51.100.1 203.0.113.1
192.88.99.1
198.18.0.1 198.19.255.255
224.0.0.1 239.255.255.255 255.255.255.255
240.0.0.1 255.255.255.254
168.63.129.16
:: ::1
::7f00:1 ::a00:1
::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254
::ffff:0:127.0.0.1 ::ffff:0:8.8.8.8
64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254
64:ff9b:1::8.8.8.8
100::1 100:0:0:1::1
2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:10::1 2001:20::1
2001:db8::1 3fff::1
2002:7f00:1::1 2002:a00:1::1
5f00::1
fc00::1 fd00:ec2::254 fd00:ec2::253 fd00:ec2::123 fd00:ec2::23 fd20:ce::254 fd00:c1::a9fe:a9fe
fe80::1 fec0::1 ff02::1
2606:4700::5efe:127.0.0.1 2606:4700::200:5efe:10.0.0.1
203.0.113.7 2a00:1450:4001::7
8.8.4.4
198.41.0.4 64:ff9b::8.8.4.4
";

/// Section 3.2: what some resolver or parser would take for one of them. None is a host at all.
const SPELLINGS: [&str; 20] = [
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "0",
    "169.254.43518",
    "127.0.0.1.",
    "0x7f.0.0.1",
    "\u{2460}\u{2461}\u{2466}.0.0.1",
    "\u{ff11}\u{ff12}\u{ff17}.0.0.1",
    "[::1%lo]",
    "[fe80::1%25n0]",
    "[127.0.0.1]",
    "[localhost]",
    "127.0.0.1\\.good.test",
    "good.test\0.127.0.0.1.nip",
    "127.0.0.1%00.good.test",
    "good.test@127.0.0.1",
    "a@b@127.0.0.1",
    "127.0.0.1;good.test",
];

/// Names that mean something here only. All of them resolve to a public address, so that the name alone decides.
const NAMES: [&str; 10] = [
    "localhost",
    "LocalHost.",
    "a.localhost",
    "printer.local",
    "db.internal",
    "metadata.google.internal",
    "METADATA.google.internal.",
    "instance-data",
    "postgres",
    "kubernetes.default.svc.cluster.local",
];

/// Enters a network namespace with this thread.
fn enter(name: &str) {
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&file),
        Some(LinkNameSpaceType::Network),
    )
    .unwrap();
}

/// The gateway's namespace and the one behind it, in which every address is local.
struct Net {
    near: String,
    far: String,
    /// Where a canary heard something: where it sits, and the address that was dialled.
    heard: Arc<Mutex<Vec<String>>>,
}

impl Net {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{count}-{}", std::process::id());
        let (near, far) = (format!("ssrf-n{id}"), format!("ssrf-f{id}"));
        let net = Self {
            near,
            far,
            heard: Arc::default(),
        };
        let Self { near, far, .. } = &net;
        let [v4, v6] = FIXED;
        for line in [
            format!("netns add {near}"),
            format!("netns add {far}"),
            format!("-n {near} link set lo up"),
            format!("-n {far} link set lo up"),
            format!("link add n0 netns {near} type veth peer name f0 netns {far}"),
            format!("-n {near} addr add {v4}/31 dev n0"),
            format!("-n {near} addr add {OWN}/32 dev n0"),
            format!("-n {near} addr add {v6}/64 dev n0 nodad"),
            format!("-n {far} addr add 203.0.113.6/31 dev f0"),
            format!("-n {far} addr add 2a00:1450:4001::99/64 dev f0 nodad"),
            format!("-n {near} link set n0 up"),
            format!("-n {far} link set f0 up"),
            format!("-n {near} route add default via 203.0.113.6"),
            format!("-n {near} -6 route add default via 2a00:1450:4001::99"),
            // Here every address is our own, but for the gateway's two.
            format!("-n {far} route add local default dev lo table local"),
            format!("-n {far} -6 route add local default dev lo table local"),
            format!("-n {far} route add {v4}/32 dev f0 table local"),
            format!("-n {far} -6 route add {v6}/128 dev f0 table local"),
        ] {
            must(Command::new("ip").args(line.split(' ')));
        }
        for space in [near, far] {
            for any in ["0.0.0.0", "[::]"] {
                net.canary(space, &format!("{any}:{CANARY}"));
                net.canary(space, &format!("{any}:25"));
            }
        }
        net
    }

    /// Says what it heard, and that it is a canary.
    fn canary(&self, space: &str, at: &str) {
        let (space, at): (String, SocketAddr) = (space.to_owned(), at.parse().unwrap());
        let heard = Arc::clone(&self.heard);
        let (ready, bound) = std::sync::mpsc::sync_channel(0);
        thread::spawn(move || {
            enter(&space);
            let socket = socket2::Socket::new(
                socket2::Domain::for_address(at),
                socket2::Type::STREAM,
                None,
            )
            .unwrap();
            if at.is_ipv6() {
                socket.set_only_v6(true).unwrap();
            }
            socket.bind(&at.into()).unwrap();
            socket.listen(64).unwrap();
            let listener = TcpListener::from(socket);
            ready.send(()).unwrap();
            for mut tcp in listener.incoming().flatten() {
                let to = tcp.local_addr().unwrap();
                heard.lock().unwrap().push(format!("{space} {to}"));
                tcp.write_all(b"canary").ok();
            }
        });
        bound.recv().unwrap();
    }

    fn take_heard(&self) -> Vec<String> {
        std::mem::take(&mut *self.heard.lock().unwrap())
    }

    fn launch(&self, place: &Place, config: &str) -> Gate {
        let config = place.write(config);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.near, binary(), "run", "--config"]);
        place.launch({
            command.arg(config);
            command
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in [&self.near, &self.far] {
            Command::new("ip")
                .args(["netns", "delete", name])
                .status()
                .ok();
        }
    }
}

/// One thing asked of the gateway.
#[derive(Clone, Debug)]
struct Attempt {
    /// As a client writes it, IPv6 in brackets.
    host: String,
    port: u16,
    /// The code that must be answered, one of these.
    codes: &'static [&'static str],
}

impl Attempt {
    fn new(host: impl Into<String>, codes: &'static [&'static str]) -> Self {
        let host = host.into();
        Self {
            host,
            port: CANARY,
            codes,
        }
    }
}

fn exchange(at: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut tcp = TcpStream::connect(at).unwrap();
    tcp.set_read_timeout(Some(SOON)).unwrap();
    tcp.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).ok(); // a reset ends it too
    answer
}

fn code_of(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let problem: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    match problem["code"].as_str() {
        Some(code) => code.to_owned(),
        None if text.starts_with("HTTP/1.1 400") => "malformed".to_owned(),
        None => format!("no refusal: {text:?}"),
    }
}

fn connect(gate: SocketAddr, asked: &Attempt) -> String {
    let Attempt { host, port, .. } = asked;
    code_of(&exchange(
        gate,
        format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(),
    ))
}

fn absolute(gate: SocketAddr, asked: &Attempt) -> String {
    let Attempt { host, port, .. } = asked;
    let head = format!(
        "GET http://{host}:{port}/ HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n"
    );
    code_of(&exchange(gate, head.as_bytes()))
}

/// The code of the reply: SOCKS knows fewer than the log does.
fn socks(gate: SocketAddr, asked: &Attempt) -> Option<u8> {
    let mut bytes = vec![5, 1, 0, 5, 1, 0];
    let bare = asked
        .host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'));
    let v6 = bare.and_then(|h| h.parse().ok()).map(IpAddr::V6);
    match v6.map_or_else(|| asked.host.parse(), Ok) {
        Ok(IpAddr::V4(v4)) => {
            bytes.push(1);
            bytes.extend(v4.octets());
        }
        Ok(IpAddr::V6(v6)) => {
            bytes.push(4);
            bytes.extend(v6.octets());
        }
        Err(_) => {
            bytes.extend([3, u8::try_from(asked.host.len()).unwrap()]);
            bytes.extend(asked.host.as_bytes());
        }
    }
    bytes.extend(asked.port.to_be_bytes());
    exchange(gate, &bytes).get(3).copied()
}

/// A forward says why in the words of its protocol: MySQL's server speaks first.
fn forward(at: SocketAddr) -> String {
    let said = exchange(at, b"");
    String::from_utf8_lossy(said.get(7..).unwrap_or_default()).into_owned()
}

fn host(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

fn addresses() -> Vec<&'static str> {
    ADDRESSES.split_whitespace().collect()
}

/// Names `row-N.test` resolve to the address N of the table; `mixed.test` to that of every address and a public one.
fn names() -> Dns {
    let table: Vec<IpAddr> = addresses().iter().map(|a| a.parse().unwrap()).collect();
    let public: Vec<IpAddr> = PUBLIC.iter().map(|a| a.parse().unwrap()).collect();
    Dns::start(move |name, _| {
        let row = name
            .strip_prefix("row-")
            .and_then(|n| n.strip_suffix(".test"));
        let row = row.and_then(|n| table.get(n.parse::<usize>().ok()?));
        match (row, name) {
            (Some(address), _) => Answer::Addresses(vec![*address]),
            (_, "mixed.test") => Answer::Addresses([&table[..30], &public].concat()),
            (_, "alias.test") => Answer::Alias("row-3.test".to_owned()),
            _ => Answer::Addresses(public.clone()),
        }
    })
}

fn attempts() -> Vec<Attempt> {
    let (mut all, rows) = (Vec::new(), addresses());
    for (at, address) in rows.iter().enumerate() {
        all.push(Attempt::new(host(address), &["address_denied"]));
        all.push(Attempt::new(format!("row-{at}.test"), &["address_denied"]));
    }
    all.push(Attempt::new("alias.test", &["address_denied"]));
    all.extend(NAMES.map(|name| Attempt::new(name, &["destination_denied"])));
    // hyper answers some of them itself, before there is a request.
    all.extend(SPELLINGS.map(|host| Attempt::new(host, &["name_invalid", "malformed"])));
    for to in [PUBLIC[0], "good.test", "127.0.0.1"] {
        let codes = &["destination_denied"];
        all.push(Attempt {
            port: 25,
            ..Attempt::new(to, codes)
        });
        let codes = &["name_invalid", "malformed"];
        all.push(Attempt {
            port: 0,
            ..Attempt::new(to, codes)
        });
    }
    for port in [3128, 9911] {
        for to in ["127.0.0.1", "localhost.localdomain.test", FIXED[0], "[::1]"] {
            let codes = if to.ends_with("test") {
                &["dial_refused"]
            } else {
                &["address_denied"]
            };
            all.push(Attempt {
                port,
                ..Attempt::new(to, codes)
            });
        }
    }
    all
}

/// The number of denials of each reason, those that were only counted included.
fn denials(place: &Place) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for denied in Log::read(&place.state()).kind("denied") {
        let reason = denied["reason"].as_str().unwrap().to_owned();
        *found.entry(reason).or_default() += denied["count"].as_u64().unwrap_or(1);
    }
    found
}

fn config(place: &Place, dns: SocketAddr, policy: &str) -> (String, Vec<(String, SocketAddr)>) {
    let [v4, v6] = FIXED;
    let mut text = format!(
        "[log]\nlevel = \"warn\"\n[process]\nstate_dir = {:?}\n[admin]\nlisten = \"127.0.0.1:9911\"\n\
         [egress]\nfixed = [\"{v4}\", \"{v6}\"]\nadvertised = [\"{ADVERTISED}\"]\ndial_timeout = \"2s\"\n\
         resolver.servers = [\"{dns}\"]\n\
         [[egress.listener]]\nlisten = \"127.0.0.1:3128\"\nclients = [{{ name = \"app\", from = [\"127.0.0.0/8\"] }}]\n{policy}\n",
        place.state()
    );
    let mut forwards = Vec::new();
    // An address itself would be named by the operator, and thereby allowed.
    for at in 0..addresses().len() {
        let (to, listen) = (
            format!("row-{at}.test"),
            SocketAddr::from(([127, 0, 0, 1], free_port())),
        );
        text += &format!(
            "[[egress.forward]]\nlisten = \"{listen}\"\nto = \"{to}:{CANARY}\"\nprotocol = \"mysql\"\n"
        );
        forwards.push((to, listen));
    }
    (text, forwards)
}

fn every_way_in(policy: &str) {
    let net = Net::new();
    let place = Place::new();
    enter(&net.near);
    let dns = names();
    let (text, forwards) = config(&place, dns.address, policy);
    let _gate = net.launch(&place, &text);
    let gate: SocketAddr = ([127, 0, 0, 1], 3128).into();
    eventually("the start", Duration::from_secs(30), || {
        TcpStream::connect(gate).ok()
    });

    canaries_hear(&net, gate);
    let asked_before = dns.asked().len();
    let attempts = attempts();
    for asked in &attempts {
        no_way_in(&net, gate, asked);
    }
    for (to, listen) in &forwards {
        let said = forward(*listen);
        assert!(
            said.starts_with("egress: destination not allowed: its address is"),
            "forward {to}: {said:?}"
        );
        assert!(!said.contains(to), "forward {to}: {said:?}");
    }
    thread::sleep(Duration::from_millis(200)); // for what might still be under way
    assert_eq!(net.take_heard(), [""; 0]);
    let asked = &dns.asked()[asked_before..];
    for name in NAMES {
        let name = name.to_ascii_lowercase();
        assert!(
            !asked.contains(&name.trim_end_matches('.').to_owned()),
            "{name} was resolved"
        );
    }
    assert_recorded(&place, &attempts, forwards.len() as u64);
}

/// They hear what is allowed, so they would hear the rest; and the rest can be reached from the gateway.
fn canaries_hear(net: &Net, gate: SocketAddr) {
    for to in [PUBLIC[0], &host(PUBLIC[1]), "good.test", "mixed.test"] {
        let said = exchange(
            gate,
            format!("CONNECT {to}:{CANARY} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(),
        );
        assert!(
            said.ends_with(b"canary"),
            "{to}: {}",
            String::from_utf8_lossy(&said)
        );
    }
    let heard = net.take_heard();
    assert!(
        heard.len() >= 4
            && heard
                .iter()
                .all(|h| h.starts_with(&net.far) && PUBLIC.iter().any(|p| h.contains(p))),
        "{heard:?}"
    );
    for reachable in [
        "127.0.0.1",
        "::1",
        FIXED[0],
        OWN,
        "10.1.2.3",
        "169.254.169.254",
        "fd00:ec2::254",
        "240.0.0.1",
    ] {
        let to = SocketAddr::new(reachable.parse().unwrap(), CANARY);
        TcpStream::connect_timeout(&to, SOON)
            .unwrap_or_else(|e| panic!("the test's own net: {to}: {e}"));
    }
    eventually("the canaries", SOON, || {
        let heard = net.heard.lock().unwrap().len();
        (heard >= 8).then_some(())
    });
    net.take_heard();
}

/// Refused by every door, in its words, and heard by nobody.
fn no_way_in(net: &Net, gate: SocketAddr, asked: &Attempt) {
    for (way, code) in [
        ("CONNECT", connect(gate, asked)),
        ("absolute", absolute(gate, asked)),
    ] {
        assert!(asked.codes.contains(&&*code), "{way} {asked:?}: {code}");
    }
    let expected = match asked.codes {
        ["address_denied" | "destination_denied"] => 2,
        ["dial_refused"] => 5,
        _ => 8,
    };
    assert_eq!(socks(gate, asked), Some(expected), "SOCKS {asked:?}");
    let heard = net.take_heard();
    assert!(heard.is_empty(), "{asked:?}: {heard:?}");
}

/// Each refusal is in the log, with its reason.
fn assert_recorded(place: &Place, attempts: &[Attempt], forwards: u64) {
    let count = |code: &str| attempts.iter().filter(|a| a.codes == [code]).count() as u64 * 3;
    let wanted = [
        ("address_denied", count("address_denied") + forwards),
        ("destination_denied", count("destination_denied")),
    ];
    eventually("the records", Duration::from_secs(20), || {
        let found = denials(place);
        wanted
            .iter()
            .all(|(code, n)| found.get(*code) == Some(n))
            .then_some(())
            .or_else(|| {
                eprintln!("{found:?}, wanted {wanted:?}");
                None
            })
    });
    let found = denials(place);
    let invalid: u64 = ["name_invalid", "malformed"]
        .iter()
        .filter_map(|code| found.get(*code))
        .sum();
    let wanted = attempts.iter().filter(|a| a.codes.len() > 1).count() as u64 * 3;
    assert_eq!(invalid, wanted, "{found:?}");
}

#[test]
#[ignore = "needs root for network namespaces; run by tests/run"]
fn nothing_forbidden_is_dialled_by_default() {
    every_way_in("");
}

#[test]
#[ignore = "needs root for network namespaces; run by tests/run"]
fn nothing_forbidden_is_dialled_where_everything_is_allowed() {
    every_way_in("[[egress.policy]]\nname = \"all\"\ndestinations = [\"*\"]\n");
}

#[test]
fn no_spelling_is_a_destination_of_a_forward() {
    let place = Place::new();
    for spelling in SPELLINGS {
        let to = toml_text(&format!("{spelling}:5432"));
        let text = format!(
            "[egress]\nfixed = \"127.0.0.7\"\nforward = {{ listen = \"127.0.0.1:1\", to = {to} }}\n"
        );
        let path = place.write(&text);
        let done = gate::run(
            Command::new(binary())
                .arg("check")
                .arg("--config")
                .arg(path),
        );
        assert_eq!(done.code, Some(2), "{spelling:?}: {done:?}");
        assert!(
            done.stderr.contains("egress.forward.to"),
            "{spelling:?}: {done:?}"
        );
    }
}

fn toml_text(text: &str) -> String {
    serde_json::to_string(text)
        .unwrap()
        .replace('\0', "\\u0000")
}

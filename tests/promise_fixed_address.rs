//! Promise 2: nothing leaves except from the fixed address, to an address that was judged, whatever the name server says.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use support::client::read_for;
use support::dns::{Answer, Dns};
use support::gate::{FIXED, Place, binary, free_port, run};
use support::log::Log;
use support::peer::{must, node, node_modules};
use support::upstream::{Upstream, connect};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Names below `customer.test` may be dialled where they resolve to this one address, of all the special-purpose ones.
const POLICY: &str = r#"
[[egress.policy]]
name = "customers"
destinations = ["*.customer.test"]
addresses = ["127.0.0.9/32"]
action = "allow"
"#;
const GOOD: &str = "127.0.0.9";
const QUICK: Duration = Duration::from_secs(5);

/// Sends these bytes to the proxy and reads its answer until it closes, or for so long.
async fn ask(place: &Place, bytes: &[u8], limit: Duration) -> Vec<u8> {
    let mut stream = to_proxy(place).await;
    stream.write_all(bytes).await.unwrap();
    read_for(&mut stream, limit).await
}

async fn to_proxy(place: &Place) -> TcpStream {
    let proxy = SocketAddr::from(([127, 0, 0, 1], place.proxy));
    connect(Ipv4Addr::LOCALHOST, proxy).await.unwrap()
}

/// CONNECT, and a GET through the tunnel if there is one: the status of the CONNECT, and everything that was said.
async fn tunnel(place: &Place, target: &str) -> (u16, String) {
    let mut stream = to_proxy(place).await;
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 64 * 1024];
    let count = stream.read(&mut buffer).await.unwrap();
    let mut said = String::from_utf8_lossy(&buffer[..count]).into_owned();
    assert!(
        said.contains("\r\n\r\n"),
        "the reply did not come whole: {said:?}"
    );
    let status = said.split(' ').nth(1).unwrap().parse().unwrap();
    if status == 200 {
        let get = "GET /headers HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(get.as_bytes()).await.unwrap();
    }
    said += &String::from_utf8_lossy(&read_for(&mut stream, QUICK).await);
    (status, said)
}

/// Which addresses were dialled.
fn dialled(destination: &Upstream) -> Vec<String> {
    destination
        .connections()
        .iter()
        .map(|(_, local)| local.ip().to_string())
        .collect()
}

fn assert_only_fixed(destination: &Upstream) {
    for (peer, _) in destination.connections() {
        assert_eq!(peer.ip(), FIXED, "dialled from another address");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_door_dials_from_the_fixed_address() {
    let place = Place::new();
    let dns = Dns::table(&[("api.customer.test", &[GOOD])]);
    let destination = Upstream::everywhere();
    let (port, forward) = (destination.port(), free_port());
    let more = format!(
        "{POLICY}\n[[egress.forward]]\nname = \"api\"\nlisten = \"127.0.0.1:{forward}\"\n\
         to = \"api.customer.test:{port}\"\naddresses = [\"{GOOD}/32\"]\n"
    );
    let mut gate = place.start(&(place.head() + &place.egress(dns.address, &more)));
    let get = "GET /headers HTTP/1.1\r\nHost: api.customer.test\r\nConnection: close\r\n\r\n";
    let seen = format!("\"peer\":\"{FIXED}\"");

    let (status, said) = tunnel(&place, &format!("api.customer.test:{port}")).await;
    assert!(status == 200 && said.contains(&seen), "connect: {said}");

    let absolute = format!(
        "GET http://api.customer.test:{port}/headers HTTP/1.1\r\nHost: other.test\r\nProxy-Authorization: Basic eDp5\r\n\
         Connection: close\r\n\r\n"
    );
    let said = String::from_utf8(ask(&place, absolute.as_bytes(), QUICK).await).unwrap();
    assert!(said.contains(&seen), "absolute form: {said}");
    assert!(
        !said.contains("other.test") && !said.to_lowercase().contains("proxy-auth"),
        "{said}"
    );

    let mut socks = vec![5, 1, 0, 5, 1, 0, 3, 17];
    socks.extend(b"api.customer.test");
    socks.extend(port.to_be_bytes());
    socks.extend(get.as_bytes());
    let said = ask(&place, &socks, QUICK).await;
    assert_eq!(said[..4], [5, 0, 5, 0], "SOCKS5: {said:?}");
    assert!(
        String::from_utf8_lossy(&said).contains(&seen),
        "SOCKS5: {said:?}"
    );

    let mut stream = connect(Ipv4Addr::LOCALHOST, ([127, 0, 0, 1], forward).into())
        .await
        .unwrap();
    stream.write_all(get.as_bytes()).await.unwrap();
    let said = read_for(&mut stream, QUICK).await;
    assert!(
        String::from_utf8_lossy(&said).contains(&seen),
        "forward: {said:?}"
    );
    drop(stream);

    assert_only_fixed(&destination);
    assert!(gate.stop(Duration::from_secs(20)).success());
    let log = Log::read(&place.state());
    log.assert_paired();
    let doors: Vec<_> = log
        .kind("before")
        .map(|r| r["door"].as_str().unwrap())
        .collect();
    assert_eq!(doors, ["connect", "http", "socks5", "forward"]);
    for after in log.kind("after") {
        assert_eq!(after["local_address"], FIXED.to_string(), "{after}");
        assert_eq!(
            (&after["address"], &after["remote_port"]),
            (&GOOD.into(), &port.into()),
            "{after}"
        );
    }
    place.verify();
}

/// A name server that gives a good address first and another one ever after.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_name_that_changes_its_mind_is_not_followed() {
    let place = Place::new();
    let dns = Dns::start(|_, times| {
        let address = if times == 0 { GOOD } else { "127.0.0.10" };
        Answer::Addresses(vec![address.parse().unwrap()])
    });
    let destination = Upstream::everywhere();
    let _gate = place.start(&(place.head() + &place.egress(dns.address, POLICY)));
    let target = format!("rebind.customer.test:{}", destination.port());
    let (status, said) = tunnel(&place, &target).await;
    assert_eq!(status, 200, "{said}");
    for _ in 0..5 {
        let (status, said) = tunnel(&place, &target).await;
        assert!(matches!(status, 200 | 403), "{said}");
    }
    assert!(
        dialled(&destination).iter().all(|a| a == GOOD),
        "{:?}",
        dialled(&destination)
    );
}

/// Good and forbidden addresses in one answer, in every order.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn forbidden_addresses_are_taken_out_of_a_mixed_answer() {
    let place = Place::new();
    let lies = [
        "127.0.0.10",
        "169.254.169.254",
        "10.0.0.1",
        "::1",
        "::ffff:127.0.0.10",
        "0.0.0.0",
    ];
    let calls = AtomicUsize::new(0);
    let dns = Dns::start(move |name, _| {
        let mut list: Vec<_> = lies.iter().map(|a| a.parse().unwrap()).collect();
        if name == "mixed.customer.test" {
            list.insert(
                calls.fetch_add(1, Ordering::Relaxed) % 7,
                GOOD.parse().unwrap(),
            );
        }
        Answer::Addresses(list)
    });
    let destination = Upstream::everywhere();
    let _gate = place.start(&(place.head() + &place.egress(dns.address, POLICY)));
    for _ in 0..8 {
        let (status, said) = tunnel(
            &place,
            &format!("mixed.customer.test:{}", destination.port()),
        )
        .await;
        assert_eq!(status, 200, "{said}");
    }
    let (status, said) = tunnel(
        &place,
        &format!("lies.customer.test:{}", destination.port()),
    )
    .await;
    assert_eq!(status, 403, "{said}");
    assert!(said.to_lowercase().contains("proxy-status:"), "{said}");
    assert!(said.contains("address_denied"), "{said}");
    assert!(
        !lies.iter().any(|a| a.len() > 3 && said.contains(a)),
        "an internal address is told: {said}"
    );
    assert_eq!(dialled(&destination), [GOOD; 8]);
}

/// Loopback and metadata addresses in every spelling that some parser takes for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_spelling_of_a_forbidden_address_is_dialled() {
    let place = Place::new();
    let dns = Dns::start(|_, _| Answer::Addresses(vec!["127.0.0.1".parse().unwrap()]));
    let destination = Upstream::everywhere();
    let anything = "[[egress.policy]]\ndestinations = [\"*\"]\naction = \"allow\"\n";
    let _gate = place.start(&(place.head() + &place.egress(dns.address, anything)));
    let hosts = [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "017700000001",
        "0177.0.0.1",
        "127.0.0.1.",
        "0",
        "0.0.0.0",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "[::1]",
        "::1",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1%251]",
        "[fe80::1%lo]",
        "169.254.169.254",
        "\u{ff11}\u{ff12}\u{ff17}.0.0.1",
        "127\u{3002}0\u{3002}0\u{3002}1",
        "127.0.0.1%00.customer.test",
        "user@127.0.0.1",
        "metadata.google.internal",
        "rebound.example",
    ];
    for host in hosts {
        let target = format!("{host}:{}", destination.port());
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        let said = ask(&place, head.as_bytes(), QUICK).await;
        let text = String::from_utf8_lossy(&said);
        assert!(text.starts_with("HTTP/1.1 4"), "{host}: {text}");
    }
    assert_eq!(dialled(&destination), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_family_without_a_fixed_address_is_refused() {
    let place = Place::new();
    let dns = Dns::table(&[
        ("six.customer.test", &["::1"]),
        ("both.customer.test", &["::1", GOOD]),
    ]);
    let destination = Upstream::everywhere();
    let six = TcpListener::bind("[::1]:0").unwrap();
    six.set_nonblocking(true).unwrap();
    let port = six.local_addr().unwrap().port();
    let policy = "[[egress.policy]]\ndestinations = [\"*.customer.test\", \"::1\"]\n\
                  addresses = [\"::1/128\", \"127.0.0.9/32\"]\naction = \"allow\"\n";
    let _gate = place.start(&(place.head() + &place.egress(dns.address, policy)));
    for host in ["six.customer.test", "[::1]"] {
        let (status, said) = tunnel(&place, &format!("{host}:{port}")).await;
        assert_eq!(status, 403, "{host}: {said}");
        assert!(said.contains("family_without_address"), "{host}: {said}");
    }
    let (status, said) = tunnel(
        &place,
        &format!("both.customer.test:{}", destination.port()),
    )
    .await;
    assert_eq!(status, 200, "{said}");
    assert!(
        six.accept().is_err(),
        "an IPv6 address was dialled without a fixed one"
    );
}

/// Every way in which a dial fails is answered, whole and in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_request_ends_in_silence() {
    let place = Place::new();
    let dns = Dns::start(|name, _| match name {
        "gone.customer.test" => Answer::NoSuchName,
        "ill.customer.test" => Answer::ServerFailure,
        "mute.customer.test" => Answer::Silence,
        _ => Answer::Addresses(vec![GOOD.parse().unwrap()]),
    });
    let (deaf, _backlog) = deaf(GOOD.parse().unwrap());
    let _gate = place.start(&(place.head() + &place.egress(dns.address, POLICY)));
    let closed = free_port();
    for (target, expected, code, limit) in [
        (
            format!("gone.customer.test:{closed}"),
            502,
            "name_not_found",
            5,
        ),
        (
            format!("ill.customer.test:{closed}"),
            502,
            "resolve_failed",
            12,
        ),
        (
            format!("mute.customer.test:{closed}"),
            504,
            "resolve_timeout",
            15,
        ),
        (
            format!("api.customer.test:{closed}"),
            502,
            "dial_refused",
            5,
        ),
        (format!("api.customer.test:{deaf}"), 504, "dial_timeout", 13),
        (
            format!("stranger.test:{closed}"),
            403,
            "destination_denied",
            5,
        ),
    ] {
        let begin = Instant::now();
        let (status, said) = tunnel(&place, &target).await;
        assert_eq!(status, expected, "{target}: {said}");
        assert!(said.contains(code), "{target}: {said}");
        assert!(
            begin.elapsed() < Duration::from_secs(limit) + QUICK,
            "{target}: {:?}",
            begin.elapsed()
        );
    }
    assert!(
        !dns.asked().iter().any(|n| n == "stranger.test"),
        "a forbidden name was resolved"
    );
}

/// A port whose queue is full, so that it does not answer to a connect.
fn deaf(address: Ipv4Addr) -> (u16, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener
        .bind(&SocketAddr::from((address, 0)).into())
        .unwrap();
    listener.listen(0).unwrap();
    let local = listener.local_addr().unwrap();
    let mut kept = vec![listener];
    for _ in 0..8 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.connect(&local).ok(); // in progress, or never
        kept.push(socket);
    }
    (local.as_socket_ipv4().unwrap().port(), kept)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn early_bytes_arrive_if_allowed_and_go_nowhere_if_not() {
    let place = Place::new();
    let dns = Dns::table(&[
        ("api.customer.test", &[GOOD]),
        ("bad.customer.test", &["127.0.0.10"]),
    ]);
    let destination = Upstream::everywhere();
    let port = destination.port();
    let _gate = place.start(&(place.head() + &place.egress(dns.address, POLICY)));
    let early = "GET /early HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let head = |host: &str| {
        format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n{early}")
    };

    let said = ask(&place, head("api.customer.test").as_bytes(), QUICK).await;
    let text = String::from_utf8_lossy(&said);
    assert_eq!(text.matches("HTTP/1.1 200").count(), 2, "{text}");

    let absolute =
        format!("GET http://api.customer.test:{port}/pipelined HTTP/1.1\r\nHost: x\r\n\r\n");
    for refused in ["bad.customer.test", "stranger.test"] {
        let bytes = head(refused) + &absolute;
        let said = ask(&place, bytes.as_bytes(), QUICK).await;
        let text = String::from_utf8_lossy(&said);
        assert!(
            text.starts_with("HTTP/1.1 403") && !text.contains("200"),
            "{text}"
        );
    }
    let targets: Vec<_> = destination
        .heads()
        .into_iter()
        .map(|(target, _)| target)
        .collect();
    assert_eq!(targets, ["/early"]);
}

/// A network namespace of its own, gone when dropped.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let name = format!("tollgate-{}", std::process::id());
        must(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self(name);
        namespace.must(&["ip", "link", "set", "lo", "up"]);
        namespace
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    fn must(&self, words: &[&str]) -> String {
        must(self.command(words[0]).args(&words[1..]))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        Command::new("ip")
            .args(["netns", "delete", &self.0])
            .status()
            .ok();
    }
}

#[test]
#[ignore = "needs root for a network namespace, curl and Node.js; run by tests/run"]
fn a_fixed_address_that_is_removed_stops_dialling_until_it_is_back() {
    let place = Place::new();
    let space = Namespace::new();
    let (fixed, destination, port) = ("192.0.2.7/32", "192.0.2.9", "8080");
    space.must(&["ip", "addr", "add", fixed, "dev", "lo"]);
    space.must(&["ip", "addr", "add", "192.0.2.9/32", "dev", "lo"]);
    let mut server = space.command("node");
    server
        .env("NODE_PATH", node_modules())
        .args(node("destination.js").get_args())
        .args([destination, port]);
    let mut server = support::peer::Peer::start(&mut server, place.path("destination.out"));
    server.wait_output("listening");

    let policy = "[[egress.policy]]\ndestinations = [\"192.0.2.9/32\"]\naddresses = [\"192.0.2.9/32\"]\naction = \"allow\"\n";
    let egress = place
        .egress(([127, 0, 0, 1], 53).into(), policy)
        .replace(&FIXED.to_string(), "192.0.2.7");
    let config = place.write(&(place.head() + &egress));
    let mut command = space.command(binary());
    command.arg("run").arg("--config").arg(config);
    let _gate = place.launch(command);
    let proxy = format!("http://127.0.0.1:{}", place.proxy);
    let url = format!("http://{destination}:{port}/");
    let fetch = || {
        let words = [
            "--silent",
            "--max-time",
            "20",
            "--proxytunnel",
            "--proxy",
            &proxy,
            "--write-out",
            " %{http_connect}",
        ];
        run(space.command("curl").args(words).arg(&url)).stdout
    };
    let admin = |path: &str| {
        space.must(&[
            "curl",
            "--silent",
            &format!("http://127.0.0.1:{}{path}", place.admin),
        ])
    };
    support::eventually("the start", Duration::from_secs(20), || {
        fetch().contains("192.0.2.7").then_some(())
    });

    space.must(&["ip", "addr", "del", fixed, "dev", "lo"]);
    for _ in 0..3 {
        assert_eq!(fetch(), " 503", "dialled without the fixed address");
    }
    let metric = "tollgate_fixed_address_present{family=\"ipv4\"}";
    support::eventually("the metric to say so", Duration::from_secs(20), || {
        admin("/metrics")
            .contains(&format!("{metric} 0"))
            .then_some(())
    });
    space.must(&["ip", "addr", "add", fixed, "dev", "lo"]);
    support::eventually("dialling again", Duration::from_secs(20), || {
        (fetch() == "192.0.2.7\n 200").then_some(())
    });
    let said = std::fs::read_to_string(place.path("destination.out")).unwrap();
    let peers: Vec<_> = said
        .lines()
        .filter_map(|l| l.strip_prefix("peer "))
        .collect();
    assert!(
        peers.len() >= 2 && peers.iter().all(|p| *p == "192.0.2.7"),
        "{peers:?}"
    );
}

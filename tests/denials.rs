//! A refusal reaches the person: every client below shows what its user can act on, and the log has the request id.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use support::dns::{Answer, Dns};
use support::eventually;
use support::gate::{Gate, Place, free_port, run};
use support::log::Log;
use support::peer::node;

const SOON: Duration = Duration::from_secs(10);
const NOT_ALLOWED: &str =
    "egress: destination not allowed: its address is special-purpose, private or our own";

/// One forward for each protocol, to a name with a private address.
struct House {
    place: Place,
    _gate: Gate,
    ports: Vec<(&'static str, u16)>,
}

impl House {
    fn new() -> Self {
        let place = Place::new();
        let dns = Dns::table(&[("db.customer.test", &["10.0.0.9"])]);
        let mut ports = Vec::new();
        let mut forwards = String::new();
        for (protocol, to) in [
            ("postgres", 5432),
            ("mysql", 3306),
            ("sqlserver", 1433),
            ("redis", 6379),
            ("mongodb", 27017),
            ("tls", 443),
            ("none", 9),
        ] {
            let port = free_port();
            ports.push((protocol, port));
            forwards += &format!(
                "[[egress.forward]]\nname = \"{protocol}\"\nlisten = \"127.0.0.1:{port}\"\nto = \"db.customer.test:{to}\"\n"
            );
        }
        let gate = place.start(&(place.head() + &place.egress(dns.address, &forwards)));
        Self {
            place,
            _gate: gate,
            ports,
        }
    }

    fn port(&self, protocol: &str) -> u16 {
        let (_, port) = self
            .ports
            .iter()
            .find(|(name, _)| *name == protocol)
            .unwrap();
        *port
    }

    /// The text that was shown holds the reason and a request id, and the log knows both.
    fn assert_told(&self, who: &str, shown: &str) {
        assert!(shown.contains(NOT_ALLOWED), "{who}: {shown}");
        assert!(
            !shown.contains("10.0.0.9"),
            "{who} was told an address: {shown}"
        );
        let (_, rest) = shown.split_once("(request id ").expect(shown);
        let (id, _) = rest.split_once(')').expect(shown);
        eventually(&format!("{who}: the record of {id}"), SOON, || {
            let log = Log::read(&self.place.state());
            let denied = log.kind("denied").find(|r| r["id"] == id)?;
            assert_eq!(denied["reason"], "address_denied", "{denied}");
            Some(())
        });
    }
}

fn shown(command: &mut Command) -> String {
    let done = run(command);
    done.stdout + &done.stderr
}

#[test]
#[ignore = "needs clients; run by tests/run"]
fn every_driver_shows_why() {
    let house = House::new();
    let port = |protocol| house.port(protocol).to_string();
    for mode in ["disable", "prefer"] {
        let to = format!(
            "postgresql://app:secret@127.0.0.1:{}/app?sslmode={mode}",
            port("postgres")
        );
        house.assert_told(
            "psql",
            &shown(Command::new("psql").args([&to, "-c", "select 1"])),
        );
    }
    let mut mariadb = Command::new("mariadb");
    mariadb.args([
        "--no-defaults",
        "-h127.0.0.1",
        "-uapp",
        "-psecret",
        "-e",
        "select 1",
        "-P",
    ]);
    house.assert_told("mariadb", &shown(mariadb.arg(port("mysql"))));
    let mut redis = Command::new("redis-cli");
    let redis = redis.args(["-h", "127.0.0.1", "-p", &port("redis"), "get", "key"]);
    house.assert_told("redis-cli", &shown(redis));
    for (driver, protocol) in [
        ("pg", "postgres"),
        ("mysql2", "mysql"),
        ("tedious", "sqlserver"),
        ("ioredis", "redis"),
        ("mongodb", "mongodb"),
    ] {
        let text = shown(node("denied.js").args([driver, &port(protocol)]));
        house.assert_told(driver, &text);
    }
}

#[test]
#[ignore = "needs clients; run by tests/run"]
fn whoever_begins_with_tls_is_told_in_tls() {
    let house = House::new();
    for protocol in ["tls", "redis", "mongodb", "postgres"] {
        let url = format!("https://127.0.0.1:{}/", house.port(protocol));
        let text =
            shown(Command::new("curl").args(["-sS", "--max-time", "20", "--noproxy", "*", &url]));
        assert!(text.contains("access denied"), "{protocol}: {text}");
    }
}

/// Everything that a MySQL client is told, which does not have to speak first.
fn told(port: u16) -> String {
    let mut tcp = TcpStream::connect(("127.0.0.1", port)).unwrap();
    tcp.set_read_timeout(Some(SOON)).unwrap();
    let mut said = Vec::new();
    tcp.read_to_end(&mut said).unwrap();
    let text = said.split_off(7);
    assert_eq!(said[3..5], [0, 0xff], "an ERR packet");
    String::from_utf8(text).unwrap()
}

#[test]
fn every_reason_has_its_own_words() {
    let place = Place::new();
    let dns = Dns::start(|name, _| match name {
        "deaf.test" => Answer::Addresses(vec!["127.0.0.9".parse().unwrap()]),
        "late.test" => Answer::Silence,
        "gone.test" => Answer::NoSuchName,
        "v6.test" => Answer::Addresses(vec!["2001:db8::1".parse().unwrap()]),
        _ => Answer::ServerFailure,
    });
    let (deaf, _full) = deaf();
    let mut forwards = String::new();
    let mut wanted = Vec::new();
    for (name, port, words) in [
        (
            "deaf.test",
            deaf,
            "the destination did not answer; the firewall there has probably not allowed 203.0.113.7 (",
        ),
        ("deaf.test", 9, "the destination refused the connection"),
        ("gone.test", 1, "the destination name has no address"),
        ("late.test", 1, "the name service did not answer"),
        ("down.test", 1, "the name service failed"),
        (
            "v6.test",
            1,
            "only addresses of a family without a fixed address",
        ),
    ] {
        let listen = free_port();
        wanted.push((listen, words));
        forwards += &format!(
            "[[egress.forward]]\nname = \"{listen}\"\nlisten = \"127.0.0.1:{listen}\"\nto = \"{name}:{port}\"\n\
             protocol = \"mysql\"\naddresses = [\"127.0.0.0/8\"]\n"
        );
    }
    let egress = place.egress(dns.address, &forwards).replace(
        "fixed =",
        "advertised = [\"203.0.113.7\"]\ndial_timeout = \"1s\"\nfixed =",
    );
    let _gate = place.start(&(place.head() + &egress));
    std::thread::scope(|scope| {
        for (port, words) in wanted {
            scope.spawn(move || {
                let said = told(port);
                assert!(
                    said.starts_with("egress: ") && said.contains(words),
                    "{said}"
                );
            });
        }
    });
}

/// A listener whose queue is full: whoever connects gets no answer.
fn deaf() -> (u16, Vec<socket2::Socket>) {
    use socket2::{Domain, Socket, Type};
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let listener = socket();
    let at: std::net::SocketAddr = "127.0.0.9:0".parse().unwrap();
    listener.bind(&at.into()).unwrap();
    listener.listen(0).unwrap();
    let at = listener.local_addr().unwrap();
    let port = at.as_socket().unwrap().port();
    let mut kept = vec![listener];
    for _ in 0..8 {
        let client = socket();
        client.set_nonblocking(true).unwrap();
        client.connect(&at).ok(); // it is under way
        kept.push(client);
    }
    (port, kept)
}

#[test]
fn whoever_says_nothing_or_nonsense_is_cut_off_soon() {
    let house = House::new();
    std::thread::scope(|scope| {
        for (protocol, _) in &house.ports {
            for says in ["", "GET / HTTP/1.1\r\n\r\n"] {
                let port = house.port(protocol);
                if *protocol == "mysql" || (*protocol == "redis" && !says.is_empty()) {
                    continue; // is told at once; takes lines for commands
                }
                scope.spawn(move || {
                    let mut tcp = TcpStream::connect(("127.0.0.1", port)).unwrap();
                    tcp.set_read_timeout(Some(SOON)).unwrap();
                    tcp.write_all(says.as_bytes()).ok(); // it may be gone
                    let end = tcp.read(&mut [0]).unwrap_err();
                    assert_eq!(
                        end.kind(),
                        std::io::ErrorKind::ConnectionReset,
                        "{protocol}"
                    );
                });
            }
        }
    });
}

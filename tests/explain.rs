//! `tollgate explain egress` and `tollgate egress check`: what an operator is told before a customer complains.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic, and speaks to sockets itself"
)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use support::dns::{Answer, Dns};
use support::gate::{Done, Place};

const SEEN: &str = "203.0.113.7";

/// Serves every connection on 127.0.0.9.
fn destination(serve: impl Fn(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.9:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().flatten().for_each(serve));
    port
}

/// A port whose queue is full, so that it does not answer to a connect.
fn deaf() -> (u16, Vec<Socket>) {
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let listener = socket();
    listener
        .bind(&"127.0.0.9:0".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    listener.listen(0).unwrap();
    let at = listener.local_addr().unwrap();
    let mut kept = vec![listener];
    for _ in 0..8 {
        let client = socket();
        client.set_nonblocking(true).unwrap();
        client.connect(&at).ok(); // it is under way
        kept.push(client);
    }
    (at.as_socket().unwrap().port(), kept)
}

struct Case {
    place: Place,
    config: PathBuf,
    dns: Dns,
}

impl Case {
    fn new(more: &str) -> Self {
        let place = Place::new();
        let dns = Dns::start(|name, _| match name {
            "db.customer.test" => Answer::Addresses(vec!["127.0.0.9".parse().unwrap()]),
            "mixed.customer.test" => {
                let list = ["10.0.0.1", "8.8.8.8", "127.0.0.7"];
                Answer::Addresses(list.map(|a| a.parse().unwrap()).into())
            }
            "v6.customer.test" => Answer::Addresses(vec!["2606:4700::1".parse().unwrap()]),
            _ => Answer::NoSuchName,
        });
        let rules = "[[egress.policy]]\nname = \"customers\"\ndestinations = [\"*.customer.test\"]\naddresses = [\"127.0.0.9\"]\n\
             [[egress.policy]]\nname = \"never\"\ndestinations = [\"evil.test\"]\naction = \"deny\"\n";
        let egress = place.egress(dns.address, &format!("{rules}{more}"));
        let egress = egress.replace("fixed =", &format!("advertised = [\"{SEEN}\"]\nfixed ="));
        let config = place.write(&(place.head() + &egress));
        Self { place, config, dns }
    }

    fn explain(&self, args: &[&str]) -> Done {
        let config = self.config.to_str().unwrap();
        self.place
            .tollgate(&[&["explain", "egress", "--config", config], args].concat())
    }

    /// Exit status 0 or 1 as `holds` says, and every word in the text.
    fn says(&self, args: &[&str], holds: bool, words: &[&str]) {
        let done = self.explain(args);
        assert_eq!(done.code, Some(i32::from(!holds)), "{args:?}: {done:?}");
        for word in words {
            assert!(done.stdout.contains(word), "{args:?}: {word:?} in {done:?}");
        }
    }
}

#[test]
fn the_rule_and_each_address_are_told() {
    let case = Case::new("");
    case.says(
        &["db.customer.test:5432"],
        true,
        &[
            "app -> db.customer.test:5432",
            "`customers` allows it",
            "from 127.0.0.7, seen outside as 203.0.113.7",
            "127.0.0.9: may be dialled",
            "\nallowed\n",
        ],
    );
    case.says(
        &["--client", "app", "mixed.customer.test:443"],
        true,
        &[
            "10.0.0.1: denied: special-purpose",
            "8.8.8.8: may be dialled",
            "127.0.0.7: denied: ",
        ],
    );
    case.says(
        &["v6.customer.test:443"],
        false,
        &["denied (family_without_address)"],
    );
    case.says(
        &["gone.customer.test:443"],
        false,
        &["denied (name_not_found)"],
    );
    case.says(
        &["10.0.0.1:443"],
        false,
        &["none matches", "denied (destination_denied)"],
    );
    let asked = case.dns.asked().len();
    case.says(
        &["evil.test:443"],
        false,
        &["`never` denies it", "denied (destination_denied)"],
    );
    case.says(
        &["localhost:443"],
        false,
        &["none matches", "denied (destination_denied)"],
    );
    assert_eq!(
        case.dns.asked().len(),
        asked,
        "what is denied is not resolved"
    );

    let done = case.explain(&["--json", "mixed.customer.test:443"]);
    let found: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(found["rule"], "customers");
    assert_eq!(found["allowed"], true);
    assert_eq!(found["leaves"][0]["seen_as"], SEEN);
    let dialled = found["addresses"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|a| a["allowed"] == true);
    assert_eq!(dialled.count(), 1, "{found}");
}

#[test]
fn a_trial_tells_apart_what_stands_in_the_way() {
    let (deaf, _full) = deaf();
    let greets = destination(|mut tcp| {
        tcp.write_all(b"\x0a\0\0\0\x0a8.0.36\0....").ok();
    });
    let refuses = destination(|mut tcp| {
        tcp.write_all(b"\x0a\0\0\0\xff\x6a\x04Host 'x' is not allowed")
            .ok();
    });
    let resets = destination(|tcp| {
        SockRef::from(&tcp)
            .set_linger(Some(Duration::ZERO))
            .unwrap()
    });
    let closes = destination(drop);
    let no_tls = destination(|mut tcp| {
        tcp.read_exact(&mut [0; 16]).ok();
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
    });
    let plain = destination(|mut tcp| {
        let mut asked = [0; 8];
        tcp.read_exact(&mut asked).unwrap();
        assert_eq!(asked, [0, 0, 0, 8, 4, 210, 22, 47]);
        tcp.write_all(b"N").ok();
    });
    let mut forwards = String::new();
    let mut names = Vec::new();
    for (protocol, port, holds, words) in [
        (
            "none",
            deaf,
            false,
            "no answer in 5 s: the firewall there has probably not allowed 203.0.113.7",
        ),
        (
            "none",
            9,
            false,
            "refused: it is reached, but nothing listens",
        ),
        ("none", resets, false, "reset: it is reached"),
        ("none", closes, false, "closes them at once"),
        ("mysql", greets, true, "answers: MySQL 8.0.36"),
        (
            "mysql",
            refuses,
            true,
            "answers: with an error: Host 'x' is not allowed",
        ),
        ("tls", no_tls, false, "TLS failed: "),
        ("postgres", plain, true, "answers: PostgreSQL without TLS"),
    ] {
        let name = format!("{protocol}-{port}");
        forwards += &format!(
            "[[egress.forward]]\nname = \"{name}\"\nlisten = \"127.0.0.1:{}\"\nto = \"db.customer.test:{port}\"\n\
             protocol = \"{protocol}\"\naddresses = [\"127.0.0.9\"]\n",
            support::gate::free_port()
        );
        names.push((name, holds, words));
    }
    let case = &Case::new(&forwards);
    thread::scope(|scope| {
        for (name, holds, words) in &names {
            scope.spawn(move || case.says(&["--try", "--client", name], *holds, &[words]));
        }
    });
    // What is not allowed is not tried.
    let untried = case.explain(&["--try", "--json", "--client", "app", "v6.customer.test:443"]);
    assert_eq!(untried.code, Some(1), "{untried:?}");
    assert!(
        untried.stdout.contains("\"tried\":null") || untried.stdout.contains("\"addresses\":[]")
    );
}

#[test]
fn a_question_without_sense_is_a_usage_error() {
    let case = Case::new(
        "[[egress.forward]]\nname = \"db\"\nlisten = \"127.0.0.1:1\"\nto = \"db.customer.test:1\"\n",
    );
    for (args, words) in [
        (&["--client", "nobody", "a.test:1"][..], "--client: app, db"),
        (&["a.test:1"], "--client: app, db"),
        (&["--client", "app"], "say which destination"),
        (
            &["--client", "app", "a.test"],
            "a port from 1 to 65535 is needed",
        ),
    ] {
        let done = case.explain(args);
        assert_eq!(done.code, Some(2), "{args:?}: {done:?}");
        assert!(done.stderr.contains(words), "{args:?}: {done:?}");
    }
    case.says(
        &["--client", "db", "other.test:1"],
        false,
        &["none matches"],
    );
}

#[test]
fn the_fixed_address_is_proved() {
    let echo = destination(|mut tcp| {
        let mut head = [0; 1024];
        let read = tcp.read(&mut head).unwrap();
        let seen = if head[..read].starts_with(b"GET /right ") {
            SEEN
        } else {
            "198.51.100.1"
        };
        let peer = tcp.peer_addr().unwrap().ip();
        assert_eq!(peer.to_string(), "127.0.0.7");
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{{\"ip\":\"{seen}\"}}",
            seen.len() + 9
        );
        tcp.write_all(answer.as_bytes()).ok();
    });
    let case = Case::new("");
    let config = case.config.to_str().unwrap();
    let check = |more: &[&str]| {
        let args = [&["egress", "check", "--config", config, "--json"], more].concat();
        let done = case.place.tollgate(&args);
        let found: Value =
            serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done:?}"));
        (done.code, found["addresses"][0].clone())
    };
    let (_, without) = check(&[]);
    assert_eq!(
        (&without["here"], &without["expected_outside"]),
        (&true.into(), &SEEN.into())
    );
    for (path, seen) in [("right", SEEN), ("wrong", "198.51.100.1")] {
        let (code, found) = check(&["--echo", &format!("http://127.0.0.9:{echo}/{path}")]);
        assert_eq!(found["seen_outside"], seen, "{found}");
        if path == "wrong" {
            assert_eq!((code, &found["holds"]), (Some(1), &false.into()));
        }
    }
    let (code, found) = check(&["--echo", "http://127.0.0.9:9/"]);
    assert_eq!(
        (code, &found["seen_outside"]),
        (Some(1), &Value::Null),
        "{found}"
    );

    let text = std::fs::read_to_string(&case.config)
        .unwrap()
        .replace("127.0.0.7", "192.0.2.77");
    std::fs::write(&case.config, text).unwrap();
    let (code, found) = check(&[]);
    assert_eq!((code, &found["here"]), (Some(1), &false.into()), "{found}");
}

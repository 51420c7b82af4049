//! The way out attacked: one client that asks for too much.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    dead_code,
    reason = "a test may panic, and speaks to sockets itself"
)]

#[path = "attack_out/support.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use support::{Edge, SOON, destination, read_until};

/// Three asks each, counted by client address over all doors of a gate; a name is not even resolved after that.
#[test]
fn a_client_over_its_limit_is_told_when_and_nothing_is_resolved_for_it() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let edge = Edge::start(
        "limits = [\"few\"]",
        &format!(
            "[egress.resolver]\nservers = [\"{}\"]\n[[egress.policy]]\ndestinations = [\"*\"]\naddresses = [\"127.0.0.0/8\"]",
            server.local_addr().unwrap()
        ),
    );
    let to = destination(|mut tcp| drop(tcp.write_all(b"hello")));
    let connect = |target: &str| format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n");
    // What policy refuses is not counted.
    for _ in 0..5 {
        let answer = edge.ask(&connect("localhost:1"), "");
        assert!(answer.contains("destination_denied"), "{answer}");
    }
    for _ in 0..3 {
        let answer = edge.ask(&connect(&to.to_string()), "hello");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let answer = edge.ask(&connect("db.example.com:443"), "");
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(answer.contains("\"code\":\"rate_limited\""), "{answer}");
    let wait = answer.split("retry-after: ").nth(1).unwrap();
    let wait: u64 = wait.split('\r').next().unwrap().parse().unwrap();
    assert!((3000..=3600).contains(&wait), "{answer}");
    let answer = edge.ask(&format!("GET http://{to}/ HTTP/1.1\r\nHost: x\r\n\r\n"), "");
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(server.recv_from(&mut [0; 512]).is_err(), "it was resolved");
    let mut socks = edge.connect();
    socks.write_all(&[5, 1, 0]).unwrap();
    socks.read_exact(&mut [0; 2]).unwrap();
    socks.write_all(&[5, 1, 0, 1, 127, 0, 0, 9, 1, 1]).unwrap();
    let mut reply = [0; 10];
    socks.read_exact(&mut reply).unwrap();
    assert_eq!(reply[1], 2);
    let denied = edge.record(|line| line["reason"] == "rate_limited");
    assert_eq!(denied["kind"], "denied", "{denied}");
}

#[test]
fn a_forward_counts_too() {
    let to = destination(|mut tcp| drop(tcp.write_all(b"hello")));
    let edge = Edge::start(
        "",
        &format!("[[egress.forward]]\nlisten = \"{{forward}}\"\nto = \"{to}\"\nlimits = [\"few\"]"),
    );
    let greeting = || {
        let mut tcp = TcpStream::connect(edge.forward).unwrap();
        tcp.set_read_timeout(Some(SOON)).unwrap();
        read_until(&mut tcp, "hello")
    };
    let got = [(); 4].map(|()| greeting());
    assert_eq!(got[..3], ["hello", "hello", "hello"]);
    assert!(!got[3].contains("hello"), "{got:?}");
}

#[test]
fn a_limit_that_is_not_there_is_a_mistake_at_its_place() {
    for section in ["listener", "forward"] {
        let text = format!(
            "[limits.few]\nrate = '1/h'\n[egress]\nfixed = '127.0.0.7'\n[[egress.{section}]]\nlisten = '127.0.0.1:1'\n{}limits = ['few', 'fwe']\n",
            if section == "forward" {
                "to = 'a.example:1'\n"
            } else {
                ""
            }
        );
        let mistakes = tollgate::config::parse("t.toml".as_ref(), text)
            .err()
            .unwrap();
        let found: Vec<_> = mistakes.iter().collect();
        assert_eq!(found.len(), 1, "{mistakes}");
        assert_eq!(found[0].key, format!("egress.{section}[0].limits[1]"));
        assert!(found[0].mend.contains("`few`"), "{mistakes}");
    }
}

/// Shells and service managers start processes with 1024 descriptors, of which a tunnel takes two.
#[test]
fn a_small_soft_limit_of_descriptors_does_not_stop_accepting() {
    let to = destination(|mut tcp| {
        tcp.write_all(b"hello").ok();
        read_until(&mut tcp, "never");
    });
    let edge = Edge::start(
        "",
        "[[egress.policy]]\ndestinations = [\"*\"]\naddresses = [\"127.0.0.0/8\"]",
    );
    let mut held = Vec::new();
    for at in 0..150 {
        let mut tcp = edge.connect();
        tcp.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
            .unwrap();
        let answer = read_until(&mut tcp, "hello");
        assert!(answer.ends_with("hello"), "tunnel {at}: {answer}");
        held.push(tcp);
    }
}

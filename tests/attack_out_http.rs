//! The way out attacked: what a hostile destination or client makes of one absolute-form exchange.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    dead_code,
    reason = "a test may panic, and speaks to sockets itself"
)]

#[path = "attack_out/support.rs"]
mod support;

use std::io::Write as _;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use support::{Edge, answers, read_until};

const ALL: &str = "[[egress.policy]]\ndestinations = [\"*\"]\naddresses = [\"127.0.0.0/8\"]";

fn get(to: SocketAddr) -> String {
    format!("GET http://{to}/ HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
}

#[test]
fn a_length_beside_chunks_does_not_cut_the_answer() {
    let edge = Edge::start("", ALL);
    let to = answers(
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        false,
    );
    let answer = edge.ask(&get(to), "0\r\n\r\n");
    assert!(answer.contains("5\r\nhello\r\n0\r\n\r\n"), "{answer}");
    assert!(!answer.contains("content-length"), "{answer}");
    assert_eq!(edge.after(to)["outcome"], "served");
}

#[test]
fn whoever_broke_off_the_answer_is_named() {
    let edge = Edge::start("", ALL);
    for (answer, reset) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", true),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
            false,
        ),
        ("HTTP/1.1 200 OK\r\n\r\nhi", true),
    ] {
        let to = answers(answer, reset);
        edge.ask(&get(to), "");
        let after = edge.after(to);
        assert_eq!(after["outcome"], "failed", "{after}");
        assert_eq!(after["reason"], "destination_broken", "{after}");
        assert_eq!(after["bytes_out"], 2, "{after}");
    }
    let to = support::destination(|mut tcp| {
        read_until(&mut tcp, "\r\n\r\n");
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n";
        tcp.write_all(answer.as_bytes()).ok();
        while tcp.write_all(&[b'x'; 4096]).is_ok() {}
    });
    edge.ask(&get(to), "xxxx");
    assert_eq!(edge.after(to)["outcome"], "aborted");
}

#[test]
fn whoever_broke_off_the_upload_is_named() {
    let edge = Edge::start("", ALL);
    for _ in 0..8 {
        let to = support::destination(|mut tcp| {
            read_until(&mut tcp, "never");
        });
        let mut tcp = edge.connect();
        let head = "HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nhello";
        tcp.write_all(format!("POST http://{to}/ {head}").as_bytes())
            .unwrap();
        thread::sleep(Duration::from_millis(100));
        drop(tcp);
        let after = edge.after(to);
        assert_eq!(after["outcome"], "aborted", "{after}");
        assert_eq!(after["bytes_in"], 5, "{after}");
    }
}

#[test]
fn trailers_arrive_and_are_the_end_of_an_answer() {
    let edge = Edge::start("", ALL);
    let to = answers(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n",
        false,
    );
    let answer = edge.ask(&get(to), "0\r\nx-sum: 1\r\n\r\n");
    assert!(
        answer.contains("2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n"),
        "{answer}"
    );
    assert_eq!(edge.after(to)["outcome"], "served");
}

#[test]
fn nobody_switches_a_protocol_that_was_not_asked_for() {
    let edge = Edge::start("", ALL);
    let to = answers(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhi",
        false,
    );
    let answer = edge.ask(&get(to), "");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    let after = edge.after(to);
    assert_eq!(after["reason"], "destination_broken", "{after}");
    assert_eq!(after["status"], 502, "{after}");
}

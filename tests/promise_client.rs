//! Promise 3: one client address, from the socket, decides and is passed on; nothing that a client writes changes it.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use support::body::Payload;
use support::client::{Client, Version, request};
use support::gate::{HOST, Place};
use support::log::Log;
use support::upstream::Upstream;
use support::{client, eventually};

/// Every header field that an internal server may take for the client address, and two of ours.
const CLAIMS: [&str; 14] = [
    "x-client-ip",
    "x-forwarded-for",
    "cf-connecting-ip",
    "fastly-client-ip",
    "true-client-ip",
    "x-real-ip",
    "x-cluster-client-ip",
    "x-forwarded",
    "forwarded-for",
    "forwarded",
    "x-appengine-user-ip",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-request-id",
];
const LIE: &str = "for-203.0.113.99";
const FROM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 31);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_claimed_address_reaches_the_upstream() {
    let place = Place::new();
    let upstream = Upstream::start();
    let _gate = place.start(&(place.head() + &place.ingress(upstream.address, "")));
    for version in [Version::H1, Version::H2] {
        let mut builder = request(version, "GET", "/headers");
        for name in CLAIMS {
            builder = builder
                .header(name, LIE)
                .header(name, format!("{LIE}, 198.51.100.9"));
        }
        let builder = builder
            .header("tj_auth_token", "kept")
            .header("x-other", "kept too");
        let reply = Client::from(&place, FROM)
            .send(builder.body(Payload::empty()).unwrap())
            .await;
        assert_eq!(reply.status, 200, "{version:?}: {}", reply.text());

        let seen = &upstream.heads().pop().unwrap().1;
        let text = format!("{seen:?}");
        assert!(
            !text.contains("203.0.113.99") && !text.contains("198.51.100.9"),
            "{version:?}: {text}"
        );
        let one = |name: &str| {
            let values: Vec<_> = seen.get_all(name).iter().collect();
            assert_eq!(values.len(), 1, "{version:?} {name}: {values:?}");
            values[0].to_str().unwrap().to_owned()
        };
        for name in ["x-forwarded-for", "x-real-ip", "x-client-ip"] {
            assert_eq!(one(name), FROM.to_string(), "{version:?} {name}");
        }
        assert_eq!(one("x-forwarded-proto"), "https");
        assert_eq!(one("x-forwarded-host").split(':').next(), Some(HOST));
        assert_eq!(one("x-request-id"), reply.id());
        assert_eq!(one("tj_auth_token"), "kept");
        assert_eq!(one("x-other"), "kept too");
        let gone = CLAIMS[2..11].iter().filter(|n| **n != "x-real-ip");
        assert!(gone.clone().all(|name| !seen.contains_key(*name)), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connection_cannot_name_our_own_fields() {
    let place = Place::new();
    let upstream = Upstream::start();
    let _gate = place.start(&(place.head() + &place.ingress(upstream.address, "")));
    let head = format!(
        "GET /headers HTTP/1.1\r\nHost: {HOST}\r\n\
         Connection: close, X-Forwarded-For, X-Real-IP, X-Client-IP, X-Request-ID, x-hop, Host\r\n\
         X-Hop: secret\r\nKeep-Alive: timeout=5\r\nTE: trailers, gzip\r\nProxy-Authorization: Basic eDp5\r\n\
         Proxy-Connection: keep-alive\r\n\r\n"
    );
    let client = Client::from(&place, FROM);
    let answer = client.raw(head.as_bytes(), Duration::from_secs(10)).await;
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    let seen = &upstream.heads().pop().unwrap().1;
    assert_eq!(seen["x-forwarded-for"], "127.0.0.31");
    assert_eq!(seen["x-real-ip"], "127.0.0.31");
    assert!(
        seen.contains_key("x-request-id") && seen.contains_key("host"),
        "{seen:?}"
    );
    for name in [
        "x-hop",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
    ] {
        assert!(!seen.contains_key(name), "{name}: {seen:?}");
    }
}

/// Heads of which two servers in a row could read two different things.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn smuggled_heads_are_refused_and_never_forwarded() {
    let place = Place::new();
    let upstream = Upstream::start();
    let _gate = place.start(&(place.head() + &place.ingress(upstream.address, "")));
    let inner = "GET /smuggled HTTP/1.1\r\nHost: tools.test\r\n\r\n";
    let length = inner.len();
    let heads = [
        format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\nContent-Length: {length}\r\n\r\n{inner}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{inner}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{inner}"
        ),
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: +{length}\r\n\r\n{inner}"),
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}, 0\r\n\r\n{inner}"),
        format!(
            "POST / HTTP/1.0\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff1\r\n{inner}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n{inner}"
        ),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nHost: other.test\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-A: a\r\n folded: b\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-A: a\0b\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-A: a\rX-B: b\r\n\r\n"),
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        format!("GET http://other.test/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET /\u{1} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
    ];
    for head in &heads {
        let answer = Client::of(&place)
            .raw(head.as_bytes(), Duration::from_secs(3))
            .await;
        let text = String::from_utf8_lossy(&answer);
        let first = text.lines().next().unwrap_or_default();
        let status = first.split(' ').nth(1).unwrap_or("closed");
        assert!(
            matches!(status, "400" | "404" | "421" | "501" | "closed"),
            "{head:?}: {text}"
        );
        assert_eq!(text.matches("HTTP/1.1 200").count(), 0, "{head:?}: {text}");
    }
    let arrived = upstream.heads();
    let inside = arrived
        .iter()
        .filter(|(target, _)| target.contains("smuggled"))
        .count();
    assert_eq!(inside, 0, "{arrived:?}");
}

/// Both lengths: RFC 9112 section 6.3 lets a server believe the chunks, if it forwards no length and hangs up.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn of_two_lengths_one_is_forwarded_and_the_connection_ends() {
    let place = Place::new();
    let upstream = Upstream::start();
    let _gate = place.start(&(place.head() + &place.ingress(upstream.address, "")));
    let both = format!(
        "POST /sum HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
    );
    let begin = Instant::now();
    let answer = Client::of(&place)
        .raw(both.as_bytes(), client::ANSWER_LIMIT)
        .await;
    let text = String::from_utf8_lossy(&answer);
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "the connection stays open"
    );
    assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
    let heads = upstream.heads();
    assert!(heads.len() <= 1, "{heads:?}");
    for (target, head) in heads {
        let lengths = [CONTENT_LENGTH, TRANSFER_ENCODING].map(|name| head.contains_key(name));
        assert!(target == "/sum" && lengths != [true, true], "{head:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_is_not_on_the_list_gets_no_byte_and_is_recorded() {
    let place = Place::new();
    let upstream = Upstream::start();
    let list = "allow = [\"127.0.0.0/27\", \"127.0.0.40/32\"]\ndeny = [\"127.0.0.5/32\"]\n\
                [[ingress.route]]\npath = \"/inner/\"\nallow = [\"127.0.0.40/32\"]\n";
    let route = format!("{list}upstream = \"http://{}\"\n", upstream.address);
    let gate = place.start(&(place.head() + &place.ingress(upstream.address, &route)));
    let from = |last: u8| Client::from(&place, [127, 0, 0, last].into());

    assert_eq!(from(1).get(Version::H1, "/outer").await.status, 200);
    assert_eq!(from(1).get(Version::H2, "/inner/x").await.status, 403);
    assert_eq!(from(40).get(Version::H2, "/inner/x").await.status, 200);
    for last in [5, 66] {
        let refused: io::Error = from(last)
            .tls(Version::H1)
            .await
            .expect_err("it is not on the list");
        let silent = matches!(
            refused.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
        );
        assert!(silent, "an answer instead of silence: {refused:?}");
    }
    let denied = eventually("the denials", Duration::from_secs(10), || {
        let log = Log::read(&place.state());
        let denied: Vec<_> = log
            .kind("denied")
            .map(|r| r["client"].as_str().unwrap().to_owned())
            .collect();
        (denied.len() >= 3).then_some(denied)
    });
    for client in ["127.0.0.1", "127.0.0.5", "127.0.0.66"] {
        assert!(denied.iter().any(|d| d == client), "{client}: {denied:?}");
    }
    assert!(gate.metrics().contains(r#"code="client_denied""#));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn unknown_hosts_and_odd_paths_do_not_reach_the_upstream() {
    let place = Place::new();
    let upstream = Upstream::start();
    let route = format!(
        "[[ingress.route]]\nhosts = [\"{HOST}\"]\npath = \"/app/\"\nupstream = \"http://{}\"\n",
        upstream.address
    );
    let _gate = place.start(&(place.head() + &place.listener(&route)));
    let client = Client::of(&place);
    assert_eq!(client.get(Version::H1, "/app/x").await.status, 200);
    assert_eq!(client.get(Version::H2, "/other").await.status, 404);
    for path in [
        "/app/../other",
        "/app/%2e%2e/other",
        "/app/..%2fother",
        "/app/%00",
        "/app\\..\\other",
    ] {
        let raw = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        let answer = client.raw(raw.as_bytes(), Duration::from_secs(5)).await;
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.1 4"), "{path}: {text}");
    }
    let raw = "GET /app/x HTTP/1.1\r\nHost: unknown.test\r\nConnection: close\r\n\r\n";
    let answer = client.raw(raw.as_bytes(), client::ANSWER_LIMIT).await;
    assert!(
        answer.starts_with(b"HTTP/1.1 404"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    assert!(
        upstream
            .heads()
            .iter()
            .all(|(target, _)| target == "/app/x"),
        "{:?}",
        upstream.heads()
    );
}

//! Promise 4: no client can starve another: rates, timers, and bytes that are no protocol at all.
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
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use support::body::Payload;
use support::client::{Client, Connection, Version, read_for, request};
use support::dns::Dns;
use support::gate::{HOST, Place, free_port};
use support::load::Load;
use support::upstream::{Upstream, connect};
use tokio::io::AsyncWriteExt as _;

/// Timers of 10 s, with room for a busy machine.
const TIMER: std::ops::Range<Duration> = Duration::from_secs(8)..Duration::from_secs(16);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_flood_is_told_to_come_back_and_others_are_served() {
    let place = Place::new();
    let upstream = Upstream::start();
    let limits = "[limits.per_client]\nkey = \"client\"\nrate = \"5/s\"\nburst = 10\n\n";
    let config =
        place.head() + limits + &place.ingress(upstream.address, "limits = [\"per_client\"]\n");
    let gate = place.start(&config);
    let begin = Instant::now();
    let flood = Load::start(
        Client::from(&place, [127, 0, 0, 50].into()),
        Version::H1,
        4,
        "/headers",
    );
    let flood2 = Load::start(
        Client::from(&place, [127, 0, 0, 50].into()),
        Version::H2,
        4,
        "/headers",
    );
    let other = Client::from(&place, [127, 0, 0, 51].into());
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(other.get(Version::H1, "/other").await.status, 200);
    }
    let (one, two) = (flood.stop(), flood2.stop());
    let granted = one.of(200) + two.of(200);
    let most = 10 + 5 * (begin.elapsed().as_secs() as usize + 1);
    assert!(
        (10..=most).contains(&granted),
        "{granted} of at most {most}"
    );
    assert!(one.of(429) > 50 && two.of(429) > 50, "{one:?} {two:?}");
    assert_eq!(one.without_retry_after + two.without_retry_after, 0);
    let forwarded = upstream
        .heads()
        .iter()
        .filter(|(target, _)| target == "/headers")
        .count();
    assert_eq!(forwarded, granted, "a refused request was forwarded");
    assert!(gate.metrics().contains(r#"code="rate_limited""#));
}

/// How long the other side lets a client be that sends this and then nothing.
async fn patience(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    bytes: &[u8],
) -> (Duration, Vec<u8>) {
    let begin = Instant::now();
    stream.write_all(bytes).await.unwrap();
    let said = read_for(&mut stream, TIMER.end * 2).await;
    (begin.elapsed(), said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn slow_heads_and_slow_handshakes_are_ended() {
    let place = Place::new();
    let upstream = Upstream::start();
    let dns = Dns::table(&[]);
    let config =
        place.head() + &place.ingress(upstream.address, "") + &place.egress(dns.address, "");
    let _gate = place.start(&config);
    let client = Client::of(&place);
    let to = |port: u16| {
        connect(
            Ipv4Addr::LOCALHOST,
            SocketAddr::from(([127, 0, 0, 1], port)),
        )
    };
    let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Slow: ");
    let tls = client.tls(Version::H1).await.unwrap();
    let (half, silent) = (
        client.tls(Version::H2).await.unwrap(),
        client.tls(Version::H2).await.unwrap(),
    );
    let (raw, proxy, socks) = (
        to(place.https).await.unwrap(),
        to(place.proxy).await.unwrap(),
        to(place.proxy).await.unwrap(),
    );
    let results = tokio::join!(
        Box::pin(patience(tls, head.as_bytes())),
        Box::pin(patience(half, b"PRI * HTTP/2.")),
        Box::pin(patience(silent, b"")),
        Box::pin(patience(raw, b"\x16\x03\x01")),
        Box::pin(patience(
            proxy,
            b"CONNECT api.customer.test:443 HTTP/1.1\r\nHost"
        )),
        Box::pin(patience(socks, &[5, 1])),
    );
    let (h1, preface, nothing, handshake, connect, greeting) = results;
    for (what, (time, said)) in [
        ("head", h1),
        ("half a preface", preface),
        ("no preface", nothing),
        ("handshake", handshake),
        ("CONNECT", connect),
        ("SOCKS5 greeting", greeting),
    ] {
        assert!(
            TIMER.contains(&time),
            "{what}: {time:?}, {}",
            String::from_utf8_lossy(&said)
        );
    }
    assert!(upstream.heads().is_empty());
}

/// A head that grows by one byte a second never gets further than one that does not grow at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_dripping_head_is_ended_too() {
    let place = Place::new();
    let upstream = Upstream::start();
    let _gate = place.start(&(place.head() + &place.ingress(upstream.address, "")));
    let mut stream = Client::of(&place).tls(Version::H1).await.unwrap();
    let begin = Instant::now();
    let mut bytes = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Slow: ").into_bytes();
    bytes.extend([b'a'; 60]);
    for byte in bytes.chunks(2) {
        if stream.write_all(byte).await.is_err()
            || !read_for(&mut stream, Duration::from_millis(700))
                .await
                .is_empty()
        {
            break;
        }
        assert!(
            begin.elapsed() < TIMER.end + Duration::from_secs(4),
            "still listening"
        );
    }
    assert!(
        begin.elapsed() > TIMER.start,
        "ended after {:?} already",
        begin.elapsed()
    );
    assert!(upstream.heads().is_empty());
}

#[test]
fn garbage_on_every_listener_ends_nothing() {
    let (place, begin) = (Place::new(), Instant::now());
    let upstream = Upstream::start();
    let destination = Upstream::start();
    let forward = free_port();
    let dns = Dns::table(&[("api.customer.test", &["127.0.0.1"])]);
    let redirect = format!("redirect_http = [\"127.0.0.1:{}\"]\n", place.http);
    let forwards = format!(
        "[[egress.forward]]\nname = \"api\"\nlisten = \"127.0.0.1:{forward}\"\nto = \"api.customer.test:{}\"\naddresses = [\"127.0.0.1/32\"]\n",
        destination.port()
    );
    let config = place.head()
        + &place.ingress(upstream.address, &redirect)
        + &place.egress(dns.address, &forwards);
    let mut gate = place.start(&config);
    let long = "A".repeat(300_000);
    let endless = format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\n{}",
        "X-Many: y\r\n".repeat(20_000)
    );
    let pieces: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0; 5000],
        vec![0xff; 5000],
        b"\x16\x03\x01\xff\xff\x01garbage".to_vec(),
        b"\x05\xff".to_vec(),
        b"\x05\x01\x00\x05\x01\x00\x7f".to_vec(),
        b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x00".to_vec(),
        b"\x05\x01\x00\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x50".to_vec(),
        b"\x04\x01\x00\x50\x7f\x00\x00\x01user\x00".to_vec(),
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n".to_vec(),
        b"\r\n\r\n\x00\r\nQUIT\n".to_vec(),
        b"CONNECT  HTTP/1.1\r\n\r\n".to_vec(),
        b"CONNECT :::::99999 HTTP/9.9\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\nHost: a\n\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        format!("GET /{long} HTTP/1.1\r\nHost: {HOST}\r\n\r\n").into_bytes(),
        format!("CONNECT {long}:443 HTTP/1.1\r\n\r\n").into_bytes(),
        endless.into_bytes(),
    ];
    for port in [place.https, place.http, place.proxy, forward, place.admin] {
        for piece in &pieces {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_millis(100)))
                .unwrap();
            stream.write_all(piece).ok(); // it may hang up in the middle
            let _answered_or_not = stream.read(&mut [0; 512]);
        }
    }
    assert!(gate.is_running());
    gate.wait_ready();
    assert!(!gate.stderr().contains("panicked"), "{}", gate.stderr());
    assert!(gate.stop(Duration::from_secs(20)).success());
    place.verify();
    let told = gate.stderr();
    let lines = told
        .lines()
        .filter(|line| line.contains("not served: "))
        .count();
    let most = begin.elapsed().as_secs() as usize + 2;
    assert!((1..=most).contains(&lines), "{lines} lines: {told}");
}

/// Heads that are too large are told so by a status, not by silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn oversized_heads_get_an_answer() {
    let place = Place::new();
    let upstream = Upstream::start();
    let dns = Dns::table(&[]);
    let config =
        place.head() + &place.ingress(upstream.address, "") + &place.egress(dns.address, "");
    let _gate = place.start(&config);
    let client = Client::of(&place);
    let field = format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Big: {}\r\n\r\n",
        "b".repeat(200_000)
    );
    let target = format!(
        "GET /{} HTTP/1.1\r\nHost: {HOST}\r\n\r\n",
        "t".repeat(70_000)
    );
    for (bytes, statuses) in [(field, ["431", "431"]), (target, ["414", "431"])] {
        let mut stream = client.tls(Version::H1).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.ok(); // it may answer in the middle
        let said = read_for(&mut stream, Duration::from_secs(5)).await;
        let text = String::from_utf8_lossy(&said);
        let status = text.split(' ').nth(1).unwrap_or_default();
        assert!(statuses.contains(&status), "{text}");
    }
    assert!(upstream.heads().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_client_cannot_take_every_connection() {
    let place = Place::new();
    let upstream = Upstream::start();
    let head = place
        .head()
        .replace("[process]\n", "[process]\nmax_sessions_per_client = 3\n");
    let gate = place.start(&(head + &place.ingress(upstream.address, "")));
    let greedy = Client::from(&place, [127, 0, 0, 50].into());
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(greedy.tls(Version::H1).await.expect("within the bound"));
    }
    assert!(
        greedy.tls(Version::H1).await.is_err(),
        "a fourth was let in"
    );
    let other = Client::from(&place, [127, 0, 0, 51].into());
    assert_eq!(other.get(Version::H1, "/other").await.status, 200);
    assert!(
        gate.metrics()
            .contains(r#"code="client_session_limit",fault="policy"} 1"#)
    );
    drop(held.pop());
    let begin = Instant::now();
    while greedy.tls(Version::H1).await.is_err() {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "a place given back is not given again"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One HTTP/2 connection carries a hundred requests, and each may hold a connection to the upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_client_cannot_have_every_request_in_flight() {
    let place = Place::new();
    let upstream = Upstream::start();
    let head = place
        .head()
        .replace("[process]\n", "[process]\nmax_sessions_per_client = 3\n");
    let _gate = place.start(&(head + &place.ingress(upstream.address, "")));
    let greedy = Client::from(&place, [127, 0, 0, 50].into());
    let Connection::H2(sender) = greedy.open(Version::H2).await.unwrap() else {
        panic!("HTTP/2 was asked for");
    };
    let ask = |path: &str| {
        let mut sender = sender.clone();
        let ask = request(Version::H2, "GET", path).body(Payload::empty());
        async move { sender.send_request(ask.unwrap()).await.unwrap() }
    };
    let held: Vec<_> = (0..3).map(|_| tokio::spawn(ask("/slow/3000"))).collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let refused = ask("/headers").await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    let other = Client::from(&place, [127, 0, 0, 51].into());
    assert_eq!(other.get(Version::H1, "/other").await.status, 200);
    for slow in held {
        assert_eq!(slow.await.unwrap().status(), 200);
    }
    assert_eq!(ask("/headers").await.status(), 200, "given back");
}

//! Promise 6: bytes pass as they are, as they come, and cost no memory.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use support::body::{Payload, Sum};
use support::client::{Client, Version, request};
use support::dns::Dns;
use support::gate::{FIXED, Place, free_port};
use support::log::Log;
use support::rounds;
use support::upstream::{Upstream, connect, silent};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

const MIB: u64 = 1024 * 1024;
const UNLIMITED: &str = "max_body = \"unlimited\"\n";
const GROWTH_BYTES_MAX: u64 = 64 * MIB;

async fn down(client: &Client, version: Version, bytes: u64) {
    let mut connection = client.open(version).await.unwrap();
    let request = request(version, "GET", &format!("/bytes/{bytes}")).body(Payload::empty());
    let response = connection.begin(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(
        Sum::of(response.into_body()).await.unwrap(),
        Sum::of_pattern(bytes)
    );
}

async fn up(client: &Client, version: Version, bytes: u64) {
    let request = request(version, "POST", "/sum").body(Payload::pattern(bytes));
    let said = client.send(request.unwrap()).await.json();
    let expected = Sum::of_pattern(bytes);
    assert_eq!(
        (&said["bytes"], &said["sha256"]),
        (&expected.bytes.into(), &expected.sha256.into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn large_bodies_pass_unchanged_in_constant_memory() {
    let place = Place::new();
    let upstream = Upstream::start();
    let gate = place.start(&(place.head() + &place.ingress(upstream.address, UNLIMITED)));
    let client = Client::of(&place);
    for version in [Version::H1, Version::H2] {
        down(&client, version, MIB).await;
        up(&client, version, MIB).await;
    }
    let before = gate.memory_peak();
    for version in [Version::H1, Version::H2] {
        down(&client, version, 200 * MIB).await;
        up(&client, version, 200 * MIB).await;
    }
    let growth = gate.memory_peak() - before;
    assert!(growth < GROWTH_BYTES_MAX, "grew by {growth} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "moves gigabytes; run by tests/run"]
async fn repeated_100_mib_bodies_never_stall() {
    let place = Place::new();
    let upstream = Upstream::start();
    let _gate = place.start(&(place.head() + &place.ingress(upstream.address, UNLIMITED)));
    let client = Client::of(&place);
    for round in 0..rounds("TOLLGATE_BODY_ROUNDS", 20) {
        let version = if round % 2 == 0 {
            Version::H1
        } else {
            Version::H2
        };
        let limit = Duration::from_secs(60);
        timeout(limit, down(&client, version, 100 * MIB))
            .await
            .unwrap_or_else(|_| panic!("round {round}: a download stalled"));
        timeout(limit, up(&client, version, 100 * MIB))
            .await
            .unwrap_or_else(|_| panic!("round {round}: an upload stalled"));
    }
}

/// A reader that pauses must not make anything pile up.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_slow_reader_costs_no_memory() {
    let place = Place::new();
    let upstream = Upstream::start();
    let gate = place.start(&(place.head() + &place.ingress(upstream.address, UNLIMITED)));
    let client = Client::of(&place);
    down(&client, Version::H1, MIB).await;
    let before = gate.memory_peak();
    let mut waiting = Vec::new();
    for version in [Version::H1, Version::H2, Version::H1, Version::H2] {
        let mut connection = client.open(version).await.unwrap();
        let request = request(version, "GET", "/bytes/500000000").body(Payload::empty());
        let response = connection.begin(request.unwrap()).await.unwrap();
        waiting.push((connection, response));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let growth = gate.memory_peak() - before;
    assert!(growth < GROWTH_BYTES_MAX, "grew by {growth} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn events_arrive_one_by_one() {
    let place = Place::new();
    let upstream = Upstream::start();
    let _gate = place.start(&(place.head() + &place.ingress(upstream.address, "")));
    let (count, pause) = (8, Duration::from_millis(250));
    for version in [Version::H1, Version::H2] {
        let mut connection = Client::of(&place).open(version).await.unwrap();
        let path = format!("/sse/{count}/{}", pause.as_millis());
        let request = request(version, "GET", &path).body(Payload::empty());
        let begin = Instant::now();
        let mut body = connection
            .begin(request.unwrap())
            .await
            .unwrap()
            .into_body();
        for at in 0..count {
            let event = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(
                event,
                format!("id: {at}\ndata: event {at}\n\n"),
                "{version:?}"
            );
            let (passed, due) = (begin.elapsed(), pause * at);
            // Before the next one is even sent, and not before this one was.
            assert!(
                passed + Duration::from_millis(50) > due && passed < due + pause,
                "{version:?} {at}: {passed:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_websocket_carries_both_kinds_of_any_size() {
    let place = Place::new();
    let upstream = Upstream::start();
    let _gate = place.start(&(place.head() + &place.ingress(upstream.address, "")));
    let mut socket = Client::of(&place).websocket("/ws").await;
    for size in [0, 1, 125, 126, 65_535, 65_536, 3_000_000] {
        for message in [
            Message::text("t".repeat(size)),
            Message::binary(vec![7; size]),
        ] {
            socket.send(message.clone()).await.unwrap();
            let back = timeout(Duration::from_secs(20), socket.next())
                .await
                .unwrap();
            assert!(back.unwrap().unwrap() == message, "{size}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_upstream_that_is_down_slow_or_broken_is_told_apart() {
    let place = Place::new();
    let upstream = Upstream::start();
    let (down, mute) = (free_port(), silent());
    let routes = format!(
        "[[ingress.route]]\npath = \"/down/\"\nupstream = \"http://127.0.0.1:{down}\"\n\
         [[ingress.route]]\npath = \"/mute/\"\nupstream = \"http://{mute}\"\ntimeouts = {{ response_head = \"1s\" }}\n\
         [[ingress.route]]\npath = \"/slow/\"\nupstream = \"http://{}\"\ntimeouts = {{ response_head = \"1s\" }}\n",
        upstream.address
    );
    let _gate = place.start(&(place.head() + &place.ingress(upstream.address, &routes)));
    let client = Client::of(&place);
    for version in [Version::H1, Version::H2] {
        for (path, status, code, least, most) in [
            ("/down/x", 502, "upstream_unreachable", 0, 1000),
            ("/mute/x", 504, "upstream_head_timeout", 900, 4000),
            ("/slow/5000", 504, "upstream_head_timeout", 900, 4000),
        ] {
            let begin = Instant::now();
            let reply = client.get(version, path).await;
            let took = begin.elapsed().as_millis();
            assert_eq!(reply.status, status, "{version:?} {path}");
            assert!(
                (least..most).contains(&took),
                "{version:?} {path}: {took} ms"
            );
            assert_eq!(
                reply.header("content-type"),
                Some("application/problem+json")
            );
            let text = reply.text();
            assert!(text.contains(code) && text.contains(reply.id()), "{text}");
            assert!(
                !text.contains("127.0.0.1"),
                "an internal address is told: {text}"
            );
        }
        let mut connection = client.open(version).await.unwrap();
        let broken = request(version, "GET", "/broken")
            .body(Payload::empty())
            .unwrap();
        let response = connection.begin(broken).await.unwrap();
        assert!(
            Sum::of(response.into_body()).await.is_err(),
            "a broken body looks whole"
        );
    }
}

/// A tunnel out: large both ways at once, and a half-close is passed on.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_tunnel_carries_both_ways_and_half_closes() {
    let place = Place::new();
    let dns = Dns::table(&[("api.customer.test", &["127.0.0.9"])]);
    let listener = tokio::net::TcpListener::bind("127.0.0.9:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let policy = "[[egress.policy]]\ndestinations = [\"api.customer.test\"]\naddresses = [\"127.0.0.9/32\"]\naction = \"allow\"\n";
    let mut gate = place.start(&(place.head() + &place.egress(dns.address, policy)));
    // The destination says back what it hears, and after its end how much it was.
    let echo = tokio::spawn(async move {
        let (stream, peer) = listener.accept().await.unwrap();
        assert_eq!(peer.ip(), FIXED);
        let (mut reader, mut writer) = stream.into_split();
        let count = tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        writer
            .write_all(format!("heard {count}").as_bytes())
            .await
            .unwrap();
    });
    let proxy = SocketAddr::from(([127, 0, 0, 1], place.proxy));
    let mut stream = connect([127, 0, 0, 1].into(), proxy).await.unwrap();
    let head = format!("CONNECT api.customer.test:{port} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reply = [0; 1024];
    let count = stream.read(&mut reply).await.unwrap();
    assert!(reply[..count].starts_with(b"HTTP/1.1 200") && reply[..count].ends_with(b"\r\n\r\n"));

    let sent: Vec<u8> = (0..20 * MIB).map(|at| (at % 251) as u8).collect();
    let (mut reader, mut writer) = stream.into_split();
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
        writer
    });
    let mut back = Vec::new();
    timeout(Duration::from_secs(60), reader.read_to_end(&mut back))
        .await
        .unwrap()
        .unwrap();
    let (echoed, last) = back.split_at(expected.len());
    assert!(echoed == expected, "the bytes were changed");
    assert_eq!(last, format!("heard {}", expected.len()).as_bytes());
    drop(writing.await.unwrap());
    echo.await.unwrap();
    assert!(gate.stop(Duration::from_secs(20)).success());
    let log = Log::read(&place.state());
    let after = log.kind("after").next().unwrap();
    assert_eq!(after["bytes_in"], expected.len(), "{after}");
    assert_eq!(after["bytes_out"], back.len(), "{after}");
    assert_eq!(after["outcome"], "served", "{after}");
}

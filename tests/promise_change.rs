//! Promise 7: change loses nothing: reloads under load, refused configurations, and the way down.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use rustix::process::Signal;
use support::body::Payload;
use support::client::{Client, Version, request};
use support::dns::Dns;
use support::gate::{Gate, Place};
use support::load::Load;
use support::log::Log;
use support::upstream::{Upstream, connect};
use support::{client, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

const STOP_LIMIT: Duration = Duration::from_secs(20);
const POLICY: &str = "[[egress.policy]]\ndestinations = [\"api.customer.test\"]\naddresses = [\"127.0.0.9/32\"]\naction = \"allow\"\n";

async fn tunnel(place: &Place, port: u16) -> TcpStream {
    let proxy = ([127, 0, 0, 1], place.proxy).into();
    let mut stream = connect([127, 0, 0, 1].into(), proxy).await.unwrap();
    let head = format!(
        "CONNECT api.customer.test:{port} HTTP/1.1\r\nHost: api.customer.test:{port}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut buffer = [0; 1024];
    let count = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..count].starts_with(b"HTTP/1.1 200"));
    stream
}

/// One keep-alive request through the tunnel.
async fn speak(stream: &mut TcpStream) {
    stream
        .write_all(b"GET /headers HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..count].starts_with(b"HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reloads_under_load_fail_no_request_and_close_nothing() {
    let place = Place::new();
    let (upstream, second) = (Upstream::start(), Upstream::start());
    let destination = Upstream::everywhere();
    let dns = Dns::table(&[("api.customer.test", &["127.0.0.9"])]);
    let with = |upstream: &Upstream| {
        place.head() + &place.ingress(upstream.address, "") + &place.egress(dns.address, POLICY)
    };
    let mut gate = place.start(&with(&upstream));
    let client = Client::of(&place);
    let mut socket = client.websocket("/ws").await;
    let mut tunnel = tunnel(&place, destination.port()).await;
    let loads = [Version::H1, Version::H2].map(|v| Load::start(client.clone(), v, 4, "/headers"));

    for round in 0..10 {
        place.write(&with(if round % 2 == 0 { &second } else { &upstream }));
        gate.reload();
        socket.send(Message::text("still here")).await.unwrap();
        let back = tokio::time::timeout(Duration::from_secs(5), socket.next())
            .await
            .unwrap();
        assert_eq!(back.unwrap().unwrap().into_text().unwrap(), "still here");
        speak(&mut tunnel).await;
    }
    for load in loads {
        let tally = load.stop();
        assert!(tally.failures.is_empty(), "{:?}", tally.failures);
        assert_eq!(tally.unconnected, 0);
        assert_eq!(
            tally.statuses.keys().collect::<Vec<_>>(),
            [&200],
            "{:?}",
            tally.statuses
        );
        assert!(tally.of(200) > 50, "{tally:?}");
    }
    assert!(
        second.ids().len() > 10,
        "the new upstream got nothing: the reloads changed nothing"
    );
    drop((socket, tunnel));
    assert!(gate.stop(STOP_LIMIT).success());
    let log = Log::read(&place.state());
    log.assert_gapless();
    log.assert_paired();
    assert!(
        log.kind("after")
            .all(|r| r["outcome"] == "served" || r["path"] == "/ws" || r["status"] != 200)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_bad_configuration_is_refused_and_the_old_one_stays() {
    let place = Place::new();
    let upstream = Upstream::start();
    let good = place.head() + &place.ingress(upstream.address, "");
    let mut gate = place.start(&good);
    let client = Client::of(&place);
    let missing = good.replace("cert.pem", "missing.pem");
    let state = good.replace("/state\"", "/elsewhere\"");
    assert_ne!(state, good);
    for (bad, named) in [
        (good.clone() + "\n[surprise]\nkey = 1\n", "surprise"),
        (good.replace("http://", "gopher://"), "upstream"),
        ("this is [ no toml".to_owned(), "tollgate.toml"),
        (missing, "missing.pem"),
        (state, "state_dir"),
    ] {
        place.write(&bad);
        let said = gate.stderr().len();
        gate.reload();
        assert_eq!(client.get(Version::H2, "/headers").await.status, 200);
        let new = gate.stderr().split_off(said);
        assert!(new.contains(named), "{named} is not named: {new}");
        assert_eq!(gate.admin_get("/readyz").unwrap().0, 200);
    }
    assert!(
        gate.metrics().contains("tollgate_reload_failures_total 5"),
        "{}",
        gate.metrics()
    );
    place.write(&good);
    gate.reload();
    assert_eq!(client.get(Version::H1, "/headers").await.status, 200);
    assert!(gate.stop(STOP_LIMIT).success());
}

/// A rule taken away ends what it had allowed, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reload_ends_the_sessions_that_are_no_longer_allowed() {
    let place = Place::new();
    let (upstream, destination) = (Upstream::start(), Upstream::everywhere());
    let dns = Dns::table(&[("api.customer.test", &["127.0.0.9"])]);
    let with = |list: &str, policy: &str| {
        place.head() + &place.ingress(upstream.address, list) + &place.egress(dns.address, policy)
    };
    let both = "allow = [\"127.0.0.1/32\", \"127.0.0.61/32\"]\n";
    let gate = place.start(&with(both, POLICY));
    let mut stays = Client::of(&place).websocket("/ws").await;
    let mut goes = Client::from(&place, [127, 0, 0, 61].into())
        .websocket("/ws")
        .await;
    let mut out = tunnel(&place, destination.port()).await;
    let deny = "[[egress.policy]]\ndestinations = [\"other.customer.test\"]\naction = \"allow\"\n";
    place.write(&with("allow = [\"127.0.0.1/32\"]\n", deny));
    gate.reload();
    let ended = tokio::time::timeout(Duration::from_secs(10), goes.next())
        .await
        .expect("it ends");
    assert!(
        !matches!(ended, Some(Ok(Message::Text(_) | Message::Binary(_)))),
        "{ended:?}"
    );
    let ended = tokio::time::timeout(Duration::from_secs(10), out.read(&mut [0; 16]))
        .await
        .expect("it ends");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    stays.send(Message::text("still here")).await.unwrap();
    let back = tokio::time::timeout(Duration::from_secs(5), stays.next())
        .await
        .unwrap();
    assert_eq!(back.unwrap().unwrap().into_text().unwrap(), "still here");
}

async fn wait_for(gate: &Gate, status: u16) {
    let begin = Instant::now();
    while gate.admin_get("/readyz").map(|(s, _)| s) != Some(status) {
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "/readyz is not {status}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_drain_lets_requests_finish_and_takes_no_new_ones() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = Place::new();
        let upstream = Upstream::start();
        let mut gate = place.start(&(place.head() + &place.ingress(upstream.address, "")));
        let client = Client::of(&place);
        let slow = [Version::H1, Version::H2].map(|version| {
            let client = client.clone();
            tokio::spawn(async move { client.get(version, "/slow/2000").await })
        });
        let upload = {
            let (feed, body) = tokio::sync::mpsc::channel(1);
            let client = client.clone();
            let builder = request(Version::H1, "POST", "/sum");
            let sent = tokio::spawn(async move {
                client
                    .send(builder.body(Payload::Feed(body)).unwrap())
                    .await
            });
            feed.send("first half".into()).await.unwrap();
            (feed, sent)
        };
        let arrived = Instant::now();
        while upstream.heads().len() < 3 {
            assert!(arrived.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        gate.signal(signal);
        wait_for(&gate, 503).await;
        let late = client.open(Version::H1).await;
        assert!(late.is_err(), "a new connection was taken");
        let (feed, sent) = upload;
        feed.send(", second half".into()).await.unwrap();
        drop(feed);
        assert_eq!(sent.await.unwrap().json()["bytes"], 23);
        for request in slow {
            assert_eq!(request.await.unwrap().text(), "slow");
        }
        assert_eq!(gate.wait_exit(STOP_LIMIT).code(), Some(0));
        let log = Log::read(&place.state());
        log.assert_paired();
        assert!(
            log.kind("after").all(|r| r["outcome"] == "served"),
            "{:?}",
            log.records
        );
        place.verify();
    }
}

/// What does not end by itself is ended at the deadline, and recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_drain_ends_at_its_deadline() {
    let place = Place::new();
    let upstream = Upstream::start();
    let head = place.head().replace("\"10s\"", "\"1s\"");
    let mut gate = place.start(&(head + &place.ingress(upstream.address, "")));
    let client = Client::of(&place);
    let _socket = client.websocket("/ws").await;
    let mut waiting = client.open(Version::H1).await.unwrap();
    let endless = request(Version::H1, "GET", "/sse/1000/100").body(Payload::empty());
    let response = waiting.begin(endless.unwrap()).await.unwrap();
    let begin = Instant::now();
    gate.signal(Signal::TERM);
    assert_eq!(gate.wait_exit(STOP_LIMIT).code(), Some(0));
    assert!(
        begin.elapsed() < client::ANSWER_LIMIT / 6,
        "{:?}",
        begin.elapsed()
    );
    drop(response);
    let log = Log::read(&place.state());
    log.assert_paired();
    assert_eq!(log.kind("before").count(), 2);
    place.verify();
}

/// A process that is started while the old one still drains must not take over its state.
#[test]
fn a_second_process_does_not_touch_the_state_of_the_first() {
    let place = Place::new();
    let upstream = Upstream::start();
    let gate = place.start(&(place.head() + &place.ingress(upstream.address, "")));
    let config = place.path("tollgate.toml");
    let second = place.tollgate(&["run", "--config", config.to_str().unwrap()]);
    assert_eq!(second.code, Some(3), "{second:?}");
    assert!(
        second.stderr.contains(place.state().to_str().unwrap()),
        "{second:?}"
    );
    eventually("the first to be ready", Duration::from_secs(5), || {
        (gate.admin_get("/readyz")?.0 == 200).then_some(())
    });
    place.verify();
}

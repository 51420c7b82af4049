//! Before a request: lists, PROXY headers, timers, redirects; and after it: drain and reload.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use tollgate::config::typed::Limit;
use tollgate::socket;

use super::support::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: tools.example.com\r\nConnection: close\r\n\r\n";

async fn is_closed(stream: &mut (impl AsyncReadExt + Unpin), within: Duration) -> bool {
    let mut byte = [0];
    matches!(
        timeout(within, stream.read(&mut byte)).await,
        Ok(Ok(0) | Err(_))
    )
}

#[tokio::test]
async fn who_is_not_on_the_list_gets_no_answer_at_all() {
    let edge = Edge::start(&Plan {
        allow: Some(&["192.0.2.0/24"]),
        ..Plan::new(mirror())
    })
    .await;
    let mut tcp = socket::connect(edge.at).await.unwrap();
    assert!(is_closed(&mut tcp, Duration::from_secs(1)).await);
    edge.record(&["denied", "client_denied", "127.0.0.1"]).await;
    let mut tcp = socket::connect(edge.redirect_at).await.unwrap();
    tcp.write_all(GET.as_bytes()).await.ok();
    assert_eq!(read_for(&mut tcp, Duration::from_secs(1)).await, "");
    assert!(
        edge.metrics
            .render()
            .contains(r#"refusals_total{way="ingress",code="client_denied",fault="policy"} 2"#)
    );
}

#[tokio::test]
async fn the_list_of_a_route_answers_403() {
    let edge = Edge::start(&Plan {
        route_allow: Some(&["192.0.2.0/24"]),
        ..Plan::new(mirror())
    })
    .await;
    let answer = edge.talk(GET).await;
    assert!(
        answer.starts_with("HTTP/1.1 403 ") && answer.contains("client_denied"),
        "{answer}"
    );
    edge.record(&["denied", "client_denied", "tools.example.com"])
        .await;
    assert!(
        edge.records()
            .iter()
            .all(|line| !line.contains(r#""kind":"before""#))
    );
}

#[tokio::test]
async fn the_proxy_header_says_who_it_is_and_only_from_whom_we_believe() {
    let edge = Edge::start(&Plan {
        proxy_protocol_from: &["127.0.0.0/8"],
        allow: Some(&["198.51.100.7/32"]),
        ..Plan::new(mirror())
    })
    .await;
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x07\x7f\0\0\x01\x10\0\x01\xbb";
    for header in [&b"PROXY TCP4 198.51.100.7 127.0.0.1 4096 443\r\n"[..], v2] {
        let mut tcp = socket::connect(edge.at).await.unwrap();
        let (first, second) = header.split_at(14);
        tcp.write_all(first).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        tcp.write_all(second).await.unwrap();
        let mut client = edge.client_over(tcp, "http/1.1").await.unwrap();
        client.write_all(GET.as_bytes()).await.unwrap();
        let answer = read_for(&mut client, Duration::from_secs(1)).await;
        assert!(
            answer.contains("x-forwarded-for: 198.51.100.7\n"),
            "{answer}"
        );
    }
    for (header, refusal) in [
        (
            &b"PROXY TCP4 198.51.100.8 127.0.0.1 4096 443\r\n"[..],
            "client_denied",
        ),
        (b"\x16\x03\x01\x02\x00\x01", "malformed"),
        (b"PROXY TCP4 nonsense\r\n", "malformed"),
    ] {
        let mut tcp = socket::connect(edge.at).await.unwrap();
        tcp.write_all(header).await.unwrap();
        assert!(is_closed(&mut tcp, Duration::from_secs(1)).await);
        edge.record(&["denied", refusal]).await;
    }
    let edge = Edge::start(&Plan::new(mirror())).await;
    let mut tcp = socket::connect(edge.at).await.unwrap();
    tcp.write_all(v2).await.unwrap();
    assert!(edge.client_over(tcp, "http/1.1").await.is_err());
}

#[tokio::test]
async fn every_timer_of_a_connection_fires() {
    let mut plan = Plan {
        proxy_protocol_from: &["127.0.0.2/32"],
        ..Plan::new(mirror())
    };
    plan.timers.handshake = Duration::from_millis(300);
    plan.timers.head = Duration::from_millis(300);
    plan.timers.idle = Duration::from_millis(900);
    plan.timers.idle_frames = Duration::from_millis(300);
    let edge = Edge::start(&plan).await;

    let mut silent = socket::connect(edge.at).await.unwrap();
    assert!(!is_closed(&mut silent, Duration::from_millis(200)).await);
    assert!(is_closed(&mut silent, Duration::from_millis(500)).await);
    edge.record(&["denied", "handshake_timeout"]).await;

    let mut slow = edge.client("http/1.1").await;
    sleep(Duration::from_millis(500)).await; // idle is not slow
    for _ in 0..2 {
        slow.write_all(b"GET / HTTP/1.1\r\nHost: tools.example.com\r\n\r\n")
            .await
            .unwrap();
        let answer = read_for(&mut slow, Duration::from_millis(400)).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    slow.write_all(b"GET / HT").await.unwrap();
    sleep(Duration::from_millis(200)).await;
    slow.write_all(b"TP/1.1\r\nHo").await.unwrap();
    let answer = read_for(&mut slow, Duration::from_secs(2)).await;
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
        "{head}"
    );
    for field in [
        "connection: close".to_owned(),
        format!("content-length: {}", text.len()),
    ] {
        assert!(
            head.lines().any(|line| line == field),
            "{field} not in {head}"
        );
    }
    let told: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(told["code"], "head_timeout");
    edge.record(&["denied", "head_timeout"]).await;
    assert!(is_closed(&mut slow, Duration::from_secs(2)).await);

    let mut idle = edge.client("http/1.1").await;
    assert!(!is_closed(&mut idle, Duration::from_millis(700)).await);
    assert!(is_closed(&mut idle, Duration::from_millis(500)).await);

    let io = hyper_util::rt::TokioIo::new(edge.client("h2").await);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake::<_, _, Text>(executor, io)
        .await
        .unwrap();
    timeout(Duration::from_secs(1), connection)
        .await
        .unwrap()
        .ok();
    drop(sender);

    let mut plain = socket::connect(edge.redirect_at).await.unwrap();
    plain.write_all(b"GET / HT").await.unwrap();
    assert!(is_closed(&mut plain, Duration::from_millis(600)).await);
}

#[tokio::test]
async fn http_is_sent_to_https_for_known_hosts_only() {
    let edge = Edge::start(&Plan::new(mirror())).await;
    let port = edge.at.port();
    for (host, location) in [
        (
            "tools.example.com",
            Some("https://tools.example.com/a%20b?c=d&e".to_owned()),
        ),
        (
            "Tools.Example.com:8080",
            Some(format!("https://tools.example.com:{port}/a%20b?c=d&e")),
        ),
        ("evil.example", None),
        ("tools.example.com.evil.example", None),
        ("tools.example.com@evil.example", None),
    ] {
        let mut tcp = socket::connect(edge.redirect_at).await.unwrap();
        tcp.write_all(format!("GET /a%20b?c=d&e HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let answer = read_for(&mut tcp, Duration::from_secs(1)).await;
        match location {
            Some(location) => {
                assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
                assert!(
                    answer.contains(&format!("location: {location}\r\n")),
                    "{answer}"
                );
            }
            None => {
                assert!(answer.starts_with("HTTP/1.1 40"), "{answer}");
                assert!(
                    answer.contains("problem+json") && !answer.contains("evil"),
                    "{answer}"
                );
            }
        }
    }
}

#[tokio::test]
async fn drain_lets_requests_finish_and_idle_clients_go() {
    let slow = upstream(|_| async {
        sleep(Duration::from_millis(500)).await;
        http::Response::new(text("done"))
    });
    let edge = Edge::start(&Plan::new(slow)).await;
    let mut busy = edge.client("http/1.1").await;
    busy.write_all(b"GET / HTTP/1.1\r\nHost: tools.example.com\r\n\r\n")
        .await
        .unwrap();
    let mut idle = edge.client("http/1.1").await;
    sleep(Duration::from_millis(100)).await;
    let sessions = edge.sessions.clone();
    let drain = async { sessions.drain(Duration::from_secs(5)).await };
    let clients = async {
        assert!(is_closed(&mut idle, Duration::from_millis(300)).await);
        let answer = read_for(&mut busy, Duration::from_secs(2)).await;
        assert!(
            answer.ends_with("done") && answer.contains("connection: close"),
            "{answer}"
        );
        drop((busy, idle));
    };
    let (ended, ()) = tokio::join!(drain, clients);
    assert_eq!(ended, 0);
}

#[tokio::test]
async fn a_reload_ends_whom_it_no_longer_allows() {
    let edge = Edge::start(&Plan::new(mirror())).await;
    let mut client = edge.client("http/1.1").await;
    edge.reload(&Plan::new(mirror()), 2);
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: tools.example.com\r\n\r\n")
        .await
        .unwrap();
    let answer = read_for(&mut client, Duration::from_millis(300)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let plan = Plan {
        allow: Some(&["192.0.2.0/24"]),
        ..Plan::new(mirror())
    };
    edge.reload(&plan, 3);
    assert!(is_closed(&mut client, Duration::from_millis(500)).await);
    edge.record(&["denied", "policy_changed"]).await;
}

#[tokio::test]
async fn over_the_limit_a_client_hears_when_to_come_back_and_another_is_served() {
    let edge = Edge::start(&Plan {
        limit: Some(Limit {
            rate: 1,
            per: Duration::from_secs(60),
            burst: 2,
        }),
        proxy_protocol_from: &["127.0.0.1/32"],
        ..Plan::new(mirror())
    })
    .await;
    for (client, status) in [(8, 200), (8, 200), (8, 429), (9, 200)] {
        let mut tcp = socket::connect(edge.at).await.unwrap();
        let header = format!("PROXY TCP4 198.51.100.{client} 127.0.0.1 4096 443\r\n");
        tcp.write_all(header.as_bytes()).await.unwrap();
        let mut tls = edge.client_over(tcp, "http/1.1").await.unwrap();
        tls.write_all(GET.as_bytes()).await.unwrap();
        let answer = read_for(&mut tls, Duration::from_secs(1)).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{client}: {answer}"
        );
        if status == 429 {
            let seconds = answer.lines().find_map(|l| l.strip_prefix("retry-after: "));
            let seconds: u64 = seconds.unwrap().parse().unwrap();
            assert!((30..=60).contains(&seconds), "{seconds}"); // one token a minute
            assert!(answer.contains("rate_limited"), "{answer}");
        }
    }
    edge.record(&["denied", "rate_limited", "198.51.100.8"])
        .await;
}

#[tokio::test]
async fn plain_http_is_told_that_this_port_speaks_https() {
    let edge = Edge::start(&Plan::new(mirror())).await;
    let mut tcp = socket::connect(edge.at).await.unwrap();
    tcp.write_all(GET.as_bytes()).await.unwrap();
    let answer = read_for(&mut tcp, Duration::from_secs(1)).await;
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{answer:?}"
    );
    assert!(
        answer.contains("https://") && answer.ends_with("}\n"),
        "{answer:?}"
    );
    edge.record(&["denied", "plain_http"]).await;
    let mut tcp = socket::connect(edge.at).await.unwrap();
    tcp.write_all(b"\x16\x03\x01\x00\x05hello").await.unwrap();
    let alert = read_for(&mut tcp, Duration::from_secs(1)).await;
    assert!(!alert.contains("HTTP"), "{alert:?}");
    edge.record(&["denied", "handshake_failed"]).await;
}

#[tokio::test]
async fn a_head_that_begins_with_the_end_of_the_handshake_is_timed_too() {
    let mut plan = Plan::new(mirror());
    plan.timers.head = Duration::from_millis(300);
    let edge = Edge::start(&plan).await;
    for _ in 0..10 {
        let tcp = socket::connect(edge.at).await.unwrap();
        let first = b"GET / HTTP/1.1\r\nHo";
        let mut slow = edge.client_saying(tcp, "http/1.1", first).await.unwrap();
        let answer = read_for(&mut slow, Duration::from_secs(2)).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
    }
}

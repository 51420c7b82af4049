//! Bytes that nobody in their right mind sends.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tollgate::{clock, socket};

use super::support::*;

fn random(below: usize) -> usize {
    let mut bytes = [0; 4];
    clock::draw(&mut bytes);
    u32::from_le_bytes(bytes) as usize % below
}

#[tokio::test]
async fn torn_heads_end_no_worker_and_leave_no_entry_open() {
    const WHOLE: &[u8] = b"POST /a?b=c HTTP/1.1\r\nHost: tools.example.com\r\nTransfer-Encoding: chunked\r\nConnection: close\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n";
    const SPICE: &[u8] = b"\r\n\0:; \t,%\xff\x80AZ09-_/\\\"*#?@[]{}";
    let edge = Edge::start(&Plan::new(mirror())).await;
    for _ in 0..150 {
        let mut bytes = WHOLE.to_vec();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = SPICE[random(SPICE.len())],
                1 => bytes.insert(at, SPICE[random(SPICE.len())]),
                _ => drop(bytes.remove(at)),
            }
        }
        let mut client = edge.client("http/1.1").await;
        client.write_all(&bytes).await.unwrap();
        read_for(&mut client, Duration::from_millis(20)).await;
    }
    let whole = std::str::from_utf8(WHOLE).unwrap();
    assert!(edge.talk(whole).await.starts_with("HTTP/1.1 200 "));
    edge.sessions.drain(Duration::from_secs(2)).await;
    edge.assert_paired().await;
}

#[tokio::test]
async fn an_http2_connection_that_breaks_the_rules_is_closed() {
    let edge = Edge::start(&Plan::new(mirror())).await;
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let headers = [0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82]; // no END_HEADERS
    let continuation = [&[0, 0x40, 0, 9, 0, 0, 0, 0, 1][..], &[0x40; 0x4000]].concat();
    let empty = [0, 0, 0, 9, 0, 0, 0, 0, 1];
    let zero_stream = [0, 0, 1, 1, 4, 0, 0, 0, 0, 0x82];
    let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 1][..], &[0; 8]].concat();
    for frames in [
        [&headers[..], &continuation.repeat(100)].concat(),
        [&headers[..], &empty.repeat(100_000)].concat(),
        zero_stream.to_vec(),
        ping,
        vec![0xff; 1000],
    ] {
        let mut client = edge.client("h2").await;
        client
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        client.write_all(&settings).await.unwrap();
        client.write_all(&frames).await.ok();
        let closed = timeout(Duration::from_secs(5), async {
            let mut buffer = [0; 4096];
            while client.read(&mut buffer).await.unwrap_or(0) > 0 {}
        });
        assert!(closed.await.is_ok(), "{:?}", &frames[..10]);
    }
    assert!(
        edge.records()
            .iter()
            .all(|line| !line.contains(r#""kind":"before""#))
    );
}

#[tokio::test]
async fn what_is_not_tls_is_closed_and_counted() {
    let edge = Edge::start(&Plan::new(mirror())).await;
    let mut tcp = socket::connect(edge.at).await.unwrap();
    tcp.write_all(b"\0GET / HTTP/1.1\r\nHost: tools.example.com\r\n\r\n")
        .await
        .unwrap();
    let answer = read_for(&mut tcp, Duration::from_secs(1)).await;
    assert!(!answer.contains("HTTP"), "{answer}");
    edge.record(&["denied", "handshake_failed"]).await;
}

#[tokio::test]
async fn a_refused_head_request_gets_no_body_over_http2() {
    let edge = Edge::start(&Plan {
        route_allow: Some(&["192.0.2.0/24"]),
        ..Plan::new(mirror())
    })
    .await;
    let io = hyper_util::rt::TokioIo::new(edge.client("h2").await);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    tollgate::workers::spawn(async { drop(connection.await) });
    let request = http::Request::head("https://tools.example.com/")
        .body(text(""))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 403);
    let body = http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap();
    assert!(body.to_bytes().is_empty());
}

#[tokio::test]
async fn clients_that_leave_at_any_moment_leave_no_entry_open() {
    let at = upstream(|request| async {
        let body = http_body_util::BodyExt::collect(request.into_body()).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        http::Response::new(text(vec![
            7;
            body.map_or(1, |body| body.to_bytes().len()) * 100
        ]))
    });
    let edge = Edge::start(&Plan::new(at)).await;
    for round in 0..100 {
        let mut client = edge.client("http/1.1").await;
        let size = random(10_000);
        let request = format!(
            "POST / HTTP/1.1\r\nHost: tools.example.com\r\nContent-Length: {size}\r\n\r\n{}",
            "x".repeat(size)
        );
        let sent = if round % 2 == 0 {
            request.len()
        } else {
            random(request.len())
        };
        client.write_all(&request.as_bytes()[..sent]).await.unwrap();
        tokio::time::sleep(Duration::from_micros(random(15_000) as u64)).await;
    }
    assert_eq!(edge.sessions.drain(Duration::from_secs(5)).await, 0);
    edge.assert_paired().await;
    for outcome in ["aborted", "before"] {
        assert!(
            edge.records().iter().any(|line| line.contains(outcome)),
            "{outcome}"
        );
    }
}

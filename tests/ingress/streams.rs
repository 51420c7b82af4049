//! Websockets: through the edge as if it were not there, recorded when they end.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;

use super::support::*;

const ASK: &str = "GET /ws HTTP/1.1\r\nHost: tools.example.com\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Answers 101 and then the bytes `early` in one write, and repeats what comes.
fn echo(early: &'static str) -> std::net::SocketAddr {
    raw_upstream(move |mut tcp| async move {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if tcp.read(&mut byte).await.unwrap_or(0) == 0 {
                return;
            }
            head.push(byte[0]);
        }
        let asked = String::from_utf8_lossy(&head).to_lowercase();
        if !asked.contains("connection: upgrade\r\n") || !asked.contains("upgrade: websocket\r\n") {
            tcp.write_all(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno").await.ok();
            return;
        }
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nKeep-Alive: timeout=5\r\n\r\n";
        tcp.write_all(format!("{answer}{early}").as_bytes())
            .await
            .ok();
        let (mut read, mut write) = tcp.split();
        tokio::io::copy(&mut read, &mut write).await.ok();
    })
}

#[tokio::test]
async fn early_bytes_of_both_sides_are_delivered() {
    let edge = Edge::start(&Plan::new(echo("first"))).await;
    let mut client = edge.client("http/1.1").await;
    client
        .write_all(format!("{ASK}early").as_bytes())
        .await
        .unwrap();
    let answer = read_for(&mut client, Duration::from_millis(500)).await;
    let (head, rest) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{answer}");
    assert!(
        head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=")
            && head.contains("x-request-id: "),
        "{answer}"
    );
    assert!(!head.contains("keep-alive"), "{answer}");
    assert_eq!(rest, "firstearly");
    client.write_all(b" more").await.unwrap();
    assert_eq!(
        read_for(&mut client, Duration::from_millis(300)).await,
        " more"
    );
    client.shutdown().await.unwrap();
    assert_eq!(read_for(&mut client, Duration::from_millis(300)).await, "");
    drop(client);
    edge.record(&[
        "after",
        "served",
        "101",
        r#""bytes_in":10"#,
        r#""bytes_out":15"#,
    ])
    .await;
    edge.assert_paired().await;
}

#[tokio::test]
async fn a_real_websocket_echoes() {
    let at = raw_upstream(|tcp| async move {
        let mut socket = tokio_tungstenite::accept_async(tcp).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    let edge = Edge::start(&Plan::new(at)).await;
    let client = edge.client("http/1.1").await;
    let address = "wss://tools.example.com/any/path";
    let (mut socket, response) = tokio_tungstenite::client_async(address, client)
        .await
        .unwrap();
    assert_eq!(response.status(), 101);
    for size in [1, 200, 70_000] {
        let message = Message::text("x".repeat(size));
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    edge.record(&["before", "/any/path"]).await;
    edge.record(&["after", "served", "101"]).await;
}

#[tokio::test]
async fn other_upgrades_are_not_passed_on() {
    let edge = Edge::start(&Plan::new(echo(""))).await;
    for other in ["h2c", "websocket, h2c", "TLS/1.0"] {
        let ask = ASK.replace(
            "Upgrade: websocket",
            &format!("Upgrade: {other}\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"),
        );
        let answer = edge.talk(&ask).await;
        assert!(
            answer.starts_with("HTTP/1.1 426 ") && answer.ends_with("no"),
            "{answer}"
        );
    }
    let with_body = ASK.replace("\r\n\r\n", "\r\nContent-Length: 3\r\n\r\nabc");
    assert!(edge.talk(&with_body).await.starts_with("HTTP/1.1 426 "));
}

#[tokio::test]
async fn a_silent_stream_ends_after_stream_idle_and_drain_ends_the_rest() {
    let mut plan = Plan::new(echo(""));
    plan.timeouts.stream_idle = Duration::from_millis(400);
    plan.timeouts.idle = Duration::from_millis(100);
    plan.timers.head = Duration::from_millis(100);
    plan.timers.idle = Duration::from_millis(100);
    let edge = Edge::start(&plan).await;
    let mut client = edge.client("http/1.1").await;
    client.write_all(ASK.as_bytes()).await.unwrap();
    for _ in 0..3 {
        sleep(Duration::from_millis(250)).await;
        client.write_all(b"x").await.unwrap();
    }
    let answer = read_for(&mut client, Duration::from_secs(1)).await;
    assert!(answer.ends_with("\r\n\r\nxxx"), "{answer}");
    edge.record(&["after", "body_idle", r#""bytes_in":3"#])
        .await;

    let edge = Edge::start(&Plan::new(echo(""))).await;
    let mut client = edge.client("http/1.1").await;
    client.write_all(ASK.as_bytes()).await.unwrap();
    read_for(&mut client, Duration::from_millis(200)).await;
    assert!(edge.sessions.drain(Duration::from_millis(200)).await >= 1);
    assert_eq!(read_for(&mut client, Duration::from_secs(1)).await, "");
    edge.record(&["after", "101", "draining"]).await;
    assert!(edge.sessions.is_empty());
}

#[tokio::test]
async fn a_reload_spares_streams_that_are_still_allowed() {
    let plan = Plan::new(echo(""));
    let edge = Edge::start(&plan).await;
    let mut client = edge.client("http/1.1").await;
    client.write_all(ASK.as_bytes()).await.unwrap();
    read_for(&mut client, Duration::from_millis(200)).await;
    edge.reload(&plan, 2);
    client.write_all(b"still here").await.unwrap();
    assert_eq!(
        read_for(&mut client, Duration::from_millis(300)).await,
        "still here"
    );
    let denied = Plan {
        allow: Some(&["192.0.2.0/24"]),
        ..plan
    };
    edge.reload(&denied, 3);
    assert_eq!(read_for(&mut client, Duration::from_secs(1)).await, "");
    edge.record(&["after", "101", "policy_changed"]).await;
}

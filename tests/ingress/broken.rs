//! Upstreams that are down, slow or broken, and what the client is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use super::support::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: tools.example.com\r\nConnection: close\r\n\r\n";

/// An address that nobody listens on.
fn nobody() -> std::net::SocketAddr {
    let listener = tollgate::socket::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    listener.local_addr().unwrap()
}

async fn failed(plan: Plan, status: u16, code: &str) {
    let port = plan.servers[0].port().to_string();
    let edge = Edge::start(&plan).await;
    let answer = edge.talk(GET).await;
    assert!(
        answer.starts_with(&format!("HTTP/1.1 {status} ")),
        "{answer}"
    );
    assert!(
        answer.contains("content-type: application/problem+json"),
        "{answer}"
    );
    assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{answer}");
    assert!(
        !answer.contains(&port) && !answer.contains("127.0.0.1"),
        "{answer}"
    );
    edge.record(&["after", "failed", code, &status.to_string()])
        .await;
    edge.assert_paired().await;
}

#[tokio::test]
async fn down_is_502_at_once() {
    let began = tollgate::clock::now();
    failed(Plan::new(nobody()), 502, "upstream_unreachable").await;
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn silent_is_504_after_the_head_timer() {
    let silent = raw_upstream(|mut tcp| async move {
        let mut sink = Vec::new();
        tcp.read_to_end(&mut sink).await.ok();
    });
    let mut plan = Plan::new(silent);
    plan.timeouts.response_head = Duration::from_millis(200);
    failed(plan, 504, "upstream_head_timeout").await;
}

#[tokio::test]
async fn garbage_and_an_early_end_are_502() {
    for says in [
        "",
        "hello\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        let rude = raw_upstream(move |mut tcp| async move {
            let mut head = [0; 1024];
            let _count = tcp.read(&mut head).await;
            tcp.write_all(says.as_bytes()).await.ok();
        });
        failed(Plan::new(rude), 502, "upstream_broken").await;
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_cut_off_too() {
    let rude = raw_upstream(|mut tcp| async move {
        let mut head = [0; 1024];
        let _count = tcp.read(&mut head).await;
        tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
            .await
            .ok();
    });
    let edge = Edge::start(&Plan::new(rude)).await;
    let answer = edge.talk(GET).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("abc"),
        "{answer}"
    );
    edge.record(&["after", "upstream_broken", r#""bytes_out":3"#])
        .await;
}

#[tokio::test]
async fn an_answer_that_stops_is_cut_after_idle() {
    let rude = raw_upstream(|mut tcp| async move {
        let mut head = [0; 1024];
        let _count = tcp.read(&mut head).await;
        tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
            .await
            .ok();
        sleep(Duration::from_secs(60)).await;
    });
    let mut plan = Plan::new(rude);
    plan.timeouts.idle = Duration::from_millis(200);
    let edge = Edge::start(&plan).await;
    edge.talk(GET).await;
    edge.record(&["after", "upstream_idle"]).await;
}

#[tokio::test]
async fn the_next_server_is_tried_once() {
    let edge = Edge::start(&Plan {
        servers: vec![nobody(), mirror()],
        ..Plan::new(nobody())
    })
    .await;
    for _ in 0..4 {
        assert!(edge.talk(GET).await.starts_with("HTTP/1.1 200 "));
    }
}

/// Serves `per_connection` requests on each connection, then closes it when the next one arrives, unanswered.
fn forgetful(per_connection: usize, connections: Arc<AtomicUsize>) -> std::net::SocketAddr {
    raw_upstream(move |mut tcp| {
        connections.fetch_add(1, Ordering::Relaxed);
        async move {
            let mut head = [0; 4096];
            for _ in 0..per_connection {
                if tcp.read(&mut head).await.unwrap_or(0) == 0 {
                    return;
                }
                tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await
                    .ok();
            }
            let _count = tcp.read(&mut head).await;
        }
    })
}

#[tokio::test]
async fn connections_are_used_again_and_a_stale_one_costs_nobody_a_request() {
    let connections = Arc::new(AtomicUsize::new(0));
    let edge = Edge::start(&Plan::new(forgetful(3, Arc::clone(&connections)))).await;
    for _ in 0..6 {
        assert!(edge.talk(GET).await.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(connections.load(Ordering::Relaxed), 2);

    let edge = Edge::start(&Plan::new(forgetful(1, Arc::default()))).await;
    let head = "HTTP/1.1\r\nHost: tools.example.com\r\nConnection: close\r\nContent-Length:";
    for once in [
        format!("POST / {head} 1\r\n\r\nx"),
        format!("PUT / {head} 1\r\n\r\nx"),
        format!("POST / {head} 0\r\n\r\n"),
    ] {
        assert!(edge.talk(GET).await.starts_with("HTTP/1.1 200 "));
        let answer = edge.talk(&once).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "sent twice? {answer}");
    }
    edge.assert_paired().await;
}

#[tokio::test]
async fn a_connection_with_an_unsent_body_is_not_used_again() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let hasty = raw_upstream(move |mut tcp| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let mut head = [0; 4096];
            while tcp.read(&mut head).await.unwrap_or(0) > 0 {
                tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await
                    .ok();
            }
        }
    });
    let edge = Edge::start(&Plan::new(hasty)).await;
    let mut client = edge.client("http/1.1").await;
    let unfinished =
        b"POST / HTTP/1.1\r\nHost: tools.example.com\r\nContent-Length: 100\r\n\r\nabc";
    client.write_all(unfinished).await.unwrap();
    let answer = read_for(&mut client, Duration::from_millis(300)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(edge.talk(GET).await.starts_with("HTTP/1.1 200 "));
    drop(client);
    assert_eq!(connections.load(Ordering::Relaxed), 2);
    edge.sessions.drain(Duration::from_secs(2)).await;
    edge.assert_paired().await;
}

#[tokio::test]
async fn we_close_idle_connections_before_the_server_does() {
    let closed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&closed);
    let at = raw_upstream(move |mut tcp| {
        let closed = Arc::clone(&counted);
        async move {
            let mut head = [0; 4096];
            let _count = tcp.read(&mut head).await;
            tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await
                .ok();
            if tcp.read(&mut head).await.unwrap_or(1) == 0 {
                closed.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let edge = Edge::start(&Plan::new(at)).await;
    edge.talk(GET).await;
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(closed.load(Ordering::Relaxed), 0);
    sleep(Duration::from_millis(2400)).await;
    assert_eq!(closed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn head_requests_and_empty_answers_are_served() {
    let at = upstream(|request| async move {
        let status = if request.uri().path() == "/no" {
            204
        } else {
            200
        };
        let mut response = Response::new(text(if status == 200 { "hello" } else { "" }));
        *response.status_mut() = status.try_into().unwrap();
        response
    });
    let edge = Edge::start(&Plan::new(at)).await;
    let answer = edge
        .talk("HEAD / HTTP/1.1\r\nHost: tools.example.com\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        answer.contains("content-length: 5") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
    let answer = edge
        .talk("GET /no HTTP/1.1\r\nHost: tools.example.com\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    edge.record(&["after", "served", "204"]).await;
    assert!(
        edge.records().iter().all(|line| !line.contains("aborted")),
        "{:#?}",
        edge.records()
    );
}

#[tokio::test]
async fn a_length_beside_chunks_does_not_cut_the_answer() {
    let odd = raw_upstream(|mut tcp| async move {
        let mut head = [0; 1024];
        let _count = tcp.read(&mut head).await;
        tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")
            .await
            .ok();
    });
    let edge = Edge::start(&Plan::new(odd)).await;
    let answer = edge.talk(GET).await;
    assert!(!answer.contains("content-length"), "{answer}");
    let text: String = answer.split("\r\n").collect();
    assert!(
        text.contains("hello") && text.contains(" world"),
        "{answer}"
    );
    edge.record(&["after", "served", r#""bytes_out":11"#]).await;
}

//! Bodies: streamed both ways, limited and timed.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use tollgate::workers;

use super::support::*;

const MIB: usize = 1024 * 1024;

/// A body of what comes through a channel.
struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// A body of `count` times `piece`, with `pause` between them.
fn pieces(count: usize, piece: Bytes, pause: Duration) -> Text {
    let (sender, receiver) = mpsc::channel(1);
    workers::spawn(async move {
        for _ in 0..count {
            if sender.send(piece.clone()).await.is_err() {
                return;
            }
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
    });
    Pieces(receiver).boxed()
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let at = upstream(|_| async {
        let body = pieces(
            4,
            Bytes::from_static(b"data: x\n\n"),
            Duration::from_millis(150),
        );
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(body)
            .unwrap()
    });
    let edge = Edge::start(&Plan::new(at)).await;
    let mut client = edge.client("http/1.1").await;
    client
        .write_all(b"GET /events HTTP/1.1\r\nHost: tools.example.com\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut moments = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = client.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        if buffer[..count].windows(7).any(|w| w == b"data: x") {
            moments.push(tollgate::clock::now());
        }
    }
    assert_eq!(moments.len(), 4);
    assert!(
        moments
            .windows(2)
            .all(|pair| pair[1] - pair[0] > Duration::from_millis(100)),
        "{moments:?}"
    );
    edge.record(&["after", "served", r#""bytes_out":36"#]).await;
}

#[tokio::test]
async fn large_bodies_pass_both_ways_in_little_memory() {
    let at = upstream(|request| async {
        let mut body = request.into_body();
        let mut count = 0;
        while let Some(Ok(frame)) = body.frame().await {
            count += frame.into_data().map_or(0, |data| data.len());
        }
        let mut response = Response::new(pieces(100, vec![7; MIB].into(), Duration::ZERO));
        response.headers_mut().insert("x-count", count.into());
        response
    });
    let edge = Edge::start(&Plan::new(at)).await;
    let client = edge.client("http/1.1").await;
    let (mut read, mut write) = tokio::io::split(client);
    let before = resident_bytes();
    workers::spawn(async move {
        let head = format!(
            "POST / HTTP/1.1\r\nHost: tools.example.com\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            100 * MIB
        );
        write.write_all(head.as_bytes()).await.unwrap();
        let piece = vec![1; MIB];
        for _ in 0..100 {
            write.write_all(&piece).await.unwrap();
        }
        write.flush().await.unwrap();
        sleep(Duration::from_secs(600)).await;
    });
    let (mut total, mut most, mut head) = (0, 0, String::new());
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = read.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        if head.is_empty() {
            head = String::from_utf8_lossy(&buffer[..count.min(400)]).into_owned();
        }
        total += count;
        most = most.max(resident_bytes().saturating_sub(before));
    }
    assert!(head.contains(&format!("x-count: {}", 100 * MIB)), "{head}");
    assert!(total > 100 * MIB);
    assert!(most < 64 * MIB, "{most} bytes more than before"); // other tests run beside
    let moved = format!(r#""bytes_in":{0},"bytes_out":{0}"#, 100 * MIB);
    edge.record(&["after", "served", &moved]).await;
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let at = upstream(|request| async {
        let body = request.into_body().collect().await.unwrap();
        let got = body.trailers().and_then(|t| t.get("x-up").cloned());
        let mut trailers = http::HeaderMap::new();
        trailers.insert(
            "x-down",
            got.unwrap_or(http::HeaderValue::from_static("none")),
        );
        let body = pieces(1, "abc".into(), Duration::ZERO)
            .with_trailers(async { Some(Ok(trailers)) })
            .boxed();
        Response::builder()
            .header("trailer", "x-down")
            .body(body)
            .unwrap()
    });
    let edge = Edge::start(&Plan::new(at)).await;
    let answer = edge
        .talk("POST / HTTP/1.1\r\nHost: tools.example.com\r\nTE: trailers\r\nTrailer: x-up\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\nx-up: 42\r\n\r\n")
        .await;
    assert!(answer.ends_with("0\r\nx-down: 42\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_the_client_hears_it() {
    let edge = Edge::start(&Plan {
        max_body: Some(1000),
        ..Plan::new(mirror())
    })
    .await;
    let announced = format!(
        "POST / HTTP/1.1\r\nHost: tools.example.com\r\nContent-Length: 14000000\r\n\r\n{}",
        "x".repeat(14_000_000) // more than the buffers of both sockets hold
    );
    let answer = edge.talk(&announced).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(
        answer.contains("connection: close") && answer.contains("\"code\":\"body_too_large\""),
        "{answer}"
    );
    edge.record(&["denied", "body_too_large"]).await;

    let piece = format!("200\r\n{}\r\n", "x".repeat(512));
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: tools.example.com\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
        piece.repeat(2000)
    );
    let answer = edge.talk(&chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    edge.record(&["after", "body_too_large", "413"]).await;

    let fits = format!(
        "POST / HTTP/1.1\r\nHost: tools.example.com\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n{}",
        "x".repeat(1000)
    );
    assert!(edge.talk(&fits).await.contains("body: Ok(1000)"));
    edge.assert_paired().await;
}

#[tokio::test]
async fn a_client_that_stops_sending_is_answered_408() {
    let mut plan = Plan::new(mirror());
    plan.timeouts.idle = Duration::from_millis(300);
    let edge = Edge::start(&plan).await;
    let answer = edge
        .talk("POST / HTTP/1.1\r\nHost: tools.example.com\r\nContent-Length: 10\r\n\r\nabc")
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_idle"),
        "{answer}"
    );
    edge.record(&["after", "body_idle", r#""bytes_in":3"#])
        .await;
}

#[tokio::test]
async fn a_slow_body_is_no_idle_body() {
    let mut plan = Plan::new(mirror());
    plan.timeouts.idle = Duration::from_millis(400);
    plan.timeouts.response_head = Duration::from_millis(400);
    let edge = Edge::start(&plan).await;
    let mut client = edge.client("http/1.1").await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: tools.example.com\r\nConnection: close\r\nContent-Length: 8\r\n\r\n").await.unwrap();
    for _ in 0..8 {
        sleep(Duration::from_millis(150)).await;
        client.write_all(b"x").await.unwrap();
    }
    let answer = read_for(&mut client, Duration::from_secs(1)).await;
    assert!(answer.contains("body: Ok(8)"), "{answer}");
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut() {
    let at = upstream(|_| async { Response::new(pieces(64, vec![7; MIB].into(), Duration::ZERO)) });
    let mut plan = Plan::new(at);
    plan.timeouts.idle = Duration::from_millis(300);
    let edge = Edge::start(&plan).await;
    let mut client = edge.client("http/1.1").await;
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: tools.example.com\r\n\r\n")
        .await
        .unwrap();
    edge.record(&["after", "body_idle", "200"]).await;
}

#[tokio::test]
async fn an_http2_client_that_stops_reading_one_stream_loses_it() {
    let at = upstream(|request| async move {
        if request.uri().path() == "/small" {
            return Response::new(text("small"));
        }
        Response::new(pieces(64, vec![7; MIB].into(), Duration::ZERO))
    });
    let mut plan = Plan::new(at);
    plan.timeouts.idle = Duration::from_millis(300);
    let edge = Edge::start(&plan).await;
    let io = hyper_util::rt::TokioIo::new(edge.client("h2").await);
    let (mut sender, connection) =
        hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
            .initial_stream_window_size(65_535)
            .handshake(io)
            .await
            .unwrap();
    workers::spawn(async { drop(connection.await) });
    let get = |path: &str| {
        http::Request::builder()
            .uri(format!("https://tools.example.com{path}"))
            .body(http_body_util::Empty::<Bytes>::new())
            .unwrap()
    };
    let stalled = sender.send_request(get("/large")).await.unwrap();
    edge.record(&["after", "body_idle", "200"]).await;
    let other = sender.send_request(get("/small")).await.unwrap();
    assert_eq!(
        other.into_body().collect().await.unwrap().to_bytes(),
        "small"
    );
    drop(stalled);
}

#[tokio::test]
async fn a_client_that_goes_away_is_recorded_as_aborted() {
    let at = upstream(|_| async {
        Response::new(pieces(
            1000,
            vec![7; 1000].into(),
            Duration::from_millis(50),
        ))
    });
    let edge = Edge::start(&Plan::new(at)).await;
    let mut client = edge.client("http/1.1").await;
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: tools.example.com\r\n\r\n")
        .await
        .unwrap();
    let mut some = [0; 100];
    client.read_exact(&mut some).await.unwrap();
    drop(client);
    edge.record(&["after", "aborted", "200"]).await;

    let mut client = edge.client("http/1.1").await;
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: tools.example.com\r\nContent-Length: 10\r\n\r\nabc")
        .await
        .unwrap();
    sleep(Duration::from_millis(200)).await;
    drop(client);
    timeout(Duration::from_secs(5), async {
        while !edge.sessions.is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    edge.assert_paired().await;
    assert_eq!(
        edge.records()
            .iter()
            .filter(|l| l.contains("aborted"))
            .count(),
        2,
        "{:#?}",
        edge.records()
    );
}

async fn http2(edge: &Edge) -> hyper::client::conn::http2::SendRequest<Text> {
    let io = hyper_util::rt::TokioIo::new(edge.client("h2").await);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    workers::spawn(async { drop(connection.await) });
    sender
}

fn post(body: Text) -> http::Request<Text> {
    http::Request::post("https://tools.example.com/up")
        .body(body)
        .unwrap()
}

#[tokio::test]
async fn http2_uploads_stream_are_limited_and_can_be_reset() {
    let edge = Edge::start(&Plan {
        max_body: Some(20 * MIB as u64),
        ..Plan::new(mirror())
    })
    .await;
    let mut sender = http2(&edge).await;
    for body in [
        text(vec![1; 20 * MIB]),
        pieces(20, vec![1; MIB].into(), Duration::ZERO),
    ] {
        let response = sender.send_request(post(body)).await.unwrap();
        let seen = response.into_body().collect().await.unwrap().to_bytes();
        let seen = String::from_utf8_lossy(&seen);
        assert!(seen.contains(&format!("body: Ok({})", 20 * MIB)), "{seen}");
    }
    for (body, kind) in [
        (text(vec![1; 20 * MIB + 1]), "denied"),
        (pieces(21, vec![1; MIB].into(), Duration::ZERO), "after"),
    ] {
        let response = sender.send_request(post(body)).await.unwrap();
        assert_eq!(response.status(), 413);
        assert!(!response.headers().contains_key("connection"));
        edge.record(&[kind, "body_too_large"]).await;
    }
    let slow = pieces(100, "x".into(), Duration::from_millis(50));
    let reset = timeout(Duration::from_millis(200), sender.send_request(post(slow)));
    assert!(reset.await.is_err());
    edge.record(&["after", "aborted"]).await;
    drop(sender);
    edge.sessions.drain(Duration::from_secs(2)).await;
    edge.assert_paired().await;
}

#[tokio::test]
async fn events_arrive_one_by_one_over_http2_too() {
    let at = upstream(|_| async {
        let body = pieces(
            3,
            Bytes::from_static(b"data: x\n\n"),
            Duration::from_millis(150),
        );
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(body)
            .unwrap()
    });
    let mut plan = Plan::new(at);
    plan.timeouts.idle = Duration::from_millis(50); // not that of an event stream
    let edge = Edge::start(&plan).await;
    let mut sender = http2(&edge).await;
    let mut body = sender
        .send_request(post(text("")))
        .await
        .unwrap()
        .into_body();
    let mut moments = Vec::new();
    while let Some(frame) = body.frame().await {
        if frame.unwrap().into_data().unwrap().is_empty() {
            break; // the end
        }
        moments.push(tollgate::clock::now());
    }
    assert_eq!(moments.len(), 3);
    assert!(
        moments
            .windows(2)
            .all(|pair| pair[1] - pair[0] > Duration::from_millis(100)),
        "{moments:?}"
    );
}

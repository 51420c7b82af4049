//! Heads: what is added, what is taken away, what is refused.

use http::{Request, Version};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};

use bytes::Bytes;
use tollgate::workers;

use super::support::*;

const SPOOFED: &[&str] = &[
    "X-Client-IP",
    "X-Forwarded-For",
    "CF-Connecting-IP",
    "Fastly-Client-IP",
    "True-Client-IP",
    "X-Real-IP",
    "X-Cluster-Client-IP",
    "X-Forwarded",
    "Forwarded-For",
    "Forwarded",
    "X-AppEngine-User-IP",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Request-ID",
    "x_forwarded_for",
    "X_Real_IP",
    "x.client.ip",
    "Proxy-Authorization",
    "Proxy-Connection",
    "Keep-Alive",
    "Upgrade",
    "x-named",
    "content_length",
];

fn assert_clean(seen: &str) {
    assert!(!seen.contains("6.6.6.6"), "{seen}");
    for line in [
        "x-forwarded-for: 127.0.0.1\n",
        "x-real-ip: 127.0.0.1\n",
        "x-client-ip: 127.0.0.1\n",
        "x-forwarded-proto: https\n",
        "x-forwarded-host: tools.example.com\n",
        "host: tools.example.com\n",
        "tj_auth_token: secret\n",
        "accept: */*\n",
    ] {
        let line = format!("\n{line}");
        assert_eq!(seen.matches(&line).count(), 1, "{line:?} in {seen}");
    }
}

#[tokio::test]
async fn over_http1_the_upstream_believes_only_us() {
    let edge = Edge::start(&Plan::new(mirror())).await;
    let spoofed: String = SPOOFED
        .iter()
        .map(|name| format!("{name}: 6.6.6.6\r\n"))
        .collect();
    let answer = edge
        .talk(&format!(
            "GET /a?b=c HTTP/1.1\r\nHost: Tools.Example.com\r\nConnection: close, X-Named\r\n{spoofed}tj_auth_token: secret\r\nAccept: */*\r\nTE: trailers, deflate\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_clean(&answer);
    assert!(answer.contains("GET /a?b=c HTTP/1.1\n"), "{answer}");
    assert!(
        answer.contains("te: trailers\n") && !answer.contains("deflate"),
        "{answer}"
    );
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.contains("x-app: yes") && !head.contains("x-private") && !head.contains("timeout=5"),
        "{head}"
    );
    let id = head
        .lines()
        .find_map(|l| l.strip_prefix("x-request-id: "))
        .unwrap();
    assert!(body.contains(&format!("x-request-id: {id}\n")), "{answer}");
    edge.record(&["before", id, "/a"]).await;
    let after = edge
        .record(&["after", id, "served", r#""status":200"#])
        .await;
    assert!(
        after.contains(&format!(r#""bytes_out":{}"#, body.len())),
        "{after} {}",
        body.len()
    );
    edge.assert_paired().await;
}

#[tokio::test]
async fn over_http2_too_and_cookies_become_one() {
    let edge = Edge::start(&Plan::new(mirror())).await;
    let io = TokioIo::new(edge.client("h2").await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    workers::spawn(async { drop(connection.await) });
    let mut request = Request::builder()
        .uri("https://tools.example.com/a?b=c")
        .header("accept", "*/*");
    for name in SPOOFED
        .iter()
        .filter(|n| !matches!(**n, "Keep-Alive" | "Upgrade" | "Proxy-Connection"))
    {
        if *name != "x-named" {
            request = request.header(*name, "6.6.6.6");
        }
    }
    let request = request
        .header("tj_auth_token", "secret")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(
        (response.version(), response.status().as_u16()),
        (Version::HTTP_2, 200)
    );
    assert!(response.headers().contains_key("x-request-id"));
    let seen = response.into_body().collect().await.unwrap().to_bytes();
    let seen = String::from_utf8_lossy(&seen);
    assert_clean(&seen);
    assert!(seen.starts_with("GET /a?b=c HTTP/1.1\n"), "{seen}");
    assert!(seen.contains("cookie: a=1; b=2\n"), "{seen}");
    edge.record(&["before", "HTTP/2.0"]).await;
    edge.record(&["after", "served"]).await;
}

#[tokio::test]
async fn http10_clients_are_served() {
    let edge = Edge::start(&Plan::new(mirror())).await;
    let answer = edge
        .talk("GET / HTTP/1.0\r\nHost: tools.example.com\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    let answer = edge.talk("GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.contains("host: 127.0.0.1\n"), "{answer}");
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn what_two_readers_could_read_differently_is_refused() {
    let edge = Edge::start(&Plan::new(mirror())).await;
    let host = "Host: tools.example.com\r\n";
    let many = "a: 1\r\n".repeat(101);
    let large = format!("a: {}\r\n", "x".repeat(40_000));
    let long = "x".repeat(9_000);
    for (status, request) in [
        (400, "GET / HTTP/1.1\r\n\r\n".to_owned()),
        (400, format!("GET / HTTP/1.1\r\n{host}{host}\r\n")),
        (
            400,
            "GET / HTTP/1.1\r\nHost: a@tools.example.com\r\n\r\n".to_owned(),
        ),
        (
            400,
            "GET / HTTP/1.1\r\nHost: tools.example.com:99999\r\n\r\n".to_owned(),
        ),
        (
            400,
            "GET / HTTP/1.1\r\nHost: tools.example.com:\r\n\r\n".to_owned(),
        ),
        (400, "GET / HTTP/1.1\r\nHost: 0x7f.1\r\n\r\n".to_owned()),
        (
            400,
            "GET / HTTP/1.1\r\nHost: tools.example.com, other.example\r\n\r\n".to_owned(),
        ),
        (
            400,
            format!("GET http://other.example/ HTTP/1.1\r\n{host}\r\n"),
        ),
        (
            400,
            format!("GET ftp://tools.example.com/ HTTP/1.1\r\n{host}\r\n"),
        ),
        (400, format!("GET * HTTP/1.1\r\n{host}\r\n")),
        (400, format!("GET /a/../b HTTP/1.1\r\n{host}\r\n")),
        (400, format!("GET /a/%2E%2e/b HTTP/1.1\r\n{host}\r\n")),
        (400, format!("GET /a%2f..%2fb HTTP/1.1\r\n{host}\r\n")),
        (400, format!("GET /a/..;x/b HTTP/1.1\r\n{host}\r\n")),
        (400, format!("GET /a%00 HTTP/1.1\r\n{host}\r\n")),
        (
            400,
            format!("GET / HTTP/1.1\r\n{host}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
        ),
        (
            400,
            format!("GET / HTTP/1.1\r\n{host}Content-Length: +3\r\n\r\nabc"),
        ),
        (
            400,
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            400,
            format!(
                "POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            400,
            format!(
                "POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            400,
            format!("POST / HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        (400, format!("GET / HTTP/1.1\r\n{host}a : b\r\n\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{host} folded\r\n\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{host}a: b\0c\r\n\r\n")),
        (414, format!("GET /{long} HTTP/1.1\r\n{host}\r\n")),
        (431, format!("GET / HTTP/1.1\r\n{host}{many}\r\n")),
        (431, format!("GET / HTTP/1.1\r\n{host}{large}\r\n")),
        (501, format!("TRACE / HTTP/1.1\r\n{host}\r\n")),
        (
            501,
            "CONNECT tools.example.com:443 HTTP/1.1\r\nHost: tools.example.com:443\r\n\r\n"
                .to_owned(),
        ),
    ] {
        let denied = edge.records().len();
        let answer = edge.talk(&request).await;
        let shown: String = request.chars().take(120).collect();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} "))
                || answer.starts_with(&format!("HTTP/1.0 {status} ")),
            "{shown:?} got {answer}"
        );
        assert!(!answer.contains("tools.example.com"), "{answer}");
        let record = edge
            .records_after(denied)
            .await
            .get(denied)
            .cloned()
            .unwrap_or_default();
        assert!(
            record.contains(r#""kind":"denied""#),
            "{shown:?} left {record}"
        );
    }
    assert!(
        edge.records()
            .iter()
            .all(|line| line.contains(r#""kind":"denied""#))
    );
}

#[tokio::test]
async fn a_length_beside_chunks_counts_for_nothing_and_closes() {
    let edge = Edge::start(&Plan::new(mirror())).await;
    for fields in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
    ] {
        let answer = edge
            .talk(&format!("POST /a HTTP/1.1\r\nHost: tools.example.com\r\n{fields}\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: tools.example.com\r\n\r\n"))
            .await;
        assert!(
            answer.contains("body: Ok(0)") && !answer.contains("content-length: 4"),
            "{answer}"
        );
        assert!(!answer.contains("smuggled"), "{answer}");
    }
}

#[tokio::test]
async fn a_client_that_expects_continue_gets_it() {
    let edge = Edge::start(&Plan::new(mirror())).await;
    let answer = edge
        .talk("POST / HTTP/1.1\r\nHost: tools.example.com\r\nExpect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc")
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("body: Ok(3)") && !answer.contains("expect:"),
        "{answer}"
    );
}

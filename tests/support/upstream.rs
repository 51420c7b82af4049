//! A small web server: the internal server behind the ingress, and a data source behind the egress.
//!
//! | path | answer |
//! |---|---|
//! | `/headers` | method, target, peer address and header fields, as JSON |
//! | `/bytes/N` | N bytes of the pattern |
//! | `/sum` | size and SHA-256 of the request body, as JSON |
//! | `/sse/N/MS` | N server-sent events, one every MS milliseconds |
//! | `/slow/MS` | a head that takes MS milliseconds |
//! | `/broken` | a promise of 1000 bytes, 10 of them, and the end of the connection |
//! | `/ws` | a websocket that says everything back |
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::body::{Payload, Sum};
use super::client::server_config;

/// Serves on a thread of its own until the test process ends.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// Both ends of every connection: the peer's, and ours.
    connections: Vec<(SocketAddr, SocketAddr)>,
    ids: Vec<String>,
    heads: Vec<(String, HeaderMap)>,
}

const HEADS_MAX: usize = 1000;

impl Upstream {
    /// On a free port of 127.0.0.1.
    pub(crate) fn start() -> Self {
        Self::listen("127.0.0.1:0".parse().expect("an address"), None)
    }

    /// On one port of every loopback address, so that a test sees which of them was dialled.
    pub(crate) fn everywhere() -> Self {
        Self::listen(
            (Ipv4Addr::UNSPECIFIED, super::gate::free_port()).into(),
            None,
        )
    }

    /// The same with TLS; certificate and key from these files.
    pub(crate) fn everywhere_with_tls(cert: PathBuf, key: PathBuf) -> Self {
        let port = super::gate::free_port();
        Self::listen((Ipv4Addr::UNSPECIFIED, port).into(), Some((cert, key)))
    }

    pub(crate) fn listen(address: SocketAddr, tls: Option<(PathBuf, PathBuf)>) -> Self {
        let listener = std::net::TcpListener::bind(address).expect("a free port");
        let address = listener.local_addr().expect("its address");
        listener.set_nonblocking(true).expect("non-blocking");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
        let tls = tls.map(|(cert, key)| server_config(&cert, &key));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime
                .expect("a runtime")
                .block_on(accept(listener, tls, shared));
        });
        Self { address, seen }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Every `X-Request-ID` that arrived, in order.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.seen.lock().expect("no panic").ids.clone()
    }

    /// Target and header fields of the requests that arrived, the first thousand.
    pub(crate) fn heads(&self) -> Vec<(String, HeaderMap)> {
        self.seen.lock().expect("no panic").heads.clone()
    }

    /// Peer and local address of every connection that arrived.
    pub(crate) fn connections(&self) -> Vec<(SocketAddr, SocketAddr)> {
        self.seen.lock().expect("no panic").connections.clone()
    }
}

type Shared = Arc<Mutex<Seen>>;

async fn accept(
    listener: std::net::TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
    seen: Shared,
) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            continue;
        };
        stream.set_nodelay(true).ok(); // only a matter of speed
        let local = stream.local_addr().expect("its address");
        seen.lock()
            .expect("no panic")
            .connections
            .push((peer, local));
        let (tls, seen) = (tls.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            match tls {
                None => serve(stream, peer, seen).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve(stream, peer, seen).await,
                    Err(error) => eprintln!("upstream: {error}"),
                },
            }
        });
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    seen: Shared,
) {
    let service = service_fn(move |request| answer(request, peer, Arc::clone(&seen)));
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .ok(); // the test looks at the other side
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    seen: Shared,
) -> io::Result<Response<Payload>> {
    note(&request, &seen);
    let path = request.uri().path().to_owned();
    let words: Vec<&str> = path.split('/').skip(1).collect();
    Ok(match words[..] {
        ["headers"] => headers(&request, peer),
        ["bytes", count] => Response::new(Payload::pattern(number(count))),
        ["sum"] => sum(request.into_body()).await?,
        ["sse", count, pause] => events(number(count), Duration::from_millis(number(pause))),
        ["slow", pause] => {
            tokio::time::sleep(Duration::from_millis(number(pause))).await;
            Response::new(Payload::text("slow"))
        }
        ["broken"] => broken(),
        ["ws"] => websocket(request),
        _ => Response::new(Payload::text("ok")),
    })
}

fn note(request: &Request<Incoming>, seen: &Shared) {
    let mut seen = seen.lock().expect("no panic");
    if let Some(id) = request.headers().get("x-request-id") {
        seen.ids.push(id.to_str().expect("ASCII").to_owned());
    }
    if seen.heads.len() < HEADS_MAX {
        let head = (request.uri().to_string(), request.headers().clone());
        seen.heads.push(head);
    }
}

fn headers(request: &Request<Incoming>, peer: SocketAddr) -> Response<Payload> {
    let fields: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    let (method, target) = (request.method().as_str(), request.uri().to_string());
    let peer = peer.ip().to_string();
    json_response(&json!({ "method": method, "target": target, "peer": peer, "headers": fields }))
}

async fn sum(body: Incoming) -> io::Result<Response<Payload>> {
    let sum = Sum::of(body).await.map_err(io::Error::other)?;
    Ok(json_response(
        &json!({ "bytes": sum.bytes, "sha256": sum.sha256 }),
    ))
}

fn events(count: u64, pause: Duration) -> Response<Payload> {
    let (feed, body) = mpsc::channel(1);
    tokio::spawn(async move {
        for at in 0..count {
            let event = Bytes::from(format!("id: {at}\ndata: event {at}\n\n"));
            if feed.send(event).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    });
    let mut response = Response::new(Payload::Feed(body));
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn broken() -> Response<Payload> {
    let (feed, body) = mpsc::channel(1);
    tokio::spawn(async move {
        if feed.send(Bytes::from_static(b"ten bytes.")).await.is_ok() {
            // Long enough for head and bytes to arrive before the end does.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    let mut response = Response::new(Payload::Feed(body));
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from_static("1000"));
    response
}

fn websocket(mut request: Request<Incoming>) -> Response<Payload> {
    let Some(key) = request.headers().get("sec-websocket-key").cloned() else {
        let mut response = Response::new(Payload::text("a websocket is spoken here"));
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        return response;
    };
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(&mut request).await else {
            return;
        };
        let mut socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", derive_accept_key(key.as_bytes()))
        .body(Payload::empty())
        .expect("a response")
}

fn json_response(value: &serde_json::Value) -> Response<Payload> {
    let mut response = Response::new(Payload::text(value.to_string()));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number in the path")
}

/// A port of 127.0.0.1 that takes connections, or not even that, and never answers.
pub(crate) fn silent() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        let kept: Vec<_> = listener.incoming().collect();
        drop(kept);
    });
    address
}

/// Plain bytes both ways: connects from `from`, so that a test can choose the client address.
pub(crate) async fn connect(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

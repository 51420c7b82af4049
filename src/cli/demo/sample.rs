//! The demo's other two parties: a sample internal server, and a destination that tells which address it saw.
//!
//! Plain hyper on loopback, a page, JSON, an event stream and a websocket; nothing of the product is in it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::{socket, workers};

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Binds and serves both on a thread of their own; gives their addresses: server, destination.
pub(super) fn start() -> io::Result<(SocketAddr, SocketAddr)> {
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let (server, destination) = (socket::listen(loopback(0))?, socket::listen(loopback(0))?);
    let addresses = (server.local_addr()?, destination.local_addr()?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    workers::thread("demo-servers", move || {
        runtime.block_on(async {
            tokio::join!(accept(server, internal), accept(destination, outside));
        });
    })?;
    Ok(addresses)
}

async fn accept(
    socket: std::net::TcpListener,
    answer: fn(SocketAddr, Request<Incoming>) -> Answer,
) {
    let Ok(listener) = TcpListener::from_std(socket) else {
        return;
    };
    while let Ok((tcp, peer)) = listener.accept().await {
        workers::spawn(connection(tcp, peer, answer));
    }
}

async fn connection(
    tcp: TcpStream,
    peer: SocketAddr,
    answer: fn(SocketAddr, Request<Incoming>) -> Answer,
) {
    let service =
        service_fn(move |request| async move { Ok::<_, Infallible>(answer(peer, request)) });
    let served = http1::Builder::new()
        .serve_connection(TokioIo::new(tcp), service)
        .with_upgrades();
    served.await.ok(); // a sample has nobody to tell
}

/// The sample internal server.
fn internal(_: SocketAddr, request: Request<Incoming>) -> Answer {
    match request.uri().path() {
        "/" => full("text/html; charset=utf-8", PAGE.to_owned()),
        "/events" => events(),
        "/ws" => websocket(request),
        _ => full("application/json", what_arrived(&request)),
    }
}

/// The sample destination.
fn outside(peer: SocketAddr, _: Request<Incoming>) -> Answer {
    full(
        "application/json",
        format!("{}\n", serde_json::json!({ "you_come_from": peer.ip() })),
    )
}

fn what_arrived(request: &Request<Incoming>) -> String {
    let told: serde_json::Map<_, _> = request
        .headers()
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into(),
            )
        })
        .collect();
    let facts = serde_json::json!({ "method": request.method().as_str(), "path": request.uri().path(), "headers": told });
    format!("{facts:#}\n")
}

/// One event a second, for a minute.
fn events() -> Answer {
    let (give, take) = mpsc::channel::<Frame<Bytes>>(1);
    workers::spawn(async move {
        for count in 1..=60 {
            let event = Frame::data(Bytes::from(format!("data: event {count}\n\n")));
            if give.send(event).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let stream = futures_util::stream::unfold(take, |mut take| async {
        let frame = take.recv().await?;
        Some((Ok::<_, Infallible>(frame), take))
    });
    typed("text/event-stream", BodyExt::boxed(StreamBody::new(stream)))
}

/// Echoes every message.
fn websocket(request: Request<Incoming>) -> Answer {
    let Some(accept) = request
        .headers()
        .get(header::SEC_WEBSOCKET_KEY)
        .map(|k| derive_accept_key(k.as_bytes()))
    else {
        return status(StatusCode::UPGRADE_REQUIRED);
    };
    workers::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else {
            return;
        };
        let mut socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            let echo = message.is_text() || message.is_binary();
            if echo && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONNECTION,
        http::HeaderValue::from_static("upgrade"),
    );
    headers.insert(header::UPGRADE, http::HeaderValue::from_static("websocket"));
    if let Ok(accept) = accept.parse() {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    *response.headers_mut() = headers;
    response
}

fn full(kind: &'static str, text: String) -> Answer {
    typed(kind, Full::new(Bytes::from(text)).boxed())
}

fn typed(kind: &'static str, body: BoxBody<Bytes, Infallible>) -> Answer {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

fn status(status: StatusCode) -> Answer {
    let mut response = Response::new(Full::new(Bytes::new()).boxed());
    *response.status_mut() = status;
    response
}

const PAGE: &str = "<!doctype html>
<meta charset=utf-8>
<title>Behind Tollgate</title>
<style>body{font:16px/1.5 system-ui;max-width:40rem;margin:3rem auto;padding:0 1rem}pre{background:#f4f4f4;padding:1rem;overflow:auto}</style>
<h1>Behind Tollgate</h1>
<p>This page came through the edge. Its request was on disk before this server saw it.</p>
<h2>Websocket</h2><pre id=ws>connecting</pre>
<h2>Event stream</h2><pre id=sse>waiting</pre>
<h2>What the server was told</h2><pre id=api></pre>
<script>
const say=(id,text)=>document.getElementById(id).textContent=text;
const ws=new WebSocket(`wss://${location.host}/ws`);
ws.onopen=()=>ws.send('hello');ws.onmessage=m=>say('ws','echoed: '+m.data);ws.onclose=()=>say('ws','closed');
new EventSource('/events').onmessage=m=>say('sse',m.data);
fetch('/api/hello').then(r=>r.text()).then(t=>say('api',t));
</script>
";

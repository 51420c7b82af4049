//! What a certificate authority asks to see whether a name is ours, and gets from us whoever it is: one answer.
//!
//! It is on nobody's allow-list, so while a challenge is pending, and only then, a stranger may walk this far: a
//! handshake that offers nothing but `acme-tls/1`, or a request for one path on port 80. Anything else ends as it would
//! have ended without a challenge, before a certificate is shown and without a reply. The corridor makes no `Client`, so
//! it cannot lead to a request, a record of one, or an upstream.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use crate::outcome::Refusal;
use crate::record::Event;
use crate::tls::{Challenges, Given, Served};

use super::Ingress;

/// Answers to one challenge that are recorded; further ones are counted. Certificate authorities ask from some five
/// places.
const RECORDED_MAX: u64 = 16;
/// In the corridor at the same time, by each worker: they must not take the places of those who are on the list.
pub(super) const STRANGERS_MAX: usize = 32;
/// For a stranger to say what it wants.
const GREETING_LIMIT: Duration = Duration::from_secs(3);
/// Of a request on port 80: a head of a certificate authority is a third of it.
const HEAD_BYTES_MAX: usize = 2048;

impl Ingress {
    /// Answers the handshake of a stranger, if it is a challenge.
    pub(super) async fn stranger(
        &self,
        tcp: TcpStream,
        client: IpAddr,
        listen: SocketAddr,
        served: &Served,
    ) -> Result<(), Refusal> {
        let _place = self.place()?;
        let greeting = LazyConfigAcceptor::new(Acceptor::default(), tcp);
        let greeted = timeout(GREETING_LIMIT, greeting).await;
        let started = greeted.ok().and_then(Result::ok);
        let started = started.ok_or(Refusal::ClientDenied)?;
        self.challenged(started, client, listen, served)
            .await
            .map_err(|_| Refusal::ClientDenied)
    }

    /// Answers a handshake that is a challenge and closes; gives any other back.
    pub(super) async fn challenged<S>(
        &self,
        started: StartHandshake<S>,
        client: IpAddr,
        listen: SocketAddr,
        served: &Served,
    ) -> Result<(), StartHandshake<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(given) = served.answer(&started.client_hello()) else {
            return Err(started);
        };
        let name = started.client_hello().server_name().map(str::to_owned);
        if let Ok(io) = started.into_stream(given.answer).await {
            self.farewell(io, Bytes::new()).await;
        }
        self.answered(
            listen,
            client,
            "tls-alpn-01",
            &name.unwrap_or_default(),
            given.before,
        );
        Ok(())
    }

    /// Answers the request of a stranger on port 80, if it is a challenge.
    pub(super) async fn stranger_http(
        &self,
        mut tcp: TcpStream,
        client: IpAddr,
        listen: SocketAddr,
        challenges: &Challenges,
    ) -> Result<(), Refusal> {
        let _place = self.place()?;
        let head = timeout(GREETING_LIMIT, head(&mut tcp)).await;
        let head = head.ok().flatten().ok_or(Refusal::ClientDenied)?;
        let path = challenge_path(&head).ok_or(Refusal::ClientDenied)?;
        let given = challenges.answer_http(path);
        let Given { answer, before } = given.ok_or(Refusal::ClientDenied)?;
        let length = answer.len();
        let reply = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{answer}"
        );
        self.farewell(tcp, Bytes::from(reply)).await;
        self.answered(listen, client, "http-01", "", before);
        Ok(())
    }

    fn place(&self) -> Result<SemaphorePermit<'_>, Refusal> {
        self.strangers
            .try_acquire()
            .map_err(|_| Refusal::ClientDenied)
    }

    /// Counts an answer, and records it as long as there are not many of the same.
    pub(super) fn answered(
        &self,
        listen: SocketAddr,
        client: IpAddr,
        challenge: &'static str,
        name: &str,
        before: u64,
    ) {
        self.metrics.orders.answered.inc();
        if before >= RECORDED_MAX {
            return;
        }
        self.journal.event(Event {
            name: "challenge_answered",
            facts: vec![
                ("listener", listen.to_string()),
                ("client", client.to_string()),
                ("challenge", challenge.to_owned()),
                ("certificate", name.to_owned()),
            ],
        });
    }
}

/// A whole request head, or nothing.
async fn head(tcp: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_BYTES_MAX);
    while head.len() < HEAD_BYTES_MAX {
        let count = tcp.read_buf(&mut head).await.ok()?;
        if count == 0 {
            return None;
        }
        if head.windows(4).any(|end| end == b"\r\n\r\n") {
            return Some(head);
        }
    }
    None
}

/// The path of a request that is `GET`, HTTP/1.1 and without a query.
fn challenge_path(head: &[u8]) -> Option<&str> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    line.strip_prefix("GET ")?.strip_suffix(" HTTP/1.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_get_has_a_path() {
        let path = |text: &str| challenge_path(text.as_bytes()).map(str::to_owned);
        assert_eq!(
            path("GET /a HTTP/1.1\r\nhost: x\r\n\r\n").as_deref(),
            Some("/a")
        );
        for other in [
            "POST /a HTTP/1.1\r\n",
            "GET /a HTTP/1.0\r\n",
            "GET /a\r\n",
            "",
        ] {
            assert_eq!(path(other), None, "{other}");
        }
    }
}

//! A connection after its handshake: hyper reads the requests, we see to its life.
//!
//! Leaving is asked for by drain and granted by hyper when the requests in flight are done; a reload that takes the
//! client's permission away, and the end of drain, end it at once.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use crate::outcome::Refusal;
use crate::wire::http::{FIELDS_MAX, HEAD_BYTES_MAX};

use super::Ingress;
use super::pulse::Timed;
use super::reply::last_words;
use super::taking::Beside;
use super::visitor::Visitor;

const STREAMS_MAX: u32 = 100;
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Streams that the client reset and we have not noticed yet, and streams that we reset: more is an attack.
const RESETS_PENDING_MAX: usize = 20;
const RESETS_OURS_MAX: usize = 100;

/// The socket as hyper sees it.
pub(super) type Io = TlsStream<Timed<TcpStream>>;

/// How attending to a connection ended.
enum End {
    /// By itself.
    Over(hyper::Result<()>),
    /// By us, at once.
    Cut,
}

impl Ingress {
    pub(super) async fn serve_http1(self: Arc<Self>, visitor: Arc<Visitor>, io: Io) {
        // hyper keeps room for one answer as long as the connection lives: a box, so that an idle one holds no more.
        let service = service_fn(|request| {
            let answer = Box::pin(Arc::clone(&self).answer(Arc::clone(&visitor), request));
            async { Ok::<_, Infallible>(answer.await) }
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None) // it would count from the last response on; `pulse` counts from the first byte
            .max_headers(FIELDS_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        let leave = |connection: &mut _| {
            http1::UpgradeableConnection::graceful_shutdown(Pin::new(connection))
        };
        let end = self.attend(&visitor, &mut connection, leave).await;
        self.note(&visitor, &end);
        if let End::Over(_) = end
            && let Some(parts) = connection.into_parts()
        {
            let io = parts.io.into_inner();
            match visitor.pulse.expired() {
                None => self.farewell(io, Bytes::new()).await,
                // Behind an answer that is not through yet these bytes would be read as part of it.
                Some(late @ Refusal::HeadTimeout) if !io.get_ref().0.is_stalled() => {
                    self.farewell(io, last_words(late)).await;
                }
                Some(_) => {}
            }
        }
    }

    pub(super) async fn serve_http2(self: Arc<Self>, visitor: Arc<Visitor>, io: Io) {
        // hyper moves what this gives several times before it runs: a box moves more cheaply than an answer.
        let service = service_fn(|request| {
            let answer = Box::pin(Arc::clone(&self).answer(Arc::clone(&visitor), request));
            async { Ok::<_, Infallible>(answer.await) }
        });
        let mut connection = http2::Builder::new(Beside)
            .timer(TokioTimer::new())
            .keep_alive_interval(self.timers.ping)
            .keep_alive_timeout(self.timers.pong)
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
            .max_local_error_reset_streams(RESETS_OURS_MAX)
            .serve_connection(TokioIo::new(io), service);
        let leave = |connection: &mut _| http2::Connection::graceful_shutdown(Pin::new(connection));
        let end = self.attend(&visitor, &mut connection, leave).await;
        self.note(&visitor, &end);
    }

    async fn attend<C>(&self, visitor: &Visitor, connection: &mut C, leave: impl Fn(&mut C)) -> End
    where
        C: Future<Output = hyper::Result<()>> + Unpin,
    {
        let (mut occasion, mut leaving) = (visitor.occasion, false);
        loop {
            tokio::select! {
                biased;
                over = &mut *connection => return End::Over(over),
                () = visitor.session.ended() => return End::Cut,
                () = visitor.session.asked_to_leave(), if !leaving => {
                    leaving = true;
                    leave(connection);
                }
                newer = visitor.judged_again(occasion) => {
                    occasion = newer;
                    if let Err(refusal) = visitor.welcome(&self.live.load()) {
                        self.deny(visitor, refusal, "");
                        return End::Cut;
                    }
                }
            }
        }
    }

    /// Records what hyper refused before it became a request, and a head that took too long.
    fn note(&self, visitor: &Visitor, end: &End) {
        let End::Over(Err(error)) = end else {
            return;
        };
        let refusal = match visitor.pulse.expired() {
            Some(Refusal::HeadTimeout) => Refusal::HeadTimeout,
            None if error.is_parse_too_large() => Refusal::HeadTooLarge,
            None if error.is_parse() => Refusal::Malformed,
            _ => return, // a client that went away, or whose request has a record that says so
        };
        let (peer, reason) = (visitor.peer.socket(), refusal.code());
        tracing::debug!(%peer, reason, %error, "what came is not a request");
        self.deny(visitor, refusal, "");
    }

    /// Sends `last` and says that we are done, then reads what still comes for a while: a socket that is closed with
    /// unread bytes is reset, and the client would lose the answer.
    pub(super) async fn farewell(&self, mut io: impl AsyncRead + AsyncWrite + Unpin, last: Bytes) {
        const BYTES_MAX: usize = 16 * 1024 * 1024;
        const BUFFER_BYTES: usize = 16 * 1024;
        let rest = async {
            io.write_all(&last).await?;
            io.shutdown().await?;
            let (mut buffer, mut left) = (vec![0; BUFFER_BYTES], BYTES_MAX);
            while left > 0 {
                match io.read(&mut buffer).await? {
                    0 => break,
                    count => left = left.saturating_sub(count),
                }
            }
            std::io::Result::Ok(())
        };
        timeout(self.timers.linger, rest).await.ok(); // it is over either way
    }
}

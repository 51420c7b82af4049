//! A client's connection that is closed so that the client can read our last answer.
//!
//! Closing a socket with unread bytes in it sends a reset, and a reset makes the other side throw away what it has not
//! read yet: an answer to a refused CONNECT, for one. So shutting down ends our sending, then reads and forgets what
//! still comes, for a short time and up to a bound.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use crate::sessions::Session;
use crate::workers;

/// How long the other side has to close.
const LINGER_LIMIT: Duration = Duration::from_secs(1);
/// How much it may still send: the rest of an upload that was refused.
const LINGER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A plain connection whose shutdown lingers.
pub(super) struct Lingering {
    tcp: TcpStream,
    closing: Option<(Pin<Box<Sleep>>, usize)>,
}

impl Lingering {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp, closing: None }
    }

    pub(super) fn into_inner(self) -> TcpStream {
        self.tcp
    }
}

/// Writes the last bytes of a conversation; closing goes on in a task beside, because no record is to wait for it.
pub(super) async fn last_words(tcp: TcpStream, bytes: &[u8], session: &Session) {
    let mut lingering = Lingering::new(tcp);
    if lingering.write_all(bytes).await.is_err() {
        return; // whoever is gone does not read them
    }
    let session = session.fork();
    workers::spawn(async move {
        lingering.shutdown().await.ok();
        drop(session);
    });
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.tcp).poll_shutdown(context))?;
        }
        let (limit, left) = this
            .closing
            .get_or_insert_with(|| (Box::pin(sleep(LINGER_LIMIT)), LINGER_BYTES_MAX));
        let mut space = [0; 4096];
        while *left > 0 && limit.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut this.tcp).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    *left = left.saturating_sub(buffer.filled().len());
                }
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

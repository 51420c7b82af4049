//! TLS for a refusal: drivers that insist on it read no error in the clear.
//!
//! The certificate is made by this process for nothing else and proves nothing. A driver that checks certificates breaks
//! off with its own error, as it would at a plain refusal; one that does not (ToolJet's, unless a certificate is entered)
//! goes on and shows the reason. SQL Server's handshake travels in packets of type PRELOGIN; [`Packets`] wraps it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, BytesMut};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::sqlserver::{HEAD_BYTES, LAST, PRELOGIN};
use crate::config::typed::Protocol;
use crate::egress::linger::Lingering;

/// What is sent in one packet; the size that every driver begins with is 4096.
const BODY_BYTES_MAX: usize = 4096 - HEAD_BYTES;
/// Of what is held back until the next flush; a flight of a handshake is below 2 KiB.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;
const NAME: &str = "refused-by-tollgate.invalid";

/// A TLS connection with the client, if it agrees.
pub(super) async fn encrypt(tcp: Lingering, protocol: Protocol) -> Option<TlsStream<Packets>> {
    let wrapped = protocol == Protocol::Sqlserver;
    let acceptor = TlsAcceptor::from(config(wrapped)?);
    let mut tls = acceptor.accept(Packets::new(tcp, wrapped)).await.ok()?;
    tls.get_mut().0.wrapped = false;
    Some(tls)
}

/// Within packets TLS 1.2 only: 1.3 has no last message of a handshake that both sides agree on.
fn config(wrapped: bool) -> Option<Arc<ServerConfig>> {
    static CONFIGS: OnceLock<[Option<Arc<ServerConfig>>; 2]> = OnceLock::new();
    let [plain, within] = CONFIGS.get_or_init(|| [make(false), make(true)]);
    if wrapped {
        within.clone()
    } else {
        plain.clone()
    }
}

fn make(wrapped: bool) -> Option<Arc<ServerConfig>> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).ok()?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: &[_] = if wrapped {
        &[&TLS12]
    } else {
        &[&TLS13, &TLS12]
    };
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .ok()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into());
    config.ok().map(Arc::new)
}

/// A connection whose bytes travel in packets, as long as they are `wrapped`.
pub(super) struct Packets {
    tcp: Lingering,
    wrapped: bool,
    /// The head of the packet that is being read.
    head: BytesMut,
    /// Bytes of its body that have not been read yet.
    left: usize,
    /// What was written since the last flush: one message, however many packets it takes, because drivers wait for
    /// the whole flight.
    message: BytesMut,
    /// What has not been sent yet.
    out: BytesMut,
}

impl Packets {
    fn new(tcp: Lingering, wrapped: bool) -> Self {
        Self {
            tcp,
            wrapped,
            head: BytesMut::new(),
            left: 0,
            message: BytesMut::new(),
            out: BytesMut::new(),
        }
    }

    /// Puts what was written into packets, and sends them.
    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.message.is_empty() {
            let body = self
                .message
                .split_to(self.message.len().min(BODY_BYTES_MAX));
            let length = super::length::<u16>(body.len().saturating_add(HEAD_BYTES));
            let status = if self.message.is_empty() { LAST } else { 0 };
            self.out.put_slice(&[PRELOGIN, status]);
            self.out.put_u16(length);
            self.out.put_slice(&[0, 0, 0, 0]);
            self.out.put_slice(&body);
        }
        while !self.out.is_empty() {
            let sent = ready!(Pin::new(&mut self.tcp).poll_write(context, &self.out))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(sent);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads at most `most` bytes.
    fn poll_some(
        &mut self,
        context: &mut Context<'_>,
        most: usize,
    ) -> Poll<io::Result<([u8; 1024], usize)>> {
        let mut space = [0; 1024];
        let room = space.get_mut(..most.min(1024)).unwrap_or_default();
        let mut buffer = ReadBuf::new(room);
        ready!(Pin::new(&mut self.tcp).poll_read(context, &mut buffer))?;
        let read = buffer.filled().len();
        Poll::Ready(Ok((space, read)))
    }
}

impl AsyncRead for Packets {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.wrapped && this.left == 0 {
            return Pin::new(&mut this.tcp).poll_read(context, buffer);
        }
        while this.left == 0 {
            let missing = HEAD_BYTES.saturating_sub(this.head.len());
            let (space, read) = ready!(this.poll_some(context, missing))?;
            if read == 0 {
                return Poll::Ready(Ok(())); // the end
            }
            this.head
                .extend_from_slice(space.get(..read).unwrap_or_default());
            if let Some(([kind, _, high, low, ..], _)) = this.head.split_first_chunk::<HEAD_BYTES>()
            {
                let bytes = usize::from(u16::from_be_bytes([*high, *low]));
                if *kind != PRELOGIN || bytes < HEAD_BYTES {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                this.left = bytes.saturating_sub(HEAD_BYTES);
                this.head.clear();
            }
        }
        let most = this.left.min(buffer.remaining());
        let (space, read) = ready!(this.poll_some(context, most))?;
        buffer.put_slice(space.get(..read).unwrap_or_default());
        this.left = this.left.saturating_sub(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Packets {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.wrapped {
            return Pin::new(&mut this.tcp).poll_write(context, bytes);
        }
        if this.message.len() >= MESSAGE_BYTES_MAX {
            ready!(this.poll_sent(context))?;
        }
        this.message.put_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_sent(context))?;
        Pin::new(&mut this.tcp).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_sent(context))?;
        Pin::new(&mut this.tcp).poll_shutdown(context)
    }
}

//! The client's connection as hyper reads it: with an IPv6 address in the first CONNECT put into brackets.
//!
//! `CONNECT ::1:443 HTTP/1.1` is what ToolJet's agent sends for an address; no URI parser takes it, so without this it
//! would be refused as malformed and never judged. The first line is held back until it is whole; everything else passes
//! as it is.

use std::io::{self, IoSlice};
use std::net::Ipv6Addr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::egress::linger::Lingering;

/// No line that needs a change is longer: `CONNECT `, 39 digits and colons, a port, a version.
const LINE_BYTES_MAX: usize = 80;
const CONNECT: &[u8] = b"CONNECT ";

/// A connection whose first line is looked at.
pub(super) struct Entry {
    tcp: Lingering,
    first: First,
}

enum First {
    /// Not known yet whether it needs a change.
    Held(BytesMut),
    /// Known, and not passed on yet.
    Known(Bytes),
}

impl Entry {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self {
            tcp: Lingering::new(tcp),
            first: First::Held(BytesMut::new()),
        }
    }

    /// The connection, and what was read from it and not passed on.
    pub(super) fn into_parts(self) -> (TcpStream, Bytes) {
        let rest = match self.first {
            First::Held(held) => held.freeze(),
            First::Known(rest) => rest,
        };
        (self.tcp.into_inner(), rest)
    }
}

impl AsyncRead for Entry {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while let First::Held(held) = &mut this.first {
            let mut space = [0; 4096];
            let mut more = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.tcp).poll_read(context, &mut more))?;
            held.extend_from_slice(more.filled());
            if more.filled().is_empty() || is_known(held) {
                this.first = First::Known(bracketed(&std::mem::take(held)));
            }
        }
        match &mut this.first {
            First::Known(rest) if rest.has_remaining() => {
                let length = rest.len().min(buffer.remaining());
                buffer.put_slice(&rest.split_to(length));
                Poll::Ready(Ok(()))
            }
            First::Known(_) | First::Held(_) => Pin::new(&mut this.tcp).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Entry {
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

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

/// Whether more bytes would not change what becomes of these.
fn is_known(held: &[u8]) -> bool {
    let shared = held.len().min(CONNECT.len());
    held.get(..shared) != CONNECT.get(..shared)
        || held.contains(&b'\n')
        || held.len() > LINE_BYTES_MAX
}

/// The same, with the address of the first line in brackets if it is IPv6 and has none.
fn bracketed(held: &[u8]) -> Bytes {
    let unchanged = || Bytes::copy_from_slice(held);
    let Some(rest) = held.strip_prefix(CONNECT) else {
        return unchanged();
    };
    let Some((target, after)) = rest
        .iter()
        .position(|b| *b == b' ')
        .and_then(|at| rest.split_at_checked(at))
    else {
        return unchanged();
    };
    let target = str::from_utf8(target).ok().and_then(|t| t.rsplit_once(':'));
    match target {
        Some((address, port)) if address.parse::<Ipv6Addr>().is_ok() => {
            let written = format!("[{address}]:{port}");
            [CONNECT, written.as_bytes(), after].concat().into()
        }
        _ => unchanged(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_ipv6_address_is_changed() {
        for (line, changed) in [
            (
                "CONNECT ::1:443 HTTP/1.1\r\n",
                "CONNECT [::1]:443 HTTP/1.1\r\n",
            ),
            (
                "CONNECT 2001:db8::7:5432 HTTP/1.0\r\nA: b",
                "CONNECT [2001:db8::7]:5432 HTTP/1.0\r\nA: b",
            ),
            (
                "CONNECT ::ffff:10.0.0.1:1 HTTP/1.1\n",
                "CONNECT [::ffff:10.0.0.1]:1 HTTP/1.1\n",
            ),
        ] {
            assert_eq!(bracketed(line.as_bytes()), changed);
        }
        for line in [
            "CONNECT [::1]:443 HTTP/1.1\r\n",
            "CONNECT db.example:443 HTTP/1.1\r\n",
            "CONNECT 10.0.0.1:443 HTTP/1.1\r\n",
            "CONNECT ::1%lo:443 HTTP/1.1\r\n",
            "CONNECT :: HTTP/1.1\r\n",
            "CONNECT ::1:443",
            "GET ::1:443 HTTP/1.1\r\n",
            "\u{0}CONNECT ::1:443 HTTP/1.1\r\n",
        ] {
            assert_eq!(bracketed(line.as_bytes()), line, "{line}");
        }
    }

    #[test]
    fn nothing_is_held_back_for_longer_than_it_takes() {
        assert!(!is_known(b"") && !is_known(b"CONN") && !is_known(b"CONNECT ::1:443 HT"));
        assert!(
            is_known(b"G")
                && is_known(b"CONNECT a\n")
                && is_known(&[b"CONNECT ", &[b'1'; 80][..]].concat())
        );
    }
}

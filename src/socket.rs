//! Every socket is made here.
//!
//! Listening and connecting for the ingress; dialling from the fixed address has options of its own and stands in
//! `socket/fixed`, datagrams in `socket/datagram`. Nothing here resolves a name. How many there may be is asked for here, too.

use std::io;
use std::net::SocketAddr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpStream;

pub mod datagram;
pub mod fixed;

/// Connections that the kernel queues before we accept them.
const BACKLOG: i32 = 1024;

/// Raises the number of file descriptors that the process may hold as far as it may be raised by itself, and gives it;
/// `None`: no bound. Login shells and service managers give 1024, which some hundred tunnels use up.
pub fn raise_descriptors() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    }
}

/// A non-blocking listener; `SO_REUSEADDR`, and IPv6 only for IPv6 addresses.
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    listening(address, false)
}

/// As [`listen`], and takes connections to any address that the firewall hands it (TPROXY). Needs `CAP_NET_ADMIN`.
pub fn listen_to_any(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    listening(address, true)
}

fn listening(address: SocketAddr, any: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    match address {
        SocketAddr::V4(_) if any => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) if any => socket.set_ip_transparent_v6(true)?,
        _ => {}
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Where an accepted connection was meant to go before the firewall redirected it; where it arrived, if that is the
/// same.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    let socket = SockRef::from(stream);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    // Without connection tracking nothing was rewritten.
    Ok(original.ok().and_then(|o| o.as_socket()).unwrap_or(local))
}

/// Connects to an upstream, from any local address, without delay of small writes.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the room that makes sockets"
)]
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

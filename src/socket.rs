//! Every socket is made here.
//!
//! Listening and connecting for the ingress; dialling from the fixed address has options of its own and stands in
//! `socket/fixed`. Nothing here resolves a name. How many there may be is asked for here, too.

use std::io;
use std::net::SocketAddr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

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
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
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

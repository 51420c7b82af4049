//! Datagrams that are answered from the address that they were sent to.
//!
//! A socket bound to every address would answer from whichever the routing table prefers; a client, and the address
//! translation of a firewall, wait for the answer from the one that was asked. So the kernel is asked for that address
//! with each datagram, and told it with each answer.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use nix::libc;
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SetSockOpt as _, SockaddrStorage, recvmsg,
    sendmsg,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Bytes that the kernel keeps for us: a burst of some thousand questions.
const QUEUE_BYTES: usize = 1 << 20;

/// A bound socket for datagrams, on the runtime that receives from it.
pub struct Datagrams(UdpSocket);

/// One datagram, and the way back.
pub struct Datagram {
    pub bytes: Box<[u8]>,
    /// Where it came from, as far as it says.
    pub peer: SocketAddr,
    /// Where it was sent to.
    to: Option<IpAddr>,
    socket: Arc<Datagrams>,
}

/// A non-blocking socket; IPv6 only for IPv6 addresses.
pub fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        Ipv6RecvPacketInfo.set(&socket, &true)?;
    } else {
        Ipv4PacketInfo.set(&socket, &true)?;
    }
    socket.set_recv_buffer_size(QUEUE_BYTES).ok(); // as far as the system allows
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A socket that speaks with `server` alone, from a port of its own.
pub async fn towards(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    Ok(socket)
}

impl Datagrams {
    /// Receives from a socket that [`bind`] made.
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        UdpSocket::from_std(socket).map(Self)
    }

    /// The next datagram. One that is longer than `buffer` is cut to it.
    pub async fn receive(self: &Arc<Self>, buffer: &mut [u8]) -> io::Result<Datagram> {
        let Self(socket) = &**self;
        let (count, peer, to) = socket
            .async_io(Interest::READABLE, || {
                let mut slices = [IoSliceMut::new(buffer)];
                let mut space = nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
                let got = recvmsg::<SockaddrStorage>(
                    socket.as_raw_fd(),
                    &mut slices,
                    Some(&mut space),
                    MsgFlags::empty(),
                )?;
                let peer = got.address.as_ref().and_then(address);
                let peer = peer.ok_or(io::ErrorKind::InvalidData)?;
                Ok((got.bytes, peer, got.cmsgs()?.find_map(destination)))
            })
            .await?;
        Ok(Datagram {
            bytes: buffer.get(..count).unwrap_or_default().into(),
            peer,
            to,
            socket: Arc::clone(self),
        })
    }
}

impl Datagram {
    /// Sends `bytes` back to where it came from.
    pub async fn answer(self, bytes: &[u8]) -> io::Result<()> {
        let Datagrams(socket) = &*self.socket;
        socket
            .async_io(Interest::WRITABLE, || {
                let peer = SockaddrStorage::from(self.peer);
                let slices = [IoSlice::new(bytes)];
                let fd = socket.as_raw_fd();
                let send = |messages: &[ControlMessage<'_>]| {
                    sendmsg(fd, &slices, messages, MsgFlags::empty(), Some(&peer))
                };
                match self.to {
                    None => send(&[])?,
                    Some(IpAddr::V4(v4)) => {
                        let info = libc::in_pktinfo {
                            ipi_ifindex: 0,
                            ipi_spec_dst: libc::in_addr {
                                s_addr: u32::from_ne_bytes(v4.octets()),
                            },
                            ipi_addr: libc::in_addr { s_addr: 0 },
                        };
                        send(&[ControlMessage::Ipv4PacketInfo(&info)])?
                    }
                    Some(IpAddr::V6(v6)) => {
                        let info = libc::in6_pktinfo {
                            ipi6_addr: libc::in6_addr {
                                s6_addr: v6.octets(),
                            },
                            ipi6_ifindex: 0,
                        };
                        send(&[ControlMessage::Ipv6PacketInfo(&info)])?
                    }
                };
                Ok(())
            })
            .await
    }
}

fn address(from: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = from.as_sockaddr_in().map(|a| SocketAddrV4::from(*a).into());
    v4.or_else(|| {
        from.as_sockaddr_in6()
            .map(|a| SocketAddrV6::from(*a).into())
    })
}

/// The local address to answer from.
fn destination(message: ControlMessageOwned) -> Option<IpAddr> {
    match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(IpAddr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bound to every address, asked at one that is not the first of its interface.
    #[tokio::test]
    async fn the_answer_comes_from_the_address_that_was_asked() {
        for (any, asked) in [("0.0.0.0:0", "127.0.0.9"), ("[::]:0", "::1")] {
            let socket = bind(any.parse().unwrap()).unwrap();
            let port = socket.local_addr().unwrap().port();
            let responder = Arc::new(Datagrams::new(socket).unwrap());
            let to = SocketAddr::new(asked.parse().unwrap(), port);
            // A connected socket takes datagrams from the other end only.
            let client = towards(to).await.unwrap();
            client.send(b"question").await.unwrap();
            let datagram = responder.receive(&mut [0; 4]).await.unwrap();
            assert_eq!(&*datagram.bytes, b"ques");
            assert_eq!(datagram.peer, client.local_addr().unwrap());
            datagram.answer(b"answer").await.unwrap();
            let mut buffer = [0; 16];
            let count = client.recv(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..count], b"answer");
        }
    }
}

//! Sockets that leave from the fixed address, and from nowhere else.
//!
//! The order of the steps is the point: `IP_BIND_ADDRESS_NO_PORT` before `bind`, so that a local port is shared by all
//! destinations; the port range before `connect`, so that the kernel does not slow down past half of it; and after
//! `connect` the local address is compared with the fixed one. An error keeps the step at which it happened, because
//! the same errno means two things: `EADDRNOTAVAIL` at `bind` is a missing address, at `connect` a lack of ports.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::socket::{SetSockOpt as _, sockopt::IpBindAddressNoPort};
use nix::{libc, setsockopt_impl, sockopt_impl};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// Silence before the first probe; below the idle limits of cloud NAT gateways and load balancers (240 s and 350 s).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Between probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Probes without answer before the connection counts as dead.
const KEEPALIVE_PROBES: u32 = 4;
/// Bytes sent to a destination may stay unacknowledged this long: a fixed address that moved away is noticed within it.
/// Not set towards clients, because it also counts the time in which a live client reads nothing.
const USER_TIMEOUT: Duration = Duration::from_secs(60);
/// From `linux/in.h`; works at `IPPROTO_IP` for both families, from Linux 6.3 on.
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

sockopt_impl!(
    /// Lower bound in the low 16 bits, upper bound in the high ones.
    LocalPortRange,
    SetOnly,
    libc::IPPROTO_IP,
    IP_LOCAL_PORT_RANGE,
    u32
);

/// Where connections leave from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Source {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    /// Local ports, inclusive; `None`: the system's range.
    pub ports: Option<(u16, u16)>,
}

/// The step at which a dial failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// No fixed address for the family.
    Family,
    /// Making the socket and setting its options.
    Open,
    Bind,
    Connect,
    /// The connected socket has another local address.
    Verify,
}

/// A failed dial.
#[derive(Debug, thiserror::Error)]
#[error("{stage:?} failed")]
pub struct Failure {
    pub stage: Stage,
    #[source]
    pub error: io::Error,
}

impl Source {
    /// The fixed address of the family of `address`.
    pub fn facing(&self, address: IpAddr) -> Option<IpAddr> {
        match address {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// Connects from the fixed address; dropping the future gives up.
    pub async fn connect(&self, to: SocketAddr) -> Result<TcpStream, Failure> {
        let from = self.facing(to.ip()).ok_or_else(|| {
            let none = io::Error::new(io::ErrorKind::AddrNotAvailable, "no fixed address");
            at(Stage::Family)(none)
        })?;
        let socket = self.open(from).map_err(at(Stage::Open))?;
        bind(&socket, from).map_err(at(Stage::Bind))?;
        let stream = TcpSocket::from_std_stream(socket.into())
            .connect(to)
            .await
            .map_err(at(Stage::Connect))?;
        verified(stream, from)
    }

    fn open(&self, from: IpAddr) -> io::Result<Socket> {
        let socket = blank(from)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        keep_alive(&socket)?;
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        let range = |(first, last): (u16, u16)| {
            LocalPortRange
                .set(&socket, &(u32::from(last) << 16 | u32::from(first)))
                .map_err(io::Error::from)
        };
        match (self.ports, system_ports()) {
            (Some(ports), _) => range(ports)?,
            (None, Some(ports)) => range(ports).unwrap_or(()), // an older kernel: slower, not wrong
            (None, None) => {}
        }
        Ok(socket)
    }
}

/// Whether sockets can be bound to `address` at present. Takes no port.
pub fn is_here(address: IpAddr) -> bool {
    blank(address)
        .and_then(|socket| bind(&socket, address))
        .is_ok()
}

/// Whether the system knows a way from `address` to everywhere else. Sends nothing.
pub fn has_route(address: IpAddr) -> io::Result<()> {
    // Documentation addresses (RFC 5737, RFC 3849): only the default route leads to them.
    let beyond: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    let domain = Domain::for_address(SocketAddr::new(address, 0));
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    socket.connect(&SocketAddr::new(beyond, 9).into())
}

/// Those of `ports` that the system's own range holds: connections leave from no others, and from any of the system's
/// if there are none.
pub fn usable(ports: (u16, u16)) -> Option<(u16, u16)> {
    common(ports, system_ports().unwrap_or(ports))
}

fn common(one: (u16, u16), other: (u16, u16)) -> Option<(u16, u16)> {
    let (first, last) = (one.0.max(other.0), one.1.min(other.1));
    (first <= last).then_some((first, last))
}

/// Notices a dead peer within minutes, on an accepted or a dialled socket.
pub fn keep_alive<'a>(socket: impl Into<SockRef<'a>>) -> io::Result<()> {
    let probes = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.into().set_tcp_keepalive(&probes)
}

/// Every address of every interface of this machine.
pub fn local_addresses() -> io::Result<HashSet<IpAddr>> {
    let mut found = HashSet::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address else {
            continue;
        };
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let v6 = address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
        found.extend(v4.or(v6).map(|a| a.to_canonical()));
    }
    Ok(found)
}

/// A socket of the family of `address` that takes no port when it is bound.
fn blank(address: IpAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(address, 0));
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    IpBindAddressNoPort.set(&socket, &true)?;
    Ok(socket)
}

/// Binds, without taking a port. Where the system lets every address be bound (machines that take over each other's
/// addresses are often set so), the address must stand on an interface as well: who does not hold it must not use it.
fn bind(socket: &Socket, address: IpAddr) -> io::Result<()> {
    socket.bind(&SocketAddr::new(address, 0).into())?;
    if !binds_anything(address) || address.is_loopback() || local_addresses()?.contains(&address) {
        return Ok(());
    }
    Err(io::ErrorKind::AddrNotAvailable.into())
}

/// `ip_nonlocal_bind` of the family of `address`. Read each time: it can change under us.
fn binds_anything(address: IpAddr) -> bool {
    let switch = match address {
        IpAddr::V4(_) => "/proc/sys/net/ipv4/ip_nonlocal_bind",
        IpAddr::V6(_) => "/proc/sys/net/ipv6/ip_nonlocal_bind",
    };
    fs::read(switch).is_ok_and(|text| text.trim_ascii() != b"0")
}

/// Closes a connection that left from elsewhere, before a byte is sent on it.
fn verified(stream: TcpStream, from: IpAddr) -> Result<TcpStream, Failure> {
    let (local, remote) = stream
        .local_addr()
        .and_then(|local| Ok((local, stream.peer_addr()?)))
        .map_err(at(Stage::Connect))?;
    if local.ip() != from {
        return Err(at(Stage::Verify)(io::Error::other("another local address")));
    }
    if local == remote {
        // A simultaneous open with ourselves: nobody listens there.
        return Err(at(Stage::Connect)(io::ErrorKind::ConnectionRefused.into()));
    }
    Ok(stream)
}

/// `net.ipv4.ip_local_port_range`, which holds for both families.
fn system_ports() -> Option<(u16, u16)> {
    static RANGE: OnceLock<Option<(u16, u16)>> = OnceLock::new();
    *RANGE.get_or_init(|| {
        let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
        let mut numbers = text.split_whitespace();
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    })
}

fn at(stage: Stage) -> impl Fn(io::Error) -> Failure {
    move |error| Failure { stage, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(v4: &str) -> Source {
        Source {
            v4: Some(v4.parse().unwrap()),
            v6: None,
            ports: None,
        }
    }

    fn listener(address: &str) -> (std::net::TcpListener, SocketAddr) {
        let listener = crate::socket::listen(address.parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn leaves_from_the_fixed_address_and_no_other() {
        let (listener, to) = listener("127.0.0.1:0");
        let stream = source("127.0.0.7").connect(to).await.unwrap();
        assert_eq!(
            stream.local_addr().unwrap().ip(),
            "127.0.0.7".parse::<IpAddr>().unwrap()
        );
        listener.set_nonblocking(false).unwrap();
        let (_, seen) = listener.accept().unwrap();
        assert_eq!(seen, stream.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_family_without_address_is_not_dialled() {
        let (_listener, to) = listener("[::1]:0");
        let failure = source("127.0.0.7").connect(to).await.unwrap_err();
        assert_eq!(failure.stage, Stage::Family);
    }

    #[tokio::test]
    async fn ipv6_has_its_own_fixed_address() {
        let (_listener, to) = listener("[::1]:0");
        let both = Source {
            v6: Some(Ipv6Addr::LOCALHOST),
            ports: Some((40_000, 60_000)),
            ..source("127.0.0.7")
        };
        let stream = both.connect(to).await.unwrap();
        assert_eq!(
            stream.local_addr().unwrap().ip(),
            IpAddr::V6(Ipv6Addr::LOCALHOST)
        );
    }

    #[tokio::test]
    async fn a_missing_address_fails_at_bind() {
        let (_listener, to) = listener("127.0.0.1:0");
        let failure = source("192.0.2.1").connect(to).await.unwrap_err();
        assert_eq!(failure.stage, Stage::Bind);
        assert_eq!(failure.error.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(!is_here("192.0.2.1".parse().unwrap()));
        assert!(is_here("127.0.0.7".parse().unwrap()));
    }

    /// No kernel gives a bound socket another address, so the step is shown one that was bound to another.
    #[tokio::test]
    async fn a_connection_from_elsewhere_is_closed_before_a_byte_is_sent() {
        use std::io::Read as _;
        let (listener, to) = listener("127.0.0.1:0");
        let stream = source("127.0.0.8").connect(to).await.unwrap();
        let failure = verified(stream, "127.0.0.7".parse().unwrap()).unwrap_err();
        assert_eq!(failure.stage, Stage::Verify);
        listener.set_nonblocking(false).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(far.read(&mut [0; 16]).unwrap(), 0);
        let stream = source("127.0.0.8").connect(to).await.unwrap();
        assert!(verified(stream, "127.0.0.8".parse().unwrap()).is_ok());
    }

    #[test]
    fn ports_are_those_that_the_system_has_too() {
        assert_eq!(common((20, 40), (30, 60)), Some((30, 40)));
        assert_eq!(common((40, 50), (30, 60)), Some((40, 50)));
        assert_eq!(common((10, 29), (30, 60)), None);
        assert_eq!(common((61, 70), (30, 60)), None);
    }

    #[tokio::test]
    async fn a_connection_with_ourselves_is_refused() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.7:0".parse().unwrap()).unwrap();
        let own = socket.local_addr().unwrap();
        let stream = socket.connect(own).await.unwrap();
        let failure = verified(stream, own.ip()).unwrap_err();
        assert_eq!(failure.stage, Stage::Connect);
        assert_eq!(failure.error.kind(), io::ErrorKind::ConnectionRefused);
    }

    /// Without `IP_BIND_ADDRESS_NO_PORT` the second destination would find the ports taken; a lack of ports shows at
    /// `connect`.
    #[tokio::test]
    async fn ports_are_shared_by_destinations_and_their_lack_shows_at_connect() {
        let (first, to_first) = listener("127.0.0.1:0");
        let (second, to_second) = listener("127.0.0.2:0");
        let (low, _) = system_ports().unwrap();
        let few = Source {
            ports: Some((low + 7000, low + 7007)),
            ..source("127.0.0.77")
        };
        let (mut open, mut counts) = (Vec::new(), Vec::new());
        for to in [to_first, to_second] {
            let before = open.len();
            let failure = loop {
                match few.connect(to).await {
                    Ok(stream) => open.push(stream),
                    Err(failure) => break failure,
                }
            };
            assert_eq!(failure.stage, Stage::Connect);
            assert_eq!(failure.error.kind(), io::ErrorKind::AddrNotAvailable);
            counts.push(open.len() - before);
        }
        // Another program may have taken some of the eight for itself.
        assert!(
            counts[0] == counts[1] && (4..=8).contains(&counts[0]),
            "{counts:?}"
        );
        for stream in &open {
            let port = stream.local_addr().unwrap().port();
            assert!((low + 7000..=low + 7007).contains(&port));
        }
        drop((first, second));
    }

    #[test]
    fn loopback_is_among_the_local_addresses() {
        assert!(
            local_addresses()
                .unwrap()
                .contains(&IpAddr::V4(Ipv4Addr::LOCALHOST))
        );
    }
}

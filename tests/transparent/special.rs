//! Every special-purpose address, asked for as itself: behind the gate each of them leads to a canary.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::peer::must;
use crate::world::{FIXED, FIXED_V6, Placement, World, within};

const CANARY: u16 = 7777;
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// One or more of each block of the registries. Addresses that a kernel sends nowhere (loopback, multicast, 0.0.0.0/8)
/// never come here.
const SPECIAL: &str = "
10.0.0.0 10.1.2.3 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 192.168.255.255
100.64.0.1 100.100.100.200 100.127.255.255
169.254.169.254 169.254.170.2 169.254.0.1
192.0.0.1 192.0.0.192
192.0.2.1 198.51.100.1 203.0.113.1
192.88.99.1
198.18.0.1 198.19.255.255
240.0.0.1 255.255.255.254
168.63.129.16
64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::8.8.8.8
100::1 100:0:0:1::1
2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:10::1 2001:20::1
2001:db8::1 3fff::1
2002:7f00:1::1 2002:a00:1::1
5f00::1
fc00::1 fd00:ec2::254 fd20:ce::254 fd00:198:18::1
2606:4700::5efe:127.0.0.1 2606:4700::200:5efe:10.0.0.1
10.78.2.7 10.78.2.1 fd78:0:0:2::7 fd78:0:0:2::1
";

const PUBLIC: [&str; 2] = ["8.8.8.8", "2606:4700::1111"];

/// Makes every address one of the far namespace's own, but for the wires between the three.
fn everything_is_there(world: &World) {
    for line in [
        "route add 10.78.2.0/24 dev f0 table local",
        "route add 10.78.1.0/24 via 10.78.2.1 table local",
        "route add local default dev lo table local",
        "-6 route add fd78:0:0:2::/64 dev f0 table local",
        "-6 route add fd78:0:0:1::/64 via fd78:0:0:2::1 table local",
        "-6 route add local default dev lo table local",
    ] {
        must(world.far("ip").args(line.split(' ')));
    }
}

/// Says that it is one, and counts whom it heard from anywhere but the fixed addresses.
fn canary(world: &World, heard: &'static AtomicUsize) {
    for any in [
        IpAddr::from(Ipv4Addr::UNSPECIFIED),
        Ipv6Addr::UNSPECIFIED.into(),
    ] {
        let listener = world.in_far(|| {
            let domain = socket2::Domain::for_address(SocketAddr::new(any, CANARY));
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
            if any.is_ipv6() {
                socket.set_only_v6(true).unwrap();
            }
            socket.bind(&SocketAddr::new(any, CANARY).into()).unwrap();
            socket.listen(64).unwrap();
            TcpListener::from(socket)
        });
        thread::spawn(move || {
            for mut tcp in listener.incoming().flatten() {
                let from_fixed = tcp.peer_addr().is_ok_and(|peer| {
                    peer.ip() == IpAddr::from(FIXED) || peer.ip() == IpAddr::from(FIXED_V6)
                });
                heard.fetch_add(if from_fixed { 1 } else { 1_000_000 }, Ordering::SeqCst);
                tcp.write_all(b"canary").ok();
            }
        });
    }
}

/// What the application reads from a connection to `address`.
fn reads(address: IpAddr) -> String {
    let mut said = String::new();
    let to = SocketAddr::new(address, CANARY);
    if let Ok(mut tcp) = TcpStream::connect_timeout(&to, ANSWER_LIMIT) {
        tcp.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
        tcp.read_to_string(&mut said).ok(); // most of them are reset
    }
    said
}

fn no_special_address_is_reached(placement: Placement, heard: &'static AtomicUsize) {
    within(placement, |world| {
        world.both_families();
        world
            .place
            .write(&world.config().replace("*.customer.test", "*"));
        world.gate().reload();
        everything_is_there(world);
        canary(world, heard);
        let special: Vec<IpAddr> = SPECIAL
            .split_whitespace()
            .map(|a| a.parse().unwrap())
            .collect();
        let said = world.in_app(|| {
            thread::scope(|scope| {
                let asked = special
                    .iter()
                    .map(|a| scope.spawn(|| reads(*a)))
                    .collect::<Vec<_>>();
                asked
                    .into_iter()
                    .map(|a| a.join().unwrap())
                    .collect::<Vec<_>>()
            })
        });
        for (address, said) in special.iter().zip(said) {
            assert_eq!(said, "", "{address}");
        }
        assert_eq!(heard.load(Ordering::SeqCst), 0, "a canary was reached");
        for address in special {
            let text = SocketAddr::new(address, CANARY).to_string();
            let synthetic = match address {
                IpAddr::V4(v4) => matches!(v4.octets(), [198, 18 | 19, ..]),
                IpAddr::V6(v6) => v6.segments()[..3] == [0xfd00, 0x198, 0x18],
            };
            // The gate's own addresses are not redirected in the first place: nothing listens there.
            if !text.contains("10.78.2.")
                && !text.contains("fd78:0:0:2")
                && !text.contains("fd78::2")
            {
                world.denial(
                    &text,
                    if synthetic {
                        "synthetic_unknown"
                    } else {
                        "address_denied"
                    },
                );
            }
        }
        // That it can hear is shown last: these may be dialled.
        for address in PUBLIC {
            let address = address.parse().unwrap();
            assert_eq!(world.in_app(|| reads(address)), "canary", "{address}");
        }
        assert_eq!(heard.load(Ordering::SeqCst), 2);
        world.stop();
    });
}

#[test]
#[ignore = "needs nftables and root; run by tests/run"]
fn no_special_address_is_reached_by_redirection() {
    static HEARD: AtomicUsize = AtomicUsize::new(0);
    no_special_address_is_reached(Placement::Behind, &HEARD);
}

#[test]
#[ignore = "needs nftables and root; run by tests/run"]
fn no_special_address_is_reached_by_tproxy() {
    static HEARD: AtomicUsize = AtomicUsize::new(0);
    no_special_address_is_reached(Placement::BehindTproxy, &HEARD);
}

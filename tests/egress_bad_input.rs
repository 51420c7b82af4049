//! Input that is cut off, too large, too slow or a lie, at every door of the way out and from its name servers.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic, and speaks to sockets itself"
)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use support::dns::{Answer, Dns};
use support::eventually;
use support::gate::{Gate, Place, free_port};
use support::log::Log;

const SOON: Duration = Duration::from_secs(20);
const RULES: &str =
    "[[egress.policy]]\ndestinations = [\"*\"]\naddresses = [\"127.0.0.9\", \"127.0.0.10\"]\n";

fn connect(place: &Place) -> TcpStream {
    let tcp = TcpStream::connect(("127.0.0.1", place.proxy)).unwrap();
    tcp.set_read_timeout(Some(SOON)).unwrap();
    tcp
}

/// What is answered until the end, whether that is a close or a reset.
fn rest(mut tcp: TcpStream) -> Vec<u8> {
    let (mut all, mut block) = (Vec::new(), [0; 4096]);
    loop {
        match tcp.read(&mut block) {
            Ok(0) => return all,
            Ok(read) => all.extend_from_slice(&block[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return all,
            Err(error) => panic!("no end: {error}, after {:?}", String::from_utf8_lossy(&all)),
        }
    }
}

fn ask(place: &Place, bytes: &[u8]) -> Vec<u8> {
    let mut tcp = connect(place);
    tcp.write_all(bytes).ok(); // it may be cut off in the middle
    rest(tcp)
}

fn tunnel(place: &Place, to: &str) -> String {
    let answer = ask(
        place,
        format!("CONNECT {to} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(),
    );
    String::from_utf8_lossy(&answer).into_owned()
}

/// Says one word to each and closes.
fn greeter() -> u16 {
    let listener = TcpListener::bind("127.0.0.9:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut tcp in listener.incoming().flatten() {
            tcp.write_all(b"greeting").ok();
        }
    });
    port
}

fn start(place: &Place, dns: SocketAddr, more: &str) -> Gate {
    place.start(&(place.head() + &place.egress(dns, &format!("{RULES}{more}"))))
}

#[test]
fn messages_that_are_cut_off_end_the_connection_and_dial_nothing() {
    let place = Place::new();
    let dns = Dns::table(&[("db.test", &["127.0.0.9"])]);
    let port = greeter();
    let _gate = start(&place, dns.address, "");
    let mut socks = vec![5, 1, 0, 5, 1, 0, 3, 7];
    socks.extend(b"db.test");
    socks.extend(port.to_be_bytes());
    let connect_head = format!("CONNECT db.test:{port} HTTP/1.1\r\nHost: db.test\r\n\r\n");
    let absolute = format!("GET http://db.test:{port}/ HTTP/1.1\r\nHost: db.test\r\n\r\n");
    for whole in [&socks[..], connect_head.as_bytes(), absolute.as_bytes()] {
        for cut in 0..whole.len() {
            let mut tcp = connect(&place);
            tcp.write_all(&whole[..cut]).unwrap();
            tcp.shutdown(Shutdown::Write).unwrap();
            let said = rest(tcp);
            assert!(!said.ends_with(b"greeting"), "{cut} of {whole:?}: {said:?}");
        }
    }
    let log = Log::read(&place.state());
    assert_eq!(log.kind("before").count(), 0);
    assert_eq!(dns.asked(), [""; 0]);
    // The whole of each is served, byte by byte too.
    for whole in [&socks[..], connect_head.as_bytes()] {
        let mut tcp = connect(&place);
        for byte in whole {
            tcp.write_all(&[*byte]).unwrap();
            thread::sleep(Duration::from_millis(2));
        }
        assert!(rest(tcp).ends_with(b"greeting"), "{whole:?}");
    }
}

#[test]
fn messages_that_are_too_large_are_refused_without_being_kept() {
    let place = Place::new();
    let dns = Dns::table(&[]);
    let gate = start(&place, dns.address, "");
    let before = gate.memory_peak();
    let mut large = b"CONNECT db.test:1 HTTP/1.1\r\nX: ".to_vec();
    large.resize(8 << 20, b'a');
    let said = ask(&place, &large);
    assert!(
        said.starts_with(b"HTTP/1.1 431") || said.is_empty(),
        "{said:?}"
    );
    let mut many = b"CONNECT db.test:1 HTTP/1.1\r\n".to_vec();
    many.extend(b"A: b\r\n".repeat(100_000));
    let said = ask(&place, &many);
    assert!(
        said.starts_with(b"HTTP/1.1 431") || said.is_empty(),
        "{said:?}"
    );
    let long = format!("CONNECT {}:1 HTTP/1.1\r\n\r\n", "a.".repeat(20_000));
    let said = ask(&place, long.as_bytes());
    assert!(said.starts_with(b"HTTP/1.1 4"), "{said:?}");
    // SOCKS: all methods, then a request for the longest name and megabytes behind it.
    let mut socks = vec![5, 255];
    socks.extend(0..=254);
    socks.extend([5, 1, 0, 3, 255]);
    socks.extend([b'a'; 255]);
    socks.extend([0, 80]);
    socks.resize(8 << 20, b'x');
    let said = ask(&place, &socks);
    assert!(said.is_empty() || said[..4] == [5, 0, 5, 8], "{said:?}");
    let grown = gate.memory_peak() - before;
    assert!(grown < 16 << 20, "{grown} bytes more");
}

#[test]
fn a_name_server_that_overdoes_it_is_bounded() {
    let port = greeter();
    let place = Place::new();
    let dns = Dns::start(move |name, _| {
        let number = |n: u16| IpAddr::V4(Ipv4Addr::new(127, 0, 0, if n == 0 { 9 } else { 10 }));
        match name {
            "many.test" => Answer::Addresses((0..500).map(number).collect()),
            "different.test" => {
                let far = |n: u16| IpAddr::V4(Ipv4Addr::new(10, 0, (n >> 8) as u8, n as u8));
                Answer::Addresses((0..500).map(far).chain([number(0)]).collect())
            }
            "a.loop.test" => Answer::Alias("b.loop.test".to_owned()),
            "b.loop.test" => Answer::Alias("a.loop.test".to_owned()),
            "self.test" => Answer::Alias("self.test".to_owned()),
            _ => match name.strip_suffix(".chain.test").map(str::parse::<u32>) {
                Some(Ok(n)) => Answer::Alias(format!("{}.chain.test", n + 1)),
                _ => Answer::NoSuchName,
            },
        }
    });
    let _gate = start(&place, dns.address, "");
    for name in ["many.test", "different.test"] {
        let said = tunnel(&place, &format!("{name}:{port}"));
        // An answer that does not fit is asked for by TCP, where nobody listens: then it is a failure, not a part.
        assert!(
            said.ends_with("greeting") || said.starts_with("HTTP/1.1 50"),
            "{name}: {said}"
        );
    }
    for before in Log::read(&place.state()).kind("before") {
        let addresses = before["addresses"].as_array().unwrap();
        assert!((1..=16).contains(&addresses.len()), "{before}");
    }
    for name in ["a.loop.test", "self.test", "0.chain.test"] {
        let (asked, began) = (dns.asked().len(), Instant::now());
        let said = tunnel(&place, &format!("{name}:{port}"));
        assert!(
            said.starts_with("HTTP/1.1 50") && said.contains("dns_"),
            "{name}: {said}"
        );
        assert!(began.elapsed() < SOON, "{name}: {:?}", began.elapsed());
        let asked = dns.asked().len() - asked;
        assert!(asked < 100, "{name}: asked {asked} times");
    }
}

/// A lie is an answer to another question, or one with another identifier: it is passed over, and the truth is taken.
#[test]
fn a_name_server_that_lies_about_the_question_is_not_believed() {
    let port = greeter();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let query = &buffer[..length];
            let end = 12 + query[12..].iter().position(|b| *b == 0).unwrap() + 5;
            let answer = |address: [u8; 4]| {
                let mut reply = query[..end].to_vec();
                reply[2..4].copy_from_slice(&[0x85, 0x80]);
                reply[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                reply.extend(address);
                reply
            };
            let mut other_id = answer([127, 0, 0, 10]);
            other_id[0] ^= 0xff;
            let mut other_name = answer([127, 0, 0, 10]);
            other_name[13] = b'x';
            for reply in [other_id, other_name, answer([127, 0, 0, 9])] {
                socket.send_to(&reply, peer).ok();
            }
        }
    });
    let place = Place::new();
    let _gate = start(&place, at, "");
    let said = tunnel(&place, &format!("db.test:{port}"));
    assert!(
        said.ends_with("greeting") || said.starts_with("HTTP/1.1 50"),
        "the lie was believed: {said}"
    );
    for before in Log::read(&place.state()).kind("before") {
        assert_eq!(before["addresses"], serde_json::json!(["127.0.0.9"]));
    }
}

#[test]
fn a_flood_of_tunnels_is_refused_and_passes() {
    const MAX: usize = 60;
    let silent = TcpListener::bind("127.0.0.9:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut tcp in silent.incoming().flatten() {
            thread::spawn(move || tcp.read_to_end(&mut Vec::new()).ok()); // says nothing, and closes when it is closed
        }
    });
    let place = Place::new();
    let dns = Dns::table(&[("db.test", &["127.0.0.9"])]);
    let head = place
        .head()
        .replace("[process]", &format!("[process]\nmax_sessions = {MAX}"));
    let forward = free_port();
    let more = format!(
        "{RULES}[[egress.forward]]\nlisten = \"127.0.0.1:{forward}\"\nto = \"db.test:{port}\"\naddresses = [\"127.0.0.9\"]\n"
    );
    let gate = place.start(&(head + &place.egress(dns.address, &more)));
    let ask = format!("CONNECT db.test:{port} HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut open = Vec::new();
    for _ in 0..3 * MAX {
        let mut tcp = connect(&place);
        tcp.write_all(ask.as_bytes()).ok();
        open.push(tcp);
    }
    let mut answers = [0; 2];
    for tcp in &mut open {
        let mut first = [0; 64];
        match tcp.read(&mut first) {
            Ok(read) if first[..read].starts_with(b"HTTP/1.1 200") => answers[0] += 1,
            Ok(_) | Err(_) => answers[1] += 1,
        }
    }
    assert!(answers[0] > 0 && answers[0] <= MAX, "{answers:?}");
    assert!(gate.metrics().contains("code=\"session_limit\""));
    drop(open);
    eventually("the way to be free again", SOON, || {
        let mut tcp = connect(&place);
        tcp.write_all(ask.as_bytes()).ok()?;
        let mut first = [0; 12];
        tcp.read_exact(&mut first).ok()?;
        (&first == b"HTTP/1.1 200").then_some(())
    });
    eventually("every entry to end", SOON, || {
        let log = Log::read(&place.state());
        (log.kind("before").count() == log.kind("after").count()).then_some(())
    });
}

//! The responder of the transparent way attacked: bad messages, floods, strangers, and a name server that lies.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use support::dns::{Answer, Dns};
use support::eventually;
use support::gate::{FIXED, Gate, Place, free_port};
use support::log::Log;

const SOON: Duration = Duration::from_secs(20);
const A: u16 = 1;
const PTR: u16 = 12;
const TXT: u16 = 16;
const SRV: u16 = 33;
const NO_ERROR: u8 = 0;
const MALFORMED: u8 = 1;
const SERVER_FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;
const REFUSED: u8 = 5;

/// Tollgate with a responder for `app` (127.0.0.1) and `jobs` (127.0.0.2).
struct Responder {
    place: Place,
    gate: Gate,
    at: SocketAddr,
}

impl Responder {
    fn start(dns: &Dns, keys: &str) -> Self {
        let place = Place::new();
        let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let listen = free_port();
        let text = format!(
            "{}[limits.few]\nrate = \"1/h\"\nburst = 3\n\
             [egress]\nfixed = [\"{FIXED}\"]\nresolver = {{ servers = [\"{}\"] }}\n\
             [egress.transparent]\nlisten = \"127.0.0.1:{listen}\"\ndns_listen = \"{at}\"\n\
             clients = [{{ name = \"app\", from = \"127.0.0.1\" }}, {{ name = \"jobs\", from = \"127.0.0.2\" }}]\n{keys}\n\
             [[egress.policy]]\ndestinations = [\"*.customer.test\"]\n\
             [[egress.policy]]\ndestinations = [\"*.secret.test\"]\nclients = [\"app\"]\n",
            place.head(),
            dns.address
        );
        let text = if keys.contains("few") {
            text
        } else {
            text.replace("[limits.few]\nrate = \"1/h\"\nburst = 3\n", "")
        };
        let gate = place.start(&text);
        Self { place, gate, at }
    }

    fn socket(&self, from: [u8; 4]) -> UdpSocket {
        let socket = UdpSocket::bind(SocketAddr::from((from, 0))).unwrap();
        socket.connect(self.at).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
    }

    /// One question of `app`, and its answer.
    fn ask(&self, name: &str, kind: u16) -> Vec<u8> {
        let socket = self.socket([127, 0, 0, 1]);
        socket.send(&question(7, name, kind)).unwrap();
        receive(&socket).expect("an answer")
    }

    fn denial(&self, reason: &str) -> serde_json::Value {
        eventually(reason, SOON, || {
            let log = Log::read(&self.place.state());
            log.kind("denied").find(|r| r["reason"] == reason).cloned()
        })
    }
}

fn question(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        out.push(u8::try_from(label.len()).unwrap());
        out.extend(label.as_bytes());
    }
    out.push(0);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out
}

fn receive(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 2000];
    let count = socket.recv(&mut buffer).ok()?;
    buffer.truncate(count);
    Some(buffer)
}

fn code(answer: &[u8]) -> u8 {
    assert_eq!(answer[2] & 0x80, 0x80, "no answer: {answer:x?}");
    answer[3] & 0xf
}

/// The address in an answer with one A record and no EDNS0.
fn address(answer: &[u8]) -> Ipv4Addr {
    assert_eq!((code(answer), answer[7]), (NO_ERROR, 1), "{answer:x?}");
    let octets: [u8; 4] = answer[answer.len() - 4..].try_into().unwrap();
    octets.into()
}

fn everything(_: &str, _: usize) -> Answer {
    Answer::Addresses(vec!["192.0.2.1".parse().unwrap()])
}

#[test]
fn whatever_is_sent_it_goes_on() {
    let dns = Dns::start(everything);
    let responder = Responder::start(&dns, "");
    let socket = responder.socket([127, 0, 0, 1]);
    let good = question(1, "db.customer.test", A);
    let before = responder.gate.memory_peak();
    let mut bad: Vec<Vec<u8>> = (0..good.len()).map(|cut| good[..cut].to_vec()).collect();
    bad.push([&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat()); // a name that points at itself
    bad.push([&good[..12], &[1, b'a', 0xc0, 12, 0, 1, 0, 1]].concat()); // a loop
    bad.push([&good[..12], &[0x3f; 300]].concat()); // more labels than a name has
    bad.push([&good[..], &[0; 4000]].concat()); // oversized
    let mut many = good.clone();
    many[5] = 200; // questions
    bad.push(many.clone());
    (many[5], many[6], many[7]) = (1, 255, 255); // answers
    bad.push(many);
    for message in &bad {
        socket.send(message).unwrap();
    }
    // The same bytes on every machine, and none of them likely to be a good question.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..5_000 {
        let noise: Vec<u8> = (0..40 + round % 300)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_be_bytes()[3]
            })
            .collect();
        socket.send(&noise).unwrap();
    }
    // An answer must never be answered, or two servers would go on for ever.
    let quiet = responder.socket([127, 0, 0, 1]);
    quiet
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut reply = question(2, "db.customer.test", A);
    reply[2] |= 0x80;
    // What comes in the middle of the flood may be dropped, so it is asked again.
    let answer = eventually("an answer", SOON, || {
        quiet.send(&reply).unwrap();
        quiet.send(&good).unwrap();
        receive(&quiet)
    });
    address(&answer);
    let more = std::iter::from_fn(|| receive(&quiet)).chain([answer]);
    assert!(
        more.into_iter().all(|a| a[..2] == [0, 1]),
        "an answer was answered"
    );
    let first = receive(&socket).unwrap();
    assert_eq!(code(&first), MALFORMED);
    let grown = responder.gate.memory_peak() - before;
    assert!(grown < 48 << 20, "{grown} bytes more");
    let metrics = responder.gate.metrics();
    assert!(
        metrics.contains("tollgate_questions_total{answer=\"malformed\"}"),
        "{metrics}"
    );
    let denied = responder.denial("malformed");
    assert_eq!(denied["client"], "127.0.0.1", "{denied}");
}

#[test]
fn strangers_learn_nothing_and_get_no_more_than_they_sent() {
    let dns = Dns::start(everything);
    let responder = Responder::start(&dns, "");
    let stranger = responder.socket([127, 0, 0, 3]);
    for name in ["db.customer.test", "other.test"] {
        let asked = question(9, name, A);
        stranger.send(&asked).unwrap();
        let answer = receive(&stranger).unwrap();
        assert_eq!((code(&answer), answer.len()), (REFUSED, asked.len()));
    }
    assert!(dns.asked().is_empty(), "a stranger's name was resolved");
    stranger
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    stranger.send(&question(9, "a.test", A)[..20]).unwrap();
    assert_eq!(
        receive(&stranger),
        None,
        "nonsense of a stranger was answered"
    );
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 3], 0)).into())
        .unwrap();
    socket.connect(&responder.at.into()).unwrap();
    let mut tcp = TcpStream::from(socket);
    tcp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(
        matches!(tcp.read(&mut [0; 1]), Ok(0)),
        "a stranger may hold a session"
    );
    let mut tcp = TcpStream::connect(responder.at).unwrap(); // from 127.0.0.1, who is a client
    tcp.set_read_timeout(Some(SOON)).unwrap();
    ask_by_stream(&mut tcp, &question(1, "db.customer.test", A));
    address(&hear_by_stream(&mut tcp).unwrap());
    responder.denial("client_denied");
}

fn ask_by_stream(tcp: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    tcp.write_all(&[&length, message].concat()).unwrap();
}

fn hear_by_stream(tcp: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    tcp.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    tcp.read_exact(&mut message).ok()?;
    Some(message)
}

#[test]
fn streams_are_answered_in_order_and_slow_or_long_ones_end() {
    let dns = Dns::start(everything);
    let responder = Responder::start(&dns, "");
    let connect = || {
        let tcp = TcpStream::connect(responder.at).unwrap();
        tcp.set_read_timeout(Some(SOON)).unwrap();
        tcp
    };
    let (begin, mut slow) = (Instant::now(), connect());
    slow.write_all(&[0]).unwrap(); // half a length, and no more
    for bad in [&[0, 0][..], &[0xff, 0xff, 1, 2], &[0, 3, 1, 2, 3]] {
        let mut tcp = connect();
        tcp.write_all(bad).unwrap();
        assert_eq!(hear_by_stream(&mut tcp), None, "{bad:x?}");
    }
    let mut tcp = connect();
    for id in 1..=20 {
        ask_by_stream(&mut tcp, &question(id, &format!("db{id}.customer.test"), A));
    }
    for id in 1..=20_u16 {
        let answer = hear_by_stream(&mut tcp).unwrap();
        assert_eq!(answer[..2], id.to_be_bytes());
        address(&answer);
    }
    assert!(
        begin.elapsed() < Duration::from_secs(9),
        "the slow one held others up"
    );
    assert_eq!(slow.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn one_client_cannot_use_the_names_up() {
    let dns = Dns::start(everything);
    let responder = Responder::start(&dns, "synthetic = \"10.99.0.0/24\"");
    let socket = responder.socket([127, 0, 0, 1]);
    let (mut given, mut refused) = (Vec::new(), 0);
    for at in 0..200 {
        let name = format!("x{at}.customer.test");
        socket.send(&question(at, &name, A)).unwrap();
        let answer = receive(&socket).unwrap();
        match code(&answer) {
            SERVER_FAILURE => refused += 1,
            _ => given.push((name, address(&answer))),
        }
    }
    // 254 addresses, half of them for names, half of those for each client.
    assert_eq!((given.len(), refused), (63, 137));
    assert_eq!(
        given.iter().map(|(_, a)| a).collect::<HashSet<_>>().len(),
        63
    );
    let jobs = responder.socket([127, 0, 0, 2]);
    jobs.send(&question(1, "y.customer.test", A)).unwrap();
    address(&receive(&jobs).unwrap());
    for (name, before) in &given {
        assert_eq!(address(&responder.ask(name, A)), *before);
    }
    responder.denial("names_exhausted");
    let metrics = responder.gate.metrics();
    assert!(
        metrics.contains("tollgate_synthetic_names 64\n"),
        "{metrics}"
    );
}

/// Who may not reach a name does not learn it from an address either.
#[test]
fn a_name_is_told_only_to_who_could_ask_for_it() {
    let dns = Dns::start(everything);
    let responder = Responder::start(&dns, "");
    let given = address(&responder.ask("db.secret.test", A));
    let [a, b, c, d] = given.octets();
    let reverse = format!("{d}.{c}.{b}.{a}.in-addr.arpa");
    let answer = responder.ask(&reverse, PTR);
    assert!(
        answer.ends_with(b"\x02db\x06secret\x04test\0"),
        "{answer:x?}"
    );
    let jobs = responder.socket([127, 0, 0, 2]);
    for (name, kind) in [("db.secret.test", A), (&*reverse, PTR)] {
        jobs.send(&question(1, name, kind)).unwrap();
        assert_eq!(code(&receive(&jobs).unwrap()), NO_SUCH_NAME, "{name}");
    }
}

#[test]
fn questions_have_limits_of_their_own() {
    let dns = Dns::start(everything);
    let responder = Responder::start(&dns, "dns_limits = \"few\"");
    for _ in 0..3 {
        address(&responder.ask("db.customer.test", A));
    }
    assert_eq!(code(&responder.ask("db.customer.test", A)), REFUSED);
    let jobs = responder.socket([127, 0, 0, 2]);
    jobs.send(&question(1, "db.customer.test", A)).unwrap();
    address(&receive(&jobs).unwrap());
    responder.denial("rate_limited");
}

#[test]
fn a_name_server_that_is_silent_holds_up_no_other_name() {
    let dns = Dns::start(|name, times| match name {
        "good.customer.test" => everything(name, times),
        _ => Answer::Silence,
    });
    let responder = Responder::start(&dns, "");
    let socket = responder.socket([127, 0, 0, 1]);
    let begin = Instant::now();
    for id in 0..200 {
        socket
            .send(&question(id, &format!("silent{id}.customer.test"), A))
            .unwrap();
    }
    // So many may wait at once; those beyond are told so.
    for _ in 128..200 {
        assert_eq!(code(&receive(&socket).unwrap()), SERVER_FAILURE);
    }
    let jobs = responder.socket([127, 0, 0, 2]);
    jobs.send(&question(1, "good.customer.test", A)).unwrap();
    address(&receive(&jobs).unwrap());
    assert_eq!(code(&responder.ask("other.test", A)), NO_SUCH_NAME);
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "they waited for the silent ones"
    );
    for _ in 0..128 {
        assert_eq!(code(&receive(&socket).unwrap()), SERVER_FAILURE);
    }
}

#[test]
fn a_name_server_that_lies_gives_nobody_a_real_address() {
    let dns = Dns::start(|name, _| match name {
        "many.customer.test" => {
            Answer::Addresses((0..60).map(|n| IpAddr::from([192, 0, 2, n])).collect())
        }
        "inside.customer.test" => Answer::Addresses(vec!["169.254.169.254".parse().unwrap()]),
        "broken.customer.test" => Answer::ServerFailure,
        _ => Answer::NoSuchName,
    });
    let responder = Responder::start(&dns, "");
    for name in ["many.customer.test", "inside.customer.test"] {
        let address = address(&responder.ask(name, A));
        assert!(
            matches!(address.octets(), [198, 18 | 19, ..]),
            "{name}: {address}"
        );
    }
    assert_eq!(
        code(&responder.ask("broken.customer.test", A)),
        SERVER_FAILURE
    );
    assert_eq!(code(&responder.ask("none.customer.test", A)), NO_SUCH_NAME);
}

#[test]
fn where_a_service_is_and_what_to_know_of_it_is_told() {
    let srv = b"\0\x01\0\x02\x69\x89\x02db\x08customer\x04test\0".to_vec();
    let text = [vec![200], vec![b'x'; 200]].concat();
    let (service, long) = (srv.clone(), text.clone());
    let dns = Dns::start(move |name, _| match name {
        "_mongodb._tcp.customer.test" => Answer::Records(vec![(SRV, service.clone())]),
        "long.customer.test" => Answer::Records(vec![(TXT, long.clone()); 4]),
        _ => Answer::NoSuchName,
    });
    let responder = Responder::start(&dns, "");
    let answer = responder.ask("_mongodb._tcp.customer.test", SRV);
    assert!(answer.ends_with(&srv), "{answer:x?}");
    assert_eq!((code(&answer), answer[7]), (NO_ERROR, 1));
    assert_eq!(
        code(&responder.ask("_mongodb._tcp.other.test", SRV)),
        NO_SUCH_NAME
    );
    let cut = responder.ask("long.customer.test", TXT);
    assert_eq!((cut[2] & 2, cut[7]), (2, 0), "ask again over TCP: {cut:x?}");
    let mut tcp = TcpStream::connect(responder.at).unwrap();
    tcp.set_read_timeout(Some(SOON)).unwrap();
    ask_by_stream(&mut tcp, &question(3, "long.customer.test", TXT));
    let whole = hear_by_stream(&mut tcp).unwrap();
    assert_eq!((whole[7], whole.len() > 800), (4, true), "{whole:x?}");
}

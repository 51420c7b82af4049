//! A name server that says what the test tells it to, lies included.
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What it answers to one question.
pub(crate) enum Answer {
    /// Those of the asked family; an empty answer if there is none.
    Addresses(Vec<IpAddr>),
    /// The same, after a while.
    Late(Duration, Vec<IpAddr>),
    /// Another name, and no address of it.
    Alias(String),
    NoSuchName,
    /// Type and data of each.
    Records(Vec<(u16, Vec<u8>)>),
    ServerFailure,
    Silence,
}

/// Answers on a loopback port until the test process ends.
pub(crate) struct Dns {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_AAAA: u16 = 28;

impl Dns {
    /// `answer` is given the name in lower case without its last dot, and how often this name and type were asked before.
    pub(crate) fn start(answer: impl Fn(&str, usize) -> Answer + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a UDP port");
        let address = socket.local_addr().expect("its address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        thread::spawn(move || {
            let mut buffer = [0; 1500];
            let mut history = Vec::<(String, u16)>::new();
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let query = &buffer[..length];
                let Some((name, kind, end)) = question(query) else {
                    continue;
                };
                let times = history
                    .iter()
                    .filter(|(n, k)| *n == name && *k == kind)
                    .count();
                history.push((name.clone(), kind));
                seen.lock().expect("no panic").push(name.clone());
                let answer = answer(&name, times);
                if let Answer::Late(delay, _) = &answer {
                    thread::sleep(*delay);
                }
                if let Some(reply) = reply(&query[..end], kind, answer) {
                    socket.send_to(&reply, peer).ok(); // the asker may have gone
                }
            }
        });
        Self { address, asked }
    }

    /// Always the same addresses for one name, `NXDOMAIN` for others.
    pub(crate) fn table(entries: &[(&str, &[&str])]) -> Self {
        let table: Vec<(String, Vec<IpAddr>)> = entries
            .iter()
            .map(|(name, list)| {
                let parsed = list.iter().map(|a| a.parse().expect("an address"));
                ((*name).to_owned(), parsed.collect())
            })
            .collect();
        Self::start(move |name, _| {
            table
                .iter()
                .find(|(n, _)| n == name)
                .map_or(Answer::NoSuchName, |(_, list)| {
                    Answer::Addresses(list.clone())
                })
        })
    }

    /// Every name that was asked for, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

/// Name, type and where the question ends (RFC 1035 section 4.1.2).
fn question(query: &[u8]) -> Option<(String, u16, usize)> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    Some((labels.join("."), kind, at + 4))
}

fn of_kind(kind: u16, list: Vec<IpAddr>) -> Vec<(u16, Vec<u8>)> {
    let data = list.into_iter().filter_map(|address| match address {
        IpAddr::V4(v4) if kind == TYPE_A => Some((kind, v4.octets().to_vec())),
        IpAddr::V6(v6) if kind == TYPE_AAAA => Some((kind, v6.octets().to_vec())),
        _ => None,
    });
    data.collect()
}

fn wire_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.') {
        out.push(u8::try_from(label.len()).expect("a short label"));
        out.extend(label.as_bytes());
    }
    out.push(0);
    out
}

/// The question again, and the answer records after it.
fn reply(query: &[u8], kind: u16, answer: Answer) -> Option<Vec<u8>> {
    let (code, list) = match answer {
        Answer::Silence => return None,
        Answer::Records(mut list) => {
            list.retain(|(other, _)| *other == kind);
            (0, list)
        }
        Answer::NoSuchName => (3, Vec::new()),
        Answer::ServerFailure => (2, Vec::new()),
        Answer::Alias(to) => (0, vec![(TYPE_CNAME, wire_name(&to))]),
        Answer::Addresses(list) | Answer::Late(_, list) => (0, of_kind(kind, list)),
    };
    let mut reply = query.to_vec();
    reply[2] = 0x85; // an authoritative response, recursion desired
    reply[3] = 0x80 | code;
    reply[6..8].copy_from_slice(&u16::try_from(list.len()).ok()?.to_be_bytes());
    reply[8..12].fill(0);
    for (kind, octets) in list {
        reply.extend([0xc0, 12]); // the name of the question
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 1, 0, 0, 0, 0]); // class IN, to be forgotten at once
        reply.extend(u16::try_from(octets.len()).ok()?.to_be_bytes());
        reply.extend(octets);
    }
    Some(reply)
}

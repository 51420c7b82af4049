//! The load: wrk and h2load for requests, plain threads with blocking sockets for everything else.
//!
//! Each function puts a piece of load on one side and says how many units were served and how many went wrong.

use std::cell::OnceCell;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};

use crate::backend::{Backend, FILE_BYTES, PATTERN_BYTES, Way, pattern, take_pattern};
use crate::child::{run_bounded, socket_queues};
use crate::sides::Side;

/// What a piece of load came to.
#[derive(Clone, Copy, Default)]
pub(crate) struct Served {
    pub(crate) units: f64,
    pub(crate) errors: u64,
    pub(crate) seconds: f64,
}

/// A transfer without a byte for this long stands still.
const SOCKET_LIMIT: Duration = Duration::from_secs(20);
const THREADS: u64 = 4;
const BUFFER_BYTES: usize = 256 << 10;

/// HTTPS/1.1, keep-alive, 64 connections.
pub(crate) fn requests(side: &Side, seconds: u32) -> Result<Served> {
    let url = format!("https://{}/", side.address);
    let time = format!("{seconds}s");
    let said = tool("wrk", &["-t1", "-c64", "-d", &time, &url], seconds)?;
    let bad = said
        .lines()
        .filter(|l| l.contains("Socket errors") || l.contains("Non-2xx"))
        .count();
    let count = said
        .lines()
        .find_map(|l| l.split_once(" requests in "))
        .context(said.clone())?
        .0;
    Ok(Served {
        units: count.trim().parse()?,
        errors: bad as u64,
        seconds: seconds.into(),
    })
}

/// HTTPS/2, 16 connections with 32 streams each.
pub(crate) fn streams(side: &Side, seconds: u32) -> Result<Served> {
    let url = format!("https://{}/", side.address);
    let time = seconds.to_string();
    let args = ["-c16", "-m32", "-t1", "-D", &time, "--warm-up-time=0", &url];
    let said = tool("h2load", &args, seconds)?;
    let line = said
        .lines()
        .find(|l| l.starts_with("requests:"))
        .context(said.clone())?;
    let number = |word: &str| -> Result<u64> {
        let part = line
            .split(',')
            .find(|p| p.trim_end().ends_with(word))
            .context(line.to_owned())?;
        let digits = part
            .split_whitespace()
            .rev()
            .nth(1)
            .context(line.to_owned())?;
        Ok(digits.parse()?)
    };
    Ok(Served {
        units: number("succeeded")? as f64,
        errors: number("failed")?,
        seconds: seconds.into(),
    })
}

/// Full handshakes, without a request; the server's ticket says that it is through with its part.
pub(crate) fn handshakes(side: &Side, to: &Backend, count: u64) -> Result<Served> {
    let config = client(to)?;
    let address = side.address;
    shared(count, move || {
        let mut stream = tls(&config, address)?;
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        let tickets = stream.conn.read_tls(&mut stream.sock)?;
        ensure!(tickets > 0, "closed after the handshake");
        Ok(1.0)
    })
}

/// Handshakes by the ticket of the one before, the first of each thread but not counted as an error.
pub(crate) fn resumptions(side: &Side, to: &Backend, count: u64) -> Result<Served> {
    thread_local! {
        static OWN: OnceCell<Arc<ClientConfig>> = const { OnceCell::new() };
    }
    let config = client(to)?;
    let address = side.address;
    shared(count, move || {
        let (own, first) = OWN.with(|own| {
            let first = own.get().is_none();
            let make = || {
                let mut config = ClientConfig::clone(&config);
                config.resumption = rustls::client::Resumption::default();
                Arc::new(config)
            };
            (Arc::clone(own.get_or_init(make)), first)
        });
        let mut stream = tls(&own, address)?;
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        while stream.conn.tls13_tickets_received() == 0 {
            let read = stream.conn.read_tls(&mut stream.sock)?;
            ensure!(read > 0, "closed after the handshake");
            stream.conn.process_new_packets()?;
        }
        let resumed = stream.conn.handshake_kind() == Some(HandshakeKind::Resumed);
        ensure!(resumed || first, "not resumed");
        Ok(1.0)
    })
}

/// GiB downloaded, `count` times 100 MiB.
pub(crate) fn downloads(side: &Side, to: &Backend, count: u64) -> Result<Served> {
    let (config, address, way, pages) = (client(to)?, side.address, to.way, to.pages);
    shared(count, move || match way {
        Way::In(_) => moving(tls(&config, address)?, pages, |tls| &tls.sock, download),
        Way::Out => moving(tunnel(address, pages)?, pages, |tcp| tcp, download),
    })
}

/// GiB uploaded, `count` times 100 MiB.
pub(crate) fn uploads(side: &Side, to: &Backend, count: u64) -> Result<Served> {
    let (config, address, way, sink) = (client(to)?, side.address, to.way, to.sink);
    shared(count, move || match way {
        Way::In(_) => moving(tls(&config, address)?, sink, |tls| &tls.sock, upload),
        Way::Out => moving(tunnel(address, sink)?, sink, |tcp| tcp, upload),
    })
}

/// Tunnels opened, each for one page of 1 KiB.
pub(crate) fn tunnel_openings(side: &Side, to: &Backend, count: u64) -> Result<Served> {
    let (address, pages) = (side.address, to.pages);
    shared(count, move || {
        let mut tcp = tunnel(address, pages)?;
        tcp.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut page = Vec::new();
        tcp.read_to_end(&mut page)?;
        ensure!(
            page.len() > crate::backend::PAGE_BYTES,
            "{} bytes",
            page.len()
        );
        Ok(1.0)
    })
}

/// A TLS connection after its handshake and one request, to be held.
pub(crate) fn idle(
    side: &Side,
    config: &Arc<ClientConfig>,
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut stream = tls(config, side.address)?;
    stream.write_all(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    ensure!(stream.read(&mut [0; 4096])? > 0, "closed");
    Ok(stream)
}

/// Whether the other side has neither ended nor reset it.
pub(crate) fn is_open(stream: &mut StreamOwned<ClientConnection, TcpStream>) -> bool {
    let nonblocking = stream.sock.set_nonblocking(true);
    let read = stream.read(&mut [0]);
    nonblocking.is_ok() && read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// TLS 1.3 with X25519 and TLS_AES_128_GCM_SHA256, which both sides speak and browsers ask for; no resumption.
pub(crate) fn client(to: &Backend) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(to.der.clone()))?;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider
        .kx_groups
        .retain(|group| group.name() == rustls::NamedGroup::X25519);
    provider
        .cipher_suites
        .retain(|suite| suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn tls(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let connection = ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost")?)?;
    Ok(StreamOwned::new(connection, connect(address)?))
}

fn tunnel(proxy: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    let mut tcp = connect(proxy)?;
    tcp.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes())?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        tcp.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    ensure!(
        head.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    Ok(tcp)
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let tcp = TcpStream::connect_timeout(&address, SOCKET_LIMIT)?;
    tcp.set_read_timeout(Some(SOCKET_LIMIT))?;
    tcp.set_write_timeout(Some(SOCKET_LIMIT))?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Runs `transfer`; one that stands still shows the queues of its sockets, before they are closed.
fn moving<S>(
    mut stream: S,
    behind: SocketAddr,
    socket: impl Fn(&S) -> &TcpStream,
    transfer: impl Fn(&mut S) -> Result<()>,
) -> Result<f64> {
    let done = transfer(&mut stream);
    let waited = |error: &anyhow::Error| {
        let error = error.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(error, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut))
    };
    if let Err(error) = done {
        ensure!(waited(&error), error);
        let own = socket_queues(socket(&stream).local_addr()?.port());
        let behind = socket_queues(behind.port());
        return Err(error.context(format!("stood still\n{own}\n{behind}")));
    }
    Ok(FILE_BYTES as f64 / f64::from(1 << 30))
}

fn download(stream: &mut (impl Read + Write)) -> Result<()> {
    stream.write_all(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut input = BufReader::with_capacity(BUFFER_BYTES, stream);
    let length = answer(&mut input)?;
    ensure!(length == FILE_BYTES, "announced {length} bytes");
    ensure!(take_pattern(&mut input, length)?, "other bytes came out");
    Ok(())
}

fn upload(stream: &mut (impl Read + Write)) -> Result<()> {
    write!(
        stream,
        "POST /sink HTTP/1.1\r\nHost: localhost\r\nContent-Length: {FILE_BYTES}\r\n\r\n"
    )?;
    for _ in 0..FILE_BYTES / PATTERN_BYTES as u64 {
        for piece in pattern().chunks(BUFFER_BYTES) {
            stream.write_all(piece)?;
        }
    }
    stream.flush()?;
    answer(&mut BufReader::new(stream)).map(drop)
}

/// The head of an answer with status 200; gives the length of its body.
fn answer(input: &mut impl BufRead) -> Result<u64> {
    let (mut head, mut length) = (String::new(), None);
    loop {
        let begin = head.len();
        input.read_line(&mut head)?;
        let line = head.get(begin..).unwrap_or_default();
        ensure!(!line.is_empty(), "ended within the head: {head:?}");
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = Some(value.trim().parse()?);
            }
            None if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    ensure!(head.starts_with("HTTP/1.1 200"), "answered {head:?}");
    length.context("no content-length")
}

/// Does `work` `count` times on a few threads. Its first error is told, all are counted.
fn shared(count: u64, work: impl Fn() -> Result<f64> + Sync) -> Result<Served> {
    let (begin, threads) = (std::time::Instant::now(), THREADS.min(count.max(1)));
    let parts = std::thread::scope(|scope| {
        let part = |at| {
            let work = &work;
            scope.spawn(move || {
                let mut served = Served::default();
                for _ in (at..count).step_by(threads as usize) {
                    match work() {
                        Ok(units) => served.units += units,
                        Err(error) => {
                            if served.errors == 0 {
                                eprintln!("    {error:#}");
                            }
                            served.errors += 1;
                        }
                    }
                }
                served
            })
        };
        let running: Vec<_> = (0..threads).map(part).collect();
        running
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect::<Vec<_>>()
    });
    let sum = |sum: Served, part: Served| Served {
        units: sum.units + part.units,
        errors: sum.errors + part.errors,
        seconds: 0.0,
    };
    let all = parts.into_iter().fold(Served::default(), sum);
    Ok(Served {
        seconds: begin.elapsed().as_secs_f64(),
        ..all
    })
}

fn tool(program: &str, args: &[&str], seconds: u32) -> Result<String> {
    let limit = Duration::from_secs(u64::from(seconds) + 15);
    let output = run_bounded(program, args, limit)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{program}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

//! The real binary from the client's side of the wire: every trick that should not have worked, once.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic, and plays the peers"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const HOST: &str = "tools.example.com";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// The running binary, killed when dropped.
struct Edge {
    child: Child,
    at: SocketAddr,
    admin: SocketAddr,
    folder: tempfile::TempDir,
    certificate: CertificateDer<'static>,
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Edge {
    /// One whose route `/` leads to `upstream`; `more` are further lines of the configuration.
    fn start(upstream: SocketAddr, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pair = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
        fs::write(folder.path().join("cert.pem"), pair.cert.pem()).unwrap();
        fs::write(
            folder.path().join("key.pem"),
            pair.signing_key.serialize_pem(),
        )
        .unwrap();
        let (at, admin) = (free(), free());
        let state = folder.path().join("state");
        let config = format!(
            r#"
            [process]
            state_dir = "{}"
            workers = 1
            [audit]
            segment = "1MiB"
            [admin]
            listen = "{admin}"
            [[ingress]]
            listen = "{at}"
            tls.certificates = [{{ cert = "cert.pem", key = "key.pem" }}]
            hosts = ["{HOST}"]
            timeouts = {{ response_head = "2s", idle = "1s", stream_idle = "1s" }}
            upstream = "http://{upstream}"
            {more}
            "#,
            state.display()
        );
        fs::write(folder.path().join("tollgate.toml"), config).unwrap();
        let edge = Self {
            child: spawn(folder.path()),
            at,
            admin,

            folder,
            certificate: pair.cert.der().clone(),
        };
        edge.wait();
        edge
    }

    /// Until it accepts.
    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(self.at).is_err() {
            assert!(Instant::now() < deadline, "it does not start");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn client(&self, protocol: &str) -> Tls {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let tcp = TcpStream::connect(self.at).unwrap();
        let name = ServerName::try_from(HOST).unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        StreamOwned::new(tls, tcp)
    }

    /// What comes back for `bytes` within a second of silence, on a connection of its own.
    fn talk(&self, bytes: &str) -> String {
        let mut client = self.client("http/1.1");
        client.write_all(bytes.as_bytes()).unwrap();
        String::from_utf8_lossy(&read_for(&mut client, Duration::from_secs(1))).into_owned()
    }

    fn status(&self, path: &str) -> String {
        let answer = self.talk(&format!(
            "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
        ));
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    }
}

fn spawn(folder: &Path) -> Child {
    let log = fs::File::create(folder.join("diagnostics")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["run", "--config"])
        .arg(folder.join("tollgate.toml"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// Everything until the end, or until nothing came for `patience`.
fn read_for(client: &mut Tls, patience: Duration) -> Vec<u8> {
    client.sock.set_read_timeout(Some(patience)).unwrap();
    let (mut read, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    while let Ok(count) = client.read(&mut buffer) {
        if count == 0 {
            break;
        }
        read.extend_from_slice(&buffer[..count]);
    }
    read
}

/// An upstream that answers every head with 200, and gives out what it read of each connection half a second later.
fn recorder() -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let (seen, all) = sync_channel(64);
    thread::spawn(move || {
        for tcp in listener.incoming() {
            let (mut tcp, seen) = (tcp.unwrap(), seen.clone());
            thread::spawn(move || {
                tcp.set_read_timeout(Some(Duration::from_millis(300)))
                    .unwrap();
                let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
                while let Ok(count @ 1..) = tcp.read(&mut buffer) {
                    read.extend_from_slice(&buffer[..count]);
                }
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
                tcp.write_all(answer).ok();
                seen.send(String::from_utf8_lossy(&read).into_owned()).ok();
            });
        }
    });
    (at, all)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// HEADERS that end head and stream, nothing indexed.
fn ask(stream: u32, path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", path),
        (":authority", HOST),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    frame(1, 5, stream, &block)
}

/// Kind and stream of each frame.
fn kinds(mut bytes: &[u8]) -> Vec<(u8, u32)> {
    let mut kinds = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        kinds.push((
            head[3],
            u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
        ));
        bytes = rest.get(length..).unwrap_or_default();
    }
    kinds
}

const GUARDED: &str = r#"
            [[ingress.route]]
            path = "/api/"
            allow = ["10.0.0.0/8"]
            upstream = "http://127.0.0.1:9"
"#;

#[test]
fn no_spelling_of_a_guarded_path_leads_around_its_list() {
    let (upstream, _seen) = recorder();
    let edge = Edge::start(upstream, GUARDED);
    assert_eq!(edge.status("/api/x"), "403");
    assert_eq!(edge.status("/open"), "200");
    assert_eq!(edge.status("/Open;a=1"), "200");
    for path in [
        "/API/x",
        "/Api/x",
        "/%41pi/x",
        "/%61pi/x",
        "/api;v=1/x",
        "/api%3bv=1/x",
        "/;/api/x",
        "//api/x",
        "/api%2fx",
        "/./api/x",
        "/x/..;/api/x",
        "/x/%2e%2e/api/x",
        "/x\\..\\api/x",
    ] {
        assert_eq!(edge.status(path), "400", "{path}");
    }
}

#[test]
fn no_field_or_trailer_tells_the_upstream_another_client_host_or_path() {
    let (upstream, seen) = recorder();
    let edge = Edge::start(upstream, "");
    let spoofed = [
        "x!forwarded!for",
        "x_real.ip",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Forwarded-Scheme",
        "X-Forwarded-Server",
        "X-Original-Host",
        "X-Host",
        "client_ip",
    ]
    .map(|name| format!("{name}: 6.6.6.6\r\n"))
    .concat();
    let answer = edge.talk(&format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\n{spoofed}Trailer: X-Forwarded-For, x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
         1\r\na\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\nx-sum: 1\r\n\r\n"
    ));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let seen = seen.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(seen.contains("\r\n0\r\nx-sum: 1\r\n"), "{seen}");
    assert!(!seen.contains("6.6.6.6"), "{seen}");
}

#[test]
fn a_stream_whose_window_stays_shut_is_reset_even_if_the_answer_is_our_own() {
    let (upstream, _seen) = recorder();
    let edge = Edge::start(upstream, GUARDED);
    let mut client = edge.client("h2");
    client.write_all(PREFACE).unwrap();
    client
        .write_all(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]))
        .unwrap();
    client.write_all(&ask(1, "/open")).unwrap(); // its route says how long a client may stall
    let first = kinds(&read_for(&mut client, Duration::from_millis(2500)));
    assert!(
        first.contains(&(1, 1)) && first.contains(&(3, 1)),
        "{first:?}"
    );
    client.write_all(&ask(3, "/api/x")).unwrap();
    let then = kinds(&read_for(&mut client, Duration::from_millis(2500)));
    assert!(then.contains(&(1, 3)), "{then:?}");
    assert!(then.contains(&(3, 3)), "the stream is held: {then:?}");
}

#[test]
fn a_peer_can_neither_fill_the_diagnostics_nor_have_its_secrets_printed() {
    let (upstream, _seen) = recorder();
    let edge = Edge::start(upstream, "[log]\nlevel = \"trace\"\n");
    let mut client = edge.client("h2");
    client.write_all(PREFACE).unwrap();
    client.write_all(&frame(4, 0, 0, &[])).unwrap();
    client.write_all(&ask(1, "/?token=s3cret")).unwrap();
    for stream in (3..400).step_by(2) {
        let reset = frame(3, 0, stream, &[0, 0, 0, 8]);
        if client
            .write_all(&[ask(stream, "/"), reset].concat())
            .is_err()
        {
            break;
        }
    }
    read_for(&mut client, Duration::from_secs(1));
    let diagnostics = fs::read_to_string(edge.folder.path().join("diagnostics")).unwrap();
    assert!(diagnostics.contains("listening"), "{diagnostics}");
    for word in ["s3cret", "h2::", "hyper", "rustls"] {
        assert!(!diagnostics.contains(word), "{word}: {diagnostics}");
    }
}

#[test]
fn who_holds_every_admin_connection_cannot_hold_the_end_of_the_process() {
    let (upstream, _seen) = recorder();
    let mut edge = Edge::start(upstream, "");
    let held: Vec<_> = (0..80)
        .map(|_| TcpStream::connect(edge.admin).unwrap())
        .collect();
    thread::sleep(Duration::from_millis(300));
    let pid = rustix::process::Pid::from_child(&edge.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let told = Instant::now();
    while edge.child.try_wait().unwrap().is_none() {
        assert!(told.elapsed() < Duration::from_secs(3), "it does not end");
        thread::sleep(Duration::from_millis(20));
    }
    drop(held);
}

#[test]
fn a_body_that_is_coded_in_a_way_nobody_asked_for_is_not_passed_off_as_plain() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    thread::spawn(move || {
        for tcp in listener.incoming() {
            let mut tcp = tcp.unwrap();
            let count = tcp.read(&mut [0; 4096]).unwrap();
            assert!(count > 0);
            tcp.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
                .unwrap();
        }
    });
    let edge = Edge::start(upstream, "");
    assert_eq!(edge.status("/"), "502");
}

#[test]
fn the_redirect_leads_to_a_path_of_the_host_and_nowhere_else() {
    let (upstream, _seen) = recorder();
    let plain = free();
    let more = format!(
        r#"
            [[ingress]]
            listen = "{}"
            redirect_http = "{plain}"
            tls.certificates = [{{ cert = "cert.pem", key = "key.pem" }}]
            hosts = ["{HOST}"]
            upstream = "http://{upstream}"
        "#,
        free()
    );
    let _edge = Edge::start(upstream, &more);
    for (target, location) in [
        ("OPTIONS *", format!("https://{HOST}/")),
        (
            "GET //evil.example/",
            format!("https://{HOST}//evil.example/"),
        ),
        ("GET /a?b", format!("https://{HOST}/a?b")),
    ] {
        let mut tcp = TcpStream::connect(plain).unwrap();
        tcp.write_all(format!("{target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).unwrap();
        let line = format!("\r\nlocation: {location}\r\n");
        assert!(answer.contains(&line), "{target}: {answer}");
    }
}

//! The doors of the way out, from a client's side, with real sockets on loopback.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may panic, and speaks to sockets itself"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use tollgate::addr::{Destination, Host};
use tollgate::audit::Journal;
use tollgate::config::typed::{
    Action, Config, DestinationPattern, Egress as EgressConfig, EgressClient, EgressListener,
    Forward, Password, PolicyRule, Protocol, Secret,
};
use tollgate::egress::{Egress, Names};
use tollgate::limit::Limits;
use tollgate::sessions::Sessions;
use tollgate::snapshot::{Live, Snapshot};
use tollgate::telemetry::{Metrics, Way};
use tollgate::tls::{Dates, Keyring};

const FIXED: &str = "127.0.0.7";
const SOON: Duration = Duration::from_secs(8);

/// A gate with one client, everything under 127.0.0.0/8 allowed; changed by the tests.
struct Plan {
    rules: Vec<PolicyRule>,
    password: Option<&'static str>,
    max_tunnels: Option<usize>,
    resolvers: Vec<SocketAddr>,
    dial_timeout: Duration,
    idle: Duration,
    fixed: Ipv4Addr,
    from: &'static str,
    forward_to: Destination,
    forward_from: &'static str,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            rules: vec![rule("all", vec![DestinationPattern::Any])],
            password: None,
            max_tunnels: None,
            resolvers: vec!["127.0.0.1:9".parse().unwrap()],
            dial_timeout: Duration::from_secs(2),
            idle: Duration::from_secs(60),
            fixed: FIXED.parse().unwrap(),
            from: "127.0.0.0/8",
            forward_to: to("127.0.0.1:9"),
            forward_from: "127.0.0.0/8",
        }
    }
}

fn rule(name: &str, destinations: Vec<DestinationPattern>) -> PolicyRule {
    PolicyRule {
        name: name.into(),
        clients: vec![],
        destinations,
        ports: vec![],
        addresses: vec!["127.0.0.0/8".parse().unwrap()],
        action: Action::Allow,
    }
}

fn exact(host: &str) -> DestinationPattern {
    DestinationPattern::Exact(Host::parse(host).unwrap())
}

fn to(text: &str) -> Destination {
    Destination::parse(text).unwrap()
}

struct House {
    gate: SocketAddr,
    forward: SocketAddr,
    live: Live,
    sessions: Sessions,
    metrics: Arc<Metrics>,
    journal: Journal,
    state_dir: tempfile::TempDir,
}

/// The keyring has nothing on it: nobody comes in here.
fn compile(config: Config, generation: u64, journal: &Journal) -> Snapshot {
    let keyring = Keyring::new(Duration::from_secs(60), Arc::default(), |_| ()).unwrap();
    let (key, dates) = (journal.tag_key(), Dates::Heed);
    Snapshot::compile(config, generation, key, &keyring, dates)
        .unwrap()
        .0
}

impl House {
    async fn new(plan: Plan) -> Self {
        let (gate, forward) = (listen("127.0.0.1").await, listen("127.0.0.1").await);
        let at = [gate.local_addr().unwrap(), forward.local_addr().unwrap()];
        let metrics = Arc::new(Metrics::new());
        let state_dir = tempfile::tempdir().unwrap();
        let config = config(at, &plan);
        let journal =
            Journal::open(state_dir.path(), &config.audit, 1, Arc::clone(&metrics)).unwrap();
        let live = Live::new(compile(config, 1, &journal));
        let sessions = Sessions::new(100, 100, 1, Arc::clone(&metrics));
        let egress = Arc::new(Egress::new(
            live.clone(),
            journal.clone(),
            Arc::new(Limits::new(Arc::clone(&metrics))),
            Arc::clone(&metrics),
            Arc::new(Names::new(Arc::default())),
        ));
        for listener in [gate, forward] {
            let (egress, sessions) = (Arc::clone(&egress), sessions.clone());
            tokio::spawn(async move {
                let at = listener.local_addr().unwrap();
                while let Ok((tcp, _)) = listener.accept().await {
                    let session = sessions.enter(Way::Egress).unwrap();
                    tokio::spawn(Arc::clone(&egress).connection(tcp, session, at));
                }
            });
        }
        Self {
            gate: at[0],
            forward: at[1],
            live,
            sessions,
            metrics,
            journal,
            state_dir,
        }
    }

    fn reload(&self, generation: u64, plan: &Plan) {
        let config = config([self.gate, self.forward], plan);
        let snapshot = compile(config, generation, &self.journal);
        self.live.replace(snapshot);
        self.sessions.reloaded(generation);
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.gate).await.unwrap()
    }

    /// Sends a CONNECT and gives the stream with the answer's head and what followed it.
    async fn tunnel(&self, target: &str) -> (TcpStream, String) {
        let mut tcp = self.connect().await;
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let head = head(&mut tcp).await;
        (tcp, head)
    }

    /// Sends `request` and reads until the end.
    async fn ask(&self, request: &str) -> String {
        let mut tcp = self.connect().await;
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(SOON, tcp.read_to_end(&mut answer))
            .await
            .expect("a complete answer")
            .expect("no reset");
        String::from_utf8(answer).unwrap()
    }

    /// At least `count` records: those that name `target`, and those of the entry that named it first.
    async fn records(&self, target: &str, count: usize) -> Vec<serde_json::Value> {
        for _ in 0..100 {
            let mut lines = Vec::new();
            for file in std::fs::read_dir(self.state_dir.path().join("audit")).unwrap() {
                let bytes = std::fs::read(file.unwrap().path()).unwrap_or_default();
                let text = String::from_utf8_lossy(&bytes).into_owned();
                lines.extend(
                    text.lines()
                        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok()),
                );
            }
            let names = |line: &serde_json::Value| line.to_string().contains(target);
            let id = lines.iter().find(|l| names(l)).map(|l| l["id"].clone());
            let same = |line: &serde_json::Value| {
                names(line) || (line["id"].is_string() && Some(&line["id"]) == id.as_ref())
            };
            let found: Vec<_> = lines.into_iter().filter(same).collect();
            if found.len() >= count {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no {count} records about {target}");
    }

    fn counted(&self, code: &str) -> bool {
        let text = self.metrics.render();
        text.lines()
            .any(|l| l.contains(&format!("way=\"egress\",code=\"{code}\"")) && !l.ends_with(" 0"))
    }
}

/// A configuration read from a text, with the egress part put in its place.
fn config([gate, forward]: [SocketAddr; 2], plan: &Plan) -> Config {
    let text = "[egress]\nfixed = [\"127.0.0.7\"]\n".to_owned();
    let (mut config, _) = tollgate::config::parse("test.toml".as_ref(), text).unwrap();
    config.admin.listen = "127.0.0.1:9911".parse().unwrap();
    config.audit.wait_budget = Duration::from_secs(60); // some tests pause the clock
    config.egress = Some(EgressConfig {
        fixed_v4: Some(plan.fixed),
        fixed_v6: None,
        advertised_v4: None,
        advertised_v6: None,
        ports: None,
        resolvers: plan.resolvers.clone(),
        dial_timeout: plan.dial_timeout,
        idle: plan.idle,
        listeners: vec![EgressListener {
            listen: gate,
            http: true,
            socks4: true,
            socks5: true,
            limits: vec![],
            clients: vec![EgressClient {
                name: "app".into(),
                from: vec![plan.from.parse().unwrap()],
                password: plan
                    .password
                    .map(|p| Password::Plain(Secret(p.as_bytes().into()))),
                max_tunnels: plan.max_tunnels,
            }],
        }],
        transparent: None,
        forwards: vec![Forward {
            name: "db".into(),
            listen: forward,
            to: plan.forward_to.clone(),
            protocol: Protocol::None,
            max_tunnels: plan.max_tunnels,
            limits: vec![],
            from: vec![plan.forward_from.parse().unwrap()],
            addresses: vec!["127.0.0.0/8".parse().unwrap()],
        }],
        policy: plan.rules.clone(),
    });
    config
}

async fn listen(address: &str) -> TcpListener {
    TcpListener::bind(format!("{address}:0")).await.unwrap()
}

/// Reads up to the empty line; what follows stays in the socket.
async fn head(tcp: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match timeout(SOON, tcp.read_u8()).await.expect("an answer") {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Echoes every connection; says where the peer was first.
async fn echo() -> SocketAddr {
    let listener = listen("127.0.0.9").await;
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, peer)) = listener.accept().await {
            tokio::spawn(async move {
                tcp.write_all(format!("{}\n", peer.ip()).as_bytes())
                    .await
                    .ok();
                let (mut read, mut write) = tcp.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
                write.shutdown().await.ok();
            });
        }
    });
    at
}

/// An HTTP server that answers with the head it saw and closes.
async fn mirror() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = listen("127.0.0.9").await;
    let (at, seen) = (
        listener.local_addr().unwrap(),
        Arc::new(AtomicUsize::new(0)),
    );
    let count = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let head = head(&mut tcp).await;
                let length = head.lines().find_map(|l| {
                    l.to_lowercase()
                        .strip_prefix("content-length: ")
                        .map(|n| n.parse().unwrap())
                });
                let mut body = vec![0; length.unwrap_or(0)];
                tcp.read_exact(&mut body).await.unwrap();
                let text = format!("{head}{}", String::from_utf8(body).unwrap());
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-Stays: 1\r\nProxy-Status: forged\r\n\r\n{text}",
                    text.len()
                );
                tcp.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
    (at, seen)
}

/// Segments with data that have arrived at `tcp` (`tcpi_data_segs_in`).
fn segments(tcp: &TcpStream) -> u32 {
    use nix::sys::socket::GetSockOpt as _;
    use nix::{getsockopt_impl, libc, sockopt_impl};
    sockopt_impl!(
        TcpInfo,
        GetOnly,
        libc::IPPROTO_TCP,
        libc::TCP_INFO,
        [u8; 160]
    );
    let info = TcpInfo.get(tcp).unwrap();
    u32::from_ne_bytes(info[152..156].try_into().unwrap())
}

#[tokio::test]
async fn connect_leaves_from_the_fixed_address_and_answers_in_one_segment() {
    let house = House::new(Plan::default()).await;
    let silent = listen("127.0.0.9").await;
    let target = silent.local_addr().unwrap();
    let mut tcp = house.connect().await;
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\nearly");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let (mut far, peer) = silent.accept().await.unwrap();
    assert_eq!(peer.ip().to_string(), FIXED);
    let mut answer = [0; 1024];
    let read = tcp.read(&mut answer).await.unwrap();
    let answer = std::str::from_utf8(&answer[..read]).unwrap().to_lowercase();
    assert!(
        answer.starts_with("http/1.1 200 ") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
    assert!(
        !answer.contains("content-length") && !answer.contains("transfer-encoding"),
        "{answer}"
    );
    assert_eq!(segments(&tcp), 1);
    tcp.write_all(b" late").await.unwrap();
    let mut got = [0; 10];
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"early late");
    // Half-close each way.
    tcp.shutdown().await.unwrap();
    assert_eq!(far.read(&mut got).await.unwrap(), 0);
    far.write_all(b"answer").await.unwrap();
    drop(far);
    let mut rest = String::new();
    tcp.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "answer");
}

/// ToolJet's agent writes no brackets, gRPC's core asks with HTTP/1.0 and no Host.
#[tokio::test]
async fn unusual_first_lines_are_judged_not_called_malformed() {
    let echo = echo().await;
    let house = House::new(Plan::default()).await;
    for target in ["::1:443", "2001:db8::1:443"] {
        let (_, head) = house.tunnel(target).await;
        assert!(
            head.starts_with("HTTP/1.1 403 egress: "),
            "{target}: {head}"
        );
    }
    for line in [
        format!("CONNECT {echo} HTTP/1.0\r\n\r\nhello"),
        format!("CONNECT ::ffff:{echo} HTTP/1.1\r\nHost: x\r\n\r\nhello"),
    ] {
        let mut tcp = house.connect().await;
        // In two pieces, the first of which ends within the line.
        let (first, second) = line.as_bytes().split_at(12);
        tcp.write_all(first).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        tcp.write_all(second).await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut answer = String::new();
        timeout(SOON, tcp.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert!(answer.contains(" 200 "), "{line}: {answer}");
        assert!(
            answer.ends_with(&format!("{FIXED}\nhello")),
            "{line}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_refused_connect_is_one_whole_answer_and_nothing_behind_it_counts() {
    let (mirror, seen) = mirror().await;
    let house = House::new(Plan {
        rules: vec![rule("m", vec![exact("127.0.0.9")])],
        ..Plan::default()
    })
    .await;
    let mut tcp = house.connect().await;
    let smuggled = format!("GET http://{mirror}/ HTTP/1.1\r\nHost: x\r\n\r\n").repeat(2000);
    let request = format!("CONNECT db.example.com:5432 HTTP/1.1\r\nHost: x\r\n\r\n{smuggled}");
    tcp.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let in_segments = segments(&tcp);
    let mut answer = Vec::new();
    timeout(SOON, tcp.read_to_end(&mut answer))
        .await
        .expect("an end")
        .expect("an end, not a reset");
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 egress: "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(
        answer.contains("content-type: application/problem+json\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains(
            "proxy-status: tollgate; error=http_request_denied; details=\"destination_denied\"\r\n"
        ),
        "{answer}"
    );
    assert!(
        answer.contains("\"code\":\"destination_denied\"") && answer.ends_with('}'),
        "{answer}"
    );
    assert!(!answer.contains("proxy-authenticate"));
    assert_eq!(in_segments, 1);
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    assert!(house.counted("destination_denied"));
}

#[tokio::test]
async fn every_failure_is_answered_soon_and_whole() {
    let house = House::new(Plan {
        dial_timeout: Duration::from_millis(400),
        ..Plan::default()
    })
    .await;
    // A listener whose queue is full does not answer.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&"127.0.0.9:0".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    socket.listen(0).unwrap();
    let full = socket.local_addr().unwrap().as_socket().unwrap();
    let mut held = Vec::new();
    while let Ok(Ok(tcp)) = timeout(Duration::from_millis(200), TcpStream::connect(full)).await {
        held.push(tcp);
    }
    for (target, status, code) in [
        ("127.0.0.9:9".to_owned(), 502, "dial_refused"),
        (full.to_string(), 504, "dial_timeout"),
        ("[::1]:443".to_owned(), 403, "address_denied"),
        ("8.8.8.8:25".to_owned(), 403, "destination_denied"),
        ("10.0.0.1:443".to_owned(), 403, "address_denied"),
        ("169.254.169.254:80".to_owned(), 403, "address_denied"),
        ("2130706433:80".to_owned(), 400, "name_invalid"),
        ("user@127.0.0.9:80".to_owned(), 400, "name_invalid"),
        ("[::ffff:10.0.0.1]:443".to_owned(), 403, "address_denied"),
        ("localhost:443".to_owned(), 403, "destination_denied"),
        (house.gate.to_string(), 403, "address_denied"),
        ("127.0.0.1:9911".to_owned(), 403, "address_denied"),
    ] {
        let answer = house
            .ask(&format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n"))
            .await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{target}: {answer}"
        );
        assert!(
            answer.contains(&format!("\"code\":\"{code}\"")),
            "{target}: {answer}"
        );
    }
    // What is no request at all.
    for request in [
        "CONNECT nowhere HTTP/1.1\r\n\r\n",
        "\x16\x03\x01\x02\0\x01\0\r\n\r\n",
        "CONNECT a.example:0 HTTP/1.1\r\n\r\n",
    ] {
        let begun = Instant::now();
        let answer = house.ask(request).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("\r\n\r\n"),
            "{request:?}: {answer}"
        );
        assert!(begun.elapsed() < SOON);
    }
}

#[tokio::test]
async fn nothing_is_dialled_without_the_fixed_address() {
    let echo = echo().await;
    let house = House::new(Plan {
        fixed: "192.0.2.1".parse().unwrap(),
        ..Plan::default()
    })
    .await;
    let (_, head) = house.tunnel(&echo.to_string()).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(house.counted("fixed_address_missing"));
}

#[tokio::test]
async fn absolute_form_is_passed_on_cleaned_and_over_a_connection_of_its_own() {
    let (mirror, seen) = mirror().await;
    let house = House::new(Plan::default()).await;
    let mut tcp = house.connect().await;
    for round in 1..=2 {
        let request = format!(
            "POST http://{mirror}/path?q=1 HTTP/1.1\r\nHost: evil.example\r\nProxy-Connection: keep-alive\r\nConnection: x-mine\r\nX-Mine: 1\r\nX-Stays: 1\r\nContent-Length: 4\r\n\r\nbody"
        );
        tcp.write_all(request.as_bytes()).await.unwrap();
        let head = head(&mut tcp).await.to_lowercase();
        assert!(head.starts_with("http/1.1 200 ok"), "{head}");
        assert!(
            head.contains("x-stays: 1") && head.contains("via: 1.1 tollgate-"),
            "{head}"
        );
        assert!(
            !head.contains("x-hop") && !head.contains("forged"),
            "{head}"
        );
        let length = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "))
            .unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        tcp.read_exact(&mut body).await.unwrap();
        let saw = String::from_utf8(body).unwrap();
        let lower = saw.to_lowercase();
        assert!(
            saw.starts_with("POST /path?q=1 HTTP/1.1\r\n") && saw.ends_with("\r\n\r\nbody"),
            "{saw}"
        );
        assert!(
            lower.contains(&format!("host: {mirror}\r\n")) && lower.contains("x-stays: 1"),
            "{saw}"
        );
        assert!(
            !lower.contains("x-mine")
                && !lower.contains("proxy-connection")
                && !lower.contains("evil"),
            "{saw}"
        );
        assert_eq!(seen.load(Ordering::SeqCst), round);
    }
}

#[tokio::test]
async fn what_is_no_request_for_a_proxy_is_told_what_to_do() {
    let house = House::new(Plan::default()).await;
    for (request, status, code) in [
        (
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            400,
            "not_for_a_proxy",
        ),
        (
            "GET https://a.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
            400,
            "https_needs_connect",
        ),
        (
            "GET ftp://a.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
            501,
            "unsupported",
        ),
        (
            "GET http://127.0.0.9:9/ HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            501,
            "unsupported",
        ),
        (
            "GET http://127.0.0.9:9/ HTTP/1.1\r\nHost: x\r\n\r\n",
            502,
            "dial_refused",
        ),
    ] {
        let answer = house.ask(request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {answer}"
        );
        assert!(
            answer.contains(&format!("\"code\":\"{code}\"")),
            "{request}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_destination_that_speaks_no_http_is_502() {
    let echo = echo().await; // says an address first
    let house = House::new(Plan::default()).await;
    let answer = house
        .ask(&format!("GET http://{echo}/ HTTP/1.1\r\nHost: x\r\n\r\n"))
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 502 ") && answer.contains("destination_broken"),
        "{answer}"
    );
}

#[tokio::test]
async fn credentials_are_asked_for_and_only_then_407() {
    let echo = echo().await;
    let house = House::new(Plan {
        password: Some("s3cret"),
        ..Plan::default()
    })
    .await;
    let with = |auth: &str| format!("CONNECT {echo} HTTP/1.1\r\nHost: x\r\n{auth}\r\n");
    for auth in [
        "",
        "Proxy-Authorization: Basic YXBwOndyb25n\r\n",
        "Proxy-Authorization: Basic !!\r\n",
        "Proxy-Authorization: Bearer YXBwOnMzY3JldA==\r\n",
    ] {
        let answer = house.ask(&with(auth)).await;
        assert!(answer.starts_with("HTTP/1.1 407 "), "{answer}");
        assert!(
            answer.contains("proxy-authenticate: Basic realm="),
            "{answer}"
        );
    }
    let mut tcp = house.connect().await;
    tcp.write_all(with("Proxy-Authorization: basic YXBwOnMzY3JldA==\r\n").as_bytes())
        .await
        .unwrap();
    assert!(head(&mut tcp).await.starts_with("HTTP/1.1 200 "));
}

async fn socks(house: &House, hello: &[u8], chosen: &[u8]) -> TcpStream {
    let mut tcp = house.connect().await;
    tcp.write_all(hello).await.unwrap();
    let mut answer = vec![0; chosen.len()];
    timeout(SOON, tcp.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, chosen);
    tcp
}

fn socks_request(command: u8, to: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(to) = to else {
        panic!("IPv4")
    };
    [
        &[5, command, 0, 1],
        &to.ip().octets()[..],
        &to.port().to_be_bytes(),
    ]
    .concat()
}

#[tokio::test]
async fn socks5_relays_and_delivers_early_bytes() {
    let echo = echo().await;
    let house = House::new(Plan::default()).await;
    let everything = [&[5, 2, 0, 2], &socks_request(1, echo)[..], b"early"].concat();
    let mut tcp = socks(&house, &everything, &[5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await;
    tcp.shutdown().await.unwrap();
    let mut rest = String::new();
    tcp.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, format!("{FIXED}\nearly"));
}

#[tokio::test]
async fn socks4_and_4a_relay_and_have_no_way_around_a_password() {
    let echo = echo().await;
    let house = House::new(Plan::default()).await;
    let port = echo.port().to_be_bytes();
    let SocketAddr::V4(v4) = echo else {
        panic!("IPv4")
    };
    let by_address = [&[4, 1][..], &port, &v4.ip().octets(), b"me\0early"].concat();
    let name = format!("\0{}\0early", v4.ip());
    let by_name = [&[4, 1][..], &port, &[0, 0, 0, 1], name.as_bytes()].concat();
    for request in [&by_address, &by_name] {
        let mut tcp = socks(&house, request, &[0, 0x5a, 0, 0, 0, 0, 0, 0]).await;
        tcp.shutdown().await.unwrap();
        let mut rest = String::new();
        tcp.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, format!("{FIXED}\nearly"));
    }
    let house = House::new(Plan {
        password: Some("s3cret"),
        ..Plan::default()
    })
    .await;
    socks(&house, &by_address, &[0, 0x5b, 0, 0, 0, 0, 0, 0]).await;
    assert!(house.counted("credentials_required"));
}

#[tokio::test]
async fn socks_says_no_in_its_own_words() {
    let house = House::new(Plan::default()).await;
    let refused: SocketAddr = "127.0.0.9:9".parse().unwrap();
    for (request, code) in [
        (socks_request(1, refused), 5),
        (socks_request(3, refused), 7),
        (socks_request(2, refused), 7),
        (socks_request(1, "10.0.0.1:443".parse().unwrap()), 2),
        (socks_request(1, "8.8.8.8:25".parse().unwrap()), 2),
        (
            [&b"\x05\x01\x00\x03\x0a2130706433"[..], &[0, 80]].concat(),
            8,
        ),
        (b"\x05\x01\x00\x09".to_vec(), 8),
    ] {
        let mut tcp = socks(&house, &[5, 1, 0], &[5, 0]).await;
        tcp.write_all(&request).await.unwrap();
        let mut answer = Vec::new();
        timeout(SOON, tcp.read_to_end(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(answer, [5, code, 0, 1, 0, 0, 0, 0, 0, 0], "{request:?}");
    }
    socks(
        &house,
        b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
        &[0, 0x5b, 0, 0, 0, 0, 0, 0],
    )
    .await;
    socks(&house, &[5, 1, 1], &[5, 0xff]).await;
}

#[tokio::test]
async fn socks_passwords_are_checked() {
    let echo = echo().await;
    let house = House::new(Plan {
        password: Some("s3cret"),
        ..Plan::default()
    })
    .await;
    socks(&house, &[5, 1, 0], &[5, 0xff]).await;
    let mut tcp = socks(
        &house,
        b"\x05\x02\x00\x02\x01\x03app\x05wrong",
        &[5, 2, 1, 1],
    )
    .await;
    assert_eq!(tcp.read(&mut [0]).await.unwrap(), 0);
    let mut tcp = socks(&house, b"\x05\x01\x02\x01\x03app\x06s3cret", &[5, 2, 1, 0]).await;
    tcp.write_all(&socks_request(1, echo)).await.unwrap();
    let mut answer = [0; 10];
    tcp.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[1], 0);
}

#[tokio::test]
async fn a_named_forward_stands_for_one_destination() {
    let echo = echo().await;
    let house = House::new(Plan {
        forward_to: to(&echo.to_string()),
        ..Plan::default()
    })
    .await;
    let mut tcp = TcpStream::connect(house.forward).await.unwrap();
    tcp.write_all(b"hello").await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut rest = String::new();
    tcp.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, format!("{FIXED}\nhello"));

    let strange = House::new(Plan {
        forward_to: to(&echo.to_string()),
        forward_from: "10.0.0.0/8",
        ..Plan::default()
    })
    .await;
    let mut tcp = TcpStream::connect(strange.forward).await.unwrap();
    let end = timeout(SOON, tcp.read(&mut [0])).await.unwrap();
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    assert!(strange.counted("client_denied"));
}

#[tokio::test]
async fn strangers_are_closed_without_a_word() {
    let house = House::new(Plan {
        from: "10.0.0.0/8",
        ..Plan::default()
    })
    .await;
    let mut tcp = house.connect().await;
    let end = timeout(SOON, tcp.read(&mut [0])).await.unwrap();
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    assert!(house.counted("client_denied"));
}

#[tokio::test]
async fn a_reload_ends_only_what_it_no_longer_allows() {
    let (first, second) = (echo().await, listen("127.0.0.11").await);
    let kept = second.local_addr().unwrap();
    let house = House::new(Plan::default()).await;
    let (mut ending, _) = house.tunnel(&first.to_string()).await;
    let (mut staying, _) = house.tunnel(&kept.to_string()).await;
    let (mut far, _) = second.accept().await.unwrap();
    let mut line = [0; 10];
    ending.read_exact(&mut line).await.unwrap();
    house.reload(2, &Plan::default());
    ending.write_all(b"still").await.unwrap();
    ending.read_exact(&mut line[..5]).await.unwrap();
    house.reload(
        3,
        &Plan {
            rules: vec![rule("kept", vec![exact("127.0.0.11")])],
            ..Plan::default()
        },
    );
    let end = timeout(SOON, ending.read(&mut line)).await.expect("ended");
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    staying.write_all(b"on").await.unwrap();
    far.read_exact(&mut line[..2]).await.unwrap();
    assert!(house.counted("policy_changed"));
    // Another fixed address: what left from the old one may not stay either.
    house.reload(
        4,
        &Plan {
            fixed: "127.0.0.8".parse().unwrap(),
            ..Plan::default()
        },
    );
    let end = timeout(SOON, staying.read(&mut line)).await.expect("ended");
    assert!(!matches!(end, Ok(1..)), "{end:?}");
}

#[tokio::test]
async fn a_client_has_only_so_many_tunnels_at_once() {
    let echo = echo().await;
    let house = House::new(Plan {
        max_tunnels: Some(2),
        ..Plan::default()
    })
    .await;
    let (first, _) = house.tunnel(&echo.to_string()).await;
    let (_second, _) = house.tunnel(&echo.to_string()).await;
    let (_, refused) = house.tunnel(&echo.to_string()).await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert!(house.counted("client_session_limit"));
    drop(first);
    let begun = Instant::now();
    while !house
        .tunnel(&echo.to_string())
        .await
        .1
        .starts_with("HTTP/1.1 200")
    {
        assert!(begun.elapsed() < SOON, "a closed tunnel still counts");
    }
}

#[tokio::test]
async fn drain_lets_tunnels_go_on_until_the_deadline() {
    let echo = echo().await;
    let house = House::new(Plan::default()).await;
    let (mut tcp, _) = house.tunnel(&echo.to_string()).await;
    let sessions = house.sessions.clone();
    let drain = tokio::spawn(async move { sessions.drain(Duration::from_millis(400)).await });
    let mut line = [0; 10];
    tcp.read_exact(&mut line).await.unwrap();
    tcp.write_all(b"still").await.unwrap();
    tcp.read_exact(&mut line[..5]).await.unwrap();
    assert_eq!(drain.await.unwrap(), 1);
    assert!(!matches!(tcp.read(&mut line).await, Ok(1..)));
    assert!(house.counted("draining"));
}

#[tokio::test]
async fn an_idle_tunnel_ends() {
    let echo = echo().await;
    let house = House::new(Plan {
        idle: Duration::from_millis(300),
        ..Plan::default()
    })
    .await;
    let (mut tcp, _) = house.tunnel(&echo.to_string()).await;
    let mut line = [0; 10];
    tcp.read_exact(&mut line).await.unwrap();
    let begun = Instant::now();
    let end = timeout(SOON, tcp.read(&mut line)).await.expect("ended");
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert!(house.counted("connection_idle"));
}

/// The clock is paused: it jumps to the next timer whenever nobody has anything to do.
#[tokio::test(start_paused = true)]
async fn a_head_and_a_greeting_that_do_not_come_are_not_waited_for() {
    let house = House::new(Plan::default()).await;
    for begun in [
        "",
        "CONNECT a.example:443 HTTP/1.1\r\nHos",
        "\x05\x01",
        "\x05\x01\0\x05\x01",
    ] {
        let mut tcp = house.connect().await;
        tcp.write_all(begun.as_bytes()).await.unwrap();
        let started = tokio::time::Instant::now();
        let mut rest = Vec::new();
        tcp.read_to_end(&mut rest).await.ok();
        let waited = started.elapsed();
        assert!((9..=13).contains(&waited.as_secs()), "{begun:?} {waited:?}");
    }
}

/// The clock is paused once the answer is there.
#[tokio::test]
async fn a_kept_connection_that_asks_no_more_is_closed() {
    let (mirror, _) = mirror().await;
    let house = House::new(Plan::default()).await;
    let mut tcp = house.connect().await;
    tcp.write_all(format!("GET http://{mirror}/ HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
        .await
        .unwrap();
    assert!(head(&mut tcp).await.starts_with("HTTP/1.1 200 "));
    tokio::time::pause();
    let started = tokio::time::Instant::now();
    tcp.read_to_end(&mut Vec::new()).await.unwrap();
    let waited = started.elapsed();
    assert!((9..=13).contains(&waited.as_secs()), "{waited:?}");
}

/// Answers questions about A (1) and AAAA (28) records; the number of questions is counted.
async fn name_server(
    answer: fn(&str, u16) -> Option<Vec<Vec<u8>>>,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (at, asked) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut packet = [0; 1500];
        while let Ok((_, from)) = socket.recv_from(&mut packet).await {
            count.fetch_add(1, Ordering::SeqCst);
            let (mut name, mut at) = (String::new(), 12);
            while packet[at] != 0 {
                let end = at + 1 + usize::from(packet[at]);
                name.push_str(&String::from_utf8_lossy(&packet[at + 1..end]).to_lowercase());
                name.push('.');
                at = end;
            }
            let (kind, end) = (u16::from_be_bytes([packet[at + 1], packet[at + 2]]), at + 5);
            let found = answer(name.trim_end_matches('.'), kind);
            let code = if found.is_some() { 0 } else { 3 };
            let found = found.unwrap_or_default();
            let mut reply = packet[..end].to_vec();
            reply[2..12].copy_from_slice(&[
                0x81,
                0x80 | code,
                0,
                1,
                0,
                u8::try_from(found.len()).unwrap(),
                0,
                0,
                0,
                0,
            ]);
            for data in found {
                reply.extend([
                    0xc0,
                    12,
                    kind.to_be_bytes()[0],
                    kind.to_be_bytes()[1],
                    0,
                    1,
                    0,
                    0,
                    0,
                    60,
                    0,
                    u8::try_from(data.len()).unwrap(),
                ]);
                reply.extend(data);
            }
            socket.send_to(&reply, from).await.unwrap();
        }
    });
    (at, asked)
}

#[tokio::test]
async fn names_are_resolved_once_judged_and_only_if_allowed() {
    let echo = echo().await;
    let (server, asked) = name_server(|name, kind| match (name, kind) {
        ("good.example", 1) => Some(vec![vec![10, 0, 0, 1], vec![127, 0, 0, 9]]),
        ("bad.example", 1) => Some(vec![vec![10, 0, 0, 1], vec![169, 254, 169, 254]]),
        ("six.example", 28) => Some(vec![vec![
            0x26, 6, 0x47, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
        ]]),
        ("six.example" | "good.example", _) => Some(vec![]),
        _ => None,
    })
    .await;
    let below = DestinationPattern::Below("example".into());
    let house = House::new(Plan {
        rules: vec![rule("e", vec![below])],
        resolvers: vec![server],
        ..Plan::default()
    })
    .await;
    for (name, status, code) in [
        ("bad.example", 403, "address_denied"),
        ("none.example", 502, "name_not_found"),
        ("six.example", 403, "family_without_address"),
    ] {
        let answer = house
            .ask(&format!("CONNECT {name}:443 HTTP/1.1\r\nHost: x\r\n\r\n"))
            .await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{name}: {answer}"
        );
        assert!(
            answer.contains(&format!("\"code\":\"{code}\"")),
            "{name}: {answer}"
        );
        assert!(
            !answer.contains("10.0.0.1") && !answer.contains("169.254"),
            "{name}: {answer}"
        );
    }
    let before = asked.load(Ordering::SeqCst);
    for name in ["other.test", "localhost", "a.internal"] {
        let answer = house
            .ask(&format!("CONNECT {name}:443 HTTP/1.1\r\nHost: x\r\n\r\n"))
            .await;
        assert!(answer.contains("destination_denied"), "{answer}");
    }
    assert_eq!(
        asked.load(Ordering::SeqCst),
        before,
        "a name that is not allowed was resolved"
    );
    for _ in 0..3 {
        let (mut tcp, head) = house
            .tunnel(&format!("GOOD.example.:{}", echo.port()))
            .await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let mut line = [0; 10];
        tcp.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"127.0.0.7\n");
    }
    assert_eq!(
        asked.load(Ordering::SeqCst),
        before + 1,
        "the answer was not kept"
    );
}

#[tokio::test]
async fn a_silent_name_server_is_answered_504_and_changed_by_reload() {
    let mute = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (server, _) = name_server(|_, kind| {
        Some(if kind == 1 {
            vec![vec![127, 0, 0, 9]]
        } else {
            vec![]
        })
    })
    .await;
    let house = House::new(Plan {
        resolvers: vec![mute.local_addr().unwrap()],
        ..Plan::default()
    })
    .await;
    let mut tcp = house.connect().await;
    tcp.write_all(b"CONNECT a.example:9 HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let answer = head(&mut tcp).await;
    assert!(
        answer.starts_with("HTTP/1.1 504 ") && answer.contains("resolve_timeout"),
        "{answer}"
    );
    house.reload(
        2,
        &Plan {
            resolvers: vec![server],
            ..Plan::default()
        },
    );
    let mut tcp = house.connect().await;
    tcp.write_all(b"CONNECT a.example:9 HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let answer = head(&mut tcp).await;
    assert!(answer.contains("dial_refused"), "{answer}");
}

#[tokio::test]
async fn a_client_that_goes_away_during_the_dial_is_not_dialled_for() {
    let house = House::new(Plan {
        dial_timeout: Duration::from_secs(30),
        ..Plan::default()
    })
    .await;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&"127.0.0.9:0".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    socket.listen(0).unwrap();
    let full = socket.local_addr().unwrap().as_socket().unwrap();
    let mut held = Vec::new();
    while let Ok(Ok(tcp)) = timeout(Duration::from_millis(200), TcpStream::connect(full)).await {
        held.push(tcp);
    }
    let mut tcp = house.connect().await;
    tcp.write_all(format!("CONNECT {full} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(house.sessions.len(), 2);
    drop(tcp);
    timeout(SOON, async {
        while !house.sessions.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the ask ended with its client");
}

#[tokio::test]
async fn absolute_form_streams_both_ways() {
    let listener = listen("127.0.0.9").await;
    let at = listener.local_addr().unwrap();
    let house = House::new(Plan::default()).await;
    let mut tcp = house.connect().await;
    let request = format!(
        "POST http://{at}/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"
    );
    tcp.write_all(request.as_bytes()).await.unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    let got = head(&mut far).await.to_lowercase();
    assert!(got.contains("transfer-encoding: chunked"), "{got}");
    let mut chunk = [0; 8];
    far.read_exact(&mut chunk).await.unwrap();
    assert_eq!(&chunk, b"3\r\none\r\n");
    far.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await.unwrap();
    head(&mut tcp).await;
    let mut event = [0; 10];
    tcp.read_exact(&mut event).await.unwrap();
    assert_eq!(&event, b"5\r\nfirst\r\n");
    tcp.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
    let mut rest = [0; 13];
    far.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"3\r\ntwo\r\n0\r\n\r\n");
    // A destination that breaks off in the middle: the client must not take it for an end.
    drop(far);
    let mut tail = Vec::new();
    tcp.read_to_end(&mut tail).await.ok();
    assert!(!tail.ends_with(b"0\r\n\r\n"), "{tail:?}");
}

#[tokio::test]
async fn a_kept_connection_serves_head_and_empty_answers() {
    let listener = listen("127.0.0.9").await;
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let asked = head(&mut tcp).await;
            let answer: &[u8] = match asked.split(' ').next().unwrap() {
                "HEAD" => b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
                "DELETE" => b"HTTP/1.1 204 No Content\r\n\r\n",
                _ => b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
            };
            tcp.write_all(answer).await.unwrap();
        }
    });
    let house = House::new(Plan::default()).await;
    let mut tcp = house.connect().await;
    for (method, status) in [("HEAD", 200), ("DELETE", 204), ("HEAD", 200)] {
        tcp.write_all(format!("{method} http://{at}/ HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let head = head(&mut tcp).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{method}: {head}"
        );
    }
    tcp.write_all(
        format!("GET http://{at}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
    )
    .await
    .unwrap();
    let mut rest = String::new();
    tcp.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("until the end"), "{rest}");
    timeout(SOON, async {
        while !house.sessions.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("nothing stays behind");
}

#[tokio::test]
async fn a_refused_upload_is_answered_and_not_reset() {
    let house = House::new(Plan::default()).await;
    let body = "x".repeat(2_000_000);
    for target in ["http://10.0.0.1/", "https://a.example/", "/"] {
        let length = body.len();
        let answer = house
            .ask(&format!(
                "POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
            ))
            .await;
        assert!(
            answer.starts_with("HTTP/1.1 4") && answer.ends_with('}'),
            "{target}: {answer}"
        );
    }
}

#[tokio::test]
async fn the_records_tell_what_left_and_what_was_refused() {
    let echo = echo().await;
    let house = House::new(Plan::default()).await;
    let (mut tcp, _) = house.tunnel(&echo.to_string()).await;
    tcp.write_all(b"hello").await.unwrap();
    tcp.shutdown().await.unwrap();
    tcp.read_to_end(&mut Vec::new()).await.unwrap();
    let [before, after] = &house.records(&echo.to_string(), 2).await[..] else {
        panic!("two records");
    };
    assert_eq!(before["kind"], "before");
    assert_eq!(before["client"], "app");
    assert_eq!(before["door"], "connect");
    assert_eq!(before["rule"], "all");
    assert_eq!(before["addresses"][0], "127.0.0.9");
    assert_eq!(after["kind"], "after");
    assert_eq!(after["outcome"], "served");
    assert_eq!(
        (&after["bytes_in"], &after["bytes_out"]),
        (&5.into(), &15.into())
    );
    assert_eq!(after["address"], "127.0.0.9");
    assert_eq!(after["remote_port"], echo.port());
    assert_eq!(after["local_address"], FIXED);
    assert!(after["local_port"].as_u64().unwrap() > 0);

    house
        .ask("CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    let denied = &house.records("10.0.0.1:443", 1).await[0];
    assert_eq!(
        (&denied["kind"], &denied["reason"]),
        (&"denied".into(), &"address_denied".into())
    );

    house
        .ask("CONNECT 127.0.0.9:9 HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    let failed = &house.records("\"127.0.0.9:9\"", 2).await[1];
    assert_eq!(
        (&failed["outcome"], &failed["reason"]),
        (&"failed".into(), &"dial_refused".into())
    );
    assert_eq!(failed["status"], 502);
}

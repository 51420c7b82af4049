//! Promise 5: secrets do not show: not in records, diagnostics or metrics, however talkative they are set.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use support::body::Payload;
use support::client::{Client, Version, read_for, request};
use support::dns::Dns;
use support::gate::Place;
use support::log::Log;
use support::upstream::{Upstream, connect};
use tokio::io::AsyncWriteExt as _;

/// Stands in everything that must not be seen again.
const CANARY: &str = "c4n4ry";
/// What is looked for: the canary without the letter that one place writes as `%63`.
const NEEDLE: &str = "4n4ry";

/// Whether it shows, in clear or within Basic credentials.
fn shows(text: &str) -> Option<usize> {
    let credentials = base64(&format!("app:{CANARY}"));
    text.to_lowercase()
        .find(NEEDLE)
        .or_else(|| text.find(&credentials))
}

/// Every place in which it shows.
fn leaks(place: &Place, texts: Vec<(String, String)>) -> Vec<String> {
    let mut texts = texts;
    let mut folders = vec![place.state()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
                texts.push((path.display().to_string(), text));
            }
        }
    }
    texts
        .iter()
        .filter_map(|(place, text)| {
            let from = shows(text)?.saturating_sub(200);
            let around: String = text.chars().skip(from).take(400).collect();
            Some(format!("{place}: …{around}…"))
        })
        .collect()
}

/// Base64 without padding.
fn base64(text: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    text.as_bytes()
        .chunks(3)
        .flat_map(|chunk| {
            let bits = chunk
                .iter()
                .fold(0_usize, |bits, b| bits << 8 | usize::from(*b))
                << (8 * (3 - chunk.len()));
            (0..=chunk.len()).map(move |at| char::from(DIGITS[bits >> (18 - 6 * at) & 63]))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_secret_is_written_anywhere() {
    let place = Place::new();
    let upstream = Upstream::start();
    let destination = Upstream::everywhere();
    let dns = Dns::table(&[("api.customer.test", &["127.0.0.9"])]);
    fs::write(place.path("password"), format!("{CANARY}\n")).unwrap();
    let policy = "[[egress.policy]]\ndestinations = [\"api.customer.test\"]\naddresses = [\"127.0.0.9/32\"]\naction = \"allow\"\n";
    let egress = place.egress(dns.address, policy).replace(
        "from = [\"127.0.0.0/8\"]",
        &format!(
            "from = [\"127.0.0.0/8\"], password_file = {:?}",
            place.path("password")
        ),
    );
    let rest = "[log]\nlevel = \"trace\"\n\n[audit]\nquery_values = [\"page\"]\nsecret_paths = [\"/invitations/*\"]\n\n";
    let config = place.head() + rest + &place.ingress(upstream.address, "") + &egress;
    let mut gate = place.start(&config);

    inbound(&place).await;
    outbound(&place, destination.port()).await;
    let metrics = gate.metrics();
    assert!(gate.stop(Duration::from_secs(20)).success());

    // The canary did pass through, both ways.
    assert!(format!("{:?}", upstream.heads()).contains(CANARY));
    assert!(format!("{:?}", destination.heads()).contains(CANARY));
    let state = place.state();
    let found = place.tollgate(&["audit", "search", "--state-dir", state.to_str().unwrap()]);
    let extra = [
        ("standard error".to_owned(), gate.stderr()),
        ("metrics".to_owned(), metrics),
        ("audit search".to_owned(), found.stdout + &found.stderr),
    ];
    assert_eq!(leaks(&place, extra.into()), Vec::<String>::new());
    let log = Log::read(&state);
    let page = log
        .kind("before")
        .filter(|r| r["query"].to_string().contains("page=7"))
        .count();
    assert_eq!(page, 2, "a value that is on the list is not written");
    let invited: Vec<_> = log
        .kind("before")
        .filter(|r| r["path"].to_string().contains("/invitations/"))
        .collect();
    assert_eq!(invited.len(), 2, "{:?}", log.records);
}

async fn inbound(place: &Place) {
    let client = Client::of(place);
    for version in [Version::H1, Version::H2] {
        let secret = |path: &str| {
            request(version, "POST", path)
                .header("cookie", format!("tj_auth_token={CANARY}; other={CANARY}"))
                .header("authorization", format!("Bearer {CANARY}"))
                .header("tj_auth_token", CANARY)
                .header("tj-admin-api-key", CANARY)
                .header("x-request-id", "claimed-by-client")
                .header("referer", format!("https://elsewhere.test/?token={CANARY}"))
        };
        let body = || Payload::text(format!("{{\"password\":\"{CANARY}\"}}"));
        for path in ["/headers?page=7", "/sum"] {
            let query = if path.contains('?') { '&' } else { '?' };
            let path = format!("{path}{query}token={CANARY}&a=%63{NEEDLE}");
            assert_eq!(
                client
                    .send(secret(&path).body(body()).unwrap())
                    .await
                    .status,
                200
            );
        }
        let invitation = secret(&format!("/invitations/{CANARY}"))
            .body(body())
            .unwrap();
        assert_eq!(client.send(invitation).await.status, 200);
        let unknown = secret("/x")
            .header("host", "unknown.test")
            .body(body())
            .unwrap();
        client.open(version).await.unwrap().send(unknown).await.ok(); // refused, in whatever way
    }
    let broken = format!(
        "GET / HTTP/1.1\r\nHost: tools.test\r\nAuthorization: {CANARY}\r\nX : {CANARY}\r\n\r\n"
    );
    client.raw(broken.as_bytes(), Duration::from_secs(3)).await;
}

async fn outbound(place: &Place, port: u16) {
    let credentials = base64(&format!("app:{CANARY}"));
    let wrong = base64(&format!("app:{CANARY}!"));
    let padded = |text: &str| format!("{text}{}", "=".repeat((4 - text.len() % 4) % 4));
    let (credentials, wrong) = (padded(&credentials), padded(&wrong));
    let target = format!("api.customer.test:{port}");
    let absolute = |basic: &str| {
        format!(
            "POST http://{target}/headers?token={CANARY} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic {basic}\r\n\
             Authorization: Bearer {CANARY}\r\nCookie: {CANARY}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{CANARY}",
            CANARY.len()
        )
    };
    let tunnel = |basic: &str| {
        format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic {basic}\r\n\r\n\
             GET /headers?token={CANARY} HTTP/1.1\r\nHost: x\r\nCookie: {CANARY}\r\nConnection: close\r\n\r\n"
        )
    };
    for (bytes, status) in [
        (absolute(&credentials), "200"),
        (tunnel(&credentials), "200"),
        (absolute(&wrong), "407"),
        (tunnel(&wrong), "407"),
        (
            absolute(&credentials).replace("Cookie: ", "Cookie : "),
            "400",
        ),
    ] {
        let said = say(place, bytes.as_bytes()).await;
        let text = String::from_utf8_lossy(&said);
        assert_eq!(text.split(' ').nth(1), Some(status), "{text}");
    }
    for (password, accepted) in [(CANARY.to_owned(), 0), (format!("{CANARY}!"), 1)] {
        let mut bytes = vec![5, 1, 2, 1, 3];
        bytes.extend(b"app");
        bytes.push(u8::try_from(password.len()).unwrap());
        bytes.extend(password.as_bytes());
        let said = say(place, &bytes).await;
        assert_eq!(said[..2], [5, 2], "{said:?}");
        assert_eq!(said[3] != 0, accepted != 0, "{said:?}");
    }
}

async fn say(place: &Place, bytes: &[u8]) -> Vec<u8> {
    let proxy = ([127, 0, 0, 1], place.proxy).into();
    let mut stream = connect(Ipv4Addr::LOCALHOST, proxy).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    read_for(&mut stream, Duration::from_secs(2)).await
}

/// `tollgate egress hash-password`, its output as the password file, and the password as a client sends it.
#[test]
fn a_hashed_password_lets_its_owner_in_and_nobody_who_reads_the_file() {
    use std::io::{Read as _, Write as _};
    use std::process::{Command, Stdio};

    let place = Place::new();
    let mut hashing = Command::new(support::gate::binary())
        .args(["egress", "hash-password"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    hashing
        .stdin
        .take()
        .unwrap()
        .write_all(b"c4n4ry\n")
        .unwrap();
    let hash = String::from_utf8(hashing.wait_with_output().unwrap().stdout).unwrap();
    assert!(
        hash.starts_with("pbkdf2-sha256:600000:") && !hash.contains(CANARY),
        "{hash}"
    );
    support::gate::write(&place.path("hash"), &hash);
    let dns = Dns::table(&[]);
    let egress = place.egress(dns.address, "").replace(
        "from = [\"127.0.0.0/8\"]",
        &format!(
            "from = [\"127.0.0.0/8\"], password_file = {:?}",
            place.path("hash")
        ),
    );
    let _gate = place.start(&(place.head() + &egress));
    let ask = |password: &str| {
        let mut tcp = std::net::TcpStream::connect(("127.0.0.1", place.proxy)).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut credentials = base64(&format!("app:{password}"));
        while !credentials.len().is_multiple_of(4) {
            credentials.push('=');
        }
        let head = format!(
            "CONNECT 10.0.0.1:1 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic {credentials}\r\n\r\n"
        );
        tcp.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).unwrap();
        answer
    };
    for _ in 0..2 {
        let answer = ask(CANARY); // known, and its destination judged
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    }
    assert!(ask(hash.trim()).starts_with("HTTP/1.1 407 "));
    let statuses: Vec<String> = (0..12)
        .map(|_| ask("guess").chars().skip(9).take(3).collect())
        .collect();
    assert_eq!(
        statuses.iter().filter(|s| *s == "407").count(),
        9,
        "{statuses:?}"
    );
    assert_eq!(statuses.last().unwrap(), "429");
}

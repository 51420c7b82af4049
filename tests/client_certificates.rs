//! Client certificates: who is believed, how long, what is written down and what the internal server is told.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, SupportedProtocolVersion};
use serde_json::Value;
use support::body::Payload;
use support::client::{Client, Version, request};
use support::eventually;
use support::gate::{HOST, Place};
use support::log::Log;
use support::pki::{Authority, DAY, Partner, replace};
use support::upstream::Upstream;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// How long a changed file may take to be in force: a second, and what a busy machine adds.
const CHANGE_LIMIT: Duration = Duration::from_secs(20);
const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A listener that asks for certificates of the authorities in `clients.pem`.
fn asking(place: &Place, upstream: &Upstream, more: &str, routes: &str) -> String {
    let ca = place.path("clients.pem");
    let tls = format!("tls.client_auth = {{ ca = {ca:?}{more} }}\n{routes}");
    place.head() + &place.ingress(upstream.address, &tls)
}

fn header<'a>(seen: &'a Value, name: &str) -> Vec<&'a str> {
    let fields = seen["headers"].as_array().expect("fields").iter();
    let named = fields.filter(|field| field[0] == name);
    named.map(|field| field[1].as_str().unwrap()).collect()
}

/// As [`denied`], of clients that did not get in.
fn claimed(place: &Place, reason: &str, count: usize) -> Vec<Value> {
    eventually("a denied record", Duration::from_secs(20), || {
        let mut found = denied(place, reason, count);
        found.retain(|record| record["claimed"].is_object());
        (found.len() >= count).then_some(found)
    })
}

/// The denied records with this reason, once there are `count`.
fn denied(place: &Place, reason: &str, count: usize) -> Vec<Value> {
    eventually("a denied record", Duration::from_secs(20), || {
        let log = Log::read(&place.state());
        let found: Vec<_> = log
            .kind("denied")
            .filter(|r| r["reason"] == reason)
            .cloned()
            .collect();
        (found.len() >= count).then_some(found)
    })
}

fn wait_event(place: &Place, name: &str) -> Value {
    eventually(name, CHANGE_LIMIT, || {
        let log = Log::read(&place.state());
        log.kind("event").find(|r| r["name"] == name).cloned()
    })
}

/// Tries until the client is refused, and gives what it was told.
async fn refused_soon(partner: &Partner) -> String {
    let begin = Instant::now();
    loop {
        match partner.get("/headers").await {
            // One that was let in a moment before may be cut off.
            Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
                return error.to_string();
            }
            other => assert!(begin.elapsed() < CHANGE_LIMIT, "still let in: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_is_written_down_and_introduced_and_whoever_shows_nothing_is_refused() {
    let (place, upstream, ours) = (Place::new(), Upstream::start(), Authority::new("ours"));
    let stranger = Authority::new("theirs").issue("stranger", 7, DAY);
    std::fs::write(place.path("clients.pem"), &ours.pem).unwrap();
    let _gate = place.start(&asking(&place, &upstream, "", ""));
    let badge = ours.issue("acme", 0xabcd, DAY);
    for (at, version) in VERSIONS.into_iter().enumerate() {
        let forged = format!(
            "GET /headers HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nClient-Cert: :Zm9yZ2Vk:\r\nclient_cert: :Zm9yZ2Vk:\r\nClient-Cert-Chain: :Zm9yZ2Vk:\r\nX-Forwarded-Client-Cert: Hash=1\r\n\r\n"
        );
        let partner = Partner::new(&place, Some(&badge), version);
        let seen = partner.send(&forged).await.unwrap().json();
        let expected = format!(":{}:", STANDARD.encode(&badge.der));
        assert_eq!(header(&seen, "client-cert"), [&*expected]);
        assert!(!seen.to_string().contains("Zm9yZ2Vk") && !seen.to_string().contains("Hash=1"));
        assert!(
            header(&seen, "client-cert-chain").is_empty(),
            "nobody asked for it"
        );

        let without = Partner::new(&place, None, version).get("/headers").await;
        let said = without.unwrap_err().to_string();
        assert!(said.contains("CertificateRequired"), "{said}");
        let other = Partner::new(&place, Some(&stranger), version)
            .get("/headers")
            .await;
        let said = other.unwrap_err().to_string();
        assert!(said.contains("UnknownCA"), "{said}");
        let records = denied(&place, "client_certificate_required", at + 1);
        assert!(records[at].get("claimed").is_none() && records[at]["target"] == HOST);
        let records = denied(&place, "client_certificate_untrusted", at + 1);
        assert_eq!(records[at]["claimed"]["subject"], "CN=stranger");
        assert_eq!(records[at]["claimed"]["issuer"], "CN=theirs");
    }
    let log = Log::read(&place.state());
    let before = log.kind("before").next().unwrap();
    let principal = &before["principal"];
    assert_eq!(principal["subject"], "CN=acme");
    assert_eq!(principal["issuer"], "CN=ours");
    assert_eq!(principal["serial"], "abcd");
    assert_eq!(principal["names"][0], "DNS:acme.partner.test");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &badge.der);
    let digest: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(principal["fingerprint"], *digest);
    let state = place.state();
    let find = |certificate: &str, kind: &str| {
        let state = state.to_str().unwrap();
        let found = place.tollgate(&[
            "audit",
            "search",
            state,
            "--certificate",
            certificate,
            "--kind",
            kind,
        ]);
        found.stdout.lines().count()
    };
    assert_eq!(find(&digest, "before"), 2);
    assert_eq!(find("ABCD", "before"), 2);
    assert_eq!(find("CN=acme", "denied"), 0);
    assert_eq!(find("CN=stranger", "denied"), 2);
    place.verify();
}

/// Whatever a server could take for it, on a listener that asks nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nobody_can_claim_a_certificate() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let _gate = place.start(&(place.head() + &place.ingress(upstream.address, "")));
    let client = Client::of(&place);
    for version in [Version::H1, Version::H2] {
        let mut forged = request(version, "GET", "/headers");
        for name in [
            "client-cert",
            "Client-Cert-Chain",
            "client_cert",
            "client.cert",
            "client_cert_chain",
            "x-client-cert",
            "x-forwarded-client-cert",
            "x-forwarded-tls-client-cert-info",
            "x-ssl-client-verify",
            "ssl-client-subject-dn",
            "X_SSL_CLIENT_DN",
        ] {
            let name = if matches!(version, Version::H2) {
                name.to_lowercase()
            } else {
                name.to_owned()
            };
            forged = forged.header(&*name, ":forged:").header(&*name, ":forged:");
        }
        let seen = client
            .send(
                forged
                    .header("client-certainty", "kept?")
                    .body(Payload::empty())
                    .unwrap(),
            )
            .await;
        assert_eq!(seen.status, 200, "{seen:?}");
        assert!(!seen.text().contains("forged"), "{}", seen.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_route_may_require_what_the_listener_only_asks_for() {
    let (place, upstream, ours) = (Place::new(), Upstream::start(), Authority::new("ours"));
    std::fs::write(place.path("clients.pem"), &ours.pem).unwrap();
    let routes = format!(
        "[[ingress.route]]\nhosts = [\"{HOST}\"]\npath = \"/partners\"\nrequire_client_cert = true\nupstream = \"http://{}\"\n",
        upstream.address
    );
    let text = asking(
        &place,
        &upstream,
        r#", mode = "optional", forward_chain = true"#,
        &routes,
    );
    let _gate = place.start(&text);
    let client = Client::of(&place);
    for version in [Version::H1, Version::H2] {
        let open = client.get(version, "/headers").await;
        assert_eq!(open.status, 200);
        assert!(header(&open.json(), "client-cert").is_empty());
        let shut = client.get(version, "/partners").await;
        assert_eq!(shut.status, 403);
        assert_eq!(shut.json()["code"], "client_certificate_required");
    }
    let partner = Partner::new(&place, Some(&ours.issue("acme", 1, DAY)), &TLS13);
    assert_eq!(partner.get("/partners").await.unwrap().status(), 200);
    let seen = partner.get("/headers").await.unwrap().json();
    assert_eq!(header(&seen, "client-cert").len(), 1);
    assert!(
        header(&seen, "client-cert-chain").is_empty(),
        "it sent none"
    );
    // What is wrong is wrong, also where nothing is required.
    let stranger = Authority::new("theirs").issue("stranger", 1, DAY);
    let refused = Partner::new(&place, Some(&stranger), &TLS13)
        .get("/headers")
        .await;
    assert!(refused.unwrap_err().to_string().contains("UnknownCA"));
    let records = denied(&place, "client_certificate_required", 2);
    assert_eq!(records[0]["target"], HOST);
}

/// nginx CVE-2025-23419, rpxy: a ticket from before is worth nothing once its holder is not believed any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_is_revoked_or_of_an_authority_that_is_gone_is_refused_also_with_a_ticket() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let (bundle, list) = (place.path("clients.pem"), place.path("clients.crl"));
    std::fs::write(&bundle, format!("{}{}", ours.pem, other.pem)).unwrap();
    let lists = |revoked: &[u64]| ours.list(revoked, false) + &other.list(&[], false);
    std::fs::write(&list, lists(&[])).unwrap();
    let text = asking(&place, &upstream, &format!(", crl = {list:?}"), "");
    let gate = place.start(&text);
    let badges = [ours.issue("leaver", 13, DAY), other.issue("moved", 13, DAY)];
    let of = |version, at: usize| Partner::new(&place, Some(&badges[at]), version);
    let (leavers, moved) = (VERSIONS.map(|v| of(v, 0)), VERSIONS.map(|v| of(v, 1)));
    for partner in leavers.iter().chain(&moved) {
        resumes(partner).await;
    }
    let (mut goes, mut stays) = (inside(&leavers[1]).await, inside(&moved[1]).await);

    // The file alone is changed.
    replace(&list, &lists(&[13]));
    for (partner, at) in leavers.iter().zip(1..) {
        let said = refused_soon(partner).await;
        assert!(said.contains("CertificateRevoked"), "{said}");
        // Beside whoever was inside while the list changed.
        let records = claimed(&place, "client_certificate_revoked", at);
        assert_eq!(records[0]["claimed"]["subject"], "CN=leaver");
        assert_eq!(records[0]["claimed"]["serial"], "0d");
    }
    ends(&mut goes).await;
    stays.send(Message::text("still here")).await.unwrap();
    let back = tokio::time::timeout(CHANGE_LIMIT, stays.next())
        .await
        .expect("it answers");
    assert_eq!(back.unwrap().unwrap().into_text().unwrap(), "still here");
    for partner in &moved {
        resumes(partner).await; // by a ticket of those who are believed now
    }

    // A reload names another bundle.
    std::fs::write(place.path("fewer.pem"), &ours.pem).unwrap();
    std::fs::write(place.path("fewer.crl"), ours.list(&[13], false)).unwrap();
    let fewer = text
        .replace("clients.pem", "fewer.pem")
        .replace("clients.crl", "fewer.crl");
    place.write(&fewer);
    gate.reload();
    for partner in &moved {
        let said = partner.get("/headers").await.unwrap_err().to_string();
        assert!(said.contains("UnknownCA"), "{said}");
    }
    ends(&mut stays).await;
    let records = claimed(&place, "client_certificate_untrusted", 2);
    assert_eq!(records[0]["claimed"]["issuer"], "CN=other");
    let log = Log::read(&place.state());
    let ends = log.kind("after").filter(|r| r["outcome"] == "failed");
    let ends: Vec<_> = ends.map(|r| r["reason"].as_str().unwrap()).collect();
    assert!(
        ends.contains(&"client_certificate_revoked")
            && ends.contains(&"client_certificate_untrusted"),
        "the websockets: {ends:?}"
    );
    place.verify();
}

/// The handshake of a resumed session verifies nothing: what has expired meanwhile is found by us.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_certificate_that_expires_takes_its_tickets_with_it() {
    const LIFE: Duration = Duration::from_secs(6);
    let (place, upstream, ours) = (Place::new(), Upstream::start(), Authority::new("ours"));
    std::fs::write(place.path("clients.pem"), &ours.pem).unwrap();
    let _gate = place.start(&asking(&place, &upstream, "", ""));
    let (mut partners, mut until, mut socket) = (Vec::new(), Instant::now(), None);
    // A slow machine may need more than one try to resume in time.
    for _ in 0..5 {
        let badge = ours.issue("brief", 1, LIFE);
        until = Instant::now() + LIFE;
        socket = Some(inside(&Partner::new(&place, Some(&badge), &TLS13)).await);
        partners = VERSIONS
            .map(|v| Partner::new(&place, Some(&badge), v))
            .into();
        let mut resumed = 0;
        for partner in &partners {
            for _ in 0..2 {
                let answer = partner.get("/headers").await;
                resumed += usize::from(answer.is_ok_and(|a| a.kind == HandshakeKind::Resumed));
            }
        }
        if resumed == VERSIONS.len() {
            break;
        }
    }
    ends(&mut socket.unwrap()).await;
    assert!(Instant::now() > until, "it was ended before its time");
    tokio::time::sleep_until((until + Duration::from_millis(1100)).into()).await;
    for partner in &partners {
        let answer = partner
            .get("/headers")
            .await
            .expect("told in HTTP, the handshake is over");
        assert_eq!(answer.kind, HandshakeKind::Resumed);
        assert_eq!(answer.status(), 403);
        assert_eq!(answer.json()["code"], "client_certificate_expired");
    }
    let records = denied(&place, "client_certificate_expired", 2);
    assert_eq!(records[0]["claimed"]["subject"], "CN=brief");
    assert!(upstream.heads().len() >= 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn garbage_changes_nothing_and_a_list_out_of_date_refuses() {
    let (place, upstream, ours) = (Place::new(), Upstream::start(), Authority::new("ours"));
    let list = place.path("clients.crl");
    std::fs::write(place.path("clients.pem"), &ours.pem).unwrap();
    std::fs::write(&list, ours.list(&[13], false)).unwrap();
    let text = asking(&place, &upstream, &format!(", crl = [{list:?}]"), "");
    let gate = place.start(&text);
    let good = Partner::new(&place, Some(&ours.issue("good", 12, DAY)), &TLS13);
    let bad = Partner::new(&place, Some(&ours.issue("bad", 13, DAY)), &TLS13);
    let cut: String = ours.list(&[13], false).chars().take(200).collect();
    replace(&list, &cut);
    let event = wait_event(&place, "client_trust_rejected");
    assert_eq!(event["facts"]["file"], list.to_str().unwrap());
    assert!(
        gate.stderr()
            .contains("until then the files before it are in force")
    );
    assert_eq!(good.get("/headers").await.unwrap().status(), 200);
    assert!(refused_soon(&bad).await.contains("CertificateRevoked"));
    let config = place.path("tollgate.toml");
    let check = place.tollgate(&["check", "--config", config.to_str().unwrap()]);
    assert_eq!(check.code, Some(2), "{check:?}");
    assert!(
        check.stderr.contains("client_auth.crl") && check.stderr.contains("clients.crl"),
        "{check:?}"
    );

    replace(&list, &ours.list(&[13], true));
    assert!(refused_soon(&good).await.contains("UnknownCA"));
    denied(&place, "revocation_unknown", 1);
    wait_event(&place, "revocation_list_stale");
    let check = place.tollgate(&["check", "--config", config.to_str().unwrap()]);
    assert_eq!(check.code, Some(0), "{check:?}");
    assert!(
        check.stderr.contains("was to be followed by another one"),
        "{check:?}"
    );

    replace(&list, &ours.list(&[], false));
    eventually_let_in(&good).await;
    eventually_let_in(&bad).await;
}

/// The client is let in, and the next time by its ticket.
async fn resumes(partner: &Partner) {
    assert_eq!(partner.get("/headers").await.unwrap().status(), 200);
    let again = partner.get("/headers").await.unwrap();
    assert_eq!(again.kind, HandshakeKind::Resumed);
    assert_eq!(header(&again.json(), "client-cert").len(), 1);
}

async fn ends(socket: &mut WebSocketStream<TlsStream<TcpStream>>) {
    let ended = tokio::time::timeout(CHANGE_LIMIT, socket.next()).await;
    let ended = ended.expect("it ends");
    assert!(!matches!(ended, Some(Ok(Message::Text(_)))), "{ended:?}");
}

async fn inside(partner: &Partner) -> WebSocketStream<TlsStream<TcpStream>> {
    let stream = partner.tls().await.unwrap();
    let url = format!("wss://{HOST}/ws");
    let (socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    socket
}

async fn eventually_let_in(partner: &Partner) {
    let begin = Instant::now();
    while partner.get("/headers").await.is_err() {
        assert!(begin.elapsed() < CHANGE_LIMIT);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Traefik CVE-2026-32305: no first message that is spread over several records takes another way in.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_hello_in_pieces_is_asked_for_a_certificate_too() {
    let (place, upstream, ours) = (Place::new(), Upstream::start(), Authority::new("ours"));
    std::fs::write(place.path("clients.pem"), &ours.pem).unwrap();
    let _gate = place.start(&asking(&place, &upstream, "", ""));
    let badge = ours.issue("acme", 1, DAY);
    for (badge, status) in [(Some(&badge), Some("200")), (None, None)] {
        let partner = Partner::new(&place, badge, &TLS13);
        let (config, to) = (partner.config, partner.to);
        let said = tokio::task::spawn_blocking(move || in_pieces(config, to))
            .await
            .unwrap();
        match (said, status) {
            (Ok(text), Some(status)) => {
                assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{text}")
            }
            (Err(error), None) => {
                assert!(error.to_string().contains("CertificateRequired"), "{error}")
            }
            (said, _) => panic!("{said:?}"),
        }
    }
}

/// One request whose ClientHello comes in records of 20 bytes.
fn in_pieces(
    config: std::sync::Arc<rustls::ClientConfig>,
    to: std::net::SocketAddr,
) -> std::io::Result<String> {
    let mut tls = rustls::ClientConnection::new(config, HOST.try_into().unwrap()).unwrap();
    let mut tcp = std::net::TcpStream::connect(to)?;
    tcp.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut hello = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut hello)?;
    }
    let (head, body) = hello.split_at(5);
    for piece in body.chunks(20) {
        tcp.write_all(&head[..3])?;
        tcp.write_all(&u16::try_from(piece.len()).unwrap().to_be_bytes())?;
        tcp.write_all(piece)?;
    }
    let mut stream = rustls::StreamOwned::new(tls, tcp);
    write!(
        stream,
        "GET /headers HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn mistakes_are_named_before_anything_starts() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let text = asking(&place, &upstream, "", "");
    let check = |text: &str| {
        let config = place.write(text);
        place.tollgate(&["check", "--config", config.to_str().unwrap()])
    };
    for (content, says) in [
        (None, "check that the file exists"),
        (
            Some(std::fs::read_to_string(place.path("cert.pem")).unwrap()),
            "is not a certificate authority",
        ),
        (Some("nothing".to_owned()), "holds no certificate"),
    ] {
        if let Some(content) = content {
            std::fs::write(place.path("clients.pem"), content).unwrap();
        }
        let done = check(&text);
        assert_eq!(done.code, Some(2), "{done:?}");
        assert!(
            done.stderr.contains("ingress[0].tls.client_auth.ca") && done.stderr.contains(says),
            "{done:?}"
        );
    }
}

#[test]
fn a_key_is_made_for_this_user_alone_and_checked() {
    use std::os::unix::fs::PermissionsExt as _;
    let (place, upstream) = (Place::new(), Upstream::start());
    let key = place.path("seal.key");
    let keygen = ["secret", "keygen", "--out", key.to_str().unwrap()];
    let made = place.tollgate(&keygen);
    assert_eq!((made.code, made.stdout.as_str()), (Some(0), ""), "{made:?}");
    assert_eq!(
        std::fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let again = place.tollgate(&keygen);
    assert_eq!(
        again.code,
        Some(3),
        "an existing key must not be lost: {again:?}"
    );
    let printed = place.tollgate(&["secret", "keygen"]).stdout;
    assert_eq!(STANDARD.decode(printed.trim()).unwrap().len(), 32);

    let head = place
        .head()
        .replace("[process]\n", &format!("[process]\nkey_file = {key:?}\n"));
    let config = place.write(&(head + &place.ingress(upstream.address, "")));
    let check = || place.tollgate(&["check", "--config", config.to_str().unwrap()]);
    assert_eq!(check().code, Some(0), "{:?}", check());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = check();
    assert_eq!(exposed.code, Some(2));
    assert!(
        exposed.stderr.contains("process.key_file") && exposed.stderr.contains("chmod 600"),
        "{exposed:?}"
    );
    assert!(!exposed.stderr.contains(printed.trim()));
}

//! What certificate authorities do that Debian's pebble does not: renewal windows, profiles, standing records, wrong
//! certificates, errors, silence, and one that stands in for another.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde_json::{Value, json};
use support::client::{Client, Version};
use support::eventually;
use support::gate::{Gate, HOST, Place};
use support::log::Log;
use support::redis::Redis;
use support::small_ca::{ISSUER, Mood, Offers, SmallCa, TOKEN};
use support::upstream::Upstream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const LIMIT: Duration = Duration::from_secs(60);

fn config(place: &Place, upstream: &Upstream, hosts: &str, acme: &str) -> String {
    format!(
        "{}[[ingress]]\nlisten = \"127.0.0.1:{}\"\nhosts = [{hosts}]\nupstream = \"http://{}\"\n\
         tls.acme = {{ contact = \"ops@example.com\", {acme} }}\n",
        place.head(),
        place.https,
        upstream.address,
    )
}

fn events(place: &Place, name: &str) -> Vec<Value> {
    let log = Log::read(&place.state());
    let found = log.kind("event").filter(|event| event["name"] == name);
    found.map(|event| event["facts"].clone()).collect()
}

fn wait_events(place: &Place, name: &str, count: usize) -> Vec<Value> {
    eventually(name, LIMIT, || {
        let found = events(place, name);
        (found.len() >= count).then_some(found)
    })
}

/// The serial number of what is served to who believes `root`.
fn serial(place: &Place, root: &Path) -> Option<Vec<u8>> {
    let client = Client::trusting(place, root, Ipv4Addr::LOCALHOST);
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let stream = runtime.block_on(client.tls(Version::H2)).ok()?;
    let chain = stream.get_ref().1.peer_certificates()?;
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).ok()?;
    Some(leaf.raw_serial().to_vec())
}

fn started(place: &Place, config: &str) -> Gate {
    let gate = place.spawn(config);
    gate.wait_ready();
    gate
}

#[test]
fn whatever_an_authority_does_is_told_and_the_last_good_certificate_is_served() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = SmallCa::start(&place, Offers::Trust);
    let root = ca.root(&place);
    let text = config(&place, &upstream, &format!("\"{HOST}\""), &ca.keys());
    let gate = started(&place, &text);
    let good = serial(&place, &root).expect("a certificate");
    let file = place.path("tollgate.toml");
    let renew = ["acme", "renew", HOST, "--config", file.to_str().unwrap()];
    for (mood, reason, says) in [
        (Mood::AnotherName, "wrong_certificate", "somebody.else.test"),
        (Mood::Broken, "answered", "status 500"),
        (
            Mood::Problem("caa", 0),
            "caa",
            "in these words; a CAA record",
        ),
        (Mood::Problem("rateLimited", 7200), "rateLimited", "wait"),
        (Mood::Silent, "unreachable", "did not answer in time"),
    ] {
        ca.book().mood = mood;
        let count = events(&place, "certificate_failed").len();
        let done = place.tollgate(&renew);
        assert_eq!(done.code, Some(1), "{mood:?}: {done:?}");
        assert!(done.stderr.contains(says), "{mood:?}: {done:?}");
        let failed = wait_events(&place, "certificate_failed", count + 1);
        let facts = failed.last().unwrap();
        assert_eq!(facts["reason"], reason);
        assert!(facts["why"].as_str().unwrap().contains(says), "{facts}");
        let next: jiff::Timestamp = facts["next_attempt"].as_str().unwrap().parse().unwrap();
        let wait = next.duration_since(jiff::Timestamp::now()).as_secs();
        match mood {
            Mood::Problem("rateLimited", asked) => assert!(wait > asked as i64 - 60, "{wait}"),
            _ => assert!(wait < 4000, "{wait}"),
        }
        assert_eq!(serial(&place, &root).as_ref(), Some(&good), "{mood:?}");
    }
    let metrics = gate.metrics();
    assert!(
        metrics.contains("tollgate_certificate_failures_total 5"),
        "{metrics}"
    );
    ca.book().mood = Mood::Good;
    place.tollgate(&renew).ok();
    assert_ne!(serial(&place, &root), Some(good));
    assert_eq!(ca.book().accounts.len(), 1, "one account for all of it");
    assert_eq!(
        ca.book().accounts[0]["contact"],
        json!(["mailto:ops@example.com"])
    );
}

#[test]
fn a_window_that_lies_behind_renews_now_and_says_what_is_replaced() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = SmallCa::start(&place, Offers::Trust);
    let root = ca.root(&place);
    ca.book().window = Some((-7200, -3600));
    ca.book().life = Duration::from_secs(240); // so that it may be replaced after ten seconds
    let text = config(&place, &upstream, &format!("\"{HOST}\""), &ca.keys());
    let gate = started(&place, &text);
    let orders = eventually("a second order", LIMIT, || {
        let orders = ca.book().orders.clone();
        (orders.len() == 2).then_some(orders)
    });
    let asked = ca.book().windows[0].clone();
    assert_eq!(orders[0]["replaces"], Value::Null);
    assert_eq!(orders[1]["replaces"], asked.as_str());
    assert!(gate.stderr().contains("authority.example/incident"));
    wait_events(&place, "certificate_issued", 2);
    let renewed = serial(&place, &root).expect("a certificate");
    // Asked again for the new certificate, whose window is not there: two thirds of its life count.
    eventually("another question", LIMIT, || {
        (ca.book().windows.len() > 1).then_some(())
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(
        (ca.book().orders.len(), serial(&place, &root)),
        (2, Some(renewed))
    );

    // An authority that says it was replaced already gets an order without it.
    ca.book().mood = Mood::Replaced;
    let file = place.path("tollgate.toml");
    place
        .tollgate(&["acme", "renew", HOST, "--config", file.to_str().unwrap()])
        .ok();
    assert_eq!(ca.book().orders[2]["replaces"], Value::Null);
}

#[test]
fn a_profile_and_an_address_are_ordered_as_configured() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = SmallCa::start(&place, Offers::Trust);
    let acme = format!("{}, profile = \"shortlived\"", ca.keys());
    let gate = place.spawn(&config(&place, &upstream, "\"127.0.0.1\"", &acme));
    let failed = wait_started(&place, &gate);
    assert_eq!(failed[0]["reason"], "invalidProfile");
    assert!(failed[0]["why"].as_str().unwrap().contains("acme.profile"));
    ca.book().profiles = &["classic", "shortlived"];
    ca.book().life = Duration::from_secs(6 * 86_400);
    gate.wait_ready();
    let order = ca.book().orders[0].clone();
    assert_eq!(order["profile"], "shortlived");
    assert_eq!(
        order["identifiers"],
        json!([{ "type": "ip", "value": "127.0.0.1" }])
    );
}

/// The failures, once there is one.
fn wait_started(place: &Place, gate: &Gate) -> Vec<Value> {
    gate.wait_readyz(503);
    wait_events(place, "certificate_failed", 1)
}

#[test]
fn one_standing_record_is_told_and_is_enough() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = SmallCa::start(&place, Offers::Persist);
    let acme = format!("{}, challenge = \"dns-persist-01\"", ca.keys());
    let gate = place.spawn(&config(&place, &upstream, "\"*.apps.test\"", &acme));
    let failed = wait_started(&place, &gate);
    assert_eq!(failed[0]["reason"], "unauthorized");
    let needed = events(&place, "certificate_needs_record");
    let (record, value) = (&needed[0]["record"], &needed[0]["value"]);
    assert_eq!(record, "_validation-persist.apps.test");
    let value = value.as_str().unwrap();
    assert!(
        value.starts_with(&format!("{ISSUER}; accounturi=https://")),
        "{value}"
    );
    assert!(value.ends_with("; policy=wildcard"), "{value}");
    assert!(gate.stderr().contains(value));
    let record = record.as_str().unwrap().to_owned();
    ca.book().records.insert((record, value.to_owned()));
    gate.wait_ready();
    assert!(
        gate.metrics()
            .contains("not_after_seconds{name=\"*.apps.test\"} 1")
    );
    assert_eq!(
        events(&place, "certificate_needs_record").len(),
        1,
        "told once"
    );
}

#[test]
fn another_authority_stands_in_for_the_first() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let (first, second) = (
        SmallCa::start(&place, Offers::Trust),
        SmallCa::start(&place, Offers::Trust),
    );
    let (root, own) = (second.root(&place), first.keys());
    first.book().mood = Mood::Broken;
    let acme = format!("{own}, fallback = [{{ {} }}]", second.keys());
    let text = config(&place, &upstream, &format!("\"{HOST}\""), &acme);
    let gate = started(&place, &text);
    assert!(serial(&place, &root).is_some());
    let failed = wait_events(&place, "certificate_failed", 1);
    assert_eq!(
        (failed.len(), &failed[0]["reason"]),
        (1, &"answered".into())
    );
    assert!(
        own.contains(failed[0]["directory"].as_str().unwrap()),
        "{failed:?}"
    );
    let issued = wait_events(&place, "certificate_issued", 1);
    assert!(
        second
            .keys()
            .contains(issued[0]["directory"].as_str().unwrap()),
        "{issued:?}"
    );
    drop(gate);
    let gate = started(&place, &text);
    drop(gate);
    assert_eq!(
        events(&place, "certificate_ordered").len(),
        2,
        "one at each, none after the restart"
    );
}

#[test]
fn another_directory_leaves_nobody_without_a_certificate() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let (old, new) = (
        SmallCa::start(&place, Offers::Trust),
        SmallCa::start(&place, Offers::Trust),
    );
    let (old_root, new_root) = (old.root(&place), new.path_of_root(&place, "new-root.pem"));
    let text = |ca: &SmallCa| config(&place, &upstream, &format!("\"{HOST}\""), &ca.keys());
    let gate = started(&place, &text(&old));
    let before = serial(&place, &old_root).expect("a certificate");
    new.book().mood = Mood::Broken;
    place.write(&text(&new));
    gate.reload();
    wait_events(&place, "certificate_failed", 1);
    assert_eq!(
        serial(&place, &old_root).as_ref(),
        Some(&before),
        "after a reload"
    );
    drop(gate);
    let gate = started(&place, &text(&new));
    assert_eq!(serial(&place, &old_root), Some(before), "after a restart");
    new.book().mood = Mood::Good;
    eventually("the new one", LIMIT, || serial(&place, &new_root));
    drop(gate);
    assert_eq!((old.book().orders.len(), new.book().orders.len()), (1, 1));
}

/// A handshake with these protocols from 127.0.0.1; the certificate that was shown.
fn shake(place: &Place, name: &'static str, protocols: &[&[u8]]) -> Result<Vec<u8>, String> {
    let shown = Arc::new(Mutex::new(None));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Look(Arc::clone(&shown))))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let done = runtime.block_on(async {
        let tcp = tokio::net::TcpStream::connect(("127.0.0.1", place.https)).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(name.try_into().unwrap(), tcp).await?;
        // Whatever is said in it, nothing comes back.
        let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        assert_eq!(answer, b"", "a challenge leads nowhere");
        std::io::Result::Ok(())
    });
    let seen = shown.lock().unwrap().take();
    match (done, seen) {
        (Ok(()), Some(certificate)) => Ok(certificate),
        (Err(_), Some(_)) => panic!("a certificate was shown to whom it was not meant for"),
        (done, None) => Err(format!("{done:?}")),
    }
}

/// Takes any certificate, and keeps it.
#[derive(Debug)]
struct Look(Arc<Mutex<Option<Vec<u8>>>>);

impl ServerCertVerifier for Look {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap() = Some(leaf.to_vec());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

#[test]
fn a_stranger_gets_the_answer_to_a_pending_challenge_and_nothing_else() {
    const CHALLENGE: &[&[u8]] = &[b"acme-tls/1"];
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = SmallCa::start(&place, Offers::Ask("tls-alpn-01"));
    let text = config(&place, &upstream, &format!("\"{HOST}\""), &ca.keys());
    // 127.0.0.1 is not on the list.
    let mut gate = place.spawn(&text.replace("hosts =", "allow = [\"127.0.0.9\"]\nhosts ="));
    eventually("a pending challenge", LIMIT, || {
        (!ca.book().looked.is_empty()).then_some(())
    });
    let shown = shake(&place, HOST, CHALLENGE).expect("the answer");
    let (_, leaf) = x509_parser::parse_x509_certificate(&shown).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 1);
    // id-pe-acmeIdentifier, critical, with a digest in an octet string (RFC 8737 section 3).
    let identifier = leaf
        .extensions()
        .iter()
        .find(|e| e.oid.to_id_string() == "1.3.6.1.5.5.7.1.31");
    let identifier = identifier.expect("the extension");
    assert!(identifier.critical && identifier.value.len() == 34);
    for (name, protocols) in [
        ("other.test", CHALLENGE),
        (HOST, &[&b"acme-tls/1"[..], b"h2"]),
        (HOST, &[&b"h2"[..], b"acme-tls/1"]),
        (HOST, &[b"h2"]),
        (HOST, &[]),
    ] {
        shake(&place, name, protocols).expect_err("refused before a certificate is shown");
    }
    ca.book().passed = true;
    gate.wait_ready();
    shake(&place, HOST, CHALLENGE).expect_err("no longer pending");
    gate.stop(LIMIT);
    let log = Log::read(&place.state());
    assert_eq!(log.kind("before").count(), 0);
    let denied = log.kind("denied").map(|r| r["count"].as_u64().unwrap_or(1));
    assert_eq!(denied.sum::<u64>(), 6);
    let answered = events(&place, "challenge_answered");
    assert_eq!(
        (answered.len(), &answered[0]["certificate"]),
        (1, &HOST.into())
    );
}

#[test]
fn on_port_80_too() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = SmallCa::start(&place, Offers::Ask("http-01"));
    let acme = format!("{}, challenge = \"http-01\"", ca.keys());
    let text = config(&place, &upstream, &format!("\"{HOST}\""), &acme);
    let redirect = format!(
        "redirect_http = \"127.0.0.1:{}\"\nallow = [\"127.0.0.9\"]\nhosts =",
        place.http
    );
    let gate = place.spawn(&text.replace("hosts =", &redirect));
    eventually("a pending challenge", LIMIT, || {
        (!ca.book().looked.is_empty()).then_some(())
    });
    let path = format!("/.well-known/acme-challenge/{TOKEN}");
    let ask = |from: &str, head: String| {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let from = format!("{from}:0").parse().unwrap();
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(from).unwrap();
            let to = format!("127.0.0.1:{}", place.http).parse().unwrap();
            let mut tcp = socket.connect(to).await.unwrap();
            tcp.write_all(head.as_bytes()).await.ok();
            let mut answer = Vec::new();
            tcp.read_to_end(&mut answer).await.ok();
            String::from_utf8(answer).unwrap()
        })
    };
    for from in ["127.0.0.1", "127.0.0.9"] {
        let answer = ask(from, format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        let (token, print) = body.split_once('.').unwrap();
        assert_eq!((token, print.len()), (TOKEN, 43));
    }
    for line in [
        format!("GET {path}x HTTP/1.1"),
        format!("GET {path}?q HTTP/1.1"),
        format!("POST {path} HTTP/1.1"),
        format!("GET http://{HOST}{path} HTTP/1.1"),
        "GET / HTTP/1.1".to_owned(),
        "nonsense".to_owned(),
        format!("GET /{} HTTP/1.1", "a".repeat(4000)),
    ] {
        let answer = ask("127.0.0.1", format!("{line}\r\nhost: {HOST}\r\n\r\n"));
        assert_eq!(answer, "", "{line}");
    }
    // Who is on the list is redirected as ever.
    let answer = ask(
        "127.0.0.9",
        format!("GET /x HTTP/1.1\r\nhost: {HOST}\r\n\r\n"),
    );
    assert!(answer.starts_with("HTTP/1.1 308"), "{answer}");
    ca.book().passed = true;
    gate.wait_ready();
    let answer = ask(
        "127.0.0.1",
        format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n"),
    );
    assert_eq!(answer, "", "no longer pending");
}

/// The holder of the lock dies in the middle of an order; another replica orders in its place.
fn taken_over(store: &str, more: &str) {
    let (one, other, upstream) = (Place::new(), Place::new(), Upstream::start());
    let ca = SmallCa::start(&one, Offers::Trust);
    let (root, key) = (ca.root(&one), one.path("seal.key"));
    one.tollgate(&["secret", "keygen", "--out", key.to_str().unwrap()])
        .ok();
    let acme = format!("{}, store = {store}", ca.keys());
    let text = |place: &Place| {
        let text = config(place, &upstream, &format!("\"{HOST}\""), &acme);
        let process = format!("[process]\nkey_file = {key:?}\n");
        more.to_owned() + &text.replace("[process]\n", &process)
    };
    ca.book().mood = Mood::Silent;
    let mut holder = one.spawn(&text(&one));
    holder.wait_readyz(503);
    wait_events(&one, "certificate_ordered", 1);
    let waiting = other.spawn(&text(&other));
    waiting.wait_readyz(503);
    std::thread::sleep(Duration::from_secs(2)); // it looks every second
    assert_eq!(
        events(&other, "certificate_ordered").len(),
        0,
        "only the holder orders"
    );
    holder.kill();
    ca.book().mood = Mood::Good;
    eventually("a certificate", LIMIT, || serial(&other, &root));
    assert_eq!(ca.book().orders.len(), 1);
}

#[test]
fn a_dead_holder_is_taken_over_on_a_folder() {
    let volume = tempfile::tempdir().unwrap();
    taken_over(&format!("{:?}", volume.path()), "");
}

#[test]
#[ignore = "needs redis-server; run by tests/run"]
fn a_dead_holder_is_taken_over_on_redis() {
    let place = Place::new();
    let redis = Redis::start(&place);
    let (url, password) = (redis.url(), redis.password());
    let more = format!("[limits.store]\nredis = \"{url}\"\npassword_file = {password:?}\n");
    taken_over("\"redis\"", &more);
}

#[test]
fn nothing_is_ordered_that_could_not_be_kept() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = SmallCa::start(&place, Offers::Trust);
    let kept = place.state().join("acme");
    std::fs::create_dir_all(&kept).unwrap();
    std::fs::write(kept.join("attempts"), "where a folder should be").unwrap();
    let gate = place.spawn(&config(
        &place,
        &upstream,
        &format!("\"{HOST}\""),
        &ca.keys(),
    ));
    gate.wait_readyz(503);
    let failed = wait_events(&place, "certificate_store_failed", 1);
    let why = failed[0]["why"].as_str().unwrap();
    assert!(
        why.contains("acme/attempts") && why.contains("may write there"),
        "{why}"
    );
    assert_eq!(ca.book().orders.len(), 0);
    std::fs::remove_file(kept.join("attempts")).unwrap();
    gate.wait_ready();
    assert_eq!(ca.book().orders.len(), 1);
}

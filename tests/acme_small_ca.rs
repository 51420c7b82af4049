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
use std::time::Duration;

use serde_json::{Value, json};
use support::client::{Client, Version};
use support::eventually;
use support::gate::{Gate, HOST, Place};
use support::log::Log;
use support::small_ca::{ISSUER, Mood, SmallCa};
use support::upstream::Upstream;

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
    let ca = SmallCa::start(&place, false);
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
    let ca = SmallCa::start(&place, false);
    let root = ca.root(&place);
    ca.book().window = Some((-7200, -3600));
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
    let ca = SmallCa::start(&place, false);
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
    let ca = SmallCa::start(&place, true);
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
    let (first, second) = (SmallCa::start(&place, false), SmallCa::start(&place, false));
    let (root, own) = (second.root(&place), first.keys());
    first.book().mood = Mood::Broken;
    let acme = format!("{own}, fallback = [{{ {} }}]", second.keys());
    let text = config(&place, &upstream, &format!("\"{HOST}\""), &acme);
    let gate = started(&place, &text);
    assert!(serial(&place, &root).is_some());
    let failed = events(&place, "certificate_failed");
    assert_eq!(
        (failed.len(), &failed[0]["reason"]),
        (1, &"answered".into())
    );
    assert!(
        own.contains(failed[0]["directory"].as_str().unwrap()),
        "{failed:?}"
    );
    let issued = events(&place, "certificate_issued");
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

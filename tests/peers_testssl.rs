//! testssl.sh as the judge of the defaults: what it would mark down is on a short list with reasons, and nothing else.
//!
//! Debian's version gives no grade. What SSL Labs asks for an A+ is asked for here finding by finding: TLS 1.2 and 1.3
//! alone, forward secrecy and authenticated encryption alone, none of the known attacks, a chain that holds, and HSTS.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;
use support::gate::{HOST, Place};
use support::upstream::Upstream;

/// What it marks down, and why that stays.
const KNOWN: [(&str, &str); 7] = [
    (
        "engine_problem",
        "of the scanner itself: it has no GOST ciphers to try",
    ),
    (
        "sessionresumption_ticket",
        "it hangs up, sometimes before the ticket of TLS 1.3 has come; tests/tickets.rs is about that",
    ),
    (
        "cipher_order",
        "every cipher offered is strong, so the client's order counts: a phone without AES picks ChaCha20",
    ),
    (
        "cert_revocation",
        "an authority of this test: it names no list and no responder",
    ),
    ("security_headers", "the page's own business"),
    (
        "RC4",
        "the OpenSSL beside testssl.sh cannot even ask for it; it is not offered",
    ),
    ("cert_validityPeriod", "a certificate of this test"),
];

#[test]
#[ignore = "testssl.sh is installed by tests/run"]
fn the_defaults_with_hsts_have_nothing_that_testssl_marks_down() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let _gate =
        place.start(&(place.head() + &place.ingress(upstream.address, "hsts = \"365d\"\n")));
    let (report, out) = (place.path("report.json"), place.path("testssl.out"));
    let done = Command::new("testssl")
        .args([
            "--warnings",
            "off",
            "--color",
            "0",
            "--nodns",
            "none",
            "--fast",
        ])
        .args(["--protocols", "--std", "--pfs", "--server-preference"])
        .args(["--server-defaults", "--headers", "--vulnerable"])
        .args(["--ip", "127.0.0.1", "--add-ca"])
        .arg(place.ca())
        .arg("--jsonfile")
        .arg(&report)
        .arg(format!("{HOST}:{}", place.https))
        .stdin(std::process::Stdio::null())
        .stdout(std::fs::File::create(&out).unwrap())
        .status()
        .expect("testssl can be started; tests/run installs it");
    let said = || std::fs::read_to_string(&out).unwrap_or_default();
    let text =
        std::fs::read_to_string(&report).unwrap_or_else(|e| panic!("{e} ({done}):\n{}", said()));
    let findings: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    assert!(findings.len() > 70, "{}", said());
    let mut by_id = BTreeMap::new();
    for finding in &findings {
        let of = |key: &str| finding[key].as_str().unwrap_or_default();
        by_id.insert(of("id"), of("finding"));
        let good = matches!(of("severity"), "OK" | "INFO");
        let known = KNOWN.iter().any(|(id, _)| *id == of("id"));
        assert!(good || known, "{finding}");
    }
    for (id, says) in [
        ("SSLv3", "not offered"),
        ("TLS1", "not offered"),
        ("TLS1_1", "not offered"),
        ("TLS1_2", "offered"),
        ("TLS1_3", "offered"),
        ("PFS", "offered"),
        ("cert_trust", "Ok via SAN"),
        ("HSTS_time", "365 days"),
        ("TLS_session_ticket", "<daily"),
    ] {
        let found = by_id.get(id).copied().unwrap_or_default();
        assert!(
            found.contains(says),
            "{id}: {found:?}, not {says:?}:\n{}",
            said()
        );
    }
}

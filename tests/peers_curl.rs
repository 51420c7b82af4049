//! curl on its three ways out, which must be seen to come from the fixed address, and on its way in by two names.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::time::Duration;

use serde_json::Value;
use support::authority::{Authority, FRESH};
use support::dns::Dns;
use support::eventually;
use support::gate::{FIXED, Place, run, write};
use support::log::Log;
use support::peer::{curl, must};
use support::upstream::Upstream;

const POLICY: &str = r#"
[[egress.policy]]
destinations = ["api.customer.test"]
addresses = ["127.0.0.9/32"]
action = "allow"
"#;

#[test]
#[ignore = "needs curl; run by tests/run"]
fn curl_leaves_from_the_fixed_address_by_every_door() {
    let place = Place::new();
    let dns = Dns::table(&[("api.customer.test", &["127.0.0.9"])]);
    let destination = Upstream::everywhere();
    let _gate = place.start(&(place.head() + &place.egress(dns.address, POLICY)));

    let url = format!("http://api.customer.test:{}/headers", destination.port());
    let http = format!("http://127.0.0.1:{}", place.proxy);
    let socks = format!("127.0.0.1:{}", place.proxy);
    for door in [
        vec!["--proxy", &http],
        vec!["--proxy", &http, "--proxytunnel"],
        vec!["--socks5-hostname", &socks],
    ] {
        let text = must(curl(&place).args(&door).arg(&url));
        let seen: Value = serde_json::from_str(&text).expect(&text);
        assert_eq!(seen["peer"], FIXED.to_string(), "{door:?}: {text}");
        assert!(
            !text.to_lowercase().contains("proxy-connection"),
            "{door:?}: {text}"
        );
    }
    let log = Log::read(&place.state());
    let doors: Vec<_> = log
        .kind("before")
        .map(|r| r["door"].as_str().unwrap())
        .collect();
    assert_eq!(doors, ["http", "connect", "socks5"]);
}

/// RFC 9110 section 15.5.20 and RFC 9113 section 9.1.2: a connection serves the hosts of its own certificate.
#[test]
#[ignore = "needs curl; run by tests/run"]
fn curl_is_told_to_open_another_connection_for_another_host() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = Authority::new("two names");
    write(&place.ca(), &ca.pem());
    let mut pairs = Vec::new();
    for name in ["a.test", "b.test"] {
        let [cert, key] = ["crt", "key"].map(|end| place.path(&format!("{name}.{end}")));
        ca.issue(&[name], FRESH).write(&cert, &key);
        pairs.push(format!("{{ cert = {cert:?}, key = {key:?} }}"));
    }
    let _gate = place.start(&format!(
        "{}[[ingress]]\nlisten = \"127.0.0.1:{}\"\nupstream = \"http://{}\"\ntls.certificates = [{}]\n",
        place.head(),
        place.https,
        upstream.address,
        pairs.join(", ")
    ));
    let to = format!("::127.0.0.1:{}", place.https);
    let statuses = |version: &str, args: &[&str]| {
        let done = run(curl(&place)
            .args(["--connect-to", &to, version, "--output", "/dev/null"])
            .args([
                "--write-out",
                "%{http_code} %{http_version} %{num_connects}\n",
            ])
            .args(args));
        done.ok()
    };
    for (version, number) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let [a, b] = ["https://a.test/headers", "https://b.test/headers"];
        assert_eq!(statuses(version, &[a]), format!("200 {number} 1\n"));
        assert_eq!(statuses(version, &[b]), format!("200 {number} 1\n"));
        let misdirected = statuses(version, &["--header", "Host: b.test", a]);
        assert_eq!(misdirected, format!("421 {number} 1\n"));
    }
    // Nobody waits for the record of a denial.
    let denied = eventually("both denials", Duration::from_secs(20), || {
        let log = Log::read(&place.state());
        let denied: Vec<_> = log.kind("denied").cloned().collect();
        (denied.len() == 2).then_some(denied)
    });
    for record in denied {
        assert_eq!(
            (record["reason"].as_str(), record["target"].as_str()),
            (Some("misdirected"), Some("b.test"))
        );
    }
}

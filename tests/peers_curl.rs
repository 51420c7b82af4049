//! curl on its three ways out. What it reaches must have seen the fixed address.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use serde_json::Value;
use support::dns::Dns;
use support::gate::{FIXED, Place};
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

//! ToolJet's own HTTP agent, `global-agent` with `got`, through the egress: it reads a reply only if it comes whole.
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
use support::peer::{must, node};
use support::upstream::Upstream;

const PROMPT_MS: u64 = 5_000;
const POLICY: &str = r#"
[[egress.policy]]
destinations = ["api.customer.test"]
addresses = ["127.0.0.9/32"]
action = "allow"
"#;

fn got(place: &Place, url: &str) -> Value {
    let text = must(
        node("got_agent.js")
            .arg(url)
            .env(
                "TEST_HTTP_PROXY",
                format!("http://127.0.0.1:{}", place.proxy),
            )
            .env("NODE_EXTRA_CA_CERTS", place.ca()),
    );
    let became: Value = serde_json::from_str(&text).expect(&text);
    assert!(
        became["ms"].as_u64().unwrap() < PROMPT_MS,
        "{url}: {became}"
    );
    assert!(became["hangs"].is_null(), "{url}: {became}");
    became
}

#[test]
#[ignore = "needs Node.js, global-agent and got; run by tests/run"]
fn allowed_requests_arrive_and_refused_ones_end_promptly() {
    let place = Place::new();
    let dns = Dns::table(&[
        ("api.customer.test", &["127.0.0.9"]),
        ("localhost.customer.test", &["127.0.0.10"]),
    ]);
    let plain = Upstream::everywhere();
    let secure = Upstream::everywhere_with_tls(place.path("cert.pem"), place.path("key.pem"));
    let _gate = place.start(&(place.head() + &place.egress(dns.address, POLICY)));

    for _ in 0..5 {
        let by_connect = got(
            &place,
            &format!("https://api.customer.test:{}/headers", secure.port()),
        );
        assert_eq!(by_connect["status"], 200, "{by_connect}");
        let body: Value = serde_json::from_str(by_connect["body"].as_str().unwrap()).unwrap();
        assert_eq!(body["peer"], FIXED.to_string());
    }
    let by_url = got(
        &place,
        &format!("http://api.customer.test:{}/headers", plain.port()),
    );
    assert_eq!(by_url["status"], 200, "{by_url}");

    for host in [
        "other.customer.test",
        "localhost.customer.test",
        "127.0.0.1",
    ] {
        let refused = got(&place, &format!("https://{host}:{}/", secure.port()));
        assert_eq!(refused["error"], "ECONNRESET", "{host}: {refused}");
        let refused = got(&place, &format!("http://{host}:{}/", plain.port()));
        assert_eq!(refused["status"], 403, "{host}: {refused}");
    }
    let nobody = support::gate::free_port();
    let down = got(&place, &format!("https://api.customer.test:{nobody}/"));
    assert_eq!(down["error"], "ECONNRESET", "{down}");
    assert!(
        secure
            .connections()
            .iter()
            .all(|(_, local)| local.ip().to_string() == "127.0.0.9")
    );
}

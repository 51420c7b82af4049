//! Upstreams that have names, and several routes of one host.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::net::SocketAddr;

use support::client::{Client, Version};
use support::dns::Dns;
use support::gate::{HOST, Place};
use support::upstream::Upstream;

/// An egress of which only the name servers matter.
fn name_servers(place: &Place, dns: SocketAddr) -> String {
    place.egress(dns, "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_named_upstream_is_found_by_the_configured_name_servers() {
    let place = Place::new();
    let upstream = Upstream::start();
    let dns = Dns::table(&[("app.internal.example", &["127.0.0.1"])]);
    let named = |name: &str, path: &str| {
        format!(
            "[[ingress.route]]\nhosts = [\"{HOST}\"]\npath = \"{path}\"\nupstream = \"http://{name}:{}\"\n",
            upstream.port()
        )
    };
    let config = place.head()
        + &place.ingress(upstream.address, "")
        + &named("app.internal.example", "/named")
        + &named("nobody.internal.example", "/nobody")
        + &name_servers(&place, dns.address);
    let gate = place.start(&config);
    let client = Client::of(&place);
    for _ in 0..3 {
        assert_eq!(client.get(Version::H1, "/named").await.status, 200);
    }
    let answer = client.get(Version::H2, "/nobody").await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.json()["code"], "upstream_unreachable");
    assert!(!answer.text().contains("nobody"), "{}", answer.text());
    assert!(
        gate.stderr().contains("nobody.internal.example"),
        "{}",
        gate.stderr()
    );
    let asked = dns.asked();
    assert!(
        asked.iter().all(|name| name.ends_with(".internal.example")),
        "{asked:?}"
    );
    assert!(
        asked.iter().filter(|name| name.starts_with("app.")).count() <= 4, // both families, on each of two workers
        "{asked:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_list_of_one_route_cannot_be_passed_with_the_path_of_another() {
    let place = Place::new();
    let upstream = Upstream::start();
    let route = format!(
        "[[ingress.route]]\nhosts = [\"{HOST}\"]\npath = \"/admin\"\nallow = [\"192.0.2.1\"]\nupstream = \"http://{}\"\n",
        upstream.address
    );
    let _gate = place.start(&(place.head() + &place.ingress(upstream.address, "") + &route));
    let client = Client::of(&place);
    assert_eq!(client.get(Version::H1, "/open").await.status, 200);
    assert_eq!(client.get(Version::H1, "/admin/x").await.status, 403);
    for path in [
        "/open/../admin",
        "/%61dmin",
        "//admin",
        "/open/%2e%2e/admin",
        "/admin%2fx",
        "/open%5c..%5cadmin",
    ] {
        for version in [Version::H1, Version::H2] {
            let status = client.get(version, path).await.status;
            assert!(matches!(status, 400 | 403), "{path} gave {status}");
        }
    }
    let reached: Vec<_> = upstream
        .heads()
        .into_iter()
        .map(|(target, _)| target)
        .collect();
    assert_eq!(reached, ["/open"]);
}

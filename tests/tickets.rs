//! Session tickets: good at every replica that shares their keys, for as long as is said, and not longer.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, NamedGroup, SupportedProtocolVersion};
use support::eventually;
use support::gate::{Gate, Place};
use support::pki::Partner;
use support::redis::Redis;
use support::upstream::Upstream;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
/// How often keys change here.
const EVERY: Duration = Duration::from_secs(2);
/// A ticket is good for at least three periods after its own, and at most four after it was issued.
const GOOD: Duration = Duration::from_secs(6);
const GONE: Duration = Duration::from_secs(8);

/// Two replicas: the same certificate, the same folder for the keys, the same key to seal them with.
struct Replicas {
    places: [Place; 2],
    _gates: [Gate; 2],
}

impl Replicas {
    /// Over a folder.
    fn start(upstream: &Upstream) -> Self {
        let places = [Place::new(), Place::new()];
        let folder = places[0].path("shared");
        let tickets = format!(
            "tickets = {{ every = \"{}s\", store = {folder:?} }}\n",
            EVERY.as_secs()
        );
        Self::of(places, upstream, &tickets, "")
    }

    fn of(places: [Place; 2], upstream: &Upstream, process: &str, more: &str) -> Self {
        let seal = places[0].path("seal.key");
        let made = places[0].tollgate(&["secret", "keygen", "--out", seal.to_str().unwrap()]);
        assert_eq!(made.code, Some(0), "{made:?}");
        for name in ["cert.pem", "key.pem", "ca.pem"] {
            std::fs::copy(places[0].path(name), places[1].path(name)).unwrap();
        }
        let gates = [0, 1].map(|at| {
            let place: &Place = &places[at];
            let own = format!("[process]\nkey_file = {seal:?}\n{process}");
            let head = place.head().replace("[process]\n", &own) + more;
            place.start(&(head + &place.ingress(upstream.address, "")))
        });
        Self {
            places,
            _gates: gates,
        }
    }
}

async fn kind(partner: &Partner) -> HandshakeKind {
    let answer = partner.get("/headers").await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.kind
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_ticket_of_one_replica_resumes_at_the_other_until_the_fourth_rotation() {
    let upstream = Upstream::start();
    let replicas = Replicas::start(&upstream);
    let [one, two] = &replicas.places;
    for version in VERSIONS {
        // Once both have read the keys that one of them has drawn; a slow machine may need more than one try.
        let begin = Instant::now();
        loop {
            let partner = Partner::new(one, None, version);
            let issued = Instant::now();
            assert_eq!(kind(&partner).await, HandshakeKind::Full);
            let there = kind(&partner.at(two)).await;
            if there == HandshakeKind::Resumed {
                break;
            }
            assert!(
                issued.elapsed() > GOOD || begin.elapsed() < Duration::from_secs(30),
                "a ticket of {:?} is worth nothing at the other",
                issued.elapsed()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // Three periods later, and four. A resumed session brings a new ticket, so each wait has a client of its own.
        let mut late = false;
        while !late {
            let patient = Partner::new(one, None, version);
            let issued = Instant::now();
            assert_eq!(kind(&patient).await, HandshakeKind::Full);
            tokio::time::sleep_until((issued + GOOD - Duration::from_millis(1500)).into()).await;
            let found = kind(&patient.at(two)).await;
            late = issued.elapsed() < GOOD;
            assert!(
                !late || found == HandshakeKind::Resumed,
                "within three periods"
            );
        }
    }
    let old = VERSIONS.map(|version| Partner::new(one, None, version));
    for partner in &old {
        assert_eq!(kind(partner).await, HandshakeKind::Full);
    }
    tokio::time::sleep(GONE + Duration::from_millis(100)).await;
    for partner in &old {
        assert_eq!(kind(&partner.at(two)).await, HandshakeKind::Full);
        assert_eq!(
            kind(&partner.at(one)).await,
            HandshakeKind::Resumed,
            "by the new ticket"
        );
    }
}

/// A Redis that is there for the limits, and a key to seal with: nothing else is needed.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "redis-server is installed by tests/run"]
async fn replicas_share_their_keys_in_redis_and_go_on_without_it() {
    let upstream = Upstream::start();
    let places = [Place::new(), Place::new()];
    let redis = Redis::start(&places[0]);
    let store = format!(
        "[limits.store]\nredis = \"{}\"\npassword_file = {:?}\n",
        redis.url(),
        redis.password()
    );
    let replicas = Replicas::of(places, &upstream, "", &store);
    let [one, two] = &replicas.places;
    let keys = eventually("the keys", Duration::from_secs(20), || {
        let keys = redis.ask(&["--scan"]);
        keys.contains("tickets/keys").then_some(keys)
    });
    let name = keys.lines().find(|line| line.contains("tickets/keys"));
    let blob = redis.ask(&["get", name.unwrap()]);
    assert!(blob.contains("sealed:v1:"), "{blob}");
    let resumes = async || {
        let partner = Partner::new(one, None, &TLS13);
        kind(&partner).await;
        kind(&partner.at(two)).await == HandshakeKind::Resumed
    };
    let begin = Instant::now();
    while !resumes().await {
        assert!(begin.elapsed() < Duration::from_secs(20), "not shared");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(redis);
    assert!(resumes().await, "what is known stays known");
}

/// Nobody but these two ever changes the file: whoever cannot open it says so, and serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn keys_that_cannot_be_read_are_told_of_and_everyone_is_served() {
    let upstream = Upstream::start();
    let replicas = Replicas::start(&upstream);
    let [one, _] = &replicas.places;
    let file = one.path("shared/tickets/keys");
    eventually("the keys", Duration::from_secs(20), || {
        std::fs::metadata(&file).ok()
    });
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("sealed:v1:"), "{text}");
    let stranger = Place::new();
    let seal = stranger.path("seal.key");
    stranger.tollgate(&["secret", "keygen", "--out", seal.to_str().unwrap()]);
    let head = stranger.head().replace(
        "[process]\n",
        &format!(
            "[process]\nkey_file = {seal:?}\ntickets = {{ every = \"2s\", store = {:?} }}\n",
            one.path("shared")
        ),
    );
    let gate = stranger.start(&(head + &stranger.ingress(upstream.address, "")));
    let said = eventually("a warning", Duration::from_secs(20), || {
        let said = gate.stderr();
        said.contains("ticket_keys_not_shared").then_some(said)
    });
    assert!(said.contains("process.key_file"), "{said}");
    let partner = Partner::new(&stranger, None, &TLS13);
    kind(&partner).await;
    assert_eq!(
        kind(&partner).await,
        HandshakeKind::Resumed,
        "by keys of its own"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn tickets_outlive_a_reload_and_carry_no_early_data() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let text = place.head() + &place.ingress(upstream.address, "");
    let gate = place.start(&text);
    let mut partners = VERSIONS.map(|version| Partner::new(&place, None, version));
    let eager = Arc::make_mut(&mut partners[1].config);
    eager.enable_early_data = true;
    for partner in &partners {
        assert_eq!(kind(partner).await, HandshakeKind::Full);
    }
    place.write(&text.replace("drain_deadline = \"10s\"", "drain_deadline = \"11s\""));
    gate.reload();
    for partner in &partners {
        assert_eq!(kind(partner).await, HandshakeKind::Resumed);
    }
    // A resumed session agrees on a fresh secret too, and on one that outlasts a quantum computer.
    let stream = partners[1].tls().await.unwrap();
    let tls = stream.get_ref().1;
    assert_eq!(tls.handshake_kind(), Some(HandshakeKind::Resumed));
    let group = tls.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    drop(stream);
    kind(&partners[1]).await; // for another ticket: each is used once
    // rustls offers early data only if the ticket allows it.
    let config = Arc::clone(&partners[1].config);
    let name = support::gate::HOST.try_into().unwrap();
    let mut again = rustls::ClientConnection::new(config, name).unwrap();
    assert!(again.early_data().is_none());
}

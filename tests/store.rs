//! The store that replicas share: blobs and leases, in a folder and in a real Redis, in the clear and over TLS.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::path::Path;
use std::time::Duration;

use support::gate::Place;
use support::redis::Redis;
use tokio::time::{sleep, timeout};
use tollgate::addr::Destination;
use tollgate::config::typed::{RedisStore, Secret};
use tollgate::reach::Reach;
use tollgate::secret::SealKeys;
use tollgate::store::{Store, StoreError};

const SOON: Duration = Duration::from_secs(20);

fn keys(place: &Place, name: &str) -> SealKeys {
    let path = place.path(name);
    if !path.exists() {
        place
            .tollgate(&["secret", "keygen", "--out", path.to_str().unwrap()])
            .ok();
    }
    SealKeys::load(&path).unwrap()
}

fn server(place: &Place, port: u16, tls: bool) -> RedisStore {
    let password = std::fs::read(place.path("redis.password")).unwrap();
    RedisStore {
        address: Destination::parse(&format!("localhost:{port}")).unwrap(),
        tls,
        user: None,
        password: Some(Secret(password.into())),
        database: 2,
        ca_file: tls.then(|| place.ca()),
    }
}

fn redis(place: &Place, port: u16, tls: bool) -> Store {
    let (server, keys) = (server(place, port, tls), keys(place, "seal.key"));
    Store::redis(&server, Reach::new(&[]), keys).unwrap()
}

/// What holds of every store; `one` and `other` are two processes' views of the same.
async fn blobs_and_leases(one: &Store, other: &Store) {
    assert!(one.get("a/b").await.unwrap().is_none());
    one.put("a/b", b"first").await.unwrap();
    assert_eq!(&**other.get("a/b").await.unwrap().unwrap(), b"first");
    other.put("a/b", b"second").await.unwrap();
    assert_eq!(&**one.get("a/b").await.unwrap().unwrap(), b"second");
    one.remove("a/b").await.unwrap();
    one.remove("a/b").await.unwrap();
    assert!(other.get("a/b").await.unwrap().is_none());
    for name in ["", "../a", "a//b", "/a", "a/.b", "A", "a b"] {
        let refused = one.put(name, b"x").await.unwrap_err();
        assert!(matches!(refused, StoreError::Foreign { .. }), "{name}");
    }
    let large = one.put("a", &vec![0; 1 << 20]).await.unwrap_err();
    assert!(matches!(large, StoreError::TooLarge { .. }));

    let lease = one.lock("a/b").await.unwrap().expect("nobody has it");
    assert!(other.lock("a/b").await.unwrap().is_none());
    assert!(other.lock("a/c").await.unwrap().is_some(), "another lock");
    lease.put("a/b", b"under").await.unwrap();
    assert_eq!(lease.during(async { 7 }).await.unwrap(), 7);
    lease.release().await;
    let taken = other.lock("a/b").await.unwrap();
    assert!(taken.is_some(), "released");
}

#[tokio::test]
async fn a_folder_is_read_by_its_owner_alone_or_sealed() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    let own = place.path("own");
    blobs_and_leases(&Store::own(&own), &Store::own(&own)).await;
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    Store::own(&own).put("x/y", b"secret").await.unwrap();
    assert_eq!(
        (mode(&own.join("x")), mode(&own.join("x/y"))),
        (0o700, 0o600)
    );

    let shared = place.path("shared");
    let store = || Store::shared(&shared, keys(&place, "seal.key"));
    blobs_and_leases(&store(), &store()).await;
    store().put("x/y", b"secret").await.unwrap();
    let text = std::fs::read_to_string(shared.join("x/y")).unwrap();
    assert!(text.starts_with("sealed:v1:"), "{text}");
    // In another place, or with another key, it is nothing.
    std::fs::rename(shared.join("x/y"), shared.join("x/z")).unwrap();
    let moved = store().get("x/z").await.unwrap_err();
    assert!(matches!(moved, StoreError::Sealed { .. }), "{moved}");
    let other = Store::shared(&shared, keys(&place, "other.key"));
    other.put("x/y", b"secret").await.unwrap();
    let text = store().get("x/y").await.unwrap_err().to_string();
    assert!(text.contains("process.key_file"), "{text}");

    // A lock file that is gone is another lock.
    let lease = store().lock("l").await.unwrap().unwrap();
    std::fs::remove_file(shared.join("l.lock")).unwrap();
    let lost = lease.put("x/y", b"late").await.unwrap_err();
    assert!(matches!(lost, StoreError::Lost { .. }), "{lost}");
    // A folder that cannot be made is named.
    let text = Store::own(Path::new("/proc/nowhere"))
        .put("a", b"x")
        .await
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("/proc/nowhere") && text.contains("may write there"),
        "{text}"
    );
}

#[tokio::test]
#[ignore = "needs redis-server; run by tests/run"]
async fn redis_does_the_same_in_the_clear_and_over_tls() {
    for tls in [false, true] {
        let place = Place::new();
        let running = if tls {
            Redis::start_tls(&place)
        } else {
            Redis::start(&place)
        };
        let store = || redis(&place, running.port(), tls);
        blobs_and_leases(&store(), &store()).await;
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run by tests/run"]
async fn who_lost_a_lease_changes_nothing_and_is_told() {
    let place = Place::new();
    let running = Redis::start(&place);
    let (one, other) = (
        redis(&place, running.port(), false),
        redis(&place, running.port(), false),
    );
    let lease = one.lock("l").await.unwrap().unwrap();
    lease.put("b", b"mine").await.unwrap();
    // As if it had slept through the expiry.
    running.ask(&["-n", "2", "del", "tollgate:l.lock"]);
    let taken = other.lock("l").await.unwrap().expect("expired");
    let late = lease.put("b", b"late").await.unwrap_err();
    assert!(matches!(late, StoreError::Lost { .. }), "{late}");
    assert_eq!(&**one.get("b").await.unwrap().unwrap(), b"mine");
    let work = lease.during(sleep(Duration::from_secs(3600)));
    let given_up = timeout(SOON, work)
        .await
        .expect("within two renewals")
        .unwrap_err();
    assert!(matches!(given_up, StoreError::Lost { .. }), "{given_up}");
    lease.release().await;
    assert!(
        one.lock("l").await.unwrap().is_none(),
        "that was not ours to release"
    );
    // Whoever still has it keeps it beyond its expiry.
    running.ask(&["-n", "2", "pexpire", "tollgate:l.lock", "7000"]);
    taken.during(sleep(Duration::from_secs(9))).await.unwrap();
    assert!(one.lock("l").await.unwrap().is_none());
}

#[tokio::test]
#[ignore = "needs redis-server; run by tests/run"]
async fn a_server_that_is_gone_or_wants_another_password_is_named() {
    let place = Place::new();
    let running = Redis::start(&place);
    let store = redis(&place, running.port(), false);
    store.put("a", b"x").await.unwrap();
    let mut wrong = server(&place, running.port(), false);
    wrong.password = Some(Secret(b"guessed".to_vec().into()));
    let wrong = Store::redis(&wrong, Reach::new(&[]), keys(&place, "seal.key")).unwrap();
    let text = wrong.get("a").await.unwrap_err().to_string();
    assert!(
        text.contains("does not accept the user or password"),
        "{text}"
    );
    assert!(!text.contains("guessed"), "{text}");
    // What somebody else has put there is not read without end.
    running.ask(&["-n", "2", "setrange", "tollgate:large", "100000000", "x"]);
    let large = store.get("large").await.unwrap_err();
    assert!(large.to_string().contains("too large"), "{large}");
    let port = running.port();
    drop(running);
    let text = store.get("a").await.unwrap_err().to_string();
    assert!(
        text.contains(&format!("localhost:{port}")) && text.contains("limits.store"),
        "{text}"
    );
    // And is used again once it is back.
    let again = Redis::on(&place, port);
    store.put("a", b"y").await.unwrap();
    assert_eq!(&**store.get("a").await.unwrap().unwrap(), b"y");
    drop(again);
}

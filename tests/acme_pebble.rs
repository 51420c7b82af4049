//! Certificates that are ordered from Debian's pebble: every challenge, restart, renewal, refusals, replicas.
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
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use support::client::{Client, Version};
use support::eventually;
use support::gate::{Gate, HOST, Place, run};
use support::load::Load;
use support::log::Log;
use support::pebble::{Options, Pebble};
use support::peer::must;
use support::redis::Redis;
use support::upstream::Upstream;

const LIMIT: Duration = Duration::from_secs(60);

/// The self-hoster's eight lines, with this pebble in place of Let's Encrypt and ports that a test may have.
fn eight_lines(place: &Place, upstream: &Upstream, acme: &str) -> String {
    format!(
        "{}[[ingress]]\nlisten = \"127.0.0.1:{}\"\nredirect_http = \"127.0.0.1:{}\"\nhosts = [\"{HOST}\"]\n\
         upstream = \"http://{}\"\ntls.acme = {{ contact = \"ops@example.com\", {acme} }}\n\n\
         [egress]\nfixed = [\"127.0.0.7\"]\nresolver = {{ servers = [\"127.0.0.1:9\"] }}\n\
         [[egress.listener]]\nlisten = \"127.0.0.1:{}\"\n",
        place.head(),
        place.https,
        place.http,
        upstream.address,
        place.proxy,
    )
}

/// A request that believes nobody but `root`; the answer's status and the certificate's serial number.
fn get(place: &Place, root: &Path) -> Option<(String, String)> {
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--max-time",
        "10",
        "--noproxy",
        "",
        "--output",
        "/dev/null",
    ]);
    curl.args(["--write-out", "%{http_code} %{certs}", "--cacert"])
        .arg(root);
    curl.arg("--resolve")
        .arg(format!("{HOST}:{}:127.0.0.1", place.https));
    let done = run(curl.arg(format!("https://{HOST}:{}/headers", place.https)));
    let status = done.stdout.split(' ').next()?.to_owned();
    let serial = done
        .stdout
        .lines()
        .find_map(|l| l.strip_prefix("Serial Number:"))?;
    (done.code == Some(0)).then(|| (status, serial.trim().replace(':', "")))
}

/// The events of this name.
fn events(place: &Place, name: &str) -> Vec<Value> {
    if !place.state().join("audit").is_dir() {
        return Vec::new(); // not started yet
    }
    let log = Log::read(&place.state());
    let found = log.kind("event").filter(|event| event["name"] == name);
    found.cloned().collect()
}

fn wait_events(place: &Place, name: &str, count: usize) -> Vec<Value> {
    eventually(name, LIMIT, || {
        let found = events(place, name);
        (found.len() >= count).then_some(found)
    })
}

/// Until the first certificate is served.
fn wait_served(place: &Place, gate: &Gate, root: &Path) -> String {
    eventually("an HTTPS answer", LIMIT, || {
        gate.admin_get("/readyz")
            .filter(|(status, _)| *status == 200)?;
        let (status, serial) = get(place, root)?;
        assert_eq!(status, "200");
        Some(serial)
    })
}

#[test]
#[ignore = "needs pebble and curl; run by tests/run"]
fn a_fresh_state_directory_reaches_https_by_every_challenge_and_a_restart_orders_nothing() {
    let upstream = Upstream::start();
    for challenge in ["tls-alpn-01", "http-01", "dns-01"] {
        let place = Place::new();
        let pebble = Pebble::start(&place, &Options::new(&place));
        let root = pebble.root(&place);
        let more = match challenge {
            "tls-alpn-01" => String::new(), // the default
            "dns-01" => {
                let hook = pebble.names().hook(&place);
                format!(", challenge = \"dns-01\", hook = {hook:?}")
            }
            other => format!(", challenge = \"{other}\""),
        };
        let config = eight_lines(&place, &upstream, &(pebble.keys() + &more));
        let mut gate = place.spawn(&config);
        let serial = wait_served(&place, &gate, &root);
        assert_eq!(gate.stop(LIMIT).code(), Some(0));

        let gate = place.start(&config);
        assert_eq!(get(&place, &root), Some(("200".to_owned(), serial.clone())));
        std::thread::sleep(Duration::from_secs(3)); // it looks at what it keeps every two
        assert_eq!(get(&place, &root), Some(("200".to_owned(), serial)));
        drop(gate);
        assert_eq!(
            events(&place, "certificate_ordered").len(),
            1,
            "{challenge}"
        );
        let issued = events(&place, "certificate_issued");
        assert_eq!(
            (issued.len(), &issued[0]["facts"]["challenge"]),
            (1, &challenge.into())
        );
        modes(&place.state().join("acme"));
        place.verify();
    }
}

/// Nobody else may read keys.
fn modes(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = path.metadata().unwrap().permissions().mode() & 0o777;
    if path.is_dir() {
        assert_eq!(mode, 0o700, "{}", path.display());
        for entry in path.read_dir().unwrap() {
            modes(&entry.unwrap().path());
        }
    } else {
        assert_eq!(mode, 0o600, "{}", path.display());
    }
}

#[test]
#[ignore = "needs pebble and curl; run by tests/run"]
fn a_leaked_key_is_replaced_and_revoked_without_a_dropped_connection() {
    let upstream = Upstream::start();
    let place = Place::new();
    let pebble = Pebble::start(&place, &Options::new(&place));
    let root = pebble.root(&place);
    let gate = place.spawn(&eight_lines(&place, &upstream, &pebble.keys()));
    let leaked = wait_served(&place, &gate, &root);

    let client = Client::trusting(&place, &root, Ipv4Addr::LOCALHOST);
    let kept = Load::start(client.clone(), Version::H1, 4, "/headers");
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let handshakes = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let mut count = 0;
        while !told.load(Ordering::Relaxed) {
            runtime
                .block_on(client.tls(Version::H2))
                .expect("a handshake");
            count += 1;
        }
        count
    });
    let config = place.path("tollgate.toml");
    let config = config.to_str().unwrap();
    let said = place
        .tollgate(&["acme", "renew", HOST, "--revoke", "--config", config])
        .ok();
    let (_, serial) = get(&place, &root).expect("an answer");
    assert!(serial != leaked && said.contains(&serial), "{said}");
    std::thread::sleep(Duration::from_millis(300));
    stop.store(true, Ordering::Relaxed);
    assert!(handshakes.join().unwrap() > 10);
    let tally = kept.stop();
    assert!(tally.of(200) > 10 && tally.statuses.len() == 1, "{tally:?}");
    assert_eq!(
        (tally.failures.len(), tally.unconnected),
        (0, 0),
        "{tally:?}"
    );

    let revoked = wait_events(&place, "certificate_revoked", 1);
    assert_eq!(revoked[0]["facts"]["serial"], leaked.as_str());
    assert_eq!(pebble.status(&leaked), "Revoked");
    assert_eq!(pebble.status(&serial), "Valid");
    let listed = place.tollgate(&["acme", "status", "--config", config]).ok();
    assert!(
        listed.contains(HOST) && listed.contains(&serial),
        "{listed}"
    );
    let unknown = place.tollgate(&["acme", "renew", "other.test", "--config", config]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.stderr.contains(HOST), "{unknown:?}");
    assert_eq!(events(&place, "certificate_ordered").len(), 2);
    let log = Log::read(&place.state());
    let told = gate.stderr() + &Value::from(log.records).to_string();
    assert!(!told.contains("PRIVATE"), "keys do not show");
}

#[test]
#[ignore = "needs pebble and curl; run by tests/run"]
fn a_name_and_its_wildcard_take_turns_at_one_record() {
    let upstream = Upstream::start();
    let place = Place::new();
    // Its name server keeps one value for each record, as many hooks do.
    let pebble = Pebble::start(&place, &Options::new(&place));
    let hook = pebble.names().hook(&place);
    let acme = format!("{}, challenge = \"dns-01\", hook = {hook:?}", pebble.keys());
    let hosts = "hosts = [\"apps.test\", \"*.apps.test\"]";
    let config = eight_lines(&place, &upstream, &acme);
    let gate = place.spawn(&config.replace(&format!("hosts = [\"{HOST}\"]"), hosts));
    wait_events(&place, "certificate_issued", 2);
    assert!(
        events(&place, "certificate_failed").is_empty(),
        "{}",
        gate.stderr()
    );
    let log = std::fs::read_to_string(place.path("dns-hook.log")).unwrap();
    let words: Vec<_> = log.lines().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(words, ["set", "clear", "set", "clear"], "{log}");
}

#[test]
#[ignore = "needs pebble and curl; run by tests/run"]
fn what_expires_soon_is_renewed_by_itself_and_served_while_the_authority_is_down() {
    let upstream = Upstream::start();
    let place = Place::new();
    let options = Options {
        life: Some(30),
        ..Options::new(&place)
    };
    // Nobody is there yet: that is told, and tried again.
    let gate = place.spawn(&eight_lines(
        &place,
        &upstream,
        &format!(
            "directory = \"https://localhost:{}/dir\", ca_file = {:?}",
            options.port,
            place.ca()
        ),
    ));
    let failed = wait_events(&place, "certificate_failed", 1);
    let facts = &failed[0]["facts"];
    assert_eq!(facts["reason"], "unreachable");
    assert_eq!(facts["certificate"], HOST);
    let why = facts["why"].as_str().unwrap();
    assert!(
        why.contains(&options.port.to_string()) && why.contains("firewall"),
        "{why}"
    );
    assert!(!facts["next_attempt"].as_str().unwrap().is_empty());
    let (status, text) = gate.admin_get("/readyz").unwrap();
    assert!(status == 503 && text.contains(HOST), "{text}");
    assert_eq!(
        get(&place, &place.ca()),
        None,
        "nothing is served in its stead"
    );

    let pebble = Pebble::start(&place, &options);
    let root = pebble.root(&place);
    let first = wait_served(&place, &gate, &root);
    // At two thirds of 30 seconds.
    let second = eventually("a renewed certificate", LIMIT, || {
        get(&place, &root)
            .map(|(_, serial)| serial)
            .filter(|serial| *serial != first)
    });
    drop(pebble);
    let failed = events(&place, "certificate_failed").len();
    wait_events(&place, "certificate_failed", failed + 1);
    let (_, serial) = get(&place, &root).expect("the last good one is served");
    assert_eq!(serial, second);
}

#[test]
#[ignore = "needs pebble and curl; run by tests/run"]
fn one_bad_name_never_holds_up_another_and_says_why() {
    let upstream = Upstream::start();
    let place = Place::new();
    let options = Options {
        blocked: &["other.test"],
        ..Options::new(&place)
    };
    let pebble = Pebble::start(&place, &options);
    let root = pebble.root(&place);
    let hosts = format!("hosts = [\"other.test\", \"{HOST}\"]");
    let config = eight_lines(&place, &upstream, &pebble.keys());
    let gate = place.spawn(&config.replace(&format!("hosts = [\"{HOST}\"]"), &hosts));
    wait_served(&place, &gate, &root);
    let failed = wait_events(&place, "certificate_failed", 1);
    let mut other = Command::new("curl");
    other.args(["--silent", "--insecure", "--noproxy", "", "--resolve"]);
    other.arg(format!("other.test:{}:127.0.0.1", place.https));
    let done = run(other.arg(format!("https://other.test:{}/", place.https)));
    assert_eq!(
        done.code,
        Some(35),
        "no other certificate in its stead: {done:?}"
    );
    let facts = &failed[0]["facts"];
    assert_eq!(facts["certificate"], "other.test");
    assert_eq!(facts["reason"], "rejectedIdentifier");
    let why = facts["why"].as_str().unwrap();
    assert!(why.contains("correct `hosts`"), "{why}");
    let metrics = gate.metrics();
    assert!(
        metrics.contains("tollgate_certificates_issued_total 1"),
        "{metrics}"
    );
    assert!(
        metrics.contains("tollgate_certificate_failures_total 1"),
        "{metrics}"
    );
    assert!(
        !metrics.contains("tollgate_challenges_answered_total 0"),
        "{metrics}"
    );
}

#[test]
#[ignore = "needs pebble and curl; run by tests/run"]
fn an_account_that_needs_a_binding_says_so_and_has_one() {
    let upstream = Upstream::start();
    let place = Place::new();
    let key = &*"c2VjcmV0".repeat(8);
    let options = Options {
        binding: Some(("kid-1", key)),
        ..Options::new(&place)
    };
    let pebble = Pebble::start(&place, &options);
    let root = pebble.root(&place);
    let gate = place.spawn(&eight_lines(&place, &upstream, &pebble.keys()));
    let failed = wait_events(&place, "certificate_failed", 1);
    assert_eq!(failed[0]["facts"]["reason"], "externalAccountRequired");
    let why = failed[0]["facts"]["why"].as_str().unwrap();
    assert!(why.contains("acme.eab"), "{why}");

    std::fs::write(place.path("eab.key"), key).unwrap();
    let bound = format!(
        "{}, eab = {{ kid = \"kid-1\", key_file = \"eab.key\" }}",
        pebble.keys()
    );
    // Other settings are tried at once, however long the old ones would have waited.
    place.write(&eight_lines(&place, &upstream, &bound));
    gate.reload();
    wait_served(&place, &gate, &root);
    assert!(!gate.stderr().contains(key));
}

#[test]
#[ignore = "needs pebble and curl; run by tests/run"]
fn the_authority_may_ask_its_one_question_though_it_is_on_no_list() {
    let upstream = Upstream::start();
    for challenge in ["tls-alpn-01", "http-01"] {
        let place = Place::new();
        let pebble = Pebble::start(&place, &Options::new(&place));
        let root = pebble.root(&place);
        let acme = format!("{}, challenge = \"{challenge}\"", pebble.keys());
        // Pebble asks from 127.0.0.1.
        let config = eight_lines(&place, &upstream, &acme)
            .replace("hosts =", "allow = [\"127.0.0.9\"]\nhosts =");
        let gate = place.start(&config);
        let answered = wait_events(&place, "challenge_answered", 1);
        assert_eq!(answered[0]["facts"]["client"], "127.0.0.1");
        assert_eq!(answered[0]["facts"]["challenge"], challenge);
        assert_eq!(get(&place, &root), None, "others are still turned away");
        let url = format!(
            "http://127.0.0.1:{}/.well-known/acme-challenge/x",
            place.http
        );
        let done = run(Command::new("curl").args(["--silent", "--noproxy", "", &url]));
        assert!(
            done.code != Some(0) && done.stdout.is_empty(),
            "closed without a reply: {done:?}"
        );
        let client = Client::trusting(&place, &root, Ipv4Addr::new(127, 0, 0, 9));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let reply = runtime.block_on(client.get(Version::H2, "/headers"));
        assert_eq!(reply.status, 200);
        drop(gate);
        let log = Log::read(&place.state());
        let denied = log
            .kind("denied")
            .filter(|r| r["reason"] == "client_denied");
        assert!(denied.count() >= 1);
        assert_eq!(log.kind("before").count(), 1, "nothing of it reached HTTP");
    }
}

/// Two replicas, of which the authority can only ask the first.
fn replicas(store: &str, more: &str, upstream: &Upstream) -> (Place, Place) {
    let (one, other) = (Place::new(), Place::new());
    let pebble = Pebble::start(&one, &Options::new(&one));
    let root = pebble.root(&one);
    let key = one.path("seal.key");
    one.tollgate(&["secret", "keygen", "--out", key.to_str().unwrap()])
        .ok();
    let acme = format!("{}, store = {store}", pebble.keys());
    let config = |place: &Place| {
        let process = format!("[process]\nkey_file = {key:?}\n");
        let text = eight_lines(place, upstream, &acme);
        more.to_owned() + &text.replace("[process]\n", &process)
    };
    // The one that orders is not the one that is asked.
    let second = other.spawn(&config(&other));
    wait_events(&other, "certificate_ordered", 1);
    let first = one.spawn(&config(&one));
    let serial = wait_served(&one, &first, &root);
    assert!(!wait_events(&one, "challenge_answered", 1).is_empty());
    assert_eq!(
        wait_served(&other, &second, &root),
        serial,
        "one certificate for both"
    );
    let count = |name| events(&one, name).len() + events(&other, name).len();
    assert_eq!(count("certificate_issued"), 1);
    assert_eq!(
        count("certificate_ordered"),
        1 + count("certificate_failed")
    );
    // Whichever is told to, one of them orders, and both serve what comes.
    let file = other.path("tollgate.toml");
    let renew = ["acme", "renew", HOST, "--config", file.to_str().unwrap()];
    let said = other.tollgate(&renew).ok();
    for place in [&one, &other] {
        eventually("the new certificate", LIMIT, || {
            let (_, now) = get(place, &root)?;
            said.contains(&now).then_some(())
        });
    }
    assert_eq!(count("certificate_issued"), 2);
    drop((first, second));
    (one, other)
}

#[test]
#[ignore = "needs pebble and curl; run by tests/run"]
fn two_replicas_on_one_folder_order_once() {
    let volume = tempfile::tempdir().unwrap();
    let store = format!("{:?}", volume.path());
    replicas(&store, "", &Upstream::start());
    let kept = must(
        Command::new("grep")
            .args(["-rLE", "^sealed:v1:"])
            .arg(volume.path()),
    );
    let clear: Vec<_> = kept
        .lines()
        .filter(|file| !file.ends_with(".lock"))
        .collect();
    assert!(clear.is_empty(), "not sealed: {clear:?}");
}

#[test]
#[ignore = "needs pebble, curl and redis-server; run by tests/run"]
fn two_replicas_on_one_redis_order_once() {
    let place = Place::new();
    let redis = Redis::start(&place);
    let more = format!(
        "[limits.store]\nredis = \"{}\"\npassword_file = {:?}\n",
        redis.url(),
        redis.password()
    );
    replicas("\"redis\"", &more, &Upstream::start());
    let keys = redis.ask(&["--scan"]);
    assert!(
        keys.contains("tollgate:certificates/") && keys.contains("tollgate:accounts/"),
        "{keys}"
    );
    for key in keys.lines().filter(|key| !key.ends_with(".lock")) {
        let value = redis.ask(&["get", key]);
        assert!(value.starts_with("sealed:v1:"), "{key}: {value}");
    }
}

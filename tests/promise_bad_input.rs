//! Bad input at the start: each gets an error that names the thing and the mend, and an exit status that says whose it is.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use support::dns::Dns;
use support::gate::{Done, FIXED, Place, binary};
use support::log::Log;
use support::peer::must;
use support::upstream::Upstream;

const CONFIGURATION: i32 = 2;
const RUNTIME: i32 = 3;

/// `tollgate run` that must end by itself.
fn refused(place: &Place, config: &str) -> Done {
    let mut gate = place.spawn(config);
    let status = gate.wait_exit(Duration::from_secs(20));
    Done {
        code: status.code(),
        stdout: String::new(),
        stderr: gate.stderr(),
    }
}

fn assert_says(done: &Done, code: i32, words: &[&str]) {
    assert_eq!(done.code, Some(code), "{done:?}");
    for word in words {
        assert!(
            done.stderr.contains(word),
            "{word:?} is not in {}",
            done.stderr
        );
    }
    assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
    // Meant for a person: a few lines, not a dump.
    assert!(done.stderr.lines().count() < 30, "{}", done.stderr);
}

fn good(place: &Place, upstream: &Upstream) -> String {
    place.head() + &place.ingress(upstream.address, "")
}

#[test]
fn a_busy_port_is_named() {
    let (place, upstream) = (Place::new(), Upstream::start());
    for port in [place.https, place.admin] {
        let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let done = refused(&place, &good(&place, &upstream));
        assert_says(&done, RUNTIME, &[&format!("127.0.0.1:{port}")]);
        fs::remove_file(place.path("stderr")).unwrap();
    }
}

#[test]
fn an_address_that_is_not_here_is_named() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let here = format!("listen = [\"127.0.0.1:{}\"]", place.https);
    let config = good(&place, &upstream).replace(&here, "listen = [\"192.0.2.1:8443\"]");
    assert_says(&refused(&place, &config), RUNTIME, &["192.0.2.1:8443"]);
}

#[test]
fn certificates_and_keys_that_cannot_be_used_are_named() {
    let upstream = Upstream::start();
    let garbled = "-----BEGIN CERTIFICATE-----\nnot base64 at all!\n-----END CERTIFICATE-----\n";
    for (file, text) in [
        ("cert.pem", Some(garbled)),
        ("cert.pem", Some("")),
        ("cert.pem", None),
        ("key.pem", Some(garbled)),
        (
            "key.pem",
            Some("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        ),
        ("key.pem", None),
    ] {
        let place = Place::new();
        match text {
            Some(text) => fs::write(place.path(file), text).unwrap(),
            None => fs::remove_file(place.path(file)).unwrap(),
        }
        let config = good(&place, &upstream);
        let path = place.path(file);
        assert_says(
            &refused(&place, &config),
            CONFIGURATION,
            &[path.to_str().unwrap()],
        );
    }
    // Both can be read, and do not belong together.
    let (place, other) = (Place::new(), Place::new());
    fs::copy(other.path("key.pem"), place.path("key.pem")).unwrap();
    let done = refused(&place, &good(&place, &upstream));
    assert_says(&done, CONFIGURATION, &["key.pem"]);
}

#[test]
fn a_key_that_cannot_be_read_is_named() {
    let (place, upstream) = (Place::new(), Upstream::start());
    fs::remove_file(place.path("key.pem")).unwrap();
    fs::create_dir(place.path("key.pem")).unwrap();
    let done = refused(&place, &good(&place, &upstream));
    assert_says(
        &done,
        CONFIGURATION,
        &[place.path("key.pem").to_str().unwrap()],
    );
}

#[test]
fn a_state_directory_that_is_none_is_named() {
    let (place, upstream) = (Place::new(), Upstream::start());
    fs::write(place.state(), "a file").unwrap();
    let done = refused(&place, &good(&place, &upstream));
    assert_says(&done, RUNTIME, &[place.state().to_str().unwrap()]);
}

/// A small file system on the state directory, gone when dropped.
struct Mounted<'a>(&'a Place);

impl<'a> Mounted<'a> {
    fn new(place: &'a Place, options: &str) -> Self {
        fs::create_dir(place.state()).unwrap();
        let mut command = Command::new("mount");
        must(
            command
                .args(["-t", "tmpfs", "-o", options, "tollgate-test"])
                .arg(place.state()),
        );
        Self(place)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        Command::new("umount")
            .arg("--lazy")
            .arg(self.0.state())
            .status()
            .ok();
    }
}

#[test]
#[ignore = "needs root to mount a file system; run by tests/run"]
fn a_state_directory_that_is_read_only_or_full_is_named() {
    let upstream = Upstream::start();
    for options in ["ro", "size=4k"] {
        let place = Place::new();
        let _mounted = Mounted::new(&place, options);
        let done = refused(&place, &good(&place, &upstream));
        assert_says(&done, RUNTIME, &[place.state().to_str().unwrap()]);
    }
}

/// The only file with this ending in the audit directory.
fn segment(place: &Place, ending: &str) -> PathBuf {
    let found: Vec<_> = fs::read_dir(place.state().join("audit"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == ending))
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

const TORN: &[u8] = b"{\"seq\":99,\"batch\":1,\"kind\":\"before\",\"torn in the mid";

/// A write that was torn by a crash is set aside, not deleted.
#[test]
fn a_torn_end_of_the_log_is_kept() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let config = good(&place, &upstream);
    let mut gate = place.start(&config);
    gate.kill();
    let open = segment(&place, "open");
    let mut bytes = fs::read(&open).unwrap();
    let end = bytes.iter().position(|b| *b == 0).expect("room at the end");
    bytes[end..end + TORN.len()].copy_from_slice(TORN);
    fs::write(&open, &bytes).unwrap();

    assert!(place.start(&config).stop(Duration::from_secs(20)).success());
    let kept = fs::read_dir(place.state().join("audit/quarantine"))
        .unwrap()
        .any(|entry| {
            let text = fs::read(entry.unwrap().path()).unwrap_or_default();
            text.windows(TORN.len()).any(|window| window == TORN)
        });
    assert!(kept, "the torn bytes are gone");
    let log = Log::read(&place.state());
    log.assert_gapless();
    assert!(log.records.iter().all(|r| r["seq"] != 99));
    place.verify();
}

/// Damage that no crash of ours makes is for a person to judge: nothing is started on top of it, nothing is changed.
#[test]
fn a_damaged_closed_segment_is_named_and_left_alone() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let config = good(&place, &upstream);
    assert!(place.start(&config).stop(Duration::from_secs(20)).success());
    let closed = segment(&place, "jsonl");
    let mut bytes = fs::read(&closed).unwrap();
    bytes[20] ^= 1;
    fs::write(&closed, &bytes).unwrap();
    let done = refused(&place, &config);
    assert_says(&done, RUNTIME, &[closed.to_str().unwrap(), "audit verify"]);
    assert_eq!(fs::read(&closed).unwrap(), bytes);
    let state = place.state();
    let verify = ["audit", "verify", state.to_str().unwrap()];
    assert_eq!(
        place.tollgate(&verify).code,
        Some(1),
        "the damage is not found"
    );
}

#[test]
fn check_names_every_mistake_at_once_with_its_place() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let dns = Dns::table(&[]);
    let config = place.write(&(good(&place, &upstream) + &place.egress(dns.address, "")));
    let config = config.to_str().unwrap();
    assert_eq!(place.tollgate(&["check", "--config", config]).code, Some(0));

    let bad = (good(&place, &upstream) + &place.egress(dns.address, ""))
        .replace(&FIXED.to_string(), "127.0.0.777")
        .replace(
            "drain_deadline = \"10s\"",
            "drain_deadline = \"10 parsecs\"",
        )
        + "\n[surprise]\n";
    place.write(&bad);
    let done = place.tollgate(&["check", "--config", config]);
    assert_says(
        &done,
        CONFIGURATION,
        &[
            "127.0.0.777",
            "drain_deadline",
            "surprise",
            "tollgate.toml:3:",
        ],
    );

    fs::remove_file(config).unwrap();
    for command in ["check", "run"] {
        let done = place.tollgate(&[command, "--config", config]);
        assert_says(&done, CONFIGURATION, &[config]);
    }
}

#[test]
fn usage_mistakes_end_with_2_and_help_with_0() {
    let place = Place::new();
    for args in [vec!["walk"], vec!["run", "--surprise"], vec!["audit"]] {
        assert_eq!(place.tollgate(&args).code, Some(CONFIGURATION), "{args:?}");
    }
    for args in [
        vec!["--help"],
        vec!["--version"],
        vec!["run", "--help"],
        vec!["check", "--help"],
    ] {
        let done = place.tollgate(&args);
        assert!(
            done.code == Some(0) && !done.stdout.is_empty(),
            "{args:?}: {done:?}"
        );
    }
    let missing = place.path("missing");
    let done = place.tollgate(&["audit", "verify", missing.to_str().unwrap()]);
    assert!(
        done.code != Some(0) && done.stderr.contains("missing"),
        "{done:?}"
    );
    assert!(binary().ends_with("tollgate"));
}

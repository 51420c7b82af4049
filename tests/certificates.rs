//! Certificates by name: who is shown which, what happens when files change, and what is said about bad ones.
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
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rcgen::ExtendedKeyUsagePurpose;
use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use support::authority::{Authority, FRESH, Life, Looker, Pair};
use support::gate::{Place, write};
use support::log::Log;
use support::upstream::Upstream;
use support::{eventually, rounds};

const STOP_LIMIT: Duration = Duration::from_secs(20);
/// For a change of files to be seen, on a machine that has much else to do.
const SEEN_LIMIT: Duration = Duration::from_secs(30);

/// A pair of files in a place.
struct Files {
    cert: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new(place: &Place, name: &str, pair: &Pair) -> Self {
        let files = Self {
            cert: place.path(&format!("{name}.crt")),
            key: place.path(&format!("{name}.key")),
        };
        pair.write(&files.cert, &files.key);
        files
    }
}

/// A configuration with these certificates; `tls` holds further keys of the table, `more` of the ingress.
fn configuration(
    place: &Place,
    upstream: &Upstream,
    files: &[&Files],
    tls: &str,
    more: &str,
) -> String {
    let pairs = files
        .iter()
        .map(|f| format!("{{ cert = {:?}, key = {:?} }}", f.cert, f.key));
    format!(
        "{}[[ingress]]\nlisten = \"127.0.0.1:{}\"\nupstream = \"http://{}\"\n{more}\n[ingress.tls]\n{tls}\ncertificates = [{}]\n",
        place.head(),
        place.https,
        upstream.address,
        pairs.collect::<Vec<_>>().join(", ")
    )
}

fn events(place: &Place, name: &str) -> Vec<serde_json::Value> {
    let log = Log::read(&place.state());
    let of_name = log.kind("event").filter(|r| r["name"] == name);
    of_name.cloned().collect()
}

#[tokio::test]
async fn each_name_is_shown_its_certificate() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = Authority::new("names");
    let [first, exact, wild, address] = [
        &["first.test", "*.first.test"][..],
        &["special.apps.test"],
        &["*.apps.test"],
        &["127.0.0.1", "address.test"],
    ]
    .map(|names| ca.issue(names, FRESH));
    let files = [
        Files::new(&place, "first", &first),
        Files::new(&place, "wild", &wild),
        Files::new(&place, "exact", &exact),
        Files::new(&place, "address", &address),
    ];
    let files = files.each_ref();
    let gate = place.start(&configuration(&place, &upstream, &files, "", ""));
    let looker = Looker::credulous(place.https, &ca);
    for (name, pair) in [
        ("first.test", &first),
        ("a.first.test", &first),
        ("special.apps.test", &exact),
        ("SPECIAL.apps.test", &exact),
        ("other.apps.test", &wild),
        ("apps.test", &first),
        ("a.special.apps.test", &first),
        ("address.test", &address),
        ("unknown.test", &first),
        // An address is not sent as a server name.
        ("127.0.0.1", &address),
    ] {
        let shown = looker.look(name).await.expect(name);
        assert!(shown.leaf == pair.leaf, "{name} was shown another one");
    }
    let shown = looker.clone().nameless().look("first.test").await.unwrap();
    assert!(
        shown.leaf == address.leaf,
        "who names nobody may have connected to an address"
    );
    drop(gate);

    let refuse = "unknown_sni = \"refuse\"";
    let text = configuration(&place, &upstream, &files[..3], refuse, "");
    let mut gate = place.start(&text);
    assert!(looker.look("other.apps.test").await.unwrap().leaf == wild.leaf);
    for (looker, name) in [
        (looker.clone(), "unknown.test"),
        (looker.clone(), "127.0.0.1"),
        (looker.clone().nameless(), "first.test"),
    ] {
        let why = looker.look(name).await.err().expect("refused").to_string();
        assert!(why.contains("UnrecognisedName"), "{name}: {why}");
    }
    let counted = "code=\"server_name_unknown\",fault=\"client\"} 3";
    eventually(counted, SEEN_LIMIT, || {
        gate.metrics().contains(counted).then_some(())
    });
    assert!(gate.stop(STOP_LIMIT).success());
    let log = Log::read(&place.state());
    let denied: Vec<_> = log.kind("denied").collect();
    assert_eq!(denied.len(), 3, "{denied:?}");
    assert!(denied.iter().all(|r| r["reason"] == "server_name_unknown"));
    assert!(
        denied.iter().any(|r| r["target"] == "unknown.test"),
        "{denied:?}"
    );
}

/// The name is read from the whole greeting, in however many records and segments it comes.
#[test]
fn a_greeting_in_pieces_is_read_whole() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = Authority::new("pieces");
    let [first, second] = ["first.test", "second.test"].map(|name| ca.issue(&[name], FRESH));
    let a = Files::new(&place, "first", &first);
    let b = Files::new(&place, "second", &second);
    let _gate = place.start(&configuration(&place, &upstream, &[&a, &b], "", ""));
    let looker = Looker::strict(place.https, &ca);
    for bytes in [1, 7, 100, 1000] {
        let shown = looker.look_in_pieces("second.test", bytes);
        assert!(shown == second.leaf, "in pieces of {bytes}");
    }
}

/// RFC 9110 section 15.5.20: a connection serves the hosts of its certificate, and hosts that have none.
#[tokio::test]
async fn a_host_of_another_certificate_is_misdirected() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = Authority::new("misdirected");
    let a = Files::new(&place, "a", &ca.issue(&["a.test", "both.test"], FRESH));
    let b = Files::new(&place, "b", &ca.issue(&["b.test", "*.b.test"], FRESH));
    let mut gate = place.start(&configuration(&place, &upstream, &[&a, &b], "", ""));
    let looker = Looker::strict(place.https, &ca);
    let mut shown = looker.look("a.test").await.unwrap();
    for (host, status) in [
        ("a.test", 200),
        ("b.test", 421),
        ("a.test", 200),
        ("x.b.test", 421),
        ("both.test", 200),
        ("nobody.test", 200),
        ("127.0.0.1", 200),
        ("b.test:8443", 421),
    ] {
        assert_eq!(shown.get(host).await, status, "{host}");
    }
    let mut shown = looker.look("b.test").await.unwrap();
    for (host, status) in [("b.test", 200), ("both.test", 421), ("x.b.test", 200)] {
        assert_eq!(shown.get(host).await, status, "{host}");
    }
    // Who names no server would be shown the same certificate again: another connection would be of no use.
    let nameless = Looker::credulous(place.https, &ca).nameless();
    let mut shown = nameless.look("a.test").await.unwrap();
    assert_eq!(shown.get("b.test").await, 200);
    assert_eq!(upstream.heads().len(), 8, "a misdirected request went on");
    assert!(gate.stop(STOP_LIMIT).success());
    let log = Log::read(&place.state());
    let denied = log.kind("denied").filter(|r| r["reason"] == "misdirected");
    assert_eq!(denied.count(), 4);
    assert!(log.kind("denied").any(|r| r["target"] == "x.b.test"));
}

/// Handshakes with every name, one after the other, until told to stop.
struct Handshakes {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<(usize, Vec<String>)>>,
}

impl Handshakes {
    fn start(looker: &Looker, names: &[&'static str]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let run = |name: &'static str| {
            let (looker, stop) = (looker.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let (mut count, mut failed) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match looker.look(name).await {
                        Ok(_) => count += 1,
                        Err(error) => failed.push(format!("{name}: {error}")),
                    }
                }
                (count, failed)
            })
        };
        let tasks = names.iter().map(|name| run(name)).collect();
        Self { stop, tasks }
    }

    /// How many there were for each name. None may have failed.
    async fn end(self) -> Vec<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let mut counts = Vec::new();
        for task in self.tasks {
            let (count, failed) = task.await.unwrap();
            assert!(failed.is_empty(), "{failed:?}");
            counts.push(count);
        }
        counts
    }
}

/// Waits until `name` is shown `pair`.
async fn shown(looker: &Looker, name: &str, pair: &Pair) {
    let begin = Instant::now();
    while looker.look(name).await.unwrap().leaf != pair.leaf {
        assert!(
            begin.elapsed() < SEEN_LIMIT,
            "{name}: the new one is not served"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// As cert-manager and the kubelet do it: the files are links into `..data`, a link that is swapped whole.
fn swap(folder: &Path, round: usize, pair: &Pair) {
    let version = folder.join(format!("..{round}"));
    fs::create_dir_all(&version).unwrap();
    pair.write(&version.join("tls.crt"), &version.join("tls.key"));
    symlink(format!("..{round}"), folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    if round == 0 {
        for name in ["tls.crt", "tls.key"] {
            symlink(format!("..data/{name}"), folder.join(name)).unwrap();
        }
    } else {
        fs::remove_dir_all(folder.join(format!("..{}", round - 1))).unwrap();
    }
}

/// How often the certificate of each name was replaced, as the audit log has it.
fn replaced(place: &Place, names: &[&str]) -> Vec<usize> {
    let found = events(place, "certificate_replaced");
    for event in &found {
        let facts = &event["facts"];
        assert_ne!(facts["serial"], facts["previous_serial"], "{facts}");
    }
    let of = |name: &&str| {
        found
            .iter()
            .filter(|r| r["facts"]["names"] == **name)
            .count()
    };
    names.iter().map(of).collect()
}

/// The garbage of the third pair was named, and nothing that was no garbage.
fn assert_told(place: &Place, files: &[Files; 4]) {
    let rejected = events(place, "certificate_rejected");
    let named = files[2].cert.display().to_string();
    assert!(
        rejected.iter().any(|r| r["facts"]["file"] == named),
        "{rejected:?}"
    );
    // Of two files that are renamed one after the other a look may find the first alone.
    let may = [&files[0], &files[2]].map(|f| f.cert.display().to_string());
    let known = |r: &serde_json::Value| may.iter().any(|m| r["facts"]["certificate"] == **m);
    assert!(rejected.iter().all(known), "{rejected:?}");
}

/// 102 replacements: 34 each by rename, by a swapped link, and in place behind garbage, while handshakes never stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_replaced_100_times_under_load() {
    const NAMES: [&str; 4] = ["renamed.test", "swapped.test", "written.test", "other.test"];
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = Authority::new("replaced");
    let issue = |name: &str| ca.issue(&[name], FRESH);
    let [renamed, swapped, written, other] = NAMES.map(issue);
    let folder = place.path("secret");
    fs::create_dir(&folder).unwrap();
    swap(&folder, 0, &swapped);
    let files = [
        Files::new(&place, "renamed", &renamed),
        Files {
            cert: folder.join("tls.crt"),
            key: folder.join("tls.key"),
        },
        Files::new(&place, "written", &written),
        Files::new(&place, "other", &other),
    ];
    let text = configuration(&place, &upstream, &files.each_ref(), "", "");
    let mut gate = place.start(&text);
    let looker = Looker::strict(place.https, &ca).forgetful();
    let handshakes = Handshakes::start(&looker, &NAMES);
    let rounds = rounds("TOLLGATE_CERTIFICATE_ROUNDS", 34);
    for round in 1..=rounds {
        let [renamed, swapped, written] = [NAMES[0], NAMES[1], NAMES[2]].map(issue);
        write(
            &files[2].cert,
            "-----BEGIN CERTIFICATE-----\nnot this time\n",
        );
        if round <= 3 {
            // There for long enough to be judged, it is named.
            eventually("the garbage is named", SEEN_LIMIT, || {
                (events(&place, "certificate_rejected").len() >= round).then_some(())
            });
        }
        let [cert, key] = [place.path("new.crt"), place.path("new.key")];
        renamed.write(&cert, &key);
        fs::rename(cert, &files[0].cert).unwrap();
        fs::rename(key, &files[0].key).unwrap();
        swap(&folder, round, &swapped);
        written.write(&files[2].cert, &files[2].key);
        for (name, pair) in NAMES.iter().zip([&renamed, &swapped, &written]) {
            shown(&looker, name, pair).await;
        }
    }
    let last = looker.look(NAMES[3]).await.unwrap();
    assert!(last.leaf == other.leaf, "a host that nobody touched");
    let counts = handshakes.end().await;
    println!("handshakes for {NAMES:?}: {counts:?}");
    assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
    assert!(gate.stop(STOP_LIMIT).success());

    let named = files[2].cert.display().to_string();
    let said = gate.stderr();
    assert!(
        said.contains(&format!("{named}: is not valid PEM")),
        "{said}"
    );
    assert_told(&place, &files);
    let replaced = replaced(&place, &NAMES);
    assert_eq!(replaced, [rounds, rounds, rounds, 0]);
    place.verify();
}

#[tokio::test]
async fn a_reload_and_a_new_certificate_keep_resumption() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = Authority::new("resumed");
    let a = Files::new(&place, "a", &ca.issue(&["a.test"], FRESH));
    let with = |more: &str| configuration(&place, &upstream, &[&a], "", more);
    let gate = place.start(&with(""));
    for version in [&TLS12, &TLS13] {
        let looker = Looker::speaking(place.https, &ca, version);
        let kind = async || {
            let mut shown = looker.look("a.test").await.unwrap();
            assert_eq!(shown.get("a.test").await, 200); // by then the ticket has come
            shown.kind
        };
        assert_eq!(kind().await, HandshakeKind::Full);
        assert_eq!(kind().await, HandshakeKind::Resumed);
        for max_body in ["1MiB", "2MiB"] {
            place.write(&with(&format!("max_body = \"{max_body}\"")));
            gate.reload();
            assert_eq!(kind().await, HandshakeKind::Resumed, "{version:?}");
        }
        let next = ca.issue(&["a.test"], FRESH);
        next.write(&a.cert, &a.key);
        let fresh = Looker::strict(place.https, &ca).forgetful();
        shown(&fresh, "a.test", &next).await;
        assert_eq!(kind().await, HandshakeKind::Resumed, "{version:?}");
    }
}

/// What is bad when it is read again keeps nothing else back: the reload takes effect, and says what is wrong.
#[tokio::test]
async fn a_bad_file_at_a_reload_is_named_and_the_last_good_stays() {
    const KEY: &str = "= key: ingress[0].tls.certificates[0].key";
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = Authority::new("reload");
    let (good, other) = (ca.issue(&["a.test"], FRESH), ca.issue(&["b.test"], FRESH));
    let a = Files::new(&place, "a", &good);
    let b = Files::new(&place, "b", &other);
    let with = |files: &[&Files]| configuration(&place, &upstream, files, "", "");
    let gate = place.start(&with(&[&a]));
    let looker = Looker::strict(place.https, &ca);
    // The key of another, and with the same reload a second certificate.
    write(&a.key, &other.key);
    place.write(&with(&[&a, &b]));
    for times in 1..=3 {
        gate.reload();
        assert!(looker.look("a.test").await.unwrap().leaf == good.leaf);
        assert!(looker.look("b.test").await.unwrap().leaf == other.leaf);
        let said = gate.stderr();
        assert!(said.contains("is the key of another certificate"), "{said}");
        assert_eq!(
            said.matches(KEY).count(),
            times,
            "each reload says so: {said}"
        );
    }
    assert!(gate.metrics().contains("tollgate_snapshot_generation 4"));
    assert_eq!(events(&place, "certificate_rejected").len(), 1, "once");
    // A pair that is new must be good.
    place.write(&with(&[&b]).replace("b.key", "a.crt"));
    gate.reload();
    assert!(gate.metrics().contains("tollgate_reload_failures_total 1"));
    assert!(looker.look("a.test").await.unwrap().leaf == good.leaf);
    // A pair that nobody names any more is followed no longer.
    let metric = |files: &Files| {
        let name = files.cert.display();
        format!("tollgate_certificate_not_after_seconds{{name=\"{name}\"}}")
    };
    assert!(gate.metrics().contains(&metric(&a)));
    place.write(&with(&[&b]));
    gate.reload();
    eventually("the first to be forgotten", SEEN_LIMIT, || {
        (!gate.metrics().contains(&metric(&a))).then_some(())
    });
    assert!(gate.metrics().contains(&metric(&b)));
}

#[tokio::test]
async fn the_end_of_a_certificate_is_told() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let ca = Authority::new("ending");
    let [late, last, fresh] = [
        ("late.test", Life(-600, -5)),
        ("last.test", Life(-6000, 1500)),
        ("fresh.test", FRESH),
    ]
    .map(|(name, life)| Files::new(&place, name, &ca.issue(&[name], life)));
    let files = [&late, &last, &fresh];
    // At a start nothing better is there, and that is no reason to leave other hosts without service.
    let gate = place.start(&configuration(&place, &upstream, &files, "", ""));
    for (event, name, says) in [
        ("certificate_expired", "late.test", "clients refuse it"),
        (
            "certificate_expiring",
            "last.test",
            "less than a third of its life",
        ),
    ] {
        eventually(event, SEEN_LIMIT, || {
            (!events(&place, event).is_empty()).then_some(())
        });
        let found = events(&place, event);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0]["facts"]["names"], name);
        assert!(gate.stderr().contains(says), "{}", gate.stderr());
    }
    let looker = Looker::strict(place.https, &ca);
    assert!(looker.look("fresh.test").await.is_ok());
    let why = looker.look("late.test").await.err().unwrap().to_string();
    assert!(why.contains("expired"), "{why}");
    let config = place.path("tollgate.toml");
    let check = place.tollgate(&["check", "--config", config.to_str().unwrap()]);
    assert_eq!(check.code, Some(2), "{check:?}");
    assert!(check.stderr.contains("has expired at"), "{check:?}");

    let next = ca.issue(&["late.test"], FRESH);
    next.write(&late.cert, &late.key);
    eventually("the next to be served", SEEN_LIMIT, || {
        (!events(&place, "certificate_replaced").is_empty()).then_some(())
    });
    assert!(looker.look("late.test").await.unwrap().leaf == next.leaf);
    // Nothing is told twice, though it has been looked at many times by now.
    assert_eq!(events(&place, "certificate_expired").len(), 1);
    assert_eq!(events(&place, "certificate_expiring").len(), 1);
    let text = gate.metrics();
    let until = |files: &Files| -> i64 {
        let name = format!("name=\"{}\"}} ", files.cert.display());
        let value = text.lines().find_map(|line| line.split(&name).nth(1));
        value.expect(&text).parse().unwrap()
    };
    assert!((until(&late) - until(&fresh)).abs() < 3600, "{text}");
    assert!(until(&late) - until(&last) > 80 * 86_400, "{text}");
}

/// A pair, which file is wrong, how, and what mends it.
type Case = (Pair, &'static str, &'static str, &'static str);

fn bad_pairs(root: &Authority, middle: &Authority) -> Vec<Case> {
    const ENCRYPTED: &str =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
    const GARBAGE: &str = "-----BEGIN CERTIFICATE-----\n???\n-----END CERTIFICATE-----\n";
    let old = root.below("old", Life(-600, -5));
    let leaf = |life| middle.issue(&["a.test"], life);
    let (pem, old_pem) = (middle.pem(), old.pem());
    let with_cert = |cert: String| Pair {
        cert,
        ..leaf(FRESH)
    };
    let with_key = |key: String| Pair { key, ..leaf(FRESH) };
    let chained = |pair: Pair, more: &str| Pair {
        cert: pair.cert + more,
        ..pair
    };
    vec![
        (
            chained(with_key(leaf(FRESH).key), &pem),
            "key",
            "is the key of another certificate",
            "give the key that belongs to it",
        ),
        (
            with_cert(pem.clone() + &leaf(FRESH).cert),
            "key",
            "is the key of another certificate",
            "the leaf first",
        ),
        (
            with_key(ENCRYPTED.to_owned()),
            "key",
            "the private key is encrypted",
            "store it decrypted",
        ),
        (
            with_cert(GARBAGE.to_owned()),
            "cert",
            "is not valid PEM",
            "export it again",
        ),
        (
            chained(leaf(Life(-600, -5)), &pem),
            "cert",
            "certificate 1 (CN=leaf) has expired at",
            "renew it",
        ),
        (
            chained(leaf(Life(600, 900)), &pem),
            "cert",
            "is not valid before",
            "this machine's clock",
        ),
        (
            chained(old.issue(&["a.test"], FRESH), &old_pem),
            "cert",
            "certificate 2 (CN=old) has expired at",
            "renew it",
        ),
        (
            chained(leaf(FRESH), &(old_pem + &pem)),
            "cert",
            "certificate 2 did not issue certificate 1",
            "put the leaf first",
        ),
    ]
}

/// Exit status and report of `tollgate check --json`.
fn check(place: &Place, text: &str) -> (Option<i32>, serde_json::Value) {
    let config = place.write(text);
    let done = place.tollgate(&["check", "--json", "--config", config.to_str().unwrap()]);
    let report = serde_json::from_str(&done.stdout);
    (done.code, report.expect(&done.stderr))
}

/// The place, the cause and the mend of everything at once.
#[test]
fn check_finds_what_is_wrong_with_certificates() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let root = Authority::new("root");
    let cases = bad_pairs(&root, &root.below("middle", FRESH));
    let named = |(n, case): (usize, &Case)| Files::new(&place, &format!("bad{n}"), &case.0);
    let mut files: Vec<_> = cases.iter().enumerate().map(named).collect();
    files.push(Files {
        cert: place.path("missing.crt"),
        key: place.path("missing.key"),
    });
    let all: Vec<_> = files.iter().collect();
    let (code, report) = check(&place, &configuration(&place, &upstream, &all, "", ""));
    assert_eq!(code, Some(2));
    let mistakes = report["mistakes"].as_array().unwrap();
    assert_eq!(mistakes.len(), all.len(), "{report:#}");
    let missing = ("cert", "cannot be read", "check that the file exists");
    let expected = cases
        .iter()
        .map(|(_, file, problem, mend)| (*file, *problem, *mend));
    for (n, (file, problem, mend)) in expected.chain([missing]).enumerate() {
        let found = &mistakes[n];
        assert_eq!(
            found["key"],
            format!("ingress[0].tls.certificates[{n}].{file}")
        );
        assert!(found["line"].as_u64().unwrap() > 0);
        assert!(
            found["problem"].as_str().unwrap().contains(problem),
            "{found:#}"
        );
        assert!(found["mend"].as_str().unwrap().contains(mend), "{found:#}");
    }
}

/// What works, but probably not as meant.
#[test]
fn check_warns_of_hosts_without_a_certificate_and_of_short_chains() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let root = Authority::new("root");
    let middle = root.below("middle", FRESH);
    let uses = [
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    let mut whole = middle.issue_for(&["a.test"], FRESH, &uses);
    whole.cert += &(middle.pem() + &root.pem());
    let whole = Files::new(&place, "whole", &whole);
    let uses = [ExtendedKeyUsagePurpose::ClientAuth];
    let alone = middle.issue_for(&["b.test"], FRESH, &uses);
    let alone = Files::new(&place, "alone", &alone);
    let hosts = "hosts = [\"a.test\", \"c.test\", \"*.c.test\"]";
    let text = configuration(&place, &upstream, &[&whole, &alone], "", hosts);
    let (code, report) = check(&place, &text);
    assert_eq!(code, Some(0), "{report:#}");
    let warnings = report["warnings"].as_array().unwrap();
    for (key, problem) in [
        ("certificates", "no certificate is for `c.test`"),
        ("certificates", "no certificate is for `*.c.test`"),
        ("certificates[1].cert", "is for b.test: for none of"),
        ("certificates[1].cert", "without the one that issued it"),
        (
            "certificates[1].cert",
            "is for other uses than a TLS server's",
        ),
    ] {
        let key = format!("ingress[0].tls.{key}");
        let same = |w: &&serde_json::Value| {
            w["key"] == key && w["problem"].as_str().unwrap().contains(problem)
        };
        assert_eq!(
            warnings.iter().filter(same).count(),
            1,
            "{problem}: {report:#}"
        );
    }
    assert_eq!(warnings.len(), 5, "{report:#}");
}

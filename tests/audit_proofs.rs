//! The log proven to somebody who trusts neither us nor our program: a key, an anchor, a file, and fifty lines of Python.
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
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::body::Payload;
use support::client::{Client, Version, request};
use support::eventually;
use support::gate::{Done, Gate, Place, run};
use support::upstream::Upstream;

const LIMIT: Duration = Duration::from_secs(20);

/// A gate whose log has several segments and whose seals are anchored.
struct Stage {
    place: Place,
    upstream: Upstream,
    config: String,
    anchor: PathBuf,
}

impl Stage {
    fn set() -> Self {
        let (place, upstream) = (Place::new(), Upstream::start());
        let anchor = place.path("anchor");
        let audit = format!(
            "[audit]\nsegment = \"64KiB\"\nseal_every = \"100ms\"\nanchor = {{ file = {anchor:?} }}\n\n"
        );
        let config = place.head() + &audit + &place.ingress(upstream.address, "");
        Self {
            place,
            upstream,
            config,
            anchor,
        }
    }

    fn start(&self) -> Gate {
        self.place.start(&self.config)
    }

    async fn ask(&self, count: usize) {
        let mut connection = Client::of(&self.place).open(Version::H1).await.unwrap();
        for _ in 0..count {
            let asked = request(Version::H1, "GET", "/headers").body(Payload::empty());
            let reply = connection.send(asked.unwrap()).await.unwrap();
            assert_eq!(reply.status, 200);
        }
    }

    fn audit(&self, args: &[&str]) -> Done {
        self.place.tollgate(&[&["audit"], args].concat())
    }

    fn state(&self) -> String {
        self.place.state().to_str().unwrap().to_owned()
    }

    fn key(&self) -> PathBuf {
        self.place.state().join("audit/seal.pub")
    }

    fn segments(&self) -> Vec<PathBuf> {
        let audit = self.place.state().join("audit");
        let entries = fs::read_dir(audit).unwrap().map(|e| e.unwrap().path());
        let mut segments: Vec<_> = entries
            .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
            .collect();
        segments.sort();
        segments
    }

    fn report(&self, more: &[&str]) -> (i32, serde_json::Value) {
        let state = self.state();
        let done = self.audit(&[&["verify", &state, "--json"], more].concat());
        let report = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done:?}"));
        (done.code.unwrap(), report)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn python(proof: &Path, key: &str) -> Done {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/verify.py");
    run(Command::new("python3").arg(script).arg(proof).arg(key))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs python3 and openssl; run by tests/run"]
async fn a_stranger_checks_a_seal_and_a_record_with_python() {
    let stage = Stage::set();
    let mut gate = stage.start();
    stage.ask(350).await;
    assert!(gate.stop(LIMIT).success());
    let mut gate = stage.start();
    stage.ask(50).await;
    assert!(gate.stop(LIMIT).success());
    let (key, state) = (stage.key(), stage.state());
    let key_text = fs::read_to_string(&key).unwrap();
    let (code, report) = stage.report(&["--pub", text(&key), "--anchor", text(&stage.anchor)]);
    assert_eq!((code, &report["key_given"]), (0, &true.into()), "{report}");
    assert!(report["segments"].as_u64().unwrap() > 3, "{report}");
    assert_eq!(report["unsealed"], 1, "{report}");
    assert_eq!(report["anchors"][0]["matched"], report["seals"], "{report}");

    let last = report["last_seq"].as_u64().unwrap();
    for seq in [1, 2, last / 2, last - 1] {
        let proof = stage.place.path("proof.json");
        let done = stage.audit(&["prove", &seq.to_string(), &state]);
        assert_eq!(done.code, Some(0), "{done:?}");
        fs::write(&proof, &done.stdout).unwrap();
        let ours = stage.audit(&["verify-proof", text(&proof), "--pub", text(&key)]);
        assert_eq!(ours.code, Some(0), "{ours:?}");
        let theirs = python(&proof, text(&key));
        assert_eq!(theirs.code, Some(0), "{theirs:?}");
        let line = ours.stdout.lines().nth(1).unwrap();
        assert!(line.starts_with(&format!("{{\"seq\":{seq},")), "{line}");
        assert_eq!(theirs.stdout.lines().nth(1), Some(line));
        // Altered in any part, neither takes it.
        let spoiled = [
            ("\\\"kind\\\":\\\"", "\\\"kind\\\":\\\"x"),
            ("\"index\": ", "\"index\": 1"),
            ("tollgate.log/", "tollgate.lag/"),
            (
                "\"path\": [",
                "\"path\": [\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\",",
            ),
            ("\"checkpoint\": \"", "\"checkpoint\": \"x"),
            ("\\n\\n\u{2014} ", "\\nmore\\n\\n\u{2014} "),
        ];
        for (from, to) in spoiled {
            assert!(done.stdout.contains(from), "{from} in {}", done.stdout);
            fs::write(&proof, done.stdout.replace(from, to)).unwrap();
            let ours = stage.audit(&["verify-proof", text(&proof), "--pub", &key_text]);
            let theirs = python(&proof, key_text.trim());
            assert_eq!(
                (ours.code, theirs.code),
                (Some(1), Some(1)),
                "{from}: {theirs:?}"
            );
            assert!(theirs.stderr.contains("NOT PROVEN"), "{theirs:?}");
        }
    }

    // One note of the anchor, as it stands there.
    let notes = fs::read_to_string(&stage.anchor).unwrap();
    let note = notes.split_inclusive("\n\n").take(2).collect::<String>();
    let file = stage.place.path("note");
    fs::write(&file, note.trim_end().to_owned() + "\n").unwrap();
    let signed = python(&file, text(&key));
    assert!(
        signed.code == Some(0) && signed.stdout.starts_with("signed: "),
        "{signed:?}"
    );
    let grown = stage.audit(&["prove-growth", text(&file), &state]);
    let proof = stage.place.path("growth.json");
    fs::write(&proof, &grown.stdout).unwrap();
    let proven = stage.audit(&["verify-proof", text(&proof), "--pub", text(&key)]);
    assert_eq!(proven.code, Some(0), "{grown:?} {proven:?}");
    fs::write(&file, note.replacen('1', "2", 1)).unwrap();
    assert_ne!(python(&file, text(&key)).code, Some(0));
    assert_eq!(stage.upstream.ids().len(), 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_log_that_was_cut_rewritten_or_pruned_is_told_apart() {
    let stage = Stage::set();
    let mut gate = stage.start();
    stage.ask(600).await;
    // A kill leaves a tail, which the next start seals.
    gate.kill();
    let mut gate = stage.start();
    stage.ask(20).await;
    assert!(gate.stop(LIMIT).success());
    let (key, anchor) = (stage.key(), stage.anchor.clone());
    let trust = ["--pub", text(&key), "--anchor", text(&anchor)];
    let (code, report) = stage.report(&trust);
    assert_eq!((code, &report["problem_count"]), (0, &0.into()), "{report}");
    assert_eq!(report["unsealed"], 1);
    let segments = stage.segments();
    assert!(segments.len() > 4, "{segments:?}");

    let plain = stage.audit(&["verify", &stage.state()]);
    assert!(
        plain.stdout.contains("holds against itself only"),
        "{plain:?}"
    );
    let trusted = stage.audit(&[&["verify", &stage.state()], &trust[..]].concat());
    assert!(trusted.stdout.ends_with("holds\n"), "{trusted:?}");

    // The last segment gone: only the anchor knows.
    let last = segments.last().unwrap();
    let bytes = fs::read(last).unwrap();
    fs::remove_file(last).unwrap();
    assert_eq!(stage.report(&["--pub", text(&key)]).0, 0);
    let (code, report) = stage.report(&trust);
    assert_eq!(code, 1);
    let what = report["problem"]["what"].as_str().unwrap();
    assert!(what.contains("its end was cut"), "{report}");
    fs::write(last, &bytes).unwrap();

    // The first ones pruned, and what is left copied to two places.
    let (one, two) = (stage.place.path("one"), stage.place.path("two"));
    fs::create_dir(&one).unwrap();
    fs::create_dir(&two).unwrap();
    for (at, segment) in segments.iter().enumerate().skip(2) {
        let to = if at % 2 == 0 { &one } else { &two };
        fs::copy(segment, to.join(segment.file_name().unwrap())).unwrap();
    }
    let chain = stage.place.state().join("audit/seal.chain");
    fs::copy(chain, two.join("seal.chain")).unwrap();
    let args = ["verify", text(&two), text(&one)];
    let copied = stage.audit(&[&args, &trust[..]].concat());
    assert_eq!(copied.code, Some(0), "{copied:?}");
    assert!(copied.stdout.contains("records are not here"), "{copied:?}");
    fs::remove_file(two.join("seal.chain")).unwrap();
    let unchained = stage.audit(&[&args, &trust[..]].concat());
    assert_eq!(unchained.code, Some(1), "{unchained:?}");
    assert!(unchained.stdout.contains("no seal leads"), "{unchained:?}");

    // An empty directory is no log.
    let nothing = stage.place.path("nothing");
    fs::create_dir(&nothing).unwrap();
    assert_eq!(stage.audit(&["verify", text(&nothing)]).code, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_key_that_has_sealed_its_segment_is_nowhere_in_the_state_directory() {
    let stage = Stage::set();
    let mut gate = stage.start();
    let file = stage.place.state().join("audit/seal.key");
    let mut keys = vec![fs::read_to_string(&file).unwrap()];
    for _ in 0..3 {
        let known = keys.last().unwrap().clone();
        stage.ask(120).await;
        let fresh = eventually("the next key", LIMIT, || {
            let key = fs::read_to_string(&file).unwrap();
            (key != known && key.starts_with("PRIVATE")).then_some(key)
        });
        keys.push(fresh);
    }
    assert!(gate.stop(LIMIT).success());
    let mut files = vec![stage.place.state()];
    let mut looked_at = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        looked_at += 1;
        let bytes = fs::read(&path).unwrap();
        for key in &keys {
            let secret = key.trim().splitn(5, '+').last().unwrap();
            let found = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
            assert!(!found, "{} holds an old key", path.display());
        }
    }
    assert!(looked_at > 6);
    stage.place.verify();
}

#[test]
fn seals_go_to_a_descriptor_that_was_left_open() {
    let (place, upstream) = (Place::new(), Upstream::start());
    let audit = "[audit]\nseal_every = \"100ms\"\nanchor = { fd = 9 }\n\n";
    let config = place.write(&(place.head() + audit + &place.ingress(upstream.address, "")));
    let out = place.path("out");
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec \"$0\" run --config \"$1\" 9>>\"$2\""])
        .arg(support::gate::binary())
        .arg(config)
        .arg(&out);
    let mut gate = place.launch(command);
    gate.wait_ready();
    eventually("a note", LIMIT, || {
        let said = fs::read_to_string(&out).unwrap();
        said.contains("tollgate.log/").then_some(())
    });
    assert!(gate.stop(LIMIT).success());
    let state = place.state();
    let done = place.tollgate(&["audit", "verify", text(&state), "--anchor", text(&out)]);
    assert_eq!(done.code, Some(0), "{done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_anchor_that_cannot_be_reached_is_told_and_holds_nobody_up() {
    let mut stage = Stage::set();
    let elsewhere = stage.place.path("elsewhere");
    let anchor = elsewhere.join("anchor");
    stage.config = stage.config.replace(text(&stage.anchor), text(&anchor));
    let gate = stage.start();
    let told = |name: &str| {
        let state = stage.state();
        let found = stage.audit(&["search", &state, "--kind", "event"]).ok();
        found
            .contains(&format!("\"name\":\"{name}\""))
            .then_some(())
    };
    stage.ask(20).await;
    eventually("anchor_failed", LIMIT, || told("anchor_failed"));
    assert!(gate.metrics().contains("tollgate_anchor_failures_total"));
    fs::create_dir(&elsewhere).unwrap();
    stage.ask(20).await;
    eventually("anchor_back", LIMIT, || told("anchor_back"));
    // Beside the running process the anchor is never ahead of the log.
    for _ in 0..5 {
        stage.ask(30).await;
        let (code, report) = stage.report(&["--anchor", text(&anchor)]);
        assert_eq!(code, 0, "{report}");
    }
}

//! The configuration as its reader meets it: examples that load, and mistakes with their places and mends.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use tollgate::config::typed::{
    AcmeStore, Anchor, Challenge, Config, HostPattern, OnFailure, Password, Secret, TicketStore,
};
use tollgate::config::{self, Warning};

const SMALLEST: &str = r#"
[[ingress]]
listen = "0.0.0.0:443"
upstream = "http://127.0.0.1:3000"
tls.certificates = [{ cert = "c.pem", key = "k.pem" }]
"#;

const EGRESS: &str = "[egress]\nfixed = '192.0.2.1'\n";

fn examples() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/config");
    let entries = std::fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect()
}

fn accepted(text: &str) -> (Config, Vec<Warning>) {
    config::parse(Path::new("tollgate.toml"), text.to_owned()).unwrap_or_else(|e| panic!("{e}"))
}

fn mistakes(text: &str) -> String {
    match config::parse(Path::new("tollgate.toml"), text.to_owned()) {
        Ok((config, _)) => panic!("accepted: {config:?}"),
        Err(mistakes) => mistakes.to_string(),
    }
}

/// Key, problem and mend of each mistake in `text`.
fn said(text: &str) -> Vec<(String, String, String)> {
    match config::parse(Path::new("tollgate.toml"), text.to_owned()) {
        Ok(_) => Vec::new(),
        Err(mistakes) => mistakes
            .into_iter()
            .map(|m| (m.key, m.problem, m.mend))
            .collect(),
    }
}

/// Asserts that `text` has exactly one mistake.
#[track_caller]
fn one(text: &str, key: &str, problem: &str, mend: &str) {
    let expected = vec![(key.to_owned(), problem.to_owned(), mend.to_owned())];
    assert_eq!(said(text), expected, "{text}");
}

/// The cases of a table: lines of TOML, then `# ` and what is said about them, between bars.
fn cases(table: &str) -> Vec<(String, Vec<&str>)> {
    let (mut cases, mut toml) = (Vec::new(), String::new());
    for line in table.lines() {
        match line.strip_prefix("# ") {
            None => toml = toml + line + "\n",
            Some(said) => cases.push((std::mem::take(&mut toml), said.split(" | ").collect())),
        }
    }
    assert!(cases.len() > 1 && toml.is_empty());
    cases
}

#[test]
fn every_example_loads_without_a_warning() {
    assert_eq!(examples().len(), 6);
    for path in examples() {
        match config::load(&path) {
            Ok((_, warnings)) => assert!(warnings.is_empty(), "{warnings:?}"),
            Err(mistakes) => panic!("{mistakes}"),
        }
    }
}

#[test]
fn the_configurations_in_the_readme_load() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    let blocks: Vec<_> = text
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let (_, warnings) = accepted(block);
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}

#[test]
fn the_full_example_has_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/full.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    // An unknown key in every table makes the reader say which it knows.
    let mut spoiled = String::from("zzzzzzzzzzzz = 1\n");
    for line in text.lines() {
        let inline = line.replace("{ ", "{ zzzzzzzzzzzz = 1, ");
        let header = line.starts_with('[') && !line.starts_with("[limits]");
        spoiled += if line.starts_with('#') { line } else { &inline };
        spoiled += if header { "\nzzzzzzzzzzzz = 1\n" } else { "\n" };
    }
    let Err(mistakes) = config::parse(&path, spoiled) else {
        panic!("accepted")
    };
    let mut tables = 0;
    for remark in mistakes.iter() {
        assert_eq!(remark.problem, "unknown key", "{remark:?}");
        let known = remark.mend.strip_prefix("remove it; known here are ");
        tables += 1;
        for key in known.unwrap_or_else(|| panic!("{remark:?}")).split(", ") {
            let written = [format!("{key} = "), format!("[{key}"), format!(".{key}")];
            assert!(
                written.iter().any(|w| text.contains(w)),
                "`{key}` (of {}) is not in full.toml",
                remark.key
            );
        }
    }
    assert_eq!(tables, 32);
}

#[test]
fn the_full_example_tells_the_true_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/full.toml");
    let (mut full, _) = config::load(&path).unwrap();
    let (small, _) = accepted(&format!("{SMALLEST}[egress]\nfixed = '192.0.2.1'"));
    assert!(full.process.key_file.take().is_some()); // default: none
    assert!(full.process.tickets.store.take().is_some()); // default: none, without a Redis
    let same = |a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
        assert_eq!(format!("{a:?}"), format!("{b:?}"));
    };
    same(&full.process, &small.process);
    same(&full.admin, &small.admin);
    same(&full.log, &small.log);
    // The keys of `[audit]` that have none.
    let standby = full.audit.standby_dir.take();
    assert_eq!(standby, Some("/mnt/other/tollgate".into()));
    let anchors = std::mem::take(&mut full.audit.anchors);
    assert_eq!(
        anchors,
        [Anchor::File("/mnt/elsewhere/tollgate.anchor".into())]
    );
    same(&full.audit, &small.audit);
    let (last, only) = (&full.ingress[0].routes[1], &small.ingress[0].routes[0]);
    same(&last.timeouts, &only.timeouts);
    assert_eq!(last.max_body, only.max_body);
    assert_eq!(last.on_failure, only.on_failure);
    let (app, url) = (
        &full.upstreams["app"],
        &small.upstreams["http://127.0.0.1:3000"],
    );
    assert_eq!(app.max_idle, url.max_idle);
    assert_eq!(app.connect_timeout, url.connect_timeout);
    let (full, small) = (full.egress.unwrap(), small.egress.unwrap());
    assert_eq!(full.dial_timeout, small.dial_timeout);
    assert_eq!(full.idle, small.idle);
    assert_eq!(full.listeners[0].listen, small.listeners[0].listen);
    assert_eq!(small.listeners[0].clients[0].name, "local");
    assert_eq!(full.forwards[0].from, small.listeners[0].clients[0].from);
    let clients = "clients = [{ name = 'app', from = '10.0.0.1' }]";
    let (small, _) = accepted(&format!(
        "{EGRESS}resolver.servers = '10.0.0.2'\n[egress.transparent]\n{clients}"
    ));
    let small = small.egress.unwrap();
    assert!(small.listeners.is_empty(), "no door that nobody named");
    let (full, small) = (full.transparent.unwrap(), small.transparent.unwrap());
    assert_eq!(full.listen, small.listen);
    assert_eq!(full.dns_listen, small.dns_listen);
    assert_eq!(full.mode, small.mode);
    assert_eq!(full.synthetic, small.synthetic);
    assert_eq!(full.ttl, small.ttl);
}

#[test]
fn anchors_and_receipts_that_cannot_be_used_are_named() {
    for (audit, problem) in [
        ("anchor = {}", "an anchor is one file or one descriptor"),
        (
            "anchor = { file = '/a', fd = 3 }",
            "an anchor is one file or one descriptor",
        ),
        ("anchor = { file = 'a' }", "\"a\" is not an absolute path"),
        ("anchor = { fd = 2 }", "out of range"),
        (
            "anchor = [{ fd = 3 }, { fd = 3 }]",
            "descriptor 3 is named twice",
        ),
        ("receipt = {}", "`key_file` is missing"),
        (
            "receipt = { key_file = '/none' }",
            "cannot read /none: No such file or directory (os error 2)",
        ),
        (
            "receipt = { key_file = '/dev/null' }",
            "/dev/null does not hold a key of 32 bytes or more",
        ),
    ] {
        let text = format!("audit = {{ {audit} }}\n{SMALLEST}");
        let Err(mistakes) = config::parse(Path::new("tollgate.toml"), text) else {
            panic!("{audit} is accepted");
        };
        let problems: Vec<_> = mistakes.iter().map(|remark| &remark.problem).collect();
        assert_eq!(problems, [problem], "{audit}");
    }
}

#[test]
fn all_mistakes_are_shown_at_once_with_their_places_and_mends() {
    assert_eq!(mistakes(BROKEN), SAID_OF_IT);
}

#[test]
fn what_is_not_toml_is_shown_where_it_is() {
    let expected = r#"error: not TOML: neither a number nor text in quotes
 --> tollgate.toml:2:14
2 | fixed = 192.0.2.1
  |              ^^^^
mend: write text, addresses, durations and sizes in double quotes, as in "30s"

error: not TOML: given twice
 --> tollgate.toml:4:1
4 | idle = "2h"
  | ^^^^
mend: keep one of them; a table may be opened once

error: not TOML: the quote is not closed
 --> tollgate.toml:5:15
5 | name = "egress
  |               ^
mend: close text with the quote that it begins with, on the same line"#;
    let text = "[egress]\nfixed = 192.0.2.1\nidle = \"1h\"\nidle = \"2h\"\nname = \"egress\n";
    assert_eq!(mistakes(text), expected);
    for (text, problem) in [
        ("fixed\n", "a key without a value"),
        ("level = info", "neither a number nor text in quotes"),
        ("a = [1, 2", "the list is not well formed"),
        ("[a", "the header is not well formed"),
        ("a = { b = 1", "the table is not well formed"),
        ("a = tru", "neither true, false nor text in quotes"),
        ("= 1", "not a key"),
        ("]", "the header is not well formed"),
    ] {
        let (_, said, _) = said(text).remove(0);
        assert_eq!(said, format!("not TOML: {problem}"), "{text}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let show = |path: &Path| {
        let text = config::load(path).unwrap_err().to_string();
        text.replace(path.to_str().unwrap(), "FILE")
    };
    let missing = folder.path().join("none.toml");
    let mend = "mend: check the path and its permissions, or name another file with --config";
    assert_eq!(
        show(&missing),
        format!(
            "error: cannot read the configuration: No such file or directory (os error 2)\n--> FILE\n{mend}"
        )
    );
    assert_eq!(
        show(folder.path()),
        format!(
            "error: cannot read the configuration: Is a directory (os error 21)\n--> FILE\n{mend}"
        )
    );
    let latin = folder.path().join("latin.toml");
    std::fs::write(&latin, b"# caf\xe9\n").unwrap();
    assert_eq!(
        show(&latin),
        "error: the configuration is not UTF-8\n--> FILE\nmend: save the file as UTF-8"
    );
    let large = folder.path().join("large.toml");
    std::fs::write(&large, "#".repeat((1 << 20) + 1)).unwrap();
    assert!(show(&large).starts_with("error: the configuration is too large\n"));
    assert_eq!(
        mistakes(""),
        "error: neither `ingress` nor `egress`: there is nothing to do\n--> tollgate.toml\n\
         mend: add `[[ingress]]` for the way in, `[egress]` for the way out, or both"
    );
}

#[test]
fn mistakes_are_json_for_programs() {
    let mistakes = config::parse(Path::new("t.toml"), "[egress]\nfixd = 1\n".into()).unwrap_err();
    assert_eq!(
        serde_json::to_string(&mistakes).unwrap(),
        r#"[{"file":"t.toml","line":1,"column":1,"key":"egress.fixed","problem":"`fixed` is missing","mend":"add `fixed = [\"203.0.113.7\"]` with an address of this machine"},{"file":"t.toml","line":2,"column":1,"key":"egress.fixd","problem":"unknown key","mend":"did you mean `fixed`?"}]"#
    );
}

#[test]
fn what_is_shown_of_the_file_is_bounded_and_plain() {
    let text = format!(
        "[egress]\nfixed = '192.0.2.1'\nx\u{e9} = \"\u{1b}[31m{}\"",
        "y".repeat(500)
    );
    assert!(
        mistakes(&text)
            .lines()
            .all(|line| line.chars().count() < 140)
    );
    assert!(!mistakes(&text).contains('\u{1b}'));
    let many = format!(
        "[egress]\nfixed = '192.0.2.1'\n{}",
        (0..500).map(|n| format!("zz{n} = 1\n")).collect::<String>()
    );
    assert_eq!(said(&many).len(), config::REMARKS_MAX);
}

#[test]
fn what_comes_later_is_said_to_come_later() {
    let later = "not available in this release";
    for (more, said) in cases(LATER) {
        one(&format!("{SMALLEST}{more}"), said[0], later, said[1]);
    }
    for (more, said) in cases(LATER_INGRESS) {
        one(&format!("{SMALLEST}{more}"), said[0], later, said[1]);
    }
    for (more, said) in cases(LATER_EGRESS) {
        one(&format!("{EGRESS}{more}"), said[0], later, said[1]);
    }
}

#[test]
fn values_are_bounded() {
    for (more, said) in cases(BOUNDS) {
        one(
            &format!("{SMALLEST}{more}"),
            said[0],
            "out of range",
            said[1],
        );
    }
    let refill = "an exhausted burst would take more than a day to be full again";
    let limit = "[limits.x]\nrate = '1/h'\nburst = 25";
    let mend = "lower `burst` or raise `rate`";
    one(&format!("{SMALLEST}{limit}"), "limits.x", refill, mend);
}

#[test]
fn ticket_keys_are_shared_where_there_is_a_key_to_seal_with() {
    let process = |process: &str, more: &str| {
        let (config, _) = accepted(&format!("{SMALLEST}[process]\n{process}\n{more}"));
        config.process.tickets
    };
    let redis = "[limits.store]\nredis = 'redis://127.0.0.1'";
    assert_eq!(process("", "").store, None);
    assert_eq!(process("key_file = 'k'", "").store, None);
    assert_eq!(
        process("", redis).store,
        None,
        "it may be for the limits alone"
    );
    let shared = process("key_file = 'k'\ntickets.every = '1h'", redis);
    assert!(matches!(shared.store, Some(TicketStore::Redis(_))));
    assert_eq!(shared.every, Duration::from_secs(3600));
    let folder = process("key_file = 'k'\ntickets.store = '/shared'", redis).store;
    assert_eq!(folder, Some(TicketStore::Folder("/shared".into())));
    one(
        &format!("{SMALLEST}[process]\ntickets.store = '/shared'"),
        "process.tickets.store",
        "what replicas share is sealed, and there is no key to seal with",
        "make one with `tollgate secret keygen` and name it in `process.key_file`, the same for every replica",
    );
    one(
        &format!("{SMALLEST}[process]\nkey_file = 'k'\ntickets.store = 'redis'"),
        "process.tickets.store",
        "no Redis is named",
        "add `[limits.store]` with `redis = \"redis://127.0.0.1:6379\"`",
    );
}

#[test]
fn units_are_read_strictly() {
    let problem = |more: String| said(&format!("{SMALLEST}{more}")).remove(0).1;
    for text in [
        "30",
        "-1s",
        "1.5s",
        "1 s",
        "1S",
        "99999999999999999999s",
        "",
    ] {
        assert_eq!(
            problem(format!("timeouts.idle = '{text}'")),
            "not a duration",
            "{text}"
        );
    }
    for text in ["50MB", "50", "-1B", "0x10B"] {
        assert_eq!(
            problem(format!("max_body = '{text}'")),
            "not a size",
            "{text}"
        );
    }
    for text in [
        "0/s", "-1/s", "+1/s", "1/d", "1/ms", "1", "1/", "/s", "1.5/s",
    ] {
        assert_eq!(
            problem(format!("[limits.x]\nrate = '{text}'")),
            "not a rate",
            "{text}"
        );
    }
}

#[test]
fn an_ingress_is_checked() {
    for (more, said) in cases(INGRESS) {
        one(&format!("[[ingress]]\n{more}"), said[0], said[1], said[2]);
    }
    for (more, said) in cases(INGRESS_MORE) {
        one(
            &format!("{SMALLEST}{more}"),
            &format!("ingress[0].{}", said[0]),
            said[1],
            said[2],
        );
    }
}

#[test]
fn what_is_ordered_is_checked() {
    let one = |text: &str, said: &[&str]| one(text, said[0], said[1], said[2]);
    for (more, said) in cases(ACME) {
        one(&format!("{ORDERING}{more}"), &said);
    }
    for (more, said) in cases(REDIS) {
        one(&format!("{SMALLEST}[limits.store]\n{more}"), &said);
    }
    let (config, warnings) = accepted(&format!("{ORDERING}tls.acme = {{}}"));
    assert!(warnings.is_empty());
    let acme = config.ingress[0].tls.acme.as_ref().unwrap();
    let url = "https://acme-v02.api.letsencrypt.org/directory";
    assert_eq!((acme.issuers.len(), &*acme.issuers[0].directory), (1, url));
    assert_eq!(acme.challenge, Challenge::TlsAlpn);
    assert_eq!(config.ingress[0].tls.hosts.len(), 1);
    assert_eq!(acme.store, AcmeStore::Own("/var/lib/tollgate/acme".into()));
    // Redis, where it is named and nothing else is said.
    let redis = "[limits.store]\nredis = 'rediss://r.internal/3'\n[process]\nkey_file = 'k'";
    let (config, _) = accepted(&format!("{ORDERING}tls.acme = {{}}\n{redis}"));
    let AcmeStore::Redis(redis) = &config.ingress[0].tls.acme.as_ref().unwrap().store else {
        panic!("Redis")
    };
    assert_eq!((redis.tls, redis.database), (true, 3));
    assert_eq!(redis.address.to_string(), "r.internal:6379");
}

#[test]
fn an_egress_is_checked() {
    for (more, said) in cases(FIXED) {
        one(
            &format!("[egress]\n{more}"),
            &format!("egress.{}", said[0]),
            said[1],
            said[2],
        );
    }
    for (more, said) in cases(EGRESS_MORE) {
        one(
            &format!("{EGRESS}{more}"),
            &format!("egress.{}", said[0]),
            said[1],
            said[2],
        );
    }
    let clients = "clients = [{ name = 'app', from = '10.0.0.1' }]";
    for (more, said) in cases(TRANSPARENT) {
        let clients = if more.contains("clients") {
            ""
        } else {
            clients
        };
        let resolver = "resolver.servers = '10.0.0.2'";
        one(
            &format!("{EGRESS}{resolver}\n[egress.transparent]\n{clients}\n{more}"),
            &format!("egress.{}", said[0]),
            said[1],
            said[2],
        );
    }
    one(
        &format!("{EGRESS}transparent = {{ {clients} }}"),
        "egress.transparent",
        "no name servers of our own: /etc/resolv.conf of this machine may name Tollgate itself",
        "add `resolver = { servers = [\"10.0.0.2:53\"] }` to `[egress]`",
    );
    let mend = "write \"127.0.0.1:9911\"; reach it from elsewhere through a tunnel";
    let problem = "only loopback is served in this release";
    one(
        &format!("admin.listen = '0.0.0.0:9911'\n{EGRESS}"),
        "admin.listen",
        problem,
        mend,
    );
}

#[test]
fn a_route_inherits_and_the_shorthand_comes_last() {
    let (config, _) = accepted(&format!(
        "{SMALLEST}{}",
        r#"
hosts = ["Tools.Example.com.", "*.apps.example"]
timeouts = { idle = "5s" }
max_body = "unlimited"
route = [
    { path = "/a", upstream = "http://127.0.0.1:3000", timeouts = { stream_idle = "2h" }, on_failure = "continue" },
    { hosts = "other.example", upstream = "http://db:80/", max_body = "1KiB" },
]
"#
    ));
    let [a, other, last] = config.ingress[0].routes.as_slice() else {
        panic!("{:?}", config.ingress[0].routes)
    };
    assert_eq!(a.hosts[1], HostPattern::Below("apps.example".into()));
    assert_eq!(
        (a.hosts.clone(), last.path.as_str()),
        (last.hosts.clone(), "/")
    );
    assert_eq!(a.timeouts.idle, Duration::from_secs(5));
    assert_eq!(a.timeouts.stream_idle, Duration::from_secs(7200));
    assert_eq!(a.timeouts.response_head, Duration::from_secs(60));
    assert_eq!((a.max_body, other.max_body), (None, Some(1024)));
    assert_eq!(
        (a.on_failure, last.on_failure),
        (OnFailure::Continue, OnFailure::Refuse)
    );
    assert_eq!(
        (a.upstream.as_str(), other.upstream.as_str()),
        ("http://127.0.0.1:3000", "http://db:80")
    );
    assert_eq!(config.upstreams.len(), 2);

    let whole = "route = { path = '/', allow = '10.0.0.0/8', upstream = 'http://b' }";
    let (config, _) = accepted(&format!("{SMALLEST}{whole}"));
    assert_eq!(
        config.ingress[0].routes.len(),
        1,
        "the shorthand would never be reached"
    );
    let (config, _) = accepted(&format!("[audit]\non_failure = 'continue'\n{SMALLEST}"));
    assert_eq!(config.ingress[0].routes[0].on_failure, OnFailure::Continue);
}

#[test]
fn sets_are_expanded_and_expire() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tollgate.toml");
    std::fs::write(
        folder.path().join("nets.txt"),
        "# ours\n\n10.0.0.0/8 # office\n 2001:db8::1\n",
    )
    .unwrap();
    let text = format!(
        "{SMALLEST}{}",
        r#"
allow = ["@mixed", "@filed", "192.0.2.9"]
[sets.mixed]
entries = ["192.0.2.1", { cidr = "192.0.2.2", owner = "it", expires = "2020-02-29" }, { cidr = "192.0.2.3", expires = 2099-12-31 }, { cidr = "192.0.2.4", expires = "2999-12-31" }]
[sets.filed]
file = "nets.txt"
"#
    );
    let (config, warnings) = config::parse(&path, text.clone()).unwrap();
    let nets: Vec<_> = config.ingress[0]
        .allow
        .iter()
        .flatten()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        nets,
        [
            "192.0.2.1/32",
            "192.0.2.3/32",
            "192.0.2.4/32",
            "10.0.0.0/8",
            "2001:db8::1/128",
            "192.0.2.9/32"
        ]
    );
    assert_eq!(
        config.next_expiry_ns,
        Some(4_102_444_800 * 1_000_000_000),
        "the end of 2099"
    );
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0]
            .to_string()
            .starts_with("warning: this entry of \"it\" has expired and is left out\n")
    );
    assert_eq!(warnings[0].0.key, "sets.mixed.entries[1].expires");
}

#[test]
fn a_file_of_networks_is_read_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tollgate.toml");
    let text = format!("{SMALLEST}allow = '@filed'\n[sets.filed]\nfile = 'nets.txt'");
    std::fs::write(
        folder.path().join("nets.txt"),
        "10.0.0.0/8\n10.0.0.1/8\nx\n",
    )
    .unwrap();
    let mistakes = config::parse(&path, text.clone()).unwrap_err();
    let problems: Vec<_> = mistakes
        .iter()
        .map(|m| m.problem.rsplit_once('/').map_or("", |p| p.1))
        .collect();
    assert_eq!(
        problems,
        [
            "8 has bits set beyond its prefix length",
            "nets.txt:3: \"x\" is not an address or CIDR"
        ]
    );
    std::fs::remove_file(folder.path().join("nets.txt")).unwrap();
    let mistakes = config::parse(&path, text).unwrap_err();
    assert!(
        mistakes
            .to_string()
            .contains("nets.txt: No such file or directory")
    );
}

#[test]
fn a_set_is_checked() {
    let set = "allow = '@x'\n[sets.x]\n";
    for (more, key, problem, mend) in [
        (
            "",
            "sets.x",
            "the set says neither `entries` nor `file`",
            "add `entries = [\"203.0.113.0/24\"]` or `file = \"FILE\"`",
        ),
        (
            "entries = [{ owner = 'it' }]",
            "sets.x.entries[0].cidr",
            "`cidr` is missing",
            "add `cidr = \"203.0.113.0/24\"`",
        ),
        (
            "entries = [{ cidr = '10.0.0.1', expires = 'soon' }]",
            "sets.x.entries[0].expires",
            "not a date",
            "write year, month and day, as in \"2027-01-31\"",
        ),
    ] {
        one(&format!("{SMALLEST}{set}{more}"), key, problem, mend);
    }
    let (config, warnings) = accepted(&format!(
        "{SMALLEST}{set}entries = [{{ cidr = '10.0.0.1', expires = '2020-01-01' }}]"
    ));
    assert_eq!(
        config.ingress[0].allow.as_deref(),
        Some(&[][..]),
        "nobody, not everybody"
    );
    assert_eq!(warnings.len(), 2);
}

#[test]
fn what_is_never_used_is_said() {
    let (_, warnings) = accepted(&format!(
        "{SMALLEST}[limits.a]\nrate = '1/s'\n[sets.b]\nentries = '10.0.0.1'\n[upstreams.c]\nservers = 'http://a'"
    ));
    let said: Vec<_> = warnings
        .iter()
        .map(|w| (w.0.key.as_str(), w.0.problem.as_str()))
        .collect();
    assert_eq!(
        said,
        [
            ("limits.a", "never used"),
            ("sets.b", "never used"),
            ("upstreams.c", "never used")
        ]
    );
}

#[test]
fn a_password_is_read_trimmed_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tollgate.toml");
    let text = "[egress]\nfixed = '192.0.2.1'\nlistener = { listen = '127.0.0.1:1', clients = [{ name = 'a', from = '0.0.0.0/0', password_file = 'pw' }] }";
    std::fs::write(folder.path().join("pw"), " s3cret\n").unwrap();
    let (config, _) = config::parse(&path, text.to_owned()).unwrap();
    let client = &config.egress.as_ref().unwrap().listeners[0].clients[0];
    let plain = Password::Plain(Secret(b"s3cret"[..].into()));
    assert!(client.password == Some(plain));
    assert!(!format!("{config:?}").contains("s3cret"));
    let hash = "pbkdf2-sha256:600000:AAAAAAAAAAAAAAAAAAAAAA==:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    std::fs::write(folder.path().join("pw"), hash).unwrap();
    let (config, _) = config::parse(&path, text.to_owned()).unwrap();
    let client = &config.egress.as_ref().unwrap().listeners[0].clients[0];
    assert!(
        matches!(&client.password, Some(Password::Hashed(hash)) if hash.iterations.get() == 600_000)
    );
    let hashes = [
        "600000",
        "1000",
        "600000:AAAA:AAAA",
        "600000:!:!",
        "4000000000:AAAA:AAAA",
    ];
    let hashes = hashes.map(|rest| format!("pbkdf2-sha256:{rest}"));
    for bad in hashes.into_iter().chain([hash.to_owned() + ":x"]) {
        std::fs::write(folder.path().join("pw"), &bad).unwrap();
        let mistakes = config::parse(&path, text.to_owned())
            .unwrap_err()
            .to_string();
        assert!(
            mistakes.contains("tollgate egress hash-password"),
            "{bad}: {mistakes}"
        );
    }
    for bad in [String::from("\n"), "x".repeat(256), "x".repeat(5000)] {
        std::fs::write(folder.path().join("pw"), bad).unwrap();
        let mistakes = config::parse(&path, text.to_owned())
            .unwrap_err()
            .to_string();
        assert!(mistakes.contains("does not hold a password"), "{mistakes}");
        assert!(mistakes.contains("mend: write 1 to 255 bytes to it, and nothing else"));
    }
}

const BROKEN: &str = r#"[process]
workers = "many"
[[ingress]]
lisen = "0.0.0.0:443"
redirect_http = [":80", "0.0.0.0:99999"]
hosts = "tools.example.com:443"
upstream = "https://127.0.0.1:3000"
tls.acme = { contact = "ops" }
allow = ["@offce", "10.0.0.1/8"]
timeouts = { idle = 60 }
[sets.office]
entries = ["10.0.0.0/8"]
"#;

const SAID_OF_IT: &str = r#"error: not a number of threads
 --> tollgate.toml:2:11
  = key: process.workers
2 | workers = "many"
  |           ^^^^^^
mend: write a whole number, or "auto"

error: `listen` is missing
 --> tollgate.toml:3:1
  = key: ingress[0].listen
3 | [[ingress]]
  | ^^^^^^^^^^^
mend: add `listen = "0.0.0.0:443"`

error: unknown key
 --> tollgate.toml:4:1
  = key: ingress[0].lisen
4 | lisen = "0.0.0.0:443"
  | ^^^^^
mend: did you mean `listen`?

error: no address
 --> tollgate.toml:5:18
  = key: ingress[0].redirect_http[0]
5 | redirect_http = [":80", "0.0.0.0:99999"]
  |                  ^^^^^
mend: write the address too, as in "0.0.0.0:80" or "[::]:80"

error: not an address and port
 --> tollgate.toml:5:25
  = key: ingress[0].redirect_http[1]
5 | redirect_http = [":80", "0.0.0.0:99999"]
  |                         ^^^^^^^^^^^^^^^
mend: write an address, not a name, and a port, as in "0.0.0.0:443" or "[::]:443"

error: "tools.example.com:443" has a port
 --> tollgate.toml:6:9
  = key: ingress[0].hosts
6 | hosts = "tools.example.com:443"
  |         ^^^^^^^^^^^^^^^^^^^^^^^
mend: write the host alone, without port

error: TLS to the internal server is not available in this release
 --> tollgate.toml:7:12
  = key: ingress[0].upstream
7 | upstream = "https://127.0.0.1:3000"
  |            ^^^^^^^^^^^^^^^^^^^^^^^^
mend: use http:// over loopback or a private network

error: "ops" is not a mail address
 --> tollgate.toml:8:24
  = key: ingress[0].tls.acme.contact
8 | tls.acme = { contact = "ops" }
  |                        ^^^^^
mend: write one mail address, as in "ops@example.com"

error: no set is called `offce`
 --> tollgate.toml:9:10
  = key: ingress[0].allow[0]
9 | allow = ["@offce", "10.0.0.1/8"]
  |          ^^^^^^^^
mend: did you mean `@office`?

error: 10.0.0.1/8 has bits set beyond its prefix length
 --> tollgate.toml:9:20
  = key: ingress[0].allow[1]
9 | allow = ["@offce", "10.0.0.1/8"]
  |                    ^^^^^^^^^^^^
mend: write "10.0.0.0/8" for the network, or "10.0.0.1" for the one address

error: expected a duration, found integer
  --> tollgate.toml:10:21
   = key: ingress[0].timeouts.idle
10 | timeouts = { idle = 60 }
   |                     ^^
mend: write it with its unit, as in "30s""#;

/// Keys of later releases beside the smallest configuration, and what to use instead.
const LATER: &str = r#"
[process]
sandbox = 'on'
# process.sandbox | confine the process with its service manager

[admin]
token_file = 'x'
# admin.token_file | the admin listener is on loopback only

[audit.identity]
jwt = {}
# audit.identity | records hold the client address, not the user

[[audit.sink]]
kind = 'syslog'
# audit.sink | let a log shipper follow the segments in `state_dir`/audit

[sets.x]
url = 'https://x'
# sets.x.url | fetch the list into a `file` with a timer, and reload

[limits.store]
redis = 'redis://127.0.0.1'
on_error = 'local_share'
# limits.store.on_error | leave it out; certificates alone are shared

[limits.x]
rate = '1/s'
concurrent = 8
# limits.x.concurrent | use `rate`; `process.max_sessions` bounds what is open

[limits.x]
rate = '1/s'
key = 'user'
# limits.x.key | write "client", or leave it out

[upstreams.x]
servers = 'http://a'
health = {}
# upstreams.x.health | leave it out; a server that cannot be reached is passed over

[upstreams.x]
servers = 'http://a'
balance = 'r'
# upstreams.x.balance | leave it out; servers are taken in turn
"#;

/// The same within an ingress.
const LATER_INGRESS: &str = r#"
http3 = false
# ingress[0].http3 | leave it out; HTTP/1.1 and HTTP/2 are served

forwarded_from = []
# ingress[0].forwarded_from | use `proxy_protocol_from` and switch PROXY protocol on in the load balancer
"#;

/// The same within an egress.
const LATER_EGRESS: &str = r#"

inject = []
# egress.inject | leave it out; the platform sends its own credentials

via = {}
# egress.via | run one gateway on the machine that holds the fixed address

resolver.search = []
# egress.resolver.search | leave it out; destinations are complete names

listener = [{ listen = '127.0.0.1:1', clients = [{ name = 'a', from = '10.0.0.1', password = 'p' }] }]
# egress.listener[0].clients[0].password | put it in a file of its own and name that in `password_file`
"#;

/// Values that are out of range.
const BOUNDS: &str = r#"
[process]
workers = 0
# process.workers | choose from 1 to 1024

[process]
workers = 99999999999999999999
# process.workers | choose from 1 to 1024

[process]
max_sessions = -1
# process.max_sessions | choose from 1 to 1000000

[process]
drain_deadline = '2h'
# process.drain_deadline | choose from 1s to 1h

[audit]
segment = '1KiB'
# audit.segment | choose from 64KiB to 1GiB

[audit]
seal_every = '10ms'
# audit.seal_every | choose from 100ms to 1h

[audit]
wait_budget = '1ms'
# audit.wait_budget | choose from 10ms to 1m

[limits.x]
rate = '1/s'
burst = 0
# limits.x.burst | choose from 1 to 1000000

[limits.x]
rate = '1000001/s'
# limits.x.rate | choose a rate of at most 1000000

[upstreams.x]
servers = 'http://a'
max_idle = 10001
# upstreams.x.max_idle | choose from 0 to 10000

[upstreams.x]
servers = 'http://a'
connect_timeout = '2m'
# upstreams.x.connect_timeout | choose from 100ms to 1m

[process]
tickets.every = '999ms'
# process.tickets.every | choose from 1s to 1d

max_body = '2TiB'
# ingress[0].max_body | choose from 1B to 1TiB

timeouts.stream_idle = '2d'
# ingress[0].timeouts.stream_idle | choose from 1s to 1d
"#;

/// What an ingress must say.
const INGRESS: &str = r#"
listen = []
upstream = 'http://a'
tls.certificates = [{ cert = 'c', key = 'k' }]
# ingress[0].listen | `listen` is empty | add `listen = "0.0.0.0:443"`

listen = '0.0.0.0:443'
upstream = 'http://a'
# ingress[0].tls | `tls` is missing | add `tls.acme = { contact = "ops@example.com" }`, or `[ingress.tls]` with `certificates = [{ cert = "cert.pem", key = "key.pem" }]`

listen = '0.0.0.0:443'
upstream = 'http://a'
tls = {}
# ingress[0].tls.certificates | `certificates` is missing | add `acme`, or `certificates = [{ cert = "cert.pem", key = "key.pem" }]`

listen = '0.0.0.0:443'
upstream = 'http://a'
tls.certificates = [{ cert = 'c' }]
# ingress[0].tls.certificates[0].key | `key` is missing | add `key = "FILE.pem"`

listen = '0.0.0.0:443'
upstream = 'http://a'
tls.certificates = [{ cert = 'c', key = 'k' }, { cert = 'd', key = 'k' }, { cert = 'c', key = 'k' }]
# ingress[0].tls.certificates[2] | the same certificate twice | remove one

listen = '0.0.0.0:443'
upstream = 'http://a'
tls = { unknown_sni = 'reject', certificates = [{ cert = 'c', key = 'k' }] }
# ingress[0].tls.unknown_sni | unknown value "reject" | choose "default" or "refuse"

listen = '0.0.0.0:443'
upstream = 'http://a'
tls = { client_auth = {}, certificates = [{ cert = 'c', key = 'k' }] }
# ingress[0].tls.client_auth.ca | `ca` is missing | add `ca = "FILE.pem"`

listen = '0.0.0.0:443'
upstream = 'http://a'
tls = { client_auth = { ca = 'c', mode = 'request' }, certificates = [{ cert = 'c', key = 'k' }] }
# ingress[0].tls.client_auth.mode | unknown value "request" | choose "required" or "optional"

listen = '0.0.0.0:443'
upstream = 'http://a'
tls = { client_auth = { ca = 'c', forward_chain = 'yes' }, certificates = [{ cert = 'c', key = 'k' }] }
# ingress[0].tls.client_auth.forward_chain | expected true or false, found string | write true or false, without quotes

listen = '0.0.0.0:443'
route = [{ require_client_cert = true, upstream = 'http://a' }]
tls.certificates = [{ cert = 'c', key = 'k' }]
# ingress[0].route[0].require_client_cert | this listener asks no client for a certificate | add `client_auth = { ca = "clients.pem", mode = "optional" }` to the listener's `tls`

listen = '0.0.0.0:443'
upstream = 'http://a'
tls.certificates = []
# ingress[0].tls.certificates | `certificates` is empty | add `acme`, or `certificates = [{ cert = "cert.pem", key = "key.pem" }]`

listen = '0.0.0.0:443'
upstream = 'http://a'
tls = { min_version = '1.1', certificates = [{ cert = 'c', key = 'k' }] }
# ingress[0].tls.min_version | unknown value "1.1" | choose "1.2" or "1.3"

listen = '0.0.0.0:443'
tls.certificates = [{ cert = 'c', key = 'k' }]
# ingress[0].upstream | `upstream` is missing | add `upstream = "http://127.0.0.1:3000"`
"#;

/// What may stand in an ingress beside the smallest one.
const INGRESS_MORE: &str = r#"
hosts = []
# hosts | an empty list serves no host | name a host, or leave `hosts` out to serve any host

hosts = '*'
# hosts | `*` alone is not a host | leave `hosts` out to serve any host

hosts = 'a.*.example'
# hosts | "a.*.example" is not a host | `*` may only stand for everything below a name, as in "*.example.com"

hosts = '*.192.0.2.1'
# hosts | `*.` needs a name behind it | write a name, as in "*.example.com"

hosts = 'https://a.example/'
# hosts | "https://a.example/" is a URL | write the host alone, without scheme and path

hosts = 'a_b c'
# hosts | "a_b c": not a valid host name | write a name such as "tools.example.com", or an address

allow = []
# allow | an empty list lets nobody in | name who is let in, or leave `allow` out to let everyone in

deny = 'office'
# deny | "office" is not an address or CIDR | write a CIDR such as "203.0.113.0/24", an address, or "@" and the name of a set

deny = '::ffff:10.0.0.0/104'
# deny | an IPv4 network in IPv6 form | write "10.0.0.0/8"

deny = [{ cidr = '10.0.0.0/8' }]
# deny[0] | expected text, found table | write the network as text; owner, note and expiry belong in `[sets]`

proxy_protocol_from = '0.0.0.0/0'
# proxy_protocol_from | everybody is on this list | name the load balancers alone: whoever is listed may claim any client address

limits = 'x'
# limits | no limit is called `x` | add `[limits.x]` with its `rate`

redirect_http = '[::ffff:127.0.0.1]:80'
# redirect_http | an IPv4 address in IPv6 form | write "127.0.0.1:80"

redirect_http = '0.0.0.0:0'
# redirect_http | port 0 is any free port | choose a port from 1 to 65535

receipt = true
# receipt | there is no key to make receipts with | add `[audit.receipt]` with `key_file = "FILE"`, which the upstream has too

receipt = 'yes'
# receipt | expected true or false, found string | write true or false, without quotes

redirect_http = 80
# redirect_http | expected text, found integer | write it in double quotes

redirect_http = '443'
# redirect_http | no address | write the address too, as in "0.0.0.0:443" or "[::]:443"

redirect_http = '127.0.0.1:443'
# redirect_http | 127.0.0.1:443 is taken: `ingress[0].listen` listens on 0.0.0.0:443 | give one of them another address or port

route = { path = 'api' , upstream = 'http://a' }
# route.path | a path begins with `/` | write "/api"

route = { path = '/a/*' , upstream = 'http://a' }
# route.path | a path is a plain prefix | leave out query, wildcards and escapes; whatever begins with the path is matched

route = { path = '/a/../b' , upstream = 'http://a' }
# route.path | a path has no empty, `.` or `..` segments | write it without them

route = { path = '/a' }
# route.upstream | `upstream` is missing | add `upstream = "http://127.0.0.1:3000"` or a name in `[upstreams]`

route = { path = '/a', upstream = 'app' }
# route.upstream | no upstream is called `app` | add `[upstreams.app]`, or write "http://127.0.0.1:3000"

route = { path = '/a', upstream = 'localhost:3000' }
# route.upstream | no upstream is called `localhost:3000` | write "http://localhost:3000"

route = { path = '/a', upstream = 'http://a/b' }
# route.upstream | more than host and port in the URL of a server | write scheme, host and port only; the request's own path is forwarded

route = { path = '/a', upstream = 'ftp://a' }
# route.upstream | "ftp://a" is not the URL of a server | write "http://", host and port, as in "http://127.0.0.1:3000"

on_failure = 'ignore'
# on_failure | unknown value "ignore" | choose "refuse" or "continue"

route = [{ path = '/a', upstream = 'http://a' }, { path = '/a', upstream = 'http://b' }]
# route[1] | an earlier route has path `/a` of the same host | give one of them another path or host, or remove it
"#;

/// The fixed addresses.
const FIXED: &str = r#"

# fixed | `fixed` is missing | add `fixed = ["203.0.113.7"]` with an address of this machine

fixed = []
# fixed | `fixed` is empty | add `fixed = ["203.0.113.7"]` with an address of this machine

fixed = ['192.0.2.1', '192.0.2.2']
# fixed[1] | a second address of this family | keep one IPv4 and one IPv6 address at most: all traffic leaves from it

fixed = '192.0.2.0/24'
# fixed | "192.0.2.0/24" is not an address | write one address, without port and prefix, as in "203.0.113.7"

fixed = '0.0.0.0'
# fixed | 0.0.0.0 cannot be a source address | write one address, without port and prefix, as in "203.0.113.7"

fixed = 'fe80::1'
# fixed | fe80::1 cannot be a source address | write one address, without port and prefix, as in "203.0.113.7"

fixed = '224.0.0.1'
# fixed | 224.0.0.1 cannot be a source address | write one address, without port and prefix, as in "203.0.113.7"
"#;

/// What may stand in an egress beside them.
const EGRESS_MORE: &str = r#"
advertised = '2001:db8::7'
# advertised | an address of a family that has none in `fixed` | remove it, or add the address of this machine that is seen so to `fixed`

advertised = ['203.0.113.7', '203.0.113.8']
# advertised[1] | a second address of this family | keep one IPv4 and one IPv6 address at most: all traffic leaves from it

ports = '2000-1000'
# ports | not a range of ports | write two ports from 1 to 65535, the lower first, as in "8000-8100"

ports = '20000-20100'
# ports | too few local ports | give at least 1024, or leave it out to use the system's range

resolver.servers = 'dns.example'
# resolver.servers | "dns.example" is not an address | write the address of a name server, as in "10.0.0.2:53"

listener = { listen = '0.0.0.0:1' }
# listener.clients | `clients` is missing | add `clients = [{ name = "app", from = ["10.0.3.0/24"] }]`

listener = { accept = 'http' }
# listener.listen | `listen` is missing | add `listen = "127.0.0.1:3128"`

listener = { listen = '127.0.0.1:1', accept = 'ftp' }
# listener.accept | unknown value "ftp" | choose "http", "socks5" or "socks4"

listener = { listen = '127.0.0.1:1', clients = [{ name = 'a', from = '0.0.0.0/0' }] }
# listener.clients[0].from | an open proxy: everybody, without a password | narrow `from`, or add `password_file`

listener = { listen = '127.0.0.1:1', clients = [{ name = 'a' }] }
# listener.clients[0].from | `from` is missing | add `from = ["10.0.3.0/24"]`

listener = { listen = '127.0.0.1:1', clients = [{ from = '10.0.0.1' }] }
# listener.clients[0].name | `name` is missing | add `name = "app"`; it is written to the audit log

listener = { listen = '127.0.0.1:1', clients = [{ name = 'a:b', from = '10.0.0.1' }] }
# listener.clients[0].name | "a:b" is not a usable name | use 1 to 64 ASCII letters, digits and signs, without colon, quote, backslash and space

listener = { listen = '127.0.0.1:1', clients = [{ name = 'a', from = '10.0.0.1', password_file = '/none' }] }
# listener.clients[0].password_file | cannot read /none: No such file or directory (os error 2) | check the path and its permissions

forward = { to = 'db.example:1' }
# forward.listen | `listen` is missing | add `listen = "127.0.0.1:15432"`

forward = { listen = '127.0.0.1:1' }
# forward.to | `to` is missing | add `to = "db.example.com:5432"`

forward = { listen = '127.0.0.1:1', to = 'db.example' }
# forward.to | "db.example": a port from 1 to 65535 is needed, as in host:443 or [2001:db8::1]:443 | write host and port, as in "db.example.com:5432"

forward = { listen = '127.0.0.1:1', to = 'postgres://db.example:5432' }
# forward.to | "postgres://db.example:5432" is a URL | write host and port alone, as in "db.example.com:5432"

forward = { listen = '127.0.0.1:1', to = 'db.example:1', max_tunnels = 0 }
# forward.max_tunnels | out of range | choose from 1 to 1000000

forward = { listen = '127.0.0.1:1', to = 'db.example:1', protocol = 'oracle' }
# forward.protocol | unknown value "oracle" | choose "mongodb" or "mysql" or "none" or "postgres" or "redis" or "sqlserver" or "tls"

forward = { listen = '127.0.0.1:1', to = 'db.example:1', from = '::/0' }
# forward.from | everybody could use this data source | name those who need it, as in `from = ["10.0.3.0/24"]`

forward = { listen = '127.0.0.1:1', to = 'db.example:1', addresses = '0.0.0.0/0' }
# forward.addresses | everybody is on this list | name the private network that the destination is in, as in "10.0.5.0/24"

forward = { listen = '127.0.0.1:9911', to = 'db.example:1' }
# forward.listen | 127.0.0.1:9911 is taken: `admin.listen` listens on 127.0.0.1:9911 | give one of them another address or port

policy = { ports = 443 }
# policy.destinations | `destinations` is missing | add `destinations = ["*.example.com"]`, or `["*"]` for any

policy = { destinations = 'a.example:443' }
# policy.destinations | "a.example:443" has a port | write the host alone, without port

policy = { destinations = '*', ports = 0 }
# policy.ports | out of range | choose from 1 to 65535

policy = { destinations = '*', ports = '443,80' }
# policy.ports | not a range of ports | write two ports from 1 to 65535, the lower first, as in "8000-8100"

policy = { destinations = '*', clients = 'locl' }
# policy.clients | no egress client is called `locl` | did you mean `local`?

policy = { destinations = '*', action = 'drop' }
# policy.action | unknown value "drop" | choose "allow" or "deny" or "report"

policy = [{ destinations = '*', name = 'a' }, { destinations = '*', name = 'a' }]
# policy[1] | an earlier rule is called `a` | give each a name of its own: the audit log says which decided

listener = { listen = '127.0.0.1:1', clients = [{ name = 'a', from = '10.0.0.1' }, { name = 'a', from = '10.0.0.1' }] }
# listener.clients[1] | the same client twice | remove one
"#;

/// An ingress whose certificate is to be ordered.
const ORDERING: &str = r#"
[[ingress]]
listen = "0.0.0.0:443"
hosts = "tools.example.com"
upstream = "http://127.0.0.1:3000"
"#;

const ACME: &str = r#"
tls.acme.contact = 'mailto:ops'
# ingress[0].tls.acme.contact | "mailto:ops" is not a mail address | write one mail address, as in "ops@example.com"

tls.acme.directory = 'http://ca.example/dir'
# ingress[0].tls.acme.directory | "http://ca.example/dir" is not the https URL of a directory | write "letsencrypt", "letsencrypt-staging", or the https URL that the certificate authority gives as its ACME directory

tls.acme.challenge = 'http-02'
# ingress[0].tls.acme.challenge | unknown value "http-02" | choose "tls-alpn-01" or "http-01" or "dns-01" or "dns-persist-01"

tls.acme.challenge = 'http-01'
# ingress[0].tls.acme | the challenge http-01 is answered on port 80, and nothing listens there | add `redirect_http = "0.0.0.0:80"` beside `listen`, or choose another challenge

tls.acme.challenge = 'dns-01'
# ingress[0].tls.acme.hook | `hook` is missing | add `hook = "/etc/tollgate/dns-hook"`, a program that sets a TXT record; or choose "dns-persist-01", which needs none

tls.acme.hook = '/x'
# ingress[0].tls.acme.hook | only the challenge dns-01 has a hook | remove it, or choose `challenge = "dns-01"`

tls.acme = { challenge = 'dns-01', hook = [] }
# ingress[0].tls.acme.hook | not a command | write the program, or a list of it and its arguments, as in ["/etc/tollgate/dns-hook", "--zone", "example.com"]

tls.acme.profile = 'a b'
# ingress[0].tls.acme.profile | "a b" is not a profile | write the name of one that the directory offers, as in "shortlived"

tls.acme.eab.kid = 'x'
# ingress[0].tls.acme.eab.key_file | `key_file` is missing | add `key_file = "eab.key"`, a file with the HMAC key that belongs to `kid`

tls.acme.fallback = [{ profile = 'x' }]
# ingress[0].tls.acme.fallback[0].directory | `directory` is missing | add `directory = "https://..."`

tls.acme.fallback = 'letsencrypt'
# ingress[0].tls.acme | https://acme-v02.api.letsencrypt.org/directory is named twice | name each directory once

tls.acme.store = 'redis'
# ingress[0].tls.acme.store | no Redis is named | add `[limits.store]` with `redis = "redis://127.0.0.1:6379"`

tls.acme.store = '/mnt/shared'
# ingress[0].tls.acme.store | what replicas share is sealed, and there is no key to seal with | make one with `tollgate secret keygen` and name it in `process.key_file`, the same for every replica

tls.acme = {}
[limits.store]
redis = 'redis://127.0.0.1'
# ingress[0].tls.acme | what replicas share is sealed, and there is no key to seal with | make one with `tollgate secret keygen` and name it in `process.key_file`, the same for every replica

tls.acme.wildcards = true
# ingress[0].tls.acme.wildcards | unknown key | remove it; known here are ca_file, challenge, contact, directory, eab, fallback, hook, profile, store

tls.acme = {}
[[ingress.route]]
hosts = '*.example.com'
upstream = 'http://127.0.0.1:4000'
# ingress[0].tls.acme | `*.example.com` can only be ordered by a DNS challenge | choose `challenge = "dns-persist-01"` or "dns-01", or name each host

tls.acme.challenge = 'dns-persist-01'
[[ingress.route]]
hosts = '192.0.2.1'
upstream = 'http://127.0.0.1:4000'
# ingress[0].tls.acme | the address 192.0.2.1 cannot be ordered by a DNS challenge | choose `challenge = "tls-alpn-01"` or "http-01", or remove it from `hosts`

tls.acme = {}
[[ingress.route]]
hosts = '192.0.2.1'
upstream = 'http://127.0.0.1:4000'
# ingress[0].tls.acme | the address 192.0.2.1 needs a profile that allows addresses | add `profile = "shortlived"` to `acme`, or remove the address from `hosts`

tls.certificates = [{ cert = 'c.pem', key = 'k.pem' }]
[[ingress]]
listen = '127.0.0.1:444'
upstream = 'http://127.0.0.1:3000'
tls.acme = {}
# ingress[1].tls.acme | no host is named, so there is nothing to order a certificate for | add `hosts = ["tools.example.com"]` beside `listen`
"#;

const REDIS: &str = r#"
redis = '127.0.0.1'
# limits.store.redis | not the URL of a Redis | write "redis://", or "rediss://" for TLS, then host and port, as in "rediss://limits.internal:6379"

redis = 'redis://me:secret@127.0.0.1'
# limits.store.redis | a user or password in the URL | put the user in `user` and the password in a file that `password_file` names

user = 'x'
# limits.store.redis | `redis` is missing | add `redis = "rediss://limits.internal:6379"`
"#;
/// The transparent way; the resolver is 10.0.0.2:53.
const TRANSPARENT: &str = r#"
clients = []
# transparent.clients | `clients` is empty | add `clients = [{ name = "app", from = ["10.0.3.0/24"] }]`; for an application on this machine name its own addresses, and loopback

clients = [{ name = 'app', from = '0.0.0.0/0' }]
# transparent.clients[0].from | an open proxy: everybody, without a password | narrow `from` to those who need it

clients = [{ name = 'app', from = '10.0.0.1', password_file = 'x' }]
# transparent.clients[0].password_file | unknown key | remove it; known here are from, max_tunnels, name

listen = []
# transparent.listen | an empty list listens nowhere | write `listen = "127.0.0.1:3129"`, or leave it out

dns_listen = '10.0.0.2:53'
# resolver.servers | one of them is our own responder | name the servers that know the destinations

dns_listen = '127.0.0.1:3129'
# transparent.listen | 127.0.0.1:3129 is taken: `egress.transparent.dns_listen` listens on 127.0.0.1:3129 | give one of them another address or port

mode = 'nat'
# transparent.mode | unknown value "nat" | choose "redirect" or "tproxy"

synthetic = '8.8.0.0/16'
# transparent.synthetic | 8.8.0.0/16 may belong to somebody | use "198.18.0.0/15", a private block, or one of fc00::/7

synthetic = '198.0.0.0/8'
# transparent.synthetic | 198.0.0.0/8 may belong to somebody | use "198.18.0.0/15", a private block, or one of fc00::/7

synthetic = '10.0.0.0/25'
# transparent.synthetic | 10.0.0.0/25 has too few addresses | give a /24 or a larger block

synthetic = ['10.1.0.0/16', '10.2.0.0/16']
# transparent.synthetic[1] | a second block of this family | keep one IPv4 block, and one IPv6 block if IPv6 is wanted

synthetic = ['198.18.0.0/15', 'fd00::/64']
# transparent.synthetic[1] | nothing listens in this family | add an address of that family to `listen`, or leave the block out

listen = '[::1]:3129'
synthetic = 'fd00::/64'
# transparent.synthetic | no IPv4 block: many clients ask for nothing else | add an IPv4 block, such as "198.18.0.0/15"

ttl = '0s'
# transparent.ttl | out of range | choose from 1s to 1h

limits = 'x'
# transparent.limits | no limit is called `x` | add `[limits.x]` with its `rate`

dns_limits = 'x'
# transparent.dns_limits | no limit is called `x` | add `[limits.x]` with its `rate`

forward_to = { names = '*.cluster.local' }
# transparent.forward_to.servers | `servers` is missing | add `servers = ["10.96.0.10:53"]`

forward_to = { servers = '10.96.0.10' }
# transparent.forward_to.names | `names` is missing | add `names = ["*.cluster.local"]`

forward_to = { names = '*.cluster.local', servers = '127.0.0.1:5353' }
# transparent.forward_to.servers | this is our own responder | name the server that knows these names
"#;

#[test]
fn a_fixed_address_is_no_synthetic_one() {
    let text = "[egress]\nfixed = '10.1.0.7'\nresolver.servers = '10.0.0.2'\n[egress.transparent]\n\
                clients = [{ name = 'app', from = '10.0.0.1' }]\nsynthetic = '10.1.0.0/16'";
    one(
        text,
        "egress.transparent.synthetic",
        "the fixed address 10.1.0.7 is in it",
        "choose another block: synthetic addresses stand for names, and stand on no interface",
    );
}

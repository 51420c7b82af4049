//! The plan of the house, checked against its source: floors, sizes, and what must stand in one place only.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const FLOORS: &[&[&str]] = &[
    &["addr", "clock", "outcome"],
    &["disk", "pem", "socket", "wire", "workers"],
    &["resolve"],
    &[
        "config",
        "identity",
        "reach",
        "relay",
        "secret",
        "telemetry",
    ],
    &["limit", "policy", "record", "store"],
    &["audit", "tls"],
    &["acme", "dial", "sessions", "snapshot"],
    &["admin", "egress", "ingress", "listener", "reload"],
    &["app"],
    &["cli"],
];
const LINES_MAX: usize = 400;

#[test]
fn imports_go_downwards_and_rooms_stay_small() {
    let mut breaches = Vec::new();
    for (name, text) in rooms() {
        let body = without_tests(&text);
        if !text.starts_with("//! ") {
            breaches.push(format!("{name}: does not begin by saying what it is for"));
        }
        let lines = body.lines().count();
        if lines > LINES_MAX {
            breaches.push(format!("{name}: {lines} lines, more than {LINES_MAX}"));
        }
        if name.ends_with("/mod") {
            breaches.push(format!(
                "{name}: a folder's room is named after it, never mod.rs"
            ));
        }
        if body.contains("super::super") {
            breaches.push(format!("{name}: climbs two floors with super::super"));
        }
        breaches.extend(upward(&name, body));
    }
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

#[test]
fn what_enters_through_one_room_stands_in_one_room() {
    for (word, home) in [
        ("rustls_pemfile", "pem"),
        ("x509_parser", "tls"),
        ("unsafe_code", "socket"),
        ("governor::", "limit"),
    ] {
        let found: BTreeSet<_> = rooms()
            .into_iter()
            .filter(|(name, text)| {
                name != "lib" && code(without_tests(text)).any(|line| line.contains(word))
            })
            .map(|(name, _)| name)
            .filter(|name| !name.starts_with(home))
            .collect();
        assert!(
            found.is_empty(),
            "{word} belongs in {home} only, but stands in {found:?}"
        );
    }
}

fn upward(name: &str, body: &str) -> Vec<String> {
    let room = name.split('/').next().unwrap();
    if matches!(room, "lib" | "main") {
        return Vec::new();
    }
    let Some(here) = floor(room) else {
        return vec![format!("{name}: stands on no floor")];
    };
    let mut breaches = Vec::new();
    for other in crate_paths(body).into_iter().filter(|other| other != room) {
        match floor(&other) {
            Some(there) if there < here => {}
            Some(_) => breaches.push(format!(
                "{name}: uses `{other}`, which is not on a lower floor"
            )),
            None => breaches.push(format!("{name}: uses unknown `{other}`")),
        }
    }
    breaches
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// Every first word after `crate::`, those in braces included.
fn crate_paths(body: &str) -> BTreeSet<String> {
    let word = |text: &str| {
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let text = code(body).collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for part in text.split("crate::").skip(1) {
        match part.strip_prefix('{') {
            None => {
                found.insert(word(part));
            }
            Some(list) => {
                let (mut depth, mut item) = (1, String::new());
                for c in list.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 1 => {
                            found.insert(word(item.trim()));
                            item.clear();
                            continue;
                        }
                        _ => {}
                    }
                    if depth == 0 {
                        break;
                    }
                    item.push(c);
                }
                found.insert(word(item.trim()));
            }
        }
    }
    found.remove("");
    found
}

fn code(body: &str) -> impl Iterator<Item = &str> {
    body.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap()
}

/// Every source file, as `audit/frame` and its text.
fn rooms() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    let name = |path: &Path| {
        path.strip_prefix(&root)
            .unwrap()
            .with_extension("")
            .to_str()
            .unwrap()
            .to_owned()
    };
    paths
        .iter()
        .map(|path| (name(path), fs::read_to_string(path).unwrap()))
        .collect()
}

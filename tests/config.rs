//! The configuration as its reader meets it: examples that load, and mistakes with their places and mends.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use tollgate::config;

#[test]
fn every_example_loads() {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/config")).unwrap() {
        let path = entry.unwrap().path();
        match config::load(&path) {
            Ok((_, warnings)) => assert!(warnings.is_empty(), "{warnings:?}"),
            Err(mistakes) => panic!("{mistakes}"),
        }
    }
}

fn mistakes(text: &str) -> String {
    match config::parse(Path::new("tollgate.toml"), text.to_owned()) {
        Ok((config, _)) => panic!("accepted: {config:?}"),
        Err(mistakes) => mistakes.to_string(),
    }
}

#[test]
fn look() {
    println!(
        "{}",
        mistakes(
            r#"
[process]
workers = "many"
[[ingress]]
lisen = "0.0.0.0:443"
redirect_http = [":80", "0.0.0.0:99999"]
hosts = ["*", "https://x.example", "x.example:443"]
upstream = "https://127.0.0.1:3000"
tls.acme = { contact = "x" }
allow = ["@offce", "10.0.0.1/8"]
[sets.office]
entries = ["10.0.0.0/8", { cidr = "2001:db8::1/64", expires = 2020-01-01 }]
[egress]
fixed = []
timeout = 3
"#
        )
    );
    println!(
        "{}",
        mistakes("[egress]\nfixed = \"192.0.2.1\"\nfixed = ['x'\n[a b]\nx=\n")
    );
}

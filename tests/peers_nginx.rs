//! nginx as the internal server: 200 MB each way, unchanged, in constant memory.
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

use support::body::{Sum, pattern_file};
use support::gate::{HOST, Place, free_port};
use support::peer::{Peer, curl, must};

const BODY_BYTES: u64 = 200_000_000;
/// More than this above what it needed before the body, and the body is being stored.
const GROWTH_BYTES_MAX: u64 = 64 * 1024 * 1024;

fn nginx(place: &Place) -> (Peer, u16) {
    let (home, port) = (place.path("nginx"), free_port());
    fs::create_dir_all(home.join("files")).unwrap();
    let at = home.display();
    let config = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {at}/pid;\nerror_log {at}/error.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n  access_log off;\n  client_max_body_size 0;\n  client_body_temp_path {at}/body;\n  \
         server {{ listen 127.0.0.1:{port}; root {at}/files; dav_methods PUT; }}\n}}\n"
    );
    fs::write(home.join("nginx.conf"), config).unwrap();
    let mut command = std::process::Command::new("nginx");
    command
        .arg("-p")
        .arg(&home)
        .arg("-c")
        .arg(home.join("nginx.conf"));
    command.arg("-e").arg(home.join("error.log"));
    let mut peer = Peer::start(&mut command, place.path("nginx.out"));
    peer.wait_port(port);
    (peer, port)
}

#[test]
#[ignore = "needs nginx and curl; run by tests/run"]
fn large_bodies_pass_unchanged_in_constant_memory() {
    let place = Place::new();
    let (_nginx, port) = nginx(&place);
    let gate = place.start(
        &(place.head()
            + &place.ingress(([127, 0, 0, 1], port).into(), "max_body = \"unlimited\"\n")),
    );
    let big = place.path("nginx/files/big");
    pattern_file(&big, BODY_BYTES);
    let url = |name: &str| format!("https://{HOST}:{}/{name}", place.https);
    must(curl(&place).arg("--fail").arg(url("big")).args([
        "--range",
        "0-9",
        "--output",
        "/dev/null",
    ]));
    let before = gate.memory_peak();

    for flag in ["--http1.1", "--http2"] {
        let down = place.path("down");
        must(
            curl(&place)
                .args([flag, "--fail"])
                .arg(url("big"))
                .arg("--output")
                .arg(&down),
        );
        assert_eq!(
            Sum::of_file(&down),
            Sum::of_pattern(BODY_BYTES),
            "{flag} down"
        );
        must(
            curl(&place)
                .args([flag, "--fail"])
                .arg("--upload-file")
                .arg(&big)
                .arg(url("up")),
        );
        let up = place.path("nginx/files/up");
        assert_eq!(Sum::of_file(&up), Sum::of_pattern(BODY_BYTES), "{flag} up");
        fs::remove_file(up).unwrap();
    }
    let growth = gate.memory_peak() - before;
    assert!(growth < GROWTH_BYTES_MAX, "grew by {growth} bytes");
}

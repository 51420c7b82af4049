//! psql through a named forward: the database sees the fixed address.
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
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::dns::Dns;
use support::gate::{FIXED, Place, free_port, run};
use support::log::Log;
use support::peer::{Peer, must};

/// A cluster of its own that listens on this address.
fn postgres(place: &Place, address: &str, port: u16) -> Peer {
    let bin = newest_bin();
    let account = must(Command::new("id").args(["-u", "postgres"]));
    let uid: u32 = account.trim().parse().unwrap();
    // The account may pass through the test's own directory, which is private otherwise.
    fs::set_permissions(
        place.path(""),
        std::os::unix::fs::PermissionsExt::from_mode(0o711),
    )
    .unwrap();
    let data = place.path("pg");
    fs::create_dir(&data).unwrap();
    chown(&data, Some(uid), None).unwrap();
    assert_eq!(fs::metadata(&data).unwrap().uid(), uid);
    must(
        Command::new(bin.join("initdb"))
            .args([
                "--auth=trust",
                "--username=postgres",
                "--no-sync",
                "--pgdata",
            ])
            .arg(&data)
            .current_dir("/")
            .uid(uid),
    );
    let rule = format!("host all all {FIXED}/32 trust\n");
    fs::write(data.join("pg_hba.conf"), rule).unwrap();
    let mut command = Command::new(bin.join("postgres"));
    command
        .arg("-D")
        .arg(&data)
        .args([
            "-c",
            &format!("listen_addresses={address}"),
            "-c",
            &format!("port={port}"),
        ])
        .args(["-c", "unix_socket_directories=", "-c", "fsync=off"])
        .current_dir("/")
        .uid(uid);
    let mut peer = Peer::start(&mut command, place.path("postgres.out"));
    peer.wait_output("ready to accept connections");
    peer
}

fn newest_bin() -> PathBuf {
    let mut found: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL; tests/run installs it")
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("initdb").is_file())
        .collect();
    found.sort();
    found.pop().expect("PostgreSQL; tests/run installs it")
}

fn psql(port: u16, query: &str) -> Command {
    let mut command = Command::new("psql");
    command
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-U",
            "postgres",
            "-At",
            "-c",
            query,
        ])
        .env("PGCONNECT_TIMEOUT", "15")
        .current_dir(Path::new("/"));
    command
}

#[test]
#[ignore = "needs PostgreSQL and root; run by tests/run"]
fn the_database_sees_the_fixed_address() {
    let place = Place::new();
    let (database, forward, closed) = (free_port(), free_port(), free_port());
    let _postgres = postgres(&place, "127.0.0.9", database);
    let dns = Dns::table(&[("db.customer.test", &["127.0.0.9"])]);
    let forwards = format!(
        "[[egress.forward]]\nname = \"orders\"\nlisten = \"127.0.0.1:{forward}\"\nto = \"db.customer.test:{database}\"\n\
         addresses = [\"127.0.0.9/32\"]\n\n\
         [[egress.forward]]\nname = \"closed\"\nlisten = \"127.0.0.1:{closed}\"\nto = \"db.customer.test:{database}\"\n"
    );
    let mut gate = place.start(&(place.head() + &place.egress(dns.address, &forwards)));

    let seen = must(&mut psql(forward, "select inet_client_addr()"));
    assert_eq!(seen.trim(), FIXED.to_string());
    let long = must(&mut psql(forward, "select repeat('x', 5000000)"));
    assert_eq!(long.trim().len(), 5_000_000);
    let refused = run(&mut psql(closed, "select 1"));
    assert_ne!(
        refused.code,
        Some(0),
        "an address that is not allowed was dialled"
    );

    assert!(gate.stop(Duration::from_secs(20)).success());
    let log = Log::read(&place.state());
    log.assert_paired();
    let after = log.kind("after").next().expect("a terminal record");
    assert_eq!(after["outcome"], "served", "{after}");
    assert_eq!(after["remote_port"], database, "{after}");
    assert_eq!(after["address"], "127.0.0.9", "{after}");
    assert_eq!(after["local_address"], FIXED.to_string(), "{after}");
}

//! Clients that know of no proxy, each against a real server or a stub of one.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;

use crate::support::gate::free_port;
use crate::support::peer::{Peer, must};
use crate::world::{FAR, FIXED, NAME, Placement, World, within};

/// A cluster in the far namespace that takes TLS from the fixed address only.
fn postgres(world: &World, port: u16) -> Peer {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL; tests/run installs it")
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("initdb").is_file())
        .collect();
    found.sort();
    let bin = found.pop().expect("PostgreSQL; tests/run installs it");
    let uid: u32 = must(Command::new("id").args(["-u", "postgres"]))
        .trim()
        .parse()
        .unwrap();
    let data = world.place.path("pg");
    fs::create_dir(&data).unwrap();
    chown(&data, Some(uid), None).unwrap();
    let as_postgres = |command: &mut Command| {
        std::os::unix::process::CommandExt::uid(command, uid);
        command.current_dir("/");
    };
    let mut init = Command::new(bin.join("initdb"));
    init.args([
        "--auth=trust",
        "--username=postgres",
        "--no-sync",
        "--pgdata",
    ])
    .arg(&data);
    as_postgres(&mut init);
    must(&mut init);
    for (name, mode) in [("cert.pem", "644"), ("key.pem", "600")] {
        let to = data.join(name);
        fs::copy(world.place.path(name), &to).unwrap();
        must(Command::new("chmod").arg(mode).arg(&to));
        chown(&to, Some(uid), None).unwrap();
    }
    fs::write(
        data.join("pg_hba.conf"),
        format!("hostssl all all {FIXED}/32 trust\n"),
    )
    .unwrap();
    let mut command = world.far("setpriv");
    command
        .args(["--reuid", &uid.to_string(), "--clear-groups"])
        .arg(bin.join("postgres"))
        .arg("-D")
        .arg(&data)
        .args([
            "-c",
            &format!("listen_addresses={FAR}"),
            "-c",
            &format!("port={port}"),
        ])
        .args([
            "-c",
            "unix_socket_directories=",
            "-c",
            "fsync=off",
            "-c",
            "ssl=on",
        ])
        .args(["-c", "ssl_cert_file=cert.pem", "-c", "ssl_key_file=key.pem"]);
    world.far_peer(&mut command, "postgres.out", "ready to accept connections")
}

fn psql_sees_the_fixed_address(placement: Placement) {
    within(placement, |world| {
        let port = free_port();
        let _postgres = postgres(world, port);
        let target = format!(
            "host={NAME} port={port} user=postgres sslmode=verify-full sslrootcert={} connect_timeout=20",
            world.ca().display()
        );
        let query = "select inet_client_addr(), ssl from pg_stat_ssl where pid = pg_backend_pid()";
        let seen = must(world.app("psql").args([&target, "-At", "-c", query]));
        assert_eq!(seen.trim(), format!("{FIXED}|t"));
        let long =
            must(
                world
                    .app("psql")
                    .args([&target, "-At", "-c", "select repeat('x', 5000000)"]),
            );
        assert_eq!(long.trim().len(), 5_000_000);
        world.assert_passed(port);
        world.stop();
    });
}

#[test]
#[ignore = "needs PostgreSQL, nftables and root; run by tests/run"]
fn psql_on_the_same_machine() {
    psql_sees_the_fixed_address(Placement::User);
}

#[test]
#[ignore = "needs PostgreSQL, nftables and root; run by tests/run"]
fn psql_in_a_pod() {
    psql_sees_the_fixed_address(Placement::Pod);
}

#[test]
#[ignore = "needs PostgreSQL, nftables and root; run by tests/run"]
fn psql_behind_a_gateway() {
    psql_sees_the_fixed_address(Placement::Behind);
}

#[test]
#[ignore = "needs PostgreSQL, nftables and root; run by tests/run"]
fn psql_behind_a_gateway_with_tproxy() {
    psql_sees_the_fixed_address(Placement::BehindTproxy);
}

//! Clients that know of no proxy, each against a real server or a stub of one.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;

use crate::support::gate::free_port;
use crate::support::peer::{Peer, must, node_modules, script};
use crate::world::{FAR, FAR_V6, FIXED, FIXED_V6, NAME, Placement, World, dig, within};

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
        assert_eq!(node_client(world, "pg", NAME, port), FIXED.to_string());
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

/// A server of `tests/support/far_servers.js` in the far namespace.
fn node_server(world: &World, kind: &str, port: u16) -> Peer {
    let mut command = world.far("node");
    command
        .env("NODE_PATH", node_modules())
        .arg(script("far_servers.js"))
        .args([kind, &FAR.to_string(), &port.to_string()])
        .args([world.place.path("cert.pem"), world.place.path("key.pem")]);
    world.far_peer(&mut command, "node.out", "ready")
}

/// What a client of `tests/support/far_clients.js` says that the server saw.
fn node_client(world: &World, kind: &str, name: &str, port: u16) -> String {
    let mut command = world.app("node");
    command
        .env("NODE_PATH", node_modules())
        .env("NODE_EXTRA_CA_CERTS", world.ca())
        .arg(script("far_clients.js"))
        .args([kind, name, &port.to_string()])
        .arg(world.ca());
    must(&mut command).trim().to_owned()
}

/// Each of `drivers` against one server of `kind`.
fn node_drivers(kind: &str, drivers: &[&str], placement: Placement) {
    within(placement, |world| {
        let port = free_port();
        let _server = node_server(world, kind, port);
        for driver in drivers {
            let seen = node_client(world, driver, NAME, port);
            assert_eq!(seen, FIXED.to_string(), "{driver}");
        }
        world.assert_passed(port);
        world.stop();
    });
}

#[test]
#[ignore = "needs Node.js, nftables and root; run by tests/run"]
fn https_by_fetch_got_axios_and_the_sdk_of_aws() {
    node_drivers("https", &["fetch", "got", "axios", "s3"], Placement::Pod);
}

#[test]
#[ignore = "needs Node.js, nftables and root; run by tests/run"]
fn grpc_js() {
    node_drivers("grpc", &["grpc"], Placement::Behind);
}

#[test]
#[ignore = "needs Node.js, nftables and root; run by tests/run"]
fn tedious_for_sql_server() {
    node_drivers("tds", &["tds"], Placement::User);
}

#[test]
#[ignore = "needs Node.js, nftables and root; run by tests/run"]
fn nodemailer() {
    node_drivers("smtp", &["smtp"], Placement::Behind);
}

/// Without an Oracle there is only its listener's answer to be had.
#[test]
#[ignore = "needs Node.js, nftables and root; run by tests/run"]
fn oracledb_reaches_the_listener() {
    within(Placement::Behind, |world| {
        let port = free_port();
        let _server = node_server(world, "oracle", port);
        assert_eq!(node_client(world, "oracle", NAME, port), "refused");
        let said = fs::read_to_string(world.place.path("node.out")).unwrap();
        assert!(said.contains(&format!("asked by {FIXED}\n")), "{said}");
        world.assert_passed(port);
        world.stop();
    });
}

#[test]
#[ignore = "needs Node.js, nftables and root; run by tests/run"]
fn the_driver_for_mongodb() {
    node_drivers("mongo", &["mongo"], Placement::Behind);
}

#[test]
#[ignore = "needs curl, Node.js, nftables and root; run by tests/run"]
fn curl_with_name_checks() {
    within(Placement::BehindTproxy, |world| {
        let port = free_port();
        let _server = node_server(world, "https", port);
        let mut curl = world.app("curl");
        curl.args(["-sS", "--max-time", "30", "--cacert"])
            .arg(world.ca());
        let seen = must(curl.arg(format!("https://{NAME}:{port}/")));
        assert_eq!(seen, FIXED.to_string());
        world.assert_passed(port);
        world.stop();
    });
}

#[test]
#[ignore = "needs Redis, nftables and root; run by tests/run"]
fn redis_cli() {
    within(Placement::User, |world| {
        let port = free_port();
        let mut command = world.far("redis-server");
        command
            .args([
                "--port",
                "0",
                "--tls-port",
                &port.to_string(),
                "--bind",
                &FAR.to_string(),
            ])
            .args([
                "--tls-auth-clients",
                "no",
                "--protected-mode",
                "no",
                "--save",
                "",
                "--dir",
            ])
            .arg(world.place.path(""));
        for (option, file) in [
            ("--tls-cert-file", "cert.pem"),
            ("--tls-key-file", "key.pem"),
            ("--tls-ca-cert-file", "ca.pem"),
        ] {
            command.arg(option).arg(world.place.path(file));
        }
        let _redis = world.far_peer(&mut command, "redis.out", "Ready to accept connections");
        let mut client = world.app("redis-cli");
        client
            .args([
                "-h",
                NAME,
                "-p",
                &port.to_string(),
                "--tls",
                "--sni",
                NAME,
                "--cacert",
            ])
            .arg(world.ca())
            .args(["client", "info"]);
        let said = must(&mut client);
        assert!(said.contains(&format!(" addr={FIXED}:")), "{said}");
        assert_eq!(node_client(world, "ioredis", NAME, port), FIXED.to_string());
        world.assert_passed(port);
        world.stop();
    });
}

/// The server speaks first: who waits for a byte of the client waits for ever.
#[test]
#[ignore = "needs MariaDB, nftables and root; run by tests/run"]
fn mariadb_whose_server_speaks_first() {
    within(Placement::User, |world| {
        let (port, data) = (free_port(), world.place.path("mysql"));
        let uid: u32 = must(Command::new("id").args(["-u", "mysql"]))
            .trim()
            .parse()
            .unwrap();
        fs::create_dir(&data).unwrap();
        chown(&data, Some(uid), None).unwrap();
        must(
            Command::new("mariadb-install-db")
                .args(["--no-defaults", "--user=mysql", "--skip-test-db"])
                .arg(format!("--datadir={}", data.display())),
        );
        let path = |name: &str| world.place.path(name).display().to_string();
        let user = format!("create user app@'{FIXED}' require ssl;\n");
        fs::write(path("users.sql"), user).unwrap();
        let mut command = world.far("mariadbd");
        command
            .args(["--no-defaults", "--user=mysql", "--skip-name-resolve"])
            .args(["--skip-log-bin", "--innodb-flush-log-at-trx-commit=0"])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--init-file={}", path("users.sql")))
            .arg(format!("--socket={}", data.join("socket").display()))
            .arg(format!("--pid-file={}", data.join("pid").display()))
            .args([format!("--bind-address={FAR}"), format!("--port={port}")])
            .args([
                format!("--ssl-cert={}", path("cert.pem")),
                format!("--ssl-key={}", path("key.pem")),
            ]);
        let _mariadb = world.far_peer(&mut command, "mariadb.out", "ready for connections");
        let mut client = world.app("mariadb");
        client
            .args([
                "--no-defaults",
                "-u",
                "app",
                "-N",
                "-B",
                "-h",
                NAME,
                "-P",
                &port.to_string(),
            ])
            .args(["--connect-timeout=30", "--ssl-verify-server-cert"])
            .arg(format!("--ssl-ca={}", path("ca.pem")))
            .args(["-e", "select user(); show status like 'Ssl_version'"]);
        let said = must(&mut client);
        assert!(said.starts_with(&format!("app@{FIXED}\n")), "{said}");
        assert!(said.contains("TLSv1."), "{said}");
        for driver in ["mysql2", "mariadb"] {
            let seen = node_client(world, driver, NAME, port);
            assert_eq!(seen, FIXED.to_string(), "{driver}");
        }
        world.assert_passed(port);
        world.stop();
    });
}

/// Host and options of the connection string stand in SRV and TXT records, as for a cluster in MongoDB's own cloud.
#[test]
#[ignore = "needs Node.js, nftables and root; run by tests/run"]
fn the_driver_for_mongodb_by_srv() {
    within(Placement::Pod, |world| {
        let _server = node_server(world, "mongo", 27017);
        let seen = node_client(world, "mongo-srv", "cluster.customer.test", 27017);
        assert_eq!(seen, FIXED.to_string());
        world.assert_passed(27017);
        world.stop();
    });
}

/// IPv6 all the way: the question, the synthetic address, the redirection, the dial.
fn ipv6_has_its_own_synthetic_and_fixed_address(placement: Placement) {
    within(placement, |world| {
        world.both_families();
        let port = free_port();
        let mut server = world.far("node");
        server
            .arg(script("far_servers.js"))
            .args(["https", "::", &port.to_string()])
            .args([world.place.path("cert.pem"), world.place.path("key.pem")]);
        let _server = world.far_peer(&mut server, "node.out", "ready");
        let (_, given) = dig(world, &[NAME, "AAAA"]);
        assert!(given[0].starts_with("fd00:198:18::"), "{given:?}");
        let reverse = dig(world, &["-x", &given[0]]);
        assert_eq!(reverse.1, [format!("{NAME}.")]);
        let mut curl = world.app("curl");
        curl.args(["-6", "-sS", "--max-time", "30", "--cacert"])
            .arg(world.ca());
        let seen = must(curl.arg(format!("https://{NAME}:{port}/")));
        assert_eq!(seen, FIXED_V6.to_string());
        let (before, after) = world.records(port);
        let both = serde_json::json!([FAR_V6.to_string(), FAR.to_string()]);
        assert_eq!(before["addresses"], both, "{before}");
        assert_eq!(after["local_address"], FIXED_V6.to_string(), "{after}");
        let peer = before["peer"].as_str().unwrap_or_default();
        assert!(peer.contains("fd78:0:0:1::2"), "{before}");
        world.stop();
    });
}

#[test]
#[ignore = "needs curl, Node.js, nftables and root; run by tests/run"]
fn ipv6_behind_a_gateway() {
    ipv6_has_its_own_synthetic_and_fixed_address(Placement::Behind);
}

#[test]
#[ignore = "needs curl, Node.js, nftables and root; run by tests/run"]
fn ipv6_behind_a_gateway_with_tproxy() {
    ipv6_has_its_own_synthetic_and_fixed_address(Placement::BehindTproxy);
}

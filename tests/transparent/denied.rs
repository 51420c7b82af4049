//! What may not pass does not, and is written down.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::support::eventually;
use crate::support::gate::{free_port, run};
use crate::support::log::Log;
use crate::support::peer::must;
use crate::world::{
    FAR, FAR_V6, FIXED, GATE, METADATA, NAME, Placement, World, connects, dig, within, within_with,
};

const QUICK: Duration = Duration::from_secs(20);

/// A listener in the far namespace that must never see anybody.
fn canary(world: &World, address: Ipv4Addr, port: u16) -> TcpListener {
    let listener = world.in_far(|| TcpListener::bind((address, port)).unwrap());
    listener.set_nonblocking(true).unwrap();
    listener
}

fn assert_untouched(canary: &TcpListener) {
    assert!(canary.accept().is_err(), "the canary was reached");
}

#[test]
#[ignore = "needs nftables and root; run by tests/run"]
fn names_get_synthetic_addresses_and_nothing_else_exists() {
    within(Placement::Behind, |world| {
        let (status, addresses) = dig(world, &[NAME, "A"]);
        assert_eq!((&*status, addresses.len()), ("NOERROR", 1));
        let synthetic: Ipv4Addr = addresses[0].parse().unwrap();
        assert!(
            matches!(synthetic.octets(), [198, 18 | 19, ..]),
            "{synthetic}"
        );
        assert_eq!(dig(world, &["API.customer.TEST.", "A"]).1, addresses);
        assert_eq!(dig(world, &["+tcp", NAME, "A"]).1, addresses);
        // Whom the resolver list names does not matter: the question never gets there.
        assert_eq!(dig(world, &["@10.78.2.9", NAME, "A"]).1, addresses);
        for other in ["AAAA", "HTTPS", "SVCB", "MX"] {
            assert_eq!(
                dig(world, &[NAME, other]),
                ("NOERROR".to_owned(), vec![]),
                "{other}"
            );
        }
        let reverse = dig(world, &["-x", &synthetic.to_string()]);
        assert_eq!(reverse, ("NOERROR".to_owned(), vec![format!("{NAME}.")]));
        let nobody = ("NXDOMAIN".to_owned(), vec![]);
        for name in [
            "other.test", // the name servers know it, the policy does not
            "customer.test",
            "missing.customer.test", // the other way round
            "localhost",
            "metadata.google.internal",
            "postgres",
            "2130706433",
            "127.0.0.1",
        ] {
            assert_eq!(dig(world, &[name, "A"]), nobody, "{name}");
        }
        assert_eq!(dig(world, &["-x", "198.18.7.7"]), nobody);
        assert_eq!(dig(world, &["-x", "8.8.8.8"]), nobody);
        let denied = world.denial("other.test", "destination_denied");
        let log = Log::read(&world.place.state());
        let absent = log
            .kind("denied")
            .find(|r| r["target"] == "missing.customer.test");
        assert!(
            absent.is_none(),
            "search lists would fill the log: {absent:?}"
        );
        assert_eq!(denied["client"], "10.78.1.2", "{denied}");
        assert_eq!(denied["listener"], "0.0.0.0:5353", "{denied}");
        let metrics = world.gate().metrics();
        assert!(
            metrics.contains("tollgate_synthetic_names 1\n"),
            "{metrics}"
        );
        assert!(
            metrics.contains("tollgate_questions_total{answer=\"told\"} "),
            "{metrics}"
        );
        world.stop();
    });
}

fn forbidden_addresses_stay_out_of_reach(placement: Placement) {
    within(placement, |world| {
        let port = free_port();
        let canaries = [METADATA, FAR].map(|address| canary(world, address, port));
        let deaf = world.in_far(|| UdpSocket::bind((FAR, port)).unwrap());
        deaf.set_nonblocking(true).unwrap();
        for address in [METADATA, FAR, Ipv4Addr::new(10, 78, 2, 8)] {
            let to = SocketAddr::from((address, port));
            assert_ne!(connects(world, to).code, Some(0), "{to}");
            world.denial(&to.to_string(), "destination_denied");
        }
        // A rule for every name and address allows no special-purpose one.
        world
            .place
            .write(&world.config().replace("*.customer.test", "*"));
        world.gate().reload();
        for address in [METADATA, Ipv4Addr::new(10, 78, 2, 8)] {
            let to = SocketAddr::from((address, port));
            assert_ne!(connects(world, to).code, Some(0), "{to}");
            world.denial(&to.to_string(), "address_denied");
        }
        // Nothing listens for IPv6, so it is not open either.
        if matches!(placement, Placement::User | Placement::Pod) {
            let bound = world.in_far(|| TcpListener::bind((FAR_V6, port)).unwrap());
            bound.set_nonblocking(true).unwrap();
            assert_ne!(
                connects(world, SocketAddr::from((FAR_V6, port))).code,
                Some(0)
            );
            assert_untouched(&bound);
        }
        let send = format!("echo leak > /dev/udp/{FAR}/{port}");
        run(world.app("bash").args(["-c", &send]));
        canaries.iter().for_each(assert_untouched);
        thread::sleep(Duration::from_millis(200)); // a datagram would have arrived
        assert!(deaf.recv(&mut [0; 16]).is_err(), "a datagram got past");
        assert_eq!(Log::read(&world.place.state()).kind("before").count(), 0);
        world.stop();
    });
}

#[test]
#[ignore = "needs nftables and root; run by tests/run"]
fn forbidden_addresses_from_the_same_machine() {
    forbidden_addresses_stay_out_of_reach(Placement::User);
}

#[test]
#[ignore = "needs nftables and root; run by tests/run"]
fn forbidden_addresses_from_a_pod() {
    forbidden_addresses_stay_out_of_reach(Placement::Pod);
}

#[test]
#[ignore = "needs nftables and root; run by tests/run"]
fn forbidden_addresses_from_behind_a_gateway() {
    forbidden_addresses_stay_out_of_reach(Placement::Behind);
}

#[test]
#[ignore = "needs nftables and root; run by tests/run"]
fn forbidden_addresses_with_tproxy() {
    forbidden_addresses_stay_out_of_reach(Placement::BehindTproxy);
}

#[test]
#[ignore = "needs nftables and root; run by tests/run"]
fn a_synthetic_address_is_worth_nothing_by_itself() {
    within(Placement::Behind, |world| {
        let port = free_port();
        let canary = canary(world, FAR, port);
        let nobody = SocketAddr::from(([198, 18, 7, 7], port));
        assert_ne!(connects(world, nobody).code, Some(0));
        world.denial(&nobody.to_string(), "synthetic_unknown");
        // A name server that points back at us, and one that points into our network.
        for name in ["evil.customer.test", "inside.customer.test"] {
            assert_eq!(dig(world, &[name, "A"]).1.len(), 1);
            let url = format!("telnet://{name}:{port}");
            let done = run(world.app("curl").args(["-sS", "--max-time", "10", &url]));
            assert_ne!(done.code, Some(0), "{done:?}");
            world.denial(&format!("{name}:{port}"), "address_denied");
        }
        // Nobody redirected it: it would lead back here.
        let own = SocketAddr::from((GATE, 3129));
        assert_ne!(connects(world, own).code, Some(0));
        world.denial(&own.to_string(), "not_redirected");
        assert_untouched(&canary);
        world.stop();
    });
}

#[test]
#[ignore = "needs nftables and root; run by tests/run"]
fn whoever_is_no_client_is_refused() {
    within(Placement::Behind, |world| {
        let config = std::fs::read_to_string(world.place.path("tollgate.toml")).unwrap();
        world
            .place
            .write(&config.replace("from = [\"10.78.1.0/24\"]", "from = [\"10.78.1.3\"]"));
        world.gate().reload();
        assert_eq!(dig(world, &[NAME, "A"]), ("REFUSED".to_owned(), vec![]));
        world.denial(NAME, "client_denied");
        let to = SocketAddr::from(([198, 18, 7, 7], 80));
        assert_ne!(connects(world, to).code, Some(0));
        world.denial(&to.to_string(), "client_denied");
        world.stop();
    });
}

/// The server looks into the log the moment it has accepted, and speaks first.
#[test]
#[ignore = "needs nftables and root; run by tests/run"]
fn the_record_is_there_before_the_server_sees_anybody() {
    within(Placement::Behind, |world| {
        let port = free_port();
        let listener = world.in_far(|| TcpListener::bind((FAR, port)).unwrap());
        let (state, (tell, told)) = (world.place.state(), mpsc::channel());
        thread::spawn(move || {
            let (mut tcp, peer) = listener.accept().unwrap();
            let before = Log::read(&state)
                .kind("before")
                .cloned()
                .collect::<Vec<_>>();
            tcp.write_all(b"greeting\r\n").unwrap();
            tell.send((peer, before)).unwrap();
            let mut rest = String::new();
            tcp.read_to_string(&mut rest).ok();
        });
        let read = format!("exec 3<>/dev/tcp/{NAME}/{port}; head -n 1 <&3");
        let said = must(world.app("timeout").args(["20", "bash", "-c", &read]));
        assert_eq!(said, "greeting\r\n");
        let (peer, before) = told.recv_timeout(QUICK).unwrap();
        assert_eq!(peer.ip(), FIXED);
        assert_eq!(before.len(), 1, "{before:?}");
        assert_eq!(before[0]["destination"], format!("{NAME}:{port}"));
        world.stop();
    });
}

fn a_reload_that_takes_away_ends_the_connection(before: &str, after: &str, name_is: &str) {
    within(Placement::Behind, |world| {
        let port = free_port();
        let listener = world.in_far(|| TcpListener::bind((FAR, port)).unwrap());
        let (opened, open) = mpsc::channel::<TcpStream>();
        thread::spawn(move || opened.send(listener.accept().unwrap().0));
        let mut client = world.app("curl");
        let mut client = client
            .args([
                "-sS",
                "--max-time",
                "60",
                &format!("telnet://{NAME}:{port}"),
            ])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut far = open.recv_timeout(QUICK).unwrap();
        let config = std::fs::read_to_string(world.place.path("tollgate.toml")).unwrap();
        world.place.write(&config.replace(before, after));
        world.gate().reload();
        far.set_read_timeout(Some(QUICK)).unwrap();
        assert!(matches!(far.read(&mut [0; 1]), Ok(0) | Err(_)));
        assert!(!client.wait().unwrap().success());
        let (_, end) = world.records(port);
        assert_eq!(end["reason"], "policy_changed", "{end}");
        assert_eq!(dig(world, &[NAME, "A"]).0, name_is);
        world.stop();
    });
}

#[test]
#[ignore = "needs nftables and root; run by tests/run"]
fn a_rule_that_is_withdrawn_ends_the_connection_and_the_name() {
    a_reload_that_takes_away_ends_the_connection("*.customer.test", "*.another.test", "NXDOMAIN");
}

#[test]
#[ignore = "needs nftables and root; run by tests/run"]
fn a_listener_that_is_taken_away_ends_its_connections() {
    a_reload_that_takes_away_ends_the_connection("0.0.0.0:3129", "0.0.0.0:3130", "NOERROR");
}

#[test]
#[ignore = "needs nftables and root; run by tests/run"]
fn names_of_the_cluster_are_answered_by_its_own_server() {
    let keys = "forward_to = { names = [\"*.cluster.test\"], servers = [\"10.78.2.9:5300\"] }";
    within_with(Placement::Behind, keys, |world| {
        let server = world.in_far(|| UdpSocket::bind((FAR, 5300)).unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((count, peer)) = server.recv_from(&mut buffer) {
                // First an answer to something else, which is not passed on.
                let mut answer = buffer[..count].to_vec();
                answer[2] |= 0x80;
                answer[7] = 1;
                answer[11] = 0;
                answer.truncate(12 + "3svc7cluster4test".len() + 1 + 4);
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 96, 0, 1]);
                let mut other = answer.clone();
                other[1] ^= 1;
                *other.last_mut().unwrap() = 66;
                server.send_to(&other, peer).unwrap();
                server.send_to(&answer, peer).unwrap();
            }
        });
        let found = dig(world, &["svc.cluster.test", "A"]);
        assert_eq!(found, ("NOERROR".to_owned(), vec!["10.96.0.1".to_owned()]));
        assert_eq!(dig(world, &["cluster.test", "A"]).0, "NXDOMAIN");
        world.stop();
    });
}

#[test]
#[ignore = "needs nftables and root; run by tests/run"]
fn a_synthetic_address_means_the_same_after_a_restart() {
    within(Placement::Behind, |world| {
        let before = dig(world, &[NAME, "A"]).1;
        world.restart();
        let port = free_port();
        let listener = world.in_far(|| TcpListener::bind((FAR, port)).unwrap());
        thread::spawn(move || {
            let (mut tcp, _) = listener.accept().unwrap();
            tcp.write_all(b"here\n").unwrap();
        });
        assert_eq!(dig(world, &[NAME, "A"]).1, before);
        let said = run(world
            .app("timeout")
            .args(["20", "curl", "-sS"])
            .arg(format!("telnet://{NAME}:{port}")));
        assert!(said.stdout.contains("here"), "{said:?}");
        eventually("the terminal record", QUICK, || {
            Log::read(&world.place.state())
                .kind("after")
                .next()
                .map(|_| ())
        });
        world.stop();
    });
}

/// The application shows the reason, and the log has the same request id.
#[test]
#[ignore = "needs PostgreSQL's client, nftables and root; run by tests/run"]
fn a_driver_is_told_why_in_its_own_protocol() {
    within(Placement::Behind, |world| {
        for (host, reason) in [
            ("host=inside.customer.test", "address_denied"),
            ("hostaddr=198.18.7.7", "synthetic_unknown"),
        ] {
            let target = format!("{host} port=5432 user=u sslmode=disable connect_timeout=20");
            let done = run(world.app("psql").args([&target, "-c", "select 1"]));
            assert!(done.stderr.contains("egress: "), "{done:?}");
            let (_, rest) = done.stderr.split_once("request id ").expect(&done.stderr);
            let (id, _) = rest.split_once(')').expect(&done.stderr);
            eventually(reason, QUICK, || {
                let log = Log::read(&world.place.state());
                let denied = log.kind("denied").find(|r| r["id"] == id)?;
                assert_eq!(denied["reason"], reason, "{denied}");
                Some(())
            });
        }
        world.stop();
    });
}

//! `tollgate egress rules`: what does not fit is said, and what is printed is what the configuration has.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

mod support;

use support::gate::{Done, Place};

const EGRESS: &str = "[egress]\nfixed = \"192.0.2.1\"\nresolver.servers = \"10.0.0.2\"\n";
const CLIENTS: &str = "clients = [{ name = \"app\", from = \"10.0.0.1\" }]\n";

fn rules(place: &Place, transparent: &str, args: &[&str]) -> Done {
    let config = place.write(&format!("{}{EGRESS}{transparent}", place.head()));
    let mut all = vec!["egress", "rules", "--config", config.to_str().unwrap()];
    all.extend(args);
    place.tollgate(&all)
}

#[test]
fn what_does_not_fit_is_said_with_its_mend() {
    let place = Place::new();
    let transparent = format!("[egress.transparent]\n{CLIENTS}");
    for (section, args, says) in [
        (
            "",
            &["--print", "--user", "app"][..],
            "no [egress.transparent]",
        ),
        (&*transparent, &["--print"], "--user"),
        (&transparent, &["--user", "app"], "--print"),
        (
            &transparent,
            &["--print", "--user", "app", "--from", "10.0.0.0/8"],
            "cannot be used with",
        ),
        (
            &transparent,
            &["--print", "--user", "app; reboot"],
            "the name or the number of a user",
        ),
        (&transparent, &["--print", "--user", "-x"], "--user"),
        (
            &transparent,
            &["--print", "--from", "10.0.0.0/8"],
            "`egress.transparent.listen` is on loopback",
        ),
        (
            &transparent,
            &["--print", "--from", "10.0.0.0/8", "--mode", "tproxy"],
            "`egress.transparent.dns_listen` is on loopback",
        ),
        (
            &transparent,
            &["--print", "--user", "app", "--mode", "tproxy"],
            "use --mode redirect",
        ),
        (
            "[egress.transparent]\n",
            &["--print", "--user", "app"],
            "`clients` is missing",
        ),
    ] {
        let done = rules(&place, section, args);
        assert_eq!(
            (done.code, &*done.stdout),
            (Some(2), ""),
            "{args:?}: {done:?}"
        );
        assert!(done.stderr.contains(says), "{args:?}: {done:?}");
    }
}

#[test]
fn what_is_printed_is_what_the_configuration_has() {
    let place = Place::new();
    let gateway = format!(
        "[egress.transparent]\n{CLIENTS}listen = [\"10.0.0.1:4000\", \"[fd00::1]:4001\"]\ndns_listen = \"0.0.0.0:5300\"\n"
    );
    let args = [
        "--print",
        "--from",
        "10.0.0.0/8",
        "--from",
        "fd00::/8",
        "--direct",
        "10.9.0.0/16",
    ];
    let printed = rules(&place, &gateway, &args).ok();
    for line in [
        "meta nfproto ipv4 udp dport 53 redirect to :5300",
        "meta nfproto ipv4 tcp dport 53 redirect to :5300",
        "meta nfproto ipv4 meta l4proto tcp dnat ip to 10.0.0.1:4000",
        "meta nfproto ipv6 meta l4proto tcp dnat ip6 to [fd00::1]:4001",
        "ip saddr 10.0.0.0/8 goto diverted",
        "ip6 saddr fd00::/8 goto confined",
        "ip daddr 10.9.0.0/16 return",
        "ip daddr 10.9.0.0/16 accept",
        "reject with icmpx admin-prohibited",
        "#   nameserver ADDRESS",
    ] {
        assert!(printed.contains(line), "{line}:\n{printed}");
    }
    assert!(
        !printed.contains("fwmark") && !printed.contains("No IPv6"),
        "{printed}"
    );
    let args = ["--print", "--from", "10.0.0.0/8", "--mode", "tproxy"];
    let printed = rules(&place, &gateway, &args).ok();
    for line in [
        "tproxy ip to 10.0.0.1:4000 meta mark set 0x746f accept",
        "ip rule add fwmark 0x746f lookup 746",
        "ip -6 route replace local ::/0 dev lo table 746",
        "# This is not the mode that the configuration has",
        "# No IPv6 network is named with --from",
    ] {
        assert!(printed.contains(line), "{line}:\n{printed}");
    }
}

/// A client that is only redirected is one that can be asked about.
#[test]
fn explain_knows_the_clients_of_the_transparent_way() {
    let place = Place::new();
    let config = place.write(&format!(
        "{}{EGRESS}[egress.transparent]\n{CLIENTS}[[egress.policy]]\nname = \"no\"\ndestinations = \"*\"\naction = \"deny\"\n",
        place.head()
    ));
    let config = config.to_str().unwrap();
    let done = place.tollgate(&[
        "explain", "egress", "--config", config, "--client", "app", "a.test:1",
    ]);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.stdout.contains("no"), "{done:?}");
    let done = place.tollgate(&[
        "explain", "egress", "--config", config, "--client", "nobody", "a.test:1",
    ]);
    assert!(done.stderr.contains("--client: app"), "{done:?}");
}

//! The namespaces: `app` — `gate` — `far`, and what runs in them.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::support::dns::{Answer, Dns};
use crate::support::eventually;
use crate::support::gate::{Done, Gate, Place, binary, run};
use crate::support::log::Log;
use crate::support::peer::{Peer, must};

/// The name of every data source; the certificates of [`Place`] have it.
pub(crate) const NAME: &str = "api.customer.test";
/// Where it is.
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(10, 78, 2, 9);
/// The same; only a world with IPv6 can dial it.
pub(crate) const FAR_V6: Ipv6Addr = Ipv6Addr::new(0xfd78, 0, 0, 2, 0, 0, 0, 9);
/// What it must see.
pub(crate) const FIXED: Ipv4Addr = Ipv4Addr::new(10, 78, 2, 7);
pub(crate) const FIXED_V6: Ipv6Addr = Ipv6Addr::new(0xfd78, 0, 0, 2, 0, 0, 0, 7);
/// The gate, as the application sees it.
pub(crate) const GATE: Ipv4Addr = Ipv4Addr::new(10, 78, 1, 1);
/// A user that no other program of the machine runs as.
pub(crate) const USER: u32 = 54_321;
/// Metadata, which is really there in the far namespace.
pub(crate) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const SOON: Duration = Duration::from_secs(30);

/// Where the application runs, and how its connections are redirected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Placement {
    /// As a user of its own on Tollgate's machine.
    User,
    /// As anybody in Tollgate's namespace; Tollgate itself is [`USER`].
    Pod,
    /// In a namespace behind Tollgate's.
    Behind,
    /// Likewise, handed over unchanged.
    BehindTproxy,
}

pub(crate) struct World {
    pub(crate) place: Place,
    pub(crate) placement: Placement,
    names: [String; 3],
    _dns: Dns,
    gate: Option<Gate>,
}

/// Runs `test` on a thread inside the gate's namespace of a new world; what it starts is there, too.
pub(crate) fn within(placement: Placement, test: impl FnOnce(&mut World) + Send) {
    within_with(placement, "", test);
}

/// The same, with more keys of `[egress.transparent]`.
pub(crate) fn within_with(placement: Placement, keys: &str, test: impl FnOnce(&mut World) + Send) {
    let names = namespaces();
    let result = thread::scope(|scope| {
        let inside = scope.spawn(|| {
            enter(&names[1]);
            let mut world = World::start(placement, names.clone(), keys);
            test(&mut world);
        });
        inside.join()
    });
    for name in &names {
        run(Command::new("ip").args(["netns", "delete", name]));
        fs::remove_dir_all(format!("/etc/netns/{name}")).ok();
    }
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Makes them, and the wires between them; forwarding is on, so that what is not stopped does get through.
fn namespaces() -> [String; 3] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = format!(
        "{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let names = ["app", "gate", "far"].map(|n| format!("tg{n}{id}"));
    let [app, gate, far] = &names;
    let script = format!(
        "for n in {app} {gate} {far}; do ip netns add $n; ip -n $n link set lo up; done\n\
         ip link add a0 netns {app} type veth peer name g0 netns {gate}\n\
         ip link add g1 netns {gate} type veth peer name f0 netns {far}\n\
         ip -n {app} addr add 10.78.1.2/24 dev a0; ip -n {app} link set a0 up\n\
         ip -n {gate} addr add {GATE}/24 dev g0; ip -n {gate} link set g0 up\n\
         ip -n {gate} addr add 10.78.2.1/24 dev g1; ip -n {gate} addr add {FIXED}/24 dev g1; ip -n {gate} link set g1 up\n\
         ip -n {far} addr add {FAR}/24 dev f0; ip -n {far} link set f0 up\n\
         ip -n {far} addr add {METADATA}/32 dev lo\n\
         ip -n {app} route add default via {GATE}\n\
         ip -n {app} addr add fd78:0:0:1::2/64 dev a0 nodad; ip -n {gate} addr add fd78:0:0:1::1/64 dev g0 nodad\n\
         ip -n {gate} addr add fd78:0:0:2::1/64 dev g1 nodad; ip -n {gate} addr add {FIXED_V6}/64 dev g1 nodad\n\
         ip -n {far} addr add {FAR_V6}/64 dev f0 nodad\n\
         ip -n {app} route add default via fd78:0:0:1::1; ip -n {gate} route add default via {FAR_V6}\n\
         ip -n {far} route add default via fd78:0:0:2::1\n\
         ip -n {gate} route add default via {FAR}\n\
         ip -n {far} route add default via 10.78.2.1\n\
         ip netns exec {gate} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1\n"
    );
    must(Command::new("sh").args(["-ec", &script]));
    names
}

fn enter(name: &str) {
    let file = fs::File::open(format!("/run/netns/{name}")).expect("a namespace");
    move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&file),
        Some(LinkNameSpaceType::Network),
    )
    .expect("root may enter it");
}

fn inside<T: Send>(name: &str, body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            enter(name);
            body()
        });
        inside.join().unwrap()
    })
}

impl World {
    fn start(placement: Placement, names: [String; 3], keys: &str) -> Self {
        let place = Place::new();
        let dns = Dns::start(|name, _| match name {
            NAME | "other.test" => Answer::Addresses(vec![FAR.into(), FAR_V6.into()]),
            "evil.customer.test" => Answer::Addresses(vec![Ipv4Addr::new(198, 18, 0, 9).into()]),
            "inside.customer.test" => Answer::Addresses(vec![Ipv4Addr::new(10, 78, 2, 8).into()]),
            // What the driver for MongoDB asks for `mongodb+srv://cluster.customer.test`: port 27017 of NAME.
            "_mongodb._tcp.cluster.customer.test" => {
                let data = b"\0\0\0\0\x69\x89\x03api\x08customer\x04test\0";
                Answer::Records(vec![(33, data.to_vec())])
            }
            "cluster.customer.test" => {
                Answer::Records(vec![(16, b"\x10authSource=admin".to_vec())])
            }
            _ => Answer::NoSuchName,
        });
        let behind = matches!(placement, Placement::Behind | Placement::BehindTproxy);
        let (nameserver, listen, dns_listen) = match placement {
            Placement::Behind => (GATE, "0.0.0.0:3129".to_owned(), "0.0.0.0:5353".to_owned()),
            Placement::BehindTproxy => (GATE, "127.0.0.1:3129".to_owned(), format!("{GATE}:5353")),
            _ => (
                Ipv4Addr::LOCALHOST,
                "127.0.0.1:3129".to_owned(),
                "127.0.0.1:5353".to_owned(),
            ),
        };
        for name in &names[..2] {
            let folder = PathBuf::from(format!("/etc/netns/{name}"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(
                folder.join("resolv.conf"),
                format!("nameserver {nameserver}\n"),
            )
            .unwrap();
        }
        let clients = if behind {
            "\"10.78.1.0/24\""
        } else {
            "\"10.78.0.0/16\", \"127.0.0.0/8\""
        };
        let mode = if placement == Placement::BehindTproxy {
            "tproxy"
        } else {
            "redirect"
        };
        let config = format!(
            "{}[egress]\nfixed = [\"{FIXED}\"]\ndial_timeout = \"5s\"\nresolver = {{ servers = [\"{}\"] }}\n\
             [egress.transparent]\nlisten = \"{listen}\"\ndns_listen = \"{dns_listen}\"\nmode = \"{mode}\"\n\
             clients = [{{ name = \"app\", from = [{clients}] }}]\n{keys}\n\
             [[egress.policy]]\nname = \"customers\"\ndestinations = [\"*.customer.test\"]\naddresses = [\"{FAR}/32\"]\n",
            place.head(),
            dns.address,
        );
        let mut world = Self {
            place,
            placement,
            names,
            _dns: dns,
            gate: None,
        };
        world.open(&config);
        world.divert(&[]);
        world
    }

    fn open(&mut self, config: &str) {
        let file = self.place.write(config);
        // Tollgate may have to run as a user that must get at its files.
        must(
            Command::new("chmod")
                .args(["-R", "a+rwX"])
                .arg(self.place.path("")),
        );
        let mut command = Command::new("setpriv");
        if self.placement == Placement::Pod {
            command.args(["--reuid", &USER.to_string(), "--clear-groups"]);
        }
        command.arg(binary()).args(["run", "--config"]).arg(file);
        let gate = self.place.launch(command);
        gate.wait_ready();
        self.gate = Some(gate);
    }

    /// Applies what is printed, and nothing else.
    fn divert(&self, more: &[&str]) {
        let user = USER.to_string();
        let (whose, value) = match self.placement {
            Placement::User => ("--user", &*user),
            Placement::Pod => ("--except-user", &*user),
            Placement::Behind | Placement::BehindTproxy => ("--from", "10.78.1.0/24"),
        };
        let config = self.place.path("tollgate.toml");
        let config = config.to_str().unwrap();
        let mut rules = vec![
            "egress", "rules", "--print", whose, value, "--config", config,
        ];
        rules.extend(more);
        let script = self.place.tollgate(&rules).ok();
        must(Command::new("sh").args(["-c", &script]));
    }

    pub(crate) fn gate(&self) -> &Gate {
        self.gate.as_ref().unwrap()
    }

    /// A command in the namespace and as the user that is redirected.
    pub(crate) fn app(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        let user = USER.to_string();
        let [app, gate, _] = &self.names;
        match self.placement {
            Placement::User => command.args([
                "netns",
                "exec",
                gate,
                "setpriv",
                "--reuid",
                &user,
                "--clear-groups",
            ]),
            Placement::Pod => command.args(["netns", "exec", gate]),
            Placement::Behind | Placement::BehindTproxy => command.args(["netns", "exec", app]),
        };
        command
            .arg(program)
            .current_dir("/")
            .env("HOME", "/nonexistent");
        command
    }

    /// A command in the far namespace.
    pub(crate) fn far(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.names[2], program])
            .current_dir("/");
        command
    }

    pub(crate) fn far_peer(&self, command: &mut Command, output: &str, until: &str) -> Peer {
        let mut peer = Peer::start(command, self.place.path(output));
        peer.wait_output(until);
        peer
    }

    /// Runs `body` on a thread in the far namespace.
    pub(crate) fn in_far<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        inside(&self.names[2], body)
    }

    /// Runs `body` on a thread in the application's namespace.
    pub(crate) fn in_app<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        inside(&self.names[0], body)
    }

    /// The records of one connection to [`NAME`] at this port, once it is over: BEFORE and AFTER.
    pub(crate) fn records(&self, port: u16) -> (Value, Value) {
        let destination = format!("{NAME}:{port}");
        eventually("the terminal record", SOON, || {
            let log = Log::read(&self.place.state());
            let before = log
                .kind("before")
                .find(|r| r["destination"] == destination)?;
            let after = log.after(before["id"].as_str().unwrap())?;
            Some((before.clone(), after.clone()))
        })
    }

    /// A denial of this target for this reason.
    pub(crate) fn denial(&self, target: &str, reason: &str) -> Value {
        eventually(&format!("the record of {target} {reason}"), SOON, || {
            let log = Log::read(&self.place.state());
            let found = log
                .kind("denied")
                .find(|r| r["target"] == target && r["reason"] == reason);
            found.cloned()
        })
    }

    /// Fails unless every connection to [`NAME`] at `port` was asked for by name and left from the fixed address.
    pub(crate) fn assert_passed(&self, port: u16) {
        self.records(port);
        let log = Log::read(&self.place.state());
        let destination = format!("{NAME}:{port}");
        for before in log
            .kind("before")
            .filter(|r| r["destination"] == destination)
        {
            assert_eq!(before["door"], "transparent", "{before}");
            assert_eq!(before["client"], "app", "{before}");
            assert_eq!(before["rule"], "customers", "{before}");
            let addresses = serde_json::json!([FAR.to_string()]);
            assert_eq!(before["addresses"], addresses, "{before}");
            // Some drivers keep a connection open beside.
            let Some(after) = log.after(before["id"].as_str().unwrap()) else {
                continue;
            };
            assert_eq!(after["local_address"], FIXED.to_string(), "{after}");
            assert_eq!(after["remote_port"], port, "{after}");
            assert!(before["seq"].as_u64() < after["seq"].as_u64());
        }
    }

    /// The CA file, where every user can read it.
    pub(crate) fn ca(&self) -> PathBuf {
        self.place.ca()
    }

    /// The same for IPv6 beside IPv4, in a world behind a gateway.
    pub(crate) fn both_families(&mut self) {
        let (text, at) = (self.config(), self.config().contains("tproxy"));
        let listen = if at {
            "127.0.0.1:3129\", \"[::1]:3129"
        } else {
            "0.0.0.0:3129\", \"[::]:3129"
        };
        let text = text
            .replace(
                &format!("\"{FIXED}\""),
                &format!("\"{FIXED}\", \"{FIXED_V6}\""),
            )
            .replace(
                if at {
                    "listen = \"127.0.0.1:3129\""
                } else {
                    "listen = \"0.0.0.0:3129\""
                },
                &format!("listen = [\"{listen}\"]"),
            )
            .replace(
                "[\"10.78.1.0/24\"]",
                "[\"10.78.1.0/24\", \"fd78:0:0:1::/64\"]",
            )
            .replace(
                &format!("\"{FAR}/32\""),
                &format!("\"{FAR}\", \"{FAR_V6}\""),
            )
            .replace(
                "mode = ",
                "synthetic = [\"198.18.0.0/15\", \"fd00:198:18::/64\"]\nmode = ",
            );
        self.place.write(&text);
        self.restart();
        self.divert(&["--from", "fd78:0:0:1::/64"]);
    }

    pub(crate) fn config(&self) -> String {
        fs::read_to_string(self.place.path("tollgate.toml")).unwrap()
    }

    pub(crate) fn restart(&mut self) {
        assert!(self.gate.take().unwrap().stop(SOON).success());
        self.open(&self.config());
    }

    pub(crate) fn stop(&mut self) {
        let mut gate = self.gate.take().unwrap();
        assert!(gate.stop(SOON).success());
        self.place.verify();
    }
}

/// What an A look-up gives the application: status and addresses.
pub(crate) fn dig(world: &World, args: &[&str]) -> (String, Vec<String>) {
    let mut command = world.app("dig");
    command
        .args(["+tries=1", "+time=8", "+noall", "+comments", "+answer"])
        .args(args);
    let said = must(&mut command);
    let status = said
        .split("status: ")
        .nth(1)
        .unwrap_or("none")
        .split(',')
        .next()
        .unwrap()
        .to_owned();
    let answers = said
        .lines()
        .filter(|l| !l.starts_with(';') && !l.is_empty());
    let answers = answers.filter_map(|l| l.split_whitespace().last().map(str::to_owned));
    (status, answers.collect())
}

/// Whether a connection of the application to `to` gets anywhere.
pub(crate) fn connects(world: &World, to: SocketAddr) -> Done {
    let mut command = world.app("curl");
    command.args(["-sS", "--max-time", "10", &format!("telnet://{to}")]);
    run(&mut command)
}

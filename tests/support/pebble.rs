//! A certificate authority as a program of others: Debian's pebble, with the name server that comes with it.
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::gate::{Place, free_port, run};
use super::peer::{Peer, must};

/// Pebble and its name server; ended when dropped.
pub(crate) struct Pebble {
    _authority: Peer,
    names: Names,
    port: u16,
    management: u16,
    ca: PathBuf,
}

/// pebble-challtestsrv: every name is 127.0.0.1, TXT records are set by hand.
pub(crate) struct Names {
    _server: Peer,
    dns: u16,
    management: u16,
}

/// How a pebble differs from others.
pub(crate) struct Options<'a> {
    /// Where it looks for the answers to challenges.
    pub(crate) http: u16,
    pub(crate) https: u16,
    /// Percent of good nonces that it refuses.
    pub(crate) refused_nonces: u32,
    /// Of certificates, in seconds.
    pub(crate) life: Option<u64>,
    /// Names that it certifies to nobody.
    pub(crate) blocked: &'a [&'a str],
    /// `kid` and key of accounts that it knows its customers by.
    pub(crate) binding: Option<(&'a str, &'a str)>,
    pub(crate) port: u16,
}

impl Options<'_> {
    /// One that asks the listeners of `place`.
    pub(crate) fn new(place: &Place) -> Self {
        Self {
            http: place.http,
            https: place.https,
            refused_nonces: 20,
            life: None,
            blocked: &[],
            binding: None,
            port: free_port(),
        }
    }
}

impl Names {
    pub(crate) fn start(place: &Place) -> Self {
        let (dns, management) = (free_port(), free_port());
        let mut command = Command::new("pebble-challtestsrv");
        command.args([
            "-defaultIPv6",
            "",
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
        ]);
        command.args(["-dns01", &format!("127.0.0.1:{dns}")]);
        command.args(["-management", &format!("127.0.0.1:{management}")]);
        let mut server = Peer::start(&mut command, place.path("challtestsrv.out"));
        server.wait_port(management);
        Self {
            _server: server,
            dns,
            management,
        }
    }

    /// A program that sets and clears TXT records, for `hook`.
    pub(crate) fn hook(&self, place: &Place) -> PathBuf {
        let (path, log) = (place.path("dns-hook"), place.path("dns-hook.log"));
        let text = format!(
            "#!/bin/sh\nset -eu\necho \"$1 $2\" >>{}\ncase $1 in\n\
             set) data=\"{{\\\"host\\\":\\\"$2.\\\",\\\"value\\\":\\\"$3\\\"}}\" ;;\n\
             clear) data=\"{{\\\"host\\\":\\\"$2.\\\"}}\" ;;\nesac\n\
             exec curl --silent --fail --data \"$data\" http://127.0.0.1:{}/$1-txt\n",
            log.display(),
            self.management
        );
        fs::write(&path, text).expect("a program");
        must(Command::new("chmod").arg("700").arg(&path));
        path
    }
}

impl Pebble {
    pub(crate) fn start(place: &Place, options: &Options<'_>) -> Self {
        Self::with_names(place, options, Names::start(place))
    }

    pub(crate) fn with_names(place: &Place, options: &Options<'_>, names: Names) -> Self {
        let (port, management) = (options.port, free_port());
        let mut config = json!({
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": place.path("cert.pem"),
            "privateKey": place.path("key.pem"),
            "httpPort": options.http,
            "tlsPort": options.https,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": options.binding.is_some(),
            "domainBlocklist": options.blocked,
        });
        if let Some(life) = options.life {
            config["certificateValidityPeriod"] = life.into();
        }
        if let Some((kid, key)) = options.binding {
            config["externalAccountMACKeys"] = json!({ kid: key });
        }
        let file = place.path("pebble.json");
        fs::write(&file, json!({ "pebble": config }).to_string()).expect("a configuration");
        let mut command = Command::new("pebble");
        command.arg("-config").arg(file).arg("-dnsserver");
        command.arg(format!("127.0.0.1:{}", names.dns));
        command.env("PEBBLE_VA_NOSLEEP", "1");
        command.env("PEBBLE_WFE_NONCEREJECT", options.refused_nonces.to_string());
        command.env("PEBBLE_AUTHZREUSE", "0");
        let mut authority = Peer::start(&mut command, place.path("pebble.out"));
        authority.wait_port(port);
        authority.wait_port(management);
        Self {
            _authority: authority,
            names,
            port,
            management,
            ca: place.ca(),
        }
    }

    /// What a configuration has to say of it within `acme = { ... }`.
    pub(crate) fn keys(&self) -> String {
        format!("{}, ca_file = {:?}", self.directory(), self.ca)
    }

    pub(crate) fn directory(&self) -> String {
        format!("directory = \"https://localhost:{}/dir\"", self.port)
    }

    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// The root of what it issues, in a file.
    pub(crate) fn root(&self, place: &Place) -> PathBuf {
        let path = place.path("pebble-root.pem");
        fs::write(&path, self.ask("roots/0")).expect("a file");
        path
    }

    /// `Valid` or `Revoked`.
    pub(crate) fn status(&self, serial: &str) -> String {
        let text = self.ask(&format!("cert-status-by-serial/{serial}"));
        let found: Value = serde_json::from_str(&text).expect("a status");
        found["Status"].as_str().expect("a word").to_owned()
    }

    /// Everything that it wrote so far.
    pub(crate) fn said(&self, place: &Place) -> String {
        fs::read_to_string(place.path("pebble.out")).unwrap_or_default()
    }

    fn ask(&self, path: &str) -> String {
        let url = format!("https://localhost:{}/{path}", self.management);
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--cacert"]);
        run(curl.arg(&self.ca).arg(url)).ok()
    }
}

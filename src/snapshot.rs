//! The configuration in force: compiled, immutable, replaced whole.
//!
//! Loaded once per connection and once per request or ask, never held across a body. No counter lives in it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use http::HeaderValue;
use ipnet::IpNet;

use crate::addr::{Host, PrefixSet};
use crate::audit::ReceiptKey;
use crate::config::typed::{self, Config, HostPattern, OnFailure, Timeouts, Upstream};
use crate::config::{Mistakes, Remark, Warning};
use crate::limit::Quota;
use crate::policy::allow_list::AllowList;
use crate::policy::route::Routes;
use crate::record::{Redaction, TagKey};
use crate::tls::{Dates, Keyring, Ordered, Served};

mod caution;
mod exit;

pub use exit::{Exit, Forward, ForwardTo, Gate, GateClient, Transparent};

use exit::{diverted, exit};

/// One compiled configuration.
pub struct Snapshot {
    /// Counts from 1, one more with each reload.
    pub generation: u64,
    pub ingress: Vec<Arc<Entrance>>,
    pub egress: Option<Arc<Exit>>,
    pub redaction: Arc<Redaction>,
    /// SHA-256 of the configuration's text, in hexadecimal.
    pub hash: String,
    /// What it was compiled from.
    pub config: Config,
}

/// An ingress listener, compiled.
pub struct Entrance {
    pub listen: Vec<SocketAddr>,
    pub redirect_http: Vec<SocketAddr>,
    pub tls: Arc<Served>,
    /// `Strict-Transport-Security`, for answers that have none.
    pub hsts: Option<HeaderValue>,
    pub proxy_protocol_from: PrefixSet,
    pub list: AllowList,
    pub quotas: Vec<Quota>,
    pub routes: Routes,
    /// By the place that [`Routes::find`] names.
    pub way: Vec<Arc<Route>>,
}

/// A route, compiled.
pub struct Route {
    /// For the record: first host and path, as in `tools.example.com/api/`.
    pub name: Box<str>,
    pub list: AllowList,
    pub quotas: Vec<Quota>,
    /// Only for clients with a verified certificate.
    pub require_client_cert: bool,
    pub upstream_name: Arc<str>,
    pub upstream: Arc<Upstream>,
    /// Who is asked for the names of upstream servers; empty: those of `/etc/resolv.conf`.
    pub name_servers: Arc<[SocketAddr]>,
    pub timeouts: Timeouts,
    pub max_body: Option<u64>,
    pub on_failure: OnFailure,
    /// What the receipt of a forwarded request is made with; `None`: it has none.
    pub receipt: Option<ReceiptKey>,
}

/// Where the connections of a bound socket lead.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Leads {
    /// `egress.transparent.dns_listen`: datagrams and streams.
    Names,
    /// `egress.listener`, `egress.forward` and `egress.transparent.listen`: which of them it is, is looked up for each
    /// connection.
    Out,
    /// `ingress.listen`
    In,
    /// `ingress.redirect_http`
    Redirect,
    /// `egress.transparent.listen` that takes connections to any address.
    Tproxy,
}

/// A socket to be bound, and where it leads.
pub type Listen = (Leads, SocketAddr);

impl Snapshot {
    /// Gives `config` its form for use: lists as sets, limits as quotas, certificates from `keyring`. `tag_key` is the
    /// journal's. Also gives what is probably not as meant about the certificates.
    ///
    /// # Errors
    /// What only shows now, at its place in the file: a certificate or key that cannot be used.
    pub fn compile(
        config: Config,
        generation: u64,
        tag_key: TagKey,
        keyring: &Keyring,
        dates: Dates,
    ) -> Result<(Self, Vec<Warning>), Mistakes> {
        let (mut mistakes, mut warnings) = (Vec::new(), Vec::new());
        if let Err(flaw) = keyring.share(&config) {
            mistakes.push(config.source.remark(&flaw.key, flaw.problem, flaw.mend));
        }
        let mut ingress = Vec::new();
        for (at, entry) in config.ingress.iter().enumerate() {
            let served = caution::serve(&config, entry, at, keyring, dates);
            let made = served.and_then(|(tls, cautions)| {
                warnings.extend(cautions);
                entrance(&config, entry, tls)
            });
            match made {
                Ok(entrance) => ingress.push(Arc::new(entrance)),
                Err(found) => mistakes.extend(found),
            }
        }
        if let Some(mistakes) = Mistakes::new(mistakes) {
            return Err(mistakes);
        }
        let snapshot = Self {
            generation,
            ingress,
            egress: config.egress.as_ref().map(|e| Arc::new(exit(&config, e))),
            redaction: Arc::new(Redaction::new(
                &config.audit.query_values,
                &config.audit.secret_paths,
                tag_key,
            )),
            hash: hash(config.source.text()),
            config,
        };
        Ok((snapshot, warnings))
    }

    /// Every certificate that is ordered rather than read.
    pub fn ordered(&self) -> Vec<Ordered> {
        let mut all: Vec<Ordered> = Vec::new();
        for ordered in self.ingress.iter().flat_map(|e| e.tls.ordered()) {
            if !all.iter().any(|other| other.same(ordered)) {
                all.push(ordered.clone());
            }
        }
        all
    }

    /// Every socket that this configuration wants bound, but for the admin listener.
    pub fn listens(&self) -> Vec<Listen> {
        let entrances = || self.ingress.iter();
        let tls = entrances().flat_map(|e| e.listen.iter().map(|a| (Leads::In, *a)));
        let plain = entrances().flat_map(|e| e.redirect_http.iter().map(|a| (Leads::Redirect, *a)));
        let exits = || self.egress.iter();
        let gates = exits().flat_map(|e| e.listeners.iter().map(|g| (Leads::Out, g.listen)));
        let forwards = exits().flat_map(|e| e.forwards.iter().map(|f| (Leads::Out, f.listen)));
        let egress = || self.config.egress.iter();
        let transparent = egress().flat_map(|e| &e.transparent).flat_map(diverted);
        tls.chain(plain)
            .chain(gates)
            .chain(forwards)
            .chain(transparent)
            .collect()
    }
}

fn entrance(
    config: &Config,
    ingress: &typed::Ingress,
    tls: Arc<Served>,
) -> Result<Entrance, Vec<Remark>> {
    let patterns = |route: &typed::Route| (route.hosts.clone(), route.path.clone());
    let mut way = Vec::new();
    for entry in &ingress.routes {
        way.push(Arc::new(route(config, ingress, entry)?));
    }
    Ok(Entrance {
        listen: ingress.listen.clone(),
        redirect_http: ingress.redirect_http.clone(),
        tls,
        hsts: ingress.hsts.and_then(hsts),
        proxy_protocol_from: set(&ingress.proxy_protocol_from),
        list: list(ingress.allow.as_deref(), &ingress.deny),
        quotas: quotas(config, &ingress.limits),
        routes: Routes::new(ingress.routes.iter().map(patterns)),
        way,
    })
}

fn route(
    config: &Config,
    ingress: &typed::Ingress,
    route: &typed::Route,
) -> Result<Route, Vec<Remark>> {
    let host = match route.hosts.first() {
        None => "*".to_owned(),
        Some(HostPattern::Below(name)) => format!("*.{name}"),
        Some(HostPattern::Exact(Host::Address(address))) if address.is_ipv6() => {
            format!("[{address}]")
        }
        Some(HostPattern::Exact(host)) => host.to_string(),
    };
    // What the listener counts already is not counted again.
    let own = route.limits.iter().filter(|l| !ingress.limits.contains(l));
    let upstream = config.upstreams.get(&route.upstream).ok_or_else(|| {
        let problem = format!("no upstream is called `{}`", route.upstream);
        let mend = "add it to `[upstreams]`";
        vec![config.source.remark("upstreams", problem, mend)]
    })?;
    Ok(Route {
        name: format!("{host}{}", route.path).into(),
        list: list(route.allow.as_deref(), &route.deny),
        quotas: quotas(config, own),
        require_client_cert: route.require_client_cert,
        upstream_name: route.upstream.as_str().into(),
        upstream: Arc::new(upstream.clone()),
        name_servers: config
            .egress
            .as_ref()
            .map_or(&[][..], |egress| &egress.resolvers)
            .into(),
        timeouts: route.timeouts,
        max_body: route.max_body,
        on_failure: route.on_failure,
        receipt: config
            .audit
            .receipt_key
            .as_ref()
            .filter(|_| route.receipt)
            .map(|key| ReceiptKey::new(&key.0)),
    })
}

/// The host alone: what is below it is not ours to speak for.
fn hsts(life: Duration) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("max-age={}", life.as_secs())).ok()
}

fn set(nets: &[IpNet]) -> PrefixSet {
    nets.iter().copied().collect()
}

fn list(allow: Option<&[IpNet]>, deny: &[IpNet]) -> AllowList {
    AllowList::new(allow.map(set), set(deny))
}

fn quotas<'l>(config: &Config, names: impl IntoIterator<Item = &'l String>) -> Vec<Quota> {
    let quota = |name: &'l String| Some(Quota::new(name, config.limits.get(name)?));
    names.into_iter().filter_map(quota).collect()
}

fn hash(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The snapshot in force; cheap to clone.
#[derive(Clone)]
pub struct Live(Arc<ArcSwap<Snapshot>>);

impl Live {
    /// Puts the first snapshot in force.
    pub fn new(snapshot: Snapshot) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(snapshot)))
    }

    /// The one in force now.
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    /// Replaces it.
    pub fn replace(&self, snapshot: Snapshot) {
        self.0.store(Arc::new(snapshot));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::config;

    /// A folder with `cert.pem`, `key.pem` and a configuration that `more` is appended to.
    fn folder(more: &str) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let pair = rcgen::generate_simple_self_signed(["tools.example".to_owned()]).unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("cert.pem", &pair.cert.pem());
        write("key.pem", &pair.signing_key.serialize_pem());
        write(
            "tollgate.toml",
            &format!(
                r#"
                [limits.a]
                rate = "1/s"
                [limits.b]
                rate = "2/s"
                [egress]
                fixed = "127.0.0.7"
                [[ingress]]
                listen = ["127.0.0.1:8443", "[::1]:8443"]
                redirect_http = "127.0.0.1:8080"
                tls.certificates = [{{ cert = "cert.pem", key = "key.pem" }}]
                limits = ["a"]
                {more}
                "#
            ),
        );
        folder
    }

    fn compiled(folder: &Path, generation: u64) -> Result<Snapshot, Mistakes> {
        let (config, _) = config::load(&folder.join("tollgate.toml"))?;
        let keyring = Keyring::new(Duration::from_secs(60), Arc::default(), |_| ()).unwrap();
        let made = Snapshot::compile(config, generation, TagKey::draw(), &keyring, Dates::Heed);
        made.map(|(snapshot, _)| snapshot)
    }

    #[test]
    fn a_configuration_becomes_what_the_wings_run_by() {
        let routes = r#"
            hosts = ["tools.example", "[2001:db8::1]"]
            upstream = "http://127.0.0.1:3000"
            deny = "10.9.0.0/16"
            [[ingress.route]]
            path = "/api"
            hosts = "[2001:db8::1]"
            allow = "10.0.0.0/8"
            limits = ["b", "a"]
            upstream = "http://127.0.0.1:4000"
            [[ingress.route]]
            hosts = "*.apps.example"
            upstream = "http://127.0.0.1:4000"
        "#;
        let snapshot = compiled(folder(routes).path(), 7).unwrap();
        assert_eq!(snapshot.generation, 7);
        let entrance = &snapshot.ingress[0];
        let names: Vec<_> = entrance.way.iter().map(|r| &*r.name).collect();
        assert_eq!(
            names,
            ["[2001:db8::1]/api", "*.apps.example/", "tools.example/"]
        );
        let host = Host::parse("[2001:db8::1]").unwrap();
        let found = entrance.routes.find(&host, "/api/x").unwrap();
        let route = &entrance.way[found];
        assert_eq!(&*route.name, "[2001:db8::1]/api");
        assert_eq!(route.upstream.servers[0].port, 4000);
        assert!(route.list.admit("10.1.1.1".parse().unwrap()).is_ok());
        assert!(route.list.admit("11.1.1.1".parse().unwrap()).is_err());
        assert!(entrance.list.admit("10.9.1.1".parse().unwrap()).is_err());
        let quotas = |list: &[Quota]| list.iter().map(|q| q.name.to_string()).collect::<Vec<_>>();
        assert_eq!(quotas(&entrance.quotas), ["a"]);
        assert_eq!(
            quotas(&route.quotas),
            ["b"],
            "`a` is counted at the listener already"
        );
        let listens = snapshot.listens();
        let listens: Vec<_> = listens.iter().map(|(l, a)| (*l, a.to_string())).collect();
        assert_eq!(
            listens,
            [
                (Leads::In, "127.0.0.1:8443".to_owned()),
                (Leads::In, "[::1]:8443".to_owned()),
                (Leads::Redirect, "127.0.0.1:8080".to_owned()),
                (Leads::Out, "127.0.0.1:3128".to_owned()),
            ]
        );
    }

    #[test]
    fn the_hash_is_that_of_the_text() {
        assert_eq!(
            hash("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_certificate_that_cannot_be_used_is_a_mistake_at_its_place() {
        let folder = folder("upstream = 'http://127.0.0.1:3000'");
        std::fs::write(folder.path().join("key.pem"), "no key").unwrap();
        let mistakes = compiled(folder.path(), 1).err().unwrap();
        let remark = mistakes.iter().next().unwrap();
        assert_eq!((mistakes.len(), remark.line), (1, 11));
        assert_eq!(remark.key, "ingress[0].tls.certificates[0].key");
        assert!(remark.problem.contains("key.pem"), "{remark:?}");
    }
}

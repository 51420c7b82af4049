//! `[[ingress]]`, its routes, and `[upstreams]`.
//!
//! `hosts`, `timeouts`, `max_body` and `on_failure` beside `listen` hold for every route that does not say otherwise;
//! `upstream` beside `listen` becomes the last route, unless one for the same hosts and path `/` takes its place.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::acme::Ground;
use super::raw::{Table, Value};
use super::sets::Sets;
use super::tls::tls;
use super::typed::{
    HostPattern, Ingress, OnFailure, Process, RedisStore, Route, Timeouts, Upstream,
};
use super::{ON_FAILURE, units};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

const DEFAULT_TIMEOUTS: Timeouts = Timeouts {
    response_head: MINUTE,
    idle: MINUTE,
    stream_idle: Duration::from_secs(600),
};
const DEFAULT_MAX_BODY_BYTES: u64 = 50 << 20;
const BODY_BYTES_MAX: u64 = 1 << 40;
const DEFAULT_MAX_IDLE: usize = 512;
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What the sections of an ingress refer to.
pub(super) struct Around<'a> {
    pub(super) sets: &'a Sets,
    pub(super) limits: &'a [&'a str],
    pub(super) folder: &'a Path,
    pub(super) process: &'a Process,
    /// Of `[limits.store]`.
    pub(super) redis: Option<&'a RedisStore>,
    /// Of `[audit]`.
    pub(super) on_failure: OnFailure,
    /// Whether the listener at hand asks its clients for certificates.
    pub(super) asks: bool,
    /// Whether `[audit.receipt]` has a key.
    pub(super) receipts: bool,
    /// Grows by the URLs that are given in place of names.
    pub(super) upstreams: BTreeMap<String, Upstream>,
}

/// What holds for a route that does not say otherwise.
#[derive(Clone)]
struct Defaults {
    hosts: Vec<HostPattern>,
    timeouts: Timeouts,
    max_body: Option<u64>,
    on_failure: OnFailure,
    receipt: bool,
}

/// `[upstreams]`
pub(super) fn upstreams(root: &Table<'_>) -> BTreeMap<String, Upstream> {
    let mut upstreams = BTreeMap::new();
    let Some(table) = root.table("upstreams") else {
        return upstreams;
    };
    for (name, value) in table.named() {
        if let Some(table) = value.table() {
            upstreams.insert(name.to_owned(), upstream(&table));
        }
    }
    upstreams
}

fn upstream(table: &Table<'_>) -> Upstream {
    table.not_yet("balance", "leave it out; servers are taken in turn");
    table.not_yet(
        "health",
        "leave it out; a server that cannot be reached is passed over",
    );
    let list = table.some("servers", r#"add `servers = ["http://127.0.0.1:3000"]`"#);
    let servers = list.iter().filter_map(|v| v.parsed(units::server));
    let connect = Duration::from_millis(100)..=MINUTE;
    Upstream {
        servers: servers.collect(),
        max_idle: table.integer("max_idle", 0..=10_000, DEFAULT_MAX_IDLE),
        connect_timeout: table.duration("connect_timeout", connect, DEFAULT_CONNECT_TIMEOUT),
    }
}

/// One `[[ingress]]`
pub(super) fn ingress(table: &Table<'_>, around: &mut Around<'_>) -> Option<Ingress> {
    table.not_yet("http3", "leave it out; HTTP/1.1 and HTTP/2 are served");
    let proxy = "use `proxy_protocol_from` and switch PROXY protocol on in the load balancer";
    table.not_yet("forwarded_from", proxy);
    let listen = table.some("listen", r#"add `listen = "0.0.0.0:443"`"#);
    let listen = listen.iter().filter_map(Value::listen).collect();
    let redirect_http = table.list("redirect_http");
    let redirect_http: Vec<_> = redirect_http.iter().filter_map(Value::listen).collect();
    let sets = around.sets;
    let everybody = "name the load balancers alone: whoever is listed may claim any client address";
    let tls_value = table.value("tls");
    around.asks = tls_value.is_none_or(|tls| tls.holds("client_auth"));
    let routes = routes(table, around);
    let ground = Ground {
        folder: around.folder,
        process: around.process,
        redis: around.redis,
        routes: &routes,
        redirect_http: &redirect_http,
    };
    let tls = tls(table, ground);
    let hsts = table
        .value("hsts")
        .and_then(|v| v.duration(24 * HOUR..=730 * 24 * HOUR));
    let (allow, deny) = (sets.allow(table, "allow"), sets.nets(&table.list("deny")));
    let proxy_protocol_from = sets.some(table, "proxy_protocol_from", everybody);
    let limits = limits(table, "limits", around.limits);
    Some(Ingress {
        listen,
        redirect_http,
        tls: tls?,
        hsts,
        proxy_protocol_from,
        allow,
        deny,
        limits,
        routes,
    })
}

/// Names of `[limits]`, of which `known` are there.
pub(super) fn limits(table: &Table<'_>, key: &'static str, known: &[&str]) -> Vec<String> {
    let mut limits = Vec::new();
    for item in table.list(key) {
        let Some(name) = item.text() else { continue };
        if !known.contains(&name) {
            let mend = match units::nearest(name, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("add `[limits.{name}]` with its `rate`"),
            };
            item.wrong(format!("no limit is called `{name}`"), mend);
        } else if limits.iter().any(|limit| limit == name) {
            item.wrong(format!("`{name}` is named twice"), "remove one");
        } else {
            limits.push(name.to_owned());
        }
    }
    limits
}

fn routes(table: &Table<'_>, around: &mut Around<'_>) -> Vec<Route> {
    let bottom = Defaults {
        hosts: Vec::new(),
        timeouts: DEFAULT_TIMEOUTS,
        max_body: Some(DEFAULT_MAX_BODY_BYTES),
        on_failure: around.on_failure,
        receipt: false,
    };
    let defaults = defaults(table, around, &bottom);
    let mut routes = Vec::new();
    let mut values = Vec::new();
    for value in table.list("route") {
        if let Some(table) = value.table() {
            routes.extend(route(&table, around, &defaults));
            values.push(value);
        }
    }
    let own = upstream_name(table, around);
    if let Some(upstream) = own {
        let replaced = |r: &Route| r.path == "/" && r.hosts == defaults.hosts;
        if !routes.iter().any(replaced) {
            routes.push(last(defaults, upstream));
        }
    } else if values.is_empty() && table.value("upstream").is_none() {
        table.missing("upstream", r#"add `upstream = "http://127.0.0.1:3000"`"#);
    }
    twice(table, &routes, &values);
    routes
}

fn defaults(table: &Table<'_>, around: &Around<'_>, outer: &Defaults) -> Defaults {
    let hosts = match table.value("hosts") {
        None => outer.hosts.clone(),
        Some(value) => hosts(&value),
    };
    let max_body = match table.value("max_body") {
        None => outer.max_body,
        Some(value) if value.is("unlimited") => None,
        Some(value) => value.size(1..=BODY_BYTES_MAX),
    };
    let timeouts = table.table("timeouts");
    Defaults {
        hosts,
        max_body,
        timeouts: timeouts.map_or(outer.timeouts, |t| read_timeouts(&t, outer.timeouts)),
        on_failure: table.word("on_failure", &ON_FAILURE, outer.on_failure),
        receipt: receipt(table, around).unwrap_or(outer.receipt),
    }
}

fn receipt(table: &Table<'_>, around: &Around<'_>) -> Option<bool> {
    let value = table.value("receipt")?;
    let receipt = value.boolean()?;
    if receipt && !around.receipts {
        let mend = r#"add `[audit.receipt]` with `key_file = "FILE"`, which the upstream has too"#;
        value.wrong("there is no key to make receipts with", mend);
    }
    Some(receipt)
}

fn hosts(value: &Value<'_>) -> Vec<HostPattern> {
    let list = value.list();
    if list.is_empty() {
        let mend = "name a host, or leave `hosts` out to serve any host";
        value.wrong("an empty list serves no host", mend);
    }
    list.iter()
        .filter_map(|v| v.parsed(units::host_pattern))
        .collect()
}

fn read_timeouts(table: &Table<'_>, outer: Timeouts) -> Timeouts {
    Timeouts {
        response_head: table.duration("response_head", SECOND..=HOUR, outer.response_head),
        idle: table.duration("idle", SECOND..=HOUR, outer.idle),
        stream_idle: table.duration("stream_idle", SECOND..=24 * HOUR, outer.stream_idle),
    }
}

fn route(table: &Table<'_>, around: &mut Around<'_>, outer: &Defaults) -> Option<Route> {
    let own = defaults(table, around, outer);
    let path = match table.value("path") {
        None => Some("/".to_owned()),
        Some(value) => value.parsed(path),
    };
    let (allow, deny) = (around.sets.allow(table, "allow"), table.list("deny"));
    let deny = around.sets.nets(&deny);
    let limits = limits(table, "limits", around.limits);
    let require_client_cert = table.flag("require_client_cert", false);
    if let Some(value) = table.value("require_client_cert")
        && require_client_cert
        && !around.asks
    {
        let mend = r#"add `client_auth = { ca = "clients.pem", mode = "optional" }` to the listener's `tls`"#;
        value.wrong("this listener asks no client for a certificate", mend);
    }
    let upstream = upstream_name(table, around);
    if table.value("upstream").is_none() {
        let mend = r#"add `upstream = "http://127.0.0.1:3000"` or a name in `[upstreams]`"#;
        table.missing("upstream", mend);
    }
    Some(Route {
        hosts: own.hosts,
        path: path?,
        allow,
        deny,
        limits,
        require_client_cert,
        upstream: upstream?,
        timeouts: own.timeouts,
        max_body: own.max_body,
        on_failure: own.on_failure,
        receipt: own.receipt,
    })
}

fn last(defaults: Defaults, upstream: String) -> Route {
    Route {
        hosts: defaults.hosts,
        path: "/".to_owned(),
        allow: None,
        deny: Vec::new(),
        limits: Vec::new(),
        require_client_cert: false,
        upstream,
        timeouts: defaults.timeouts,
        max_body: defaults.max_body,
        on_failure: defaults.on_failure,
        receipt: defaults.receipt,
    }
}

/// A path prefix in the form that requests are matched in: it could otherwise never match, and guard nothing.
fn path(text: &str) -> units::Read<String> {
    let wrong = |problem: &str, mend: &str| Err((problem.to_owned(), mend.to_owned()));
    if !text.starts_with('/') {
        return wrong("a path begins with `/`", &format!(r#"write "/{text}""#));
    }
    if text.contains(['?', '#', '*', '%', '\\']) || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return wrong(
            "a path is a plain prefix",
            "leave out query, wildcards and escapes; whatever begins with the path is matched",
        );
    }
    if text.contains("//") || text.split('/').any(|part| matches!(part, "." | "..")) {
        return wrong(
            "a path has no empty, `.` or `..` segments",
            "write it without them",
        );
    }
    Ok(text.to_owned())
}

/// The name of an upstream; a URL becomes an upstream of its own, called by the URL.
fn upstream_name(table: &Table<'_>, around: &mut Around<'_>) -> Option<String> {
    let value = table.value("upstream")?;
    let text = value.text()?;
    if text.contains("://") {
        let server = value.parsed(units::server)?;
        let name = format!("http://{server}");
        around
            .upstreams
            .entry(name.clone())
            .or_insert_with(|| Upstream {
                servers: vec![server],
                max_idle: DEFAULT_MAX_IDLE,
                connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            });
        return Some(name);
    }
    if around.upstreams.contains_key(text) {
        return Some(text.to_owned());
    }
    let known: Vec<_> = around.upstreams.keys().map(String::as_str).collect();
    let mend = match units::nearest(text, &known) {
        Some(near) => format!("did you mean `{near}`?"),
        None if text.contains([':', '.']) => format!(r#"write "http://{text}""#),
        None => format!(r#"add `[upstreams.{text}]`, or write "http://127.0.0.1:3000""#),
    };
    value.wrong(format!("no upstream is called `{text}`"), mend);
    None
}

/// Refuses a host and path that an earlier route of the listener has already.
fn twice(table: &Table<'_>, routes: &[Route], values: &[Value<'_>]) {
    for (at, route) in routes.iter().enumerate() {
        let same = |earlier: &&Route| {
            let any = earlier.hosts.is_empty() && route.hosts.is_empty();
            let shared = earlier.hosts.iter().any(|h| route.hosts.contains(h));
            earlier.path == route.path && (any || shared)
        };
        if !routes.iter().take(at).any(|earlier| same(&earlier)) {
            continue;
        }
        let problem = format!(
            "an earlier route has path `{}` of the same host",
            route.path
        );
        let mend = "give one of them another path or host, or remove it";
        match values.get(at) {
            Some(value) => value.wrong(problem, mend),
            None => table.wrong(problem, mend),
        }
    }
}

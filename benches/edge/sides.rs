//! What is compared: nginx and squid as Debian ships them and Tollgate, each with one worker on one core.
//!
//! Every side does comparable work: the same certificate, the same set of forwarded headers, keep-alive to the
//! internal server, the same fixed source address on the way out.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use rustix::process::geteuid;

use crate::backend::Backend;
use crate::child::{Child, User, free_address};

/// A running proxy.
pub(crate) struct Side {
    pub(crate) name: String,
    pub(crate) child: Child,
    /// Where it is spoken to: TLS for the way in, CONNECT for the way out.
    pub(crate) address: SocketAddr,
}

/// Which proxy, and how it is told to log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Kind {
    /// Without an access log
    Nginx,
    /// With an access log in JSON, 64 KiB buffered, written once a second
    NginxLog,
    /// Without an access log
    Haproxy,
    /// Without an access log
    Squid,
    /// The log is down and `on_failure = "continue"`: nothing is recorded
    #[value(name = "tollgate-no-log")]
    TollgateBare,
    /// `durability = "write"`
    TollgateWrite,
    /// `durability = "sync"`
    TollgateSync,
}

/// How sides are started.
pub(crate) struct Makers {
    pub(crate) core: usize,
    pub(crate) load_core: usize,
    pub(crate) control: bool,
    /// All if empty.
    pub(crate) only: Vec<Kind>,
    pub(crate) tollgate: PathBuf,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::NginxLog => "nginx, log",
            Self::Haproxy => "haproxy",
            Self::Squid => "squid",
            Self::TollgateBare => "tollgate, no log",
            Self::TollgateWrite => "tollgate, write",
            Self::TollgateSync => "tollgate, sync",
        }
    }

    fn is_peer(self) -> bool {
        matches!(
            self,
            Self::Nginx | Self::NginxLog | Self::Haproxy | Self::Squid
        )
    }
}

impl Makers {
    /// Starts the sides of one workload, the peer first. A control run has the peer twice instead of Tollgate.
    pub(crate) fn start(&self, kinds: &[Kind], folder: &Path, to: &Backend) -> Result<Vec<Side>> {
        let wanted = |kind: &Kind| self.only.is_empty() || self.only.contains(kind);
        let mut plan: Vec<(String, Kind)> = Vec::new();
        for kind in kinds {
            if kind.is_peer() || !self.control {
                plan.push((kind.name().to_owned(), *kind));
            }
        }
        if let (true, Some(first)) = (self.control, kinds.first()) {
            plan.push((format!("{}, again", first.name()), *first));
        }
        plan.retain(|(_, kind)| wanted(kind));
        let start = |(name, kind): (String, Kind)| self.start_one(name, kind, folder, to);
        plan.into_iter().map(start).collect()
    }

    fn start_one(&self, name: String, kind: Kind, folder: &Path, to: &Backend) -> Result<Side> {
        let address = free_address()?;
        let folder = folder.join(name.replace(", ", "-"));
        fs::create_dir_all(&folder)?;
        let (text, user, program) = match kind {
            Kind::Nginx => (nginx(address, to, &folder, false), User::Own, "nginx"),
            Kind::NginxLog => (nginx(address, to, &folder, true), User::Own, "nginx"),
            Kind::Haproxy => (haproxy(address, to), User::Own, "haproxy"),
            Kind::Squid => (squid(address), User::Instead("proxy"), "squid"),
            Kind::TollgateBare => (tollgate(address, to, &folder, "bare")?, User::Own, ""),
            Kind::TollgateWrite => (tollgate(address, to, &folder, "write")?, User::Own, ""),
            Kind::TollgateSync => (tollgate(address, to, &folder, "sync")?, User::Own, ""),
        };
        let path = folder.join("conf");
        fs::write(&path, text)?;
        let conf = path.to_str().context("path of the configuration")?;
        let place = folder.to_str().context("path of the side")?;
        let args = match program {
            "nginx" => vec!["-p", place, "-c", conf, "-e", "stderr"],
            "haproxy" => vec!["-db", "-f", conf],
            "squid" => vec!["-N", "-d", "0", "-f", conf],
            _ => vec!["run", "--config", conf],
        };
        let program = match program {
            "" => self.tollgate.clone(),
            other => PathBuf::from(other),
        };
        let file = name.replace(", ", "-");
        let mut child = Child::start(&file, self.core, user, &folder, &program, &args)?;
        child.listens(address)?;
        if kind == Kind::TollgateBare {
            child.forbid_files()?;
        }
        Ok(Side {
            name,
            child,
            address,
        })
    }
}

/// What every nginx here begins with. A root master would otherwise hand its files to a user who cannot read them.
pub(crate) fn nginx_head(folder: &Path) -> String {
    let user = if geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let folder = folder.display();
    format!(
        "{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/pid;
error_log stderr warn;
events {{ worker_connections 16000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  keepalive_timeout 300s;
  client_max_body_size 0;
"
    )
}

fn nginx(address: SocketAddr, to: &Backend, folder: &Path, log: bool) -> String {
    let mut text = nginx_head(folder);
    if log {
        let format = r#"log_format json escape=json '{"time":"$time_iso8601","id":"$request_id","client":"$remote_addr","method":"$request_method","host":"$host","path":"$uri","protocol":"$server_protocol","status":$status,"bytes_in":$request_length,"bytes_out":$bytes_sent,"seconds":$request_time,"upstream":"$upstream_addr","agent":"$http_user_agent"}';"#;
        let file = folder.join("access.log");
        writeln!(
            text,
            "{format}\naccess_log {} json buffer=64k flush=1s;",
            file.display()
        )
        .ok();
    }
    let (cert, key) = (to.cert.display(), to.key.display());
    let (pages, sink) = (to.pages, to.sink);
    write!(
        text,
        "
  upstream pages {{ server {pages}; keepalive 64; keepalive_requests 1000000000; }}
  upstream sink {{ server {sink}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen {address} ssl http2 backlog=4096;
    ssl_certificate {cert};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    proxy_http_version 1.1;
    proxy_request_buffering off;
    proxy_max_temp_file_size 0;
    proxy_set_header Connection '';
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto https;
    proxy_set_header X-Forwarded-Host $http_host;
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Client-IP $remote_addr;
    proxy_set_header X-Request-ID $request_id;
    location / {{ proxy_pass http://pages; }}
    location /sink {{ proxy_pass http://sink; }}
  }}
}}
"
    )
    .ok();
    text
}

fn haproxy(address: SocketAddr, to: &Backend) -> String {
    let (both, pages) = (to.both.display(), to.pages);
    format!(
        "global
  nbthread 1
  maxconn 4000
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
frontend edge
  bind {address} ssl crt {both} alpn h2,http/1.1
  default_backend pages
backend pages
  server page {pages}
"
    )
}

fn squid(address: SocketAddr) -> String {
    format!(
        "http_port {address}
http_access allow all
tcp_outgoing_address 127.0.0.7
access_log none
cache_log /dev/null
cache_store_log none
cache deny all
pid_filename none
pinger_enable off
shutdown_lifetime 0 seconds
visible_hostname bench
coredump_dir /tmp
netdb_filename none
"
    )
}

fn tollgate(address: SocketAddr, to: &Backend, folder: &Path, durability: &str) -> Result<String> {
    let (admin, unused) = (free_address()?, free_address()?);
    let (ingress, egress) = match to.way {
        crate::backend::Way::In(_) => (address, unused),
        crate::backend::Way::Out => (unused, address),
    };
    let (durability, on_failure) = match durability {
        "bare" => ("write", "continue"),
        other => (other, "refuse"),
    };
    let state = folder.join("state");
    fs::create_dir_all(&state)?;
    let (state, cert, key) = (state.display(), to.cert.display(), to.key.display());
    let (pages, sink) = (to.pages, to.sink);
    Ok(format!(
        r#"[process]
state_dir = "{state}"
workers = 1
drain_deadline = "1s"
max_sessions = 16000
max_sessions_per_client = 16000

[admin]
listen = "{admin}"

[log]
format = "text"
level = "warn"

[audit]
durability = "{durability}"
on_failure = "{on_failure}"

[[ingress]]
listen = "{ingress}"
upstream = "http://{pages}"
max_body = "unlimited"
tls.certificates = [{{ cert = "{cert}", key = "{key}" }}]

[[ingress.route]]
path = "/sink"
upstream = "http://{sink}"

[egress]
fixed = ["127.0.0.7"]

[[egress.listener]]
listen = "{egress}"

[[egress.policy]]
destinations = ["127.0.0.0/8"]
addresses = ["127.0.0.0/8"]
ports = ["1-65535"]
"#
    ))
}

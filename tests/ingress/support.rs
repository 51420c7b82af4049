//! An ingress on a loopback socket, upstreams of every temper, and clients that speak plain bytes.

use std::convert::Infallible;
use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use tollgate::addr::{Destination, Host, PrefixSet};
use tollgate::audit::Journal;
use tollgate::config::Source;
use tollgate::config::typed::*;
use tollgate::ingress::{Ingress as Wing, Timers};
use tollgate::limit::{Limits, Quota};
use tollgate::policy::allow_list::AllowList;
use tollgate::policy::route::Routes;
use tollgate::record::{Redaction, TagKey};
use tollgate::sessions::Sessions;
use tollgate::snapshot::{self, Entrance, Live, Snapshot};
use tollgate::telemetry::{Metrics, Way};
use tollgate::tls::{Dates, Keyring, Served};
use tollgate::{socket, workers};

pub(crate) type Text = BoxBody<Bytes, Infallible>;

pub(crate) const HOST: &str = "tools.example.com";

/// What a test wants to be different.
pub(crate) struct Plan {
    pub(crate) servers: Vec<SocketAddr>,
    pub(crate) timeouts: Timeouts,
    pub(crate) timers: Timers,
    pub(crate) max_body: Option<u64>,
    pub(crate) limit: Option<Limit>,
    pub(crate) allow: Option<&'static [&'static str]>,
    pub(crate) route_allow: Option<&'static [&'static str]>,
    pub(crate) proxy_protocol_from: &'static [&'static str],
}

impl Plan {
    pub(crate) fn new(server: SocketAddr) -> Self {
        Self {
            servers: vec![server],
            timeouts: Timeouts {
                response_head: Duration::from_secs(10),
                idle: Duration::from_secs(10),
                stream_idle: Duration::from_secs(10),
            },
            timers: Timers::default(),
            max_body: None,
            limit: None,
            allow: None,
            route_allow: None,
            proxy_protocol_from: &[],
        }
    }

    fn snapshot(&self, generation: u64, tls: &Arc<Served>, at: [SocketAddr; 2]) -> Snapshot {
        let destination = |server: &SocketAddr| Destination {
            host: Host::Address(server.ip()),
            port: server.port(),
        };
        let upstream = Upstream {
            servers: self.servers.iter().map(destination).collect(),
            max_idle: 8,
            connect_timeout: Duration::from_secs(1),
        };
        let hosts = vec![HostPattern::Exact(Host::parse(HOST).unwrap())];
        let route = snapshot::Route {
            require_client_cert: false,
            name: format!("{HOST}/").into(),
            list: list(self.route_allow),
            quotas: self
                .limit
                .iter()
                .map(|limit| Quota::new("own", limit))
                .collect(),
            upstream_name: "app".into(),
            upstream: Arc::new(upstream.clone()),
            name_servers: Arc::default(),
            timeouts: self.timeouts,
            max_body: self.max_body,
            on_failure: OnFailure::Refuse,
            receipt: None,
        };
        let entrance = Entrance {
            listen: vec![at[0]],
            redirect_http: vec![at[1]],
            tls: Arc::clone(tls),
            hsts: None,
            proxy_protocol_from: set(self.proxy_protocol_from),
            list: list(self.allow),
            quotas: Vec::new(),
            routes: Routes::new([(Vec::new(), "/".to_owned())]),
            way: vec![Arc::new(route)],
        };
        Snapshot {
            generation,
            ingress: vec![Arc::new(entrance)],
            egress: None,
            redaction: Arc::new(Redaction::new(&[], &[], TagKey::draw())),
            hash: String::new(),
            config: config(at, hosts),
        }
    }
}

fn set(nets: &[&str]) -> PrefixSet {
    nets.iter().map(|net| net.parse().unwrap()).collect()
}

fn list(allow: Option<&[&str]>) -> AllowList {
    AllowList::new(allow.map(set), PrefixSet::default())
}

fn files(folder: &Path) -> Tls {
    Tls {
        acme: None,
        client_auth: None,
        certificates: vec![CertificateFiles {
            cert: folder.join("chain.pem"),
            key: folder.join("key.pem"),
        }],
        hosts: Vec::new(),
        unknown_sni: UnknownSni::Default,
        min_version: TlsVersion::V12,
    }
}

fn config(at: [SocketAddr; 2], hosts: Vec<HostPattern>) -> Config {
    let second = Duration::from_secs(1);
    let ingress = Ingress {
        listen: vec![at[0]],
        redirect_http: vec![at[1]],
        tls: files(Path::new("")),
        hsts: None,
        proxy_protocol_from: Vec::new(),
        allow: None,
        deny: Vec::new(),
        limits: Vec::new(),
        routes: vec![Route {
            require_client_cert: false,
            hosts,
            path: "/".into(),
            allow: None,
            deny: Vec::new(),
            limits: Vec::new(),
            upstream: "app".into(),
            timeouts: Timeouts {
                response_head: second,
                idle: second,
                stream_idle: second,
            },
            max_body: None,
            on_failure: OnFailure::Refuse,
            receipt: false,
        }],
    };
    Config {
        process: Process {
            state_dir: "state".into(),
            workers: 1,
            drain_deadline: second,
            max_sessions: 100,
            max_sessions_per_client: 100,
            key_file: None,
            tickets: Tickets {
                every: second,
                store: None,
            },
        },
        admin: Admin {
            listen: "127.0.0.1:9911".parse().unwrap(),
        },
        log: Log {
            format: LogFormat::Text,
            level: tracing::Level::INFO,
        },
        audit: Audit {
            durability: Durability::Sync,
            on_failure: OnFailure::Refuse,
            wait_budget: second,
            stall_after: second,
            segment_bytes: 1 << 20,
            seal_every: Duration::from_secs(1),
            anchors: Vec::new(),
            receipt_key: None,
            query_values: Vec::new(),
            secret_paths: Vec::new(),
            ..Audit::default()
        },
        limits: Default::default(),
        store: None,
        ingress: vec![ingress],
        upstreams: Default::default(),
        egress: None,
        next_expiry_ns: None,
        source: Source::default(),
    }
}

/// An ingress that runs.
pub(crate) struct Edge {
    pub(crate) at: SocketAddr,
    pub(crate) redirect_at: SocketAddr,
    pub(crate) sessions: Sessions,
    pub(crate) metrics: Arc<Metrics>,
    live: Live,
    tls: Arc<Served>,
    folder: tempfile::TempDir,
    certificate: CertificateDer<'static>,
}

impl Edge {
    pub(crate) async fn start(plan: &Plan) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pair = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
        let files = files(folder.path());
        let [CertificateFiles { cert, key }] = &files.certificates[..] else {
            panic!("one certificate");
        };
        std::fs::write(cert, pair.cert.pem()).unwrap();
        std::fs::write(key, pair.signing_key.serialize_pem()).unwrap();
        let keyring = Keyring::new(Duration::from_secs(60), Arc::default(), |_| ()).unwrap();
        let tls = keyring.serve(&files, Dates::Heed).unwrap();

        let (listener, redirect) = (listener(), listener());
        let at = [
            listener.local_addr().unwrap(),
            redirect.local_addr().unwrap(),
        ];
        let metrics = Arc::new(Metrics::new());
        let sessions = Sessions::new(1000, 1000, 1, Arc::clone(&metrics));
        let audit = Audit {
            durability: Durability::Write,
            ..config(at, Vec::new()).audit
        };
        let journal = Journal::open(folder.path(), &audit, 0, Arc::clone(&metrics)).unwrap();
        let live = Live::new(plan.snapshot(1, &tls, at));
        let limits = Arc::new(Limits::new(Arc::clone(&metrics)));
        let wing = Wing::timed(
            live.clone(),
            journal,
            limits,
            Arc::clone(&metrics),
            plan.timers,
        );
        let (inside, other) = (sessions.clone(), Arc::clone(&wing));
        accept(listener, move |tcp| {
            let session = inside.enter(Way::Ingress).unwrap();
            Arc::clone(&wing).connection(tcp, session, at[0])
        });
        let inside = sessions.clone();
        accept(redirect, move |tcp| {
            let session = inside.enter(Way::Ingress).unwrap();
            Arc::clone(&other).redirect(tcp, session, at[1])
        });
        Self {
            at: at[0],
            redirect_at: at[1],
            sessions,
            metrics,
            live,
            tls,
            folder,
            certificate: pair.cert.der().clone(),
        }
    }

    pub(crate) fn reload(&self, plan: &Plan, generation: u64) {
        let at = [self.at, self.redirect_at];
        self.live.replace(plan.snapshot(generation, &self.tls, at));
        self.sessions.reloaded(generation);
    }

    /// A client over TLS that has agreed on `protocol`.
    pub(crate) async fn client(&self, protocol: &str) -> TlsStream<TcpStream> {
        self.client_over(socket::connect(self.at).await.unwrap(), protocol)
            .await
            .unwrap()
    }

    pub(crate) async fn client_over(
        &self,
        tcp: TcpStream,
        protocol: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.client_saying(tcp, protocol, b"").await
    }

    /// A client whose `first` bytes leave in one piece with the end of its handshake.
    pub(crate) async fn client_saying(
        &self,
        tcp: TcpStream,
        protocol: &str,
        first: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let name = ServerName::try_from(HOST).unwrap();
        TlsConnector::from(Arc::new(config))
            .connect_with(name, tcp, |tls| tls.writer().write_all(first).unwrap())
            .await
    }

    /// Sends `bytes` on a connection of its own and reads until the server closes or is silent for a second.
    pub(crate) async fn talk(&self, bytes: &str) -> String {
        let mut client = self.client("http/1.1").await;
        client.write_all(bytes.as_bytes()).await.unwrap();
        read_for(&mut client, Duration::from_secs(1)).await
    }

    /// All records so far, but for those that tell of the log itself.
    pub(crate) fn records(&self) -> Vec<String> {
        let mut files: Vec<_> = std::fs::read_dir(self.folder.path().join("audit"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|e| e == "open" || e == "jsonl")
            })
            .collect();
        files.sort();
        let text: String = files
            .iter()
            .map(|file| String::from_utf8(std::fs::read(file).unwrap()).unwrap())
            .collect();
        text.trim_end_matches('\0')
            .lines()
            .filter(|line| line.ends_with('}'))
            .filter(|line| {
                !line.contains(r#""kind":"event""#) && !line.contains(r#""kind":"seal""#)
            })
            .map(str::to_owned)
            .collect()
    }

    /// The first record that holds every one of `words`; fails if none comes within 5 s.
    pub(crate) async fn record(&self, words: &[&str]) -> String {
        for _ in 0..250 {
            let found = self
                .records()
                .into_iter()
                .find(|line| words.iter().all(|w| line.contains(w)));
            if let Some(line) = found {
                return line;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("no record with {words:?} in {:#?}", self.records());
    }

    /// The records once there are more than `known`; fails if none comes within 5 s.
    pub(crate) async fn records_after(&self, known: usize) -> Vec<String> {
        for _ in 0..250 {
            let records = self.records();
            if records.len() > known {
                return records;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("no record after {:#?}", self.records());
    }

    /// Every admitted request has ended, once; at the latest within 5 s.
    pub(crate) async fn assert_paired(&self) {
        let ids = |records: &[String], kind: &str| {
            let of_kind = |line: &&String| line.contains(&format!(r#""kind":"{kind}""#));
            let id = |line: &String| {
                line.split(r#""id":""#)
                    .nth(1)
                    .unwrap()
                    .get(..36)
                    .unwrap()
                    .to_owned()
            };
            let mut ids: Vec<String> = records.iter().filter(of_kind).map(id).collect();
            ids.sort();
            ids
        };
        for _ in 0..250 {
            let records = self.records();
            if ids(&records, "before") == ids(&records, "after") {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        let records = self.records();
        assert_eq!(ids(&records, "before"), ids(&records, "after"));
    }
}

/// Reads until the end, or until nothing came for `patience`.
pub(crate) async fn read_for(
    stream: &mut (impl AsyncReadExt + Unpin),
    patience: Duration,
) -> String {
    let (mut read, mut buffer) = (Vec::new(), vec![0; 16 * 1024]);
    while let Ok(Ok(count)) = timeout(patience, stream.read(&mut buffer)).await {
        if count == 0 {
            break;
        }
        read.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&read).into_owned()
}

fn listener() -> TcpListener {
    TcpListener::from_std(socket::listen("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap()
}

fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    workers::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            workers::spawn(serve(tcp));
        }
    });
}

/// An upstream that answers by `answer`.
pub(crate) fn upstream<F>(
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) -> SocketAddr
where
    F: Future<Output = Response<Text>> + Send + 'static,
{
    raw_upstream(move |tcp| {
        let answer = answer.clone();
        async move {
            let service = service_fn(move |request| {
                let answer = answer(request);
                async { Ok::<_, Infallible>(answer.await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(tcp), service);
            served.with_upgrades().await.ok();
        }
    })
}

/// An upstream that does with the socket what it likes.
pub(crate) fn raw_upstream<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = listener();
    let at = listener.local_addr().unwrap();
    accept(listener, serve);
    at
}

pub(crate) fn text(text: impl Into<Bytes>) -> Text {
    Full::new(text.into()).boxed()
}

/// An upstream that repeats the head it got, and counts the body.
pub(crate) fn mirror() -> SocketAddr {
    upstream(|request| async {
        let (parts, body) = request.into_parts();
        let mut seen = format!("{} {} {:?}\n", parts.method, parts.uri, parts.version);
        for (name, value) in &parts.headers {
            seen += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
        }
        let body = body.collect().await.map(|body| body.to_bytes().len());
        seen += &format!("body: {body:?}\n");
        Response::builder()
            .header("x-app", "yes")
            .header("connection", "x-private")
            .header("x-private", "1")
            .header("keep-alive", "timeout=5")
            .body(text(seen))
            .unwrap()
    })
}

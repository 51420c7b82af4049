//! A small certificate authority, for what Debian's pebble is too old for or never does: renewal windows (RFC 9773),
//! profiles, dns-persist-01, wrong certificates, errors and silence. It believes every name that it is asked for, but
//! for dns-persist-01, and checks no signature: pebble does.
use std::collections::HashSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SignatureAlgorithm,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::body::Payload;
use super::client::server_config;
use super::gate::Place;

/// Serves on a thread of its own until the test process ends.
pub(crate) struct SmallCa {
    address: SocketAddr,
    ca: PathBuf,
    book: Arc<Mutex<Book>>,
}

/// What it does, and what it was asked.
pub(crate) struct Book {
    pub(crate) mood: Mood,
    /// Life of a certificate.
    pub(crate) life: Duration,
    /// Seconds from now: when the first certificate is to be renewed.
    pub(crate) window: Option<(i64, i64)>,
    pub(crate) profiles: &'static [&'static str],
    /// The TXT records that it finds.
    pub(crate) records: HashSet<(String, String)>,
    /// The payloads of newOrder.
    pub(crate) orders: Vec<Value>,
    /// For which certificates a window was asked.
    pub(crate) windows: Vec<String>,
    /// Whether [`Offers::Ask`] has been seen.
    pub(crate) passed: bool,
    /// The payloads of newAccount.
    pub(crate) accounts: Vec<Value>,
    issued: Vec<String>,
    /// Orders whose challenge it was told to look at.
    pub(crate) looked: HashSet<String>,
    offers: Offers,
    url: String,
    issuer: Issuer<'static, KeyPair>,
    pub(crate) root: String,
}

/// What it wants to see before it believes a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Offers {
    /// Nothing.
    Trust,
    /// The standing record of dns-persist-01.
    Persist,
    /// This challenge, which the test looks at itself; [`Book::passed`] ends it.
    Ask(&'static str),
}

/// How it takes an order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mood {
    Good,
    /// It issues, but for another name.
    AnotherName,
    /// Status 500 and a page.
    Broken,
    /// No answer at all.
    Silent,
    /// A problem of this type, with `Retry-After`.
    Problem(&'static str, u64),
    /// As good, but `replaces` is refused.
    Replaced,
}

/// The issuer that dns-persist-01 names.
pub(crate) const ISSUER: &str = "authority.example";

/// Of every challenge.
pub(crate) const TOKEN: &str = "a-token_0";

struct PublicKey(Vec<u8>);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SmallCa {
    pub(crate) fn start(place: &Place, offers: Offers) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("its address");
        listener.set_nonblocking(true).expect("non-blocking");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "small authority");
        let root = params.self_signed(&key).expect("a certificate").pem();
        let book = Arc::new(Mutex::new(Book {
            mood: Mood::Good,
            life: Duration::from_secs(90 * 86_400),
            window: None,
            profiles: &[],
            records: HashSet::new(),
            orders: Vec::new(),
            windows: Vec::new(),
            accounts: Vec::new(),
            issued: Vec::new(),
            looked: HashSet::new(),
            passed: false,
            offers,
            url: format!("https://localhost:{}", address.port()),
            issuer: Issuer::new(params, key),
            root,
        }));
        let (tls, shared) = (
            server_config(&place.path("cert.pem"), &place.path("key.pem")),
            Arc::clone(&book),
        );
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().expect("a runtime");
            runtime.block_on(accept(listener, tls, shared));
        });
        let ca = place.ca();
        Self { address, ca, book }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no panic")
    }

    /// What a configuration has to say of it within `acme = { ... }`.
    pub(crate) fn keys(&self) -> String {
        let port = self.address.port();
        format!(
            "directory = \"https://localhost:{port}/\", ca_file = {:?}",
            self.ca
        )
    }

    /// The root of what it issues, in a file.
    pub(crate) fn root(&self, place: &Place) -> PathBuf {
        self.path_of_root(place, "small-root.pem")
    }

    /// The same, where there is more than one.
    pub(crate) fn path_of_root(&self, place: &Place, name: &str) -> PathBuf {
        let path = place.path(name);
        std::fs::write(&path, &self.book().root).expect("a file");
        path
    }
}

async fn accept(listener: std::net::TcpListener, tls: TlsAcceptor, book: Arc<Mutex<Book>>) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    loop {
        let (tcp, _) = listener.accept().await.expect("a connection");
        let (tls, book) = (tls.clone(), Arc::clone(&book));
        tokio::spawn(async move {
            let Ok(io) = tls.accept(tcp).await else {
                return;
            };
            let service = service_fn(move |request| answer(request, Arc::clone(&book)));
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(io), service)
                .await
                .ok(); // the test looks at the other side
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    book: Arc<Mutex<Book>>,
) -> Result<Response<Payload>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    let payload = payload(&body);
    let mood = book.lock().expect("no panic").mood;
    if path == "/order" && mood == Mood::Silent {
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    let response = book.lock().expect("no panic").answer(&path, payload);
    Ok(response)
}

/// What a signed request carries.
fn payload(body: &[u8]) -> Value {
    let signed: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = signed["payload"].as_str().unwrap_or_default();
    let bytes = URL_SAFE_NO_PAD.decode(text).expect("base64url");
    serde_json::from_slice(&bytes).unwrap_or_default()
}

impl Book {
    fn answer(&mut self, path: &str, payload: Value) -> Response<Payload> {
        let url = self.url.clone();
        let words: Vec<&str> = path.split('/').skip(1).collect();
        match words[..] {
            [""] => reply(200, &self.directory()),
            ["nonce"] => reply(200, &json!({})),
            ["account"] => {
                self.accounts.push(payload);
                at(reply(201, &json!({})), &format!("{url}/account/1"))
            }
            ["order"] => self.order(payload),
            ["order", number] => reply(200, &self.state(number)),
            ["authorization", number] => reply(200, &self.authorization(number)),
            ["challenge", number] => reply(200, &self.challenge(number)),
            ["finalize", number] => {
                self.issue(number, &payload);
                reply(200, &self.state(number))
            }
            ["certificate", number] => {
                let text = &self.issued[number.parse::<usize>().expect("a number")];
                Response::new(Payload::text(text.clone()))
            }
            ["renewal", certificate] => self.renewal(certificate),
            _ => reply(404, &json!({})),
        }
    }

    fn directory(&self) -> Value {
        let url = &self.url;
        let profiles: serde_json::Map<_, _> = self
            .profiles
            .iter()
            .map(|name| ((*name).to_owned(), Value::from("a profile")))
            .collect();
        json!({
            "newNonce": format!("{url}/nonce"),
            "newAccount": format!("{url}/account"),
            "newOrder": format!("{url}/order"),
            "revokeCert": format!("{url}/revoke"),
            "renewalInfo": format!("{url}/renewal"),
            "meta": { "profiles": profiles },
        })
    }

    fn order(&mut self, payload: Value) -> Response<Payload> {
        let profile = payload["profile"].as_str();
        let unknown = profile.is_some_and(|profile| !self.profiles.contains(&profile));
        match self.mood {
            Mood::Broken => {
                let mut page = Response::new(Payload::text("<html>oops</html>"));
                *page.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
                return page;
            }
            Mood::Problem(kind, seconds) => {
                let mut refused = problem(429, kind);
                refused.headers_mut().insert("retry-after", seconds.into());
                return refused;
            }
            Mood::Replaced if !payload["replaces"].is_null() => {
                return problem(409, "alreadyReplaced");
            }
            _ if unknown => return problem(400, "invalidProfile"),
            _ => {}
        }
        let number = self.orders.len();
        self.orders.push(payload);
        self.issued.push(String::new());
        at(
            reply(201, &self.state(&number.to_string())),
            &format!("{}/order/{number}", self.url),
        )
    }

    fn state(&self, number: &str) -> Value {
        let url = &self.url;
        let issued = !self.issued[number.parse::<usize>().expect("a number")].is_empty();
        let status = match (issued, self.valid(number)) {
            (true, _) => "valid",
            (false, true) => "ready",
            (false, false) => "pending",
        };
        json!({
            "status": status,
            "authorizations": [format!("{url}/authorization/{number}")],
            "finalize": format!("{url}/finalize/{number}"),
            "certificate": format!("{url}/certificate/{number}"),
        })
    }

    fn authorization(&self, number: &str) -> Value {
        let mut offer = self.offer(number);
        let looked = self.looked.contains(number) && self.offers == Offers::Persist;
        let status = match (self.valid(number), looked) {
            (true, _) => "valid",
            (false, false) => "pending",
            (false, true) => {
                let kind = "urn:ietf:params:acme:error:unauthorized";
                offer["error"] = json!({ "type": kind, "detail": "no such record" });
                "invalid"
            }
        };
        json!({ "status": status, "challenges": [offer] })
    }

    fn challenge(&mut self, number: &str) -> Value {
        self.looked.insert(number.to_owned());
        self.offer(number)
    }

    fn offer(&self, number: &str) -> Value {
        let url = format!("{}/challenge/{number}", self.url);
        match self.offers {
            Offers::Ask(kind) => {
                json!({ "type": kind, "url": url, "status": "pending", "token": TOKEN })
            }
            Offers::Persist | Offers::Trust => json!({
                "type": "dns-persist-01",
                "url": url,
                "status": "pending",
                "issuer-domain-names": [ISSUER],
            }),
        }
    }

    fn valid(&self, number: &str) -> bool {
        match self.offers {
            Offers::Trust => return true,
            Offers::Ask(_) => return self.passed,
            Offers::Persist => {}
        }
        let name = self.name(number);
        let (base, policy) = match name.strip_prefix("*.") {
            Some(base) => (base, "; policy=wildcard"),
            None => (name.as_str(), ""),
        };
        let value = format!("{ISSUER}; accounturi={}/account/1{policy}", self.url);
        self.records
            .contains(&(format!("_validation-persist.{base}"), value))
    }

    fn name(&self, number: &str) -> String {
        let order = &self.orders[number.parse::<usize>().expect("a number")];
        let name = order["identifiers"][0]["value"].as_str();
        name.expect("a name").to_owned()
    }

    fn issue(&mut self, number: &str, payload: &Value) {
        let csr = URL_SAFE_NO_PAD.decode(payload["csr"].as_str().expect("a request"));
        let csr = csr.expect("base64url");
        let (_, csr) = X509CertificationRequest::from_der(&csr).expect("a request");
        let public = &csr
            .certification_request_info
            .subject_pki
            .subject_public_key;
        let key = PublicKey(public.data.to_vec());
        let name = match self.mood {
            Mood::AnotherName => "somebody.else.test".to_owned(),
            _ => self.name(number),
        };
        let mut leaf = CertificateParams::new([name]).expect("parameters");
        leaf.use_authority_key_identifier_extension = true;
        let now = SystemTime::now();
        leaf.not_before = (now - Duration::from_secs(1)).into();
        leaf.not_after = (now + self.life).into();
        let leaf = leaf.signed_by(&key, &self.issuer).expect("a certificate");
        self.issued[number.parse::<usize>().expect("a number")] = leaf.pem();
    }

    fn renewal(&mut self, certificate: &str) -> Response<Payload> {
        self.windows.push(certificate.to_owned());
        let Some((from, to)) = self.window.filter(|_| self.orders.len() == 1) else {
            return problem(404, "malformed");
        };
        let at = |seconds: i64| {
            let span = jiff::SignedDuration::from_secs(seconds);
            (jiff::Timestamp::now() + span).to_string()
        };
        let mut response = reply(
            200,
            &json!({
                "suggestedWindow": { "start": at(from), "end": at(to) },
                "explanationURL": "https://authority.example/incident",
            }),
        );
        response.headers_mut().insert("retry-after", 60.into());
        response
    }
}

fn reply(status: u16, body: &Value) -> Response<Payload> {
    let mut response = Response::new(Payload::text(body.to_string()));
    *response.status_mut() = status.try_into().expect("a status");
    let fields = response.headers_mut();
    fields.insert("replay-nonce", "nonce".parse().expect("a value"));
    fields.insert("content-type", "application/json".parse().expect("a value"));
    response
}

fn problem(status: u16, kind: &str) -> Response<Payload> {
    let kind = format!("urn:ietf:params:acme:error:{kind}");
    let mut response = reply(status, &json!({ "type": kind, "detail": "in these words" }));
    let value = "application/problem+json".parse().expect("a value");
    response.headers_mut().insert("content-type", value);
    response
}

fn at(mut response: Response<Payload>, url: &str) -> Response<Payload> {
    let url = url.parse().expect("a value");
    response.headers_mut().insert("location", url);
    response
}

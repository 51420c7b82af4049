//! Pending challenges of certificate authorities, and what answers them.
//!
//! While one is pending, and only then, its answer is given to whoever asks, because nobody knows where a certificate
//! authority asks from. It is an answer and nothing more: a certificate that no client accepts and a handshake that is
//! then closed (RFC 8737), or a text that is public (RFC 8555 section 8.3). Nothing here leads to HTTP or an upstream.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use crate::addr::Host;

/// The protocol of a handshake that is a challenge (RFC 8737 section 6.2).
const PROTOCOL: &[u8] = b"acme-tls/1";

/// The pending challenges of one process.
#[derive(Default)]
pub struct Challenges {
    pending: ArcSwap<Pending>,
    changing: Mutex<()>,
}

#[derive(Clone, Default)]
struct Pending {
    /// By server name.
    tls: HashMap<Box<str>, Answer<Arc<ServerConfig>>>,
    /// By token.
    http: HashMap<Box<str>, Answer<Box<str>>>,
}

#[derive(Clone)]
struct Answer<T> {
    given: Arc<AtomicU64>,
    answer: T,
}

/// What answers one question of a certificate authority.
pub struct Given<T> {
    pub answer: T,
    /// How often it has been given before.
    pub before: u64,
}

/// One pending challenge; no longer pending when it is dropped.
#[must_use = "the challenge is pending as long as this is held"]
pub struct Challenge {
    challenges: Arc<Challenges>,
    key: Key,
    given: Arc<AtomicU64>,
}

enum Key {
    Http(Box<str>),
    Tls(Box<str>),
}

/// The certificate that answers could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the answer to a challenge could not be made")]
pub struct NoAnswer;

impl Challenges {
    /// `text` answers for `token` on port 80.
    pub fn http(self: &Arc<Self>, token: &str, text: &str) -> Challenge {
        let given = Arc::default();
        let answer = Answer {
            given: Arc::clone(&given),
            answer: text.into(),
        };
        self.change(|pending| {
            pending.http.insert(token.into(), answer);
        });
        self.held(Key::Http(token.into()), given)
    }

    /// A certificate with `digest` answers for `host` on port 443.
    pub fn tls(
        self: &Arc<Self>,
        host: &Host,
        digest: &[u8; 32],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Challenge, NoAnswer> {
        let answer = answering(host, digest, provider).ok_or(NoAnswer)?;
        let (name, given) = (server_name(host), Arc::default());
        let answer = Answer {
            given: Arc::clone(&given),
            answer,
        };
        self.change(|pending| {
            pending.tls.insert(name.clone(), answer);
        });
        Ok(self.held(Key::Tls(name), given))
    }

    /// Whether a handshake may be a challenge at present.
    pub fn tls_pending(&self) -> bool {
        !self.pending.load().tls.is_empty()
    }

    /// Whether a request on port 80 may be a challenge at present.
    pub fn http_pending(&self) -> bool {
        !self.pending.load().http.is_empty()
    }

    /// What answers the handshake that begins with `hello`, if that is a challenge and nothing else.
    pub(super) fn answer_tls(&self, hello: &ClientHello<'_>) -> Option<Given<Arc<ServerConfig>>> {
        let mut protocols = hello.alpn()?;
        if protocols.next() != Some(PROTOCOL) || protocols.next().is_some() {
            return None;
        }
        let pending = self.pending.load();
        Some(pending.tls.get(hello.server_name()?)?.give())
    }

    /// What answers a request for `path`, if that is a challenge.
    pub fn answer_http(&self, path: &str) -> Option<Given<Box<str>>> {
        let token = path.strip_prefix("/.well-known/acme-challenge/")?;
        let pending = self.pending.load();
        Some(pending.http.get(token)?.give())
    }

    fn held(self: &Arc<Self>, key: Key, given: Arc<AtomicU64>) -> Challenge {
        let challenges = Arc::clone(self);
        Challenge {
            challenges,
            key,
            given,
        }
    }

    fn change(&self, change: impl FnOnce(&mut Pending)) {
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pending = Pending::clone(&self.pending.load());
        change(&mut pending);
        self.pending.store(Arc::new(pending));
        drop(changing);
    }
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Challenges(..)")
    }
}

impl<T: Clone> Answer<T> {
    fn give(&self) -> Given<T> {
        Given {
            answer: self.answer.clone(),
            before: self.given.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl Challenge {
    /// How often it was answered here.
    pub fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }
}

impl Drop for Challenge {
    fn drop(&mut self) {
        let ours = |given: &Arc<AtomicU64>| Arc::ptr_eq(given, &self.given);
        self.challenges.change(|pending| match &self.key {
            Key::Http(token) => pending
                .http
                .retain(|key, answer| key != token || !ours(&answer.given)),
            Key::Tls(name) => pending
                .tls
                .retain(|key, answer| key != name || !ours(&answer.given)),
        });
    }
}

/// A configuration that shows one certificate and speaks no protocol but that of challenges.
fn answering(
    host: &Host,
    digest: &[u8; 32],
    provider: &Arc<CryptoProvider>,
) -> Option<Arc<ServerConfig>> {
    let key = KeyPair::generate().ok()?;
    let mut params = CertificateParams::new([host.to_string()]).ok()?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "answer to a challenge");
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key).ok()?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).ok()?;
    let chain = vec![certificate.der().clone()];
    let shown = CertifiedKey::new(chain, any_supported_type(&key).ok()?);
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .ok()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Some(Arc::new(config))
}

/// What the certificate authority asks for: the name, or the reverse name of an address (RFC 8738 section 6).
fn server_name(host: &Host) -> Box<str> {
    match host {
        Host::Name(name) => name.clone(),
        Host::Address(std::net::IpAddr::V4(v4)) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa").into()
        }
        Host::Address(std::net::IpAddr::V6(v6)) => {
            let nibbles = v6.octets().into_iter().rev();
            let digits: Vec<_> = nibbles
                .flat_map(|byte| [byte & 15, byte >> 4])
                .map(|nibble| format!("{nibble:x}"))
                .collect();
            format!("{}.ip6.arpa", digits.join(".")).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs;

    use super::*;

    #[test]
    fn a_challenge_is_answered_as_long_as_it_is_held() {
        let challenges = Arc::new(Challenges::default());
        let path = "/.well-known/acme-challenge/token";
        let answer = |path| challenges.answer_http(path).map(|given| given.answer);
        assert!(!challenges.http_pending() && answer(path).is_none());
        let held = challenges.http("token", "token.print");
        assert!(challenges.http_pending() && !challenges.tls_pending());
        assert_eq!(answer(path).as_deref(), Some("token.print"));
        assert_eq!(answer("/token"), None);
        assert_eq!(held.given(), 1);
        let newer = challenges.http("token", "again");
        drop(held);
        assert_eq!(answer(path).as_deref(), Some("again"));
        drop(newer);
        assert!(!challenges.http_pending());
    }

    #[test]
    fn addresses_are_asked_for_by_their_reverse_names() {
        let name = |text| server_name(&Host::parse(text).unwrap());
        assert_eq!(&*name("192.0.2.7"), "7.2.0.192.in-addr.arpa");
        assert_eq!(
            &*name("2001:db8::1"),
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
        );
        let challenges = Arc::new(Challenges::default());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let host = Host::parse("192.0.2.7").unwrap();
        let held = challenges.tls(&host, &[7; 32], &provider).unwrap();
        assert!(challenges.tls_pending());
        drop(held);
        assert!(!challenges.tls_pending());
    }
}

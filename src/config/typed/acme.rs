//! What `config/acme` reads: who is asked for which certificates, how, and where they are kept.

use std::path::PathBuf;

use crate::addr::Destination;

use super::Password;

/// `acme` of `[ingress.tls]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// A mail address.
    pub contact: Option<String>,
    /// Certificate authorities in the order in which they are asked, at least one.
    pub issuers: Vec<Issuer>,
    pub challenge: Challenge,
    /// There is one if the challenge is [`Challenge::Dns`].
    pub hook: Option<Hook>,
    pub store: AcmeStore,
}

/// A certificate authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// The https URL of its directory (RFC 8555 section 7.1.1).
    pub directory: String,
    /// Host and port of that URL.
    pub authority: Destination,
    /// A kind of certificate that it offers.
    pub profile: Option<String>,
    pub binding: Option<Binding>,
    /// Roots to believe it by, in place of the built-in ones.
    pub ca_file: Option<PathBuf>,
}

/// An external account binding (RFC 8555 section 7.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    pub kid: String,
    /// The HMAC key, decoded.
    pub key: Password,
}

/// How it is shown that a name is ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Challenge {
    /// By a TXT record that a program sets for each order.
    Dns,
    /// By one TXT record that a person sets once.
    DnsPersist,
    /// On port 80.
    Http,
    /// On port 443, within the TLS handshake.
    TlsAlpn,
}

/// A program that sets and clears TXT records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    pub program: PathBuf,
    /// Stand before what we add.
    pub arguments: Vec<String>,
}

/// Where accounts, certificates and keys are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcmeStore {
    /// A folder within the state directory.
    Own(PathBuf),
    Redis(RedisStore),
    /// A folder that replicas share.
    Shared(PathBuf),
}

/// `[limits.store]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisStore {
    pub address: Destination,
    pub tls: bool,
    pub user: Option<String>,
    pub password: Option<Password>,
    pub database: i64,
    /// Roots to believe it by, in place of the built-in ones.
    pub ca_file: Option<PathBuf>,
}

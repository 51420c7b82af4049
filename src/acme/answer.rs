//! How it is shown that a name is ours: the answer to one challenge is put up, and taken down again.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use tokio::sync::OwnedMutexGuard;

use crate::addr::Host;
use crate::clock;
use crate::config::typed::{Challenge as Way, Hook, HostPattern};
use crate::tls::{Challenge, Keyring};

use super::account::Account;
use super::hook;
use super::jose::sha256;
use super::problem::{Failure, shown};
use super::shelf::{Kind, Posed, Shelf};
use super::tend::Turns;

/// A challenge as the certificate authority describes it (RFC 8555 section 7.1.5).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Offered {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) url: String,
    #[serde(default)]
    pub(super) token: String,
    #[serde(default)]
    pub(super) error: Option<super::problem::Problem>,
    /// Of dns-persist-01: by which names it knows itself in DNS.
    #[serde(default)]
    issuer_domain_names: Vec<String>,
}

/// What is put up; taken down by [`Answer::clear`], and what is in memory also when it is dropped.
#[must_use = "it is to be cleared"]
pub(super) enum Answer<'a> {
    /// Within this process, and in the store where there are others.
    Held {
        challenge: Challenge,
        posed: Option<(&'a Shelf, &'a str)>,
    },
    Record {
        hook: &'a Hook,
        name: String,
        value: String,
        _turn: OwnedMutexGuard<()>,
    },
    /// A record that stays.
    Standing,
}

/// A TXT record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) value: String,
}

/// What the answer to a challenge is made with.
pub(super) struct Ground<'a> {
    pub(super) keyring: &'a Keyring,
    pub(super) shelf: &'a Shelf,
    pub(super) label: &'a str,
    pub(super) name: &'a HostPattern,
    pub(super) way: Way,
    pub(super) hook: Option<&'a Hook>,
    /// Which process this is.
    pub(super) process: &'a str,
    pub(super) turns: &'a Turns,
}

/// How long a challenge of a process that is gone is still answered by others.
const POSED_SECONDS: i64 = 600;

/// The stable word of a way.
pub(super) fn word(way: Way) -> &'static str {
    match way {
        Way::Dns => "dns-01",
        Way::DnsPersist => "dns-persist-01",
        Way::Http => "http-01",
        Way::TlsAlpn => "tls-alpn-01",
    }
}

impl<'a> Ground<'a> {
    /// Puts up what answers `offered`.
    pub(super) async fn answer(
        &self,
        account: &Account,
        offered: &Offered,
    ) -> Result<Answer<'a>, Failure> {
        let authorization = account.authorization(&offered.token);
        match self.way {
            Way::DnsPersist => Ok(Answer::Standing),
            Way::Dns => {
                let (Some(hook), Some(base)) = (self.hook, base(self.name)) else {
                    return Ok(Answer::Standing); // the configuration sees to both
                };
                let name = format!("_acme-challenge.{base}");
                let value = URL_SAFE_NO_PAD.encode(sha256(authorization.as_bytes()));
                let turn = self.turns.record(&name).lock_owned().await;
                hook::run(hook, "set", &name, &value).await?;
                Ok(Answer::Record {
                    hook,
                    name,
                    value,
                    _turn: turn,
                })
            }
            Way::Http | Way::TlsAlpn => {
                if !plain(&offered.token) {
                    return Err(Failure::NotAcme {
                        authority: shown(&offered.url),
                        why: "the token is not one".to_owned(),
                    });
                }
                let posed = Posed {
                    token: offered.token.clone(),
                    authorization,
                    by: self.process.to_owned(),
                    until: now() + POSED_SECONDS,
                };
                let challenge = pose(self.keyring, self.way, self.name, &posed)?;
                let mut answer = Answer::Held {
                    challenge,
                    posed: None,
                };
                if self.shelf.is_shared() {
                    self.shelf.put(Kind::Posed, self.label, &posed).await?;
                    if let Answer::Held { posed, .. } = &mut answer {
                        *posed = Some((self.shelf, self.label));
                    }
                }
                Ok(answer)
            }
        }
    }

    /// The record that a person must have set for `offered`.
    pub(super) fn standing(&self, account: &Account, offered: &Offered) -> Option<Record> {
        let issuer = offered.issuer_domain_names.first()?;
        let base = base(self.name)?;
        let policy = match self.name {
            HostPattern::Below(_) => "; policy=wildcard",
            HostPattern::Exact(_) => "",
        };
        let (issuer, account) = (shown(issuer), shown(&account.url));
        Some(Record {
            name: format!("_validation-persist.{base}"),
            value: format!("{issuer}; accounturi={account}{policy}"),
        })
    }
}

impl Answer<'_> {
    /// How often it was asked for here.
    pub(super) fn given(&self) -> u64 {
        match self {
            Self::Held { challenge, .. } => challenge.given(),
            Self::Record { .. } | Self::Standing => 0,
        }
    }

    /// Whether other processes may be asked for it.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Held { posed: Some(_), .. })
    }

    /// Takes it down. A record that cannot be cleared does no harm: its value is of no further use.
    pub(super) async fn clear(self) {
        match self {
            Self::Held { posed, .. } => {
                if let Some((shelf, label)) = posed {
                    shelf.remove(Kind::Posed, label).await.ok(); // it expires
                }
            }
            Self::Record {
                hook, name, value, ..
            } => {
                if let Err(error) = hook::run(hook, "clear", &name, &value).await {
                    tracing::warn!(%name, "a challenge's record stays: {error}");
                }
            }
            Self::Standing => {}
        }
    }
}

/// Answers `posed` within this process.
pub(super) fn pose(
    keyring: &Keyring,
    way: Way,
    name: &HostPattern,
    posed: &Posed,
) -> Result<Challenge, Failure> {
    let challenges = keyring.challenges();
    match (way, name) {
        (Way::TlsAlpn, HostPattern::Exact(host)) => {
            let digest = sha256(posed.authorization.as_bytes());
            let held = challenges.tls(host, &digest, keyring.provider());
            held.map_err(|_| Failure::NoKey)
        }
        _ => Ok(challenges.http(&posed.token, &posed.authorization)),
    }
}

/// The name without its `*.`; an address has no records.
fn base(name: &HostPattern) -> Option<Arc<str>> {
    match name {
        HostPattern::Below(below) => Some((**below).into()),
        HostPattern::Exact(Host::Name(name)) => Some((**name).into()),
        HostPattern::Exact(Host::Address(_)) => None,
    }
}

/// Tokens are base64url (RFC 8555 section 8.3): what stands in a path and in a file needs no escape.
fn plain(token: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    !token.is_empty() && token.len() <= 256 && token.bytes().all(fits)
}

/// In seconds since 1970.
pub(super) fn now() -> i64 {
    i64::try_from(clock::wall_ns() / 1_000_000_000).unwrap_or(i64::MAX)
}

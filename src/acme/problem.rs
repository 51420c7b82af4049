//! Why an order failed: what the certificate authority or the machine said, and what mends it.
//!
//! A problem document (RFC 9457, types in RFC 8555 section 6.7) is shown with its own words, bounded and without
//! control characters: it comes from outside. Every failure says whether and when to try again.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::store::StoreError;

use super::hook::HookError;

/// Why something asked of a certificate authority did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(
        "{authority} cannot be reached: {why}; check the network, name service and firewall of this machine"
    )]
    Unreachable { authority: String, why: String },
    /// An error without a problem document.
    #[error("{authority} answered with status {status}; it is probably out of order")]
    Answered {
        authority: String,
        status: u16,
        retry_after: Option<Duration>,
    },
    #[error("{0}")]
    Problem(Problem),
    #[error("{authority} answered with something that is not ACME: {why}; check `acme.directory`")]
    NotAcme { authority: String, why: String },
    #[error(
        "the certificate authority does not offer {wanted} for this name, but {offered}; choose another `acme.challenge`"
    )]
    NotOffered {
        wanted: &'static str,
        offered: String,
    },
    #[error("the certificate authority did not come to an end with {what} in time")]
    Slow { what: &'static str },
    #[error("the certificate that came is not what was ordered: {why}")]
    WrongCertificate { why: String },
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no key could be made; the operating system gives no random bytes")]
    NoKey,
    #[error("{0}")]
    Trust(String),
}

/// A problem document.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Problem {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    subproblems: Vec<Subproblem>,
    #[serde(skip)]
    retry_after: Option<Duration>,
}

#[derive(Clone, Debug, Deserialize)]
struct Subproblem {
    #[serde(default)]
    detail: String,
}

const KIND_PREFIX: &str = "urn:ietf:params:acme:error:";
const DETAIL_CHARS_MAX: usize = 400;
const SUBPROBLEMS_MAX: usize = 3;
/// However long it is asked for: nobody is locked out for longer by one answer.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

const MENDS: [(&str, &str); 14] = [
    (
        "accountDoesNotExist",
        "a new account is made at the next attempt",
    ),
    (
        "badSignatureAlgorithm",
        "this certificate authority does not take ECDSA P-256 account keys; choose another",
    ),
    (
        "caa",
        "a CAA record of this name does not allow this certificate authority; add it there, or choose another directory",
    ),
    (
        "connection",
        "check that the name's addresses lead to this listener and that its port is open to the internet: 443 for tls-alpn-01, 80 for http-01",
    ),
    (
        "dns",
        "check the name's A, AAAA and TXT records, as the internet sees them",
    ),
    (
        "externalAccountRequired",
        "add `acme.eab` with what this certificate authority gave you",
    ),
    (
        "incorrectResponse",
        "something else answers for this name; check where its A and AAAA records lead",
    ),
    ("invalidContact", "correct `acme.contact`"),
    (
        "invalidProfile",
        "choose an `acme.profile` that the directory offers, or leave it out",
    ),
    (
        "rateLimited",
        "wait; it is tried again when the certificate authority allows it",
    ),
    (
        "rejectedIdentifier",
        "this certificate authority does not certify this name; correct `hosts`, or choose another directory",
    ),
    (
        "tls",
        "something else ends TLS in front of this listener; let port 443 through as it is, or choose http-01 or a DNS challenge",
    ),
    (
        "unauthorized",
        "what was found for this name is not ours: check where its A and AAAA records lead, or the TXT record for a DNS challenge",
    ),
    ("unsupportedContact", "correct `acme.contact`"),
];

impl Failure {
    /// When the certificate authority wants to be asked again.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let asked = match self {
            Self::Answered { retry_after, .. } => *retry_after,
            Self::Problem(problem) => problem.retry_after,
            _ => None,
        };
        asked.map(|wait| wait.min(RETRY_AFTER_MAX))
    }

    /// A stable word, for the record.
    pub(super) fn code(&self) -> &str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Answered { .. } => "answered",
            Self::Problem(problem) => problem.code(),
            Self::NotAcme { .. } => "not_acme",
            Self::NotOffered { .. } => "challenge_not_offered",
            Self::Slow { .. } => "slow",
            Self::WrongCertificate { .. } => "wrong_certificate",
            Self::Hook(_) => "hook",
            Self::Store(_) => "store",
            Self::NoKey => "no_key",
            Self::Trust(_) => "trust",
        }
    }
}

impl Problem {
    /// What a certificate authority would say to an account without a binding, said before it is asked.
    pub(super) fn binding_needed() -> Self {
        Self {
            kind: format!("{KIND_PREFIX}externalAccountRequired"),
            ..Self::default()
        }
    }

    /// This, with what the head of the answer said about trying again.
    pub(super) fn waiting(self, retry_after: Option<Duration>) -> Self {
        Self {
            retry_after,
            ..self
        }
    }

    pub(super) fn is(&self, kind: &str) -> bool {
        self.kind.strip_prefix(KIND_PREFIX) == Some(kind)
    }

    fn code(&self) -> &str {
        let code = self.kind.strip_prefix(KIND_PREFIX).unwrap_or_default();
        let known = code.bytes().all(|b| b.is_ascii_alphanumeric()) && code.len() <= 64;
        if known && !code.is_empty() {
            code
        } else {
            "problem"
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the certificate authority says {}", self.code())?;
        let subproblems = self.subproblems.iter().take(SUBPROBLEMS_MAX);
        for detail in [&self.detail]
            .into_iter()
            .chain(subproblems.map(|s| &s.detail))
        {
            if !detail.is_empty() {
                write!(f, ": {}", shown(detail))?;
            }
        }
        match MENDS.iter().find(|(kind, _)| self.is(kind)) {
            Some((_, mend)) => write!(f, "; {mend}"),
            None => Ok(()),
        }
    }
}

/// Text from outside as it may stand in a log.
pub(super) fn shown(text: &str) -> String {
    let text = text.trim().chars().take(DETAIL_CHARS_MAX);
    text.map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_shown_with_its_words_and_what_mends_it() {
        let problem: Problem = serde_json::from_str(
            r#"{"type":"urn:ietf:params:acme:error:caa","detail":"CAA record\nforbids","subproblems":[{"detail":"for b.example"}]}"#,
        )
        .unwrap();
        let failure = Failure::Problem(problem);
        assert_eq!(failure.code(), "caa");
        let text = failure.to_string();
        assert!(
            text.starts_with(
                "the certificate authority says caa: CAA record forbids: for b.example; a CAA record"
            ),
            "{text}"
        );
        let strange: Problem = serde_json::from_str(r#"{"type":"urn:x <b>"}"#).unwrap();
        assert_eq!(Failure::Problem(strange).code(), "problem");
    }

    #[test]
    fn nobody_is_asked_to_wait_for_more_than_a_day() {
        let failure = Failure::Answered {
            authority: "ca".to_owned(),
            status: 503,
            retry_after: Some(Duration::from_secs(1 << 40)),
        };
        assert_eq!(failure.retry_after(), Some(RETRY_AFTER_MAX));
    }
}

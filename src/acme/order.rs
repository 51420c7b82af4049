//! One order, read straight down: order, show that the name is ours, ask for the certificate, check what came.
//!
//! Each order has a fresh key. Nothing is kept or served here. Every wait is bounded; whatever was put up to answer a
//! challenge is taken down on every way out.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use crate::addr::Host;
use crate::clock;
use crate::config::typed::{HostPattern, Issuer};

use super::account::Account;
use super::answer::{Answer, Ground, Offered, Record, word};
use super::problem::{Failure, Problem, shown};
use super::transport::Reply;

/// A certificate that came, not checked yet.
pub(super) struct Came {
    /// PEM, leaf first.
    pub(super) chain: String,
    /// PEM.
    pub(super) key: Zeroizing<String>,
    /// How often a challenge was answered by this process.
    pub(super) answers: u64,
}

/// RFC 8555 section 7.1.3.
#[derive(Debug, Deserialize)]
struct Order {
    status: String,
    authorizations: Vec<String>,
    finalize: String,
    certificate: Option<String>,
    error: Option<Problem>,
}

/// RFC 8555 section 7.1.4.
#[derive(Debug, Deserialize)]
struct Authorization {
    status: String,
    #[serde(default)]
    challenges: Vec<Offered>,
}

/// From the first question to the certificate, hooks and their waits included.
const ORDER_LIMIT: Duration = Duration::from_secs(900);
/// For the certificate authority to look at a challenge, and to issue.
const STEP_LIMIT: Duration = Duration::from_secs(180);
const POLL_FIRST: Duration = Duration::from_millis(250);
const POLL_MAX: Duration = Duration::from_secs(5);
/// However long it asks us to wait between two polls.
const POLL_ASKED_MAX: Duration = Duration::from_secs(30);
/// For the other replicas to see a challenge in the store; they look every [`super::tend::LOOK_EVERY`].
const OTHERS_SEE: Duration = Duration::from_secs(5);

/// Orders a certificate for the name of `ground`. `told` is called with a record that a person must have set.
pub(super) async fn order(
    account: &Account,
    issuer: &Issuer,
    ground: &Ground<'_>,
    replaces: Option<&str>,
    told: impl Fn(&Record),
) -> Result<Came, Failure> {
    let whole = whole(account, issuer, ground, replaces, told);
    let done = timeout(ORDER_LIMIT, Box::pin(whole)).await;
    done.unwrap_or(Err(Failure::Slow { what: "the order" }))
}

async fn whole(
    account: &Account,
    issuer: &Issuer,
    ground: &Ground<'_>,
    replaces: Option<&str>,
    told: impl Fn(&Record),
) -> Result<Came, Failure> {
    let reply = place(account, issuer, ground.name, replaces).await?;
    let url = reply.field("location").map(str::to_owned);
    let url = url.ok_or_else(|| reply.not_acme("no order came"))?;
    let mut order: Order = reply.json()?;
    let mut answers = 0;
    for authorization in &order.authorizations {
        answers += show(account, ground, authorization, &told).await?;
    }
    if order.status == "pending" {
        order = until(account, &url, "the order", &["pending"]).await?;
    }
    let (key, request) = request(ground.name).ok_or(Failure::NoKey)?;
    if order.status == "ready" {
        let payload = json!({ "csr": URL_SAFE_NO_PAD.encode(request) });
        let finalized = account.post(&order.finalize, Some(&payload)).await?;
        order = finalized.json()?;
    }
    if order.status != "valid" {
        let busy = ["pending", "ready", "processing"];
        order = until(account, &url, "issuing", &busy).await?;
    }
    let certificate = match (order.status.as_str(), order.error) {
        ("valid", _) => order.certificate.ok_or(Failure::Slow { what: "issuing" })?,
        (_, Some(problem)) => return Err(Failure::Problem(problem)),
        (status, None) => {
            let why = format!("the order became {}", shown(status));
            return Err(reply.not_acme(&why));
        }
    };
    let chain = account.post(&certificate, None).await?;
    let text = String::from_utf8(chain.body.to_vec());
    Ok(Came {
        chain: text.map_err(|_| chain.not_acme("the certificate is not text"))?,
        key,
        answers,
    })
}

/// A new order; without `replaces` if the certificate authority does not like that.
async fn place(
    account: &Account,
    issuer: &Issuer,
    name: &HostPattern,
    replaces: Option<&str>,
) -> Result<Reply, Failure> {
    let url = &account.client.directory.new_order;
    let mut payload = json!({ "identifiers": [identifier(name)] });
    if let Some(profile) = &issuer.profile {
        payload["profile"] = Value::from(profile.as_str());
    }
    if let Some(replaces) = replaces {
        let mut with = payload.clone();
        with["replaces"] = Value::from(replaces);
        match account.post(url, Some(&with)).await {
            Err(Failure::Problem(problem))
                if ["alreadyReplaced", "malformed", "unauthorized"]
                    .iter()
                    .any(|kind| problem.is(kind)) => {}
            placed => return placed,
        }
    }
    account.post(url, Some(&payload)).await
}

/// Shows that the name of one authorization is ours; gives how often that was asked for here.
async fn show(
    account: &Account,
    ground: &Ground<'_>,
    url: &str,
    told: &impl Fn(&Record),
) -> Result<u64, Failure> {
    let authorization: Authorization = account.post(url, None).await?.json()?;
    if authorization.status == "valid" {
        return Ok(0); // shown a while ago
    }
    let wanted = word(ground.way);
    let mut offered = authorization.challenges.iter();
    let Some(offered) = offered.find(|offered| offered.kind == wanted) else {
        let kinds = authorization.challenges.iter().map(|o| shown(&o.kind));
        let offered = kinds.collect::<Vec<_>>().join(", ");
        return Err(Failure::NotOffered { wanted, offered });
    };
    if wanted == "dns-persist-01"
        && let Some(record) = ground.standing(account, offered)
    {
        told(&record);
    }
    let answer = ground.answer(account, offered).await?;
    let shown = ask(account, url, offered, &answer).await;
    let given = answer.given();
    answer.clear().await;
    shown.map(|()| given)
}

/// Has the certificate authority look at a challenge, and waits for its judgement.
async fn ask(
    account: &Account,
    url: &str,
    offered: &Offered,
    answer: &Answer<'_>,
) -> Result<(), Failure> {
    if answer.is_shared() {
        sleep(OTHERS_SEE).await;
    }
    account.post(&offered.url, Some(&json!({}))).await?;
    let judged: Authorization =
        until(account, url, "looking at the challenge", &["pending"]).await?;
    if judged.status == "valid" {
        return Ok(());
    }
    let mut errors = judged.challenges.into_iter().filter_map(|c| c.error);
    Err(match errors.next() {
        Some(problem) => Failure::Problem(problem),
        None => Failure::NotAcme {
            authority: shown(url),
            why: format!("the authorization became {}", shown(&judged.status)),
        },
    })
}

/// What has a status.
trait Status {
    fn status(&self) -> &str;
}

impl Status for Order {
    fn status(&self) -> &str {
        &self.status
    }
}

impl Status for Authorization {
    fn status(&self) -> &str {
        &self.status
    }
}

/// Polls what is at `url` until its status is none of `busy`.
async fn until<T>(
    account: &Account,
    url: &str,
    what: &'static str,
    busy: &[&str],
) -> Result<T, Failure>
where
    T: Status + serde::de::DeserializeOwned,
{
    let begun = clock::now();
    let mut wait = POLL_FIRST;
    loop {
        let reply = account.post(url, None).await?;
        let found: T = reply.json()?;
        if !busy.contains(&found.status()) {
            return Ok(found);
        }
        if begun.elapsed() > STEP_LIMIT {
            return Err(Failure::Slow { what });
        }
        let asked = reply.retry_after().unwrap_or_default();
        sleep(wait.max(asked.min(POLL_ASKED_MAX))).await;
        wait = (wait * 2).min(POLL_MAX);
    }
}

/// What certificate authorities call a name (RFC 8555 section 9.7.7, RFC 8738 section 3).
fn identifier(name: &HostPattern) -> Value {
    match name {
        HostPattern::Exact(Host::Address(address)) => {
            json!({ "type": "ip", "value": address.to_string() })
        }
        HostPattern::Exact(host) => json!({ "type": "dns", "value": host.to_string() }),
        HostPattern::Below(below) => json!({ "type": "dns", "value": format!("*.{below}") }),
    }
}

/// A fresh key, ECDSA P-256, and the request for a certificate of it.
fn request(name: &HostPattern) -> Option<(Zeroizing<String>, Vec<u8>)> {
    let name = match name {
        HostPattern::Exact(host) => host.to_string(),
        HostPattern::Below(below) => format!("*.{below}"),
    };
    let key = KeyPair::generate().ok()?;
    let mut params = CertificateParams::new([name]).ok()?;
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).ok()?;
    Some((Zeroizing::new(key.serialize_pem()), request.der().to_vec()))
}

//! A certificate authority as RFC 8555 describes it: its directory, nonces, and signed requests.
//!
//! A refused nonce is no error: the request is signed again with the one that came back, several times if need be.
//! Written here and not taken from a crate because those at hand lose what we act on: `Retry-After` of errors, the
//! issuer's names of dns-persist-01, and any fourth nonce (docs/decisions/0006).

use std::sync::Arc;

use http::Method;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::config::typed::Issuer;
use crate::reach::{Reach, Trust};

use super::jose::{AccountKey, Signer};
use super::problem::Failure;
use super::transport::{Reply, Transport};

/// Speaks to one certificate authority.
pub(super) struct Client {
    transport: Arc<Transport>,
    pub(super) directory: Directory,
    /// The next one, if the last answer brought it.
    nonce: Mutex<Option<String>>,
}

/// RFC 8555 section 7.1.1, RFC 9773 section 3.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Directory {
    new_nonce: String,
    pub(super) new_account: String,
    pub(super) new_order: String,
    pub(super) revoke_cert: Option<String>,
    pub(super) renewal_info: Option<String>,
    #[serde(default)]
    pub(super) meta: Meta,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meta {
    #[serde(default)]
    pub(super) external_account_required: bool,
}

/// At 20 % refused nonces one request in ten million fails.
const NONCES_MAX: usize = 10;

impl Client {
    /// Fetches the directory of `issuer`.
    pub(super) async fn new(issuer: &Issuer, reach: &Reach) -> Result<Self, Failure> {
        let trust = Trust::new(issuer.ca_file.as_deref());
        let trust = trust.map_err(|error| Failure::Trust(error.to_string()))?;
        let transport = Transport::new(reach.clone(), trust);
        let reply = transport.ask(Method::GET, &issuer.directory, None).await?;
        let directory = reply.good()?.json()?;
        Ok(Self {
            transport,
            directory,
            nonce: Mutex::default(),
        })
    }

    /// A signed request; `payload` of `None` asks for what is at `url`.
    pub(super) async fn post(
        &self,
        key: &AccountKey,
        signer: &Signer<'_>,
        url: &str,
        payload: Option<&Value>,
    ) -> Result<Reply, Failure> {
        let mut left = NONCES_MAX;
        loop {
            let nonce = self.nonce().await?;
            let body = key.signed(signer, &nonce, url, payload);
            let body = body.ok_or(Failure::NoKey)?;
            let reply = self.transport.ask(Method::POST, url, Some(body)).await?;
            if let Some(next) = reply.field("replay-nonce") {
                *self.nonce.lock().await = Some(next.to_owned());
            }
            match reply.good() {
                Err(Failure::Problem(problem)) if problem.is("badNonce") && left > 1 => left -= 1,
                answered => return answered,
            }
        }
    }

    /// What anybody may read, without a signature.
    pub(super) async fn get(&self, url: &str) -> Result<Reply, Failure> {
        self.transport.ask(Method::GET, url, None).await?.good()
    }

    async fn nonce(&self) -> Result<String, Failure> {
        if let Some(nonce) = self.nonce.lock().await.take() {
            return Ok(nonce);
        }
        let url = &self.directory.new_nonce;
        let reply = self.transport.ask(Method::HEAD, url, None).await?.good()?;
        let nonce = reply.field("replay-nonce").map(str::to_owned);
        nonce.ok_or_else(|| reply.not_acme("no nonce came"))
    }
}

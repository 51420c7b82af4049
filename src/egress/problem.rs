//! A refusal as an HTTP answer: problem details (RFC 9457) and `Proxy-Status` (RFC 9209).
//!
//! It tells the reason and the identifier of the ask, and no address that a name resolved to; in the first line too,
//! because many clients show nothing else of a refused CONNECT.

use std::net::IpAddr;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, PROXY_AUTHENTICATE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use hyper::ext::ReasonPhrase;

use crate::clock::Id;
use crate::limit::Over;
use crate::outcome::Refusal;

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Why not, and when it makes sense to try again.
#[derive(Clone, Copy)]
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    /// Whole seconds.
    retry_after: Option<u64>,
    /// What the firewall there has to allow: our addresses as the outside sees them.
    seen_as: [Option<IpAddr>; 2],
}

impl Refused {
    /// With the addresses that the destination was dialled from.
    pub(super) fn dialled_from(refusal: Refusal, seen_as: [Option<IpAddr>; 2]) -> Self {
        Self {
            seen_as,
            ..refusal.into()
        }
    }

    /// What is the matter and what mends it. The only addresses it can tell are those that the outside sees anyway.
    fn says(&self) -> String {
        let seen: Vec<_> = self
            .seen_as
            .iter()
            .flatten()
            .map(IpAddr::to_string)
            .collect();
        if self.refusal == Refusal::DialTimeout && !seen.is_empty() {
            return format!(
                "the destination did not answer; the firewall there has probably not allowed {}",
                seen.join(" and ")
            );
        }
        self.refusal.says().to_owned()
    }

    /// The same as one line for whoever sees nothing else, with what finds it in the log.
    pub(super) fn line(&self, id: Id) -> String {
        format!("egress: {} (request id {id})", self.says())
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let soon = refusal.status() == StatusCode::SERVICE_UNAVAILABLE.as_u16();
        Self {
            refusal,
            retry_after: soon.then_some(1),
            seen_as: [None; 2],
        }
    }
}

impl From<Over> for Refused {
    fn from(over: Over) -> Self {
        Self {
            retry_after: Some(over.retry_after.as_secs()),
            ..Refusal::RateLimited.into()
        }
    }
}

/// The whole answer; the connection is closed after it.
pub(super) fn problem(id: Id, refused: impl Into<Refused>) -> Response<Full<Bytes>> {
    let refused = refused.into();
    let Refused {
        refusal,
        retry_after,
        ..
    } = refused;
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let body = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": refused.says(),
        "code": refusal.code(),
        "request_id": id.to_string(),
    });
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    if let Ok(reason) = ReasonPhrase::try_from(refused.line(id).into_bytes()) {
        response.extensions_mut().insert(reason);
    }
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let (error, code) = (refusal.proxy_status(), refusal.code());
    let text = format!("tollgate; error={error}; details=\"{code}\"");
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(PROXY_STATUS, value);
    }
    if let Some(seconds) = retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if refusal == Refusal::CredentialsRequired {
        let basic = HeaderValue::from_static("Basic realm=\"tollgate\", charset=\"UTF-8\"");
        headers.insert(PROXY_AUTHENTICATE, basic);
    }
    response
}

//! A refusal as an HTTP answer: problem details (RFC 9457) and `Proxy-Status` (RFC 9209).
//!
//! It tells the reason and the identifier of the ask, and no address that a name resolved to.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, PROXY_AUTHENTICATE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;

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
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let soon = refusal.status() == StatusCode::SERVICE_UNAVAILABLE.as_u16();
        Self {
            refusal,
            retry_after: soon.then_some(1),
        }
    }
}

impl From<Over> for Refused {
    fn from(over: Over) -> Self {
        Self {
            refusal: Refusal::RateLimited,
            retry_after: Some(over.retry_after.as_secs()),
        }
    }
}

/// The whole answer; the connection is closed after it.
pub(super) fn problem(id: Id, refused: impl Into<Refused>) -> Response<Full<Bytes>> {
    let Refused {
        refusal,
        retry_after,
    } = refused.into();
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let body = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": refusal.says(),
        "code": refusal.code(),
        "request_id": id.to_string(),
    });
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
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

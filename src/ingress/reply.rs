//! Our own answers: `application/problem+json` (RFC 9457), short, with the request id and nothing internal.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};

use crate::clock::Id;
use crate::outcome::Refusal;

/// A refusal, and what the client should know beside it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    /// Whole seconds after which trying again makes sense.
    pub(super) retry_after: Option<u64>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let soon = matches!(
            refusal,
            Refusal::AuditUnavailable
                | Refusal::ClientSessionLimit
                | Refusal::Draining
                | Refusal::SessionLimit
        );
        Self {
            refusal,
            retry_after: soon.then_some(1),
        }
    }
}

/// The answer to a refused or failed request. `close`: it cannot be followed by another one on its connection.
pub(super) fn problem(refused: Refused, id: &HeaderValue, close: bool) -> Response<Bytes> {
    let Refused {
        refusal,
        retry_after,
    } = refused;
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let text = text(refusal, status, id);
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.reserve(6);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-request-id", id.clone());
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// An answer where there is no request, in the form of HTTP/1.1.
pub(super) fn last_words(refusal: Refusal) -> Bytes {
    let (head, text) = problem(refusal.into(), &id_value(Id::new()), true).into_parts();
    let mut bytes = format!("HTTP/1.1 {}\r\n", head.status).into_bytes();
    for (name, value) in &head.headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", text.len()).as_bytes());
    bytes.extend_from_slice(&text);
    bytes.into()
}

/// Every part is ours and needs no escape: a test reads them all.
fn text(refusal: Refusal, status: StatusCode, id: &HeaderValue) -> Bytes {
    let text = format!(
        r#"{{"type":"about:blank","title":"{}","status":{},"detail":"{}","code":"{}","request_id":"{}"}}"#,
        status.canonical_reason().unwrap_or_default(),
        status.as_u16(),
        refusal.says(),
        refusal.code(),
        id.to_str().unwrap_or_default(),
    );
    (text + "\n").into()
}

/// The identifier of an entry as a field value.
pub(super) fn id_value(id: Id) -> HeaderValue {
    HeaderValue::from_str(id.encode(&mut [0; 36])).unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_json_and_says_what_it_is() {
        for refusal in Refusal::ALL {
            let id = id_value(Id::new());
            let response = problem((*refusal).into(), &id, true);
            let read: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(read["code"], refusal.code());
            assert_eq!(read["status"], refusal.status());
            assert_eq!(read["request_id"], id.to_str().unwrap());
            assert_eq!(response.status().as_u16(), refusal.status());
        }
    }

    #[test]
    fn a_request_that_could_not_be_recorded_may_come_again_soon() {
        let response = problem(
            Refusal::AuditUnavailable.into(),
            &id_value(Id::new()),
            false,
        );
        assert_eq!(response.headers()["retry-after"], "1");
        assert!(!response.headers().contains_key("connection"));
    }
}

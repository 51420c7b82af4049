//! Requests to a certificate authority: HTTP/1.1 over TLS, one connection kept between them.
//!
//! Only `https` is spoken, whatever a directory says; heads and bodies are bounded, and so is the time of a request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use jiff::fmt::rfc2822;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::addr::{Destination, Host};
use crate::clock;
use crate::reach::{Reach, Trust};
use crate::workers;

use super::problem::{Failure, Problem, shown};

/// One certificate authority's end of the line.
pub(super) struct Transport {
    reach: Reach,
    trust: Trust,
    /// The last connection, and to whom.
    kept: Mutex<Option<(Destination, SendRequest<Full<Bytes>>)>>,
}

/// What came back, whole.
pub(super) struct Reply {
    /// Who was asked.
    pub(super) authority: String,
    pub(super) status: StatusCode,
    pub(super) fields: HeaderMap,
    pub(super) body: Bytes,
}

/// For a whole request and its answer.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// A chain of certificates is a twentieth of it.
const BODY_BYTES_MAX: usize = 256 * 1024;
const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("tollgate/", env!("CARGO_PKG_VERSION")));
const JOSE: HeaderValue = HeaderValue::from_static("application/jose+json");

impl Transport {
    pub(super) fn new(reach: Reach, trust: Trust) -> Arc<Self> {
        let kept = Mutex::default();
        Arc::new(Self { reach, trust, kept })
    }

    /// Sends `body` to `url`, or asks for it without one.
    pub(super) async fn ask(
        &self,
        method: Method,
        url: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Reply, Failure> {
        let (to, request) = request(method, url, body)?;
        let authority = to.to_string();
        let asked = timeout(REQUEST_LIMIT, self.exchange(to, request)).await;
        let answered = asked.unwrap_or_else(|_| Err("it did not answer in time".to_owned()));
        let (status, fields, body) = answered.map_err(|why| Failure::Unreachable {
            authority: authority.clone(),
            why,
        })?;
        Ok(Reply {
            authority,
            status,
            fields,
            body,
        })
    }

    async fn exchange(
        &self,
        to: Destination,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, HeaderMap, Bytes), String> {
        let mut sender = self.sender(&to).await?;
        let text = |error: hyper::Error| shown(&error.to_string());
        let response = sender.send_request(request).await.map_err(text)?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| shown(&error.to_string()))?.to_bytes();
        *self.kept.lock().await = Some((to, sender)); // whole: the connection can be used again
        Ok((parts.status, parts.headers, body))
    }

    /// The kept connection, taken, or a new one.
    async fn sender(&self, to: &Destination) -> Result<SendRequest<Full<Bytes>>, String> {
        if let Some((whom, mut sender)) = self.kept.lock().await.take()
            && whom == *to
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        let io = self.reach.connect_tls(to, &self.trust).await;
        let io = io.map_err(|error| shown(&error.to_string()))?;
        let shaken = handshake(TokioIo::new(io)).await;
        let (sender, connection) = shaken.map_err(|error| error.to_string())?;
        workers::spawn(async move {
            connection.await.ok(); // whoever waits for an answer is told
        });
        Ok(sender)
    }
}

impl Reply {
    /// This, unless it is an error.
    pub(super) fn good(self) -> Result<Self, Failure> {
        if self.status.is_success() {
            return Ok(self);
        }
        let retry_after = self.retry_after();
        let (authority, status) = (self.authority, self.status.as_u16());
        let kind = self.fields.get(header::CONTENT_TYPE);
        let problem =
            kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
        match serde_json::from_slice::<Problem>(&self.body) {
            Ok(read) if problem => Err(Failure::Problem(read.waiting(retry_after))),
            Ok(_) | Err(_) => Err(Failure::Answered {
                authority,
                status,
                retry_after,
            }),
        }
    }

    /// The body, read.
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| self.not_acme(&error.to_string()))
    }

    /// One field of the head.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.to_str().ok()
    }

    pub(super) fn not_acme(&self, why: &str) -> Failure {
        Failure::NotAcme {
            authority: self.authority.clone(),
            why: shown(why),
        }
    }

    /// `Retry-After` (RFC 9110 section 10.2.3): seconds, or a date.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let text = self.field("retry-after")?.trim();
        if let Ok(seconds) = text.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let at = rfc2822::parse(text).ok()?.timestamp().as_second();
        let now = clock::wall_ns() / 1_000_000_000;
        Some(Duration::from_secs(
            u64::try_from(at).ok()?.saturating_sub(now),
        ))
    }
}

fn request(
    method: Method,
    url: &str,
    body: Option<Vec<u8>>,
) -> Result<(Destination, Request<Full<Bytes>>), Failure> {
    let wrong = |why: &str| Failure::NotAcme {
        authority: shown(url),
        why: why.to_owned(),
    };
    let uri: Uri = url.parse().map_err(|_| wrong("not a URL"))?;
    if uri.scheme_str() != Some("https") {
        return Err(wrong("not an https URL"));
    }
    let host = uri.host().and_then(|host| Host::parse(host).ok());
    let to = Destination {
        host: host.ok_or_else(|| wrong("not the URL of a host"))?,
        port: uri.port_u16().unwrap_or(443),
    };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, authority)
        .header(header::USER_AGENT, AGENT);
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, JOSE);
    }
    let body = Full::new(Bytes::from(body.unwrap_or_default()));
    let request = request
        .body(body)
        .map_err(|_| wrong("not the URL of a host"))?;
    Ok((to, request))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, field: (&'static str, &'static str), body: &'static str) -> Reply {
        let mut fields = HeaderMap::new();
        fields.insert(field.0, HeaderValue::from_static(field.1));
        Reply {
            authority: "ca.example:443".to_owned(),
            status: StatusCode::from_u16(status).unwrap(),
            fields,
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn waiting_is_asked_for_in_seconds_or_by_a_date() {
        let wait = |text| reply(503, ("retry-after", text), "").retry_after();
        assert_eq!(wait("120"), Some(Duration::from_secs(120)));
        assert_eq!(wait("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
        let far = wait("Tue, 31 Dec 2199 23:59:59 GMT").unwrap();
        assert!(far > Duration::from_secs(1 << 31), "{far:?}");
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn an_error_without_a_problem_is_told_by_its_status() {
        let page = reply(502, ("content-type", "text/html"), "<html>").good();
        assert!(matches!(page, Err(Failure::Answered { status: 502, .. })));
        let kind = ("content-type", "application/problem+json");
        let body = r#"{"type":"urn:ietf:params:acme:error:rateLimited"}"#;
        let Err(Failure::Problem(problem)) = reply(429, kind, body).good() else {
            panic!("a problem document is one")
        };
        assert!(problem.is("rateLimited"));
    }

    #[test]
    fn nothing_but_https_is_asked() {
        for url in [
            "http://ca.example/",
            "ca.example",
            "https://",
            "file:///etc/passwd",
        ] {
            assert!(request(Method::GET, url, None).is_err(), "{url}");
        }
        let (to, request) = request(Method::GET, "https://[::1]:8443/a?b", None).unwrap();
        assert_eq!(
            (to.port, request.uri().to_string()),
            (8443, "/a?b".to_owned())
        );
    }
}

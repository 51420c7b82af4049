//! What changes in a head on its way through the proxy (RFC 9110 section 7.6).
//!
//! Fields for one hop only are removed, those that `Connection` names included; `Via` tells who passed it on, and is how
//! a request that comes round again is known. Trailers pass: `Trailer` stays, and `TE` is asked anew for them alone.

use std::sync::OnceLock;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::uri::{PathAndQuery, Uri};
use http::{Request, Response, Version};

use super::HTTP_PORT;
use crate::addr::Destination;
use crate::clock;
use crate::outcome::Refusal;

const ONE_HOP: [HeaderName; 10] = [
    CONNECTION,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-status"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Refuses a request that has been here before, and one that wants a websocket: through CONNECT that works.
pub(super) fn acceptable(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut passed = headers.get_all(VIA).iter();
    if passed.any(|via| via.to_str().is_ok_and(|via| via.contains(pseudonym()))) {
        return Err(Refusal::LoopDetected);
    }
    let websocket = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    if headers.get_all(UPGRADE).iter().any(websocket) {
        return Err(Refusal::Unsupported);
    }
    Ok(())
}

/// Makes a request for the proxy one for the destination: origin-form, with its own `Host`.
pub(super) fn towards<B>(request: &mut Request<B>, destination: &Destination) {
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or(PathAndQuery::from_static("/")));
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    let trailers = takes_trailers(headers);
    strip(headers);
    headers.remove(EXPECT); // hyper has answered it
    let mut host = destination.to_string();
    if destination.port == HTTP_PORT
        && let Some(short) = host.strip_suffix(":80")
    {
        host.truncate(short.len());
    }
    if let Ok(host) = HeaderValue::try_from(host) {
        headers.insert(HOST, host);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("close, te"));
    } else {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    via(headers);
}

/// Makes a destination's answer one for the client.
pub(super) fn back<B>(response: &mut Response<B>) {
    *response.version_mut() = Version::HTTP_11;
    let headers = response.headers_mut();
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH); // it is not the length of what came (RFC 9112 section 6.3)
    }
    strip(headers);
    via(headers);
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(TE).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&ONE_HOP) {
        headers.remove(name);
    }
}

fn via(headers: &mut HeaderMap) {
    if let Ok(value) = HeaderValue::try_from(format!("1.1 {}", pseudonym())) {
        headers.append(VIA, value);
    }
}

/// Ours alone: another process of the same program is not a loop.
fn pseudonym() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let mut bytes = [0; 8];
        clock::draw(&mut bytes);
        format!("tollgate-{:016x}", u64::from_be_bytes(bytes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&'static str, &str)]) -> Request<()> {
        let mut request = Request::new(());
        *request.uri_mut() = "http://db.example.com:8080/a?b=c".parse().unwrap();
        for (name, value) in fields {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        request
    }

    #[test]
    fn fields_for_one_hop_stay_here() {
        let mut request = request(&[
            ("host", "other.example.com"),
            ("connection", "keep-alive, X-Secret"),
            ("connection", "x-more"),
            ("x-secret", "1"),
            ("x-more", "1"),
            ("proxy-authorization", "Basic eA=="),
            ("proxy-connection", "keep-alive"),
            ("te", "deflate, Trailers"),
            ("expect", "100-continue"),
            ("authorization", "Bearer stays"),
            ("x-stays", "1"),
        ]);
        towards(
            &mut request,
            &Destination::parse("db.example.com:8080").unwrap(),
        );
        assert_eq!(request.uri(), "/a?b=c");
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "authorization",
                "connection",
                "host",
                "te",
                "via",
                "x-stays"
            ]
        );
        assert_eq!(request.headers()[HOST], "db.example.com:8080");
        assert_eq!(request.headers()[CONNECTION], "close, te");
    }

    #[test]
    fn the_usual_port_is_not_named() {
        let mut request = request(&[]);
        towards(
            &mut request,
            &Destination::parse("db.example.com:80").unwrap(),
        );
        assert_eq!(request.headers()[HOST], "db.example.com");
        towards(
            &mut request,
            &Destination::parse("[2001:db8::1]:80").unwrap(),
        );
        assert_eq!(request.headers()[HOST], "[2001:db8::1]");
    }

    #[test]
    fn loops_and_websockets_are_refused() {
        let mut once = request(&[]);
        assert_eq!(acceptable(once.headers()), Ok(()));
        towards(&mut once, &Destination::parse("db.example.com:80").unwrap());
        assert_eq!(acceptable(once.headers()), Err(Refusal::LoopDetected));
        assert_eq!(
            acceptable(request(&[("via", "1.1 tollgate-0")]).headers()),
            Ok(())
        );
        let ws = request(&[("upgrade", "WebSocket")]);
        assert_eq!(acceptable(ws.headers()), Err(Refusal::Unsupported));
        assert_eq!(acceptable(request(&[("upgrade", "h2c")]).headers()), Ok(()));
    }
}

//! The head of an HTTP request or response: one host, one path, and no field that belongs to another connection.
//!
//! Pure functions over what hyper has parsed. hyper itself refuses what is not HTTP, a length that contradicts itself
//! and a chunked body that is not; of a length beside `Transfer-Encoding` it keeps only the latter and closes
//! afterwards. What stands here is the rest: two readers of the same head must never see two different requests.

use std::borrow::Cow;

use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version, request};

use crate::addr::Host;
use crate::outcome::Refusal;

/// Bytes of a request target.
pub const URI_BYTES_MAX: usize = 8 * 1024;
/// Header fields of a request, each cookie piece counted.
pub const FIELDS_MAX: usize = 100;
/// Bytes of a request head.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Whom a request is addressed to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authority {
    pub host: Host,
    /// The host as text, for the record.
    pub name: Box<str>,
    /// Canonical host, with the port if one was given: what is forwarded as `Host`.
    pub value: HeaderValue,
}

impl Authority {
    /// Reads `host` or `host:port`; user information and an empty port are refused.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        if host.contains(':') && !host.starts_with('[') {
            return Err(Refusal::Malformed);
        }
        let host = Host::parse(host).map_err(|_| Refusal::Malformed)?;
        let name = host.to_string();
        let shown = match &host {
            Host::Address(address) if address.is_ipv6() => Cow::Owned(format!("[{name}]")),
            _ => Cow::Borrowed(&*name),
        };
        let value = match port {
            None => HeaderValue::from_str(&shown),
            Some(port) => HeaderValue::from_str(&format!("{shown}:{}", digits(port)?)),
        };
        Ok(Self {
            host,
            value: value.map_err(|_| Refusal::Malformed)?,
            name: name.into(),
        })
    }
}

/// A port without sign or leading zero: 1 to 65535.
fn digits(port: &str) -> Result<u16, Refusal> {
    let plain = port.bytes().all(|b| b.is_ascii_digit()) && !port.starts_with('0');
    let port = port.parse().ok().filter(|_| plain);
    port.ok_or(Refusal::Malformed)
}

/// The one authority that a head names, as it was written. `None` only for HTTP/1.0, which may name none.
pub fn authority(parts: &request::Parts) -> Result<Option<&str>, Refusal> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(Refusal::Malformed),
        (None, None) => None,
        (Some(host), None) => Some(host.to_str().map_err(|_| Refusal::Malformed)?),
    };
    match (parts.uri.authority(), host) {
        (None, None) if parts.version < Version::HTTP_11 => Ok(None),
        (None, None) => Err(Refusal::Malformed),
        (None, Some(host)) => Ok(Some(host)),
        (Some(target), None) => Ok(Some(target.as_str())),
        (Some(target), Some(host)) => {
            let same = target.as_str() == host
                || Authority::parse(target.as_str())? == Authority::parse(host)?;
            if same {
                Ok(Some(host))
            } else {
                Err(Refusal::Malformed)
            }
        }
    }
}

/// Everything about a head that does not depend on a route.
pub fn check(parts: &request::Parts) -> Result<(), Refusal> {
    if parts.headers.len() > FIELDS_MAX {
        return Err(Refusal::HeadTooLarge);
    }
    if matches!(parts.method, Method::CONNECT | Method::TRACE) {
        return Err(Refusal::Unsupported);
    }
    let target = parts
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str());
    if target.len() > URI_BYTES_MAX {
        return Err(Refusal::UriTooLong);
    }
    let asterisk = target == "*" && parts.method == Method::OPTIONS;
    if !(target.starts_with('/') || asterisk) || target.bytes().any(|b| b < b'!' || b == 0x7f) {
        return Err(Refusal::Malformed);
    }
    if parts
        .uri
        .scheme_str()
        .is_some_and(|s| s != "https" && s != "http")
    {
        return Err(Refusal::Malformed);
    }
    check_framing(&parts.headers)
}

/// One length; and no transfer coding but `chunked`, once: another one would be taken off the head and stay on the body.
fn check_framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let chunked = is_chunked(headers).ok_or(Refusal::Malformed)?;
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(_), None) if !chunked => Ok(()),
        _ => Err(Refusal::Malformed),
    }
}

/// Whether a body comes in chunks; `None` if it is coded in another way, which nobody asked for and we would not undo.
pub fn is_chunked(headers: &HeaderMap) -> Option<bool> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Some(false),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Some(true),
        _ => None,
    }
}

/// The path as a more generous reader would take it (escapes decoded, slashes merged, `;` parameters of segments left
/// out), if that differs.
///
/// A path with `.` or `..` segments, plain or escaped, with a backslash or with an escaped NUL is refused: clients
/// resolve them before they send, so only somebody who wants two readers to disagree writes them.
pub fn generous(path: &str) -> Result<Option<String>, Refusal> {
    let suspicious = |b: u8| matches!(b, b'%' | b'\\' | b'.' | b';');
    if !path.bytes().any(suspicious) && !path.contains("//") {
        return Ok(None);
    }
    let mut read = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    let mut parameter = false;
    while let Some(byte) = rest.next() {
        let byte = match (byte, escaped(rest.clone())) {
            (b'%', Some(decoded)) => {
                rest.nth(1);
                decoded
            }
            _ => byte,
        };
        if byte == 0 || byte == b'\\' {
            return Err(Refusal::Malformed);
        }
        parameter = byte != b'/' && (parameter || byte == b';');
        if !parameter && (byte != b'/' || read.last() != Some(&b'/')) {
            read.push(byte);
        }
    }
    let read = String::from_utf8_lossy(&read).into_owned();
    if read.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(Refusal::Malformed);
    }
    Ok((read != path).then_some(read))
}

/// The byte that two hexadecimal digits stand for.
fn escaped(mut digits: std::str::Bytes<'_>) -> Option<u8> {
    let mut digit = || {
        char::from(digits.next()?)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    Some(digit()? << 4 | digit()?)
}

/// Whether a head asks for a websocket: the only upgrade that is forwarded.
pub fn asks_for_websocket(parts: &request::Parts) -> bool {
    let Some(upgrade) = parts.headers.get(header::UPGRADE) else {
        return false;
    };
    parts.version == Version::HTTP_11
        && parts.method == Method::GET
        && upgrade.as_bytes().eq_ignore_ascii_case(b"websocket")
        && options(&parts.headers).any(|option| option.eq_ignore_ascii_case("upgrade"))
}

/// The options of every `Connection` field.
fn options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let fields = headers.get_all(header::CONNECTION).iter();
    fields
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Removes from a request what belongs to the client's connection (RFC 9110 section 7.6.1) and every field from which
/// an upstream could believe a client address, host, scheme or identifier that we did not set.
pub fn clean_request(headers: &mut HeaderMap) {
    let trailers = headers.get_all(header::TE).iter().any(|te| {
        let te = te.to_str().unwrap_or_default();
        te.split(',')
            .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
    });
    clean(headers, |name| of_connection(name) || believed(name));
    headers.remove(header::EXPECT); // answered by us, when the body is read
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes from a response what belongs to the upstream's connection. A length beside chunks counts for nothing
/// (RFC 9112 section 6.3), and passed on it would cut the body.
pub fn clean_response(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    clean(headers, of_connection);
}

/// Removes from the trailers of a request what [`clean_request`] removes from its head: a server may merge the two.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    clean(trailers, |name| of_connection(name) || believed(name));
}

fn clean(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let named = options(headers)
        .filter(|option| !matches!(*option, "close" | "keep-alive" | "Keep-Alive" | ""))
        .filter_map(|option| HeaderName::from_bytes(option.as_bytes()).ok());
    let mut doomed: Vec<HeaderName> = named.collect();
    doomed.extend(
        headers
            .keys()
            .filter(|name| unwanted(&plain(name.as_str())))
            .cloned(),
    );
    for name in doomed {
        headers.remove(name);
    }
}

/// A field name as servers read it that take `_`, `.` and whatever else is neither letter nor digit for `-`. Names such
/// as `tj_auth_token` stay themselves unless what they would be read as is unwanted.
fn plain(name: &str) -> Cow<'_, str> {
    let other = |c: char| !c.is_ascii_alphanumeric() && c != '-';
    if name.contains(other) {
        let read = name.replace(other, "-");
        match &*read {
            // what frames or addresses a message must have no alias at all: gone with what is of the connection
            "content-length" | "host" => Cow::Borrowed("transfer-encoding"),
            _ => Cow::Owned(read),
        }
    } else {
        Cow::Borrowed(name)
    }
}

fn of_connection(name: &str) -> bool {
    matches!(
        name,
        "connection" | "keep-alive" | "te" | "transfer-encoding" | "upgrade" | "http2-settings"
    ) || name.starts_with("proxy-")
}

/// The eleven fields that the `request-ip` package reads, and what else tells about the hop before us or stands in for
/// the host, the scheme or the path that we judged, or for a receipt of ours.
fn believed(name: &str) -> bool {
    matches!(
        name,
        "x-client-ip"
            | "x-forwarded-for"
            | "cf-connecting-ip"
            | "fastly-client-ip"
            | "true-client-ip"
            | "x-real-ip"
            | "x-cluster-client-ip"
            | "x-forwarded"
            | "forwarded-for"
            | "forwarded"
            | "x-appengine-user-ip"
            | "x-forwarded-proto"
            | "x-forwarded-host"
            | "x-forwarded-port"
            | "x-forwarded-scheme"
            | "x-forwarded-server"
            | "x-forwarded-ssl"
            | "x-url-scheme"
            | "front-end-https"
            | "x-host"
            | "x-original-host"
            | "x-original-url"
            | "x-rewrite-url"
            | "client-ip"
            | "x-request-id"
            | "tollgate-receipt"
    ) || certifies(name)
}

/// What servers take for a client certificate that the hop before them has verified (RFC 9440), and what other proxies
/// call it.
fn certifies(name: &str) -> bool {
    const BEGINNINGS: [&str; 6] = [
        "client-cert",
        "ssl-client-",
        "x-client-cert",
        "x-forwarded-client-cert",
        "x-forwarded-tls-client-cert",
        "x-ssl-client-",
    ];
    BEGINNINGS.iter().any(|begin| name.starts_with(begin))
}

/// Joins cookie pieces, which HTTP/2 may send apart, to the one field of HTTP/1.1 (RFC 9113 section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let Entry::Occupied(cookies) = headers.entry(header::COOKIE) else {
        return;
    };
    if cookies.iter().nth(1).is_none() {
        return;
    }
    let pieces: Vec<_> = cookies.iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    fn parts(uri: &str, fields: &[(&str, &str)]) -> request::Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn an_authority_has_one_form() {
        for (text, name, value) in [
            (
                "Tools.Example.com",
                "tools.example.com",
                "tools.example.com",
            ),
            (
                "tools.example.com.:8443",
                "tools.example.com",
                "tools.example.com:8443",
            ),
            ("[2001:DB8::1]:443", "2001:db8::1", "[2001:db8::1]:443"),
            ("[2001:db8::1]", "2001:db8::1", "[2001:db8::1]"),
            ("192.0.2.1:80", "192.0.2.1", "192.0.2.1:80"),
        ] {
            let read = Authority::parse(text).unwrap();
            assert_eq!((&*read.name, read.value.to_str().unwrap()), (name, value));
        }
        for text in [
            "",
            ":80",
            "a:",
            "a:0",
            "a:080",
            "a:+80",
            "a:65536",
            "a:b:80",
            "2001:db8::1",
            "u@a",
            "a b",
            "a/",
            "a,b",
            "[::1",
            "[::1]x",
            "[::1]:",
            "a:80:",
            "127.1",
            "0x7f000001",
            "a\\b",
        ] {
            assert_eq!(Authority::parse(text), Err(Refusal::Malformed), "{text:?}");
        }
    }

    #[test]
    fn target_and_host_must_agree() {
        let of = |uri, hosts: &[&str]| {
            let fields: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            authority(&parts(uri, &fields)).map(|found| found.map(str::to_owned))
        };
        assert_eq!(of("/", &["a"]), Ok(Some("a".into())));
        assert_eq!(of("https://a/", &[]), Ok(Some("a".into())));
        assert_eq!(of("https://A:443/", &["a:443"]), Ok(Some("a:443".into())));
        assert_eq!(of("https://a/", &["b"]), Err(Refusal::Malformed));
        assert_eq!(of("https://a:8443/", &["a"]), Err(Refusal::Malformed));
        assert_eq!(of("/", &["a", "a"]), Err(Refusal::Malformed));
        assert_eq!(of("/", &[]), Err(Refusal::Malformed));
    }

    #[test]
    fn a_generous_reader_is_foreseen() {
        for (path, read) in [
            ("/a/b", None),
            ("/a.b/.well-known/x..y", None),
            ("/a;x=1", Some("/a")),
            ("/a;x=1/b;/c", Some("/a/b/c")),
            ("/;x/a%3By/b", Some("/a/b")),
            ("/a//b", Some("/a/b")),
            ("/%61pi/", Some("/api/")),
            ("/a%2fb", Some("/a/b")),
            ("/a%2F%2fb", Some("/a/b")),
            ("/a%zz%4", None),
            ("/%2561", Some("/%61")),
        ] {
            assert_eq!(generous(path), Ok(read.map(str::to_owned)), "{path}");
        }
        for path in [
            "/..",
            "/.",
            "/a/./b",
            "/%2e%2E/a",
            "/a/..;/b",
            "/a/.%3b/b",
            "/a%2f..",
            "/a\\b",
            "/a%5cb",
            "/a%00b",
        ] {
            assert_eq!(generous(path), Err(Refusal::Malformed), "{path}");
        }
    }

    #[test]
    fn aliases_go_and_other_underscores_stay() {
        let mut headers = parts(
            "/",
            &[
                ("x_forwarded_for", "1"),
                ("X-Real_IP", "1"),
                ("x.client.ip", "1"),
                ("x!forwarded~for", "1"),
                ("content*length", "1"),
                ("content_length", "1"),
                ("transfer_encoding", "1"),
                ("proxy_connection", "1"),
                ("tj_auth_token", "1"),
                ("x.y", "1"),
                ("x-forwarded-for-me", "1"),
            ],
        )
        .headers;
        clean_request(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["tj_auth_token", "x-forwarded-for-me", "x.y"]);
    }

    #[test]
    fn only_a_plain_websocket_request_is_one() {
        let ask = |upgrade, connection| {
            asks_for_websocket(&parts(
                "/",
                &[("upgrade", upgrade), ("connection", connection)],
            ))
        };
        assert!(ask("websocket", "Upgrade"));
        assert!(ask("WebSocket", "keep-alive, upgrade"));
        assert!(!ask("websocket", "keep-alive"));
        assert!(!ask("h2c", "upgrade"));
        assert!(!ask("websocket, h2c", "upgrade"));
    }

    proptest! {
        #[test]
        fn what_a_generous_reader_sees_has_nothing_left_to_read(path in "/[a-c./%0-9e;\\\\]{0,30}") {
            if let Ok(Some(read)) = generous(&path) {
                prop_assert!(!read.contains("//") && !read.split('/').any(|s| s == "." || s == ".."), "{}", read);
            }
        }

        #[test]
        fn no_host_surprises_it(text in "\\PC{0,40}") {
            if let Ok(read) = Authority::parse(&text) {
                prop_assert_eq!(Authority::parse(read.value.to_str().unwrap()), Ok(read.clone()));
            }
        }
    }
}

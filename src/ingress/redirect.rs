//! Port 80: sends browsers to HTTPS, and serves nothing.
//!
//! Only hosts that the configuration names are sent anywhere; no other host is ever repeated.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, request};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::addr::Host;
use crate::clock::Id;
use crate::config::typed::HostPattern;
use crate::outcome::Refusal;
use crate::policy::allow_list::Client;
use crate::sessions::Session;
use crate::snapshot::Snapshot;
use crate::wire::http::{Authority, FIELDS_MAX, HEAD_BYTES_MAX, authority, check};

use super::Ingress;
use super::pulse::{Pulse, Timed};
use super::reply::{id_value, problem};
use super::visitor::entrance;

impl Ingress {
    /// Answers one request of a client that came to a plain listener, then closes.
    pub(super) async fn redirect_client(
        &self,
        tcp: TcpStream,
        client: Client,
        session: Session,
        listen: SocketAddr,
    ) {
        let pulse = Pulse::new(self.timers.head, self.timers.head);
        pulse.serve(false, self.timers.head);
        let service = service_fn(|request: Request<Incoming>| {
            let answer = self.send_to_https(&request.into_parts().0, client, listen);
            async { Ok::<_, Infallible>(answer) }
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .keep_alive(false)
            .max_headers(FIELDS_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(Timed::new(tcp, Arc::clone(&pulse))), service);
        let over = tokio::select! {
            over = &mut connection => over,
            () = session.ended() => return,
            () = session.asked_to_leave() => {
                Pin::new(&mut connection).graceful_shutdown();
                connection.await
            }
        };
        if over.is_err()
            && let Some(refusal) = pulse.expired()
        {
            self.turn_away(listen, client.address(), refusal, "", None);
        }
    }

    /// What answers a challenge of a certificate authority.
    fn challenge(
        &self,
        snapshot: &Snapshot,
        parts: &request::Parts,
        client: Client,
        listen: SocketAddr,
    ) -> Option<Response<Bytes>> {
        let challenges = entrance(snapshot, listen)?.tls.challenges()?;
        if parts.method != Method::GET {
            return None;
        }
        let given = challenges.answer_http(parts.uri.path())?;
        self.answered(listen, client.address(), "http-01", "", given.before);
        let mut response = Response::new(Bytes::from(String::from(given.answer)));
        response.headers_mut().insert(header::CONTENT_TYPE, PLAIN);
        Some(response)
    }

    fn send_to_https(
        &self,
        parts: &request::Parts,
        client: Client,
        listen: SocketAddr,
    ) -> Response<Full<Bytes>> {
        let snapshot = self.live.load();
        if let Some(answer) = self.challenge(&snapshot, parts, client, listen) {
            self.metrics.responded(StatusCode::OK.as_u16());
            return answer.map(Full::new);
        }
        let location = location(&snapshot, parts, listen);
        let response = match location {
            Ok(location) => {
                let mut response = Response::new(Bytes::new());
                *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
                response.headers_mut().insert(header::LOCATION, location);
                response
            }
            Err(refusal) => {
                self.turn_away(listen, client.address(), refusal, "", None);
                problem(refusal.into(), &id_value(Id::new()), true)
            }
        };
        self.metrics.responded(response.status().as_u16());
        response.map(Full::new)
    }
}

/// Nothing but text, whatever a browser makes of it.
const PLAIN: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// The same target under https. A client that came to the usual port is sent to the usual port, whatever ours is
/// mapped to; one that named another port is sent to the port we listen on.
fn location(
    snapshot: &Snapshot,
    parts: &request::Parts,
    listen: SocketAddr,
) -> Result<HeaderValue, Refusal> {
    check(parts)?;
    let authority = Authority::parse(authority(parts)?.ok_or(Refusal::HostUnknown)?)?;
    let mut listeners = snapshot.config.ingress.iter();
    let ingress = listeners.find(|ingress| ingress.redirect_http.contains(&listen));
    let ingress = ingress.ok_or(Refusal::HostUnknown)?;
    let mut patterns = ingress.routes.iter().flat_map(|route| &route.hosts);
    if !patterns.any(|pattern| names(pattern, &authority.host)) {
        return Err(Refusal::HostUnknown);
    }
    let shown = authority.value.to_str().unwrap_or_default();
    let bare = match shown.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => shown,
    };
    let port = match ingress.listen.first().map(SocketAddr::port) {
        Some(port) if port != 443 && bare != shown => format!(":{port}"),
        _ => String::new(),
    };
    let target = parts
        .uri
        .path_and_query()
        .map(|target| target.as_str())
        .filter(|target| target.starts_with('/')) // not the asterisk of OPTIONS, which would be read as part of the host
        .unwrap_or("/");
    HeaderValue::from_str(&format!("https://{bare}{port}{target}")).map_err(|_| Refusal::Malformed)
}

fn names(pattern: &HostPattern, host: &Host) -> bool {
    match pattern {
        HostPattern::Exact(exact) => exact == host,
        HostPattern::Below(parent) => host.as_name().is_some_and(|name| {
            let child = name.strip_suffix(&**parent);
            child.is_some_and(|child| child.len() > 1 && child.ends_with('.'))
        }),
    }
}

//! An admitted request becomes a request of ours, and the upstream's answer becomes ours to the client.
//!
//! What belongs to a connection stays on its side. The upstream learns the client address from us only. Nothing else
//! in either head is changed, and bodies not at all.

use std::sync::Arc;

use http::header::{self, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;

use crate::audit::Bound;
use crate::clock;
use crate::outcome::{Outcome, Refusal};
use crate::snapshot::Route;
use crate::wire::http::{
    asks_for_websocket, clean_request, clean_response, is_chunked, join_cookies,
};

use super::Ingress;
use super::body::{Reply, Upload};
use super::pass::Arrival;
use super::passage::{Flow, Passage};
use super::upgrade;
use super::upstream::Link;
use super::visitor::Visitor;

const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");
const TOLLGATE_RECEIPT: HeaderName = HeaderName::from_static("tollgate-receipt");
const X_CLIENT_IP: HeaderName = HeaderName::from_static("x-client-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Fields that [`introduce`] may add.
const OURS_MAX: usize = 12;

impl Ingress {
    /// Sends an admitted request on, and gives its answer. The passage ends with the answer's last byte.
    pub(super) async fn forward(
        &self,
        arrival: Arrival,
        route: &Route,
        mut passage: Passage,
    ) -> Response<Reply> {
        let Arrival {
            visitor,
            id,
            authority,
            parts,
            body,
        } = arrival;
        visitor.pulse.allow_stall(route.timeouts.idle);
        let websocket = asks_for_websocket(&parts) && body.is_end_stream();
        let mut request = Request::from_parts(parts, ());
        let client = websocket.then(|| hyper::upgrade::on(&mut request));
        clean_request(request.headers_mut());
        introduce(request.headers_mut(), &visitor, &authority.value, &id);
        self.give_receipt(route, &passage, &mut request);
        let upload = upload(body, route, &mut passage);
        let request = ours(request, upload, websocket);

        let exchange = self.upstreams.exchange(route, request, &passage);
        let (response, link) = match exchange.await {
            Ok(answered) => answered,
            Err(fault) => return fail(&visitor, passage, fault, &id),
        };
        passage.status = Some(response.status().as_u16());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return match client {
                Some(client) => self.switch(visitor, client, response, passage, route, &id),
                None => fail(&visitor, passage, Some(Refusal::UpstreamBroken), &id),
            };
        }
        if is_chunked(response.headers()).is_none() {
            return fail(&visitor, passage, Some(Refusal::UpstreamBroken), &id);
        }
        answer(response, link, passage, route, &visitor, id)
    }

    /// Lets the upstream see that the request is on record, if the route says so and it is.
    fn give_receipt(&self, route: &Route, passage: &Passage, request: &mut Request<()>) {
        let (Some(key), Some(mark)) = (&route.receipt, passage.mark()) else {
            return;
        };
        let field = |name| {
            request
                .headers()
                .get(name)
                .map_or(&b""[..], HeaderValue::as_bytes)
        };
        let bound = Bound {
            id: field(X_REQUEST_ID),
            method: request.method().as_str(),
            host: field(header::HOST),
            target: request
                .uri()
                .path_and_query()
                .map_or("/", PathAndQuery::as_str),
        };
        let receipt = key.receipt(self.journal.log_id(), mark, &bound, clock::wall_ns());
        if let Ok(value) = HeaderValue::try_from(receipt) {
            request.headers_mut().insert(TOLLGATE_RECEIPT, value);
        }
    }

    /// Relays the 101 and then the streams behind it.
    fn switch(
        &self,
        visitor: Arc<Visitor>,
        client: OnUpgrade,
        mut response: Response<Incoming>,
        passage: Passage,
        route: &Route,
        id: &HeaderValue,
    ) -> Response<Reply> {
        let upstream = hyper::upgrade::on(&mut response);
        let busy = visitor.pulse.begin();
        let (mut parts, _) = response.into_parts();
        clean_response(&mut parts.headers);
        parts
            .headers
            .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts
            .headers
            .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        parts.headers.insert(X_REQUEST_ID, id.clone());
        parts.version = Version::HTTP_11;
        let stream = upgrade::Stream {
            visitor,
            passage,
            live: self.live.clone(),
            idle: route.timeouts.stream_idle,
            linger: self.timers.linger,
        };
        crate::workers::spawn(stream.run(client, upstream)); // it holds a session, so drain waits for it
        Response::from_parts(parts, Reply::text(bytes::Bytes::new(), busy))
    }
}

/// Tells the upstream who asks, through whom and under which name.
fn introduce(headers: &mut HeaderMap, visitor: &Visitor, host: &HeaderValue, id: &HeaderValue) {
    headers.reserve(OURS_MAX);
    headers.insert(header::HOST, host.clone());
    headers.insert(X_FORWARDED_FOR, visitor.address.clone());
    headers.insert(X_REAL_IP, visitor.address.clone());
    headers.insert(X_CLIENT_IP, visitor.address.clone());
    headers.insert(X_FORWARDED_HOST, host.clone());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("https"));
    headers.insert(X_REQUEST_ID, id.clone());
    if let Some(shown) = &visitor.shown {
        headers.insert(CLIENT_CERT, shown.leaf.clone());
        if let Some(chain) = &shown.chain {
            headers.insert(CLIENT_CERT_CHAIN, chain.clone());
        }
    }
    if visitor.frames {
        join_cookies(headers);
    }
}

/// Our request: HTTP/1.1, the target in origin form.
fn ours(request: Request<()>, upload: Upload, websocket: bool) -> Request<Upload> {
    let (mut parts, ()) = request.into_parts();
    if websocket {
        parts
            .headers
            .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts
            .headers
            .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    if parts.uri.authority().is_some() {
        let target = parts.uri.path_and_query().cloned();
        parts.uri = Uri::from(target.unwrap_or(PathAndQuery::from_static("/")));
    }
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Request::from_parts(parts, upload)
}

fn upload(body: Incoming, route: &Route, passage: &mut Passage) -> Upload {
    if body.is_end_stream() {
        return Upload::NONE;
    }
    let flow = Flow::new();
    passage.flow = Some(Arc::clone(&flow));
    Upload::new(body, flow, route.max_body, route.timeouts.idle)
}

fn answer(
    response: Response<Incoming>,
    link: Link,
    passage: Passage,
    route: &Route,
    visitor: &Visitor,
    id: HeaderValue,
) -> Response<Reply> {
    let (mut parts, body) = response.into_parts();
    clean_response(&mut parts.headers);
    parts.headers.insert(X_REQUEST_ID, id);
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    let idle = if is_event_stream(&parts.headers) {
        route.timeouts.stream_idle
    } else {
        route.timeouts.idle
    };
    let reply = Reply::relay(body, link, passage, idle, visitor.pulse.begin());
    Response::from_parts(parts, reply)
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    const EVENT_STREAM: &[u8] = b"text/event-stream";
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let kind = kind.and_then(|kind| kind.get(..EVENT_STREAM.len()));
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(EVENT_STREAM))
}

/// The end of a passage that had no answer; `None`: because the client went away.
fn fail(
    visitor: &Visitor,
    mut passage: Passage,
    fault: Option<Refusal>,
    id: &HeaderValue,
) -> Response<Reply> {
    let refusal = fault.unwrap_or(Refusal::Malformed); // nobody is there to read it
    let sent = |flow: &Arc<Flow>| flow.ended.load(std::sync::atomic::Ordering::Relaxed);
    let unread = !passage.flow.as_ref().is_none_or(sent);
    let response = Arrival::problem(visitor, refusal.into(), id, unread);
    passage.status = fault.map(Refusal::status);
    if fault.is_some() {
        passage.bytes_out = response.body().size_hint().lower();
    }
    passage.complete(fault.map_or(Outcome::Aborted, Outcome::Failed));
    response
}

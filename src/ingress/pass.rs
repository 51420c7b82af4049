//! The way of one request, from its head to the server behind us: judge, admit, forward.
//!
//! Until the request is admitted any judge may refuse it; nobody waits for the record of a denial. From then on there
//! is one way out: the [`Passage`] ends with what became of it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, Version, request};
use hyper::body::{Body as _, Incoming};

use crate::clock::Id;
use crate::limit::{Quota, Slot};
use crate::outcome::Refusal;
use crate::policy::allow_list::Client;
use crate::record::{Before, Denied, Request as Facts};
use crate::snapshot::{Entrance, Route, Snapshot};
use crate::telemetry::Way;
use crate::wire::http::{Authority, check, generous};

use super::Ingress;
use super::body::Reply;
use super::passage::Passage;
use super::reply::{Refused, id_value, problem};
use super::visitor::{Visitor, entrance};

/// A request that has arrived.
pub(super) struct Arrival {
    pub(super) visitor: Arc<Visitor>,
    pub(super) id: HeaderValue,
    pub(super) authority: Arc<Authority>,
    pub(super) parts: request::Parts,
    pub(super) body: Incoming,
}

impl Arrival {
    /// Our own answer. A body that nobody has read keeps an HTTP/1.1 connection from serving another request.
    pub(super) fn problem(
        visitor: &Visitor,
        refused: Refused,
        id: &HeaderValue,
        unread: bool,
    ) -> Response<Reply> {
        let response = problem(refused, id, unread && !visitor.frames);
        response.map(|text| Reply::text(text, visitor.pulse.begin()))
    }
}

impl Ingress {
    /// Answers one request. Never fails: what goes wrong becomes the answer.
    pub(super) async fn answer(
        self: Arc<Self>,
        visitor: Arc<Visitor>,
        request: Request<Incoming>,
    ) -> Response<Reply> {
        let busy = visitor.pulse.begin();
        let (parts, body) = request.into_parts();
        let (unread, silent) = (!body.is_end_stream(), parts.method == Method::HEAD);
        let (entry, authority) = (Id::new(), visitor.authority(&parts));
        let id = id_value(entry);
        let (name, passed) = match authority {
            Err(refusal) => (None, Err(refusal.into())),
            Ok(authority) => {
                let arrival = Arrival {
                    visitor: Arc::clone(&visitor),
                    id: id.clone(),
                    authority: Arc::clone(&authority),
                    parts,
                    body,
                };
                (Some(authority), self.pass(entry, arrival).await)
            }
        };
        let response = passed.unwrap_or_else(|refused: Refused| {
            let target = name.as_ref().map_or("", |authority| &*authority.name);
            self.deny(&visitor, refused.refusal, target);
            Arrival::problem(&visitor, refused, &id, unread)
        });
        self.metrics.responded(response.status().as_u16());
        drop(busy);
        if silent {
            response.map(Reply::silent)
        } else {
            response
        }
    }

    /// The way itself. An error means that the request was not admitted.
    async fn pass(&self, entry: Id, arrival: Arrival) -> Result<Response<Reply>, Refused> {
        let visitor = &*arrival.visitor;
        let snapshot = self.live.load();
        let entrance = entrance(&snapshot, visitor.listen).ok_or(Refusal::PolicyChanged)?;
        check(&arrival.parts)?;
        let route = Arc::clone(route(entrance, &arrival)?);
        let client = entrance.list.admit(visitor.client.address())?; // a reload may have changed it
        let client = route.list.admit(client.address())?;
        let turn = visitor.session.begin()?;
        let slots = [
            self.take(&entrance.quotas, client)?,
            self.take(&route.quotas, client)?,
        ];
        measure(&arrival.body, route.max_body)?;
        let facts = facts(&arrival, client, &route, &snapshot);
        let admitted = self
            .journal
            .admit(entry, &Before::Request(&facts), route.on_failure)
            .await?;
        drop(snapshot);
        let pulse = Arc::clone(&visitor.pulse);
        let passage = Passage::new(admitted, slots, turn, Arc::clone(&self.metrics), pulse);
        Ok(self.forward(arrival, &route, passage).await)
    }

    fn take(&self, quotas: &[Quota], client: Client) -> Result<Slot, Refused> {
        let taken = self.limits.take(quotas, client.address());
        taken.map_err(|over| Refused {
            refusal: Refusal::RateLimited,
            retry_after: Some(over.retry_after.as_secs()), // whole seconds already
        })
    }

    /// Counts and records what was not admitted.
    pub(super) fn deny(&self, visitor: &Visitor, refusal: Refusal, target: &str) {
        self.turn_away(visitor.listen, visitor.client.address(), refusal, target);
    }

    /// As [`Ingress::deny`], where there is no visitor yet.
    pub(super) fn turn_away(
        &self,
        listener: SocketAddr,
        client: IpAddr,
        refusal: Refusal,
        target: &str,
    ) {
        self.metrics.refused(Way::Ingress, refusal);
        self.metrics.unanswered(listener, client, refusal);
        self.journal.deny(&Denied {
            way: Way::Ingress,
            listener,
            client,
            refusal,
            id: None,
            target,
        });
    }
}

/// The route, which must be the same one for a reader that decodes escapes, merges slashes, leaves out parameters or
/// takes no notice of case: otherwise the list of one route could be passed with the path of another.
fn route<'a>(entrance: &'a Entrance, arrival: &Arrival) -> Result<&'a Arc<Route>, Refusal> {
    let (host, path) = (&arrival.authority.host, arrival.parts.uri.path());
    let place = entrance.routes.find(host, path)?;
    let read = generous(path)?;
    let read = read.as_deref().unwrap_or(path);
    if !entrance.routes.agrees(host, read, place) {
        return Err(Refusal::Malformed);
    }
    entrance.way.get(place).ok_or(Refusal::RouteUnknown)
}

/// Refuses a body whose announced length is too large before any of it is read.
fn measure(body: &Incoming, max: Option<u64>) -> Result<(), Refusal> {
    match max {
        Some(max) if body.size_hint().lower() > max => Err(Refusal::BodyTooLarge),
        _ => Ok(()),
    }
}

fn facts<'a>(
    arrival: &'a Arrival,
    client: Client,
    route: &'a Route,
    snapshot: &'a Snapshot,
) -> Facts<'a> {
    let (visitor, parts) = (&*arrival.visitor, &arrival.parts);
    Facts {
        listener: visitor.listen,
        client: client.address(),
        peer: visitor.peer,
        tls: visitor.tls,
        version: version(parts.version),
        method: parts.method.as_str(),
        host: &arrival.authority.name,
        path: parts.uri.path(),
        query: parts.uri.query(),
        user_agent: parts
            .headers
            .get(header::USER_AGENT)
            .map(HeaderValue::as_bytes),
        claimed_id: parts.headers.get("x-request-id").map(HeaderValue::as_bytes),
        route: &route.name,
        upstream: &route.upstream_name,
        redaction: &snapshot.redaction,
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

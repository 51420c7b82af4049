//! What the keyring has to tell: a word for the audit log, facts, and a sentence for a person.
//!
//! It knows neither the audit log nor the diagnostics: whoever made the keyring passes it on.

use tracing::Level;

use crate::store::StoreError;

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

    /// The store can be reached again.
    pub(super) fn keys_shared() -> Self {
        Self {
            name: "ticket_keys_shared",
            facts: Vec::new(),
            level: Level::INFO,
            says: "ticket keys are shared with other replicas again".to_owned(),
        }
    }

    /// Keys cannot be shared at present.
    pub(super) fn keys_not_shared(error: &StoreError) -> Self {
        let why = error.to_string();
        Self {
            name: "ticket_keys_not_shared",
            level: Level::WARN,
            says: format!(
                "{why}; until then a session that began at another replica may begin anew here"
            ),
            facts: vec![("why", why)],
        }
    }

    /// Whether whoever is inside must be judged again.
    pub fn is_about_clients(&self) -> bool {
        [Self::TRUST_REPLACED, Self::LIST_STALE].contains(&self.name)
    }
}

/// Passes notices on; must not block for long.
pub(super) type Tell = Box<dyn Fn(Notice) + Send + Sync>;

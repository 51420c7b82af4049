//! What is counted of the responder for transparent clients.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::one;

/// What became of a question for a name.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Answered {
    /// The name servers know no such name.
    Absent,
    /// No rule could allow the name.
    Denied,
    /// It could not be answered.
    Failed,
    /// Another server has answered.
    Forwarded,
    Malformed,
    /// Not from a client, or too many.
    Refused,
    /// Answered here.
    Told,
}

impl Answered {
    /// Each of them, as its label.
    const ALL: [&str; 7] = [
        "absent",
        "denied",
        "failed",
        "forwarded",
        "malformed",
        "refused",
        "told",
    ];
}

/// Questions for names, and what they leave behind.
pub struct Questions {
    /// In the order of [`Answered`].
    answered: [Counter; Answered::ALL.len()],
    /// Not even read, because too many were waiting.
    pub dropped: Counter,
    /// Names that synthetic addresses stand for.
    pub names: Gauge,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct AnswerLabel {
    answer: &'static str,
}

impl Questions {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let answered = Family::<AnswerLabel, Counter>::default();
        let (dropped, names) = (Counter::default(), Gauge::default());
        registry.register(
            "questions",
            "Questions for names, by what became of them",
            answered.clone(),
        );
        registry.register(
            "questions_dropped",
            "Questions dropped because too many were waiting",
            dropped.clone(),
        );
        registry.register(
            "synthetic_names",
            "Names that synthetic addresses stand for",
            names.clone(),
        );
        Self {
            answered: Answered::ALL.map(|answer| one(&answered, AnswerLabel { answer })),
            dropped,
            names,
        }
    }

    /// Counts one.
    pub fn count(&self, answered: Answered) {
        if let Some(counter) = self.answered.get(answered as usize) {
            counter.inc();
        }
    }
}

//! One held certificate over time: its slot, the files that it follows, and what has been told of its end.

use std::sync::{Arc, Weak};

use tracing::Level;

use crate::clock;

use super::names::Slot;
use super::notice::Notice;
use super::watch::Following;
use super::{Certificate, TlsError};

/// A slot that a listener serves from; it is held as long as there is such a listener.
pub(super) struct Holding {
    pub(super) label: Box<str>,
    slot: Weak<Slot>,
    pub(super) following: Option<Following>,
    /// By what an ordered certificate is found again; `None` for files.
    pub(super) order: Option<String>,
    told: Told,
}

/// What has been told of the end of the present certificate.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
enum Told {
    #[default]
    Nothing,
    Expiring,
    Expired,
}

impl Holding {
    pub(super) fn new(label: &str, slot: &Arc<Slot>, following: Option<Following>) -> Self {
        Self {
            label: label.into(),
            slot: Arc::downgrade(slot),
            following,
            order: None,
            told: Told::default(),
        }
    }

    /// The slot, unless no listener serves from it any more.
    pub(super) fn slot(&self) -> Option<Arc<Slot>> {
        self.slot.upgrade()
    }

    /// Puts `certificate` into the slot. `None` if it is what stands there already.
    pub(super) fn replace(&mut self, certificate: Certificate) -> Option<Notice> {
        let slot = self.slot()?;
        let new = Arc::new(certificate);
        let old = slot.load_full();
        if old.as_ref().is_some_and(|old| old.key.cert == new.key.cert) {
            return None;
        }
        let notice = replaced(&self.label, old.as_deref(), &new);
        slot.store(Some(new));
        self.told = Told::default();
        Some(notice)
    }

    /// What is served stays; why what should be served instead cannot.
    pub(super) fn rejected(&self, error: &TlsError) -> Notice {
        let file = error.path().map(|path| path.display().to_string());
        Notice {
            name: "certificate_rejected",
            facts: vec![
                ("certificate", self.label.to_string()),
                ("file", file.unwrap_or_default()),
                ("why", error.to_string()),
            ],
            level: Level::ERROR,
            says: format!("{error}; until then the certificate before it is served"),
        }
    }

    /// Says once that the end is near, and once that it has come.
    pub(super) fn look_at_end(&mut self, second: i64) -> Option<Notice> {
        let slot = self.slot()?;
        let certificate = slot.load_full()?;
        let now = if second > certificate.not_after {
            Told::Expired
        } else if second >= self.expiring_from(&certificate) {
            Told::Expiring
        } else {
            Told::Nothing
        };
        if now <= self.told {
            return None;
        }
        self.told = now;
        let mend = match (&self.order, now) {
            (Some(_), _) => "see `certificate_failed` for why it could not be renewed",
            (None, Told::Expired) => "replace the files, they are picked up by themselves",
            (None, _) => "renew it",
        };
        Some(ending(&self.label, &certificate, now, mend))
    }

    /// When a third of its life is left; a sixth if it renews itself, since it does so about when a third is left.
    fn expiring_from(&self, certificate: &Certificate) -> i64 {
        let parts = if self.order.is_some() { 6 } else { 3 };
        let life = certificate.not_after.saturating_sub(certificate.not_before);
        certificate.not_after.saturating_sub(life / parts)
    }
}

fn ending(label: &str, certificate: &Certificate, now: Told, mend: &str) -> Notice {
    let (names, end) = (certificate.shown(), clock::moment(certificate.not_after));
    let (name, level, says) = if now == Told::Expired {
        let says = format!("{label} ({names}) has expired at {end}: clients refuse it; {mend}");
        ("certificate_expired", Level::ERROR, says)
    } else {
        let says = format!(
            "{label} ({names}) expires at {end}: less than a third of its life is left; {mend}"
        );
        ("certificate_expiring", Level::WARN, says)
    };
    let facts = vec![
        ("certificate", label.to_owned()),
        ("names", names),
        ("serial", certificate.serial.to_string()),
        ("not_after", end),
    ];
    Notice {
        name,
        facts,
        level,
        says,
    }
}

fn replaced(label: &str, old: Option<&Certificate>, new: &Certificate) -> Notice {
    let (serial, end) = (new.serial.to_string(), clock::moment(new.not_after));
    let mut facts = vec![
        ("certificate", label.to_owned()),
        ("names", new.shown()),
        ("serial", serial),
        ("not_after", end.clone()),
    ];
    let mut says = format!("{label} ({}) is served now, until {end}", new.shown());
    let mut level = Level::INFO;
    if let Some(old) = old {
        facts.push(("previous_serial", old.serial.to_string()));
        facts.push(("previous_not_after", clock::moment(old.not_after)));
        if let Some(lost) = new.lacks(old) {
            level = Level::WARN;
            says.push_str(&format!(
                "; it is not for {lost}, as the one before was: check that it is the right file"
            ));
        }
    }
    Notice {
        name: "certificate_replaced",
        facts,
        level,
        says,
    }
}

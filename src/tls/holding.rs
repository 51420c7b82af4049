//! One held certificate over time: its slot, the files that it follows, and what has been told of its end.

use std::sync::{Arc, Weak};

use tracing::Level;

use crate::clock;
use crate::config::typed::CertificateFiles;

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
    /// Why what its files hold now is not served, if it is not.
    pub(super) flaw: Option<TlsError>,
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
            flaw: None,
            told: Told::default(),
        }
    }

    /// The slot, unless no listener serves from it any more.
    pub(super) fn slot(&self) -> Option<Arc<Slot>> {
        self.slot.upgrade()
    }

    /// Whether it follows `files`.
    pub(super) fn is_of(&self, files: &CertificateFiles) -> bool {
        self.following.as_ref().is_some_and(|f| f.follows(files))
    }

    /// Puts `certificate` into the slot. `None` if it is what stands there already.
    pub(super) fn replace(&mut self, certificate: Certificate) -> Option<Notice> {
        self.flaw = None;
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
    pub(super) fn reject(&mut self, error: TlsError) -> Notice {
        let file = error.path().map(|path| path.display().to_string());
        let notice = Notice {
            name: "certificate_rejected",
            facts: vec![
                ("certificate", self.label.to_string()),
                ("file", file.unwrap_or_default()),
                ("why", error.to_string()),
            ],
            level: Level::ERROR,
            says: format!("{error}; until then the certificate before it is served"),
        };
        self.flaw = Some(error);
        notice
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

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwapOption;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    const DAY: i64 = 86_400;

    /// From the start of 2000 until the start of `until`, for `name`.
    fn certificate(name: &str, until: i32) -> Certificate {
        let [made, _] = twice(name, until);
        made
    }

    /// The same one read two times.
    fn twice(name: &str, until: i32) -> [Certificate; 2] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let signed = params.self_signed(&key).unwrap();
        let files = CertificateFiles {
            cert: "chain.pem".into(),
            key: "key.pem".into(),
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let made = || Certificate::new(&files, vec![signed.der().clone()], &key).unwrap();
        [made(), made()]
    }

    fn holding(certificate: Certificate) -> (Holding, Arc<Slot>) {
        let slot = Arc::new(ArcSwapOption::from_pointee(certificate));
        (Holding::new("chain.pem", &slot, None), slot)
    }

    #[test]
    fn the_end_is_told_at_a_third_of_life_and_when_it_comes_once_for_each_certificate() {
        let (first, second) = (certificate("a.test", 2003), certificate("a.test", 2006));
        let (begin, end) = (first.not_before, first.not_after);
        let (mut holding, _slot) = holding(first);
        let mut told = |second: i64| holding.look_at_end(second).map(|notice| notice.name);
        let third = end - (end - begin) / 3;
        assert_eq!(told(begin), None);
        assert_eq!(told(third - 1), None);
        assert_eq!(told(third), Some("certificate_expiring"));
        assert_eq!(told(third + DAY), None);
        assert_eq!(told(end), None);
        assert_eq!(told(end + 1), Some("certificate_expired"));
        assert_eq!(told(end + DAY), None);
        let end = second.not_after;
        holding.replace(second).unwrap();
        assert!(holding.look_at_end(begin + DAY).is_none());
        let notice = holding.look_at_end(end + 1).unwrap();
        assert_eq!(
            (notice.name, notice.level),
            ("certificate_expired", Level::ERROR)
        );
    }

    #[test]
    fn a_replacement_tells_old_from_new_and_the_same_again_is_none() {
        let (first, second) = (certificate("a.test", 2003), certificate("a.test", 2006));
        let serials = [&first, &second].map(|c| c.serial.to_string());
        let (mut holding, slot) = holding(first);
        let notice = holding.replace(second).unwrap();
        let fact = |name| {
            let mut facts = notice.facts.iter();
            facts.find(|(n, _)| *n == name).unwrap().1.clone()
        };
        assert_eq!([fact("previous_serial"), fact("serial")], serials);
        assert_eq!(fact("previous_not_after"), "2003-01-01T00:00:00Z");
        assert_eq!(fact("not_after"), "2006-01-01T00:00:00Z");
        assert_eq!(notice.level, Level::INFO);
        assert_eq!(*slot.load_full().unwrap().serial, *serials[1]);
        // The right file for another host is served, but that looks like a mistake.
        let [other, again] = twice("b.test", 2006);
        let notice = holding.replace(other).unwrap();
        assert_eq!(notice.level, Level::WARN);
        assert!(
            notice.says.contains("it is not for a.test"),
            "{}",
            notice.says
        );
        assert!(holding.replace(again).is_none());
    }

    #[test]
    fn a_flaw_stays_until_something_good_comes() {
        let (mut holding, slot) = holding(certificate("a.test", 2003));
        let serial = slot.load_full().unwrap().serial.clone();
        let notice = holding.reject(TlsError::NoKey {
            path: "key.pem".into(),
        });
        assert_eq!(notice.name, "certificate_rejected");
        assert!(notice.facts.contains(&("file", "key.pem".to_owned())));
        assert!(notice.says.contains("the certificate before it is served"));
        assert!(holding.flaw.is_some());
        assert_eq!(slot.load_full().unwrap().serial, serial);
        holding.replace(certificate("a.test", 2004)).unwrap();
        assert!(holding.flaw.is_none());
        drop(slot);
        assert!(
            holding.slot().is_none(),
            "held only as long as it is served"
        );
    }
}

//! What is said about one file while it is read: mistakes, warnings, and where each key stands.
//!
//! It also knows every address that is listened on, since two sections may ask for the same one. Bounded by
//! [`REMARKS_MAX`]; what comes after is dropped.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;

use super::remark::{self, Mistakes, REMARKS_MAX, Remark, Source, Warning};

/// Bytes of the text.
pub(super) type Place = Range<usize>;

/// Collects what is said about one file.
pub(super) struct Notes<'t> {
    source: &'t Source,
    kept: RefCell<Kept>,
}

#[derive(Default)]
struct Kept {
    mistakes: Vec<Remark>,
    warnings: Vec<Warning>,
    places: BTreeMap<String, Place>,
    listens: Vec<(String, SocketAddr)>,
}

impl<'t> Notes<'t> {
    pub(super) fn new(source: &'t Source) -> Self {
        let kept = RefCell::default();
        Self { source, kept }
    }

    /// A mistake at `key`, wherever that stands.
    pub(super) fn mistake(&self, place: Place, key: &str, problem: String, mend: String) {
        let remark = self.source.remark_at(place, key, problem, mend);
        self.kept.borrow_mut().mistake(remark);
    }

    /// A mistake at `key`, which was read before.
    pub(super) fn mistake_at(&self, key: &str, problem: &str, mend: &str) {
        let place = remark::nearest(&self.kept.borrow().places, key);
        self.mistake(place, key, problem.to_owned(), mend.to_owned());
    }

    /// Takes note of an address that is listened on. A second listener on it, or one on every address and one on one
    /// address of the same port, is a mistake.
    pub(super) fn listens(&self, key: &str, address: SocketAddr) {
        let same = |(_, other): &&(String, SocketAddr)| {
            let family = other.is_ipv4() == address.is_ipv4();
            let all = other.ip().is_unspecified() || address.ip().is_unspecified();
            let port = other.port() == address.port() && address.port() != 0;
            port && family && (all || other.ip() == address.ip())
        };
        let kept = &mut *self.kept.borrow_mut();
        let taken = kept.listens.iter().find(same).cloned();
        kept.listens.push((key.to_owned(), address));
        if let Some((other, taken)) = taken {
            let problem = format!("{address} is taken: `{other}` listens on {taken}");
            let mend = "give one of them another address or port".to_owned();
            let place = remark::nearest(&kept.places, key);
            kept.mistake(self.source.remark_at(place, key, problem, mend));
        }
    }

    /// A warning at the place of `value`.
    pub(super) fn warning(&self, place: Place, key: &str, problem: String, mend: String) {
        let kept = &mut *self.kept.borrow_mut();
        if kept.warnings.len() < REMARKS_MAX {
            let remark = self.source.remark_at(place, key, problem, mend);
            kept.warnings.push(Warning(remark));
        }
    }

    /// Warns of a name that was given to something and is never used.
    pub(super) fn unused(&self, key: &str) {
        let place = remark::nearest(&self.kept.borrow().places, key);
        let mend = "name it where it shall hold, or remove it".to_owned();
        self.warning(place, key, "never used".to_owned(), mend);
    }

    /// Remembers where `key` stands.
    pub(super) fn place(&self, key: &str, place: &Place) {
        let places = &mut self.kept.borrow_mut().places;
        places.insert(key.to_owned(), place.clone());
    }

    /// What was found: warnings and the places of all keys, unless there are mistakes.
    pub(super) fn finish(self) -> Result<(Vec<Warning>, BTreeMap<String, Place>), Mistakes> {
        let kept = self.kept.into_inner();
        match Mistakes::new(kept.mistakes) {
            Some(mistakes) => Err(mistakes),
            None => {
                let mut warnings = kept.warnings;
                warnings.sort_by_key(|warning| (warning.0.line, warning.0.column));
                Ok((warnings, kept.places))
            }
        }
    }
}

impl Kept {
    fn mistake(&mut self, remark: Remark) {
        if self.mistakes.len() < REMARKS_MAX {
            self.mistakes.push(remark);
        }
    }
}

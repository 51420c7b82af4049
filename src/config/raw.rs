//! The file, literally: tables and values with their places, and a list of what is wrong with them.
//!
//! A [`Table`] remembers which keys it was asked for; what is left when it is dropped is unknown, and is reported with
//! the nearest known key. Readers report a mistake and go on, so that one run finds all of them; a value that could
//! not be read is `None`, and whoever asked puts anything in its place, because the result is thrown away.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::notes::{Notes, Place};
use super::remark::WHOLE;
use super::units;

mod value;

pub(super) use value::Value;

/// One table of the file.
pub(super) struct Table<'t> {
    pub(super) notes: &'t Notes<'t>,
    key: String,
    place: Place,
    entries: &'t DeTable<'t>,
    /// Keys that were asked for, and whether they are offered.
    asked: RefCell<BTreeMap<&'static str, bool>>,
}

impl<'t> Table<'t> {
    /// The file's outermost table.
    pub(super) fn root(notes: &'t Notes<'t>, entries: &'t DeTable<'t>) -> Self {
        Self::new(notes, String::new(), WHOLE, entries)
    }

    fn new(notes: &'t Notes<'t>, key: String, place: Place, entries: &'t DeTable<'t>) -> Self {
        let asked = RefCell::default();
        Self {
            notes,
            key,
            place,
            entries,
            asked,
        }
    }

    /// The key path of `name` in this table.
    pub(super) fn key(&self, name: &str) -> String {
        if self.key.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.key)
        }
    }

    /// The value of `name`, if it is in the file.
    pub(super) fn value(&self, name: &'static str) -> Option<Value<'t>> {
        self.asked.borrow_mut().entry(name).or_insert(true);
        let value = self.entries.get(name)?;
        let (notes, key, place) = (self.notes, self.key(name), value.span());
        notes.place(&key, &place);
        Some(Value {
            notes,
            key,
            place,
            value: value.get_ref(),
        })
    }

    /// The table under `name`, if it is in the file.
    pub(super) fn table(&self, name: &'static str) -> Option<Table<'t>> {
        self.value(name)?.table()
    }

    /// Every entry of a table whose keys are free names.
    pub(super) fn named(&self) -> Vec<(&'t str, Value<'t>)> {
        let named = |(name, value): (&'t toml::Spanned<_>, &'t toml::Spanned<DeValue<'t>>)| {
            let name: &str = AsRef::<std::borrow::Cow<'t, str>>::as_ref(name);
            let (notes, key, place) = (self.notes, self.key(name), value.span());
            notes.place(&key, &place);
            let value = value.get_ref();
            let value = Value {
                notes,
                key,
                place,
                value,
            };
            (name, value)
        };
        self.entries.iter().map(named).collect()
    }

    /// Refuses a key that is known but not offered yet.
    pub(super) fn not_yet(&self, name: &'static str, instead: &str) {
        self.asked.borrow_mut().insert(name, false);
        if let Some(value) = self.value(name) {
            value.not_yet(instead);
        }
    }

    /// Says that `name` must be in this table.
    pub(super) fn missing(&self, name: &str, mend: &str) {
        let key = self.key(name);
        let problem = format!("`{name}` is missing");
        self.notes
            .mistake(self.place.clone(), &key, problem, mend.to_owned());
    }

    /// The values of a string or a list that must name something.
    pub(super) fn some(&self, name: &'static str, mend: &str) -> Vec<Value<'t>> {
        let Some(value) = self.value(name) else {
            self.missing(name, mend);
            return Vec::new();
        };
        let list = value.list();
        if list.is_empty() {
            value.wrong(format!("`{name}` is empty"), mend);
        }
        list
    }

    /// A mistake about this table as a whole.
    pub(super) fn wrong(&self, problem: impl Into<String>, mend: impl Into<String>) {
        let place = self.place.clone();
        self.notes
            .mistake(place, &self.key, problem.into(), mend.into());
    }

    /// A mistake about what stands at `key`, in this table or below it.
    pub(super) fn wrong_at(&self, key: &str, problem: &str, mend: &str) {
        self.notes.mistake_at(key, problem, mend);
    }

    /// A duration within `bounds`, `default` if absent.
    pub(super) fn duration(
        &self,
        name: &'static str,
        bounds: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let value = self.value(name);
        value.and_then(|v| v.duration(bounds)).unwrap_or(default)
    }

    /// A number of bytes within `bounds`, `default` if absent.
    pub(super) fn size(
        &self,
        name: &'static str,
        bounds: RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        let value = self.value(name);
        value.and_then(|v| v.size(bounds)).unwrap_or(default)
    }

    /// A whole number within `bounds`, `default` if absent.
    pub(super) fn integer<T>(&self, name: &'static str, bounds: RangeInclusive<T>, default: T) -> T
    where
        T: Display + FromStr + PartialOrd,
    {
        let value = self.value(name);
        value.and_then(|v| v.integer(bounds)).unwrap_or(default)
    }

    /// One of a closed set of words, `default` if absent.
    pub(super) fn word<T: Copy>(&self, name: &'static str, words: &[(&str, T)], default: T) -> T {
        let value = self.value(name);
        value.and_then(|v| v.word(words)).unwrap_or(default)
    }

    /// True or false, `default` if absent.
    pub(super) fn flag(&self, name: &'static str, default: bool) -> bool {
        self.value(name).and_then(|v| v.flag()).unwrap_or(default)
    }

    /// The values of a string or a list; empty if absent.
    pub(super) fn list(&self, name: &'static str) -> Vec<Value<'t>> {
        self.value(name).map_or_else(Vec::new, |v| v.list())
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        let asked = self.asked.borrow();
        if asked.is_empty() {
            return; // a table of free names
        }
        for name in self.entries.keys() {
            let text: &str = name.get_ref();
            if asked.contains_key(text) {
                continue;
            }
            let known: Vec<_> = asked.iter().filter(|(_, o)| **o).map(|(k, _)| *k).collect();
            let mend = match units::nearest(text, &known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("remove it; known here are {}", known.join(", ")),
            };
            let key = self.key(text);
            let problem = "unknown key".to_owned();
            self.notes.mistake(name.span(), &key, problem, mend);
        }
    }
}

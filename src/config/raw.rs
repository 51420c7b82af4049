//! The file, literally: tables and values with their places, and a list of what is wrong with them.
//!
//! A [`Table`] remembers which keys it was asked for; what is left when it is dropped is unknown, and is reported with
//! the nearest known key. Readers report a mistake and go on, so that one run finds all of them; a value that could
//! not be read is `None`, and whoever asked puts anything in its place, because the result is thrown away.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::notes::{Notes, Place};
use super::remark::WHOLE;
use super::units;

/// One table of the file.
pub(super) struct Table<'t> {
    pub(super) notes: &'t Notes<'t>,
    key: String,
    place: Place,
    entries: &'t DeTable<'t>,
    /// Keys that were asked for, and whether they are offered.
    asked: RefCell<BTreeMap<&'static str, bool>>,
}

/// One value of the file.
#[derive(Clone)]
pub(super) struct Value<'t> {
    pub(super) notes: &'t Notes<'t>,
    pub(super) key: String,
    place: Place,
    value: &'t DeValue<'t>,
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

impl<'t> Value<'t> {
    /// Reports a mistake here.
    pub(super) fn wrong(&self, problem: impl Into<String>, mend: impl Into<String>) {
        let place = self.place.clone();
        self.notes
            .mistake(place, &self.key, problem.into(), mend.into());
    }

    /// Reports something that is probably not meant.
    pub(super) fn warn(&self, problem: impl Into<String>, mend: impl Into<String>) {
        let place = self.place.clone();
        self.notes
            .warning(place, &self.key, problem.into(), mend.into());
    }

    /// Refuses what is known but not offered yet.
    pub(super) fn not_yet(&self, instead: &str) {
        self.wrong("not available in this release", instead);
    }

    fn is_not<T>(&self, wanted: &str, mend: &str) -> Option<T> {
        let found = self.value.type_str();
        self.wrong(format!("expected {wanted}, found {found}"), mend);
        None
    }

    /// Text.
    pub(super) fn text(&self) -> Option<&'t str> {
        let mend = "write it in double quotes";
        self.value.as_str().or_else(|| self.is_not("text", mend))
    }

    /// Text that is a date, or TOML's own date.
    pub(super) fn date(&self) -> Option<String> {
        match self.value {
            DeValue::Datetime(date) => Some(date.to_string()),
            _ => self.text().map(str::to_owned),
        }
    }

    /// Text that `parse` understands; its error is problem and mend.
    pub(super) fn parsed<T>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, (String, String)>,
    ) -> Option<T> {
        match parse(self.text()?) {
            Ok(value) => Some(value),
            Err((problem, mend)) => {
                self.wrong(problem, mend);
                None
            }
        }
    }

    /// True or false.
    pub(super) fn boolean(&self) -> Option<bool> {
        let mend = "write true or false, without quotes";
        self.value
            .as_bool()
            .or_else(|| self.is_not("true or false", mend))
    }

    /// An address that is listened on.
    pub(super) fn listen(&self) -> Option<SocketAddr> {
        let address = self.parsed(units::listen)?;
        self.notes.listens(&self.key, address);
        Some(address)
    }

    pub(super) fn duration(&self, bounds: RangeInclusive<Duration>) -> Option<Duration> {
        if self.value.is_integer() {
            return self.is_not("a duration", r#"write it with its unit, as in "30s""#);
        }
        let duration = self.parsed(units::duration)?;
        self.within(duration, bounds, units::show_duration)
    }

    pub(super) fn size(&self, bounds: RangeInclusive<u64>) -> Option<u64> {
        if self.value.is_integer() {
            return self.is_not("a size", r#"write it with its unit, as in "64KiB""#);
        }
        let size = self.parsed(units::size)?;
        self.within(size, bounds, units::show_size)
    }

    pub(super) fn integer<T>(&self, bounds: RangeInclusive<T>) -> Option<T>
    where
        T: Display + FromStr + PartialOrd,
    {
        let Some(integer) = self.value.as_integer() else {
            return self.is_not("a whole number", "write it without quotes and unit");
        };
        let number = (integer.radix() == 10)
            .then(|| integer.as_str().parse().ok())
            .flatten();
        match number {
            Some(number) => self.within(number, bounds, T::to_string),
            None => {
                let (low, high) = (bounds.start(), bounds.end());
                self.wrong("out of range", format!("choose from {low} to {high}"));
                None
            }
        }
    }

    fn within<T: PartialOrd>(
        &self,
        value: T,
        bounds: RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) -> Option<T> {
        if bounds.contains(&value) {
            return Some(value);
        }
        let (low, high) = (show(bounds.start()), show(bounds.end()));
        self.wrong("out of range", format!("choose from {low} to {high}"));
        None
    }

    fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            let mend = format!("choose {}", known.join(" or "));
            self.wrong(format!("unknown value {text:?}"), mend);
        }
        found.map(|(_, value)| *value)
    }

    fn flag(&self) -> Option<bool> {
        let mend = "write true or false, without quotes";
        self.value
            .as_bool()
            .or_else(|| self.is_not("true or false", mend))
    }

    /// The values of a list; anything else counts as a list of one.
    pub(super) fn list(&self) -> Vec<Value<'t>> {
        let Some(array) = self.value.as_array() else {
            return vec![self.clone()];
        };
        let item = |(at, item): (usize, &'t toml::Spanned<DeValue<'t>>)| {
            let (notes, key, place) = (self.notes, format!("{}[{at}]", self.key), item.span());
            notes.place(&key, &place);
            let value = item.get_ref();
            Value {
                notes,
                key,
                place,
                value,
            }
        };
        array.iter().enumerate().map(item).collect()
    }

    /// Whether it is exactly this text.
    pub(super) fn is(&self, text: &str) -> bool {
        self.value.as_str() == Some(text)
    }

    /// Whether it is text.
    pub(super) fn is_text(&self) -> bool {
        self.value.is_str()
    }

    /// A port, or an inclusive range of ports as text.
    pub(super) fn ports(&self) -> Option<(u16, u16)> {
        if self.is_text() {
            return self.parsed(units::ports);
        }
        self.integer(1..=u16::MAX).map(|port| (port, port))
    }

    /// Whether it is a table that has `name`, which may not be read yet.
    pub(super) fn holds(&self, name: &str) -> bool {
        let table = self.value.as_table();
        table.is_some_and(|entries| entries.get(name).is_some())
    }

    /// Whether it is a table.
    pub(super) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    /// A table.
    pub(super) fn table(&self) -> Option<Table<'t>> {
        match self.value.as_table() {
            Some(entries) => {
                let (key, place) = (self.key.clone(), self.place.clone());
                Some(Table::new(self.notes, key, place, entries))
            }
            None => self.is_not(
                "a table",
                "write it as `{ key = value }` or under a `[header]`",
            ),
        }
    }
}

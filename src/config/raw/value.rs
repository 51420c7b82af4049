//! One value of the file, read as what it should be.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use toml::de::DeValue;

use super::Table;
use crate::config::notes::{Notes, Place};
use crate::config::units;

/// One value of the file.
#[derive(Clone)]
pub(in crate::config) struct Value<'t> {
    pub(in crate::config) notes: &'t Notes<'t>,
    pub(in crate::config) key: String,
    pub(super) place: Place,
    pub(super) value: &'t DeValue<'t>,
}

impl<'t> Value<'t> {
    /// Reports a mistake here.
    pub(in crate::config) fn wrong(&self, problem: impl Into<String>, mend: impl Into<String>) {
        let place = self.place.clone();
        self.notes
            .mistake(place, &self.key, problem.into(), mend.into());
    }

    /// Reports something that is probably not meant.
    pub(in crate::config) fn warn(&self, problem: impl Into<String>, mend: impl Into<String>) {
        let place = self.place.clone();
        self.notes
            .warning(place, &self.key, problem.into(), mend.into());
    }

    /// Refuses what is known but not offered yet.
    pub(in crate::config) fn not_yet(&self, instead: &str) {
        self.wrong("not available in this release", instead);
    }

    fn is_not<T>(&self, wanted: &str, mend: &str) -> Option<T> {
        let found = self.value.type_str();
        self.wrong(format!("expected {wanted}, found {found}"), mend);
        None
    }

    /// Text.
    pub(in crate::config) fn text(&self) -> Option<&'t str> {
        let mend = "write it in double quotes";
        self.value.as_str().or_else(|| self.is_not("text", mend))
    }

    /// Text that is a date, or TOML's own date.
    pub(in crate::config) fn date(&self) -> Option<String> {
        match self.value {
            DeValue::Datetime(date) => Some(date.to_string()),
            _ => self.text().map(str::to_owned),
        }
    }

    /// Text that `parse` understands; its error is problem and mend.
    pub(in crate::config) fn parsed<T>(
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
    pub(in crate::config) fn boolean(&self) -> Option<bool> {
        let mend = "write true or false, without quotes";
        self.value
            .as_bool()
            .or_else(|| self.is_not("true or false", mend))
    }

    /// An address that is listened on.
    pub(in crate::config) fn listen(&self) -> Option<SocketAddr> {
        let address = self.parsed(units::listen)?;
        self.notes.listens(&self.key, address);
        Some(address)
    }

    pub(in crate::config) fn duration(&self, bounds: RangeInclusive<Duration>) -> Option<Duration> {
        if self.value.is_integer() {
            return self.is_not("a duration", r#"write it with its unit, as in "30s""#);
        }
        let duration = self.parsed(units::duration)?;
        self.within(duration, bounds, units::show_duration)
    }

    pub(in crate::config) fn size(&self, bounds: RangeInclusive<u64>) -> Option<u64> {
        if self.value.is_integer() {
            return self.is_not("a size", r#"write it with its unit, as in "64KiB""#);
        }
        let size = self.parsed(units::size)?;
        self.within(size, bounds, units::show_size)
    }

    pub(in crate::config) fn integer<T>(&self, bounds: RangeInclusive<T>) -> Option<T>
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

    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            let mend = format!("choose {}", known.join(" or "));
            self.wrong(format!("unknown value {text:?}"), mend);
        }
        found.map(|(_, value)| *value)
    }

    pub(super) fn flag(&self) -> Option<bool> {
        let mend = "write true or false, without quotes";
        self.value
            .as_bool()
            .or_else(|| self.is_not("true or false", mend))
    }

    /// The values of a list; anything else counts as a list of one.
    pub(in crate::config) fn list(&self) -> Vec<Value<'t>> {
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
    pub(in crate::config) fn is(&self, text: &str) -> bool {
        self.value.as_str() == Some(text)
    }

    /// Whether it is text.
    pub(in crate::config) fn is_text(&self) -> bool {
        self.value.is_str()
    }

    /// A port, or an inclusive range of ports as text.
    pub(in crate::config) fn ports(&self) -> Option<(u16, u16)> {
        if self.is_text() {
            return self.parsed(units::ports);
        }
        self.integer(1..=u16::MAX).map(|port| (port, port))
    }

    /// Whether it is a table that has `name`, which may not be read yet.
    pub(in crate::config) fn holds(&self, name: &str) -> bool {
        let table = self.value.as_table();
        table.is_some_and(|entries| entries.get(name).is_some())
    }

    /// Whether it is a table.
    pub(in crate::config) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    /// A table.
    pub(in crate::config) fn table(&self) -> Option<Table<'t>> {
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

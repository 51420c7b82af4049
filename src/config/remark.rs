//! Remarks on the configuration: what is wrong, where it stands, and how to mend it.
//!
//! A [`Source`] keeps the text and the place of every key that was read, so that a mistake found later (a certificate
//! that is not one, a port in use) can still be pointed at. Text of the file is shown without control characters and
//! cut to a line's length. Nothing here decides what is a mistake.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Remarks kept of one file; further ones are only counted.
pub const REMARKS_MAX: usize = 100;
/// Characters shown of the line that a remark is about.
const EXCERPT_CHARS_MAX: usize = 120;

/// The place of what does not stand anywhere in the file.
pub(super) const WHOLE: Range<usize> = 0..0;

/// The text of a configuration file, and where in it each key stands.
#[derive(Clone, Default)]
pub struct Source {
    path: PathBuf,
    text: String,
    places: BTreeMap<String, Range<usize>>,
}

/// One thing to say about one place.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Remark {
    /// As it was given on the command line.
    pub file: PathBuf,
    /// From 1; 0 if it is about the file as a whole.
    pub line: usize,
    /// From 1, in characters; 0 if it is about the file as a whole.
    pub column: usize,
    /// As in `ingress[0].tls.certificates[0].cert`; empty if it is about the file as a whole.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub mend: String,
    #[serde(skip)]
    excerpt: Option<Excerpt>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Excerpt {
    text: String,
    /// In characters of `text`.
    marked: Range<usize>,
}

/// Everything that must be mended before the configuration can be used; at least one remark, in the file's order.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Mistakes(Vec<Remark>);

/// Something that works, but probably not as meant.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Warning(pub Remark);

impl Source {
    /// The text of the file at `path`.
    pub fn new(path: &Path, text: String) -> Self {
        let (path, places) = (path.to_owned(), BTreeMap::new());
        Self { path, text, places }
    }

    /// The file's path, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn set_places(&mut self, places: BTreeMap<String, Range<usize>>) {
        self.places = places;
    }

    /// A remark on `key`, or on the nearest table around it that is in the file.
    pub fn remark(&self, key: &str, problem: impl Into<String>, mend: impl Into<String>) -> Remark {
        let place = nearest(&self.places, key);
        self.remark_at(place, key, problem.into(), mend.into())
    }

    pub(super) fn remark_at(
        &self,
        place: Range<usize>,
        key: &str,
        problem: String,
        mend: String,
    ) -> Remark {
        if place == WHOLE {
            let key = key.to_owned();
            return Remark {
                key,
                ..Remark::on_file(&self.path, problem, mend)
            };
        }
        let start = self.text.floor_char_boundary(place.start);
        let before = self.text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = self.text.get(line_start..).unwrap_or_default();
        let line = line.split('\n').next().unwrap_or_default();
        let column = before.get(line_start..).unwrap_or_default().chars().count();
        let length = self.text.get(start..place.end).unwrap_or_default();
        let length = length
            .split('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count();
        Remark {
            file: self.path.clone(),
            line: before.matches('\n').count() + 1,
            column: column + 1,
            key: key.to_owned(),
            problem,
            mend,
            excerpt: Some(Excerpt::new(line, column, length.max(1))),
        }
    }
}

/// The place of `key`, or of the nearest table around it that was read.
pub(super) fn nearest(places: &BTreeMap<String, Range<usize>>, key: &str) -> Range<usize> {
    let mut near = key;
    loop {
        if let Some(place) = places.get(near) {
            return place.clone();
        }
        match near.rfind(['.', '[']).and_then(|at| near.get(..at)) {
            Some(outer) => near = outer,
            None => return WHOLE,
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.path).finish()
    }
}

impl Excerpt {
    fn new(line: &str, column: usize, length: usize) -> Self {
        let skipped = column.saturating_sub(EXCERPT_CHARS_MAX / 2);
        let shown = line.chars().skip(skipped).take(EXCERPT_CHARS_MAX);
        let text: String = shown
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let text = text.trim_end().to_owned();
        let start = column - skipped;
        let end = (start + length).min(text.chars().count()).max(start + 1);
        let marked = start..end;
        Self { text, marked }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, number: &str, margin: &str) -> fmt::Result {
        let (blank, mark) = (" ".repeat(self.marked.start), "^".repeat(self.marked.len()));
        writeln!(f, "{number} | {}", self.text)?;
        writeln!(f, "{margin} | {blank}{mark}")
    }
}

impl Remark {
    /// A remark on a file as a whole.
    pub fn on_file(path: &Path, problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            file: path.to_owned(),
            line: 0,
            column: 0,
            key: String::new(),
            problem: problem.into(),
            mend: mend.into(),
            excerpt: None,
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, kind: &str) -> fmt::Result {
        writeln!(f, "{kind}: {}", self.problem)?;
        let file = self.file.display();
        let number = match self.line {
            0 => String::new(),
            line => line.to_string(),
        };
        let margin = " ".repeat(number.len());
        write!(f, "{margin}--> {file}")?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        writeln!(f)?;
        if !self.key.is_empty() {
            writeln!(f, "{margin} = key: {}", self.key)?;
        }
        if let Some(excerpt) = &self.excerpt {
            excerpt.write(f, &number, &margin)?;
        }
        write!(f, "mend: {}", self.mend)
    }
}

impl Mistakes {
    /// `remarks` in the file's order, `None` if there are none.
    pub fn new(mut remarks: Vec<Remark>) -> Option<Self> {
        remarks.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        (!remarks.is_empty()).then_some(Self(remarks))
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Remark> {
        self.0.iter()
    }

    /// How many there are, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl IntoIterator for Mistakes {
    type Item = Remark;
    type IntoIter = std::vec::IntoIter<Remark>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl From<Remark> for Mistakes {
    fn from(remark: Remark) -> Self {
        Self(vec![remark])
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, remark) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n\n")?;
            }
            remark.write(f, "error")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f, "warning")
    }
}

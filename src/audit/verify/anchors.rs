//! Holds the notes that an anchor took against the log that goes by.
//!
//! An anchor's notes come in the order in which they were made, so each file is read once, beside the log. The place
//! where they were kept is what makes them worth something: here they are only text, and one that is torn is passed
//! over. They are read up to where the files ended when the check began; the log is read afterwards, and has them all.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Take};
use std::path::{Path, PathBuf};

use super::report::AnchorReport;
use crate::audit::note::{Checkpoint, NOTE_BYTES_MAX, Note, SIGNATURE, VerifierKey};
use crate::audit::tree::Edge;

#[derive(Default)]
pub(in crate::audit) struct Anchors {
    files: Vec<Stream>,
    /// The least number of records that a waiting note covers.
    awaited: u64,
}

/// One file.
struct Stream {
    notes: Notes,
    waiting: Option<Held>,
    report: AnchorReport,
    /// The first thing that is wrong: its place in this file.
    wrong: Option<(u64, String)>,
    last: Option<Checkpoint>,
    name: Option<String>,
}

/// A note, and where in its file it begins.
pub(in crate::audit) struct Held {
    pub(in crate::audit) text: String,
    pub(in crate::audit) offset: u64,
    pub(in crate::audit) checkpoint: Checkpoint,
}

/// The notes of a file, one after the other.
pub(in crate::audit) struct Notes {
    reader: BufReader<Take<File>>,
    read: u64,
    /// The line that comes next, and where it begins.
    held: Option<String>,
    offset: u64,
    passed_over: u64,
}

impl Anchors {
    pub(in crate::audit) fn open(files: &[PathBuf]) -> io::Result<Self> {
        let mut streams = Vec::new();
        for file in files {
            let failed = |error: io::Error| {
                io::Error::new(error.kind(), format!("{}: {error}", file.display()))
            };
            let mut stream = Stream {
                notes: Notes::open(file).map_err(failed)?,
                waiting: None,
                report: AnchorReport {
                    file: file.clone(),
                    ..AnchorReport::default()
                },
                wrong: None,
                last: None,
                name: None,
            };
            stream.advance();
            streams.push(stream);
        }
        let mut anchors = Self {
            files: streams,
            awaited: 0,
        };
        anchors.await_next();
        Ok(anchors)
    }

    /// Whether a note is about a tree of `size` records, or of fewer.
    pub(in crate::audit) fn awaits(&self, size: u64) -> bool {
        size >= self.awaited
    }

    /// Holds all notes about the tree with `edge` against it; `key` is in force there.
    pub(in crate::audit) fn check(&mut self, edge: &Edge, key: &VerifierKey) -> Result<(), String> {
        let mut first = Ok(());
        for stream in &mut self.files {
            stream.name.get_or_insert_with(|| key.name().to_owned());
            if let Err(what) = stream.check(edge, key) {
                first = first.and(Err(what));
            }
        }
        self.await_next();
        first
    }

    /// What each file says, and where it is not true of a log that ends with record `last`.
    #[expect(clippy::type_complexity, reason = "one caller, beside it")]
    pub(in crate::audit) fn finish(
        self,
        last: u64,
    ) -> Vec<(PathBuf, Result<AnchorReport, (AnchorReport, u64, String)>)> {
        let told = |stream: Stream| {
            let file = stream.report.file.clone();
            (file, stream.finish(last))
        };
        self.files.into_iter().map(told).collect()
    }

    fn await_next(&mut self) {
        let sizes = self
            .files
            .iter()
            .filter_map(|stream| stream.waiting.as_ref());
        let least = sizes.map(|held| held.checkpoint.size).min();
        self.awaited = least.unwrap_or(u64::MAX);
    }
}

impl Stream {
    fn check(&mut self, edge: &Edge, key: &VerifierKey) -> Result<(), String> {
        let mut first = Ok(());
        while let Some(held) = self
            .waiting
            .take_if(|held| held.checkpoint.size <= edge.size())
        {
            if held.checkpoint.origin != key.name() {
                self.report.passed_over += 1;
            } else if let Err(what) = self.judge(&held, edge, key) {
                let what = format!(
                    "{}, byte {}: {what}",
                    self.report.file.display(),
                    held.offset
                );
                first = first.and(Err(what));
            }
            self.advance();
        }
        first
    }

    fn judge(&mut self, held: &Held, edge: &Edge, key: &VerifierKey) -> Result<(), String> {
        self.report.notes += 1;
        let checkpoint = &held.checkpoint;
        let size = checkpoint.size;
        if let Some(last) = &self.last {
            if size < last.size {
                let what = "the anchor's notes go back: the log was set back to an earlier state";
                return Err(what.to_owned());
            }
            if size == last.size && checkpoint.root != last.root {
                let what =
                    "the anchor has two notes for one number of records: there were two logs";
                return Err(what.to_owned());
            }
        }
        if size < edge.size() {
            self.report.before_first += 1;
            return Ok(());
        }
        let signed = Note::parse(&held.text).is_some_and(|note| note.is_signed_by(key));
        if !signed {
            return Err(format!(
                "the note over {size} records is not signed with the key in force"
            ));
        }
        if checkpoint.root != edge.root() {
            return Err(format!(
                "the note over {size} records does not match the log: it was rewritten"
            ));
        }
        self.report.matched += 1;
        self.report.last_seq = size;
        self.last = Some(checkpoint.clone());
        Ok(())
    }

    fn finish(mut self, last: u64) -> Result<AnchorReport, (AnchorReport, u64, String)> {
        let mut most: Option<(u64, u64)> = None;
        while let Some(held) = self.waiting.take() {
            let ours = self
                .name
                .as_ref()
                .is_none_or(|name| *name == held.checkpoint.origin);
            let size = held.checkpoint.size;
            if ours && size > last {
                self.report.notes += 1;
                most = most.max(Some((size, held.offset)));
            } else {
                self.report.passed_over += 1;
            }
            self.advance();
        }
        self.report.passed_over += self.notes.passed_over;
        if let Some((size, offset)) = most {
            let what = format!(
                "the anchor has a note over {size} records, and the log here ends with {last}: its end was cut"
            );
            return Err((self.report, offset, what));
        }
        if self.report.notes == 0 {
            let what =
                "the anchor has no note of this log: it is another log's, or the log was made anew";
            return Err((self.report, 0, what.to_owned()));
        }
        match self.wrong.take() {
            Some((offset, what)) => Err((self.report, offset, what)),
            None if self.report.matched == 0 => {
                let what = "the anchor has no note about the records that are here: it proves nothing of them";
                Err((self.report, 0, what.to_owned()))
            }
            None => Ok(self.report),
        }
    }

    fn advance(&mut self) {
        match self.notes.next() {
            Ok(held) => self.waiting = held,
            Err(error) => {
                let what = format!("cannot be read: {error}");
                self.wrong.get_or_insert((self.notes.offset, what));
            }
        }
    }
}

impl Notes {
    pub(in crate::audit) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            reader: BufReader::new(file.take(length)),
            read: 0,
            offset: 0,
            held: None,
            passed_over: 0,
        })
    }

    /// The next note that is whole and whose text is a checkpoint.
    pub(in crate::audit) fn next(&mut self) -> io::Result<Option<Held>> {
        loop {
            while self.line()?.is_some_and(|line| line == "\n") {
                self.held = None;
            }
            let offset = self.offset;
            let mut text = self.lines_while(|line| line != "\n")?;
            if text.is_empty() {
                return Ok(None);
            }
            if self.line()?.is_some() {
                self.held = None; // the empty one
                text.push('\n');
            }
            text.push_str(&self.lines_while(|line| line.starts_with(SIGNATURE))?);
            let note = Note::parse(&text).filter(Note::is_whole);
            if let Some(checkpoint) = note.and_then(|note| note.unproven()) {
                return Ok(Some(Held {
                    text,
                    offset,
                    checkpoint,
                }));
            }
            self.passed_over += 1;
        }
    }

    /// The lines up to the first that is not wanted, or as many of them as a note can have.
    fn lines_while(&mut self, wanted: impl Fn(&str) -> bool) -> io::Result<String> {
        let mut text = String::new();
        while self.line()?.is_some_and(&wanted) && text.len() <= NOTE_BYTES_MAX {
            text.extend(self.held.take());
        }
        Ok(text)
    }

    /// The line that comes next, with its line feed.
    fn line(&mut self) -> io::Result<Option<&str>> {
        if self.held.is_none() {
            let mut bytes = Vec::new();
            let mut piece = (&mut self.reader).take(NOTE_BYTES_MAX as u64);
            if piece.read_until(b'\n', &mut bytes)? > 0 {
                self.offset = self.read;
                self.read += bytes.len() as u64;
                self.held = Some(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        Ok(self.held.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::note::SigningKey;

    fn notes(text: &str) -> (Vec<(u64, u64)>, u64) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut notes = Notes::open(file.path()).unwrap();
        let mut found = Vec::new();
        while let Some(held) = notes.next().unwrap() {
            found.push((held.checkpoint.size, held.offset));
            let at = usize::try_from(held.offset).unwrap();
            assert!(text.get(at..).unwrap().starts_with(&held.text));
        }
        (found, notes.passed_over)
    }

    #[test]
    fn notes_are_found_between_whatever_was_torn() {
        let key = SigningKey::draw("a").unwrap();
        let note = |size| key.sign(size, [0; 32], None) + "\n";
        let (one, two) = (note(1), note(2));
        let both = format!("{one}{two}");
        assert_eq!(notes(&both), (vec![(1, 0), (2, one.len() as u64)], 0));
        assert_eq!(notes(""), (Vec::new(), 0));
        // Without the empty line behind it a note is whole.
        for cut in 1..one.len() - 2 {
            let Some(torn) = one.get(..cut) else { continue };
            let fresh = if torn.ends_with("\n\n") { "" } else { "\n\n" };
            let text = format!("{torn}{fresh}{two}");
            let (found, passed_over) = notes(&text);
            let place = text.len() - two.len();
            assert_eq!(found, [(2, place as u64)], "cut at {cut}");
            assert!(passed_over > 0);
        }
    }
}

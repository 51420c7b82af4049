//! Takes the notes of seals off the machine: to a file elsewhere, or to a descriptor of the operator's choice.
//!
//! Whoever can write all files of a log can rewrite it or cut its end; a note that they cannot reach any more shows it.
//! Each anchor has its own thread. A place that hangs or fails never holds up the log: notes that find no room are
//! passed over, which the next one makes up for, since it covers all records before it.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::seat::Seat;
use crate::clock;
use crate::config::typed::Anchor as Place;
use crate::disk;
use crate::record::Event;
use crate::telemetry::Metrics;
use crate::workers;

/// Notes that wait for one anchor.
const NOTES_MAX: usize = 16;

/// One place outside.
pub(super) struct Anchor {
    notes: SyncSender<Arc<str>>,
    metrics: Arc<Metrics>,
}

impl Anchor {
    /// Starts the thread that writes to `place`; `seat` takes what there is to tell.
    pub(super) fn start(place: Place, seat: Arc<Seat>, metrics: Arc<Metrics>) -> io::Result<Self> {
        let (give, notes) = sync_channel(NOTES_MAX);
        let counted = Arc::clone(&metrics);
        workers::thread("tollgate-anchor", move || {
            run(&place, &notes, &seat, &counted);
        })?;
        Ok(Self {
            notes: give,
            metrics,
        })
    }

    /// Hands over a note; never waits.
    pub(super) fn give(&self, note: &Arc<str>) {
        if self.notes.try_send(Arc::clone(note)).is_err() {
            self.metrics.seals.not_anchored.inc();
        }
    }
}

fn run(place: &Place, notes: &Receiver<Arc<str>>, seat: &Seat, metrics: &Metrics) {
    let mut stream = None;
    let mut failing = false;
    while let Ok(note) = notes.recv() {
        let written = append(place, &mut stream, &note);
        let count = match &written {
            Ok(()) => &metrics.seals.anchored,
            Err(_) => &metrics.seals.not_anchored,
        };
        count.inc();
        if written.is_err() == std::mem::replace(&mut failing, written.is_err()) {
            continue;
        }
        let anchor = place.to_string();
        let name = match &written {
            Ok(()) => {
                tracing::info!(anchor, "seals reach the anchor again");
                "anchor_back"
            }
            Err(error) => {
                tracing::error!(anchor, %error, "seals do not reach the anchor; the log goes on");
                "anchor_failed"
            }
        };
        let facts = vec![("anchor", anchor)];
        let event = Event { name, facts };
        seat.note(|out| event.encode(clock::wall_ns(), out));
    }
}

/// Writes one note, and an empty line behind it.
fn append(place: &Place, stream: &mut Option<std::fs::File>, note: &str) -> io::Result<()> {
    let text = format!("{note}\n");
    match place {
        Place::File(path) => disk::append(path, text.as_bytes()),
        Place::Descriptor(number) => {
            let out = match stream {
                Some(out) => out,
                None => stream.insert(disk::inherited(*number)?),
            };
            out.write_all(text.as_bytes())
        }
    }
}

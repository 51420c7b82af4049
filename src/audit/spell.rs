//! A time in which entries could not be recorded as they should: since when, why, and what became of them.
//!
//! It is told when it is over, by one event with its beginning and its length, so that every second of it is on
//! record; and while it lasts, first after a minute, then less and less often, so that a process that ends meanwhile
//! leaves as much as it could.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::board::Counts;
use crate::clock;
use crate::record::Event;

const FIRST_TOLD: Duration = Duration::from_secs(60);
const TOLD_MAX: Duration = Duration::from_secs(3600);

pub(super) struct Spell {
    since: Instant,
    cause: String,
    told: Instant,
    every: Duration,
}

impl Spell {
    /// One that has lasted for some time.
    pub(super) fn lasting(lasted: Duration, cause: String) -> Self {
        let now = clock::now();
        Self {
            since: now.checked_sub(lasted).unwrap_or(now),
            cause,
            told: now,
            every: FIRST_TOLD,
        }
    }

    pub(super) fn lasted(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// What there is to tell while it lasts, when it is time.
    pub(super) fn due(&mut self, now: Instant, counts: &Counts) -> Option<Event> {
        if now.saturating_duration_since(self.told) < self.every {
            return None;
        }
        (self.told, self.every) = (now, (self.every * 2).min(TOLD_MAX));
        Some(self.event(now, counts, "no"))
    }

    /// What there is to tell when it is over.
    pub(super) fn over(self, now: Instant, counts: &Counts) -> Event {
        self.event(now, counts, "yes")
    }

    fn event(&self, now: Instant, counts: &Counts, over: &str) -> Event {
        let lasted = self.lasted(now);
        let ns = u64::try_from(lasted.as_nanos()).unwrap_or(u64::MAX);
        let mut since = Vec::new();
        clock::stamp(clock::wall_ns().saturating_sub(ns), &mut since);
        let taken = |count: &AtomicU64| count.swap(0, Ordering::AcqRel).to_string();
        Event {
            name: "degraded",
            facts: vec![
                ("since", String::from_utf8_lossy(&since).into_owned()),
                ("lasted_ms", lasted.as_millis().to_string()),
                ("over", over.to_owned()),
                ("cause", self.cause.clone()),
                ("refused", taken(&counts.refused)),
                ("unrecorded", taken(&counts.unrecorded)),
                ("events_lost", taken(&counts.events_lost)),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_less_and_less_often_and_counts_what_happened_since() {
        let counts = Counts::default();
        let mut spell = Spell::lasting(Duration::from_secs(5), "full".to_owned());
        let start = clock::now();
        let mut told = Vec::new();
        for second in 0..8 * 3600 {
            counts.unrecorded.fetch_add(1, Ordering::Relaxed);
            let now = start + Duration::from_secs(second);
            if let Some(event) = spell.due(now, &counts) {
                told.push((second, event.facts[5].1.clone()));
            }
        }
        let at: Vec<_> = told.iter().map(|(second, _)| *second / 60).collect();
        assert_eq!(at[..6], [1, 3, 7, 15, 31, 63]);
        assert!(at.len() < 15);
        let sum: u64 = told
            .iter()
            .map(|(_, count)| count.parse::<u64>().unwrap())
            .sum();
        let last = spell.over(start + Duration::from_secs(8 * 3600), &counts);
        assert_eq!(last.facts[2].1, "yes");
        assert_eq!(sum + last.facts[5].1.parse::<u64>().unwrap(), 8 * 3600);
        assert!(last.facts[1].1.starts_with("28805"), "{last:?}");
    }
}

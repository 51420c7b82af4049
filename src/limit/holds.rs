//! How many of something each name holds at the same time: the tunnels of an egress client.
//!
//! Names come from the configuration only, which bounds the table; a name that holds nothing has no entry.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The counts of one process.
#[derive(Default)]
pub(super) struct Holds(Mutex<HashMap<Arc<str>, usize>>);

/// One that is held; given back when dropped.
#[derive(Debug)]
#[must_use = "it is held as long as this is"]
pub struct Held {
    holds: Arc<Holds>,
    name: Arc<str>,
}

impl Holds {
    /// One more for `name`, unless that would be more than `max`.
    pub(super) fn hold(self: &Arc<Self>, name: &Arc<str>, max: usize) -> Option<Held> {
        let mut counts = self.lock();
        let count = counts.entry(Arc::clone(name)).or_default();
        if *count >= max {
            return None;
        }
        *count = count.saturating_add(1);
        Some(Held {
            holds: Arc::clone(self),
            name: Arc::clone(name),
        })
    }

    /// No code that panics runs under this lock, so a poisoned one is as good as new.
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counts = self.holds.lock();
        if let Some(count) = counts.get_mut(&self.name) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.name);
            }
        }
    }
}

impl std::fmt::Debug for Holds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Holds(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_holds_its_own_and_gives_it_back() {
        let (holds, app, jobs) = (
            Arc::new(Holds::default()),
            Arc::from("app"),
            Arc::from("jobs"),
        );
        let first = holds.hold(&app, 2).unwrap();
        let second = holds.hold(&app, 2).unwrap();
        assert!(holds.hold(&app, 2).is_none());
        assert!(holds.hold(&jobs, 1).is_some());
        drop(first);
        assert!(holds.hold(&app, 2).is_some());
        assert!(
            holds.hold(&app, 1).is_none(),
            "a smaller bound counts at once"
        );
        drop(second);
        assert!(holds.lock().is_empty());
    }
}

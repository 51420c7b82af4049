//! What the black-box tests share: the real binary as a process, and the peers on both of its sides.
//!
//! Nothing here looks into the crate: a test sees what an operator, a browser, an internal server or a data source
//! sees. Every address is a loopback one, every process is ended by its id, every wait has a deadline.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod authority;
pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod disk;
pub(crate) mod dns;
pub(crate) mod gate;
pub(crate) mod load;
pub(crate) mod log;
pub(crate) mod pebble;
pub(crate) mod peer;
pub(crate) mod pki;
pub(crate) mod redis;
pub(crate) mod small_ca;
pub(crate) mod strace;
pub(crate) mod upstream;

use std::time::{Duration, Instant};

/// Polls until `probe` gives something, or fails the test after `limit`.
pub(crate) fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A number that the environment may set, for soaks that run longer by hand than in CI.
pub(crate) fn rounds(variable: &str, default: usize) -> usize {
    std::env::var(variable)
        .ok()
        .map_or(default, |text| text.parse().expect("a number of rounds"))
}

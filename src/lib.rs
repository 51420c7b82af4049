//! Tollgate: the edge of a low-code platform in one binary.
//!
//! Modules stand on floors, listed here from the top down. A room uses only rooms on lower floors, or of its own
//! folder; `tests/house.rs` checks it. `ARCHITECTURE.md` tells the two ways through the house.

// floor 7: commands

// floor 6: the roof

// floor 5: wings and side rooms

// floor 4: in force, inside, the way out
pub mod sessions;
pub mod snapshot;

// floor 3: organs with threads, files and keys
pub mod audit;

// floor 2: judges, pure
pub mod limit;
pub mod record;
/// Judges of addresses, routes and destinations.
pub mod policy {
    pub mod allow_list;
    pub mod destination;
    pub mod route;
}

// floor 1: tools, mechanism without opinion
pub mod config;
pub(crate) mod disk;
pub mod socket;
pub mod telemetry;
pub mod workers;

// floor 0: words
pub mod addr;
pub mod clock;
pub mod outcome;

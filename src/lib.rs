//! Tollgate: the edge of a low-code platform in one binary.
//!
//! Modules stand on floors, listed here from the top down. A room uses only rooms on lower floors, or of its own
//! folder; `tests/house.rs` checks it. `ARCHITECTURE.md` tells the two ways through the house.

// floor 7: commands
pub mod cli;

// floor 6: the roof
pub mod app;

// floor 5: wings and side rooms
pub mod admin;
pub mod egress;
pub mod ingress;
pub mod listener;
pub mod reload;

// floor 4: in force, inside, the way out
pub mod dial;
pub mod sessions;
pub mod snapshot;

// floor 3: organs with threads, files and keys
pub mod audit;
pub mod resolve;
pub mod tls;

// floor 2: judges, pure
pub mod limit;
pub mod record;
/// Judges of addresses, routes and destinations.
pub mod policy {
    pub mod address;
    pub mod allow_list;
    pub mod destination;
    pub mod route;
}

// floor 1: tools, mechanism without opinion
pub mod config;
pub(crate) mod disk;
pub mod relay;
pub mod socket;
pub mod telemetry;
/// Formats of the wire: parsers and writers without I/O.
pub mod wire {
    pub mod dns;
    pub mod http;
    pub mod proxy_protocol;
    pub mod socks;
}
pub mod workers;

// floor 0: words
pub mod addr;
pub mod clock;
pub mod outcome;

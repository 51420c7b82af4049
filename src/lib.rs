//! Tollgate: the edge of a low-code platform in one binary.
//!
//! Modules stand on floors, listed here from the top down. A room uses only rooms on lower floors, or of its own
//! folder; `tests/house.rs` checks it. `ARCHITECTURE.md` tells the two ways through the house.

// floor 9: commands
pub mod cli;

// floor 8: the roof
pub mod app;

// floor 7: wings and side rooms
pub mod admin;
pub mod egress;
pub mod ingress;
pub mod listener;
pub mod reload;

// floor 6: in force, inside, the way out
pub mod acme;
pub mod dial;
pub mod sessions;
pub mod snapshot;

// floor 5: organs with threads, files and keys
pub mod audit;
pub mod tls;

// floor 4: judges, pure; and what replicas share
pub mod limit;
pub mod record;
pub mod store;
/// Judges of addresses, routes and destinations.
pub mod policy {
    pub mod address;
    pub mod allow_list;
    pub mod destination;
    pub mod route;
}

// floor 3: tools, mechanism without opinion
pub mod config;
pub mod reach;
pub mod relay;
pub mod secret;
pub mod telemetry;

// floor 2: names to addresses
pub mod resolve;

// floor 1: doors to the machine, formats
pub(crate) mod disk;
pub(crate) mod pem;
pub mod socket;
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

//! The transparent way in network namespaces: unmodified clients, the printed firewall rules, and real servers.
//!
//! Three namespaces: the application's, the one that Tollgate runs in, and the one of the data sources. Every test
//! applies exactly what `tollgate egress rules --print` prints.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic and brings its own peers"
)]

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod denied;
mod special;
mod world;

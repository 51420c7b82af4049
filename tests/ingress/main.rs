//! The way in, over real sockets: what comes out at the upstream, at the client and in the log.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod bodies;
mod broken;
mod doors;
mod heads;
mod hostile;
mod streams;
mod support;

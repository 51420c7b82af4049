//! Memory of connections that wait: proportional set size, before and while they are held.

use anyhow::{Result, ensure};

use crate::backend::{Key, Way};
use crate::compare::Ground;
use crate::load;
use crate::sides::Kind;

const CONNECTIONS: usize = 5_000;
const CONNECTIONS_QUICK: usize = 1_000;

pub(crate) fn memory(ground: &Ground, quick: bool) -> Result<bool> {
    let count = if quick {
        CONNECTIONS_QUICK
    } else {
        CONNECTIONS
    };
    println!("w7: idle TLS 1.3 connections, HTTP/1.1, after one request each; {count} of them");
    println!(
        "  {:18} {:>12} {:>12} {:>16}",
        "side", "empty KiB", "full KiB", "KiB/connection"
    );
    for kind in [Kind::Nginx, Kind::TollgateSync] {
        let (backend, sides) = ground.sides(&[kind], Way::In(Key::P256), ground.load_core())?;
        let config = load::client(&backend)?;
        for side in &sides {
            drop(load::idle(side, &config)?);
            let empty = side.child.pss_kib()?;
            let mut held: Vec<_> = (0..count)
                .filter_map(|_| load::idle(side, &config).ok())
                .collect();
            ensure!(
                held.len() == count,
                "only {} of {count} were taken",
                held.len()
            );
            let full = side.child.pss_kib()?;
            let open = held
                .iter_mut()
                .map(load::is_open)
                .filter(|open| *open)
                .count();
            ensure!(
                open == count,
                "only {open} of {count} were left open long enough"
            );
            let each = full.saturating_sub(empty) as f64 / count as f64;
            println!("  {:18} {empty:12} {full:12} {each:16.1}", side.name);
        }
    }
    println!();
    Ok(true)
}

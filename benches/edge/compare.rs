//! Rounds: every side once a round, in turn; ratios are made within a round.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::backend::{Backend, Key, Way};
use crate::load::{self, Served};
use crate::sides::{Kind, Makers, Side};
use crate::table::{Column, Table};

/// On a disk, where the temporary directory may be memory: what a sync costs is measured too.
const FOLDER: &str = "/var/tmp";

/// What all workloads of one run share.
pub(crate) struct Ground {
    rounds: usize,
    seconds: u32,
    makers: Makers,
    pub(crate) folder: PathBuf,
}

const IN: [Kind; 2] = [Kind::Nginx, Kind::TollgateSync];
const DOORS: [Kind; 3] = [Kind::Nginx, Kind::Haproxy, Kind::TollgateSync];
const OUT: [Kind; 2] = [Kind::Squid, Kind::TollgateSync];
const LOGS: [Kind; 5] = [
    Kind::Nginx,
    Kind::NginxLog,
    Kind::TollgateBare,
    Kind::TollgateWrite,
    Kind::TollgateSync,
];

impl Ground {
    pub(crate) fn new(rounds: usize, seconds: u32, makers: Makers) -> Result<Self> {
        let folder = Path::new(FOLDER).join(format!("tollgate-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Self {
            rounds,
            seconds,
            makers,
            folder,
        })
    }

    /// The servers behind and the sides in front, running.
    pub(crate) fn sides(
        &self,
        kinds: &[Kind],
        way: Way,
        load_core: usize,
    ) -> Result<(Backend, Vec<Side>)> {
        let backend = Backend::start(way, &self.folder, load_core)?;
        let sides = self.makers.start(kinds, &self.folder, &backend)?;
        Ok((backend, sides))
    }

    pub(crate) fn load_core(&self) -> usize {
        self.makers.load_core
    }

    fn compare(
        &self,
        what: &str,
        unit: &'static str,
        scale: f64,
        kinds: &[Kind],
        way: Way,
        load: impl Fn(&Side, &Backend) -> Result<Served>,
    ) -> Result<bool> {
        let (backend, sides) = self.sides(kinds, way, self.makers.load_core)?;
        let mut columns: Vec<Column> = sides.iter().map(|side| Column::new(&side.name)).collect();
        for round in 0..=self.rounds {
            for (side, column) in sides.iter().zip(&mut columns) {
                eprint!(
                    "\r{what}: round {round} of {}, {}        ",
                    self.rounds, side.name
                );
                let before = side.child.cpu_ns()?;
                let served = load(side, &backend).with_context(|| side.name.clone())?;
                let cpu = side.child.cpu_ns()?.saturating_sub(before) as f64;
                if round > 0 {
                    column.add(cpu / scale / served.units, served);
                }
            }
        }
        eprint!("\r{:70}\r", "");
        Ok(Table {
            what,
            unit,
            columns,
        }
        .print())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok(); // left behind, it is among temporary files
    }
}

const MICROSECONDS: f64 = 1e3;
const SECONDS: f64 = 1e9;

pub(crate) fn requests(ground: &Ground) -> Result<bool> {
    let what = "w1: HTTPS/1.1 keep-alive, 1 KiB, 64 connections";
    ground.compare(
        what,
        "us/request",
        MICROSECONDS,
        &LOGS,
        Way::In(Key::P256),
        |side, _| load::requests(side, ground.seconds),
    )
}

pub(crate) fn streams(ground: &Ground) -> Result<bool> {
    let what = "w2: HTTPS/2, 1 KiB, 16 connections with 32 streams";
    ground.compare(
        what,
        "us/request",
        MICROSECONDS,
        &IN,
        Way::In(Key::P256),
        |side, _| load::streams(side, ground.seconds),
    )
}

pub(crate) fn handshakes(ground: &Ground) -> Result<bool> {
    let count = 1000 * u64::from(ground.seconds);
    let measure = |what, key, load: fn(&Side, &Backend, u64) -> Result<Served>| {
        let load = |side: &Side, to: &Backend| load(side, to, count);
        let unit = "us/connection";
        ground.compare(what, unit, MICROSECONDS, &DOORS, Way::In(key), load)
    };
    let ecdsa = "w3: full TLS 1.3 handshake, ECDSA P-256, no request";
    let rsa = "w3: full TLS 1.3 handshake, RSA 2048, no request";
    let resumed = "w3: resumed TLS 1.3 handshake, no request";
    Ok(measure(ecdsa, Key::P256, load::handshakes)?
        & measure(rsa, Key::Rsa2048, load::handshakes)?
        & measure(resumed, Key::P256, load::resumptions)?)
}

pub(crate) fn downloads(ground: &Ground) -> Result<bool> {
    let count = 4 * u64::from(ground.seconds);
    ground.compare(
        "w4: download of 100 MiB",
        "CPU-s/GiB",
        SECONDS,
        &IN,
        Way::In(Key::P256),
        |side, to| load::downloads(side, to, count),
    )
}

pub(crate) fn uploads(ground: &Ground) -> Result<bool> {
    let count = 4 * u64::from(ground.seconds);
    ground.compare(
        "w5: upload of 100 MiB",
        "CPU-s/GiB",
        SECONDS,
        &IN,
        Way::In(Key::P256),
        |side, to| load::uploads(side, to, count),
    )
}

pub(crate) fn tunnels(ground: &Ground) -> Result<bool> {
    let count = 6 * u64::from(ground.seconds);
    let down = ground.compare(
        "w6: CONNECT tunnel, down",
        "CPU-s/GiB",
        SECONDS,
        &OUT,
        Way::Out,
        |side, to| load::downloads(side, to, count),
    )?;
    let up = ground.compare(
        "w6: CONNECT tunnel, up",
        "CPU-s/GiB",
        SECONDS,
        &OUT,
        Way::Out,
        |side, to| load::uploads(side, to, count),
    )?;
    Ok(down && up)
}

pub(crate) fn tunnel_openings(ground: &Ground) -> Result<bool> {
    let count = 1000 * u64::from(ground.seconds);
    let what = "w6c: CONNECT, one page of 1 KiB, close";
    ground.compare(
        what,
        "us/tunnel",
        MICROSECONDS,
        &OUT,
        Way::Out,
        |side, to| load::tunnel_openings(side, to, count),
    )
}

/// Not a comparison: nothing may stand still.
pub(crate) fn stalls(ground: &Ground, count: u32) -> Result<bool> {
    let mut whole = true;
    for (way, what) in [
        (Way::In(Key::P256), "the way in"),
        (Way::Out, "a CONNECT tunnel"),
    ] {
        let (backend, sides) = ground.sides(&[Kind::TollgateSync], way, ground.makers.load_core)?;
        let side = sides.first().context("no side")?;
        for (direction, load) in [
            ("down", load::downloads as fn(&_, &_, _) -> _),
            ("up", load::uploads),
        ] {
            let served: Served = load(side, &backend, count.into())?;
            println!(
                "stall: {count} x 100 MiB {direction} through {what}: {} failed, {:.0} s",
                served.errors, served.seconds
            );
            whole &= served.errors == 0;
        }
    }
    Ok(whole)
}

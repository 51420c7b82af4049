//! The project's own benchmark: the real `tollgate run` beside nginx and squid, CPU per unit of work.
//!
//! Every measurement is the CPU time of the proxy's processes, taken from their clocks before and after a fixed piece
//! of load, so another job on the machine disturbs it less than it would disturb a rate. Sides take turns within a
//! round, and ratios are made per round. It asserts nothing: `benches/README.md` says how to read it.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a table and its progress are what it is for"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "a load tool stands outside the house: its sockets, threads and time are its own"
)]

mod backend;
mod child;
mod compare;
mod idle;
mod load;
mod sides;
mod table;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::compare::Ground;

/// CPU per unit of work of Tollgate, beside nginx, HAProxy and squid in the same run.
#[derive(Parser)]
#[command(name = "edge", version, about)]
struct Args {
    /// What to measure; everything but `stall` if none is named
    workloads: Vec<Workload>,
    /// Rounds that count; one more is run first and dropped
    #[arg(long)]
    rounds: Option<usize>,
    /// Length of one measurement: the time of a timed load, and the scale of a counted one
    #[arg(long)]
    seconds: Option<u32>,
    /// Three rounds of one second and fewer connections
    #[arg(long)]
    quick: bool,
    /// Measure nginx and squid against a second instance of themselves: what a ratio of 1 looks like today
    #[arg(long)]
    control: bool,
    /// Core of the proxy
    #[arg(long, default_value_t = 1)]
    proxy_core: usize,
    /// Core of the load and of the internal server
    #[arg(long, default_value_t = 0)]
    load_core: usize,
    /// The binary to measure instead of the one built with this benchmark
    #[arg(long)]
    tollgate: Option<PathBuf>,
    /// Transfers each way in `stall`
    #[arg(long, default_value_t = 300)]
    count: u32,
    /// Only these sides; ratios are to the first that is left
    #[arg(long, value_delimiter = ',')]
    sides: Vec<sides::Kind>,
    /// Given by `cargo bench` to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// What can be measured. The numbers are those of the baseline.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
enum Workload {
    /// HTTPS/1.1 keep-alive, 1 KiB, 64 connections; with what the log adds
    #[value(alias = "w10")]
    W1,
    /// HTTPS/2, 1 KiB, 16 connections with 32 streams each
    W2,
    /// TLS 1.3 handshakes: full with an ECDSA P-256 and an RSA 2048 certificate, and resumed
    W3,
    /// Download of 100 MiB
    W4,
    /// Upload of 100 MiB
    W5,
    /// CONNECT tunnel, bulk down and up
    W6,
    /// CONNECT tunnel, connections
    W6c,
    /// Memory of idle TLS connections
    W7,
    /// 100 MiB down and up, again and again, under a time limit
    Stall,
}

const DEFAULT_ROUNDS: usize = 7;
const DEFAULT_SECONDS: u32 = 2;
const QUICK_ROUNDS: usize = 3;
const QUICK_SECONDS: u32 = 1;
const OPEN_FILES: u64 = 20_000;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("edge: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every workload could be measured on every side.
fn run(args: &Args) -> Result<bool> {
    child::require_tools()?;
    more_open_files();
    stay_on(args.load_core)?;
    let (rounds, seconds) = if args.quick {
        (QUICK_ROUNDS, QUICK_SECONDS)
    } else {
        (DEFAULT_ROUNDS, DEFAULT_SECONDS)
    };
    let tollgate = args.tollgate.clone();
    let ground = Ground::new(
        args.rounds.unwrap_or(rounds).max(1),
        args.seconds.unwrap_or(seconds).max(1),
        sides::Makers {
            core: args.proxy_core,
            load_core: args.load_core,
            control: args.control,
            only: args.sides.clone(),
            tollgate: tollgate.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_tollgate"))),
        },
    )?;
    let every = || Workload::value_variants().iter().copied();
    let wanted: BTreeSet<_> = if args.workloads.is_empty() {
        every().filter(|w| *w != Workload::Stall).collect()
    } else {
        args.workloads.iter().copied().collect()
    };
    let mut whole = true;
    for workload in wanted {
        whole &= measure(workload, &ground, args)?;
    }
    Ok(whole)
}

fn measure(workload: Workload, ground: &Ground, args: &Args) -> Result<bool> {
    match workload {
        Workload::W1 => compare::requests(ground),
        Workload::W2 => compare::streams(ground),
        Workload::W3 => compare::handshakes(ground),
        Workload::W4 => compare::downloads(ground),
        Workload::W5 => compare::uploads(ground),
        Workload::W6 => compare::tunnels(ground),
        Workload::W6c => compare::tunnel_openings(ground),
        Workload::W7 => idle::memory(ground, args.quick),
        Workload::Stall => compare::stalls(ground, args.count),
    }
    .with_context(|| format!("{workload:?}"))
}

/// Keeps this process, and with it every load tool it starts, off the proxy's core.
fn stay_on(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set)
        .with_context(|| format!("core {core} of the load is not available; use --load-core"))
}

/// Idle connections need a descriptor each; what cannot be had shows as an error of that workload.
fn more_open_files() {
    let now = getrlimit(Resource::Nofile);
    let wanted = now.maximum.map_or(OPEN_FILES, |most| most.min(OPEN_FILES));
    let limit = Rlimit {
        current: Some(wanted),
        maximum: now.maximum,
    };
    setrlimit(Resource::Nofile, limit).ok();
}

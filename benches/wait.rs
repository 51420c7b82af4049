//! What the audit log makes a request wait, and how much its writer can take.
//!
//! Open loop: entries begin at a fixed rate, whether those before them have ended or not, and each is timed from the
//! moment at which it should have begun. So a disk that stands still is in the figures with everybody who waited for
//! it. `none` is the same without a log: what the clockwork itself costs.
//!
//! Everything of the product runs on one core, the clockwork on another; for `capacity` the worker has a core and the
//! log's threads have the other. After each measurement the log is verified.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a table and its progress are what it is for"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rustix::thread::{CpuSet, sched_setaffinity};
use tollgate::audit::{Journal, Trust, verify};
use tollgate::clock::{self, Id};
use tollgate::config::{self, typed::OnFailure};
use tollgate::outcome::Outcome;
use tollgate::record::{After, Before};
use tollgate::telemetry::Metrics;
use tollgate::workers::{Hooks, Workers};

#[path = "entry/mod.rs"]
mod entry;

use entry::Facts;

/// What a request waits for its record at fixed rates, and how many records the writer takes.
#[derive(Parser)]
#[command(name = "wait", version, about)]
struct Args {
    /// Entries per second
    #[arg(long, value_delimiter = ',', default_value = "1000,5000,20000")]
    rates: Vec<u64>,
    /// Length of one measurement
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Rounds; each has every side once
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Entries at once while the writer's capacity is measured
    #[arg(long, default_value_t = 2048)]
    at_once: usize,
    /// Only the writer's capacity
    #[arg(long)]
    capacity: bool,
    /// The cores: of the product, and of the clockwork
    #[arg(long, value_delimiter = ',', num_args = 2, default_value = "1,0")]
    cores: Vec<usize>,
    /// Where the logs are made and removed again; by default on the disk of the build
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    state_dir: PathBuf,
    /// Given by `cargo bench` to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    None,
    Write,
    Sync,
}

/// One log with its worker.
struct House {
    journal: Journal,
    workers: Workers,
    shift: Arc<Shift>,
    folder: tempfile::TempDir,
}

/// What the tasks share.
struct Shift {
    journal: Option<Journal>,
    facts: Facts,
    over: AtomicBool,
    refused: AtomicU64,
    /// Nanoseconds that each admission took.
    waits: Mutex<Vec<u64>>,
}

/// Quantiles, in microseconds.
struct Waits {
    p50: f64,
    p99: f64,
    most: f64,
}

const SIDES: [Side; 3] = [Side::None, Side::Write, Side::Sync];
const WARM_UP: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(2);
const END_LIMIT: Duration = Duration::from_secs(30);
/// Below this the clockwork does not sleep: it could not wake in time.
const SPIN: Duration = Duration::from_micros(200);
/// Name of the writer's thread, as the kernel cuts it, to 15 bytes.
const WRITER: &str = "tollgate-journa";

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wait: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    println!("log in {}", args.state_dir.display());
    if !args.capacity {
        println!(
            "  {:>8}  {:6} {:>10} {:>10} {:>10}   {:>10} {:>10}",
            "per s", "log", "p50 us", "p99 us", "most us", "added p50", "added p99"
        );
        for rate in &args.rates {
            open_loop(*rate, args)?;
        }
    }
    println!(
        "  {:6} {:>12} {:>14} {:>16} {:>14}",
        "log", "records/s", "batch", "writer us/record", "bytes/entry"
    );
    for side in [Side::Write, Side::Sync] {
        capacity(side, args)?;
    }
    Ok(())
}

/// Every side at one rate, in rounds; medians over the rounds.
fn open_loop(rate: u64, args: &Args) -> Result<()> {
    let mut rounds: Vec<[Waits; SIDES.len()]> = Vec::new();
    for round in 1..=args.rounds {
        eprint!("\r{rate} per second: round {round} of {}   ", args.rounds);
        let [none, write, sync] = SIDES.map(|side| paced(side, rate, args));
        rounds.push([none?, write?, sync?]);
    }
    eprint!("\r{:50}\r", "");
    for (at, side) in SIDES.iter().enumerate() {
        let of = |get: fn(&Waits) -> f64| median(rounds.iter().map(|round| get(&round[at])));
        let added =
            |get: fn(&Waits) -> f64| median(rounds.iter().map(|r| get(&r[at]) - get(&r[0])));
        println!(
            "  {rate:8}  {:6} {:10.0} {:10.0} {:10.0}   {:+10.0} {:+10.0}",
            format!("{side:?}").to_lowercase(),
            of(|w| w.p50),
            of(|w| w.p99),
            of(|w| w.most),
            added(|w| w.p50),
            added(|w| w.p99),
        );
    }
    Ok(())
}

fn paced(side: Side, rate: u64, args: &Args) -> Result<Waits> {
    let house = House::open(side, args.cores[0], args.cores[0], args)?;
    pin(args.cores[1])?;
    let interval = Duration::from_nanos(1_000_000_000 / rate);
    let count = rate * args.seconds;
    let start = clock::now() + WARM_UP;
    for at in 0..count {
        let due = start + interval * u32::try_from(at).unwrap_or(u32::MAX);
        wait_for(due);
        let crew = house.workers.crew();
        crew.run_on(0, Arc::clone(&house.shift).timed(due));
    }
    let end = clock::now();
    let done = || house.shift.waits().len() as u64 + house.shift.refused.load(Ordering::Relaxed);
    while done() < count && end.elapsed() < END_LIMIT {
        sleep(POLL);
    }
    ensure!(
        done() == count,
        "{side:?}: {} of {count} entries ended",
        done()
    );
    let mut waits = std::mem::take(&mut *house.shift.waits());
    house.close(side)?;
    waits.sort_unstable();
    let at = |share: f64| {
        let place = (waits.len().saturating_sub(1) as f64 * share) as usize;
        waits.get(place).copied().unwrap_or_default() as f64 / 1e3
    };
    Ok(Waits {
        p50: at(0.5),
        p99: at(0.99),
        most: at(1.0),
    })
}

/// As many records as the writer can take from one worker that does nothing else.
fn capacity(side: Side, args: &Args) -> Result<()> {
    let house = House::open(side, args.cores[0], args.cores[1], args)?;
    for _ in 0..args.at_once {
        house
            .workers
            .crew()
            .run_on(0, Arc::clone(&house.shift).endless());
    }
    sleep(WARM_UP);
    let metrics = &house.shift;
    let (start, first, cpu) = (clock::now(), metrics.waits().len(), writer_ns()?);
    sleep(Duration::from_secs(args.seconds));
    let (lasted, last, spent) = (start.elapsed(), metrics.waits().len(), writer_ns()? - cpu);
    house.shift.over.store(true, Ordering::Relaxed);
    let end = clock::now();
    while Arc::strong_count(&house.shift) > 1 && end.elapsed() < END_LIMIT {
        sleep(POLL);
    }
    let records = 2.0 * (last - first) as f64;
    let (batch, bytes) = house.close(side)?;
    println!(
        "  {:6} {:12.0} {batch:14.0} {:16.3} {bytes:14.0}",
        format!("{side:?}").to_lowercase(),
        records / lasted.as_secs_f64(),
        spent as f64 / records / 1e3,
    );
    Ok(())
}

impl House {
    /// Opens a log on core `log`, with a worker on core `worker`.
    fn open(side: Side, log: usize, worker: usize, args: &Args) -> Result<Self> {
        let folder = tempfile::tempdir_in(&args.state_dir)
            .with_context(|| format!("{}: no folder can be made", args.state_dir.display()))?;
        let durability = if side == Side::Sync { "sync" } else { "write" };
        let text = format!(
            "[audit]\ndurability = \"{durability}\"\nwait_budget = \"10s\"\n\
             [egress]\nfixed = [\"127.0.0.1\"]\nresolver = {{ servers = [\"127.0.0.1:53\"] }}\n"
        );
        let (config, _) = config::parse(Path::new("wait.toml"), text)
            .map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
        pin(log)?;
        let journal = Journal::open(folder.path(), &config.audit, 1, Arc::new(Metrics::new()))?;
        pin(worker)?;
        let park = journal.clone();
        let workers = Workers::start(
            1,
            Hooks {
                start: Box::new(Journal::sit),
                park: Box::new(move |seat| park.park(seat)),
            },
        )?;
        let shift = Arc::new(Shift {
            journal: (side != Side::None).then(|| journal.clone()),
            facts: Facts::new(journal.tag_key()),
            over: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            waits: Mutex::default(),
        });
        Ok(Self {
            journal,
            workers,
            shift,
            folder,
        })
    }

    /// Ends it, verifies the log, and gives entries per write and bytes per entry.
    fn close(self, side: Side) -> Result<(f64, f64)> {
        let refused = self.shift.refused.load(Ordering::Relaxed);
        self.workers.stop();
        drop(self.shift);
        self.journal.close();
        ensure!(refused == 0, "{side:?}: {refused} entries were refused");
        if side == Side::None {
            return Ok((0.0, 0.0));
        }
        let dirs = [self.folder.path().to_owned()];
        let report = verify(&dirs, &Trust::default(), &mut |_| {})?;
        ensure!(
            report.problem.is_none() && report.open == 0,
            "{side:?}: {report:?}"
        );
        let (mut bytes, mut batches) = (0, 0);
        for file in fs::read_dir(self.folder.path().join("audit"))? {
            let path = file?.path();
            if path.extension().is_some_and(|e| e == "jsonl") {
                let text = fs::read(&path)?;
                bytes += text.len();
                batches += memchr::memmem::find_iter(&text, b",\"batch\":").count();
            }
        }
        let entries = report.entries as f64;
        Ok((entries / batches.max(1) as f64, bytes as f64 / entries))
    }
}

impl Shift {
    fn waits(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One entry, which should have begun at `due`.
    async fn timed(self: Arc<Self>, due: Instant) {
        let request = self.facts.request();
        let before = Before::Request(std::hint::black_box(&request));
        let Some(journal) = &self.journal else {
            self.note(due);
            return;
        };
        match journal.admit(Id::new(), &before, OnFailure::Refuse).await {
            Ok(admitted) => {
                self.note(due);
                admitted.complete(served());
            }
            Err(_) => drop(self.refused.fetch_add(1, Ordering::Relaxed)),
        }
    }

    async fn endless(self: Arc<Self>) {
        while !self.over.load(Ordering::Relaxed) {
            Arc::clone(&self).timed(clock::now()).await;
        }
    }

    fn note(&self, due: Instant) {
        let waited = u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waits().push(waited);
    }
}

fn served() -> After {
    After {
        outcome: Outcome::Served,
        status: Some(200),
        bytes_in: 0,
        bytes_out: 1024,
        ends: None,
    }
}

fn wait_for(due: Instant) {
    loop {
        let left = due.saturating_duration_since(clock::now());
        if left.is_zero() {
            return;
        }
        if left > SPIN {
            sleep(left - SPIN);
        } else {
            std::hint::spin_loop();
        }
    }
}

/// The current thread, and those that it starts, run on this core only.
fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set)
        .with_context(|| format!("core {core} is not available; use --cores"))
}

/// CPU time of the writer's thread so far.
fn writer_ns() -> Result<u64> {
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim_end() == WRITER {
            let times = fs::read_to_string(task.join("schedstat"))?;
            let ran = times.split_whitespace().next().context("no schedstat")?;
            return Ok(ran.parse()?);
        }
    }
    anyhow::bail!("the writer's thread was not found")
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

//! What the audit log costs by itself: CPU per entry, which is a BEFORE record, the wait until it is durable, and an
//! AFTER record.
//!
//! One worker with the park hook of the real house admits and completes the facts of a typical request, so many at
//! once, as fast as it can. Everything is on one core. CPU is what the scheduler counted for the worker and the writer
//! meanwhile, and an entry's share, by its bytes, of what it took to make segments ahead; the kernel's own threads
//! (write-back, the file system's journal) are not in it. After each measurement the log is verified: one that does
//! not hold every entry is an error.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a table and its progress are what it is for"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rustix::thread::{CpuSet, sched_setaffinity};
use tollgate::audit::{Journal, Trust, verify};
use tollgate::clock::{self, Id};
use tollgate::config::typed::{Audit, Durability, OnFailure};
use tollgate::outcome::Outcome;
use tollgate::record::{After, Before};
use tollgate::telemetry::Metrics;
use tollgate::workers::{Hooks, Workers};

#[path = "entry/mod.rs"]
mod entry;

use entry::Facts;

/// CPU per entry of the audit log, in this process, with no request around it.
#[derive(Parser)]
#[command(name = "journal", version, about)]
struct Args {
    /// Rounds that count; one more is run first and dropped
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of one measurement, if it does not come to 100,000 entries before
    #[arg(long, default_value_t = 1)]
    seconds: u64,
    /// Entries at once, which is the size of a batch
    #[arg(long, value_delimiter = ',', default_value = "1,8,16,32,64")]
    at_once: Vec<usize>,
    /// Three rounds, batches of 16
    #[arg(long)]
    quick: bool,
    /// The one core for everything
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// Where the logs are made and removed again; by default on the disk of the build
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    state_dir: PathBuf,
    /// Given by `cargo bench` to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// What happens to an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    /// Its facts are made and its task gives way once: no journal.
    Nothing,
    Write,
    Sync,
}

/// One measurement, in microseconds per entry.
struct Sample {
    worker: f64,
    writer: f64,
    spare: f64,
    per_second: f64,
    /// Entries in one write.
    batch: f64,
    /// Bytes of both records of an entry.
    bytes: f64,
}

/// CPU time so far, in ns.
#[derive(Clone, Copy, Default)]
struct Cpu {
    worker: u64,
    writer: u64,
    spare: u64,
}

/// The work of the tasks, and what they tell.
struct Shift {
    journal: Option<Journal>,
    facts: Facts,
    over: AtomicBool,
    entries: AtomicU64,
    refused: AtomicU64,
}

/// Names of the threads that are looked at, as the kernel cuts them, to 15 bytes.
const WORKER: &str = "tollgate-0";
const WRITER: &str = "tollgate-journa";
const SPARE: &str = "tollgate-spare";
const WARM_UP: Duration = Duration::from_millis(200);
const WARM_UP_ENTRIES: u64 = 5_000;
/// A measurement ends here if not by its time: it bounds what is written, and verified, and still to be written back
/// when the next one begins.
const ENTRIES_MAX: u64 = 100_000;
const POLL: Duration = Duration::from_millis(2);
const END_LIMIT: Duration = Duration::from_secs(10);
/// Segments as the product makes them: the first of a process is smaller, so a measurement begins beside a full one.
const FIRST_SEGMENT_BYTES: u64 = 4 << 20;
const SEGMENT_BYTES: u64 = 64 << 20;
/// Making a segment is over when its thread has had nothing to do for so long.
const QUIET: Duration = Duration::from_millis(50);
const SIDES: [Side; 3] = [Side::Nothing, Side::Write, Side::Sync];

fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.quick {
        args.rounds = 3;
        args.at_once = vec![16];
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("journal: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(args.core);
    sched_setaffinity(None, &set)
        .with_context(|| format!("core {} is not available; use --core", args.core))?;
    println!(
        "audit log: CPU us per entry on one core, median of {} rounds, log in {}",
        args.rounds,
        args.state_dir.display()
    );
    println!(
        "  {:>7}  {:8} {:>7} {:>7} {:>7} {:>7} {:>13} {:>22} {:>7} {:>7} {:>10}",
        "at once",
        "side",
        "worker",
        "writer",
        "spares",
        "sum",
        "min-max",
        "the log adds [min-max]",
        "batch",
        "bytes",
        "entries/s"
    );
    for at_once in &args.at_once {
        let mut rounds: Vec<[Sample; SIDES.len()]> = Vec::new();
        for round in 0..=args.rounds {
            eprint!("\r{at_once} at once: round {round} of {}   ", args.rounds);
            let [nothing, write, sync] = SIDES.map(|side| measure(side, *at_once, args));
            let samples = [nothing?, write?, sync?];
            if round > 0 {
                rounds.push(samples);
            }
        }
        eprint!("\r{:50}\r", "");
        print(*at_once, &rounds);
    }
    Ok(())
}

fn print(at_once: usize, rounds: &[[Sample; SIDES.len()]]) {
    for (at, side) in SIDES.iter().enumerate() {
        let of = |get: fn(&Sample) -> f64| spread(rounds.iter().map(|round| get(&round[at])));
        let (sum, least, most) = of(Sample::sum);
        let (added, adds_least, adds_most) =
            spread(rounds.iter().map(|r| r[at].sum() - r[0].sum()));
        println!(
            "  {at_once:7}  {:8} {:7.2} {:7.2} {:7.2} {sum:7.2} {:>13} {:>22} {:7.1} {:7.0} {:10.0}",
            format!("{side:?}").to_lowercase(),
            of(|s| s.worker).0,
            of(|s| s.writer).0,
            of(|s| s.spare).0,
            format!("{least:.2}-{most:.2}"),
            format!("{added:+.2} [{adds_least:+.2}..{adds_most:+.2}]"),
            of(|s| s.batch).0,
            of(|s| s.bytes).0,
            of(|s| s.per_second).0,
        );
    }
}

fn measure(side: Side, at_once: usize, args: &Args) -> Result<Sample> {
    let folder = tempfile::tempdir_in(&args.state_dir)
        .with_context(|| format!("{}: no folder can be made", args.state_dir.display()))?;
    let metrics = Arc::new(Metrics::new());
    let journal = open(side, folder.path(), &metrics)?;
    let spare_ns = match side {
        Side::Nothing => 0,
        Side::Write | Side::Sync => spare_made(folder.path())?,
    };
    let key = journal.tag_key();
    let park = journal.clone();
    let workers = Workers::start(
        1,
        Hooks {
            start: Box::new(Journal::sit),
            park: Box::new(move |seat| park.park(seat)),
        },
    )?;
    let shift = Arc::new(Shift {
        journal: (side != Side::Nothing).then(|| journal.clone()),
        facts: Facts::new(key),
        over: AtomicBool::new(false),
        entries: AtomicU64::new(0),
        refused: AtomicU64::new(0),
    });
    for _ in 0..at_once {
        workers.crew().run_on(0, Arc::clone(&shift).work());
    }
    shift.until(WARM_UP, WARM_UP_ENTRIES);
    let (start, before, first) = (clock::now(), Cpu::now()?, shift.entries());
    let batches = metrics.journal_syncs.get();
    shift.until(Duration::from_secs(args.seconds), ENTRIES_MAX);
    let (after, last) = (Cpu::now()?, shift.entries());
    let (lasted, batches) = (start.elapsed(), metrics.journal_syncs.get() - batches);
    shift.over.store(true, Ordering::Relaxed);
    let end = clock::now();
    while Arc::strong_count(&shift) > 1 && end.elapsed() < END_LIMIT {
        sleep(POLL);
    }
    ensure!(Arc::strong_count(&shift) == 1, "{side:?}: the tasks hang");
    workers.stop();
    journal.close();
    let bytes = hold(side, folder.path(), &shift)?;
    let entries = (last - first) as f64;
    ensure!(entries > 0.0, "{side:?}: nothing was admitted");
    ensure!(before.worker > 0, "the worker's thread was not found");
    let each = |get: fn(&Cpu) -> u64| (get(&after) - get(&before)) as f64 / entries / 1e3;
    Ok(Sample {
        worker: each(|cpu| cpu.worker),
        writer: each(|cpu| cpu.writer),
        spare: spare_ns as f64 / (FIRST_SEGMENT_BYTES + SEGMENT_BYTES) as f64 * bytes / 1e3,
        per_second: entries / lasted.as_secs_f64(),
        batch: entries / batches.max(1) as f64,
        bytes,
    })
}

fn open(side: Side, folder: &Path, metrics: &Arc<Metrics>) -> Result<Journal> {
    let settings = Audit {
        durability: match side {
            Side::Sync => Durability::Sync,
            Side::Nothing | Side::Write => Durability::Write,
        },
        on_failure: OnFailure::Refuse,
        wait_budget: Duration::from_secs(5),
        stall_after: Duration::from_secs(5), // a slow disk is no error here
        segment_bytes: SEGMENT_BYTES,
        seal_every: Duration::from_secs(1),
        anchors: Vec::new(),
        receipt_key: None,
        query_values: Vec::new(),
        secret_paths: Vec::new(),
        ..Audit::default()
    };
    Ok(Journal::open(folder, &settings, 1, Arc::clone(metrics))?)
}

/// Waits until the first two segments are made, and gives the CPU time that it took, in ns. The file has its size
/// long before it is on disk: only a thread that waits for the next order, and not for the disk, has made it.
fn spare_made(folder: &Path) -> Result<u64> {
    let path = folder.join("audit/spare");
    let begin = clock::now();
    let mut since = begin;
    while begin.elapsed() < END_LIMIT {
        let made = fs::metadata(&path).is_ok_and(|file| file.len() == SEGMENT_BYTES);
        if !(made && Cpu::is_spare_idle()?) {
            since = clock::now();
        } else if since.elapsed() > QUIET {
            return Ok(Cpu::now()?.spare);
        }
        sleep(POLL);
    }
    bail!("no spare segment was made within {END_LIMIT:?}")
}

/// Sees to it that the log holds what was measured, and gives the bytes per entry.
fn hold(side: Side, folder: &Path, shift: &Shift) -> Result<f64> {
    let refused = shift.refused.load(Ordering::Relaxed);
    ensure!(refused == 0, "{side:?}: {refused} entries were refused");
    if side == Side::Nothing {
        return Ok(0.0);
    }
    let log = folder.join("audit");
    let report = verify(&[folder.to_owned()], &Trust::default(), &mut |_| {})?;
    ensure!(
        report.open == 0 && report.entries == shift.entries(),
        "{side:?}: the log holds {} entries, {} of them open, and not {}",
        report.entries,
        report.open,
        shift.entries()
    );
    let mut bytes = 0;
    for file in fs::read_dir(&log)? {
        let file = file?;
        if file.path().extension().is_some_and(|e| e == "jsonl") {
            bytes += file.metadata()?.len();
        }
    }
    Ok(bytes as f64 / report.entries as f64)
}

impl Shift {
    fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Waits for the time to pass, or for so many further entries.
    fn until(&self, time: Duration, entries: u64) {
        let (start, first) = (clock::now(), self.entries());
        let enough = || self.journal.is_some() && self.entries() - first >= entries;
        while start.elapsed() < time && !enough() {
            sleep(POLL);
        }
    }

    /// One entry after another.
    async fn work(self: Arc<Self>) {
        while !self.over.load(Ordering::Relaxed) {
            let request = self.facts.request();
            let before = Before::Request(std::hint::black_box(&request));
            let Some(journal) = &self.journal else {
                tokio::task::yield_now().await;
                self.entries.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            match journal.admit(Id::new(), &before, OnFailure::Refuse).await {
                Ok(admitted) => admitted.complete(After {
                    outcome: Outcome::Served,
                    status: Some(200),
                    bytes_in: 0,
                    bytes_out: 1024,
                    ends: None,
                }),
                Err(_) => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            }
            self.entries.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Sample {
    fn sum(&self) -> f64 {
        self.worker + self.writer + self.spare
    }
}

impl Cpu {
    /// Of the threads that are there now.
    fn now() -> Result<Self> {
        let mut cpu = Self::default();
        for (name, task) in tasks()? {
            let part = match name.as_str() {
                WORKER => &mut cpu.worker,
                WRITER => &mut cpu.writer,
                SPARE => &mut cpu.spare,
                _ => continue,
            };
            let times = fs::read_to_string(task.join("schedstat"))?;
            let ran = times.split_whitespace().next().context("no schedstat")?;
            *part += ran.parse::<u64>()?;
        }
        Ok(cpu)
    }

    /// Whether the thread that makes segments waits, for something else than the disk.
    fn is_spare_idle() -> Result<bool> {
        let spare = tasks()?.into_iter().find(|(name, _)| name == SPARE);
        let (_, task) = spare.context("the thread that makes segments was not found")?;
        let stat = fs::read_to_string(task.join("stat"))?;
        let state = stat.rsplit(") ").next().unwrap_or_default();
        Ok(state.starts_with('S'))
    }
}

/// The threads of this process, by name.
fn tasks() -> Result<Vec<(String, PathBuf)>> {
    let named = |task: std::io::Result<fs::DirEntry>| -> Result<_> {
        let task = task?.path();
        let name = fs::read_to_string(task.join("comm"))?;
        Ok((name.trim_end().to_owned(), task))
    };
    fs::read_dir("/proc/self/task")?.map(named).collect()
}

/// Median, least and most.
fn spread(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.len().saturating_sub(1) / 2, sorted.len() / 2);
    let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
    (
        f64::midpoint(at(low), at(high)),
        at(0),
        at(sorted.len().saturating_sub(1)),
    )
}

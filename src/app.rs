//! The roof: builds the house once, hands each wing only what it needs, starts, reloads, drains, stops.
//!
//! Everything that outlives a snapshot is owned here: journal, limits, sessions, metrics, keys, workers, listeners. The
//! order of the end matters: readiness false, stop accepting, let sessions finish, write their last records, close
//! the log, and only then the threads.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::select;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};
use tracing::Level;

use crate::acme::{Plan, Steward};
use crate::admin::{Admin, Health};
use crate::audit::{self, Journal, OnDamage};
use crate::config::typed::LogFormat;
use crate::config::{self, Mistakes, Warning};
use crate::dial;
use crate::egress::{Egress, Names};
use crate::ingress::Ingress;
use crate::limit::Limits;
use crate::listener::{BindError, Bound, Reception};
use crate::record::Event;
use crate::reload::{Prepared, Reloader};
use crate::sessions::Sessions;
use crate::snapshot::{Listen, Live, Snapshot};
use crate::telemetry::{self, Metrics};
use crate::tls::{Dates, Keeper, Keyring, Notice, TlsError};
use crate::workers::{Hooks, Workers};

mod doors;
mod machine;

use doors::{Doors, Laid, Wings};
use machine::{descriptors, ports};

/// Why the process could not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The audit log cannot be opened.
    #[error(transparent)]
    Audit(#[from] audit::OpenError),
    /// An address cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The configuration has mistakes.
    #[error("the configuration cannot be used\n\n{0}")]
    Config(Mistakes),
    /// TLS cannot be set up at all.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The operating system gave no thread, runtime or signal handler.
    #[error("cannot start a thread or a runtime")]
    System(#[from] io::Error),
}

struct House {
    workers: Workers,
    reloader: Reloader,
    health: Arc<Health>,
    admin: Admin,
    keeper: Keeper,
    steward: Steward,
    doors: Doors,
}

/// The signals that the process answers to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

/// How often it is checked that the fixed addresses are still on this machine.
const FIXED_ADDRESS_EVERY: Duration = Duration::from_secs(2);

/// Serves what the configuration file says until the process is told to stop. `damage` is that of the audit log.
pub fn run(file: &Path, damage: OnDamage) -> Result<(), AppError> {
    run_with(file, damage, || Ok(()))
}

/// As [`run`], and calls `started` once everything is accepting.
pub fn run_with(
    file: &Path,
    damage: OnDamage,
    started: impl FnOnce() -> io::Result<()>,
) -> Result<(), AppError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut signals = {
        let _inside = runtime.enter();
        Signals::new()?
    };
    let mut house = House::build(file, damage)?;
    started()?;
    runtime.block_on(async {
        house.serve(&mut signals).await;
        house.drain(&mut signals).await;
    });
    house.stop();
    Ok(())
}

impl House {
    fn build(file: &Path, damage: OnDamage) -> Result<Self, AppError> {
        let (config, warnings) = config::load(file).map_err(AppError::Config)?;
        telemetry::subscribe(config.log.format == LogFormat::Json, config.log.level);
        warn(&warnings);
        descriptors(config.process.max_sessions);
        ports(&config);
        let metrics = Arc::new(Metrics::new());
        let count = config.process.workers;
        let journal = Journal::open_despite(
            damage,
            &config.process.state_dir,
            &config.audit,
            count,
            Arc::clone(&metrics),
        )?;
        let (process, metered) = (&config.process, Arc::clone(&metrics));
        let (max, each) = (process.max_sessions, process.max_sessions_per_client);
        let sessions = Sessions::new(max, each, 1, metered);
        let keyring = keyring(process.tickets.every, &journal, &sessions, &metrics)?;
        let (snapshot, warnings) =
            Snapshot::compile(config, 1, journal.tag_key(), &keyring, Dates::Ignore)
                .map_err(AppError::Config)?;
        warn(&warnings);
        let park = journal.clone();
        let workers = Workers::start(
            count,
            Hooks {
                start: Box::new(Journal::sit),
                park: Box::new(move |seat| park.park(seat)),
            },
        )?;
        let lasting = (journal, sessions, keyring);
        Self::furnish(file, workers, lasting, snapshot, metrics)
    }

    /// Everything above the journal: wings, listeners, admin.
    fn furnish(
        file: &Path,
        workers: Workers,
        (journal, sessions, keyring): (Journal, Sessions, Keyring),
        snapshot: Snapshot,
        metrics: Arc<Metrics>,
    ) -> Result<Self, AppError> {
        let crew = workers.crew();
        let live = Live::new(snapshot);
        let wings = wings(crew.len(), &live, &journal, &metrics);
        let reception = Reception {
            crew: crew.clone(),
            sessions: sessions.clone(),
            metrics: Arc::clone(&metrics),
        };
        let mut doors = Doors::new(wings, reception);
        let snapshot = live.load();
        let plan = Plan::new(&snapshot.config, snapshot.ordered()).map_err(AppError::Config)?;
        let admin = Bound::new(snapshot.config.admin.listen)?;
        let bound = doors.bind(&snapshot)?;
        let health = Arc::new(Health {
            journal: journal.clone(),
            keyring: keyring.clone(),
            crew,
            metrics: Arc::clone(&metrics),
            draining: AtomicBool::new(false),
            fixed_present: AtomicBool::new(true),
        });
        let admin = Admin::start(admin.into_socket(), Arc::clone(&health))?;
        doors.open(bound, &snapshot);
        metrics.generation.set(1);
        journal.event(Event {
            name: "started",
            facts: vec![("config_sha256", snapshot.hash.clone())],
        });
        let keeper = Keeper::start(keyring.clone())?;
        let mut steward = Steward::new(keyring.clone(), journal.clone(), Arc::clone(&metrics));
        steward.enact(plan)?;
        let reloader = Reloader::new(file.to_owned(), live, sessions, journal, metrics, keyring);
        Ok(Self {
            workers,
            reloader,
            health,
            admin,
            keeper,
            steward,
            doors,
        })
    }

    /// Until SIGTERM or SIGINT.
    async fn serve(&mut self, signals: &mut Signals) {
        let mut look = interval(FIXED_ADDRESS_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            select! {
                () = ended(&mut signals.terminate, &mut signals.interrupt) => return,
                _ = signals.hang_up.recv() => self.reload(),
                _ = look.tick() => {
                    self.look_for_fixed_addresses();
                    if self.reloader.expired() {
                        self.reload();
                    }
                }
            }
        }
    }

    /// A new snapshot in force, or nothing changes.
    fn reload(&mut self) {
        let prepared = match self.reloader.prepare() {
            Ok(prepared) => prepared,
            Err(mistakes) => {
                return tracing::error!("the configuration stays as it is:\n{mistakes}");
            }
        };
        warn(&prepared.warnings);
        let snapshot = prepared.snapshot();
        let plan = Plan::new(&snapshot.config, snapshot.ordered()).map_err(AppError::Config);
        let ready = plan.and_then(|plan| Ok((plan, self.doors.bind(snapshot)?)));
        match ready {
            Ok((plan, bound)) => self.enact(prepared, plan, bound),
            Err(error) => {
                tracing::error!(%error, "the configuration stays as it is");
                self.reloader.abandon(prepared, &error.to_string());
            }
        }
    }

    fn enact(&mut self, prepared: Prepared, plan: Plan, bound: Vec<(Listen, Laid)>) {
        let generation = self.reloader.enact(prepared);
        if let Err(error) = self.steward.enact(plan) {
            tracing::error!(%error, "no certificate can be ordered; restart");
        }
        let snapshot = self.reloader.live.load();
        self.doors.open(bound, &snapshot);
        ports(&snapshot.config);
        tracing::info!(generation, "configuration reloaded");
    }

    fn look_for_fixed_addresses(&self) {
        let snapshot = self.reloader.live.load();
        let source = snapshot.config.egress.as_ref().map(dial::source);
        let missing = source.map_or([false; 2], |source| {
            dial::missing(&source, &self.reloader.metrics)
        });
        // What left from it would hang for a quarter of an hour.
        self.reloader.sessions.missing(missing);
        let present = missing == [false; 2];
        if self.health.fixed_present.swap(present, Ordering::AcqRel) == present {
            return;
        }
        let name = if present {
            "fixed_address_back"
        } else {
            "fixed_address_missing"
        };
        if present {
            tracing::info!("every fixed egress address is on this machine again");
        } else {
            tracing::error!(
                "a fixed egress address is not on this machine; nothing is dialled from it"
            );
        }
        self.reloader.journal.event(Event {
            name,
            facts: Vec::new(),
        });
    }

    /// Stops accepting and waits for whoever is inside, at most until the deadline or a second signal.
    async fn drain(&mut self, signals: &mut Signals) {
        let deadline = self.reloader.live.load().config.process.drain_deadline;
        self.health.draining.store(true, Ordering::Release);
        self.doors.close();
        let sessions = self.reloader.sessions.clone();
        let inside = sessions.len();
        tracing::info!(inside, ?deadline, "draining; a second signal ends it now");
        self.reloader.journal.event(Event {
            name: "draining",
            facts: vec![("sessions", inside.to_string())],
        });
        let rest = select! {
            rest = sessions.drain(deadline) => rest,
            () = ended(&mut signals.terminate, &mut signals.interrupt) => {
                let rest = sessions.len();
                sessions.end().await;
                rest
            }
        };
        if rest > 0 {
            tracing::warn!(rest, "sessions were ended at the deadline of the drain");
        }
        self.reloader.journal.event(Event {
            name: "stopped",
            facts: vec![("sessions_ended", rest.to_string())],
        });
    }

    /// The log is closed while its workers still run, the threads end last.
    fn stop(self) {
        self.reloader.journal.close(); // before threads that may wait for a store that hangs
        self.steward.stop();
        self.keeper.stop();
        self.admin.stop();
        self.workers.stop();
    }
}

fn warn(warnings: &[Warning]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

/// What happens to certificates becomes an event of the audit log and a line of the diagnostics.
/// Whom we believe may have changed by it, so whoever is inside is judged again.
fn keyring(
    every: Duration,
    journal: &Journal,
    sessions: &Sessions,
    metrics: &Arc<Metrics>,
) -> Result<Keyring, TlsError> {
    let (journal, sessions) = (journal.clone(), sessions.clone());
    Keyring::new(every, Arc::clone(metrics), move |notice| {
        if notice.is_about_clients() {
            sessions.judge_again();
        }
        let Notice { name, facts, .. } = notice;
        match notice.level {
            Level::ERROR => tracing::error!(event = name, "{}", notice.says),
            Level::WARN => tracing::warn!(event = name, "{}", notice.says),
            _ => tracing::info!(event = name, "{}", notice.says),
        }
        journal.event(Event { name, facts });
    })
}

/// One instance of each wing per worker.
fn wings(count: usize, live: &Live, journal: &Journal, metrics: &Arc<Metrics>) -> Wings {
    let limits = Arc::new(Limits::new(Arc::clone(metrics)));
    let names = Arc::new(Names::new(Arc::clone(metrics)));
    let ingress = || {
        Ingress::new(
            live.clone(),
            journal.clone(),
            Arc::clone(&limits),
            Arc::clone(metrics),
        )
    };
    let egress = || {
        Egress::new(
            live.clone(),
            journal.clone(),
            Arc::clone(&limits),
            Arc::clone(metrics),
            Arc::clone(&names),
        )
    };
    Wings {
        ingress: (0..count).map(|_| ingress()).collect(),
        egress: (0..count).map(|_| Arc::new(egress())).collect(),
    }
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

/// The next SIGTERM or SIGINT.
async fn ended(terminate: &mut Signal, interrupt: &mut Signal) {
    select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

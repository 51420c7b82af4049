//! Certificates that are ordered and renewed by themselves (ACME, RFC 8555), for the names in the configuration alone.
//!
//! Each name is tended by a task of its own, on one thread of its own: a name whose order fails holds up no other, and
//! none of them a worker. Names come and go by a reload; what stays is not disturbed. What is kept is in a store, so
//! that a restart orders nothing, and replicas that share one order once. Nothing here serves: it fills places in the
//! keyring.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::Builder;
use tokio::select;
use tokio::sync::{oneshot, watch};

use crate::audit::Journal;
use crate::clock::{self, Id};
use crate::config::Mistakes;
use crate::config::typed::{AcmeStore, Config};
use crate::reach::{Reach, Trust, TrustError};
use crate::secret::{KeyError, SealKeys};
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;
use crate::tls::{Keyring, Ordered};
use crate::workers;

mod account;
mod answer;
mod client;
mod hook;
mod jose;
mod obtain;
mod order;
mod problem;
mod renewal;
mod shelf;
mod tell;
mod tend;
mod transport;
mod window;

use shelf::{Attempts, KeptCertificate, Kind, Shelf, Wish};
use tend::{Tended, Tools};

/// Orders certificates, from the first time that one is wanted.
pub struct Steward {
    keyring: Keyring,
    journal: Journal,
    metrics: Arc<Metrics>,
    running: Option<Running>,
}

struct Running {
    plan: watch::Sender<Plan>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// What is to be ordered, and where it is kept: everything that could be wrong with that has been looked at.
#[derive(Clone)]
pub struct Plan {
    names: Vec<(Ordered, Shelf)>,
    reach: Reach,
}

/// Why nothing can be ordered; each text says what mends it.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AcmeError {
    /// What is to be mended in `config`. Its text says what is wrong, then what mends it.
    fn mistakes(&self, config: &Config) -> Mistakes {
        let key = match self {
            Self::Key(_) => "process.key_file",
            Self::Trust(_) | Self::Store(_) => "ingress",
        };
        let text = self.to_string();
        let (problem, mend) = text.split_once("; ").unwrap_or((&text, "check that file"));
        config.source.remark(key, problem, mend).into()
    }
}

impl Steward {
    /// Nothing is ordered yet.
    pub fn new(keyring: Keyring, journal: Journal, metrics: Arc<Metrics>) -> Self {
        Self {
            keyring,
            journal,
            metrics,
            running: None,
        }
    }

    /// Orders what `plan` says from now on, and nothing else.
    pub fn enact(&mut self, plan: Plan) -> io::Result<()> {
        match &self.running {
            Some(running) => drop(running.plan.send_replace(plan)),
            None if plan.names.is_empty() => {}
            None => self.running = Some(self.start(plan)?),
        }
        Ok(())
    }

    fn start(&self, plan: Plan) -> io::Result<Running> {
        let (sender, receiver) = watch::channel(plan);
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (keyring, journal) = (self.keyring.clone(), self.journal.clone());
        let metrics = Arc::clone(&self.metrics);
        let thread = workers::thread("tollgate-acme", move || {
            runtime.block_on(async {
                select! {
                    () = follow(receiver, keyring, journal, metrics) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Running {
            plan: sender,
            stop,
            thread,
        })
    }

    /// Ends it; what is served stays as it is.
    pub fn stop(self) {
        if let Some(running) = self.running {
            drop(running.stop);
            running.thread.join().ok(); // a panic there has been reported by its hook
        }
    }
}

/// Keeps one task for each wanted name.
async fn follow(
    mut plan: watch::Receiver<Plan>,
    keyring: Keyring,
    journal: Journal,
    metrics: Arc<Metrics>,
) {
    let process: Arc<str> = Id::new().to_string().into();
    let turns = Arc::default();
    // A task ends when its sender is dropped.
    let mut tended: Vec<(Ordered, oneshot::Sender<()>)> = Vec::new();
    loop {
        let Plan { names, reach } = plan.borrow_and_update().clone();
        tended.retain(|(one, _)| names.iter().any(|(other, _)| one.same(other)));
        for (ordered, shelf) in names {
            if tended.iter().any(|(one, _)| one.same(&ordered)) {
                continue;
            }
            let tools = Tools {
                keyring: keyring.clone(),
                journal: journal.clone(),
                metrics: Arc::clone(&metrics),
                reach: reach.clone(),
                process: Arc::clone(&process),
                turns: Arc::clone(&turns),
            };
            let (stop, stopped) = oneshot::channel();
            let task = Tended::new(ordered.clone(), shelf, tools).tend();
            workers::spawn(async move {
                select! {
                    () = task => {}
                    _ = stopped => {}
                }
            });
            tended.push((ordered, stop));
        }
        if plan.changed().await.is_err() {
            return;
        }
    }
}

impl Plan {
    /// For `names` of `config`. Blocks on file access.
    ///
    /// # Errors
    /// A file of roots or keys that cannot be used.
    pub fn new(config: &Config, names: Vec<Ordered>) -> Result<Self, Mistakes> {
        Self::made(config, names).map_err(|error| error.mistakes(config))
    }

    fn made(config: &Config, names: Vec<Ordered>) -> Result<Self, AcmeError> {
        let reach = reach(config);
        let mut stores = Vec::new();
        let mut shelved = Vec::new();
        for ordered in names {
            for issuer in &ordered.acme.issuers {
                Trust::new(issuer.ca_file.as_deref())?;
            }
            let shelf = shelf(config, &ordered, &reach, &mut stores)?;
            shelved.push((ordered, shelf));
        }
        let names = shelved;
        Ok(Self { names, reach })
    }
}

fn reach(config: &Config) -> Reach {
    let egress = config.egress.as_ref();
    Reach::new(egress.map_or(&[], |egress| &egress.resolvers))
}

/// Where `ordered` is kept; one store for all that name the same.
fn shelf(
    config: &Config,
    ordered: &Ordered,
    reach: &Reach,
    stores: &mut Vec<(AcmeStore, Store)>,
) -> Result<Shelf, AcmeError> {
    let place = &ordered.acme.store;
    let known = stores.iter().find(|(other, _)| other == place);
    let store = match known {
        Some((_, store)) => store.clone(),
        None => {
            let store = store(config, place, reach)?;
            stores.push((place.clone(), store.clone()));
            store
        }
    };
    let first = ordered.acme.issuers.first();
    let directory = first.map_or("", |issuer| &issuer.directory);
    Ok(Shelf::new(store, directory))
}

fn store(config: &Config, place: &AcmeStore, reach: &Reach) -> Result<Store, AcmeError> {
    let keys = || {
        // The configuration sees to it that there is one.
        let path = config.process.key_file.as_deref();
        SealKeys::load(path.unwrap_or(Path::new("")))
    };
    Ok(match place {
        AcmeStore::Own(folder) => Store::own(folder),
        AcmeStore::Shared(folder) => Store::shared(folder, keys()?),
        AcmeStore::Redis(server) => Store::redis(server, reach.clone(), keys()?)?,
    })
}

/// What is known of an ordered certificate, for a command.
pub struct Status {
    /// Its serial number, if there is one.
    pub serial: Option<Box<str>>,
    /// Until when it is valid, as `2026-11-24T08:15:00Z`.
    pub not_after: Option<String>,
    pub failures: u32,
    /// Why the last attempt failed.
    pub said: String,
}

/// One ordered certificate as a command sees it: through the store, beside the running process.
pub struct Desk {
    ordered: Ordered,
    shelf: Shelf,
}

impl Desk {
    /// For `ordered` of `config`.
    pub fn new(config: &Config, ordered: Ordered) -> Result<Self, AcmeError> {
        let shelf = shelf(config, &ordered, &reach(config), &mut Vec::new())?;
        Ok(Self { ordered, shelf })
    }

    /// How its name is written.
    pub fn name(&self) -> &str {
        &self.ordered.label
    }

    /// What is kept at present.
    pub async fn status(&self) -> Result<Status, AcmeError> {
        let label = &self.ordered.label;
        let kept: Option<KeptCertificate> = self.shelf.get(Kind::Certificate, label).await?;
        let read = kept.and_then(|kept| {
            let (chain, key) = (kept.chain.as_bytes(), kept.key.as_bytes());
            self.ordered.read(chain, key).ok()
        });
        let attempts: Option<Attempts> = self.shelf.get(Kind::Attempts, label).await?;
        let attempts = attempts.unwrap_or_default();
        Ok(Status {
            not_after: read.as_ref().map(|c| clock::moment(c.not_after)),
            serial: read.map(|certificate| certificate.serial),
            failures: attempts.failures,
            said: attempts.said,
        })
    }

    /// Has the running process order a new certificate now, and revoke the one with serial number `revoke` then.
    pub async fn wish(&self, revoke: Option<&str>) -> Result<(), AcmeError> {
        let wish = Wish {
            at: clock::wall_ns(),
            revoke: revoke.map(str::to_owned),
        };
        let label = &self.ordered.label;
        Ok(self.shelf.put(Kind::Wish, label, &wish).await?)
    }
}

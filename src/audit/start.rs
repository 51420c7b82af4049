//! A log is opened: locked, recovered, and set going with its writers and the watch.

use std::path::Path;
use std::slice::from_ref;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};

use super::board::{Board, Patience};
use super::device::Device;
use super::keeper::{Keeper, Rules};
use super::ledger::{Batch, Ledger};
use super::office::{Office, PRIMARY};
use super::opening::{self, OpenError};
use super::recover::{self, OnDamage, Recovered};
use super::seal::{Sealer, Sealing};
use super::seat::{BOUNDS, Bounds, Seat};
use super::segment::{Spares, Store};
use super::writer::Writer;
use super::{Desk, standby};
use crate::config::typed::Audit;
use crate::disk::Disk;
use crate::telemetry::Metrics;
use crate::workers;

/// Where a log is, and the bounds within which it is written.
pub(super) struct Plan {
    pub(super) primary: Store,
    pub(super) standby: Option<Store>,
    pub(super) patience: Patience,
    pub(super) rules: Rules,
    pub(super) sealing: Sealing,
    pub(super) bounds: Bounds,
    pub(super) workers: usize,
    pub(super) on_damage: OnDamage,
}

impl Plan {
    /// What the configuration says.
    pub(super) fn of(state_dir: &Path, settings: &Audit, workers: usize, damage: OnDamage) -> Self {
        let store = |dir| Store {
            disk: Disk::Machine,
            dir,
            segment_bytes: settings.segment_bytes,
            durability: settings.durability,
        };
        Self {
            primary: store(state_dir.join("audit")),
            standby: settings.standby_dir.clone().map(store),
            patience: Patience::of(settings),
            rules: Rules::of(settings),
            sealing: Sealing {
                every: settings.seal_every,
                anchors: settings.anchors.clone(),
            },
            bounds: BOUNDS,
            workers,
            on_damage: damage,
        }
    }

    /// Primary first.
    pub(super) fn stores(&self) -> Vec<Store> {
        let stores = from_ref(&self.primary).iter().chain(&self.standby);
        stores.cloned().collect()
    }
}

/// Locks the state directory, recovers what an earlier process left, writes the first records and starts the threads.
pub(super) fn start(
    state_dir: &Path,
    plan: Plan,
    metrics: Arc<Metrics>,
) -> Result<Desk, OpenError> {
    plan.primary.make_dir(state_dir)?;
    let mut locks = vec![opening::lock(state_dir)?];
    let stores = plan.stores();
    for store in &stores {
        store.make_dir(&store.dir)?;
    }
    if let Some(standby) = plan.standby.as_ref().filter(|s| s.is_on_machine()) {
        locks.push(opening::lock(&standby.dir)?); // another process with the same standby would take its files away
    }
    if let Some(standby) = &plan.standby
        && plan.primary.is_beside(standby)
    {
        tracing::warn!(
            dir = %standby.dir.display(),
            "`audit.standby_dir` is on the same device as the state directory: it fails and hangs with it"
        );
    }
    standby::bond(&plan.primary, plan.standby.as_ref())?;
    let tag_key = opening::tag_key(&plan.primary)?;
    let recovered = recover::recover(&stores, plan.on_damage)?;
    let board = Arc::new(Board::new(plan.patience));
    let seats = make_seats(&board, plan.bounds, plan.workers);
    let shared = seats.last().cloned();
    let sealer = Sealer::open(&stores, &recovered, plan.sealing, shared, &metrics)?;
    let log_id = sealer.log_id().into();
    let dirs = stores.iter().map(|store| store.dir.clone());
    let (office, calls) = Office::open(&board, &seats, metrics, plan.rules, dirs);
    let keeper = Keeper::new(&office, stores.clone());
    let mut writers = Vec::new();
    for (at, store) in stores.into_iter().enumerate() {
        let dir = store.dir.clone();
        let spares =
            Spares::start(store.clone()).map_err(|error| OpenError::io(&dir, "write", error))?;
        writers.push(Writer::new(&office, at, Device::new(store, spares)));
    }
    let (done, written) = sync_channel(1);
    let ledger = Ledger {
        batch: Batch::new(seats.len()),
        sealer: Some(Box::new(sealer)),
        done: Some(done),
        ..Ledger::default()
    };
    set_going(&office, writers, calls, ledger, &recovered)?;
    workers::thread("tollgate-keeper", move || keeper.run())
        .map_err(|error| OpenError::io(office.dir(PRIMARY), "look after", error))?;
    Ok(Desk {
        board,
        office,
        seats,
        tag_key,
        log_id,
        written: Mutex::new(Some(written)),
        _locks: locks,
    })
}

fn set_going(
    office: &Arc<Office>,
    mut writers: Vec<Writer>,
    calls: Vec<Receiver<Ledger>>,
    mut ledger: Ledger,
    recovered: &Recovered,
) -> Result<(), OpenError> {
    let failed = |error| OpenError::io(office.dir(PRIMARY), "write", error);
    if let Some(primary) = writers.get_mut(PRIMARY) {
        primary.ledger = ledger;
        primary.begin(recovered).map_err(failed)?;
        ledger = std::mem::take(&mut primary.ledger);
    }
    for (writer, calls) in writers.into_iter().zip(calls) {
        workers::thread("tollgate-journal", move || writer.run(&calls)).map_err(failed)?;
    }
    let watch = Arc::clone(office);
    workers::thread("tollgate-watch", move || watch.watch()).map_err(failed)?;
    office.call(PRIMARY, ledger);
    Ok(())
}

/// One for each worker, and one for all other threads.
pub(super) fn make_seats(board: &Arc<Board>, bounds: Bounds, workers: usize) -> Arc<[Arc<Seat>]> {
    let seat = |at| Arc::new(Seat::new(Arc::clone(board), bounds, at, workers));
    (0..=workers).map(seat).collect()
}

//! A changed configuration put in force, or nothing changed: words become law, then the living are judged again.
//!
//! Two steps, so that the roof can bind new listeners in between: [`Reloader::prepare`] reads, compiles and refuses
//! what cannot change while running; [`Reloader::enact`] records the change, swaps the snapshot and tells every
//! session. Until `enact` the last good configuration is in force untouched. Nothing here binds or closes a socket.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use crate::audit::Journal;
use crate::config::typed::Config;
use crate::config::{self, Mistakes, Remark, Warning};
use crate::record::Event;
use crate::sessions::Sessions;
use crate::snapshot::{Listen, Live, Snapshot};
use crate::telemetry::Metrics;

/// Replaces the snapshot in force. One per process: generations are counted by whoever holds it.
pub struct Reloader {
    /// The configuration file.
    pub path: PathBuf,
    pub live: Live,
    pub sessions: Sessions,
    pub journal: Journal,
    pub metrics: Arc<Metrics>,
}

/// A configuration that may be put in force.
#[must_use = "nothing changes before it is enacted"]
pub struct Prepared {
    snapshot: Snapshot,
    /// What is probably not as meant.
    pub warnings: Vec<Warning>,
}

impl Reloader {
    /// Reads the file again and compiles it. Blocks on file access.
    ///
    /// # Errors
    /// Every mistake in the file, or every key that was changed and cannot be while running. Both are recorded; the
    /// snapshot in force stays.
    pub fn prepare(&mut self) -> Result<Prepared, Mistakes> {
        let made = self.compile();
        if let Err(mistakes) = &made {
            let first = mistakes.iter().next().map_or("", |m| &m.problem);
            self.refused(mistakes.len(), first);
        }
        made
    }

    /// Says that a prepared configuration was given up, because a listener could not be bound or the like.
    pub fn abandon(&mut self, prepared: Prepared, why: &str) {
        drop(prepared);
        self.refused(1, why);
    }

    /// Records the change, puts it in force and tells every session; gives the new generation.
    pub fn enact(&mut self, prepared: Prepared) -> u64 {
        let snapshot = prepared.snapshot;
        let generation = snapshot.generation;
        self.journal.event(Event {
            name: "reloaded",
            facts: vec![
                ("generation", generation.to_string()),
                ("config_sha256", snapshot.hash.clone()),
                ("previous_config_sha256", self.live.load().hash.clone()),
            ],
        });
        self.live.replace(snapshot);
        self.metrics
            .generation
            .set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.sessions.reloaded(generation);
        generation
    }

    fn compile(&self) -> Result<Prepared, Mistakes> {
        let old = self.live.load();
        let (config, warnings) = config::load(&self.path)?;
        if let Some(mistakes) = Mistakes::new(unchangeable(&old.config, &config)) {
            return Err(mistakes);
        }
        let snapshot = Snapshot::compile(config, old.generation + 1, self.journal.tag_key())?;
        if let Some(mistakes) = Mistakes::new(turned(&old, &snapshot)) {
            return Err(mistakes);
        }
        Ok(Prepared { snapshot, warnings })
    }

    fn refused(&self, mistakes: usize, first: &str) {
        self.metrics.reload_failures.inc();
        self.journal.event(Event {
            name: "reload_refused",
            facts: vec![
                ("mistakes", mistakes.to_string()),
                ("first", first.to_owned()),
            ],
        });
    }
}

impl Prepared {
    /// What will be in force.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

/// A remark for each address that would lead elsewhere: it cannot be bound anew while it is bound.
fn turned(old: &Snapshot, new: &Snapshot) -> Vec<Remark> {
    let before = old.listens();
    let elsewhere =
        |(leads, address): &Listen| before.iter().any(|(was, a)| a == address && was != leads);
    let remark = |(_, address): Listen| {
        let problem = format!("{address} serves another purpose while running");
        new.config
            .source
            .remark("listen", problem, "choose another address, or restart")
    };
    new.listens()
        .into_iter()
        .filter(elsewhere)
        .map(remark)
        .collect()
}

/// A remark for each key whose value was built into the running process and is another one now.
fn unchangeable(old: &Config, new: &Config) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let mut same = |key: &str, was: &dyn Debug, will: &dyn Debug| {
        let (was, will) = (format!("{was:?}"), format!("{will:?}"));
        if was != will {
            let problem = format!("cannot change while running: it is {was} and would be {will}");
            remarks.push(
                new.source
                    .remark(key, problem, "put the old value back, or restart"),
            );
        }
    };
    let (was, will) = (&old.process, &new.process);
    same("process.state_dir", &was.state_dir, &will.state_dir);
    same("process.workers", &was.workers, &will.workers);
    same(
        "process.max_sessions",
        &was.max_sessions,
        &will.max_sessions,
    );
    same("admin.listen", &old.admin.listen, &new.admin.listen);
    same("log.format", &old.log.format, &new.log.format);
    same("log.level", &old.log.level, &new.log.level);
    let (was, will) = (&old.audit, &new.audit);
    same("audit.durability", &was.durability, &will.durability);
    same("audit.wait_budget", &was.wait_budget, &will.wait_budget);
    same("audit.segment", &was.segment_bytes, &will.segment_bytes);
    let fixed = |config: &Config| {
        let egress = config.egress.as_ref()?;
        Some((egress.fixed_v4, egress.fixed_v6, egress.ports))
    };
    same("egress.fixed", &fixed(old), &fixed(new));
    let resolvers = |config: &Config| Some(config.egress.as_ref()?.resolvers.clone());
    same("egress.resolver", &resolvers(old), &resolvers(new));
    remarks
}

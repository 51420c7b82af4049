//! A changed configuration put in force, or nothing changed: words become law, then the living are judged again.
//!
//! Two steps, so that the roof can bind new listeners in between: [`Reloader::prepare`] reads, compiles and refuses
//! what cannot change while running; [`Reloader::enact`] records the change, swaps the snapshot and tells every
//! session. Until `enact` the last good configuration is in force untouched. Nothing here binds or closes a socket.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
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
    /// To be bound before the change, with their places in the new snapshot.
    pub opens: Vec<Listen>,
    /// To be closed after it, with their places in the old one.
    pub closes: Vec<Listen>,
    /// On an address that is bound already, with their purpose and place in the new snapshot.
    pub keeps: Vec<Listen>,
}

impl Reloader {
    /// Reads the file again, prepares and enacts it: for when no listener is to be bound or closed.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn reload(&mut self) -> Result<u64, Mistakes> {
        let prepared = self.prepare()?;
        Ok(self.enact(prepared))
    }

    /// Reads the file again and compiles it. Blocks on file access.
    ///
    /// # Errors
    /// Every mistake in the file, or every key that was changed and cannot be while running. Both are recorded; the
    /// snapshot in force stays.
    pub fn prepare(&mut self) -> Result<Prepared, Mistakes> {
        let made = compile(&self.live.load(), &self.path);
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

/// Reads the file at `path` for the place of `old`.
fn compile(old: &Snapshot, path: &Path) -> Result<Prepared, Mistakes> {
    let (config, warnings) = config::load(path)?;
    if let Some(mistakes) = Mistakes::new(unchangeable(&old.config, &config)) {
        return Err(mistakes);
    }
    let snapshot = Snapshot::compile(config, old.generation + 1)?;
    let (before, after) = (old.listens(), snapshot.listens());
    let within = |list: &[Listen], one: &Listen| list.iter().any(|l| l.address == one.address);
    let closes = before
        .iter()
        .filter(|l| !within(&after, l))
        .copied()
        .collect();
    let (keeps, opens) = after.iter().partition(|l| within(&before, l));
    Ok(Prepared {
        snapshot,
        warnings,
        opens,
        closes,
        keeps,
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Kind;
    use crate::snapshot::tests::{compiled, folder};

    const UPSTREAM: &str = "upstream = 'http://127.0.0.1:3000'";

    /// What a reload makes of the configuration in which `old` has become `new`.
    fn changed(old: &str, new: &str) -> Result<Prepared, Mistakes> {
        let folder = folder(UPSTREAM);
        let before = compiled(folder.path(), 3).unwrap();
        let path = folder.path().join("tollgate.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(old));
        std::fs::write(&path, text.replace(old, new)).unwrap();
        compile(&before, &path)
    }

    fn shown(listens: &[Listen]) -> Vec<(Kind, String)> {
        listens
            .iter()
            .map(|l| (l.kind, l.address.to_string()))
            .collect()
    }

    #[test]
    fn listeners_are_opened_kept_and_closed() {
        let same = changed(UPSTREAM, UPSTREAM).unwrap();
        assert_eq!(same.snapshot().generation, 4);
        assert_eq!(
            (same.opens.len(), same.closes.len(), same.keeps.len()),
            (0, 0, 4)
        );

        let moved = changed("127.0.0.1:8080", "127.0.0.1:8081").unwrap();
        assert_eq!(
            shown(&moved.opens),
            [(Kind::Redirect, "127.0.0.1:8081".to_owned())]
        );
        assert_eq!(
            shown(&moved.closes),
            [(Kind::Redirect, "127.0.0.1:8080".to_owned())]
        );

        // The redirect's address becomes one of the ingress: its socket stays, its purpose is another.
        let turned = changed("\"[::1]:8443\"]\n", "\"127.0.0.1:8080\"]\n#").unwrap();
        assert!(turned.opens.is_empty());
        assert_eq!(
            shown(&turned.closes),
            [(Kind::Ingress, "[::1]:8443".to_owned())]
        );
        assert!(shown(&turned.keeps).contains(&(Kind::Ingress, "127.0.0.1:8080".to_owned())));
    }

    #[test]
    fn a_mistake_leaves_everything_as_it_is() {
        assert!(changed("listen", "lisen").is_err());
        assert!(changed("\"key.pem\"", "\"cert.pem\"").is_err());
    }

    #[test]
    fn what_cannot_change_while_running_is_refused_by_name() {
        let new = r#"[process]
            state_dir = "/elsewhere"
            workers = 77
            max_sessions = 5
            [admin]
            listen = "127.0.0.1:9912"
            [log]
            level = "debug"
            format = "text"
            [audit]
            durability = "write"
            segment = "1MiB"
            wait_budget = "2s"
            [egress]
            resolver.servers = "127.0.0.1"
            fixed = "127.0.0.8""#;
        let mistakes = changed("[egress]\n                fixed = \"127.0.0.7\"", new)
            .err()
            .unwrap();
        let keys: Vec<_> = mistakes.iter().map(|m| m.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "process.state_dir",
                "process.workers",
                "process.max_sessions",
                "admin.listen",
                "log.level",
                "log.format",
                "audit.durability",
                "audit.segment",
                "audit.wait_budget",
                "egress.resolver",
                "egress.fixed",
            ]
        );
        let first = mistakes.iter().next().unwrap();
        assert_eq!(
            first.problem,
            r#"cannot change while running: it is "/var/lib/tollgate" and would be "/elsewhere""#
        );
        assert_eq!(first.mend, "put the old value back, or restart");
        assert!(mistakes.iter().all(|m| m.line > 0));
    }

    #[test]
    fn what_may_change_is_put_in_force() {
        let new = "[process]\ndrain_deadline = '5s'\n[audit]\non_failure = 'continue'\nquery_values = 'page'\n[limits.a]\nrate = \"9/s\"";
        let prepared = changed("[limits.a]\n                rate = \"1/s\"", new).unwrap();
        assert_eq!(prepared.snapshot().config.limits["a"].rate, 9);
        assert_eq!(prepared.snapshot().redaction.query_values, ["page"]);
    }
}

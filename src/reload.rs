//! A changed configuration put in force, or nothing changed: words become law, then the living are judged again.
//!
//! Two steps, so that the roof can bind new listeners in between: [`Reloader::prepare`] reads, compiles and refuses
//! what cannot change while running; [`Reloader::enact`] records the change, swaps the snapshot and tells every
//! session. Until `enact` the last good configuration is in force untouched. Nothing here binds or closes a socket.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::audit::Journal;
use crate::clock;
use crate::config::typed::Config;
use crate::config::{self, Mistakes, Remark, Warning};
use crate::record::{Event, TagKey};
use crate::sessions::Sessions;
use crate::snapshot::{Listen, Live, Snapshot};
use crate::telemetry::Metrics;
use crate::tls::{Dates, Keyring};

/// Replaces the snapshot in force. One per process: generations are counted by whoever holds it.
pub struct Reloader {
    /// The configuration file.
    pub path: PathBuf,
    pub live: Live,
    pub sessions: Sessions,
    pub journal: Journal,
    pub metrics: Arc<Metrics>,
    pub keyring: Keyring,
    /// When an expired entry was last noticed.
    noticed: Option<Instant>,
}

/// After this an expired entry that a broken file keeps in force is tried to be left out again.
const EXPIRY_AGAIN: Duration = Duration::from_secs(60);

/// A configuration that may be put in force.
#[must_use = "nothing changes before it is enacted"]
pub struct Prepared {
    snapshot: Snapshot,
    /// What is probably not as meant.
    pub warnings: Vec<Warning>,
}

impl Reloader {
    /// For the configuration file at `path`, whose snapshot is in force.
    pub fn new(
        path: PathBuf,
        live: Live,
        sessions: Sessions,
        journal: Journal,
        metrics: Arc<Metrics>,
        keyring: Keyring,
    ) -> Self {
        Self {
            path,
            live,
            sessions,
            journal,
            metrics,
            keyring,
            noticed: None,
        }
    }

    /// Whether an entry of a set has expired that is still in force, so that the file should be read again. Says so
    /// once, and again after [`EXPIRY_AGAIN`] if nothing came of it.
    pub fn expired(&mut self) -> bool {
        let now = clock::now();
        let early = self
            .noticed
            .is_some_and(|at| now.duration_since(at) < EXPIRY_AGAIN);
        let expired = !early && expired(&self.live.load().config, clock::wall_ns());
        if expired {
            self.noticed = Some(now);
        }
        expired
    }

    /// Reads the file again and compiles it. Blocks on file access.
    ///
    /// # Errors
    /// Every mistake in the file, or every key that was changed and cannot be while running. Both are recorded; the
    /// snapshot in force stays.
    pub fn prepare(&mut self) -> Result<Prepared, Mistakes> {
        let made = compile(
            &self.live.load(),
            &self.path,
            self.journal.tag_key(),
            &self.keyring,
        );
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
        self.journal.adapt(&snapshot.config.audit);
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

fn expired(config: &Config, wall_ns: u64) -> bool {
    config.next_expiry_ns.is_some_and(|at| at <= wall_ns)
}

/// Reads the file at `path` for the place of `old`.
fn compile(
    old: &Snapshot,
    path: &Path,
    tag_key: TagKey,
    keyring: &Keyring,
) -> Result<Prepared, Mistakes> {
    let (config, mut warnings) = config::load(path)?;
    if let Some(mistakes) = Mistakes::new(unchangeable(&old.config, &config)) {
        return Err(mistakes);
    }
    let next = old.generation + 1;
    let (snapshot, more) = Snapshot::compile(config, next, tag_key, keyring, Dates::Heed)?;
    warnings.extend(more);
    if let Some(mistakes) = Mistakes::new(turned(old, &snapshot)) {
        return Err(mistakes);
    }
    Ok(Prepared { snapshot, warnings })
}

/// A remark for each address that would lead elsewhere: it cannot be bound anew while it is bound.
fn turned(old: &Snapshot, new: &Snapshot) -> Vec<Remark> {
    let before = old.listens();
    let turned =
        |(leads, address): &Listen| before.iter().any(|(was, a)| a == address && was != leads);
    let remark = |(_, address): Listen| {
        let listens = new.config.listens();
        let key = listens
            .iter()
            .find(|(_, a)| *a == address)
            .map_or("", |(key, _)| key);
        let problem = format!("{address} serves another purpose while running");
        let mend = "choose another address, or restart";
        new.config.source.remark(key, problem, mend)
    };
    new.listens()
        .into_iter()
        .filter(turned)
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
    // It follows `max_sessions` unless it is given: one remark is enough.
    if was.max_sessions == will.max_sessions {
        same(
            "process.max_sessions_per_client",
            &was.max_sessions_per_client,
            &will.max_sessions_per_client,
        );
    }
    same("process.key_file", &was.key_file, &will.key_file);
    same("process.tickets", &was.tickets, &will.tickets);
    same("admin.listen", &old.admin.listen, &new.admin.listen);
    same("log.format", &old.log.format, &new.log.format);
    same("log.level", &old.log.level, &new.log.level);
    let (was, will) = (&old.audit, &new.audit);
    same("audit.durability", &was.durability, &will.durability);
    same("audit.standby_dir", &was.standby_dir, &will.standby_dir);
    same("audit.segment", &was.segment_bytes, &will.segment_bytes);
    same("audit.seal_every", &was.seal_every, &will.seal_every);
    same("audit.anchor", &was.anchors, &will.anchors);
    remarks
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::snapshot::Leads;

    const UPSTREAM: &str = "upstream = 'http://127.0.0.1:3000'";

    /// A folder with `cert.pem`, `key.pem` and a configuration that `more` is appended to.
    fn folder(more: &str) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let pair = rcgen::generate_simple_self_signed(["tools.example".to_owned()]).unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("cert.pem", &pair.cert.pem());
        write("key.pem", &pair.signing_key.serialize_pem());
        write(
            "tollgate.toml",
            &format!(
                r#"
                [limits.a]
                rate = "1/s"
                [limits.b]
                rate = "2/s"
                [egress]
                fixed = "127.0.0.7"
                [[ingress]]
                listen = ["127.0.0.1:8443", "[::1]:8443"]
                redirect_http = "127.0.0.1:8080"
                tls.certificates = [{{ cert = "cert.pem", key = "key.pem" }}]
                limits = ["a"]
                {more}
                "#
            ),
        );
        folder
    }

    fn keyring() -> Keyring {
        Keyring::new(Duration::from_secs(60), Arc::default(), |_| ()).unwrap()
    }

    fn compiled(folder: &Path, generation: u64) -> Result<Snapshot, Mistakes> {
        let (config, _) = config::load(&folder.join("tollgate.toml"))?;
        let key = TagKey::draw();
        let made = Snapshot::compile(config, generation, key, &keyring(), Dates::Heed);
        made.map(|(snapshot, _)| snapshot)
    }

    /// What a reload makes of the configuration in which `old` has become `new`.
    fn changed(old: &str, new: &str) -> Result<Prepared, Mistakes> {
        let folder = folder(UPSTREAM);
        let before = compiled(folder.path(), 3).unwrap();
        let path = folder.path().join("tollgate.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(old));
        std::fs::write(&path, text.replace(old, new)).unwrap();
        compile(&before, &path, TagKey::draw(), &keyring())
    }

    #[test]
    fn an_address_may_come_and_go_but_not_lead_elsewhere() {
        let same = changed(UPSTREAM, UPSTREAM).unwrap();
        assert_eq!(same.snapshot().generation, 4);
        let moved = changed("127.0.0.1:8080", "127.0.0.1:8081").unwrap();
        let to = (Leads::Redirect, "127.0.0.1:8081".parse().unwrap());
        assert!(moved.snapshot().listens().contains(&to));
        // The redirect's address becomes one of the ingress, and the redirect goes.
        let turned = changed("\"[::1]:8443\"]\n", "\"127.0.0.1:8080\"]\n#")
            .err()
            .unwrap();
        let remark = turned.iter().next().unwrap();
        assert_eq!(remark.key, "ingress[0].listen[1]");
        assert_eq!(
            remark.problem,
            "127.0.0.1:8080 serves another purpose while running"
        );
        assert_eq!((turned.len(), remark.line), (1, 9));
    }

    #[test]
    fn an_entry_expires_when_its_day_is_over() {
        let entry = "deny = '@guests'\n[sets.guests]\nentries = [{ cidr = '10.0.0.1', expires = '2099-12-31' }]";
        let last = format!("{UPSTREAM}\n{entry}");
        let config = changed(UPSTREAM, &last).unwrap().snapshot.config;
        let end = 4_102_444_800_000_000_000;
        assert!(!expired(&config, end - 1));
        assert!(expired(&config, end));
        let without = changed(UPSTREAM, UPSTREAM).unwrap().snapshot.config;
        assert!(!expired(&without, u64::MAX));
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
            key_file = "seal.key"
            tickets = { every = "1h" }
            [admin]
            listen = "127.0.0.1:9912"
            [log]
            level = "debug"
            format = "text"
            [audit]
            durability = "write"
            segment = "1MiB"
            standby_dir = "/elsewhere"
            [egress]
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
                "process.key_file",
                "process.tickets",
                "admin.listen",
                "log.level",
                "log.format",
                "audit.durability",
                "audit.segment",
                "audit.standby_dir",
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
        let new = "[process]\ndrain_deadline = '5s'\n[audit]\non_failure = 'continue'\nquery_values = 'page'\nwait_budget = '2s'\nretain.days = 30\nmin_free = '2GiB'\n[limits.a]\nrate = \"9/s\"";
        let prepared = changed("[limits.a]\n                rate = \"1/s\"", new).unwrap();
        assert_eq!(prepared.snapshot().config.limits["a"].rate, 9);
        assert_eq!(prepared.snapshot().config.audit.query_values, ["page"]);
    }
}

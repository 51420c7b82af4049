//! The sections that belong to neither way: `[process]`, `[admin]`, `[log]`, `[audit]` and `[limits]`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::raw::{Table, Value};
use super::typed::{
    Admin, Audit, Durability, Limit, Log, LogFormat, OnFailure, Process, RedisStore, Retain,
};
use super::{ON_FAILURE, acme, seals, tickets, units};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

const DEFAULT_STATE_DIR: &str = "/var/lib/tollgate";
const DEFAULT_DRAIN_DEADLINE: Duration = Duration::from_secs(30);
const WORKERS_MAX: usize = 1024;
const DEFAULT_SESSIONS: usize = 10_000;
const SESSIONS_MAX: usize = 1_000_000;

const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9911);

const DEFAULT_WAIT_BUDGET: Duration = SECOND;
const DEFAULT_SEGMENT_BYTES: u64 = 64 << 20;
const DEFAULT_MIN_FREE_BYTES: u64 = 1 << 30;
const DEFAULT_RETAIN_DAYS: u32 = 365;
/// A hundred years: for ever.
const RETAIN_DAYS_MAX: u32 = 36_525;
/// Of the log, at least so many segments are kept.
const RETAIN_SEGMENTS_MIN: u64 = 4;
const NAMES_MAX: usize = 256;
/// Paths of ToolJet that carry a token.
const DEFAULT_SECRET_PATHS: [&str; 3] = [
    "/invitations/*",
    "/organization-invitations/*",
    "/reset-password/*",
];

const LIMITS_MAX: usize = 64;
const RATE_MAX: u32 = 1_000_000;
/// In which an exhausted burst is full again.
const REFILL_MAX: Duration = Duration::from_secs(24 * 3600);

/// `[process]`
pub(super) fn process(root: &Table<'_>, folder: &Path, redis: Option<&RedisStore>) -> Process {
    let mut process = Process {
        state_dir: PathBuf::from(DEFAULT_STATE_DIR),
        workers: processors(),
        drain_deadline: DEFAULT_DRAIN_DEADLINE,
        max_sessions: DEFAULT_SESSIONS,
        max_sessions_per_client: share(DEFAULT_SESSIONS),
        key_file: None,
        tickets: tickets::DEFAULT,
    };
    let Some(table) = root.table("process") else {
        return process;
    };
    table.not_yet("sandbox", "confine the process with its service manager");
    if let Some(path) = table.value("state_dir").and_then(|v| v.parsed(absolute)) {
        process.state_dir = path;
    }
    if let Some(value) = table.value("workers").filter(|v| !v.is("auto")) {
        if value.is_text() {
            value.wrong(
                "not a number of threads",
                r#"write a whole number, or "auto""#,
            );
        } else if let Some(workers) = value.integer(1..=WORKERS_MAX) {
            process.workers = workers;
        }
    }
    process.drain_deadline =
        table.duration("drain_deadline", SECOND..=HOUR, process.drain_deadline);
    process.max_sessions = table.integer("max_sessions", 1..=SESSIONS_MAX, process.max_sessions);
    process.max_sessions_per_client = table.integer(
        "max_sessions_per_client",
        1..=SESSIONS_MAX,
        share(process.max_sessions),
    );
    let key_file = table.value("key_file").and_then(|v| v.text());
    process.key_file = key_file.map(|text| folder.join(text));
    process.tickets = tickets::tickets(&table, folder, &process, redis);
    process
}

/// Of all sessions, what one client may have if nothing else is said.
fn share(max_sessions: usize) -> usize {
    (max_sessions / 10).max(1)
}

/// What the CPU affinity and the CPU quota of the cgroup allow; asked once, so that a reload compares like with like.
fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn absolute(text: &str) -> units::Read<PathBuf> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        return Ok(path);
    }
    let mend = r#"write the whole path, as in "/var/lib/tollgate""#.to_owned();
    Err((format!("{text:?} is not an absolute path"), mend))
}

/// `[admin]`
pub(super) fn admin(root: &Table<'_>) -> Admin {
    let table = root.table("admin");
    let listen = table.as_ref().and_then(|table| {
        table.not_yet("token_file", "the admin listener is on loopback only");
        let value = table.value("listen")?;
        let listen = value.listen()?;
        if !listen.ip().is_loopback() {
            let port = listen.port();
            let mend =
                format!(r#"write "127.0.0.1:{port}"; reach it from elsewhere through a tunnel"#);
            value.wrong("only loopback is served in this release", mend);
        }
        Some(listen)
    });
    if table.is_none_or(|table| table.value("listen").is_none()) {
        root.notes.listens("admin.listen", DEFAULT_ADMIN);
    }
    Admin {
        listen: listen.unwrap_or(DEFAULT_ADMIN),
    }
}

/// `[log]`
pub(super) fn log(root: &Table<'_>) -> Log {
    let mut log = Log {
        format: LogFormat::Json,
        level: tracing::Level::INFO,
    };
    if let Some(table) = root.table("log") {
        let formats = [("json", LogFormat::Json), ("text", LogFormat::Text)];
        let levels = [
            ("error", tracing::Level::ERROR),
            ("warn", tracing::Level::WARN),
            ("info", tracing::Level::INFO),
            ("debug", tracing::Level::DEBUG),
            ("trace", tracing::Level::TRACE),
        ];
        log.format = table.word("format", &formats, log.format);
        log.level = table.word("level", &levels, log.level);
    }
    log
}

impl Default for Audit {
    /// What holds if the file says nothing.
    fn default() -> Self {
        Self {
            durability: Durability::Sync,
            on_failure: OnFailure::Refuse,
            wait_budget: DEFAULT_WAIT_BUDGET,
            standby_dir: None,
            stall_after: DEFAULT_WAIT_BUDGET / 2,
            segment_bytes: DEFAULT_SEGMENT_BYTES,
            seal_every: SECOND,
            anchors: Vec::new(),
            receipt_key: None,
            min_free: DEFAULT_MIN_FREE_BYTES,
            retain: Retain {
                days: DEFAULT_RETAIN_DAYS,
                max_bytes: None,
            },
            query_values: Vec::new(),
            secret_paths: DEFAULT_SECRET_PATHS.map(str::to_owned).into(),
        }
    }
}

/// `[audit]`
pub(super) fn audit(root: &Table<'_>, folder: &Path) -> Audit {
    let mut audit = Audit::default();
    let Some(table) = root.table("audit") else {
        return audit;
    };
    table.not_yet("identity", "records hold the client address, not the user");
    table.not_yet(
        "sink",
        "let a log shipper follow the segments in `state_dir`/audit",
    );
    let durabilities = [("sync", Durability::Sync), ("write", Durability::Write)];
    audit.durability = table.word("durability", &durabilities, audit.durability);
    audit.on_failure = table.word("on_failure", &ON_FAILURE, audit.on_failure);
    let budget = Duration::from_millis(10)..=60 * SECOND;
    audit.wait_budget = table.duration("wait_budget", budget, audit.wait_budget);
    audit.standby_dir = table
        .value("standby_dir")
        .and_then(|value| value.parsed(absolute));
    audit.stall_after = table.duration(
        "stall_after",
        Duration::from_millis(5)..=audit.wait_budget,
        audit.wait_budget / 2,
    );
    audit.segment_bytes = table.size("segment", 64 << 10..=1 << 30, audit.segment_bytes);
    audit.min_free = table.size("min_free", 0..=1 << 50, audit.min_free);
    if let Some(retain) = table.table("retain") {
        audit.retain.days = retain.integer("days", 1..=RETAIN_DAYS_MAX, audit.retain.days);
        let least = audit.segment_bytes * RETAIN_SEGMENTS_MIN;
        let bytes = retain.value("max_bytes");
        audit.retain.max_bytes = bytes.and_then(|bytes| bytes.size(least..=1 << 50));
    }
    audit.seal_every = table.duration(
        "seal_every",
        Duration::from_millis(100)..=HOUR,
        audit.seal_every,
    );
    audit.anchors = seals::anchors(&table);
    audit.receipt_key = seals::receipt_key(&table, folder);
    audit.query_values = names(table.value("query_values"), &|text| {
        if text.is_empty() || text.contains(['&', '=', '#']) {
            let mend = r#"write the name of a query parameter alone, as in "page""#;
            return Err((format!("{text:?} is not a name"), mend.to_owned()));
        }
        Ok(text.to_owned())
    });
    if let Some(value) = table.value("secret_paths") {
        audit.secret_paths = names(Some(value), &secret_path);
    }
    audit
}

fn names(value: Option<Value<'_>>, read: &dyn Fn(&str) -> units::Read<String>) -> Vec<String> {
    let Some(value) = value else {
        return Vec::new();
    };
    let list = value.list();
    if list.len() > NAMES_MAX {
        let mend = format!("keep at most {NAMES_MAX}");
        value.wrong(format!("{} entries", list.len()), mend);
    }
    list.iter().filter_map(|v| v.parsed(read)).collect()
}

fn secret_path(text: &str) -> units::Read<String> {
    let mut segments = text.split('/').skip(1);
    let whole = |part: &str| part == "*" || !part.contains('*');
    if text.starts_with('/') && segments.clone().all(whole) && segments.any(|part| part == "*") {
        return Ok(text.to_owned());
    }
    let mend = r#"begin with `/` and write `*` for each secret segment, as in "/invitations/*""#;
    Err((format!("{text:?} is not a path pattern"), mend.to_owned()))
}

/// `[limits]`
pub(super) fn limits(
    root: &Table<'_>,
    folder: &Path,
) -> (BTreeMap<String, Limit>, Option<RedisStore>) {
    let (mut limits, mut store) = (BTreeMap::new(), None);
    let Some(table) = root.table("limits") else {
        return (limits, store);
    };
    let named = table.named();
    if named.len() > LIMITS_MAX {
        let mend = format!("keep at most {LIMITS_MAX}");
        table.wrong(format!("{} limits", named.len()), mend);
    }
    for (name, value) in named {
        if name == "store" {
            store = acme::redis(&value, folder);
        } else if let Some(limit) = value.table().and_then(|t| limit(&t)) {
            limits.insert(name.to_owned(), limit);
        }
    }
    (limits, store)
}

fn limit(table: &Table<'_>) -> Option<Limit> {
    table.not_yet(
        "concurrent",
        "use `rate`; `process.max_sessions` bounds what is open",
    );
    let key = table.value("key");
    if let Some(key) = key.filter(|v| !v.is("client")) {
        key.not_yet(r#"write "client", or leave it out"#);
    }
    let burst = table.value("burst").map(|v| v.integer(1..=RATE_MAX));
    let Some(value) = table.value("rate") else {
        table.missing("rate", r#"add `rate = "50/s"`"#);
        return None;
    };
    let limit = value.parsed(units::rate)?;
    if limit.rate > RATE_MAX {
        value.wrong(
            "out of range",
            format!("choose a rate of at most {RATE_MAX}"),
        );
    }
    let limit = Limit {
        burst: burst.unwrap_or(Some(limit.rate))?,
        ..limit
    };
    let refill = limit.per.as_nanos() * u128::from(limit.burst) / u128::from(limit.rate);
    if refill > REFILL_MAX.as_nanos() {
        let problem = "an exhausted burst would take more than a day to be full again";
        table.wrong(problem, "lower `burst` or raise `rate`");
    }
    Some(limit)
}

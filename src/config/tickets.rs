//! `tickets` of `[process]`: how often the keys of session tickets change, and where replicas share them.

use std::path::Path;
use std::time::Duration;

use super::raw::{Table, Value};
use super::typed::{Process, RedisStore, TicketStore, Tickets};

const EVERY_DEFAULT: Duration = Duration::from_secs(12 * 3600);
const EVERY_MIN: Duration = Duration::from_secs(1);
/// Four times this is within the seven days that TLS 1.3 allows a ticket.
const EVERY_MAX: Duration = Duration::from_secs(24 * 3600);

/// What holds if nothing is said.
pub(super) const DEFAULT: Tickets = Tickets {
    every: EVERY_DEFAULT,
    store: None,
};

/// `tickets` of the table `process`, of which everything else has been read.
pub(super) fn tickets(
    table: &Table<'_>,
    folder: &Path,
    process: &Process,
    redis: Option<&RedisStore>,
) -> Tickets {
    let sealed = process.key_file.is_some();
    // Without a word replicas share what they can: a Redis that is there anyway, and a key to seal with.
    let own = || redis.filter(|_| sealed).cloned().map(TicketStore::Redis);
    let Some(table) = table.table("tickets") else {
        return Tickets {
            store: own(),
            ..DEFAULT
        };
    };
    let every = table.duration("every", EVERY_MIN..=EVERY_MAX, EVERY_DEFAULT);
    let store = match table.value("store") {
        None => own(),
        Some(value) => {
            if !sealed {
                let mend = "make one with `tollgate secret keygen` and name it in `process.key_file`, the same for every replica";
                value.wrong(
                    "what replicas share is sealed, and there is no key to seal with",
                    mend,
                );
            }
            store(&value, folder, redis)
        }
    };
    Tickets { every, store }
}

fn store(value: &Value<'_>, folder: &Path, redis: Option<&RedisStore>) -> Option<TicketStore> {
    if !value.is("redis") {
        return Some(TicketStore::Folder(folder.join(value.text()?)));
    }
    if redis.is_none() {
        let mend = r#"add `[limits.store]` with `redis = "redis://127.0.0.1:6379"`"#;
        value.wrong("no Redis is named", mend);
    }
    redis.cloned().map(TicketStore::Redis)
}

//! A store in Redis or Valkey: one key a blob, one key with an expiry a lock.
//!
//! A lock holds the drawn token of its holder and expires by itself, so that a dead holder is taken over. It is renewed,
//! released and written under only by a script that compares the token first: a holder that slept through the expiry
//! changes nothing. One connection, made anew after an error; every command is bounded in time.

use std::future::Future;
use std::io;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, RedisConnectionInfo, RedisError,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use crate::clock::{self, Id};
use crate::config::typed::RedisStore;
use crate::reach::{Reach, Trust, TrustError};
use crate::workers;

use super::{BLOB_BYTES_MAX, StoreError};

pub(super) struct Redis {
    server: RedisStore,
    reach: Reach,
    /// `None`: the server is spoken to in the clear.
    trust: Option<Trust>,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// Not released when dropped: it expires.
pub(super) struct Lock {
    name: String,
    key: String,
    token: String,
}

/// What stands before every key of ours.
const PREFIX: &str = "tollgate:";
/// For one command, a connection and its handshake included.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);
/// How long a lock outlives a holder that no longer renews it.
const LEASE: Duration = Duration::from_secs(30);
const RENEW_EVERY: Duration = Duration::from_secs(5);

/// A sealed blob is longer than what it holds.
const FOUND_BYTES_MAX: usize = 2 * BLOB_BYTES_MAX;
const RENEW: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0";
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";
const PUT_UNDER: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[2], ARGV[2]) return 1 end return 0";

impl Redis {
    pub(super) fn new(server: &RedisStore, reach: Reach) -> Result<Self, TrustError> {
        let trust = server.tls.then(|| Trust::new(server.ca_file.as_deref()));
        Ok(Self {
            server: server.clone(),
            reach,
            trust: trust.transpose()?,
            connection: Mutex::default(),
        })
    }

    pub(super) async fn get(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let mut command = Cmd::new();
        // One byte more than there may be: whoever else writes there cannot make us read without end.
        command
            .arg("GETRANGE")
            .arg(key(name))
            .arg(0)
            .arg(FOUND_BYTES_MAX);
        let found: Vec<u8> = self.ask(&command).await?;
        match found.len() {
            0 => Ok(None), // nothing is kept empty
            length if length > FOUND_BYTES_MAX => Err(StoreError::Foreign {
                name: name.to_owned(),
                why: "too large".to_owned(),
            }),
            _ => Ok(Some(Zeroizing::new(found))),
        }
    }

    pub(super) async fn put(&self, name: &str, blob: &[u8]) -> Result<(), StoreError> {
        let mut command = Cmd::new();
        command.arg("SET").arg(key(name)).arg(blob);
        self.ask(&command).await
    }

    pub(super) async fn remove(&self, name: &str) -> Result<(), StoreError> {
        let mut command = Cmd::new();
        command.arg("DEL").arg(key(name));
        self.ask(&command).await
    }

    pub(super) async fn lock(&self, name: &str) -> Result<Option<Lock>, StoreError> {
        let lock = Lock {
            name: name.to_owned(),
            key: key(&format!("{name}.lock")),
            token: Id::new().to_string(),
        };
        let mut command = Cmd::new();
        command.arg("SET").arg(&lock.key).arg(&lock.token);
        command.arg("NX").arg("PX").arg(milliseconds(LEASE));
        let answer: Option<String> = self.ask(&command).await?;
        Ok(answer.map(|_| lock))
    }

    /// Renews `lock` until that no longer succeeds; gives why.
    pub(super) async fn keep(&self, lock: &Lock) -> StoreError {
        let mut renewed = clock::now();
        loop {
            sleep(RENEW_EVERY).await;
            let asked = clock::now();
            match self.run(RENEW, lock, &milliseconds(LEASE)).await {
                Ok(true) => renewed = asked,
                Ok(false) => return lost(lock),
                // The server may be back before the lease is over.
                Err(error) if renewed.elapsed() + RENEW_EVERY + COMMAND_LIMIT > LEASE => {
                    return error;
                }
                Err(_) => {}
            }
        }
    }

    pub(super) async fn release(&self, lock: &Lock) {
        self.run(RELEASE, lock, "").await.ok(); // it expires
    }

    pub(super) async fn put_under(
        &self,
        lock: &Lock,
        name: &str,
        blob: &[u8],
    ) -> Result<(), StoreError> {
        let mut command = Cmd::new();
        command.arg("EVAL").arg(PUT_UNDER).arg(2);
        command.arg(&lock.key).arg(key(name));
        command.arg(&lock.token).arg(blob);
        let done: bool = self.ask(&command).await?;
        if done { Ok(()) } else { Err(lost(lock)) }
    }

    async fn run(&self, script: &str, lock: &Lock, last: &str) -> Result<bool, StoreError> {
        let mut command = Cmd::new();
        command.arg("EVAL").arg(script).arg(1).arg(&lock.key);
        command.arg(&lock.token).arg(last);
        self.ask(&command).await
    }

    /// One command, once: whoever asks knows what to do when nothing came back.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let asked = timeout(COMMAND_LIMIT, async {
            let mut connection = self.connection().await?;
            let answer = command.query_async(&mut connection).await;
            answer.map_err(|error| why(&error))
        });
        let answer = asked
            .await
            .unwrap_or_else(|_| Err("it does not answer".to_owned()));
        match answer {
            Ok(value) => Ok(value),
            Err(why) => {
                *self.connection.lock().await = None; // whatever is the matter, the next one begins afresh
                let address = self.server.address.to_string();
                Err(StoreError::Redis { address, why })
            }
        }
    }

    async fn connection(&self) -> Result<MultiplexedConnection, String> {
        let mut place = self.connection.lock().await;
        if let Some(connection) = &*place {
            return Ok(connection.clone());
        }
        let text = |error: io::Error| error.to_string();
        let to = &self.server.address;
        let made = match &self.trust {
            None => {
                self.greet(self.reach.connect(to).await.map_err(text)?)
                    .await
            }
            Some(trust) => {
                let io = self.reach.connect_tls(to, trust).await.map_err(text)?;
                self.greet(io).await
            }
        };
        Ok(place.insert(made.map_err(|error| why(&error))?).clone())
    }

    async fn greet<S>(&self, stream: S) -> Result<MultiplexedConnection, RedisError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut info = RedisConnectionInfo::default()
            .set_db(self.server.database)
            .set_skip_set_lib_name();
        if let Some(user) = &self.server.user {
            info = info.set_username(user);
        }
        if let Some(password) = &self.server.password {
            info = info.set_password(String::from_utf8_lossy(&password.0));
        }
        let config = AsyncConnectionConfig::default();
        let made = MultiplexedConnection::new_with_config(&info, stream, config).await;
        let (connection, driver) = made?;
        drive(driver);
        Ok(connection)
    }
}

/// It ends when the last clone of its connection is dropped.
fn drive(driver: impl Future<Output = ()> + Send + 'static) {
    workers::spawn(driver);
}

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

fn milliseconds(duration: Duration) -> String {
    duration.as_millis().to_string()
}

fn lost(lock: &Lock) -> StoreError {
    StoreError::Lost {
        name: lock.name.clone(),
    }
}

const REFUSED: &str = "it does not accept the user or password";

/// What the server or the connection says, without what we sent.
fn why(error: &RedisError) -> String {
    match error.code() {
        _ if error.kind() == ErrorKind::AuthenticationFailed => REFUSED.to_owned(),
        Some("NOAUTH" | "WRONGPASS") => REFUSED.to_owned(),
        Some("NOPERM") => {
            "its user may not do this; allow GET, GETRANGE, SET, DEL, PEXPIRE and EVAL on tollgate:*".to_owned()
        }
        _ => error.to_string(),
    }
}

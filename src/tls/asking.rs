//! One `client_auth` over time: who is believed now, and the files that say so.
//!
//! The files are looked at several times a second, as those of certificates are. Good ones are in force at once; bad
//! ones are told of, and what was good before stays, with one exception that is no choice of ours: a revocation list
//! that is past its `nextUpdate` refuses everybody whom it should tell about.

use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use tracing::Level;

use crate::config::typed::ClientAuth;

use super::client_auth::{ClientAuthError, Trust};
use super::notice::Notice;
use super::watch::{Identity, identity};

/// Who is believed now; shared by the listeners that ask in the same way.
pub(super) type Believed = ArcSwap<Trust>;

/// The files of a [`Believed`], held as long as there is a listener that asks.
pub(super) struct Asking {
    auth: ClientAuth,
    believed: Weak<Believed>,
    judged: Look,
    /// Another look than `judged`, which the next one must agree with.
    unsettled: Option<Look>,
    /// Why what the files hold now is not in force, if it is not.
    pub(super) flaw: Option<ClientAuthError>,
    told: Told,
}

/// What every path leads to.
type Look = Vec<Option<Identity>>;

/// What has been told of time running out.
#[derive(Clone, Copy, Default)]
struct Told {
    /// How many lists are out of date.
    stale: usize,
    /// How many authorities are over.
    expired: usize,
}

impl Asking {
    /// Reads the files for the first time; the error is why nobody can be believed.
    pub(super) fn begin(
        auth: &ClientAuth,
        provider: &Arc<CryptoProvider>,
    ) -> Result<(Self, Arc<Believed>), ClientAuthError> {
        let judged = look(auth);
        let believed = Arc::new(ArcSwap::from_pointee(Trust::read(auth, provider)?));
        let asking = Self {
            auth: auth.clone(),
            believed: Arc::downgrade(&believed),
            judged,
            unsettled: None,
            flaw: None,
            told: Told::default(),
        };
        Ok((asking, believed))
    }

    /// Who is believed, unless no listener asks any more.
    pub(super) fn believed(&self) -> Option<Arc<Believed>> {
        self.believed.upgrade()
    }

    /// Whether it is about the same files and the same question.
    pub(super) fn is_for(&self, auth: &ClientAuth) -> bool {
        self.auth == *auth
    }

    /// Looks once, and takes over what two looks agree on.
    pub(super) fn look(&mut self, provider: &Arc<CryptoProvider>, second: i64) -> Vec<Notice> {
        let now = look(&self.auth);
        let mut notices = Vec::new();
        if now == self.judged {
            self.unsettled = None;
        } else if self.unsettled.as_ref() == Some(&now) {
            notices.extend(self.judge(now, provider));
        } else {
            self.unsettled = Some(now);
        }
        notices.extend(self.look_at_end(second));
        notices
    }

    /// As [`Asking::look`], without waiting for a second look: somebody says that the files are as they should be.
    pub(super) fn look_at_once(&mut self, provider: &Arc<CryptoProvider>) -> Option<Notice> {
        let now = look(&self.auth);
        (now != self.judged).then(|| self.judge(now, provider))?
    }

    fn judge(&mut self, now: Look, provider: &Arc<CryptoProvider>) -> Option<Notice> {
        self.unsettled = None;
        let read = Trust::read(&self.auth, provider);
        if look(&self.auth) != now {
            return None; // changed while it was read
        }
        self.judged = now;
        self.flaw = None;
        let believed = self.believed()?;
        match read {
            Ok(trust) if trust.mark() == believed.load().mark() => None,
            Ok(trust) => {
                believed.store(Arc::new(trust));
                self.told = Told::default();
                Some(self.notice(
                    Notice::TRUST_REPLACED,
                    Level::INFO,
                    "the client certificates that are believed follow the changed files".to_owned(),
                ))
            }
            Err(error) => {
                let mut notice = self.notice(
                    "client_trust_rejected",
                    Level::ERROR,
                    format!("{error}; until then the files before it are in force"),
                );
                let file = error.path().display().to_string();
                notice
                    .facts
                    .extend([("file", file), ("why", error.to_string())]);
                self.flaw = Some(error);
                Some(notice)
            }
        }
    }

    /// What is too old at `second`, since 1970.
    pub(super) fn late(&self, second: i64) -> Vec<ClientAuthError> {
        let Some(believed) = self.believed() else {
            return Vec::new();
        };
        let trust = believed.load();
        trust.stale(second).chain(trust.expired(second)).collect()
    }

    /// Says of each list once that it is out of date, and of each authority that it is over.
    fn look_at_end(&mut self, second: i64) -> Option<Notice> {
        let trust = self.believed()?.load_full();
        let (stale, expired) = (trust.stale(second).count(), trust.expired(second).count());
        if stale > self.told.stale {
            self.told.stale = stale;
            let says = all(trust.stale(second));
            return Some(self.notice(Notice::LIST_STALE, Level::ERROR, says));
        }
        if expired > self.told.expired {
            self.told.expired = expired;
            let says = all(trust.expired(second));
            return Some(self.notice("client_authority_expired", Level::WARN, says));
        }
        None
    }

    fn lists(&self) -> String {
        let lists = self.auth.crl.iter().map(|path| path.display().to_string());
        lists.collect::<Vec<_>>().join(", ")
    }

    fn notice(&self, name: &'static str, level: Level, says: String) -> Notice {
        let facts = vec![
            ("ca", self.auth.ca.display().to_string()),
            ("crl", self.lists()),
        ];
        Notice {
            name,
            facts,
            level,
            says,
        }
    }
}

fn all(errors: impl Iterator<Item = ClientAuthError>) -> String {
    let said: Vec<_> = errors.map(|error| error.to_string()).collect();
    said.join("; ")
}

fn look(auth: &ClientAuth) -> Look {
    let paths = std::iter::once(&auth.ca).chain(&auth.crl);
    paths.map(|path| identity(path)).collect()
}

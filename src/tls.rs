//! The TLS side of the ingress: the keyring, which holds every certificate and the ticket keys, and what listeners
//! serve with.
//!
//! The keyring outlives every reload: a certificate is replaced in place when its files change, and the tickets that
//! clients hold stay good. One bad certificate never takes another one with it: what was good before stays. The
//! provider is aws-lc-rs and named explicitly, so no process-wide default is needed; its key exchange prefers
//! X25519MLKEM768. Early data stays off: it could be replayed. No handshake happens here.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

use crate::clock;
use crate::config::typed::{CertificateFiles, ClientAuth, Config, Tls};
use crate::reach::Reach;
use crate::telemetry::Metrics;

mod asking;
mod certificate;
mod challenges;
mod client_auth;
mod error;
mod holding;
mod keeper;
mod names;
mod notice;
mod ordered;
mod pem;
mod principal;
mod served;
mod tickets;
mod watch;

pub use certificate::Certificate;
pub use challenges::{Challenge, Challenges, Given, NoAnswer};
pub use client_auth::{Unbelieved, noting, refusal};
pub use error::TlsError;
pub use keeper::Keeper;
pub use notice::Notice;
pub use ordered::Ordered;
pub use principal::Principal;
pub use served::{Choice, Served};

use asking::{Asking, Believed};
use client_auth::ClientAuthError;
use holding::Holding;
use names::{Names, Slot};
use notice::Tell;
use served::{Acme, Asks, Manner};
use tickets::TicketKeys;
use tickets::shared::Sharing;
use watch::Following;

/// Every certificate, and the keys of session tickets. Cheap to clone; one per process.
#[derive(Clone)]
pub struct Keyring(Arc<Ring>);

struct Ring {
    provider: Arc<CryptoProvider>,
    tickets: Arc<TicketKeys>,
    /// Where the ticket keys are shared, once that is known.
    sharing: OnceLock<Option<Sharing>>,
    held: Mutex<Held>,
    challenges: Arc<Challenges>,
    metrics: Arc<Metrics>,
    tell: Tell,
}

#[derive(Default)]
struct Held {
    holdings: Vec<Holding>,
    listeners: Vec<Weak<Names>>,
    askings: Vec<Asking>,
}

/// Something wrong with a certificate of a listener.
#[derive(Debug)]
pub struct Flaw {
    /// Which key below the listener's `tls` it is about; empty if about all of it.
    pub key: String,
    pub problem: String,
    pub mend: String,
}

/// What is made of a pair that is new here and not valid today.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Dates {
    /// It is a flaw.
    Heed,
    /// It is served: at a start there is nothing better, and other hosts shall not go without service for it.
    Ignore,
}

impl Keyring {
    /// An empty one. `tell` is called on whatever thread something happens and must not block.
    /// Ticket keys change `every` so often.
    pub fn new(
        every: Duration,
        metrics: Arc<Metrics>,
        tell: impl Fn(Notice) + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let tickets = TicketKeys::new(every);
        tickets.turn(tickets::now());
        Ok(Self(Arc::new(Ring {
            provider: Arc::new(aws_lc_rs::default_provider()),
            tickets,
            sharing: OnceLock::new(),
            held: Mutex::default(),
            challenges: Arc::default(),
            metrics,
            tell: Box::new(tell),
        })))
    }

    /// Shares the ticket keys with other replicas, if `config` says so. That cannot change while running, so only the
    /// first time counts; the first look at the store is the keeper's.
    ///
    /// # Errors
    /// The key file, or what is needed to reach the store, cannot be used.
    pub fn share(&self, config: &Config) -> Result<(), Flaw> {
        if self.0.sharing.get().is_some() {
            return Ok(());
        }
        let name_servers = config.egress.as_ref().map_or(&[][..], |e| &e.resolvers);
        let reach = Reach::new(name_servers);
        let sharing = Sharing::open(&self.0.tickets, &config.process, reach)
            .map_err(|(key, text)| Flaw::new(key, &text))?;
        self.0.sharing.get_or_init(|| sharing);
        Ok(())
    }

    /// What a listener of `tls` serves with. Blocks on file access. Files that are held already are looked at again,
    /// and what was good before stays if they are bad now; that is told like any other change.
    ///
    /// # Errors
    /// Every pair that is new here and cannot be served.
    pub fn serve(&self, tls: &Tls, dates: Dates) -> Result<Arc<Served>, Vec<Flaw>> {
        let (mut slots, mut flaws) = (Vec::new(), Vec::new());
        for (at, files) in tls.certificates.iter().enumerate() {
            match self.0.slot(files, dates) {
                Ok(slot) => slots.push(slot),
                Err(error) => flaws.push(Flaw::of(at, files, &error)),
            }
        }
        let asks = tls.client_auth.as_ref().and_then(|auth| {
            let believed = self.0.believed(auth);
            let believed = believed.map_err(|error| flaws.push(Flaw::of_clients(auth, &error)));
            let (auth, believed) = (auth.clone(), believed.ok()?);
            Some(Asks { auth, believed })
        });
        if !flaws.is_empty() {
            return Err(flaws);
        }
        let ordered = self.places(tls, &slots);
        slots.extend(ordered.iter().map(|ordered| Arc::clone(&ordered.slot)));
        let names = Arc::new(Names::new(slots, tls.unknown_sni));
        self.0.held().listeners.push(Arc::downgrade(&names));
        names.refresh(); // what was replaced before it was on the list
        let manner = Manner {
            provider: Arc::clone(&self.0.provider),
            min_version: tls.min_version,
            tickets: Arc::clone(&self.0.tickets),
        };
        let challenges = Arc::clone(&self.0.challenges);
        let acme = Acme {
            ordered,
            challenges,
        };
        match Served::new(names, manner, asks, acme) {
            Ok(served) => Ok(Arc::new(served)),
            Err(error) => Err(vec![Flaw::new("", &TlsError::from(error))]),
        }
    }

    /// What is wrong with the certificates of `tls` although they are served: files that were good and are not now,
    /// and dates.
    pub fn standing(&self, tls: &Tls) -> Vec<Flaw> {
        let (held, second) = (self.0.held(), now());
        let mut flaws = Vec::new();
        for (at, files) in tls.certificates.iter().enumerate() {
            let Some(holding) = held.holdings.iter().find(|h| h.is_of(files)) else {
                continue;
            };
            let served = holding.slot().and_then(|slot| slot.load_full());
            let late = served.and_then(|certificate| certificate.timely(second).err());
            let all = holding.flaw.iter().chain(&late);
            flaws.extend(all.map(|error| Flaw::of(at, files, error)));
        }
        if let Some(auth) = &tls.client_auth {
            let askings = held.askings.iter().filter(|asking| asking.is_for(auth));
            for asking in askings {
                let late = asking.late(second);
                let all = asking.flaw.iter().chain(&late);
                flaws.extend(all.map(|error| Flaw::of_clients(auth, error)));
            }
        }
        flaws
    }

    fn sharing(&self) -> Option<Sharing> {
        self.0.sharing.get().cloned().flatten()
    }

    fn tell(&self, notice: Notice) {
        (self.0.tell)(notice);
    }

    /// Looks at every file and every date once, and does what follows from it. Blocks on file access.
    fn look(&self) {
        self.0.look();
    }
}

impl Ring {
    /// The slot of `files`: the one that is held, or a new one.
    fn slot(&self, files: &CertificateFiles, dates: Dates) -> Result<Arc<Slot>, TlsError> {
        let second = now();
        let mut held = self.held();
        self.leave(&mut held);
        let same = held.holdings.iter_mut().find(|h| h.is_of(files));
        if let Some(holding) = same
            && let Some(slot) = holding.slot()
        {
            let following = holding.following.as_mut();
            let read = following.and_then(|f| f.look_at_once(second));
            if let Some(notice) = read.and_then(|read| take(holding, read)) {
                self.changed(held, [notice]);
            }
            return Ok(slot);
        }
        let (following, certificate) = Following::begin(files)?;
        if dates == Dates::Heed {
            certificate.timely(second)?;
        }
        self.metrics
            .certificate(&certificate.label, certificate.not_after);
        let slot = Arc::new(ArcSwapOption::from_pointee(certificate));
        let label = files.cert.display().to_string();
        held.holdings
            .push(Holding::new(&label, &slot, Some(following)));
        Ok(slot)
    }

    /// Who is believed by a listener of `auth`: what is held, or what is read now.
    fn believed(&self, auth: &ClientAuth) -> Result<Arc<Believed>, ClientAuthError> {
        let mut held = self.held();
        for asking in held.askings.iter_mut().filter(|a| a.is_for(auth)) {
            let notice = asking.look_at_once(&self.provider);
            let Some(believed) = asking.believed() else {
                continue;
            };
            if let Some(notice) = notice {
                self.changed(held, [notice]);
            }
            return Ok(believed);
        }
        let (asking, believed) = Asking::begin(auth, &self.provider)?;
        held.askings.push(asking);
        Ok(believed)
    }

    fn look(&self) {
        let second = now();
        let mut notices = Vec::new();
        self.tickets.turn(tickets::now());
        let mut held = self.held();
        self.leave(&mut held);
        for asking in &mut held.askings {
            notices.extend(asking.look(&self.provider, second));
        }
        for holding in &mut held.holdings {
            let read = holding.following.as_mut().and_then(|f| f.look(second));
            notices.extend(read.and_then(|read| take(holding, read)));
            notices.extend(holding.look_at_end(second));
        }
        if !notices.is_empty() {
            self.changed(held, notices);
        }
    }

    /// Forgets what no listener serves any more.
    fn leave(&self, held: &mut Held) {
        let before = held.holdings.len();
        held.holdings.retain(|holding| {
            let stays = holding.slot().is_some();
            if !stays {
                self.metrics.certificate_gone(&holding.label);
            }
            stays
        });
        held.listeners.retain(|names| names.strong_count() > 0);
        held.askings.retain(|asking| asking.believed().is_some());
        if held.holdings.len() < before {
            self.measure(held); // another one may go by the same label
        }
    }

    /// Brings every table and metric up to date, and tells what happened.
    fn changed(&self, held: MutexGuard<'_, Held>, notices: impl IntoIterator<Item = Notice>) {
        for names in held.listeners.iter().filter_map(Weak::upgrade) {
            names.refresh();
        }
        self.measure(&held);
        drop(held); // whoever is told may take its time
        for notice in notices {
            (self.tell)(notice);
        }
    }

    fn measure(&self, held: &Held) {
        for holding in &held.holdings {
            let certificate = holding.slot().and_then(|slot| slot.load_full());
            if let Some(certificate) = certificate {
                self.metrics
                    .certificate(&holding.label, certificate.not_after);
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A good pair is served from now on, of a bad one is told.
fn take(holding: &mut Holding, read: Result<Certificate, TlsError>) -> Option<Notice> {
    match read {
        Ok(certificate) => holding.replace(certificate),
        Err(error) => Some(holding.reject(error)),
    }
}

/// In seconds since 1970.
fn now() -> i64 {
    i64::try_from(clock::wall_ns() / 1_000_000_000).unwrap_or(i64::MAX)
}

impl Flaw {
    fn of_clients(auth: &ClientAuth, error: &ClientAuthError) -> Self {
        let file = if *error.path() == auth.ca {
            "ca"
        } else {
            "crl"
        };
        Self::new(&format!("client_auth.{file}"), error)
    }

    fn of(at: usize, files: &CertificateFiles, error: &TlsError) -> Self {
        let file = match error.path() {
            Some(path) if *path == files.cert => ".cert",
            Some(path) if *path == files.key => ".key",
            _ => "",
        };
        Self::new(&format!("certificates[{at}]{file}"), error)
    }

    /// The text of an error says what is wrong, then what mends it.
    fn new(key: &str, error: &impl ToString) -> Self {
        let text = error.to_string();
        let (problem, mend) = text.split_once("; ").unwrap_or((&text, "check both files"));
        Self {
            key: key.to_owned(),
            problem: problem.to_owned(),
            mend: mend.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rcgen::{CertifiedKey as Generated, KeyPair, generate_simple_self_signed};

    use super::*;
    use crate::config::typed::{TlsVersion, UnknownSni};

    fn files(folder: &Path, cert: &str, key: &str) -> Tls {
        let pair = CertificateFiles {
            cert: folder.join("chain.pem"),
            key: folder.join("key.pem"),
        };
        fs::write(&pair.cert, cert).unwrap();
        fs::write(&pair.key, key).unwrap();
        Tls {
            certificates: vec![pair],
            unknown_sni: UnknownSni::Default,
            acme: None,
            hosts: Vec::new(),
            min_version: TlsVersion::V12,
            client_auth: None,
        }
    }

    fn generated() -> Generated<KeyPair> {
        generate_simple_self_signed(["tools.example.com".to_owned()]).unwrap()
    }

    fn serve(tls: &Tls) -> Result<Arc<Served>, Vec<Flaw>> {
        Keyring::new(Duration::from_secs(60), Arc::default(), |_| ())
            .unwrap()
            .serve(tls, Dates::Heed)
    }

    #[test]
    fn a_chain_and_its_key_are_served_with_both_protocols() {
        let folder = tempfile::tempdir().unwrap();
        let pair = generated();
        let tls = files(
            folder.path(),
            &pair.cert.pem(),
            &pair.signing_key.serialize_pem(),
        );
        let config = serve(&tls).unwrap().config().unwrap();
        assert_eq!(config.alpn_protocols, [&b"h2"[..], b"http/1.1"]);
        assert_eq!(config.max_early_data_size, 0);
        assert!(config.ticketer.enabled());
        let groups = &config.crypto_provider().kx_groups;
        assert_eq!(groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    }

    #[test]
    fn every_mistake_names_its_file_and_its_mend() {
        let folder = tempfile::tempdir().unwrap();
        let (pair, other) = (generated(), generated());
        let (cert, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        let encrypted =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMIIB\n-----END RSA PRIVATE KEY-----\n";
        let broken = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
        let other_key = other.signing_key.serialize_pem();
        let several = format!("{key}{other_key}");
        for (cert, key, file, says) in [
            (&*cert, "", "key.pem", "no private key"),
            ("", &*key, "chain.pem", "no certificate"),
            (&*key, &*key, "chain.pem", "no certificate"),
            (&*cert, encrypted, "key.pem", "openssl pkey"),
            (&*cert, legacy, "key.pem", "encrypted"),
            (&*cert, &*several, "key.pem", "more than one"),
            (&*cert, &*other_key, "key.pem", "another certificate"),
            (broken, &*key, "chain.pem", "not valid PEM"),
        ] {
            let flaws = serve(&files(folder.path(), cert, key)).unwrap_err();
            let text = format!("{:?}", flaws[0]);
            assert!(text.contains(file) && text.contains(says), "{text}");
        }
        let mut tls = files(folder.path(), &cert, &key);
        tls.certificates[0].cert = folder.path().join("missing.pem");
        let text = format!("{:?}", serve(&tls).unwrap_err()[0]);
        assert!(
            text.contains("missing.pem") && text.contains("exists"),
            "{text}"
        );
    }
}

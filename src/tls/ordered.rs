//! Certificates that are ordered from a certificate authority: their places in the keyring.
//!
//! A place is made when a listener wants it and is empty until a certificate comes; nothing is served in its stead. Who
//! orders, keeps and renews is another room; here a certificate is taken only if it is for the name of its place.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::crypto::CryptoProvider;

use crate::addr::Host;
use crate::config::typed::{Acme, CertificateFiles, HostPattern, Tls};

use super::holding::Holding;
use super::names::Slot;
use super::{Certificate, Challenges, Keyring, TlsError, now, pem};

/// A certificate that a listener wants ordered, and its place.
#[derive(Clone)]
pub struct Ordered {
    pub name: HostPattern,
    pub acme: Arc<Acme>,
    /// How the name is written.
    pub label: Box<str>,
    pub(super) slot: Arc<Slot>,
}

impl Ordered {
    /// What is served at present.
    pub fn certificate(&self) -> Option<Arc<Certificate>> {
        self.slot.load_full()
    }

    /// Whether a client that asks for the server name `name` means this one.
    pub(super) fn is_for(&self, name: &str) -> bool {
        match &self.name {
            HostPattern::Exact(Host::Name(own)) => **own == *name,
            HostPattern::Exact(Host::Address(_)) => false,
            HostPattern::Below(below) => name
                .split_once('.')
                .is_some_and(|(_, above)| above == &**below),
        }
    }

    /// Whether both are the same order of the same place.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.slot, &other.slot) && self.acme == other.acme
    }

    /// Reads a chain and its key, both PEM, and checks that a client that asks for this name accepts them now.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(&self, chain: &[u8], key: &[u8]) -> Result<Certificate, TlsError> {
        let path = PathBuf::from(&*self.label);
        let (chain, key) = (pem::chain_in(&path, chain)?, pem::key_in(&path, key)?);
        let files = CertificateFiles {
            cert: path.clone(),
            key: path.clone(),
        };
        let certificate = Certificate::new(&files, chain, &key)?;
        certificate.timely(now())?;
        let covers = match &self.name {
            HostPattern::Exact(host) => certificate.covers(host),
            HostPattern::Below(below) => certificate.covers_below(below),
        };
        if !covers {
            let names = certificate.shown();
            return Err(TlsError::OtherName { path, names });
        }
        Ok(certificate)
    }
}

impl fmt::Debug for Ordered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ordered").field(&self.label).finish()
    }
}

impl Keyring {
    /// Serves `certificate` in the place of `ordered` from now on, and tells of it.
    pub fn put(&self, ordered: &Ordered, certificate: Certificate) {
        let mut held = self.0.held();
        let place = |holding: &&mut Holding| {
            let slot = holding.slot();
            slot.is_some_and(|slot| Arc::ptr_eq(&slot, &ordered.slot))
        };
        let notice = held
            .holdings
            .iter_mut()
            .find(place)
            .and_then(|holding| holding.replace(certificate));
        if notice.is_some() {
            self.0.changed(held, notice);
        }
    }

    /// The pending challenges of certificate authorities.
    pub fn challenges(&self) -> &Arc<Challenges> {
        &self.0.challenges
    }

    /// What TLS is spoken with.
    pub fn provider(&self) -> &Arc<CryptoProvider> {
        &self.0.provider
    }

    /// Names for which nothing can be served yet, if there is a listener that has no certificate at all.
    pub fn waiting(&self) -> Option<String> {
        let held = self.0.held();
        let listeners = || held.listeners.iter().filter_map(std::sync::Weak::upgrade);
        if listeners().all(|names| !names.all().is_empty()) {
            return None;
        }
        const SHOWN_MAX: usize = 3;
        let empty = |holding: &&Holding| {
            let slot = holding.slot();
            slot.is_some_and(|slot| slot.load().is_none())
        };
        let labels = held.holdings.iter().filter(empty).map(|h| &*h.label);
        Some(labels.take(SHOWN_MAX).collect::<Vec<_>>().join(", "))
    }

    /// The places of those names of `tls` that none of `files` is for.
    pub(super) fn places(&self, tls: &Tls, files: &[Arc<Slot>]) -> Vec<Ordered> {
        let Some(acme) = &tls.acme else {
            return Vec::new();
        };
        let covered = |name: &HostPattern| {
            let held = files.iter().filter_map(|slot| slot.load_full());
            held.into_iter().any(|certificate| match name {
                HostPattern::Exact(host) => certificate.covers(host),
                HostPattern::Below(below) => certificate.covers_below(below),
            })
        };
        let wanted = tls.hosts.iter().filter(|name| !covered(name));
        wanted.map(|name| self.place(name, acme)).collect()
    }

    /// The place that is held for the same order, or a new one.
    fn place(&self, name: &HostPattern, acme: &Arc<Acme>) -> Ordered {
        let label = label(name);
        let order = acme.issuers.first().map(|issuer| {
            let store = &acme.store;
            format!("{label} {} {store:?}", issuer.directory)
        });
        let mut held = self.0.held();
        let ordered = || held.holdings.iter().filter(|h| h.order.is_some());
        let same = |holding: &&Holding| holding.order == order;
        let found = ordered().find(same).and_then(Holding::slot);
        // Who changes the directory keeps what is served until the new one has come.
        let namesake = ordered().find(|h| h.label == label).and_then(Holding::slot);
        let before = namesake.and_then(|slot| slot.load_full());
        let slot = found.unwrap_or_else(|| {
            let slot = Arc::new(ArcSwapOption::new(before));
            let mut holding = Holding::new(&label, &slot, None);
            holding.order = order;
            held.holdings.push(holding);
            slot
        });
        Ordered {
            name: name.clone(),
            acme: Arc::clone(acme),
            label,
            slot,
        }
    }
}

fn label(name: &HostPattern) -> Box<str> {
    match name {
        HostPattern::Below(below) => format!("*.{below}").into(),
        HostPattern::Exact(Host::Address(IpAddr::V6(v6))) => v6.to_string().into(),
        HostPattern::Exact(host) => host.to_string().into(),
    }
}

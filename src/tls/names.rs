//! Which certificate a client gets for the name that it asks for: exact before wildcard before the default.
//!
//! The table is made anew whenever one of its certificates is replaced, and swapped whole: a handshake reads one table
//! or the other, waits for nobody, and never sees a certificate that does not cover its name while another does. Of
//! several certificates for one name the first in the configuration's order whose key the client can verify counts, so
//! that an ECDSA and an RSA certificate may stand side by side.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::addr::Host;
use crate::config::typed::UnknownSni;

use super::Certificate;

/// The place of one certificate, which is replaced while it is served; empty as long as there is none yet.
pub(super) type Slot = ArcSwapOption<Certificate>;

/// The certificates of one listener by name.
pub(super) struct Names {
    slots: Vec<Arc<Slot>>,
    unknown: UnknownSni,
    table: ArcSwap<Table>,
    /// Held while the table is made, so that the last one made is of the last certificates.
    making: Mutex<()>,
}

#[derive(Default)]
struct Table {
    exact: HashMap<Box<str>, Few>,
    /// By what follows `*.`
    below: HashMap<Box<str>, Few>,
    /// For who asks for no name: those that cover an address.
    addressed: Few,
    all: Few,
}

/// In the configuration's order.
#[derive(Default)]
struct Few(Vec<Arc<Certificate>>);

impl Names {
    pub(super) fn new(slots: Vec<Arc<Slot>>, unknown: UnknownSni) -> Self {
        let names = Self {
            slots,
            unknown,
            table: ArcSwap::default(),
            making: Mutex::default(),
        };
        names.refresh();
        names
    }

    /// Takes over what the slots hold now.
    pub(super) fn refresh(&self) {
        let making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.slots.iter().filter_map(|slot| slot.load_full());
        self.table.store(Arc::new(Table::new(held)));
        drop(making);
    }

    /// Every certificate there is, in the configuration's order.
    pub(super) fn all(&self) -> Vec<Arc<Certificate>> {
        self.table.load().all.0.clone()
    }

    /// What a client gets that asks for `name` and can verify `schemes`.
    pub(super) fn find(
        &self,
        name: Option<&str>,
        schemes: &[SignatureScheme],
    ) -> Option<Arc<Certificate>> {
        let table = self.table.load();
        let known = match name {
            Some(name) => table.known(name),
            // Who connects to an address has no name to ask for.
            None => Some(&table.addressed).filter(|few| !few.0.is_empty()),
        };
        let few = match (known, self.unknown) {
            (Some(few), _) => few,
            (None, UnknownSni::Default) => &table.all,
            (None, UnknownSni::Refuse) => return None,
        };
        let fits = |c: &&Arc<Certificate>| c.key.key.choose_scheme(schemes).is_some();
        // Without a fit the handshake fails, and says why.
        few.0.iter().find(fits).or(few.0.first()).cloned()
    }

    /// Whether a certificate is for the server name `name`, the default left aside.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.table.load().known(name).is_some()
    }

    /// Whether a certificate is for `host`, the default left aside.
    pub(super) fn covers(&self, host: &Host) -> bool {
        let table = self.table.load();
        match host {
            Host::Address(_) => table.addressed.0.iter().any(|c| c.covers(host)),
            Host::Name(name) => table.known(name).is_some(),
        }
    }
}

impl Table {
    fn new(certificates: impl Iterator<Item = Arc<Certificate>>) -> Self {
        let mut table = Self::default();
        for certificate in certificates {
            for name in certificate.exact() {
                table
                    .exact
                    .entry(name.into())
                    .or_default()
                    .add(&certificate);
            }
            for name in certificate.below() {
                table
                    .below
                    .entry(name.into())
                    .or_default()
                    .add(&certificate);
            }
            if certificate.has_addresses() {
                table.addressed.add(&certificate);
            }
            table.all.add(&certificate);
        }
        table
    }

    fn known(&self, name: &str) -> Option<&Few> {
        self.exact.get(name).or_else(|| {
            let (_, above) = name.split_once('.')?;
            self.below.get(above)
        })
    }
}

impl Few {
    fn add(&mut self, certificate: &Arc<Certificate>) {
        self.0.push(Arc::clone(certificate));
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = self.find(hello.server_name(), hello.signature_schemes());
        found.map(|certificate| Arc::clone(&certificate.key))
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.all();
        f.debug_list()
            .entries(all.iter().map(|c| &c.label))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
    use rustls::SignatureScheme as Scheme;
    use rustls::pki_types::PrivateKeyDer;

    use super::*;
    use crate::config::typed::CertificateFiles;

    const BOTH: &[Scheme] = &[Scheme::ECDSA_NISTP256_SHA256, Scheme::RSA_PSS_SHA256];

    fn certificate(
        label: &str,
        names: &[&str],
        algorithm: &'static rcgen::SignatureAlgorithm,
    ) -> Arc<Slot> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let signed = CertificateParams::new(names)
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let files = CertificateFiles {
            cert: label.into(),
            key: label.into(),
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let made = Certificate::new(&files, vec![signed.der().clone()], &key).unwrap();
        Arc::new(Slot::from_pointee(made))
    }

    fn ecdsa(label: &str, names: &[&str]) -> Arc<Slot> {
        certificate(label, names, &PKCS_ECDSA_P256_SHA256)
    }

    fn found(names: &Names, name: Option<&str>, schemes: &[Scheme]) -> Option<String> {
        let found = names.find(name, schemes);
        found.map(|certificate| certificate.label.to_string())
    }

    #[test]
    fn exact_before_wildcard_before_the_default() {
        let slots = || {
            vec![
                ecdsa("first", &["first.test"]),
                ecdsa("wild", &["*.apps.test"]),
                ecdsa("exact", &["a.apps.test"]),
                ecdsa("later", &["a.apps.test", "192.0.2.1"]),
            ]
        };
        let [open, shut] =
            [UnknownSni::Default, UnknownSni::Refuse].map(|u| Names::new(slots(), u));
        for (name, label) in [
            ("first.test", "first"),
            ("a.apps.test", "exact"),
            ("b.apps.test", "wild"),
        ] {
            assert_eq!(found(&open, Some(name), BOTH).as_deref(), Some(label));
            assert_eq!(found(&shut, Some(name), BOTH).as_deref(), Some(label));
        }
        for name in ["apps.test", "c.b.apps.test", "test", ""] {
            assert_eq!(found(&open, Some(name), BOTH).as_deref(), Some("first"));
            assert_eq!(found(&shut, Some(name), BOTH), None, "{name}");
        }
        // Who names nobody may have connected to an address.
        assert_eq!(found(&shut, None, BOTH).as_deref(), Some("later"));
        let nobody = Names::new(vec![ecdsa("a", &["a.test"])], UnknownSni::Refuse);
        assert_eq!(found(&nobody, None, BOTH), None);
        for (host, covered) in [
            ("a.apps.test", true),
            ("z.apps.test", true),
            ("192.0.2.1", true),
            ("apps.test", false),
            ("192.0.2.2", false),
        ] {
            assert_eq!(open.covers(&Host::parse(host).unwrap()), covered, "{host}");
        }
    }

    #[test]
    fn a_client_gets_a_key_that_it_can_verify() {
        let slots = vec![
            ecdsa("ecdsa", &["a.test"]),
            certificate("rsa", &["a.test"], &PKCS_RSA_SHA256),
        ];
        let names = Names::new(slots, UnknownSni::Default);
        for (schemes, label) in [
            (BOTH, "ecdsa"),
            (&[Scheme::RSA_PSS_SHA256][..], "rsa"),
            (&[Scheme::ED25519], "ecdsa"),
        ] {
            for name in ["a.test", "unknown.test"] {
                let found = found(&names, Some(name), schemes);
                assert_eq!(found.as_deref(), Some(label), "{schemes:?}");
            }
        }
    }

    #[test]
    fn a_slot_that_is_filled_or_replaced_counts_from_the_next_refresh() {
        let (late, other) = (Arc::new(Slot::empty()), ecdsa("other", &["other.test"]));
        let names = Names::new(vec![Arc::clone(&late), other], UnknownSni::Default);
        assert_eq!(
            found(&names, Some("a.test"), BOTH).as_deref(),
            Some("other")
        );
        late.store(ecdsa("late", &["a.test"]).load_full());
        names.refresh();
        assert_eq!(found(&names, Some("a.test"), BOTH).as_deref(), Some("late"));
        assert_eq!(found(&names, Some("b.test"), BOTH).as_deref(), Some("late"));
        late.store(ecdsa("later", &["b.test"]).load_full());
        names.refresh();
        assert_eq!(
            found(&names, Some("b.test"), BOTH).as_deref(),
            Some("later")
        );
        assert!(!names.covers(&Host::parse("a.test").unwrap()));
    }
}

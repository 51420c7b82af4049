//! One certificate chain with its key, and what is known of it: names, days, serial number.
//!
//! A [`Certificate`] exists only if the key is the leaf's and each certificate was issued by the one after it. Whether
//! it is valid *now* is another question, which is asked again as time passes. Which hosts it should have is not asked
//! here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use crate::addr::Host;
use crate::clock;
use crate::config::typed::CertificateFiles;

use super::TlsError;
use super::pem;

/// Longer chains are bundles of roots given by mistake; each handshake would carry them.
const CHAIN_CERTIFICATES_MAX: usize = 10;
/// Names of one certificate that are looked at.
const NAMES_MAX: usize = 5000;
/// Characters of a subject in a message.
const SUBJECT_CHARS_MAX: usize = 100;

/// A chain and its key, ready to be served.
#[derive(Debug)]
pub struct Certificate {
    /// What metrics and events call it: the file of the chain, or its first name.
    pub label: Box<str>,
    /// Of the leaf, in hexadecimal.
    pub serial: Box<str>,
    /// In seconds since 1970, the first at which the whole chain is valid.
    pub not_before: i64,
    /// In seconds since 1970, the last at which the whole chain is valid. A root that is sent along does not count.
    pub not_after: i64,
    /// Its uses, if any are given, include that by a TLS server.
    pub for_servers: bool,
    /// The leaf's issuer is not among what is sent, and it is not its own issuer.
    pub alone: bool,
    path: PathBuf,
    days: Vec<Days>,
    names: Names,
    pub(super) key: Arc<CertifiedKey>,
}

/// When one certificate of the chain is valid.
#[derive(Debug)]
struct Days {
    subject: String,
    first: i64,
    last: i64,
}

/// The subject alternative names; the common name has not counted for years (RFC 9525).
#[derive(Debug, Default)]
struct Names {
    exact: Vec<Box<str>>,
    /// What follows `*.`
    below: Vec<Box<str>>,
    addresses: Vec<IpAddr>,
}

impl Certificate {
    /// Reads a pair of files.
    pub(super) fn read(files: &CertificateFiles) -> Result<Self, TlsError> {
        let (chain, key) = (pem::chain(&files.cert)?, pem::key(&files.key)?);
        Self::new(files, chain, &key)
    }

    /// A chain, leaf first, and its key. `files` is what messages call them.
    pub(super) fn new(
        files: &CertificateFiles,
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'static>,
    ) -> Result<Self, TlsError> {
        let path = files.cert.clone();
        if chain.len() > CHAIN_CERTIFICATES_MAX {
            let most = CHAIN_CERTIFICATES_MAX;
            return Err(TlsError::ChainTooLong { path, most });
        }
        let facts = Facts::read(&chain).map_err(|(place, why)| TlsError::CertificateUnusable {
            path: path.clone(),
            place,
            why,
        })?;
        let key = certified(files, chain, key)?;
        if let Some(place) = facts.broken {
            return Err(TlsError::ChainBroken { path, place });
        }
        let days = || facts.days.iter();
        Ok(Self {
            label: path.display().to_string().into(),
            serial: facts.serial.into(),
            not_before: days().map(|d| d.first).max().unwrap_or(i64::MAX),
            not_after: days().map(|d| d.last).min().unwrap_or(i64::MIN),
            for_servers: facts.for_servers,
            alone: facts.alone,
            path,
            days: facts.days,
            names: facts.names,
            key: Arc::new(key),
        })
    }

    /// Whether every certificate that is sent is valid at `second` since 1970.
    pub fn timely(&self, second: i64) -> Result<(), TlsError> {
        for (at, days) in self.days.iter().enumerate() {
            let (path, place, subject) = (self.path.clone(), at + 1, days.subject.clone());
            if second > days.last {
                let at = clock::moment(days.last);
                return Err(TlsError::Expired {
                    path,
                    place,
                    subject,
                    at,
                });
            }
            if second < days.first {
                let at = clock::moment(days.first);
                return Err(TlsError::NotYetValid {
                    path,
                    place,
                    subject,
                    at,
                });
            }
        }
        Ok(())
    }

    /// Whether a client that asked for `host` accepts it.
    pub fn covers(&self, host: &Host) -> bool {
        match host {
            Host::Address(address) => self.names.addresses.contains(address),
            Host::Name(name) => {
                let above = name.split_once('.').map(|(_, above)| above);
                self.names.exact.iter().any(|n| n == name)
                    || above.is_some_and(|above| self.covers_below(above))
            }
        }
    }

    /// Whether it is for every name one label below `name`.
    pub fn covers_below(&self, name: &str) -> bool {
        self.names.below.iter().any(|n| **n == *name)
    }

    /// Whole names.
    pub(super) fn exact(&self) -> impl Iterator<Item = &str> {
        self.names.exact.iter().map(|name| &**name)
    }

    /// Names that a `*.` stands in front of.
    pub(super) fn below(&self) -> impl Iterator<Item = &str> {
        self.names.below.iter().map(|name| &**name)
    }

    /// Whether a client that connected to an address rather than a name could accept it.
    pub(super) fn has_addresses(&self) -> bool {
        !self.names.addresses.is_empty()
    }

    /// The first name of `old` that this one is not for.
    pub(super) fn lacks(&self, old: &Self) -> Option<String> {
        let exact = old.exact().find(|name| {
            let above = name.split_once('.').map(|(_, above)| above);
            !self.exact().any(|own| own == *name)
                && !above.is_some_and(|above| self.covers_below(above))
        });
        let below = || old.below().find(|name| !self.covers_below(name));
        exact
            .map(str::to_owned)
            .or_else(|| below().map(|name| format!("*.{name}")))
    }

    /// The leaf as it came, DER.
    pub fn leaf(&self) -> &[u8] {
        self.key.cert.first().map_or(&[], |leaf| leaf.as_ref())
    }

    /// What its issuer calls it when asked about its renewal (RFC 9773 section 4.1), without encoding: key identifier
    /// of the issuer, serial number.
    pub fn renewal_identifier(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let (_, leaf) = X509Certificate::from_der(self.leaf()).ok()?;
        let mut extensions = leaf.iter_extensions();
        let issuer = extensions.find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(found) => found.key_identifier.as_ref(),
            _ => None,
        })?;
        Some((issuer.0.to_vec(), leaf.raw_serial().to_vec()))
    }

    /// Its names as a person reads them, at most a few.
    pub fn shown(&self) -> String {
        const SHOWN_MAX: usize = 5;
        let exact = self.exact().map(str::to_owned);
        let below = self.below().map(|name| format!("*.{name}"));
        let addresses = self.names.addresses.iter().map(IpAddr::to_string);
        let all: Vec<_> = exact.chain(below).chain(addresses).collect();
        let mut shown = all.get(..SHOWN_MAX).unwrap_or(&all).join(", ");
        match all.len() {
            0 => shown.push_str("no name"),
            more if more > SHOWN_MAX => shown.push_str(&format!(" and {} more", more - SHOWN_MAX)),
            _ => {}
        }
        shown
    }
}

fn certified(
    files: &CertificateFiles,
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
) -> Result<CertifiedKey, TlsError> {
    let key = any_supported_type(key).map_err(|error| TlsError::KeyUnusable {
        path: files.key.clone(),
        why: error.to_string(),
    })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::KeyOfAnother {
            cert: files.cert.clone(),
            key: files.key.clone(),
        }),
        Err(error) => Err(TlsError::CertificateUnusable {
            path: files.cert.clone(),
            place: 1,
            why: error.to_string(),
        }),
    }
}

/// What a chain says of itself.
struct Facts {
    serial: String,
    names: Names,
    days: Vec<Days>,
    /// The place, from 1, of the first certificate that the next one did not issue.
    broken: Option<usize>,
    for_servers: bool,
    alone: bool,
}

impl Facts {
    /// The error names the certificate by its place, from 1.
    fn read(chain: &[CertificateDer<'_>]) -> Result<Self, (usize, String)> {
        let mut read = Vec::new();
        for (at, der) in chain.iter().enumerate() {
            let (_, certificate) =
                X509Certificate::from_der(der).map_err(|error| (at + 1, error.to_string()))?;
            read.push(certificate);
        }
        let Some(leaf) = read.first() else {
            return Err((1, "it is missing".to_owned()));
        };
        let unusable = |error: X509Error| (1, error.to_string());
        let names = Names::read(leaf).map_err(unusable)?;
        let uses = leaf.extended_key_usage().map_err(unusable)?;
        let pairs = read.iter().zip(read.iter().skip(1));
        let broken = pairs.clone().position(|(of, by)| !issued(of, by));
        let own = |c: &X509Certificate<'_>| c.subject() == c.issuer();
        // Nobody looks at the days of a root that is sent along.
        let counts = |(at, c): &(usize, &X509Certificate<'_>)| *at == 0 || !own(c);
        let days = read.iter().enumerate().filter(counts);
        Ok(Self {
            serial: leaf
                .raw_serial()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect(),
            names,
            days: days.map(|(_, c)| Days::of(c)).collect(),
            broken: broken.map(|at| at + 1),
            for_servers: uses.is_none_or(|uses| uses.value.any || uses.value.server_auth),
            alone: read.len() == 1 && !own(leaf),
        })
    }
}

impl Days {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let subject = certificate.subject().to_string();
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        Self {
            subject: subject.chars().take(SUBJECT_CHARS_MAX).map(plain).collect(),
            first: certificate.validity().not_before.timestamp(),
            last: certificate.validity().not_after.timestamp(),
        }
    }
}

/// Whether `by` signed `of`; where its algorithm is not known here, whether it has the issuer's name.
fn issued(of: &X509Certificate<'_>, by: &X509Certificate<'_>) -> bool {
    let signed = match of.verify_signature(Some(by.public_key())) {
        Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => true,
        Err(_) => false,
    };
    of.issuer() == by.subject() && signed
}

impl Names {
    fn read(leaf: &X509Certificate<'_>) -> Result<Self, X509Error> {
        let mut names = Self::default();
        let Some(found) = leaf.subject_alternative_name()? else {
            return Ok(names);
        };
        for name in found.value.general_names.iter().take(NAMES_MAX) {
            match name {
                GeneralName::DNSName(text) => names.add(text),
                GeneralName::IPAddress(bytes) => names.addresses.extend(address(bytes)),
                _ => {}
            }
        }
        Ok(names)
    }

    /// What is not a name that a client could ask for is passed over.
    fn add(&mut self, text: &str) {
        let (list, text) = match text.strip_prefix("*.") {
            Some(rest) => (&mut self.below, rest),
            None => (&mut self.exact, text),
        };
        if let Ok(Host::Name(name)) = Host::parse(text) {
            list.push(name);
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(IpAddr::from(Ipv6Addr::from(v6)).to_canonical())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::string::Ia5String;
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType,
    };

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    /// Valid from and until these seconds since 1970.
    fn params(name: &str, days: (u64, u64)) -> CertificateParams {
        let at = |second| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(second);
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.not_before, params.not_after) = (at(days.0), at(days.1));
        params
    }

    fn authority(name: &str, days: (u64, u64), by: Option<&Authority>) -> Authority {
        let (key, mut params) = (KeyPair::generate().unwrap(), params(name, days));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        match by {
            None => Authority::self_signed(params, key).unwrap(),
            Some(by) => Authority::signed_by(params, key, by).unwrap(),
        }
    }

    /// A leaf of `by` with `names`, and behind it `rest`.
    fn chain(
        by: &Authority,
        names: Vec<SanType>,
        rest: &[&Authority],
    ) -> Result<Certificate, TlsError> {
        let (key, mut params) = (KeyPair::generate().unwrap(), params("leaf", (1000, 4000)));
        params.subject_alt_names = names;
        let leaf = params.signed_by(&key, by).unwrap();
        let mut chain = vec![leaf.der().clone()];
        chain.extend(rest.iter().map(|by| by.der().clone()));
        let files = CertificateFiles {
            cert: "chain.pem".into(),
            key: "key.pem".into(),
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Certificate::new(&files, chain, &key)
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(Ia5String::try_from(name).unwrap())
    }

    #[test]
    fn each_certificate_must_have_issued_the_one_before() {
        let root = authority("root", (0, 9000), None);
        let middle = authority("middle", (0, 3000), Some(&root));
        // The same name, another key: what an authority that was set up anew leaves behind.
        let namesake = authority("middle", (0, 3000), Some(&root));
        let broken = |rest: &[&Authority]| match chain(&middle, Vec::new(), rest) {
            Ok(_) => None,
            Err(TlsError::ChainBroken { place, .. }) => Some(place),
            Err(error) => panic!("{error}"),
        };
        for (rest, place) in [
            (&[][..], None),
            (&[&middle], None),
            (&[&middle, &root], None),
            (&[&root], Some(1)),
            (&[&root, &middle], Some(1)),
            (&[&namesake, &root], Some(1)),
            (&[&middle, &middle], Some(2)),
        ] {
            assert_eq!(broken(rest), place, "{}", rest.len());
        }
        assert!(chain(&middle, Vec::new(), &[]).unwrap().alone);
        assert!(!chain(&middle, Vec::new(), &[&middle]).unwrap().alone);
        let long: Vec<_> = (0..CHAIN_CERTIFICATES_MAX).map(|_| &root).collect();
        let error = chain(&root, Vec::new(), &long).unwrap_err();
        assert!(matches!(error, TlsError::ChainTooLong { .. }), "{error}");
    }

    #[test]
    fn the_whole_chain_must_be_valid_but_for_a_root_that_is_sent_along() {
        let root = authority("root", (0, 2500), None);
        let middle = authority("middle", (0, 3000), Some(&root));
        let made = chain(&middle, Vec::new(), &[&middle, &root]).unwrap();
        assert_eq!((made.not_before, made.not_after), (1000, 3000));
        let says = |second| made.timely(second).map_err(|error| error.to_string());
        let early = says(999).unwrap_err();
        assert!(early.contains("certificate 1 (CN=leaf) is not valid before 1970-01-01T00:16:40Z"));
        assert_eq!([1000, 3000].map(says), [Ok(()), Ok(())]);
        let late = says(3001).unwrap_err();
        assert!(late.contains("certificate 2 (CN=middle) has expired at 1970-01-01T00:50:00Z"));
        assert!(says(4001).unwrap_err().contains("certificate 1"));
    }

    #[test]
    fn a_name_that_no_client_could_ask_for_is_none() {
        let root = authority("root", (0, 9000), None);
        let names = [
            "Tools.Example.com",
            "*.apps.example.com",
            "*",
            "w*.example.com",
            "*.*.example.com",
            "a.example.com\0.evil.test",
            "192.0.2.7",
            "",
        ];
        let mut names: Vec<_> = names.into_iter().map(dns).collect();
        names.push(SanType::IpAddress("192.0.2.9".parse().unwrap()));
        names.push(SanType::IpAddress("2001:db8::9".parse().unwrap()));
        let made = chain(&root, names, &[]).unwrap();
        assert_eq!(
            made.shown(),
            "tools.example.com, *.apps.example.com, 192.0.2.9, 2001:db8::9"
        );
        for (host, covered) in [
            ("tools.example.com", true),
            ("a.apps.example.com", true),
            ("apps.example.com", false),
            ("b.a.apps.example.com", false),
            ("www.example.com", false),
            ("a.example.com", false),
            ("192.0.2.9", true),
            ("[2001:db8::9]", true),
            ("192.0.2.7", false),
        ] {
            assert_eq!(made.covers(&Host::parse(host).unwrap()), covered, "{host}");
        }
        assert_eq!(chain(&root, Vec::new(), &[]).unwrap().shown(), "no name");
    }

    #[test]
    fn what_a_replacement_no_longer_has_is_said() {
        let root = authority("root", (0, 9000), None);
        let of = |names: &[&str]| {
            let names = names.iter().map(|name| dns(name)).collect();
            chain(&root, names, &[]).unwrap()
        };
        let old = of(&["a.example", "*.b.example"]);
        assert_eq!(
            of(&["*.b.example", "a.example", "c.example"]).lacks(&old),
            None
        );
        assert_eq!(of(&["*.example", "*.b.example"]).lacks(&old), None);
        let lost = |names: &[&str]| of(names).lacks(&old).unwrap();
        assert_eq!(lost(&["*.b.example"]), "a.example");
        assert_eq!(lost(&["a.example", "x.b.example"]), "*.b.example");
    }
}

//! Whose client certificates are believed: authorities, revocation lists, and the judgement of a chain.
//!
//! Every judgement fails closed: an unknown issuer, a list that is out of date and an issuer without a list all refuse.
//! Nothing is believed because it was believed before: whoever resumes a session, or is inside while a list changes, is
//! judged again by the same function. Only here is a [`Principal`] made. A listener asks every client or none: no server
//! name and no host decides whether a certificate is needed.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};

use crate::clock;
use crate::config::typed::{ClientAuth, ClientAuthMode};
use crate::outcome::Refusal;
use crate::record::Certificate;

use super::principal::{Principal, claimed};
use authorities::{Authorities, End};

mod authorities;

pub(super) use authorities::ClientAuthError;

/// Whom a listener believes, as read from its files. Immutable: a changed file makes a new one.
pub(super) struct Trust {
    verifier: Arc<dyn ClientCertVerifier>,
    mode: ClientAuthMode,
    /// SHA-256 over all of it: what tickets are bound to.
    mark: Vec<u8>,
    stale: Vec<End>,
    expires: Vec<End>,
}

/// A chain that was not believed.
#[derive(Debug)]
pub struct Unbelieved {
    pub refusal: Refusal,
    /// What the certificate says of itself, if one was shown.
    pub claimed: Option<Certificate>,
}

tokio::task_local! {
    /// What the handshake that is being polled was refused for.
    static SHOWN: RefCell<Option<Certificate>>;
}

impl Trust {
    /// Reads the files and checks that every certificate and list is what it should be. Blocks on file access.
    pub(super) fn read(
        auth: &ClientAuth,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, ClientAuthError> {
        let authorities = Authorities::read(auth)?;
        let mark = mark(auth.mode, &authorities);
        let (stale, expires) = (authorities.stale, authorities.expires);
        let mut roots = RootCertStore::empty();
        for (path, certificate) in authorities.certificates {
            roots
                .add(certificate)
                .map_err(|error| ClientAuthError::unusable(path, &error))?;
        }
        let builder =
            WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(provider))
                .with_crls(authorities.lists)
                .enforce_revocation_expiration();
        let builder = match auth.mode {
            ClientAuthMode::Optional => builder.allow_unauthenticated(),
            ClientAuthMode::Required => builder,
        };
        let inner = builder
            .build()
            .map_err(|error| ClientAuthError::unusable(auth.ca.clone(), &error))?;
        Ok(Self {
            verifier: Arc::new(Noting(inner)),
            mode: auth.mode,
            mark,
            stale,
            expires,
        })
    }

    /// For the handshake.
    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifier)
    }

    /// For the keys of tickets.
    pub(super) fn mark(&self) -> Vec<u8> {
        self.mark.clone()
    }

    /// Every list that is out of date at `second`, since 1970.
    pub(super) fn stale(&self, second: i64) -> impl Iterator<Item = ClientAuthError> {
        self.stale.iter().filter_map(move |end| end.of_list(second))
    }

    /// Every authority that is over at `second`, since 1970.
    pub(super) fn expired(&self, second: i64) -> impl Iterator<Item = ClientAuthError> {
        let ends = self.expires.iter();
        ends.filter_map(move |end| end.of_authority(second))
    }

    /// Judges what a client has shown: after every handshake, full or resumed, and whenever trust has changed.
    pub(super) fn judge(
        &self,
        chain: &[CertificateDer<'static>],
    ) -> Result<Option<Principal>, Unbelieved> {
        let Some((leaf, above)) = chain.split_first() else {
            return match self.mode {
                ClientAuthMode::Optional => Ok(None),
                ClientAuthMode::Required => Err(Refusal::ClientCertificateRequired.into()),
            };
        };
        let now = std::time::Duration::from_nanos(clock::wall_ns());
        let verified =
            self.verifier
                .verify_client_cert(leaf, above, UnixTime::since_unix_epoch(now));
        let refusal = match verified {
            Ok(_) => match Principal::of_verified(chain) {
                Some(principal) => return Ok(Some(principal)),
                None => Refusal::ClientCertificateUntrusted,
            },
            Err(error) => refusal(&error).unwrap_or(Refusal::ClientCertificateUntrusted),
        };
        Err(Unbelieved {
            refusal,
            claimed: claimed(leaf),
        })
    }
}

/// Runs a handshake, and gives what was shown by a client whose certificate was refused in it.
pub async fn noting<T>(handshake: impl Future<Output = T>) -> (T, Option<Certificate>) {
    let noted = async {
        let done = handshake.await;
        let shown = SHOWN.try_with(RefCell::take).ok().flatten();
        (done, shown)
    };
    SHOWN.scope(RefCell::default(), noted).await
}

/// Why a handshake failed, if that was about the client's certificate.
pub fn refusal(error: &Error) -> Option<Refusal> {
    use CertificateError as Why;
    Some(match error {
        Error::NoCertificatesPresented => Refusal::ClientCertificateRequired,
        Error::InvalidCertRevocationList(_) => Refusal::RevocationUnknown,
        Error::InvalidCertificate(why) => match why {
            Why::Expired
            | Why::ExpiredContext { .. }
            | Why::NotValidYet
            | Why::NotValidYetContext { .. } => Refusal::ClientCertificateExpired,
            Why::Revoked => Refusal::ClientCertificateRevoked,
            Why::UnknownRevocationStatus
            | Why::ExpiredRevocationList
            | Why::ExpiredRevocationListContext { .. } => Refusal::RevocationUnknown,
            _ => Refusal::ClientCertificateUntrusted,
        },
        _ => return None,
    })
}

fn mark(mode: ClientAuthMode, authorities: &Authorities) -> Vec<u8> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut add = |kind: u8, bytes: &[u8]| {
        context.update(&[kind]);
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    add(u8::from(mode == ClientAuthMode::Required), b"");
    for (_, certificate) in &authorities.certificates {
        add(2, certificate);
    }
    for list in &authorities.lists {
        add(3, list);
    }
    context.finish().as_ref().to_vec()
}

impl From<Refusal> for Unbelieved {
    fn from(refusal: Refusal) -> Self {
        let claimed = None;
        Self { refusal, claimed }
    }
}

/// Verifies as the inner one does, and notes what was shown by whom it refuses.
struct Noting(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Noting {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now);
        if let Err(error) = &verified {
            let shown = claimed(end_entity);
            tracing::debug!(%error, certificate = ?shown, "a client certificate was refused");
            SHOWN.try_with(|room| room.replace(shown)).ok(); // outside of a handshake the caller knows the chain
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl fmt::Debug for Noting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Noting(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, SystemTime};

    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension,
        DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
        RevokedCertParams, SerialNumber,
    };
    use rustls::crypto::aws_lc_rs;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        pem: String,
        der: CertificateDer<'static>,
    }

    fn authority(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        Authority {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn when(days: i32) -> SystemTime {
        let distance = DAY * days.unsigned_abs();
        let now = SystemTime::UNIX_EPOCH + Duration::from_nanos(clock::wall_ns());
        if days < 0 {
            now - distance
        } else {
            now + distance
        }
    }

    impl Authority {
        fn client(
            &self,
            serial: u64,
            change: impl FnOnce(&mut CertificateParams),
        ) -> Vec<CertificateDer<'static>> {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params
                .distinguished_name
                .push(DnType::CommonName, format!("partner {serial}"));
            params.serial_number = Some(SerialNumber::from(serial));
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            change(&mut params);
            let signed = params.signed_by(&KeyPair::generate().unwrap(), &self.issuer);
            vec![signed.unwrap().der().clone()]
        }

        fn list(&self, revoked: &[u64], next_update: i32) -> rcgen::CertificateRevocationList {
            let revoked = revoked.iter().map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: when(-1).into(),
                reason_code: None,
                invalidity_date: None,
            });
            let params = CertificateRevocationListParams {
                this_update: when(-2).into(),
                next_update: when(next_update).into(),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: revoked.collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            params.signed_by(&self.issuer).unwrap()
        }
    }

    fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn read(folder: &Path, ca: &str, crl: &[&[u8]]) -> Result<Trust, ClientAuthError> {
        let crl = crl.iter().enumerate();
        let auth = ClientAuth {
            ca: write(folder, "ca.pem", ca),
            crl: crl
                .map(|(at, bytes)| write(folder, &format!("{at}.crl"), bytes))
                .collect(),
            mode: ClientAuthMode::Required,
            forward_chain: false,
        };
        Trust::read(&auth, &Arc::new(aws_lc_rs::default_provider()))
    }

    fn trust(ca: &str, crl: &[&[u8]]) -> Trust {
        read(tempfile::tempdir().unwrap().path(), ca, crl).unwrap()
    }

    fn refused(trust: &Trust, chain: &[CertificateDer<'static>]) -> Refusal {
        trust.judge(chain).err().unwrap().refusal
    }

    fn expired(params: &mut CertificateParams) {
        (params.not_before, params.not_after) = (when(-9).into(), when(-1).into());
    }

    #[test]
    fn a_certificate_is_believed_or_refused_for_its_own_reason() {
        let (ours, theirs) = (authority("ours"), authority("theirs"));
        let trust = trust(&ours.pem, &[ours.list(&[13], 1).pem().unwrap().as_bytes()]);
        let good = ours.client(12, |_| ());
        assert!(trust.judge(&good).unwrap().is_some());
        let early = |p: &mut CertificateParams| p.not_before = when(1).into();
        let server = |p: &mut CertificateParams| {
            p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]
        };
        let ca = |p: &mut CertificateParams| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        for (chain, reason) in [
            (vec![], Refusal::ClientCertificateRequired),
            (ours.client(13, |_| ()), Refusal::ClientCertificateRevoked),
            (ours.client(1, expired), Refusal::ClientCertificateExpired),
            (ours.client(1, early), Refusal::ClientCertificateExpired),
            (ours.client(1, server), Refusal::ClientCertificateUntrusted),
            (ours.client(1, ca), Refusal::ClientCertificateUntrusted),
            (
                theirs.client(12, |_| ()),
                Refusal::ClientCertificateUntrusted,
            ),
            (
                vec![CertificateDer::from(vec![0x30, 0x80])],
                Refusal::ClientCertificateUntrusted,
            ),
        ] {
            assert_eq!(refused(&trust, &chain), reason);
        }
        let claimed = trust.judge(&ours.client(13, |_| ())).err().unwrap().claimed;
        assert!(format!("{claimed:?}").contains("CN=partner 13"));
    }

    #[test]
    fn a_list_that_is_out_of_date_or_missing_refuses_everybody() {
        let (one, two) = (authority("one"), authority("two"));
        let both = format!("{}{}", one.pem, two.pem);
        let (fresh, stale) = (one.list(&[], 1), one.list(&[], -1));
        let stale = trust(&one.pem, &[stale.der()]);
        assert_eq!(
            refused(&stale, &one.client(1, |_| ())),
            Refusal::RevocationUnknown
        );
        let (yesterday, now) = (when(-2), when(0));
        let second = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            i64::try_from(since.as_secs()).unwrap()
        };
        assert_eq!(stale.stale(second(yesterday)).count(), 0);
        let error = stale.stale(second(now)).next().unwrap().to_string();
        assert!(error.contains("0.crl: the list of CN=one"), "{error}");
        let half = trust(&both, &[fresh.der()]);
        assert!(half.judge(&one.client(1, |_| ())).is_ok());
        assert_eq!(
            refused(&half, &two.client(1, |_| ())),
            Refusal::RevocationUnknown
        );
        let whole = trust(&both, &[fresh.der(), two.list(&[1], 1).der()]);
        assert!(whole.judge(&two.client(2, |_| ())).is_ok());
        assert_eq!(
            refused(&whole, &two.client(1, |_| ())),
            Refusal::ClientCertificateRevoked
        );
        assert!(
            whole.judge(&one.client(1, |_| ())).is_ok(),
            "another issuer's number"
        );
    }

    #[test]
    fn an_intermediate_comes_with_the_client_and_has_a_list_too() {
        let root = authority("root");
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "between");
        let between = params.signed_by(&key, &root.issuer).unwrap();
        let between = Authority {
            pem: between.pem(),
            der: between.der().clone(),
            issuer: Issuer::new(params, key),
        };
        let mut chain = between.client(5, |_| ());
        chain.push(between.der.clone());
        let trusted = trust(&root.pem, &[]);
        let principal = trusted.judge(&chain).unwrap().unwrap();
        let forwarded = principal.client_cert_chain().unwrap();
        assert!(forwarded.starts_with(":MII") && forwarded.ends_with(':'));
        assert!(principal.client_cert() != forwarded && !forwarded.contains(','));
        assert_eq!(
            refused(&trusted, &chain[..1]),
            Refusal::ClientCertificateUntrusted
        );
        // The list of the root alone says nothing of what the intermediate has issued.
        let listed = trust(&root.pem, &[root.list(&[], 1).der()]);
        assert_eq!(refused(&listed, &chain), Refusal::RevocationUnknown);
    }

    #[test]
    fn every_mistake_in_a_file_names_it_and_its_mend() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (authority("ours"), authority("theirs"));
        let list = ours.list(&[7], 1);
        let mut bent = list.der().to_vec();
        let at = bent.len() - 100; // in what is signed or in the signature: no other place
        bent[at] ^= 1;
        let leaf = ours.client(1, |_| ());
        let leaf = rcgen_pem(&leaf[0]);
        let cut = &list.der()[..list.der().len() / 2];
        let foreign = theirs.list(&[], 1);
        for (ca, crl, file, says) in [
            ("", None, "ca.pem", "no certificate; give"),
            (
                &*leaf,
                None,
                "ca.pem",
                "CN=partner 1 is not a certificate authority",
            ),
            (
                "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
                None,
                "ca.pem",
                "entry 1",
            ),
            (
                &*ours.pem,
                Some(&b""[..]),
                "0.crl",
                "no certificate revocation list",
            ),
            (
                &*ours.pem,
                Some(ours.pem.as_bytes()),
                "0.crl",
                "no certificate revocation list",
            ),
            (&*ours.pem, Some(&bent), "0.crl", "not signed by it"),
            (&*ours.pem, Some(cut), "0.crl", "cannot be used"),
            (
                &*ours.pem,
                Some(foreign.der()),
                "0.crl",
                "list of CN=theirs",
            ),
        ] {
            let crl: Vec<_> = crl.into_iter().collect();
            let error = read(folder.path(), ca, &crl).err().unwrap();
            let text = error.to_string();
            assert!(text.contains(file) && text.contains(says), "{text}");
            assert!(
                text.contains("; ") && error.path().ends_with(file),
                "{text}"
            );
        }
        let missing = ClientAuth {
            ca: folder.path().join("missing.pem"),
            crl: Vec::new(),
            mode: ClientAuthMode::Optional,
            forward_chain: false,
        };
        let error = Trust::read(&missing, &Arc::new(aws_lc_rs::default_provider()));
        assert!(error.err().unwrap().to_string().contains("exists"));
    }

    fn rcgen_pem(der: &[u8]) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn whatever_is_trusted_otherwise_has_another_mark() {
        let (one, two) = (authority("one"), authority("two"));
        let list = one.list(&[], 1);
        let folder = tempfile::tempdir().unwrap();
        let same = read(folder.path(), &one.pem, &[list.der()]).unwrap().mark();
        assert_eq!(
            read(folder.path(), &one.pem, &[list.der()]).unwrap().mark(),
            same
        );
        let more = format!("{}{}", one.pem, two.pem);
        let other = one.list(&[1], 1);
        for mark in [
            trust(&one.pem, &[]).mark(),
            trust(&more, &[list.der()]).mark(),
            trust(&one.pem, &[other.der()]).mark(),
        ] {
            assert_ne!(mark, same);
        }
    }

    /// Envoy CVE-2026-47778: what stands behind a NUL must not be cut off, and a name must not look like two.
    #[test]
    fn no_name_of_a_certificate_looks_like_another() {
        let ours = authority("ours");
        let chain = ours.client(1, |params| {
            params
                .distinguished_name
                .push(DnType::OrganizationName, "a,O=admin+CN=\0root\"\u{202e}");
            let san = b"\x30\x19\x82\x17good.example\0.evil.test";
            let san = CustomExtension::from_oid_content(&[2, 5, 29, 17], san.to_vec());
            params.custom_extensions = vec![san];
        });
        let principal = trust(&ours.pem, &[]).judge(&chain).unwrap().unwrap();
        let written = format!("{{{:?}}}", principal.record());
        let read: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert_eq!(
            read["subject"],
            "O=a\\,O\\=admin\\+CN\\=\\00root\\\"\u{202e},CN=partner 1"
        );
        assert_eq!(read["issuer"], "CN=ours");
        assert_eq!(read["serial"], "01");
        assert_eq!(read["names"][0], "DNS:good.example\0.evil.test");
        assert_eq!(read["fingerprint"].as_str().unwrap().len(), 64);
        assert!(written.contains("\\u0000.evil") && written.contains("\\u202e"));
    }

    #[test]
    fn a_certificate_that_could_not_be_forwarded_is_not_believed() {
        let ours = authority("ours");
        let long = |params: &mut CertificateParams| {
            let name = "x".repeat(17_000);
            params
                .distinguished_name
                .push(DnType::OrganizationName, name);
        };
        let trusted = trust(&ours.pem, &[]);
        let chain = ours.client(1, long);
        assert_eq!(
            refused(&trusted, &chain),
            Refusal::ClientCertificateUntrusted
        );
        assert!(trusted.judge(&chain).err().unwrap().claimed.is_none());
    }
}

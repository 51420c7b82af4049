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
use authorities::Authorities;

mod authorities;

pub use authorities::ClientAuthError;

/// Whom a listener believes, as read from its files. Immutable: a changed file makes a new one.
pub(super) struct Trust {
    verifier: Arc<dyn ClientCertVerifier>,
    mode: ClientAuthMode,
    /// SHA-256 over all of it: what tickets are bound to.
    mark: Vec<u8>,
    /// When the first list is out of date, in seconds since 1970.
    stale: Option<i64>,
    /// When the first authority ends.
    expires: i64,
}

/// A chain that was not believed.
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
        let authorities = Authorities::read(auth, provider)?;
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

    /// When the first revocation list is out of date, in seconds since 1970.
    pub(super) fn stale(&self) -> Option<i64> {
        self.stale
    }

    /// When the first authority ends, in seconds since 1970.
    pub(super) fn expires(&self) -> i64 {
        self.expires
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

//! The files of `client_auth`: authorities and revocation lists, read and checked before anything depends on them.
//!
//! An authority must be one (basic constraints), a list must be signed by an authority of the same bundle. PEM with any
//! number of entries, or one entry in DER. A list that is out of date is taken: it refuses everybody, and says why.

use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::config::typed::ClientAuth;
use crate::{clock, disk, pem};

use crate::tls::principal::name;

/// Bytes of a file. A list with a hundred thousand entries has about 4 MiB.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// Authorities of one listener: each is named to every client.
const AUTHORITIES_MAX: usize = 256;
const LISTS_MAX: usize = 256;

/// What the files hold.
pub(super) struct Authorities {
    pub(super) certificates: Vec<(PathBuf, CertificateDer<'static>)>,
    pub(super) lists: Vec<CertificateRevocationListDer<'static>>,
    /// When each list is out of date.
    pub(super) stale: Vec<End>,
    /// When each authority is over.
    pub(super) expires: Vec<End>,
}

/// The last moment of an entry.
pub(super) struct End {
    path: PathBuf,
    of: String,
    /// In seconds since 1970.
    second: i64,
}

impl End {
    /// What is wrong with a list at `second`.
    pub(super) fn of_list(&self, second: i64) -> Option<ClientAuthError> {
        (second > self.second).then(|| ClientAuthError::Stale {
            path: self.path.clone(),
            issuer: self.of.clone(),
            at: clock::moment(self.second),
        })
    }

    /// What is wrong with an authority at `second`.
    pub(super) fn of_authority(&self, second: i64) -> Option<ClientAuthError> {
        (second > self.second).then(|| ClientAuthError::Expired {
            path: self.path.clone(),
            subject: self.of.clone(),
            at: clock::moment(self.second),
        })
    }
}

/// Why nobody can be believed, or somebody not any more. Each text names the file, the cause and, after a semicolon, the mend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientAuthError {
    #[error("{}: cannot be read ({source}); check that the file exists and that this user may read it", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: holds no {what}; give it as PEM (base64 between BEGIN and END lines) or DER", path.display())]
    Empty { path: PathBuf, what: &'static str },
    #[error("{}: holds more than {most} entries; name fewer", path.display())]
    TooMany { path: PathBuf, most: usize },
    #[error("{}: entry {place} cannot be used: {why}; export it again", path.display())]
    Unusable {
        path: PathBuf,
        place: usize,
        why: String,
    },
    #[error("{}: {subject} is not a certificate authority; name the authority that issues the client certificates", path.display())]
    NotAnAuthority { path: PathBuf, subject: String },
    #[error("{}: the list of {issuer} is not by any authority in {}; give the list that belongs to it, or add the authority", path.display(), ca.display())]
    UnknownIssuer {
        path: PathBuf,
        ca: PathBuf,
        issuer: String,
    },
    #[error("{}: the list of {issuer} is not signed by it: it was changed or cut; fetch it again", path.display())]
    Unsigned { path: PathBuf, issuer: String },
    #[error("{}: the list of {issuer} was to be followed by another one at {at}, and its clients are refused; fetch the present one", path.display())]
    Stale {
        path: PathBuf,
        issuer: String,
        at: String,
    },
    #[error("{}: the authority {subject} has expired at {at}; put its successor beside it, or remove it", path.display())]
    Expired {
        path: PathBuf,
        subject: String,
        at: String,
    },
}

impl ClientAuthError {
    pub(super) fn unusable(path: PathBuf, why: &impl ToString) -> Self {
        let (place, why) = (1, why.to_string());
        Self::Unusable { path, place, why }
    }

    /// The file that it is about.
    pub(in crate::tls) fn path(&self) -> &Path {
        match self {
            Self::Unreadable { path, .. }
            | Self::Empty { path, .. }
            | Self::TooMany { path, .. }
            | Self::Unusable { path, .. }
            | Self::NotAnAuthority { path, .. }
            | Self::UnknownIssuer { path, .. }
            | Self::Unsigned { path, .. }
            | Self::Stale { path, .. }
            | Self::Expired { path, .. } => path,
        }
    }
}

impl Authorities {
    pub(super) fn read(auth: &ClientAuth) -> Result<Self, ClientAuthError> {
        let mut read = Self {
            certificates: Vec::new(),
            lists: Vec::new(),
            stale: Vec::new(),
            expires: Vec::new(),
        };
        let found = entries(&auth.ca, "certificate", AUTHORITIES_MAX, pem::certificates)?;
        for (at, certificate) in found.into_iter().enumerate() {
            read.authority(&auth.ca, at + 1, certificate)?;
        }
        for path in &auth.crl {
            let what = "certificate revocation list";
            let lists = entries(path, what, LISTS_MAX, pem::revocation_lists)?;
            for (at, list) in lists.into_iter().enumerate() {
                read.list(path, at + 1, list, &auth.ca)?;
            }
        }
        Ok(read)
    }

    fn authority(
        &mut self,
        path: &Path,
        place: usize,
        der: CertificateDer<'static>,
    ) -> Result<(), ClientAuthError> {
        let path = path.to_owned();
        let parsed = X509Certificate::from_der(&der);
        let (_, certificate) = parsed.map_err(|error| ClientAuthError::Unusable {
            path: path.clone(),
            place,
            why: error.to_string(),
        })?;
        if !certificate.is_ca() {
            let subject = name(certificate.subject());
            return Err(ClientAuthError::NotAnAuthority { path, subject });
        }
        self.expires.push(End {
            path: path.clone(),
            of: name(certificate.subject()),
            second: certificate.validity().not_after.timestamp(),
        });
        self.certificates.push((path, der));
        Ok(())
    }

    fn list(
        &mut self,
        path: &Path,
        place: usize,
        der: CertificateRevocationListDer<'static>,
        ca: &Path,
    ) -> Result<(), ClientAuthError> {
        let path = path.to_owned();
        let parsed = CertificateRevocationList::from_der(&der);
        let (_, list) = parsed.map_err(|error| ClientAuthError::Unusable {
            path: path.clone(),
            place,
            why: error.to_string(),
        })?;
        let (mut known, mut signed) = (false, false);
        for (_, authority) in &self.certificates {
            let Ok((_, authority)) = X509Certificate::from_der(authority) else {
                continue; // it was read before
            };
            if authority.subject().as_raw() == list.issuer().as_raw() {
                known = true;
                signed |= list.verify_signature(authority.public_key()).is_ok();
            }
        }
        let issuer = name(list.issuer());
        if !known {
            let ca = ca.to_owned();
            return Err(ClientAuthError::UnknownIssuer { path, ca, issuer });
        }
        if !signed {
            return Err(ClientAuthError::Unsigned { path, issuer });
        }
        let second = list.next_update().map(|time| time.timestamp());
        self.stale.extend(second.map(|second| End {
            path,
            of: issuer,
            second,
        }));
        self.lists.push(der);
        Ok(())
    }
}

/// The entries of a file, PEM (read by `sections`) or DER.
fn entries<T: From<Vec<u8>>>(
    path: &Path,
    what: &'static str,
    most: usize,
    sections: fn(&[u8]) -> pem::Sections<T>,
) -> Result<Vec<T>, ClientAuthError> {
    const DER_SEQUENCE: u8 = 0x30;
    let path = path.to_owned();
    let bytes = match disk::regular(&path, FILE_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(source) => return Err(ClientAuthError::Unreadable { path, source }),
    };
    if bytes.first() == Some(&DER_SEQUENCE) {
        return Ok(vec![T::from(bytes)]);
    }
    let mut found = Vec::new();
    for entry in sections(&bytes) {
        found.push(entry.map_err(|error| ClientAuthError::Unusable {
            path: path.clone(),
            place: found.len() + 1,
            why: error.to_string(),
        })?);
    }
    match found.len() {
        0 => Err(ClientAuthError::Empty { path, what }),
        count if count > most => Err(ClientAuthError::TooMany { path, most }),
        _ => Ok(found),
    }
}

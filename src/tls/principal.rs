//! Who is asking, as a certificate says it: for the record, and for the upstream (RFC 9440).
//!
//! A [`Principal`] is made by `client_auth` alone, after the chain was verified. Names are written as RFC 4514 says,
//! with everything escaped that could make one name look like two. Nothing here decides whom to trust, and no name is
//! compared with anything.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::record::{Certificate, Features};

/// A certificate that is forwarded must fit into the head of a request.
pub(super) const LEAF_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a name before it is cut: no longer than what a record would show of it.
const NAME_BYTES_MAX: usize = 2048;
/// Names that are read of one certificate; a record shows fewer.
const ALTERNATIVES_MAX: usize = 16;

/// A client whose certificate was verified.
#[must_use]
pub struct Principal {
    chain: Box<[CertificateDer<'static>]>,
    record: Certificate,
    /// When the first certificate ends, in seconds since 1970.
    expires: u64,
}

impl Principal {
    /// Of a chain that was verified, leaf first. `None` if it cannot be read after all, which refuses it.
    pub(super) fn of_verified(chain: &[CertificateDer<'static>]) -> Option<Self> {
        let leaf = chain.first().filter(|leaf| leaf.len() <= LEAF_BYTES_MAX)?;
        let (_, read) = X509Certificate::from_der(leaf).ok()?;
        let expires = u64::try_from(read.validity().not_after.timestamp()).unwrap_or(0);
        Some(Self {
            chain: chain.into(),
            record: features(leaf, &read),
            expires,
        })
    }

    /// How it is written down.
    pub fn record(&self) -> &Certificate {
        &self.record
    }

    /// The chain as the client sent it, leaf first.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// When it is over, in seconds since 1970.
    pub fn expires(&self) -> u64 {
        self.expires
    }

    /// The value of `Client-Cert` (RFC 9440 section 2.2): the leaf as a byte sequence of structured fields.
    pub fn client_cert(&self) -> String {
        self.chain.first().map_or_else(String::new, sequence)
    }

    /// The value of `Client-Cert-Chain` (RFC 9440 section 2.3): what the client sent beside the leaf. `None` if that
    /// is nothing.
    pub fn client_cert_chain(&self) -> Option<String> {
        let above: Vec<_> = self.chain.iter().skip(1).map(sequence).collect();
        (!above.is_empty()).then(|| above.join(", "))
    }
}

/// What a certificate says of itself, verified or not. `None` if it is none.
pub(super) fn claimed(leaf: &CertificateDer<'_>) -> Option<Certificate> {
    if leaf.len() > LEAF_BYTES_MAX {
        return None;
    }
    let (_, read) = X509Certificate::from_der(leaf).ok()?;
    Some(features(leaf, &read))
}

/// A distinguished name as text (RFC 4514), most specific part first.
pub(super) fn name(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for part in parts.into_iter().rev() {
        for (at, attribute) in part.iter().enumerate() {
            if !text.is_empty() {
                text.push(if at == 0 { ',' } else { '+' });
            }
            push_attribute(attribute, &mut text);
        }
        if text.len() > NAME_BYTES_MAX {
            break; // the record cuts it, and says so
        }
    }
    text
}

fn sequence(certificate: &CertificateDer<'_>) -> String {
    format!(":{}:", STANDARD.encode(certificate))
}

fn features(leaf: &CertificateDer<'_>, read: &X509Certificate<'_>) -> Certificate {
    let alternative = read.subject_alternative_name().ok().flatten();
    let names = alternative
        .iter()
        .flat_map(|extension| &extension.value.general_names);
    let names: Vec<_> = names.take(ALTERNATIVES_MAX).map(general_name).collect();
    Certificate::new(&Features {
        subject: &name(read.subject()),
        issuer: &name(read.issuer()),
        serial: &serial(read.raw_serial()),
        fingerprint: &hexadecimal(digest::digest(&digest::SHA256, leaf).as_ref()),
        names: &names,
    })
}

/// Without the zero that says that the number is not negative.
fn serial(bytes: &[u8]) -> String {
    match bytes {
        [0, rest @ ..] if !rest.is_empty() => hexadecimal(rest),
        all => hexadecimal(all),
    }
}

fn general_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(text) => format!("DNS:{text}"),
        GeneralName::RFC822Name(text) => format!("email:{text}"),
        GeneralName::URI(text) => format!("URI:{text}"),
        GeneralName::IPAddress(bytes) => {
            match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                (Ok(v4), _) => format!("IP:{}", std::net::Ipv4Addr::from(v4)),
                (_, Ok(v6)) => format!("IP:{}", std::net::Ipv6Addr::from(v6)),
                _ => "IP:?".to_owned(),
            }
        }
        GeneralName::DirectoryName(directory) => format!("DirName:{}", self::name(directory)),
        _ => "other:?".to_owned(),
    }
}

fn push_attribute(attribute: &AttributeTypeAndValue<'_>, text: &mut String) {
    let kind = attribute.attr_type().to_id_string();
    let short = SHORT.iter().find(|(oid, _)| *oid == kind);
    match (short, attribute.as_str()) {
        (Some((_, short)), Ok(value)) => {
            text.push_str(short);
            text.push('=');
            push_escaped(value, text);
        }
        _ => {
            text.push_str(&kind);
            text.push_str("=#");
            let value = attribute.attr_value().data;
            text.push_str(&hexadecimal(
                value
                    .get(..NAME_BYTES_MAX.min(value.len()))
                    .unwrap_or_default(),
            ));
        }
    }
}

/// RFC 4514 section 2.4.
fn push_escaped(value: &str, text: &mut String) {
    let last = value.chars().count().saturating_sub(1);
    for (at, c) in value.chars().enumerate() {
        match c {
            '\0' => text.push_str("\\00"),
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' | '=' => text.extend(['\\', c]),
            '#' if at == 0 => text.push_str("\\#"),
            ' ' if at == 0 || at == last => text.push_str("\\ "),
            other => text.push(other),
        }
    }
}

/// RFC 4514 section 3, and two that are in wide use.
const SHORT: [(&str, &str); 11] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "STREET"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("2.5.4.5", "serialNumber"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

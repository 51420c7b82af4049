//! `[ingress.tls]`: certificates by name, and what a client gets that asks for another one.
//!
//! Only the paths are read here; the files are when the configuration is compiled.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::acme::{Ground, acme, hosts};
use super::client_auth::client_auth;
use super::raw::{Table, Value};
use super::typed::{CertificateFiles, Tls, TlsVersion, UnknownSni};

const EXAMPLE: &str = r#"`certificates = [{ cert = "cert.pem", key = "key.pem" }]`"#;
const VERSIONS: [(&str, TlsVersion); 2] = [("1.2", TlsVersion::V12), ("1.3", TlsVersion::V13)];
const UNKNOWN: [(&str, UnknownSni); 2] = [
    ("default", UnknownSni::Default),
    ("refuse", UnknownSni::Refuse),
];

/// `tls` of an ingress; every key of the table is looked at even if there is no certificate.
pub(super) fn tls(ingress: &Table<'_>, ground: Ground<'_>) -> Option<Tls> {
    let Some(table) = ingress.table("tls") else {
        if ingress.value("tls").is_none() {
            let mend = format!(
                "add `tls.acme = {{ contact = \"ops@example.com\" }}`, or `[ingress.tls]` with {EXAMPLE}"
            );
            ingress.missing("tls", &mend);
        }
        return None;
    };
    let client_auth = client_auth(&table, ground.folder);
    let min_version = table.word("min_version", &VERSIONS, TlsVersion::V12);
    let unknown_sni = table.word("unknown_sni", &UNKNOWN, UnknownSni::Default);
    let acme = acme(&table, ground);
    let certificates = certificates(&table, ground.folder)?;
    if certificates.is_empty() && acme.is_none() {
        return None; // there is a mistake in one of them
    }
    Some(Tls {
        certificates,
        acme: acme.map(Arc::new),
        hosts: hosts(ground.routes),
        unknown_sni,
        min_version,
        client_auth: client_auth?,
    })
}

fn certificates(table: &Table<'_>, folder: &Path) -> Option<Vec<CertificateFiles>> {
    let list = match table.value("certificates") {
        None if table.value("acme").is_some() => return Some(Vec::new()),
        _ => table.some("certificates", &format!("add `acme`, or {EXAMPLE}")),
    };
    let mut certificates: Vec<CertificateFiles> = Vec::new();
    for value in &list {
        let Some(files) = files(value, folder) else {
            continue;
        };
        if certificates.contains(&files) {
            value.wrong("the same certificate twice", "remove one");
        }
        certificates.push(files);
    }
    (!list.is_empty()).then_some(certificates)
}

fn files(value: &Value<'_>, folder: &Path) -> Option<CertificateFiles> {
    let pair = value.table()?;
    let (cert, key) = (file(&pair, "cert", folder), file(&pair, "key", folder));
    Some(CertificateFiles {
        cert: cert?,
        key: key?,
    })
}

pub(super) fn file(table: &Table<'_>, name: &'static str, folder: &Path) -> Option<PathBuf> {
    let Some(value) = table.value(name) else {
        table.missing(name, &format!(r#"add `{name} = "FILE.pem"`"#));
        return None;
    };
    value.text().map(|text| folder.join(text))
}

//! `client_auth` of a listener's `tls`: whose client certificates are believed.

use std::path::Path;

use super::raw::Table;
use super::tls::file;
use super::typed::{ClientAuth, ClientAuthMode};

/// `client_auth = { ca = "clients.pem", mode = "required", crl = "clients.crl", chain = false }`
/// `None` if it is there and cannot be read.
pub(super) fn client_auth(tls: &Table<'_>, folder: &Path) -> Option<Option<ClientAuth>> {
    if tls.value("client_auth").is_none() {
        return Some(None);
    }
    let table = tls.table("client_auth")?;
    let modes = [
        ("required", ClientAuthMode::Required),
        ("optional", ClientAuthMode::Optional),
    ];
    let mode = table.word("mode", &modes, ClientAuthMode::Required);
    let forward_chain = table.flag("forward_chain", false);
    let crl = table.list("crl");
    let crl = crl.iter().filter_map(|value| value.text());
    let crl = crl.map(|text| folder.join(text)).collect();
    Some(Some(ClientAuth {
        ca: file(&table, "ca", folder)?,
        crl,
        mode,
        forward_chain,
    }))
}

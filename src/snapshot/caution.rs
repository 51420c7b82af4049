//! The certificates of a listener beside its hosts: what cannot be served, and what is probably not as meant.
//!
//! A mistake is what would leave a host without its certificate; everything else is a warning, because somebody may
//! have it so on purpose: a host that no certificate is for, a certificate that no host has, a chain that may be short.

use std::sync::Arc;

use crate::config::typed::{Config, HostPattern, Ingress};
use crate::config::{Remark, Warning};
use crate::tls::{Certificate, Dates, Flaw, Keyring, Served};

/// What the `at`th ingress serves with, and what to say about it.
///
/// # Errors
/// Every certificate that cannot be served, at its place in the file.
pub(super) fn serve(
    config: &Config,
    ingress: &Ingress,
    at: usize,
    keyring: &Keyring,
    dates: Dates,
) -> Result<(Arc<Served>, Vec<Warning>), Vec<Remark>> {
    let remark = |key: &str, problem: String, mend: &str| {
        let key = format!("ingress[{at}].tls.{key}");
        config
            .source
            .remark(key.trim_end_matches('.'), problem, mend)
    };
    let flawed = |flaw: Flaw| remark(&flaw.key, flaw.problem, &flaw.mend);
    let served = keyring
        .serve(&ingress.tls, dates)
        .map_err(|flaws| flaws.into_iter().map(flawed).collect::<Vec<_>>())?;
    let mut said: Vec<_> = keyring
        .standing(&ingress.tls)
        .into_iter()
        .map(flawed)
        .collect();
    let (certificates, hosts) = (served.certificates(), hosts(ingress));
    for host in &hosts {
        let ordered = served.ordered().iter().any(|o| o.name == **host);
        if !ordered && !certificates.iter().any(|c| is_for(c, host)) {
            let problem = format!("no certificate is for `{}`", shown(host));
            let mend =
                "add one that has this name (*. stands for one label), or take it from `hosts`";
            said.push(remark("certificates", problem, mend));
        }
    }
    // What was ordered stands behind what files hold.
    let from_files = certificates.iter().take(ingress.tls.certificates.len());
    for (n, certificate) in from_files.enumerate() {
        let (label, key) = (&certificate.label, format!("certificates[{n}].cert"));
        if !hosts.is_empty() && !hosts.iter().any(|host| is_for(certificate, host)) {
            let names = certificate.shown();
            let problem = format!("{label}: is for {names}: for none of this listener's `hosts`");
            said.push(remark(&key, problem, "check that it is the right file"));
        }
        if !certificate.for_servers {
            let problem =
                format!("{label}: is for other uses than a TLS server's: clients refuse it");
            let mend = "issue it again with `serverAuth` in its extended key usage";
            said.push(remark(&key, problem, mend));
        }
        if certificate.alone {
            let problem = format!("{label}: holds one certificate, without the one that issued it");
            let mend = "append the authorities between it and the root, unless clients know the one that issued it";
            said.push(remark(&key, problem, mend));
        }
    }
    Ok((served, said.into_iter().map(Warning).collect()))
}

/// Each host of the listener, once.
fn hosts(ingress: &Ingress) -> Vec<&HostPattern> {
    let mut hosts = Vec::new();
    for host in ingress.routes.iter().flat_map(|route| &route.hosts) {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

/// Whether a certificate is for a host; for everything below a name, as far as a certificate can be.
fn is_for(certificate: &Certificate, host: &HostPattern) -> bool {
    match host {
        HostPattern::Below(name) => certificate.covers_below(name),
        HostPattern::Exact(host) => certificate.covers(host),
    }
}

fn shown(host: &HostPattern) -> String {
    match host {
        HostPattern::Below(name) => format!("*.{name}"),
        HostPattern::Exact(host) => host.to_string(),
    }
}

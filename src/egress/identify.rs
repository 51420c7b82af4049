//! Which client of a gate is asking: by its address and, where one is set, by its password.

use std::sync::Arc;

use crate::addr::Peer;
use crate::outcome::Refusal;
use crate::snapshot::{Gate, GateClient};

/// What a client says of itself.
#[derive(Clone, Copy)]
pub(super) struct Claim<'a> {
    pub(super) user: &'a [u8],
    pub(super) password: &'a [u8],
}

/// Whether anybody may ask from this address.
pub(super) fn is_expected(gate: &Gate, peer: Peer) -> bool {
    candidates(gate, peer).next().is_some()
}

/// The first of `clients`, who have no passwords, whose addresses hold the peer.
pub(super) fn expected(clients: &[GateClient], peer: Peer) -> Option<&Arc<str>> {
    let address = peer.socket().ip();
    let client = clients.iter().find(|c| c.from.contains(address));
    client.map(|client| &client.name)
}

/// The first client of the gate whose addresses hold the peer and whose password, if it has one, is right.
pub(super) fn who(gate: &Gate, peer: Peer, claim: Option<Claim<'_>>) -> Result<Arc<str>, Refusal> {
    let mut refusal = Refusal::ClientDenied;
    for client in candidates(gate, peer) {
        if proves(client, claim) {
            return Ok(Arc::clone(&client.name));
        }
        refusal = Refusal::CredentialsRequired;
    }
    Err(refusal)
}

fn candidates(gate: &Gate, peer: Peer) -> impl Iterator<Item = &GateClient> {
    let address = peer.socket().ip();
    gate.clients
        .iter()
        .filter(move |c| c.from.contains(address))
}

/// How long it takes says nothing about the password but its length.
fn proves(client: &GateClient, claim: Option<Claim<'_>>) -> bool {
    let Some(password) = &client.password else {
        return true;
    };
    claim.is_some_and(|claim| {
        let right = aws_lc_rs::constant_time::verify_slices_are_equal(claim.password, &password.0);
        right.is_ok() & (claim.user == client.name.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::typed::Password;

    fn gate(clients: &[(&str, &str, Option<&str>)]) -> Gate {
        let client = |(name, from, password): &(&str, &str, Option<&str>)| GateClient {
            name: (*name).into(),
            from: [from.parse().unwrap()].into_iter().collect(),
            password: password.map(|p| Password(p.as_bytes().into())),
        };
        Gate {
            listen: "127.0.0.1:3128".parse().unwrap(),
            http: true,
            socks5: true,
            quotas: Vec::new(),
            clients: clients.iter().map(client).collect(),
        }
    }

    fn peer(ip: &str) -> Peer {
        Peer::new(format!("{ip}:1").parse().unwrap())
    }

    fn claim<'a>(user: &'a str, password: &'a str) -> Option<Claim<'a>> {
        let (user, password) = (user.as_bytes(), password.as_bytes());
        Some(Claim { user, password })
    }

    #[test]
    fn address_and_password_both_count() {
        let gate = gate(&[
            ("jobs", "10.0.1.0/24", Some("secret")),
            ("app", "10.0.0.0/16", Some("other")),
            ("local", "127.0.0.0/8", None),
        ]);
        let at = peer("10.0.1.5");
        assert_eq!(&*who(&gate, at, claim("jobs", "secret")).unwrap(), "jobs");
        assert_eq!(&*who(&gate, at, claim("app", "other")).unwrap(), "app");
        for wrong in [
            None,
            claim("jobs", "other"),
            claim("app", "secret"),
            claim("local", ""),
            claim("jobs", ""),
        ] {
            assert_eq!(who(&gate, at, wrong), Err(Refusal::CredentialsRequired));
        }
        assert_eq!(
            who(&gate, peer("10.0.2.5"), claim("jobs", "secret")),
            Err(Refusal::CredentialsRequired)
        );
        assert_eq!(&*who(&gate, peer("127.0.0.1"), None).unwrap(), "local");
        assert_eq!(
            who(&gate, peer("192.0.2.1"), claim("jobs", "secret")),
            Err(Refusal::ClientDenied)
        );
        assert!(!is_expected(&gate, peer("192.0.2.1")));
    }
}

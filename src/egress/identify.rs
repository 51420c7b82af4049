//! Which client of a gate is asking: by its address and, where one is set, by its password.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::{hmac, pbkdf2};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::addr::Peer;
use crate::config::typed::{Password, PasswordHash};
use crate::limit::Limits;
use crate::outcome::Refusal;
use crate::snapshot::{Gate, GateClient};
use crate::{clock, workers};

/// Passwords that are remembered to be right; more than are ever configured.
const VERIFIED_MAX: usize = 1024;
/// Hashes worked out at the same time, by each worker: a flood of guesses waits for itself.
const HASHING_MAX: usize = 2;
/// How long a password waits for that.
const TURN_LIMIT: Duration = Duration::from_secs(5);

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
pub(super) async fn who(
    verified: &Verified,
    limits: &Limits,
    gate: &Gate,
    peer: Peer,
    claim: Option<Claim<'_>>,
) -> Result<Arc<str>, Refusal> {
    let address = peer.socket().ip();
    let mut refusal = Refusal::ClientDenied;
    for client in candidates(gate, peer) {
        let Some(password) = &client.password else {
            return Ok(Arc::clone(&client.name));
        };
        refusal = Refusal::CredentialsRequired;
        let Some(claim) = claim.filter(|claim| claim.user == client.name.as_bytes()) else {
            continue;
        };
        let _turn = verified.turn(claim.password, password).await?;
        limits.try_password(address, &client.name)?;
        let right = match password {
            Password::Plain(password) => equal(claim.password, &password.0),
            Password::Hashed(hash) => verified.is(claim.password, hash).await,
        };
        if right {
            limits.password_was_right(address, &client.name);
            return Ok(Arc::clone(&client.name));
        }
    }
    Err(refusal)
}

/// Passwords that were right already: a hash that is slow to guess is slow to check, and a client asks often. What is
/// kept is a tag under a key of this process; of a wrong one, nothing.
pub(super) struct Verified {
    key: hmac::Key,
    tags: Mutex<HashSet<Box<[u8]>>>,
    hashing: Semaphore,
}

impl Verified {
    pub(super) fn new() -> Self {
        let mut key = [0; 32];
        clock::draw(&mut key);
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            tags: Mutex::default(),
            hashing: Semaphore::new(HASHING_MAX),
        }
    }

    /// Waits until a hash may be worked out, if one has to be. Whoever waited behind the first of many with the same
    /// password finds it known; who waited too long is refused.
    async fn turn(
        &self,
        claimed: &[u8],
        password: &Password,
    ) -> Result<Option<SemaphorePermit<'_>>, Refusal> {
        match password {
            Password::Hashed(hash) if !self.lock().contains(&self.tag(claimed, hash)) => {
                let turn = timeout(TURN_LIMIT, self.hashing.acquire()).await;
                let turn = turn.map_err(|_| Refusal::CredentialsBarred)?;
                Ok(turn.ok()) // it is never closed
            }
            Password::Hashed(_) | Password::Plain(_) => Ok(None),
        }
    }

    /// Whether `password` is the one that `hash` is left of.
    async fn is(&self, password: &[u8], hash: &PasswordHash) -> bool {
        let tag = self.tag(password, hash);
        if self.lock().contains(&tag) {
            return true;
        }
        let (password, hash) = (password.to_vec(), hash.clone());
        let slow = workers::aside(move || {
            let PasswordHash {
                iterations,
                salt,
                hash,
            } = hash;
            let sha256 = pbkdf2::PBKDF2_HMAC_SHA256;
            pbkdf2::verify(sha256, iterations, &salt, &password, &hash).is_ok()
        });
        let right = slow.await == Some(true);
        if right {
            let mut tags = self.lock();
            if tags.len() >= VERIFIED_MAX {
                tags.clear(); // after many a reload; they are found out again
            }
            tags.insert(tag);
        }
        right
    }

    /// The hash goes in with its salt and length, so that a changed one is checked anew.
    fn tag(&self, password: &[u8], hash: &PasswordHash) -> Box<[u8]> {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [&*hash.salt, &*hash.hash, password] {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        context.sign().as_ref().into()
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Box<[u8]>>> {
        self.tags.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn candidates(gate: &Gate, peer: Peer) -> impl Iterator<Item = &GateClient> {
    let address = peer.socket().ip();
    gate.clients
        .iter()
        .filter(move |c| c.from.contains(address))
}

/// How long it takes says nothing about the password but its length.
fn equal(one: &[u8], other: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one, other).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(clients: &[(&str, &str, Option<&str>)]) -> Gate {
        let client = |(name, from, password): &(&str, &str, Option<&str>)| GateClient {
            name: (*name).into(),
            from: [from.parse().unwrap()].into_iter().collect(),
            password: password
                .map(|p| Password::Plain(crate::config::typed::Secret(p.as_bytes().into()))),
            max_tunnels: None,
        };
        Gate {
            listen: "127.0.0.1:3128".parse().unwrap(),
            http: true,
            socks4: true,
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

    fn limits() -> Limits {
        Limits::new(Arc::default())
    }

    #[tokio::test]
    async fn address_and_password_both_count() {
        let (verified, limits) = (Verified::new(), limits());
        let who = async |gate: &Gate, peer, claim| who(&verified, &limits, gate, peer, claim).await;
        let gate = gate(&[
            ("jobs", "10.0.1.0/24", Some("secret")),
            ("app", "10.0.0.0/16", Some("other")),
            ("local", "127.0.0.0/8", None),
        ]);
        let at = peer("10.0.1.5");
        assert_eq!(
            &*who(&gate, at, claim("jobs", "secret")).await.unwrap(),
            "jobs"
        );
        assert_eq!(
            &*who(&gate, at, claim("app", "other")).await.unwrap(),
            "app"
        );
        for wrong in [
            None,
            claim("jobs", "other"),
            claim("app", "secret"),
            claim("local", ""),
            claim("jobs", ""),
        ] {
            assert_eq!(
                who(&gate, at, wrong).await,
                Err(Refusal::CredentialsRequired)
            );
        }
        assert_eq!(
            who(&gate, peer("10.0.2.5"), claim("jobs", "secret")).await,
            Err(Refusal::CredentialsRequired)
        );
        assert_eq!(
            &*who(&gate, peer("127.0.0.1"), None).await.unwrap(),
            "local"
        );
        assert_eq!(
            who(&gate, peer("192.0.2.1"), claim("jobs", "secret")).await,
            Err(Refusal::ClientDenied)
        );
        assert!(!is_expected(&gate, peer("192.0.2.1")));
    }

    /// RFC 7914 section 11: a test vector of PBKDF2-HMAC-SHA256.
    #[tokio::test]
    async fn a_hash_is_checked_once_and_another_hash_anew() {
        let mut gate = gate(&[("jobs", "10.0.0.0/8", Some(""))]);
        let hash = pbkdf2_of(b"Password", 80_000);
        assert_eq!(hash.hash[..4], [0x4d, 0xdc, 0xd8, 0xf6]);
        gate.clients[0].password = Some(Password::Hashed(hash));
        let (verified, limits, at) = (Verified::new(), limits(), peer("10.0.0.1"));
        let asked = async |gate: &Gate, text| {
            let claim = claim("jobs", text);
            who(&verified, &limits, gate, at, claim).await
        };
        assert!(asked(&gate, "Password").await.is_ok());
        assert_eq!(verified.lock().len(), 1);
        assert_eq!(
            asked(&gate, "password").await,
            Err(Refusal::CredentialsRequired)
        );
        assert!(asked(&gate, "Password").await.is_ok());
        assert_eq!(verified.lock().len(), 1);
        gate.clients[0].password = Some(Password::Hashed(pbkdf2_of(b"other", 1000)));
        assert_eq!(
            asked(&gate, "Password").await,
            Err(Refusal::CredentialsRequired)
        );
    }

    fn pbkdf2_of(password: &[u8], iterations: u32) -> PasswordHash {
        let iterations = std::num::NonZeroU32::new(iterations).unwrap();
        let (salt, mut hash) = (b"NaCl", [0; 32]);
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            iterations,
            salt,
            password,
            &mut hash,
        );
        PasswordHash {
            iterations,
            salt: salt[..].into(),
            hash: hash.into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_behind_a_flood_of_guesses_is_refused() {
        let mut gate = gate(&[("jobs", "10.0.0.0/8", Some(""))]);
        gate.clients[0].password = Some(Password::Hashed(pbkdf2_of(b"Password", 1000)));
        let (verified, limits, at) = (Verified::new(), limits(), peer("10.0.0.1"));
        let busy = verified.hashing.acquire_many(HASHING_MAX as u32).await;
        let asked = who(&verified, &limits, &gate, at, claim("jobs", "Password")).await;
        assert_eq!(asked, Err(Refusal::CredentialsBarred));
        drop(busy);
    }

    #[tokio::test]
    async fn guesses_are_not_listened_to_for_long() {
        let gate = gate(&[("jobs", "10.0.0.0/8", Some("right"))]);
        let (verified, limits, at) = (Verified::new(), limits(), peer("10.0.0.1"));
        let asked =
            async |text: &str| who(&verified, &limits, &gate, at, claim("jobs", text)).await;
        for _ in 0..10 {
            assert!(asked("right").await.is_ok());
            assert_eq!(asked("wrong").await, Err(Refusal::CredentialsRequired));
        }
        assert_eq!(asked("right").await, Err(Refusal::CredentialsBarred));
    }
}

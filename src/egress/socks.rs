//! The SOCKS5 door: greeting, method, credentials, request; each message of ours leaves in one write.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::identify::Claim;
use super::linger::last_words;
use super::{Ask, Carried, Door, Egress, HELLO_LIMIT, Reply, gate, outcome};
use crate::addr::Peer;
use crate::clock::Id;
use crate::dial::Dialled;
use crate::outcome::Refusal;
use crate::relay::{Flow, relay};
use crate::sessions::Session;
use crate::wire::socks::{self, Parsed, SocksError};

/// Bytes that a client may send before it has its answer, beyond one message.
const EARLY_BYTES_MAX: usize = 16 * 1024;
/// RFC 1928 section 6: address type not supported.
const ADDRESS_TYPE_UNKNOWN: u8 = 8;

/// A SOCKS5 client, and what it has sent that was not asked for yet.
pub(super) struct Caller {
    tcp: TcpStream,
    heard: Vec<u8>,
}

/// Why there is no ask, and what is said last.
struct Rejected {
    refusal: Refusal,
    says: Vec<u8>,
}

/// Serves one connection.
pub(super) async fn serve(
    egress: &Egress,
    tcp: TcpStream,
    session: &Session,
    listen: SocketAddr,
    peer: Peer,
) {
    let mut caller = Caller {
        tcp,
        heard: Vec::new(),
    };
    let read = timeout(HELLO_LIMIT, caller.read(egress, listen, peer)).await;
    let rejected = match read {
        Ok(Ok(ask)) => return egress.pass(ask, session, Reply::Socks5(caller)).await,
        Ok(Err(rejected)) => rejected,
        Err(_) => Rejected {
            refusal: Refusal::HandshakeTimeout,
            says: Vec::new(),
        },
    };
    egress.denied(listen, peer, None, "", rejected.refusal);
    last_words(caller.tcp, &rejected.says, session).await;
}

impl Caller {
    async fn read(
        &mut self,
        egress: &Egress,
        listen: SocketAddr,
        peer: Peer,
    ) -> Result<Ask, Rejected> {
        let offered = self
            .hear(socks::greeting)
            .await
            .map_err(|error| self.no_greeting(error))?;
        let gate = gate(&egress.live.load(), listen).map(Arc::clone);
        let gate = gate.map_err(|r| rejected(r, socks::choose(socks::NO_METHOD)))?;
        if !gate.socks5 {
            return Err(rejected(
                Refusal::Unsupported,
                socks::choose(socks::NO_METHOD),
            ));
        }
        let client = match egress.who(&gate, peer, None).await {
            Ok(client) if offered.no_authentication => {
                self.say(&socks::choose(socks::NO_AUTHENTICATION)).await?;
                client
            }
            Err(Refusal::ClientDenied) => {
                return Err(rejected(
                    Refusal::ClientDenied,
                    socks::choose(socks::NO_METHOD),
                ));
            }
            _ if offered.user_password => {
                self.say(&socks::choose(socks::USER_PASSWORD)).await?;
                let claimed = self
                    .hear(socks::credentials)
                    .await
                    .map_err(|_| silent(Refusal::Malformed))?;
                let (user, password) = (&*claimed.user, &*claimed.password);
                let client = egress
                    .who(&gate, peer, Some(Claim { user, password }))
                    .await
                    .map_err(|refusal| rejected(refusal, socks::verdict(false)))?;
                self.say(&socks::verdict(true)).await?;
                client
            }
            _ => {
                return Err(rejected(
                    Refusal::CredentialsRequired,
                    socks::choose(socks::NO_METHOD),
                ));
            }
        };
        let destination = self.hear(socks::request).await.map_err(no_request)?;
        Ok(Ask {
            id: Id::new(),
            listen,
            peer,
            client,
            door: Door::Socks5,
            destination,
        })
    }

    /// The next message. What follows it stays for later.
    async fn hear<T>(&mut self, parse: fn(&[u8]) -> Parsed<T>) -> Result<T, SocksError> {
        loop {
            if let Some((message, used)) = parse(&self.heard)? {
                self.heard.drain(..used);
                return Ok(message);
            }
            let room = socks::MESSAGE_BYTES_MAX + EARLY_BYTES_MAX - self.heard.len();
            let mut more = (&mut self.tcp).take(room as u64);
            match more.read_buf(&mut self.heard).await {
                Ok(0) | Err(_) => return Err(SocksError::Malformed),
                Ok(_) => {}
            }
        }
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<(), Rejected> {
        let said = self.tcp.write_all(bytes).await;
        said.map_err(|_| silent(Refusal::Malformed))
    }

    fn no_greeting(&self, _: SocksError) -> Rejected {
        if self.heard.first() == Some(&socks::VERSION_4) {
            tracing::info!(
                "a client speaks SOCKS4, which has no passwords and no names: set it to SOCKS5 (socks5h://)"
            );
            return rejected(Refusal::Unsupported, socks::SOCKS4_REJECTED);
        }
        silent(Refusal::Malformed)
    }

    pub(super) async fn refuse(self, refusal: Refusal, session: &Session) -> Option<u16> {
        last_words(self.tcp, &socks::reply(refusal.socks_reply()), session).await;
        None
    }

    pub(super) async fn carry(
        mut self,
        dialled: Dialled,
        flow: &Flow,
        idle: Duration,
        stop: impl Future<Output = Refusal>,
    ) -> Carried {
        if self.say(&socks::reply(0)).await.is_err() {
            return Carried::aborted();
        }
        let end = relay((self.tcp, &self.heard), dialled.stream, flow, idle, stop).await;
        Carried {
            outcome: outcome(&end),
            status: None,
        }
    }
}

fn no_request(error: SocksError) -> Rejected {
    match error {
        SocksError::Malformed => silent(Refusal::Malformed),
        SocksError::Command => rejected(
            Refusal::Unsupported,
            socks::reply(Refusal::Unsupported.socks_reply()),
        ),
        SocksError::AddressType => rejected(Refusal::Malformed, socks::reply(ADDRESS_TYPE_UNKNOWN)),
        SocksError::Destination => rejected(
            Refusal::NameInvalid,
            socks::reply(Refusal::NameInvalid.socks_reply()),
        ),
    }
}

fn rejected(refusal: Refusal, says: impl Into<Vec<u8>>) -> Rejected {
    Rejected {
        refusal,
        says: says.into(),
    }
}

/// Nothing that could be said would be understood.
fn silent(refusal: Refusal) -> Rejected {
    rejected(refusal, [])
}

//! The SOCKS doors: of version 5 greeting, method, credentials, request; of version 4 and 4a the request alone, which no
//! client with a password can use. Each message of ours leaves in one write.

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

/// The version that a client speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Version {
    Four,
    Five,
}

/// A SOCKS client, and what it has sent that was not asked for yet.
pub(super) struct Caller {
    tcp: TcpStream,
    heard: Vec<u8>,
    version: Version,
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
    version: Version,
) {
    let mut caller = Caller {
        tcp,
        heard: Vec::new(),
        version,
    };
    let reading = async {
        match version {
            Version::Four => caller.read_4(egress, listen, peer).await,
            Version::Five => caller.read_5(egress, listen, peer).await,
        }
    };
    let read = timeout(HELLO_LIMIT, reading).await;
    let rejected = match read {
        Ok(Ok(ask)) => return egress.pass(ask, session, Reply::Socks(caller)).await,
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
    async fn read_4(
        &mut self,
        egress: &Egress,
        listen: SocketAddr,
        peer: Peer,
    ) -> Result<Ask, Rejected> {
        let no = |refusal| rejected(refusal, socks::reply_4(false));
        let destination = self.hear(socks::request_4).await.map_err(|e| match e {
            SocksError::Malformed => silent(Refusal::Malformed),
            SocksError::Command => no(Refusal::Unsupported),
            SocksError::AddressType | SocksError::Destination => no(Refusal::NameInvalid),
        })?;
        let gate = gate(&egress.live.load(), listen)
            .map(Arc::clone)
            .map_err(no)?;
        if !gate.socks4 {
            return Err(no(Refusal::Unsupported));
        }
        let client = egress.who(&gate, peer, None).await.map_err(no)?;
        Ok(Ask {
            id: Id::new(),
            listen,
            peer,
            client,
            door: Door::Socks4,
            destination,
        })
    }

    async fn read_5(
        &mut self,
        egress: &Egress,
        listen: SocketAddr,
        peer: Peer,
    ) -> Result<Ask, Rejected> {
        let offered = self.hear(socks::greeting).await;
        let offered = offered.map_err(|_| silent(Refusal::Malformed))?;
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

    /// Of the version that it speaks; version 4 knows yes and no only.
    fn reply(&self, code: u8) -> Vec<u8> {
        match self.version {
            Version::Four => socks::reply_4(code == 0).into(),
            Version::Five => socks::reply(code).into(),
        }
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<(), Rejected> {
        let said = self.tcp.write_all(bytes).await;
        said.map_err(|_| silent(Refusal::Malformed))
    }

    pub(super) async fn refuse(self, refusal: Refusal, session: &Session) -> Option<u16> {
        let says = self.reply(refusal.socks_reply());
        last_words(self.tcp, &says, session).await;
        None
    }

    pub(super) async fn carry(
        mut self,
        dialled: Dialled,
        flow: &Flow,
        idle: Duration,
        stop: impl Future<Output = Refusal>,
    ) -> Carried {
        if self.say(&self.reply(0)).await.is_err() {
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

//! How a refusal is told in the protocol of the data source, so that an application shows the reason and not
//! `ECONNRESET`.
//!
//! What is said, and when, is decided by one pure function for each protocol: what was heard so far in, one [`Step`]
//! out. They hear as much as politeness asks for (a client that has not spoken yet does not read) and understand nothing
//! of it: no name, password or statement is kept. Whoever begins with TLS gets an alert. Nothing is said of the
//! destination but why it was refused, and no internal address ever.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::linger::Lingering;
use super::problem::Refused;
use crate::clock::Id;
use crate::config::typed::Protocol;
use crate::outcome::{Fault, Refusal};
use crate::relay::reset;
use crate::sessions::Session;
use crate::workers;

mod mongodb;
mod mysql;
mod postgres;
mod redis;
mod sqlserver;
mod tls;

/// For the whole conversation: a driver that is alive speaks at once.
const TALK_LIMIT: Duration = Duration::from_secs(3);
/// Of what was heard and not answered yet.
const HEARD_BYTES_MAX: usize = 32 * 1024;
/// Answers in one conversation: a driver that is not satisfied with this many will not be.
const STEPS_MAX: usize = 64;

/// What is told, and of which kind the reason is.
pub(super) struct Says {
    /// One line of printable text.
    text: String,
    kind: Kind,
}

/// The reasons, as coarsely as data sources tell them apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// It is not allowed; asking again changes nothing.
    Forbidden,
    /// Not now: too many.
    Crowded,
    /// The destination, or what is between, failed.
    Unreachable,
    /// We failed.
    Ours,
}

/// What comes next in a conversation.
#[derive(Debug, Eq, PartialEq)]
enum Step {
    /// To hear more.
    More,
    /// This is said about the first `used` bytes heard, and the client may go on.
    Say { used: usize, bytes: Vec<u8> },
    /// This is said, and nothing more.
    Last(Vec<u8>),
    /// Nothing that could be said would be understood.
    Mute,
}

impl Says {
    pub(super) fn new(id: Id, refused: Refused) -> Self {
        let kind = match (refused.refusal, refused.refusal.fault()) {
            (
                Refusal::RateLimited
                | Refusal::ClientSessionLimit
                | Refusal::SessionLimit
                | Refusal::PortsExhausted,
                _,
            ) => Kind::Crowded,
            (_, Fault::Client | Fault::Policy) => Kind::Forbidden,
            (_, Fault::Remote) => Kind::Unreachable,
            (_, Fault::Us) => Kind::Ours,
        };
        let text = refused.line(id);
        Self { text, kind }
    }
}

/// Tells the client why not, and closes. That goes on in a task beside, because no record is to wait for it.
pub(super) fn tell(tcp: TcpStream, protocol: Protocol, says: Says, session: &Session) {
    if protocol == Protocol::None {
        return reset(&tcp);
    }
    let session = session.fork();
    workers::spawn(async move {
        let mut tcp = Lingering::new(tcp);
        let told = timeout(TALK_LIMIT, talk(&mut tcp, protocol, &says)).await;
        if told == Ok(true) {
            tcp.shutdown().await.ok(); // whoever is gone needs no closing
        } else {
            reset(&tcp.into_inner());
        }
        drop(session);
    });
}

/// True if the last word was said and understood.
async fn talk(tcp: &mut Lingering, protocol: Protocol, says: &Says) -> bool {
    let (mut heard, mut said) = (Vec::new(), false);
    for _ in 0..STEPS_MAX {
        match step(protocol, &heard, says) {
            Step::Say { used, bytes } => {
                heard.drain(..used.min(heard.len()));
                if tcp.write_all(&bytes).await.is_err() {
                    return false;
                }
                said = true;
            }
            Step::Last(bytes) => return tcp.write_all(&bytes).await.is_ok(),
            Step::Mute => return said,
            Step::More => {
                let room = HEARD_BYTES_MAX.saturating_sub(heard.len());
                let read = tcp.take(room as u64).read_buf(&mut heard).await;
                if !matches!(read, Ok(1..)) {
                    return said;
                }
            }
        }
    }
    said
}

fn step(protocol: Protocol, heard: &[u8], says: &Says) -> Step {
    if protocol != Protocol::Mysql && tls::begins(heard) {
        return Step::Last(tls::alert(says));
    }
    match protocol {
        Protocol::Mongodb => mongodb::step(heard, says),
        Protocol::Mysql => mysql::step(says),
        Protocol::Postgres => postgres::step(heard, says),
        Protocol::Redis => redis::step(heard, says),
        Protocol::Sqlserver => sqlserver::step(heard, says),
        Protocol::Tls if heard.len() < tls::HEAD_BYTES => Step::More,
        Protocol::None | Protocol::Tls => Step::Mute,
    }
}

/// The length of a message in the form that its protocol writes it.
fn length<T: TryFrom<usize> + Default>(bytes: usize) -> T {
    T::try_from(bytes).unwrap_or_default() // texts of ours are far shorter
}

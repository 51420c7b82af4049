//! Questions for names that another server answers for, such as those inside a cluster.
//!
//! The question is put anew, under an identifier and from a port of its own, and only an answer to exactly it is
//! passed on. Its records are the other server's: a client that connects to an address in them is judged by that
//! address.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::clock;
use crate::socket;
use crate::wire::dns::{Question, STREAM_BYTES_MAX};

/// For one server.
const SERVER_LIMIT: Duration = Duration::from_secs(2);

/// The answer of the first of `servers` that gives one, in at most `limit` bytes.
pub(super) async fn ask(
    question: &Question,
    servers: &[SocketAddr],
    limit: usize,
) -> Option<Box<[u8]>> {
    for server in servers {
        let mut id = [0; 2];
        clock::draw(&mut id);
        let id = u16::from_be_bytes(id);
        let asked = timeout(SERVER_LIMIT, one(question, *server, id, limit)).await;
        match asked {
            Ok(Ok(answer)) if answer.len() <= limit => return Some(answer.into()),
            Ok(Ok(_)) => return Some(question.truncated()),
            Ok(Err(error)) => tracing::debug!(%server, %error, "a name server was not reached"),
            Err(_) => tracing::debug!(%server, "a name server did not answer"),
        }
    }
    None
}

/// By datagram, and by connection if the answer does not fit there but does fit the client.
async fn one(
    question: &Question,
    server: SocketAddr,
    id: u16,
    limit: usize,
) -> std::io::Result<Vec<u8>> {
    let answer = by_datagram(question, server, id).await?;
    if Question::is_cut(&answer) && limit == STREAM_BYTES_MAX {
        return by_stream(question, server, id).await;
    }
    Ok(answer)
}

async fn by_datagram(question: &Question, server: SocketAddr, id: u16) -> std::io::Result<Vec<u8>> {
    let socket = socket::datagram::towards(server).await?;
    socket.send(&question.again(id)).await?;
    let mut buffer = vec![0; STREAM_BYTES_MAX];
    loop {
        let count = socket.recv(&mut buffer).await?;
        let bytes = buffer.get(..count).unwrap_or_default().to_vec();
        if let Some(answer) = question.passed_on(id, bytes) {
            return Ok(answer);
        }
    }
}

async fn by_stream(question: &Question, server: SocketAddr, id: u16) -> std::io::Result<Vec<u8>> {
    let mut tcp = socket::connect(server).await?;
    let again = question.again(id);
    let length = u16::try_from(again.len()).map_err(std::io::Error::other)?;
    tcp.write_all(&[&length.to_be_bytes()[..], &again].concat())
        .await?;
    let mut bytes = vec![0; usize::from(tcp.read_u16().await?)];
    tcp.read_exact(&mut bytes).await?;
    let answer = question.passed_on(id, bytes);
    answer.ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

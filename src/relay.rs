//! Bytes both ways between two plain TCP connections, exactly as they are.
//!
//! Each direction ends on its own: an end of one side is passed on as an end of sending, and the other direction goes
//! on. The first [`COPY_BYTES`] of a direction are copied, which is what short conversations cost least with; after
//! that bytes are moved by splice(2) through pipes that are lent only while bytes flow. Without a pipe, copying goes
//! on. An idle connection holds no buffer and no pipe. Nothing here knows who is talking.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::sleep;

mod pipe;

use pipe::{Moved, Pipe};

/// Copied in each direction before pipes are asked for.
const COPY_BYTES: u64 = 64 * 1024;
/// A read asks for this much at first and, while reads come back full, for twice as much each time.
const READ_BYTES_MIN: usize = 16 * 1024;
const READ_BYTES_MAX: usize = 256 * 1024;
/// After this many steps without having to wait a direction lets others on its worker run.
const STEPS_MAX: u32 = 16;
/// The idle limit is looked at this many times within it.
const IDLE_LOOKS: u32 = 8;

/// What passed, also while it passes.
#[derive(Debug, Default)]
pub struct Flow {
    /// Bytes to the destination.
    pub up: AtomicU64,
    /// Bytes to the client.
    pub down: AtomicU64,
}

/// How a relay ended.
#[derive(Debug)]
pub enum End<S> {
    /// Both sides have finished sending.
    Finished,
    /// Nothing passed for the idle limit.
    Idle,
    /// One side broke off.
    Broken(io::Error),
    /// Whoever asked for the relay wanted it to end.
    Stopped(S),
}

/// Relays until both directions have ended, one side breaks, nothing passes for `idle`, or `stop` completes. `early`
/// has already been read from the client. A side whose partner broke off is reset, so that a cut never looks like an
/// end.
pub async fn relay<S>(
    (client, early): (TcpStream, &[u8]),
    destination: TcpStream,
    flow: &Flow,
    idle: Duration,
    stop: impl Future<Output = S>,
) -> End<S> {
    let up = async {
        send_all(&destination, early, &flow.up).await?;
        pour(&client, &destination, &flow.up).await
    };
    let end = {
        let down = pour(&destination, &client, &flow.down);
        let both = pin!(async { tokio::try_join!(up, down) });
        tokio::select! {
            ended = both => match ended {
                Ok(_) => End::Finished,
                Err(error) => End::Broken(error),
            },
            why = stop => End::Stopped(why),
            () = stalled(flow, idle) => End::Idle,
        }
    };
    if matches!(end, End::Broken(_)) {
        reset(&client);
        reset(&destination);
    }
    end
}

/// Ends when nothing has passed in either direction for `idle` (or an eighth longer).
pub async fn stalled(flow: &Flow, idle: Duration) {
    let (mut seen, mut looks) = (flow.total(), 0);
    while looks < IDLE_LOOKS {
        sleep(idle / IDLE_LOOKS).await;
        let now = flow.total();
        looks = if now == seen { looks + 1 } else { 0 };
        seen = now;
    }
}

/// Makes closing `stream` a reset.
pub fn reset(stream: &TcpStream) {
    // A socket that is gone already needs no reset.
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).ok();
}

impl Flow {
    fn total(&self) -> u64 {
        let (up, down) = self.get();
        up.wrapping_add(down)
    }

    /// Bytes to the destination and bytes to the client.
    pub fn get(&self) -> (u64, u64) {
        (
            self.up.load(Ordering::Relaxed),
            self.down.load(Ordering::Relaxed),
        )
    }
}

/// One direction, to its end; then the other side is told that no more will come.
async fn pour(from: &TcpStream, to: &TcpStream, count: &AtomicU64) -> io::Result<()> {
    let (mut ask, mut steps) = (READ_BYTES_MIN, 0);
    loop {
        from.readable().await?;
        let pipe = if count.load(Ordering::Relaxed) < COPY_BYTES {
            None
        } else {
            Pipe::lend()
        };
        let step = match pipe {
            Some(pipe) => splice(from, to, pipe, count).await?,
            None => copy(from, to, &mut ask, count).await?,
        };
        if step == Step::Ended {
            break;
        }
        steps += 1;
        if steps % STEPS_MAX == 0 {
            yield_now().await;
        }
    }
    // The other side may have closed already: then it knows.
    SockRef::from(to).shutdown(Shutdown::Write).ok();
    Ok(())
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Step {
    Ended,
    GoOn,
}

/// Reads once and writes all of it. What the other side does not take at once waits in a buffer of its own.
async fn copy(
    from: &TcpStream,
    to: &TcpStream,
    ask: &mut usize,
    count: &AtomicU64,
) -> io::Result<Step> {
    let (read, rest) = match copy_now(from, to, *ask) {
        Ok(done) => done,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::GoOn),
        Err(error) => return Err(error),
    };
    if read == 0 {
        return Ok(Step::Ended);
    }
    *ask = if read == *ask {
        READ_BYTES_MAX.min(*ask * 2)
    } else {
        READ_BYTES_MIN.max(*ask / 2)
    };
    count.fetch_add((read - rest.len()) as u64, Ordering::Relaxed);
    send_all(to, &rest, count).await?;
    Ok(Step::GoOn)
}

/// Bytes read, and those of them that could not be written without waiting. One buffer serves the whole thread.
fn copy_now(from: &TcpStream, to: &TcpStream, ask: usize) -> io::Result<(usize, Vec<u8>)> {
    thread_local! {
        static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES_MAX].into());
    }
    BUFFER.with_borrow_mut(|buffer| {
        let room = buffer.get_mut(..ask).unwrap_or_default();
        let read = from.try_read(room)?;
        let bytes = room.get(..read).unwrap_or_default();
        let written = match to.try_write(bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        Ok((read, bytes.get(written..).unwrap_or_default().to_vec()))
    })
}

async fn send_all(to: &TcpStream, mut bytes: &[u8], count: &AtomicU64) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => {
                count.fetch_add(written as u64, Ordering::Relaxed);
                bytes = bytes.get(written..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills the pipe once and empties it into the other side. The pipe is empty whenever bytes are asked for, so "would
/// block" always speaks of the socket, never of the pipe.
async fn splice(
    from: &TcpStream,
    to: &TcpStream,
    mut pipe: Pipe,
    count: &AtomicU64,
) -> io::Result<Step> {
    match from.try_io(Interest::READABLE, || pipe.fill(from)) {
        Ok(Moved::End) => return Ok(Step::Ended),
        Ok(Moved::Some) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::GoOn),
        Err(error) => return Err(error),
    }
    while pipe.holds() > 0 {
        match to.try_io(Interest::WRITABLE, || pipe.empty(to)) {
            Ok(moved) => {
                count.fetch_add(moved as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(Step::GoOn)
}

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
use tokio::sync::Notify;
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

/// The idle limit once one side has finished sending. A client that has gone away for good looks just like one that
/// only finished, and would hold both sockets at no cost of its own.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(300);

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
    /// One side broke off; true if it was the destination.
    Broken { destination: bool, error: io::Error },
    /// Whoever asked for the relay wanted it to end.
    Stopped(S),
}

/// Relays until both directions have ended, one side breaks, nothing passes for `idle`, or `stop` completes. `early`
/// has already been read from the client. With one direction ended, [`HALF_CLOSED_IDLE`] bounds `idle`. Unless both directions have ended, both sides are reset: a cut never looks
/// like an end.
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
    let cut = |cut: Cut, from_destination: bool| End::Broken {
        destination: from_destination == matches!(cut, Cut::Reading(_)),
        error: match cut {
            Cut::Reading(error) | Cut::Writing(error) => error,
        },
    };
    let half = Notify::new();
    let half_closed = async {
        half.notified().await;
        stalled(flow, idle.min(HALF_CLOSED_IDLE)).await;
    };
    let end = {
        let down = pour(&destination, &client, &flow.down);
        let both = pin!(async {
            tokio::try_join!(
                async {
                    up.await.map_err(|c| cut(c, false))?;
                    half.notify_one();
                    Ok(())
                },
                async {
                    down.await.map_err(|c| cut(c, true))?;
                    half.notify_one();
                    Ok(())
                },
            )
        });
        tokio::select! {
            ended = both => ended.map_or_else(|end| end, |_| End::Finished),
            why = stop => End::Stopped(why),
            () = stalled(flow, idle) => End::Idle,
            () = half_closed => End::Idle,
        }
    };
    if !matches!(end, End::Finished) {
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
async fn pour(from: &TcpStream, to: &TcpStream, count: &AtomicU64) -> Result<(), Cut> {
    let (mut ask, mut steps) = (READ_BYTES_MIN, 0);
    loop {
        from.readable().await.map_err(Cut::Reading)?;
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

/// Where a direction was cut off.
enum Cut {
    Reading(io::Error),
    Writing(io::Error),
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
) -> Result<Step, Cut> {
    let (read, rest) = match copy_now(from, to, *ask) {
        Ok(done) => done,
        Err(Cut::Reading(error)) if blocks(&error) => return Ok(Step::GoOn),
        Err(cut) => return Err(cut),
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
fn copy_now(from: &TcpStream, to: &TcpStream, ask: usize) -> Result<(usize, Vec<u8>), Cut> {
    thread_local! {
        static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES_MAX].into());
    }
    BUFFER.with_borrow_mut(|buffer| {
        let room = buffer.get_mut(..ask).unwrap_or_default();
        let read = from.try_read(room).map_err(Cut::Reading)?;
        let bytes = room.get(..read).unwrap_or_default();
        let written = match to.try_write(bytes) {
            Ok(written) => written,
            Err(error) if blocks(&error) => 0,
            Err(error) => return Err(Cut::Writing(error)),
        };
        Ok((read, bytes.get(written..).unwrap_or_default().to_vec()))
    })
}

async fn send_all(to: &TcpStream, mut bytes: &[u8], count: &AtomicU64) -> Result<(), Cut> {
    while !bytes.is_empty() {
        to.writable().await.map_err(Cut::Writing)?;
        match to.try_write(bytes) {
            Ok(written) => {
                count.fetch_add(written as u64, Ordering::Relaxed);
                bytes = bytes.get(written..).unwrap_or_default();
            }
            Err(error) if blocks(&error) => {}
            Err(error) => return Err(Cut::Writing(error)),
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
) -> Result<Step, Cut> {
    match from.try_io(Interest::READABLE, || pipe.fill(from)) {
        Ok(Moved::End) => return Ok(Step::Ended),
        Ok(Moved::Some) => {}
        Err(error) if blocks(&error) => return Ok(Step::GoOn),
        Err(error) => return Err(Cut::Reading(error)),
    }
    while pipe.holds() > 0 {
        match to.try_io(Interest::WRITABLE, || pipe.empty(to)) {
            Ok(moved) => {
                count.fetch_add(moved as u64, Ordering::Relaxed);
            }
            Err(error) if blocks(&error) => to.writable().await.map_err(Cut::Writing)?,
            Err(error) => return Err(Cut::Writing(error)),
        }
    }
    Ok(Step::GoOn)
}

fn blocks(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Both ends of a loopback connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = crate::socket::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = listener.local_addr().unwrap();
        let near = crate::socket::connect(at).await.unwrap();
        let (far, _) = loop {
            match listener.accept() {
                Ok(accepted) => break accepted,
                Err(_) => yield_now().await,
            }
        };
        far.set_nonblocking(true).unwrap();
        (near, TcpStream::from_std(far).unwrap())
    }

    struct Ends {
        client: TcpStream,
        destination: TcpStream,
        relay: tokio::task::JoinHandle<(End<&'static str>, (u64, u64))>,
    }

    async fn start(
        idle: Duration,
        stop: impl Future<Output = &'static str> + Send + 'static,
    ) -> Ends {
        let (client, from) = pair().await;
        let (to, destination) = pair().await;
        #[expect(clippy::disallowed_methods, reason = "a test")]
        let relay = tokio::spawn(async move {
            let flow = Flow::default();
            let end = relay((from, b"early"), to, &flow, idle, stop).await;
            (end, flow.get())
        });
        Ends {
            client,
            destination,
            relay,
        }
    }

    /// The same bytes on both sides; no period of a power of two, so that a lost or doubled block shows.
    fn noise(at: usize) -> u8 {
        (at % 251) as u8 ^ (at / 65_537) as u8
    }

    async fn send(mut to: impl tokio::io::AsyncWrite + Unpin, bytes: usize) {
        let mut at = 0;
        while at < bytes {
            let piece = 1 + (at * 7919) % 300_000;
            let block: Vec<u8> = (at..bytes.min(at + piece)).map(noise).collect();
            to.write_all(&block).await.unwrap();
            at += block.len();
        }
        to.shutdown().await.unwrap();
    }

    async fn receive(mut from: impl tokio::io::AsyncRead + Unpin, slow: bool) -> usize {
        let (mut block, mut at) = (vec![0; 100_003], 0);
        loop {
            let read = from.read(&mut block).await.unwrap();
            if read == 0 {
                return at;
            }
            assert!(
                (at..at + read).map(noise).eq(block[..read].iter().copied()),
                "near byte {at}"
            );
            at += read;
            if slow && at % 13 == 0 {
                sleep(Duration::from_millis(3)).await;
            }
        }
    }

    async fn both_ways(bytes: usize, slow: bool) {
        let mut ends = start(LONG, pending()).await;
        let mut early = [0; 5];
        ends.destination.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, b"early");
        let (from_client, to_client) = ends.client.split();
        let (from_destination, to_destination) = ends.destination.split();
        let (down, up, (), ()) = timeout(LONG, async {
            tokio::join!(
                receive(from_client, slow),
                receive(from_destination, slow),
                send(to_client, bytes),
                send(to_destination, bytes / 2),
            )
        })
        .await
        .expect("no stall");
        assert_eq!((up, down), (bytes, bytes / 2));
        let (end, counted) = ends.relay.await.unwrap();
        assert!(matches!(end, End::Finished), "{end:?}");
        assert_eq!(counted, (bytes as u64 + 5, bytes as u64 / 2));
    }

    #[tokio::test]
    async fn every_byte_arrives_both_ways_at_once() {
        for bytes in [
            0,
            1,
            16 * 1024,
            64 * 1024,
            64 * 1024 + 1,
            1_000_003,
            20_000_003,
        ] {
            both_ways(bytes, false).await;
        }
    }

    #[tokio::test]
    async fn slow_readers_lose_nothing() {
        both_ways(3_000_017, true).await;
    }

    #[tokio::test]
    async fn without_pipes_it_goes_on_by_copying() {
        let mut taken = Vec::new();
        while let Some(pipe) = Pipe::lend() {
            taken.push(pipe);
        }
        assert!(!taken.is_empty());
        both_ways(5_000_011, false).await;
        both_ways(1_000_003, true).await;
    }

    #[tokio::test]
    async fn an_end_of_sending_is_passed_on_and_the_other_way_goes_on() {
        let mut ends = start(LONG, pending()).await;
        ends.destination.write_all(b"banner").await.unwrap();
        ends.destination.shutdown().await.unwrap();
        let mut got = Vec::new();
        ends.client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"banner");
        ends.client.write_all(b" and more").await.unwrap();
        ends.client.shutdown().await.unwrap();
        got.clear();
        ends.destination.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"early and more");
        assert!(matches!(ends.relay.await.unwrap().0, End::Finished));
    }

    #[tokio::test]
    async fn a_reset_is_passed_on_as_a_reset() {
        for broken_by_destination in [true, false] {
            let Ends {
                client,
                destination,
                relay,
            } = start(LONG, pending()).await;
            let (broken, mut other) = if broken_by_destination {
                (destination, client)
            } else {
                (client, destination)
            };
            sleep(Duration::from_millis(20)).await;
            reset(&broken);
            drop(broken);
            let (end, _) = relay.await.unwrap();
            assert!(
                matches!(end, End::Broken { destination, .. } if destination == broken_by_destination),
                "{end:?}"
            );
            let mut rest = Vec::new();
            let error = other.read_to_end(&mut rest).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn silence_ends_it_and_a_trickle_does_not() {
        let mut ends = start(Duration::from_millis(240), pending()).await;
        for _ in 0..10 {
            sleep(Duration::from_millis(60)).await;
            ends.destination.write_all(b".").await.unwrap();
        }
        assert!(!ends.relay.is_finished());
        let (end, counted) = timeout(LONG, ends.relay).await.unwrap().unwrap();
        assert!(matches!(end, End::Idle), "{end:?}");
        assert_eq!(counted, (5, 10));
    }

    #[tokio::test]
    async fn who_has_gone_for_good_is_not_waited_for_as_long() {
        for client_goes in [true, false] {
            let Ends {
                client,
                destination,
                relay,
            } = start(60 * LONG, pending()).await;
            let (goes, mut stays) = if client_goes {
                (client, destination)
            } else {
                (destination, client)
            };
            if !client_goes {
                sleep(Duration::from_millis(50)).await; // the early bytes have arrived
                goes.try_read(&mut [0; 64]).unwrap();
            }
            drop(goes);
            let mut early = Vec::new();
            stays.read_to_end(&mut early).await.unwrap();
            tokio::time::pause();
            #[expect(clippy::disallowed_methods, reason = "a test, of virtual time")]
            let began = tokio::time::Instant::now();
            let (end, _) = relay.await.unwrap();
            assert!(matches!(end, End::Idle), "{end:?}");
            let waited = began.elapsed();
            assert!(
                waited > HALF_CLOSED_IDLE / 2 && waited < 2 * HALF_CLOSED_IDLE,
                "{waited:?}"
            );
            tokio::time::resume();
        }
    }

    #[tokio::test]
    async fn it_stops_when_asked_and_that_looks_like_no_end() {
        let mut ends = start(LONG, async {
            sleep(Duration::from_millis(50)).await;
            "reason"
        })
        .await;
        ends.destination.write_all(b"half an ans").await.unwrap();
        let mut got = Vec::new();
        let error = ends.client.read_to_end(&mut got).await.unwrap_err();
        assert_eq!(got, b"half an ans");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        got.clear();
        let error = ends.destination.read_to_end(&mut got).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(matches!(
            ends.relay.await.unwrap().0,
            End::Stopped("reason")
        ));
    }

    #[tokio::test]
    async fn a_dropped_pipe_with_bytes_in_it_is_not_lent_again() {
        let (mut near, far) = pair().await;
        near.write_all(b"secret of somebody").await.unwrap();
        far.readable().await.unwrap();
        let mut pipe = Pipe::lend().unwrap();
        far.try_io(Interest::READABLE, || pipe.fill(&far)).unwrap();
        assert_eq!(pipe.holds(), 18);
        drop(pipe);
        near.write_all(b"own").await.unwrap();
        far.readable().await.unwrap();
        let mut next = Pipe::lend().unwrap();
        far.try_io(Interest::READABLE, || next.fill(&far)).unwrap();
        far.try_io(Interest::WRITABLE, || next.empty(&far)).unwrap();
        let mut got = [0; 100];
        let read = near.read(&mut got).await.unwrap();
        assert_eq!(&got[..read], b"own");
    }

    #[tokio::test]
    #[ignore = "half a minute"]
    async fn a_hundred_mebibytes_three_hundred_times_never_stall() {
        let zeros = vec![0; 1 << 20];
        for round in 0..300 {
            let Ends {
                client,
                destination,
                relay,
            } = start(LONG, pending()).await;
            let (mut from, mut to) = if round % 2 == 0 {
                (client, destination)
            } else {
                (destination, client)
            };
            let sending = async {
                for _ in 0..100 {
                    from.write_all(&zeros).await.unwrap();
                }
                from.shutdown().await.unwrap();
            };
            let receiving = async {
                let (mut block, mut total) = (vec![0; 1 << 20], 0);
                loop {
                    match to.read(&mut block).await.unwrap() {
                        0 => break total,
                        read => total += read,
                    }
                }
            };
            let ((), total) = timeout(Duration::from_secs(30), async {
                tokio::join!(sending, receiving)
            })
            .await
            .expect("no stall");
            assert!(total >= 100 << 20);
            to.shutdown().await.unwrap();
            timeout(LONG, relay).await.expect("an end").unwrap();
        }
    }
}

//! Datagrams that are questions: received on one worker, each answered by a task of its own.
//!
//! So many may be waiting for their answers ([`WAITING_MAX`]); what arrives beyond is dropped, as a full network would
//! drop it, and counted. A question is no session: nobody waits for it when the house is drained.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::select;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::sleep;

use super::{BACK_OFF, BindError, Listener, Reception};
use crate::socket::datagram::{self, Datagram, Datagrams};
use crate::workers;

/// Questions of one socket without an answer yet.
const WAITING_MAX: usize = 1024;

/// A bound socket that nobody receives from yet.
pub struct BoundDatagrams {
    address: SocketAddr,
    socket: std::net::UdpSocket,
}

impl BoundDatagrams {
    /// Binds `address`.
    pub fn new(address: SocketAddr) -> Result<Self, BindError> {
        let socket = datagram::bind(address).map_err(|source| BindError::new(address, source))?;
        Ok(Self { address, socket })
    }

    /// Starts to receive on worker `seat`, which also runs `serve`. Longer datagrams than `bytes_max` are cut there.
    pub fn receive<F, S>(
        self,
        seat: usize,
        reception: &Reception,
        bytes_max: usize,
        serve: S,
    ) -> Listener
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(Datagram) -> F + Send + 'static,
    {
        let (stop, mut stopped) = oneshot::channel();
        let (address, metrics) = (self.address, Arc::clone(&reception.metrics));
        reception.crew.run_on(seat, async move {
            let Ok(socket) = Datagrams::new(self.socket).map(Arc::new) else {
                tracing::error!(%address, "the socket could not be registered; nothing is answered on it");
                return;
            };
            let waiting = Arc::new(Semaphore::new(WAITING_MAX));
            let mut buffer = vec![0; bytes_max];
            loop {
                let received = select! {
                    biased;
                    _ = &mut stopped => return,
                    received = socket.receive(&mut buffer) => received,
                };
                let datagram = match received {
                    Ok(datagram) => datagram,
                    Err(error) => {
                        tracing::debug!(%address, %error, "nothing received; trying again");
                        sleep(BACK_OFF).await;
                        continue;
                    }
                };
                let Ok(place) = Arc::clone(&waiting).try_acquire_owned() else {
                    metrics.questions.dropped.inc();
                    continue;
                };
                let task = serve(datagram);
                workers::spawn(async move {
                    task.await;
                    drop(place);
                });
            }
        });
        Listener {
            address,
            _stop: stop,
        }
    }
}

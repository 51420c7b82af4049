//! The thread `tollgate-certificates`: whatever has to be done about certificates and keys as time passes.
//!
//! It has a runtime of its own, so that no worker ever waits for a file, and a file never for traffic. Looking at files
//! happens beside the runtime: a volume that hangs holds up nothing else on it.

use std::future::pending;
use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::select;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::workers;

use super::{Keyring, Notice};

/// Between two looks at the files; a new pair is served after two that agree.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The running thread.
pub struct Keeper {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Looks after the certificates of `keyring`.
    pub fn start(keyring: Keyring) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let thread = workers::thread("tollgate-certificates", move || {
            runtime.block_on(async {
                select! {
                    () = watch(keyring.clone()) => {}
                    () = share(keyring) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it. What is served stays as it is.
    pub fn stop(self) {
        drop(self.stop);
        self.thread.join().ok(); // a panic there has been reported by its hook
    }
}

/// Takes part in what replicas share of the ticket keys.
async fn share(keyring: Keyring) {
    let Some(sharing) = keyring.sharing() else {
        return pending().await;
    };
    let mut failed = false;
    loop {
        let (handle, turning) = (Handle::current(), sharing.clone());
        let turned = spawn_blocking(move || handle.block_on(turning.turn())).await;
        let rest = match turned {
            Ok(Ok(rest)) => {
                if failed {
                    keyring.tell(Notice::keys_shared());
                }
                failed = false;
                rest
            }
            Ok(Err(error)) => {
                if !failed {
                    keyring.tell(Notice::keys_not_shared(&error));
                }
                failed = true;
                sharing.rest()
            }
            Err(_) => {
                tracing::error!("sharing the ticket keys ended in a panic; trying again");
                sharing.rest()
            }
        };
        sleep(rest).await;
    }
}

async fn watch(keyring: Keyring) {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let keyring = keyring.clone();
        if spawn_blocking(move || keyring.look()).await.is_err() {
            tracing::error!("a look at the certificate files ended in a panic; trying again");
        }
    }
}

//! What operators and orchestrators ask: health, readiness, metrics.
//!
//! It has a thread and a runtime of its own, so that a scrape never waits for traffic and traffic never for a scrape.
//! Readiness, though, is answered by the workers: each is asked to run a task, so that a stuck one shows. Loopback
//! only; there is nothing here that changes anything.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::audit::Journal;
use crate::telemetry::Metrics;
use crate::tls::Keyring;
use crate::workers::{self, Crew};

/// What readiness depends on.
pub struct Health {
    pub journal: Journal,
    pub keyring: Keyring,
    pub crew: Crew,
    pub metrics: Arc<Metrics>,
    /// Set when drain begins.
    pub draining: AtomicBool,
    /// Cleared while a configured fixed address is missing.
    pub fixed_present: AtomicBool,
}

/// The running admin listener.
pub struct Admin {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
const WORKER_TIMEOUT: Duration = Duration::from_secs(1);

impl Admin {
    /// Serves on an already bound socket.
    pub fn start(socket: std::net::TcpListener, health: Arc<Health>) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = workers::thread("tollgate-admin", move || {
            runtime.block_on(serve(socket, health, stopped));
            runtime.shutdown_background();
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it and whatever it serves.
    pub fn stop(self) {
        drop(self.stop);
        self.thread.join().ok(); // a panic there has been reported by its hook
    }
}

impl Health {
    /// `Err` says in one line why this process should get no traffic.
    pub async fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Acquire) {
            return Err("draining".to_owned());
        }
        if let Some(trouble) = self.journal.trouble() {
            return Err(trouble.as_str().to_owned());
        }
        if !self.fixed_present.load(Ordering::Acquire) {
            return Err("the fixed egress address is not on this machine".to_owned());
        }
        if let Some(names) = self.keyring.waiting() {
            return Err(format!(
                "there is no certificate yet for {names}; the log says what the certificate authority answers"
            ));
        }
        for seat in 0..self.crew.len() {
            let (answer, answered) = oneshot::channel();
            self.crew.run_on(seat, async move {
                answer.send(()).ok(); // the asker may have given up
            });
            if timeout(WORKER_TIMEOUT, answered).await.is_err() {
                return Err(format!("worker {seat} does not answer"));
            }
        }
        Ok(())
    }
}

async fn serve(
    socket: std::net::TcpListener,
    health: Arc<Health>,
    mut stop: oneshot::Receiver<()>,
) {
    let Ok(listener) = TcpListener::from_std(socket) else {
        tracing::error!("the admin listener could not be registered");
        return;
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = select! {
            _ = &mut stop => return,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let Ok(place) = place else {
            return;
        };
        let accepted = select! {
            _ = &mut stop => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let health = Arc::clone(&health);
        workers::spawn(async move {
            timeout(CONNECTION_TIMEOUT, connection(tcp, health))
                .await
                .ok(); // a scraper that lingers is cut
            drop(place);
        });
    }
}

async fn connection(tcp: TcpStream, health: Arc<Health>) {
    let service = service_fn(|request| {
        let health = Arc::clone(&health);
        async move { Ok::<_, Infallible>(answer(&request, &health).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(tcp), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "admin connection ended");
    }
}

async fn answer(request: &Request<Incoming>, health: &Health) -> Response<Full<Bytes>> {
    let plain = |status, text: String| reply(status, "text/plain; charset=utf-8", text);
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET is served here\n".to_owned(),
        );
    }
    match request.uri().path() {
        "/healthz" => plain(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match health.ready().await {
            Ok(()) => plain(StatusCode::OK, "ready\n".to_owned()),
            Err(why) => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {why}\n"),
            ),
        },
        "/metrics" => reply(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            health.metrics.render(),
        ),
        _ => plain(
            StatusCode::NOT_FOUND,
            "served here: /healthz, /readyz, /metrics\n".to_owned(),
        ),
    }
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

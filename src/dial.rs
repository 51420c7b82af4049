//! The only way out: a connection from the fixed address to an address that was judged, once its record is durable.
//!
//! [`dial`] demands both proofs. Neither can be made up:
//!
//! ```compile_fail
//! # async fn skip(checked: &tollgate::policy::address::Checked, source: &tollgate::socket::fixed::Source) {
//! let admitted = tollgate::audit::Admitted {};
//! let out = tollgate::dial::dial(&admitted, checked, source, std::time::Duration::ZERO).await;
//! # }
//! ```
//!
//! ```compile_fail
//! # async fn skip(admitted: &tollgate::audit::Admitted, source: &tollgate::socket::fixed::Source) {
//! let checked = tollgate::policy::address::Checked { addresses: vec![], port: 443 };
//! let out = tollgate::dial::dial(admitted, &checked, source, std::time::Duration::ZERO).await;
//! # }
//! ```
//!
//! With both it compiles:
//!
//! ```
//! # async fn both(admitted: &tollgate::audit::Admitted, checked: &tollgate::policy::address::Checked, source: &tollgate::socket::fixed::Source) {
//! let out = tollgate::dial::dial(admitted, checked, source, std::time::Duration::ZERO).await;
//! # }
//! ```
//!
//! Several addresses are tried as RFC 8305 describes: in their order, the next one when an attempt fails or has not
//! succeeded within a quarter of a second; the first to connect wins. Nothing here resolves or judges.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::audit::Admitted;
use crate::config::typed::Egress;
use crate::outcome::Refusal;
use crate::policy::address::{Checked, is_private};
use crate::record::Ends;
use crate::socket::fixed::{Failure, Source, Stage, is_here};
use crate::telemetry::Metrics;

/// Between the starts of two attempts (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// A connection from the fixed address.
#[derive(Debug)]
pub struct Dialled {
    pub stream: TcpStream,
    pub ends: Ends,
}

type Attempt<'a> = Pin<Box<dyn Future<Output = Result<TcpStream, Failure>> + Send + 'a>>;

/// Connects to one of the checked addresses, within `limit`.
pub async fn dial(
    admitted: &Admitted,
    checked: &Checked,
    source: &Source,
    limit: Duration,
) -> Result<Dialled, Refusal> {
    let stream = timeout(limit, race(checked, source))
        .await
        .map_err(|_| Refusal::DialTimeout)?
        .map_err(|failure| {
            tracing::debug!(id = %admitted.id(), stage = ?failure.stage, error = %failure.error, "dial failed");
            refusal(&failure)
        })?;
    let ends = stream
        .local_addr()
        .and_then(|local| Ok((local, stream.peer_addr()?)));
    let (local, remote) = ends.map_err(|_| Refusal::DialUnreachable)?;
    let ends = Ends { local, remote };
    Ok(Dialled { stream, ends })
}

/// Where the configuration lets connections leave from.
pub fn source(egress: &Egress) -> Source {
    Source {
        v4: egress.fixed_v4,
        v6: egress.fixed_v6,
        ports: egress.ports,
    }
}

/// How the outside sees connections, IPv4 and IPv6: as `advertised` says or, without a translation in between, from the
/// fixed address. A private one is seen by nobody outside and told to nobody.
pub fn seen_as(egress: &Egress) -> [Option<IpAddr>; 2] {
    let v4 = egress.advertised_v4.or(egress.fixed_v4).map(IpAddr::V4);
    let v6 = egress.advertised_v6.or(egress.fixed_v6).map(IpAddr::V6);
    [v4, v6].map(|seen| seen.filter(|seen| !is_private(*seen)))
}

/// Which configured fixed addresses, IPv4 and IPv6, are not on this machine; shows it in the metrics. Cheap: it binds and
/// closes.
pub fn missing(source: &Source, metrics: &Metrics) -> [bool; 2] {
    let fixed = [source.v4.map(IpAddr::V4), source.v6.map(IpAddr::V6)];
    let here = fixed.map(|address| address.map(is_here));
    for (here, gauge) in here.iter().zip(&metrics.fixed_address) {
        gauge.set(here.map_or(-1, i64::from));
    }
    here.map(|here| here == Some(false))
}

/// The first attempt that succeeds, or the failure that says most.
async fn race(checked: &Checked, source: &Source) -> Result<TcpStream, Failure> {
    let mut waiting = checked.addresses().iter();
    let mut running: Vec<Attempt<'_>> = Vec::new();
    let mut worst: Option<Failure> = None;
    loop {
        match waiting.next() {
            Some(address) => {
                let to = SocketAddr::new(*address, checked.port());
                running.push(Box::pin(source.connect(to)));
            }
            None if running.is_empty() => break,
            None => {}
        }
        tokio::select! {
            ended = next(&mut running) => match ended {
                Ok(stream) => return Ok(stream),
                Err(failure) => worst = Some(telling(worst, failure)),
            },
            () = sleep(STAGGER), if waiting.len() > 0 => {}
        }
    }
    Err(worst.unwrap_or_else(|| Failure {
        stage: Stage::Connect,
        error: io::ErrorKind::HostUnreachable.into(),
    }))
}

/// The next attempt that ends; at least one is running.
async fn next(running: &mut Vec<Attempt<'_>>) -> Result<TcpStream, Failure> {
    poll_fn(|context| {
        for at in 0..running.len() {
            if let Some(attempt) = running.get_mut(at)
                && let Poll::Ready(ended) = attempt.as_mut().poll(context)
            {
                drop(running.remove(at));
                return Poll::Ready(ended);
            }
        }
        Poll::Pending
    })
    .await
}

/// Our own faults tell more than the destination's, and of those the first tells most.
fn telling(known: Option<Failure>, new: Failure) -> Failure {
    use crate::outcome::Fault;
    match known {
        Some(known)
            if refusal(&known).fault() == Fault::Us || refusal(&new).fault() != Fault::Us =>
        {
            known
        }
        _ => new,
    }
}

fn refusal(failure: &Failure) -> Refusal {
    use io::ErrorKind::{
        AddrInUse, AddrNotAvailable, ConnectionRefused, ConnectionReset, TimedOut,
    };
    match (failure.stage, failure.error.kind()) {
        (Stage::Family, _) => Refusal::FamilyWithoutAddress,
        (Stage::Open, _) => Refusal::SessionLimit,
        (Stage::Bind, AddrInUse) | (Stage::Connect, AddrNotAvailable | AddrInUse) => {
            Refusal::PortsExhausted
        }
        (Stage::Bind | Stage::Verify, _) => Refusal::FixedAddressMissing,
        (Stage::Connect, ConnectionRefused | ConnectionReset) => Refusal::DialRefused,
        (Stage::Connect, TimedOut) => Refusal::DialTimeout,
        (Stage::Connect, _) => Refusal::DialUnreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Destination;
    use crate::policy::address::{Families, Own, check};
    use crate::policy::destination::Destinations;

    fn checked(addresses: &[&str], port: u16) -> Checked {
        let to = Destination::parse(&format!("db.example.com:{port}")).unwrap();
        let everywhere = ["0.0.0.0/0", "::/0"].map(|n| n.parse().unwrap());
        let allowed = Destinations::only("t", &to, &everywhere)
            .judge("t", to.clone())
            .unwrap();
        let found: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let families = Families { v4: true, v6: true };
        check(&allowed, &found, &Own::default(), families).unwrap()
    }

    fn from(v4: &str) -> Source {
        Source {
            v4: Some(v4.parse().unwrap()),
            v6: None,
            ports: None,
        }
    }

    #[tokio::test]
    async fn the_next_address_is_tried_when_one_refuses() {
        let listener = crate::socket::listen("127.0.0.2:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = race(
            &checked(&["127.0.0.3", "127.0.0.2"], port),
            &from("127.0.0.7"),
        )
        .await
        .unwrap();
        assert_eq!(
            stream.peer_addr().unwrap().to_string(),
            format!("127.0.0.2:{port}")
        );
        assert_eq!(stream.local_addr().unwrap().ip().to_string(), "127.0.0.7");
    }

    #[tokio::test]
    async fn an_address_that_is_silent_does_not_hold_up_the_next() {
        let silent =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let at: SocketAddr = "127.0.0.9:0".parse().unwrap();
        silent.bind(&at.into()).unwrap();
        silent.listen(0).unwrap();
        let full = silent.local_addr().unwrap().as_socket().unwrap();
        let mut held = Vec::new();
        while let Ok(Ok(tcp)) = timeout(STAGGER, crate::socket::connect(full)).await {
            held.push(tcp);
        }
        let good = SocketAddr::new("127.0.0.10".parse().unwrap(), full.port());
        let _listener = crate::socket::listen(good).unwrap();
        let began = crate::clock::now();
        let both = checked(&["127.0.0.9", "127.0.0.10"], full.port());
        let stream = race(&both, &from("127.0.0.7")).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(
            (STAGGER..20 * STAGGER).contains(&began.elapsed()),
            "{:?}",
            began.elapsed()
        );
    }

    #[tokio::test]
    async fn failures_say_what_is_the_matter() {
        let failure = race(&checked(&["127.0.0.3"], 9), &from("127.0.0.7"))
            .await
            .unwrap_err();
        assert_eq!(refusal(&failure), Refusal::DialRefused);
        let failure = race(&checked(&["127.0.0.3"], 9), &from("192.0.2.1"))
            .await
            .unwrap_err();
        assert_eq!(refusal(&failure), Refusal::FixedAddressMissing);
        let failure = race(&checked(&["::1"], 9), &from("127.0.0.7"))
            .await
            .unwrap_err();
        assert_eq!(refusal(&failure), Refusal::FamilyWithoutAddress);
    }

    #[test]
    fn the_step_decides_what_an_error_means() {
        let failure = |stage, kind: io::ErrorKind| Failure {
            stage,
            error: kind.into(),
        };
        let gone = failure(Stage::Bind, io::ErrorKind::AddrNotAvailable);
        let full = failure(Stage::Connect, io::ErrorKind::AddrNotAvailable);
        assert_eq!(refusal(&gone), Refusal::FixedAddressMissing);
        assert_eq!(refusal(&full), Refusal::PortsExhausted);
        let refused = failure(Stage::Connect, io::ErrorKind::ConnectionRefused);
        assert_eq!(
            refusal(&telling(Some(refused), gone)),
            Refusal::FixedAddressMissing
        );
    }

    #[test]
    fn presence_shows_in_the_metrics() {
        let metrics = Metrics::new();
        assert_eq!(missing(&from("127.0.0.7"), &metrics), [false; 2]);
        assert_eq!(
            (
                metrics.fixed_address[0].get(),
                metrics.fixed_address[1].get()
            ),
            (1, -1)
        );
        assert_eq!(missing(&from("192.0.2.1"), &metrics), [true, false]);
        assert_eq!(metrics.fixed_address[0].get(), 0);
    }
}

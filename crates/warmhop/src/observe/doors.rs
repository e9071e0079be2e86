//! What a peer's doors have open, and the TLS handshakes that failed there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tracing::info;

use crate::identity::FrontDoorTls;
use crate::identity::handshake::HandshakeFailure;

/// The doors for clients.
pub(crate) const FRONT: &str = "front";
/// The door for other peers.
pub(crate) const MESH: &str = "mesh";

/// One kind of failure at the front doors is logged at most this often: a client that fails may
/// come back at once.
const LOG_EVERY: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByDoor {
    door: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByFailure {
    door: &'static str,
    reason: &'static str,
}

/// When each failure was last logged, and how often it has happened since.
type Logged = [(Option<Instant>, u64); HandshakeFailure::ALL.len()];

/// What a peer's doors count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doors {
    connections: Family<ByDoor, Gauge>,
    tls_failures: Family<ByFailure, Counter>,
    logged: Arc<Mutex<Logged>>,
    /// The front doors' certificates.
    certificates: Arc<Mutex<Vec<FrontDoorTls>>>,
}

impl Doors {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let doors = Self::default();
        registry.register(
            "connections",
            "Connections that are open, by the door that they came in by",
            doors.connections.clone(),
        );
        registry.register(
            "tls_failures",
            "TLS handshakes that others began at a door and that failed, by the reason",
            doors.tls_failures.clone(),
        );
        doors
    }

    /// Adds a front door's certificate.
    pub(crate) fn proves_itself_by(&self, tls: FrontDoorTls) {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).push(tls);
    }

    /// When the first of the front doors' certificates ends, if that is known.
    pub(crate) fn certificate_ends(&self) -> Option<SystemTime> {
        let certificates = self.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        certificates.iter().filter_map(FrontDoorTls::expires).min()
    }

    /// Begins the series of a TLS door at 0: otherwise its first failure would be no increase.
    pub(crate) fn begin_tls(&self, door: &'static str) {
        for failure in HandshakeFailure::ALL {
            let _ = self.tls_failures.get_or_create(&ByFailure { door, reason: failure.label() });
        }
    }

    /// The gauge of a door's connections, for code that counts them itself.
    pub(crate) fn connections(&self, door: &'static str) -> Gauge {
        self.connections.get_or_create(&ByDoor { door }).clone()
    }

    /// Counts a handshake that failed.
    pub(crate) fn tls_failed(&self, door: &'static str, failure: HandshakeFailure) {
        self.tls_failures.get_or_create(&ByFailure { door, reason: failure.label() }).inc();
    }

    /// Counts a handshake that failed at a front door, and logs it if the operator may have
    /// something to mend.
    pub(crate) fn front_failed(&self, failure: HandshakeFailure) {
        self.tls_failed(FRONT, failure);
        let Some(what) = failure.at_front_door() else { return };
        let times = {
            let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
            let (at, times) = &mut logged[failure as usize];
            *times += 1;
            if at.is_some_and(|at| at.elapsed() < LOG_EVERY) {
                return;
            }
            *at = Some(Instant::now());
            std::mem::take(times)
        };
        info!(reason = failure.label(), times, "{what}");
    }
}

/// A connection that is counted until this is dropped.
#[derive(Debug)]
pub struct Connected(Gauge);

impl Connected {
    pub(crate) fn at(door: &Gauge) -> Self {
        door.inc();
        Self(door.clone())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}

//! A mesh as one request meets it.

use std::time::Duration;

use warmhop_core::config::AppPolicy;
use warmhop_core::ids::PeerId;
use warmhop_core::route::*;
use warmhop_core::view::AppState;

pub(crate) const STATES: [AppState; 6] = [
    AppState::Cold,
    AppState::Starting,
    AppState::Ready,
    AppState::Stopping,
    AppState::Failed,
    AppState::Paused,
];

pub(crate) fn peer(name: &str) -> PeerId {
    PeerId::new(name).unwrap()
}

pub(crate) fn peers(n: usize) -> Vec<PeerId> {
    (0..n).map(|i| peer(&format!("p{i}"))).collect()
}

/// A ready, near, idle candidate.
pub(crate) fn ready(peer: &PeerId) -> Candidate<'_> {
    Candidate {
        peer,
        state: AppState::Ready,
        same_zone: true,
        in_flight: 0,
        ours: 0,
        latency_us: Some(300),
        age: Duration::from_millis(5),
        load_age: Some(Duration::from_millis(5)),
        suspect: false,
        draining: false,
        eta: None,
        version: None,
        shut: false,
        is_first: false,
    }
}

pub(crate) fn starting(peer: &PeerId, eta_ms: u64) -> Candidate<'_> {
    Candidate { state: AppState::Starting, eta: Some(Duration::from_millis(eta_ms)), ..ready(peer) }
}

/// A request at the front door of a peer where the app is cold.
pub(crate) fn question<'a>(app: &'a AppPolicy, candidates: &'a [Candidate<'a>]) -> Question<'a> {
    Question {
        app,
        local: LocalApp { eta: None, ..local(AppState::Cold) },
        draining: false,
        zone: Some("a"),
        candidates,
        arrived: Arrived::AtFrontDoor,
        affinity: None,
        tried: &[],
        attempt_budget: ATTEMPTS_MAX,
        waited: Duration::ZERO,
        queued: Queued::default(),
        never_wakes: false,
        failed_starts: 0,
        failed_elsewhere: 0,
        versions: Versions::default(),
        dice: 0,
    }
}

pub(crate) fn local(state: AppState) -> LocalApp {
    LocalApp {
        state,
        in_flight: 0,
        eta: Some(Duration::from_millis(1500)),
        waiting: 0,
        awaiting: 0,
        latency_us: 0,
        starts_in: None,
        shut: false,
    }
}

//! Why a request cannot be placed, and after how long its client may ask again.

use core::time::Duration;

use super::RETRY_AFTER_MAX;
use crate::ids::PeerId;
use crate::problem::ProblemKind;
use crate::view::AppState;

/// Why a request cannot be placed. Every cause is temporary, so each is 503 (RFC 9110 section
/// 15.6.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It was sent here by a hop, and the app is not ready here: its entry peer knows more.
    NotReadyHere {
        /// The app's state here.
        state: AppState,
        /// How long until it should be ready, or a start would take.
        retry_after: Duration,
    },
    /// This peer is leaving, and no other has the app ready or starting.
    Draining,
    /// The app is ready nowhere, and the request must not start it.
    NotWoken {
        /// How long until the first copy should be ready, or a start would take.
        retry_after: Duration,
    },
    /// Operators hold the app down on every peer: no wait ends that.
    Paused {
        /// How long until it is worth asking again.
        retry_after: Duration,
    },
    /// The app does not start here, and no other peer has it ready or starting.
    StartFailed {
        /// How long until the next start should be ready.
        retry_after: Duration,
    },
    /// This peer may not start the app, and it does not start where it may.
    FailsElsewhere {
        /// An operator holds it down here; otherwise it never runs here.
        paused: bool,
        /// How long until the next start there should be ready.
        retry_after: Duration,
    },
    /// As many requests wait as are allowed.
    WaitFull {
        /// How many that is.
        waiting_max: usize,
        /// How long until the first copy should be ready.
        retry_after: Duration,
    },
    /// It waited as long as it may.
    WaitedTooLong {
        /// How long it may wait.
        max_wait: Duration,
        /// How long until the first copy should be ready.
        retry_after: Duration,
    },
    /// Every copy is busy, and as many requests wait for a place as are allowed.
    QueueFull {
        /// How many that is.
        waiting_max: usize,
        /// How long those before it should take.
        retry_after: Duration,
    },
    /// It waited for a place as long as it may.
    BusyTooLong {
        /// How long it may wait.
        max_wait: Duration,
        /// How long the requests that still wait should take.
        retry_after: Duration,
        /// There are free places, but its client has used its share of them.
        held_back: bool,
    },
    /// The peers that it was sent to refused it or could not be reached, and no copy is starting.
    NobodyAnswered {
        /// How many.
        tried: usize,
    },
    /// The peer that holds the session in its memory is alive but could not be reached. Another
    /// peer would replace a session that still exists with a new one.
    PinnedPeerUnreachable {
        /// That peer.
        peer: PeerId,
    },
}

impl Refusal {
    /// The problem that its client gets.
    #[must_use]
    pub fn problem(&self) -> ProblemKind {
        match self {
            Self::NotReadyHere { .. } => ProblemKind::NotReadyHere,
            Self::Draining => ProblemKind::Draining,
            Self::NotWoken { .. } => ProblemKind::NotWoken,
            Self::Paused { .. } => ProblemKind::Paused,
            Self::StartFailed { .. } | Self::FailsElsewhere { .. } => ProblemKind::StartFailed,
            Self::WaitFull { .. } => ProblemKind::WaitFull,
            Self::WaitedTooLong { .. } => ProblemKind::WaitedTooLong,
            Self::QueueFull { .. } => ProblemKind::QueueFull,
            Self::BusyTooLong { .. } => ProblemKind::BusyTooLong,
            Self::NobodyAnswered { .. } => ProblemKind::NobodyAnswered,
            Self::PinnedPeerUnreachable { .. } => ProblemKind::PinnedPeerUnreachable,
        }
    }

    /// The value of `Retry-After` in whole seconds, rounded up: 1 to 120.
    #[must_use]
    pub fn retry_after_s(&self) -> u64 {
        let wait = match self {
            Self::NotReadyHere { retry_after, .. }
            | Self::NotWoken { retry_after }
            | Self::Paused { retry_after }
            | Self::StartFailed { retry_after }
            | Self::FailsElsewhere { retry_after, .. }
            | Self::WaitFull { retry_after, .. }
            | Self::QueueFull { retry_after, .. }
            | Self::BusyTooLong { retry_after, .. }
            | Self::WaitedTooLong { retry_after, .. } => *retry_after,
            Self::Draining | Self::NobodyAnswered { .. } | Self::PinnedPeerUnreachable { .. } => {
                Duration::ZERO
            }
        };
        let wait = wait.min(RETRY_AFTER_MAX);
        (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
    }

    /// The label of its counter.
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.problem().name()
    }
}

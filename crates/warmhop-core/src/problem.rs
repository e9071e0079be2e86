//! Every way in which a request ends without an app's answer: its name, its HTTP status, its
//! `Proxy-Status` error type, and whether the request may have been applied.
//!
//! The table is in `ProblemKind::row`. `docs/problems.md` shows it to users. A problem has the same
//! name, status and error type wherever it arose: a peer that refuses a hop sends its name and
//! status ([`ProblemKind::received`]), and the entry peer gives its client the rest.

/// Whether a request that ended with a problem was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Applied {
    /// It changed nothing. Sending it again is safe.
    No,
    /// An app may have received it, or part of it.
    Maybe,
    /// It was applied; only its answer is missing.
    Yes,
}

/// Why a request ended without an app's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The target is neither a path nor a whole URI.
    BadTarget,
    /// `Host` is missing, doubled or invalid.
    BadHost,
    /// `Idempotency-Key` is malformed.
    BadIdempotencyKey,
    /// The body ended before its length, or is malformed.
    BodyCutOff,
    /// The body, or its reader, was too slow.
    BodyTooSlow,
    /// TRACE is not supported.
    NoTrace,
    /// CONNECT is not supported.
    NoConnect,
    /// The app opened no WebSocket for an extended CONNECT.
    NoWebSocket,
    /// No app matches the request.
    UnknownApp,
    /// A browser is shown the starting page.
    Starting,
    /// The app is not ready at the peer that a hop reached.
    NotReadyHere,
    /// This peer drains, and the app is ready nowhere else.
    Draining,
    /// The app is ready nowhere, and this request does not start it.
    NotWoken,
    /// Operators hold the app down on every peer.
    Paused,
    /// The app does not start.
    StartFailed,
    /// As many requests wait for the app's start as are allowed.
    WaitFull,
    /// It waited for the app's start as long as it may.
    WaitedTooLong,
    /// As many requests wait for a place of the app as are allowed.
    QueueFull,
    /// It waited for a place of the app as long as it may.
    BusyTooLong,
    /// None of the tried peers took it.
    NobodyAnswered,
    /// The peer that holds the pinned session could not be reached.
    PinnedPeerUnreachable,
    /// No peer took it after several attempts.
    NoProgress,
    /// A peer refused the hop, and the body cannot be sent again.
    HopRefused,
    /// A peer could not be reached, and the body cannot be sent again.
    HopUnreachable,
    /// The app took the request and failed.
    AppFailed,
    /// The app took the request and did not answer in time.
    AppTooSlow,
    /// The request was interrupted when an app may already have had it.
    OutcomeUnknown,
    /// The request may have been applied so long ago that its outcome is forgotten.
    OutcomeForgotten,
    /// The key's first request was interrupted, and its outcome is unknown.
    KeyOutcomeUnknown,
    /// The key was used with another request.
    KeyReused,
    /// The key's first request is under way.
    KeyInUse,
    /// It was applied before, and the answer was too large to be kept, or made room for later ones.
    AppliedTooLargeToRepeat,
    /// It was applied, and the answer was lost.
    AppliedAnswerLost,
    /// The session's request failed at its executor.
    ExecutionFailed,
    /// Too many requests of the session wait.
    SessionQueueFull,
    /// No majority of the session's members could be reached.
    SessionNoMajority,
    /// Too many of the session's members are gone.
    SessionLost,
    /// The session's id is no longer valid.
    SessionEnded,
    /// No peer could execute it for the session.
    SessionNoExecutor,
    /// The memory for sessions is full.
    SessionMemoryFull,
    /// The app set a session larger than the mesh carries.
    SessionTooLarge,
    /// The app's server refused the field that carries the session.
    SessionFieldRefused,
    /// This peer holds as many sessions as it may.
    TooManySessions,
    /// No session has this key.
    Absent,
    /// A problem that another peer named and that this version does not know.
    Newer {
        /// The status from the other peer: 400 to 599.
        status: u16,
    },
}

/// A line of the table.
struct Row {
    name: &'static str,
    status: u16,
    proxy_error: &'static str,
    applied: Applied,
}

const fn row(name: &'static str, status: u16, proxy_error: &'static str, applied: Applied) -> Row {
    Row { name, status, proxy_error, applied }
}

// Error types of RFC 9209 section 2.3.
const UNAVAILABLE: &str = "destination_unavailable";
const NOT_FOUND: &str = "destination_not_found";
const LIMIT: &str = "connection_limit_reached";
const TERMINATED: &str = "connection_terminated";
const BAD_REQUEST: &str = "http_request_error";
const DENIED: &str = "http_request_denied";
const TIMEOUT: &str = "http_response_timeout";
const INCOMPLETE: &str = "http_response_incomplete";
const HEADER_SIZE: &str = "http_response_header_size";
const UPGRADE_FAILED: &str = "http_upgrade_failed";

impl ProblemKind {
    /// Every kind that this version knows, in the order of the documentation.
    pub const ALL: [Self; 44] = [
        Self::BadTarget,
        Self::BadHost,
        Self::BadIdempotencyKey,
        Self::BodyCutOff,
        Self::BodyTooSlow,
        Self::NoTrace,
        Self::NoConnect,
        Self::NoWebSocket,
        Self::UnknownApp,
        Self::Starting,
        Self::NotReadyHere,
        Self::Draining,
        Self::NotWoken,
        Self::Paused,
        Self::StartFailed,
        Self::WaitFull,
        Self::WaitedTooLong,
        Self::QueueFull,
        Self::BusyTooLong,
        Self::NobodyAnswered,
        Self::PinnedPeerUnreachable,
        Self::NoProgress,
        Self::HopRefused,
        Self::HopUnreachable,
        Self::AppFailed,
        Self::AppTooSlow,
        Self::OutcomeUnknown,
        Self::OutcomeForgotten,
        Self::KeyOutcomeUnknown,
        Self::KeyReused,
        Self::KeyInUse,
        Self::AppliedTooLargeToRepeat,
        Self::AppliedAnswerLost,
        Self::ExecutionFailed,
        Self::SessionQueueFull,
        Self::SessionNoMajority,
        Self::SessionLost,
        Self::SessionEnded,
        Self::SessionNoExecutor,
        Self::SessionMemoryFull,
        Self::SessionTooLarge,
        Self::SessionFieldRefused,
        Self::TooManySessions,
        Self::Absent,
    ];

    fn row(self) -> Row {
        use Applied::{Maybe, No, Yes};
        match self {
            Self::BadTarget => row("bad-target", 400, BAD_REQUEST, No),
            Self::BadHost => row("bad-host", 400, BAD_REQUEST, No),
            Self::BadIdempotencyKey => row("idempotency-key", 400, BAD_REQUEST, No),
            Self::BodyCutOff => row("body-cut-off", 400, BAD_REQUEST, Maybe),
            Self::BodyTooSlow => row("body-too-slow", 408, BAD_REQUEST, Maybe),
            Self::NoTrace => row("no-trace", 501, DENIED, No),
            Self::NoConnect => row("no-connect", 501, DENIED, No),
            Self::NoWebSocket => row("no-websocket", 501, UPGRADE_FAILED, Maybe),
            Self::UnknownApp => row("unknown-app", 404, NOT_FOUND, No),
            Self::Starting => row("starting", 503, UNAVAILABLE, No),
            Self::NotReadyHere => row("not_ready_here", 503, UNAVAILABLE, No),
            Self::Draining => row("draining", 503, UNAVAILABLE, No),
            Self::NotWoken => row("not_woken", 503, UNAVAILABLE, No),
            Self::Paused => row("paused", 503, UNAVAILABLE, No),
            Self::StartFailed => row("start_failed", 503, UNAVAILABLE, No),
            Self::WaitFull => row("wait_full", 503, LIMIT, No),
            Self::WaitedTooLong => row("waited_too_long", 503, UNAVAILABLE, No),
            Self::QueueFull => row("queue_full", 503, LIMIT, No),
            Self::BusyTooLong => row("busy_too_long", 503, LIMIT, No),
            Self::NobodyAnswered => row("nobody_answered", 503, UNAVAILABLE, No),
            Self::PinnedPeerUnreachable => row("pinned_peer_unreachable", 503, UNAVAILABLE, No),
            Self::NoProgress => row("no-progress", 503, UNAVAILABLE, No),
            Self::HopRefused => row("hop-refused", 502, UNAVAILABLE, No),
            Self::HopUnreachable => row("hop-unreachable", 502, UNAVAILABLE, No),
            Self::AppFailed => row("app-failed", 502, TERMINATED, Maybe),
            Self::AppTooSlow => row("app-too-slow", 504, TIMEOUT, Maybe),
            Self::OutcomeUnknown => row("outcome-unknown", 502, TERMINATED, Maybe),
            Self::OutcomeForgotten => row("outcome-unknown", 409, DENIED, Maybe),
            Self::KeyOutcomeUnknown => row("idempotency-key-outcome-unknown", 409, DENIED, Maybe),
            Self::KeyReused => row("idempotency-key-reused", 422, DENIED, No),
            Self::KeyInUse => row("idempotency-key-in-use", 409, DENIED, No),
            Self::AppliedTooLargeToRepeat => row("applied-too-large-to-repeat", 409, DENIED, Yes),
            Self::AppliedAnswerLost => row("applied-answer-lost", 502, TERMINATED, Yes),
            Self::ExecutionFailed => row("execution-failed", 502, TERMINATED, Maybe),
            Self::SessionQueueFull => row("session-queue-full", 503, UNAVAILABLE, No),
            Self::SessionNoMajority => row("session-no-majority", 503, UNAVAILABLE, No),
            Self::SessionLost => row("session-lost", 503, UNAVAILABLE, No),
            Self::SessionEnded => row("session-ended", 409, DENIED, No),
            Self::SessionNoExecutor => row("session-no-executor", 503, UNAVAILABLE, No),
            Self::SessionMemoryFull => row("session-memory-full", 503, UNAVAILABLE, No),
            Self::SessionTooLarge => row("session-too-large", 502, HEADER_SIZE, Maybe),
            Self::SessionFieldRefused => row("session-field-refused", 502, INCOMPLETE, No),
            Self::TooManySessions => row("too-many-sessions", 503, UNAVAILABLE, No),
            Self::Absent => row("absent", 404, DENIED, No),
            Self::Newer { status } if status < 500 => row("at-owner", status, DENIED, Maybe),
            Self::Newer { status } => row("at-owner", status, UNAVAILABLE, Maybe),
        }
    }

    /// The stable name. A client sees it in the type `urn:warmhop:NAME`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> u16 {
        self.row().status
    }

    /// The error type for `Proxy-Status` (RFC 9209 section 2.3).
    #[must_use]
    pub fn proxy_error(self) -> &'static str {
        self.row().proxy_error
    }

    /// Whether the request was applied.
    #[must_use]
    pub fn applied(self) -> Applied {
        self.row().applied
    }

    /// The kind that a client is shown if an earlier attempt of its request may have been applied: most
    /// problems say that nothing was done, and a client that reads this sends the request again under
    /// another key, or under none.
    #[must_use]
    pub fn after_an_attempt(self) -> Self {
        match self {
            // A session that does not exist, or is gone, has no change of the first attempt either.
            Self::Absent | Self::SessionLost => self,
            // Another request was applied under its key, and this one will never be.
            Self::KeyReused => self,
            // What its status says was meant for another case.
            Self::Newer { .. } => Self::OutcomeUnknown,
            kind if kind.applied() != Applied::No => kind,
            _ => Self::OutcomeUnknown,
        }
    }

    /// The kind that another peer sent as a name and a status. The status decides only between
    /// kinds of one name. A name that this version does not know keeps its status, and whether its
    /// request was applied is then unknown.
    #[must_use]
    pub fn received(name: &str, status: u16) -> Self {
        let of_name = || Self::ALL.into_iter().filter(|kind| kind.name() == name);
        let known = of_name().find(|kind| kind.status() == status).or_else(|| of_name().next());
        known.unwrap_or(Self::Newer {
            status: if (400..600).contains(&status) { status } else { 502 },
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_message_is_received_as_it_was_sent() {
        let sent = ProblemKind::ALL
            .into_iter()
            .chain([404, 503].map(|status| ProblemKind::Newer { status }));
        for kind in sent {
            assert_eq!(ProblemKind::received(kind.name(), kind.status()), kind);
        }
    }

    #[test]
    fn a_name_of_a_newer_peer_keeps_its_status_and_says_nothing_of_what_was_applied() {
        for (sent, status) in [(429, 429), (503, 503), (0, 502), (200, 502), (999, 502)] {
            let kind = ProblemKind::received("of-tomorrow", sent);
            assert_eq!((kind.name(), kind.status()), ("at-owner", status));
            assert_eq!(kind.applied(), Applied::Maybe);
        }
        // A known name counts, whatever status an older peer gave it.
        assert_eq!(ProblemKind::received("session-lost", 500), ProblemKind::SessionLost);
    }

    #[test]
    fn each_kind_is_listed_once_and_no_two_have_the_same_name() {
        let kinds: BTreeSet<_> =
            ProblemKind::ALL.iter().map(|kind| (kind.name(), kind.status())).collect();
        assert_eq!(kinds.len(), ProblemKind::ALL.len());
        for kind in ProblemKind::ALL {
            assert!((400..600).contains(&kind.status()), "{kind:?}");
        }
    }
}

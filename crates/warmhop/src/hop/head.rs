//! The heads of a hop's request and reply in their wire format.

use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use warmhop_core::ids::{AppName, Ballot, Incarnation, RequestKey, SessionId};
use warmhop_core::problem::ProblemKind;
use warmhop_core::session::message::{Config, Exec, ExecDone};
use warmhop_core::version::AppVersion;
use warmhop_core::view::News;

use crate::hop::field_block::FieldBlock;

/// The largest head of a hop in bytes, the session's inline base included.
pub(crate) const HEAD_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Among the fields of a hop's request: the entry peer takes [`ReplyHead::Interim`], and its client
/// can get interim responses. No client can send it, and no app sees it.
pub(crate) const INTERIM: HeaderName = HeaderName::from_static("warmhop-interim");

/// What a hop asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum HopKind {
    /// Serve it. The mesh keeps no session for it.
    Plain,
    /// No request to serve: start the app, which the asking peer may not start.
    Wake,
    /// Execute it for a session that another peer owns.
    Exec { sid: SessionId, exec: Exec },
    /// The receiver owns its session: do everything that an entry peer does.
    Forward(Forward),
    /// For a service that peers offer to each other, not for an app. The service's name replaces
    /// the app's.
    Service,
    /// Forward it to the copy on another peer, which holds its session and which the entry peer
    /// does not hear.
    Onward { to: Incarnation },
}

/// A request on its way to its session's owner.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Forward {
    pub(crate) sid: SessionId,
    /// The members in the client's token; absent if a key names the session.
    pub(crate) cfg: Option<Config>,
    pub(crate) owner: Incarnation,
    pub(crate) n: u64,
    pub(crate) rid: RequestKey,
    pub(crate) fingerprint: u64,
    pub(crate) keyed: bool,
    pub(crate) seen: Option<u64>,
    /// Distinguishes the request from its client's repeats. Drawn anew once an app may have seen it.
    pub(crate) attempt: u64,
    /// How many more peers it may be forwarded to.
    pub(crate) hops_left: u8,
    /// The newest version of the app that has served the session, according to the client's token.
    pub(crate) version: Option<AppVersion>,
    /// The entry peer wants to own the session after this request.
    pub(crate) hand_off: Option<Incarnation>,
    /// The entry peer does not hear the session's owner, or too few of its members: find the
    /// session, or take it over.
    pub(crate) relay: Option<Relay>,
}

/// A request for which another peer should find the session.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Relay {
    /// The peer that asks.
    pub(crate) by: Incarnation,
    /// Whether the request creates the session if there is none.
    pub(crate) begins: bool,
}

/// The head of a hop.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HopHead {
    pub(crate) kind: HopKind,
    pub(crate) app: AppName,
    pub(crate) request_id: String,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) fields: FieldBlock,
    /// The protocol that the client asks to upgrade to.
    pub(crate) upgrade: Option<Vec<u8>>,
    /// The body is a stream, which cannot be sent twice: it waits for [`ReplyHead::Go`]. With a
    /// field `Expect` it waits for a second one, which comes when the app asks for the body.
    pub(crate) asks_go: bool,
    /// The copy there must not be older than this version, which it had by its last news.
    pub(crate) counts_on: Option<AppVersion>,
}

/// The load of an app on the peer that replies, for the next choice among peers.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) in_flight: u32,
    pub(crate) latency_us: u32,
}

/// The version of the app that answered, which is not sent to clients.
#[derive(Debug, Clone)]
pub(crate) struct OfVersion(pub(crate) AppVersion);

/// What the client's token should say about its session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hint {
    /// Differs from the request's if that one was renewed.
    pub(crate) sid: SessionId,
    pub(crate) cfg: Config,
    pub(crate) owner: Incarnation,
    pub(crate) n: u64,
}

/// The session's part of a reply.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ReplySession {
    None,
    /// The outcome of an execution.
    Done(ExecDone),
    /// The owner committed it: the contents for the client's token.
    Committed {
        hint: Hint,
        replayed: bool,
    },
    /// The owner committed it, and the client's session is to be removed.
    Cleared {
        replayed: bool,
    },
}

/// Why a hop was refused. No app has seen the request, except with [`AppFailed`](Self::AppFailed),
/// [`TooSlow`](Self::TooSlow), [`Problem`](Self::Problem) and [`Deposed`](Self::Deposed).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum HopRefusal {
    /// The app is not ready here: the view of the peer that asked was stale.
    NotReady,
    /// There is no such app here.
    UnknownApp,
    /// The executor cannot run on that base, or may not vote.
    Exec(ExecDone),
    /// This peer does not own the session.
    NotOwner { claim: Option<Ballot>, cfg: Option<Config> },
    /// A problem for the client, decided by the owner.
    Problem(SentProblem),
    /// The app took the request and failed before it answered.
    AppFailed { detail: String },
    /// The app took the request and did not answer in time.
    TooSlow { detail: String },
    /// Every place of the copy here is taken: no app has seen the request.
    Busy,
    /// The copy here is older than the request requires; this peer's news of it is included. No app
    /// has seen the request.
    Older(Box<News>),
    /// The head was malformed.
    Malformed,
    /// Too many of the session's holders are gone for good. If one of them continues it as another
    /// session: that session and that holder.
    Lost { went_on: Option<(SessionId, Incarnation)> },
    /// Another peer took the session over while the request ran. The claim of the likely owner, which
    /// knows whether the request was applied.
    Deposed { to: Option<Ballot>, n: u64 },
    /// The session's id is no longer valid.
    Ended,
}

/// A problem for a client, on its way to the client's entry peer: a status, a name, a detail, and
/// after how many milliseconds the client may ask again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "(u16, String, String, Option<u64>)", into = "(u16, String, String, Option<u64>)")]
pub(crate) struct SentProblem {
    pub(crate) kind: ProblemKind,
    pub(crate) detail: String,
    pub(crate) retry_after: Option<Duration>,
}

impl From<(u16, String, String, Option<u64>)> for SentProblem {
    fn from((status, name, detail, millis): (u16, String, String, Option<u64>)) -> Self {
        let kind = ProblemKind::received(&name, status);
        Self { kind, detail, retry_after: millis.map(Duration::from_millis) }
    }
}

impl From<SentProblem> for (u16, String, String, Option<u64>) {
    fn from(sent: SentProblem) -> Self {
        let SentProblem { kind, detail, retry_after } = sent;
        let millis = retry_after.map(|it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX));
        (kind.status(), kind.name().to_owned(), detail, millis)
    }
}

impl HopKind {
    /// Its name in traces and logs.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Plain => "serve it",
            Self::Wake => "start the app",
            Self::Exec { .. } => "execute it for its session's owner",
            Self::Forward(_) => "own its session",
            Self::Service => "answer as a peer",
            Self::Onward { .. } => "send it on",
        }
    }
}

impl HopRefusal {
    /// Every name.
    pub(crate) const LABELS: [&str; 13] = [
        "not-ready",
        "unknown-app",
        "session-base-or-vote",
        "not-owner",
        "problem",
        "app-failed",
        "too-slow",
        "busy",
        "older-version",
        "malformed",
        "session-lost",
        "deposed",
        "session-ended",
    ];

    /// Whether the client gets an error, as far as this peer knows: most refusals only have the entry
    /// peer ask another one.
    pub(crate) fn fails(&self) -> bool {
        matches!(
            self,
            Self::Problem(_) | Self::AppFailed { .. } | Self::TooSlow { .. } | Self::Deposed { .. }
        )
    }

    /// What happened, for the log.
    pub(crate) fn detail(&self) -> Option<&str> {
        match self {
            Self::Problem(SentProblem { detail, .. })
            | Self::AppFailed { detail }
            | Self::TooSlow { detail } => Some(detail),
            _ => None,
        }
    }

    /// A stable name for counters and traces.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::NotReady => "not-ready",
            Self::UnknownApp => "unknown-app",
            Self::Exec(_) => "session-base-or-vote",
            Self::NotOwner { .. } => "not-owner",
            Self::Problem(_) => "problem",
            Self::AppFailed { .. } => "app-failed",
            Self::TooSlow { .. } => "too-slow",
            Self::Busy => "busy",
            Self::Older(_) => "older-version",
            Self::Malformed => "malformed",
            Self::Lost { .. } => "session-lost",
            Self::Deposed { .. } => "deposed",
            Self::Ended => "session-ended",
        }
    }
}

/// The head of a reply.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ReplyHead {
    /// The request is accepted, or the app asks for its body: send the body. The actual reply follows.
    Go,
    Response {
        status: u16,
        /// The reason phrase of an app that speaks HTTP/1, if it is not the usual one.
        reason: Option<Vec<u8>>,
        fields: FieldBlock,
        session: ReplySession,
        /// The peer that ran the app.
        served_by: String,
        /// The version of the app, if it names one.
        version: Option<AppVersion>,
        load: Load,
    },
    Refused {
        why: HopRefusal,
        load: Load,
    },
    /// An interim response of the app; the actual reply follows. Sent only to a peer that asked for
    /// these by [`INTERIM`].
    Interim {
        status: u16,
        fields: FieldBlock,
    },
}

pub(crate) fn fields_out(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect()
}

pub(crate) fn fields_in(fields: Vec<(String, Vec<u8>)>) -> Option<HeaderMap> {
    // A peer may send more than a map holds.
    let mut headers = HeaderMap::try_with_capacity(fields.len()).ok()?;
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        headers.try_append(name, HeaderValue::from_bytes(&value).ok()?).ok()?;
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::wire;

    #[test]
    fn a_problem_is_sent_as_peers_of_this_protocol_have_always_sent_it() {
        #[derive(Serialize, Deserialize)]
        enum Before {
            _NotReady,
            _UnknownApp,
            _Exec(ExecDone),
            _NotOwner,
            Problem { status: u16, name: String, detail: String, retry_after_ms: Option<u64> },
        }
        let sent = |name: &str, status| Before::Problem {
            status,
            name: name.to_owned(),
            detail: "why".to_owned(),
            retry_after_ms: Some(1_500),
        };
        for (name, status, kind) in [
            ("outcome-unknown", 502, ProblemKind::OutcomeUnknown),
            ("outcome-unknown", 409, ProblemKind::OutcomeForgotten),
            ("too-many-sessions", 503, ProblemKind::TooManySessions),
            ("of-tomorrow", 429, ProblemKind::Newer { status: 429 }),
        ] {
            let bytes = wire::encode(&sent(name, status), 1_000).unwrap();
            let read = wire::decode::<HopRefusal, 1_000>(&bytes).unwrap();
            let HopRefusal::Problem(problem) = &read else { panic!("{name} is something else") };
            assert_eq!((problem.kind, problem.detail.as_str()), (kind, "why"));
            assert_eq!(problem.retry_after, Some(Duration::from_millis(1_500)));
            let before = wire::decode::<Before, 1_000>(&wire::encode(&read, 1_000).unwrap());
            let Ok(Before::Problem { status: read, .. }) = before else { panic!("{name}") };
            assert_eq!(read, status);
        }
    }

    #[test]
    fn more_fields_than_a_map_holds_are_refused() {
        let field = |at: usize| (format!("x-{at}"), Vec::new());
        for count in [40_000, 100_000] {
            assert!(fields_in((0..count).map(field).collect()).is_none(), "{count}");
        }
        assert_eq!(fields_in((0..9).map(field).collect()).unwrap().len(), 9);
    }
}

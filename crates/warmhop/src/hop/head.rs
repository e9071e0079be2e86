//! The heads of a hop, of the request and of the reply, as they are on the wire.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use warmhop_core::ids::{AppName, Ballot, Incarnation, RequestKey, SessionId};
use warmhop_core::session::message::{Config, Exec, ExecDone};

use crate::hop::field_block::FieldBlock;

/// The largest head of a hop in bytes, the session's inline base included.
pub(crate) const HEAD_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What a hop asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum HopKind {
    /// Serve it; sessions are none of the mesh's business.
    Plain,
    /// Nothing to serve: start the app, which the asking peer may not.
    Wake,
    /// Execute it for a session that another peer owns.
    Exec { sid: SessionId, exec: Exec },
    /// You own its session: do all that an entry peer does.
    Forward(Forward),
    /// Not for an app, but for a service that peers offer to each other; the app's name is its.
    Service,
}

/// A request on its way to its session's owner.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Forward {
    pub(crate) sid: SessionId,
    /// The members that the client's token names; absent where a key names the session.
    pub(crate) cfg: Option<Config>,
    pub(crate) owner: Incarnation,
    pub(crate) n: u64,
    pub(crate) rid: RequestKey,
    pub(crate) fingerprint: u64,
    pub(crate) keyed: bool,
    pub(crate) seen: Option<u64>,
    /// Tells the request from its client's repeats. Another one once an app may have seen it.
    pub(crate) attempt: u64,
    /// How many peers it may still be sent on to.
    pub(crate) hops_left: u8,
    /// The entry peer wants to own the session after this request.
    pub(crate) hand_over: Option<Incarnation>,
    /// The entry peer does not hear the owner of what a key names: find it, or take it over. Whether
    /// the request makes it where there is none.
    pub(crate) relay: Option<bool>,
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
}

/// The load of an app on the peer that replies, for the next choice among peers.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) in_flight: u32,
    pub(crate) latency_us: u32,
}

/// What the client's token should say of its session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hint {
    /// Another than the request's where that was renewed.
    pub(crate) sid: SessionId,
    pub(crate) cfg: Config,
    pub(crate) owner: Incarnation,
    pub(crate) n: u64,
}

/// The session's part of a reply.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ReplySession {
    None,
    /// What came of an execution.
    Done(ExecDone),
    /// The owner committed it: what the client's token should say.
    Committed {
        hint: Hint,
        replayed: bool,
    },
    /// The owner committed it, and the client is to have no session.
    Cleared {
        replayed: bool,
    },
}

/// Why a hop was refused; no app has seen the request.
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
    Problem { status: u16, name: String, detail: String, retry_after_ms: Option<u64> },
    /// The app took the request and failed before it answered.
    AppFailed { detail: String },
    /// The app took the request and did not answer in time.
    TooSlow { detail: String },
    /// Every place of the copy here is taken: no app has seen the request.
    Busy,
    /// The head was out of form.
    Malformed,
    /// Too many of the session's holders are gone for good; the session that one of them goes on
    /// as, and who that is.
    Lost { went_on: Option<(SessionId, Incarnation)> },
    /// Another peer took the session over while the request ran: the claim of the likely owner, who
    /// knows whether it was applied.
    Deposed { to: Option<Ballot>, n: u64 },
    /// The session's id was ended on purpose.
    Ended,
}

impl HopKind {
    /// What it asks for, in a word.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Plain => "serve it",
            Self::Wake => "start the app",
            Self::Exec { .. } => "execute it for its session's owner",
            Self::Forward(_) => "own its session",
            Self::Service => "answer as a peer",
        }
    }
}

impl HopRefusal {
    /// Every name.
    pub(crate) const LABELS: [&str; 12] = [
        "not-ready",
        "unknown-app",
        "session-base-or-vote",
        "not-owner",
        "problem",
        "app-failed",
        "too-slow",
        "busy",
        "malformed",
        "session-lost",
        "deposed",
        "session-ended",
    ];

    /// A stable name for counters and traces.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::NotReady => "not-ready",
            Self::UnknownApp => "unknown-app",
            Self::Exec(_) => "session-base-or-vote",
            Self::NotOwner { .. } => "not-owner",
            Self::Problem { .. } => "problem",
            Self::AppFailed { .. } => "app-failed",
            Self::TooSlow { .. } => "too-slow",
            Self::Busy => "busy",
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
    /// The request is taken, or its body asked for: send it. The reply proper follows.
    Go,
    Response {
        status: u16,
        /// What an app that speaks HTTP/1 says beside it, where that is not the usual.
        reason: Option<Vec<u8>>,
        fields: FieldBlock,
        session: ReplySession,
        /// The peer that ran the app.
        served_by: String,
        load: Load,
    },
    Refused {
        why: HopRefusal,
        load: Load,
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

    #[test]
    fn more_fields_than_a_map_holds_are_refused() {
        let field = |at: usize| (format!("x-{at}"), Vec::new());
        for count in [40_000, 100_000] {
            assert!(fields_in((0..count).map(field).collect()).is_none(), "{count}");
        }
        assert_eq!(fields_in((0..9).map(field).collect()).unwrap().len(), 9);
    }
}

//! What travels: requests as their clients send them, orders, answers and refusals.

use std::sync::Arc;

use warmhop_core::affinity::Entry;
use warmhop_core::ids::{Ballot, Incarnation, PeerId, RequestKey, SessionId};
use warmhop_core::problem::ProblemKind;
use warmhop_core::session::Failure;
use warmhop_core::session::message::{Config, Exec, ExecDone};

use crate::peer::{Load, Peer, SHOP};

/// What a request does to its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Does {
    /// Adds its number to the list (a POST).
    Append,
    /// Shows the list (a GET).
    Read,
    /// Adds its number if it is not there (a GET that sets something).
    Mark,
    /// Adds its number if there is nothing (SET NX).
    Begin,
    /// Empties a register, and shows what it held (DEL).
    Delete,
}

/// A request as its client sends it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) slot: usize,
    /// The register that it is about, where a key names it.
    pub(crate) key: Option<SessionId>,
    pub(crate) id: u16,
    pub(crate) does: Does,
    pub(crate) keyed: bool,
    /// The response is too large to be stored.
    pub(crate) large: bool,
    /// Its body is a stream that can be sent once.
    pub(crate) streams: bool,
    pub(crate) fingerprint: u64,
    pub(crate) runs_ms: u64,
    /// How long a register lasts that it changes, where that is not for the idle time.
    pub(crate) lasts_ms: Option<u64>,
}

impl Asked {
    /// An operation on the register of `key`: unkeyed, and done in an instant.
    pub(crate) fn of_register(key: SessionId, id: u16, does: Does) -> Self {
        Self {
            slot: SHOP,
            key: Some(key),
            id,
            does,
            keyed: false,
            large: false,
            streams: false,
            fingerprint: 0,
            runs_ms: 0,
            lasts_ms: None,
        }
    }

    pub(crate) fn is_safe(&self) -> bool {
        match self.key {
            Some(_) => self.does == Does::Read,
            None => self.does != Does::Append,
        }
    }

    /// Whether it makes the register where there is none.
    pub(crate) fn begins(&self) -> bool {
        !matches!(self.does, Does::Read | Does::Delete)
    }
}

/// What a client gets.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) answer: Result<Arc<[u8]>, ProblemKind>,
    pub(crate) cookie: Option<String>,
    pub(crate) served_by: Option<PeerId>,
    pub(crate) lost: bool,
    pub(crate) forked: bool,
    pub(crate) replayed: bool,
}

/// A request as it travels.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) asked: Asked,
    /// The body can be sent (again).
    pub(crate) has_body: bool,
    pub(crate) may_have_run: bool,
}

impl Call {
    pub(crate) fn take_body(&mut self) -> bool {
        let had = self.has_body;
        self.has_body = had && !self.asked.streams;
        had
    }
}

#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) response: Arc<[u8]>,
    pub(crate) served_by: PeerId,
    pub(crate) entry: Option<Entry>,
    pub(crate) lost: bool,
    pub(crate) forked: bool,
    pub(crate) replayed: bool,
}

impl Served {
    pub(crate) fn here(peer: &Peer, response: Arc<[u8]>) -> Self {
        let served_by = peer.me.clone();
        Self { response, served_by, entry: None, lost: false, forked: false, replayed: false }
    }
}

pub(crate) enum LocalError {
    NotReady,
    Failed,
    Refused(ExecDone),
    BodyGone,
}

#[derive(Clone)]
pub(crate) enum HopKind {
    Plain,
    Wake,
    Exec { sid: SessionId, exec: Exec },
    Forward(Forward),
}

#[derive(Clone)]
pub(crate) struct Forward {
    pub(crate) sid: SessionId,
    pub(crate) cfg: Option<Config>,
    pub(crate) owner: Incarnation,
    pub(crate) n: u64,
    pub(crate) rid: RequestKey,
    pub(crate) keyed: bool,
    pub(crate) seen: Option<u64>,
    pub(crate) hops_left: u8,
    pub(crate) hand_off: Option<Incarnation>,
    /// To be found or taken over there, for a peer that does not hear the owner: that peer, and whether
    /// it begins the register.
    pub(crate) relay: Option<(Incarnation, bool)>,
}

#[derive(Clone)]
pub(crate) struct Hint {
    pub(crate) cfg: Config,
    pub(crate) owner: Incarnation,
    pub(crate) n: u64,
}

#[derive(Clone)]
pub(crate) enum ReplySession {
    None,
    Done(ExecDone),
    Committed { hint: Hint, replayed: bool },
}

#[derive(Clone)]
pub(crate) enum HopRefusal {
    NotReady,
    Exec(ExecDone),
    NotOwner { claim: Option<Ballot> },
    Lost(Failure),
    Problem(ProblemKind),
    AppFailed,
}

pub(crate) enum HopError {
    Unreachable,
    Refused(HopRefusal),
    Broken,
}

pub(crate) struct HopReply {
    pub(crate) response: Arc<[u8]>,
    pub(crate) session: ReplySession,
    pub(crate) served_by: PeerId,
}

pub(crate) type HopOutcome = (Result<(Served, ReplySession), HopRefusal>, Load);

#[derive(Clone)]
pub(crate) enum Place {
    Here,
    There(PeerId),
}

#[derive(Clone, Copy)]
pub(crate) struct Portable {
    pub(crate) rid: RequestKey,
    pub(crate) seen: Option<u64>,
    pub(crate) hops_left: u8,
}

pub(crate) enum LineEnd {
    Served(Box<Served>),
    Elsewhere(Option<Ballot>),
    Failed(Failure),
    Problem(ProblemKind),
}

//! The inputs and outputs of a machine.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::census::Census;
use super::message::{Config, Exec, ExecDone, Message, Stored};
use crate::config::SessionPolicy;
use crate::ids::{Ballot, Incarnation, Now, Position, RequestKey, SessionId, WallTime};
use crate::problem::ProblemKind;

/// The inputs of a machine for one call.
#[derive(Debug)]
pub struct Ctx<'a> {
    /// This process.
    pub me: Incarnation,
    /// Its monotonic clock.
    pub now: Now,
    /// The wall clock, for expiries only.
    pub wall: WallTime,
    /// The tunables.
    pub policy: &'a SessionPolicy,
    /// The counters that all sessions of this process share.
    pub process: &'a mut Process,
    /// Fresh random bits, for the jitter of resends.
    pub dice: u64,
}

/// Counters that all sessions of one process share. They are lost with it, which is why a restarted
/// process is another [`Incarnation`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Process {
    /// No ballot of this process has a higher round.
    pub round_ctr: u64,
    /// The highest stamp that this process has forgotten (`W`).
    pub watermark: u64,
    /// The last nonce that it used.
    pub nonce: u64,
    /// The highest stamp that another process may have forgotten by its own report. A session
    /// created here has a higher one, or that process would not vote in it.
    pub stamp_heard: u64,
    /// The processes that this process knows.
    pub census: Arc<Census>,
    /// Everyone known to those whom it knows has answered it, one that is no longer young among them:
    /// it has heard of all peers that may know of a session, however short a time ago it began.
    pub has_met_all: bool,
}

impl Process {
    pub(super) fn next_nonce(&mut self) -> u64 {
        self.nonce = self.nonce.wrapping_add(1);
        self.nonce
    }

    /// The lowest stamp under which no known process may have voted and forgotten it.
    pub(super) fn stamp_to_begin(&self) -> u64 {
        self.watermark.max(self.stamp_heard).saturating_add(1)
    }
}

/// The runtime's name for one waiting request. Never used twice for one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A request that asks for its turn.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Submit {
    /// The runtime's name for it.
    pub ticket: Ticket,
    /// Its name across attempts.
    pub rid: RequestKey,
    /// A digest of its method, target and body.
    pub fingerprint: u64,
    /// Whether the client gave it a key.
    pub keyed: bool,
    /// The number that its token named when the request first arrived, pinned by its entry peer: if
    /// the request was applied, then at a higher number.
    pub seen: Option<u64>,
    /// It is safe (RFC 9110, section 9.2.1) and unkeyed: it may run beside others of that kind.
    pub safe: bool,
}

/// The outcome of running a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The executor reports how it went.
    Done(ExecDone),
    /// Nothing reached an app, or the executor is lost.
    Failed,
}

impl From<ExecDone> for Outcome {
    fn from(done: ExecDone) -> Self {
        Self::Done(done)
    }
}

/// The contents of a token about a session. A hint only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenHint {
    /// Its members.
    pub cfg: Config,
    /// Its owner.
    pub owner: Incarnation,
    /// The number of its newest chosen record; 0 if there is none.
    pub n: u64,
    /// When it expires unless it is used.
    pub expiry: WallTime,
    /// Whether anything was ever proposed. Until then, a token may leave the session out, and the
    /// client's next request creates another, at no cost; a token that names it makes every later
    /// read ask a majority, since others can then take it over.
    pub held: bool,
}

/// Why a request gets no response of the app. Each variant says whether it may have run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// Too many requests of this session wait already. It did not run.
    QueueFull,
    /// No majority of the copies answered in time.
    NoMajority {
        /// The request ran: its change may still be chosen.
        ran: bool,
    },
    /// Another request was sent under the same key (422). It did not run.
    FingerprintDiffers,
    /// The same request is waiting or running (409). This attempt did not run.
    KeyInUse,
    /// It may have been applied and its answer forgotten (409). This attempt did not run.
    BelowFloor,
    /// A majority of the session's copies is gone for good.
    Lost {
        /// The request ran: its outcome is unknown.
        ran: bool,
    },
    /// A majority of the session's copies is gone for good, but one of them continues under another
    /// session. It did not run.
    WentOn {
        /// The other session.
        into: SessionId,
        /// The process that holds it.
        by: Incarnation,
    },
    /// No peer knows of the session that its key names. It did not run.
    Absent,
    /// Executors refused it repeatedly. It did not run.
    TooManyRetries,
    /// It ran, and another peer took the session over before its change was chosen: its
    /// outcome is unknown.
    Deposed {
        /// The claim of the likely owner, which can tell.
        to: Option<Ballot>,
        /// The number of the last chosen record before it ran: it was applied at a higher number,
        /// if at all.
        n: u64,
    },
    /// The session's id was ended on purpose. It did not run.
    Ended,
    /// Its execution failed or its executor was lost. This owner proposes no change of it, but a
    /// lost executor may have voted for one, which a takeover may find.
    ExecutionFailed,
    /// Too many of the session's members have no room for its change, which was taken back: it was
    /// not applied.
    NoRoom,
}

impl Failure {
    /// Every problem that [`Failure::problem`] returns, but [`ProblemKind::Absent`], which is no
    /// failure of the session.
    pub const PROBLEMS: [ProblemKind; 11] = [
        ProblemKind::SessionQueueFull,
        ProblemKind::SessionNoMajority,
        ProblemKind::KeyReused,
        ProblemKind::KeyInUse,
        ProblemKind::OutcomeForgotten,
        ProblemKind::SessionLost,
        ProblemKind::OutcomeUnknown,
        ProblemKind::SessionNoExecutor,
        ProblemKind::SessionEnded,
        ProblemKind::ExecutionFailed,
        ProblemKind::SessionMemoryFull,
    ];

    /// The problem for the request's client.
    #[must_use]
    pub fn problem(&self) -> ProblemKind {
        match self {
            Self::QueueFull => ProblemKind::SessionQueueFull,
            Self::NoMajority { ran: false } => ProblemKind::SessionNoMajority,
            Self::FingerprintDiffers => ProblemKind::KeyReused,
            Self::KeyInUse => ProblemKind::KeyInUse,
            Self::BelowFloor => ProblemKind::OutcomeForgotten,
            Self::Lost { ran: false } | Self::WentOn { .. } => ProblemKind::SessionLost,
            Self::NoMajority { ran: true } | Self::Lost { ran: true } | Self::Deposed { .. } => {
                ProblemKind::OutcomeUnknown
            }
            Self::Absent => ProblemKind::Absent,
            Self::TooManyRetries => ProblemKind::SessionNoExecutor,
            Self::Ended => ProblemKind::SessionEnded,
            Self::ExecutionFailed => ProblemKind::ExecutionFailed,
            Self::NoRoom => ProblemKind::SessionMemoryFull,
        }
    }
}

/// Actions for the runtime, to be carried out in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send a message about this session.
    Send {
        /// The addressee.
        to: Incarnation,
        /// The message.
        message: Message,
    },
    /// It is this request's turn: choose where it runs, at once, and call
    /// [`Session::begin`](super::Session::begin) or [`Session::cancel`](super::Session::cancel).
    Turn {
        /// The request.
        ticket: Ticket,
    },
    /// Run the request, here or elsewhere, and call [`Session::executed`](super::Session::executed).
    Execute {
        /// The request.
        ticket: Ticket,
        /// Where it runs.
        executor: Incarnation,
        /// The session's part of the order.
        exec: Exec,
    },
    /// Its change is chosen or its read confirmed: release the response.
    Release {
        /// The request.
        ticket: Ticket,
        /// The contents of its token.
        hint: TokenHint,
    },
    /// It was applied before: answer with the stored response.
    Replay {
        /// The request.
        ticket: Ticket,
        /// The stored answer.
        stored: Stored,
        /// The contents of its token.
        hint: TokenHint,
    },
    /// It gets no response of the app.
    Fail {
        /// The request.
        ticket: Ticket,
        /// Why.
        failure: Failure,
    },
    /// It ran beside others and changed the session on an old base: drop its response; it
    /// runs again, alone, at the turn that follows.
    Again {
        /// The request.
        ticket: Ticket,
    },
    /// Another peer owns the session: send the request there. It did not run, or is safe.
    Redirect {
        /// The request.
        ticket: Ticket,
        /// The claim of the likely owner, if any is known.
        to: Option<Ballot>,
    },
    /// An owner about to leave asks this peer to take over.
    Invited {
        /// The session's configuration.
        cfg: Config,
    },
    /// An answer to [`Session::locate`](super::Session::locate).
    Located {
        /// The peer that answered.
        from: Incarnation,
        /// The position last accepted there.
        p: Option<Position>,
        /// Its configuration.
        cfg: Option<Config>,
        /// The highest ballot promised there.
        promised: Option<Ballot>,
        /// The session that this copy continued as.
        fenced: Option<SessionId>,
    },
    /// This peer owns the session and serves it.
    Owned {
        /// Its ballot.
        ballot: Ballot,
    },
    /// Some members did not accept the newest chosen record, however often it was sent: see
    /// [`Session::remind`](super::Session::remind).
    Lagging,
    /// The session was written for the first time, with fewer members than it should have: there
    /// was nothing to copy to others before. Or a peer that had no room for a copy may be asked again.
    FewCopies,
    /// A change of members is complete.
    Opened {
        /// The members from here on.
        cfg: Config,
    },
    /// This peer, which holds a record of the session, promised it to a peer that does not own it
    /// yet: check later whether that peer came to own it.
    Claimed,
    /// This peer no longer owns the session, or lost the race for it.
    Deposed {
        /// The higher ballot.
        by: Ballot,
    },
    /// A takeover found no majority in time; nothing changed.
    GaveUp,
    /// A majority of the copies is gone for good: the session's contents are unknown.
    Lost {
        /// The stamp of its newest configuration that was found.
        stamp: u64,
    },
}

/// The actions that a call requests, appended to what the caller passed.
pub type Effects = Vec<Effect>;

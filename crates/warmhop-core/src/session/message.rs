//! The messages of peers about one session, and the records in them. They are free of encoding: the
//! mesh crate decides about the wire format.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use arrayvec::ArrayVec;
use serde::{Deserialize, Serialize};

use super::census::Census;
use crate::ids::{Ballot, Incarnation, Position, RequestKey, SessionId, WallTime};

/// The most members that a session has.
pub const MEMBERS_MAX: usize = 3;

/// A set of one to three members, sorted and without repetition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Members {
    /// Counts the changes of members of this session, from 1.
    pub c: u32,
    /// Grows with `c`, and is higher than any stamp its members have forgotten.
    pub stamp: u64,
    /// The incarnations that hold a copy and vote.
    pub who: ArrayVec<Incarnation, MEMBERS_MAX>,
}

impl Members {
    /// The members of a session that begins: `who`, sorted and without repetition.
    ///
    /// # Panics
    /// With more than [`MEMBERS_MAX`] of them.
    #[must_use]
    pub fn first(stamp: u64, who: impl IntoIterator<Item = Incarnation>) -> Self {
        let mut who: Vec<_> = who.into_iter().collect();
        who.sort_unstable();
        who.dedup();
        Self { c: 1, stamp, who: who.into_iter().collect() }
    }

    /// Whether `peer` is one of them.
    #[must_use]
    pub fn contains(&self, peer: Incarnation) -> bool {
        self.who.contains(&peer)
    }

    /// Whether more than half of the members satisfy `voted`. An empty set has no majority.
    pub fn majority(&self, mut voted: impl FnMut(Incarnation) -> bool) -> bool {
        2 * self.who.iter().filter(|peer| voted(**peer)).count() > self.who.len()
    }
}

/// The peers that hold copies of a session. With `prev` it is a *seal*: chosen by a majority of
/// `prev`, it ends that configuration; the *open* configuration that follows has none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Config {
    /// The members from here on.
    pub now: Members,
    /// The members before, while the change is under way.
    pub prev: Option<Box<Members>>,
}

impl Config {
    /// The sets of members that it names: one where it is open, two where it is a seal.
    pub fn sets(&self) -> impl Iterator<Item = &Members> {
        core::iter::once(&self.now).chain(self.prev.as_deref())
    }

    /// Whether `peer` is in any of its sets.
    #[must_use]
    pub fn contains(&self, peer: Incarnation) -> bool {
        self.sets().any(|set| set.contains(peer))
    }

    /// Every peer that it names, once.
    #[must_use]
    pub fn everyone(&self) -> Vec<Incarnation> {
        let mut peers: Vec<_> = self.sets().flat_map(|set| set.who.iter().copied()).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }

    /// The set whose majority chooses a record of this configuration: the members, or those
    /// before them while it is a seal.
    #[must_use]
    pub fn deciders(&self) -> &Members {
        self.prev.as_deref().unwrap_or(&self.now)
    }

    /// Orders the steps of one session's members, and those of a session that was begun anew after
    /// those of the former one: each has a higher stamp. An open configuration was chosen, and so is
    /// later than its seal.
    pub(super) fn step(&self) -> (u64, bool) {
        (self.now.stamp, self.is_open())
    }

    /// Whether it is no seal.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.prev.is_none()
    }
}

/// The answer kept for a request that may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stored {
    /// An unkeyed request: the fact that it was applied is kept, but not its answer.
    Applied,
    /// The whole response, as the runtime encoded it.
    Response(#[serde(with = "crate::octets")] Arc<[u8]>),
    /// Applied, but its response exceeded the bound for stored responses.
    TooLarge,
    /// It may have been applied by commands of its app, which are not undone: the outcome is
    /// unknown.
    Unknown,
    /// No answer: the begin of a run that must not happen twice. The number distinguishes one
    /// attempt from the client's repeats.
    Begun(u64),
}

/// One applied request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Recent {
    /// The request.
    pub rid: RequestKey,
    /// A digest of the request's method, target and body: a repeat must match.
    pub fingerprint: u64,
    /// Whether the client named the request by a key.
    pub keyed: bool,
    /// The number at which it was applied.
    pub n: u64,
    /// The answer to it.
    pub response: Stored,
}

/// The contents of a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub struct Body {
    /// The app's bytes; absent if the app has set none or has cleared them.
    #[serde(with = "crate::octets::optional")]
    pub state: Option<Arc<[u8]>>,
    /// The requests applied last, oldest first, bounded in number and bytes.
    pub recent: Vec<Recent>,
    /// Every keyed request applied at a number below this may have left `recent`.
    pub floor_keyed: u64,
    /// The same for unkeyed requests.
    pub floor_unkeyed: u64,
    /// When the session expires unless it is used.
    pub expiry: WallTime,
    /// Set if the session's id was ended on purpose.
    pub ended: Option<Box<Ended>>,
}

/// The end of a session's id, which is final: a request that still uses it begins a new session.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ended {
    /// The request that ended it. Only this request learns of the heir.
    pub by: RequestKey,
    /// The session that its client continues with; none if it was cleared.
    pub heir: Option<Heir>,
}

/// A session that continues another under a new id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Heir {
    /// Its id.
    pub sid: SessionId,
    /// Its members when it was made.
    pub cfg: Config,
    /// Its owner then.
    pub owner: Incarnation,
    /// The number of its first record.
    pub n: u64,
}

/// The approximate size of a remembered request besides its stored answer.
const RECENT_BYTES: usize = 64;

impl Body {
    /// Its approximate size in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let answers = self.recent.iter().map(|entry| match &entry.response {
            Stored::Response(bytes) => RECENT_BYTES + bytes.len(),
            Stored::Applied | Stored::TooLarge | Stored::Unknown | Stored::Begun(_) => RECENT_BYTES,
        });
        self.state.as_deref().map_or(0, <[u8]>::len) + answers.sum::<usize>()
    }

    /// Whether the session has expired for the request of `exec`: by the executor's clock, `wall`,
    /// and by its owner's, from which the order's own expiry was set `ttl` ahead. One clock that
    /// runs ahead does not end a session.
    #[must_use]
    pub fn is_over(&self, exec: &Exec, wall: WallTime, ttl: Duration) -> bool {
        let owners = WallTime(exec.expiry.0.saturating_sub(millis(ttl)));
        self.expiry > WallTime::default() && self.expiry < wall.min(owners)
    }

    /// Whether half of its time or more is over, by its owner's clock: a request that only reads it
    /// then writes it again, which extends its life.
    #[must_use]
    pub fn is_half_over(&self, exec: &Exec, ttl: Duration) -> bool {
        self.expiry.0 < exec.expiry.0.saturating_sub(millis(ttl) / 2)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A proposal or an accepted value of the register. Equal positions imply equal bodies (I1).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// Its place in the session's history.
    pub p: Position,
    /// Its configuration. Shared: an idle session is in memory several times on its owner.
    pub cfg: Arc<Config>,
    /// Its contents.
    pub body: Arc<Body>,
}

/// A record's body, whole or by reference to one that the receiver should hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BodyRef {
    /// The body itself.
    Full(Arc<Body>),
    /// The same body as the record at this position.
    Same(Position),
}

/// What a promise reports about the accepted record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AcceptedInfo {
    /// The highest accepted position.
    pub p: Position,
    /// Its configuration.
    pub cfg: Arc<Config>,
    /// Its body, if it was requested.
    pub body: Option<Arc<Body>>,
}

impl From<Record> for AcceptedInfo {
    fn from(record: Record) -> Self {
        let Record { p, cfg, body } = record;
        Self { p, cfg, body: Some(body) }
    }
}

/// A ballot at which a session may continue in a configuration that the others cannot know
/// otherwise: it was begun there, or another configuration was closed in its favour.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Birth {
    /// The ballot.
    pub b: Ballot,
    /// The configuration.
    pub cfg: Arc<Config>,
}

/// Why a message was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NackReason {
    /// A higher ballot was promised.
    Higher,
    /// The configuration's stamp is not above what this peer may have forgotten.
    Forgotten,
    /// This copy withdrew its vote and continued under another session.
    Fenced(SessionId),
    /// The addressed incarnation is gone: its peer runs as another.
    Dead,
    /// There is no room for the record: nothing was promised and no vote cast.
    Full,
}

/// A peer's part in a session besides its copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Part {
    /// None: it does not own it, and does not try to.
    None,
    /// It tries to own it at this ballot.
    Trying(Ballot),
    /// It owns it at this ballot.
    Owner(Ballot),
}

/// One message about one session. The envelope names the session, the sender's and the
/// addressee's incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Message {
    /// Phase one, and the confirmation of a read at the owner's own ballot.
    Prepare {
        /// The ballot asked for.
        b: Ballot,
        /// The configuration in which the sender asks.
        cfg: Arc<Config>,
        /// Whether the promise should carry the accepted body.
        want_body: bool,
        /// Give way to a live owner of a lower ballot rather than depose it.
        polite: bool,
        /// Distinguishes one confirmation from another; echoed.
        nonce: u64,
        /// The session's expiry as far as the sender knows, so that an empty copy is kept
        /// for as long as its promise matters.
        expiry: WallTime,
        /// The configuration in which the sender continues, if `cfg` is asked only so that nothing
        /// can be chosen there any more. It is remembered with the promise.
        into: Option<Arc<Config>>,
    },
    /// The answer to `Prepare`.
    Promise {
        /// The ballot promised.
        b: Ballot,
        /// The configuration of the request, echoed.
        cfg: Arc<Config>,
        /// Echoed.
        nonce: u64,
        /// The record accepted before, if any.
        accepted: Option<AcceptedInfo>,
        /// Where the session may continue at lower ballots, above that of the accepted record.
        births: Vec<Birth>,
    },
    /// Phase two.
    Accept {
        /// The position proposed at.
        p: Position,
        /// The record's configuration.
        cfg: Arc<Config>,
        /// The record's body.
        body: BodyRef,
    },
    /// The copy accepted the record at `p` (again, perhaps).
    Accepted {
        /// The position accepted.
        p: Position,
    },
    /// `Accept` referred to a body that this copy does not hold.
    NeedFull {
        /// The position that was to be accepted.
        p: Position,
    },
    /// Not granted.
    Nack {
        /// Why.
        reason: NackReason,
        /// The highest ballot this copy promised, if any.
        promised: Option<Ballot>,
        /// The configuration this copy knows, if any.
        cfg: Option<Arc<Config>>,
        /// Stamps up to this one may have been forgotten by the sender.
        watermark: u64,
    },
    /// Asks a peer what it knows of the session.
    Locate {
        /// A digest of the processes that the sender knows, if it wants to know more.
        census: Option<u64>,
        /// Identifies the question, so that an answer to an earlier one is not taken for one to
        /// this.
        nonce: u64,
        /// How large a copy the sender would place there, in bytes: a peer without room refuses it instead
        /// of answering. 0 if none.
        bytes: u32,
    },
    /// The answer to `Locate`, and to `Begin` if a record is held.
    Located {
        /// Echoed.
        nonce: u64,
        /// The position last accepted, if any.
        p: Option<Position>,
        /// The configuration last accepted, if any.
        cfg: Option<Arc<Config>>,
        /// The highest ballot promised, if any: its proposer is the likely owner.
        promised: Option<Ballot>,
        /// The session that this copy continued as, if it withdrew its vote.
        fenced: Option<SessionId>,
        /// The configuration's members that are known to be gone for good, since their peers run as
        /// other incarnations.
        dead: Vec<Incarnation>,
        /// The sender's part in the session besides its copy: a promise alone makes no owner.
        part: Part,
        /// Where it may have been begun.
        births: Vec<Birth>,
        /// The processes that this peer knows, if the digest differs.
        census: Option<Arc<Census>>,
    },
    /// Asks the receiver to take this session over: its owner is about to leave.
    Invite {
        /// The session's configuration.
        cfg: Arc<Config>,
    },
    /// Reserved for the difference between two bodies.
    Delta,
    /// Reserved for leases.
    Lease,
    /// The session, which a key names, was found lost: forget the rest of it, so that the key can
    /// name another.
    Retire {
        /// The stamp of the newest configuration that was found.
        stamp: u64,
    },
    /// Phase one of a birth: the session, which a key names, is to begin. It goes to everyone,
    /// members or not. A peer that holds a record of it answers `Located`.
    Begin {
        /// The ballot asked for.
        b: Ballot,
        /// The configuration in which it is to begin.
        cfg: Arc<Config>,
        /// Configurations in which it may have begun before, and in which nothing may be chosen any
        /// more.
        over: Vec<Arc<Config>>,
        /// As in `Prepare`.
        expiry: WallTime,
        /// A digest of the processes that the sender knows.
        census: u64,
        /// As in `Locate`.
        nonce: u64,
    },
    /// The answer to `Begin`: a promise, and no record is held.
    Free {
        /// The ballot promised.
        b: Ballot,
        /// Echoed.
        over: Vec<Arc<Config>>,
        /// Where it may have been begun before.
        births: Vec<Birth>,
        /// The processes that this peer knows, if the digest differs.
        census: Option<Arc<Census>>,
    },
}

impl Message {
    /// The answer to a question in place of a process that is gone for good.
    pub const DEAD_LETTER: Self =
        Self::Nack { reason: NackReason::Dead, promised: None, cfg: None, watermark: 0 };

    /// The answer to an offer of a copy for which there is no room.
    pub const NO_ROOM: Self =
        Self::Nack { reason: NackReason::Full, promised: None, cfg: None, watermark: 0 };

    /// Whether its sender waits for an answer, and so needs [`Self::DEAD_LETTER`] if the process
    /// that it is for is gone for good.
    #[must_use]
    pub fn is_question(&self) -> bool {
        matches!(
            self,
            Self::Prepare { .. } | Self::Accept { .. } | Self::Locate { .. } | Self::Begin { .. }
        )
    }

    /// Whether a peer has to remember it even if it knows nothing of the session. A stray answer
    /// leaves nothing behind.
    #[must_use]
    pub fn makes_a_copy(&self) -> bool {
        self.is_question() || matches!(self, Self::Invite { .. })
    }

    /// Whether it confirms reads, or asks for that: a later message of its sender that overtakes it
    /// does not make it untrue, so it may wait a moment for others to leave with it.
    #[must_use]
    pub fn may_be_gathered(&self) -> bool {
        match self {
            Self::Prepare { want_body, into, .. } => !want_body && into.is_none(),
            Self::Promise { accepted, births, .. } => {
                births.is_empty() && accepted.as_ref().is_none_or(|info| info.body.is_none())
            }
            _ => false,
        }
    }

    /// Whether an answer to this question of a session's owner answers `other`, too. Each read
    /// under way asks whether the session was taken over, and a later question covers all of them.
    #[must_use]
    pub fn asks_all_of(&self, other: &Self) -> bool {
        let question = |message: &Self| match message {
            Self::Prepare { b, cfg, want_body: false, polite, nonce, into: None, .. } => {
                Some((*b, *polite, *nonce, Arc::clone(cfg)))
            }
            _ => None,
        };
        let (Some(this), Some(other)) = (question(self), question(other)) else { return false };
        let same_cfg = Arc::ptr_eq(&this.3, &other.3) || this.3 == other.3;
        (this.0, this.1) == (other.0, other.1) && this.2 >= other.2 && same_cfg
    }
}

/// The base on which an executor runs a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Base {
    /// The record the executor should hold as accepted at this position.
    Held(Position),
    /// The record itself; `None` for a session that is still empty.
    Inline(Option<Record>),
}

/// The session's part of a request that another peer is to execute.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Exec {
    /// The position reserved for the outcome; `None` for a shared read.
    pub p: Option<Position>,
    /// The configuration in which the outcome is proposed.
    pub cfg: Arc<Config>,
    /// The base to run on.
    pub base: Base,
    /// Whether the executor is to vote for the outcome.
    pub vote: bool,
    /// The request.
    pub rid: RequestKey,
    /// Its fingerprint.
    pub fingerprint: u64,
    /// Whether the client named it by a key.
    pub keyed: bool,
    /// The expiry to give the session if the request changes it.
    pub expiry: WallTime,
}

/// The outcome of an `Exec`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExecDone {
    /// The request changed the session (or was keyed).
    Changed {
        /// The body that results, the recent entry added.
        body: Arc<Body>,
        /// The executor accepted the record at `p`.
        voted: bool,
    },
    /// The request changed nothing.
    Unchanged {
        /// The executor, a voting member, confirms after running that it promised no
        /// higher ballot and holds the base as its highest record.
        confirmed: bool,
    },
    /// The executor does not hold the base; nothing ran.
    NeedBase,
    /// The vote gate failed before running; nothing ran.
    Refused {
        /// The reason, as in `Nack`.
        reason: NackReason,
        /// The highest ballot promised there.
        promised: Option<Ballot>,
        /// The executor's watermark of forgotten stamps, as in `Nack`.
        watermark: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(nonce: u64) -> Message {
        let me = Incarnation([1; 16]);
        let cfg = Arc::new(Config { now: Members::first(1, [me]), prev: None });
        let b = Ballot { round: 1, proposer: me };
        let expiry = WallTime(0);
        Message::Prepare { b, cfg, want_body: false, polite: false, nonce, expiry, into: None }
    }

    #[test]
    fn a_later_question_of_an_owner_asks_all_of_an_earlier_one_under_the_same_terms() {
        assert!(question(2).asks_all_of(&question(1)) && question(2).asks_all_of(&question(2)));
        assert!(!question(1).asks_all_of(&question(2)));
        let differs = |change: fn(&mut Message)| {
            let mut other = question(1);
            change(&mut other);
            !question(2).asks_all_of(&other) && !other.asks_all_of(&question(0))
        };
        assert!(differs(|it| {
            let Message::Prepare { b, .. } = it else { return };
            b.round = 2;
        }));
        assert!(differs(|it| {
            let Message::Prepare { cfg, .. } = it else { return };
            Arc::make_mut(cfg).now.stamp = 2;
        }));
        assert!(differs(|it| {
            let Message::Prepare { want_body, .. } = it else { return };
            *want_body = true;
        }));
        assert!(differs(|it| {
            let Message::Prepare { into, cfg, .. } = it else { return };
            *into = Some(cfg.clone());
        }));
        let vote = Message::Retire { stamp: 1 };
        assert!(!vote.asks_all_of(&vote) && !question(2).asks_all_of(&vote));
    }
}

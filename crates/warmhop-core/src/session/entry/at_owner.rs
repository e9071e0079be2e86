//! A request at its session's owner, or at a peer that was taken for it: how it gets in line, how
//! often it runs, what may continue without a majority, and what is left to its sender.

use alloc::vec::Vec;

use super::{Here, Look, ROUNDS_MAX};
use crate::config::{SessionPolicy, WithoutMajority};
use crate::ids::{Ballot, Incarnation, Position, SessionId, WallTime};
use crate::session::message::{Config, Record};
use crate::session::{Ctx, Effects, Failure, Otherwise, Role, Session, Submit};

/// How often a failed request in line at its owner is run again: an executor that could not be
/// reached, or that was no longer ready, is no answer for a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reruns {
    came_to_nothing: bool,
    had_no_place: bool,
    count: u32,
}

/// How a request in line proceeds after its machine reports a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rerun {
    /// Put it in line again.
    Again,
    /// The failure is final.
    No,
    /// It was tried often enough.
    GiveUp,
}

impl Reruns {
    /// Notes an attempt that ended before any app can have seen it, or in a way that allows
    /// another.
    pub fn came_to_nothing(&mut self) {
        self.came_to_nothing = true;
    }

    /// The executor serves as many requests as it may. The wait for a place is bounded where the
    /// request is placed, so this does not count as an attempt.
    pub fn had_no_place(&mut self) {
        self.had_no_place = true;
    }

    /// Decides about a failure. `sendable` as in [`Errand::ended`](super::Errand::ended).
    pub fn failed(&mut self, failure: &Failure, sendable: bool) -> Rerun {
        let came_to_nothing = self.came_to_nothing || self.had_no_place;
        if *failure != Failure::ExecutionFailed || !came_to_nothing || !sendable {
            return Rerun::No;
        }
        self.came_to_nothing = false;
        if core::mem::take(&mut self.had_no_place) {
            return Rerun::Again;
        }
        self.count += 1;
        if self.count > ROUNDS_MAX { Rerun::GiveUp } else { Rerun::Again }
    }
}

/// How a request gets in line at this peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enter {
    /// The session is this peer's, as far as is known.
    AsOwner,
    /// The session is created with it.
    Beginning(Config),
    /// The session is taken over for it, unless this peer is already doing that.
    TakingOver {
        /// The configuration that the client's token names.
        token: Option<Config>,
        /// Whom to ask, as in [`Session::take_over`].
        peers: Vec<Incarnation>,
    },
    /// The session is searched for, and taken over if it is found, unless this peer is already
    /// doing that.
    Seeking {
        /// Whom to ask, as in [`Session::seek`].
        peers: Vec<Incarnation>,
        /// What to do if no peer knows of it.
        otherwise: Otherwise,
    },
}

impl Session {
    /// Puts a request in line for its turn, which may come at once.
    pub fn enter(&mut self, ctx: &mut Ctx<'_>, submit: Submit, how: Enter, out: &mut Effects) {
        match how {
            Enter::TakingOver { token, peers } if matches!(self.role, Role::None) => {
                // It gets in line first. A takeover that has no peer left to ask finds at once that
                // the session is lost. With an empty line that would reach nobody, and the request
                // would be led back to this very peer until its rounds are used up.
                if self.line_up(ctx, submit, out) {
                    let round = self.seen_round();
                    self.take_over(ctx, token, round, &peers, out);
                }
            }
            Enter::Seeking { peers, otherwise } if matches!(self.role, Role::None) => {
                if self.line_up(ctx, submit, out) {
                    self.seek(ctx, &peers, otherwise, out);
                }
            }
            Enter::Beginning(cfg) => {
                self.mint(ctx, cfg, out);
                self.submit(ctx, submit, out);
            }
            Enter::AsOwner | Enter::TakingOver { .. } | Enter::Seeking { .. } => {
                self.submit(ctx, submit, out);
            }
        }
    }
}

/// What a peer may do about a session without its majority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alone {
    /// Nothing.
    No,
    /// Follow: its copy continued under this id before.
    Already(SessionId),
    /// Continue from this record: mint another session from it with [`Session::mint_from`], and
    /// only then withdraw this copy's vote with [`fence_at`].
    From(Record),
    /// Continue from this record under the same id: see [`Session::begin_anew`].
    Anew(Record),
}

/// Whether this peer may continue from its own copy of a session that has no majority: if the
/// policy allows it, or if it has two members at most; then this copy holds every acknowledged
/// change. The other of two may do the same, so it has to be gone for good, unless there are two
/// peers at most and this one `is_left` alone ([`Census::is_left_alone`]): then either serves without the
/// other. A session that ended so long ago, by `wall`, that everyone would forget it at once does not continue.
///
/// One that a key names, `by_key`, keeps its id if no majority can do without this peer. Where the policy
/// alone allows it to continue, a majority may be there, whose id that is.
///
/// [`Census::is_left_alone`]: crate::session::census::Census::is_left_alone
#[must_use]
pub fn alone(
    machine: &Session,
    me: Incarnation,
    policy: &SessionPolicy,
    is_left: bool,
    by_key: bool,
    wall: WallTime,
) -> Alone {
    if let Some(into) = machine.fenced() {
        return Alone::Already(into);
    }
    let mut others = machine.who_decides().iter().filter(|peer| **peer != me);
    let safe = is_left || others.all(|peer| machine.is_gone_for_good(*peer));
    let is_needed = safe && machine.holds_everything(me);
    let may = is_needed || policy.without_majority == WithoutMajority::Serve;
    let lasts = |record: &&Record| record.body.expiry.after(policy.forget_grace) > wall;
    match machine.copy.accepted.as_ref().filter(|_| may).filter(lasts) {
        Some(record) if by_key && is_needed => Alone::Anew(record.clone()),
        Some(record) => Alone::From(record.clone()),
        None => Alone::No,
    }
}

/// Withdraws this copy's vote in favour of `into`, unless its record is no longer the one at `p`
/// that `into` was minted from. Returns the id that this copy continues under: another than `into`
/// if it was fenced meanwhile, none if its record changed. No peer then knows of `into`, and it
/// expires.
///
/// The vote is withdrawn after the other session exists, not before: a peer that learns of the
/// fence goes to the other session at once, and must find it.
pub fn fence_at(
    machine: &mut Session,
    ctx: &mut Ctx<'_>,
    p: Position,
    into: SessionId,
    out: &mut Effects,
) -> Option<SessionId> {
    if machine.fenced().is_none() {
        machine.copy.accepted.as_ref().filter(|record| record.p == p)?;
        machine.fence(ctx, into, out);
    }
    machine.fenced()
}

/// What a peer does with a request that another forwarded to it as to the session's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forwarded {
    /// Serve it, as the owner or after taking over.
    Serve {
        /// The session has to be taken over first.
        take_over: bool,
    },
    /// Report that this peer does not own it, and what it knows.
    NotOwner {
        /// The highest claim known here: its proposer is the likely owner.
        claim: Option<Ballot>,
        /// The best known configuration.
        cfg: Option<Config>,
    },
}

/// Decides about a forwarded request, sent here because `owner` owns its session. It is never
/// forwarded again: the entry peer learns who owns it and goes there itself. The token may name
/// this very process although it holds nothing: then the session was empty, or it has to be read
/// back from the other members. Without a token, `has_token`, the entry peer searches for it.
#[must_use]
pub fn answer_forward(
    machine: Option<&Session>,
    me: Incarnation,
    owner: Incarnation,
    has_token: bool,
) -> Forwarded {
    let owns = machine.is_some_and(|machine| Look::of(machine).owns);
    let claim = machine.and_then(Session::claim);
    let elsewhere = claim.is_some_and(|ballot| ballot.proposer != me);
    if owns || (has_token && owner == me && !elsewhere) {
        return Forwarded::Serve { take_over: !owns };
    }
    let cfg = machine.and_then(Session::config).cloned();
    Forwarded::NotOwner { claim, cfg }
}

/// Whether a session's owner leaves a request that another peer forwarded to it to that peer: it does not
/// hear a majority of the members, although so many may be alive, and can commit nothing. A peer that
/// reaches this one may reach them as well, and takes the session over. Not with two members: no takeover
/// succeeds without the owner's own vote and the other one's.
#[must_use]
pub fn is_cut_off(machine: &Session, here: &Here<'_>) -> bool {
    let cfg = machine.config().filter(|cfg| cfg.now.who.len() > 2);
    machine.is_owner() && cfg.is_some_and(|cfg| here.is_cut_off_from(cfg))
}

/// Whether a peer that got another's request, and holds the session, continues from its own copy
/// after `failure` if [`alone`] allows it, and reports that: no other peer may hold as much. A peer
/// that only does not hear a majority may hear it again, and goes on alone for its own clients at
/// most.
#[must_use]
pub fn tries_alone(failure: &Failure) -> bool {
    *failure == (Failure::Lost { ran: false })
}

/// The process to forward a request to that was forwarded here although `owner` is another process,
/// and this peer does not own its session: its sender does not hear that process, and this peer
/// may. It is the proposer of the highest claim, if this peer knows of a later one; `None` if this
/// peer does not hear it either.
#[must_use]
pub fn way_on(
    machine: Option<&Session>,
    owner: Incarnation,
    here: &Here<'_>,
) -> Option<Incarnation> {
    if owner == here.me || machine.is_some_and(|machine| Look::of(machine).owns) {
        return None;
    }
    let claim = machine.and_then(Session::claim).map(|claim| claim.proposer);
    let to = claim.filter(|peer| *peer != here.me).unwrap_or(owner);
    here.hears(to).then_some(to)
}

/// Whether the sender of a forwarded request should proceed by itself after `failure`: the peer
/// that got the request only searched for the session, for callers that would not create it. That
/// says nothing to a caller that would.
#[must_use]
pub fn is_elsewhere(failure: &Failure) -> bool {
    *failure == Failure::Absent
}

/// Whether an owner that got a forwarded request returns `failure` to the entry peer as it is,
/// rather than a problem for the client: the entry peer may hold a copy to continue from, and
/// begins a new session for its client. If it only learnt that this peer is not the owner, it would
/// take over in vain, be led back here by the ballot of the peer that tried before, and so on until
/// its rounds were used up. Nor need a repeatable request fail because its owner was deposed while
/// it ran: the next owner knows whether it was applied.
#[must_use]
pub fn is_for_entry(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::Lost { ran: false }
            | Failure::WentOn { .. }
            | Failure::Ended
            | Failure::Deposed { .. }
    )
}

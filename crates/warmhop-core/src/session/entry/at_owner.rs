//! A request at its session's owner, or at a peer that was taken for it: how it comes to stand in line,
//! how often it runs, what may go on without a majority, and what is left to whoever sent it.

use alloc::vec::Vec;

use super::{Here, Look, ROUNDS_MAX};
use crate::config::{SessionPolicy, WithoutMajority};
use crate::ids::{Ballot, Incarnation, Position, SessionId, WallTime};
use crate::session::message::{Config, Record};
use crate::session::{Ctx, Effects, Failure, Otherwise, Role, Session, Submit};

/// How often a request in line at its owner is run again after it came to nothing: an executor
/// that could not be reached, or that was not ready any more, is no answer to a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reruns {
    came_to_nothing: bool,
    had_no_place: bool,
    count: u32,
}

/// What becomes of a request in line whose machine reports a failure.
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
    /// An attempt ended before any app can have seen it, or in a way that allows another.
    pub fn came_to_nothing(&mut self) {
        self.came_to_nothing = true;
    }

    /// The executor serves as many requests as it may. How long a request waits for a place is
    /// bounded where it is placed, so this does not count as an attempt.
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

/// How a request comes to stand in line at this peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enter {
    /// The session is this peer's, as far as is known.
    AsOwner,
    /// The session is drawn with it.
    Beginning(Config),
    /// The session is taken over for it, unless this peer is on its way to that already.
    TakingOver {
        /// The configuration that the client's token names.
        token: Option<Config>,
        /// Whom to ask, as in [`Session::take_over`].
        peers: Vec<Incarnation>,
    },
    /// The session is looked for, and taken over if it is found, unless this peer is on its way to
    /// that already.
    Seeking {
        /// Whom to ask, as in [`Session::seek`].
        peers: Vec<Incarnation>,
        /// What it comes to where nobody knows of it.
        otherwise: Otherwise,
    },
}

impl Session {
    /// Puts a request in line for its turn, which may come at once.
    pub fn enter(&mut self, ctx: &mut Ctx<'_>, submit: Submit, how: Enter, out: &mut Effects) {
        match how {
            Enter::TakingOver { token, peers } if matches!(self.role, Role::None) => {
                // It stands in line first. A takeover that has nobody left to ask finds at once
                // that the session is lost: told to a line that is empty, that reaches nobody, and
                // the request would be led back to this very peer until its rounds are used up.
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
    /// Follow: its copy went on under this id before.
    Already(SessionId),
    /// Go on from this record: mint another session from it with [`Session::mint_from`], and only
    /// then withdraw this copy's vote with [`fence_at`].
    From(Record),
}

/// Whether this peer may go on from its own copy of a session that has no majority: where the
/// policy says so, or where its members are two at most; then this copy holds every change that
/// was ever answered. The other of two may do the same, so it has to be gone for good, unless there
/// are two peers at most, a `pair`, where either serves without the other. What has ended by `wall` goes
/// on nowhere: everyone would forget it at once.
#[must_use]
pub fn alone(
    machine: &Session,
    me: Incarnation,
    policy: &SessionPolicy,
    pair: bool,
    wall: WallTime,
) -> Alone {
    if let Some(into) = machine.fenced() {
        return Alone::Already(into);
    }
    let mut others = machine.who_decides().iter().filter(|peer| **peer != me);
    let safe = pair || others.all(|peer| machine.is_gone_for_good(*peer));
    let may =
        policy.without_majority == WithoutMajority::Serve || safe && machine.holds_everything(me);
    let lasts = |record: &&Record| record.body.expiry > wall;
    match machine.copy.accepted.as_ref().filter(|_| may).filter(lasts) {
        Some(record) => Alone::From(record.clone()),
        None => Alone::No,
    }
}

/// Withdraws this copy's vote in favour of `into`, unless its record is no longer the one at `p`
/// that `into` was minted from. Returns the id that this copy goes on under: another than `into`
/// where it was fenced meanwhile, none where its record changed. `into` is then a session that
/// nobody knows of, and it expires.
///
/// The vote is withdrawn after the other session exists, not before: whoever hears of the fence
/// goes to the other session at once, and must find it.
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
    /// Say that this peer does not own it, and what it knows.
    NotOwner {
        /// The highest claim heard of here: its proposer is the likely owner.
        claim: Option<Ballot>,
        /// The best known configuration.
        cfg: Option<Config>,
    },
}

/// Decides about a forwarded request, sent here because `owner` owns its session. It is never
/// forwarded again: the entry peer learns who owns it and goes there itself. The token may name
/// this very process although it keeps nothing: then the session held nothing, or it has to be
/// read back from the other members. Without a token, `has_token`, the entry peer looks for it.
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

/// Whether a peer that was sent another's request, and holds the session, goes on from its own copy
/// after `failure` where [`alone`] allows it, and tells the other so: nobody else may hold as much. One
/// that only hears no majority may hear it again, and goes on alone for its own clients at most.
#[must_use]
pub fn tries_alone(failure: &Failure) -> bool {
    *failure == (Failure::Lost { ran: false })
}

/// Whom to send a request on to that was forwarded here although `owner` is another process, and this peer
/// does not own its session: whoever asks does not hear that one, and this peer may. It is the one that the
/// highest claim names, if this peer knows of a later one; `None` where it is not heard here either.
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

/// Whether whoever forwarded a request is to go on by itself after `failure`: the peer that it was
/// sent to was only looking for the session, for others who would not begin it. That says nothing to
/// one who would.
#[must_use]
pub fn is_elsewhere(failure: &Failure) -> bool {
    *failure == Failure::Absent
}

/// Whether an owner that was forwarded a request tells the entry peer of `failure` as it is, rather
/// than the client: the entry peer may hold a copy to go on from, and begins a new session for its
/// client. Told only that the owner is none, it would take over in vain, be led back here by the
/// ballot of the one who tried before, and so on until its rounds were used up. Nor need a request
/// that may be repeated end with an owner that was deposed while it ran: the next one knows whether
/// it was applied.
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

//! A change that too few members have room for. Its owner cannot have it chosen, and would propose it for
//! as long as they have none, while nobody can read the session. So the owner takes the session over from
//! itself: once the members have promised the new ballot, so that the change can be chosen no more, it goes
//! on from the record before, and its client learns that nothing was applied.

use crate::ids::{Ballot, Incarnation, Position, WallTime};
use crate::session::message::{Body, Config, Record};
use crate::session::{Ctx, Effect, Effects, Failure, Line, Role, Session, Ticket};

use super::{Owner, Stage};
use alloc::boxed::Box;
use alloc::sync::Arc;

/// What a takeover has to know of the change that it takes back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::session) struct Withdrawn {
    /// Where it was proposed.
    pub(in crate::session) p: Position,
    /// The members that decide about it.
    pub(in crate::session) cfg: Arc<Config>,
    /// The newest record that was chosen before it, if any was.
    pub(in crate::session) before: Option<Record>,
    /// When the session ends that holds nothing, if none was.
    end: WallTime,
    is_timed: bool,
}

/// The request whose change is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::session) struct TakenBack {
    ticket: Ticket,
    /// The ballot of the takeover that does so.
    b: Ballot,
    /// The number before that of the change.
    n: u64,
    /// The session goes on from the record before.
    is_dropped: bool,
}

impl Line {
    /// Nobody waits for this request any more.
    pub(super) fn forget_taken_back(&mut self, ticket: Ticket) {
        if self.taken_back.as_ref().is_some_and(|it| it.ticket == ticket) {
            self.taken_back = None;
        }
    }
}

impl Session {
    /// Notes that `from`, a member, had no room for the record under way.
    pub(super) fn is_refused_by(&mut self, from: Incarnation) {
        let Role::Owner(owner) = &mut self.role else { return };
        if let Some(proposal) = owner.work.0.as_mut().and_then(|work| work.proposal.as_mut())
            && proposal.record.cfg.contains(from)
            && !proposal.votes.contains(&from)
        {
            proposal.refused_by.insert(from);
        }
    }

    /// Begins to take the change under way back, if those that have not refused it are no majority. The others
    /// may vote for it yet: it is not chosen once they have promised the takeover's ballot before that.
    pub(super) fn withdraw(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let Role::Owner(owner) = &self.role else { return };
        let Some(proposal) = &owner.work.proposal else { return };
        let cfg = &proposal.record.cfg;
        let is_change = owner.serving && proposal.same_as.is_none() && cfg.prev.is_none();
        let is_refused = !cfg.now.majority(|peer| !proposal.refused_by.contains(&peer));
        // Reads of the record before are confirmed first.
        let is_alone = self.line.flights.iter().all(|flight| flight.stage == Stage::Proposed);
        if !is_change || !is_refused || !is_alone {
            return;
        }
        let Record { p, body, .. } = &proposal.record;
        let withdrawn = Withdrawn {
            p: *p,
            cfg: Arc::clone(cfg),
            before: owner.chosen.clone(),
            end: if owner.is_timed { ctx.wall } else { body.expiry },
            is_timed: owner.is_timed,
        };
        let (b, n) = (owner.b, owner.settled_n());
        let cfg = Arc::clone(cfg);
        self.heard.note_cfg(&cfg);
        self.role = Role::None;
        let ticket = self.line.flights.pop().map(|flight| flight.ticket());
        let peers = cfg.everyone();
        self.take_over(ctx, None, b.round, &peers, out);
        let Role::Preparing(takeover) = &mut self.role else {
            self.redirect_all(Some(b), out);
            let failure = Failure::NoMajority { ran: true };
            out.extend(ticket.map(|ticket| Effect::Fail { ticket, failure }));
            return;
        };
        takeover.withdrawn = Some(Box::new(withdrawn));
        let b = takeover.b;
        self.line.taken_back = ticket.map(|ticket| TakenBack { ticket, b, n, is_dropped: false });
    }

    /// The owner after a takeover that took a change back: it goes on from the record before, or from one that
    /// holds nothing, at numbers above that of the change.
    pub(in crate::session) fn succeed_without(
        &mut self,
        ctx: &mut Ctx<'_>,
        b: Ballot,
        withdrawn: Withdrawn,
        out: &mut Effects,
    ) {
        let Withdrawn { p, cfg, before, end, is_timed } = withdrawn;
        if let Some(taken_back) = &mut self.line.taken_back {
            taken_back.is_dropped = true;
        }
        self.heard.doubt = None;
        let mut owner = Owner { n_last: p.n, is_timed, ..Owner::new(b, Arc::clone(&cfg)) };
        let p = owner.next_position();
        self.role = Role::Owner(Box::new(owner));
        let (body, same_as) = match before {
            Some(record) => (record.body, Some(record.p)),
            None => (Arc::new(Body { expiry: end, ..Body::default() }), None),
        };
        self.propose(ctx, Record { p, cfg, body }, None, same_as, out);
        self.settle(ctx, out);
    }

    /// Answers the request whose change is taken back, as soon as its outcome is known, or cannot be.
    pub(super) fn settle_taken_back(&mut self, out: &mut Effects) {
        let Some(taken_back) = self.line.taken_back.clone() else { return };
        let TakenBack { ticket, b, n, is_dropped } = taken_back;
        let failure = match &self.role {
            Role::Preparing(takeover) if takeover.b == b => return,
            Role::Owner(owner) if owner.b == b && !owner.serving => return,
            Role::Owner(owner) if owner.b == b && is_dropped => Failure::NoRoom,
            Role::Preparing(_) | Role::Owner(_) => Failure::NoMajority { ran: true },
            Role::None => Failure::Deposed { to: self.claim(), n },
        };
        self.line.taken_back = None;
        out.push(Effect::Fail { ticket, failure });
    }

    /// Nobody has to wait any longer for the outcome of a change that is taken back.
    pub(super) fn fail_taken_back(&mut self, out: &mut Effects) {
        if let Some(TakenBack { ticket, .. }) = self.line.taken_back.clone() {
            self.line.taken_back = None;
            out.push(Effect::Fail { ticket, failure: Failure::NoMajority { ran: true } });
        }
    }
}

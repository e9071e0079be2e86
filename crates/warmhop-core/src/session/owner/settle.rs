//! The consequences of the last call, and of time, for an owner: what is chosen, what is confirmed,
//! and when to proceed.

use alloc::sync::Arc;
use core::time::Duration;

use super::confirm::Confirmation;
use super::full::Full;
use super::{
    Dismissed, Few, Flight, LAGGARD_SENDS_MAX, Proposal, Stage, TURN_WITHIN, accept_full,
    send_asks, tell_dismissed,
};
use crate::ids::{Incarnation, Now};
use crate::session::message::{Config, Message, Record};
use crate::session::mutant::Mutant;
use crate::session::{Ctx, Effect, Effects, FENCED, Failure, Resend, Role, Session, mutant};

/// How long the requests of an owned session may wait now.
struct Waits {
    /// The proposal under way was sent too long ago.
    stuck: bool,
    /// Too few of the members are heard.
    unheard: bool,
    /// How long a request waits for a majority.
    within: Duration,
}

/// Whether a session that begins with these members may have too few copies soon. What it does not hold
/// yet is not looked at when a peer leaves or falls silent.
fn may_miss_copies(ctx: &Ctx<'_>, cfg: &Config) -> bool {
    let may_miss = |peer: &Incarnation| *peer != ctx.me && !ctx.process.census.may_count_on(*peer);
    cfg.now.who.len() < ctx.policy.copies.min(3) || cfg.now.who.iter().any(may_miss)
}

impl Session {
    /// Draws the consequences of the last call's changes.
    pub(in crate::session) fn settle(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        if let (Some(mine), Some(promised)) = (self.ballot(), self.copy.promised())
            && promised > mine
        {
            self.step_down(ctx, promised, out);
        }
        self.settle_preparing(ctx, out);
        self.settle_proposal(ctx, out);
        self.settle_taken_back(out);
        self.settle_reads(ctx, out);
        self.give_turns(ctx, out);
        self.settle_handoff(ctx, out);
        self.forget_void_birth();
        self.tidy();
    }

    fn settle_handoff(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let idle = self.line.flights.is_empty();
        let Role::Owner(owner) = &mut self.role else { return };
        let may_invite = idle && owner.serving && owner.work.proposal.is_none();
        // Checked first: changing an absent entry would allocate it.
        if owner.work.yielding.is_none() {
            return;
        }
        let Some(yielding) = &mut owner.work.yielding else { return };
        if may_invite && yielding.invited.is_none() {
            yielding.invited = Some(Resend::new(ctx));
            let message = Message::Invite { cfg: owner.cfg.clone() };
            out.push(Effect::Send { to: yielding.to, message });
        }
    }

    pub(super) fn settle_proposal(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let Role::Owner(owner) = &self.role else { return };
        let Some(proposal) = &owner.work.proposal else { return };
        let mut deciders = proposal.record.cfg.deciders();
        if mutant::on(Mutant::SealByNew) {
            deciders = &proposal.record.cfg.now;
        }
        let enough = self.suffices(deciders, |peer| proposal.votes.contains(&peer))
            || mutant::on(Mutant::LoneVote) && proposal.votes.0.iter().any(|peer| *peer != ctx.me)
            || mutant::on(Mutant::OpenEarly) && proposal.record.cfg.prev.is_some()
            || mutant::on(Mutant::ReleaseEarly) && owner.serving;
        if !enough {
            let deciders = deciders.clone();
            if self.is_beyond_hope(&deciders) {
                self.give_up(out);
            }
            return;
        }
        if !self.is_held_by_next(&proposal.record, &proposal.votes) {
            // Its open form could not be chosen. The members before agree to it, and may agree to another.
            self.seal_otherwise(ctx, out);
            return;
        }
        let Role::Owner(owner) = &mut self.role else { return };
        let Some(proposal) = owner.work.proposal.take() else { return };
        let Proposal { record, votes, .. } = proposal;
        if record.cfg.prev.is_some() {
            // A seal is chosen: its open form follows, to the new members (I5).
            let p = owner.next_position();
            let cfg = Arc::new(Config { now: record.cfg.now.clone(), prev: None });
            owner.cfg = cfg.clone();
            if let Some(asking) = &mut owner.work.asking {
                asking.answered.clear();
            }
            let before = record.cfg.prev.as_ref().map_or(&[][..], |before| &before.who);
            let dismissed = before.iter().copied().filter(|peer| {
                *peer != ctx.me
                    && !cfg.now.contains(*peer)
                    && self.heard.gone.get(peer).is_none_or(|stamp| *stamp < FENCED)
            });
            let who: Few = dismissed.collect();
            tell_dismissed(owner, &who, self.copy.low, out);
            owner.work.dismissed =
                (!who.0.is_empty()).then(|| Dismissed { who, resend: Resend::new(ctx) });
            let open = Record { p, cfg, body: record.body.clone() };
            self.propose(ctx, open, None, Some(record.p), out);
            self.settle_proposal(ctx, out);
            return;
        }
        let opened =
            owner.chosen.as_ref().is_some_and(|before| before.cfg.now.c < record.cfg.now.c);
        let complete = record.cfg.now.who.iter().all(|peer| votes.contains(peer));
        owner.work.laggards = (!complete).then(|| Resend::new(ctx));
        if owner.chosen.is_none() && may_miss_copies(ctx, &record.cfg) {
            out.push(Effect::FewCopies);
        }
        let is_member = record.cfg.contains(ctx.me);
        owner.chosen = Some(record);
        if !is_member {
            let end = owner.chosen.as_ref().map_or(ctx.wall, |it| it.body.expiry.max(ctx.wall));
            self.copy.owns_elsewhere(owner.b, end.after(ctx.policy.forget_grace));
        }
        owner.holders = votes.0.iter().fold(0, |bits, peer| bits | owner.bit(*peer));
        // Even if nobody waits for the response any more: a repeat gets it, with a token (I8).
        owner.unnamed = false;
        if !owner.serving {
            owner.serving = true;
            out.push(Effect::Owned { ballot: owner.b });
        } else if opened {
            self.heard.gone.retain(|peer, _| owner.cfg.contains(*peer));
            out.push(Effect::Opened { cfg: Config::clone(&owner.cfg) });
        }
        if let Some(at) =
            self.line.flights.iter().position(|flight| flight.stage == Stage::Proposed)
        {
            let ticket = self.line.flights.remove(at).ticket();
            out.push(Effect::Release { ticket, hint: owner.hint() });
        }
        self.forget_refusals(ctx, out);
        self.give_in(ctx, out);
    }

    /// Peers that refused a copy, and are no members any more, may become members again after a while.
    fn forget_refusals(&mut self, ctx: &Ctx<'_>, out: &mut Effects) {
        let Role::Owner(owner) = &mut self.role else { return };
        if owner.work.full != Full::NONE
            && owner.work.full.forget_others(&owner.cfg.now.who, ctx.now)
        {
            out.push(Effect::FewCopies);
        }
    }

    /// Too many of the members are gone for good, as far as this owner knows them: another peer may
    /// have succeeded it long ago, and they may have voted for others before they died. Only a
    /// takeover, which asks everyone, can tell whether the session is lost.
    ///
    /// A request that found and left the session empty is answered all the same: for a session that
    /// is empty as far as anybody left knows there is nothing to confirm.
    fn give_up(&mut self, out: &mut Effects) {
        let former = core::mem::replace(&mut self.role, Role::None);
        let empty = match &former {
            Role::Owner(owner) if owner.serving && !owner.held() => Some(owner.hint()),
            _ => None,
        };
        out.push(Effect::GaveUp);
        for flight in core::mem::take(&mut self.line.flights) {
            let ticket = flight.ticket();
            let is_done = matches!(flight.stage, Stage::Confirming { .. });
            if let Some(hint) = empty.clone().filter(|_| is_done && self.copy.accepted.is_none()) {
                out.push(Effect::Release { ticket, hint });
                continue;
            }
            let ran = flight.stage != Stage::Turned && !flight.waiting.submit.safe;
            out.push(if ran {
                Effect::Fail { ticket, failure: Failure::NoMajority { ran } }
            } else {
                Effect::Redirect { ticket, to: None }
            });
        }
        self.redirect_all(None, out);
    }

    /// Whether a majority confirms the read of the flight at `at`.
    pub(super) fn is_confirmed(&self, ctx: &Ctx<'_>, at: usize) -> bool {
        let Role::Owner(owner) = &self.role else { return false };
        let survivor = self.survivor(&owner.cfg.now);
        let flight = self.line.flights.get(at);
        flight.is_some_and(|flight| {
            Confirmation::of(owner, &self.copy, ctx.me, survivor).covers(flight)
        })
    }

    fn settle_reads(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let is_confirming = |flight: &Flight| matches!(flight.stage, Stage::Confirming { .. });
        if self.line.flights.iter().any(is_confirming) {
            let Role::Owner(owner) = &self.role else { return };
            let survivor = self.survivor(&owner.cfg.now);
            let Self { role: Role::Owner(owner), copy, line, .. } = self else { return };
            // The same for all of them, until the first token leaves: from then on others can know
            // of the session.
            let mut confirmation = Confirmation::of(owner, copy, ctx.me, survivor);
            line.flights.retain(|flight| {
                if !is_confirming(flight) || !confirmation.covers(flight) {
                    return true;
                }
                if core::mem::take(&mut owner.unnamed) {
                    confirmation = Confirmation::of(owner, copy, ctx.me, survivor);
                }
                out.push(Effect::Release { ticket: flight.ticket(), hint: owner.hint() });
                false
            });
        }
        if let Role::Owner(owner) = &mut self.role
            && owner.work.asking.is_some()
            && self.line.flights.iter().all(|flight| flight.nonce.is_none())
        {
            owner.work.asking = None;
        }
        let Role::Owner(owner) = &self.role else { return };
        // Whether members are gone is known for all reads at once.
        if owner.work.proposal.is_none()
            && self.is_beyond_hope(&owner.cfg.now)
            && self.line.flights.iter().any(is_confirming)
        {
            self.give_up(out);
        }
    }

    pub(in crate::session) fn on_timer_owner(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let Role::Owner(owner) = &mut self.role else { return };
        owner.work.listening.take_if(|at| *at <= ctx.now);
        let Some(waits) = self.waits(ctx) else { return };
        self.invite_again(ctx, out);
        self.send_to_laggards(ctx, out);
        self.send_to_dismissed(ctx, out);
        self.ask_again(ctx, out);
        self.propose_again(ctx, out);
        self.fail_the_late(ctx, &waits, out);
        self.forget_refusals(ctx, out);
        self.end_if_over(ctx, out);
    }

    /// Ends a handoff that took too long, or invites the next owner again.
    fn invite_again(&mut self, ctx: &Ctx<'_>, out: &mut Effects) {
        let Role::Owner(owner) = &mut self.role else { return };
        let Some(yielding) = &mut owner.work.yielding else { return };
        if yielding.until <= ctx.now {
            owner.work.yielding = None;
        } else if yielding.invited.as_mut().is_some_and(|resend| resend.due(ctx)) {
            let message = Message::Invite { cfg: owner.cfg.clone() };
            out.push(Effect::Send { to: yielding.to, message });
        }
    }

    /// Sends the chosen record again to the members that have not accepted it.
    fn send_to_laggards(&mut self, ctx: &Ctx<'_>, out: &mut Effects) {
        let Role::Owner(owner) = &mut self.role else { return };
        if owner.work.laggards.as_ref().is_some_and(|resend| resend.tries >= LAGGARD_SENDS_MAX) {
            owner.work.laggards = None;
            out.push(Effect::Lagging);
        }
        if owner.work.proposal.is_none()
            && owner.work.laggards.as_mut().is_some_and(|resend| resend.due(ctx))
            && let Some(record) = &owner.chosen
        {
            for to in &record.cfg.now.who {
                if *to != ctx.me
                    && !owner.is_held_by(*to)
                    && !self.heard.votes_are_gone(*to, &record.cfg)
                    && owner.work.full.may_offer(*to, ctx.now)
                {
                    out.push(Effect::Send { to: *to, message: accept_full(record) });
                }
            }
        }
    }

    /// Sends the new members again to those that they replaced.
    fn send_to_dismissed(&mut self, ctx: &Ctx<'_>, out: &mut Effects) {
        let Role::Owner(owner) = &mut self.role else { return };
        if let Some(dismissed) = &mut owner.work.dismissed
            && dismissed.resend.due(ctx)
        {
            let last = dismissed.resend.tries >= LAGGARD_SENDS_MAX;
            let who = dismissed.who.clone();
            tell_dismissed(owner, &who, self.copy.low, out);
            if last {
                owner.work.dismissed = None;
            }
        }
    }

    /// Asks the members again whether this peer still owns the session.
    fn ask_again(&mut self, ctx: &Ctx<'_>, out: &mut Effects) {
        let Role::Owner(owner) = &mut self.role else { return };
        if owner.work.asking.as_mut().is_some_and(|asking| asking.resend.due(ctx))
            && let Some(nonce) = self.line.flights.iter().filter_map(|flight| flight.nonce).max()
        {
            send_asks(ctx, owner, nonce, out);
        }
    }

    fn propose_again(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let Role::Owner(owner) = &mut self.role else { return };
        if owner.work.proposal.as_mut().is_some_and(|it| it.resend.due(ctx))
            && !self.give_in(ctx, out)
        {
            self.vote_myself(ctx);
            self.send_accepts(ctx, out);
            self.withdraw(ctx, out);
        }
    }

    fn waits(&self, ctx: &Ctx<'_>) -> Option<Waits> {
        let Role::Owner(owner) = &self.role else { return None };
        let patience = ctx.policy.majority_timeout;
        let proposal = owner.work.proposal.as_ref();
        Some(Waits {
            stuck: proposal.is_some_and(|it| ctx.now.since(it.since) >= patience),
            unheard: self.is_unheard(ctx, &owner.cfg),
            within: self.patience(ctx, &owner.cfg),
        })
    }

    /// Fails the requests that waited too long. A proposal continues until it is chosen or another
    /// owner decides, but nobody has to wait for that.
    fn fail_the_late(&mut self, ctx: &Ctx<'_>, waits: &Waits, out: &mut Effects) {
        let patience = ctx.policy.majority_timeout;
        let Waits { stuck, unheard, within } = *waits;
        if stuck {
            self.fail_taken_back(out);
        }
        self.line.flights.retain(|flight| {
            let ticket = flight.ticket();
            let late = match flight.stage {
                Stage::Proposed => stuck,
                Stage::Confirming { since } => ctx.now.since(since) >= within,
                Stage::Turned | Stage::Running { .. } => false,
            };
            if late {
                let ran = !flight.waiting.submit.safe || flight.stage == Stage::Proposed;
                out.push(Effect::Fail { ticket, failure: Failure::NoMajority { ran } });
            }
            !late
        });
        self.line.queue.retain(|waiting| {
            let waited = ctx.now.since(waiting.since);
            let ticket = waiting.submit.ticket;
            if stuck && waited >= patience || unheard && waited >= within {
                out.push(Effect::Fail { ticket, failure: Failure::NoMajority { ran: false } });
                return false;
            }
            if waited >= TURN_WITHIN {
                out.push(Effect::Fail { ticket, failure: Failure::QueueFull });
                return false;
            }
            true
        });
    }

    pub(in crate::session) fn wake_owner(&self) -> Option<Now> {
        let Role::Owner(owner) = &self.role else { return None };
        let proposal = owner.work.proposal.as_ref().map(|proposal| proposal.resend.at);
        let laggards = owner
            .work
            .laggards
            .as_ref()
            .filter(|_| owner.work.proposal.is_none())
            .map(|resend| resend.at);
        let asking = owner.work.asking.as_ref().map(|asking| asking.resend.at);
        let yielding = owner.work.yielding.as_ref().map(|yielding| {
            yielding.invited.as_ref().map_or(yielding.until, |resend| resend.at.min(yielding.until))
        });
        let queue = self.line.queue.front().map(|waiting| waiting.since.after(TURN_WITHIN));
        let dismissed = owner.work.dismissed.as_ref().map(|dismissed| dismissed.resend.at);
        let listening = owner.work.listening;
        let refused = owner.work.full.wakes(&owner.cfg.now.who);
        let wakes = [proposal, laggards, asking, yielding, queue, dismissed, listening, refused];
        wakes.into_iter().flatten().min()
    }
}

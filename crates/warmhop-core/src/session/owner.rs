//! The owner: the one proposer of a session. It gives requests their turns, proposes their changes,
//! confirms reads, and releases a response only when its record is chosen and open (I7).
//!
//! Writes run alone; safe requests run beside each other, on the newest chosen record. A read is
//! confirmed by a majority that answers at the owner's own ballot, asked after the request arrived:
//! had another peer taken the session over before, one of that majority would have promised more.

mod confirm;
mod ending;
mod few;
mod full;
mod held;
mod outvoted;
mod resealed;
mod settle;
mod turns;
mod wanted;
mod withdrawn;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use self::few::Few;
use self::full::Full;
pub(super) use self::full::Refused;
use self::outvoted::Outvoted;
use self::wanted::Wanted;
pub(super) use self::withdrawn::{TakenBack, Withdrawn};
use super::joining::Joining;
use super::message::{
    AcceptedInfo, BodyRef, Config, MEMBERS_MAX, Members, Message, NackReason, Record,
};
use super::{
    Ctx, Effect, Effects, Empty, FENCED, Failure, Resend, Role, Seldom, Session, Shut, Submit,
    Ticket, TokenHint, Vote,
};
use crate::ids::{Ballot, Incarnation, Now, Position, WallTime};

/// The round of the ballot that a session is drawn with. It is not announced before it is used: a
/// peer that takes a session over goes above it.
pub(super) const DRAWN_ROUND: u64 = 1;
/// How long a request may wait for those before it to send their heads.
const TURN_WITHIN: Duration = Duration::from_secs(60);
/// How long a handoff holds requests back before this peer resumes as owner.
const YIELD_WITHIN: Duration = Duration::from_secs(2);
/// How often one turn's execution is ordered again before it is given up.
const ORDERS_MAX: u32 = 4;
/// How often a chosen record is sent again to a member that has not accepted it, and the new
/// members to one that was replaced.
const LAGGARD_SENDS_MAX: u32 = 6;

/// A request that waits for its turn.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    submit: Submit,
    /// It changed the session on an old base: it runs again, alone.
    alone: bool,
    since: Now,
}

impl Waiting {
    pub(super) fn came_after(&self, at: Now) -> bool {
        self.since > at
    }
}

/// A request whose turn has come.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Flight {
    waiting: Waiting,
    exclusive: bool,
    stage: Stage,
    /// How often it was ordered.
    orders: u32,
    /// The executor's vote does not count.
    voteless: bool,
    /// Answers to this nonce or a later one confirm it; absent while none was asked for.
    nonce: Option<u64>,
    /// The executor, a member, confirmed it.
    confirmed_by: Option<Incarnation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    Turned,
    Running {
        executor: Incarnation,
        p: Option<Position>,
        base: Option<Position>,
    },
    /// It has its response; a majority has to confirm its base.
    Confirming {
        since: Now,
    },
    /// Its change is proposed.
    Proposed,
}

impl Flight {
    fn ticket(&self) -> Ticket {
        self.waiting.submit.ticket
    }
}

/// The owner's state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub(super) b: Ballot,
    pub(super) cfg: Arc<Config>,
    /// The newest record known to be chosen, and open.
    pub(super) chosen: Option<Record>,
    /// Requests may have their turns.
    pub(super) serving: bool,
    n_last: u64,
    /// Which of its members are known to have accepted the chosen record, one bit for each.
    holders: u8,
    /// Created here, and no token has left yet: no other peer can know of it.
    unnamed: bool,
    /// Its app says when it ends, and this peer alone decides whether it has.
    pub(super) is_timed: bool,
    pub(super) work: Seldom<Work>,
}

/// The owner's work in progress.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Work {
    proposal: Option<Proposal>,
    /// When to send the chosen record again to the members that do not hold it.
    laggards: Option<Resend>,
    asking: Option<Asking>,
    yielding: Option<Yielding>,
    dismissed: Option<Dismissed>,
    pub(super) joining: Option<Joining>,
    wanted: Option<Wanted>,
    outvoted: Option<Outvoted>,
    /// Too few of the members are heard, and requests are held back: when to check again.
    listening: Option<Now>,
    /// The members that had no room for a copy.
    full: Full,
}

impl Empty for Work {
    const EMPTY: &'static Self = &Self {
        proposal: None,
        laggards: None,
        asking: None,
        yielding: None,
        dismissed: None,
        joining: None,
        wanted: None,
        outvoted: None,
        listening: None,
        full: Full::NONE,
    };
}

/// Members that were replaced although they may be alive. They would count themselves as members,
/// or take themselves for the owner, for as long as they keep their copies; they are notified
/// several times, since a peer that is cut off for longer asks by itself when it is back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Dismissed {
    who: Few,
    resend: Resend,
}

/// The confirmation of reads under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Asking {
    resend: Resend,
    /// The highest nonce each member answered at this ballot.
    answered: BTreeMap<Incarnation, u64>,
}

/// A handoff under way: no new turns, and an invitation once the last request is done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Yielding {
    to: Incarnation,
    until: Now,
    invited: Option<Resend>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Proposal {
    record: Record,
    votes: Few,
    resend: Resend,
    since: Now,
    /// The body need not be sent to the members that hold it at this position.
    same_as: Option<Position>,
    /// The members that asked for the whole body.
    need_full: Few,
    /// The members that had no room for it.
    refused_by: Few,
}

impl Owner {
    fn new(b: Ballot, cfg: Arc<Config>) -> Self {
        Self {
            b,
            cfg,
            chosen: None,
            serving: false,
            n_last: 0,
            holders: 0,
            unnamed: false,
            is_timed: false,
            work: Seldom::default(),
        }
    }

    /// The owner of a session of which a majority holds nothing.
    pub(super) fn of_nothing(b: Ballot, cfg: Arc<Config>) -> Self {
        Self { serving: true, ..Self::new(b, cfg) }
    }

    /// The owner of a session that a key names and that no peer knew of. It may have existed and
    /// been forgotten: its numbers start above those of any former life, as its stamp does, so that
    /// none is taken for another.
    pub(super) fn beginning(b: Ballot, cfg: Arc<Config>) -> Self {
        Self { n_last: cfg.now.stamp, ..Self::of_nothing(b, cfg) }
    }

    /// The owner after a takeover that found `record`, which it has to reassert.
    pub(super) fn succeeding(b: Ballot, record: &Record) -> Self {
        Self { n_last: record.p.n, ..Self::new(b, record.cfg.clone()) }
    }

    /// The number above which new proposals have their positions. A session that was begun by a key
    /// counts from its stamp.
    fn settled_n(&self) -> u64 {
        let begun = Some(self.cfg.now.stamp).filter(|stamp| self.n_last > *stamp);
        self.chosen.as_ref().map(|record| record.p.n).or(begun).unwrap_or_default()
    }

    fn next_position(&mut self) -> Position {
        self.n_last = self.n_last.saturating_add(1);
        Position { ballot: self.b, n: self.n_last }
    }

    /// The bit of `peer` among the chosen record's members.
    fn bit(&self, peer: Incarnation) -> u8 {
        let who = self.chosen.as_ref().map_or(&[][..], |record| &record.cfg.now.who);
        who.iter().position(|member| *member == peer).map_or(0, |at| 1 << at)
    }

    /// Whether `peer`, a member, is known to have accepted the chosen record.
    fn is_held_by(&self, peer: Incarnation) -> bool {
        self.holders & self.bit(peer) != 0
    }

    /// Frees finished work.
    pub(super) fn tidy(&mut self) {
        self.work.tidy();
    }

    fn held(&self) -> bool {
        self.chosen.is_some() || self.work.proposal.is_some()
    }

    pub(super) fn hint(&self) -> TokenHint {
        let chosen = self.chosen.as_ref();
        TokenHint {
            // While a change of members is under way, only the configuration before it has chosen
            // anything: nobody may take the new one's silence for an empty session.
            cfg: chosen.map_or(&*self.cfg, |record| &record.cfg).clone(),
            owner: self.b.proposer,
            n: chosen.map_or(0, |record| record.p.n),
            expiry: chosen.map_or(WallTime::default(), |record| record.body.expiry),
            held: self.held(),
        }
    }
}

impl Session {
    /// This peer creates a session and owns it from birth. Nothing is sent before its first change.
    /// `cfg` names this peer's process among its members, under a stamp higher than any that was
    /// forgotten.
    pub fn mint(&mut self, ctx: &mut Ctx<'_>, cfg: Config, _out: &mut Effects) {
        assert!(
            matches!(self.role, Role::None) && self.copy.is_blank(),
            "I9: a session is drawn once, under a fresh random id"
        );
        let mut cfg = cfg;
        cfg.now.stamp = cfg.now.stamp.max(ctx.process.stamp_to_begin());
        ctx.process.round_ctr = ctx.process.round_ctr.max(DRAWN_ROUND);
        let b = Ballot { round: DRAWN_ROUND, proposer: ctx.me };
        self.role =
            Role::Owner(Box::new(Owner { unnamed: true, ..Owner::of_nothing(b, Arc::new(cfg)) }));
    }

    /// This peer creates a session that continues from `held`: a fork of one whose majority is
    /// gone. Requests wait until its body is chosen under the new session.
    pub fn mint_from(&mut self, ctx: &mut Ctx<'_>, cfg: Config, held: &Record, out: &mut Effects) {
        self.mint(ctx, cfg, out);
        let Role::Owner(owner) = &mut self.role else { return };
        owner.serving = false;
        owner.unnamed = false;
        // The floors in its body are numbers of the original session: new numbers below them would
        // make every key that its client uses next look like a repeat.
        owner.n_last = held.p.n;
        let p = owner.next_position();
        let record = Record { p, cfg: owner.cfg.clone(), body: Arc::clone(&held.body) };
        self.propose(ctx, record, None, None, out);
        self.settle(ctx, out);
    }

    /// Whether this peer never proposed or promised anything for the session and nobody waits: then
    /// the entry may be dropped, and a token that names the session leads to a takeover that finds
    /// what exists.
    #[must_use]
    pub fn is_disposable(&self) -> bool {
        let empty = match &self.role {
            Role::Owner(owner) => owner.serving && !owner.held(),
            Role::None => true,
            Role::Preparing(_) => false,
        };
        empty && self.copy.is_blank() && self.line.queue.is_empty() && self.line.flights.is_empty()
    }

    /// A request asks for its turn at the owner.
    pub fn submit(&mut self, ctx: &mut Ctx<'_>, submit: Submit, out: &mut Effects) {
        let ticket = submit.ticket;
        if matches!(self.role, Role::None) {
            out.push(Effect::Redirect { ticket, to: self.claim() });
            return;
        }
        if self.line_up(ctx, submit, out) {
            self.settle(ctx, out);
        }
    }

    /// Puts a request in line, unless it is there already or the line is full. Returns whether it
    /// did.
    pub(super) fn line_up(&mut self, ctx: &Ctx<'_>, submit: Submit, out: &mut Effects) -> bool {
        let ticket = submit.ticket;
        let waits = |other: &Submit| other.rid == submit.rid;
        let in_use = self.line.queue.iter().any(|waiting| waits(&waiting.submit))
            || self.line.flights.iter().any(|flight| waits(&flight.waiting.submit));
        if in_use {
            out.push(Effect::Fail { ticket, failure: Failure::KeyInUse });
            return false;
        }
        if self.line.queue.len() >= ctx.policy.queue_max {
            out.push(Effect::Fail { ticket, failure: Failure::QueueFull });
            return false;
        }
        self.line.queue.push_back(Waiting { submit, alone: false, since: ctx.now });
        true
    }

    /// Whether, as its owner, this peer knows that every member holds the newest chosen record.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let Role::Owner(owner) = &self.role else { return false };
        owner.cfg.now.who.iter().all(|peer| owner.is_held_by(*peer))
    }

    /// Whether this peer, as the owner, has proposed a change of members that is not complete yet.
    #[must_use]
    pub fn is_changing_members(&self) -> bool {
        let Role::Owner(owner) = &self.role else { return false };
        let proposed = owner.work.proposal.as_ref().map(|it| it.record.cfg.now.c);
        proposed > owner.chosen.as_ref().map(|it| it.cfg.now.c)
    }

    /// Sends the newest chosen record again to the members that are not known to hold it, as the
    /// owner. A member that has forgotten the session cannot take it: it may have voted before
    /// (I3). It is added again, under a stamp above any that it forgot. A member that continued
    /// without the others is asked whether it has forgotten that.
    pub fn remind(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        if self.is_owner() {
            let fenced = |peer: &&Incarnation| self.heard.gone.get(*peer) == Some(&FENCED);
            let fenced: Vec<_> = self.members().iter().filter(fenced).copied().collect();
            self.locate(&fenced, out);
        }
        let forgetful = self.config().and_then(|cfg| {
            let forgot =
                |peer: &&Incarnation| self.is_gone(**peer, cfg) && !self.is_gone_for_good(**peer);
            cfg.now.who.iter().find(forgot).copied()
        });
        if forgetful.is_some() && self.change_members(ctx, forgetful, forgetful, out) {
            return;
        }
        let whole = self.is_whole();
        if let Role::Owner(owner) = &mut self.role
            && !whole
            && owner.chosen.is_some()
        {
            owner.work.laggards.get_or_insert_with(|| Resend::new(ctx));
        }
    }

    /// Asks the members, as the owner of an idle session, to accept its newest record again: a
    /// member that has promised another peer since answers that, and this peer steps down; a member
    /// that lost the record gets it. Members that hold it get no body.
    pub fn reassure(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let Role::Owner(owner) = &mut self.role else { return };
        if !owner.serving || owner.work.proposal.is_some() {
            return;
        }
        let Some(record) = &owner.chosen else { return };
        let held_here = self.copy.accepted.as_ref().is_some_and(|accepted| accepted.p == record.p);
        let mine = if held_here { owner.bit(ctx.me) } else { 0 };
        for to in record.cfg.now.who.iter().copied().filter(|peer| *peer != ctx.me) {
            if !self.heard.votes_are_gone(to, &record.cfg) {
                let body = BodyRef::Same(record.p);
                let message = Message::Accept { p: record.p, cfg: record.cfg.clone(), body };
                out.push(Effect::Send { to, message });
            }
        }
        owner.holders = mine;
        owner.work.laggards = Some(Resend::new(ctx));
    }

    /// Lets `to` take the session over once nothing is under way here: it gets an invitation, and
    /// no request gets its turn meanwhile. If it does not take over, this peer resumes.
    pub fn hand_off(&mut self, ctx: &mut Ctx<'_>, to: Incarnation, out: &mut Effects) {
        let Role::Owner(owner) = &mut self.role else { return };
        if owner.serving && owner.work.yielding.is_none() && to != ctx.me {
            let until = ctx.now.after(YIELD_WITHIN);
            owner.work.yielding = Some(Yielding { to, until, invited: None });
            self.settle(ctx, out);
        }
    }

    /// Replaces the member `gone`, by itself if it has forgotten the session, or adds one if there
    /// are fewer than there should be: in two steps, a seal that a majority of the old members
    /// chooses and the open form for the new ones (I5). `newcomer` must be alive and not be gone
    /// for good (see [`Session::is_gone_for_good`]). Returns whether it was begun, or waits for an
    /// answer of the other of two members; it is not begun while requests run alone or anything is
    /// proposed.
    pub fn change_members(
        &mut self,
        ctx: &mut Ctx<'_>,
        gone: Option<Incarnation>,
        newcomer: Option<Incarnation>,
        out: &mut Effects,
    ) -> bool {
        let Some(cfg) = self.seal_of(ctx, gone.as_slice(), newcomer) else { return false };
        if !self.asks_first(ctx, &cfg, gone, newcomer, out) {
            self.seal(ctx, cfg, out);
        }
        true
    }

    /// Goes on without the members `gone`, all of whom leave in one change, as in
    /// [`Session::change_members`]. One of those that leave may be needed for the seal's majority:
    /// it is asked for that one vote, and then the others go on without it. Returns whether the change
    /// was begun.
    pub fn leave_out(
        &mut self,
        ctx: &mut Ctx<'_>,
        gone: &[Incarnation],
        out: &mut Effects,
    ) -> bool {
        let Some(cfg) = self.seal_of(ctx, gone, None) else { return false };
        self.seal(ctx, cfg, out);
        true
    }

    /// The seal that such a change begins with, if it may begin now.
    pub(super) fn seal_of(
        &self,
        ctx: &Ctx<'_>,
        gone: &[Incarnation],
        newcomer: Option<Incarnation>,
    ) -> Option<Config> {
        let Role::Owner(owner) = &self.role else { return None };
        let running_alone = self.line.flights.iter().any(|flight| flight.exclusive);
        let busy = owner.work.proposal.is_some() || owner.work.yielding.is_some();
        if !owner.serving || running_alone || busy || owner.chosen.is_none() {
            return None;
        }
        let before = owner.cfg.now.clone();
        let mut who: Vec<Incarnation> = before
            .who
            .iter()
            .copied()
            .filter(|peer| !gone.contains(peer))
            .chain(newcomer)
            .collect();
        who.sort_unstable();
        who.dedup();
        let same = who == *before.who && !newcomer.is_some_and(|it| self.is_gone(it, &owner.cfg));
        if same || !(1..=MEMBERS_MAX).contains(&who.len()) {
            return None;
        }
        // The stamp is above any that the newcomer may have forgotten by its own report. If it
        // never votes again, no stamp is, and the highest one would keep its members from ever
        // forgetting it.
        if newcomer.is_some_and(|peer| self.is_gone_for_good(peer)) {
            return None;
        }
        let forgotten =
            newcomer.and_then(|peer| self.heard.gone.get(&peer)).copied().unwrap_or_default();
        let stamp = before.stamp.max(forgotten).saturating_add(1).max(ctx.wall.0);
        let who = who.into_iter().collect();
        let now = Members { c: before.c.saturating_add(1), stamp, who };
        Some(Config { now, prev: Some(Box::new(before)) })
    }

    /// Proposes the seal `cfg` of the chosen record.
    pub(super) fn seal(&mut self, ctx: &mut Ctx<'_>, cfg: Config, out: &mut Effects) {
        let Role::Owner(owner) = &mut self.role else { return };
        let Some(chosen) = owner.chosen.clone() else { return };
        (owner.work.joining, owner.work.wanted) = (None, None);
        let record = Record { p: owner.next_position(), cfg: Arc::new(cfg), body: chosen.body };
        self.propose(ctx, record, None, Some(chosen.p), out);
        self.settle(ctx, out);
    }

    /// The request's client is gone. A run or a proposal continues, but its response is dropped.
    pub fn cancel(&mut self, ctx: &mut Ctx<'_>, ticket: Ticket, out: &mut Effects) {
        self.line.queue.retain(|waiting| waiting.submit.ticket != ticket);
        self.line.flights.retain(|flight| flight.ticket() != ticket);
        self.line.forget_taken_back(ticket);
        self.settle(ctx, out);
    }

    /// Proposes `record`, which goes to every member that has not voted for it yet, this peer's own
    /// copy included. From here on it is never abandoned (I9).
    fn propose(
        &mut self,
        ctx: &mut Ctx<'_>,
        record: Record,
        voter: Option<Incarnation>,
        same_as: Option<Position>,
        out: &mut Effects,
    ) {
        let Role::Owner(owner) = &mut self.role else { return };
        assert!(owner.work.proposal.is_none(), "I4: one proposal at a time");
        // A member known to hold the body already does not get it; a wrong guess makes it ask.
        let need_full = match (&owner.chosen, same_as) {
            (Some(chosen), Some(at)) if chosen.p == at => {
                record.cfg.everyone().into_iter().filter(|it| !owner.is_held_by(*it)).collect()
            }
            _ => Few::default(),
        };
        owner.work.proposal = Some(Proposal {
            record,
            votes: voter.into_iter().collect(),
            resend: Resend::new(ctx),
            since: ctx.now,
            same_as,
            need_full,
            refused_by: Few::default(),
        });
        owner.work.full.offer_anew(ctx.now);
        self.vote_myself(ctx);
        self.send_accepts(ctx, out);
    }

    /// This peer's own vote for its proposal.
    fn vote_myself(&mut self, ctx: &Ctx<'_>) {
        let Role::Owner(owner) = &mut self.role else { return };
        let Some(proposal) = &mut owner.work.proposal else { return };
        let record = &proposal.record;
        if !record.cfg.contains(ctx.me) || proposal.votes.contains(&ctx.me) {
            return;
        }
        let body = BodyRef::Full(record.body.clone());
        match self.copy.accept(ctx, record.p, &record.cfg, &body) {
            Ok(Vote::Cast) => {
                proposal.votes.insert(ctx.me);
            }
            // A higher promise of this very copy deposes the owner at the end of the call.
            Ok(_) | Err(Shut::NotMember) => {}
            Err(Shut::Nack(NackReason::Forgotten)) => self.note_gone(ctx.me, self.copy.low),
            Err(Shut::Nack(NackReason::Fenced(_))) => self.note_gone(ctx.me, FENCED),
            Err(Shut::Nack(_)) => {}
        }
    }

    fn send_accepts(&mut self, ctx: &Ctx<'_>, out: &mut Effects) {
        let Role::Owner(owner) = &self.role else { return };
        let Some(proposal) = &owner.work.proposal else { return };
        for to in proposal.record.cfg.everyone() {
            let is_offer = !proposal.is_spared(to);
            if to != ctx.me
                && !proposal.votes.contains(&to)
                && !self.is_gone(to, &proposal.record.cfg)
                && (!is_offer || owner.work.full.may_offer(to, ctx.now))
            {
                out.push(Effect::Send { to, message: proposal.accept_for(to) });
            }
        }
    }

    /// Proposes again, at this ballot, the record that a takeover found.
    pub(super) fn reassert(&mut self, ctx: &mut Ctx<'_>, found: Record, out: &mut Effects) {
        let Role::Owner(owner) = &mut self.role else { return };
        let p = owner.next_position();
        let same_as = Some(found.p);
        let record = Record { p, cfg: found.cfg, body: found.body };
        self.propose(ctx, record, None, same_as, out);
        self.settle(ctx, out);
    }

    /// Whether anything may follow from a member's vote: not from one more for what is chosen.
    pub(super) fn on_accepted(&mut self, from: Incarnation, p: Position) -> bool {
        let Role::Owner(owner) = &mut self.role else { return true };
        let has_room = owner.work.full == Full::NONE;
        if !has_room {
            owner.work.full.accepted(from);
        }
        if let Some(proposal) = owner.work.proposal.as_mut().filter(|it| it.record.p == p) {
            proposal.votes.insert(from);
        } else if owner.chosen.as_ref().is_some_and(|record| record.p == p) {
            owner.holders |= owner.bit(from);
            if owner.cfg.now.who.iter().all(|peer| owner.is_held_by(*peer)) {
                owner.work.laggards = None;
            }
            return !has_room || owner.work.proposal.is_some();
        }
        true
    }

    pub(super) fn on_need_full(&mut self, from: Incarnation, p: Position, out: &mut Effects) {
        let Role::Owner(owner) = &mut self.role else { return };
        if let Some(proposal) = owner.work.proposal.as_mut().filter(|it| it.record.p == p) {
            proposal.need_full.insert(from);
            out.push(Effect::Send { to: from, message: proposal.accept_for(from) });
        } else if let Some(record) = owner.chosen.as_ref().filter(|record| record.p == p) {
            // Others have chosen it meanwhile.
            out.push(Effect::Send { to: from, message: accept_full(record) });
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a promise, taken apart by its one caller")]
    pub(super) fn on_promise(
        &mut self,
        _ctx: &mut Ctx<'_>,
        from: Incarnation,
        b: Ballot,
        cfg: &Config,
        nonce: u64,
        accepted: Option<AcceptedInfo>,
        _out: &mut Effects,
    ) {
        match &mut self.role {
            Role::Owner(owner) if owner.b == b && *owner.cfg == *cfg => {
                if let Some(asking) = &mut owner.work.asking {
                    let highest = asking.answered.entry(from).or_default();
                    *highest = (*highest).max(nonce);
                }
            }
            Role::Preparing(_) => self.on_promise_preparing(from, b, cfg, accepted),
            _ => {}
        }
    }

    /// A member has promised a higher ballot.
    pub(super) fn outvoted_by(&mut self, ctx: &mut Ctx<'_>, by: Ballot, out: &mut Effects) {
        if self.ballot().is_some_and(|mine| mine < by) {
            // The entry may be dropped, with the ballots that it knew: the next takeover still has
            // to use a higher one, or it would be refused without end.
            ctx.process.round_ctr = ctx.process.round_ctr.max(by.round);
            self.step_down(ctx, by, out);
        }
    }

    /// Gives ownership up, which is always safe. Requests that ran or were proposed have an unknown
    /// outcome; the others go to the session's owner.
    pub(super) fn step_down(&mut self, _ctx: &mut Ctx<'_>, by: Ballot, out: &mut Effects) {
        let n = match &self.role {
            Role::Owner(owner) => owner.settled_n(),
            _ => 0,
        };
        self.role = Role::None;
        self.heard.note_owner(by);
        out.push(Effect::Deposed { by });
        let to = self.claim();
        for flight in core::mem::take(&mut self.line.flights) {
            let ticket = flight.ticket();
            let unknown = match flight.stage {
                Stage::Proposed => true,
                Stage::Turned => false,
                Stage::Running { .. } | Stage::Confirming { .. } => !flight.waiting.submit.safe,
            };
            out.push(if unknown {
                Effect::Fail { ticket, failure: Failure::Deposed { to, n } }
            } else {
                Effect::Redirect { ticket, to }
            });
        }
        self.redirect_all(to, out);
    }

    pub(super) fn redirect_all(&mut self, to: Option<Ballot>, out: &mut Effects) {
        for waiting in core::mem::take(&mut self.line.queue) {
            out.push(Effect::Redirect { ticket: waiting.submit.ticket, to });
        }
    }

    pub(super) fn fail_all(&mut self, failure: Failure, out: &mut Effects) {
        for waiting in core::mem::take(&mut self.line.queue) {
            out.push(Effect::Fail { ticket: waiting.submit.ticket, failure });
        }
    }
}

impl Proposal {
    /// Whether messages to `to` leave out the body.
    fn is_spared(&self, to: Incarnation) -> bool {
        self.same_as.is_some() && !self.need_full.contains(&to)
    }

    fn accept_for(&self, to: Incarnation) -> Message {
        let body = match self.same_as {
            Some(at) if self.is_spared(to) => BodyRef::Same(at),
            _ => BodyRef::Full(self.record.body.clone()),
        };
        Message::Accept { p: self.record.p, cfg: self.record.cfg.clone(), body }
    }
}

fn accept_full(record: &Record) -> Message {
    let body = BodyRef::Full(record.body.clone());
    Message::Accept { p: record.p, cfg: record.cfg.clone(), body }
}

fn tell_dismissed(owner: &Owner, who: &Few, watermark: u64, out: &mut Effects) {
    for to in &who.0 {
        let (promised, cfg) = (Some(owner.b), Some(owner.cfg.clone()));
        let message = Message::Nack { reason: NackReason::Higher, promised, cfg, watermark };
        out.push(Effect::Send { to: *to, message });
    }
}

fn send_asks(ctx: &Ctx<'_>, owner: &Owner, nonce: u64, out: &mut Effects) {
    let expiry = ctx.wall.after(ctx.policy.ttl);
    let others: Vec<Incarnation> =
        owner.cfg.now.who.iter().copied().filter(|peer| *peer != ctx.me).collect();
    for to in others {
        let message = Message::Prepare {
            b: owner.b,
            cfg: owner.cfg.clone(),
            want_body: false,
            polite: false,
            nonce,
            expiry,
            into: None,
        };
        out.push(Effect::Send { to, message });
    }
}

/// What the model check needs to see of the owner.
#[cfg(test)]
impl Session {
    /// As after a token left that names the session.
    pub(super) fn name(&mut self) {
        if let Role::Owner(owner) = &mut self.role {
            owner.unnamed = false;
        }
    }

    /// The requests whose turn has come, the stage of each, and at which ballot.
    pub(super) fn flying(&self) -> impl Iterator<Item = (Ticket, Stage, Option<Ballot>)> {
        self.line.flights.iter().map(|flight| (flight.ticket(), flight.stage, self.ballot()))
    }

    /// The position of the newest record that it knows to be chosen.
    pub(super) fn newest_chosen(&self) -> Option<Position> {
        match &self.role {
            Role::Owner(owner) => owner.chosen.as_ref().map(|record| record.p),
            _ => None,
        }
    }

    /// The record that it proposes.
    pub(super) fn proposing(&self) -> Option<&Record> {
        match &self.role {
            Role::Owner(owner) => owner.work.proposal.as_ref().map(|proposal| &proposal.record),
            _ => None,
        }
    }
}

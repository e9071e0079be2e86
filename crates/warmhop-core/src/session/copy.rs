//! A copy: the acceptor of the register (CASPaxos, Rystsov 2018, section 2.2), and the
//! executor that votes while it executes.
//!
//! Refuses to know who owns the session and why: it grants what its gate lets through. Its promises
//! never fall (I2), and it casts no vote in a configuration in which it may have forgotten one
//! (I3).

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::message::{
    AcceptedInfo, Base, Birth, Body, BodyRef, Config, Exec, ExecDone, NackReason, Record, Stored,
};
use super::mutant::{self, Mutant};
use super::{Ctx, Empty, Seldom, recent};
use crate::ids::{Ballot, Incarnation, Position, SessionId, WallTime};

/// How many births of one session are remembered: for each beginner one in each configuration. A
/// further birth has to wait for the others. Beginners that agree on the members use the same
/// configuration.
const BIRTHS_MAX: usize = 32;
/// How much longer than its owner a member remembers a session that is over. A request that its owner
/// took at the last moment still finds the members, and one that comes just after that finds them
/// without it.
pub(super) const LONGER_THAN_OWNER: Duration = Duration::from_secs(5);

/// The state that a copy keeps of one session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Replica {
    /// Stamps up to this one may have been forgotten before the entry was made.
    pub(super) low: u64,
    /// The promised ballot, if it is not the ballot of the accepted record.
    above: Option<Box<Ballot>>,
    pub(super) accepted: Option<Record>,
    /// The highest stamp in which a vote was asked for.
    pub(super) stamp_hi: u64,
    /// When the entry may be forgotten; zero while nothing was granted.
    pub(super) forget_at: WallTime,
    pub(super) seldom: Seldom<Marks>,
}

/// State that few copies need.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Marks {
    /// The session that this copy continued as, after its vote was withdrawn.
    pub(super) fenced: Option<SessionId>,
    /// The highest position for which a request ran here, while no record of it is accepted.
    ran: Option<Position>,
    /// The configurations in which the session may continue at ballots promised above that of the
    /// accepted record.
    births: Vec<Birth>,
    /// The birth that this peer tries, until it owns the session by it or gives it up.
    trying: Option<Trying>,
}

impl Empty for Marks {
    const EMPTY: &'static Self =
        &Self { fenced: None, ran: None, births: Vec::new(), trying: None };
}

/// A birth of this peer's own by which nothing was proposed yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Trying {
    birth: Birth,
    /// The ballot of an earlier birth in the same configuration, by which this peer came to own the
    /// session.
    before: Option<Ballot>,
}

/// Why the gate is shut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shut {
    /// The message is about a configuration that this peer is not in.
    NotMember,
    /// The sender gets a `Nack`.
    Nack(NackReason),
}

/// The outcome of an `Accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vote {
    /// Stored, or stored before.
    Cast,
    /// A later record of the same ballot is held already.
    Late,
    /// The body referred to is not held; no vote was cast.
    NeedFull,
}

impl Replica {
    pub(super) fn new(watermark: u64) -> Self {
        Self {
            low: watermark,
            above: None,
            accepted: None,
            stamp_hi: 0,
            forget_at: WallTime::default(),
            seldom: Seldom::default(),
        }
    }

    /// The highest promised ballot.
    pub(super) fn promised(&self) -> Option<Ballot> {
        let accepted = self.accepted.as_ref().map(|record| record.p.ballot);
        self.above.as_deref().copied().or(accepted)
    }

    /// Gives up the record here, for another history of the session. The promises stay.
    pub(super) fn drop_history(&mut self) {
        self.above = self.promised().map(Box::new);
        self.accepted = None;
    }

    /// Whether the held record is not of the last promised ballot.
    pub(super) fn is_claimed(&self) -> bool {
        self.accepted.is_some() && self.above.is_some()
    }

    /// Whether dropping the entry without a trace would lose nothing.
    pub(super) fn is_blank(&self) -> bool {
        self.above.is_none()
            && self.accepted.is_none()
            && self.seldom.fenced.is_none()
            && self.stamp_hi == 0
            && self.forget_at == WallTime::default()
    }

    /// Whether `cfg` asks for a vote in a configuration that may have been forgotten.
    pub(super) fn may_have_forgotten(&self, me: Incarnation, cfg: &Config) -> bool {
        cfg.sets().any(|set| set.contains(me) && set.stamp <= self.low)
    }

    /// Whether the gate would let `b` through, without changing anything.
    pub(super) fn check(&self, me: Incarnation, cfg: &Config, b: Ballot) -> Result<(), Shut> {
        if !cfg.contains(me) {
            return Err(Shut::NotMember);
        }
        if let Some(into) = self.seldom.fenced {
            return Err(Shut::Nack(NackReason::Fenced(into)));
        }
        if self.may_have_forgotten(me, cfg) {
            return Err(Shut::Nack(NackReason::Forgotten));
        }
        if self.promised().is_some_and(|promised| promised > b)
            && !mutant::on(Mutant::VoteBelowPromise)
        {
            return Err(Shut::Nack(NackReason::Higher));
        }
        Ok(())
    }

    /// The vote gate `G`: to pass it is a promise.
    pub(super) fn gate(&mut self, me: Incarnation, cfg: &Config, b: Ballot) -> Result<(), Shut> {
        self.check(me, cfg, b)?;
        let held = self.accepted.as_ref().is_some_and(|record| record.p.ballot == b);
        self.above = (!held).then(|| Box::new(b));
        self.note_stamps(cfg);
        Ok(())
    }

    /// Remembers that this peer took part in `cfg`, so that forgetting the session covers it.
    pub(super) fn note_stamps(&mut self, cfg: &Config) {
        for set in cfg.sets() {
            self.stamp_hi = self.stamp_hi.max(set.stamp);
        }
    }

    /// Keeps the entry until `expiry` and the grace after it.
    pub(super) fn keep_until(&mut self, expiry: WallTime, grace: Duration) {
        self.forget_at = self.forget_at.max(expiry.after(grace));
    }

    /// Whether the record at `p` is all that is kept: nothing else was promised since.
    pub(super) fn rests_on(&self, p: Position) -> bool {
        self.accepted.as_ref().is_some_and(|record| record.p == p)
            && self.above.is_none()
            && self.seldom.births.is_empty()
    }

    /// An owner outside of the members keeps its promise for as long as the members may keep the
    /// records that it had chosen, and no longer.
    pub(super) fn owns_elsewhere(&mut self, b: Ballot, until: WallTime) {
        let others = self.seldom.births.iter().any(|birth| birth.b > b);
        if self.accepted.is_none() && self.promised() == Some(b) && !others {
            self.forget_at = until;
        }
    }

    /// The configurations in which the session may continue at ballots below `b`, as far as this
    /// copy knows.
    pub(super) fn births(&self, b: Option<Ballot>) -> Vec<Birth> {
        let births = self.seldom.births.iter();
        births.filter(|birth| b.is_none_or(|b| birth.b < b)).cloned().collect()
    }

    /// Remembers that the session may continue in `cfg` at `b`, which was promised. Returns false
    /// if it may continue in too many configurations.
    pub(super) fn remember(&mut self, b: Ballot, cfg: &Arc<Config>) -> bool {
        // A birth that one beginner gave up says nothing about another's in the same configuration.
        let same = |birth: &Birth| birth.cfg == *cfg && birth.b.proposer == b.proposer;
        if let Some(known) = self.seldom.births.iter().position(same) {
            self.seldom.births[known].b = b;
            return true;
        }
        let has_room = self.seldom.births.len() < BIRTHS_MAX;
        if has_room {
            self.seldom.births.push(Birth { b, cfg: cfg.clone() });
        }
        has_room
    }

    /// Phase one of a birth in `cfg`, whether this peer is a member or not: it passes the vote gate
    /// for `cfg` and for every configuration that the birth closes, and remembers where the session
    /// may continue.
    pub(super) fn begin(
        &mut self,
        me: Incarnation,
        b: Ballot,
        cfg: &Arc<Config>,
        over: &[Arc<Config>],
    ) -> Result<(), Shut> {
        if let Some(into) = self.seldom.fenced {
            return Err(Shut::Nack(NackReason::Fenced(into)));
        }
        if over.iter().chain([cfg]).any(|cfg| self.may_have_forgotten(me, cfg)) {
            return Err(Shut::Nack(NackReason::Forgotten));
        }
        if self.promised().is_some_and(|promised| promised > b) {
            return Err(Shut::Nack(NackReason::Higher));
        }
        if mutant::on(Mutant::ForgetBirth) && !cfg.contains(me) {
            return Ok(());
        }
        let before = self.birth_of(me, cfg);
        if !self.remember(b, cfg) {
            return Err(Shut::NotMember);
        }
        let is_new = self.seldom.trying.as_ref().is_none_or(|it| it.birth.b != b);
        if b.proposer == me && is_new {
            self.seldom.trying = Some(Trying { birth: Birth { b, cfg: cfg.clone() }, before });
        }
        self.above = Some(Box::new(b));
        over.iter().chain([cfg]).for_each(|cfg| self.note_stamps(cfg));
        Ok(())
    }

    fn birth_of(&self, by: Incarnation, cfg: &Config) -> Option<Ballot> {
        let mut births = self.seldom.births.iter();
        births.find(|it| *it.cfg == *cfg && it.b.proposer == by).map(|it| it.b)
    }

    /// The ballot of the birth that this peer tries.
    pub(super) fn tries(&self) -> Option<Ballot> {
        self.seldom.trying.as_ref().map(|trying| trying.birth.b)
    }

    /// The birth that this peer tried made it the owner: from now on it may propose by it.
    pub(super) fn came_about(&mut self) {
        if self.seldom.trying.is_some() {
            self.seldom.trying = None;
            self.seldom.tidy();
        }
    }

    /// Forgets what belongs to configurations up to `stamp`, which were found lost or over, though it
    /// has promised something newer since. As after forgetting, it votes in none of those; its promise
    /// stays.
    pub(super) fn retire(&mut self, stamp: u64) {
        let is_over = |cfg: &Config| cfg.now.stamp <= stamp;
        if self.accepted.as_ref().is_some_and(|record| !is_over(&record.cfg)) {
            return;
        }
        self.above = self.promised().map(Box::new);
        self.accepted = None;
        self.low = self.low.max(stamp);
        if self.seldom.births.iter().any(|birth| is_over(&birth.cfg)) {
            self.seldom.births.retain(|birth| !is_over(&birth.cfg));
            self.seldom.tidy();
        }
    }

    /// The birth that this peer tried failed: it proposed nothing by it, and will not. Later
    /// answers about births leave it out ([`Word`](super::takeover::Word)).
    pub(super) fn came_to_nothing(&mut self) {
        if self.seldom.trying.is_none() {
            return;
        }
        let marks = &mut *self.seldom;
        if let Some(Trying { birth, before }) = marks.trying.take() {
            match before {
                Some(b) => {
                    marks.births.iter_mut().filter(|it| **it == birth).for_each(|it| it.b = b);
                }
                None => marks.births.retain(|it| *it != birth),
            }
        }
        self.seldom.tidy();
    }

    /// What a promise reports about the accepted record.
    pub(super) fn accepted_info(&self, want_body: bool) -> Option<AcceptedInfo> {
        self.accepted.as_ref().map(|record| AcceptedInfo {
            p: record.p,
            cfg: record.cfg.clone(),
            body: want_body.then(|| record.body.clone()),
        })
    }

    /// Phase two.
    pub(super) fn accept(
        &mut self,
        ctx: &Ctx<'_>,
        p: Position,
        cfg: &Arc<Config>,
        body: &BodyRef,
    ) -> Result<Vote, Shut> {
        self.check(ctx.me, cfg, p.ballot)?;
        let held = self.accepted.as_ref();
        let body = match (held.map(|record| record.p), body) {
            (Some(at), _) if at == p => None,
            (Some(at), _) if at > p => return Ok(Vote::Late),
            (_, BodyRef::Full(body)) => Some(body.clone()),
            (_, BodyRef::Same(at)) => match held.filter(|record| record.p == *at) {
                Some(record) => Some(record.body.clone()),
                None => return Ok(Vote::NeedFull),
            },
        };
        self.gate(ctx.me, cfg, p.ballot)?;
        if self.is_past(cfg) {
            return Err(Shut::NotMember);
        }
        if let Some(body) = body {
            self.store(ctx, Record { p, cfg: cfg.clone(), body });
        }
        Ok(Vote::Cast)
    }

    /// Whether `cfg` is the seal of a change from a configuration that came to an end before the one held here
    /// began: its owner was away, and makes its change after the session was over and was begun anew.
    fn is_past(&self, cfg: &Config) -> bool {
        let Some(held) = self.accepted.as_ref().map(|record| &record.cfg) else { return false };
        let since = held.prev.as_deref().unwrap_or(&held.now).stamp;
        cfg.prev.as_deref().is_some_and(|before| before.stamp < since && held.now != cfg.now)
    }

    fn store(&mut self, ctx: &Ctx<'_>, record: Record) {
        assert!(
            self.accepted.as_ref().is_none_or(|held| held.p < record.p),
            "I2: a copy replaces its record by a later one only"
        );
        if self.seldom.ran.is_some_and(|ran| ran <= record.p) {
            self.seldom.ran = None;
            self.seldom.tidy();
        }
        // A peer that proposes at this ballot has closed the births below it.
        if !self.seldom.births.is_empty() {
            self.seldom.births.retain(|birth| birth.b > record.p.ballot);
            self.seldom.tidy();
        }
        // Accepting includes a promise of the record's ballot and ends all earlier promises: the record
        // decides for how long this copy matters. A record that holds nothing counts from now on,
        // however long ago its session ended.
        self.above = None;
        let grace = ctx.policy.forget_grace + LONGER_THAN_OWNER;
        let is_over = record.body.state.is_none();
        let end = if is_over { record.body.expiry.max(ctx.wall) } else { record.body.expiry };
        if self.seldom.births.is_empty() {
            self.forget_at = WallTime::default();
        }
        self.keep_until(end, grace);
        self.accepted = Some(record);
    }

    /// Whether this copy could vote for the outcome of `exec`.
    fn may_vote(&self, me: Incarnation, exec: &Exec, p: Position) -> Result<(), NackReason> {
        match self.check(me, &exec.cfg, p.ballot) {
            Ok(()) => {}
            Err(Shut::Nack(reason)) => return Err(reason),
            // Only a member is asked to vote; the owner is wrong about the members.
            Err(Shut::NotMember) => return Err(NackReason::Forgotten),
        }
        if self.accepted.as_ref().is_some_and(|held| held.p >= p) {
            return Err(NackReason::Higher);
        }
        Ok(())
    }

    /// Lets `exec` run, on the returned body, or returns why it may not.
    pub(super) fn exec_begin(
        &mut self,
        me: Incarnation,
        exec: &Exec,
        chosen: Option<&Record>,
        watermark: u64,
        grace: Duration,
    ) -> Result<Arc<Body>, ExecDone> {
        let promised = self.promised();
        let refused = |reason| ExecDone::Refused { reason, promised, watermark };
        let Some(p) = exec.p else {
            return self.base(exec, chosen);
        };
        // Even without a vote, the outcome of an order from a deposed owner cannot be chosen.
        let ran = self.seldom.ran.max(self.accepted.as_ref().map(|record| record.p));
        if promised.is_some_and(|promised| promised > p.ballot) || ran >= Some(p) {
            return Err(refused(NackReason::Higher));
        }
        if exec.vote {
            self.may_vote(me, exec, p).map_err(refused)?;
        }
        let base = self.base(exec, chosen)?;
        // The promise comes with the vote: until then only the fact that it runs is kept, so that a
        // request which changes nothing costs nothing. If that were forgotten with an otherwise
        // empty entry, an order that arrives twice would run twice, and the result that reaches the
        // owner first need not be the one that this copy votes for (I1).
        self.seldom.ran = Some(p);
        if exec.vote {
            self.keep_until(exec.expiry, grace);
        }
        Ok(base)
    }

    fn base(&self, exec: &Exec, chosen: Option<&Record>) -> Result<Arc<Body>, ExecDone> {
        match &exec.base {
            Base::Inline(None) => Ok(Arc::default()),
            Base::Inline(Some(record)) => Ok(record.body.clone()),
            Base::Held(at) => [chosen, self.accepted.as_ref()]
                .into_iter()
                .flatten()
                .find(|record| record.p == *at || mutant::on(Mutant::AnyBase))
                .map(|record| record.body.clone())
                .ok_or(ExecDone::NeedBase),
        }
    }

    /// Stores the outcome of `exec`, and votes for it if it was asked to and still may.
    pub(super) fn exec_end(
        &mut self,
        ctx: &Ctx<'_>,
        exec: &Exec,
        base: &Body,
        change: Option<Option<Arc<[u8]>>>,
        stored: Stored,
        until: Option<WallTime>,
    ) -> ExecDone {
        let (me, policy) = (ctx.me, ctx.policy);
        let may_vote = exec.p.filter(|_| exec.vote).filter(|p| self.may_vote(me, exec, *p).is_ok());
        if change.is_none() && !exec.keyed {
            if self.promised().is_none() && self.seldom.fenced.is_none() {
                self.forget_at = WallTime::default();
            }
            return ExecDone::Unchanged { confirmed: may_vote.is_some() };
        }
        let n = exec.p.map_or(0, |p| p.n);
        let body = Arc::new(recent::compose(base, exec, n, change, stored, until, policy));
        let voted = may_vote.is_some_and(|p| self.gate(me, &exec.cfg, p.ballot).is_ok());
        if let Some(p) = may_vote.filter(|_| voted) {
            let record = Record { p, cfg: exec.cfg.clone(), body: body.clone() };
            self.store(ctx, record);
        }
        ExecDone::Changed { body, voted }
    }
}

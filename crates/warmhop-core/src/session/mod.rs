//! One session as a replicated register: a machine per session per peer.
//!
//! The register is in the family of CASPaxos (Rystsov 2018) with a stable proposer, the
//! *owner*, and a Raft-like change of one member at a time, done in two steps. There is no
//! log and no global membership: each session carries its own [`Config`], and the client's
//! token carries a hint of it.
//!
//! A [`Session`] owns everything this peer knows and may do about one session. It holds up
//! to three parts: the *copy* (`copy.rs`), the *takeover* (`takeover.rs`) and the *owner*
//! (`owner.rs`). It refuses to know where an app is ready, what a request looks like, what time it
//! is and how a message travels: time, random bits and the process's counters come in with each
//! call as a [`Ctx`], and actions for the runtime go out as [`Effect`]s. The same calls give the
//! same effects.
//!
//! ```text
//!             mint                       take_over
//!   ┌──────┐ ─────▶ ┌───────┐        ┌───────────┐ ◀───── ┌──────┐
//!   │ copy │        │ owner │ ◀───── │ preparing │        │ copy │
//!   └──────┘ ◀───── └───────┘ nothing└───────────┘ ─────▶ └──────┘
//!        deposed      ▲     ▲ chosen   │ a record   outvoted, or no majority in time
//!                open │     │          ▼
//!             ┌─────────┐   │ open  ┌─────────────┐
//!             │ opening │   └────── │ reasserting │
//!             └─────────┘ ◀──────── └─────────────┘
//!                           a seal
//!
//!   a request:  queued ─Turn▶ turned ─begin▶ running ─executed▶ proposed   ─▶ Release
//!                                 ▲            │      └───────▶ confirming ─▶ Release
//!                                 └── again ───┘
//! ```
//!
//! # Invariants
//! * **I1** One body for each position.
//! * **I2** What a copy promised never falls, and its record is replaced by a later one only.
//! * **I3** No vote is cast in a configuration whose votes may have been forgotten.
//! * **I4** Chosen records, ordered by position, extend one another.
//! * **I5** The open configuration `c + 1` is proposed only after the seal from `c` is chosen.
//! * **I6** Each request key occurs once in a history.
//! * **I7** Responses come only from chosen, open records.
//! * **I8** A read reflects everything acknowledged before it arrived.
//! * **I9** A position is used for one attempt: an abandoned number is spent, and a proposal
//!   that left this peer is never abandoned.

mod anew;
pub mod begun;
pub mod census;
pub mod claim;
mod copy;
mod doubt;
pub mod entry;
mod joining;
mod look;
pub mod message;
#[cfg(test)]
mod model;
mod mutant;
mod owner;
mod reach;
mod recent;
pub mod repair;
mod takeover;
mod terms;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};
use core::time::Duration;

use crate::ids::{Ballot, Incarnation, Now, Position, SessionId, WallTime};
use claim::Question;
use copy::{LONGER_THAN_OWNER, Replica, Shut, Vote};
use doubt::Doubt;
use message::{
    Body, BodyRef, Config, Ended, Exec, ExecDone, Message, NackReason, Part, Record, Stored,
};
use owner::{Flight, Owner, TakenBack, Waiting};
use takeover::{Takeover, Word};

pub use takeover::Otherwise;
pub use terms::{Ctx, Effect, Effects, Failure, Outcome, Process, Submit, Ticket, TokenHint};

/// This peer's part in the session besides its copy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Role {
    None,
    Preparing(Box<Takeover>),
    Owner(Box<Owner>),
}

/// One session on one peer. See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Session {
    sid: SessionId,
    copy: Replica,
    role: Role,
    line: Seldom<Line>,
    heard: Seldom<Heard>,
}

/// The requests at this peer's part in the session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Line {
    /// Requests that wait for their turn, oldest first.
    queue: VecDeque<Waiting>,
    /// Requests whose turn has come, in the order it came.
    flights: Vec<Flight>,
    /// The request whose change is taken back.
    taken_back: Option<TakenBack>,
}

impl Empty for Line {
    const EMPTY: &'static Self =
        &Self { queue: VecDeque::new(), flights: Vec::new(), taken_back: None };
}

/// The stamp up to which votes are lost if the process is gone for good.
const DEAD: u64 = u64::MAX;
/// The same if the process continued without the others: it does not vote until it has forgotten
/// that.
const FENCED: u64 = u64::MAX - 1;
/// The nonce of a question whose answer is a hint, whenever it comes: this value is never drawn.
const NO_NONCE: u64 = 0;

/// Reports of others about the session. All are hints, except for `gone`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Heard {
    /// Up to which stamp the votes of a process are lost: for good if that is [`DEAD`], and in all
    /// configurations if it is [`FENCED`].
    gone: BTreeMap<Incarnation, u64>,
    cfg: Option<Arc<Config>>,
    owner: Option<Ballot>,
    /// The peer that the runtime last reported as lost.
    absent: Option<Incarnation>,
    /// The session that a copy continued as without its majority, and the process that did so.
    went_on: Option<(SessionId, Incarnation)>,
    /// The question to the peer that claims the session.
    question: Option<Question>,
    /// Whether the copy, whose time is over, is all there was.
    doubt: Option<Doubt>,
    /// The stamp of the newest configuration that the last search found lost.
    lost: u64,
    /// The stamp up to which this peer asked everyone to forget the session: what others report of
    /// such configurations is out of date.
    over: u64,
}

impl Empty for Heard {
    const EMPTY: &'static Self = &Self {
        gone: BTreeMap::new(),
        cfg: None,
        owner: None,
        absent: None,
        went_on: None,
        question: None,
        doubt: None,
        lost: 0,
        over: 0,
    };
}

impl Heard {
    fn note_cfg(&mut self, cfg: &Arc<Config>) {
        if self.cfg.as_ref().is_none_or(|known| known.step() < cfg.step()) {
            self.cfg = Some(cfg.clone());
        }
    }

    fn note_owner(&mut self, ballot: Ballot) {
        self.owner = self.owner.max(Some(ballot));
    }

    /// Whether the votes of `peer` in every set of `cfg` that it is in are gone for good.
    fn votes_are_gone(&self, peer: Incarnation, cfg: &Config) -> bool {
        let gone = self.gone.get(&peer).copied().unwrap_or_default();
        cfg.sets().filter(|set| set.contains(peer)).all(|set| set.stamp <= gone)
    }
}

/// State that most sessions lack most of the time. A million of them may be idle on one peer, and
/// each pays a pointer for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Seldom<T>(Option<Box<T>>);

trait Empty: Default + PartialEq + 'static {
    const EMPTY: &'static Self;
}

impl<T: Empty> Seldom<T> {
    /// Frees an empty value.
    fn tidy(&mut self) {
        if self.0.as_deref() == Some(T::EMPTY) {
            self.0 = None;
        }
    }
}

impl<T: Empty> Deref for Seldom<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::EMPTY)
    }
}

impl<T: Empty> DerefMut for Seldom<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

/// When to send again: after doubling spans with jitter, without end, at a bounded rate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Resend {
    at: Now,
    tries: u32,
}

impl Resend {
    const DOUBLINGS_MAX: u32 = 3;

    fn new(ctx: &Ctx<'_>) -> Self {
        let mut resend = Self { at: ctx.now, tries: 0 };
        resend.schedule(ctx);
        resend
    }

    fn schedule(&mut self, ctx: &Ctx<'_>) {
        let base = ctx.policy.resend_after.max(Duration::from_millis(1))
            * (1 << self.tries.min(Self::DOUBLINGS_MAX));
        let millis = u64::try_from(base.as_millis()).unwrap_or(u64::MAX);
        let jitter = Duration::from_millis(ctx.dice % (millis / 4 + 1));
        self.at = ctx.now.after(base).after(jitter);
    }

    /// Whether it is time to send; if so, sets the next time.
    fn due(&mut self, ctx: &Ctx<'_>) -> bool {
        let due = self.at <= ctx.now;
        if due {
            self.tries = self.tries.saturating_add(1);
            self.schedule(ctx);
        }
        due
    }
}

impl Session {
    /// A peer's empty entry for a session. Any stamp that the process has forgotten may have been
    /// this session's.
    #[must_use]
    pub fn new(sid: SessionId, process: &Process) -> Self {
        Self {
            sid,
            copy: Replica::new(process.watermark),
            role: Role::None,
            line: Seldom::default(),
            heard: Seldom::default(),
        }
    }

    /// Handles a message. The sender's identity comes from the link, not from the message.
    pub fn on_message(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Incarnation,
        message: Message,
        out: &mut Effects,
    ) {
        let is_back = self.is_back(from);
        match message {
            Message::Prepare { b, cfg, want_body, polite, nonce, expiry, into } => {
                if b.proposer == from {
                    let asked = Asked { b, cfg, want_body, polite, nonce, expiry, into };
                    self.on_prepare(ctx, from, asked, out);
                }
            }
            Message::Accept { p, cfg, body } => {
                if p.ballot.proposer == from {
                    self.on_accept(ctx, from, p, &cfg, &body, out);
                }
            }
            Message::Promise { b, cfg, nonce, accepted, births } => {
                let accepted = accepted.filter(|info| !self.is_over(&info.cfg));
                let held = accepted.as_ref().map(|info| info.p);
                self.hear_word(from, Some(Word::of(from, b, &births, held, Part::None)));
                self.hear_births(b, births);
                self.on_promise(ctx, from, b, &cfg, nonce, accepted, out);
            }
            Message::Begin { b, cfg, over, expiry, census, nonce } => {
                if b.proposer == from {
                    self.on_begin(ctx, from, b, &cfg, over, expiry, (nonce, census), out);
                }
            }
            Message::Free { b, over, births, census } => {
                self.on_free(ctx, from, b, &over, births, census.as_deref(), out);
            }
            Message::Accepted { p } => {
                if !self.on_accepted(from, p) && !is_back {
                    return self.tidy();
                }
            }
            Message::NeedFull { p } => self.on_need_full(from, p, out),
            Message::Nack { reason, promised, cfg, watermark } => {
                self.hear_of(promised, cfg.as_ref());
                self.on_nack(ctx, from, reason, promised, watermark, out);
            }
            Message::Locate { census, nonce, bytes: _ } => self.tell(ctx, from, nonce, census, out),
            Message::Located {
                nonce,
                p,
                cfg,
                promised,
                fenced,
                dead,
                mut births,
                census,
                part,
            } => {
                // It was sent before its sender heard that it should forget that: no answer yet.
                let is_late = cfg.as_ref().is_some_and(|cfg| self.is_over(cfg));
                let (p, cfg) = if is_late { (None, None) } else { (p, cfg) };
                let nonce = if is_late { NO_NONCE } else { nonce };
                births.retain(|birth| !self.is_over(&birth.cfg));
                self.hear_of(promised, cfg.as_ref());
                if let Some(into) = fenced {
                    self.heard.went_on = Some((into, from));
                } else {
                    self.votes_again(from);
                }
                for peer in dead {
                    self.peer_dead(peer);
                }
                self.on_part(from, part, ctx.now);
                self.hear_word(from, promised.map(|b| Word::of(from, b, &births, p, part)));
                self.asked_answered(ctx, from, nonce, p.zip(cfg.as_ref()), out);
                self.doubt_answered(ctx, from, nonce, p.zip(cfg.as_ref()));
                let record = p.and(cfg.clone());
                self.on_located(ctx, from, nonce, record, births, census.as_deref(), out);
                let cfg = cfg.map(Arc::unwrap_or_clone);
                out.push(Effect::Located { from, p, cfg, promised, fenced });
            }
            Message::Invite { cfg } => {
                self.heard.note_cfg(&cfg);
                out.push(Effect::Invited { cfg: Arc::unwrap_or_clone(cfg) });
            }
            Message::Retire { stamp } => self.retire(ctx, stamp),
            Message::Delta | Message::Lease => {}
        }
        self.settle(ctx, out);
    }

    /// Notes that a peer is heard; returns whether it had counted as absent.
    fn is_back(&mut self, from: Incarnation) -> bool {
        let is_back = self.heard.absent == Some(from);
        if is_back {
            self.heard.absent = None;
        }
        is_back
    }

    /// Whether everyone was asked to forget `cfg`.
    fn is_over(&self, cfg: &Config) -> bool {
        cfg.now.stamp <= self.heard.over
    }

    /// Notes the highest ballot that another peer has promised or knows, and a configuration.
    fn hear_of(&mut self, ballot: Option<Ballot>, cfg: Option<&Arc<Config>>) {
        if let Some(cfg) = cfg.filter(|cfg| !self.is_over(cfg)) {
            self.heard.note_cfg(cfg);
        }
        if let Some(ballot) = ballot {
            self.heard.note_owner(ballot);
        }
    }

    fn on_nack(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Incarnation,
        reason: NackReason,
        promised: Option<Ballot>,
        watermark: u64,
        out: &mut Effects,
    ) {
        match reason {
            NackReason::Higher => {
                if let Some(by) = promised.filter(|by| !self.holds_out(from, *by)) {
                    self.outvoted_by(ctx, by, out);
                }
            }
            NackReason::Forgotten => {
                ctx.process.stamp_heard = ctx.process.stamp_heard.max(watermark);
                self.note_gone(from, watermark);
            }
            NackReason::Dead => {
                self.note_gone(from, DEAD);
                self.on_gone(from);
            }
            NackReason::Full => self.on_full(ctx, from, out),
            NackReason::Fenced(into) => {
                self.heard.went_on = Some((into, from));
                self.note_gone(from, FENCED);
            }
        }
    }

    fn on_prepare(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Incarnation,
        asked: Asked,
        out: &mut Effects,
    ) {
        let Asked { b, cfg, want_body, polite, nonce, expiry, into } = asked;
        if polite && self.is_owner() && self.ballot().is_some_and(|mine| mine < b) {
            self.nack(from, NackReason::Higher, self.ballot(), out);
            return;
        }
        let before = self.copy.promised().map(|promised| promised.proposer);
        match self.copy.gate(ctx.me, &cfg, b) {
            Ok(()) => {
                // The former owner may not hear the peer that takes over, and would run its next
                // requests in vain.
                if let Some(former) = before.filter(|it| *it != b.proposer && *it != ctx.me) {
                    self.nack(former, NackReason::Higher, Some(b), out);
                }
                // If its owner only confirms it, the record decides for how long it is kept.
                if self.copy.accepted.is_none() || self.copy.is_claimed() {
                    self.copy.keep_until(expiry, ctx.policy.forget_grace);
                }
                self.forget_void_birth();
                if let Some(into) = into {
                    self.copy.remember(b, &into);
                }
                let accepted = self.copy.accepted_info(want_body);
                if self.copy.is_claimed() {
                    out.push(Effect::Claimed);
                }
                let births = if want_body { self.copy.births(Some(b)) } else { Vec::new() };
                let message = Message::Promise { b, cfg, nonce, accepted, births };
                out.push(Effect::Send { to: from, message });
            }
            Err(Shut::Nack(reason)) => self.nack(from, reason, self.copy.promised(), out),
            Err(Shut::NotMember) => {}
        }
    }

    fn on_accept(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Incarnation,
        p: Position,
        cfg: &Arc<Config>,
        body: &BodyRef,
        out: &mut Effects,
    ) {
        let message = match self.copy.accept(ctx, p, cfg, body) {
            Ok(Vote::Cast) => Message::Accepted { p },
            Ok(Vote::NeedFull) => Message::NeedFull { p },
            Ok(Vote::Late) | Err(Shut::NotMember) => return,
            Err(Shut::Nack(reason)) => {
                self.nack(from, reason, self.copy.promised(), out);
                return;
            }
        };
        out.push(Effect::Send { to: from, message });
    }

    /// Notes that the votes of `peer` in configurations up to `stamp` are lost for good.
    fn note_gone(&mut self, peer: Incarnation, stamp: u64) {
        let known = self.heard.gone.entry(peer).or_default();
        *known = stamp.max(*known);
    }

    /// Notes that `peer` takes part in the session again: it forgot that it continued without the
    /// others.
    fn votes_again(&mut self, peer: Incarnation) {
        if self.heard.gone.get(&peer) == Some(&FENCED) {
            self.heard.gone.remove(&peer);
        }
    }

    fn nack(
        &self,
        to: Incarnation,
        reason: NackReason,
        promised: Option<Ballot>,
        out: &mut Effects,
    ) {
        let cfg = self.copy.accepted.as_ref().map(|record| record.cfg.clone());
        let watermark = self.copy.low;
        let message = Message::Nack { reason, promised, cfg, watermark };
        out.push(Effect::Send { to, message });
    }

    /// Lets time pass: sends again, gives up, forgets. Call it at [`Session::next_wake`] or at any
    /// other time.
    pub fn on_timer(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        self.on_timer_preparing(ctx, out);
        self.on_timer_owner(ctx, out);
        self.settle(ctx, out);
        if self.forget_at(ctx.policy.forget_grace).is_some_and(|at| at <= ctx.wall)
            && self.line.queue.is_empty()
            && self.line.flights.is_empty()
            && self.is_all_there_was(ctx, out)
        {
            self.dismiss_witnesses(ctx, out);
            self.forget(ctx);
        }
    }

    /// When nothing here matters any more: at the end of the copy's time, or for an owner that is
    /// no member of the time of its last proposal. An owner forgets before its members do.
    fn forget_at(&self, grace: Duration) -> Option<WallTime> {
        let kept = Some(self.copy.forget_at).filter(|at| *at > WallTime::default());
        let Role::Owner(owner) = &self.role else { return kept };
        let Some(chosen) = &owner.chosen else { return kept };
        if self.copy.rests_on(chosen.p) {
            let longer = u64::try_from(LONGER_THAN_OWNER.as_millis()).unwrap_or(u64::MAX);
            return kept.map(|at| WallTime(at.0.saturating_sub(longer)));
        }
        kept.max(Some(chosen.body.expiry.after(grace)))
    }

    /// Drops everything held of the session, votes included. The watermark keeps every later entry
    /// of this process from voting where this one may have (I3).
    pub fn forget(&mut self, ctx: &mut Ctx<'_>) {
        if !mutant::on(mutant::Mutant::NoWatermark) {
            ctx.process.watermark = ctx.process.watermark.max(self.copy.stamp_hi);
        }
        self.role = Role::None;
        self.copy = Replica::new(ctx.process.watermark);
        self.heard = Seldom::default();
    }

    /// Forgets a copy of a session that was found lost, so that its key can name another one. For
    /// the other members it is as if this one had crashed. `stamp` is that of the newest
    /// configuration that was found: a session that began since then under the same key stays.
    fn retire(&mut self, ctx: &mut Ctx<'_>, stamp: u64) {
        if matches!(self.role, Role::None) {
            self.drop_void_seal(stamp);
        }
        let newest = self.copy.stamp_hi.max(self.config().map_or(0, |cfg| cfg.now.stamp));
        let is_idle = matches!(self.role, Role::None) && self.line.flights.is_empty();
        if is_idle && newest > stamp {
            self.copy.retire(stamp);
            if self.heard.cfg.as_ref().is_some_and(|cfg| cfg.now.stamp <= stamp) {
                self.heard.cfg = None;
            }
        } else if is_idle {
            self.forget(ctx);
        }
    }

    /// Has `peers` forget this session up to `stamp`, and forgets it here. What they sent before they
    /// heard of that is no news from then on.
    fn end_all(&mut self, ctx: &mut Ctx<'_>, stamp: u64, peers: &[Incarnation], out: &mut Effects) {
        let tell = |to: &Incarnation| Effect::Send { to: *to, message: Message::Retire { stamp } };
        out.extend(peers.iter().filter(|peer| **peer != ctx.me).map(tell));
        let over = self.heard.over.max(stamp);
        self.retire(ctx, stamp);
        self.heard.over = over;
    }

    /// Tells everyone in `peers` to forget this session, which this peer found lost just now, and
    /// forgets it here. What was begun beside the search, or by it, is none of that. If another peer
    /// found that, or if this one has found more since, nothing is forgotten: it may live.
    pub fn bury(&mut self, ctx: &mut Ctx<'_>, peers: &[Incarnation], out: &mut Effects) {
        let stamp = self.heard.lost;
        if stamp == 0 || !matches!(self.role, Role::None) {
            return;
        }
        self.end_all(ctx, stamp, peers, out);
        // For as long as the next search may take.
        self.copy.keep_until(ctx.wall, ctx.policy.majority_timeout);
    }

    /// The links to `dead` are gone: executions there have failed. Its copy may come back.
    pub fn peer_lost(&mut self, ctx: &mut Ctx<'_>, dead: Incarnation, out: &mut Effects) {
        if self.known_owner() == Some(dead) {
            self.heard.absent = Some(dead);
        }
        self.settle(ctx, out);
    }

    /// The process `dead` is gone for good, since its peer runs as another incarnation: so are its
    /// votes, if it has any in a known configuration of the session.
    pub fn peer_dead(&mut self, dead: Incarnation) {
        let has_votes = match &self.role {
            Role::Preparing(takeover) => takeover.names(dead),
            _ => self.config().is_some_and(|cfg| cfg.contains(dead)),
        };
        if has_votes {
            self.note_gone(dead, DEAD);
        }
    }

    /// Executor: lets an order run, on the returned body, or returns the answer to send back.
    ///
    /// # Errors
    /// [`ExecDone::Refused`] and [`ExecDone::NeedBase`]: nothing may run.
    pub fn exec_begin(&mut self, ctx: &mut Ctx<'_>, exec: &Exec) -> Result<Arc<Body>, ExecDone> {
        let chosen = match &self.role {
            Role::Owner(owner) => owner.chosen.as_ref(),
            _ => None,
        };
        let (watermark, grace) = (ctx.process.watermark, ctx.policy.forget_grace);
        self.copy.exec_begin(ctx.me, exec, chosen, watermark, grace)
    }

    /// Executor: stores the outcome of an order that ran on `base`. `change` is the new state if
    /// the app set it, `Some(None)` if it cleared it, `None` if it left it alone. The runtime has
    /// to check the state's size before this.
    pub fn exec_end(
        &mut self,
        ctx: &mut Ctx<'_>,
        exec: &Exec,
        base: &Body,
        change: Option<Option<Arc<[u8]>>>,
        stored: Stored,
    ) -> ExecDone {
        self.copy.exec_end(ctx, exec, base, change, stored, None)
    }

    /// As [`Session::exec_end`], but a changed session expires at `until`, whether that is before
    /// or after its normal expiry.
    pub fn exec_end_until(
        &mut self,
        ctx: &mut Ctx<'_>,
        exec: &Exec,
        base: &Body,
        change: Option<Option<Arc<[u8]>>>,
        until: WallTime,
    ) -> ExecDone {
        if let Role::Owner(owner) = &mut self.role {
            owner.is_timed = true;
        }
        self.copy.exec_end(ctx, exec, base, change, Stored::Applied, Some(until))
    }

    /// Executor: as [`Session::exec_end`], if the app ended the session's id: a state that it set
    /// is for the session's heir. The copy does not vote, since the owner has yet to create the
    /// heir and to record it.
    pub fn exec_end_of_id(
        &mut self,
        ctx: &mut Ctx<'_>,
        exec: &Exec,
        base: &Body,
        state: Option<Arc<[u8]>>,
        stored: Stored,
    ) -> ExecDone {
        let exec = Exec { vote: false, ..exec.clone() };
        let mut done = self.copy.exec_end(ctx, &exec, base, Some(state), stored, None);
        if let ExecDone::Changed { body, .. } = &mut done {
            Arc::make_mut(body).ended = Some(Box::new(Ended { by: exec.rid, heir: None }));
        }
        done
    }

    /// How the session's id was ended, if this peer owns it and it was.
    #[must_use]
    pub fn ended(&self) -> Option<&Ended> {
        match &self.role {
            Role::Owner(owner) => owner.chosen.as_ref()?.body.ended.as_deref(),
            Role::None | Role::Preparing(_) => None,
        }
    }

    /// Withdraws this copy's vote, which for the others is as if this peer had crashed, and returns
    /// its contents: the session `into` may continue from there.
    pub fn fence(
        &mut self,
        ctx: &mut Ctx<'_>,
        into: SessionId,
        out: &mut Effects,
    ) -> Option<Record> {
        self.copy.seldom.fenced.get_or_insert(into);
        if let Some(by) = self.ballot() {
            self.step_down(ctx, by, out);
        }
        self.copy.accepted.clone()
    }

    /// As [`Session::take_over`], for its owner: asks the members again whether they have promised another peer
    /// anything, since it cannot go on with them as they are.
    pub fn take_over_again(&mut self, ctx: &mut Ctx<'_>, peers: &[Incarnation], out: &mut Effects) {
        let Some(by) = self.ballot().filter(|_| self.line.flights.is_empty()) else { return };
        self.step_down(ctx, by, out);
        self.take_over(ctx, None, by.round, peers, out);
    }

    /// Asks `peers` what they know of the session; each answer becomes an [`Effect::Located`].
    pub fn locate(&self, peers: &[Incarnation], out: &mut Effects) {
        let message = Message::Locate { census: None, nonce: NO_NONCE, bytes: 0 };
        let ask = |to: &Incarnation| Effect::Send { to: *to, message: message.clone() };
        out.extend(peers.iter().map(ask));
    }
}

/// The fields of a `Prepare`.
struct Asked {
    b: Ballot,
    cfg: Arc<Config>,
    want_body: bool,
    polite: bool,
    nonce: u64,
    expiry: WallTime,
    into: Option<Arc<Config>>,
}

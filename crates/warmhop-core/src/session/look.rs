//! Read access to a machine's state.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::message::{Config, Members, NackReason, Record};
use super::mutant::{self, Mutant};
use super::{Ctx, DEAD, Effects, FENCED, Role, Session, TokenHint, recent};
use crate::ids::{Ballot, Incarnation, Now, Position, SessionId, WallTime};

impl Session {
    /// The session's name.
    #[must_use]
    pub fn sid(&self) -> SessionId {
        self.sid
    }

    /// Whether this peer owns the session and serves it.
    #[must_use]
    pub fn is_owner(&self) -> bool {
        matches!(&self.role, Role::Owner(owner) if owner.serving)
    }

    /// Whether this peer is about to own it.
    #[must_use]
    pub fn is_taking_over(&self) -> bool {
        match &self.role {
            Role::None => false,
            Role::Preparing(_) => true,
            Role::Owner(owner) => !owner.serving,
        }
    }

    /// The ballot at which this peer owns the session or tries to.
    #[must_use]
    pub fn ballot(&self) -> Option<Ballot> {
        match &self.role {
            Role::None => None,
            Role::Preparing(takeover) => Some(takeover.b),
            Role::Owner(owner) => Some(owner.b),
        }
    }

    /// The highest ballot that this copy has promised.
    #[must_use]
    pub fn promised(&self) -> Option<Ballot> {
        self.copy.promised()
    }

    /// The number of the newest record known here: chosen if this peer owns the session, otherwise
    /// accepted.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.newest().map_or(0, |record| record.p.n)
    }

    /// The highest number known here for certain to have been chosen; 0 if there is none. A request
    /// that arrives now can only be applied at a higher one. Of an accepted record the newest change
    /// may never be chosen.
    #[must_use]
    pub fn surely_chosen(&self) -> u64 {
        let owned = match &self.role {
            Role::Owner(owner) => owner.chosen.as_ref().map_or(0, |record| record.p.n),
            Role::None | Role::Preparing(_) => 0,
        };
        let held = self.copy.accepted.as_ref();
        owned.max(held.map_or(0, |record| recent::chosen_before(&record.body)))
    }

    /// The position of the newest record known here: chosen if this peer owns the session,
    /// otherwise accepted.
    #[must_use]
    pub fn newest_at(&self) -> Option<Position> {
        self.newest().map(|record| record.p)
    }

    pub(super) fn newest(&self) -> Option<&Record> {
        match &self.role {
            Role::Owner(owner) if owner.serving => owner.chosen.as_ref(),
            _ => self.copy.accepted.as_ref(),
        }
    }

    /// The best known configuration.
    #[must_use]
    pub fn config(&self) -> Option<&Config> {
        self.best_config().map(Arc::as_ref)
    }

    pub(super) fn best_config(&self) -> Option<&Arc<Config>> {
        match &self.role {
            Role::Owner(owner) => Some(&owner.cfg),
            _ => {
                let held = self.copy.accepted.as_ref().map(|record| &record.cfg);
                let reported = self.heard.cfg.as_ref();
                // The later of two equals is returned: what is held rather than what was reported.
                reported.into_iter().chain(held).max_by_key(|cfg| cfg.step())
            }
        }
    }

    /// The members of the best known configuration.
    #[must_use]
    pub fn members(&self) -> &[Incarnation] {
        self.config().map_or(&[], |cfg| &cfg.now.who)
    }

    /// The members of which a majority must be alive for the session to continue, as far as is
    /// known here, each with whether it `lives` and its vote counts: one that has forgotten the
    /// session, or continued without the others, is as good as gone. An owner goes by its newest
    /// chosen record. A peer that holds a change of members cannot tell whether it was chosen: then
    /// a majority of the old members and one of the new ones is needed, and of the two this is the
    /// set that has none. Of two members it is the one that is left.
    #[must_use]
    pub fn deciders(&self, lives: impl Fn(Incarnation) -> bool) -> Vec<(Incarnation, bool)> {
        let chosen = match &self.role {
            Role::Owner(owner) => owner.chosen.as_ref().map(|record| record.cfg.as_ref()),
            Role::None | Role::Preparing(_) => None,
        };
        let Some(cfg) = chosen.or_else(|| self.config()) else { return Vec::new() };
        let votes = |peer: Incarnation, set: &Members| lives(peer) && !self.is_voteless(peer, set);
        let lacking = cfg.sets().find(|set| !self.suffices(set, |peer| votes(peer, set)));
        let set = lacking.unwrap_or(&cfg.now);
        if let Some(survivor) = self.survivor(set).filter(|it| votes(*it, set)) {
            return Vec::from([(survivor, true)]);
        }
        set.who.iter().map(|peer| (*peer, votes(*peer, set))).collect()
    }

    /// Whether those of `set` that `voted` are enough: a majority, or of two members the
    /// [survivor](Self::survivor).
    pub(super) fn suffices(&self, set: &Members, voted: impl Fn(Incarnation) -> bool) -> bool {
        let survives = |it| {
            voted(it)
                || mutant::on(Mutant::NoSurvivor)
                || mutant::on(Mutant::DeadVote) && set.who.iter().any(|peer| voted(*peer))
        };
        set.majority(&voted) || self.survivor(set).is_some_and(survives)
    }

    /// The one of two members that is left, the other being proven gone for good. Nothing was chosen
    /// without its vote, and nothing can be chosen any more unless its vote alone is enough: all who
    /// go on count on that one vote, so that they cannot miss each other.
    pub(super) fn survivor(&self, set: &Members) -> Option<Incarnation> {
        let [one, other] = set.who[..] else { return None };
        let is_dead = |peer: Incarnation| self.heard.gone.get(&peer) == Some(&DEAD);
        match (is_dead(one), is_dead(other)) {
            (false, true) => Some(one),
            (true, false) => Some(other),
            _ => None,
        }
    }

    /// Whether this peer holds a record of the session.
    #[must_use]
    pub fn holds_copy(&self) -> bool {
        self.copy.accepted.is_some()
    }

    /// Whether `me`, this peer, holds a record, and is the only member.
    #[must_use]
    pub fn is_held_alone(&self, me: Incarnation) -> bool {
        self.copy.accepted.is_some() && *self.members() == [me]
    }

    /// Whether this copy must hold every acknowledged change: it has two members at most, so that
    /// nothing was chosen without its vote, not even a change of members.
    ///
    /// For a change of such members that it voted for, the same holds if the new members are two
    /// with this peer, or if it proposed the change itself: everything after it is proposed by a
    /// peer that saw the change chosen, with this peer's vote, and this peer votes for what that
    /// one proposes.
    #[must_use]
    pub fn holds_everything(&self, me: Incarnation) -> bool {
        self.copy.accepted.as_ref().is_some_and(|record| {
            let has_say = |set: &Members| set.who.len() <= 2 && set.contains(me);
            let cfg = &record.cfg;
            let goes_on = cfg.is_open() || has_say(&cfg.now) || record.p.ballot.proposer == me;
            has_say(cfg.deciders()) && goes_on
        })
    }

    /// The members that could continue without this copy, unless they are gone. While a change of
    /// members is held here and is the latest known, these are the members that decide about it.
    pub(super) fn who_decides(&self) -> &[Incarnation] {
        let held = self.copy.accepted.as_ref().map(|record| &record.cfg);
        match held.filter(|cfg| self.best_config() == Some(*cfg)) {
            Some(cfg) => &cfg.deciders().who,
            None => self.members(),
        }
    }

    /// The newest state known here, chosen if this peer owns the session, otherwise accepted, and
    /// when it expires; `None` if it is empty.
    #[must_use]
    pub fn state(&self) -> Option<(&[u8], WallTime)> {
        let body = &self.newest()?.body;
        Some((body.state.as_deref()?, body.expiry))
    }

    /// Whether others have taken the place of `me` for good, as far as is known here: all that is chosen
    /// from now on they hold, and this copy may be of what was deleted since.
    #[must_use]
    pub fn was_replaced(&self, me: Incarnation) -> bool {
        !self.is_owner() && self.config().is_some_and(|cfg| cfg.is_open() && !cfg.contains(me))
    }

    /// Whether so many members have forgotten the session that the others are no majority.
    pub(super) fn is_forgotten(&self) -> bool {
        self.config().is_some_and(|cfg| self.is_forgotten_in(cfg))
    }

    /// Whether so many of the members in `cfg` have forgotten it that the others are no majority. They
    /// forget a session once it is over by what they hold, and vote there never again.
    pub(super) fn is_forgotten_in(&self, cfg: &Config) -> bool {
        let forgot = |peer, set: &Members| {
            self.heard.gone.get(&peer).is_some_and(|stamp| (set.stamp..FENCED).contains(stamp))
        };
        cfg.sets().any(|set| !set.majority(|peer| !forgot(peer, set)))
    }

    /// The session that this copy continued as.
    #[must_use]
    pub fn fenced(&self) -> Option<SessionId> {
        self.copy.seldom.fenced
    }

    /// The highest known round, for [`Session::take_over`].
    #[must_use]
    pub fn seen_round(&self) -> u64 {
        let seen = self.copy.promised().max(self.heard.owner).max(self.ballot());
        seen.map_or(0, |ballot| ballot.round)
    }

    /// The highest known ballot, unless its proposer was lost since: the proposer owns the session
    /// as far as this peer knows, or tries to.
    #[must_use]
    pub fn claim(&self) -> Option<Ballot> {
        let absent = self.heard.absent;
        let best = self.copy.promised().max(self.heard.owner).max(self.ballot());
        best.filter(|ballot| absent != Some(ballot.proposer))
    }

    /// Who owns the session as far as this peer knows, unless that peer was lost since.
    #[must_use]
    pub fn known_owner(&self) -> Option<Incarnation> {
        self.claim().map(|ballot| ballot.proposer)
    }

    /// Notes the highest ballot that another peer reported.
    pub fn note_claim(&mut self, claim: Option<Ballot>) {
        if let Some(by) = claim {
            self.heard.note_owner(by);
        }
    }

    /// Handles the request of another peer, about to leave or to hand the session off, that this
    /// one takes it over. `peers` are as in [`Session::take_over`]. If this peer owns the session
    /// by now, it answers that: a peer that is no member would not notice otherwise.
    pub fn on_invite(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Incarnation,
        cfg: Arc<Config>,
        peers: &[Incarnation],
        out: &mut Effects,
    ) {
        if self.is_owner() {
            self.nack(from, NackReason::Higher, self.ballot(), out);
        } else if !self.is_taking_over() {
            let round = self.seen_round();
            self.take_over(ctx, Some(Arc::unwrap_or_clone(cfg)), round, peers, out);
        }
    }

    /// Whether `peer` is known never to vote on this session again, under any configuration.
    #[must_use]
    pub fn is_gone_for_good(&self, peer: Incarnation) -> bool {
        self.heard.gone.get(&peer).is_some_and(|stamp| *stamp >= FENCED)
    }

    /// The contents of a token, if this peer owns the session.
    #[must_use]
    pub fn token_hint(&self) -> Option<TokenHint> {
        match &self.role {
            Role::Owner(owner) if owner.serving => Some(owner.hint()),
            _ => None,
        }
    }

    /// How many requests wait or run.
    #[must_use]
    pub fn load(&self) -> usize {
        self.line.queue.len() + self.line.flights.len()
    }

    /// Frees state that no longer matters: most sessions are idle most of the time.
    pub(super) fn tidy(&mut self) {
        self.line.tidy();
        if let Role::Owner(owner) = &mut self.role {
            owner.tidy();
        }
        if self.heard.0.is_some() {
            let held = self.copy.accepted.as_ref().map(|record| record.cfg.step());
            if self.heard.cfg.as_ref().is_some_and(|reported| Some(reported.step()) <= held) {
                self.heard.cfg = None;
            }
            let at = self.copy.accepted.as_ref().map(|record| record.p);
            if self.heard.doubt.as_ref().is_some_and(|doubt| Some(doubt.about()) != at) {
                self.heard.doubt = None;
            }
            if self.heard.owner <= self.copy.promised() {
                self.heard.owner = None;
            }
            self.heard.tidy();
        }
    }

    /// When to call [`Session::on_timer`] next.
    #[must_use]
    pub fn next_wake(&self, now: Now, wall: WallTime) -> Option<Now> {
        // The wall clock may jump: it is read again within the hour.
        const LOOK_AGAIN: u64 = 3_600_000;
        let at = |at: WallTime| {
            now.after(Duration::from_millis(at.0.saturating_sub(wall.0).clamp(1, LOOK_AGAIN)))
        };
        // If no grace is known yet this is a little early, and is computed again then.
        let forget = self.forget_at(Duration::from_secs(1)).map(at);
        let doubt = self.heard.doubt.as_ref().map(super::Doubt::wake);
        let forget = forget.map(|at| doubt.map_or(at, |doubt| doubt.max(at)));
        let end = self.ends_at().map(at);
        let outvoted = self.copy.promised() > self.ballot() && self.ballot().is_some();
        [forget, end, self.wake_preparing(), self.wake_owner(), outvoted.then_some(now)]
            .into_iter()
            .flatten()
            .min()
    }

    /// When the session is over, by the record held here.
    #[must_use]
    pub fn ends(&self) -> Option<WallTime> {
        self.copy.accepted.as_ref().map(|record| record.body.expiry)
    }

    /// Whether nothing is left to keep: the runtime then drops the entry. An order that runs here
    /// without a vote needs no entry.
    #[must_use]
    pub fn forgotten(&self) -> bool {
        matches!(self.role, Role::None)
            && self.copy.is_blank()
            && self.line.queue.is_empty()
            && self.line.flights.is_empty()
    }
}

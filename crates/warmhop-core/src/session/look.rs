//! What a machine says of its session to those who look at it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::message::{Config, Members, NackReason, Record};
use super::{Ctx, Effects, FENCED, Role, Session, TokenHint};
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

    /// Whether this peer is on its way to own it.
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

    /// The highest ballot that this copy promised.
    #[must_use]
    pub fn promised(&self) -> Option<Ballot> {
        self.copy.promised()
    }

    /// The number of the newest record known here: chosen where this peer owns the session,
    /// else accepted.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.newest().map_or(0, |record| record.p.n)
    }

    /// Where the newest record known here stands: chosen where this peer owns the session, else
    /// accepted.
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
                let told = self.heard.cfg.as_ref();
                // The later of two equals is returned: what is held rather than what is told.
                told.into_iter().chain(held).max_by_key(|cfg| cfg.step())
            }
        }
    }

    /// The members of the best known configuration.
    #[must_use]
    pub fn members(&self) -> &[Incarnation] {
        self.config().map_or(&[], |cfg| &cfg.now.who)
    }

    /// Those of whom a majority must live for the session to go on, as far as is known here, each with
    /// whether it `lives` and its vote counts: one that has forgotten the session, or went on without
    /// the others, is as good as gone. An owner goes by its newest chosen record. Whoever holds a
    /// change of members cannot tell whether it was chosen: then it takes a majority of those before
    /// and of those to come, and of the two this is the set that has none.
    #[must_use]
    pub fn deciders(&self, lives: impl Fn(Incarnation) -> bool) -> Vec<(Incarnation, bool)> {
        let chosen = match &self.role {
            Role::Owner(owner) => owner.chosen.as_ref().map(|record| record.cfg.as_ref()),
            Role::None | Role::Preparing(_) => None,
        };
        let Some(cfg) = chosen.or_else(|| self.config()) else { return Vec::new() };
        let votes = |peer: Incarnation, set: &Members| lives(peer) && !self.is_voteless(peer, set);
        let lacking = cfg.sets().find(|set| !set.majority(|peer| votes(peer, set)));
        let set = lacking.unwrap_or(&cfg.now);
        set.who.iter().map(|peer| (*peer, votes(*peer, set))).collect()
    }

    /// Whether this peer holds a record of the session.
    #[must_use]
    pub fn holds_copy(&self) -> bool {
        self.copy.accepted.is_some()
    }

    /// Whether this copy must hold every change that was ever answered: its members are two at
    /// most, so that nothing was chosen without its vote, not even a change of members.
    ///
    /// Of a change of such members that it voted for, the same holds where those to come are two with
    /// this peer, and where it proposed the change itself: what goes on in them is proposed by whoever
    /// saw the change chosen, with this peer's vote, and this peer votes for what it proposes.
    #[must_use]
    pub fn holds_everything(&self, me: Incarnation) -> bool {
        self.copy.accepted.as_ref().is_some_and(|record| {
            let has_say = |set: &Members| set.who.len() <= 2 && set.contains(me);
            let cfg = &record.cfg;
            let goes_on = cfg.is_open() || has_say(&cfg.now) || record.p.ballot.proposer == me;
            has_say(cfg.deciders()) && goes_on
        })
    }

    /// Those who could go on without this copy, if they are not gone: of a change of members that is held
    /// here, and is the last that was heard of, those who decide about it.
    pub(super) fn who_decides(&self) -> &[Incarnation] {
        let held = self.copy.accepted.as_ref().map(|record| &record.cfg);
        match held.filter(|cfg| self.best_config() == Some(*cfg)) {
            Some(cfg) => &cfg.deciders().who,
            None => self.members(),
        }
    }

    /// The newest state known here, chosen where this peer owns the session, else accepted, with
    /// when it ends; `None` where it holds nothing.
    #[must_use]
    pub fn state(&self) -> Option<(&[u8], WallTime)> {
        let body = &self.newest()?.body;
        Some((body.state.as_deref()?, body.expiry))
    }

    /// The session that this copy went on as.
    #[must_use]
    pub fn fenced(&self) -> Option<SessionId> {
        self.copy.seldom.fenced
    }

    /// The highest round heard of, for [`Session::take_over`].
    #[must_use]
    pub fn seen_round(&self) -> u64 {
        let seen = self.copy.promised().max(self.heard.owner).max(self.ballot());
        seen.map_or(0, |ballot| ballot.round)
    }

    /// The highest ballot heard of, unless its proposer was lost since: whoever proposed it owns
    /// the session as far as this peer knows, or tries to.
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

    /// Another peer told of the highest ballot that it heard of.
    pub fn note_claim(&mut self, claim: Option<Ballot>) {
        if let Some(by) = claim {
            self.heard.note_owner(by);
        }
    }

    /// Another peer, about to leave or to hand the session over, asks this one to take it over.
    /// `peers` are as in [`Session::take_over`]. Whoever asks again although this peer owns the
    /// session by now is told so: where it is no member, it would not notice.
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

    /// Whether `peer` is known to vote on this session never again, under whatever configuration.
    #[must_use]
    pub fn is_gone_for_good(&self, peer: Incarnation) -> bool {
        self.heard.gone.get(&peer).is_some_and(|stamp| *stamp >= FENCED)
    }

    /// What a token would say, where this peer owns the session.
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

    /// Lets go of what says nothing (any more): most sessions are idle most of the time.
    pub(super) fn tidy(&mut self) {
        self.line.tidy();
        if let Role::Owner(owner) = &mut self.role {
            owner.tidy();
        }
        if self.heard.0.is_some() {
            let held = self.copy.accepted.as_ref().map(|record| record.cfg.step());
            if self.heard.cfg.as_ref().is_some_and(|told| Some(told.step()) <= held) {
                self.heard.cfg = None;
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
        // Where no grace is known yet it is looked at a little early, and then again.
        let forget = self.forget_at(Duration::from_secs(1)).map(|at| {
            // The wall clock may jump: it is looked at again within the hour.
            const LOOK_AGAIN: u64 = 3_600_000;
            now.after(Duration::from_millis(at.0.saturating_sub(wall.0).clamp(1, LOOK_AGAIN)))
        });
        let outvoted = self.copy.promised() > self.ballot() && self.ballot().is_some();
        [forget, self.wake_preparing(), self.wake_owner(), outvoted.then_some(now)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether nothing is left to keep: the runtime then drops the entry. An order that runs
    /// here without a vote needs no entry.
    #[must_use]
    pub fn forgotten(&self) -> bool {
        matches!(self.role, Role::None)
            && self.copy.is_blank()
            && self.line.queue.is_empty()
            && self.line.flights.is_empty()
    }
}

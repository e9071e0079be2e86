//! A birth: phase one for a session that a key names, and that no peer may know yet.
//!
//! Two peers may begin one session at once, and each takes its members from its own beliefs about
//! the mesh, so that their majorities need not meet. A set larger than either makes them meet:
//! everyone known (see [`Roll`]). Each of these remembers where the session may be ([`Birth`]),
//! member or not, and reports it to every later asker. A peer that promised two births reports the
//! earlier one to the later; the later one closes the earlier one's configuration by the promises
//! of a majority of it, which either finds what was chosen there, or prevents that anything is
//! chosen any more.
//!
//! A birth that closes a configuration leaves with those promises where the session continues: a
//! takeover that knows only the closed one, by a record that was never chosen, meets one of them.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::Takeover;
use super::void::Word;
use crate::ids::{Ballot, Incarnation, WallTime};
use crate::session::census::{Census, Roll, Verdict};
use crate::session::message::{AcceptedInfo, Birth, Config, Members, Message, NackReason, Part};
use crate::session::mutant::{self, Mutant};
use crate::session::owner::Owner;
use crate::session::reach::waits_for_the_silent;
use crate::session::{Ctx, DEAD, Effect, Effects, FENCED, Failure, Role, Session, Shut};

impl Session {
    /// Answers a question with what this peer knows of the session.
    pub(in crate::session) fn tell(
        &self,
        ctx: &Ctx<'_>,
        to: Incarnation,
        nonce: u64,
        census: Option<u64>,
        out: &mut Effects,
    ) {
        let record = self.copy.accepted.as_ref();
        let is_dead = |peer: &Incarnation| self.heard.gone.get(peer) == Some(&DEAD);
        let members = self.config().map(Config::everyone).unwrap_or_default();
        let chosen = match &self.role {
            Role::Owner(owner) => owner.chosen.as_ref(),
            _ => None,
        };
        let known = record.or(chosen);
        let message = Message::Located {
            nonce,
            dead: members.into_iter().filter(is_dead).collect(),
            p: known.map(|record| record.p),
            cfg: known.map(|record| record.cfg.clone()),
            promised: self.copy.promised().max(self.ballot()),
            fenced: self.copy.seldom.fenced,
            part: self.part(),
            births: self.copy.births(None),
            census: census.and_then(|digest| ctx.process.census.news(ctx.me, digest)),
        };
        out.push(Effect::Send { to, message });
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one message")]
    pub(in crate::session) fn on_begin(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Incarnation,
        b: Ballot,
        cfg: &Arc<Config>,
        over: Vec<Arc<Config>>,
        expiry: WallTime,
        (nonce, census): (u64, u64),
        out: &mut Effects,
    ) {
        let owns = matches!(&self.role, Role::Owner(owner) if owner.chosen.is_some());
        if owns || self.copy.accepted.is_some() {
            self.tell(ctx, from, nonce, Some(census), out);
            return;
        }
        // It votes never again where it has forgotten, and cannot tell what it voted for there.
        let forgot = |cfg: &Arc<Config>| self.copy.may_have_forgotten(ctx.me, cfg);
        let (forgotten, over): (Vec<_>, Vec<_>) = over.into_iter().partition(forgot);
        if !forgotten.is_empty() {
            self.nack(from, NackReason::Forgotten, self.copy.promised(), out);
        }
        match self.copy.begin(ctx.me, b, cfg, &over) {
            Ok(()) => {
                // A peer that is no member never votes, so nothing renews its memory: it has to
                // outlive what the members remember, for as long as clocks may differ.
                let grace = ctx.policy.forget_grace * if cfg.contains(ctx.me) { 1 } else { 2 };
                self.copy.keep_until(expiry, grace);
                self.forget_void_birth();
                let births = self.copy.births(Some(b));
                let census = ctx.process.census.news(ctx.me, census);
                out.push(Effect::Send {
                    to: from,
                    message: Message::Free { b, over, births, census },
                });
            }
            Err(Shut::Nack(reason)) => self.nack(from, reason, self.copy.promised(), out),
            Err(Shut::NotMember) => {}
        }
    }

    /// Notes where the session may continue, by another peer's report.
    pub(in crate::session) fn hear_births(&mut self, b: Ballot, births: Vec<Birth>) {
        let over = self.heard.over;
        if let Role::Preparing(takeover) = &mut self.role
            && takeover.b == b
        {
            let births = births.into_iter().filter(|birth| birth.cfg.now.stamp > over);
            births.for_each(|birth| takeover.hear_birth(birth));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one message")]
    pub(in crate::session) fn on_free(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Incarnation,
        b: Ballot,
        over: &[Arc<Config>],
        births: Vec<Birth>,
        census: Option<&Census>,
        out: &mut Effects,
    ) {
        let births: Vec<Birth> =
            births.into_iter().filter(|birth| !self.is_over(&birth.cfg)).collect();
        let Role::Preparing(takeover) = &mut self.role else { return };
        if takeover.b != b {
            return;
        }
        let Some(begun) = takeover.begun.clone() else { return };
        for cfg in over.iter().chain([&begun]).chain(births.iter().map(|birth| &birth.cfg)) {
            takeover.note(from, cfg, None);
        }
        takeover.hear_word(from, Word::of(from, b, &births, None, Part::None));
        self.hear_births(b, births);
        self.answered(ctx, from, census, out);
    }

    /// `from` answered, with the processes that it knows.
    pub(in crate::session) fn answered(
        &mut self,
        ctx: &Ctx<'_>,
        from: Incarnation,
        census: Option<&Census>,
        out: &mut Effects,
    ) {
        let Role::Preparing(takeover) = &mut self.role else { return };
        takeover.search.open.remove(&from);
        let unknown = match (&mut takeover.roll, &mut takeover.witnesses) {
            (Some(roll), _) => roll.answer(from, census),
            (None, Some(roll)) => {
                let mut unknown = roll.answer(from, census);
                // It would be waited for in vain.
                unknown.retain(|peer| census.is_none_or(|it| !it.silent.contains(peer)));
                unknown
            }
            (None, None) => return,
        };
        self.ask_as_well(ctx, unknown, out);
    }

    /// Asks newly known peers.
    fn ask_as_well(&mut self, ctx: &Ctx<'_>, peers: Vec<Incarnation>, out: &mut Effects) {
        let Role::Preparing(takeover) = &mut self.role else { return };
        for peer in peers.into_iter().filter(|peer| *peer != ctx.me) {
            if !takeover.search.peers.contains(&peer) {
                takeover.search.peers.push(peer);
                // The peers that rank first were asked, or everyone was.
                if takeover.search.asked + 1 == takeover.search.peers.len() {
                    takeover.search.asked += 1;
                    takeover.search.open.insert(peer);
                    let message = takeover.question(ctx);
                    out.push(Effect::Send { to: peer, message });
                }
            }
        }
    }

    /// This peer's own part in a birth.
    pub(in crate::session) fn begin_myself(&mut self, ctx: &Ctx<'_>) {
        let Role::Preparing(takeover) = &mut self.role else { return };
        let Some(begun) = takeover.begun.clone() else { return };
        let forgot = |cfg: &Arc<Config>| self.copy.may_have_forgotten(ctx.me, cfg);
        let (forgotten, over): (Vec<_>, Vec<_>) = takeover.to_close().into_iter().partition(forgot);
        if self.copy.begin(ctx.me, takeover.b, &begun, &over).is_ok() {
            let grace = ctx.policy.forget_grace * if begun.contains(ctx.me) { 1 } else { 2 };
            self.copy.keep_until(ctx.wall.after(ctx.policy.ttl), grace);
            let births = self.copy.births(Some(takeover.b));
            for cfg in over.iter().chain([&begun]).chain(births.iter().map(|birth| &birth.cfg)) {
                takeover.note(ctx.me, cfg, None);
            }
            takeover.hear_word(ctx.me, Word::of(ctx.me, takeover.b, &births, None, Part::None));
            births.into_iter().for_each(|birth| takeover.hear_birth(birth));
        } else if let Some(roll) = &mut takeover.roll {
            roll.miss(ctx.me);
        }
        if !forgotten.is_empty() {
            self.note_gone(ctx.me, self.copy.low);
        }
    }

    /// Sends `Begin` to everyone that has not answered, or whose promise closes too little.
    pub(in crate::session) fn send_begins(&mut self, ctx: &Ctx<'_>, out: &mut Effects) {
        let Role::Preparing(takeover) = &self.role else { return };
        let message = takeover.question(ctx);
        for to in &takeover.search.peers {
            if takeover.search.open.contains(to) || takeover.lacks(*to) {
                out.push(Effect::Send { to: *to, message: message.clone() });
            }
        }
    }

    /// Checks whether a birth has succeeded, while no peer has reported a record.
    pub(in crate::session) fn settle_birth(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let Role::Preparing(takeover) = &mut self.role else { return };
        let Some(begun) = takeover.begun.clone() else { return };
        if takeover.may_search_again() && self.is_forgotten_in(&begun) {
            self.begin_in_another(ctx, out);
            return;
        }
        let Role::Preparing(takeover) = &mut self.role else { return };
        // Possible members of an earlier birth are asked as well, unless they are gone for good.
        let to_close = takeover.to_close();
        let is_there = |peer: &Incarnation| self.heard.gone.get(peer) != Some(&DEAD);
        let named = to_close.iter().flat_map(|cfg| cfg.everyone()).filter(is_there);
        let named: Vec<Incarnation> = named.collect();
        if let Some(roll) = &mut takeover.roll {
            let unknown = roll.add(named.into_iter());
            self.ask_as_well(ctx, unknown, out);
        }
        let Role::Preparing(takeover) = &mut self.role else { return };
        if to_close != takeover.closing {
            takeover.closing = to_close;
            self.begin_myself(ctx);
            self.send_begins(ctx, out);
        }
        let Role::Preparing(takeover) = &self.role else { return };
        let b = takeover.b;
        let closed = takeover.closing.iter().all(|cfg| self.is_closed(takeover, cfg))
            || mutant::on(Mutant::KeepOpen);
        let waited = takeover.has_waited();
        let verdict = match &takeover.roll {
            _ if mutant::on(Mutant::BeginAtMembers) => Verdict::Enough,
            Some(roll) => roll.verdict(waited),
            None => Verdict::TooFew,
        };
        if verdict == Verdict::Enough && closed && takeover.covers_majority(&begun.now) {
            self.role = Role::Owner(alloc::boxed::Box::new(Owner::beginning(b, begun)));
            self.copy.came_about();
            out.push(Effect::Owned { ballot: b });
        } else if verdict == Verdict::TooFew {
            self.role = Role::None;
            out.push(Effect::GaveUp);
            self.fail_all(Failure::NoMajority { ran: false }, out);
        } else if verdict == Verdict::Enough
            && takeover.search.open.iter().all(|peer| takeover.is_silent(*peer))
            && takeover
                .closing
                .iter()
                .any(|cfg| !self.is_closed(takeover, cfg) && self.can_never_close(takeover, cfg))
        {
            // The members that may have chosen something there are gone for good, and none of the
            // peers asked knows where it continued from there.
            let newest = takeover.newest_stamp(None);
            self.is_lost(newest, out);
        }
    }
}

impl Session {
    /// Whether nothing was chosen in `cfg` that is still to be found, nor will be, while no peer has
    /// reported a record: the promises close it; or too many of its members have *forgotten* it, which
    /// they do once it is over by what they hold; or some have, and nobody else is left who could know
    /// more. A peer that is no member may remember for half an hour that it was begun.
    pub(in crate::session) fn is_closed(&self, takeover: &Takeover, cfg: &Config) -> bool {
        let stamp_lost = |peer| self.heard.gone.get(&peer).copied().unwrap_or_default();
        takeover.closes(cfg)
            || cfg.sets().all(|set| {
                let forgot = |peer| (set.stamp..FENCED).contains(&stamp_lost(peer));
                let is_left = |peer: &Incarnation| {
                    stamp_lost(*peer) < set.stamp && !takeover.covered_by(*peer, set)
                };
                let some_forgot = set.who.iter().any(|peer| forgot(*peer));
                !set.majority(|peer| !forgot(peer)) || some_forgot && !set.who.iter().any(is_left)
            })
    }

    /// Whether the members that may have chosen something in `cfg` without the others are gone for
    /// good.
    pub(in crate::session) fn can_never_close(&self, takeover: &Takeover, cfg: &Config) -> bool {
        let lost = |set: &Members| {
            set.majority(|peer| self.is_gone(peer, cfg) && !takeover.covered_by(peer, set))
        };
        cfg.sets().any(lost)
    }

    /// Whether the `found` record counts although `birth`, above it, can never be closed, because
    /// the members that could close it are gone for good. That birth had no effect if a majority of
    /// the members holds the found record, since nobody closed those members for it; or if its
    /// beginner, the first to accept its own proposals, holds none of them.
    pub(in crate::session) fn passes_over(
        &self,
        takeover: &Takeover,
        found: Option<&AcceptedInfo>,
        birth: &Birth,
    ) -> bool {
        let came_to_nothing = |info| takeover.is_held(info) || takeover.was_not_begun(birth);
        found.is_some_and(came_to_nothing) && self.can_never_close(takeover, &birth.cfg)
    }
}

impl Takeover {
    /// Whether a majority of every set of members of the found record has promised, and holds a
    /// record of that configuration.
    pub(super) fn is_held(&self, found: &AcceptedInfo) -> bool {
        let holds = |peer: Incarnation| {
            let accepted = self.promises.get(&peer).and_then(|it| it.accepted.as_ref());
            accepted.is_some_and(|info| info.cfg == found.cfg)
        };
        found.cfg.sets().all(|set| set.majority(|peer| self.covered_by(peer, set) && holds(peer)))
    }

    /// Whether the beginner of `birth` is a member there, has promised, and accepted nothing at
    /// that ballot or above.
    fn was_not_begun(&self, birth: &Birth) -> bool {
        let by = birth.b.proposer;
        let accepted = self.promises.get(&by).and_then(|it| it.accepted.as_ref());
        birth.cfg.sets().all(|set| set.contains(by) && self.covered_by(by, set))
            && accepted.is_none_or(|info| info.p.ballot < birth.b)
    }

    /// The question to the peers that may know of the session.
    pub(in crate::session) fn question(&self, ctx: &Ctx<'_>) -> Message {
        let takes_stock = self.roll.is_some() || self.witnesses.is_some();
        let census = takes_stock.then(|| ctx.process.census.digest(ctx.me));
        match &self.begun {
            Some(cfg) => Message::Begin {
                b: self.b,
                cfg: cfg.clone(),
                over: self.to_close(),
                expiry: ctx.wall.after(ctx.policy.ttl),
                census: census.unwrap_or_default(),
                nonce: self.nonce,
            },
            None => Message::Locate { census, nonce: self.nonce, bytes: 0 },
        }
    }

    fn is_silent(&self, peer: Incarnation) -> bool {
        self.roll.as_ref().is_some_and(|roll| roll.is_silent(peer))
    }

    pub(in crate::session) fn hear_birth(&mut self, birth: Birth) {
        if self.begun.as_ref() == Some(&birth.cfg) {
            return;
        }
        let same =
            |known: &&mut Birth| known.cfg == birth.cfg && known.b.proposer == birth.b.proposer;
        match self.births.iter_mut().find(same) {
            Some(known) => known.b = known.b.max(birth.b),
            None => self.births.push(birth),
        }
    }

    /// The configurations in which the session may have begun.
    pub(in crate::session) fn to_close(&self) -> Vec<Arc<Config>> {
        let begun = self.births.iter().filter(|birth| !self.is_void(birth));
        let mut all: Vec<_> = begun.map(|birth| birth.cfg.clone()).collect();
        all.sort_unstable_by(|a, b| (&a.now.who, a.now.stamp).cmp(&(&b.now.who, b.now.stamp)));
        all.dedup();
        all
    }

    /// Whether so many of every set in `cfg` have promised to vote for nothing below this ballot
    /// that the others are no majority: nothing was chosen there without one of them, nor will be.
    /// Of two members that is one.
    pub(in crate::session) fn closes(&self, cfg: &Config) -> bool {
        cfg.sets().all(|set| !set.majority(|peer| !self.covered_by(peer, set)))
    }

    /// Whether the promise of `peer` closes less than it is asked to.
    fn lacks(&self, peer: Incarnation) -> bool {
        self.closing.iter().flat_map(|cfg| cfg.sets()).any(|set| {
            set.contains(peer) && self.promises.get(&peer).is_none_or(|it| !it.covers.contains(set))
        })
    }
}

/// Asks everyone, for a birth or for a search whether any peer knows of the session.
pub(in crate::session) fn call(ctx: &Ctx<'_>, peers: &[Incarnation]) -> Roll {
    let mut roll = Roll::new(ctx.me, &ctx.process.census);
    roll.add(peers.iter().copied());
    roll.waits_for_the_other(waits_for_the_silent(ctx));
    roll
}

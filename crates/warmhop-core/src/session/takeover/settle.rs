//! The consequences of a takeover's promises so far: where else to ask, whether they suffice, and
//! what happens to waiting requests if they never will.

use alloc::boxed::Box;
use alloc::sync::Arc;

use super::withdrawn::Withdrawal;
use super::{Otherwise, Takeover};
use crate::ids::Incarnation;
use crate::session::census::{Roll, Verdict};
use crate::session::message::{AcceptedInfo, Birth, Config, Members, Message, Record};
use crate::session::mutant::{self, Mutant};
use crate::session::owner::Owner;
use crate::session::{Ctx, DEAD, Effect, Effects, FENCED, Failure, Role, Session};

/// Where there is room for a record that a takeover found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// At a majority, or at too few for anybody to go on.
    Enough,
    /// At this member, which may go on alone.
    At(Incarnation),
    /// Not all members have promised yet that may do so.
    Unknown,
}

/// How often one search leaves behind what is outdated: once for each peer that a member may have been
/// replaced by, and no more than that if a peer keeps what it is asked to forget.
const OUTDATED_MAX: u8 = 3;

impl Session {
    /// Checks whether the promises suffice, and acts on it.
    pub(in crate::session) fn settle_preparing(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        loop {
            let Role::Preparing(takeover) = &self.role else { return };
            let withdrawn = match self.withdrawal(takeover) {
                Withdrawal::Waits => return,
                Withdrawal::Possible(withdrawn) => Some(withdrawn.clone()),
                Withdrawal::None => None,
            };
            let found = match &withdrawn {
                Some(it) => it.before.clone().map(AcceptedInfo::from),
                None => takeover.highest().cloned(),
            };
            let found = found.as_ref();
            if let Some(cfg) = self.newer_than_asked(takeover, found) {
                self.ask_in(ctx, cfg, None, out);
                continue;
            }
            if found.is_none() && takeover.asked.is_empty() && takeover.begun.is_some() {
                self.settle_birth(ctx, out);
                return;
            }
            if let Some(cfg) = takeover.birth_to_close(found) {
                let into = found.map(|info| info.cfg.clone());
                self.ask_in(ctx, cfg, into, out);
                continue;
            }
            let closed =
                !takeover.births_above(found).any(|birth| self.is_open(takeover, found, birth));
            let without = withdrawn.as_ref().map(|it| &it.cfg).or(takeover.token.as_ref());
            let target = found.map_or(without, |info| Some(&info.cfg)).cloned();
            if let Some(cfg) = target.filter(|cfg| closed && self.is_promised(takeover, cfg)) {
                if let Some(withdrawn) = withdrawn {
                    self.succeed_without(ctx, takeover.b, withdrawn, out);
                    return;
                }
                let room = found.map(|info| self.room(ctx, takeover, info));
                if room == Some(Room::Unknown) {
                    return;
                }
                self.succeed(ctx, found.cloned(), cfg, out);
                return;
            }
            if let Some(cfg) = self.open_form_to_ask(takeover) {
                self.ask_in(ctx, cfg, None, out);
                continue;
            }
            self.search_on(ctx, found, closed, out);
            return;
        }
    }

    /// A discovered configuration that was not asked in.
    fn newer_than_asked(
        &self,
        takeover: &Takeover,
        found: Option<&AcceptedInfo>,
    ) -> Option<Arc<Config>> {
        // A configuration reported since may be newer than those asked in.
        let known = takeover.asked_in().map(|cfg| cfg.now.stamp).max().unwrap_or_default();
        let newer = match found {
            Some(info) if !takeover.has_asked(&info.cfg) => Some(&info.cfg),
            _ => self.heard.cfg.as_ref().filter(|cfg| cfg.now.stamp > known),
        };
        let missing = newer.or(takeover.token.as_ref());
        // A session that began beside another may be as new as that one.
        let held = self.copy.accepted.as_ref().map(|record| &record.cfg);
        let mut beside = takeover.reported.iter().chain(held);
        missing
            .filter(|cfg| !takeover.has_asked(cfg))
            .or_else(|| beside.find(|cfg| found.is_none() && !takeover.has_asked(cfg)))
            .cloned()
    }

    /// Whether the session may have continued by `birth`, above the `found` record.
    fn is_open(&self, takeover: &Takeover, found: Option<&AcceptedInfo>, birth: &Birth) -> bool {
        let closed = match found {
            Some(_) => takeover.closes(&birth.cfg),
            None => self.is_closed(takeover, &birth.cfg),
        };
        !closed && !self.passes_over(takeover, found, birth)
    }

    /// The promises suffice in `cfg`: this peer owns the session from here on.
    fn succeed(
        &mut self,
        ctx: &mut Ctx<'_>,
        found: Option<AcceptedInfo>,
        cfg: Arc<Config>,
        out: &mut Effects,
    ) {
        let Role::Preparing(takeover) = &self.role else { return };
        let b = takeover.b;
        self.heard.doubt = None;
        let room = found.as_ref().map(|info| (info, self.room(ctx, takeover, info)));
        if let Some((info, Room::At(peer))) = room {
            let (p, cfg) = (info.p, info.cfg.clone());
            self.role = Role::None;
            if peer == ctx.me {
                self.begin_anew(ctx, p, out);
                return;
            }
            out.push(Effect::Send { to: peer, message: Message::Invite { cfg } });
            out.push(Effect::GaveUp);
            self.redirect_all(None, out);
            return;
        }
        if let Some(AcceptedInfo { p, cfg, body: Some(body) }) = found {
            let record = Record { p, cfg, body };
            self.role = Role::Owner(Box::new(Owner::succeeding(b, &record)));
            if mutant::on(Mutant::NoReassert) {
                self.serve_at_once(record);
                return;
            }
            self.reassert(ctx, record, out);
        } else {
            // A majority has no record: nothing was ever chosen.
            self.role = Role::Owner(Box::new(Owner::of_nothing(b, cfg)));
            out.push(Effect::Owned { ballot: b });
        }
    }

    /// Whether a majority has room for the `found` record, and if not, which member may go on from its own copy
    /// of that alone. It takes the session over itself.
    ///
    /// All members that are not gone for good have promised, so that no record above the found one was
    /// chosen. And without that member they are no majority, so that none will be: the session begins anew,
    /// where there is room ([`Session::begin_anew`]). Of a seal this is true of the members before it, without
    /// whom nobody takes the session over.
    fn room(&self, ctx: &Ctx<'_>, takeover: &Takeover, found: &AcceptedInfo) -> Room {
        let census = &ctx.process.census;
        let holds = |peer: Incarnation| {
            let promised = takeover.promises.get(&peer);
            let accepted = promised.and_then(|it| it.accepted.as_ref());
            accepted.is_some_and(|info| info.p == found.p)
        };
        let is_left = |peer: Incarnation| self.heard.gone.get(&peer) != Some(&DEAD);
        let has_room = |peer: Incarnation| holds(peer) || !census.full.contains(&peer);
        if found.cfg.sets().all(|set| set.majority(|peer| is_left(peer) && has_room(peer))) {
            return Room::Enough;
        }
        let deciders = found.cfg.deciders();
        let is_needed = |it: Incarnation| {
            deciders.contains(it) && !deciders.majority(|peer| is_left(peer) && peer != it)
        };
        let Some(peer) = deciders.who.iter().copied().find(|it| holds(*it) && is_needed(*it))
        else {
            return Room::Enough;
        };
        let is_open =
            |set: &Members| set.who.iter().any(|it| is_left(*it) && !takeover.covered_by(*it, set));
        match found.cfg.sets().any(is_open) {
            false => Room::At(peer),
            true if takeover.has_waited() => Room::Enough,
            true => Room::Unknown,
        }
    }

    /// What [`Mutant::NoReassert`] does instead of reasserting.
    fn serve_at_once(&mut self, record: Record) {
        if let Role::Owner(owner) = &mut self.role {
            owner.chosen = Some(record);
            owner.serving = true;
        }
    }

    /// The open form of a seal that was asked in. A member that forgot the configuration before a
    /// seal passes no gate for the seal, but its vote among the members after it is as good as any:
    /// it never voted in those.
    fn open_form_to_ask(&self, takeover: &Takeover) -> Option<Arc<Config>> {
        let forgot = |cfg: &Config, peer: &Incarnation| {
            let known = self.heard.gone.get(peer);
            let before = cfg.prev.as_deref().filter(|before| before.contains(*peer));
            known
                .zip(before)
                .is_some_and(|(stamp, before)| before.stamp <= *stamp && *stamp < cfg.now.stamp)
        };
        takeover.asked_in().find_map(|cfg| {
            let open = Config { now: cfg.now.clone(), prev: None };
            let wanted = !takeover.covers_majority(&cfg.now)
                && cfg.now.who.iter().any(|peer| forgot(cfg, peer))
                && !takeover.has_asked(&open);
            wanted.then(|| Arc::new(open))
        })
    }

    /// The promises do not suffice: waits for more of them, asks more peers, or ends the takeover.
    /// `closed`: the session cannot have continued by a birth above the `found` record.
    fn search_on(
        &mut self,
        ctx: &mut Ctx<'_>,
        found: Option<&AcceptedInfo>,
        closed: bool,
        out: &mut Effects,
    ) {
        let Role::Preparing(takeover) = &self.role else { return };
        // In the configurations of its possible births, nothing was chosen and nothing will be.
        let nowhere = found.is_none() && closed && takeover.asked_in_births_alone();
        if nowhere && let Some(roll) = &takeover.roll {
            let verdict = roll.verdict(takeover.has_waited());
            self.settle_absence(ctx, verdict, out);
            return;
        }
        if let Some(stamp) = found.and_then(|info| self.over_since(ctx, takeover, info)) {
            self.search_without(ctx, stamp, out);
            return;
        }
        let hopeless = self.is_hopeless(takeover, found);
        self.search_anew(ctx, hopeless);
        let Role::Preparing(takeover) = &self.role else { return };
        if !hopeless || !takeover.search.is_over() {
            if hopeless && takeover.search.open.is_empty() {
                self.ask_more(ctx, out);
            }
            return;
        }
        if let Some(stamp) = self.forgotten_since(ctx, takeover, found, closed) {
            let went_on = takeover.roll.is_some() || takeover.knows_later(found, stamp);
            if went_on && takeover.may_search_again() {
                self.search_without(ctx, stamp, out);
                return;
            }
            if self.line.queue.is_empty() {
                // Nobody asked for it: this peer was away when it ended.
                self.role = Role::None;
                out.push(Effect::GaveUp);
                self.retire(ctx, stamp);
                return;
            }
        }
        let Role::Preparing(takeover) = &self.role else { return };
        let unknown = takeover.asked.is_empty();
        let newest = takeover.newest_stamp(found);
        if let Some(roll) = &takeover.witnesses {
            ctx.process.has_met_all = roll.is_complete();
        }
        self.role = Role::None;
        if unknown {
            // No peer knows of it.
            out.push(Effect::GaveUp);
            self.redirect_all(None, out);
        } else if let Some((into, by)) = self.heard.went_on.filter(|(_, by)| *by != ctx.me) {
            self.fail_all(Failure::WentOn { into, by }, out);
        } else {
            self.is_lost(newest, out);
        }
    }

    /// The session is lost, in configurations up to `stamp`.
    pub(in crate::session) fn is_lost(&mut self, stamp: u64, out: &mut Effects) {
        self.role = Role::None;
        if self.fenced().is_some() {
            // It went on from here under another id, to which this copy still leads.
            out.push(Effect::GaveUp);
        } else {
            self.heard.lost = stamp;
            out.push(Effect::Lost { stamp });
        }
        self.fail_all(Failure::Lost { ran: false }, out);
    }

    /// The stamp of the found record's configuration, if it is outdated rather than lost: so many of its
    /// members have *forgotten* it that the others are no majority, and they do so once the session is
    /// over by what they hold, and one of them held what was chosen last. The same holds once what was
    /// found is over, if nothing newer can have been chosen without those that have forgotten it or
    /// reported it; and if it was begun anew since, which nobody does before that. If nothing was
    /// found, it is the newest stamp that was asked in, if all these have forgotten it.
    ///
    /// A seal whose former members have forgotten the session was never chosen: its stamp is not the
    /// session's, and may be above that of a living one that was begun since. The former members' stamp is.
    fn forgotten_since(
        &self,
        ctx: &Ctx<'_>,
        takeover: &Takeover,
        found: Option<&AcceptedInfo>,
        closed: bool,
    ) -> Option<u64> {
        let knows = |peer, set: &Members| {
            let known = self.heard.gone.get(&peer).copied().unwrap_or_default();
            known < set.stamp || known >= FENCED
        };
        let is_forgotten = |set: &Members| !set.majority(|peer| knows(peer, set));
        let Some(info) = found else {
            let begins = |cfg: &Config| takeover.births.iter().any(|birth| *birth.cfg == *cfg);
            let mut asked = takeover.asked_in();
            let is_over = asked.all(|cfg| begins(cfg) || cfg.sets().any(is_forgotten));
            let knows_any = !takeover.asked.is_empty() && closed && is_over;
            return knows_any.then(|| takeover.newest_stamp(None));
        };
        if self.may_have_majority(&info.cfg) {
            return None;
        }
        let is_outdated =
            |set: &Members| is_forgotten(set) || self.is_over_in(ctx, takeover, info, set);
        let is_past = |set: &Members| takeover.begun_after(set.stamp) || is_outdated(set);
        let sets = [Some(&info.cfg.now), info.cfg.prev.as_deref()].into_iter().flatten();
        sets.filter(|set| is_past(set)).map(|set| set.stamp).max()
    }

    /// Whether the `found` record is over, and nothing newer can have been chosen in `set` without those that have
    /// forgotten the session, which they do once it is over by what they hold, or have reported it.
    fn is_over_in(
        &self,
        ctx: &Ctx<'_>,
        takeover: &Takeover,
        found: &AcceptedInfo,
        set: &Members,
    ) -> bool {
        let end = found.body.as_ref().map(|body| body.expiry.after(ctx.policy.forget_grace));
        let may_hold_more = |peer: Incarnation| {
            let forgotten = self.heard.gone.get(&peer).copied().unwrap_or_default();
            let knows = forgotten < set.stamp || forgotten >= FENCED;
            knows && !takeover.covered_by(peer, set)
        };
        end.is_some_and(|end| end <= ctx.wall) && !set.majority(may_hold_more)
    }

    /// The stamp of a session that is over by the `found` record although its members might still be a
    /// majority, since one of them is silent: some have forgotten it, and all known peers but one have
    /// answered. Its key may be used again.
    fn over_since(&self, ctx: &Ctx<'_>, takeover: &Takeover, found: &AcceptedInfo) -> Option<u64> {
        let roll = takeover.roll.as_ref()?;
        let stamp = found.cfg.now.stamp;
        let is_over = found.cfg.prev.is_none()
            && takeover.may_search_again()
            && self.is_over_in(ctx, takeover, found, &found.cfg.now)
            && !takeover.knows_later(Some(found), stamp)
            && roll.verdict(takeover.has_waited()) == Verdict::Enough;
        is_over.then_some(stamp)
    }

    /// Drops a seal that was never chosen, since the members before it have forgotten the session.
    pub(in crate::session) fn drop_void_seal(&mut self, stamp: u64) {
        let is_void = |cfg: &Config| {
            let before = cfg.prev.as_deref().is_some_and(|before| before.stamp <= stamp);
            before && cfg.now.stamp > stamp
        };
        if self.copy.accepted.as_ref().is_some_and(|record| is_void(&record.cfg)) {
            self.copy.drop_history();
        }
        if self.heard.cfg.as_ref().is_some_and(|cfg| is_void(cfg)) {
            self.heard.cfg = None;
        }
    }

    /// Has everyone forget what is left of a session that is over, whose newest known configuration had
    /// this stamp, and searches again: another may have begun under the same key since, which it hid.
    fn search_without(&mut self, ctx: &mut Ctx<'_>, stamp: u64, out: &mut Effects) {
        let Role::Preparing(takeover) = core::mem::replace(&mut self.role, Role::None) else {
            return;
        };
        self.end_all(ctx, stamp, &takeover.search.peers, out);
        self.seek_again(ctx, *takeover, out);
    }

    /// Searches again as `takeover` did, for as long as that had left.
    fn seek_again(&mut self, ctx: &mut Ctx<'_>, takeover: Takeover, out: &mut Effects) {
        let Takeover { search, otherwise, give_up_at, outdated, .. } = takeover;
        self.seek(ctx, &search.peers, otherwise, out);
        if let Role::Preparing(again) = &mut self.role {
            again.give_up_at = give_up_at;
            again.outdated = outdated + 1;
        }
    }

    /// Nothing was chosen where the session may have begun, and it is to begin: what was known of
    /// it, and asked first, leads nowhere.
    fn begin_after_all(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let Role::Preparing(takeover) = core::mem::replace(&mut self.role, Role::None) else {
            return;
        };
        self.heard.cfg = None;
        self.seek_again(ctx, *takeover, out);
    }

    /// The members of the configuration that it was to begin in have forgotten an earlier attempt there:
    /// it begins in another one.
    pub(super) fn begin_in_another(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let Role::Preparing(takeover) = core::mem::replace(&mut self.role, Role::None) else {
            return;
        };
        self.seek_again(ctx, *takeover, out);
    }

    /// Whether the promises suffice in every set that `cfg` names.
    fn is_promised(&self, takeover: &Takeover, cfg: &Config) -> bool {
        cfg.sets().all(|set| {
            self.covers(takeover, set)
                || mutant::on(Mutant::SkipPromises)
                || mutant::on(Mutant::CoverOld) && cfg.prev.is_some() && *set == cfg.now
                || mutant::on(Mutant::CoverNew) && cfg.prev.as_deref() == Some(set)
        })
    }

    /// Whether the known configurations can have no majority, and other peers have to be asked.
    fn is_hopeless(&self, takeover: &Takeover, found: Option<&AcceptedInfo>) -> bool {
        let Some(info) = found else {
            // Where the session began according to the client, all promises count; where it may have
            // begun, as many as close that.
            let is_token = |cfg: &Arc<Config>| takeover.token.as_ref() == Some(cfg);
            let is_settled = |cfg: &Arc<Config>| !is_token(cfg) && self.is_closed(takeover, cfg);
            let may_settle = |cfg: &Arc<Config>| self.may_have_majority(cfg) && !is_settled(cfg);
            return !takeover.asked_in().any(may_settle);
        };
        // The found record may be outdated: a later configuration that has not reported yet whether
        // it holds more may be the one in which the session continues, or was begun anew.
        let later = |cfg: &&Arc<Config>| cfg.now.stamp > info.cfg.now.stamp;
        let unheard = |cfg: &Arc<Config>| {
            self.may_have_majority(cfg) && !cfg.sets().all(|set| self.covers(takeover, set))
        };
        let is_shut_in = takeover.births_above(found).any(|birth| {
            self.is_open(takeover, found, birth) && self.is_shut_in_by(takeover, birth)
        });
        is_shut_in
            || !self.may_have_majority(&info.cfg) && !takeover.asked_in().filter(later).any(unheard)
    }

    /// Nothing was chosen where the session may have begun: acts on the roll's `verdict` whether
    /// any other peer may know of it.
    fn settle_absence(&mut self, ctx: &mut Ctx<'_>, verdict: Verdict, out: &mut Effects) {
        let Role::Preparing(takeover) = &self.role else { return };
        let Some(roll) = &takeover.roll else { return };
        match verdict {
            Verdict::Enough if takeover.otherwise == Otherwise::Absent => {
                self.fail_as_absent(ctx, out);
            }
            Verdict::Enough if takeover.may_search_again() => self.begin_after_all(ctx, out),
            Verdict::TooFew if takeover.search.asked == takeover.search.peers.len() => {
                self.role = Role::None;
                out.push(Effect::GaveUp);
                self.fail_all(Failure::NoMajority { ran: false }, out);
            }
            _ if takeover.search.open.iter().all(|peer| roll.is_silent(*peer)) => {
                self.ask_more(ctx, out);
            }
            _ => {}
        }
    }

    /// No peer knows of the session: requests that waited when everyone was asked fail. For those
    /// that arrived since, the answers may be too old, and everyone is asked again.
    fn fail_as_absent(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let Role::Preparing(takeover) = core::mem::replace(&mut self.role, Role::None) else {
            return;
        };
        // The entry may be dropped, with the ballots that it heard of: what is begun next has to use a
        // higher one than those that promised one remember.
        let promised = self.heard.owner.map_or(0, |ballot| ballot.round);
        ctx.process.round_ctr = ctx.process.round_ctr.max(promised);
        let waiting = core::mem::take(&mut self.line.queue);
        let (came_since, asked_for) =
            waiting.into_iter().partition(|it| it.came_after(takeover.began));
        self.line.queue = asked_for;
        self.fail_all(Failure::Absent, out);
        self.line.queue = came_since;
        if !self.line.queue.is_empty() {
            self.seek(ctx, &takeover.search.peers, Otherwise::Absent, out);
        }
    }

    /// Begins the search again if the known configurations have lost their majorities (`hopeless`)
    /// since the last look.
    fn search_anew(&mut self, ctx: &mut Ctx<'_>, hopeless: bool) {
        let Role::Preparing(takeover) = &mut self.role else { return };
        let search = &mut takeover.search;
        if hopeless == search.anew {
            return;
        }
        search.anew = hopeless;
        if !hopeless {
            return;
        }
        // The living members know best who the members are by now, whether this peer knew them
        // before or not.
        let members = takeover.asked.iter().flat_map(|(cfg, _)| cfg.everyone());
        for peer in members.filter(|peer| *peer != ctx.me) {
            if self.heard.gone.get(&peer) != Some(&DEAD) && !search.peers.contains(&peer) {
                search.peers.push(peer);
            }
        }
        search.asked = 0;
        search.open.clear();
        takeover.nonce = ctx.process.next_nonce();
        let census = &ctx.process.census;
        let is_new_here = takeover.roll.is_none() && census.is_new;
        takeover.witnesses = is_new_here.then(|| Roll::new(ctx.me, census));
    }
}

impl Takeover {
    /// Whether it may search once more without what it found outdated.
    pub(super) fn may_search_again(&self) -> bool {
        self.outdated < OUTDATED_MAX
    }

    /// A birth above the `found` record that no peer was asked to close.
    fn birth_to_close(&self, found: Option<&AcceptedInfo>) -> Option<Arc<Config>> {
        let mut births = self.births_above(found);
        births.find(|birth| !self.has_asked(&birth.cfg)).map(|birth| birth.cfg.clone())
    }

    /// Whether the session was begun under a higher stamp than this: a majority of its first members
    /// then, to whom no change of members leads, holds what was chosen there.
    fn begun_after(&self, stamp: u64) -> bool {
        let held = self.promises.values().filter_map(|promised| promised.accepted.as_ref());
        let mut later = held.filter(|info| info.cfg.now.c == 1 && info.cfg.now.stamp > stamp);
        later.any(|info| self.is_held(info))
    }

    /// Whether any peer told of a configuration above this stamp, other than that of the `found` record.
    fn knows_later(&self, found: Option<&AcceptedInfo>, stamp: u64) -> bool {
        let held = self.promises.values().filter_map(|it| Some(&it.accepted.as_ref()?.cfg));
        let found = found.map(|info| &info.cfg);
        let mut all = self.reported.iter().chain(held);
        all.any(|cfg| cfg.now.stamp > stamp && Some(cfg) != found)
    }

    /// Whether it asked only in configurations in which the session may have begun.
    fn asked_in_births_alone(&self) -> bool {
        self.asked_in().all(|cfg| self.births.iter().any(|birth| birth.cfg == *cfg))
    }
}

//! The takeover: phase one of the register, and what it finds (CASPaxos section 2.2, over
//! configurations that may have changed meanwhile).
//!
//! A promise *covers* a set of members only if it was asked for in a configuration that names the
//! set and its sender is in it. The highest accepted record counts once the promises cover a
//! majority of every set that it names; sets that are discovered on the way are asked at the same
//! ballot.

mod birth;
mod settle;
mod void;
mod withdrawn;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

pub(super) use self::void::Word;
use super::census::{Census, Roll};
use super::message::{AcceptedInfo, Birth, Config, Members, Message, NackReason, Part};
use super::mutant::{self, Mutant};
use super::owner::{DRAWN_ROUND, Owner, Withdrawn};
use super::reach::{unheard_tries, waits_for_the_silent};
use super::{Ctx, Effect, Effects, FENCED, Failure, Resend, Role, Session};
use crate::ids::{Ballot, Incarnation, Now, WallTime};

/// How many of the peers that rank first for a session are asked for it before everyone is.
const RANKS_ASKED_FIRST: usize = 3;
/// How many peers are asked for one session at most: all that a view holds.
const ASKED_MAX: usize = crate::view::PEERS_MAX;
/// How often everyone is asked before those that have not answered count as silent.
const ANSWER_WITHIN_TRIES: u32 = 2;

/// A takeover under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Takeover {
    pub(super) b: Ballot,
    /// The configuration of the client's token, in which something was chosen if anything ever was:
    /// only in this one does a majority without a record mean that there is none. Any other known
    /// configuration may have been proposed and never chosen.
    token: Option<Arc<Config>>,
    /// What to do if no peer knows of the session.
    otherwise: Otherwise,
    /// The configuration in which it is to begin, unless a peer knows of it.
    pub(super) begun: Option<Arc<Config>>,
    /// The configurations in which others may have begun it, and at which ballots.
    pub(super) births: Vec<Birth>,
    /// The later reports of its beginners about that.
    pub(super) words: BTreeMap<Incarnation, Word>,
    /// Those that everyone was asked to close, in favour of `begun`.
    pub(super) closing: Vec<Arc<Config>>,
    /// The configurations of the records that other peers reported.
    reported: Vec<Arc<Config>>,
    /// The configurations asked in, in the order of their discovery, each with the one for which it
    /// is to be closed, if any.
    asked: Vec<(Arc<Config>, Option<Arc<Config>>)>,
    pub(super) promises: BTreeMap<Incarnation, Promised>,
    pub(super) search: Search,
    /// Whose answers count for the conclusion that no peer knows of the session.
    pub(super) roll: Option<Roll>,
    /// The answers by which a young process learns whether it has met everyone, once it has to ask
    /// them for a session whose known members have no majority.
    pub(super) witnesses: Option<Roll>,
    /// The nonce of the question to the peers that are asked what they know, and to those that are
    /// to promise.
    nonce: u64,
    resend: Resend,
    began: Now,
    give_up_at: Now,
    /// How often it found what is outdated, and searched again without that.
    outdated: u8,
    /// The change of its own that the owner takes back by it.
    pub(super) withdrawn: Option<Box<Withdrawn>>,
}

/// The search for a newer configuration, if the known ones find no majority: the peers that rank
/// first for the session are asked, then everyone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Search {
    /// The peers to ask, best first.
    pub(super) peers: Vec<Incarnation>,
    /// How many of them were asked.
    pub(super) asked: usize,
    /// The peers that have not answered yet.
    pub(super) open: BTreeSet<Incarnation>,
    /// Everyone is asked again since the known configurations lost their majorities: earlier
    /// answers may be older than the members that the session has by now.
    anew: bool,
}

impl Search {
    fn is_over(&self) -> bool {
        self.asked == self.peers.len() && self.open.is_empty()
    }
}

/// The result of a takeover if no peer knows of the session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Otherwise {
    /// None: waiting requests are redirected.
    GiveUp,
    /// The session does not exist: waiting requests fail with [`Failure::Absent`].
    Absent,
    /// The session begins, in this configuration, whose stamp is raised above forgotten ones if
    /// necessary. Unlike one under a random id, which no other peer can know ([`Session::mint`]),
    /// it is prepared first: another peer may begin the same one.
    Begin(Config),
}

/// The promise of one peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Promised {
    pub(super) covers: Vec<Members>,
    pub(super) accepted: Option<AcceptedInfo>,
}

impl Takeover {
    /// Whether `peer` is in any configuration asked in.
    pub(super) fn names(&self, peer: Incarnation) -> bool {
        self.asked_in().chain(&self.begun).any(|cfg| cfg.contains(peer))
    }

    fn asked_in(&self) -> impl Iterator<Item = &Arc<Config>> {
        self.asked.iter().map(|(cfg, _)| cfg)
    }

    fn has_asked(&self, cfg: &Config) -> bool {
        self.asked_in().any(|asked| **asked == *cfg)
    }

    /// Whether all living peers have had the time to answer.
    pub(super) fn has_waited(&self) -> bool {
        self.resend.tries >= ANSWER_WITHIN_TRIES
    }

    /// The stamp of the newest configuration in which the session was `found`, or may have been: of
    /// those that are lost if it is. Without a record these are all that were asked in.
    pub(super) fn newest_stamp(&self, found: Option<&AcceptedInfo>) -> u64 {
        let stamp = |cfg: &Arc<Config>| cfg.now.stamp;
        let births = self.births_above(found).map(|birth| stamp(&birth.cfg));
        let known = match found {
            Some(info) => Some(stamp(&info.cfg)),
            None => self.asked_in().chain(&self.reported).map(stamp).max(),
        };
        births.chain(known).max().unwrap_or_default()
    }

    /// The births above the found record, by which the session may have continued since.
    pub(super) fn births_above<'t>(
        &'t self,
        found: Option<&'t AcceptedInfo>,
    ) -> impl Iterator<Item = &'t Birth> {
        let above = move |birth: &&Birth| {
            found.is_none_or(|info| birth.b > info.p.ballot && birth.cfg != info.cfg)
                && !self.is_void(birth)
                && !mutant::on(Mutant::KeepOpen)
        };
        self.births.iter().filter(above)
    }

    pub(super) fn covers_majority(&self, set: &Members) -> bool {
        set.majority(|peer| self.covered_by(peer, set))
    }

    pub(super) fn covered_by(&self, peer: Incarnation, set: &Members) -> bool {
        self.promises.get(&peer).is_some_and(|promised| promised.covers.contains(set))
    }

    pub(super) fn note(&mut self, from: Incarnation, cfg: &Config, accepted: Option<AcceptedInfo>) {
        let promised = self.promises.entry(from).or_default();
        for set in cfg.sets().filter(|set| set.contains(from)) {
            if !promised.covers.contains(set) {
                promised.covers.push(set.clone());
            }
        }
        if promised.accepted.as_ref().map(|info| info.p) <= accepted.as_ref().map(|info| info.p) {
            promised.accepted = accepted;
        }
    }

    fn highest(&self) -> Option<&AcceptedInfo> {
        let accepted = self.promises.values().filter_map(|promised| promised.accepted.as_ref());
        if mutant::on(Mutant::NumberFirst) {
            return accepted.max_by_key(|info| (info.p.n, info.p.ballot));
        }
        accepted.max_by_key(|info| info.p)
    }
}

impl Session {
    /// Begins to take the session over with a ballot above every known one. `token` is the
    /// configuration that the client's token names, `seen_round` the highest known round. If the
    /// known configurations find no majority, `peers` are asked whether they know better: all that
    /// are not known to be dead, in the order of their rank for the session.
    pub fn take_over(
        &mut self,
        ctx: &mut Ctx<'_>,
        token: Option<Config>,
        seen_round: u64,
        peers: &[Incarnation],
        out: &mut Effects,
    ) {
        self.prepare(ctx, token, seen_round, peers, Otherwise::GiveUp, out);
    }

    /// As [`Session::take_over`], for a session without a token: its id follows from a key.
    /// Everyone in `peers` is asked for it, and everyone else that the process knows. It counts as
    /// unknown, or begins, only if a [`Roll`] of them suffices.
    pub fn seek(
        &mut self,
        ctx: &mut Ctx<'_>,
        peers: &[Incarnation],
        otherwise: Otherwise,
        out: &mut Effects,
    ) {
        self.prepare(ctx, None, self.seen_round(), peers, otherwise, out);
    }

    fn prepare(
        &mut self,
        ctx: &mut Ctx<'_>,
        token: Option<Config>,
        seen_round: u64,
        peers: &[Incarnation],
        otherwise: Otherwise,
        out: &mut Effects,
    ) {
        let token = token.map(Arc::new);
        if let Some(cfg) = &token {
            self.heard.note_cfg(cfg);
        }
        let roll = (otherwise != Otherwise::GiveUp).then(|| birth::call(ctx, peers));
        let mut peers: Vec<_> =
            peers.iter().copied().filter(|peer| *peer != ctx.me).take(ASKED_MAX).collect();
        if let Some(roll) = &roll {
            let others: Vec<_> = roll.open().filter(|peer| !peers.contains(peer)).collect();
            peers.extend(others);
        }
        let best = self.best_config().cloned();
        if best.is_none() && peers.is_empty() && otherwise == Otherwise::GiveUp {
            out.push(Effect::GaveUp);
            self.redirect_all(None, out);
            return;
        }
        let used = if mutant::on(Mutant::ReuseBallot) { 0 } else { ctx.process.round_ctr };
        // What a key names is never drawn.
        let may_be_drawn = otherwise == Otherwise::GiveUp && !mutant::on(Mutant::BelowDrawn);
        let drawn = if may_be_drawn { DRAWN_ROUND } else { 0 };
        let round = seen_round.max(self.seen_round()).max(used).max(drawn).saturating_add(1);
        ctx.process.round_ctr = round;
        let b = Ballot { round, proposer: ctx.me };
        let begun = match &otherwise {
            Otherwise::Begin(cfg) if best.is_none() => Some(self.birth_in(ctx, cfg)),
            _ => None,
        };
        if let (Some(cfg), true) = (&begun, mutant::on(Mutant::BeginUnprepared)) {
            self.role = Role::Owner(Box::new(Owner::beginning(b, cfg.clone())));
            return;
        }
        self.forget_void_birth();
        if self.heard.lost > 0 {
            self.heard.lost = 0;
        }
        let begins = begun.is_some();
        self.role = Role::Preparing(Box::new(Takeover {
            b,
            token: token.clone(),
            otherwise,
            begun,
            births: Vec::new(),
            words: BTreeMap::new(),
            closing: Vec::new(),
            reported: Vec::new(),
            asked: Vec::new(),
            promises: BTreeMap::new(),
            search: Search { peers, asked: 0, open: BTreeSet::new(), anew: false },
            roll,
            witnesses: None,
            nonce: ctx.process.next_nonce(),
            resend: Resend::new(ctx),
            began: ctx.now,
            give_up_at: ctx.now.after(ctx.policy.majority_timeout),
            outdated: 0,
            withdrawn: None,
        }));
        match best {
            Some(cfg) => self.ask_in(ctx, cfg, None, out),
            None => {
                self.begin_myself(ctx);
                let births = self.copy.births(None);
                self.hear_births(b, births);
                while self.ask_more(ctx, out) && begins {}
            }
        }
        self.settle(ctx, out);
    }

    /// The configuration to begin in: one that was tried before with the same members, if there is
    /// any that these have not forgotten, so that a session does not begin in ever more configurations.
    fn birth_in(&self, ctx: &Ctx<'_>, cfg: &Config) -> Arc<Config> {
        let births = self.copy.births(None);
        let same = births.into_iter().map(|birth| birth.cfg).find(|known| {
            known.is_open()
                && known.now.who == cfg.now.who
                && known.now.stamp > self.copy.low
                && !self.is_forgotten_in(known)
        });
        same.unwrap_or_else(|| {
            let mut cfg = cfg.clone();
            cfg.now.stamp = cfg.now.stamp.max(ctx.process.stamp_to_begin());
            Arc::new(cfg)
        })
    }

    /// Asks the next peers what they know of the session. Returns whether any were left.
    fn ask_more(&mut self, ctx: &Ctx<'_>, out: &mut Effects) -> bool {
        let Role::Preparing(takeover) = &mut self.role else { return false };
        let question = takeover.question(ctx);
        let search = &mut takeover.search;
        let from = search.asked;
        let to = match from {
            0 => search.peers.len().min(RANKS_ASKED_FIRST),
            _ => search.peers.len(),
        };
        search.asked = to;
        for peer in search.peers.get(from..to).unwrap_or_default() {
            search.open.insert(*peer);
            out.push(Effect::Send { to: *peer, message: question.clone() });
        }
        from < to
    }

    /// A peer said what it knows. It has answered where it was this takeover that asked.
    #[expect(clippy::too_many_arguments, reason = "the parts of one message")]
    pub(super) fn on_located(
        &mut self,
        ctx: &Ctx<'_>,
        from: Incarnation,
        nonce: u64,
        record: Option<Arc<Config>>,
        births: Vec<Birth>,
        census: Option<&Census>,
        out: &mut Effects,
    ) {
        let Role::Preparing(takeover) = &mut self.role else { return };
        if takeover.roll.is_some() {
            if let Some(cfg) = record.filter(|cfg| !takeover.reported.contains(cfg)) {
                takeover.reported.push(cfg);
            }
            births.into_iter().for_each(|birth| takeover.hear_birth(birth));
        }
        // A report for an earlier question is true, but says nothing of what happened since.
        if nonce == takeover.nonce {
            self.answered(ctx, from, census, out);
        }
    }

    /// Notes that a peer runs as another incarnation by now.
    pub(super) fn on_gone(&mut self, from: Incarnation) {
        if let Role::Preparing(takeover) = &mut self.role {
            takeover.search.open.remove(&from);
            for roll in takeover.roll.iter_mut().chain(&mut takeover.witnesses) {
                roll.gone(from);
            }
        }
    }

    /// Asks everyone in `cfg` for a promise, this peer's own copy included. If it is asked only to
    /// close it, the promises also remember that the session continues in `into`.
    fn ask_in(
        &mut self,
        ctx: &mut Ctx<'_>,
        cfg: Arc<Config>,
        into: Option<Arc<Config>>,
        out: &mut Effects,
    ) {
        let Role::Preparing(takeover) = &mut self.role else { return };
        let b = takeover.b;
        if cfg.contains(ctx.me) {
            match self.copy.gate(ctx.me, &cfg, b) {
                Ok(()) => {
                    let expiry = ctx.wall.after(ctx.policy.ttl);
                    self.copy.keep_until(expiry, ctx.policy.forget_grace);
                    let births = self.copy.births(Some(b));
                    if let Some(into) = &into {
                        self.copy.remember(b, into);
                    }
                    takeover.note(ctx.me, &cfg, self.copy.accepted_info(true));
                    let held = self.copy.accepted.as_ref().map(|record| record.p);
                    takeover.hear_word(ctx.me, Word::of(ctx.me, b, &births, held, Part::None));
                    births.into_iter().for_each(|birth| takeover.hear_birth(birth));
                }
                Err(super::Shut::Nack(NackReason::Forgotten)) => {
                    let low = self.copy.low;
                    self.note_gone(ctx.me, low);
                }
                Err(super::Shut::Nack(NackReason::Fenced(_))) => self.note_gone(ctx.me, FENCED),
                Err(_) => {}
            }
        }
        let Role::Preparing(takeover) = &mut self.role else { return };
        takeover.asked.push((cfg, into));
        self.send_prepares(ctx, out);
    }

    /// Sends `Prepare` to the peers that have not promised in every configuration asked in.
    fn send_prepares(&mut self, ctx: &Ctx<'_>, out: &mut Effects) {
        let Role::Preparing(takeover) = &self.role else { return };
        for (cfg, into) in &takeover.asked {
            for to in cfg.everyone() {
                let covered = |promised: &Promised| {
                    cfg.sets()
                        .filter(|set| set.contains(to))
                        .all(|set| promised.covers.contains(set))
                };
                if to == ctx.me
                    || self.is_gone(to, cfg)
                    || takeover.promises.get(&to).is_some_and(covered)
                {
                    continue;
                }
                out.push(Effect::Send {
                    to,
                    message: prepare(ctx, takeover.b, cfg, into.clone(), takeover.nonce),
                });
            }
        }
    }

    pub(super) fn on_promise_preparing(
        &mut self,
        from: Incarnation,
        b: Ballot,
        cfg: &Config,
        accepted: Option<AcceptedInfo>,
    ) {
        if let Role::Preparing(takeover) = &mut self.role
            && takeover.b == b
            && takeover.has_asked(cfg)
            && accepted.as_ref().is_none_or(|info| info.body.is_some())
        {
            takeover.note(from, cfg, accepted);
        }
    }

    /// Whether a majority of every set in `cfg` is still possible.
    pub(super) fn may_have_majority(&self, cfg: &Config) -> bool {
        cfg.sets().all(|set| !self.is_beyond_hope(set))
    }

    /// Whether `peer` will never vote in `cfg` again.
    pub(super) fn is_gone(&self, peer: Incarnation, cfg: &Config) -> bool {
        self.heard.votes_are_gone(peer, cfg)
    }

    /// Whether so many of `set` are gone for good that a majority of it is impossible.
    pub(super) fn is_beyond_hope(&self, set: &Members) -> bool {
        let votes = |peer| !self.is_voteless(peer, set);
        !set.majority(votes) && !self.survivor(set).is_some_and(votes)
    }

    /// Whether the promises cover `set`. Of two members of which one is dead the promise of the other
    /// does so alone, whether it holds a record that names the two or none: nothing was chosen there
    /// without its vote, be it as one of two or as the one that is left. So either it reports what it
    /// voted for, or it voted for nothing there, and nothing was chosen. A newcomer that is left
    /// without a record is such a case: what was chosen before it came is covered by the set before.
    pub(super) fn covers(&self, takeover: &Takeover, set: &Members) -> bool {
        let survives = |it| takeover.covered_by(it, set);
        takeover.covers_majority(set) || self.survivor(set).is_some_and(survives)
    }

    /// Whether the vote of `peer` in `set` is lost for good, as far as is known here.
    pub(super) fn is_voteless(&self, peer: Incarnation, set: &Members) -> bool {
        self.heard.gone.get(&peer).is_some_and(|stamp| *stamp >= set.stamp)
    }

    pub(super) fn on_timer_preparing(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let Role::Preparing(takeover) = &mut self.role else { return };
        if takeover.give_up_at <= ctx.now {
            self.role = Role::None;
            out.push(Effect::GaveUp);
            self.fail_all(Failure::NoMajority { ran: false }, out);
        } else if takeover.resend.due(ctx) {
            if let Some(roll) = &mut takeover.roll {
                roll.hear(&ctx.process.census);
                roll.waits_for_the_other(waits_for_the_silent(ctx));
            }
            if self.is_cut_off(ctx) {
                self.role = Role::None;
                out.push(Effect::GaveUp);
                self.fail_all(Failure::NoMajority { ran: false }, out);
                return;
            }
            self.send_prepares(ctx, out);
            // The members take their time: others may know of newer members.
            if !self.ask_more(ctx, out)
                && let Role::Preparing(takeover) = &self.role
            {
                if let stamp @ 1.. = self.heard.over {
                    let message = Message::Retire { stamp };
                    let tell =
                        |to: &Incarnation| Effect::Send { to: *to, message: message.clone() };
                    out.extend(takeover.search.open.iter().map(tell));
                }
                if takeover.begun.is_some() {
                    self.send_begins(ctx, out);
                    return;
                }
                let question = takeover.question(ctx);
                let ask = |to: &Incarnation| Effect::Send { to: *to, message: question.clone() };
                out.extend(takeover.search.open.iter().map(ask));
            }
        }
    }

    /// Whether all peers that are heard had the time to answer, and they are no majority. For a
    /// session that a key names, the client may be redirected sooner.
    fn is_cut_off(&self, ctx: &Ctx<'_>) -> bool {
        let Role::Preparing(takeover) = &self.role else { return false };
        if waits_for_the_silent(ctx) {
            return false;
        }
        let search = &takeover.search;
        // Those of former members may have promised all: there is nothing to wait for.
        let waits_in_vain = |is_given_up: &dyn Fn(&Config) -> bool| {
            let is_covered = |cfg: &Config| cfg.sets().all(|set| self.covers(takeover, set));
            takeover.asked_in().any(|cfg| is_given_up(cfg))
                && takeover.asked_in().all(|cfg| is_given_up(cfg) || is_covered(cfg))
        };
        let Some(roll) = &takeover.roll else {
            let silent = &ctx.process.census.silent;
            return takeover.resend.tries >= unheard_tries(ctx)
                && search.open.iter().all(|peer| silent.contains(peer))
                && waits_in_vain(&|cfg| self.is_given_up(ctx, cfg));
        };
        let asked = search.asked == search.peers.len();
        let heard = |peer: &Incarnation| !roll.is_silent(*peer);
        let unheard = |cfg: &Config| !cfg.sets().all(|set| set.majority(|peer| heard(&peer)));
        takeover.has_waited() && asked && !search.open.iter().any(heard) && waits_in_vain(&unheard)
    }

    pub(super) fn wake_preparing(&self) -> Option<Now> {
        match &self.role {
            Role::Preparing(takeover) => Some(takeover.resend.at.min(takeover.give_up_at)),
            _ => None,
        }
    }
}

fn prepare(
    ctx: &Ctx<'_>,
    b: Ballot,
    cfg: &Arc<Config>,
    into: Option<Arc<Config>>,
    nonce: u64,
) -> Message {
    let expiry: WallTime = ctx.wall.after(ctx.policy.ttl);
    Message::Prepare { b, cfg: cfg.clone(), want_body: true, polite: false, nonce, expiry, into }
}

//! The takeover: phase one of the register, and what it finds (CASPaxos section 2.2, over
//! configurations that may have changed meanwhile).
//!
//! A promise *covers* a set of members only if it was asked in a configuration that names the
//! set and its sender is in it. The highest accepted record counts once the promises cover a
//! majority of every set that it names; sets that come to light on the way are asked at the
//! same ballot.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::message::{AcceptedInfo, Config, Members, Message, NackReason, Record};
use super::mutant::{self, Mutant};
use super::owner::Owner;
use super::{Ctx, Effect, Effects, Failure, Resend, Role, Session};
use crate::ids::{Ballot, Incarnation, Now, WallTime};

/// How many of those that rank first for a session are asked for it before everyone is.
const RANKS_ASKED_FIRST: usize = 3;
/// How many peers are asked for one session at most.
const ASKED_MAX: usize = 128;
/// How often everyone is asked before those who have not answered count as silent.
const ANSWER_WITHIN_TRIES: u32 = 2;

/// A takeover under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Takeover {
    pub(super) b: Ballot,
    /// The configuration of the client's token, in which something was chosen if anything ever
    /// was: only in this one does a majority that holds nothing mean that there is nothing.
    /// Whatever else was heard of may have been proposed and never chosen.
    token: Option<Arc<Config>>,
    /// What to do where nobody knows of the session.
    otherwise: Otherwise,
    /// The configuration that it is begun in, since nobody knew of it.
    begun: Option<Arc<Config>>,
    /// The configurations asked in, in the order in which they came to light.
    asked: Vec<Arc<Config>>,
    promises: BTreeMap<Incarnation, Promised>,
    search: Search,
    nonce: u64,
    resend: Resend,
    give_up_at: Now,
}

/// The search for a newer configuration, where the known ones find no majority: the peers that
/// rank first for the session are asked, then everyone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Search {
    /// Whom to ask, best first.
    peers: Vec<Incarnation>,
    /// How many of them were asked.
    asked: usize,
    /// Who has not answered yet.
    open: BTreeSet<Incarnation>,
    /// Everyone is asked anew since the known configurations lost their majorities: what was
    /// answered before may be older than the members that the session has by now.
    anew: bool,
    /// How many may stay silent, once they had time to answer, for the others' word to be enough
    /// that nobody knows of the session.
    may_miss: usize,
}

impl Search {
    fn is_over(&self) -> bool {
        self.asked == self.peers.len() && self.open.is_empty()
    }

    /// Whether nobody can know of the session, if none of those who answered does.
    fn found_nobody(&self, tries: u32) -> bool {
        let may_miss = if tries < ANSWER_WITHIN_TRIES { 0 } else { self.may_miss };
        self.asked == self.peers.len() && self.open.len() <= may_miss
    }
}

/// What a takeover comes to where nobody knows of the session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Otherwise {
    /// Nothing: whoever waits is told to look elsewhere.
    GiveUp,
    /// The session does not exist: those who wait fail with [`Failure::Absent`].
    Absent,
    /// The session is begun, in this configuration, whose stamp is raised above what was forgotten
    /// if it has to be. Unlike one under a random id, which nobody else can know
    /// ([`Session::mint`]), it is prepared first: another peer may begin the same one.
    Begin(Config),
}

/// What one peer promised.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Promised {
    covers: Vec<Members>,
    accepted: Option<AcceptedInfo>,
}

impl Takeover {
    /// Whether `peer` is in any configuration asked in.
    pub(super) fn names(&self, peer: Incarnation) -> bool {
        self.asked.iter().any(|cfg| cfg.contains(peer))
    }

    fn covers_majority(&self, set: &Members) -> bool {
        set.majority(|peer| {
            self.promises.get(&peer).is_some_and(|promised| promised.covers.contains(set))
        })
    }

    fn note(&mut self, from: Incarnation, cfg: &Config, accepted: Option<AcceptedInfo>) {
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
    /// Begins to take the session over with a ballot above every one that was seen. `token` is
    /// the configuration that the client's token names, `seen_round` the highest round heard of.
    /// Where those that are known of find no majority, `peers` are asked whether they know better:
    /// whoever is not known to be dead, in the order of their rank for the session.
    pub fn take_over(
        &mut self,
        ctx: &mut Ctx<'_>,
        token: Option<Config>,
        seen_round: u64,
        peers: &[Incarnation],
        out: &mut Effects,
    ) {
        self.prepare(ctx, token, seen_round, peers, Otherwise::GiveUp, 0, out);
    }

    /// As [`Session::take_over`], for a session that no token tells of: its id follows from a key.
    /// Everyone in `peers` is asked for it. `may_miss` of them may stay silent: as many as can lack
    /// without a majority of the session's members being among them, one where sessions have two
    /// members or three.
    pub fn seek(
        &mut self,
        ctx: &mut Ctx<'_>,
        peers: &[Incarnation],
        may_miss: usize,
        otherwise: Otherwise,
        out: &mut Effects,
    ) {
        self.prepare(ctx, None, self.seen_round(), peers, otherwise, may_miss, out);
    }

    #[expect(clippy::too_many_arguments, reason = "what its two callers tell it apart by")]
    fn prepare(
        &mut self,
        ctx: &mut Ctx<'_>,
        token: Option<Config>,
        seen_round: u64,
        peers: &[Incarnation],
        otherwise: Otherwise,
        may_miss: usize,
        out: &mut Effects,
    ) {
        let token = token.map(Arc::new);
        if let Some(cfg) = &token {
            self.heard.note_cfg(cfg);
        }
        let peers: Vec<_> =
            peers.iter().copied().filter(|peer| *peer != ctx.me).take(ASKED_MAX).collect();
        let best = self.best_config().cloned();
        if best.is_none() && peers.is_empty() && otherwise == Otherwise::GiveUp {
            out.push(Effect::GaveUp);
            self.redirect_all(None, out);
            return;
        }
        let used = if mutant::on(Mutant::ReuseBallot) { 0 } else { ctx.process.round_ctr };
        let round = seen_round.max(self.seen_round()).max(used).saturating_add(1);
        ctx.process.round_ctr = round;
        let b = Ballot { round, proposer: ctx.me };
        self.role = Role::Preparing(Box::new(Takeover {
            b,
            token: token.clone(),
            otherwise,
            begun: None,
            asked: Vec::new(),
            promises: BTreeMap::new(),
            search: Search { peers, asked: 0, open: BTreeSet::new(), anew: false, may_miss },
            nonce: ctx.process.next_nonce(),
            resend: Resend::new(ctx),
            give_up_at: ctx.now.after(ctx.policy.majority_timeout),
        }));
        match best {
            Some(cfg) => self.ask_in(ctx, cfg, out),
            None => {
                self.ask_more(out);
            }
        }
        self.settle(ctx, out);
    }

    /// Asks the next peers for what they know of the session. Returns whether any were left.
    fn ask_more(&mut self, out: &mut Effects) -> bool {
        let Role::Preparing(takeover) = &mut self.role else { return false };
        let search = &mut takeover.search;
        let from = search.asked;
        let to = match from {
            0 => search.peers.len().min(RANKS_ASKED_FIRST),
            _ => search.peers.len(),
        };
        search.asked = to;
        for peer in search.peers.get(from..to).unwrap_or_default() {
            search.open.insert(*peer);
            out.push(Effect::Send { to: *peer, message: Message::Locate });
        }
        from < to
    }

    /// A peer said what it knows, or that it is another by now.
    pub(super) fn on_located(&mut self, from: Incarnation) {
        if let Role::Preparing(takeover) = &mut self.role {
            takeover.search.open.remove(&from);
        }
    }

    /// Asks everyone in `cfg` for a promise, this peer's own copy included.
    fn ask_in(&mut self, ctx: &mut Ctx<'_>, cfg: Arc<Config>, out: &mut Effects) {
        let Role::Preparing(takeover) = &mut self.role else { return };
        let b = takeover.b;
        if cfg.contains(ctx.me) {
            match self.copy.gate(ctx.me, &cfg, b) {
                Ok(()) => {
                    let expiry = ctx.wall.after(ctx.policy.ttl);
                    self.copy.keep_until(expiry, ctx.policy.forget_grace);
                    takeover.note(ctx.me, &cfg, self.copy.accepted_info(true));
                }
                Err(super::Shut::Nack(NackReason::Forgotten)) => {
                    let low = self.copy.low;
                    self.note_gone(ctx.me, low);
                }
                Err(super::Shut::Nack(NackReason::Fenced(_))) => self.note_gone(ctx.me, u64::MAX),
                Err(_) => {}
            }
        }
        let Role::Preparing(takeover) = &mut self.role else { return };
        takeover.asked.push(cfg);
        self.send_prepares(ctx, out);
    }

    /// Sends `Prepare` to those who have not promised in every configuration asked in.
    fn send_prepares(&mut self, ctx: &Ctx<'_>, out: &mut Effects) {
        let Role::Preparing(takeover) = &self.role else { return };
        for cfg in &takeover.asked {
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
                    message: prepare(ctx, takeover.b, cfg, takeover.nonce),
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
            && takeover.asked.iter().any(|asked| **asked == *cfg)
            && accepted.as_ref().is_none_or(|info| info.body.is_some())
        {
            takeover.note(from, cfg, accepted);
        }
    }

    /// Looks whether the promises suffice, and what follows from them.
    pub(super) fn settle_preparing(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        loop {
            let Role::Preparing(takeover) = &self.role else { return };
            let b = takeover.b;
            let found = takeover.highest().cloned();
            // What was heard of since may be newer than what was asked in.
            let known = takeover.asked.iter().map(|cfg| cfg.now.c).max().unwrap_or_default();
            let newer = match &found {
                Some(info) if !takeover.asked.contains(&info.cfg) => Some(&info.cfg),
                _ => self.heard.cfg.as_ref().filter(|cfg| cfg.now.c > known),
            };
            let missing = newer.or(takeover.token.as_ref());
            if let Some(cfg) = missing.filter(|cfg| !takeover.asked.contains(cfg)).cloned() {
                self.ask_in(ctx, cfg, out);
                continue;
            }
            let target = match &found {
                Some(info) => Some(info.cfg.clone()),
                None => takeover.token.clone(),
            };
            let suffices = |cfg: &Arc<Config>| {
                cfg.sets().all(|set| {
                    takeover.covers_majority(set)
                        || mutant::on(Mutant::SkipPromises)
                        || mutant::on(Mutant::CoverOld) && cfg.prev.is_some() && *set == cfg.now
                        || mutant::on(Mutant::CoverNew) && cfg.prev.as_deref() == Some(set)
                })
            };
            let covered = target.as_ref().is_some_and(suffices);
            if let Some(cfg) = target.filter(|_| covered) {
                match found {
                    Some(AcceptedInfo { p, cfg, body: Some(body) }) => {
                        let record = Record { p, cfg, body };
                        self.role = Role::Owner(Box::new(Owner::succeeding(b, &record)));
                        if mutant::on(Mutant::NoReassert) {
                            self.serve_at_once(record);
                            return;
                        }
                        self.reassert(ctx, record, out);
                    }
                    // A majority holds nothing: nothing was ever chosen.
                    _ => {
                        let owner = match &takeover.begun {
                            Some(begun) if *begun == cfg => Owner::beginning(b, cfg),
                            _ => Owner::of_nothing(b, cfg),
                        };
                        self.role = Role::Owner(Box::new(owner));
                        out.push(Effect::Owned { ballot: b });
                    }
                }
                return;
            }
            // A member that forgot the configuration before a seal passes no gate for the seal, but
            // is as good a voter as any in the members from there on: it never voted in those.
            let forgot = |cfg: &Config, peer: &Incarnation| {
                let known = self.heard.gone.get(peer);
                let before = cfg.prev.as_deref().filter(|before| before.contains(*peer));
                known
                    .zip(before)
                    .is_some_and(|(stamp, before)| before.stamp <= *stamp && *stamp < cfg.now.stamp)
            };
            let opened = takeover.asked.iter().find_map(|cfg| {
                let open = Config { now: cfg.now.clone(), prev: None };
                let wanted = !takeover.covers_majority(&cfg.now)
                    && cfg.now.who.iter().any(|peer| forgot(cfg, peer))
                    && !takeover.asked.iter().any(|asked| **asked == open);
                wanted.then(|| Arc::new(open))
            });
            if let Some(cfg) = opened {
                self.ask_in(ctx, cfg, out);
                continue;
            }
            // What was found may be long past: a later configuration that has not said yet whether it
            // holds more may be the one in which the session goes on.
            let unheard = |cfg: &Arc<Config>| {
                self.may_have_majority(cfg) && !cfg.sets().all(|set| takeover.covers_majority(set))
            };
            let hopeless = match &found {
                Some(info) => {
                    let later = |cfg: &&Arc<Config>| cfg.now.c > info.cfg.now.c;
                    !self.may_have_majority(&info.cfg)
                        && !takeover.asked.iter().filter(later).any(unheard)
                }
                None => !takeover.asked.iter().any(|cfg| self.may_have_majority(cfg)),
            };
            let Role::Preparing(takeover) = &mut self.role else { return };
            let search = &mut takeover.search;
            if hopeless != search.anew {
                search.anew = hopeless;
                if hopeless {
                    // Those members that live know best who the members are by now, whether this
                    // peer knew of them before or not.
                    let members = takeover.asked.iter().flat_map(|cfg| cfg.everyone());
                    for peer in members.filter(|peer| *peer != ctx.me) {
                        if self.heard.gone.get(&peer) != Some(&u64::MAX)
                            && !search.peers.contains(&peer)
                        {
                            search.peers.push(peer);
                        }
                    }
                    search.asked = 0;
                    search.open.clear();
                }
            }
            // What this peer began itself is no word of anybody's that there is a session.
            let unknown = takeover.asked.iter().all(|asked| takeover.begun.as_ref() == Some(asked));
            let searched = if unknown {
                takeover.search.found_nobody(takeover.resend.tries)
            } else {
                takeover.search.is_over()
            };
            if !hopeless || !searched {
                if hopeless && takeover.search.open.is_empty() {
                    self.ask_more(out);
                }
                return;
            }
            if unknown && takeover.begun.is_none() {
                match core::mem::replace(&mut takeover.otherwise, Otherwise::GiveUp) {
                    Otherwise::GiveUp => {}
                    Otherwise::Absent => {
                        self.role = Role::None;
                        self.fail_all(Failure::Absent, out);
                        return;
                    }
                    Otherwise::Begin(mut cfg) => {
                        cfg.now.stamp = cfg.now.stamp.max(ctx.process.stamp_to_begin());
                        let cfg = Arc::new(cfg);
                        if mutant::on(Mutant::BeginUnprepared) {
                            self.role = Role::Owner(Box::new(Owner::beginning(b, cfg)));
                            return;
                        }
                        takeover.begun = Some(cfg.clone());
                        takeover.token = Some(cfg);
                        continue;
                    }
                }
            }
            self.role = Role::None;
            if unknown {
                // Nobody has heard of it.
                out.push(Effect::GaveUp);
                self.redirect_all(None, out);
            } else if let Some((into, by)) = self.heard.went_on.filter(|(_, by)| *by != ctx.me) {
                self.fail_all(Failure::WentOn { into, by }, out);
            } else {
                out.push(Effect::Lost);
                self.fail_all(Failure::Lost { ran: false }, out);
            }
            return;
        }
    }

    /// Whether a majority of every set in `cfg` may come about yet.
    fn may_have_majority(&self, cfg: &Config) -> bool {
        cfg.sets().all(|set| !self.is_beyond_hope(set))
    }

    /// Whether `peer` will never vote in `cfg` again.
    pub(super) fn is_gone(&self, peer: Incarnation, cfg: &Config) -> bool {
        votes_are_gone(&self.heard.gone, peer, cfg)
    }

    /// What [`Mutant::NoReassert`] does instead of reasserting.
    fn serve_at_once(&mut self, record: Record) {
        if let Role::Owner(owner) = &mut self.role {
            owner.chosen = Some(record);
            owner.serving = true;
        }
    }

    /// Whether so many of `set` are gone for good that no majority of it can come about.
    pub(super) fn is_beyond_hope(&self, set: &Members) -> bool {
        !set.majority(|peer| self.heard.gone.get(&peer).is_none_or(|stamp| *stamp < set.stamp))
    }

    pub(super) fn on_timer_preparing(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let Role::Preparing(takeover) = &mut self.role else { return };
        if takeover.give_up_at <= ctx.now {
            self.role = Role::None;
            out.push(Effect::GaveUp);
            self.fail_all(Failure::NoMajority { ran: false }, out);
        } else if takeover.resend.due(ctx) {
            self.send_prepares(ctx, out);
            // They take their time: others may know of newer members.
            if !self.ask_more(out)
                && let Role::Preparing(takeover) = &self.role
            {
                let ask = |to: &Incarnation| Effect::Send { to: *to, message: Message::Locate };
                out.extend(takeover.search.open.iter().map(ask));
            }
        }
    }

    pub(super) fn wake_preparing(&self) -> Option<Now> {
        match &self.role {
            Role::Preparing(takeover) => Some(takeover.resend.at.min(takeover.give_up_at)),
            _ => None,
        }
    }
}

pub(super) fn votes_are_gone(
    gone: &BTreeMap<Incarnation, u64>,
    peer: Incarnation,
    cfg: &Config,
) -> bool {
    let gone = gone.get(&peer).copied().unwrap_or_default();
    cfg.sets().filter(|set| set.contains(peer)).all(|set| set.stamp <= gone)
}

fn prepare(ctx: &Ctx<'_>, b: Ballot, cfg: &Arc<Config>, nonce: u64) -> Message {
    let expiry: WallTime = ctx.wall.after(ctx.policy.ttl);
    Message::Prepare { b, cfg: cfg.clone(), want_body: true, polite: false, nonce, expiry }
}

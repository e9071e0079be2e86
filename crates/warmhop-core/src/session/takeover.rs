//! The takeover: phase one of the register, and what it finds (CASPaxos section 2.2, over
//! configurations that may have changed meanwhile).
//!
//! A promise *covers* a set of members only if it was asked in a configuration that names the
//! set and its sender is in it. The highest accepted record counts once the promises cover a
//! majority of every set that it names; sets that come to light on the way are asked at the
//! same ballot.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::message::{AcceptedInfo, Config, Members, Message, NackReason, Record};
use super::mutant::{self, Mutant};
use super::owner::Owner;
use super::{Ctx, Effect, Effects, Failure, Resend, Role, Session};
use crate::ids::{Ballot, Incarnation, Now, WallTime};

/// A takeover under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Takeover {
    pub(super) b: Ballot,
    /// The configurations asked in, in the order in which they came to light.
    asked: Vec<Config>,
    promises: BTreeMap<Incarnation, Promised>,
    nonce: u64,
    resend: Resend,
    give_up_at: Now,
}

/// What one peer promised.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Promised {
    covers: Vec<Members>,
    accepted: Option<AcceptedInfo>,
}

impl Takeover {
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
    /// Begins to take the session over with a ballot above every one that was seen. `hint` is
    /// the configuration of the client's token, `seen_round` the highest round heard of.
    pub fn take_over(
        &mut self,
        ctx: &mut Ctx<'_>,
        hint: Option<Config>,
        seen_round: u64,
        out: &mut Effects,
    ) {
        if let Some(cfg) = &hint {
            self.belief.note_cfg(cfg);
        }
        let Some(cfg) = self.config().cloned() else {
            out.push(Effect::GaveUp);
            self.redirect_all(None, out);
            return;
        };
        let used = if mutant::on(Mutant::ReuseBallot) { 0 } else { ctx.process.round_ctr };
        let round = seen_round.max(self.seen_round()).max(used).saturating_add(1);
        ctx.process.round_ctr = round;
        let b = Ballot { round, proposer: ctx.me };
        self.role = Role::Preparing(Takeover {
            b,
            asked: Vec::new(),
            promises: BTreeMap::new(),
            nonce: ctx.process.next_nonce(),
            resend: Resend::new(ctx),
            give_up_at: ctx.now.after(ctx.policy.majority_timeout),
        });
        self.ask_in(ctx, cfg, out);
        self.settle(ctx, out);
    }

    /// Asks everyone in `cfg` for a promise, this peer's own copy included.
    fn ask_in(&mut self, ctx: &mut Ctx<'_>, cfg: Config, out: &mut Effects) {
        let Role::Preparing(takeover) = &mut self.role else { return };
        let b = takeover.b;
        if cfg.contains(ctx.me) {
            match self.copy.gate(ctx.me, &cfg, b) {
                Ok(()) => {
                    let expiry = ctx.wall.after(ctx.policy.ttl);
                    self.copy.keep_until(expiry, ctx.policy.forget_grace);
                    takeover.note(ctx.me, &cfg, self.copy.accepted_info(true));
                }
                Err(super::Shut::Nack(NackReason::Forgotten | NackReason::Fenced(_))) => {
                    self.gone.insert(ctx.me);
                }
                Err(_) => {}
            }
        }
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
                    || self.gone.contains(&to)
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
            && takeover.asked.contains(cfg)
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
            let cfg = match &found {
                Some(info) => info.cfg.clone(),
                None => match takeover.asked.first() {
                    Some(cfg) => cfg.clone(),
                    None => return,
                },
            };
            if !takeover.asked.contains(&cfg) {
                self.ask_in(ctx, cfg, out);
                continue;
            }
            let suffices = cfg.sets().all(|set| {
                takeover.covers_majority(set)
                    || mutant::on(Mutant::SkipPromises)
                    || mutant::on(Mutant::CoverOld) && cfg.prev.is_some() && *set == cfg.now
                    || mutant::on(Mutant::CoverNew) && cfg.prev.as_ref() == Some(set)
            });
            if suffices {
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
                        self.role = Role::Owner(Box::new(Owner::of_nothing(b, cfg)));
                        out.push(Effect::Owned { ballot: b });
                    }
                }
                return;
            }
            if cfg.sets().any(|set| self.is_beyond_hope(set)) {
                self.role = Role::None;
                out.push(Effect::Lost);
                self.fail_all(Failure::Lost { ran: false }, out);
            }
            return;
        }
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
        !set.majority(|peer| !self.gone.contains(&peer))
    }

    pub(super) fn on_timer_preparing(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let Role::Preparing(takeover) = &mut self.role else { return };
        if takeover.give_up_at <= ctx.now {
            self.role = Role::None;
            out.push(Effect::GaveUp);
            self.fail_all(Failure::NoMajority { ran: false }, out);
        } else if takeover.resend.due(ctx) {
            self.send_prepares(ctx, out);
        }
    }

    pub(super) fn wake_preparing(&self) -> Option<Now> {
        match &self.role {
            Role::Preparing(takeover) => Some(takeover.resend.at.min(takeover.give_up_at)),
            _ => None,
        }
    }
}

fn prepare(ctx: &Ctx<'_>, b: Ballot, cfg: &Config, nonce: u64) -> Message {
    let expiry: WallTime = ctx.wall.after(ctx.policy.ttl);
    Message::Prepare { b, cfg: cfg.clone(), want_body: true, polite: false, nonce, expiry }
}

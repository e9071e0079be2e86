//! A change of members whose newcomers cannot hold the session. Once the members before have chosen a seal,
//! its open form can be chosen by the new ones only. If these have no room for the record, or are gone, it
//! never would be, and nothing could be read or written for as long. So the open form is not proposed before a
//! majority of the new members has accepted the seal, and with it the record. If they do not, the owner
//! proposes another seal in its place, which leads back to the members before.
//!
//! Both seals are records of one register, that of the members before: whoever takes over finds the later
//! one, or, where it was not chosen, the former one. Nothing was proposed in the configuration that the former
//! one leads to, except by a peer that took over, and for that a majority of the members before promised a
//! higher ballot.

use alloc::boxed::Box;
use alloc::sync::Arc;

use super::{Few, Proposal};
use crate::ids::Incarnation;
use crate::session::message::{Config, Members, Record};
use crate::session::mutant::{self, Mutant};
use crate::session::{Ctx, DEAD, Effects, Role, Session};

impl Session {
    /// Whether enough of the members after a seal hold it to choose its open form.
    pub(super) fn is_held_by_next(&self, record: &Record, votes: &Few) -> bool {
        record.cfg.is_open()
            || self.suffices(&record.cfg.now, |peer| votes.contains(&peer))
            || mutant::on(Mutant::OpenEarly)
            || mutant::on(Mutant::SealByNew)
    }

    /// Proposes a seal that leads back to the members before, in place of one that was chosen and cannot be
    /// followed by its open form.
    pub(super) fn seal_otherwise(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        let Role::Owner(owner) = &self.role else { return };
        let Some(proposal) = &owner.work.proposal else { return };
        let Some(before) = proposal.record.cfg.prev.as_deref() else { return };
        let now = &proposal.record.cfg.now;
        let may_hold = |peer| before.contains(peer) || !self.holds_nothing(ctx, peer, proposal);
        if now.majority(may_hold) {
            return;
        }
        let (who, body) = (before.who.clone(), Arc::clone(&proposal.record.body));
        let now = Members {
            c: now.c.saturating_add(1),
            stamp: now.stamp.saturating_add(1).max(ctx.wall.0),
            who,
        };
        let cfg = Arc::new(Config { now, prev: Some(Box::new(before.clone())) });
        let Role::Owner(owner) = &mut self.role else { return };
        owner.work.proposal = None;
        let record = Record { p: owner.next_position(), cfg, body };
        let same_as = owner.chosen.as_ref().map(|chosen| chosen.p);
        self.propose(ctx, record, None, same_as, out);
        self.settle_proposal(ctx, out);
    }

    /// Whether `peer`, a newcomer, has no room for the record, is gone, or has been silent for so long that it
    /// counts as gone.
    fn holds_nothing(&self, ctx: &Ctx<'_>, peer: Incarnation, proposal: &Proposal) -> bool {
        let is_late = ctx.now.since(proposal.since) >= ctx.policy.majority_timeout;
        let is_silent = is_late && ctx.process.census.silent.contains(&peer);
        !proposal.votes.contains(&peer)
            && (proposal.refused_by.contains(&peer)
                || self.heard.gone.get(&peer) == Some(&DEAD)
                || is_silent)
    }
}

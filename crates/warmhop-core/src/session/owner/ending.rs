//! The end of a session whose time is over: its owner writes an empty record, so that the members need
//! not keep what nobody can read any more, and informs the peers that only remember its beginning.
//!
//! This is for sessions whose app sets their time, such as registers: their owner's clock alone decides
//! whether it is over, so the record changes nothing that could be read. It is a write like any other: a
//! later owner finds it, and a copy that was away gets it.

use alloc::sync::Arc;
use core::time::Duration;

use crate::ids::WallTime;
use crate::session::copy::LONGER_THAN_OWNER;
use crate::session::message::{Message, Record};
use crate::session::owner::Owner;
use crate::session::{Ctx, Effect, Effects, Role, Session, recent};

/// How long after the end its owner writes that record: a clock may be set back a little.
const WRITTEN_AFTER: Duration = Duration::from_secs(1);
/// For how long an owner goes on serving what it is to forget, where somebody waits for it: until a
/// moment before its members forget it ([`LONGER_THAN_OWNER`]).
const SERVED_FOR: Duration = LONGER_THAN_OWNER.saturating_sub(Duration::from_secs(1));

impl Session {
    /// When to write that the session is over, if it holds anything and nothing is under way.
    pub(in crate::session) fn ends_at(&self) -> Option<WallTime> {
        let Role::Owner(owner) = &self.role else { return None };
        let is_idle = self.line.queue.is_empty() && self.line.flights.is_empty();
        let may_write = owner.serving
            && owner.is_timed
            && owner.cfg.is_open()
            && owner.work.proposal.is_none()
            && owner.work.yielding.is_none();
        let chosen = owner.chosen.as_ref().filter(|_| is_idle && may_write)?;
        chosen.body.state.as_ref().map(|_| chosen.body.expiry.after(WRITTEN_AFTER))
    }

    /// Writes that the session is over, once it is.
    pub(super) fn end_if_over(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        if self.ends_at().is_none_or(|at| at > ctx.wall) {
            return;
        }
        let Role::Owner(owner) = &mut self.role else { return };
        let Some(chosen) = &owner.chosen else { return };
        let body = Arc::new(recent::over(&chosen.body));
        let record = Record { p: owner.next_position(), cfg: owner.cfg.clone(), body };
        self.propose(ctx, record, None, None, out);
    }

    /// Whether the members have forgotten this peer's session, or are about to: nothing could be chosen
    /// or confirmed any more. Where requests follow each other without a pause, or where this peer stood
    /// still, it has not had the time to forget it itself.
    pub(super) fn is_past_its_time(&self, ctx: &Ctx<'_>) -> bool {
        let serves = |owner: &Owner| owner.serving && owner.chosen.is_some();
        let owns = matches!(&self.role, Role::Owner(owner) if serves(owner));
        // An owner whose copy keeps nothing cannot know for how long the members keep what it proposed.
        let is_kept = self.copy.forget_at > WallTime::default();
        let end = self.forget_at(ctx.policy.forget_grace).filter(|_| owns && is_kept);
        end.is_some_and(|at| at.after(SERVED_FOR) <= ctx.wall)
    }

    /// Forgets a session past its time once the requests that had their turn are done: those that wait
    /// go on, to begin it anew or to learn that it is over.
    pub(super) fn leave_behind(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) {
        if self.line.flights.is_empty() {
            self.redirect_all(None, out);
            if self.may_know_less(ctx) {
                self.role = Role::None;
                return;
            }
            self.dismiss_witnesses(ctx, out);
            self.forget(ctx);
        }
    }

    /// About to forget a session that is over, its owner tells the peers that are no members: they
    /// remember where it began, and cannot know that it is over.
    pub(in crate::session) fn dismiss_witnesses(&self, ctx: &Ctx<'_>, out: &mut Effects) {
        let Role::Owner(owner) = &self.role else { return };
        let Some(chosen) = owner.chosen.as_ref().filter(|_| owner.is_timed) else { return };
        let stamp = chosen.cfg.now.stamp;
        let others = ctx.process.census.others.iter();
        for to in others.filter(|peer| **peer != ctx.me && !chosen.cfg.contains(**peer)) {
            out.push(Effect::Send { to: *to, message: Message::Retire { stamp } });
        }
    }
}

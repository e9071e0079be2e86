//! The end of a session whose time is over: its owner writes an empty record, so that the members need
//! not keep what nobody can read any more, and informs the peers that only remember its beginning.
//!
//! This is for sessions whose app sets their time, such as registers: their owner's clock alone decides
//! whether it is over, so the record changes nothing that could be read. It is a write like any other: a
//! later owner finds it, and a copy that was away gets it.

use alloc::sync::Arc;
use core::time::Duration;

use crate::ids::WallTime;
use crate::session::message::{Message, Record};
use crate::session::{Ctx, Effect, Effects, Role, Session, recent};

/// How long after the end its owner writes that record: a clock may be set back a little.
const WRITTEN_AFTER: Duration = Duration::from_secs(1);

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

    /// An owner that is about to forget a session informs the peers outside of the members: they
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

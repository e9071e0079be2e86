//! A change of members that waits for the request that runs: it is made before the next one has its turn.
//!
//! No change begins while a request runs alone or its change is proposed. Whoever looks after a session looks at
//! it now and then, and would nearly always find one busy whose clients make no pause.

use core::time::Duration;

use crate::ids::{Incarnation, Now};
use crate::session::{Ctx, Effects, Role, Session};

/// For how long a change is wanted. It is asked for again for as long as there is reason to.
const WANTED_FOR: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    change: Change,
    since: Now,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Change {
    One { gone: Option<Incarnation>, newcomer: Option<Incarnation> },
    LeaveOut([Incarnation; 2]),
}

impl Session {
    /// As [`Session::change_members`]; if requests keep it from being made now, it is made as soon as the one that
    /// runs has ended.
    pub fn change_members_soon(
        &mut self,
        ctx: &mut Ctx<'_>,
        gone: Option<Incarnation>,
        newcomer: Option<Incarnation>,
        out: &mut Effects,
    ) {
        self.change_members(ctx, gone, newcomer, out);
        self.want(ctx, Change::One { gone, newcomer });
    }

    /// As [`Session::leave_out`], in the same way.
    pub fn leave_out_soon(&mut self, ctx: &mut Ctx<'_>, gone: [Incarnation; 2], out: &mut Effects) {
        if !self.leave_out(ctx, &gone, out) {
            self.want(ctx, Change::LeaveOut(gone));
        }
    }

    /// Remembers a change that could not be made yet, if any request may have kept it from being made.
    fn want(&mut self, ctx: &Ctx<'_>, change: Change) {
        let is_idle = self.line.flights.is_empty() && self.line.queue.is_empty();
        let Role::Owner(owner) = &mut self.role else { return };
        let is_changing = owner.work.proposal.as_ref().is_some_and(|it| !it.record.cfg.is_open());
        if !is_idle && !is_changing {
            owner.work.wanted = Some(Wanted { change, since: ctx.now });
        }
    }

    /// Makes the change that is wanted, before a request has its turn that would run alone. Returns whether one was
    /// begun.
    pub(super) fn makes_wanted_change(&mut self, ctx: &mut Ctx<'_>, out: &mut Effects) -> bool {
        let Role::Owner(owner) = &mut self.role else { return false };
        let Some(Wanted { change, since }) = owner.work.wanted else { return false };
        let awaits_an_answer = owner.work.joining.as_ref().is_some_and(|it| !it.is_answered());
        if ctx.now.since(since) >= WANTED_FOR {
            owner.work.wanted = None;
            return false;
        }
        match change {
            Change::One { .. } if awaits_an_answer => false,
            Change::One { gone, newcomer } => {
                let Some(cfg) = self.seal_of(ctx, gone.as_slice(), newcomer) else { return false };
                if self.asks_first(ctx, &cfg, gone, newcomer, out) {
                    return false;
                }
                self.seal(ctx, cfg, out);
                true
            }
            Change::LeaveOut(gone) => self.leave_out(ctx, &gone, out),
        }
    }
}

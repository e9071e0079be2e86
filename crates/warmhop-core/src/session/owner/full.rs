//! Members that had no room for a copy, and when their owner offers it again: a body may be large, and a
//! full member stays full for a while.

use alloc::vec::Vec;
use core::time::Duration;

use crate::ids::{Incarnation, Now};
use crate::session::{Ctx, Effect, Effects, Role, Session};

/// The longest time between two offers: soon enough for a member that has room again.
pub(super) const OFFERED_WITHIN: Duration = Duration::from_secs(8);
/// For how long a peer that left the members after it had refused does not become one again.
const REFUSED_FOR: Duration = Duration::from_secs(60);
/// The most doublings from the first wait, that of a resend, to [`OFFERED_WITHIN`].
const DOUBLINGS_MAX: u32 = 12;

/// The members that refused a copy lately.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Full(Vec<Refusal>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Refusal {
    by: Incarnation,
    times: u32,
    again: Now,
}

/// A peer that had no room for a copy.
#[derive(Debug, Clone, Copy)]
pub(in crate::session) struct Refused {
    pub(in crate::session) by: Incarnation,
    /// How many offers it refused.
    pub(in crate::session) times: u32,
    /// From when on it may become a member again, if it is none.
    pub(in crate::session) until: Now,
}

impl Full {
    pub(super) const NONE: Self = Self(Vec::new());

    /// `by`, a member, had no room for a copy. Each refusal of a further offer doubles the time to the next.
    pub(super) fn refused(&mut self, ctx: &Ctx<'_>, by: Incarnation) {
        let at = self.0.iter().position(|it| it.by == by).unwrap_or_else(|| {
            self.0.push(Refusal { by, times: 0, again: ctx.now });
            self.0.len() - 1
        });
        let refusal = &mut self.0[at];
        // A refusal of what was sent before that offer does not count.
        if refusal.again <= ctx.now {
            let span = ctx.policy.resend_after * (1 << (refusal.times + 1).min(DOUBLINGS_MAX));
            refusal.times = refusal.times.saturating_add(1);
            refusal.again = ctx.now.after(span.min(OFFERED_WITHIN));
        }
    }

    /// Whether a whole copy may be offered to `peer` now.
    pub(super) fn may_offer(&self, peer: Incarnation, now: Now) -> bool {
        self.0.iter().all(|it| it.by != peer || it.again <= now)
    }

    /// Another copy is proposed: it may be smaller, and is offered to everyone.
    pub(super) fn offer_anew(&mut self, now: Now) {
        self.0.iter_mut().for_each(|it| it.again = now);
    }

    /// Who refused.
    pub(super) fn refusals(&self) -> impl Iterator<Item = Refused> {
        self.0.iter().map(|it| Refused {
            by: it.by,
            times: it.times,
            until: it.again.after(REFUSED_FOR),
        })
    }

    /// `peer` has made room.
    pub(super) fn accepted(&mut self, peer: Incarnation) {
        self.retain(|it| it.by != peer);
    }

    /// Only `members` can refuse again. One that was a member when it refused is not made a member again for
    /// a while. Returns whether such a while is over for anybody.
    pub(super) fn forget_others(&mut self, members: &[Incarnation], now: Now) -> bool {
        let before = self.0.len();
        self.retain(|it| members.contains(&it.by) || it.again.after(REFUSED_FOR) > now);
        self.0.len() < before
    }

    /// When such a while is over.
    pub(super) fn wakes(&self, members: &[Incarnation]) -> Option<Now> {
        let others = self.0.iter().filter(|it| !members.contains(&it.by));
        others.map(|it| it.again.after(REFUSED_FOR)).min()
    }

    fn retain(&mut self, keeps: impl Fn(&Refusal) -> bool) {
        self.0.retain(keeps);
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
    }
}

impl Session {
    /// `from`, a member, had no room for the copy that it was offered.
    pub(in crate::session) fn on_full(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Incarnation,
        out: &mut Effects,
    ) {
        let was_asked = self.asked_refused(from);
        if let Role::Owner(owner) = &mut self.role
            && (was_asked || owner.cfg.contains(from))
        {
            owner.work.full.refused(ctx, from);
            if ctx.process.census.full.contains(&from) {
                // Others should hold the record in its place as soon as it is chosen.
                out.push(Effect::Lagging);
            }
        }
        self.is_refused_by(from);
        self.withdraw(ctx, out);
    }
}

//! Members that had no room for a copy, and when their owner offers it again: a body may be large, and a
//! full member stays full for a while.

use alloc::vec::Vec;
use core::time::Duration;

use crate::ids::{Incarnation, Now};
use crate::session::Ctx;

/// The longest time between two offers: soon enough for a member that has room again.
pub(super) const OFFERED_WITHIN: Duration = Duration::from_secs(8);
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

    /// Only members of which this is true can refuse again.
    pub(super) fn retain(&mut self, keeps: impl Fn(Incarnation) -> bool) {
        self.0.retain(|it| keeps(it.by));
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
    }
}

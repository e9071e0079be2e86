//! A new copy beside the old one, and copies that an operator holds down.
//!
//! A copy that is to be replaced serves until the next one is ready. Then the next one serves, and
//! the old one finishes its requests within its grace. If the next one does not become ready, the
//! old one stays, and the error says why: there is nothing to undo. A change of the app's
//! configuration does the same as an operator's command, but also gives up a start that is under
//! way, which would bring up the old configuration.
//!
//! ```text
//!            Renew                   Started, of the next
//!      Ready ─────▶ Ready, next starting ─────▶ Ready, the old one ending
//!                     │        │
//!        StartFailed, │        │ the old one exits, or is lost
//!        too slow     ▼        ▼
//!                   Ready    Starting
//! ```

use alloc::vec::Vec;

use super::{AppEffect, AppError, AppMachine, LEAVING_MAX, NotStarted, Phase};
use crate::config::{AppPolicy, StartMode};
use crate::ids::Now;

/// Why a copy is to be replaced by a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Renewal {
    /// A person, through the admin listener.
    Operator,
    /// The app's configuration has changed: its program, its environment.
    Changed,
}

/// A copy that starts beside the one that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) attempt: u64,
    pub(super) since: Now,
}

impl AppMachine {
    /// The number of the attempt that starts beside the copy that serves; absent if there is none.
    #[must_use]
    pub fn next_attempt(&self) -> Option<u64> {
        self.next.map(|next| next.attempt)
    }

    /// Whether an operator holds copies down here.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Sets another policy. Its effect on copies comes with the next event.
    pub fn set_policy(&mut self, policy: AppPolicy) {
        self.policy = policy;
    }

    /// Why no new copy would start if one were requested; absent if it would.
    #[must_use]
    pub fn why_not_renew(&self) -> Option<NotStarted> {
        if self.policy.start == StartMode::Never {
            Some(NotStarted::Never)
        } else if self.draining {
            Some(NotStarted::Draining)
        } else if self.paused {
            Some(NotStarted::Paused)
        } else {
            None
        }
    }

    pub(super) fn renew(&mut self, why: Renewal, now: Now, effects: &mut Vec<AppEffect>) {
        let changed = why == Renewal::Changed;
        if changed {
            // The old configuration's failures and starts say nothing about the new one.
            self.failures = 0;
            self.start_ms = None;
        }
        if self.why_not_renew().is_some() {
            if changed {
                self.end_all(effects);
            }
            return;
        }
        match self.phase {
            Phase::Ready { .. } | Phase::Unwell { .. } => {
                if changed && let Some(next) = self.next.take() {
                    effects.push(AppEffect::CancelStart { attempt: next.attempt });
                }
                self.start_beside(now, effects);
            }
            Phase::Starting { .. } if changed => {
                effects.push(AppEffect::CancelStart { attempt: self.attempt });
                self.start(now, effects);
            }
            Phase::Starting { .. } => {}
            Phase::Failed { again, .. } if changed && !again => {
                self.settle();
                self.start_if_always_wanted(now, effects);
            }
            Phase::Cold | Phase::Stopping { .. } if changed => {
                self.start_if_always_wanted(now, effects);
            }
            Phase::Failed { .. } | Phase::Cold | Phase::Stopping { .. } => self.start(now, effects),
        }
    }

    /// Ends every copy that runs or starts: the app no longer runs here.
    fn end_all(&mut self, effects: &mut Vec<AppEffect>) {
        self.give_up_next(effects);
        match self.phase {
            Phase::Starting { .. } => {
                effects.push(AppEffect::CancelStart { attempt: self.attempt });
                self.settle();
            }
            Phase::Ready { .. } | Phase::Unwell { .. } => {
                self.stop(self.policy.stop_grace, effects);
            }
            Phase::Stopping { .. } | Phase::Failed { .. } => self.settle(),
            Phase::Cold => {}
        }
    }

    /// Starts the next copy beside the one that serves, as soon as there is room for one.
    pub(super) fn start_beside(&mut self, now: Now, effects: &mut Vec<AppEffect>) {
        if self.next.is_some() {
            return;
        }
        // When the next one is ready, one more copy ends.
        self.renew = self.leaving.len() + 1 >= LEAVING_MAX;
        if self.renew {
            self.make_room(effects);
        } else {
            self.given += 1;
            self.next = Some(Next { attempt: self.given, since: now });
            effects.push(AppEffect::Start { attempt: self.given });
            effects.push(AppEffect::Changed);
        }
    }

    /// The next copy is ready: it serves, and the old one ends.
    pub(super) fn takes_over(&mut self, next: Next, now: Now, effects: &mut Vec<AppEffect>) {
        self.stop(self.policy.stop_grace, effects);
        self.next = None;
        self.attempt = next.attempt;
        self.measure(next.since, now);
        self.last_error = None;
        self.used(now);
        self.phase = Phase::Ready { since: now };
        effects.push(AppEffect::Changed);
    }

    /// The next copy did not become ready: the old one stays.
    pub(super) fn stays(&mut self, error: AppError, effects: &mut Vec<AppEffect>) {
        self.next = None;
        self.last_error = Some(error);
        effects.push(AppEffect::Changed);
    }

    /// The copy that served is gone while the next one starts, which becomes the current one.
    /// Returns whether there was a next one.
    pub(super) fn goes_on_with_next(&mut self) -> bool {
        let Some(next) = self.next.take() else { return false };
        self.attempt = next.attempt;
        self.phase = Phase::Starting { since: next.since };
        true
    }

    pub(super) fn give_up_next(&mut self, effects: &mut Vec<AppEffect>) {
        self.renew = false;
        if let Some(next) = self.next.take() {
            effects.push(AppEffect::CancelStart { attempt: next.attempt });
        }
    }

    pub(super) fn pause(&mut self, paused: bool, now: Now, effects: &mut Vec<AppEffect>) {
        if self.paused == paused {
            return;
        }
        self.paused = paused;
        if paused {
            self.end_all(effects);
        } else {
            self.start_if_always_wanted(now, effects);
        }
        effects.push(AppEffect::Changed);
    }
}

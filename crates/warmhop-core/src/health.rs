//! Whether a ready copy can still serve.
//!
//! There are two forms of check. The *active* one asks the copy at intervals, whether it is used or
//! not. The *passive* one, which costs nothing while all is well, asks only if its requests give
//! cause: none of those in flight has been answered for a while, or several in a row failed.
//! Neither the requests nor one check alone take a copy out of service: a long poll is no hang, and
//! an app that returns many errors is alive, as long as it answers when asked.
//!
//! A copy that answers that it cannot serve is out of service until it answers otherwise; one that
//! does not answer at all is restarted. A copy that flaps needs ever more good answers in a row
//! before it is back in service.

use core::time::Duration;

use crate::app::PROVEN_AFTER;
use crate::config::AlivePolicy;
use crate::ids::Now;

/// With requests in flight and none answered for so long, a copy is checked.
pub const SILENT_AFTER: Duration = Duration::from_secs(2);
/// After so many failed requests in a row, a copy is checked.
pub const FAILED_IN_A_ROW: u32 = 3;
/// The least time between two checks.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// How often a copy that is out of service is checked if the policy sets no interval.
pub const ASK_OUT_EVERY: Duration = Duration::from_secs(1);
/// In the passive form, how many checks in a row have to fail: fewer, since its requests have shown
/// the same before.
pub const PASSIVE_MISSES: u32 = 2;
/// A copy that flaps needs at most 2 to the power of this good answers in a row.
const FLAPS_MAX: u32 = 3;

/// What a copy's requests show of its health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Signs {
    /// Requests that it is serving.
    pub in_flight: u32,
    /// When it last began an answer.
    pub answered: Now,
    /// How many requests have failed since.
    pub failed_in_a_row: u32,
}

/// The outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It can serve.
    Well,
    /// It answered that it cannot.
    Unwell,
    /// It did not answer.
    Silent,
}

/// What follows from a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Unchanged,
    /// It serves no requests until it is [`Back`](Self::Back).
    Out,
    /// It serves again.
    Back,
    /// It is to be ended, and another one started.
    Restart,
}

/// The health of one copy, from when it is ready.
#[derive(Debug, Clone)]
pub struct Health {
    policy: AlivePolicy,
    /// None of the requests in flight has been answered since then.
    silent_since: Now,
    asked: Now,
    /// Checks in a row without a good answer, and those in a row without any answer.
    misses: u32,
    silences: u32,
    /// Good answers in a row while it is out.
    wells: u32,
    out: bool,
    flaps: u32,
    back: Now,
}

impl Health {
    /// The health of a copy that has just become ready.
    #[must_use]
    pub fn new(policy: AlivePolicy, now: Now) -> Self {
        Self {
            policy,
            silent_since: now,
            asked: now,
            misses: 0,
            silences: 0,
            wells: 0,
            out: false,
            flaps: 0,
            back: now,
        }
    }

    /// Whether the copy is to be checked now.
    pub fn is_due(&mut self, signs: Signs, now: Now) -> bool {
        self.silent_since =
            if signs.in_flight == 0 { now } else { self.silent_since.max(signs.answered) };
        let since = now.since(self.asked);
        if self.out {
            return since >= self.policy.every.unwrap_or(ASK_OUT_EVERY);
        }
        if self.policy.every.is_some_and(|every| since >= every) {
            return true;
        }
        let silent = now.since(self.silent_since) >= SILENT_AFTER;
        let failing = signs.failed_in_a_row >= FAILED_IN_A_ROW;
        // A copy that has answered well is left alone for a while, however long its requests take.
        let again = if self.misses > 0 { ASK_AGAIN_AFTER } else { SILENT_AFTER };
        (silent && since >= again) || (failing && since >= ASK_AGAIN_AFTER)
    }

    /// What follows from the outcome of a check.
    pub fn found(&mut self, found: Found, now: Now) -> Verdict {
        self.asked = now;
        if found == Found::Well {
            return self.well(now);
        }
        self.misses = self.misses.saturating_add(1);
        self.silences = if found == Found::Silent { self.silences.saturating_add(1) } else { 0 };
        self.wells = 0;
        let active = self.policy.every.is_some();
        let enough = if active { self.policy.misses } else { PASSIVE_MISSES };
        if self.policy.restart && self.silences >= enough {
            return Verdict::Restart;
        }
        if self.out || self.misses < enough {
            return Verdict::Unchanged;
        }
        if now.since(self.back) >= PROVEN_AFTER {
            self.flaps = 0;
        }
        self.out = true;
        Verdict::Out
    }

    fn well(&mut self, now: Now) -> Verdict {
        (self.misses, self.silences) = (0, 0);
        if !self.out {
            return Verdict::Unchanged;
        }
        self.wells += 1;
        if self.wells < 1 << self.flaps.min(FLAPS_MAX) {
            return Verdict::Unchanged;
        }
        self.wells = 0;
        self.flaps = self.flaps.saturating_add(1);
        (self.out, self.back, self.silent_since) = (false, now, now);
        Verdict::Back
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn passive() -> Health {
        Health::new(AlivePolicy::default(), Now(0))
    }

    fn active(restart: bool) -> Health {
        Health::new(AlivePolicy { every: Some(ms(500)), misses: 3, restart }, Now(0))
    }

    fn waits(answered: u64) -> Signs {
        Signs { in_flight: 1, answered: Now(answered), failed_in_a_row: 0 }
    }

    #[test]
    fn nobody_asks_a_copy_that_answers_or_that_nobody_uses() {
        let mut health = passive();
        for at in 0..100 {
            let now = Now(at * 1_000);
            assert!(!health.is_due(waits(now.0), now), "it answers");
        }
        let mut health = passive();
        assert!(!health.is_due(Signs::default(), Now(3_600_000)));
        // The first request after a long silence is no sign of a hang.
        assert!(!health.is_due(waits(0), Now(3_600_500)));
        assert!(health.is_due(waits(0), Now(3_602_000)));
    }

    #[test]
    fn a_copy_is_asked_where_requests_hang_or_fail_in_a_row() {
        assert!(!passive().is_due(waits(0), Now(1_999)));
        assert!(passive().is_due(waits(0), Now(2_000)));
        let failing = |failed_in_a_row| Signs { failed_in_a_row, ..waits(290) };
        assert!(!passive().is_due(failing(FAILED_IN_A_ROW - 1), Now(300)));
        assert!(passive().is_due(failing(FAILED_IN_A_ROW), Now(300)));
    }

    #[test]
    fn requests_alone_take_no_copy_out() {
        let mut health = passive();
        let mut asked = 0;
        // One long poll lasts a minute.
        for at in 1..=240 {
            let now = Now(at * 250);
            if health.is_due(waits(0), now) {
                asked += 1;
                assert_eq!(health.found(Found::Well, now), Verdict::Unchanged);
            }
        }
        assert!((20..=30).contains(&asked), "asked {asked} times a minute");
    }

    #[test]
    fn a_copy_that_hangs_and_does_not_answer_is_ended_soon() {
        let mut health = passive();
        assert!(health.is_due(waits(0), Now(2_000)));
        assert_eq!(health.found(Found::Silent, Now(3_500)), Verdict::Unchanged);
        assert!(health.is_due(waits(0), Now(3_750)));
        assert_eq!(health.found(Found::Silent, Now(5_250)), Verdict::Restart);
    }

    #[test]
    fn a_copy_that_says_that_it_cannot_serve_is_out_until_it_says_otherwise() {
        let mut health = active(true);
        let mut now = Now(0);
        let mut ask = |health: &mut Health, found| {
            now = now.after(ms(500));
            assert!(health.is_due(Signs::default(), now));
            health.found(found, now)
        };
        for verdict in [Verdict::Unchanged, Verdict::Unchanged, Verdict::Out] {
            assert_eq!(ask(&mut health, Found::Unwell), verdict);
        }
        for _ in 0..20 {
            assert_eq!(ask(&mut health, Found::Unwell), Verdict::Unchanged, "it is not ended");
        }
        assert_eq!(ask(&mut health, Found::Well), Verdict::Back);
        assert_eq!(ask(&mut health, Found::Well), Verdict::Unchanged);
        // Only misses in a row count.
        for found in [Found::Unwell, Found::Unwell, Found::Well, Found::Unwell, Found::Silent] {
            assert_eq!(ask(&mut health, found), Verdict::Unchanged);
        }
    }

    #[test]
    fn a_copy_that_does_not_answer_is_ended_only_where_that_is_wished() {
        for (restart, last) in [(true, Verdict::Restart), (false, Verdict::Out)] {
            let mut health = active(restart);
            for verdict in [Verdict::Unchanged, Verdict::Unchanged, last] {
                assert_eq!(health.found(Found::Silent, Now(1)), verdict);
            }
        }
        // It is out for its answer, and then silent.
        let mut health = active(true);
        (0..3).for_each(|_| assert_ne!(health.found(Found::Unwell, Now(1)), Verdict::Back));
        for verdict in [Verdict::Unchanged, Verdict::Unchanged, Verdict::Restart] {
            assert_eq!(health.found(Found::Silent, Now(2)), verdict);
        }
    }

    #[test]
    fn a_copy_that_flaps_has_to_answer_well_ever_more_often() {
        let mut health = active(true);
        let mut now = Now(0);
        let mut wells_until_back = Vec::new();
        for round in 0..6 {
            // This is before it has been well for long.
            now = now.after(if round == 5 { PROVEN_AFTER } else { ms(500) });
            (0..3).for_each(|_| assert_ne!(health.found(Found::Unwell, now), Verdict::Back));
            let wells = (1..100).find(|_| health.found(Found::Well, now) == Verdict::Back);
            wells_until_back.push(wells.unwrap());
        }
        assert_eq!(wells_until_back, [1, 2, 4, 8, 8, 1]);
    }
}

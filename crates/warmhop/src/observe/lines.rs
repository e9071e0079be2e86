//! Bounds the lines of the log that clients can cause: of many at once some are logged, and the next
//! one has the number of the others.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use warmhop_core::problem::ProblemKind;

/// How many lines of one kind are logged within [`WITHIN`].
const MAX: u32 = 20;
const WITHIN: Duration = Duration::from_secs(1);

/// The lines of one kind.
#[derive(Debug, Default)]
pub(crate) struct Lines(Mutex<Logged>);

#[derive(Debug, Default)]
struct Logged {
    since: Option<Instant>,
    lines: u32,
    /// How many were not logged since the last one that was.
    not_logged: u64,
}

impl Lines {
    /// How many were not logged before the next one, if that is to be logged.
    pub(crate) fn due(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).line(Instant::now())
    }
}

impl Logged {
    fn line(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= WITHIN) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines >= MAX {
            self.not_logged += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.not_logged))
    }
}

/// The lines of refusals, by their kind: one that a client causes hides none of another.
#[derive(Debug)]
pub(crate) struct Refused([Lines; ProblemKind::ALL.len()]);

impl Default for Refused {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Lines::default()))
    }
}

impl Refused {
    /// As [`Lines::due`], of refusals of this kind.
    pub(crate) fn due(&self, kind: ProblemKind) -> Option<u64> {
        let at = ProblemKind::ALL.iter().position(|it| *it == kind);
        at.map_or(Some(0), |at| self.0[at].due())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_at_once_some_are_logged_and_the_next_line_has_the_number_of_the_others() {
        let (mut lines, now) = (Logged::default(), Instant::now());
        let logged = (0..50).filter(|_| lines.line(now).is_some()).count();
        assert_eq!(logged as u32, MAX);
        assert_eq!(lines.line(now + WITHIN), Some(50 - u64::from(MAX)));
        assert_eq!(lines.line(now + WITHIN), Some(0));
    }

    #[test]
    fn a_flood_of_one_kind_hides_no_refusal_of_another() {
        let refused = Refused::default();
        while refused.due(ProblemKind::BadHost).is_some() {}
        for kind in ProblemKind::ALL {
            assert_eq!(refused.due(kind).is_some(), kind != ProblemKind::BadHost, "{kind:?}");
        }
    }
}

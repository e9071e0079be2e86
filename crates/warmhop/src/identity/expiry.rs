//! Warnings before a certificate ends, and when it has.

use std::time::{Duration, SystemTime};

use tracing::{error, info, warn};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How many days before a certificate ends the warnings are logged, longest first.
const WARN_DAYS: [u32; 3] = [30, 7, 1];

/// What was logged about one certificate.
#[derive(Debug, Default)]
pub(crate) struct Expiry {
    of: Option<SystemTime>,
    /// How many of [`WARN_DAYS`] have passed and were logged.
    warned: usize,
    /// When it was last logged that it has ended.
    ended: Option<SystemTime>,
}

/// What is to be logged.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// It ends in less than so many days.
    Ends(u32),
    /// It has ended.
    Ended,
    /// It replaces one that was about to end, or had ended.
    Renewed,
}

impl Expiry {
    /// Warns, with what follows and what to do, if the certificate that ends at `ends` has passed
    /// another of the bounds at `now`, and once a day after it has ended. The warnings start over for a
    /// certificate that replaces it.
    pub(crate) fn look(
        &mut self,
        what: &'static str,
        [follows, remedy]: [&'static str; 2],
        ends: SystemTime,
        now: SystemTime,
    ) {
        for due in self.due(ends, now).into_iter().flatten() {
            match due {
                Due::Ends(days) => {
                    warn!(what, days, "a certificate ends in less than this many days; {remedy}");
                }
                Due::Ended => error!(what, "a certificate has expired: {follows}; {remedy}"),
                Due::Renewed => {
                    let left = ends.duration_since(now).unwrap_or_default();
                    info!(what, days = left.as_secs() / DAY.as_secs(), "a certificate was renewed");
                }
            }
        }
    }

    fn due(&mut self, ends: SystemTime, now: SystemTime) -> [Option<Due>; 2] {
        let mut renewed = None;
        if self.of != Some(ends) {
            let had_warned = self.warned > 0 || self.ended.is_some();
            renewed = (had_warned && ends > now).then_some(Due::Renewed);
            *self = Self { of: Some(ends), ..Self::default() };
        }
        let left = ends.duration_since(now).unwrap_or_default();
        if left.is_zero() {
            let is_due =
                self.ended.is_none_or(|at| now.duration_since(at).is_ok_and(|it| it >= DAY));
            if is_due {
                self.ended = Some(now);
            }
            return [renewed, is_due.then_some(Due::Ended)];
        }
        let passed = WARN_DAYS.iter().take_while(|days| left < DAY * **days).count();
        let is_due = passed > self.warned;
        self.warned = self.warned.max(passed);
        let bound = passed.checked_sub(1).and_then(|at| WARN_DAYS.get(at).copied());
        [renewed, bound.filter(|_| is_due).map(Due::Ends)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_is_logged_once_and_a_new_certificate_begins_anew() {
        let now = SystemTime::now();
        let mut expiry = Expiry::default();
        let ends = now + DAY * 40;
        let mut due = |ends, days: u32| expiry.due(ends, now + DAY * days);
        assert_eq!(due(ends, 0), [None, None]);
        assert_eq!(due(ends, 11), [None, Some(Due::Ends(30))]);
        assert_eq!(due(ends, 12), [None, None]);
        assert_eq!(due(ends, 34), [None, Some(Due::Ends(7))]);
        assert_eq!(due(ends, 39), [None, None]);
        assert_eq!(
            due(ends + Duration::from_secs(1), 39),
            [Some(Due::Renewed), Some(Due::Ends(7))]
        );
        assert_eq!(due(now + DAY * 90, 39), [Some(Due::Renewed), None]);
        assert_eq!(due(now + DAY * 120, 40), [None, None], "nobody was warned");
    }

    #[test]
    fn the_end_is_logged_at_once_and_each_day_until_there_is_another() {
        let now = SystemTime::now();
        let mut expiry = Expiry::default();
        let ends = now + DAY;
        let mut due = |ends, hours: u32| expiry.due(ends, now + DAY * hours / 24);
        assert_eq!(due(ends, 23), [None, Some(Due::Ends(1))]);
        assert_eq!(due(ends, 24), [None, Some(Due::Ended)]);
        assert_eq!(due(ends, 47), [None, None]);
        assert_eq!(due(ends, 48), [None, Some(Due::Ended)]);
        assert_eq!(due(now + DAY * 100, 49), [Some(Due::Renewed), None]);
    }
}

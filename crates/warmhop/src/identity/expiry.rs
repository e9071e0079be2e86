//! Warnings before a certificate ends.

use std::time::{Duration, SystemTime};

use tracing::warn;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How many days before a certificate ends the warnings are logged, longest first.
const WARN_DAYS: [u32; 3] = [30, 7, 1];

/// Which warnings about one certificate were logged.
#[derive(Debug, Default)]
pub(crate) struct Expiry {
    of: Option<SystemTime>,
    /// How many of [`WARN_DAYS`] have passed and were logged.
    told: usize,
}

impl Expiry {
    /// Warns, with what to do, if the certificate that ends at `ends` has passed another of the
    /// bounds at `now`. The warnings start over for a certificate that replaces it.
    pub(crate) fn look(
        &mut self,
        what: &'static str,
        remedy: &'static str,
        ends: SystemTime,
        now: SystemTime,
    ) {
        if let Some(days) = self.due(ends, now) {
            match ends.duration_since(now) {
                Ok(_) => {
                    warn!(what, days, "a certificate ends in less than this many days; {remedy}")
                }
                Err(_) => warn!(what, "a certificate has expired; {remedy}"),
            }
        }
    }

    fn due(&mut self, ends: SystemTime, now: SystemTime) -> Option<u32> {
        if self.of != Some(ends) {
            *self = Self { of: Some(ends), told: 0 };
        }
        let left = ends.duration_since(now).unwrap_or_default();
        let passed = WARN_DAYS.iter().take_while(|days| left < DAY * **days).count();
        if passed <= self.told {
            return None;
        }
        self.told = passed;
        WARN_DAYS.get(passed - 1).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_is_told_once_and_a_new_certificate_begins_anew() {
        let now = SystemTime::now();
        let mut expiry = Expiry::default();
        let ends = now + DAY * 40;
        assert_eq!(expiry.due(ends, now), None);
        assert_eq!(expiry.due(ends, now + DAY * 11), Some(30));
        assert_eq!(expiry.due(ends, now + DAY * 12), None);
        assert_eq!(expiry.due(ends, now + DAY * 34), Some(7));
        assert_eq!(expiry.due(ends, now + DAY * 40), Some(1));
        assert_eq!(expiry.due(ends, now + DAY * 41), None);
        assert_eq!(expiry.due(now + DAY * 60, now + DAY * 41), Some(30), "19 days are left");
    }
}

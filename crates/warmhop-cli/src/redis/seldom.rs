//! Bounds the lines of the log that clients of the endpoint can cause: of many within a second some are
//! logged, and the next one has the number of the others.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many lines of one kind are logged within [`WITHIN`].
const MAX: u32 = 20;
const WITHIN: Duration = Duration::from_secs(1);

/// The lines of one kind.
#[derive(Debug)]
pub(super) struct Seldom(Mutex<Told>);

#[derive(Debug)]
struct Told {
    since: Option<Instant>,
    lines: u32,
    /// How many were not logged since the last one that was.
    not_logged: u64,
}

impl Seldom {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Told { since: None, lines: 0, not_logged: 0 }))
    }

    /// How many were not logged before the next line, if that is to be logged; the number is absent if
    /// it is 0.
    pub(super) fn due(&self) -> Option<Option<u64>> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if told.since.is_none_or(|since| now.duration_since(since) >= WITHIN) {
            (told.since, told.lines) = (Some(now), 0);
        }
        if told.lines >= MAX {
            told.not_logged += 1;
            return None;
        }
        told.lines += 1;
        Some(Some(std::mem::take(&mut told.not_logged)).filter(|number| *number > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_many_lines_some_are_logged_and_the_next_has_the_number_of_the_others() {
        let lines = Seldom::new();
        let logged = (0..200_000).filter(|_| lines.due() == Some(None)).count();
        assert_eq!(logged as u32, MAX);
        tokio::time::advance(WITHIN).await;
        assert_eq!(lines.due(), Some(Some(200_000 - u64::from(MAX))));
        assert_eq!(lines.due(), Some(None));
    }
}

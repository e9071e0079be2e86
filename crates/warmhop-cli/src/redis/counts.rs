//! Counts the outcomes of commands. A process has one endpoint, so the counters are static.

use std::sync::atomic::{AtomicU64, Ordering};

use super::frame::Reply;

/// The outcomes of commands.
const OUTCOMES: [&str; 5] = ["done", "refused", "try-again", "memory-full", "unknown"];

/// How often a command came to which outcome.
pub(super) struct Counts([AtomicU64; OUTCOMES.len()]);

impl Counts {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; OUTCOMES.len()])
    }

    /// Counts one more reply.
    pub(super) fn add(&self, reply: &Reply) {
        let outcome = match reply {
            Reply::Error(told) => match told.split(' ').next() {
                Some("TRYAGAIN") => 2,
                Some("OOM") => 3,
                Some("UNKNOWN") => 4,
                _ => 1,
            },
            _ => 0,
        };
        self.0[outcome].fetch_add(1, Ordering::Relaxed);
    }

    /// How often it came to each outcome, without those that never occurred.
    pub(super) fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = OUTCOMES.into_iter().zip(&self.0);
        let counts = counts.map(|(outcome, count)| (outcome, count.load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0)
    }
}

//! Counts the outcomes of commands, and bytes. A process has one endpoint, so the counters are static.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
            Reply::Error(error) => match error.split(' ').next() {
                Some("TRYAGAIN") => 2,
                Some("OOM") => 3,
                Some("UNKNOWN") => 4,
                _ => 1,
            },
            _ => 0,
        };
        self.0[outcome].fetch_add(1, Ordering::Relaxed);
    }

    /// How often it came to each outcome; none for a command that nobody has sent. One that was sent has
    /// all of them, so that the first refusal is an increase.
    pub(super) fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts: Vec<u64> = self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let was_sent = counts.iter().any(|count| *count > 0);
        OUTCOMES.into_iter().zip(counts).filter(move |_| was_sent)
    }
}

/// The bytes that came from clients and went to them.
pub(super) struct Bytes {
    is_open: AtomicBool,
    received: AtomicU64,
    sent: AtomicU64,
}

/// Those of this process.
pub(super) static BYTES: Bytes =
    Bytes { is_open: AtomicBool::new(false), received: AtomicU64::new(0), sent: AtomicU64::new(0) };

impl Bytes {
    /// Records that the endpoint begins.
    pub(super) fn begin(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Those received and those sent, if there is an endpoint.
    pub(super) fn both(&self) -> Option<[u64; 2]> {
        let both = [&self.received, &self.sent].map(|bytes| bytes.load(Ordering::Relaxed));
        self.is_open.load(Ordering::Relaxed).then_some(both)
    }
}

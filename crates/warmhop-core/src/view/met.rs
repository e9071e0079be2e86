//! Since when others were heard.

use core::time::Duration;

use super::{PeerBelief, View};
use crate::ids::Now;

impl View {
    /// Notes when the first peer was met.
    pub(super) fn note_met(&mut self, now: Now) {
        if self.met_since.is_none() && self.peers.values().any(|belief| belief.met) {
            self.met_since = Some(now);
        }
    }

    /// Whether it has met others, and the first of them less than `within` ago.
    pub(crate) fn has_just_met(&self, now: Now, within: Duration) -> bool {
        self.met_since.is_some_and(|since| now.since(since) < within)
    }
}

impl PeerBelief {
    /// Whether it is heard again after a silence that ended less than `within` ago.
    pub(crate) fn was_silent_within(&self, now: Now, within: Duration) -> bool {
        self.was_silent.is_some_and(|(_, until)| now.since(until) < within)
    }
}

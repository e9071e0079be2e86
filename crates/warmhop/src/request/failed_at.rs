//! Where a request failed last.

use warmhop_core::ids::PeerId;

use crate::app::slot::Slot;

/// The copy that failed on a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FailedAt {
    /// The one here from this start attempt.
    Here(u64),
    /// The one on this peer.
    There(PeerId),
}

impl FailedAt {
    /// Whether it is the copy that serves here now.
    pub(crate) fn serves_here(&self, slot: &Slot) -> bool {
        matches!(self, Self::Here(attempt) if slot.holds_attempt(*attempt))
    }
}

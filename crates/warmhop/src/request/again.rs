//! A safe request that an app took and failed on, and which may be given to one other copy.
//!
//! Where another copy is ready it goes there. Where none is, it waits for the next one only if the
//! copy that failed has ended: an app that lives and fails is not asked again, and neither is a
//! request that ends every copy sent to more than two of them.

use std::time::Duration;

use warmhop_core::view::AppState;

use crate::app::places::Waits;
use crate::app::slot::Slot;
use crate::observe::recall::Tracing;
use crate::request::failed_at::FailedAt;
use crate::request::node::{Node, Place, Placing};
use crate::request::problem::Problem;

/// A connection ends before its process has: so long the news of that is waited for.
const END_TOLD_WITHIN: Duration = Duration::from_millis(500);

impl Node {
    /// Places a request. Of one that came back from an app that failed, `failed_at` names the copy.
    pub(crate) async fn place_anew(
        &self,
        placing: &Placing<'_>,
        waits: &mut Waits,
        failed_at: &mut Option<FailedAt>,
        tracing: &mut Tracing,
    ) -> Result<Place, Problem> {
        let placed = self.place(placing, waits, tracing).await;
        if placed.is_ok() || placing.failed.is_none() {
            return placed;
        }
        // Once: the next to end on it is the last.
        let Some(at) = failed_at.take() else { return placed };
        if !self.has_ended(placing.slot, &at).await {
            return placed;
        }
        tracing.step("again", "the copy that failed has ended; the request waits for the next one");
        let first =
            Placing { version: placing.version, ..Placing::first(placing.slot, placing.arrived) };
        self.place(&first, waits, tracing).await
    }

    /// Whether the copy has ended, as far as is known soon.
    async fn has_ended(&self, slot: &Slot, at: &FailedAt) -> bool {
        let is_over = || match at {
            FailedAt::Here(attempt) => !slot.holds_attempt(*attempt),
            FailedAt::There(peer) => self
                .view()
                .peer(peer)
                .and_then(|belief| belief.apps.get(slot.name()))
                .is_none_or(|copy| copy.news.state != AppState::Ready),
        };
        let mut changed = self.changed.subscribe();
        let told = changed.wait_for(|_| is_over());
        matches!(tokio::time::timeout(END_TOLD_WITHIN, told).await, Ok(Ok(_)))
    }
}

//! Retries a safe request on one other copy, if an app took it and failed.
//!
//! If another copy is ready, the request goes there. If none is, it waits for the next one only if
//! the copy that failed has ended: an app that is alive and fails is not asked again, and a request
//! that ends every copy reaches two of them at most.

use std::time::Duration;

use warmhop_core::view::AppState;

use crate::app::places::Waits;
use crate::app::slot::Slot;
use crate::observe::recall::Tracing;
use crate::request::failed_at::FailedAt;
use crate::request::node::{Node, Place, Placing};
use crate::request::problem::Problem;

/// How long to wait for the news that a copy has ended: its connections break first.
const END_KNOWN_WITHIN: Duration = Duration::from_millis(500);

impl Node {
    /// Places a request. If an app failed on it before, `failed_at` names the copy.
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
        // Only once: if the request ends the next copy as well, it goes to no other.
        let Some(at) = failed_at.take() else { return placed };
        if !self.has_ended(placing.slot, &at).await {
            return placed;
        }
        tracing.step("again", "the copy that failed has ended; the request waits for the next one");
        let first =
            Placing { version: placing.version, ..Placing::first(placing.slot, placing.arrived) };
        self.place(&first, waits, tracing).await
    }

    /// Whether the copy has ended, as far as this peer learns within [`END_KNOWN_WITHIN`].
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
        let known = changed.wait_for(|_| is_over());
        matches!(tokio::time::timeout(END_KNOWN_WITHIN, known).await, Ok(Ok(_)))
    }
}

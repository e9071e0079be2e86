//! A hop that has had its turn at its entry peer, and waits here for a place among the requests that
//! this peer's copy serves: carries out what the core's `at_door` decides.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use warmhop_core::queue::Flow;
use warmhop_core::route::{AtDoor, TURN_WITHIN, Turn, at_door};
use warmhop_core::version::AppVersion;

use crate::app::places::{Wait, Waits};
use crate::app::slot::{Copy, InFlight, NoEntry, Slot};
use crate::hop::HopRefusal;
use crate::observe::recall::Tracing;
use crate::request::call::Call;
use crate::request::node::Node;
use crate::request::too_old::is_too_old;

/// Such a hop.
pub(super) struct Door<'a> {
    pub(super) slot: &'a Arc<Slot>,
    /// Whose it is.
    pub(super) flow: Flow,
    /// The version that it requires.
    pub(super) counts_on: Option<&'a AppVersion>,
    /// It counts as a use of the copy.
    pub(super) is_use: bool,
    /// How long its entry peer lets it wait.
    pub(super) at_most: Duration,
}

/// Counts a request among those that wait here, until it is dropped.
struct Waiting<'a>(&'a Slot);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Node {
    /// How long the request may wait for a place at the peer that it is sent to next, if it may.
    pub(super) fn turn_there(&self, slot: &Slot, call: &Call) -> Option<Duration> {
        let left = slot.spec().policy.max_wait.saturating_sub(call.waits.waited);
        call.waits.may_wait_there.then_some(left.min(TURN_WITHIN))
    }

    /// Waits for a place at the copy here. A request that gets one holds it before its entry peer hears of it.
    pub(super) async fn wait_at_door(
        &self,
        door: &Door<'_>,
        tracing: &mut Tracing,
    ) -> Result<(Arc<Copy>, InFlight), HopRefusal> {
        let Door { slot, flow, counts_on, is_use, at_most } = *door;
        let mut waits = Waits::of(flow);
        let mut waiting: Option<(Instant, Waiting<'_>)> = None;
        loop {
            let policy = slot.spec().policy.clone();
            let doing = slot.doing(&policy, flow);
            let queued = waits.standing(&slot.places, Some(&self.me));
            let turn = at_door(&AtDoor {
                app: &policy,
                state: slot.state(),
                leaving: self.is_draining() || slot.is_retired(),
                in_flight: doing.in_flight,
                shut: doing.is_shut,
                waiting: slot.waiting.load(Ordering::Relaxed) - usize::from(waiting.is_some()),
                queued,
                waited: waiting.as_ref().map_or(Duration::ZERO, |(since, _)| since.elapsed()),
                at_most,
            });
            let at_most = match turn {
                Turn::Enter if is_too_old(slot, counts_on) => {
                    return Err(self.refusal_of_older(slot));
                }
                Turn::Enter => match slot.enter(|_| is_use, flow) {
                    Ok(entered) => {
                        waits.enters();
                        return Ok(entered);
                    }
                    Err(NoEntry::NotReady) => return Err(HopRefusal::NotReady),
                    // Another was faster.
                    Err(NoEntry::Full) => continue,
                },
                Turn::Busy => return Err(HopRefusal::Busy),
                Turn::NotReady => return Err(HopRefusal::NotReady),
                Turn::Wait { at_most } => at_most,
            };
            if waiting.is_none() {
                tracing.step("wait", "every place is taken; its turn at its entry peer has come");
                slot.waiting.fetch_add(1, Ordering::Relaxed);
                waiting = Some((Instant::now(), Waiting(slot)));
            }
            let is_full = slot.waiting.load(Ordering::Relaxed) > policy.waiting_max;
            let is_held_back = doing.is_shut && !doing.is_full;
            let wait = Wait { at_most, is_full, is_held_back, declines: is_held_back };
            waits.for_place(&slot.places, Some(&self.me), wait).await;
        }
    }
}

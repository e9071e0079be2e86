//! A peer's background work: keeping copies ready across the mesh, and forgetting peers that are long
//! gone.

use std::sync::Arc;
use std::time::Duration;

use warmhop_core::app::{AppEvent, StopReason};
use warmhop_core::keep::keeps_ready;
use warmhop_core::scale::{LOOK_EVERY, SURPLUS_AFTER, copies_wanted, is_surplus};
use warmhop_core::view::{AppState, Liveness};

use crate::care::repair::Repair;
use crate::care::{alone, report, skew, unlinked};
use crate::observe::history;
use crate::request::node::{FORGET_DEAD_AFTER, Node};

/// How often it looks.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How long a peer that has just started listens before it concludes that no peer keeps an app ready.
const SETTLE: Duration = Duration::from_millis(1500);

/// Runs as long as the peer.
pub(crate) async fn run(node: Arc<Node>, has_seeds: bool) {
    if has_seeds {
        tokio::time::sleep(SETTLE).await;
    }
    let mut changes = node.changed.subscribe();
    let mut repair = Repair::default();
    let mut skew = skew::Watch::default();
    let mut alone = alone::Watch::default();
    let mut unlinked = unlinked::Watch::default();
    loop {
        changes.mark_unchanged();
        let busy = repair.sweep(&node);
        for slot in &node.apps().slots {
            let (spec, state) = (slot.spec(), slot.state());
            let (draining, view) = (node.is_draining(), node.view());
            let here = (state, slot.is_busy());
            let wanted = copies_wanted(slot.name(), &spec.policy, here, draining, &view);
            let mut policy = spec.policy.clone();
            policy.keep_ready = policy.keep_ready.max(wanted);
            slot.keep(keeps_ready(slot.name(), &policy, state, draining, &node.me, &view));
            let is_idle = state == AppState::Ready && slot.idle_for() >= SURPLUS_AFTER;
            if is_idle && wanted == 0 && is_surplus(slot.name(), &spec.policy, &node.me, &view) {
                slot.tell(AppEvent::StopWanted(StopReason::Surplus));
            }
        }
        skew.look(&node);
        alone.look(&node);
        unlinked.look(&node);
        node.count_peers();
        node.runs();
        let now = node.clock.now();
        for peer in node.view().unheard(now).filter(|peer| node.net.rtt(peer).is_none()) {
            // The peer may only be cut off: its sessions are not declared lost.
            node.edit_view(|view, now| view.give_up(peer, now));
        }
        if node.view().peers().any(|(_, belief)| belief.alive == Liveness::Dead) {
            let forgotten = node.edit_view(|view, now| view.forget_dead(now, FORGET_DEAD_AFTER));
            for peer in &forgotten {
                node.metrics.forget_peer(peer);
            }
            if !forgotten.is_empty() {
                node.forget_loads();
            }
        }
        tokio::time::sleep(SWEEP_INTERVAL / 4).await;
        if !busy {
            let _ = tokio::time::timeout(SWEEP_INTERVAL, changes.changed()).await;
        }
    }
}

/// Ends the intervals of the apps' history one by one, as long as the peer runs.
pub(crate) async fn keep_history(node: Arc<Node>) {
    let mut turns =
        tokio::time::interval_at((node.started + history::INTERVAL).into(), history::INTERVAL);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        turns.tick().await;
        node.history.turn(node.started.elapsed(), report::totals(&node).into_iter());
    }
}

/// Samples how busy the copies here are, as long as the peer runs.
pub(crate) async fn watch_load(node: Arc<Node>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for slot in &node.apps().slots {
            slot.look_whether_busy();
        }
    }
}

//! Leaving without losing anything: sessions go to heirs, requests end, apps stop, links close.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use warmhop_core::app::{AppEvent, StopReason};
use warmhop_core::ids::SessionKey;
use warmhop_core::session::repair::{heir, may_count_on};
use warmhop_core::view::Liveness;

use crate::care::pace::Pace;
use crate::http::tunnels::GOODBYE_WITHIN;
use crate::links::net::Net;
use crate::request::node::Node;

/// How long the handoff of sessions may take without any of them finding a new owner.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(10);
/// How long the owners of other sessions may take to replace this peer's copies. The time starts over
/// while they make progress, and when another peer falls silent or is heard again.
const REPLACED_WITHIN: Duration = Duration::from_secs(15);
/// How long both may take in all.
const SESSIONS_WITHIN: Duration = Duration::from_secs(120);
/// How long the handoff of later sessions may take, after the last request.
const REST_WITHIN: Duration = Duration::from_secs(2);
/// How long the peer answers as draining before its front doors close, so that balancers notice.
const LAME_DUCK: Duration = Duration::from_secs(1);
/// How long the tasks of a peer may take to end.
const TASKS_WITHIN: Duration = Duration::from_secs(30);
/// How often an invitation is repeated.
const INVITE_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// How many sessions are offered at once: fewer where the others are slow to take them.
const INVITES_AT_ONCE: RangeInclusive<usize> = 64..=512;
/// How many questions about members are asked at once.
const QUESTIONS_AT_ONCE: usize = 2048;

/// Announces that this peer leaves, and hands off its sessions.
pub(crate) async fn drain(node: &Arc<Node>, net: &Net) {
    info!("draining");
    node.draining.store(true, Ordering::Relaxed);
    net.publish_draining(true);
    node.changed.send_modify(|count| *count += 1);
    let latest = Instant::now() + SESSIONS_WITHIN;
    let HandedOff { count, left } = hand_off(node, latest).await;
    if count > left {
        info!(count = count - left, "sessions handed off");
    }
    if left > 0 {
        warn!(
            left,
            "some sessions could not be handed off in time; their copies stay with the other peers that hold them"
        );
    }
    let left = replaced(node, latest).await;
    if left > 0 {
        warn!(
            left,
            "some sessions still have this peer as a member; they lose its copy when it ends"
        );
    }
    tokio::time::sleep(LAME_DUCK).await;
}

/// Announces that this peer stays. The sessions that it handed off come back as their clients do.
pub(crate) fn stay(node: &Node, net: &Net) {
    node.drained.store(false, Ordering::Relaxed);
    if node.draining.swap(false, Ordering::Relaxed) {
        info!("the peer takes traffic again");
        net.publish_draining(false);
        node.changed.send_modify(|count| *count += 1);
    }
}

/// Waits until the owners of the sessions that this peer holds copies of have replaced it by others, if
/// there are any, or have left it out where too few would stay to agree: a peer that leaves cleanly costs
/// no session a copy, or its majority. It waits until `latest` for as long as some are. Returns how many
/// sessions still count on it.
async fn replaced(node: &Node, latest: Instant) -> usize {
    let alive = || {
        let view = node.view();
        view.live_peers().filter(|(_, belief)| belief.alive == Liveness::Alive).count()
    };
    let (mut end, mut living) = (Instant::now() + REPLACED_WITHIN, alive());
    let (mut least, mut offers) = (usize::MAX, Offers::new());
    loop {
        let left = node.copies_to_replace();
        if left == 0 || Instant::now() >= end {
            return left;
        }
        // A peer that replaced it while it was cut off could not inform it.
        node.ask_for_members(QUESTIONS_AT_ONCE);
        give_away(node, &mut offers);
        tokio::time::sleep(INVITE_AGAIN_AFTER).await;
        let still = alive();
        if still != living || left < least {
            end = (Instant::now() + REPLACED_WITHIN).min(latest);
        }
        (living, least) = (still, left.min(least));
    }
}

/// How many sessions were to be handed off, and how many of these still are.
struct HandedOff {
    count: usize,
    left: usize,
}

/// Invites an heir for each session until none of the first ones is left: clients still arrive
/// here, and begin new ones. Ends at `latest`, or once none has been taken over for a while, or if there is
/// nobody to take them: whether to wait for others is decided by the copies that they hold.
async fn hand_off(node: &Node, latest: Instant) -> HandedOff {
    let mut first: HashSet<SessionKey> = node.store.owned().into_iter().collect();
    let count = first.len();
    let (mut end, mut offers) = (Instant::now() + HAND_OVER_WITHIN, Offers::new());
    loop {
        let Some(owned) = give_away(node, &mut offers) else {
            return HandedOff { count: count - first.len(), left: 0 };
        };
        let owned: HashSet<SessionKey> = owned.into_iter().collect();
        let before = first.len();
        first.retain(|key| owned.contains(key));
        if first.len() < before {
            end = Instant::now() + HAND_OVER_WITHIN;
        }
        if first.is_empty() || Instant::now() >= end.min(latest) {
            return HandedOff { count, left: first.len() };
        }
        tokio::time::sleep(INVITE_AGAIN_AFTER).await;
    }
}

/// The sessions that are offered to heirs.
struct Offers {
    pace: Pace,
    offered: HashSet<SessionKey>,
}

impl Offers {
    fn new() -> Self {
        Self { pace: Pace::new(INVITES_AT_ONCE), offered: HashSet::new() }
    }

    /// Those of the `owned` sessions that are to be offered now, the former ones that nobody took included.
    fn next<'a>(
        &mut self,
        owned: &'a [SessionKey],
    ) -> impl Iterator<Item = &'a SessionKey> + use<'a> {
        let untaken = owned.iter().filter(|key| self.offered.contains(*key)).count();
        let bound = self.pace.bound(untaken);
        let next = owned.iter().take(bound);
        self.offered = next.clone().cloned().collect();
        self.pace.begin(self.offered.len());
        next
    }
}

/// Invites an heir for each session that is owned here, as many as are taken in time, and returns all of
/// these; `None` if no peer is heard that could take any.
fn give_away(node: &Node, offers: &mut Offers) -> Option<Vec<SessionKey>> {
    let view = node.view();
    if !view.live_peers().any(|(_, belief)| may_count_on(belief)) {
        return None;
    }
    let owned = node.store.owned();
    for key in offers.next(&owned) {
        if let Some(to) = heir(key.sid, &key.app, &view) {
            node.store.with(key, false, |machine, ctx, out| machine.hand_off(ctx, to, out));
        }
    }
    Some(owned)
}

/// Hands off the sessions that came here until the front doors closed, and waits for their new owners to
/// go on without this peer, as [`replaced`] does.
pub(crate) async fn give_away_the_rest(node: &Node) {
    let end = Instant::now() + REST_WITHIN;
    let mut offers = Offers::new();
    let gives = |it: Option<Vec<SessionKey>>| it.is_some_and(|owned| !owned.is_empty());
    while (gives(give_away(node, &mut offers)) || node.copies_to_replace() > 0)
        && Instant::now() < end
    {
        tokio::time::sleep(INVITE_AGAIN_AFTER).await;
    }
}

/// Waits for `grace` until the clients' connections have ended, upgraded ones included, and the
/// hops for other peers' clients. Then the rest is cut off, but upgraded connections are first
/// closed by their own protocol.
pub(crate) async fn end_streams(node: &Node, connections: &TaskTracker, grace: Duration) {
    let tunnels = &node.tunnels;
    tunnels.open.close();
    tunnels.hops.close();
    // In this order: a connection whose request is answered by an upgrade becomes a tunnel.
    let ended = async {
        connections.wait().await;
        tunnels.open.wait().await;
        tunnels.hops.wait().await;
    };
    if tokio::time::timeout(grace, ended).await.is_ok() {
        return;
    }
    let (connections, hops) = (connections.len(), tunnels.hops.len());
    warn!(
        connections,
        hops,
        tunnels = tunnels.open.len(),
        "some streams did not end within the drain grace and are cut off"
    );
    tunnels.closing.cancel();
    let _ = tokio::time::timeout(GOODBYE_WITHIN, tunnels.open.wait()).await;
    tunnels.cut.cancel();
}

/// Waits until every task has ended, or for as long as that may take.
pub(crate) async fn wait_for(tasks: &TaskTracker) {
    if tokio::time::timeout(TASKS_WITHIN, tasks.wait()).await.is_err() {
        warn!(left = tasks.len(), "some tasks did not end in time");
    }
}

/// Stops every app's copy and waits until each has ended.
pub(crate) async fn stop_apps(node: &Node) {
    let mut changes = node.changed.subscribe();
    let apps = node.apps();
    let all = || apps.slots.iter().chain(&apps.leaving);
    for slot in all() {
        slot.tell(AppEvent::StopWanted(StopReason::Drain));
    }
    let grace = all().map(|slot| slot.spec().policy.stop_grace).max().unwrap_or_default();
    let stopped = async {
        loop {
            let running = all().any(|slot| !slot.has_ended());
            if !running || changes.changed().await.is_err() {
                return;
            }
        }
    };
    // Twice: once for the requests in flight, once for the app itself.
    if tokio::time::timeout(grace * 2 + Duration::from_secs(1), stopped).await.is_err() {
        warn!("an app did not stop in time");
    }
}

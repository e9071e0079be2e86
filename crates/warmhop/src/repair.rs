//! Keeps sessions on as many peers as they should be on, idle ones too: a member that is gone is
//! replaced, one that is missing is added, and an owner that is gone is succeeded by a member.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use warmhop_core::ids::{Incarnation, Now, SessionKey};
use warmhop_core::rank;
use warmhop_core::view::{Liveness, View};

use crate::node::Node;

/// How long a member is silent before it is replaced, and an owner before it is succeeded.
const SILENT_BEFORE_REPAIR: Duration = Duration::from_secs(3);
/// How much longer each further member waits before it succeeds the owner.
const WAIT_A_RANK: Duration = Duration::from_secs(1);
/// How many sessions are mended in one sweep.
const MENDED_AT_ONCE: usize = 512;

/// What one sweep hands on to the next.
#[derive(Default)]
pub(crate) struct Repair {
    /// Since when those that are named by sessions have been silent.
    silent_since: HashMap<Incarnation, Now>,
    /// Who was alive when a sweep last found nothing to mend.
    mended_for: Option<BTreeSet<Incarnation>>,
}

impl Repair {
    /// Looks through the sessions here once; costs nothing while nobody comes or goes.
    pub(crate) fn sweep(&mut self, node: &Node) {
        let view = node.view();
        let alive = alive(node, &view);
        if self.mended_for.as_ref() == Some(&alive) || node.is_draining() {
            return;
        }
        self.silent_since.retain(|peer, _| !alive.contains(peer));
        let now = node.clock.now();
        let mut to_mend = 0;
        let mut noticed: BTreeSet<Incarnation> = BTreeSet::new();
        for key in node.store.kept() {
            let silent_for = |peer: &Incarnation, since: &HashMap<Incarnation, Now>| {
                if alive.contains(peer) {
                    return None;
                }
                Some(since.get(peer).map_or(Duration::ZERO, |since| now.since(*since)))
            };
            let Some((owns, owner, members)) = node.store.with(&key, false, |machine, _, _| {
                let owner = machine.promised().map(|ballot| ballot.proposer);
                (machine.is_owner(), owner, machine.members().to_vec())
            }) else {
                continue;
            };
            let gone: Vec<(Incarnation, Duration)> = members
                .iter()
                .filter_map(|peer| Some((*peer, silent_for(peer, &self.silent_since)?)))
                .collect();
            noticed.extend(gone.iter().map(|(peer, _)| *peer));
            if owns {
                let newcomer = newcomer(node, &view, &alive, &key, &members);
                let copies = node.store.policy().copies.clamp(1, 3).min(alive.len());
                let short = members.len() < copies;
                if newcomer.is_none() || (gone.is_empty() && !short) {
                    continue;
                }
                to_mend += 1;
                let due = gone.iter().find(|(_, silent)| *silent >= SILENT_BEFORE_REPAIR);
                if to_mend > MENDED_AT_ONCE || (due.is_none() && !short) {
                    continue;
                }
                node.store.with(&key, false, |machine, ctx, out| {
                    machine.change_members(ctx, due.map(|(peer, _)| *peer), newcomer, out)
                });
            } else if let Some(owner) = owner.filter(|owner| !alive.contains(owner)) {
                noticed.insert(owner);
                to_mend += 1;
                let rank = members.iter().position(|peer| *peer == node.incarnation);
                let Some(rank) = rank.and_then(|rank| u32::try_from(rank).ok()) else { continue };
                let patience = SILENT_BEFORE_REPAIR + WAIT_A_RANK * rank;
                let silent = silent_for(&owner, &self.silent_since).unwrap_or_default();
                if silent >= patience && to_mend <= MENDED_AT_ONCE {
                    node.store.with(&key, false, |machine, ctx, out| {
                        if !machine.is_owner() && !machine.is_taking_over() {
                            let round = machine.seen_round();
                            machine.take_over(ctx, None, round, out);
                        }
                    });
                }
            }
        }
        for peer in noticed {
            self.silent_since.entry(peer).or_insert(now);
        }
        self.mended_for = (to_mend == 0).then_some(alive);
    }
}

/// The processes that sessions may count on, this one included.
fn alive(node: &Node, view: &View) -> BTreeSet<Incarnation> {
    view.live_peers()
        .filter(|(_, belief)| belief.alive == Liveness::Alive)
        .map(|(_, belief)| belief.news.incarnation)
        .chain([node.incarnation])
        .collect()
}

/// Who should become a member: this peer as the owner, else the live peer of the highest rank.
fn newcomer(
    node: &Node,
    view: &View,
    alive: &BTreeSet<Incarnation>,
    key: &SessionKey,
    members: &[Incarnation],
) -> Option<Incarnation> {
    if !members.contains(&node.incarnation) {
        return Some(node.incarnation);
    }
    let able = view
        .live_peers()
        .filter(|(_, belief)| !belief.news.draining && alive.contains(&belief.news.incarnation))
        .filter(|(_, belief)| !members.contains(&belief.news.incarnation));
    let best = rank::session_ranks(&key.sid, able.map(|(peer, _)| peer)).into_iter().next()?;
    view.peer(&best).map(|belief| belief.news.incarnation)
}

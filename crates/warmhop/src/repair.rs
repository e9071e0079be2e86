//! Keeps sessions on as many peers as they should be on, idle ones too: looks through them when
//! somebody comes or goes, and does what the core decides for each.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use warmhop_core::ids::{Incarnation, Now, PeerId, SessionKey};
use warmhop_core::rank;
use warmhop_core::session::repair::{Holding, Mend, SILENT_BEFORE_REPAIR, mend};
use warmhop_core::view::{Liveness, PeerNews, View};

use crate::node::Node;

/// How many sessions are mended in one sweep, so that the messages of one leave room for others.
const MENDED_AT_ONCE: usize = 1024;

/// What one sweep hands on to the next.
#[derive(Default)]
pub(crate) struct Repair {
    /// Since when those that sessions name have been missing from the view.
    missing_since: HashMap<Incarnation, Now>,
    /// Who was alive when a sweep last found nothing to mend.
    mended_for: Option<BTreeSet<Incarnation>>,
}

impl Repair {
    /// Looks through the sessions here once, or only through those that came here since, where
    /// nobody came or went. Returns whether there is more to do soon.
    pub(crate) fn sweep(&mut self, node: &Node) -> bool {
        if node.is_draining() {
            return false;
        }
        let view = node.view();
        let alive = alive(node, &view);
        let to_look_at = node.store.take_to_look_at();
        self.missing_since.retain(|peer, _| !alive.contains(peer));
        let mut left = MENDED_AT_ONCE;
        let mut busy = false;
        if self.mended_for.as_ref() == Some(&alive) {
            for key in to_look_at {
                busy |= self.mend(node, &view, &alive, &key, &mut left);
            }
        } else {
            for stripe in node.store.stripes() {
                for key in node.store.kept_in(stripe) {
                    busy |= self.mend(node, &view, &alive, &key, &mut left);
                }
            }
        }
        self.mended_for = (!busy).then_some(alive);
        busy
    }

    /// Mends one session, unless none are `left` for this sweep. Returns whether it has to be
    /// looked at again.
    fn mend(
        &mut self,
        node: &Node,
        view: &View,
        alive: &BTreeSet<Incarnation>,
        key: &SessionKey,
        left: &mut usize,
    ) -> bool {
        let now = node.clock.now();
        let known = node.store.with(key, false, |machine, _, _| {
            let owner = machine.promised().map(|ballot| ballot.proposer);
            let whole = !machine.is_owner() || machine.is_whole();
            (machine.is_owner(), machine.is_taking_over(), owner, machine.members().to_vec(), whole)
        });
        let Some((owns, false, owner, members, complete)) = known else { return known.is_some() };
        for peer in members.iter().copied().chain(owner).filter(|peer| !alive.contains(peer)) {
            self.missing_since.entry(peer).or_insert(now);
        }
        let silent_for = |peer: Incarnation| -> Option<Duration> {
            if alive.contains(&peer) {
                return None;
            }
            if node.store.is_dead(&peer) {
                return Some(Duration::MAX);
            }
            let belief = view.by_incarnation(&peer);
            if belief.is_some_and(|it| it.alive == Liveness::Alive && it.news.draining) {
                // It is replaced before it leaves; what it owns it hands over by itself.
                return owns.then_some(SILENT_BEFORE_REPAIR);
            }
            let heard = belief.map(|belief| belief.heard);
            let since = heard.or_else(|| self.missing_since.get(&peer).copied());
            Some(since.map_or(Duration::ZERO, |since| now.since(since)))
        };
        let whole = owns
            && members.contains(&node.incarnation)
            && members.iter().all(|peer| alive.contains(peer))
            && members.len() >= node.store.policy().copies.clamp(1, 3).min(alive.len());
        if whole {
            // Everyone is there, but somebody lacks the newest record.
            if !complete {
                node.store.with(key, false, |machine, ctx, out| machine.remind(ctx, out));
            }
            return false;
        }
        let holding = Holding {
            me: node.incarnation,
            owns,
            owner,
            members: &members,
            copies: node.store.policy().copies.clamp(1, 3).min(alive.len()),
            spare: by_rank(view, key, |peer| {
                alive.contains(&peer.incarnation)
                    && !peer.draining
                    && !members.contains(&peer.incarnation)
            })
            .next(),
            last: by_rank(view, key, |peer| members.contains(&peer.incarnation)).last(),
        };
        let decided = mend(&holding, silent_for);
        if !matches!(decided, Mend::Nothing | Mend::Later) {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => return true,
            }
        }
        match decided {
            Mend::Nothing => return false,
            Mend::Later => {}
            Mend::Change { gone, newcomer } => {
                node.store.with(key, false, |machine, ctx, out| {
                    machine.change_members(ctx, gone, newcomer, out)
                });
            }
            Mend::Succeed => {
                let peers = node.whom_to_ask(key);
                node.store.with(key, false, |machine, ctx, out| {
                    if !machine.is_owner() && !machine.is_taking_over() {
                        let round = machine.seen_round();
                        machine.take_over(ctx, None, round, &peers, out);
                    }
                });
            }
        }
        true
    }
}

impl Node {
    /// How many sessions count on this peer's copy although another peer could hold it.
    pub(crate) fn copies_to_replace(&self) -> usize {
        let view = self.view();
        let able = alive(self, &view);
        let counts_on_this = |members: &[Incarnation]| {
            members.contains(&self.incarnation) && able.iter().any(|peer| !members.contains(peer))
        };
        self.store.count_held(counts_on_this)
    }

    /// Every process that may know of the session, best by rank.
    pub(crate) fn whom_to_ask(&self, key: &SessionKey) -> Vec<Incarnation> {
        by_rank(&self.view(), key, |_| true).collect()
    }
}

/// The processes that sessions may count on, this one included: those about to leave are not.
fn alive(node: &Node, view: &View) -> BTreeSet<Incarnation> {
    view.live_peers()
        .filter(|(_, belief)| belief.alive == Liveness::Alive && !belief.news.draining)
        .map(|(_, belief)| belief.news.incarnation)
        .chain([node.incarnation])
        .collect()
}

/// Those of the peers not known to be dead that are `wanted`, by their rank for the session.
fn by_rank<'v>(
    view: &'v View,
    key: &SessionKey,
    wanted: impl Fn(&PeerNews) -> bool,
) -> impl Iterator<Item = Incarnation> + 'v {
    let able = view.live_peers().filter(|(_, belief)| wanted(&belief.news));
    let ranked: Vec<PeerId> = rank::session_ranks(&key.sid, able.map(|(peer, _)| peer));
    ranked
        .into_iter()
        .filter_map(move |peer| view.peer(&peer).map(|belief| belief.news.incarnation))
}

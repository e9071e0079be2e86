//! Keeps sessions on as many peers as they should be on, idle ones too: looks through them when
//! somebody comes or goes, and does what the core decides for each.

use std::collections::BTreeSet;

use warmhop_core::ids::{Incarnation, SessionKey};
use warmhop_core::session::repair::{
    Around, Held, Mend, Scope, Watch, by_rank, countable, counts_on,
};
use warmhop_core::view::View;

use crate::node::Node;

/// How many sessions are mended in one sweep, so that the messages of one leave room for others.
const MENDED_AT_ONCE: usize = 1024;

/// What one sweep hands on to the next.
#[derive(Default)]
pub(crate) struct Repair {
    watch: Watch,
}

impl Repair {
    /// Looks through the sessions here once, or only through those that came here since, where
    /// nobody came or went. Returns whether there is more to do soon.
    pub(crate) fn sweep(&mut self, node: &Node) -> bool {
        if node.is_draining() {
            return false;
        }
        let view = node.view();
        let alive = countable(&view, node.incarnation);
        let to_look_at = node.store.take_to_look_at();
        let mut left = MENDED_AT_ONCE;
        let mut busy = false;
        match self.watch.begin(&alive) {
            Scope::Noted => {
                for key in to_look_at {
                    busy |= self.mend(node, &view, &alive, &key, &mut left);
                }
            }
            Scope::All => {
                for stripe in node.store.stripes() {
                    for key in node.store.kept_in(stripe) {
                        busy |= self.mend(node, &view, &alive, &key, &mut left);
                    }
                }
            }
        }
        self.watch.end(alive, busy);
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
        let held = node.store.with(key, false, |machine, _, _| Held::of(machine, view));
        let Some(held) = held else { return false };
        let now = node.clock.now();
        let around = Around { me: node.incarnation, now, view, alive, policy: node.store.policy() };
        let decided = self.watch.look(key.sid, &held, &around, |peer| node.store.is_dead(&peer));
        if matches!(decided, Mend::Change { .. } | Mend::Succeed) {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => return true,
            }
        }
        match decided {
            Mend::Nothing => return false,
            Mend::Remind => {
                node.store.with(key, false, |machine, ctx, out| machine.remind(ctx, out));
                return false;
            }
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
        let able = countable(&self.view(), self.incarnation);
        self.store.held(|members| counts_on(members, self.incarnation, &able)).len()
    }

    /// Asks about the members of sessions that count on this peer's copy, with `most` questions:
    /// it may have been replaced while it was cut off, and would count itself among them until it
    /// hears of it.
    pub(crate) fn ask_for_members(&self, most: usize) {
        let able = countable(&self.view(), self.incarnation);
        let held = self.store.held(|members| counts_on(members, self.incarnation, &able));
        // Others each time: of some nobody knows more.
        let first = rand::random_range(0..held.len().max(1));
        let mut left = most;
        for key in held.iter().cycle().skip(first).take(held.len()) {
            // Its members may all have been replaced since: anyone may know.
            let peers = self.whom_to_ask(key);
            let Some(fewer) = left.checked_sub(peers.len()) else { return };
            left = fewer;
            self.store.with(key, false, |machine, _, out| machine.locate(&peers, out));
        }
    }

    /// Every process that may know of the session, best by rank.
    pub(crate) fn whom_to_ask(&self, key: &SessionKey) -> Vec<Incarnation> {
        by_rank(key.sid, &self.view(), |_| true)
    }
}

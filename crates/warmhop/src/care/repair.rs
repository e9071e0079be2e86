//! Keeps every session, idle ones too, on as many peers as it should be on, and with an owner: it
//! looks through the sessions when a peer joins or leaves, and carries out what the core decides
//! for each.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;

use warmhop_core::ids::{Incarnation, SessionKey};
use warmhop_core::session::repair::{
    Around, Held, Mend, Scope, Watch, by_rank, countable, counts_on, full, is_short,
    silent_for_a_while,
};
use warmhop_core::view::{Liveness, View};

use crate::care::pace::Pace;
use crate::request::node::Node;
use crate::sessions::store::STRIPES;

/// How many sessions one sweep repairs or asks about, so that its messages leave room for others: fewer
/// where these take long to be answered.
const MENDED_AT_ONCE: RangeInclusive<usize> = 64..=1024;
/// How many sessions at most wait to be checked again. While so many wait, no further part of the
/// store is scanned.
const UNDER_WAY_MAX: usize = 16 * 1024;

/// A session that is to be looked at again.
struct UnderWay {
    /// What it was first looked at for.
    scope: Scope,
    /// A repair was begun, or a question asked.
    is_begun: bool,
}

/// What one sweep leaves to the next.
pub(crate) struct Repair {
    watch: Watch,
    pace: Pace,
    under_way: BTreeMap<SessionKey, UnderWay>,
    /// The stripes still to be looked through since a peer joined or left.
    ahead: std::ops::Range<usize>,
}

/// What came of looking at one session.
struct Looked {
    /// It has to be looked at again.
    again: bool,
    /// A repair was begun, or a question asked.
    acted: bool,
}

/// What stays the same within one sweep, and how many sessions it may still repair.
struct Sweep<'a> {
    node: &'a Node,
    view: &'a View,
    alive: &'a BTreeSet<Incarnation>,
    left: usize,
}

impl Default for Repair {
    fn default() -> Self {
        Self {
            watch: Watch::default(),
            pace: Pace::new(MENDED_AT_ONCE),
            under_way: BTreeMap::new(),
            ahead: 0..0,
        }
    }
}

impl Repair {
    /// Looks through a part of the sessions here after a peer has joined or left, and at those
    /// noted since as in need of a look. Returns whether there is more to do soon.
    pub(crate) fn sweep(&mut self, node: &Node) -> bool {
        let view = node.view();
        let alive = countable(&view, node.incarnation);
        let (noted, missed) = node.store.take_to_look_at();
        if missed {
            self.watch.begin_anew();
        }
        if self.watch.begin(&alive, full(&view), node.silences.load(Ordering::Relaxed))
            == Scope::All
        {
            self.under_way.clear();
            self.ahead = 0..STRIPES;
        }
        let mut sweep = Sweep { node, view: &view, alive: &alive, left: *MENDED_AT_ONCE.end() };
        let mut under_way = std::mem::take(&mut self.under_way);
        let mut unfinished = 0;
        under_way.retain(|key, it| {
            let Looked { again, acted } = self.mend(&mut sweep, key, it.scope);
            unfinished += usize::from(acted && it.is_begun);
            it.is_begun |= acted;
            again
        });
        let used = MENDED_AT_ONCE.end() - sweep.left;
        let bound = self.pace.bound(unfinished);
        sweep.left = bound.saturating_sub(used);
        let began_with = sweep.left;
        for key in noted {
            self.look_first(&mut sweep, &mut under_way, key, Scope::Noted);
        }
        while under_way.len() < UNDER_WAY_MAX && sweep.left > 0 {
            let Some(stripe) = self.ahead.next() else { break };
            for key in node.store.kept_in(stripe) {
                self.look_first(&mut sweep, &mut under_way, key, Scope::All);
            }
        }
        self.pace.begin(used + began_with - sweep.left);
        self.under_way = under_way;
        !self.under_way.is_empty() || !self.ahead.is_empty()
    }

    /// Looks at a session that was not `under_way` before.
    fn look_first(
        &mut self,
        sweep: &mut Sweep<'_>,
        under_way: &mut BTreeMap<SessionKey, UnderWay>,
        key: SessionKey,
        scope: Scope,
    ) {
        if under_way.contains_key(&key) {
            return;
        }
        let Looked { again, acted } = self.mend(sweep, &key, scope);
        if again {
            under_way.insert(key, UnderWay { scope, is_begun: acted });
        }
    }

    /// Repairs one session, unless this sweep has no repairs left.
    fn mend(&mut self, sweep: &mut Sweep<'_>, key: &SessionKey, scope: Scope) -> Looked {
        let left = sweep.left;
        let again = self.mended(sweep, key, scope);
        Looked { again, acted: sweep.left < left }
    }

    /// As [`Repair::mend`]; returns whether it has to be looked at again.
    fn mended(&mut self, sweep: &mut Sweep<'_>, key: &SessionKey, scope: Scope) -> bool {
        let Sweep { node, view, alive, .. } = *sweep;
        let held = node.store.read(key, |machine| Held::of(machine, view));
        let Some(held) = held else { return false };
        let now = node.clock.now();
        let (me, policy, leaves) = (node.incarnation, &node.store.policy(), node.is_draining());
        let around = Around { me, now, wall: node.clock.wall(), view, alive, policy, leaves };
        let is_dead = |peer| node.store.is_dead(&peer);
        let decided = self.watch.look(key.sid, &held, &around, scope, is_dead);
        if !matches!(decided, Mend::Nothing | Mend::Later | Mend::Rest) {
            match sweep.left.checked_sub(1) {
                Some(fewer) => sweep.left = fewer,
                None => return true,
            }
        }
        match decided {
            Mend::Nothing => return false,
            Mend::Remind => {
                node.store.with(key, false, |machine, ctx, out| machine.remind(ctx, out));
                return false;
            }
            Mend::Reassure => {
                node.store.with(key, false, |machine, ctx, out| machine.reassure(ctx, out));
                return false;
            }
            Mend::Rest => {
                node.store.with(key, false, |machine, _, _| machine.rest());
                return false;
            }
            Mend::Later => {}
            Mend::Ask => {
                node.store.with(key, false, |machine, ctx, out| machine.ask_claimant(ctx.now, out));
            }
            Mend::AskEveryone => {
                let peers = node.whom_to_ask(key);
                node.store.with(key, false, |machine, _, out| machine.locate(&peers, out));
            }
            Mend::Change { gone, newcomer } => {
                node.store.with(key, false, |machine, ctx, out| {
                    machine.change_members_soon(ctx, gone, newcomer, out)
                });
            }
            Mend::LeaveOut(gone) => {
                node.store
                    .with(key, false, |machine, ctx, out| machine.leave_out_soon(ctx, gone, out));
            }
            Mend::TakeOverAgain => {
                let peers = node.whom_to_ask(key);
                node.store.with(key, false, |machine, ctx, out| {
                    machine.take_over_again(ctx, &peers, out);
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
        self.counting_on_this_peer().len()
    }

    fn counting_on_this_peer(&self) -> Vec<SessionKey> {
        let view = self.view();
        let able = countable(&view, self.incarnation);
        let silent = silent_for_a_while(&view, self.clock.now());
        self.store.held(|members| counts_on(members, self.incarnation, &able, &silent))
    }

    /// How many sessions and keys this peer knows to need repair.
    pub(crate) fn short(&self) -> u64 {
        let view = self.view();
        let alive = countable(&view, self.incarnation);
        let copies = self.store.policy().copies;
        let full = full(&view);
        let heard: BTreeSet<Incarnation> = view
            .live_peers()
            .filter(|(_, belief)| belief.alive == Liveness::Alive)
            .map(|(_, belief)| belief.news.incarnation)
            .collect();
        let wall = self.clock.wall();
        self.store.count_where(|machine| {
            let hears = |peer| heard.contains(&peer);
            // What is over is forgotten soon, and repaired no more.
            let lasts = machine.ends().is_none_or(|end| end > wall);
            lasts
                && is_short(machine, self.incarnation, copies, &alive, hears, |peer| {
                    !full.contains(&peer)
                })
        })
    }

    /// Asks about the members of sessions that count this peer as a member, with `most` questions:
    /// this peer may have been replaced while it was cut off, and would count itself as a member
    /// until it hears of that.
    pub(crate) fn ask_for_members(&self, most: usize) {
        let held = self.counting_on_this_peer();
        // The start is random, since there are sessions of which no peer knows more.
        let first = rand::random_range(0..held.len().max(1));
        let mut left = most;
        for key in held.iter().cycle().skip(first).take(held.len()) {
            // All its members may have been replaced since, so any peer may know.
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

//! The lives that replaced others: they know nothing of what those knew until other peers have given it to
//! them.

use alloc::sync::Arc;
use core::time::Duration;

use super::{FORMER_LIVES_MAX, Liveness, PeerBelief, View};
use crate::ids::{Incarnation, Now};

/// How the process ended that another one replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FormerLife {
    /// In good order: others hold what it held.
    Left,
    /// In any other way.
    Ended,
}

impl View {
    /// Notes that a life replaced another. If it is this very peer's life, this peer has forgotten what
    /// others count on, or what they hold.
    pub fn note_former(&mut self, incarnation: Incarnation, former: FormerLife, now: Now) {
        let noted = match former {
            FormerLife::Left if self.reborn.contains_key(&incarnation) => return,
            FormerLife::Left => &mut self.returned,
            FormerLife::Ended => &mut self.reborn,
        };
        if noted.len() < FORMER_LIVES_MAX {
            Arc::make_mut(noted).entry(incarnation).or_insert(now);
        }
    }

    /// The lives that replaced others, until `within` has passed, in which other peers could give them
    /// back what their predecessors held. A peer that fell silent less than `within` before or after the
    /// start of such a life gives nothing back as long as it is silent: the time begins again when it is
    /// heard again. A peer that fell silent earlier had given to others what it held.
    pub fn reborn(&self, now: Now, within: Duration) -> impl Iterator<Item = Incarnation> + '_ {
        let lately =
            move |since: Now| now.since(since) < within || self.is_delayed(since, within, now);
        self.reborn.iter().filter(move |(_, since)| lately(**since)).map(|(life, _)| *life)
    }

    /// The lives that left in good order less than `within` ago, and those that replaced one that had, for
    /// as long as [`View::reborn`] says. A peer that has been silent for `patience` delays nothing any more.
    pub fn returned(
        &self,
        now: Now,
        within: Duration,
        patience: Duration,
    ) -> impl Iterator<Item = Incarnation> + '_ {
        let lately = move |since: Now| {
            now.since(since) < within || self.is_delayed_for(since, within, patience, now)
        };
        let left = move |belief: &&Arc<PeerBelief>| {
            belief.left && !belief.cut_short && now.since(belief.silent_since()) < within
        };
        let away = self.peers.values().filter(left).map(|belief| belief.news.incarnation);
        let back = self.returned.iter().filter(move |(_, since)| lately(**since));
        back.map(|(life, _)| *life).chain(away)
    }

    /// Whether a process that began at `since` waits for a silent peer to give it what it should know: see
    /// [`View::reborn`].
    fn is_delayed(&self, since: Now, within: Duration, now: Now) -> bool {
        self.peers.values().any(|belief| belief.delays_repair(since, within, now))
    }

    /// The same, of peers that have not been silent for `patience` yet.
    pub(crate) fn is_delayed_for(
        &self,
        since: Now,
        within: Duration,
        patience: Duration,
        now: Now,
    ) -> bool {
        self.peers.values().any(|belief| {
            let is_heard = belief.alive == Liveness::Alive;
            let may_return = is_heard || now.since(belief.silent_since()) < patience;
            may_return && belief.delays_repair(since, within, now)
        })
    }
}

impl PeerBelief {
    /// Whether this peer was silent while it should have given others back what they lost at `since`,
    /// and has not been heard for `within` since then.
    fn delays_repair(&self, since: Now, within: Duration, now: Now) -> bool {
        let is_heard = self.alive == Liveness::Alive;
        let last = if is_heard { self.was_silent } else { Some((self.silent_since(), now)) };
        last.filter(|_| !self.left).is_some_and(|(from, until)| {
            let fell_silent_near = from <= since.after(within) && since < from.after(within);
            fell_silent_near && until >= since && now.since(until) < within
        })
    }
}

//! Who succeeds a peer that leaves, and what it waits for: until other peers need none of its copies, as far as they can get on
//! without it at all.

use alloc::collections::BTreeSet;
use core::time::Duration;

use super::may_count_on;
use crate::ids::{AppName, Incarnation, Now, PeerId, SessionId};
use crate::rank;
use crate::view::{AppState, Liveness, PeerBelief, View};

/// How long a peer may have been silent for one that leaves to wait for it.
const SILENT_FOR_A_WHILE: Duration = Duration::from_secs(60);

/// The peers that are silent, and may be heard again: one that was suspended, or cut off.
#[must_use]
pub fn silent_for_a_while(view: &View, now: Now) -> BTreeSet<Incarnation> {
    let silent = |belief: &PeerBelief| {
        belief.alive == Liveness::Suspect
            && !belief.news.draining
            && now.since(belief.heard) < SILENT_FOR_A_WHILE
    };
    let all = view.live_peers().filter(|(_, belief)| silent(belief));
    all.map(|(_, belief)| belief.news.incarnation).collect()
}

/// The next owner of the session after this peer, which leaves: preferably one where its app is
/// ready, then by rank; one that is full only if all are. `None` if no peer is left that could be.
#[must_use]
pub fn heir(sid: SessionId, app: &AppName, view: &View) -> Option<Incarnation> {
    let able = || view.live_peers().filter(|(_, belief)| may_count_on(belief));
    // A peer without room would have to hold more than it may.
    let all_are_full = able().all(|(_, belief)| belief.news.full);
    let able = able().filter(|(_, belief)| all_are_full || !belief.news.full);
    let ranked = rank::session_ranks(&sid, able.map(|(peer, _)| peer));
    let is_ready = |peer: &&PeerId| {
        view.peer(peer)
            .and_then(|belief| belief.apps.get(app))
            .is_some_and(|it| it.news.state == AppState::Ready)
    };
    let best = ranked.iter().find(is_ready).or_else(|| ranked.first())?;
    view.peer(best).map(|belief| belief.news.incarnation)
}

/// Whether a session with these members needs the copy of `me` although one of `able`, from
/// [`countable`](super::countable), could hold it, or could strike it off: a peer that leaves waits until none does. If
/// most of the members are gone nobody can change them, and there is nothing to wait for; if some of them
/// are only `silent`, from [`silent_for_a_while`], their return lets the others do it.
#[must_use]
pub fn counts_on(
    members: &[Incarnation],
    me: Incarnation,
    able: &BTreeSet<Incarnation>,
    silent: &BTreeSet<Incarnation>,
) -> bool {
    let living = members.iter().filter(|peer| **peer == me || able.contains(peer)).count();
    let may_live = living + members.iter().filter(|peer| silent.contains(peer)).count();
    let is_replaced = || able.iter().any(|peer| !members.contains(peer));
    let is_struck_off = || may_live > 1;
    members.contains(&me) && 2 * may_live > members.len() && (is_replaced() || is_struck_off())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{met, owned, peer};
    use super::super::{Around, Held, Mend, Scope, Watch, countable};
    use super::*;
    use crate::config::SessionPolicy;
    use crate::ids::{Ballot, WallTime};

    #[test]
    fn a_peer_that_leaves_takes_over_what_no_other_member_does_and_repairs_nothing_that_it_owns() {
        let mut view = met(&[2, 3, 9]);
        view.suspect(&PeerId::new("p3").unwrap(), Now(50_000));
        let alive = countable(&view, peer(1));
        let policy = SessionPolicy::default();
        let ballot = Ballot { round: 1, proposer: peer(3) };
        let orphan = Held { owns: false, claim: Some(ballot), at: Some(ballot), ..owned(&[2, 3]) };
        let look = |held: &Held, leaves: bool, now: u64| {
            let now = Now(now);
            let around = Around {
                me: peer(1),
                now,
                wall: WallTime(1),
                view: &view,
                alive: &alive,
                policy: &policy,
                leaves,
            };
            Watch::default().look(SessionId([7; 16]), held, &around, Scope::Noted, |_| false)
        };
        let heard = view.by_incarnation(&peer(3)).unwrap().heard.0;
        assert_eq!(look(&orphan, false, heard + 3_000), Mend::Succeed);
        assert_eq!(look(&orphan, true, heard + 3_000), Mend::Later, "the others come first");
        assert_eq!(look(&orphan, true, heard + 6_000), Mend::Succeed);
        assert_ne!(look(&owned(&[2, 3]), false, heard + 9_000), Mend::Nothing);
        assert_eq!(look(&owned(&[2, 3]), true, heard + 9_000), Mend::Nothing);
    }
}

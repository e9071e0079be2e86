//! Which member of a session leaves it although nobody can take its place.
//!
//! Of three members of which one is gone for good, the other two have to agree on every change. If
//! one of these goes as well, the last one may lack what was answered last, and the session is lost
//! although each went alone. Struck off in time, the first leaves two members that both hold
//! everything, and the second leaves one that does.
//!
//! One that leaves is struck off before it has left, while it still votes: otherwise the crash of one of
//! the others would be the second loss, although the third holds everything.
//!
//! Only a proof strikes a member off, or its own word that it leaves: one that is merely silent may
//! be needed again, and a change of members would not wait for it.
//!
//! The exception is a session of which one member leaves while another is silent. Once the leaver is gone,
//! the last member holds everything and can agree with nobody: the silent one would have to come back, and
//! if the leaver's next process comes back first, without a copy, the session would count as lost. So as
//! long as the leaver still votes, which makes the two of them a majority, they leave out both the leaver and
//! the silent member, and the last one goes on alone. This gives up the silent member's copy, but without
//! the leaver that copy could only have been used together with the last member's. It is one change rather
//! than two, so that the leaver is needed for one vote only. A silent member that comes back finds no
//! majority of the members that it knows without a peer that voted for the change and reports it; the
//! owner adds it again.

use core::time::Duration;

use super::{Around, Held, Mend, SILENT_BEFORE_REPAIR, Watch, suffices};
use crate::ids::Incarnation;
use crate::view::Liveness;

/// How long a process that is gone for good remains a member if nobody can take its place: most
/// peers are started again within this time, and then take their own.
pub const STRUCK_AFTER: Duration = Duration::from_secs(10);

impl Watch {
    /// Decides for a session that this peer owns and is a member of, if no other process could
    /// become one. If a majority of the members would not stay, it does not wait: they can only
    /// agree as long as those that leave are there.
    pub(super) fn strike(
        &self,
        held: &Held,
        around: &Around<'_>,
        is_dead: impl Fn(Incarnation) -> bool,
    ) -> Option<Mend> {
        let Around { me, now, alive, .. } = *around;
        let members = &held.members;
        let is_gone = |peer: Incarnation| {
            is_dead(peer) || held.silenced.contains(&peer) || held.without_room.contains(&peer)
        };
        let votes = |peer: Incarnation| !is_gone(peer) && hears(around, peer);
        let has_majority = |set: &[Incarnation], voteless: &[Incarnation]| {
            let counts = |peer: &Incarnation| votes(*peer) && !voteless.contains(peer);
            set.is_empty() || suffices(set, counts, &is_dead)
        };
        if !members.contains(&me)
            || !has_majority(members, &held.voteless)
            || !has_majority(&held.before, &held.voteless_before)
        {
            return None;
        }
        let stays = |peer: &&Incarnation| alive.contains(*peer) && !is_gone(**peer);
        let is_urgent = 2 * members.iter().filter(stays).count() <= members.len();
        let change = |peer| Mend::Change { gone: Some(peer), newcomer: None };
        let leaver = members.iter().copied().find(|peer| around.leaves(*peer) && votes(*peer));
        if let Some(leaver) = leaver {
            if !is_urgent {
                return Some(change(leaver));
            }
            let goes = |peer: &Incarnation| *peer != leaver && !stays(&peer);
            let Some(other) = members.iter().copied().find(goes) else {
                return Some(change(leaver));
            };
            let silent = self.silence(other, held, around, &is_dead);
            let is_due = is_gone(other) || silent >= Some(SILENT_BEFORE_REPAIR);
            return Some(if is_due { Mend::LeaveOut([leaver, other]) } else { Mend::Later });
        }
        if let Some(gone) = members.iter().copied().find(|peer| is_gone(*peer)) {
            let missing = self.missing_since.get(&gone).map(|since| now.since(*since));
            let is_due = is_urgent || missing.is_none_or(|span| span >= STRUCK_AFTER);
            return Some(if is_due { change(gone) } else { Mend::Later });
        }
        None
    }
}

/// Whether this peer hears `peer`, which may be about to leave.
pub(super) fn hears(around: &Around<'_>, peer: Incarnation) -> bool {
    let belief = around.view.by_incarnation(&peer);
    peer == around.me || belief.is_some_and(|it| it.alive == Liveness::Alive)
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;

    use super::super::tests::{met, met_leaving, owned, peer};
    use super::*;
    use crate::config::SessionPolicy;
    use crate::ids::{Now, SessionId, WallTime};
    use crate::session::repair::{Scope, countable};
    use crate::view::View;

    /// The first peer's decisions about a session of it and `others`, at these times in seconds.
    fn looks(view: &View, held: &Held, dead: &[u8], at: &[u64]) -> Vec<Mend> {
        let alive = countable(view, peer(1));
        let policy = SessionPolicy::default();
        let mut watch = Watch::default();
        watch.begin(&alive, BTreeSet::new(), 0);
        let look = |at: &u64| {
            let now = Now(at * 1000);
            let around = Around {
                me: peer(1),
                now,
                wall: WallTime(1),
                view,
                alive: &alive,
                policy: &policy,
                leaves: false,
            };
            let is_dead = |it: Incarnation| dead.iter().any(|number| it == peer(*number));
            watch.look(SessionId([7; 16]), held, &around, Scope::Noted, is_dead)
        };
        at.iter().map(look).collect()
    }

    fn strikes(number: u8) -> Mend {
        Mend::Change { gone: Some(peer(number)), newcomer: None }
    }

    #[test]
    fn one_that_is_gone_for_good_is_struck_off_after_a_while() {
        let view = met(&[2]);
        let planned = looks(&view, &owned(&[2, 3]), &[3], &[60, 69, 70]);
        assert_eq!(planned, [Mend::Later, Mend::Later, strikes(3)]);
        let silent = looks(&view, &owned(&[2, 3]), &[], &[60, 70, 100]);
        assert_eq!(silent, [Mend::Nothing; 3], "it may only be cut off");
        let without_majority = looks(&met(&[]), &owned(&[2, 3]), &[3], &[60, 70]);
        assert_eq!(without_majority, [Mend::Nothing; 2]);
    }

    #[test]
    fn one_that_is_gone_for_good_is_replaced_where_somebody_can_take_its_place() {
        let change = Mend::Change { gone: Some(peer(3)), newcomer: Some(peer(9)) };
        assert_eq!(looks(&met(&[2, 9]), &owned(&[2, 3]), &[3], &[60]), [change]);
    }

    #[test]
    fn one_that_leaves_is_struck_off_only_where_too_few_would_stay() {
        let leaves = |held: &Held, others: &[u8], leaving: &[u8], dead: &[u8]| {
            looks(&met_leaving(others, leaving), held, dead, &[60])[0]
        };
        let both = Mend::LeaveOut([peer(2), peer(3)]);
        assert_eq!(leaves(&owned(&[2]), &[2], &[2], &[]), strikes(2));
        assert_eq!(leaves(&owned(&[2, 3]), &[2, 3], &[2], &[]), strikes(2));
        assert_eq!(leaves(&owned(&[2, 3]), &[2, 3], &[2, 3], &[]), both);
        // The vote of the one that leaves can be had only now.
        assert_eq!(leaves(&owned(&[2, 3]), &[2], &[2], &[3]), both);
    }

    #[test]
    fn one_that_is_silent_is_left_out_with_one_that_leaves() {
        let leaving = met_leaving(&[2], &[2]);
        let both = Mend::LeaveOut([peer(2), peer(3)]);
        let planned = looks(&leaving, &owned(&[2, 3]), &[], &[60, 62, 63]);
        assert_eq!(planned, [Mend::Later, Mend::Later, both]);
        // The vote of the one that leaves is not to be had.
        let voteless = Held { voteless: [peer(2)].into(), ..owned(&[2, 3]) };
        assert_eq!(looks(&leaving, &voteless, &[], &[60, 63]), [Mend::Nothing; 2]);
        let changed = Held { before: [1, 3, 4].map(peer).into(), ..owned(&[2, 3]) };
        assert_eq!(looks(&leaving, &changed, &[], &[60, 63]), [Mend::Nothing; 2]);
        // Another takes the silent one's place.
        let spare = looks(&met_leaving(&[2, 9], &[2]), &owned(&[2, 3]), &[], &[60, 63]);
        let change = |gone| Mend::Change { gone: Some(peer(gone)), newcomer: Some(peer(9)) };
        assert_eq!(spare, [change(2), change(3)]);
    }

    #[test]
    fn one_that_lives_and_never_votes_again_is_replaced_or_struck_off() {
        let fenced = |others: &[u8]| Held { silenced: [peer(3)].into(), ..owned(others) };
        let change = Mend::Change { gone: Some(peer(3)), newcomer: Some(peer(9)) };
        assert_eq!(looks(&met(&[2, 3, 9]), &fenced(&[2, 3]), &[], &[60]), [change]);
        assert_eq!(looks(&met(&[2, 3]), &fenced(&[2, 3]), &[], &[60]), [strikes(3)]);
        assert_eq!(looks(&met(&[2, 3]), &fenced(&[2]), &[], &[60]), [Mend::Nothing]);
        assert_eq!(looks(&met(&[3]), &fenced(&[3]), &[], &[60]), [Mend::Nothing], "no majority");
    }
}

//! Whether a majority has confirmed what reads found: no peer had taken the session over when they
//! arrived.

use arrayvec::ArrayVec;

use super::{Flight, Owner};
use crate::ids::Incarnation;
use crate::session::copy::Replica;
use crate::session::message::MEMBERS_MAX;
use crate::session::mutant::{self, Mutant};

/// The members' answers so far: the same for all reads under way, however many there are.
pub(super) struct Confirmation {
    /// It covers every read: no other peer can know of the session, so none can have taken it over,
    /// or there is no other member to ask.
    all: bool,
    /// With this peer's own copy, a majority has answered this nonce and all before it.
    up_to: Option<u64>,
    members: usize,
    /// This peer is a member, and its own copy has promised no other peer.
    own: bool,
    /// The highest nonce that each of the other members has answered.
    others: ArrayVec<(Incarnation, Option<u64>), MEMBERS_MAX>,
}

impl Confirmation {
    /// `survivor`: the one that is left of two members ([`Session::survivor`]). Only its answer counts
    /// then: the other may have answered before it died, and others go on without it.
    ///
    /// [`Session::survivor`]: crate::session::Session
    pub(super) fn of(
        owner: &Owner,
        copy: &Replica,
        me: Incarnation,
        survivor: Option<Incarnation>,
    ) -> Self {
        let alone = survivor.as_ref().map(core::slice::from_ref);
        let who = alone.unwrap_or(&owner.cfg.now.who);
        let asking = owner.work.asking.as_ref();
        let answered = |peer| asking.and_then(|asking| asking.answered.get(&peer)).copied();
        let others = who.iter().copied().filter(|peer| *peer != me);
        let needs_none = owner.unnamed || mutant::on(Mutant::Unconfirmed);
        let own = who.contains(&me) && copy.check(me, &owner.cfg, owner.b).is_ok();
        let others = others.map(|peer| (peer, answered(peer))).collect();
        Self::by(needs_none, who.len(), own, others)
    }

    /// `needs_none`: no other peer can know of the session, so none can have taken it over.
    fn by(
        needs_none: bool,
        members: usize,
        own: bool,
        others: ArrayVec<(Incarnation, Option<u64>), MEMBERS_MAX>,
    ) -> Self {
        let mut nonces: ArrayVec<u64, MEMBERS_MAX> =
            others.iter().filter_map(|(_, answered)| *answered).collect();
        nonces.sort_unstable_by(|one, other| other.cmp(one));
        // How many of the others are missing for a majority.
        let lacks = members / 2 + 1 - usize::from(own);
        let up_to = lacks.checked_sub(1).and_then(|at| nonces.get(at)).copied();
        Self { all: needs_none || lacks == 0, up_to, members, own, others }
    }

    /// Whether it covers this flight's read.
    pub(super) fn covers(&self, flight: &Flight) -> bool {
        self.covers_read(flight.nonce, flight.confirmed_by)
    }

    /// Whether it covers a read that answers to `nonce` confirm, and that its executor may have
    /// confirmed.
    fn covers_read(&self, nonce: Option<u64>, confirmed_by: Option<Incarnation>) -> bool {
        let reaches = |to: Option<u64>| nonce.zip(to).is_some_and(|(nonce, to)| to >= nonce);
        if self.all || reaches(self.up_to) {
            return true;
        }
        let Some(by) = confirmed_by else { return false };
        let confirms =
            |(peer, answered): &&(Incarnation, Option<u64>)| by == *peer || reaches(*answered);
        let confirmed = usize::from(self.own) + self.others.iter().filter(confirms).count();
        2 * confirmed > self.members
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn a_read_is_covered_exactly_when_a_majority_has_confirmed_it() {
        let peers: Vec<_> = (1..=MEMBERS_MAX as u8).map(|at| Incarnation([at; 16])).collect();
        let nonces = [None, Some(0), Some(1), Some(2)];
        let mut covered = [0, 0];
        for members in 1..=MEMBERS_MAX {
            for case in 0..2 * 4_usize.pow(members as u32) {
                // This peer may no longer be a member.
                let is_member = case % 2 == 0;
                let others = members - usize::from(is_member);
                let answers = (0..others).map(|at| nonces[case / 2 / 4_usize.pow(at as u32) % 4]);
                let answers: ArrayVec<_, MEMBERS_MAX> =
                    peers.iter().copied().zip(answers).collect();
                for own in [false, is_member] {
                    let it = Confirmation::by(false, members, own, answers.clone());
                    for nonce in nonces {
                        for by in [None, Some(peers[0]), Some(peers[2]), Some(Incarnation([9; 16]))]
                        {
                            let confirms = |(peer, answer): &&(Incarnation, Option<u64>)| {
                                by == Some(*peer) || nonce.is_some() && *answer >= nonce
                            };
                            let count = usize::from(own) + answers.iter().filter(confirms).count();
                            let is_covered = 2 * count > members;
                            assert_eq!(
                                it.covers_read(nonce, by),
                                is_covered,
                                "{members} {own} {answers:?} {nonce:?} {by:?}"
                            );
                            covered[usize::from(is_covered)] += 1;
                        }
                    }
                }
            }
        }
        assert!(covered.iter().all(|count| *count > 100), "{covered:?}");
        assert!(Confirmation::by(true, 3, false, ArrayVec::new()).covers_read(None, None));
    }
}

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
    /// No other peer can know of the session, so none can have taken it over.
    needs_none: bool,
    members: usize,
    /// This peer is a member, and its own copy has promised no other peer.
    own: bool,
    /// The highest nonce that each of the other members has answered.
    others: ArrayVec<(Incarnation, Option<u64>), MEMBERS_MAX>,
}

impl Confirmation {
    pub(super) fn of(owner: &Owner, copy: &Replica, me: Incarnation) -> Self {
        let who = &owner.cfg.now.who;
        let asking = owner.work.asking.as_ref();
        let answered = |peer| asking.and_then(|asking| asking.answered.get(&peer)).copied();
        let others = who.iter().copied().filter(|peer| *peer != me);
        Self {
            needs_none: owner.unnamed || mutant::on(Mutant::Unconfirmed),
            members: who.len(),
            own: who.contains(&me) && copy.check(me, &owner.cfg, owner.b).is_ok(),
            others: others.map(|peer| (peer, answered(peer))).collect(),
        }
    }

    /// Whether it covers this flight's read.
    pub(super) fn covers(&self, flight: &Flight) -> bool {
        let confirms = |(peer, answered): &&(Incarnation, Option<u64>)| {
            flight.confirmed_by == Some(*peer)
                || flight.nonce.is_some_and(|nonce| answered.is_some_and(|it| it >= nonce))
        };
        let confirmed = usize::from(self.own) + self.others.iter().filter(confirms).count();
        self.needs_none || 2 * confirmed > self.members
    }
}

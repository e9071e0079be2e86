//! Peers that have no room for copies. A member that refused the newest record is as good as gone for the
//! session: a change that needs its vote is not committed, and if another member goes, what the two that
//! held everything agreed on is held by one that can agree with nobody. So it is replaced or struck off
//! while the others are a majority without it. A peer that is full is not made a member.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::struck::hears;
use super::{Around, Held};
use crate::ids::{Incarnation, Now};
use crate::session::Session;
use crate::session::message::{Config, MEMBERS_MAX};
use crate::session::owner::Refused;
use crate::view::View;

/// How often a member that does not call itself full refuses a record until it counts as without room for
/// it: one large record may be too much for a peer that has some room.
const REFUSED_TIMES: u32 = 3;

/// The living peers that are full, by their own word.
#[must_use]
pub fn full(view: &View) -> BTreeSet<Incarnation> {
    let full = view.live_peers().filter(|(_, belief)| belief.news.full);
    full.map(|(_, belief)| belief.news.incarnation).collect()
}

/// Whether `peer` is full, by its own word.
pub(super) fn lacks(view: &View, peer: Incarnation) -> bool {
    view.by_incarnation(&peer).is_some_and(|belief| belief.news.full)
}

/// The members of a session that this peer owns, before and after a change that is under way, which have no
/// room for its newest record, and do not hold it.
pub(super) fn without(machine: &Session, view: &View) -> Vec<Incarnation> {
    let members = machine.config().map(Config::everyone).unwrap_or_default();
    let counts = |it: &Refused| {
        let is_sure = it.times >= REFUSED_TIMES || lacks(view, it.by);
        is_sure && members.contains(&it.by)
    };
    machine.refusals().filter(counts).map(|it| it.by).collect()
}

/// The other peers that refused that record, and until when none is made a member.
pub(super) fn refused(machine: &Session) -> Vec<(Incarnation, Now)> {
    let others = machine.refusals().filter(|it| !machine.members().contains(&it.by));
    others.map(|it| (it.by, it.until)).collect()
}

/// Whether its owner can have nothing chosen, since members have no room and others are gone for good: see
/// `Session::room`. The members that are left have to be heard.
pub(super) fn is_stuck(
    held: &Held,
    around: &Around<'_>,
    is_dead: impl Fn(Incarnation) -> bool,
) -> bool {
    let is_stuck_in = |set: &[Incarnation]| {
        let has_room = |peer: &&Incarnation| !is_dead(**peer) && !held.without_room.contains(*peer);
        2 * set.iter().filter(has_room).count() <= set.len()
    };
    let mut everyone = held.members.iter().chain(&held.before);
    let is_one_gone = everyone.clone().any(|peer| is_dead(*peer));
    is_one_gone
        && !held.without_room.is_empty()
        && (is_stuck_in(&held.members) || !held.before.is_empty() && is_stuck_in(&held.before))
        && everyone.all(|peer| is_dead(*peer) || hears(around, *peer))
}

/// Whether a session of which this peer knows a record needs repair: for its owner, if too few
/// members are `alive`, from [`countable`](super::countable); for a member, if it does not `hears` an owner. A
/// session without a majority does not count: no repair brings that back. Nor does a peer that does not
/// `has_room` for a copy.
#[must_use]
pub fn is_short(
    machine: &Session,
    me: Incarnation,
    copies: usize,
    alive: &BTreeSet<Incarnation>,
    hears: impl Fn(Incarnation) -> bool,
    has_room: impl Fn(Incarnation) -> bool,
) -> bool {
    let deciders = machine.deciders(|peer| peer == me || hears(peer));
    let voting = deciders.iter().filter(|(_, votes)| *votes).count();
    if machine.version() == 0 || 2 * voting <= deciders.len() {
        return false;
    }
    if machine.is_owner() {
        let can_hold = |peer: &Incarnation| machine.members().contains(peer) || has_room(*peer);
        let able = alive.iter().filter(|it| !machine.is_gone_for_good(**it) && can_hold(it));
        let able = able.count();
        let wanted = copies.clamp(1, MEMBERS_MAX).min(able);
        return machine.members().iter().filter(|peer| alive.contains(peer)).count() < wanted;
    }
    let owner = machine.highest_claim().map(|claim| claim.proposer);
    machine.holds_copy() && deciders.contains(&(me, true)) && !owner.is_some_and(hears)
}

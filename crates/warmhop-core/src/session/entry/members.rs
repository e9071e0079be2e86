//! The members of a new session.

use alloc::vec::Vec;

use super::Here;
use crate::config::{SessionPolicy, WithoutMajority};
use crate::ids::{Incarnation, PeerId, SessionId};
use crate::rank;
use crate::session::message::{Config, MEMBERS_MAX, Members};
use crate::session::repair::{by_rank, may_count_on};
use crate::view::Liveness;

/// How many members a session begins with, full ones included, if so many peers are there: what is answered
/// is on two.
const TWO_AT_LEAST: usize = 2;

/// The first configuration of a session: this peer, which owns it; the executor of its first
/// request, whose vote comes back with the response; and up to `copies` others by their rank for
/// the session, so that any peer can find it without a token. Of the others, those that are alive
/// and stay come first. A full one is a member only if there would be no other than this peer. If these are too few, silent peers that may be alive fill the places, as
/// far as the others are a majority without them: of two members, neither can commit without the
/// other, while a silent third may be one that a cut link hides from this peer alone.
#[must_use]
pub fn first_members(
    sid: SessionId,
    executor: Option<Incarnation>,
    copies: usize,
    here: &Here<'_>,
) -> Config {
    let mut who: Vec<Incarnation> = core::iter::once(here.me).chain(executor).collect();
    who.dedup();
    let copies = copies.clamp(1, MEMBERS_MAX);
    let able = |is_full: bool| {
        by_rank(sid, here.view, |belief| {
            may_count_on(belief)
                && belief.news.full == is_full
                && !who.contains(&belief.news.incarnation)
        })
    };
    let (with_room, full) = (able(false), able(true));
    who.extend(with_room.into_iter().take(copies.saturating_sub(who.len())));
    who.extend(full.into_iter().take(TWO_AT_LEAST.min(copies).saturating_sub(who.len())));
    let silent = by_rank(sid, here.view, |belief| {
        belief.alive == Liveness::Suspect
            && !belief.news.draining
            && !who.contains(&belief.news.incarnation)
    });
    let spared = copies.saturating_sub(who.len()).min(who.len().saturating_sub(1));
    who.extend(silent.into_iter().take(spared));
    Config { now: Members::first(here.wall.0, who), prev: None }
}

/// The members of a session that this peer begins for a client: [`first_members`], unless that is this
/// peer alone although it has met a mesh of three or more, and the policy refuses to go on without a
/// majority. Then the peers that it does not hear are members as well, dead or not, unless they left in
/// good order: no change is acknowledged that this peer alone would hold. Requests that only read the
/// session are served.
#[must_use]
pub fn members_to_begin(
    sid: SessionId,
    executor: Option<Incarnation>,
    policy: &SessionPolicy,
    here: &Here<'_>,
) -> Config {
    let first = first_members(sid, executor, policy.copies, here);
    let may_be_alone = policy.without_majority == WithoutMajority::Serve || here.view.is_pair();
    if may_be_alone || first.now.who.len() > 1 || policy.copies <= 1 {
        return first;
    }
    let silent = here.view.peers().filter(|(_, belief)| {
        belief.alive != Liveness::Alive && !belief.left && !belief.news.draining
    });
    let silent = rank::session_ranks(&sid, silent.map(|(peer, _)| peer));
    let silent = silent.iter().filter_map(|peer| here.view.peer(peer));
    let who = core::iter::once(here.me).chain(silent.map(|belief| belief.news.incarnation));
    let who: Vec<Incarnation> = who.take(policy.copies.clamp(1, MEMBERS_MAX)).collect();
    Config { now: Members::first(here.wall.0, who), prev: None }
}

/// The first configuration of a session that a key names: the peers that rank highest for it,
/// whichever peer asks. Those that are alive and stay come first, and others fill the remaining
/// places: with a silent one among three, a majority is possible on either side of a cut link,
/// where two could only serve together. In a pair the one that is left begins alone. An owner that
/// is not among them joins them later.
#[must_use]
pub fn members_by_key(sid: SessionId, copies: usize, me: &PeerId, here: &Here<'_>) -> Config {
    let pair = here.view.is_pair();
    let able = |is_full: bool| {
        let able = here.view.live_peers().filter(move |(_, it)| may_count_on(it));
        able.filter(move |(_, it)| it.news.full == is_full).map(|(peer, _)| peer)
    };
    let with_room: Vec<&PeerId> = able(false).chain((!here.draining).then_some(me)).collect();
    let full_max = TWO_AT_LEAST.saturating_sub(with_room.len());
    let full = rank::session_ranks(&sid, able(true));
    let others = here.view.peers().filter(|(_, belief)| {
        !pair && !belief.left && !belief.news.draining && !may_count_on(belief)
    });
    let with_room = rank::session_ranks(&sid, with_room);
    let others = rank::session_ranks(&sid, others.map(|(peer, _)| peer));
    let incarnation = |peer: &PeerId| {
        if peer == me {
            return Some(here.me);
        }
        here.view.peer(peer).map(|belief| belief.news.incarnation)
    };
    let who: Vec<Incarnation> = with_room
        .iter()
        .chain(full.iter().take(full_max))
        .chain(&others)
        .filter_map(incarnation)
        .take(copies.clamp(1, MEMBERS_MAX))
        .collect();
    // A peer that leaves and knows no other is better than none.
    let who = if who.is_empty() { alloc::vec![here.me] } else { who };
    Config { now: Members::first(here.wall.0, who), prev: None }
}

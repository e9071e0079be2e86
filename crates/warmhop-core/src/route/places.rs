//! The places of copies that serve so many requests at once: who has one, and who waits where.
//!
//! A request waits at its entry peer. Once it has had its turn there, a peer without a free place lets
//! it wait among its own, for a while: the places of a copy go to all clients in turn, whichever peers
//! they came by. Of each client and session one request needs no turn for that: it would wait for
//! others that wait there already, and there its client has its turn.

use core::time::Duration;

use super::{
    Action, Candidate, Decision, FULL_FOR, Question, Queued, Reason, Refusal, Standing, may_try,
    standing_of,
};
use crate::config::{AppPolicy, SessionMode};
use crate::ids::PeerId;
use crate::view::AppState;

/// How long a hop that has had its turn waits for a place at the copy where it arrived. Its entry peer
/// then looks for one anew: its own copy may be ready by then, or another less busy.
pub const TURN_WITHIN: Duration = Duration::from_secs(1);

/// Whether there is no place here for the request.
pub(super) fn is_full_here(q: &Question<'_>) -> bool {
    q.local.shut || q.queued.not_here || has_no_place_here(q)
}

fn has_no_place_here(q: &Question<'_>) -> bool {
    q.app.concurrency.is_some_and(|places| q.local.in_flight >= places)
}

/// Whether the candidate has no place for the request.
pub(super) fn is_full(q: &Question<'_>, c: &Candidate<'_>) -> bool {
    c.shut || has_no_place(q, c)
}

/// Whether the candidate has no free place: this peer's requests take all of them, or it had none
/// by its latest news, a moment ago.
fn has_no_place(q: &Question<'_>, c: &Candidate<'_>) -> bool {
    let is_news = c.load_age.is_some_and(|age| age <= FULL_FOR);
    q.app.concurrency.is_some_and(|places| c.ours >= places || (is_news && c.in_flight >= places))
}

pub(super) fn is_full_there(q: &Question<'_>, peer: &PeerId) -> bool {
    q.candidates.iter().any(|c| c.peer == peer && is_full(q, c))
}

/// Whether all free places are barred to the request, because its client has used its share of those
/// copies: other clients get them.
#[must_use]
pub fn is_held_back(q: &Question<'_>) -> bool {
    let pin = q.affinity.filter(|pin| q.app.session == SessionMode::Pinned && pin.lives);
    let here = q.local.state == AppState::Ready && !q.draining && pin.is_none_or(|pin| pin.here);
    let there = || {
        let asked = |c: &&Candidate<'_>| pin.is_none_or(|pin| pin.peer == c.peer);
        q.candidates.iter().filter(|c| c.state == AppState::Ready).filter(asked)
    };
    let shut_here = here && q.local.shut && !has_no_place_here(q);
    let is_shut = shut_here || there().any(|c| c.shut && !has_no_place(q, c));
    let open_there = || there().any(|c| may_try(q, c.peer) && !is_full(q, c));
    let open_here = here && !q.local.shut && !has_no_place_here(q);
    is_shut && !open_here && !open_there()
}

/// Whether a free place belongs to another request, which waits for it.
pub(super) fn is_behind(q: &Question<'_>) -> bool {
    q.app.concurrency.is_some() && (q.queued.behind || q.queued.gave_way)
}

/// Every copy that could be asked is full.
pub(super) fn wait_for_place(q: &Question<'_>) -> Decision {
    let places = u64::from(q.app.concurrency.unwrap_or(1).max(1));
    let before = u64::try_from(q.local.waiting).unwrap_or(u64::MAX).saturating_add(1);
    let us = u64::from(q.local.latency_us).saturating_mul(before).div_ceil(places);
    let retry_after = Duration::from_micros(us);
    let reason = if q.waited >= q.app.max_wait {
        let (max_wait, held_back) = (q.app.max_wait, is_held_back(q));
        Reason::Refused(Refusal::BusyTooLong { max_wait, retry_after, held_back })
    } else if q.queued.gave_way || (q.local.waiting >= q.app.waiting_max && !q.queued.displaces) {
        Reason::Refused(Refusal::QueueFull { waiting_max: q.app.waiting_max, retry_after })
    } else {
        Reason::BusyEverywhere
    };
    let action = match &reason {
        Reason::Refused(refusal) => Action::Refuse(refusal.clone()),
        _ => Action::Wait { at_most: q.app.max_wait.saturating_sub(q.waited) },
    };
    Decision { action, reason, start_here: false, ask_to_start: None, pin_lost: None }
}

/// Where the request waits for a place among those of another peer: at the least busy of the copies
/// of which nothing but their being full is known.
pub(super) fn turn_there(
    q: &Question<'_>,
    asked: impl Fn(&Candidate<'_>) -> bool,
) -> Option<(PeerId, Reason)> {
    let places = q.app.concurrency.filter(|_| !q.queued.gave_way)?;
    let has_turn = q.queued.has_turn && !is_behind(q);
    let may_wait = |c: &&Candidate<'_>| {
        // This peer's own requests make room for each other.
        let has_room = c.is_first || (has_turn && c.ours < places);
        let takes_more = c.state == AppState::Ready && !c.shut && has_room;
        takes_more && standing_of(c) <= Standing::OtherZone && may_try(q, c.peer) && asked(c)
    };
    let least = |c: &&Candidate<'_>| (c.in_flight, standing_of(c), c.latency_us);
    let c = q.candidates.iter().filter(may_wait).min_by_key(least)?;
    let reason = Reason::TurnThere { peer: c.peer.clone(), in_flight: c.in_flight };
    Some((c.peer.clone(), reason))
}

/// A hop that may wait for a place where it arrived.
#[derive(Debug, Clone, Copy)]
pub struct AtDoor<'a> {
    /// The app's rules here.
    pub app: &'a AppPolicy,
    /// The state of the copy here.
    pub state: AppState,
    /// This peer is about to leave, or no longer has the app.
    pub leaving: bool,
    /// Requests that the copy is serving.
    pub in_flight: u32,
    /// The request's client has used its share of the places.
    pub shut: bool,
    /// *Other* requests that wait here for the app.
    pub waiting: usize,
    /// Its place among them.
    pub queued: Queued,
    /// How long it has waited here.
    pub waited: Duration,
    /// How long its entry peer lets it wait.
    pub at_most: Duration,
}

/// What a hop does that may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// There is a place for it.
    Enter,
    /// It waits for one.
    Wait {
        /// How much longer it may.
        at_most: Duration,
    },
    /// It gets none here: its entry peer looks elsewhere, or sends it again.
    Busy,
    /// Nor would a place help it.
    NotReady,
}

/// Decides about a hop that has had its turn at its entry peer. A peer that leaves keeps nobody waiting.
#[must_use]
pub fn at_door(door: &AtDoor<'_>) -> Turn {
    if door.state != AppState::Ready {
        return Turn::NotReady;
    }
    let Queued { behind, gave_way, displaces, not_here, .. } = door.queued;
    let is_full = door.app.concurrency.is_some_and(|places| door.in_flight >= places);
    if !is_full && !door.shut && !behind && !gave_way && !not_here {
        return Turn::Enter;
    }
    let left = door.at_most.min(TURN_WITHIN).saturating_sub(door.waited);
    let no_room = gave_way || (door.waiting >= door.app.waiting_max && !displaces);
    if no_room || door.leaving || left.is_zero() {
        Turn::Busy
    } else {
        Turn::Wait { at_most: left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(app: &AppPolicy) -> AtDoor<'_> {
        AtDoor {
            app,
            state: AppState::Ready,
            leaving: false,
            in_flight: 1,
            shut: false,
            waiting: 0,
            queued: Queued::default(),
            waited: Duration::ZERO,
            at_most: Duration::from_secs(9),
        }
    }

    #[test]
    fn a_hop_that_has_had_its_turn_waits_for_a_place_within_bounds() {
        let app = AppPolicy::default().with(|app| {
            (app.concurrency, app.waiting_max) = (Some(1), 3);
        });
        let full = door(&app);
        assert_eq!(at_door(&full), Turn::Wait { at_most: TURN_WITHIN });
        assert_eq!(at_door(&AtDoor { in_flight: 0, ..full }), Turn::Enter);
        let short = AtDoor { at_most: Duration::from_millis(10), ..full };
        assert_eq!(at_door(&short), Turn::Wait { at_most: Duration::from_millis(10) });
        let waits = Turn::Wait { at_most: TURN_WITHIN };
        for (queued, free) in [
            (Queued { behind: true, ..Queued::default() }, waits),
            (Queued { not_here: true, ..Queued::default() }, waits),
            (Queued { gave_way: true, ..Queued::default() }, Turn::Busy),
        ] {
            assert_eq!(at_door(&AtDoor { queued, in_flight: 0, ..full }), free, "{queued:?}");
        }
        assert_eq!(at_door(&AtDoor { shut: true, in_flight: 0, ..full }), waits);
        assert_eq!(at_door(&AtDoor { waited: TURN_WITHIN, ..full }), Turn::Busy);
        assert_eq!(at_door(&AtDoor { leaving: true, ..full }), Turn::Busy);
        assert_eq!(at_door(&AtDoor { leaving: true, in_flight: 0, ..full }), Turn::Enter);
        assert_eq!(at_door(&AtDoor { state: AppState::Starting, ..full }), Turn::NotReady);
        let crowded = AtDoor { waiting: 3, ..full };
        assert_eq!(at_door(&crowded), Turn::Busy);
        let queued = Queued { displaces: true, ..Queued::default() };
        assert_eq!(at_door(&AtDoor { queued, ..crowded }), waits);
    }
}

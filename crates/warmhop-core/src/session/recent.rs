//! The requests that a session remembers: looked up before one runs, and stored with its change.
//!
//! Both kinds of requests, keyed and unkeyed, have their own bound, so that a stream of unkeyed
//! ones cannot push out the answers that a client may still repeat. A request that is dropped
//! raises a *floor*: a repeat that may have been applied below it cannot be distinguished from a
//! first attempt, and is refused rather than applied twice (I6).

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::begun::begin_of;
use super::message::{Body, Exec, Recent, Stored};
use super::mutant::{self, Mutant};
use crate::config::SessionPolicy;
use crate::ids::{RequestKey, WallTime};

/// What the chosen body knows about a request that is about to run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known<'a> {
    /// It was applied, and this was its answer.
    Applied(&'a Stored),
    /// Another request was applied under the same key.
    Differs,
    /// It is not remembered; with a `seen` it is certain that it was not applied.
    No,
    /// It is not remembered, but some of the requests applied since it first arrived have been
    /// forgotten: it may have been among them.
    BelowFloor,
}

/// Looks a request up. `seen` is the number that the client's token named when the request first
/// arrived: if it was applied, then at a higher one.
pub(super) fn look_up(
    body: &Body,
    rid: RequestKey,
    fingerprint: u64,
    keyed: bool,
    seen: Option<u64>,
) -> Known<'_> {
    let begin = begin_of(rid);
    // A peer that is to begin a run gets its answer.
    let is_answer = |entry: &Recent| !matches!(entry.response, Stored::Begun(_));
    let mut entries = body.recent.iter();
    if let Some(entry) =
        entries.find(|it| it.rid == rid || it.rid == begin && it.keyed && is_answer(it))
    {
        if entry.fingerprint == fingerprint {
            return Known::Applied(&entry.response);
        }
        return Known::Differs;
    }
    let floor = if keyed { body.floor_keyed } else { body.floor_unkeyed };
    match seen {
        // The lowest number it can have been applied at is `seen + 1`.
        Some(seen) if seen.saturating_add(1) < floor && !mutant::on(Mutant::NoFloor) => {
            Known::BelowFloor
        }
        _ => Known::No,
    }
}

/// The highest number of the changes in `body` but the newest one. That one may be no more than
/// proposed, but it was made on a base that was chosen, which held the others or had dropped them.
pub(super) fn chosen_before(body: &Body) -> u64 {
    let dropped = [body.floor_keyed, body.floor_unkeyed].map(|floor| floor.saturating_sub(1));
    let (mut newest, mut before) = (0, 0);
    for n in body.recent.iter().map(|entry| entry.n).chain(dropped) {
        if n > newest {
            (newest, before) = (n, newest);
        } else if n < newest {
            before = before.max(n);
        }
    }
    before
}

/// The body that results from `exec` on `base`. `change` is the app's change of the state, if any.
/// `n` is the number that the change will have. The session expires at `until`, or else at the
/// order's expiry or its present one, whichever is later.
pub(super) fn compose(
    base: &Body,
    exec: &Exec,
    n: u64,
    change: Option<Option<Arc<[u8]>>>,
    stored: Stored,
    until: Option<WallTime>,
    policy: &SessionPolicy,
) -> Body {
    let response = match stored {
        _ if !exec.keyed => Stored::Applied,
        Stored::Response(bytes) if bytes.len() > policy.stored_response_bytes_max => {
            Stored::TooLarge
        }
        other => other,
    };
    // Exactly as long as needed: a session keeps it for its whole life.
    let mut recent = Vec::with_capacity(base.recent.len() + 1);
    let begin = begin_of(exec.rid);
    let is_over = |it: &Recent| it.rid == begin && matches!(it.response, Stored::Begun(_));
    recent.extend(base.recent.iter().filter(|it| !is_over(it)).cloned());
    let mut body = Body {
        state: change.unwrap_or_else(|| base.state.clone()),
        recent,
        floor_keyed: base.floor_keyed,
        floor_unkeyed: base.floor_unkeyed,
        expiry: until.unwrap_or(base.expiry.max(exec.expiry)),
        ended: base.ended.clone(),
    };
    body.recent.push(Recent {
        rid: exec.rid,
        fingerprint: exec.fingerprint,
        keyed: exec.keyed,
        n,
        response,
    });
    evict(&mut body, true, policy.recent_keyed_max);
    drop_responses(&mut body, policy.stored_responses_max);
    evict(&mut body, false, policy.recent_unkeyed_max);
    body
}

/// The body that remains of one whose time is over. Its requests stay: forgetting them would raise the
/// floor, and a peer that has not seen the latest ones could then ask for a request below it.
pub(super) fn over(base: &Body) -> Body {
    Body { state: None, ..base.clone() }
}

/// Gives the entry of `rid` the number at which it is proposed: a request that ran without a
/// reserved position was stored without one.
pub(super) fn renumber(body: &mut Arc<Body>, rid: RequestKey, keyed: bool, n: u64) {
    let body = Arc::make_mut(body);
    if let Some(entry) = body.recent.iter_mut().find(|entry| entry.rid == rid) {
        entry.n = n;
    } else if keyed {
        body.floor_keyed = body.floor_keyed.max(n.saturating_add(1));
    } else {
        body.floor_unkeyed = body.floor_unkeyed.max(n.saturating_add(1));
    }
}

/// Keeps the responses of the latest `max` requests. Of the others only the fact that they were applied
/// is kept, as of requests whose response is too large.
fn drop_responses(body: &mut Body, max: usize) {
    let with_response = |it: &&mut Recent| matches!(it.response, Stored::Response(_));
    for entry in body.recent.iter_mut().rev().filter(with_response).skip(max) {
        entry.response = Stored::TooLarge;
    }
}

fn evict(body: &mut Body, keyed: bool, max: usize) {
    let count = body.recent.iter().filter(|entry| entry.keyed == keyed).count();
    let mut excess = count.saturating_sub(max);
    let mut floor = 0;
    body.recent.retain(|entry| {
        if excess == 0 || entry.keyed != keyed {
            return true;
        }
        excess -= 1;
        floor = floor.max(entry.n.saturating_add(1));
        false
    });
    let kept = if keyed { &mut body.floor_keyed } else { &mut body.floor_unkeyed };
    *kept = floor.max(*kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::ids::{Ballot, Incarnation, Position, WallTime};
    use crate::session::message::{Base, Config, Members};

    fn exec(rid: u8, keyed: bool) -> Exec {
        let me = Incarnation([1; 16]);
        Exec {
            p: Some(Position { ballot: Ballot { round: 1, proposer: me }, n: 1 }),
            cfg: Arc::new(Config { now: Members::first(1, [me]), prev: None }),
            base: Base::Inline(None),
            vote: false,
            rid: RequestKey([rid; 16]),
            fingerprint: u64::from(rid),
            keyed,
            expiry: WallTime(9),
        }
    }

    fn policy(keyed: usize, unkeyed: usize) -> SessionPolicy {
        SessionPolicy {
            recent_keyed_max: keyed,
            recent_unkeyed_max: unkeyed,
            stored_response_bytes_max: 4,
            ..SessionPolicy::default()
        }
    }

    fn apply(body: &Body, rid: u8, keyed: bool, n: u64, policy: &SessionPolicy) -> Body {
        let stored = Stored::Response(Arc::from([rid].as_slice()));
        compose(body, &exec(rid, keyed), n, Some(None), stored, None, policy)
    }

    #[test]
    fn unkeyed_requests_never_push_out_the_answers_of_keyed_ones() {
        let policy = policy(2, 1);
        let mut body = apply(&Body::default(), 1, true, 1, &policy);
        for n in 2..20 {
            body = apply(&body, 100 + u8::try_from(n).unwrap(), false, n, &policy);
        }
        assert_eq!(body.recent.len(), 2);
        let known = look_up(&body, RequestKey([1; 16]), 1, true, Some(0));
        assert_eq!(known, Known::Applied(&Stored::Response(Arc::from([1].as_slice()))));
        assert_eq!(body.floor_keyed, 0);
        assert_eq!(body.floor_unkeyed, 19);
    }

    #[test]
    fn a_repeat_that_may_have_been_forgotten_is_below_the_floor_and_no_other_is() {
        let policy = policy(2, 2);
        let mut body = Body::default();
        for n in 1..=4 {
            body = apply(&body, u8::try_from(n).unwrap(), true, n, &policy);
        }
        // Numbers 1 and 2 were dropped; 3 and 4 are remembered.
        let look = |seen| look_up(&body, RequestKey([77; 16]), 1, true, seen);
        assert_eq!(look(Some(0)), Known::BelowFloor);
        assert_eq!(look(Some(1)), Known::BelowFloor);
        assert_eq!(look(Some(2)), Known::No);
        assert_eq!(look(None), Known::No);
        assert_eq!(look_up(&body, RequestKey([77; 16]), 1, false, Some(0)), Known::No);
    }

    #[test]
    fn a_repeat_whose_response_made_room_for_later_ones_is_not_applied_again() {
        let policy = SessionPolicy { stored_responses_max: 2, ..policy(10, 1) };
        let mut body = Body::default();
        for n in 1..=4 {
            body = apply(&body, u8::try_from(n).unwrap(), true, n, &policy);
        }
        // Its client has seen everything, so no floor covers it.
        let look = |rid: u8| look_up(&body, RequestKey([rid; 16]), u64::from(rid), true, Some(4));
        assert_eq!(look(2), Known::Applied(&Stored::TooLarge));
        assert_eq!(look(3), Known::Applied(&Stored::Response(Arc::from([3].as_slice()))));
        assert_eq!((body.recent.len(), body.floor_keyed), (4, 0));
        let other = look_up(&body, RequestKey([1; 16]), 2, true, Some(4));
        assert_eq!(other, Known::Differs, "another request under the same key");
    }

    #[test]
    fn a_deleted_or_expired_session_accepts_requests_with_older_tokens() {
        let policy = policy(2, 4);
        let mut body = Body::default();
        for n in 1..=3 {
            body = apply(&body, u8::try_from(n).unwrap(), false, n, &policy);
        }
        let (end, stored) = (Some(WallTime(5)), Stored::Applied);
        let deleted = compose(&body, &exec(4, false), 4, Some(None), stored, end, &policy);
        for body in [over(&body), deleted] {
            assert_eq!(body.state, None);
            let known = look_up(&body, RequestKey([77; 16]), 77, false, Some(0));
            assert_eq!(known, Known::No);
        }
    }

    #[test]
    fn a_key_used_for_another_request_is_recognized() {
        let body = apply(&Body::default(), 1, true, 1, &policy(2, 2));
        assert_eq!(look_up(&body, RequestKey([1; 16]), 2, true, None), Known::Differs);
    }

    #[test]
    fn an_answer_beyond_the_bound_is_stored_as_too_large_and_an_unkeyed_one_not_at_all() {
        let long = Stored::Response(Arc::from([0; 5].as_slice()));
        let policy = policy(2, 2);
        let at = |keyed| {
            compose(&Body::default(), &exec(1, keyed), 1, None, long.clone(), None, &policy).recent
                [0]
            .response
            .clone()
        };
        assert_eq!(at(true), Stored::TooLarge);
        assert_eq!(at(false), Stored::Applied);
    }

    #[test]
    fn a_session_ends_by_two_clocks_and_is_renewed_by_one() {
        let ttl = core::time::Duration::from_millis(100);
        let body = Body { expiry: WallTime(1_000), ..Body::default() };
        // The owner's clock shows `owner`, the executor's `wall`.
        let at = |owner: u64| Exec { expiry: WallTime(owner + 100), ..exec(1, false) };
        assert!(body.is_over(&at(1_001), WallTime(1_001), ttl));
        assert!(!body.is_over(&at(1_000), WallTime(1_000), ttl));
        assert!(!body.is_over(&at(900), WallTime(5_000), ttl), "the executor's runs ahead");
        assert!(!body.is_over(&at(5_000), WallTime(900), ttl), "the owner's runs ahead");
        assert!(!Body::default().is_over(&at(5_000), WallTime(5_000), ttl), "it never began");
        assert!(body.is_half_over(&at(951), ttl) && !body.is_half_over(&at(950), ttl));
    }

    #[test]
    fn all_changes_but_the_newest_were_chosen_whether_they_are_remembered_or_not() {
        for kept in [0, 1, 2, 5] {
            let policy = policy(kept, kept);
            let mut body = Body::default();
            let mut before = 0;
            for n in [3, 4, 8] {
                body = apply(&body, u8::try_from(n).unwrap(), n % 2 == 0, n, &policy);
                assert!(chosen_before(&body) <= before, "{n} may not be chosen: {body:?}");
                before = n;
            }
            // The number dropped for want of room is known by its floor.
            let known = [0, 3, 4, 4][[0, 1, 2, 5].iter().position(|it| *it == kept).unwrap()];
            assert!(chosen_before(&body) >= known, "{kept}: {body:?}");
        }
    }

    #[test]
    fn with_nothing_remembered_every_request_raises_its_floor() {
        let policy = policy(0, 0);
        let mut body = Arc::new(apply(&Body::default(), 1, false, 0, &policy));
        renumber(&mut body, RequestKey([1; 16]), false, 7);
        assert_eq!((body.recent.len(), body.floor_unkeyed), (0, 8));
    }
}

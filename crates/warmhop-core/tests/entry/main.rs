//! The entry peer's rules, one by one: what is given, what is decided, and what must not be.

#![expect(clippy::unwrap_used, reason = "a scene that cannot be set fails its test")]

mod keys;
mod machines;
mod relays;

use std::collections::BTreeSet;

use warmhop_core::ids::{AppName, Ballot, Incarnation, Now, PeerId, SessionId, WallTime};
use warmhop_core::rank;
use warmhop_core::session::Failure;
use warmhop_core::session::entry::*;
use warmhop_core::session::message::{Config, Members};
use warmhop_core::session::repair::{countable, counts_on, heir, silent_for_a_while};
use warmhop_core::view::{AppNews, AppState, News, PeerNews, Source, View};

const ME: Incarnation = Incarnation([1; 16]);
const SID: SessionId = SessionId([7; 16]);
const WALL: WallTime = WallTime(1_000);

fn inc(number: u8) -> Incarnation {
    Incarnation([number; 16])
}

fn name(number: u8) -> PeerId {
    PeerId::new(&format!("p{number}")).unwrap()
}

fn hello(number: u8, draining: bool) -> News {
    News::Peer(PeerNews {
        seq: 1 + u64::from(draining),
        draining,
        ..PeerNews::of(name(number), inc(number), "127.0.0.1:7001".parse().unwrap())
    })
}

/// This peer's view of p2 to p5, all alive.
fn view() -> View {
    let mut view = View::new(name(1));
    for number in 2..=5 {
        view.apply(hello(number, false), Now(1), Source::FirstHand);
    }
    view
}

fn here(view: &View) -> Here<'_> {
    Here {
        me: ME,
        draining: false,
        newborn: false,
        hears_most: true,
        full: false,
        view,
        wall: WALL,
    }
}

const POST: Asked = Asked { keyed: false, seen: Some(4), may_repeat: false, hops_left: 3 };
const KEYED: Asked = Asked { keyed: true, may_repeat: true, ..POST };

fn named(owner: u8) -> Named {
    let cfg = Config { now: Members::first(1, [inc(2), inc(3), inc(4)]), prev: None };
    Named { sid: SID, cfg, owner: inc(owner), n: 4 }
}

/// A claim to the session.
fn claim(round: u64, peer: u8) -> Option<Ballot> {
    Some(Ballot { round, proposer: inc(peer) })
}

fn stays() -> bool {
    false
}

fn to(step: &Step) -> Option<Incarnation> {
    match step {
        Step::Forward { owner, .. } => Some(*owner),
        _ => None,
    }
}

fn takes_over(why: TakeOver) -> Step {
    Step::AtOwner { take_over: Some(why) }
}

fn is_again(after: &After) -> bool {
    matches!(after, After::Again { .. })
}

// What was never written.

/// A session of p2, p3 and p4 that held nothing when its token was made, in a view in which p2 and p3
/// are silent.
fn empty() -> (View, Named) {
    let mut view = view();
    view.suspect(&name(2), Now(9));
    view.suspect(&name(3), Now(9));
    (view, Named { n: 0, ..named(2) })
}

#[test]
fn a_session_without_a_write_begins_anew_at_once_if_its_holders_are_gone() {
    let (view, empty) = empty();
    let mut errand = Errand::new(POST, Some(empty));
    assert_eq!(errand.next(Look::default(), &here(&view), || unreachable!()), Step::Begin);
    assert!(!errand.lost(), "what was never written is not lost");
}

#[test]
fn a_session_that_may_have_been_written_is_not_silently_begun_anew() {
    let (view, empty) = empty();
    let begins = |asked, named, look, here: &Here<'_>| {
        Errand::new(asked, Some(named)).next(look, here, stays) == Step::Begin
    };
    let (look, at) = (Look::default(), here(&view));
    assert!(begins(POST, empty.clone(), look, &at));
    assert!(!begins(POST, named(2), look, &at), "its token names a change");
    assert!(!begins(KEYED, empty.clone(), look, &at), "a repeat would be applied again");
    let holds = Look { holds: true, ..look };
    assert!(!begins(POST, empty.clone(), holds, &at), "this peer holds a change");
    let minority = Here { hears_most: false, ..at };
    assert!(!begins(POST, empty.clone(), look, &minority), "the others may hold one");
    let owned = Named { owner: inc(4), ..empty };
    assert!(!begins(POST, owned, look, &at), "its owner lives and knows");
}

#[test]
fn nothing_is_called_lost_by_a_peer_that_did_not_ask_everyone() {
    let lost = End::Failed(Failure::Lost { ran: false });
    let mut view = view();
    let owner = Look { owns: true, ..Look::default() };
    let mut errand = Errand::new(POST, Some(named(77)));
    errand.next(owner, &here(&view), stays);
    let newborn = Here { newborn: true, ..here(&view) };
    let waits = |after| matches!(after, After::Again { because: Because::NoWitness, .. });
    assert!(waits(errand.ended(lost, true, &newborn)));

    let mut forwarded = Errand::new(POST, Some(named(2)));
    let step = forwarded.next(Look::default(), &here(&view), stays);
    assert!(matches!(step, Step::Forward { .. }));
    let after = forwarded.ended(lost, true, &newborn);
    assert_eq!(after, After::TryAlone(Failure::Lost { ran: false }), "its owner asked everyone");

    errand.next(Look::default(), &here(&view), stays);
    view.apply(hello(6, false), Now(9), Source::FirstHand);
    assert!(waits(errand.ended(lost, true, &here(&view))), "it has heard of p6 since");

    errand.next(Look::default(), &here(&view), stays);
    let cut_off = Here { hears_most: false, ..here(&view) };
    let after = errand.ended(lost, true, &cut_off);
    assert_eq!(after, After::TryAlone(Failure::NoMajority { ran: false }));
}

#[test]
fn a_peer_hears_most_where_it_and_those_that_it_hears_are_more_than_half() {
    let mut view = view();
    let nobody = |_| false;
    assert!(hears_most(&view, nobody));
    assert!(hears_most(&view, |peer| panic!("whether {peer} is gone does not matter")));
    view.suspect(&name(2), Now(9));
    view.lost(&name(3), &inc(3), Now(9));
    assert!(hears_most(&view, nobody), "three of five");
    view.suspect(&name(4), Now(9));
    assert!(!hears_most(&view, nobody), "two of five");
    assert!(
        hears_most(&view, |peer| peer == inc(3) || peer == inc(2)),
        "two of three that are left"
    );
}

// Where a request goes first.

#[test]
fn a_request_without_a_session_begins_one() {
    let view = view();
    let mut errand = Errand::new(POST, None);
    assert_eq!(errand.next(Look::default(), &here(&view), || unreachable!()), Step::Begin);
    assert!(!errand.lost() && !errand.forked());
}

#[test]
fn a_request_goes_to_the_owner_that_its_token_names() {
    let view = view();
    let mut errand = Errand::new(POST, Some(named(2)));
    let step = errand.next(Look::default(), &here(&view), stays);
    assert_eq!(step, Step::Forward { to: name(2), owner: inc(2), hops_left: 2, moves: None });
}

#[test]
fn this_peers_memory_of_the_owner_takes_precedence_over_the_token() {
    let view = view();
    let look = Look { owns: false, claim: claim(2, 3), ..Look::default() };
    let mut errand = Errand::new(POST, Some(named(2)));
    assert_eq!(to(&errand.next(look, &here(&view), stays)), Some(inc(3)));
    let look = Look { owns: true, claim: claim(2, 3), ..Look::default() };
    let mut errand = Errand::new(POST, Some(named(2)));
    let step = errand.next(look, &here(&view), || unreachable!());
    assert_eq!(step, Step::AtOwner { take_over: None });
}

#[test]
fn an_owner_that_is_gone_or_unheard_of_is_taken_over() {
    let mut view = view();
    view.lost(&name(3), &inc(3), Now(9));
    for owner in [3, 77] {
        let mut errand = Errand::new(POST, Some(named(owner)));
        let step = errand.next(Look::default(), &here(&view), || unreachable!());
        assert_eq!(step, takes_over(TakeOver::OwnerSilent), "owner {owner}");
    }
}

#[test]
fn a_session_of_this_very_process_that_it_does_not_know_is_read_back_from_the_others() {
    let view = view();
    let mut errand = Errand::new(POST, Some(named(1)));
    let step = errand.next(Look::default(), &here(&view), || unreachable!());
    assert_eq!(step, takes_over(TakeOver::NobodyElse));
}

#[test]
fn a_request_that_was_forwarded_often_enough_is_served_where_it_is() {
    let view = view();
    let mut errand = Errand::new(Asked { hops_left: 0, ..POST }, Some(named(2)));
    let step = errand.next(Look::default(), &here(&view), || unreachable!());
    assert_eq!(step, takes_over(TakeOver::NobodyElse));
}

#[test]
fn a_session_moves_here_when_its_owner_drains_or_its_client_stays_but_not_to_one_that_drains() {
    let mut view = view();
    let moves = |view: &View, draining, stays: bool| {
        let mut errand = Errand::new(POST, Some(named(2)));
        match errand.next(Look::default(), &Here { draining, ..here(view) }, || stays) {
            Step::Forward { moves, .. } => moves,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(moves(&view, false, true), Some(Moves::ClientStays));
    assert_eq!(moves(&view, true, true), None);
    view.apply(hello(2, true), Now(2), Source::FirstHand);
    assert_eq!(moves(&view, false, false), Some(Moves::OwnerDrains));
    assert_eq!(moves(&view, true, true), None);
}

// Owned elsewhere.

#[test]
fn a_move_is_ordered_of_the_owner_that_the_request_finds_not_only_of_whom_it_asks_first() {
    let view = view();
    let here = here(&view);
    let mut errand = Errand::new(POST, Some(named(2)));
    let mut asked = 0;
    let mut moves = |errand: &mut Errand| {
        let step = errand.next(Look::default(), &here, || {
            asked += 1;
            asked == 1
        });
        match step {
            Step::Forward { owner, moves, .. } => (owner, moves),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(moves(&mut errand), (inc(2), Some(Moves::ClientStays)));
    errand.ended(End::Elsewhere(claim(3, 3)), true, &here);
    assert_eq!(moves(&mut errand), (inc(3), Some(Moves::ClientStays)));
    assert_eq!(asked, 1, "one request is one arrival");
}

#[test]
fn a_peer_that_disclaims_is_not_asked_again_because_of_old_claims() {
    let view = view();
    let here = here(&view);
    for claimed in [claim(3, 3), claim(1, 3)] {
        let look = Look { owns: false, claim: claim(2, 2), ..Look::default() };
        let mut errand = Errand::new(POST, Some(named(2)));
        assert_eq!(to(&errand.next(look, &here, stays)), Some(inc(2)));
        assert!(is_again(&errand.ended(End::Elsewhere(claimed), true, &here)));
        assert_eq!(to(&errand.next(look, &here, stays)), Some(inc(3)), "{claimed:?}");
    }
}

#[test]
fn two_peers_that_name_each_other_by_old_claims_know_no_owner() {
    let view = view();
    let here = here(&view);
    let mut errand = Errand::new(POST, Some(named(2)));
    errand.next(Look::default(), &here, stays);
    errand.ended(End::Elsewhere(claim(3, 3)), true, &here);
    errand.next(Look::default(), &here, stays);
    errand.ended(End::Elsewhere(claim(2, 2)), true, &here);
    let step = errand.next(Look::default(), &here, stays);
    assert_eq!(step, takes_over(TakeOver::NobodyElse));
    // The takeover met the ballot of one of them: it is an owner by now.
    errand.ended(End::Elsewhere(claim(4, 2)), true, &here);
    assert_eq!(to(&errand.next(Look::default(), &here, stays)), Some(inc(2)));
}

#[test]
fn a_session_that_went_back_to_a_peer_that_was_asked_is_followed_there_and_not_taken_over() {
    let view = view();
    let here = here(&view);
    let mut errand = Errand::new(POST, Some(named(2)));
    // p2 had handed it to p3, which has handed it back meanwhile.
    for (asked, claimed) in [(2, claim(3, 3)), (3, claim(4, 2)), (2, claim(5, 3)), (3, claim(6, 4))]
    {
        let step = errand.next(Look::default(), &here, stays);
        assert_eq!(to(&step), Some(inc(asked)), "{step:?}");
        errand.ended(End::Elsewhere(claimed), true, &here);
    }
    assert_eq!(to(&errand.next(Look::default(), &here, stays)), Some(inc(4)));
}

#[test]
fn a_peer_that_is_named_but_gave_the_session_away_since_sends_the_request_after_it() {
    let view = view();
    let here = here(&view);
    let mut errand = Errand::new(POST, Some(named(2)));
    errand.next(Look::default(), &here, stays);
    // p2 was deposed by this peer, which in turn has handed it to p3 before it hears so.
    errand.ended(End::Elsewhere(claim(2, 1)), true, &here);
    let look = Look { owns: false, claim: claim(3, 3), ..Look::default() };
    assert_eq!(to(&errand.next(look, &here, stays)), Some(inc(3)));
    // Nobody came after it, and it does not own it any more.
    let mut errand = Errand::new(POST, Some(named(2)));
    errand.next(Look::default(), &here, stays);
    errand.ended(End::Elsewhere(claim(2, 1)), true, &here);
    let step = errand.next(Look::default(), &here, stays);
    assert_eq!(step, takes_over(TakeOver::NobodyElse));
}

#[test]
fn without_a_living_owner_named_the_session_is_taken_over() {
    let view = view();
    for (other, why) in [(None, TakeOver::NobodyElse), (claim(9, 77), TakeOver::OwnerSilent)] {
        let mut errand = Errand::new(POST, Some(named(2)));
        errand.next(Look::default(), &here(&view), stays);
        errand.ended(End::Elsewhere(other), true, &here(&view));
        let step = errand.next(Look::default(), &here(&view), stays);
        assert_eq!(step, takes_over(why));
    }
}

#[test]
fn rivals_give_each_other_more_time_each_round_up_to_a_bound_and_then_give_up() {
    let view = view();
    let here = here(&view);
    let mut errand = Errand::new(POST, Some(named(2)));
    let mut spans = Vec::new();
    while errand.next(Look::default(), &here, stays) != Step::GiveUp {
        match errand.ended(End::Elsewhere(None), true, &here) {
            After::Again { because: Because::OwnedElsewhere, back_off } => {
                spans.push(back_off.as_millis());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(spans, [20, 40, 80, 160, 320, 320, 320, 320]);
    assert_eq!(errand.next(Look::default(), &here, stays), Step::GiveUp, "and stays so");
}

#[test]
fn a_request_whose_body_is_gone_is_never_tried_again() {
    let view = view();
    let here = here(&view);
    let ends = [
        End::Elsewhere(claim(3, 3)),
        End::Failed(Failure::Deposed { to: claim(3, 3), n: 0 }),
        End::Failed(Failure::WentOn { into: SessionId([8; 16]), by: inc(3) }),
    ];
    for end in ends {
        let mut errand = Errand::new(KEYED, Some(named(2)));
        errand.next(Look::default(), &here, stays);
        let after = errand.ended(end, false, &here);
        assert!(matches!(after, After::OutcomeUnknown(_)), "{end:?}: {after:?}");
    }
    let mut errand = Errand::new(KEYED, None);
    errand.next(Look::default(), &here, stays);
    let after = errand.ended(End::Elsewhere(None), false, &here);
    assert_eq!(after, After::OutcomeUnknown(Because::NotBegun));
}

// What may run again.

#[test]
fn a_run_with_an_unknown_outcome_is_tried_again_only_if_it_may_run_twice() {
    let view = view();
    let here = here(&view);
    let deposed = Failure::Deposed { to: claim(3, 3), n: 0 };
    let mut errand = Errand::new(POST, Some(named(2)));
    errand.next(Look::default(), &here, stays);
    assert_eq!(errand.ended(End::Failed(deposed), true, &here), After::Refuse(deposed));
    let mut errand = Errand::new(KEYED, Some(named(2)));
    errand.next(Look::default(), &here, stays);
    assert!(is_again(&errand.ended(End::Failed(deposed), true, &here)));
    assert_eq!(to(&errand.next(Look::default(), &here, stays)), Some(inc(3)), "it can tell");
    for failure in [Failure::NoMajority { ran: true }, Failure::Lost { ran: true }] {
        let mut errand = Errand::new(POST, None);
        errand.next(Look::default(), &here, stays);
        assert_eq!(errand.ended(End::Failed(failure), true, &here), After::Refuse(failure));
        let mut errand = Errand::new(KEYED, None);
        errand.next(Look::default(), &here, stays);
        assert!(is_again(&errand.ended(End::Failed(failure), true, &here)));
    }
}

#[test]
fn the_peer_that_deposed_this_one_is_asked_before_this_one_takes_over_again() {
    let view = view();
    let here = here(&view);
    let mut errand = Errand::new(KEYED, Some(named(2)));
    errand.next(Look::default(), &here, stays);
    errand.ended(End::Elsewhere(None), true, &here);
    let step = errand.next(Look::default(), &here, stays);
    assert_eq!(step, takes_over(TakeOver::NobodyElse));
    let deposed = Failure::Deposed { to: claim(3, 3), n: 0 };
    assert!(is_again(&errand.ended(End::Failed(deposed), true, &here)));
    assert_eq!(to(&errand.next(Look::default(), &here, stays)), Some(inc(3)));
}

#[test]
fn answers_are_passed_on_and_not_tried_again() {
    let view = view();
    let here = here(&view);
    let failures = [
        Failure::QueueFull,
        Failure::FingerprintDiffers,
        Failure::KeyInUse,
        Failure::BelowFloor,
        Failure::TooManyRetries,
        Failure::ExecutionFailed,
    ];
    for failure in failures {
        for session in [None, Some(named(2))] {
            let mut errand = Errand::new(KEYED, session);
            errand.next(Look::default(), &here, stays);
            assert_eq!(errand.ended(End::Failed(failure), true, &here), After::Refuse(failure));
        }
    }
}

#[test]
fn the_pinned_number_is_shown_for_keys_and_after_attempts_of_unknown_outcome_only() {
    let view = view();
    let here = here(&view);
    assert_eq!(Errand::new(KEYED, Some(named(2))).seen(false), Some(4));
    let repeats = Asked { may_repeat: true, ..POST };
    let mut errand = Errand::new(repeats, Some(named(2)));
    assert_eq!(errand.seen(false), None);
    assert_eq!(errand.seen(true), Some(4));
    errand.next(Look::default(), &here, stays);
    assert!(!errand.may_have_run());
    errand.ended(End::Failed(Failure::Deposed { to: None, n: 0 }), true, &here);
    assert_eq!((errand.seen(false), errand.may_have_run()), (Some(4), true));
    assert_eq!(Errand::new(KEYED, None).seen(true), None, "a new session has its own numbers");
}

// Without a majority.

fn lost(errand: &mut Errand, failure: Failure, view: &View) -> After {
    errand.next(Look::default(), &here(view), stays);
    errand.ended(End::Failed(failure), true, &here(view))
}

#[test]
fn where_no_majority_is_left_this_peer_tries_to_go_on_alone_before_anything_else() {
    let view = view();
    for failure in [Failure::NoMajority { ran: false }, Failure::Lost { ran: false }] {
        let into = SessionId([8; 16]);
        let mut errand = Errand::new(POST, Some(named(2)));
        assert_eq!(lost(&mut errand, failure, &view), After::TryAlone(failure));
        assert!(is_again(&errand.tried_alone(failure, Some(into), None, true, &here(&view))));
        assert!(errand.forked());
        assert_eq!(errand.session().map(|it| (it.sid, it.owner)), Some((into, ME)));
        let look = Look { owns: true, claim: claim(1, 1), ..Look::default() };
        let step = errand.next(look, &here(&view), stays);
        assert_eq!(step, Step::AtOwner { take_over: None });
        // Once only.
        let failure = Failure::NoMajority { ran: false };
        let after = errand.ended(End::Failed(failure), true, &here(&view));
        assert_eq!(after, After::Refuse(failure));
    }
}

#[test]
fn claims_about_a_session_do_not_apply_to_the_one_that_continues_it() {
    let view = view();
    let here = here(&view);
    let mut errand = Errand::new(POST, Some(named(2)));
    errand.next(Look::default(), &here, stays);
    errand.ended(End::Elsewhere(claim(3, 3)), true, &here);
    errand.next(Look::default(), &here, stays);
    let into = SessionId([8; 16]);
    errand.ended(End::Failed(Failure::WentOn { into, by: inc(4) }), true, &here);
    assert_eq!(to(&errand.next(Look::default(), &here, stays)), Some(inc(4)));
    assert!(errand.forked());
}

#[test]
fn a_lost_session_is_begun_anew_and_the_client_learns_it_if_it_held_anything() {
    let view = view();
    let failure = Failure::Lost { ran: false };
    for (n, is_lost) in [(0, false), (4, true)] {
        let mut errand = Errand::new(POST, Some(Named { n, ..named(2) }));
        lost(&mut errand, failure, &view);
        assert!(is_again(&errand.tried_alone(failure, None, None, true, &here(&view))));
        assert_eq!(errand.next(Look::default(), &here(&view), stays), Step::Begin);
        assert_eq!((errand.lost(), errand.forked()), (is_lost, false));
    }
    // One that cannot be reached is not lost.
    let failure = Failure::NoMajority { ran: false };
    let mut errand = Errand::new(POST, Some(named(2)));
    lost(&mut errand, failure, &view);
    let after = errand.tried_alone(failure, None, None, true, &here(&view));
    assert_eq!(after, After::Refuse(failure));
    // It went on where nobody can be found any more.
    let failure = Failure::WentOn { into: SessionId([8; 16]), by: inc(77) };
    let mut errand = Errand::new(POST, Some(named(2)));
    assert!(is_again(&lost(&mut errand, failure, &view)));
    assert!(errand.lost());
}

// In line at the owner.

#[test]
fn an_execution_that_came_to_nothing_is_run_again_at_most_so_often() {
    let mut reruns = Reruns::default();
    let failed = Failure::ExecutionFailed;
    assert_eq!(reruns.failed(&failed, true), Rerun::No, "the app's failure is an answer");
    reruns.came_to_nothing();
    assert_eq!(reruns.failed(&Failure::QueueFull, true), Rerun::No);
    assert_eq!(reruns.failed(&failed, false), Rerun::No, "its body is gone");
    for _ in 0..ROUNDS_MAX {
        reruns.came_to_nothing();
        assert_eq!(reruns.failed(&failed, true), Rerun::Again);
        assert_eq!(reruns.failed(&failed, true), Rerun::No, "once for each");
    }
    reruns.came_to_nothing();
    assert_eq!(reruns.failed(&failed, true), Rerun::GiveUp);
}

#[test]
fn an_executor_that_is_full_is_no_attempt_that_counts() {
    let mut reruns = Reruns::default();
    let failed = Failure::ExecutionFailed;
    for _ in 0..10 * ROUNDS_MAX {
        reruns.had_no_place();
        assert_eq!(reruns.failed(&failed, true), Rerun::Again);
        assert_eq!(reruns.failed(&failed, true), Rerun::No, "once for each");
    }
    reruns.had_no_place();
    assert_eq!(reruns.failed(&failed, false), Rerun::No, "its body is gone");
}

// Members and heirs.

#[test]
fn the_first_members_are_this_peer_its_executor_and_the_best_by_rank() {
    let mut view = view();
    let members = |view: &View, executor, copies| {
        first_members(SID, executor, copies, &here(view)).now.who.to_vec()
    };
    let sorted = |mut who: Vec<Incarnation>| {
        who.sort_unstable();
        who
    };
    let all: Vec<PeerId> = (2..=5).map(name).collect();
    let ranked: Vec<Incarnation> = rank::session_ranks(&SID, &all)
        .iter()
        .map(|peer| view.peer(peer).unwrap().news.incarnation)
        .collect();
    let executor = ranked[3];
    assert_eq!(members(&view, Some(executor), 3), sorted(vec![ME, executor, ranked[0]]));
    assert_eq!(members(&view, None, 3), sorted(vec![ME, ranked[0], ranked[1]]));
    assert_eq!(members(&view, None, 1), [ME]);
    assert_eq!(members(&view, Some(executor), 1), sorted(vec![ME, executor]), "it votes anyway");
    assert_eq!(members(&view, Some(ranked[0]), 3), sorted(vec![ME, ranked[0], ranked[1]]));
    // Those that are late or leave are not asked.
    let number = |of: Incarnation| of.0[0];
    view.suspect(&name(number(ranked[0])), Now(9));
    view.apply(hello(number(ranked[1]), true), Now(9), Source::FirstHand);
    assert_eq!(members(&view, None, 3), sorted(vec![ME, ranked[2], ranked[3]]));
    assert_eq!(members(&View::new(name(1)), None, 3), [ME], "alone, it keeps it alone");
}

#[test]
fn a_silent_peer_fills_a_place_where_the_others_can_do_without_it() {
    let mut view = View::new(name(1));
    let members = |view: &View, executor, copies| {
        first_members(SID, executor, copies, &here(view)).now.who.to_vec()
    };
    for number in [2, 3] {
        view.apply(hello(number, false), Now(1), Source::FirstHand);
    }
    view.suspect(&name(2), Now(9));
    // The link to it may be cut, and the third peer may hear it: two could lose neither.
    assert_eq!(members(&view, None, 3), [ME, inc(2), inc(3)]);
    assert_eq!(members(&view, Some(inc(3)), 3), [ME, inc(2), inc(3)]);
    assert_eq!(members(&view, None, 2), [ME, inc(3)]);
    view.suspect(&name(3), Now(9));
    assert_eq!(members(&view, None, 3), [ME], "it hears no majority with them");
    view.alive(&name(3), Now(9));
    view.lost(&name(2), &inc(2), Now(9));
    assert_eq!(members(&view, None, 3), [ME, inc(3)], "nobody waits for the dead");
}

#[test]
fn an_heir_is_ready_if_any_peer_is_and_neither_late_nor_leaving() {
    let mut view = view();
    let shop = AppName::new("shop").unwrap();
    let all: Vec<PeerId> = (2..=5).map(name).collect();
    let ranked: Vec<u8> = rank::session_ranks(&SID, &all)
        .iter()
        .map(|peer| view.peer(peer).unwrap().news.incarnation.0[0])
        .collect();
    assert_eq!(heir(SID, &shop, &view), Some(inc(ranked[0])));
    let ready = |number: u8| News::App {
        peer: name(number),
        incarnation: inc(number),
        generation: 1,
        news: AppNews::of(shop.clone(), 1, AppState::Ready),
    };
    view.apply(ready(ranked[3]), Now(2), Source::FirstHand);
    assert_eq!(heir(SID, &shop, &view), Some(inc(ranked[3])));
    view.apply(hello(ranked[3], true), Now(3), Source::FirstHand);
    assert_eq!(heir(SID, &shop, &view), Some(inc(ranked[0])));
    view.suspect(&name(ranked[0]), Now(9));
    assert_eq!(heir(SID, &shop, &view), Some(inc(ranked[1])));
    assert_eq!(heir(SID, &shop, &View::new(name(1))), None);
}

#[test]
fn a_copy_is_counted_on_as_long_as_somebody_else_could_hold_it() {
    let view = view();
    let able = countable(&view, ME);
    let counts_on = |members: &[Incarnation], me, able: &BTreeSet<Incarnation>| {
        counts_on(members, me, able, &BTreeSet::new())
    };
    assert_eq!(able.len(), 5);
    assert!(counts_on(&[ME, inc(2), inc(3)], ME, &able));
    assert!(!counts_on(&[inc(2), inc(3), inc(4)], ME, &able));
    assert!(!counts_on(&[ME], ME, &[ME].into()), "nobody else is left");
    assert!(counts_on(&[ME, inc(2), inc(90)], ME, &able), "its owner may be a moment late");
    assert!(!counts_on(&[ME, inc(90), inc(91)], ME, &able), "nobody can replace it any more");
    // Nobody can hold it instead: somebody else has to agree that it is struck off.
    let two = [ME, inc(2)].into();
    assert!(counts_on(&[ME, inc(2)], ME, &two) && counts_on(&[ME, inc(2), inc(90)], ME, &two));
    assert!(counts_on(&[ME, inc(2), inc(3)], ME, &[ME, inc(2), inc(3)].into()), "two stay");
}

#[test]
fn a_peer_that_leaves_waits_for_members_that_may_be_heard_again() {
    let mut view = view();
    assert!(silent_for_a_while(&view, Now(9)).is_empty());
    view.suspect(&name(2), Now(9));
    view.suspect(&name(3), Now(9));
    let (able, silent) = (countable(&view, ME), silent_for_a_while(&view, Now(1_000)));
    assert_eq!(silent, [inc(2), inc(3)].into());
    for members in [&[ME, inc(2), inc(3)][..], &[ME, inc(2), inc(90)], &[ME, inc(2)]] {
        assert!(counts_on(members, ME, &able, &silent), "{members:?}");
        assert!(!counts_on(members, ME, &[ME].into(), &BTreeSet::new()), "{members:?}");
    }
    assert!(!counts_on(&[ME, inc(90), inc(91)], ME, &able, &silent), "they are gone");
    assert!(silent_for_a_while(&view, Now(70_000)).is_empty(), "nobody waits that long");
}

//! The entry peer's rules, one by one: what is given, what is decided, and what must not be.

#![expect(clippy::unwrap_used, reason = "a scene that cannot be set fails its test")]

use std::time::Duration;

use warmhop_core::config::{SessionPolicy, WithoutMajority};
use warmhop_core::ids::{
    AppName, Ballot, Incarnation, Now, PeerId, RequestKey, SessionId, WallTime,
};
use warmhop_core::rank;
use warmhop_core::session::entry::*;
use warmhop_core::session::message::{
    Body, Config, Exec, ExecDone, Members, Message, NackReason, Stored,
};
use warmhop_core::session::repair::{countable, counts_on, heir};
use warmhop_core::session::{
    Ctx, Effect, Effects, Failure, Otherwise, Outcome, Process, Session, Submit, Ticket,
};
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
        peer: name(number),
        incarnation: inc(number),
        generation: 1,
        seq: 1 + u64::from(draining),
        mesh: "127.0.0.1:7001".parse().unwrap(),
        http: None,
        zone: None,
        draining,
        knows_more: false,
        young: false,
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
    Here { me: ME, draining: false, newborn: false, hears_most: true, view, wall: WALL }
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
fn what_was_never_written_begins_anew_at_once_where_its_holders_are_gone() {
    let (view, empty) = empty();
    let mut errand = Errand::new(POST, Some(empty));
    assert_eq!(errand.next(Look::default(), &here(&view), || unreachable!()), Step::Begin);
    assert!(!errand.lost(), "what was never written is not lost");
}

#[test]
fn what_may_have_been_written_does_not_begin_anew_in_silence() {
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
    let mut errand = Errand::new(POST, Some(named(77)));
    errand.next(Look::default(), &here(&view), stays);
    let newborn = Here { newborn: true, ..here(&view) };
    let waits = |after| matches!(after, After::Again { because: Because::NoWitness, .. });
    assert!(waits(errand.ended(lost, true, &newborn)));

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
fn what_this_peer_remembers_of_the_owner_goes_over_the_token() {
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
fn an_owner_that_is_silent_gone_or_unheard_of_is_taken_over() {
    let mut view = view();
    view.suspect(&name(2), Now(9));
    view.lost(&name(3), &inc(3), Now(9));
    for owner in [2, 3, 77] {
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
fn whoever_disclaims_is_not_asked_again_for_what_is_remembered_of_it() {
    let view = view();
    let here = here(&view);
    for told in [claim(3, 3), claim(1, 3)] {
        let look = Look { owns: false, claim: claim(2, 2), ..Look::default() };
        let mut errand = Errand::new(POST, Some(named(2)));
        assert_eq!(to(&errand.next(look, &here, stays)), Some(inc(2)));
        assert!(is_again(&errand.ended(End::Elsewhere(told), true, &here)));
        assert_eq!(to(&errand.next(look, &here, stays)), Some(inc(3)), "{told:?}");
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
    for (asked, told) in [(2, claim(3, 3)), (3, claim(4, 2)), (2, claim(5, 3)), (3, claim(6, 4))] {
        let step = errand.next(Look::default(), &here, stays);
        assert_eq!(to(&step), Some(inc(asked)), "{step:?}");
        errand.ended(End::Elsewhere(told), true, &here);
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
fn what_ran_with_an_unknown_outcome_is_tried_again_only_if_it_may_run_twice() {
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
fn whoever_deposed_this_peer_is_asked_before_it_takes_over_again() {
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
fn answers_are_told_and_not_tried_again() {
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
        assert!(is_again(&errand.tried_alone(failure, Some(into), true, &here(&view))));
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
fn what_was_said_of_a_session_is_not_believed_of_the_one_that_it_goes_on_as() {
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
fn a_session_that_is_lost_is_begun_anew_and_the_client_is_told_if_it_held_anything() {
    let view = view();
    let failure = Failure::Lost { ran: false };
    for (n, told) in [(0, false), (4, true)] {
        let mut errand = Errand::new(POST, Some(Named { n, ..named(2) }));
        lost(&mut errand, failure, &view);
        assert!(is_again(&errand.tried_alone(failure, None, true, &here(&view))));
        assert_eq!(errand.next(Look::default(), &here(&view), stays), Step::Begin);
        assert_eq!((errand.lost(), errand.forked()), (told, false));
    }
    // One that cannot be reached is not lost.
    let failure = Failure::NoMajority { ran: false };
    let mut errand = Errand::new(POST, Some(named(2)));
    lost(&mut errand, failure, &view);
    let after = errand.tried_alone(failure, None, true, &here(&view));
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
    assert_eq!(able.len(), 5);
    assert!(counts_on(&[ME, inc(2), inc(3)], ME, &able));
    assert!(!counts_on(&[inc(2), inc(3), inc(4)], ME, &able));
    assert!(!counts_on(&[ME], ME, &[ME].into()), "nobody else is left");
    assert!(counts_on(&[ME, inc(2), inc(90)], ME, &able), "its owner may be a moment late");
    assert!(!counts_on(&[ME, inc(90), inc(91)], ME, &able), "nobody can replace it any more");
}

// Machines: forwarded requests, and going on alone.

/// One process with sessions that it holds alone.
struct Solo {
    policy: SessionPolicy,
    process: Process,
    tickets: u64,
}

impl Solo {
    fn new(policy: SessionPolicy) -> Self {
        Self { policy, process: Process::default(), tickets: 0 }
    }

    fn on<R>(
        &mut self,
        machine: &mut Session,
        work: impl FnOnce(&mut Session, &mut Ctx<'_>, &mut Effects) -> R,
    ) -> (R, Effects) {
        let mut ctx = Ctx {
            me: ME,
            now: Now(1),
            wall: WALL,
            policy: &self.policy,
            process: &mut self.process,
            dice: 0,
        };
        let mut out = Vec::new();
        let result = work(machine, &mut ctx, &mut out);
        (result, out)
    }

    fn mint(&mut self, sid: SessionId, who: &[Incarnation]) -> Session {
        let cfg = Config { now: Members::first(WALL.0, who.iter().copied()), prev: None };
        let mut machine = Session::new(sid, &self.process);
        self.on(&mut machine, |machine, ctx, out| machine.mint(ctx, cfg, out));
        machine
    }

    /// Sends a keyed request that changes the state, and executes it here.
    fn keyed(&mut self, machine: &mut Session, rid: u8, seen: Option<u64>) -> Effect {
        self.carried_out(machine, rid, seen, |machine, ctx, exec, base| {
            machine.exec_end(ctx, exec, base, Some(Some(vec![1].into())), Stored::Applied)
        })
    }

    /// Sends a keyed request that runs no app.
    fn ordered(
        &mut self,
        machine: &mut Session,
        rid: u8,
        order: impl Fn(&mut Session, &mut Ctx<'_>, &Exec, &Body) -> ExecDone,
    ) -> Effect {
        self.carried_out(machine, rid, None, order)
    }

    fn carried_out(
        &mut self,
        machine: &mut Session,
        rid: u8,
        seen: Option<u64>,
        order: impl Fn(&mut Session, &mut Ctx<'_>, &Exec, &Body) -> ExecDone,
    ) -> Effect {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let rid = RequestKey([rid; 16]);
        let submit = Submit { ticket, rid, fingerprint: 1, keyed: true, seen, safe: false };
        let (_, mut out) = self.on(machine, |machine, ctx, out| machine.submit(ctx, submit, out));
        while let Some(effect) = out.pop() {
            match effect {
                Effect::Turn { ticket } => {
                    out.extend(self.on(machine, |it, ctx, out| it.begin(ctx, ticket, ME, out)).1);
                }
                Effect::Execute { ticket, exec, .. } => {
                    let (done, _) = self.on(machine, |machine, ctx, _| {
                        let base = machine.exec_begin(ctx, &exec).unwrap();
                        order(machine, ctx, &exec, &base)
                    });
                    let outcome = Outcome::from(done);
                    let ended = self.on(machine, |machine, ctx, out| {
                        machine.executed(ctx, ticket, exec.p, outcome, out);
                    });
                    out.extend(ended.1);
                }
                Effect::Send { .. } | Effect::FewCopies | Effect::Owned { .. } => {}
                end => return end,
            }
        }
        panic!("the request came to no end");
    }

    fn number(effect: &Effect) -> u64 {
        match effect {
            Effect::Release { hint, .. } => hint.n,
            other => panic!("{other:?}"),
        }
    }
}

fn alone_policy() -> SessionPolicy {
    SessionPolicy {
        without_majority: WithoutMajority::Serve,
        recent_keyed_max: 2,
        ..SessionPolicy::default()
    }
}

#[test]
fn a_peer_goes_on_alone_where_the_policy_says_so_or_its_copy_must_hold_everything() {
    let held_in = |pair: bool, policy: SessionPolicy, who: &[Incarnation]| {
        let mut solo = Solo::new(policy.clone());
        let mut machine = solo.mint(SID, &[ME]);
        solo.keyed(&mut machine, 1, None);
        if who.len() > 1 {
            // The same record under other members.
            let mut other = Session::new(SID, &solo.process);
            let Alone::From(mut record) = alone(&machine, ME, &alone_policy(), false) else {
                panic!()
            };
            record.cfg =
                Config { now: Members::first(WALL.0, who.iter().copied()), prev: None }.into();
            record.p.ballot = Ballot { round: 9, proposer: inc(2) };
            let message = warmhop_core::session::message::Message::Accept {
                p: record.p,
                cfg: record.cfg,
                body: warmhop_core::session::message::BodyRef::Full(record.body),
            };
            solo.on(&mut other, |it, ctx, out| it.on_message(ctx, inc(2), message, out));
            machine = other;
        }
        alone(&machine, ME, &policy, pair)
    };
    let held = |policy, who: &[Incarnation]| held_in(false, policy, who);
    let refuse = SessionPolicy::default();
    let two = [ME, inc(2)];
    assert!(matches!(held_in(true, refuse.clone(), &two), Alone::From(_)), "of two peers");
    assert_eq!(held(refuse.clone(), &two), Alone::No, "where more live, the other may go on");
    assert_eq!(held(refuse.clone(), &[ME, inc(2), inc(3)]), Alone::No);
    assert!(matches!(held(alone_policy(), &[ME, inc(2), inc(3)]), Alone::From(_)));
    let nothing = Session::new(SID, &Process::default());
    assert_eq!(alone(&nothing, ME, &alone_policy(), false), Alone::No);
}

#[test]
fn a_copy_is_fenced_only_at_the_record_that_the_other_session_was_minted_from() {
    let mut solo = Solo::new(alone_policy());
    let mut machine = solo.mint(SID, &[ME]);
    solo.keyed(&mut machine, 1, None);
    let Alone::From(before) = alone(&machine, ME, &solo.policy, false) else { panic!() };
    solo.keyed(&mut machine, 2, None);
    let (into, other) = (SessionId([8; 16]), SessionId([9; 16]));
    let fence = |solo: &mut Solo, machine: &mut Session, p, into| {
        solo.on(machine, |machine, ctx, out| fence_at(machine, ctx, p, into, out)).0
    };
    assert_eq!(fence(&mut solo, &mut machine, before.p, into), None, "it went on since");
    assert_eq!(machine.fenced(), None);
    let Alone::From(now) = alone(&machine, ME, &solo.policy, false) else { panic!() };
    assert_eq!(fence(&mut solo, &mut machine, now.p, into), Some(into));
    assert_eq!(fence(&mut solo, &mut machine, now.p, other), Some(into), "once");
    assert_eq!(alone(&machine, ME, &solo.policy, false), Alone::Already(into));
    assert!(!machine.is_owner());
}

#[test]
fn a_fork_goes_on_with_the_numbers_of_the_session_that_it_came_from() {
    let mut solo = Solo::new(alone_policy());
    let mut machine = solo.mint(SID, &[ME]);
    for rid in 1..=6 {
        solo.keyed(&mut machine, rid, None);
    }
    let Alone::From(record) = alone(&machine, ME, &solo.policy, false) else { panic!() };
    assert!(record.body.floor_keyed > 2, "some requests are forgotten: {:?}", record.body);
    let cfg = Config { now: Members::first(WALL.0, [ME]), prev: None };
    let mut fork = Session::new(SessionId([8; 16]), &solo.process);
    solo.on(&mut fork, |machine, ctx, out| machine.mint_from(ctx, cfg, &record, out));
    // Its client's token names the fork's number: a new key that comes with it is no repeat.
    let first = Solo::number(&solo.keyed(&mut fork, 10, Some(record.p.n)));
    assert!(first > record.p.n);
    Solo::number(&solo.keyed(&mut fork, 11, Some(first)));
    // One that was forgotten before the fork may be, and is not run again.
    let end = solo.keyed(&mut fork, 1, Some(0));
    assert!(matches!(end, Effect::Fail { failure: Failure::BelowFloor, .. }), "{end:?}");
}

#[test]
fn a_begin_is_taken_back_by_the_attempt_that_committed_it_and_leaves_no_trace() {
    let mut solo = Solo::new(SessionPolicy::default());
    let mut machine = solo.mint(SID, &[ME]);
    let released = |end: &Effect| matches!(end, Effect::Release { .. });
    let begin = Stored::Begun(7);
    assert!(released(&solo.ordered(&mut machine, 1, |machine, ctx, exec, base| {
        machine.exec_end(ctx, exec, base, None, begin.clone())
    })));
    assert!(begin.is_begin_of(7) && !begin.is_begin_of(8) && !Stored::Unknown.is_begin_of(7));
    let take_back = |solo: &mut Solo, machine: &mut Session, rid, attempt| {
        let begun = RequestKey([1; 16]);
        let end = solo.ordered(machine, rid, |machine, ctx, exec, base| {
            machine.exec_end_taking_back(ctx, exec, base, begun, attempt)
        });
        assert!(released(&end), "{end:?}");
    };
    // What another attempt began stays, and so is a repeat told.
    take_back(&mut solo, &mut machine, 2, 8);
    let end = solo.keyed(&mut machine, 1, None);
    assert!(matches!(&end, Effect::Replay { stored, .. } if *stored == begin), "{end:?}");
    take_back(&mut solo, &mut machine, 3, 7);
    let remembered = |machine: &Session| {
        let Alone::From(record) = alone(machine, ME, &alone_policy(), false) else { panic!() };
        (record.body.recent.len(), record.body.floor_keyed)
    };
    assert_eq!(remembered(&machine), (0, 0));
    assert!(released(&solo.keyed(&mut machine, 1, None)), "the key was never used");
}

#[test]
fn a_begin_makes_room_for_its_answer_and_a_repeat_of_the_begin_is_told_of_it() {
    let mut solo = Solo::new(SessionPolicy { recent_keyed_max: 2, ..SessionPolicy::default() });
    let mut machine = solo.mint(SID, &[ME]);
    for rid in [1, 2] {
        solo.ordered(&mut machine, !rid, |machine, ctx, exec, base| {
            machine.exec_end(ctx, exec, base, None, Stored::Begun(7))
        });
        Solo::number(&solo.keyed(&mut machine, rid, Some(0)));
    }
    for rid in [1, 2] {
        let end = solo.keyed(&mut machine, !rid, Some(0));
        assert!(matches!(end, Effect::Replay { stored: Stored::Applied, .. }), "{end:?}");
    }
}

fn submit(ticket: u64) -> Submit {
    let rid = RequestKey([u8::try_from(ticket).unwrap(); 16]);
    let ticket = Ticket(ticket);
    Submit { ticket, rid, fingerprint: 1, keyed: false, seen: None, safe: false }
}

#[test]
fn a_request_hears_of_a_session_that_its_takeover_finds_lost_at_once() {
    let mut solo = Solo::new(SessionPolicy::default());
    let mut machine = Session::new(SID, &solo.process);
    let dead =
        || Message::Nack { reason: NackReason::Dead, promised: None, cfg: None, watermark: 0 };
    for peer in [2, 3, 4] {
        solo.on(&mut machine, |machine, ctx, out| machine.on_message(ctx, inc(peer), dead(), out));
    }
    let how = Enter::TakingOver { token: Some(named(2).cfg), peers: Vec::new() };
    let (_, out) =
        solo.on(&mut machine, |machine, ctx, out| machine.enter(ctx, submit(1), how, out));
    let failure = Failure::Lost { ran: false };
    assert_eq!(out, [Effect::Lost, Effect::Fail { ticket: Ticket(1), failure }]);
    assert_eq!((machine.load(), Look::of(&machine).owns), (0, false));
}

#[test]
fn a_request_joins_a_takeover_that_is_under_way_and_begins_no_other() {
    let mut solo = Solo::new(SessionPolicy::default());
    let mut machine = Session::new(SID, &solo.process);
    let how = || Enter::TakingOver { token: Some(named(2).cfg), peers: vec![inc(5)] };
    solo.on(&mut machine, |machine, ctx, out| machine.enter(ctx, submit(1), how(), out));
    let ballot = machine.ballot();
    assert!(machine.is_taking_over());
    let (_, out) =
        solo.on(&mut machine, |machine, ctx, out| machine.enter(ctx, submit(2), how(), out));
    assert_eq!((machine.ballot(), machine.load(), out), (ballot, 2, Vec::new()));
    // The same one again, as when its answer was lost on the way: it waits already.
    let (_, out) =
        solo.on(&mut machine, |machine, ctx, out| machine.enter(ctx, submit(2), how(), out));
    assert_eq!(out, [Effect::Fail { ticket: Ticket(2), failure: Failure::KeyInUse }]);
}

#[test]
fn a_request_that_takes_this_peer_for_the_owner_in_vain_is_led_on() {
    let mut solo = Solo::new(SessionPolicy::default());
    let mut machine = Session::new(SID, &solo.process);
    machine.note_claim(claim(4, 3));
    let (_, out) = solo.on(&mut machine, |machine, ctx, out| {
        machine.enter(ctx, submit(1), Enter::AsOwner, out);
    });
    assert_eq!(out, [Effect::Redirect { ticket: Ticket(1), to: claim(4, 3) }]);
}

#[test]
fn a_forwarded_request_is_served_by_the_owner_and_by_one_that_is_named_and_knows_of_no_other() {
    let mut solo = Solo::new(SessionPolicy::default());
    let owner = solo.mint(SID, &[ME]);
    let serve = |take_over| Forwarded::Serve { take_over };
    assert_eq!(answer_forward(Some(&owner), ME, ME, true), serve(false));
    assert_eq!(answer_forward(Some(&owner), ME, inc(2), true), serve(false));
    assert_eq!(answer_forward(None, ME, ME, true), serve(true), "named, but it keeps nothing");
    let no = Forwarded::NotOwner { claim: None, cfg: None };
    assert_eq!(answer_forward(None, ME, inc(2), true), no);
    let mut copy = Session::new(SID, &solo.process);
    let cfg = Config { now: Members::first(1, [ME, inc(2), inc(3)]), prev: None };
    let b = Ballot { round: 3, proposer: inc(3) };
    let message = warmhop_core::session::message::Message::Prepare {
        b,
        cfg: cfg.into(),
        want_body: false,
        polite: false,
        nonce: 1,
        expiry: WallTime(9_000),
        into: None,
    };
    solo.on(&mut copy, |it, ctx, out| it.on_message(ctx, inc(3), message, out));
    for named in [ME, inc(2)] {
        match answer_forward(Some(&copy), ME, named, true) {
            Forwarded::NotOwner { claim, .. } => assert_eq!(claim, Some(b)),
            other => panic!("named {named:?}: {other:?}"),
        }
    }
}

#[test]
fn a_peer_that_was_no_member_and_was_deposed_names_its_successor() {
    let solo = Solo::new(SessionPolicy::default());
    let mut machine = Session::new(SID, &solo.process);
    machine.note_claim(claim(4, 3));
    assert_eq!(machine.promised(), None);
    match answer_forward(Some(&machine), ME, ME, true) {
        Forwarded::NotOwner { claim: told, .. } => assert_eq!(told, claim(4, 3)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_an_owner_leaves_to_the_entry_peer_did_not_run() {
    assert!(is_for_entry(&Failure::Lost { ran: false }));
    assert!(is_for_entry(&Failure::WentOn { into: SID, by: ME }));
    assert!(is_for_entry(&Failure::Deposed { to: None, n: 0 }));
    assert!(!is_for_entry(&Failure::Lost { ran: true }));
    assert!(!is_for_entry(&Failure::NoMajority { ran: false }));
    assert_eq!(BACK_OFF, Duration::from_millis(20));
}

// A session that a key names.

const WRITES: ByKey = ByKey { sid: SID, begins: true };
const READS: ByKey = ByKey { sid: SID, begins: false };

fn anyone(_: SessionId) -> Config {
    Config { now: Members::first(1, [inc(2), inc(3), inc(4)]), prev: None }
}

#[test]
fn a_key_whose_owner_nobody_told_of_is_looked_for() {
    let view = view();
    for key in [WRITES, READS] {
        let mut errand = Errand::by_key(POST, key);
        assert_eq!((errand.sid(), errand.session()), (Some(SID), None));
        let step = errand.next(Look::default(), &here(&view), || unreachable!());
        assert_eq!(step, takes_over(TakeOver::Unknown));
        let expected = if key.begins { Otherwise::Begin(anyone(SID)) } else { Otherwise::Absent };
        assert_eq!(errand.otherwise(anyone), Some(expected));
    }
    let look = Look { owns: false, claim: claim(2, 3), ..Look::default() };
    let step = Errand::by_key(POST, READS).next(look, &here(&view), stays);
    assert_eq!(to(&step), Some(inc(3)), "an owner that is known is asked");
}

#[test]
fn what_nobody_knows_is_an_answer_to_those_who_read_and_a_beginning_to_those_who_write() {
    let view = view();
    let absent = End::Failed(Failure::Absent);
    let mut errand = Errand::by_key(POST, READS);
    errand.next(Look::default(), &here(&view), stays);
    assert_eq!(errand.ended(absent, true, &here(&view)), After::Refuse(Failure::Absent));
    let mut errand = Errand::by_key(POST, WRITES);
    errand.next(Look::default(), &here(&view), stays);
    assert!(is_again(&errand.ended(absent, true, &here(&view))));
    assert_eq!(errand.sid(), Some(SID));
}

#[test]
fn a_lost_session_of_a_key_is_told_and_not_begun_anew_in_silence() {
    let view = view();
    let lost = Failure::Lost { ran: false };
    let mut errand = Errand::by_key(POST, WRITES);
    errand.next(Look::default(), &here(&view), stays);
    assert_eq!(errand.ended(End::Failed(lost), true, &here(&view)), After::TryAlone(lost));
    let after = errand.tried_alone(lost, None, true, &here(&view));
    assert_eq!(after, After::Refuse(lost));
}

#[test]
fn a_key_is_followed_through_several_forks_and_not_without_end() {
    let view = view();
    let mut errand = Errand::by_key(POST, WRITES);
    let mut followed = 0;
    loop {
        errand.next(Look::default(), &here(&view), stays);
        let into = SessionId([10 + followed; 16]);
        let went_on = Failure::WentOn { into, by: inc(2) };
        let after = errand.ended(End::Failed(went_on), true, &here(&view));
        if after == After::Refuse(Failure::Lost { ran: false }) {
            break;
        }
        assert!(is_again(&after), "{after:?}");
        assert_eq!(errand.sid(), Some(into));
        assert_eq!(errand.otherwise(anyone), None, "what a fork went on as is never begun");
        followed += 1;
    }
    assert_eq!(followed, 4);
}

#[test]
fn a_peer_that_does_not_own_what_a_key_names_leaves_the_search_to_who_asked() {
    let no = Forwarded::NotOwner { claim: None, cfg: None };
    assert_eq!(answer_forward(None, ME, ME, false), no);
}

#[test]
fn every_peer_would_begin_a_key_at_the_same_members() {
    let sets = [1u8, 2, 3, 4].map(|me| {
        let mut view = View::new(name(me));
        for other in [1u8, 2, 3, 4].into_iter().filter(|other| *other != me) {
            view.apply(hello(other, false), Now(1), Source::FirstHand);
        }
        let here = Here { newborn: false, me: inc(me), ..here(&view) };
        members_by_key(SID, 3, &name(me), &here).now.who.to_vec()
    });
    assert_eq!(sets[0].len(), 3);
    assert!(sets.iter().all(|set| *set == sets[0]), "{sets:?}");
}

#[test]
fn a_silent_peer_takes_a_place_that_nobody_else_can() {
    let mut view = View::new(name(1));
    for other in 2..=3 {
        view.apply(hello(other, false), Now(1), Source::FirstHand);
    }
    view.suspect(&name(2), Now(9));
    let members = |view: &View| {
        members_by_key(SID, 3, &name(1), &here(view)).now.who.iter().copied().collect::<Vec<_>>()
    };
    assert_eq!(members(&view), [inc(1), inc(2), inc(3)]);
    view.apply(hello(4, false), Now(9), Source::FirstHand);
    assert_eq!(members(&view), [inc(1), inc(3), inc(4)]);
    let mut pair = View::new(name(1));
    pair.apply(hello(2, false), Now(1), Source::FirstHand);
    pair.suspect(&name(2), Now(9));
    assert_eq!(members(&pair), [inc(1)], "of two peers the one that is left serves alone");
}

const BY_KEY: ByKey = ByKey { sid: SID, begins: true };

fn is_relayed(step: &Step) -> bool {
    matches!(step, Step::Relay { begins: true, hops_left: 2, .. })
}

#[test]
fn another_peer_is_asked_once_where_the_owner_of_a_key_is_not_heard() {
    let mut view = view();
    view.suspect(&name(2), Now(9));
    let look = Look { owns: false, claim: claim(1, 2), ..Look::default() };
    let mut errand = Errand::by_key(POST, BY_KEY);
    let step = errand.next(look, &here(&view), stays);
    assert!(is_relayed(&step), "{step:?}");
    assert!(!matches!(&step, Step::Relay { to, .. } if *to == name(2)));
    assert!(is_again(&errand.ended(End::Elsewhere(None), true, &here(&view))));
    assert!(matches!(errand.next(look, &here(&view), stays), Step::AtOwner { .. }));
    // Whoever was asked so asks nobody in turn.
    let mut errand = Errand::relayed(POST, BY_KEY);
    let step = errand.next(look, &here(&view), stays);
    assert_eq!(step, takes_over(TakeOver::OwnerSilent));
    // A token's session is taken over at once.
    let mut errand = Errand::new(POST, Some(named(2)));
    let step = errand.next(look, &here(&view), stays);
    assert_eq!(step, takes_over(TakeOver::OwnerSilent));
}

#[test]
fn another_peer_is_asked_where_this_one_reaches_no_majority() {
    let view = view();
    let look = Look { owns: true, cut_off: true, ..Look::default() };
    let mut errand = Errand::by_key(POST, BY_KEY);
    assert!(is_relayed(&errand.next(look, &here(&view), stays)));

    let none = Failure::NoMajority { ran: false };
    let mut errand = Errand::by_key(POST, BY_KEY);
    let first = errand.next(Look::default(), &here(&view), stays);
    assert_eq!(first, takes_over(TakeOver::Unknown));
    assert!(is_again(&errand.ended(End::Failed(none), true, &here(&view))));
    assert!(is_relayed(&errand.next(Look::default(), &here(&view), stays)));
    let after = errand.ended(End::Failed(none), true, &here(&view));
    assert_eq!(after, After::TryAlone(none), "nobody is asked twice");
}

#[test]
fn what_a_deposed_owner_knew_is_pinned_for_the_attempt_that_follows() {
    let view = view();
    let asked = Asked { seen: Some(0), may_repeat: true, ..POST };
    let mut errand = Errand::by_key(asked, BY_KEY);
    errand.next(Look::default(), &here(&view), stays);
    errand.ended(End::Failed(Failure::Deposed { to: claim(2, 3), n: 7 }), true, &here(&view));
    assert_eq!(errand.seen(false), Some(7));
    // Of the attempts after it nobody knows whether an earlier one was applied before.
    errand.ended(End::Failed(Failure::Deposed { to: claim(3, 4), n: 9 }), true, &here(&view));
    assert_eq!(errand.seen(false), Some(7));
}

#[test]
fn what_is_left_of_a_lost_session_is_forgotten_but_not_what_was_begun_since() {
    let policy = SessionPolicy::default();
    let mut process = Process::default();
    let mut copy = Session::new(SID, &process);
    let mut ctx =
        Ctx { me: ME, now: Now(1), wall: WALL, policy: &policy, process: &mut process, dice: 0 };
    let ballot = Ballot { round: 1, proposer: inc(2) };
    let cfg = Config { now: Members::first(50, [ME, inc(2), inc(3)]), prev: None };
    let prepare = Message::Prepare {
        b: ballot,
        cfg: cfg.into(),
        want_body: true,
        polite: false,
        nonce: 1,
        expiry: WALL,
        into: None,
    };
    copy.on_message(&mut ctx, inc(2), prepare, &mut Vec::new());
    let retire = |stamp| Message::Retire { stamp };
    copy.on_message(&mut ctx, inc(3), retire(49), &mut Vec::new());
    assert_eq!(copy.promised(), Some(ballot), "it was begun after that one");
    copy.on_message(&mut ctx, inc(3), retire(50), &mut Vec::new());
    assert!(copy.forgotten());
    assert_eq!(ctx.process.watermark, 50, "what it promised is not promised again");
}

//! A session that a token names, where this peer does not hear its owner and another may.

use super::*;

fn may_be_relayed() -> Errand {
    Errand::new(POST, Some(named(2))).that_may_be_relayed()
}

/// At the peer that the peer `by` asked.
fn asked_by(by: u8, named: Named) -> Errand {
    Errand::relayed_token(Asked { seen: None, ..POST }, named, inc(by))
}

/// Who is asked to find the owner.
fn relays(step: &Step) -> Option<PeerId> {
    match step {
        Step::Relay { to, hops_left: 2, begins: false } => Some(to.clone()),
        _ => None,
    }
}

/// A configuration with these members.
fn of(members: &[u8]) -> Config {
    Config { now: Members::first(1, members.iter().map(|number| inc(*number))), prev: None }
}

/// A view in which those of p2 to p5 are silent.
fn without(silent: &[u8]) -> View {
    let mut view = view();
    for number in silent {
        view.suspect(&name(*number), Now(9));
    }
    view
}

#[test]
fn another_peer_is_asked_once_where_the_owner_and_a_majority_of_the_members_are_not_heard() {
    let view = without(&[2, 3]);
    let mut errand = may_be_relayed();
    let to = relays(&errand.next(Look::default(), &here(&view), stays)).unwrap();
    assert_eq!(to, name(4), "a member that is heard knows the owner, and has a vote");
    assert!(is_again(&errand.ended(End::Elsewhere(None), true, &here(&view))));
    let step = errand.next(Look::default(), &here(&view), stays);
    assert_eq!(step, takes_over(TakeOver::NobodyElse), "nobody is asked twice");
}

/// To the owner p2, which this peer does not hear.
fn by_way_of(peer: u8) -> Step {
    Step::Forward { to: name(peer), owner: inc(2), hops_left: 2, moves: None }
}

#[test]
fn an_owner_that_is_not_heard_is_asked_by_way_of_a_member_once_and_then_taken_over() {
    let (view, look) = (without(&[2]), Look::default());
    for mut errand in [may_be_relayed(), Errand::new(POST, Some(named(2)))] {
        let first = errand.next(look, &here(&view), || unreachable!("it cannot move here"));
        assert!([by_way_of(3), by_way_of(4)].contains(&first), "{first:?}");
        assert!(is_again(&errand.ended(End::Elsewhere(None), true, &here(&view))));
        let step = errand.next(look, &here(&view), stays);
        assert_eq!(step, takes_over(TakeOver::NobodyElse));
    }
}

#[test]
fn the_member_is_asked_that_said_that_it_hears_the_owner() {
    for way in [3, 4] {
        let mut view = without(&[2]);
        let ways = vec![name(5), name(way)];
        assert!(view.set_ways([(inc(2), ways.clone())].into()));
        assert!(!view.set_ways([(inc(2), ways)].into()), "nothing has changed");
        let step = may_be_relayed().next(Look::default(), &here(&view), stays);
        assert_eq!(step, by_way_of(way));
        // What was said of one that is heard here, or by one that is not, counts for nothing.
        view.suspect(&name(way), Now(9));
        let step = may_be_relayed().next(Look::default(), &here(&view), stays);
        assert_ne!(step, by_way_of(way));
        view.alive(&name(2), Now(9));
        assert_eq!(view.ways_to(&inc(2)).count(), 0);
    }
}

#[test]
fn an_owner_whose_link_broke_under_the_request_is_asked_by_way_of_another() {
    let (heard, look) = (without(&[]), Look::default());
    let mut errand = may_be_relayed();
    assert_eq!(errand.next(look, &here(&heard), stays), by_way_of(2));
    let view = without(&[2]);
    assert!(is_again(&errand.ended(End::Elsewhere(None), true, &here(&view))));
    let step = errand.next(look, &here(&view), stays);
    assert!([by_way_of(3), by_way_of(4)].contains(&step), "{step:?}");
}

#[test]
fn the_owner_of_two_members_commits_nothing_while_one_of_them_does_not_hear_it() {
    let two = Named { cfg: of(&[1, 2]), ..named(2) };
    let step = Errand::new(POST, Some(two)).next(Look::default(), &here(&without(&[2])), stays);
    assert_eq!(step, takes_over(TakeOver::OwnerSilent));
}

#[test]
fn a_peer_that_gets_a_request_for_another_owner_forwards_it_if_it_hears_that_one() {
    let view = without(&[3]);
    assert_eq!(way_on(None, inc(2), &here(&view)), Some(inc(2)));
    assert_eq!(way_on(None, inc(3), &here(&view)), None, "nor is it heard here");
    assert_eq!(way_on(None, ME, &here(&view)), None, "it is meant for this peer");
}

#[test]
fn nobody_is_asked_to_find_members_that_are_gone() {
    let mut view = without(&[2]);
    view.lost(&name(2), &inc(2), Now(9));
    view.lost(&name(3), &inc(3), Now(9));
    let step = may_be_relayed().next(Look::default(), &here(&view), stays);
    assert_eq!(relays(&step), None, "{step:?}");
}

#[test]
fn nobody_is_asked_where_this_peer_may_go_on_without_a_majority() {
    let view = without(&[2, 3]);
    let mut errand = Errand::new(POST, Some(named(2)));
    // The member that is heard may hear the owner, and is not asked to take over.
    assert_eq!(errand.next(Look::default(), &here(&view), stays), by_way_of(4));
    assert!(is_again(&errand.ended(End::Elsewhere(None), true, &here(&view))));
    let step = errand.next(Look::default(), &here(&view), stays);
    assert_eq!(step, takes_over(TakeOver::NobodyElse));
}

#[test]
fn an_owner_that_is_cut_off_from_the_members_asks_another_peer() {
    let look = Look { owns: true, cut_off: true, ..Look::default() };
    // The token of a session that this peer owns names it as a member.
    let own = |members: &[u8]| Named { cfg: of(members), ..named(1) };
    let next = |view: &View, named| {
        Errand::new(POST, Some(named)).that_may_be_relayed().next(look, &here(view), stays)
    };
    assert!(relays(&next(&without(&[2, 3]), own(&[1, 2, 3]))).is_some());
    // Of two members each goes on alone if it may, and asks only after that.
    let at_owner = Step::AtOwner { take_over: None };
    assert_eq!(next(&without(&[2]), own(&[1, 2])), at_owner);
    // Nobody brings back those that are gone.
    let mut view = view();
    view.lost(&name(2), &inc(2), Now(9));
    view.lost(&name(3), &inc(3), Now(9));
    assert_eq!(next(&view, own(&[1, 2, 3])), at_owner);
}

#[test]
fn a_peer_that_was_asked_does_not_send_the_request_back() {
    let view = view();
    let mut errand = asked_by(2, named(2));
    assert_eq!(errand.next(Look::default(), &here(&view), stays), takes_over(TakeOver::Unknown));
    let look = Look { claim: claim(3, 2), ..Look::default() };
    let mut errand = asked_by(2, named(2));
    assert_eq!(errand.next(look, &here(&view), stays), takes_over(TakeOver::Unknown));
    let mut errand = asked_by(2, named(3));
    assert_eq!(to(&errand.next(look, &here(&view), stays)), Some(inc(3)));
    assert!(is_again(&errand.ended(End::Elsewhere(claim(3, 2)), true, &here(&view))));
    assert_eq!(errand.next(look, &here(&view), stays), takes_over(TakeOver::NobodyElse));
}

#[test]
fn a_request_that_may_have_been_applied_stays_pinned_at_the_peer_that_is_asked() {
    assert_eq!(asked_by(5, named(2)).seen(false), None);
    let unsure = Errand::relayed_token(POST, named(2), inc(5));
    assert_eq!(unsure.seen(false), Some(4));
    assert!(unsure.may_have_run());
}

#[test]
fn a_request_that_cannot_be_sent_again_is_refused_if_no_majority_was_found() {
    let none = Failure::NoMajority { ran: false };
    let view = view();
    let after = may_be_relayed().tried_alone(none, None, None, false, &here(&view));
    assert_eq!(after, After::Refuse(none));
}

#[test]
fn a_peer_without_a_majority_asks_one_that_may_have_it() {
    let view = view();
    let none = Failure::NoMajority { ran: false };
    let mut errand = may_be_relayed();
    let look = Look { owns: true, ..Look::default() };
    assert_eq!(errand.next(look, &here(&view), stays), Step::AtOwner { take_over: None });
    let tried = |errand: &mut Errand| {
        assert_eq!(errand.ended(End::Failed(none), true, &here(&view)), After::TryAlone(none));
        errand.tried_alone(none, None, None, true, &here(&view))
    };
    assert!(is_again(&tried(&mut errand)));
    assert!(relays(&errand.next(look, &here(&view), stays)).is_some());
    assert_eq!(tried(&mut errand), After::Refuse(none));
}

#[test]
fn a_peer_that_was_asked_goes_to_the_owner_and_asks_nobody_in_turn() {
    let mut errand = asked_by(5, named(2));
    let step = errand.next(Look::default(), &here(&view()), stays);
    assert_eq!(to(&step), Some(inc(2)), "{step:?}");
    let mut errand = asked_by(5, named(2));
    let step = errand.next(Look::default(), &here(&without(&[2, 3])), stays);
    assert_eq!(step, takes_over(TakeOver::OwnerSilent));
}

#[test]
fn a_peer_that_was_asked_for_an_empty_session_begins_none_for_the_client_of_another() {
    let empty = Named { n: 0, ..named(2) };
    let view = without(&[2, 3]);
    let step = asked_by(5, empty).next(Look::default(), &here(&view), stays);
    assert_ne!(step, Step::Begin);
}

// One member of two.

const LOST: Failure = Failure::Lost { ran: false };

/// A session of p2 and p3, whose owner p2 is proven gone.
fn of_two() -> (View, Named) {
    let mut view = view();
    view.lost(&name(2), &inc(2), Now(9));
    (view, Named { cfg: of(&[2, 3]), ..named(2) })
}

fn finds_it_lost(errand: &mut Errand, view: &View) -> After {
    errand.next(Look::default(), &here(view), stays);
    assert_eq!(errand.ended(End::Failed(LOST), true, &here(view)), After::TryAlone(LOST));
    errand.tried_alone(LOST, None, None, true, &here(view))
}

#[test]
fn the_other_of_two_members_is_asked_to_go_on_alone_before_the_session_is_lost() {
    let (view, named) = of_two();
    let mut errand = Errand::new(POST, Some(named.clone()));
    assert!(is_again(&finds_it_lost(&mut errand, &view)));
    assert_eq!(relays(&errand.next(Look::default(), &here(&view), stays)), Some(name(3)));
    // It went on.
    let into = SessionId([8; 16]);
    let went_on = End::Failed(Failure::WentOn { into, by: inc(3) });
    let mut followed = errand.clone();
    assert!(is_again(&followed.ended(went_on, true, &here(&view))));
    assert!(followed.forked());
    // It holds nothing either, and nobody is asked twice.
    assert_eq!(errand.ended(End::Failed(LOST), true, &here(&view)), After::TryAlone(LOST));
    assert!(is_again(&errand.tried_alone(LOST, None, None, true, &here(&view))));
    assert!(errand.lost());
    // The members that the machine here knows count, be they others than those of the token.
    let mut errand = Errand::new(POST, Some(Named { cfg: of(&[2, 4, 5]), ..named }));
    errand.next(Look::default(), &here(&view), stays);
    errand.ended(End::Failed(LOST), true, &here(&view));
    assert!(is_again(&errand.tried_alone(LOST, None, Some(&of(&[2, 3])), true, &here(&view))));
    assert_eq!(relays(&errand.next(Look::default(), &here(&view), stays)), Some(name(3)));
}

#[test]
fn of_three_members_the_last_is_not_asked_to_go_on_alone() {
    let (view, _) = of_two();
    let mut errand = Errand::new(POST, Some(named(2)));
    assert!(is_again(&finds_it_lost(&mut errand, &view)));
    assert!(errand.lost());
}

#[test]
fn another_asks_the_member_of_two_that_is_not_heard_here_and_what_nobody_can_ask_is_not_lost() {
    let (mut view, named) = of_two();
    view.suspect(&name(3), Now(9));
    let mut errand = Errand::new(POST, Some(named.clone()));
    assert!(is_again(&finds_it_lost(&mut errand, &view)));
    let asked = relays(&errand.next(Look::default(), &here(&view), stays));
    assert!(asked.is_some_and(|peer| peer == name(4) || peer == name(5)));
    for number in [4, 5] {
        view.suspect(&name(number), Now(9));
    }
    let mut errand = Errand::new(POST, Some(named));
    let after = finds_it_lost(&mut errand, &view);
    assert_eq!(after, After::Refuse(Failure::NoMajority { ran: false }));
}

#[test]
fn a_register_of_two_members_is_no_more_lost_than_a_session() {
    let (view, _) = of_two();
    let mut errand = Errand::by_key(POST, ByKey { sid: SID, begins: true });
    errand.next(Look::default(), &here(&view), stays);
    errand.ended(End::Failed(LOST), true, &here(&view));
    assert!(is_again(&errand.tried_alone(LOST, None, Some(&of(&[2, 3])), true, &here(&view))));
    let step = errand.next(Look::default(), &here(&view), stays);
    assert_eq!(step, Step::Relay { to: name(3), hops_left: 2, begins: true });
}

#[test]
fn a_peer_that_was_asked_reports_the_fork_or_asks_the_member_that_may_make_it() {
    let (view, named) = of_two();
    let into = SessionId([8; 16]);
    let ended = |end, here: &Here<'_>| {
        let mut errand = asked_by(5, named.clone());
        errand.next(Look::default(), here, stays);
        (errand.relayed_ended(end, true, here), errand)
    };
    let here = here(&view);
    let (after, mut errand) = ended(End::Failed(LOST), &here);
    assert_eq!(after, Relayed::TryAlone(LOST));
    let after = errand.clone().relayed_alone(LOST, Some(into), None, true, &here);
    assert_eq!(after, Relayed::Tell(Some(Failure::WentOn { into, by: ME })));
    let after = errand.relayed_alone(LOST, None, None, true, &here);
    assert!(matches!(after, Relayed::Again { .. }));
    assert_eq!(relays(&errand.next(Look::default(), &here, stays)), Some(name(3)));
    assert_eq!(errand.relayed_ended(End::Failed(LOST), true, &here), Relayed::TryAlone(LOST));
    let after = errand.relayed_alone(LOST, None, None, true, &here);
    assert_eq!(after, Relayed::Tell(Some(LOST)));
    // The one that asked is not asked in turn.
    let mut errand = Errand::relayed_token(Asked { seen: None, ..POST }, named.clone(), inc(3));
    errand.next(Look::default(), &here, stays);
    errand.relayed_ended(End::Failed(LOST), true, &here);
    let after = errand.relayed_alone(LOST, None, None, true, &here);
    assert_eq!(after, Relayed::Tell(Some(LOST)));
}

#[test]
fn a_peer_that_was_asked_follows_the_owner_and_reports_every_other_end() {
    let view = view();
    let ended = |end, newborn| {
        let here = Here { newborn, ..here(&view) };
        let mut errand = asked_by(5, named(2));
        errand.next(Look::default(), &here, stays);
        errand.relayed_ended(end, true, &here)
    };
    let again = |after| matches!(after, Relayed::Again { .. });
    assert!(again(ended(End::Elsewhere(claim(3, 3)), false)));
    // One that has just started is no witness that a session is lost.
    assert_eq!(ended(End::Failed(LOST), true), Relayed::Tell(None));
    for failure in [Failure::NoMajority { ran: false }, Failure::Ended, Failure::KeyInUse] {
        assert_eq!(ended(End::Failed(failure), false), Relayed::Tell(None));
    }
    // What ran at an owner that was deposed is not run again, unless it may be.
    let deposed = End::Failed(Failure::Deposed { to: None, n: 5 });
    assert_eq!(ended(deposed, false), Relayed::Tell(None));
}

// What was never written.

#[test]
fn one_that_hears_more_is_asked_for_an_empty_session_before_another_takes_its_place() {
    let mut view = without(&[2, 3]);
    let empty = Named { n: 0, ..named(2) };
    let mut errand = Errand::new(POST, Some(empty.clone())).that_may_be_relayed();
    let to = relays(&errand.next(Look::default(), &here(&view), stays));
    assert_eq!(to, Some(name(4)), "two requests at two peers would begin two sessions");
    // Nor does that one reach its members.
    assert_eq!(errand.ended(End::Failed(LOST), true, &here(&view)), After::TryAlone(LOST));
    assert!(is_again(&errand.tried_alone(LOST, None, None, true, &here(&view))));
    assert_eq!(errand.next(Look::default(), &here(&view), stays), Step::Begin);
    assert!(!errand.lost());
    // Nobody need be asked for members that are gone.
    view.lost(&name(2), &inc(2), Now(9));
    view.lost(&name(3), &inc(3), Now(9));
    let mut errand = Errand::new(POST, Some(empty)).that_may_be_relayed();
    assert_eq!(errand.next(Look::default(), &here(&view), stays), Step::Begin);
}

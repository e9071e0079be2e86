//! Requests for sessions that a key names.

use warmhop_core::config::SessionPolicy;
use warmhop_core::ids::{Ballot, Now, SessionId};
use warmhop_core::session::entry::*;
use warmhop_core::session::message::{Config, Members, Message};
use warmhop_core::session::{Ctx, Failure, Otherwise, Process, Session};
use warmhop_core::view::{News, PeerNews, Source, View};

use super::{
    ME, POST, SID, WALL, claim, hello, here, inc, is_again, name, named, stays, takes_over, to,
    view,
};

const WRITES: ByKey = ByKey { sid: SID, begins: true };
const READS: ByKey = ByKey { sid: SID, begins: false };

fn anyone(_: SessionId) -> Config {
    Config { now: Members::first(1, [inc(2), inc(3), inc(4)]), prev: None }
}

#[test]
fn a_key_whose_owner_nobody_named_is_looked_for() {
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
fn an_unknown_key_is_absent_to_a_read_and_begun_by_a_write() {
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
fn a_lost_session_of_a_key_is_reported_and_not_silently_begun_anew() {
    let view = view();
    let lost = Failure::Lost { ran: false };
    let mut errand = Errand::by_key(POST, WRITES);
    errand.next(Look::default(), &here(&view), stays);
    assert_eq!(errand.ended(End::Failed(lost), true, &here(&view)), After::TryAlone(lost));
    let after = errand.tried_alone(lost, None, None, true, &here(&view));
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
        let otherwise = Some(Otherwise::Absent);
        assert_eq!(errand.otherwise(anyone), otherwise, "what a fork went on as is never begun");
        followed += 1;
    }
    assert_eq!(followed, 4);
}

#[test]
fn a_key_whose_fork_is_over_is_free() {
    let view = view();
    for key in [READS, WRITES] {
        let mut errand = Errand::by_key(POST, key);
        errand.next(Look::default(), &here(&view), stays);
        let went_on = Failure::WentOn { into: SessionId([10; 16]), by: inc(2) };
        errand.ended(End::Failed(went_on), true, &here(&view));
        errand.next(Look::default(), &here(&view), stays);
        let after = errand.ended(End::Failed(Failure::Absent), true, &here(&view));
        assert_eq!(after, After::Refuse(Failure::Lost { ran: false }));
    }
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
    // A peer that is asked in this way asks nobody in turn.
    let mut errand = Errand::relayed(POST, BY_KEY);
    let step = errand.next(look, &here(&view), stays);
    assert_eq!(step, takes_over(TakeOver::OwnerSilent));
    // A member of a token's session is asked to send it to the owner, not to take over.
    let mut errand = Errand::new(POST, Some(named(2)));
    let step = errand.next(look, &here(&view), stays);
    assert!(matches!(&step, Step::Forward { to, owner, .. } if *to != name(2) && *owner == inc(2)));
}

#[test]
fn a_full_peer_asks_another_before_it_takes_over_what_it_does_not_hold() {
    let mut view = view();
    let full = Here { full: true, ..here(&view) };
    let mut errand = Errand::by_key(POST, WRITES);
    assert!(is_relayed(&errand.next(Look::default(), &full, stays)));
    assert!(is_again(&errand.ended(End::Elsewhere(None), true, &full)));
    let step = errand.next(Look::default(), &full, stays);
    assert_eq!(step, takes_over(TakeOver::NobodyElse), "nobody is asked twice");
    let holds = Look { holds: true, ..Look::default() };
    let step = Errand::by_key(POST, WRITES).next(holds, &full, stays);
    assert_eq!(step, takes_over(TakeOver::Unknown), "it takes no more room");
    // The one that ranks first is full as well.
    let Step::Relay { to, .. } = Errand::by_key(POST, WRITES).next(Look::default(), &full, stays)
    else {
        panic!("another peer is asked");
    };
    let news = view.peer(&to).unwrap().news.clone();
    view.apply(News::Peer(PeerNews { full: true, seq: 9, ..news }), Now(9), Source::FirstHand);
    let full = Here { full: true, ..here(&view) };
    let step = Errand::by_key(POST, WRITES).next(Look::default(), &full, stays);
    assert!(matches!(&step, Step::Relay { to: other, .. } if *other != to), "{step:?}");
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
fn a_deposed_owners_number_is_pinned_for_the_next_attempt() {
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
fn the_remains_of_a_lost_session_are_forgotten_but_not_a_later_session() {
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

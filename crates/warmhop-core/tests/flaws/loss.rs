//! Memory that is gone: members that come back without it, copies that were made to forget,
//! majorities that are lost, and sessions that go on without one.

use std::time::Duration;

use warmhop_core::session::{Failure, Session};

use crate::stage::{FIRST, FORK, Stage};

/// C votes for tea with A, which is acknowledged; B never hears of it. A is cut off, and C is
/// restarted. What C says when B takes the session over decides whether tea is lost.
fn amnesia(title: &str, restart: impl FnOnce(&mut Stage)) -> Stage {
    let mut s = Stage::new(title, "A B C");
    s.draws("A", "A B C");
    s.has_it_run("A", "change tea", "C");
    s.answered("tea", "tea/C");
    s.loses("Accept A>B");
    s.asks("A", "change milk", "A");
    s.ends("milk");
    s.holds_back("Accept A>C");
    s.loses("Accept A>B");
    s.parts("A", "B C");
    restart(&mut s);
    s.takes_over("B");
    s.asks("B", "read list", "B");
    s.settles();
    s
}

/// The danger: C has forgotten that it voted for tea. Its "I hold nothing", together with that of
/// B, is a majority that holds nothing, and the session begins anew without what A acknowledged.
/// The rule: a process that was restarted is another one, and no member; if it is asked for
/// its former life, it answers that this one is dead.
#[test]
fn a_member_that_lost_its_memory_does_not_vote_as_the_one_that_it_was() {
    let mut s = amnesia("a member that lost its memory does not vote", |s| s.restarts("C"));
    s.does_not_serve("B");
    s.waits("list");
    s.tell("A proposal to the former C arrives, and gets no vote.");
    s.arrives("Accept A>C milk");
    s.is_not_sent("Accepted C>A");
    s.passes(Duration::from_secs(6));
    s.failed("list", Failure::NoMajority { ran: false });
    s.failed("milk", Failure::NoMajority { ran: true });

    s.heals();
    s.takes_over("B");
    s.asks("B", "read list", "B");
    s.settles();
    s.tell("A is back, and tea with it. Milk, whose client was warned that it may, came along.");
    s.serves("B");
    s.answered("list", "tea/C milk/A");

    s.tell("The new C becomes a member in the place of the old one, and votes as itself.");
    s.replaces("B", s.token().cfg.now.who[2], "C");
    s.settles();
    s.crashes("A");
    s.gets("B", "change jam", "B", "tea/C milk/A jam/B");
}

/// The same story without the rule: this is what it is for.
#[test]
#[should_panic(expected = "I8: tea was acknowledged before, and is lost")]
fn under_its_old_name_it_would_lose_what_was_acknowledged() {
    amnesia("under its old name", |s| s.restarts_under_its_old_name("C"));
}

/// The danger: C is made to forget its copy, by an operator or by a bound, while the others hold
/// theirs. It is the same process still, so nobody considers it dead, and its "I hold
/// nothing" would outweigh A's memory.
/// The rule: a process keeps the highest stamp that it has forgotten, and votes in no
/// configuration of such a stamp; one that it joins later has a higher one.
#[test]
fn a_copy_that_was_forgotten_does_not_vote_as_if_it_had_been_empty() {
    let mut s = Stage::new("a copy that was forgotten does not vote", "A B C D");
    s.draws("A", "A B C");
    s.has_it_run("A", "change tea", "C");
    s.answered("tea", "tea/C");
    s.loses("Accept A>B");
    s.forgets("C");
    s.parts("A", "B C D");

    s.takes_over("B");
    s.asks("B", "read list", "B");
    s.arrives("Prepare B>C");
    s.is_sent("Nack C>B Forgotten");
    s.is_not_sent("Promise C>B");
    s.settles();
    s.does_not_serve("B");
    s.waits("list");

    s.heals();
    s.passes(Duration::from_millis(200));
    s.settles();
    s.tell("A has answered as well, and knows tea.");
    s.serves("B");
    s.answered("list", "tea/C");
    assert!(!s.machine("C").is_some_and(Session::holds_copy), "C takes nothing in yet");

    s.tell("C leaves and joins again: under a higher stamp its vote counts.");
    s.replaces("B", s.inc("C"), "D");
    s.settles();
    s.replaces("B", s.inc("D"), "C");
    s.settles();
    s.crashes("A");
    s.gets("B", "change milk", "B", "tea/C milk/B");
}

/// The danger: C lives, but votes no more on a session that it forgot before its time. Nobody
/// misses C, so the session goes on with two votes, and one further loss is its end.
/// The rule: its owner makes it a member again, under a stamp above whatever it forgot.
#[test]
fn a_member_that_forgot_is_seated_anew() {
    let mut s = Stage::with_tea("a member that forgot is seated anew", "A B C");
    s.forgets("C");
    s.asks("A", "change jam", "A");
    s.ends("jam");
    s.arrives("Accept A>C");
    s.is_sent("Nack C>A Forgotten");
    s.settles();
    s.answered("jam", "tea/A jam/A");
    assert!(!s.machine("C").is_some_and(Session::holds_copy), "C takes nothing in yet");

    s.reminds("A");
    s.settles();
    assert!(s.machine("A").is_some_and(Session::is_whole), "all three hold it");
    s.tell("One holder may be lost again.");
    s.crashes("B");
    s.gets("A", "change milk", "A", "tea/A jam/A milk/A");
}

/// The danger: C holds all that is left of a session of three, but does not know of the change
/// that A and B acknowledged before both of them were gone. Serving what it holds would undo
/// that change without a word, and beginning anew would undo everything.
/// The rule: once a majority is known to be gone for good, the session is lost, and every
/// client gets that answer.
#[test]
fn when_two_of_three_holders_die_at_once_it_is_said_to_be_lost() {
    let mut s = Stage::with_tea("two of three holders die at once", "A B C D");
    s.has_it_run("A", "keyed milk", "B");
    s.answered("milk", "tea/A milk/B");
    s.loses("Accept A>C");
    s.holds("C", 1);
    s.restarts("A");
    s.restarts("B");

    s.takes_over("C");
    s.asks("C", "read list", "C");
    s.asks("C", "keyed milk", "C");
    s.settles();
    s.failed("list", Failure::Lost { ran: false });
    s.failed("milk", Failure::Lost { ran: false });
    s.runs("milk", 0);
    s.does_not_serve("C");

    s.tell("D hears nothing more: first that C may own it, then that it is lost.");
    let token = s.token();
    s.takes_over_with("D", &token, "A B C");
    s.settles();
    s.takes_over_with("D", &token, "A B C");
    s.asks("D", "read list", "D");
    s.asks("D", "keyed milk", "D");
    s.settles();
    s.failed("list", Failure::Lost { ran: false });
    s.failed("milk", Failure::Lost { ran: false });
    s.runs("milk", 0);
    s.does_not_serve("D");
}

/// The danger: A, who owns the session, replaces B by D before it knows that C is gone as well. No
/// majority will ever agree to that, and A gives the session up; but A and D hold the change, in which
/// two of three live. A peer that looks at either waits for an owner that will never exist.
/// The rule: a change of members needs a majority of those before, and one of those to come. Where it
/// cannot have both, the set without a majority decides what is reported.
#[test]
fn a_change_of_members_that_nobody_can_agree_to_makes_no_session_look_alive() {
    let mut s = Stage::with_tea("a change that nobody can agree to", "A B C D");
    let b = s.inc("B");
    s.restarts("B");
    s.restarts("C");
    s.replaces("A", b, "D");
    s.settles();
    s.does_not_serve("A");
    for name in ["A", "D"] {
        let machine = s.machine(name).expect("the change was accepted there");
        let deciders = machine.deciders(|peer| s.lives(peer));
        let living = deciders.iter().filter(|(_, votes)| *votes).count();
        assert!(2 * living <= deciders.len(), "{name} takes it for one that goes on");
    }
    s.takes_over_without_a_token("D", "A B C");
    s.asks("D", "read list", "D");
    s.settles();
    s.failed("list", Failure::Lost { ran: false });
}

/// The danger: B has forgotten the session and will vote on it no more, C dies, and A, the third, knows
/// of both. Yet B lives, and two of three look like a majority: a peer that looks at A's copy
/// believes that the session goes on, although nobody can ever serve it.
/// The rule: a member that has forgotten is counted as one that is gone.
#[test]
fn a_member_that_forgot_makes_no_session_look_alive() {
    let mut s = Stage::new("a member that forgot", "A B C D");
    s.draws("C", "A B C");
    s.asks("C", "change tea", "A");
    s.settles();
    s.forgets("B");
    s.crashes("C");
    s.takes_over_without_a_token("A", "B D");
    s.settles();
    s.does_not_serve("A");
    let deciders = s.machine("A").expect("it holds a copy").deciders(|peer| s.lives(peer));
    let votes = deciders.iter().filter(|(_, votes)| *votes).count();
    assert_eq!((deciders.len(), votes), (3, 1));
}

/// The danger: as above, but the two are only silent; if they were taken for gone, their return
/// would make two histories of one session.
/// The rule (`without_majority = refuse`): until a majority is back the session is not served.
/// What ran meanwhile may still be applied, and its client gets that answer.
#[test]
fn without_a_majority_an_owner_that_refuses_answers_nothing() {
    let mut s =
        Stage::with_tea("without a majority an owner that refuses answers nothing", "A B C");
    s.parts("A", "B C");
    s.asks("A", "read list", "A");
    s.settles();
    s.waits("list");
    s.passes(Duration::from_secs(6));
    s.failed("list", Failure::NoMajority { ran: false });
    s.asks("A", "change jam", "A");
    s.settles();
    s.asks("A", "change milk", "A");
    s.settles();
    s.waits("jam");
    s.passes(Duration::from_secs(6));
    s.failed("jam", Failure::NoMajority { ran: true });
    s.failed("milk", Failure::NoMajority { ran: false });

    s.heals();
    s.passes(Duration::from_secs(1));
    s.settles();
    s.gets("A", "read list", "A", "tea/A jam/A");
}

/// The danger: A goes on alone from its copy, and its copy goes on voting in the old session as
/// well: with its vote the other side commits changes under a name that A's clients believe to
/// have left behind, and what A promised there binds nobody.
/// The rule (`without_majority = serve`): a fork has another name, and the copy that it began
/// from is fenced first: to the old session it is as if A had died. Forks are never merged.
#[test]
fn a_fork_goes_on_under_another_name_and_its_copy_votes_no_more() {
    let mut s = Stage::with_tea("a fork goes on under another name", "A B C");
    s.parts("A", "B C");
    s.asks("A", "read early", "A");
    s.settles();
    s.forks("A");
    s.settles();
    s.serves("A");
    s.gets("A", "change jam", "A", "tea/A jam/A");

    s.about(FIRST);
    s.tell("The old session is not served by A any more.");
    s.sent_on("early", Some("A"));
    s.does_not_serve("A");
    s.tell("C crashes. B hears A again, and needs one more vote for the old session.");
    s.crashes("C");
    s.heals();
    s.takes_over("B");
    s.asks("B", "read list", "B");
    s.arrives("Prepare B>A");
    s.is_sent("Nack A>B Fenced");
    s.is_not_sent("Promise A>B");
    s.settles();
    s.does_not_serve("B");
    s.passes(Duration::from_secs(6));
    s.failed("list", Failure::NoMajority { ran: false });

    s.tell("Once it is known that C is gone for good, clients learn where the session went.");
    s.restarts("C");
    s.takes_over("B");
    s.asks("B", "read list", "B");
    s.settles();
    let by = s.inc("A");
    s.failed("list", Failure::WentOn { into: FORK, by });
    s.about(FORK);
    s.serves("A");
    s.gets("A", "read list", "A", "tea/A jam/A");
}

/// The danger: the others were not gone at all, and go on with the old session while the fork
/// goes on with its own: one name, two histories.
/// The rule: as above; there are two names, and under each of them one history.
#[test]
fn a_fork_and_the_session_that_it_left_do_not_touch() {
    let mut s = Stage::with_tea("a fork and the session that it left do not touch", "A B C");
    s.goes_on_without_a();
    s.forks("A");
    s.settles();
    s.gets("A", "change jam", "A", "tea/A jam/A");

    s.heals();
    s.about(FIRST);
    s.passes(Duration::from_secs(1));
    s.settles();
    s.asks("B", "change salt", "B");
    s.ends("salt");
    s.is_sent("Accept B>C");
    s.loses("Accept B>C");
    s.tell("With A's vote salt would be chosen. A gives none.");
    s.settles();
    s.waits("salt");
    s.passes(Duration::from_secs(1));
    s.settles();
    s.answered("salt", "tea/A milk/C salt/B");
    s.about(FORK);
    s.gets("A", "read fork", "A", "tea/A jam/A");
}

//! What the network does to messages, and what messages refer to: duplicates, answers that are
//! not kept, bases and bodies that the receiver lacks.

use std::time::Duration;

use warmhop_core::session::Failure;

use crate::stage::Stage;

/// The danger: a network that delivers an order twice makes the app on B run it twice, and
/// whatever it did outside of the session is done twice.
/// The rule: the same position never runs twice on one peer.
#[test]
fn an_order_that_arrives_twice_runs_once() {
    let s = Stage::with_tea("an order that arrives twice runs once", "A B C");
    order_twice(s, "tea/A milk/B");
}

/// The danger: the same, on a peer that holds nothing of the session yet and forgets the order
/// with its empty entry. Each of the two runs has a result of its own: B votes for the first, and
/// if the owner hears of the second first, one position names two bodies.
/// The rule: the same; an order under way is something to keep.
#[test]
fn the_first_order_of_a_session_that_arrives_twice_runs_once() {
    let mut s = Stage::new("the first order of a session arrives twice and runs once", "A B C");
    s.draws("A", "A B C");
    order_twice(s, "milk/B");
}

fn order_twice(mut s: Stage, answer: &str) {
    s.asks("A", "keyed milk", "B");
    s.arrives("Exec A>B");
    s.arrives_again("Exec A>B");
    s.runs("milk", 1);
    s.holds_back("ExecDone B>A refused");

    s.tell("Nor does it run again once it has run.");
    s.ends("milk");
    s.arrives_again("Exec A>B");
    s.runs("milk", 0);
    s.holds_back("ExecDone B>A refused");

    s.tell("Its result arrives twice, and then the refusals: the client gets one answer.");
    s.arrives("ExecDone B>A changed");
    s.answered("milk", answer);
    s.arrives_again("ExecDone B>A changed");
    s.arrives("ExecDone B>A refused");
    s.arrives("ExecDone B>A refused");
    s.settles();
    s.runs("milk", 0);
    s.asks("A", "change jam", "A");
    s.settles();
    s.answered("jam", &format!("{answer} jam/A"));
}

/// The danger: the network repeats one member's vote, and it is counted as two. D, which holds no
/// copy itself, would then own the session on the word of B alone, while A, which it never heard,
/// holds a change that was acknowledged.
/// The rule: a majority is a number of members, not of messages.
#[test]
fn a_vote_that_arrives_twice_counts_once() {
    let mut s = Stage::new("a vote that arrives twice counts once", "A B C D");
    s.draws("A", "A B C");
    s.has_it_run("A", "change tea", "C");
    s.answered("tea", "tea/C");
    s.tell("A and C hold tea. B has never heard of the session.");
    s.loses("Accept A>B");

    s.crashes("A");
    s.takes_over("D");
    s.arrives("Prepare D>B");
    s.arrives_again("Prepare D>B");
    s.arrives("Promise B>D");
    s.arrives("Promise B>D");
    s.arrives_again("Promise B>D");
    s.tell("B promised three times over, and is one of three still.");
    s.does_not_serve("D");
    s.is_not_sent("Accept D>B");

    s.arrives("Prepare D>C");
    s.arrives("Promise C>D");
    s.tell("With C it is a majority, and C knows tea. D proposes it anew.");
    s.is_sent("Accept D>B");
    s.holds_back("Accept D>B");
    s.arrives("Accept D>C");
    s.arrives("Accepted C>D");
    s.arrives_again("Accepted C>D");
    s.arrives_again("Accept D>C");
    s.arrives("Accepted C>D");
    s.tell("C accepted three times over, and is one of three still.");
    s.does_not_serve("D");

    s.settles();
    s.arrives("Accept D>B");
    s.settles();
    s.serves("D");
    s.gets("D", "read list", "D", "tea/C");
}

/// The danger: a proposal arrives again after a later one, and the copy goes back to it: a change
/// that was acknowledged is undone.
/// The rule: a record is replaced by a later one only.
#[test]
fn an_old_proposal_that_arrives_again_undoes_nothing() {
    let mut s = Stage::with_tea("an old proposal that arrives again undoes nothing", "A B C");
    s.asks("A", "change milk", "A");
    s.ends("milk");
    s.loses("Accept A>B");
    s.settles();
    s.answered("milk", "tea/A milk/A");
    s.tell("A and C hold milk, B does not. The proposal of tea arrives at C once more.");
    s.arrives_again("Accept A>C 1.A/1");
    s.holds("C", 2);

    s.crashes("A");
    s.takes_over("B");
    s.settles();
    s.serves("B");
    s.gets("B", "read list", "B", "tea/A milk/A");
}

/// The danger: a client hears nothing, and sends its payment again.
/// The rule: a request with a key is looked up among those that were applied. While it runs, its
/// repeat is turned away; afterwards it gets the stored answer, from the next owner too.
#[test]
fn a_keyed_request_that_is_sent_twice_gets_its_stored_answer() {
    let mut s = Stage::new("a keyed request that is sent twice gets its stored answer", "A B C");
    s.draws("A", "A B C");
    s.asks("A", "keyed pay", "B");
    s.asks("A", "keyed pay", "B");
    s.failed("pay", Failure::KeyInUse);
    s.settles();
    s.gets("A", "change milk", "C", "pay/B milk/C");

    s.asks("A", "keyed pay", "C");
    s.runs("pay", 0);
    s.is_not_sent("Exec A>C");
    s.answered("pay", "again: pay/B");

    s.crashes("A");
    s.takes_over("C");
    s.asks("C", "keyed pay", "C");
    s.settles();
    s.serves("C");
    s.answered("pay", "again: pay/B");
    s.gets("C", "read list", "C", "pay/B milk/C");
}

/// The danger: what was applied long ago is remembered no more, and a repeat of it looks new.
/// The rule: what leaves the memory raises a floor. A repeat whose client had seen less than that
/// when it first sent it is refused: nobody can tell whether it was applied.
#[test]
fn a_repeat_that_nobody_remembers_is_refused_and_not_applied_again() {
    let mut s = Stage::new("a repeat that nobody remembers is refused", "A B C");
    s.policy.recent_keyed_max = 2;
    s.draws("A", "A B C");
    for request in ["keyed pay", "keyed tea", "keyed milk"] {
        s.asks("A", request, "B");
        s.settles();
    }
    s.tell("Two answers are kept: those to tea and milk.");
    s.asks("A", "keyed milk", "A");
    s.answered("milk", "again: pay/B tea/B milk/B");
    s.asks("A", "keyed pay", "A");
    s.settles();
    s.failed("pay", Failure::BelowFloor);

    s.tell("A request that is new, and whose client has seen everything, runs.");
    s.gets("A", "keyed jam", "A", "pay/B tea/B milk/B jam/A");
}

/// The danger: the response to a keyed request is too long to be stored. Were the request not
/// written down for that, its repeat would run again.
/// The rule: it is committed with a mark in place of its response, and the repeat gets an answer that says so.
#[test]
fn a_response_too_large_to_store_is_remembered_as_such() {
    let mut s = Stage::new("a response too large to store is remembered as such", "A B C");
    s.policy.stored_response_bytes_max = 100;
    s.draws("A", "A B C");
    s.asks("A", "keyed large catalogue", "B");
    s.settles();
    s.tell("The client gets all of it, the first time.");
    s.answered("catalogue", "catalogue/B");

    s.asks("A", "keyed large catalogue", "B");
    s.runs("catalogue", 0);
    s.is_not_sent("Exec A>B");
    s.answered("catalogue", "applied, too large to repeat");

    s.crashes("A");
    s.takes_over("C");
    s.settles();
    s.asks("C", "keyed large catalogue", "C");
    s.settles();
    s.answered("catalogue", "applied, too large to repeat");
    s.gets("C", "read list", "C", "catalogue/B");
}

/// The danger: C is asked to run on the record that it is known to hold, but holds another by
/// now: one that it voted for and that was given up. What it answers would build on a change
/// whose client got the answer that it had failed.
/// The rule: an order runs on exactly the named base; who lacks it says so, and gets it.
#[test]
fn an_executor_that_lacks_the_base_says_so_and_gets_it() {
    let mut s = Stage::with_tea("an executor that lacks the base says so and gets it", "A B C");
    s.asks("A", "change milk", "C");
    s.arrives("Exec A>C");
    s.ends("milk");
    s.tell("C has voted for milk, but A never learns it.");
    s.loses("ExecDone C>A");
    s.gives_up("A", "milk");
    s.failed("milk", Failure::ExecutionFailed);

    s.asks("A", "change jam", "C");
    s.is_sent("Exec A>C what it holds at 1.A/1");
    s.arrives("Exec A>C");
    s.runs("jam", 0);
    s.is_sent("ExecDone C>A NeedBase");
    s.arrives("ExecDone C>A NeedBase");
    s.is_sent("Exec A>C [tea/A]");
    s.settles();
    s.answered("jam", "tea/A jam/C");
}

/// The danger: a new owner proposes again what it found, without the body that the members should
/// hold. C holds none. Were its vote for "the same" counted, there would be one copy
/// of the session where everyone counts two.
/// The rule: who does not hold the body asks for it, and casts no vote until then.
#[test]
fn a_member_that_lacks_the_body_asks_for_it_before_it_votes() {
    let mut s = Stage::new("a member that lacks the body asks for it before it votes", "A B C");
    s.draws("A", "A B C");
    s.asks("A", "change tea", "A");
    s.ends("tea");
    s.loses("Accept A>C");
    s.settles();
    s.answered("tea", "tea/A");
    s.tell("A and B hold tea, C holds nothing.");
    s.crashes("A");
    s.takes_over("B");
    s.arrives("Prepare B>C");
    s.arrives("Promise C>B holding nothing");
    s.arrives("Accept B>C same");
    s.is_sent("NeedFull C>B");
    s.is_not_sent("Accepted C>B");
    s.does_not_serve("B");
    s.arrives("NeedFull C>B");
    s.arrives("Accept B>C [tea/A]");
    s.does_not_serve("B");
    s.arrives("Accepted C>B");
    s.serves("B");

    s.tell("What C voted for it holds.");
    s.holds("C", 2);
}

/// How often `from` sent such a message so far, as the narrative has it.
fn sent(s: &Stage, message: &str) -> usize {
    let line = format!("  {message}");
    s.narrative().lines().filter(|it| it.starts_with(&line)).count()
}

/// The danger: C has no room for a copy, and the whole body, which may be large, is sent to it again as often
/// as to one that does not answer: more than once a second for as long as C is full, for each session.
/// The rule: a member that refused a copy is offered it again at growing intervals, up to a bound; another
/// record is offered at once, and a member that has room again gets its copy.
#[test]
fn a_member_without_room_is_offered_a_copy_ever_more_seldom() {
    let mut s = Stage::with_tea("a member without room", "A B C");
    s.is_full("C");
    s.crashes("B");
    s.asks("A", "change milk", "A");
    let before = sent(&s, "Accept A>C");
    for _ in 0..600 {
        s.settles();
        s.passes(Duration::from_millis(100));
    }
    s.failed("milk", Failure::NoMajority { ran: true });
    let offers = sent(&s, "Accept A>C") - before;
    assert!((5..=15).contains(&offers), "offered {offers} times in a minute");

    s.has_room_again("C");
    for _ in 0..100 {
        s.settles();
        s.passes(Duration::from_millis(100));
    }
    s.gets("A", "read list", "A", "tea/A milk/A");
}

/// The danger: A, which owns the session, is gone, and C, which takes it over, needs the vote of B, which is
/// full. If it sent the body, B would have no room for what it holds already.
/// The rule: a member that holds what is proposed again is sent no body.
#[test]
fn a_member_without_room_votes_for_what_it_holds() {
    let mut s = Stage::with_tea("a member without room votes for what it holds", "A B C");
    s.is_full("B");
    s.crashes("A");
    s.takes_over("C");
    s.gets("C", "read list", "C", "tea/A");
}

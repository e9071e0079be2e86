//! Births: sessions that a key names, begun where nobody knows of them. Whose word "nobody knows of
//! it" rests on decides whether what was acknowledged is found.

use std::time::Duration;

use warmhop_core::session::Failure;

use crate::stage::Stage;

/// Five who know each other.
fn five(title: &str) -> Stage {
    let mut s = Stage::new(title, "A B C D E");
    for (name, others) in
        [("A", "B C D E"), ("B", "A C D E"), ("C", "A B D E"), ("D", "A B C E"), ("E", "A B C D")]
    {
        s.knows(name, others, "");
    }
    s
}

/// A and B hold tea under a key; C and D were asked and hold nothing. Then A cannot be heard any more,
/// and B and C are restarted: B, which has forgotten tea, and C, which knows nobody's former life.
fn two_were_started_anew(title: &str) -> Stage {
    let mut s = Stage::new(title, "A B C D");
    s.knows("A", "B C D", "");
    s.knows("B", "A C D", "");
    s.knows("C", "A B D", "");
    s.knows("D", "A B C", "");
    s.asks_by_key("A", "change tea", "A B D");
    s.arrives("Begin A>B");
    s.arrives("Begin A>C");
    s.loses("Begin A>D");
    s.arrives("Free B>A");
    s.arrives("Free C>A");
    s.ends("tea");
    s.loses("Accept A>D");
    s.settles();
    s.answered("tea", "tea/A");
    s.parts("A", "B C D");
    s.restarts("B");
    s.restarts("C");
    s
}

/// A begins tea with B and C as its other members; B hears nothing of it.
fn a_birth_without_b(s: &mut Stage) {
    s.asks_by_key("A", "change tea", "A B C");
    for other in ["C", "D", "E"] {
        s.arrives(&format!("Begin A>{other}"));
        s.arrives(&format!("Free {other}>A"));
    }
    s.loses("Begin A>B");
    s.ends("tea");
    s.loses("Accept A>B");
    s.settles();
    s.answered("tea", "tea/A");
}

/// The danger: B and C have met each other and D, but no peer that knows of B's rebirth has been
/// heard yet. B asks everyone it knows, and C, which began a moment ago, answers first: two of three
/// known, and the third may be missed. Tea, which A and B acknowledged, would begin again from nothing.
/// The rule: a young peer counts as missed until one that is settled vouches for it.
#[test]
fn a_young_peer_is_no_witness_before_one_that_is_settled_vouches_for_it() {
    let mut s = two_were_started_anew("a young peer is no witness");
    s.knows("B", "C D", "");
    s.is_young("B", "C");
    s.knows("C", "B", "");
    s.is_young("C", "B");
    s.asks_by_key("B", "change milk", "B C D");
    s.arrives("Begin B2>C2");
    s.arrives("Free C2>B2");
    s.does_not_serve("B");
    s.waits("milk");

    s.tell("D is settled, but knows neither of the two: only of A, and of those that they were.");
    s.arrives("Begin B2>D");
    s.arrives("Free D>B2");
    s.settles();
    s.does_not_serve("B");
    s.passes(Duration::from_secs(6));
    s.failed("milk", Failure::NoMajority { ran: false });

    s.heals();
    s.knows("B", "A C D", "");
    s.asks_by_key("B", "read list", "B C D");
    s.settles();
    s.answered("list", "tea/A");
}

/// The danger: where every peer was started a moment ago there is nobody to vouch for anyone, and a
/// mesh that has just begun would serve no key before its peers are settled.
/// The rule: where nobody is settled, as far as each said of itself, all of them count, and one may be
/// missed, as always.
#[test]
fn in_a_mesh_that_has_just_begun_the_young_vouch_for_themselves() {
    let mut s = Stage::new("a mesh that has just begun", "A B C");
    s.knows("A", "B C", "");
    s.is_young("A", "B C");
    s.knows("B", "A C", "");
    s.is_young("B", "A C");
    s.crashes("C");
    s.asks_by_key("A", "change tea", "A B C");
    s.settles();
    s.answered("tea", "tea/A");
}

/// The danger: a peer that was added is young, but nobody counted on it before; if it had to wait
/// until it is settled, its clients would.
/// The rule: one that is settled and knows it, and no former life of it, vouches for it.
#[test]
fn a_peer_that_was_added_begins_keys_as_soon_as_one_that_is_settled_knows_it() {
    let mut s = Stage::new("a peer that was added", "A B C");
    s.knows("A", "B C", "B");
    s.knows("C", "A B", "B");
    s.is_young("C", "");
    s.parts("B", "A C");
    s.asks_by_key("C", "change tea", "A B C");
    s.settles();
    s.answered("tea", "tea/C");
}

/// The danger: A and C hold tea under a key, and B, the third member, does not. D, which reached neither
/// of the two, asked B to begin the session at B, D and E, above what A began; then D and E are started
/// anew. The peer that takes the session over hears of that birth, and has to close it; but those who could
/// are gone for good. It and every peer after it would fail, and nobody could get tea any more,
/// although its members live.
/// The rule: where a majority of the members holds what was found, nobody closed those members for the
/// birth, so that nothing came of it: it is passed over.
#[test]
fn a_birth_that_nobody_can_close_any_more_does_not_shut_in_what_is_held_below_it() {
    let mut s = five("a birth that nobody can close");
    s.asks_by_key("A", "change tea", "A B C");
    for other in ["B", "C", "D", "E"] {
        s.arrives(&format!("Begin A>{other}"));
        s.arrives(&format!("Free {other}>A"));
    }
    s.ends("tea");
    s.loses("Accept A>B");
    s.settles();
    s.answered("tea", "tea/A");
    s.asks_by_key("D", "change milk", "B D E");
    s.arrives("Begin D>B");
    s.arrives("Begin D>E");
    s.loses("Begin D>A");
    s.loses("Begin D>C");
    s.restarts("D");
    s.restarts("E");
    s.settles();

    s.tell("The first time C hears that B promised D more than it asks for.");
    s.asks_by_key("C", "read list", "A B C");
    s.settles();
    s.does_not_serve("C");
    s.asks_by_key("C", "read list", "A B C");
    s.arrives("Prepare C>B");
    s.arrives("Promise B>C");
    s.does_not_serve("C");
    s.settles();
    s.serves("C");
    s.answered("list", "tea/A");
}

/// The danger: A and C hold tea, and B, the third member, does not: it was cut off, tried to begin the
/// session itself at B, D and E, and finds tea as soon as it hears C. Before it does, A, D and E are
/// restarted. C would have to close what B began, which takes D or E; so nobody could ever have tea
/// again, although of its holders only one is gone.
/// The rule: a peer that begins a session as a member is the first to accept what it proposes there. If
/// it accepted nothing, nobody did.
#[test]
fn a_birth_whose_beginner_holds_nothing_of_it_came_to_nothing() {
    let mut s = five("a birth whose beginner holds nothing of it");
    a_birth_without_b(&mut s);
    s.parts("B", "A C");
    s.asks_by_key("B", "change milk", "B D E");
    s.settles();
    for _ in 0..3 {
        s.passes(Duration::from_secs(2));
        s.settles();
    }
    s.failed("milk", Failure::NoMajority { ran: false });
    s.restarts("A");
    s.restarts("D");
    s.restarts("E");
    s.heals();
    for _ in 0..2 {
        s.asks_by_key("C", "read list", "A B C");
        s.settles();
    }
    s.serves("C");
    s.answered("list", "tea/A");
}

/// As above, but B tries to begin the session at A, D and E, and is no member there: it would accept
/// nothing of what it proposes.
/// The rule: a peer that gave a birth up forgets that it tried, and its list of births shows that.
#[test]
fn a_birth_that_its_beginner_gave_up_came_to_nothing_whichever_members_it_had() {
    let mut s = five("a birth that its beginner gave up");
    a_birth_without_b(&mut s);
    s.parts("B", "A C D E");
    s.asks_by_key("B", "change milk", "A D E");
    s.gives_up_waiting("milk");
    s.restarts("A");
    s.restarts("D");
    s.restarts("E");
    s.heals();
    s.asks_by_key("C", "read list", "A B C");
    s.settles();
    s.serves("C");
    s.answered("list", "tea/A");
}

/// The danger: the members of tea are A, C and D, held by A and C. B, which is none of them, tried to begin
/// the session at A, D and E, and D remembers that. A and E are restarted: what B may have proposed
/// can never be closed, D cannot tell that it proposed nothing, and nobody asks B for a promise.
/// The rule: every peer is asked what it knows, B included, and B's answer counts at once.
#[test]
fn the_beginner_of_a_session_is_asked_for_its_outcome_by_those_that_remember_it() {
    let mut s = five("a beginner is asked what came of it");
    s.asks_by_key("A", "change tea", "A C D");
    for other in ["B", "C", "E"] {
        s.arrives(&format!("Begin A>{other}"));
        s.arrives(&format!("Free {other}>A"));
    }
    s.loses("Begin A>D");
    s.ends("tea");
    s.loses("Accept A>D");
    s.settles();
    s.answered("tea", "tea/A");
    s.forgets("B");
    s.forgets("E");
    s.parts("B", "A C");
    s.asks_by_key("B", "change milk", "A D E");
    s.gives_up_waiting("milk");
    s.restarts("A");
    s.restarts("E");
    s.heals();
    s.asks_by_key("C", "read list", "A C D");
    for _ in 0..4 {
        s.settles();
        s.passes(Duration::from_millis(300));
        s.settles();
    }
    s.serves("C");
    s.answered("list", "tea/A");
}

/// The danger: B owned milk, which A and E acknowledged, and was no member of it. It was deposed by a
/// takeover that came to nothing, and A and E are restarted. Were B taken for one that gave the birth
/// up, the session would begin again without milk, and nobody would learn of the loss.
/// The rule: a peer that came to own the session by a birth keeps reporting it. What can never be closed is
/// reported as lost once everyone was asked, and is not waited for without end.
#[test]
fn a_birth_that_made_its_beginner_the_owner_is_never_passed_over() {
    let mut s = five("a birth that made its beginner the owner");
    s.asks_by_key("B", "change milk", "A D E");
    for other in ["A", "C", "D", "E"] {
        s.arrives(&format!("Begin B>{other}"));
        s.arrives(&format!("Free {other}>B"));
    }
    s.ends("milk");
    s.loses("Accept B>D");
    s.settles();
    s.answered("milk", "milk/B");
    s.restarts("A");
    s.restarts("E");
    s.takes_over_without_a_token("D", "B C");
    s.settles();
    s.asks_by_key("B", "read own", "A D E");
    s.settles();
    s.does_not_serve("B");
    s.tell("The first time C hears of the takeover, and has to go higher.");
    s.asks_by_key("C", "change cocoa", "C D E");
    s.settles();
    s.does_not_serve("C");
    s.asks_by_key("C", "change lemon", "C D E");
    for _ in 0..4 {
        s.settles();
        s.passes(Duration::from_millis(300));
    }
    s.failed("lemon", Failure::Lost { ran: false });
}

/// The danger: D began the session at C, D and E, and D and E are restarted. Milk may have been chosen
/// there, so that A finds the session lost, and has everyone forget it. Its clock is ahead, and so is the stamp of what it had tried to begin instead. B hears of that
/// late, and so do D and E: meanwhile B begins the session there, and cocoa is acknowledged. D and E would
/// take what A sent for an order to forget cocoa.
/// The rule: what was found lost is forgotten, and nothing that was begun beside the search for it.
#[test]
fn a_session_begun_during_a_search_is_not_forgotten_with_the_lost_one_that_was_found() {
    let mut s = five("forgetting what was lost comes late");
    s.clock_is_off("A", 1);
    s.asks_by_key("D", "change milk", "C D E");
    for other in ["A", "C", "E"] {
        s.arrives(&format!("Begin D>{other}"));
        s.arrives(&format!("Free {other}>D"));
    }
    s.loses("Begin D>B");
    s.ends("milk");
    s.loses("Accept D>C");
    s.loses("Accept D>E");
    s.waits("milk");
    s.restarts("D");
    s.restarts("E");
    for (name, others) in [("A", "B C D E"), ("B", "A C D E"), ("C", "A B D E")] {
        s.knows(name, others, "");
    }

    s.asks_by_key("A", "change tea", "A B C");
    for _ in 0..4 {
        s.settles();
        s.passes(Duration::from_millis(300));
    }
    s.failed("tea", Failure::Lost { ran: false });
    s.buries("A");
    s.arrives("Retire A>C");
    for other in ["B", "D2", "E2"] {
        s.holds_back(&format!("Retire A>{other}"));
    }

    s.asks_by_key("B", "change cocoa", "B D E");
    for _ in 0..4 {
        s.settles();
        s.passes(Duration::from_millis(300));
    }
    s.answered("cocoa", "cocoa/B");
    for other in ["D2", "E2"] {
        s.arrives(&format!("Retire A>{other}"));
    }
    s.asks_by_key("C", "read list", "B D E");
    s.settles();
    s.answered("list", "cocoa/B");
}

/// The danger: another peer called the session lost, and its word reaches A late: A has taken it over
/// since, and serves it. Were A to have everyone forget it now, tea would be lost indeed.
/// The rule: a peer that has the others forget a session has found it lost itself, and nothing since.
#[test]
fn a_peer_that_serves_a_session_has_nobody_forget_it_whatever_another_peer_found() {
    let mut s = five("a late word that it is lost");
    s.asks_by_key("A", "change tea", "A B C");
    s.settles();
    s.answered("tea", "tea/A");
    s.buries("A");
    s.buries("B");
    s.settles();
    s.serves("A");
    s.asks_by_key("A", "read list", "A B C");
    s.settles();
    s.answered("list", "tea/A");
}

/// The danger: A looks for the session, and two of five take their time. B, C and D have answered A that they
/// know nothing when B begins the session, and its change is acknowledged. Then another request comes
/// to A, waits beside the first, and gets the same answer: that there is no such session.
/// The rule: what was answered before a request came says nothing to it; everyone is asked again.
#[test]
fn a_request_that_came_while_others_were_asked_gets_no_answer_older_than_itself() {
    let mut s = five("answers that are older than the request");
    s.looks_by_key("A", "read list");
    for other in ["B", "C", "D"] {
        s.arrives(&format!("Locate A>{other}"));
    }
    s.arrives("Located B>A");
    s.arrives("Located C>A");
    s.holds_back("Located D>A");
    s.waits("list");

    s.asks_by_key("B", "change tea", "B C D");
    s.loses("Begin B>A");
    s.settles();
    s.answered("tea", "tea/B");

    s.passes(Duration::from_millis(1));
    s.looks_by_key("A", "read again");
    s.arrives("Located D>A");
    s.failed("list", Failure::Absent);
    s.waits("again");
    s.settles();
    s.answered("again", "tea/B");
}

/// The danger: A looks for the session, and the answers take their time, so that it gives up. Then B
/// begins the session, and its change is acknowledged. A looks again, and what B, C and D said before
/// that arrives now.
/// The rule: an answer counts for the question that it answers, and for no later one.
#[test]
fn answers_to_an_earlier_look_say_nothing_to_a_later_one() {
    let mut s = five("answers to an earlier look");
    s.looks_by_key("A", "read list");
    for other in ["B", "C", "D"] {
        s.arrives(&format!("Locate A>{other}"));
        s.holds_back(&format!("Located {other}>A"));
    }
    s.passes(Duration::from_secs(6));
    s.failed("list", Failure::NoMajority { ran: false });

    s.asks_by_key("B", "change tea", "B C D");
    s.loses("Begin B>A");
    s.settles();
    s.answered("tea", "tea/B");

    s.looks_by_key("A", "read again");
    for other in ["B", "C", "D"] {
        s.arrives(&format!("Located {other}>A"));
    }
    s.waits("again");
    s.settles();
    s.answered("again", "tea/B");
}

/// The danger: as above, and what arrives late would count as promises that nobody gave: two peers that
/// begin the session at once would not meet.
/// The rule: a peer that reported that it knows nothing, before it was asked to promise, has promised
/// nothing.
#[test]
fn an_answer_to_a_look_is_no_promise_to_a_birth() {
    let mut s = five("a look before a birth");
    s.looks_by_key("A", "read list");
    for other in ["C", "D"] {
        s.arrives(&format!("Locate A>{other}"));
        s.holds_back(&format!("Located {other}>A"));
    }
    s.passes(Duration::from_secs(6));
    s.failed("list", Failure::NoMajority { ran: false });

    s.asks_by_key("A", "change tea", "A B C");
    s.arrives("Begin A>B");
    s.arrives("Free B>A");
    s.arrives("Located C>A");
    s.arrives("Located D>A");
    s.waits("tea");
    s.does_not_serve("A");
    s.settles();
    s.answered("tea", "tea/A");
}

//! A token that is older than the members: all of those that it names have been replaced, one by
//! one, and the session lives on where the token does not point.

use std::time::Duration;

use warmhop_core::session::{Failure, Session, TokenHint};

use crate::stage::{FIRST, Stage};

/// The session goes through five configurations, from A, B and C to E, F and G, and a change is
/// made in each. A peer that leaves never learns that it has left, nor what was changed since.
/// Returns the token of the first configuration.
fn five_configurations(title: &str) -> (Stage, TokenHint) {
    let mut s = Stage::new(title, "A B C D E F G H");
    s.draws("A", "A B C");
    s.asks("A", "change tea", "A");
    s.settles();
    let token = s.token();
    s.tell("A client keeps its token of c1, and sleeps.");

    s.replaces("A", s.inc("C"), "D");
    s.loses("Accept A>C");
    s.arrives("Accept A>B");
    s.arrives("Accepted B>A");
    s.loses("Nack A>C");
    s.settles();
    s.gets("A", "change milk", "D", "tea/A milk/D");

    s.replaces("A", s.inc("B"), "E");
    s.loses("Accept A>B");
    s.arrives("Accept A>D");
    s.arrives("Accepted D>A");
    s.loses("Nack A>B");
    s.settles();
    s.gets("A", "change jam", "E", "tea/A milk/D jam/E");
    s.tell("It goes to and fro: D's ballot is higher than the first one of a peer that takes it over by a token.");
    for (from, to) in [("A", "D"), ("D", "A"), ("A", "D")] {
        s.hands_off(from, to);
        s.settles();
    }
    s.serves("D");
    s.does_not_serve("A");

    s.replaces("D", s.inc("A"), "F");
    s.loses("Accept D>A");
    s.arrives("Accept D>E");
    s.arrives("Accepted E>D");
    s.loses("Nack D>A");
    s.settles();
    s.gets("D", "change bread", "F", "tea/A milk/D jam/E bread/F");
    s.hands_off("D", "E");
    s.settles();
    s.serves("E");

    s.replaces("E", s.inc("D"), "G");
    s.loses("Accept E>D");
    s.arrives("Accept E>F");
    s.arrives("Accepted F>E");
    s.loses("Nack E>D");
    s.settles();
    s.gets("E", "change salt", "G", "tea/A milk/D jam/E bread/F salt/G");
    assert_eq!(s.token().cfg.now.c, 5);
    (s, token)
}

/// The danger: a client has no token at all, and the peer that it asks never heard of the
/// session: to such a peer, one that lives and one that never was look the same.
/// The rule: the first few by rank are asked, then everyone; who holds it names its members, and
/// a takeover among them finds the newest record.
#[test]
fn a_session_is_found_without_a_token() {
    let mut s = Stage::with_tea("a session is found without a token", "A B C D");
    s.crashes("A");
    s.takes_over_without_a_token("D", "C A B");
    s.is_sent("Locate D>C");
    s.asks("D", "read list", "D");
    s.settles();
    s.serves("D");
    s.answered("list", "tea/A");
}

/// A member that lives and is replaced hears of it, so that it does not count itself among them
/// for as long as it keeps its copy.
#[test]
fn a_member_that_is_replaced_hears_of_it() {
    let mut s = Stage::with_tea("a member that is replaced hears of it", "A B C D");
    s.replaces("A", s.inc("C"), "D");
    s.settles();
    let (came, went) = (s.inc("D"), s.inc("C"));
    let members = s.machine("C").map(Session::members).unwrap_or_default();
    assert!(members.contains(&came) && !members.contains(&went));
}

/// The danger: B and C hold tea. A takes the place of C, C agrees to that, and B dies before A has
/// heard of it. C holds everything; but of the new members only A is left, which holds nothing.
/// The rule: nothing was chosen among two without the one that is left, so that its promise is enough,
/// and shows by what it reports that nothing was chosen there.
#[test]
fn a_newcomer_that_is_left_of_two_and_holds_nothing_does_not_make_the_session_lost() {
    let mut s = Stage::new("a newcomer that is left", "A B C");
    s.draws("B", "B C");
    s.gets("B", "change tea", "B", "tea/B");
    s.replaces("B", s.inc("C"), "A");
    s.arrives("Locate B>A");
    s.arrives("Located A>B");
    s.loses("Accept B>A");
    s.arrives("Accept B>C");
    s.arrives("Accepted C>B");
    s.restarts("B");
    s.takes_over("C");
    s.settles();
    s.serves("C");
    s.gets("C", "read list", "C", "tea/B");
}

/// The danger: A, the only member, takes in B, which died a moment ago and is not missed yet. The seal
/// is chosen by A alone, and from then on nothing is chosen without B.
/// The rule: a newcomer without which there is no majority is asked whether it is there.
#[test]
fn a_sole_member_takes_in_nobody_who_does_not_answer() {
    let mut s = Stage::new("a sole member takes in nobody who does not answer", "A B C D");
    s.draws("A", "A");
    s.asks("A", "change tea", "A");
    s.settles();
    s.crashes("B");
    s.replaces("A", s.inc("D"), "B");
    s.settles();
    s.gets("A", "change milk", "A", "tea/A milk/A");

    s.replaces("A", s.inc("D"), "C");
    s.is_sent("Locate A>C");
    s.settles();
    let came = s.inc("C");
    assert!(s.machine("A").map(Session::members).unwrap_or_default().contains(&came));
    s.gets("A", "change jam", "A", "tea/A milk/A jam/A");
    s.holds("C", s.token().n);
}

/// The danger: A, the only member, takes in B, which has room when it is asked and none when the record
/// comes. A alone has chosen the seal, and the two together choose nothing.
/// The rule: the open form follows once a majority of the new members holds the record, and a seal that they
/// cannot hold gives way to one that leads back.
#[test]
fn a_newcomer_that_has_no_room_after_all_does_not_hold_the_session_up() {
    let mut s = Stage::new("a newcomer that has no room after all", "A B C D");
    s.draws("A", "A");
    s.gets("A", "change tea", "A", "tea/A");
    s.replaces("A", s.inc("D"), "B");
    s.arrives("Locate A>B");
    s.is_full("B");
    s.settles();
    let members = s.machine("A").map(Session::members).unwrap_or_default();
    assert_eq!(members, [s.inc("A")]);
    s.gets("A", "read list", "A", "tea/A");
    s.gets("A", "change milk", "A", "tea/A milk/A");

    s.tell("B goes silent for long in the same place, and nobody knows that it died.");
    s.has_room_again("B");
    s.replaces("A", s.inc("D"), "C");
    s.arrives("Locate A>C");
    s.arrives("Located C>A");
    s.crashes("C");
    s.knows("A", "B C D", "C");
    s.passes(Duration::from_secs(6));
    s.settles();
    s.gets("A", "change jam", "A", "tea/A milk/A jam/A");
}

/// The danger: A, B and C are a majority of the configuration that the token names, and they
/// agree on a state that is four changes old.
/// The rule: what is found counts only once a majority of *its own* configuration was asked; what
/// is found there is asked in its turn, until nothing newer comes up.
#[test]
fn a_token_of_long_ago_leads_to_the_newest_record() {
    let (mut s, token) = five_configurations("a token of long ago leads to the newest record");
    s.tell("The client wakes, and asks H, which never heard of the session.");
    s.takes_over_with("H", &token, "");
    s.asks("H", "read list", "H");
    s.settles();
    s.tell("A has promised D since, and says so. D has promised E.");
    s.sent_on("list", Some("D"));
    s.asks("D", "read list", "D");
    s.sent_on("list", Some("E"));

    s.tell("But E is no more. H has to take the session over, by its old token.");
    s.crashes("E");
    s.takes_over_with("H", &token, "");
    s.asks("H", "read list", "H");
    for member in ["A", "B", "C"] {
        s.arrives(&format!("Prepare H>{member} c1{{A B C}}"));
        s.arrives(&format!("Promise {member}>H"));
        s.tell("Not yet: others may know more.");
        s.does_not_serve("H");
        s.is_not_sent(&format!("Accept H>{member}"));
    }
    s.tell("A knows of c3, where D and E were. They are asked.");
    s.is_sent("Prepare H>D c3{A D E}");
    s.settles();
    s.serves("H");
    s.answered("list", "tea/A milk/D jam/E bread/F salt/G");
}

/// The danger: those that the token names have all been restarted, and know nothing. Taken for
/// an answer, that is an empty session.
/// The rule: a process that was restarted is nobody's voter, and says so; then everyone is
/// asked whether they know of the session.
#[test]
fn if_all_members_in_a_token_are_gone_the_other_peers_are_asked() {
    let (mut s, token) = five_configurations("all that a token names are gone");
    for name in ["A", "B", "C"] {
        s.restarts(name);
    }
    s.takes_over_with("H", &token, "A B C D E F G");
    s.asks("H", "read list", "H");
    s.settles();
    s.tell("E owns it, as those say that it is held by.");
    s.does_not_serve("H");
    s.sent_on("list", Some("E"));
    s.gets("E", "read list", "F", "tea/A milk/D jam/E bread/F salt/G");

    s.tell("And if E is silent, H takes it over from F and G.");
    s.parts("E", "F G H");
    s.takes_over_with("H", &token, "A B C D E F G");
    s.asks("H", "change honey", "H");
    s.settles();
    s.serves("H");
    s.answered("honey", "tea/A milk/D jam/E bread/F salt/G honey/H");
}

/// The danger: of the members of today only one is left. It holds the newest state, and D holds
/// one that is nearly as new; either could be taken for the session.
/// The rule: without a majority nobody can say that nothing newer was acknowledged. While the
/// others may come back, there is no majority; once they are known to be gone for good, the
/// session is lost, and the client gets that answer.
#[test]
fn where_the_majority_of_today_is_gone_the_takeover_says_so() {
    let (mut s, token) = five_configurations("the majority of today is gone");
    s.parts("E F", "H");
    s.takes_over_with("H", &token, "A B C D E F G");
    s.asks("H", "read list", "H");
    s.settles();
    s.tell("Those that are left have promised others, and H hears of them first.");
    s.sent_on("list", Some("D"));
    s.takes_over_with("H", &token, "A B C D E F G");
    s.asks("H", "read list", "H");
    s.settles();
    s.passes(Duration::from_secs(2));
    s.settles();
    s.waits("list");
    s.does_not_serve("H");
    s.passes(Duration::from_secs(4));
    s.failed("list", Failure::NoMajority { ran: false });

    s.tell("E and F were silent for a reason: they have been started anew.");
    s.restarts("E");
    s.restarts("F");
    s.heals();
    s.takes_over_with("H", &token, "A B C D E F G");
    s.asks("H", "read list", "H");
    s.settles();
    s.failed("list", Failure::Lost { ran: false });
    s.does_not_serve("H");
}

/// The danger: E asks everyone where the session is, hears of nothing newer than c1, and waits for
/// C. While it waits, the session moves on, and C is restarted once it holds no copy that
/// counts. Of c1 a majority is gone by then; if E relies on the answers that it had before, it reports
/// that the session is lost, while B serves it.
/// The rule: the session is lost if nobody knows of newer members *after* the majority of those
/// that are known was gone.
#[test]
fn a_takeover_that_took_its_time_does_not_call_lost_what_went_on() {
    let mut s = Stage::with_tea("a takeover that took its time", "A B C D E");
    let token = s.token();
    s.restarts("A");
    s.takes_over_with("E", &token, "A B C D");
    s.asks("E", "read list", "E");
    s.loses("Prepare E>C");
    s.settles();
    s.tell("B has promised E, and C is slow. E asks everyone whether they know of others.");
    for _ in 0..2 {
        s.passes(Duration::from_millis(200));
        s.loses("Prepare E>C");
        s.settles();
    }
    s.waits("list");

    s.tell("B takes the session over from E, and gives it members that live.");
    s.takes_over_with("B", &token, "");
    s.settles();
    s.serves("B");
    s.replaces("B", token.cfg.now.who[0], "D");
    s.settles();
    s.replaces("B", s.inc("C"), "A");
    s.settles();
    s.gets("B", "change milk", "D", "tea/A milk/D");
    s.restarts("C");
    s.waits("list");

    s.tell("E asks C once more, and hears that it is gone.");
    s.passes(Duration::from_millis(900));
    s.settles();
    s.serves("B");
    s.sent_on("list", Some("B"));
    s.gets("B", "read list", "B", "tea/A milk/D");
}

/// The danger: the new members go on although the old ones never agreed to leave, and the old
/// ones go on as well, without them: two majorities that do not meet.
/// The rule: a change of members is chosen by a majority of the old ones first; only then do the
/// new ones vote without them.
#[test]
fn new_members_serve_only_once_the_old_ones_have_agreed() {
    let mut s = Stage::with_tea("new members serve only once the old ones have agreed", "A B C D");
    s.parts("A D", "B C");
    s.replaces("A", s.inc("C"), "D");
    s.asks("A", "change milk", "A");
    s.settles();
    s.tell("A and D are two of the three that are to be, but A alone is of those that were.");
    s.waits("milk");
    s.runs("milk", 0);

    s.takes_over("B");
    s.settles();
    s.serves("B");
    s.gets("B", "change jam", "C", "tea/A jam/C");

    s.heals();
    s.passes(Duration::from_secs(1));
    s.settles();
    s.does_not_serve("A");
    s.sent_on("milk", Some("B"));
    s.gets("B", "change milk", "A", "tea/A jam/C milk/A");
}

/// The danger: the owner dies in the middle of a change of members, and its successor asks a
/// majority of one side only, while the other side holds what was acknowledged last.
/// The rule: a takeover that finds a seal needs a majority of the old members and one of the new.
#[test]
fn a_takeover_in_the_middle_of_a_change_hears_both_sides() {
    let mut s =
        Stage::with_tea("a takeover in the middle of a change hears both sides", "A B C D E");
    let token = s.token();
    s.tell("A puts D in the place of C: the seal is chosen, and so is what follows it.");
    s.replaces("A", s.inc("C"), "D");
    s.arrives("Accept A>B c2{A B D}<c1{A B C}");
    s.loses("Accept A>D c2{A B D}<c1{A B C}");
    s.loses("Accept A>C c2{A B D}<c1{A B C}");
    s.arrives("Accepted B>A");
    s.loses("Accept A>B c2{A B D}");
    s.arrives("Accept A>D c2{A B D}");
    s.arrives("NeedFull D>A");
    s.arrives("Accept A>D [tea/A]");
    s.arrives("Accepted D>A");
    s.has_it_run("A", "change milk", "D");
    s.answered("milk", "tea/A milk/D");
    s.loses("Accept A>B");
    s.tell("A and D hold milk; B holds the seal, C has heard nothing. A dies.");
    s.crashes("A");

    s.takes_over_with("E", &token, "");
    s.arrives("Prepare E>B");
    s.arrives("Promise B>E");
    s.arrives("Prepare E>C c1{A B C}");
    s.arrives("Promise C>E");
    s.tell("B and C are a majority of the old members. Of the new ones, B has answered alone.");
    s.does_not_serve("E");
    s.is_not_sent("Accept E>B");
    s.is_sent("Prepare E>D c2{A B D}");
    s.settles();
    s.serves("E");
    s.gets("E", "read list", "E", "tea/A milk/D");
}

/// The danger: A began a change of members that the old ones never agreed to, and they went on
/// without it. A takeover that hears of the seal first, and is content with the new members, would
/// bring it back, with what the session held before.
/// The rule: as above; the old members decide about a seal, and they know of later ballots.
#[test]
fn a_seal_that_was_never_chosen_does_not_undo_what_came_after() {
    let mut s = Stage::with_tea("a seal that was never chosen undoes nothing", "A B C D E");
    let token = s.token();
    s.parts("A D", "B C");
    s.replaces("A", s.inc("C"), "D");
    s.settles();
    s.tell("A and D hold the seal. B and C go on without them.");
    s.takes_over("C");
    s.settles();
    s.takes_over("B");
    s.settles();
    s.gets("B", "change milk", "C", "tea/A milk/C");

    s.heals();
    s.takes_over_with("E", &token, "");
    s.settles();
    s.tell("B's ballot was higher. E tries again, and hears A first, then D.");
    s.does_not_serve("E");
    s.takes_over_with("E", &token, "");
    for old in ["B", "C"] {
        s.holds_back(&format!("Prepare E>{old}"));
    }
    s.arrives("Prepare E>A c1{A B C}");
    s.arrives("Promise A>E c2{A B D}<c1{A B C}");
    for old in ["B", "C"] {
        s.holds_back(&format!("Prepare E>{old} c2{{A B D}}<c1{{A B C}}"));
    }
    s.arrives("Prepare E>A c2{A B D}<c1{A B C}");
    s.arrives("Promise A>E");
    s.arrives("Prepare E>D c2{A B D}<c1{A B C}");
    s.arrives("Promise D>E");
    s.tell("A and D are two of the three that were to be, and A is one of those that were.");
    s.does_not_serve("E");
    s.is_not_sent("Accept E>A");
    s.is_not_sent("Accept E>D");

    s.arrives("Prepare E>B c1{A B C}");
    s.settles();
    s.serves("E");
    s.gets("E", "read list", "E", "tea/A milk/C");
}

/// The danger: A went on without the others, and B, which owned the session later, learnt that. When A
/// has forgotten that, it is a member like any other that forgot; but B, which takes its vote for gone,
/// sends it nothing any more, and the session has one copy less than it should, for ever.
/// The rule: when a member lacks the newest record, a peer that went on without the others is asked
/// whether it takes part again.
#[test]
fn a_member_that_forgot_that_it_went_on_alone_gets_its_copy_again() {
    let mut s = Stage::with_tea("a member takes part again", "A B C");
    s.forks("A");
    s.about(FIRST);
    s.takes_over("B");
    s.settles();
    s.serves("B");
    s.gets("B", "change milk", "B", "tea/A milk/B");

    s.reminds("B");
    s.settles();
    s.tell("It still goes on alone.");
    assert!(s.machine("A").is_some_and(|machine| machine.fenced().is_some()));
    s.forgets("A");
    for _ in 0..3 {
        s.reminds("B");
        s.settles();
        s.passes(Duration::from_secs(1));
        s.settles();
    }
    let version = s.machine("B").map_or(0, Session::version);
    s.holds("A", version);
}

/// The danger: A owned the session, was cut off, and proposed to replace C by D, which nobody agreed to.
/// Meanwhile B took the session over and replaced A by E. A learns the members since, as many changes
/// on as its own proposal, and goes on to take that for the newer one: it counts on peers that are no members.
/// The rule: what is open was chosen, and outlasts every seal of as many changes.
#[test]
fn a_change_of_members_that_was_not_chosen_gives_way_to_the_one_that_was() {
    let mut s = Stage::with_tea("a change that was not chosen", "A B C D E");
    s.parts("A", "B C E");
    s.replaces("A", s.inc("C"), "D");
    s.arrives("Accept A>D");
    s.loses("Accepted D>A");
    s.takes_over("B");
    s.settles();
    s.serves("B");
    s.replaces("B", s.inc("A"), "E");
    s.settles();
    s.heals();
    s.passes(Duration::from_secs(1));
    s.settles();
    s.does_not_serve("A");
    let mut members = [s.inc("B"), s.inc("C"), s.inc("E")];
    members.sort_unstable();
    assert_eq!(s.machine("A").map(Session::members), Some(&members[..]), "{}", s.narrative());
}

/// The danger: the clients of a session make no pause, and each time that its owner looks whether its
/// members are to be changed, a request runs. The peer that leaves waits for it in vain.
/// The rule: the change is made once the request that runs has ended, and the next one waits for it.
#[test]
fn the_members_of_a_session_that_is_never_idle_are_changed_between_two_requests() {
    let mut s = Stage::with_tea("a session that is never idle", "A B C D");
    let leaves = s.inc("C");
    let members = |s: &Stage| s.machine("A").map(Session::members).unwrap_or_default().to_vec();
    s.asks("A", "change milk", "A");
    s.asks("A", "change jam", "A");
    s.replaces_soon("A", leaves, Some("D"));
    s.runs("milk", 1);
    s.ends("milk");
    s.arrives("Accept A>B");
    s.arrives("Accepted B>A");
    s.runs("jam", 0);
    s.settles();
    s.answered("jam", "tea/A milk/A jam/A");
    assert!(members(&s).contains(&s.inc("D")) && !members(&s).contains(&leaves));

    s.tell("Without a newcomer, the other one that stays is asked first.");
    let leaves = s.inc("D");
    s.asks("A", "change bread", "A");
    s.replaces_soon("A", leaves, None);
    s.asks("A", "change salt", "A");
    let is_chosen = |s: &mut Stage| {
        s.arrives("Accept A>B");
        s.arrives("Accepted B>A");
    };
    s.ends("bread");
    is_chosen(&mut s);
    s.arrives("Locate A>B");
    s.arrives("Located B>A");
    s.runs("salt", 1);
    s.asks("A", "change oil", "A");
    s.ends("salt");
    is_chosen(&mut s);
    s.runs("oil", 0);
    s.settles();
    s.answered("oil", "tea/A milk/A jam/A bread/A salt/A oil/A");
    assert_eq!(members(&s), [s.inc("A"), s.inc("B")]);
}

/// The danger: A begins a session with B and C, and its first change is not chosen yet when C says that it
/// will leave, or falls silent. A looks through all that it holds, which this session is not yet part of,
/// and never again.
/// The rule: a session is looked at once its first record is chosen, unless all its members are there and stay.
#[test]
fn a_session_that_begins_as_a_member_leaves_or_falls_silent_is_looked_at() {
    let all_stay: fn(&mut Stage) = |_| {};
    let leaves: fn(&mut Stage) = |s| s.is_left_by("A", "C");
    let silent: fn(&mut Stage) = |s| s.knows("A", "B C", "C");
    for (what, happens, is_looked_at) in [
        ("all its members stay", all_stay, false),
        ("a member says that it leaves", leaves, true),
        ("a member falls silent", silent, true),
    ] {
        let mut s = Stage::new(&format!("a session begins, and {what}"), "A B C");
        s.knows("A", "B C", "");
        s.draws("A", "A B C");
        s.asks("A", "change tea", "A");
        happens(&mut s);
        s.settles();
        s.answered("tea", "tea/A");
        assert_eq!(s.is_to_look_at_it("A"), is_looked_at, "{what}");
        s.gets("A", "change milk", "A", "tea/A milk/A");
        assert!(!s.is_to_look_at_it("A"), "only the first time: {what}");
    }
}

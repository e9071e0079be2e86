//! Time: sessions that end while the network is parted, and clocks that are wrong.

use std::time::Duration;

use warmhop_core::ids::SessionId;
use warmhop_core::session::{Failure, Session};

use crate::stage::Stage;

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// The danger: while the old owner is stopped, the session goes on elsewhere and ends there.
/// Those that held it forget it, and with it what they promised: a proposal of the old owner,
/// on its way for half an hour, finds nobody who would turn it down. A client that saw milk would
/// see a session with tea and jam, and without milk: half of one.
/// The rule: a peer that forgets a session remembers its stamp, and votes under it no more.
#[test]
fn a_copy_forgotten_at_its_time_votes_no_more() {
    let mut s = Stage::with_tea("what was forgotten at its time votes no more", "A B C");
    s.asks("A", "change jam", "A");
    s.ends("jam");
    s.holds_back("Accept A>B");
    s.holds_back("Accept A>C");
    s.pauses("A");

    s.takes_over("B");
    s.settles();
    s.serves("B");
    s.gets("B", "change milk", "C", "tea/A milk/C");

    s.tell("Half an hour later nobody has used the session: it is over.");
    s.passes(29 * MINUTE);
    s.settles();
    assert!(s.machine("C").is_some_and(Session::holds_copy), "not before its time");
    s.passes(3 * MINUTE);
    assert!(s.machine("B").is_none() && s.machine("C").is_none(), "it is forgotten");

    s.tell("What B and C sent to A is long given up. The old proposal of A arrives.");
    s.loses("Prepare B>A");
    s.loses("Accept B>A");
    s.loses("Nack C>A Higher");
    s.arrives("Accept A>C");
    s.is_sent("Nack C>A Forgotten");
    s.is_not_sent("Accepted C>A");
    s.arrives("Accept A>B");
    s.is_sent("Nack B>A Forgotten");
    s.is_not_sent("Accepted B>A");
    s.resumes("A");
    s.settles();
    s.failed("jam", Failure::NoMajority { ran: true });
    s.does_not_serve("A");
    s.passes(SECOND);
    assert!(s.machine("A").is_none(), "A forgets it as well");

    s.tell("The client's token is over too. It is given a fresh session, under a new name.");
    s.about(SessionId([3; 16]));
    s.draws("C", "A B C");
    s.gets("C", "change bread", "A", "bread/A");
}

/// The danger: the same on the far side of a partition: B and C have forgotten, A has not, and
/// alone it holds a state that is no longer the last one.
/// The rule: as above. B and C say that they may have forgotten: no majority is possible any
/// more, and the client gets that answer rather than what is left at A.
#[test]
fn the_side_that_remembers_does_not_bring_half_a_session_back() {
    let mut s = Stage::with_tea("the side that remembers brings no half a session back", "A B C");
    s.goes_on_without_a();
    s.tell("The clock of A loses an hour, while the session ends for the others.");
    s.clock_is_off("A", -1);
    s.passes(32 * MINUTE);
    assert!(s.machine("B").is_none() && s.machine("C").is_none(), "it is forgotten");
    assert!(s.machine("A").is_some_and(Session::holds_copy), "A remembers");

    s.heals();
    s.asks("A", "read list", "A");
    s.settles();
    s.sent_on("list", None);
    s.does_not_serve("A");
    s.takes_over("A");
    s.asks("A", "read list", "A");
    s.settles();
    s.failed("list", Failure::Lost { ran: false });
    s.takes_over("B");
    s.asks("B", "read list", "B");
    s.settles();
    s.failed("list", Failure::Lost { ran: false });
}

/// The danger: the clock of C is ahead by more than a session lasts, and it forgets each one as
/// soon as it holds it. B, which missed the change, asks C, and both hold nothing.
/// The rule: forgetting too early costs C its vote, and nobody else anything.
#[test]
fn a_member_whose_clock_is_ahead_costs_its_own_vote_only() {
    let mut s = Stage::new("a member whose clock is ahead", "A B C");
    s.clock_is_off("C", 2);
    s.draws("A", "A B C");
    s.has_it_run("A", "change tea", "C");
    s.answered("tea", "tea/C");
    s.loses("Accept A>B");
    s.passes(SECOND);
    assert!(s.machine("C").is_none(), "C believes that its time is over");

    s.tell("A has sent it to B again, but B hears nothing of A.");
    s.parts("A", "B C");
    s.loses("Accept A>B");
    s.takes_over("B");
    s.asks("B", "read list", "B");
    s.arrives("Prepare B>C");
    s.is_sent("Nack C>B Forgotten");
    s.settles();
    s.waits("list");
    s.does_not_serve("B");
    s.heals();
    s.passes(SECOND);
    s.settles();
    s.serves("B");
    s.answered("list", "tea/C");

    s.tell("A and B are a majority, and go on without C.");
    s.gets("B", "change milk", "A", "tea/C milk/A");
}

/// The danger: the clock of C is behind by more than a session lasts. Long after the others have
/// forgotten the session, C holds a state of it, which lacks the last change.
/// The rule: one copy is not a majority, and the others do not vote under what they have
/// forgotten.
#[test]
fn a_member_whose_clock_is_behind_brings_nothing_back() {
    let mut s = Stage::new("a member whose clock is behind", "A B C");
    s.clock_is_off("C", -2);
    s.draws("A", "A B C");
    s.asks("A", "change tea", "A");
    s.settles();
    s.parts("C", "A B");
    s.gets("A", "change milk", "B", "tea/A milk/B");
    s.passes(32 * MINUTE);
    assert!(s.machine("A").is_none() && s.machine("B").is_none(), "its time is over");
    s.holds("C", 1);

    s.heals();
    for entry in ["C", "A"] {
        learns_that_it_is_lost(&mut s, entry);
    }
}

/// The danger: the clock of the owner is behind by more than a session lasts: what it writes is
/// over, by the clocks of the others, before it arrives there. They take it in, vote for it and
/// forget it.
/// The rule: that loses the session before its time, and A says so; it neither answers alone nor
/// lets the session begin again under its name.
#[test]
fn an_owner_whose_clock_is_behind_loses_its_session_and_says_so() {
    let mut s = Stage::new("an owner whose clock is behind", "A B C");
    s.clock_is_off("A", -2);
    s.draws("A", "A B C");
    s.gets("A", "change tea", "A", "tea/A");
    s.passes(SECOND);
    assert!(s.machine("B").is_none() && s.machine("C").is_none(), "it is over for them");

    s.asks("A", "read list", "A");
    s.settles();
    s.sent_on("list", None);
    for entry in ["A", "B"] {
        learns_that_it_is_lost(&mut s, entry);
    }
}

/// The danger: the clock of A is behind, so that what it draws has a stamp which B and C may have
/// forgotten already. They cast no vote in it, and no session can be drawn at A until its clock
/// has caught up with what they forgot: for hours.
/// The rule: a peer that learns that a stamp may have been forgotten draws again, under a higher one.
#[test]
fn a_session_drawn_under_a_stamp_that_was_forgotten_is_drawn_again_under_a_higher_one() {
    let mut s = Stage::new("drawn again under a higher stamp", "A B C");
    s.draws("B", "A B C");
    s.asks("B", "change tea", "C");
    s.settles();
    s.passes(32 * MINUTE);
    assert!(s.machine("B").is_none() && s.machine("C").is_none(), "its time is over");
    s.clock_is_off("A", -2);
    s.restarts("A");

    s.about(SessionId([3; 16]));
    s.draws("A", "A B C");
    s.asks("A", "change milk", "A");
    s.ends("milk");
    s.arrives("Accept A2>B");
    s.is_sent("Nack B>A2 Forgotten");
    s.settles();
    s.failed("milk", Failure::NoMajority { ran: true });

    s.about(SessionId([4; 16]));
    s.draws("A", "A B C");
    s.gets("A", "change jam", "A", "jam/A");
}

/// The danger: a session is over, but not forgotten yet, and its owner serves some of it.
/// The rule: within the grace after its time the app is given nothing of it: the client sees a
/// fresh session, wholly, and not a moment before the time that its token names.
#[test]
fn a_session_that_is_over_begins_wholly_afresh() {
    let mut s = Stage::new("a session that is over begins wholly afresh", "A B C");
    s.draws("A", "A B C");
    s.asks("A", "change tea", "B");
    s.settles();
    s.asks("A", "change milk", "C");
    s.settles();
    s.passes(29 * MINUTE);
    s.gets("A", "look now", "B", "tea/B milk/C");
    s.passes(MINUTE + 10 * SECOND);
    s.gets("A", "change bread", "B", "bread/B");
    s.gets("A", "read list", "C", "bread/B");
}

fn learns_that_it_is_lost(s: &mut Stage, entry: &str) {
    s.takes_over(entry);
    s.settles();
    s.tell("Where another tried before, the ballot has to be higher than that one's.");
    s.takes_over(entry);
    s.asks(entry, "read list", entry);
    s.settles();
    s.failed("list", Failure::Lost { ran: false });
    s.does_not_serve(entry);
}

/// The danger: a key that lasts for a moment is kept for as long as a session that is used all day, by
/// its members with all that it held, and by D, which was only asked when it began. A client that keeps using new
/// keys fills all peers with what nobody can read.
/// The rule: once it is over, its owner writes that, and the members drop what it held; a little later
/// it is forgotten, by its owner first, which informs D.
#[test]
fn a_short_lived_key_is_not_kept_for_longer() {
    let mut s = Stage::new("what lasts for a moment", "A B C D");
    for (name, others) in [("A", "B C D"), ("B", "A C D"), ("C", "A B D"), ("D", "A B C")] {
        s.knows(name, others, "");
    }
    s.lasts_for(SECOND);
    s.asks_by_key("A", "change tea", "A B C");
    s.settles();
    s.answered("tea", "tea/A");
    s.passes(SECOND / 2);
    assert!(s.machine("C").is_some_and(|it| it.state().is_some()), "not before its time");
    s.passes(3 * SECOND);
    s.settles();
    for name in ["A", "B", "C"] {
        assert!(s.machine(name).is_some_and(Session::holds_copy), "{name} knows that it was");
        assert!(
            s.machine(name).is_some_and(|it| it.state().is_none()),
            "{name} drops what it held"
        );
    }

    s.tell("It is used again, and read: that makes it last no longer.");
    s.gets("A", "change jam", "A", "jam/A");
    s.gets("A", "read list", "A", "jam/A");
    s.passes(3 * SECOND);
    s.settles();
    s.passes(MINUTE);
    assert!(s.machine("A").is_none(), "its owner forgets it first");
    assert!(s.machine("B").is_some() && s.machine("C").is_some());
    s.settles();
    assert!(s.machine("D").is_none(), "D was informed");
    s.passes(6 * SECOND);
    assert!(s.machine("B").is_none() && s.machine("C").is_none(), "then its members do");

    s.tell("It begins anew, at another peer.");
    s.asks_by_key("D", "change milk", "A B D");
    s.settles();
    s.answered("milk", "milk/D");
}

/// The danger: B holds tea, which lasts for half an hour, and is cut off while the others write
/// something that lasts for a moment. That is over, and they have forgotten it, when B is back.
/// The rule: what was forgotten votes no more. B is alone with what it holds, and shows it to nobody:
/// what too many have forgotten is over, and nothing that would be called lost.
#[test]
fn an_expired_key_hides_its_former_value() {
    let mut s = Stage::new("what is over takes with it what was there before", "A B C");
    s.knows("A", "B C", "");
    s.knows("B", "A C", "");
    s.knows("C", "A B", "");
    s.asks_by_key("A", "change tea", "A B C");
    s.settles();
    s.answered("tea", "tea/A");
    s.parts("B", "A C");
    s.lasts_for(SECOND);
    s.gets("A", "change jam", "A", "tea/A jam/A");
    s.passes(3 * SECOND);
    s.settles();
    s.passes(MINUTE);
    s.settles();
    s.passes(6 * SECOND);
    assert!(s.machine("A").is_none() && s.machine("C").is_none(), "it is forgotten");
    s.heals();
    assert!(s.machine("B").is_some_and(Session::holds_copy), "B remembers");
    s.looks_by_key("B", "read list");
    s.settles();
    s.failed("list", Failure::Absent);
    s.does_not_serve("B");
}

/// Tea lasted for a moment, at A and its members B and C. It is over, and A has written that down.
fn over_at_three(title: &str) -> Stage {
    let mut s = Stage::new(title, "A B C");
    s.knows("A", "B C", "");
    s.knows("B", "A C", "");
    s.knows("C", "A B", "");
    s.lasts_for(SECOND);
    s.asks_by_key("A", "change tea", "A B C");
    s.settles();
    s.answered("tea", "tea/A");
    s.passes(3 * SECOND);
    s.settles();
    s
}

/// The danger: the owner of what is over is suspended while its members forget it, and is asked for it
/// before it has looked at the clock. Nobody votes for what it proposes any more: its client would
/// learn that the outcome is unknown.
/// The rule: an owner past its time gives nobody a turn. It forgets as well, and the request goes on
/// to begin the session anew.
#[test]
fn an_owner_that_stood_still_past_its_time_serves_nobody() {
    let mut s = over_at_three("an owner that was suspended past its time");
    s.pauses("A");
    s.passes(MINUTE + 10 * SECOND);
    assert!(s.machine("B").is_none() && s.machine("C").is_none(), "they forget it");
    s.resumes("A");
    s.asks("A", "change jam", "A");
    s.settles();
    s.sent_on("jam", None);
    s.asks_by_key("A", "change jam", "A B C");
    s.settles();
    s.answered("jam", "jam/A");
}

/// The danger: an owner forgets what is over before its members do, but not while anybody waits for it.
/// Where there is always somebody, the members forget it first, as above.
/// The rule: as above. Those that have had their turn are waited for, and the others go on.
#[test]
fn an_owner_that_is_never_idle_forgets_in_time() {
    let mut s = over_at_three("an owner that is never idle");
    s.passes(58 * SECOND);
    s.asks("A", "read one", "A");
    s.holds_back("Prepare A>B");
    s.holds_back("Prepare A>C");
    s.passes(4 * SECOND);
    s.ends("one");
    s.passes(4 * SECOND);
    assert!(s.machine("B").is_none() && s.machine("C").is_none(), "they forget it");
    s.asks("A", "change jam", "A");
    s.settles();
    s.sent_on("jam", None);
}

/// The danger: A holds tea as its owner, and is cut off. The others go on without it until the session is
/// over and forgotten, and begin another under the same key. A is back, with the highest ballot that
/// anybody knows, and finds that too few of its members are left: it calls the session lost, and its key
/// free, although jam is there for everybody else.
/// The rule: what too many have *forgotten* is over, not lost. A peer that holds the rest of it forgets that,
/// and searches again.
#[test]
fn a_forgotten_session_hides_no_later_one() {
    let mut s = Stage::new("what was forgotten hides nothing", "A B C");
    s.knows("A", "B C", "");
    s.knows("B", "A C", "A");
    s.knows("C", "A B", "A");
    s.asks_by_key("A", "change tea", "A B C");
    s.settles();
    s.answered("tea", "tea/A");
    s.parts("A", "B C");
    s.takes_over("B");
    s.settles();
    s.serves("B");
    s.lasts_for(SECOND);
    s.gets("B", "change milk", "B", "tea/A milk/B");
    s.passes(3 * SECOND);
    s.settles();
    s.passes(MINUTE + 10 * SECOND);
    s.tell("They do not hear A, so they ask each other whether that is all there was.");
    s.settles();
    s.passes(SECOND);
    assert!(s.machine("B").is_none() && s.machine("C").is_none(), "they forget it");
    s.lasts_for(30 * MINUTE);
    s.asks_by_key("C", "change jam", "A B C");
    s.settles();
    s.answered("jam", "jam/C");
    s.heals();
    s.knows("B", "A C", "");
    s.knows("C", "A B", "");
    s.asks("A", "read list", "A");
    s.settles();
    s.sent_on("list", None);
    s.looks_by_key("A", "read list");
    s.settles();
    s.answered("list", "jam/C");
}

/// C owns tea, which lasts for a moment, and is cut off. A takes over, and writes jam, which lasts for longer.
fn cut_off_while_others_wrote(title: &str) -> Stage {
    let mut s = Stage::new(title, "A B C");
    s.knows("A", "B C", "");
    s.knows("B", "A C", "");
    s.knows("C", "A B", "");
    s.lasts_for(SECOND);
    s.asks_by_key("C", "change tea", "A B C");
    s.settles();
    s.answered("tea", "tea/C");
    s.parts("C", "A B");
    s.knows("A", "B C", "C");
    s.knows("B", "A C", "C");
    s.knows("C", "A B", "A B");
    s.takes_over("A");
    s.settles();
    s.serves("A");
    s.lasts_for(30 * MINUTE);
    s.gets("A", "change jam", "A", "tea/C jam/A");
    s
}

/// The danger: by what it holds, the session of C is over, and C forgets it. If A dies then, its holders are B
/// alone: C votes no more where it has forgotten, and jam is lost although one of its two holders lives.
/// The rule: who does not hear everyone forgets only what a majority has nothing newer than. C keeps what
/// it holds, and with it its vote.
#[test]
fn a_member_that_was_cut_off_does_not_forget_by_what_it_holds() {
    let mut s = cut_off_while_others_wrote("a member that was cut off does not forget");
    s.passes(3 * SECOND);
    s.passes(MINUTE + 10 * SECOND);
    s.settles();
    s.passes(SECOND);
    assert!(s.machine("C").is_some_and(Session::holds_copy), "the others may hold more");
    s.crashes("A");
    s.restarts("A");
    s.knows("A", "B C", "");
    s.knows("B", "A C", "");
    s.knows("C", "A B", "");
    s.heals();
    s.takes_over("B");
    s.settles();
    s.gets("B", "read list", "B", "tea/C jam/A");
}

/// The danger: as above, but somebody asks C, the owner as far as it knows, for what is past its time, and it
/// leaves that behind.
/// The rule: it steps down, and keeps its copy.
#[test]
fn an_owner_that_was_cut_off_leaves_no_copy_behind() {
    let mut s = cut_off_while_others_wrote("an owner that was cut off leaves no copy behind");
    s.pauses("C");
    s.passes(MINUTE + 10 * SECOND);
    s.resumes("C");
    s.asks("C", "read list", "C");
    s.settles();
    s.sent_on("list", None);
    assert!(s.machine("C").is_some_and(Session::holds_copy), "the others may hold more");
    s.crashes("A");
    s.restarts("A");
    s.heals();
    s.knows("C", "A B", "");
    s.takes_over("C");
    s.settles();
    s.gets("C", "read list", "C", "tea/C jam/A");
}

/// The danger: C is back, and its time is over before it is sent what it missed.
/// The rule: C asks, and A tells that it holds something newer. C waits for that, and asks again. Once that
/// is over as well, C forgets it.
#[test]
fn a_member_that_hears_of_something_newer_waits_for_it() {
    let mut s = cut_off_while_others_wrote("a member that hears of something newer");
    s.passes(3 * SECOND);
    s.passes(MINUTE + 10 * SECOND);
    s.settles();
    s.heals();
    s.knows("C", "A B", "");
    for _ in 0..3 {
        s.passes(MINUTE + 10 * SECOND);
        s.is_sent("Locate C>A");
        s.loses("Accept A>C");
        s.arrives("Locate C>A");
        s.arrives("Located A>C");
        s.loses("Locate C>B");
        assert!(s.machine("C").is_some_and(Session::holds_copy), "A holds more");
    }
}

/// The danger: B is gone, and nobody can tell whether it comes back. What is over is kept for as long.
/// The rule: a majority is enough. A and C ask each other, and forget it.
#[test]
fn an_expired_session_is_forgotten_while_a_member_is_silent() {
    let mut s = over_at_three("what is over is forgotten while a member is silent");
    s.crashes("B");
    s.knows("A", "B C", "B");
    s.knows("C", "A B", "B");
    for _ in 0..2 {
        s.passes(MINUTE + 10 * SECOND);
        s.settles();
    }
    s.passes(SECOND);
    assert!(s.machine("A").is_none() && s.machine("C").is_none(), "nothing is kept");
}

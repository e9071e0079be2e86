//! Claims and owners: a promise says who wanted the session last, not who has it. Nobody asks for
//! the sessions of these stories; their holders have to find out by themselves.

use std::collections::BTreeSet;
use std::time::Duration;

use warmhop_core::session::claim::Claimant;
use warmhop_core::session::repair::is_short;

use crate::stage::Stage;

/// The danger: B is cut off, finds its owner silent and tries to take the session over, and fails. Its claim is
/// left behind. When it is back, A steps down for it, and both rest: A on B's claim, B on its own.
/// Then each later death finds a session without an owner, and the second one loses it.
/// The rule: a peer that steps down for a claim asks the claimant whether it owns the session, and
/// takes over if it does not.
#[test]
fn a_claimant_that_owns_nothing_is_asked_before_anyone_rests_on_its_claim() {
    let mut s = Stage::new("a claimant that owns nothing", "A B C");
    s.draws("A", "A B C");
    s.gets("A", "keyed tea", "A", "tea/A");

    s.parts("B", "A C");
    s.takes_over("B");
    s.passes(Duration::from_secs(6));
    s.does_not_serve("B");
    s.serves("A");

    s.heals();
    s.reassures("A");
    s.settles();
    s.tell("B has promised itself more. A is not the owner any more, and nobody is.");
    s.does_not_serve("A");
    s.asks_claimant("A");
    s.settles();
    assert!(matches!(s.claimant("A"), Claimant::Vacant(_)), "{:?}", s.claimant("A"));

    s.takes_over_without_a_token("A", "B C");
    s.settles();
    s.serves("A");
    s.tell("Now B learns of an owner that is one.");
    s.asks_claimant("B");
    s.settles();
    assert_eq!(s.claimant("B"), Claimant::Owns);
    s.gets("A", "read list", "A", "tea/A");
}

/// The danger: A is cut off and succeeded meanwhile. Nobody asks A for the session, so it hears of
/// nothing, and goes on as an owner beside the true one for as long as the session is idle.
/// The rule: an owner that somebody came back to reassures its members, and hears of its end.
#[test]
fn an_owner_that_was_succeeded_while_it_was_cut_off_learns_of_it() {
    let mut s = Stage::new("an owner that was succeeded", "A B C");
    s.draws("A", "A B C");
    s.asks("A", "keyed tea", "A");
    s.settles();
    s.parts("A", "B C");
    s.takes_over("B");
    s.settles();
    s.serves("B");
    s.heals();
    s.serves("A");

    s.reassures("A");
    s.settles();
    s.does_not_serve("A");
    s.serves("B");
    s.asks_claimant("A");
    s.settles();
    assert_eq!(s.claimant("A"), Claimant::Owns);
}

/// The danger: what was asked of a claimant is remembered, and the answer is taken for one about a
/// later claim of the same peer, which does own the session: it is deposed for nothing.
/// The rule: an answer is about the claim that was the highest then.
#[test]
fn an_answer_about_one_claim_says_nothing_of_the_next() {
    let mut s = Stage::new("an answer about one claim", "A B C");
    s.draws("A", "A B C");
    s.asks("A", "keyed tea", "A");
    s.settles();
    s.parts("B", "A C");
    s.takes_over("B");
    s.passes(Duration::from_secs(6));
    s.heals();
    s.reassures("A");
    s.settles();
    s.asks_claimant("A");
    s.settles();
    assert!(matches!(s.claimant("A"), Claimant::Vacant(_)));

    s.takes_over("B");
    s.settles();
    s.serves("B");
    assert_eq!(s.claimant("A"), Claimant::Unasked);
}

/// The danger: B is replaced although it lives, and the one message that informs it is lost. It counts
/// itself among the members for as long as it keeps its copy.
/// The rule: it is informed several times.
#[test]
fn a_member_that_was_replaced_is_informed_more_than_once() {
    let mut s = Stage::new("a member that was replaced", "A B C D");
    s.draws("A", "A B C");
    s.asks("A", "keyed tea", "A");
    s.settles();
    let b = s.inc("B");
    s.parts("B", "A C D");
    s.replaces("A", b, "D");
    s.settles();
    s.heals();
    s.passes(Duration::from_secs(1));
    s.settles();
    let knows = s.machine("B").is_some_and(|machine| !machine.members().contains(&b));
    assert!(knows, "B still takes itself for a member");
}

/// The danger: A is cut off while B and C are replaced by D and E, one after the other, and nobody
/// reaches A. Then B and C end. A knows of them alone: it considers itself the last of three, which is
/// no majority, and asks nobody.
/// The rule: a member whose companions are gone asks everyone who the members are by now, and from then
/// on does as those do.
#[test]
fn a_member_that_missed_later_members_asks_everyone_for_them() {
    let mut s = Stage::new("a member that missed later members", "A B C D E");
    s.draws("B", "A B C");
    s.asks("B", "keyed tea", "B");
    s.settles();
    let (b, c) = (s.inc("B"), s.inc("C"));
    s.parts("A", "B C D E");
    s.replaces("B", c, "D");
    s.settles();
    s.crashes("C");
    s.takes_over("D");
    s.settles();
    s.serves("D");
    s.replaces("D", b, "E");
    s.settles();
    s.crashes("B");
    s.passes(Duration::from_secs(60));
    s.heals();
    s.settles();
    let set = |s: &Stage| s.machine("A").map(|it| it.members().to_vec()).unwrap_or_default();
    assert!(set(&s).contains(&b) && set(&s).contains(&c), "nobody informed it");

    s.asks_everyone("A", "D E");
    s.settles();
    assert!(set(&s).contains(&s.inc("D")) && set(&s).contains(&s.inc("E")));
    s.crashes("D");
    s.takes_over_without_a_token("A", "E");
    s.settles();
    s.serves("A");
}

/// The danger: a peer is restarted, and another one before what the first held is held elsewhere: what
/// both held is lost. The operator who restarts them cannot see when it is safe.
/// The rule: each peer reports how many sessions it knows that are short of members or of an owner, until
/// they are repaired; sessions that cannot be repaired do not count.
#[test]
fn a_session_without_owner_or_enough_members_is_reported_until_it_is_repaired() {
    let mut s = Stage::new("short of members", "A B C D");
    s.draws("A", "A B C");
    s.asks("A", "keyed tea", "A");
    s.settles();
    let is_short_at = |s: &Stage, name: &str| {
        let living = ["A", "B", "C", "D"].map(|peer| s.inc(peer)).into_iter();
        let alive: BTreeSet<_> = living.filter(|life| s.lives(*life)).collect();
        let machine = s.machine(name).unwrap();
        is_short(machine, s.inc(name), 3, &alive, |peer| alive.contains(&peer), |_| true)
    };
    assert!(["A", "B", "C"].iter().all(|peer| !is_short_at(&s, peer)));

    let c = s.inc("C");
    s.crashes("C");
    s.tell("The owner misses a member that D could be.");
    assert!(is_short_at(&s, "A") && !is_short_at(&s, "B"));
    s.replaces("A", c, "D");
    s.settles();
    assert!(["A", "B", "D"].iter().all(|peer| !is_short_at(&s, peer)));

    s.crashes("A");
    s.tell("The members miss their owner, until one of them is.");
    assert!(is_short_at(&s, "B") && is_short_at(&s, "D"));
    s.takes_over_without_a_token("B", "B D");
    s.settles();
    s.serves("B");
    assert!(!is_short_at(&s, "B") && !is_short_at(&s, "D"), "nobody else could be a member");

    s.crashes("D");
    assert!(!is_short_at(&s, "B"), "no majority is left: it is lost");
}

/// The danger: D began the session at C alone, at a higher ballot than that of A, and died. A begins it with B,
/// and hears of that while its first change is on its way: it steps down, and its client learns that the
/// outcome is unknown, although B accepts the change.
/// The rule: a majority promised A its ballot just now. A waits for the others before it steps down.
#[test]
fn a_claim_of_a_peer_that_is_gone_does_not_depose_the_beginner() {
    let mut s = late_refusal("a claim of somebody who is gone");
    s.arrives("Accept A>B");
    s.arrives("Accepted B>A");
    s.answered("jam", "jam/A");
}

/// The danger: as above, but the others accept nothing either, and A waits for ever.
/// The rule: it waits until it would send again.
#[test]
fn a_beginner_waits_for_the_others_for_a_moment_only() {
    let mut s = late_refusal("a beginner waits for a moment only");
    s.loses("Accept A>B");
    s.passes(Duration::from_secs(1));
    s.does_not_serve("A");
    s.deposed("jam", "D");
}

fn late_refusal(title: &str) -> Stage {
    let mut s = Stage::new(title, "A B C D");
    s.knows("A", "B C", "C");
    s.knows("B", "A C", "");
    s.knows("C", "A B D", "");
    s.knows("D", "A B C", "");
    s.asks_by_key("D", "change tea", "B C D");
    s.arrives("Begin D>C");
    s.loses("Free C>D");
    s.loses("Begin D>A");
    s.loses("Begin D>B");
    s.crashes("D");
    s.asks_by_key("A", "change jam", "A B C");
    s.arrives("Begin A>C");
    s.arrives("Begin A>B");
    s.arrives("Free B>A");
    s.serves("A");
    s.ends("jam");
    s.arrives("Nack C>A Higher");
    s.waits("jam");
    s
}

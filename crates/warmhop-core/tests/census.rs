//! Whose word a birth by key rests on: who counts, who may be missed, and when to stop waiting.

#![allow(clippy::unwrap_used, missing_docs, reason = "a failed step is a failed test")]

use std::time::Duration;

use warmhop_core::ids::{AppName, Incarnation, Now, PeerId, WallTime};
use warmhop_core::session::census::{ABSENT_AFTER, Census, REBORN_FOR, Roll, Verdict};
use warmhop_core::view::{AppNews, AppState, News, PeerNews, Source, View};

fn inc(number: u8) -> Incarnation {
    let mut bytes = [number; 16];
    // All of them began at once.
    bytes[10..].fill(0);
    Incarnation(bytes)
}

fn incs(numbers: &[u8]) -> Vec<Incarnation> {
    numbers.iter().map(|number| inc(*number)).collect()
}

fn census(others: &[u8], silent: &[u8]) -> Census {
    Census { others: incs(others), silent: incs(silent), ..Census::default() }
}

fn name(number: u8) -> PeerId {
    PeerId::new(&format!("p{number}")).unwrap()
}

fn hello(view: &mut View, number: u8, life: u8, now: Now, source: Source) {
    view.apply(News::Peer(news_of(number, life)), now, source);
}

fn news_of(number: u8, life: u8) -> PeerNews {
    PeerNews {
        generation: u64::from(life) + 1,
        ..PeerNews::of(name(number), inc(number + 100 * life), "127.0.0.1:7001".parse().unwrap())
    }
}

#[test]
fn one_that_ended_before_others_had_what_it_held_counts_as_missed_unless_all_others_answer() {
    let verdict_of = |silent: &[u8], answers: &[u8]| {
        let known = Census { cut_short: incs(&[5]), ..census(&[2, 3, 4, 5], silent) };
        let mut roll = Roll::new(inc(1), &known);
        for peer in answers {
            roll.answer(inc(*peer), None);
        }
        roll.gone(inc(5));
        roll.verdict(true)
    };
    assert_eq!(verdict_of(&[5], &[2, 3, 4]), Verdict::Enough);
    assert_eq!(
        verdict_of(&[4, 5], &[2, 3]),
        Verdict::TooFew,
        "the two may have held what nobody else does"
    );
}

#[test]
fn one_that_ended_before_others_had_what_it_held_is_reborn_as_after_a_crash() {
    for (in_good_order, others, reborn, returned) in
        [(true, vec![], vec![], incs(&[102])), (false, incs(&[2]), incs(&[102]), vec![])]
    {
        let mut view = View::new(name(1));
        hello(&mut view, 2, 0, Now(1), Source::FirstHand);
        let ended = if in_good_order { View::left } else { View::cut_short };
        assert!(ended(&mut view, &name(2), &inc(2), Now(5)));
        assert_eq!(Census::of(&view, Now(5)).others, others);
        hello(&mut view, 2, 1, Now(9), Source::FirstHand);
        let census = Census::of(&view, Now(10));
        assert_eq!((census.others, census.reborn), (incs(&[102]), reborn));
        assert_eq!(census.returned, returned);
    }
}

#[test]
fn only_a_peer_that_nobody_hears_is_taken_for_gone_on_an_operator_s_word() {
    let mut view = View::new(name(1));
    let two = name(2);
    assert_eq!(view.write_off(&two, Now(1)), None, "unknown");
    hello(&mut view, 2, 0, Now(1_000), Source::FirstHand);
    assert_eq!(view.write_off(&two, Now(2_000)), None, "heard");
    view.suspect(&two, Now(3_000));
    view.heard_by_others(&two, &inc(2), Now(4_000));
    assert_eq!(view.write_off(&two, Now(5_000)), None, "others hear it");
    assert_eq!(view.write_off(&two, Now(40_000)), Some(inc(2)));
    assert_eq!(view.write_off(&two, Now(41_000)), None, "once");
    let census = Census::of(&view, Now(42_000));
    assert_eq!((census.others, census.cut_short), (incs(&[2]), incs(&[2])));
    // It lives after all.
    view.alive(&two, Now(43_000));
    assert_eq!(Census::of(&view, Now(44_000)).cut_short, []);
}

#[test]
fn all_but_one_suffice_where_they_are_a_majority() {
    let mut roll = Roll::new(inc(1), &census(&[2, 3, 4], &[]));
    assert_eq!(roll.verdict(true), Verdict::Wait);
    roll.answer(inc(2), None);
    assert_eq!(roll.verdict(true), Verdict::Wait);
    roll.answer(inc(3), None);
    assert_eq!(roll.verdict(false), Verdict::Enough);
    let mut roll = Roll::new(inc(1), &census(&[2], &[2]));
    assert_eq!(roll.verdict(true), Verdict::TooFew, "one of two is no majority");
    roll.gone(inc(2));
    assert_eq!(roll.verdict(false), Verdict::Enough, "of whom the other is proven gone");
}

#[test]
fn too_few_are_reported_at_once_without_waiting_for_the_silent() {
    let mut roll = Roll::new(inc(1), &census(&[2, 3, 4, 5], &[2, 3]));
    assert_eq!(roll.verdict(false), Verdict::Wait, "the others may know a record");
    roll.answer(inc(4), None);
    roll.answer(inc(5), None);
    assert_eq!(roll.verdict(false), Verdict::TooFew);
}

#[test]
fn a_second_one_is_missed_only_where_a_majority_says_that_it_is_long_gone() {
    let absent =
        |numbers: &[u8]| Census { absent: incs(numbers), ..census(&[2, 3, 4, 5], &[4, 5]) };
    let mut roll = Roll::new(inc(1), &absent(&[4, 5]));
    roll.answer(inc(2), Some(&absent(&[4, 5])));
    roll.answer(inc(3), Some(&absent(&[])));
    assert_eq!(roll.verdict(true), Verdict::TooFew, "one of them has heard both");
    roll.answer(inc(3), Some(&absent(&[5])));
    assert_eq!(roll.verdict(true), Verdict::Enough);
    // Beside one that was reborn the silent one may be the last that knows.
    let beside = Census { reborn: incs(&[4]), absent: incs(&[5]), ..census(&[2, 3, 4, 5], &[5]) };
    let mut roll = Roll::new(inc(1), &beside);
    (2..=4).for_each(|peer| drop(roll.answer(inc(peer), Some(&beside))));
    assert_eq!(roll.verdict(true), Verdict::TooFew);
    // Two of four, however long: the other two may say the same.
    let half = |numbers: &[u8]| Census { absent: incs(numbers), ..census(&[2, 3, 4], &[3, 4]) };
    let mut roll = Roll::new(inc(1), &half(&[3, 4]));
    roll.answer(inc(2), Some(&half(&[3, 4])));
    assert_eq!(roll.verdict(true), Verdict::TooFew);
}

#[test]
fn a_reborn_peer_uses_up_the_one_silence() {
    let reborn = Census { reborn: incs(&[2]), ..census(&[2, 3], &[]) };
    let mut roll = Roll::new(inc(1), &reborn);
    roll.answer(inc(2), None);
    assert_ne!(roll.verdict(false), Verdict::Enough);
    roll.answer(inc(3), None);
    assert_eq!(roll.verdict(false), Verdict::Enough);
    // An answer may name the asker itself as well.
    let mut roll = Roll::new(inc(2), &census(&[1, 3], &[3]));
    roll.answer(inc(1), Some(&Census { reborn: incs(&[2]), ..census(&[2, 3], &[]) }));
    assert_eq!(roll.verdict(true), Verdict::TooFew);
}

#[test]
fn if_every_known_peer_has_answered_nothing_is_missed() {
    let reborn = |silent: &[u8]| Census { reborn: incs(&[2, 3]), ..census(&[2, 3, 4], silent) };
    let mut roll = Roll::new(inc(1), &reborn(&[]));
    roll.answer(inc(2), None);
    roll.answer(inc(3), None);
    assert_ne!(roll.verdict(true), Verdict::Enough, "the fourth and one that was reborn may know");
    roll.answer(inc(4), None);
    assert_eq!(roll.verdict(true), Verdict::Enough, "what the two alone knew is gone for good");
    let mut roll = Roll::new(inc(1), &reborn(&[4]));
    roll.answer(inc(2), None);
    roll.answer(inc(3), None);
    assert_eq!(roll.verdict(true), Verdict::TooFew);
    // A peer that was never met has not answered.
    let mut roll = Roll::new(inc(1), &reborn(&[]).with_unmet(1));
    (2..=4).for_each(|peer| drop(roll.answer(inc(peer), None)));
    assert_eq!(roll.verdict(true), Verdict::TooFew);
}

#[test]
fn a_young_peer_counts_once_a_settled_one_knows_it() {
    let young = |others: &[u8], silent: &[u8], of: &[u8]| Census {
        is_young: true,
        young: incs(of),
        ..census(others, silent)
    };
    // It asks by itself, and another young one answers first.
    let mut roll = Roll::new(inc(1), &young(&[2, 3, 4], &[4], &[2]));
    roll.answer(inc(2), Some(&young(&[1], &[], &[])));
    assert_eq!(roll.verdict(true), Verdict::Wait, "the third may vouch for them");
    let stranger = roll.clone();
    roll.answer(inc(3), Some(&census(&[1, 2], &[])));
    assert_eq!(roll.verdict(true), Verdict::Enough);
    let mut roll = stranger;
    roll.answer(inc(3), Some(&census(&[], &[])));
    assert_eq!(roll.verdict(true), Verdict::TooFew, "it has heard of neither");
    // A peer that answers that it knows the same knows the asker.
    let mut roll = Roll::new(inc(1), &young(&[2, 3], &[3], &[]));
    roll.answer(inc(2), None);
    assert_eq!(roll.verdict(true), Verdict::Enough);
    // One that is settled vouches for those that it knows.
    let mut roll = Roll::new(inc(1), &census(&[2, 3], &[3]));
    roll.answer(inc(2), Some(&young(&[1], &[], &[])));
    assert_eq!(roll.verdict(true), Verdict::Enough);
    let mut roll = Roll::new(inc(1), &census(&[3], &[3]));
    roll.answer(inc(2), Some(&young(&[1], &[], &[])));
    assert_eq!(roll.verdict(true), Verdict::TooFew);
}

#[test]
fn if_no_peer_is_settled_all_count() {
    let all = |others: &[u8], silent: &[u8]| Census {
        is_young: true,
        young: incs(others),
        ..census(others, silent)
    };
    let mut roll = Roll::new(inc(1), &all(&[2, 3], &[3]));
    roll.answer(inc(2), Some(&all(&[1, 3], &[3])));
    assert_eq!(roll.verdict(false), Verdict::Enough);
    // The silent one was settled when it was heard last.
    let settled = Census { young: incs(&[2]), ..all(&[2, 3], &[3]) };
    let mut roll = Roll::new(inc(1), &settled);
    roll.answer(inc(2), Some(&all(&[1], &[])));
    assert_eq!(roll.verdict(true), Verdict::TooFew);
    // Of a pair either serves without the other.
    let pair = Census { pair: true, young: Vec::new(), ..all(&[2], &[2]) };
    assert_eq!(Roll::new(inc(1), &pair).verdict(false), Verdict::Enough);
}

#[test]
fn a_peer_in_the_place_of_one_that_others_count_on_is_reborn() {
    let life = |at: u64| Incarnation::of(&name(2), WallTime(at), 0);
    let reported = Census { others: vec![life(1)], ..Census::default() };
    let mut roll = Roll::new(life(9), &census(&[1, 3], &[3]));
    roll.answer(inc(1), Some(&reported));
    assert_eq!(roll.verdict(true), Verdict::TooFew, "the other has not heard of this life yet");
    roll.gone(life(1));
    assert_eq!(roll.verdict(true), Verdict::TooFew, "nor is the silent one to be missed as well");
    roll.answer(inc(3), None);
    assert_eq!(roll.verdict(true), Verdict::Enough);
}

#[test]
fn seeds_that_were_never_met_count_as_peers_that_are_missed() {
    let unmet = |others: &[u8], silent: &[u8], unmet| {
        let pair = others.len() < 2;
        Census { pair, ..census(others, silent) }.with_unmet(unmet)
    };
    // It starts while it is cut off, alone or with another one that has forgotten as much.
    assert_eq!(Roll::new(inc(1), &unmet(&[], &[], 2)).verdict(false), Verdict::TooFew);
    let mut roll = Roll::new(inc(1), &unmet(&[2], &[], 3));
    roll.answer(inc(2), Some(&unmet(&[1], &[], 3)));
    assert_eq!(roll.verdict(false), Verdict::TooFew);
    // Of a pair either serves without the other.
    assert_eq!(Roll::new(inc(1), &unmet(&[], &[], 1)).verdict(false), Verdict::Enough);
    // Where everyone known is asked and most of all, one of the others is missed as any other is: at
    // once if it is the only one, else after as long.
    let most = |unmet_count, age| {
        let mut roll = Roll::new(inc(1), &unmet(&[2, 3], &[], unmet_count).with_age(age));
        roll.answer(inc(2), None);
        assert_ne!(roll.verdict(true), Verdict::Enough, "one that is known is missed");
        roll.answer(inc(3), None);
        roll.verdict(true)
    };
    assert_eq!(most(1, REBORN_FOR), Verdict::Enough);
    // Two that began a moment ago, beside one that may have been left alone by those they were.
    let young =
        |others: &[u8], age| Census { young: incs(others), ..unmet(others, &[], 1) }.with_age(age);
    let two = |age| {
        let mut roll = Roll::new(inc(1), &young(&[2], age));
        roll.answer(inc(2), Some(&Census { is_young: true, ..young(&[1], age) }));
        roll.verdict(true)
    };
    assert_eq!(two(Duration::ZERO), Verdict::TooFew);
    assert_eq!(two(REBORN_FOR), Verdict::Enough, "by then one of them is settled");
    assert_eq!(most(2, REBORN_FOR), Verdict::TooFew, "the two may hold what these have forgotten");
    assert_eq!(most(2, ABSENT_AFTER), Verdict::Enough);
    // Here one is missed, and one was never met: too many, unless the one is long gone.
    let mut roll = Roll::new(inc(1), &unmet(&[2, 3, 4], &[4], 1));
    roll.answer(inc(2), None);
    roll.answer(inc(3), None);
    assert_eq!(roll.verdict(true), Verdict::TooFew);
}

#[test]
fn peers_that_others_know_are_counted_too() {
    let mut roll = Roll::new(inc(1), &census(&[2], &[]));
    let unknown = roll.answer(inc(2), Some(&census(&[1, 3, 4, 5], &[])));
    assert_eq!(unknown, incs(&[3, 4, 5]));
    assert_ne!(roll.verdict(true), Verdict::Enough);
}

#[test]
fn of_a_pair_the_one_that_is_left_serves() {
    let pair = |silent: &[u8]| Census { pair: true, ..census(&[2], silent) };
    assert_eq!(Roll::new(inc(1), &pair(&[])).verdict(true), Verdict::Wait, "it may serve as well");
    assert_eq!(Roll::new(inc(1), &pair(&[2])).verdict(false), Verdict::Enough);
}

#[test]
fn two_are_a_pair_only_where_neither_knows_of_a_third() {
    // It has just been started, has met one other, and does not hear that one any more.
    let mut view = View::new(name(1));
    hello(&mut view, 2, 0, Now(1), Source::FirstHand);
    view.suspect(&name(2), Now(2));
    let verdict = |view: &View| Roll::new(inc(1), &Census::of(view, Now(3))).verdict(true);
    assert_eq!(verdict(&view), Verdict::Enough);
    assert!(!Census::of(&view, Now(3)).knows_more(&view));
    let knows_more = PeerNews { knows_more: true, seq: 2, ..news_of(2, 0) };
    let mut view_then = view.clone();
    view_then.apply(News::Peer(knows_more), Now(3), Source::Hearsay);
    assert_eq!(verdict(&view_then), Verdict::TooFew, "the other has met a third");
    // Of a third only its app was heard of yet.
    let app = AppNews {
        app: AppName::new("shop").unwrap(),
        seq: 1,
        state: AppState::Cold,
        eta_ms: None,
        in_flight: 0,
        version: None,
        digest: 0,
        gone: false,
    };
    let news = News::App { peer: name(3), incarnation: inc(3), generation: 1, news: app };
    view.apply(news, Now(3), Source::Hearsay);
    assert_eq!(verdict(&view), Verdict::TooFew);
    assert!(Census::of(&view, Now(3)).knows_more(&view), "it tells others so");
    let alone = View::new(name(1));
    assert!(!Census::of(&alone, Now(3)).with_unmet(1).knows_more(&alone));
    assert!(Census::of(&alone, Now(3)).with_unmet(2).knows_more(&alone), "seeds may be others");
}

#[test]
fn a_census_counts_everyone_but_those_that_left_in_good_order() {
    let mut view = View::new(name(1));
    for number in 2..=5 {
        hello(&mut view, number, 0, Now(1), Source::FirstHand);
    }
    hello(&mut view, 6, 0, Now(1), Source::Hearsay);
    view.left(&name(2), &inc(2), Now(10));
    for number in [3, 6] {
        view.suspect(&name(number), Now(10));
        view.lost(&name(number), &inc(number), Now(20));
    }
    let later = Now(10).after(ABSENT_AFTER);
    let census = Census::of(&view, later);
    assert_eq!(census.others, incs(&[3, 4, 5, 6]));
    assert_eq!(census.silent, incs(&[3, 6]));
    assert_eq!(census.absent, incs(&[3]), "of one that was never met nobody can say it");
    assert!(!census.pair);
    assert_eq!(census.reborn, []);
    hello(&mut view, 4, 1, later, Source::FirstHand);
    hello(&mut view, 2, 1, later, Source::FirstHand);
    let census = Census::of(&view, later);
    assert_eq!(census.reborn, incs(&[104]), "the other had left in good order");
    assert_eq!(census.returned, incs(&[102]));
    assert_eq!(Census::of(&view, later.after(REBORN_FOR)).reborn, []);
}

/// What the reborn peer forgot is brought to it by those that hold it: as long as one of them is
/// silent, no span of time proves that it was.
#[test]
fn who_was_reborn_while_a_peer_was_silent_witnesses_nothing_until_that_one_was_heard_for_long() {
    let reborn = |view: &View, now: Now| Census::of(view, now).reborn;
    let begun_at = |begins: Now| {
        let mut view = View::new(name(1));
        for number in 2..=3 {
            hello(&mut view, number, 0, Now(1), Source::FirstHand);
        }
        view.suspect(&name(3), Now(1_000));
        hello(&mut view, 2, 1, begins, Source::FirstHand);
        view
    };
    let begun = || begun_at(Now(1_500));
    let at = |millis: u64| Now(1_500).after(REBORN_FOR).after(Duration::from_millis(millis));
    let mut view = begun();
    assert_eq!(reborn(&view, at(5_000)), incs(&[102]), "the third is silent");
    view.alive(&name(3), at(6_000));
    assert_eq!(reborn(&view, at(6_000).after(REBORN_FOR / 2)), incs(&[102]), "it has just come");
    assert_eq!(reborn(&view, at(6_000).after(REBORN_FOR)), []);
    assert_eq!(reborn(&begun(), at(0).after(ABSENT_AFTER * 9)), incs(&[102]), "it may be cut off");
    // What one held that fell silent long before was brought to others then.
    let later = Now(1_000).after(REBORN_FOR);
    assert_eq!(reborn(&begun_at(later), later.after(REBORN_FOR)), []);
    // One that left holds nothing any more.
    let mut view = begun();
    view.left(&name(3), &inc(3), Now(2_000));
    assert_eq!(reborn(&view, at(0)), []);
    // One that was silent before only, or fell silent after all was brought, delays nothing.
    let mut view = begun();
    view.alive(&name(3), Now(1_400));
    assert_eq!(reborn(&view, at(0)), []);
    view.suspect(&name(3), at(1_000));
    assert_eq!(reborn(&view, at(2_000)), []);
    // Its own news proves that it is heard as well.
    let mut view = begun();
    hello(&mut view, 3, 0, Now(10_000), Source::FirstHand);
    assert_eq!(reborn(&view, at(5_000)), incs(&[102]));
    assert_eq!(reborn(&view, Now(10_000).after(REBORN_FOR)), []);
}

#[test]
fn the_smaller_side_of_a_partition_never_forgets_the_other() {
    let span = core::time::Duration::from_secs(600);
    let long = Now(10).after(span * 2);
    let lose = |lost: &[u8]| {
        let mut view = View::new(name(1));
        for number in 2..=4 {
            hello(&mut view, number, 0, Now(1), Source::FirstHand);
        }
        for number in lost {
            view.suspect(&name(*number), Now(5));
            view.lost(&name(*number), &inc(*number), Now(10));
        }
        view.forget_dead(long, span).len()
    };
    assert_eq!(lose(&[2]), 1);
    assert_eq!(lose(&[2, 3]), 0, "half is not the larger side");
}

#[test]
fn one_that_returned_in_good_order_is_a_witness_unless_others_left_as_well() {
    let census = |returned: &[u8], silent: &[u8]| Census {
        returned: incs(returned),
        ..census(&[2, 3], silent)
    };
    // Peer 1 asks, peer 3 is silent, and peer 2 has returned.
    for (returned, verdict) in [(&[2][..], Verdict::Enough), (&[2, 1], Verdict::TooFew)] {
        let mut roll = Roll::new(inc(1), &census(returned, &[3]));
        roll.answer(inc(2), Some(&Census { returned: incs(returned), ..census(&[1, 3], &[3]) }));
        assert_eq!(roll.verdict(true), verdict, "{returned:?}");
    }
    let mut roll = Roll::new(inc(1), &census(&[2, 1], &[]));
    roll.answer(inc(2), Some(&census(&[1, 3], &[])));
    roll.answer(inc(3), Some(&census(&[1, 2], &[])));
    assert_eq!(roll.verdict(true), Verdict::Enough, "everyone has answered");
}

#[test]
fn a_peer_that_is_silent_for_long_delays_those_that_returned_no_more() {
    let mut view = View::new(name(1));
    for peer in [2, 3] {
        hello(&mut view, peer, 0, Now(1), Source::FirstHand);
    }
    view.left(&name(2), &inc(2), Now(5_000));
    assert_eq!(Census::of(&view, Now(5_001)).returned, incs(&[2]), "it may have left others alone");
    hello(&mut view, 2, 1, Now(6_000), Source::FirstHand);
    view.suspect(&name(3), Now(7_000));
    let returned = |now: u64| Census::of(&view, Now(now)).returned;
    assert_eq!(returned(6_500), incs(&[102]));
    assert_eq!(returned(29_000), incs(&[102]), "the silent peer has given it nothing");
    assert_eq!(returned(60_000), [], "and is not waited for any longer");
}

#[test]
fn one_that_met_nobody_before_a_moment_ago_vouches_for_nobody() {
    let mut view = View::new(name(1));
    let age = REBORN_FOR * 2;
    let began = Now(1);
    let young = |view: &View, now: Now| {
        let since = Duration::from_millis(now.0 - began.0);
        Census::of(view, now).with_age(since).with_silences(view, now, since).is_young
    };
    let met = began.after(age);
    assert!(!young(&view, met), "it may be the only one");
    hello(&mut view, 2, 0, met, Source::Hearsay);
    hello(&mut view, 3, 1, met, Source::FirstHand);
    assert!(young(&view, met), "it was cut off until now, and cannot know whom 3 replaced");
    hello(&mut view, 2, 1, met.after(REBORN_FOR / 2), Source::FirstHand);
    assert!(!young(&view, met.after(REBORN_FOR)), "the first of them counts");
}

#[test]
fn one_of_two_is_left_alone_once_the_other_was_silent_for_as_long_as_a_request_waits() {
    let patience = Duration::from_secs(5);
    let silent = |since| Census {
        others: incs(&[2]),
        silent: incs(&[2]),
        silent_since: Some(Now(since)),
        pair: true,
        ..Census::default()
    };
    assert!(!silent(10_000).is_left_alone(Now(14_999), patience));
    assert!(silent(10_000).is_left_alone(Now(15_000), patience));
    let of_three = Census { pair: false, ..silent(10_000) };
    assert!(!of_three.is_left_alone(Now(60_000), patience));
    let heard = Census { silent: Vec::new(), silent_since: None, ..silent(0) };
    assert!(!heard.is_left_alone(Now(60_000), patience), "it only takes its time");
    let forgotten = Census { others: Vec::new(), ..heard };
    assert!(forgotten.is_left_alone(Now(60_000), patience));
}

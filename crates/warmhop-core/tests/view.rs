//! What a view believes after any news, in any order.

#![expect(clippy::unwrap_used, reason = "a scene that cannot be set fails its test")]

mod prng;

use std::time::Duration;

use prng::Prng;
use warmhop_core::ids::{AppName, Incarnation, Now, PeerId};
use warmhop_core::view::*;

fn peer(name: &str) -> PeerId {
    PeerId::new(name).unwrap()
}

fn app(name: &str) -> AppName {
    AppName::new(name).unwrap()
}

/// The life of a peer by its generation: as many lives as generations.
fn life(name: &str, generation: u64) -> Incarnation {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&generation.to_be_bytes());
    for (byte, of_name) in bytes[8..].iter_mut().zip(name.bytes()) {
        *byte = of_name;
    }
    Incarnation(bytes)
}

fn hello(name: &str, generation: u64, seq: u64) -> PeerNews {
    PeerNews {
        generation,
        seq,
        zone: Some(format!("zone-{seq}")),
        draining: seq % 2 == 1,
        ..PeerNews::of(peer(name), life(name, generation), "127.0.0.1:7001".parse().unwrap())
    }
}

fn says(name: &str, generation: u64, of: &str, seq: u64, state: AppState) -> News {
    News::App {
        peer: peer(name),
        incarnation: life(name, generation),
        generation,
        news: AppNews {
            eta_ms: Some(900),
            in_flight: seq as u32,
            ..AppNews::of(app(of), seq, state)
        },
    }
}

fn view() -> View {
    View::new(peer("me"))
}

fn ready_names(view: &View, of: &str) -> Vec<String> {
    view.ready_peers(&app(of)).map(|(peer, _)| peer.to_string()).collect()
}

/// Where the app is ready or starting, by the index and by a scan.
fn warm_both_ways(view: &View, of: &str) -> [Vec<String>; 2] {
    let warm = |state| matches!(state, AppState::Ready | AppState::Starting);
    let scanned = view
        .live_peers()
        .filter(|(_, p)| p.apps.get(&app(of)).is_some_and(|a| warm(a.news.state)))
        .map(|(peer, _)| peer.to_string());
    let indexed = app(of);
    let indexed = view.warm_peers(&indexed).map(|(peer, _, _)| peer.to_string());
    [indexed.collect(), scanned.collect()]
}

/// The believed state of every app, read from the peers and not from the index.
fn ready_by_scan(view: &View, of: &str) -> Vec<String> {
    view.live_peers()
        .filter(|(_, p)| p.apps.get(&app(of)).is_some_and(|a| a.news.state == AppState::Ready))
        .map(|(peer, _)| peer.to_string())
        .collect()
}

const STATES: [AppState; 5] =
    [AppState::Cold, AppState::Starting, AppState::Ready, AppState::Stopping, AppState::Failed];

/// All that three peers ever said: honest writers, so one number never says two things.
fn history(rng: &mut Prng) -> Vec<(News, Source)> {
    let mut said = Vec::new();
    for name in ["p1", "p2", "p3"] {
        for generation in 1..=1 + rng.below(3) {
            for seq in 1..=1 + rng.below(3) {
                said.push(News::Peer(hello(name, generation, seq)));
            }
            for of in ["shop", "blog"] {
                for seq in 1..=rng.below(4) {
                    let mut news = says(name, generation, of, seq, *rng.pick(&STATES));
                    if let (News::App { news, .. }, true) = (&mut news, rng.chance(30)) {
                        news.gone = true;
                    }
                    said.push(news);
                }
            }
        }
    }
    said.into_iter()
        .flat_map(|news| {
            let heard_twice = rng.chance(40).then(|| (news.clone(), Source::FirstHand));
            let source = if rng.chance(50) { Source::FirstHand } else { Source::Hearsay };
            heard_twice.into_iter().chain([(news, source)])
        })
        .collect()
}

#[test]
fn beliefs_depend_on_what_was_heard_and_not_on_its_order_or_repetition() {
    let mut rng = Prng(1);
    for case in 0..400 {
        let mut said = history(&mut rng);
        let mut first: Option<Vec<(PeerId, PeerBelief)>> = None;
        for _ in 0..6 {
            rng.shuffle(&mut said);
            let mut view = view();
            for (news, source) in said.iter().chain(&said[..said.len() / 2]) {
                let applied = view.apply(news.clone(), Now(5), *source);
                assert!(!matches!(applied, Applied::Refused(_)), "{applied:?}");
                let before = view.clone();
                assert_eq!(view.apply(news.clone(), Now(5), *source), Applied::Stale);
                assert_eq!(view, before, "the same news again changes nothing");
            }
            for of in ["shop", "blog"] {
                assert_eq!(ready_names(&view, of), ready_by_scan(&view, of));
            }
            let believed: Vec<_> = view.peers().map(|(p, b)| (p.clone(), b.clone())).collect();
            let expected = first.get_or_insert_with(|| believed.clone());
            assert_eq!(&believed, expected, "I13, case {case}");
        }
        for (name, belief) in first.unwrap() {
            assert_eq!(belief.news.incarnation, life(name.as_str(), belief.news.generation));
        }
    }
}

#[test]
fn an_app_that_is_gone_is_nowhere_until_it_is_said_to_be_there_again() {
    let mut view = view();
    let mut apply = |news| view.apply(news, Now(1), Source::FirstHand);
    apply(News::Peer(hello("p1", 1, 1)));
    apply(says("p1", 1, "shop", 1, AppState::Ready));
    let mut gone = says("p1", 1, "shop", 2, AppState::Ready);
    if let News::App { news, .. } = &mut gone {
        news.gone = true;
    }
    assert_eq!(apply(gone), Applied::Changed);
    assert_eq!(apply(says("p1", 1, "shop", 1, AppState::Ready)), Applied::Stale, "late");
    assert!(ready_names(&view, "shop").is_empty());
    assert!(view.peer(&peer("p1")).unwrap().apps.is_empty());
    view.apply(says("p1", 1, "shop", 3, AppState::Ready), Now(1), Source::FirstHand);
    assert_eq!(ready_names(&view, "shop"), ["p1"]);
}

#[test]
fn news_of_apps_may_come_before_its_peer_introduces_itself() {
    let mut view = view();
    assert_eq!(
        view.apply(says("p1", 1, "shop", 1, AppState::Ready), Now(0), Source::Hearsay),
        Applied::Stale
    );
    assert_eq!((view.peer(&peer("p1")), ready_names(&view, "shop").len()), (None, 0));
    let hello = News::Peer(hello("p1", 1, 1));
    assert_eq!(view.apply(hello, Now(1), Source::Hearsay), Applied::Changed);
    assert_eq!(ready_names(&view, "shop"), ["p1"]);
}

#[test]
fn a_restarted_peer_is_believed_nothing_of_its_former_life() {
    let mut view = view();
    view.apply(News::Peer(hello("p1", 1, 9)), Now(0), Source::FirstHand);
    view.apply(says("p1", 1, "shop", 9, AppState::Ready), Now(0), Source::FirstHand);
    assert!(!view.is_dead(&life("p1", 1)));
    // The first word of the new life is about an app, and hearsay.
    view.apply(says("p1", 2, "shop", 1, AppState::Cold), Now(1), Source::Hearsay);
    assert!(view.is_dead(&life("p1", 1)) && view.by_incarnation(&life("p1", 1)).is_none());
    assert!(ready_names(&view, "shop").is_empty(), "I14");
    view.apply(News::Peer(hello("p1", 2, 1)), Now(2), Source::Hearsay);
    assert_eq!(view.by_incarnation(&life("p1", 2)).unwrap().news.seq, 1);
    // Late news of the former life, first-hand even, changes nothing.
    for news in [News::Peer(hello("p1", 1, 10)), says("p1", 1, "shop", 10, AppState::Ready)] {
        let before = view.clone();
        assert_eq!(view.apply(news, Now(3), Source::FirstHand), Applied::Stale);
        assert_eq!(view, before);
    }
}

#[test]
fn two_processes_of_one_name_are_refused_and_counted() {
    let mut view = view();
    view.apply(News::Peer(hello("p1", 1, 1)), Now(0), Source::FirstHand);
    let twin = PeerNews { incarnation: Incarnation([9; 16]), ..hello("p1", 1, 5) };
    let applied = view.apply(News::Peer(twin), Now(1), Source::FirstHand);
    assert_eq!(applied, Applied::Refused(RefusedNews::NameClash));
    let thief = PeerNews { incarnation: life("p1", 1), ..hello("p2", 1, 1) };
    let applied = view.apply(News::Peer(thief), Now(1), Source::FirstHand);
    assert_eq!(applied, Applied::Refused(RefusedNews::IncarnationClash));
    let applied = view.apply(News::Peer(hello("me", 7, 1)), Now(1), Source::Hearsay);
    assert_eq!(applied, Applied::Refused(RefusedNews::Myself));
    for why in [RefusedNews::NameClash, RefusedNews::IncarnationClash, RefusedNews::Myself] {
        assert_eq!(view.refused(why), 1, "{why}");
    }
    assert_eq!(view.peers().count(), 1);
}

#[test]
fn first_hand_news_overrides_hearsay_of_the_same_number_and_not_the_reverse() {
    let mut view = view();
    let news = |zone: &str| News::Peer(PeerNews { zone: Some(zone.into()), ..hello("p1", 1, 4) });
    view.apply(news("twisted"), Now(0), Source::Hearsay);
    assert_eq!(view.apply(news("a"), Now(1), Source::FirstHand), Applied::Changed);
    assert_eq!(view.apply(news("twisted"), Now(2), Source::Hearsay), Applied::Stale);
    assert_eq!(view.peer(&peer("p1")).unwrap().news.zone.as_deref(), Some("a"));
}

#[test]
fn only_the_peer_itself_or_its_link_raises_it_from_suspicion_or_death() {
    let mut view = view();
    let p1 = peer("p1");
    let alive = |view: &View| view.peer(&peer("p1")).unwrap().alive;
    view.apply(News::Peer(hello("p1", 1, 1)), Now(0), Source::Hearsay);
    assert!(view.suspect(&p1, Now(1)) && !view.suspect(&p1, Now(2)));
    view.apply(News::Peer(hello("p1", 1, 2)), Now(3), Source::Hearsay);
    assert_eq!(alive(&view), Liveness::Suspect, "hearsay is how it was, not that it is");
    assert_eq!(
        view.apply(News::Peer(hello("p1", 1, 2)), Now(4), Source::FirstHand),
        Applied::Changed
    );
    assert_eq!(alive(&view), Liveness::Alive);
    assert!(view.lost(&p1, &life("p1", 1), Now(5)) && view.is_dead(&life("p1", 1)));
    assert!(!view.suspect(&p1, Now(6)), "the dead are not raised to suspects");
    assert!(view.alive(&p1, Now(6)) && !view.alive(&p1, Now(6)) && !view.is_dead(&life("p1", 1)));
    assert!(!view.lost(&p1, &life("p1", 8), Now(7)), "another life's loss is not this one's");
}

#[test]
fn the_dead_are_no_candidates_and_are_forgotten_in_time_but_not_raised_by_hearsay() {
    let mut view = view();
    for name in ["p1", "p2"] {
        view.apply(News::Peer(hello(name, 1, 1)), Now(0), Source::FirstHand);
        view.apply(says(name, 1, "shop", 1, AppState::Ready), Now(0), Source::FirstHand);
    }
    view.lost(&peer("p1"), &life("p1", 1), Now(1_000));
    assert_eq!(ready_names(&view, "shop"), ["p2"]);
    let minute = Duration::from_secs(60);
    assert_eq!(view.forget_dead(Now(60_999), minute), []);
    assert_eq!(view.forget_dead(Now(61_000), minute), [peer("p1")]);
    assert_eq!(view.peers().count(), 1);
    let again = News::Peer(hello("p1", 1, 3));
    assert_eq!(view.apply(again.clone(), Now(61_001), Source::Hearsay), Applied::Stale);
    assert!(view.is_dead(&life("p1", 1)));
    assert_eq!(view.apply(again, Now(61_002), Source::FirstHand), Applied::Changed);
    assert!(!view.is_dead(&life("p1", 1)));
    // Once even the memory of its death is gone, nothing is known.
    view.lost(&peer("p1"), &life("p1", 1), Now(62_000));
    view.forget_dead(Now(130_000), minute);
    view.forget_dead(Now(190_000), minute);
    assert!(!view.is_dead(&life("p1", 1)));
}

#[test]
fn a_belief_grows_older_until_its_peer_repeats_it() {
    let mut view = view();
    view.apply(News::Peer(hello("p1", 1, 1)), Now(0), Source::FirstHand);
    let news = says("p1", 1, "shop", 1, AppState::Starting);
    view.apply(news.clone(), Now(10), Source::FirstHand);
    let heard = |view: &View| view.peer(&peer("p1")).unwrap().apps[&app("shop")].heard;
    view.apply(news.clone(), Now(20), Source::Hearsay);
    assert_eq!(heard(&view), Now(10), "who passes it on knows no more");
    view.apply(news, Now(30), Source::FirstHand);
    assert_eq!(heard(&view), Now(30));
    // 900 ms were announced then.
    assert_eq!(view.best_eta(&app("shop"), Now(530)), Some(Duration::from_millis(400)));
    assert_eq!(view.best_eta(&app("shop"), Now(9_000)), Some(Duration::from_millis(100)));
    assert_eq!(view.best_eta(&app("blog"), Now(9_000)), None);
}

#[test]
fn a_peer_that_had_no_news_for_long_is_silent_only_since_it_was_suspected() {
    let mut view = view();
    let p1 = peer("p1");
    view.apply(News::Peer(hello("p1", 1, 1)), Now(0), Source::FirstHand);
    let heard = |view: &View| view.peer(&p1).unwrap().heard;
    assert!(view.suspect(&p1, Now(100_000)));
    assert_eq!(heard(&view), Now(100_000));
    assert!(!view.suspect(&p1, Now(110_000)), "suspected already");
    assert_eq!(heard(&view), Now(100_000));
    assert!(view.alive(&p1, Now(115_000)) && view.suspect(&p1, Now(120_000)));
    assert_eq!(heard(&view), Now(120_000), "it answered in between");
}

#[test]
fn a_snapshot_does_not_change_with_its_original() {
    let mut view = view();
    view.apply(News::Peer(hello("p1", 1, 1)), Now(0), Source::FirstHand);
    let snapshot = view.clone();
    view.apply(says("p1", 1, "shop", 1, AppState::Ready), Now(1), Source::FirstHand);
    view.apply(News::Peer(hello("p2", 1, 1)), Now(1), Source::FirstHand);
    assert_eq!((snapshot.peers().count(), view.peers().count()), (1, 2));
    assert!(ready_names(&snapshot, "shop").is_empty());
}

#[test]
fn peers_apps_and_texts_are_bounded_and_refusals_counted() {
    let mut view = view();
    for i in 0..PEERS_MAX {
        let name = format!("p{i}");
        // Strangers count: who never introduces itself must not fill the memory either.
        let news = if i % 2 == 0 {
            News::Peer(hello(&name, 1, 1))
        } else {
            says(&name, 1, "shop", 1, AppState::Ready)
        };
        assert!(!matches!(view.apply(news, Now(0), Source::Hearsay), Applied::Refused(_)));
    }
    let applied = view.apply(News::Peer(hello("one-more", 1, 1)), Now(0), Source::FirstHand);
    assert_eq!(applied, Applied::Refused(RefusedNews::TooManyPeers));
    // A known peer's new life is no further peer.
    let applied = view.apply(News::Peer(hello("p0", 2, 1)), Now(0), Source::FirstHand);
    assert_eq!(applied, Applied::Changed);

    for i in 0..APPS_PER_PEER_MAX {
        view.apply(says("p0", 2, &format!("a{i}"), 1, AppState::Ready), Now(0), Source::FirstHand);
    }
    let further = says("p0", 2, "one-more", 1, AppState::Ready);
    let applied = view.apply(further, Now(0), Source::FirstHand);
    assert_eq!(applied, Applied::Refused(RefusedNews::TooManyApps));
    assert_eq!(view.peer(&peer("p0")).unwrap().apps.len(), APPS_PER_PEER_MAX);
    assert!(ready_names(&view, "one-more").is_empty());

    let long = PeerNews { http: Some("x".repeat(HTTP_BYTES_MAX + 1)), ..hello("p2", 1, 2) };
    let applied = view.apply(News::Peer(long), Now(0), Source::FirstHand);
    assert_eq!(applied, Applied::Refused(RefusedNews::TooLong));
    for why in [RefusedNews::TooManyPeers, RefusedNews::TooManyApps, RefusedNews::TooLong] {
        assert_eq!(view.refused(why), 1);
    }
    // The silent strangers go in time, and make room.
    assert_eq!(view.forget_dead(Now(60_000), Duration::from_secs(60)).len(), PEERS_MAX / 2);
}

#[test]
fn former_lives_are_bounded_and_the_longest_dead_are_forgotten_first() {
    let mut view = view();
    let lives = FORMER_LIVES_MAX as u64 + 10;
    for generation in 1..=lives {
        view.apply(News::Peer(hello("p1", generation, 1)), Now(generation), Source::FirstHand);
    }
    assert!(!view.is_dead(&life("p1", 1)));
    assert!(view.is_dead(&life("p1", 10)) && view.is_dead(&life("p1", lives - 1)));
    assert!(!view.is_dead(&life("p1", lives)));
}

#[test]
fn the_index_agrees_with_a_scan_whatever_happens() {
    let mut rng = Prng(77);
    let names = ["p1", "p2", "p3", "p4"];
    let mut view = view();
    for step in 1..20_000_u64 {
        let now = Now(step);
        let name = *rng.pick(&names);
        let generation = 1 + step / 2_000;
        let source = if rng.chance(50) { Source::FirstHand } else { Source::Hearsay };
        match rng.below(12) {
            0 => drop(view.apply(News::Peer(hello(name, generation, step)), now, source)),
            1 => drop(view.suspect(&peer(name), now)),
            2 => drop(view.alive(&peer(name), now)),
            3 => drop(view.lost(&peer(name), &life(name, generation), now)),
            4 => drop(view.forget_dead(now, Duration::from_millis(rng.below(40)))),
            _ => {
                let seq = step - rng.below(step.min(50));
                let news = says(name, generation, "shop", seq, *rng.pick(&STATES));
                view.apply(news, now, source);
            }
        }
        assert_eq!(ready_names(&view, "shop"), ready_by_scan(&view, "shop"), "step {step}");
        let [indexed, scanned] = warm_both_ways(&view, "shop");
        assert_eq!(indexed, scanned, "step {step}");
        for (_, belief) in view.peers() {
            let current = view.by_incarnation(&belief.news.incarnation);
            let dead = belief.alive == Liveness::Dead;
            assert_eq!((current.is_none(), view.is_dead(&belief.news.incarnation)), (dead, dead));
        }
    }
}

#[test]
fn a_peer_that_others_hear_is_not_taken_for_dead() {
    let secs = |secs: u64| Now(1_000 + secs * 1_000);
    let mut view = view();
    view.apply(News::Peer(hello("a", 1, 1)), secs(0), Source::FirstHand);
    let alive = |view: &View| view.peer(&peer("a")).unwrap().alive;
    let unheard = |view: &View, at| view.unheard(at).next().is_some();
    // Nobody has to report on a peer that is heard here.
    assert!(!view.wants_word_of(&peer("a"), secs(0)));
    view.suspect(&peer("a"), secs(0));
    for at in (0..60).step_by(10) {
        assert!(view.wants_word_of(&peer("a"), secs(at)));
        view.heard_by_others(&peer("a"), &life("a", 1), secs(at));
        assert!(!view.wants_word_of(&peer("a"), secs(at)));
        assert!(!unheard(&view, secs(at)) && !view.give_up(&peer("a"), secs(at)));
        assert_eq!(alive(&view), Liveness::Suspect);
    }
    // Nor do others hear it any more.
    assert!(!unheard(&view, secs(80)));
    assert!(unheard(&view, secs(81)) && view.give_up(&peer("a"), secs(81)));
    assert_eq!(alive(&view), Liveness::Dead);
    // That was no proof: it was cut off from all of them.
    assert!(!view.heard_by_others(&peer("a"), &life("a", 7), secs(82)), "another life of it");
    assert!(view.heard_by_others(&peer("a"), &life("a", 1), secs(82)));
    assert_eq!(alive(&view), Liveness::Suspect);
}

#[test]
fn old_hearsay_does_not_revive_a_peer_that_is_gone() {
    let mut view = view();
    view.apply(News::Peer(hello("a", 1, 1)), Now(1), Source::FirstHand);
    view.suspect(&peer("a"), Now(1));
    view.give_up(&peer("a"), Now(40_000));
    view.left(&peer("a"), &life("a", 1), Now(40_001));
    assert!(!view.heard_by_others(&peer("a"), &life("a", 1), Now(40_002)));
    assert_eq!(view.peer(&peer("a")).unwrap().alive, Liveness::Dead);
}

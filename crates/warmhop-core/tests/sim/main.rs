//! Whole peers in a simulated world: every decision is made by the crate's real code, everything
//! else is the world's, and one seed decides all of it.
//!
//! A run has faults first. Then it heals, and progress is demanded within stated bounds: every
//! session that kept a majority is served at every entry, sessions and apps settle where their
//! clients arrive, and copies are back to three.
//!
//! `cargo test -p warmhop-core --test sim` runs a fixed set of seeds: what it
//! says depends on the code alone. A million others: `SEEDS=1+1000000 cargo test --release -p warmhop-core --test sim -- --nocapture`. One
//! seed alone, printed line by line if it fails: `SEEDS=7+1`, the same way.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::type_complexity,
    clippy::large_enum_variant,
    reason = "a test crate that prints how far it is"
)]
#![allow(missing_docs, unreachable_pub, reason = "a test is no library")]

mod calls;
mod client;
mod cookie_key;
mod dead_holders;
mod departures;
mod faults;
mod fleeting;
mod full;
mod hasty;
mod hops;
mod narrate;
mod network;
mod one_link;
mod pair;
mod peer;
mod place;
#[path = "../prng/mod.rs"]
mod prng;
mod reference;
mod registers;
mod run;
mod running;
mod serve;
mod sole;
mod store;
mod ways;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use warmhop_core::ids::PeerId;

use calls::Does;
use dead_holders::Scene;
use departures::{Crash, Degraded, Silent};
use pair::Gone;
use run::{Planted, Report, run};

/// How many seeds every run of the tests goes through, from 1 on.
const FIXED: u64 = 170;
/// The same for registers that last for a moment.
const FLEETING: u64 = 60;
/// How many seeds may fail before the others are left alone.
const FAILURES_MAX: usize = 30;

/// The name of the peer on `node`.
pub(crate) fn name(node: usize) -> PeerId {
    static NAMES: OnceLock<Vec<PeerId>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        (1..=16).map(|n| PeerId::new(&format!("peer-{n}")).expect("a valid name")).collect()
    });
    names[node].clone()
}

pub(crate) fn node_of(peer: &PeerId) -> Option<usize> {
    peer.as_str().strip_prefix("peer-")?.parse::<usize>().ok().map(|number| number - 1)
}

/// What the environment asks for: so many seeds from the first.
fn asked_for() -> Option<(u64, u64)> {
    let text = std::env::var("SEEDS").ok()?;
    let (first, count) = text.split_once('+').expect("SEEDS is FIRST+COUNT, such as 1+1000");
    Some((first.parse().expect("a number"), count.parse().expect("a number")))
}

/// A run by its seed; narrated if somebody listens.
type Run = fn(seed: u64, listening: bool) -> Report;

fn run_one(seed: u64, run: impl Fn(u64, bool) -> Report) -> Result<Report, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, false)));
    match outcome {
        Ok(report) => match report.violation {
            None => Ok(report),
            Some(what) => Err(format!("{what}\n{}", tell(seed, run))),
        },
        Err(_) => Err(format!("a machine panicked, see above\n{}", tell(seed, run))),
    }
}

/// Runs a seed again, in words.
fn tell(seed: u64, run: impl Fn(u64, bool) -> Report) -> String {
    catch_unwind(AssertUnwindSafe(|| run(seed, true).story)).unwrap_or_else(|_| {
        "it panics before its story is printed: see the panic's own words".into()
    })
}

fn run_all(seeds: &[u64], run: Run) -> BTreeMap<&'static str, u64> {
    let next = AtomicU64::new(0);
    let totals: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    let failures: Mutex<BTreeMap<u64, String>> = Mutex::default();
    let began = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let failed = failures.lock().unwrap().len() >= FAILURES_MAX;
                    let Some(seed) = seeds.get(at).filter(|_| !failed) else { return };
                    match run_one(*seed, run) {
                        Ok(report) => {
                            let mut totals = totals.lock().unwrap();
                            for (what, count) in report.counts {
                                *totals.entry(what).or_default() += count;
                            }
                        }
                        Err(what) => {
                            failures.lock().unwrap().insert(*seed, what);
                        }
                    }
                    if at % 10_000 == 9_999 {
                        let rate = at as f64 / began.elapsed().as_secs_f64();
                        println!("{} of {} seeds, {rate:.0} a second", at + 1, seeds.len());
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    if let Some((seed, what)) = failures.first_key_value() {
        for (seed, what) in &failures {
            println!("seed {seed}: {}", what.lines().next().unwrap_or_default());
        }
        panic!(
            "{} of the seeds failed. Seed {seed}: {what}\nagain, alone: SEEDS={seed}+1 cargo test -p warmhop-core --test sim -- --nocapture",
            failures.len()
        );
    }
    let totals = totals.into_inner().unwrap();
    println!("{} seeds in {:.1} s: {totals:?}", seeds.len(), began.elapsed().as_secs_f64());
    totals
}

fn well_planted(seed: u64, listening: bool) -> Report {
    run(seed, listening, Planted::Nothing)
}

#[test]
fn nothing_answered_is_lost_and_a_healed_mesh_serves_everyone() {
    if let Some((first, count)) = asked_for() {
        run_all(&(first..first + count).collect::<Vec<_>>(), well_planted);
        return;
    }
    let totals = run_all(&(1..=FIXED).collect::<Vec<_>>(), well_planted);
    // A world in which little happens shows little.
    for what in [
        "answers",
        "pages",
        "crashes",
        "departures",
        "pauses",
        "cuts",
        "cuts in one direction",
        "long cuts",
        "rolls",
        "idle sessions looked at",
        "lost sessions looked at",
        "registers answered",
        "registers looked at",
        "absent",
        "relayed",
        "relayed by token",
        "sent on by way of another",
        "streams sent again",
        "claimants asked",
        "members looked for",
        "app crashes",
        "clocks set",
        "rivals",
        "swaps",
        "forced to forget",
        "orders repeated",
        "frames repeated",
        "frames lost",
        "taken over",
        "deposed",
        "opened",
        "successions",
        "replayed",
        "forked",
        "reported lost",
        "handed off",
        "below floor",
        "expired states",
    ] {
        assert!(totals.get(what).is_some_and(|count| *count > 2), "{what}: {totals:?}");
    }
}

#[test]
fn a_short_lived_key_is_there_until_its_end_and_never_after() {
    if let Some((first, count)) = asked_for() {
        run_all(&(first..first + count).collect::<Vec<_>>(), fleeting::run);
        return;
    }
    let totals = run_all(&(1..=FLEETING).collect::<Vec<_>>(), fleeting::run);
    for what in [
        "fleeting answered",
        "fleeting registers looked at",
        "absent",
        "crashes",
        "departures",
        "pauses",
        "long cuts",
        "clocks set",
        "taken over",
        "deposed",
        "opened",
        "registers lost",
        "relayed",
    ] {
        assert!(totals.get(what).is_some_and(|count| *count > 2), "{what}: {totals:?}");
    }
}

#[test]
fn a_key_that_one_peer_holds_alone_is_not_absent_while_that_peer_is_suspended() {
    let scenes = [(3, 20_000), (4, 20_000), (3, 2_000), (4, 2_000)];
    for (seed, (peers, ms)) in (1..=8).flat_map(|seed| scenes.map(|scene| (seed, scene))) {
        let report = sole::run(seed, false, peers, ms);
        if let Some(what) = report.violation {
            let story = sole::run(seed, true, peers, ms).story;
            panic!("seed {seed}, {peers} peers after {ms} ms: {what}\n{story}");
        }
        assert!(report.counts.get("registers looked at").is_some_and(|count| *count >= 12));
    }
}

#[test]
fn a_request_sent_just_now_is_not_too_old_to_tell_where_it_does_not_reach_its_owner() {
    let mut died = 0;
    for (seed, peers) in (1..=40).flat_map(|seed| [(seed, 3), (seed, 5)]) {
        let at = 1 + seed as usize % (peers - 1);
        let report = hasty::run(seed, false, peers, at);
        if let Some(what) = report.violation {
            panic!(
                "seed {seed}, {peers} peers: {what}\n{}",
                hasty::run(seed, true, peers, at).story
            );
        }
        died += report.counts.get("owners that die").copied().unwrap_or_default();
    }
    assert!(died > 40, "{died}");
}

#[test]
fn a_key_that_ended_in_a_pair_can_be_set_again_by_the_peer_that_is_left() {
    for seed in 1..=12 {
        for is_deleted in [false, true] {
            let report = fleeting::in_a_pair(seed, false, is_deleted);
            if let Some(what) = report.violation {
                let story = fleeting::in_a_pair(seed, true, is_deleted).story;
                panic!("seed {seed}, deleted {is_deleted}: {what}\n{story}");
            }
        }
    }
}

const THREE: Scene = Scene { peers: 3, copies: 3, restarted: &[], die: &[0], come_back: false };
const FIVE: Scene = Scene { peers: 5, ..THREE };

#[test]
fn a_session_without_a_write_begins_anew_at_any_peer_if_its_holders_are_gone() {
    let scenes = [
        THREE,
        Scene { restarted: &[1], ..THREE },
        Scene { restarted: &[1, 2], ..THREE },
        Scene { copies: 2, ..THREE },
        Scene { copies: 2, restarted: &[1], ..THREE },
        Scene { copies: 1, ..THREE },
        Scene { peers: 4, restarted: &[1], ..THREE },
        Scene { die: &[0, 1], ..FIVE },
        Scene { restarted: &[1], ..FIVE },
        Scene { restarted: &[1, 2], die: &[0, 3], ..FIVE },
        Scene { die: &[0, 1, 2], come_back: true, ..FIVE },
    ];
    let rounds = [(6_000, None), (20_000, None), (100, Some(8_000)), (900, Some(8_000))];
    for scene in scenes {
        for (seed, round) in (1..=3).flat_map(|seed| rounds.map(|round| (seed, round))) {
            let run = |listens| dead_holders::run(seed, listens, scene, Does::Read, round);
            let (report, waits) = run(false);
            let last = waits.last().expect("a round");
            // Until the dead are missed, nobody can tell.
            let wrong = last.iter().find(|it| it.end != Ok(false) || it.took_ms > 1_500);
            if wrong.is_some() || report.violation.is_some() {
                let story = run(true).0.story;
                panic!("{scene:?} {round:?} {wrong:?} {:?}\n{story}", report.violation);
            }
        }
    }
}

#[test]
fn a_session_whose_holders_are_proven_gone_is_reported_as_lost_at_once() {
    let scenes = [
        Scene { die: &[0, 1], come_back: true, ..THREE },
        Scene { die: &[0, 1, 2], come_back: true, ..FIVE },
    ];
    for scene in scenes {
        for seed in 1..=6 {
            let run = |listens| dead_holders::run(seed, listens, scene, Does::Append, (900, None));
            let (_, waits) = run(false);
            let losses: Vec<_> = waits.iter().flatten().filter(|it| it.end == Ok(true)).collect();
            assert!(losses.len() >= 6, "seed {seed}, {scene:?}: {waits:?}");
            // The reborn know of each other only by one that was there before.
            if let Some(late) = losses.iter().find(|it| it.took_ms > 1_000) {
                let story = run(true).0.story;
                let (at, ms) = (late.at + 1, late.took_ms);
                panic!("seed {seed}, {scene:?}: peer-{at} reported it after {ms} ms\n{story}");
            }
        }
    }
}

#[test]
fn sessions_begun_while_one_link_is_cut_for_long_outlive_any_one_peer() {
    let mut forked = 0;
    for seed in 1..=12 {
        for copies in [2, 3] {
            for (begun_at, victim) in [(0, 2), (0, 0), (2, 0), (2, 2), (1, 2)] {
                let scene = one_link::Scene { copies, begun_at, victim };
                let report = one_link::run(seed, false, scene);
                if let Some(what) = report.violation {
                    let story = one_link::run(seed, true, scene).story;
                    panic!("seed {seed}, {scene:?}: {what}\n{story}");
                }
                assert!(report.counts["sessions looked at"] >= 18, "{:?}", report.counts);
                forked += report.counts.get("forked").copied().unwrap_or_default();
            }
        }
    }
    assert_eq!(
        forked, 0,
        "the one that is left of two goes on with the session, not with a copy of it"
    );
}

#[test]
fn first_writes_of_one_client_at_two_peers_are_in_one_session_while_links_are_cut() {
    for seed in 1..=24 {
        if let Some(what) = one_link::first_writes(seed, false).violation {
            panic!("seed {seed}: {what}\n{}", one_link::first_writes(seed, true).story);
        }
    }
}

#[test]
fn a_peer_that_hears_nobody_acknowledges_nothing_that_it_alone_would_hold() {
    for seed in 1..=24 {
        let report = one_link::begun_while_cut_off(seed, false);
        if let Some(what) = report.violation {
            panic!("seed {seed}: {what}\n{}", one_link::begun_while_cut_off(seed, true).story);
        }
        assert!(report.counts["refused by a peer that is cut off"] > 0, "{:?}", report.counts);
    }
}

#[test]
fn the_peer_that_stays_serves_every_session_without_those_that_left_in_good_order() {
    for seed in 1..=24 {
        for begun_at in 0..3 {
            let report = departures::one_after_the_other(seed, false, begun_at);
            if let Some(what) = report.violation {
                let story = departures::one_after_the_other(seed, true, begun_at).story;
                panic!("seed {seed}, begun at {begun_at}: {what}\n{story}");
            }
            assert_eq!(report.counts["sessions looked at"], 18, "{:?}", report.counts);
        }
    }
}

#[test]
fn a_session_of_two_members_survives_one_while_the_third_is_away() {
    for seed in 1..=24 {
        for victim in 0..2 {
            let report = departures::one_away_and_one_crash(seed, false, victim);
            if let Some(what) = report.violation {
                let story = departures::one_away_and_one_crash(seed, true, victim).story;
                panic!("seed {seed}, victim {victim}: {what}\n{story}");
            }
            assert_eq!(report.counts["sessions looked at"], 12, "{:?}", report.counts);
        }
    }
}

#[test]
fn a_session_of_three_survives_a_crash_while_another_member_is_down_in_good_order() {
    for seed in 1..=6 {
        for (begun_at, victim) in [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)] {
            for after_ms in [10, 1_000, 15_000] {
                let scene = Crash { begun_at, victim, after_ms };
                let report = departures::one_leaves_and_one_crashes(seed, false, scene);
                if let Some(what) = report.violation {
                    let story = departures::one_leaves_and_one_crashes(seed, true, scene).story;
                    panic!("seed {seed}, {scene:?}: {what}\n{story}");
                }
                assert_eq!(report.counts["sessions looked at"], 24, "{:?}", report.counts);
                assert_eq!(report.counts["registers looked at"], 20, "{:?}", report.counts);
            }
        }
    }
}

#[test]
fn the_peer_that_stays_serves_alone_if_one_crashes_just_before_another_leaves_in_good_order() {
    for seed in 1..=6 {
        for (begun_at, victim) in [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)] {
            for after_ms in [0, 300, 1_500, 4_000] {
                let scene = Crash { begun_at, victim, after_ms };
                let report = departures::one_crashes_as_another_leaves(seed, false, scene);
                if let Some(what) = report.violation {
                    let report = departures::one_crashes_as_another_leaves(seed, true, scene);
                    panic!("seed {seed}, {scene:?}: {what}\n{}", report.story);
                }
                assert_eq!(report.counts["sessions looked at"], 6, "{:?}", report.counts);
                assert_eq!(report.counts["registers looked at"], 8, "{:?}", report.counts);
            }
        }
    }
}

#[test]
fn fresh_keys_are_served_after_one_restart_in_good_order_and_one_crash() {
    for (seed, peers) in (1..=20).flat_map(|seed| [3, 5].map(|peers| (seed, peers))) {
        let report = departures::one_restarts_and_one_crashes(seed, false, peers);
        if let Some(what) = report.violation {
            let report = departures::one_restarts_and_one_crashes(seed, true, peers);
            panic!("seed {seed}, {peers} peers: {what}\n{}", report.story);
        }
        assert_eq!(report.counts["registers begun"], peers as u64 - 1, "{:?}", report.counts);
    }
}

#[test]
fn one_of_two_serves_alone_while_the_other_is_gone_and_gives_it_everything_afterwards() {
    let (first, count) = asked_for().unwrap_or((1, 12));
    for seed in first..first + count {
        for (gone, begun_at) in
            [(Gone::Crashed, 0), (Gone::Crashed, 1), (Gone::Stopped, 0), (Gone::Stopped, 1)]
        {
            let report = pair::run(seed, false, gone, begun_at);
            if let Some(what) = report.violation {
                let story = pair::run(seed, true, gone, begun_at).story;
                panic!("seed {seed}, {gone:?}, begun at {begun_at}: {what}\n{story}");
            }
            assert_eq!(
                report.counts.get("lost"),
                None,
                "seed {seed}, {gone:?}: {:?}",
                report.counts
            );
            assert_eq!(report.counts["registers looked at"], 4 * 9, "{:?}", report.counts);
        }
    }
}

#[test]
fn neither_of_two_goes_on_alone_before_the_other_was_silent_for_as_long_as_it_waits() {
    let (first, count) = asked_for().unwrap_or((1, 12));
    for seed in first..first + count {
        for ways in [1, 2] {
            let report = pair::cut_for_a_moment(seed, false, ways);
            if let Some(what) = report.violation {
                let story = pair::cut_for_a_moment(seed, true, ways).story;
                panic!("seed {seed}, {ways} ways: {what}\n{story}");
            }
            assert_ne!(report.counts.get("answers looked at"), None, "seed {seed}");
        }
    }
}

#[test]
fn a_change_that_one_of_two_made_alone_does_not_give_way_to_what_the_other_read() {
    let (first, count) = asked_for().unwrap_or((1, 12));
    for seed in first..first + count {
        let report = pair::cut_for_long(seed, false);
        if let Some(what) = report.violation {
            panic!("seed {seed}: {what}\n{}", pair::cut_for_long(seed, true).story);
        }
        assert_eq!(report.counts["registers looked at"], 4 * 3, "{:?}", report.counts);
    }
}

#[test]
fn a_peer_without_room_costs_the_others_nothing_that_they_hold() {
    use full::Fault::{Crashes, CrashesAtOnce, Restarts};
    const FAULTS: [full::Fault; 3] = [Restarts, Crashes, CrashesAtOnce];
    let (first, count) = asked_for().unwrap_or((1, 8));
    for seed in first..first + count {
        for (peers, room) in [(3, 0), (3, 5), (5, 0), (5, 5)] {
            for fault in FAULTS {
                // Others have to know of it.
                if fault == CrashesAtOnce && !full::is_known(seed) {
                    continue;
                }
                let report = full::run(seed, false, peers, room, fault);
                let scene = format!("seed {seed}, {peers} peers, room for {room}, {fault:?}");
                if let Some(what) = report.violation {
                    let story = full::run(seed, true, peers, room, fault).story;
                    panic!("{scene}: {what}\n{story}");
                }
                assert_eq!(report.counts.get("lost"), None, "{scene}: {:?}", report.counts);
                let is_refused = report.counts.contains_key("copies refused");
                assert!(is_refused || full::is_known(seed), "{scene}");
            }
        }
    }
}

#[test]
fn of_three_of_which_two_are_full_any_may_go() {
    let (first, count) = asked_for().unwrap_or((1, 20));
    for seed in first..first + count {
        let report = full::two_full(seed, false);
        if let Some(what) = report.violation {
            panic!("seed {seed}: {what}\n{}", full::two_full(seed, true).story);
        }
        assert_eq!(report.counts.get("lost"), None, "seed {seed}: {:?}", report.counts);
    }
}

#[test]
fn a_change_for_which_too_few_have_room_is_refused_and_changes_nothing() {
    let (first, count) = asked_for().unwrap_or((1, 20));
    let mut refused = 0;
    for seed in first..first + count {
        let report = full::refused_changes(seed, false);
        if let Some(what) = report.violation {
            panic!("seed {seed}: {what}\n{}", full::refused_changes(seed, true).story);
        }
        assert_eq!(report.counts.get("lost"), None, "seed {seed}: {:?}", report.counts);
        refused += report.counts.get("changes refused").copied().unwrap_or_default();
    }
    assert!(refused > 0, "nothing was refused");
}

#[test]
fn what_one_peer_holds_alone_is_not_begun_anew_while_that_one_is_suspended() {
    let (first, count) = asked_for().unwrap_or((1, 20));
    for seed in first..first + count {
        let report = full::held_alone(seed, false);
        if let Some(what) = report.violation {
            panic!("seed {seed}: {what}\n{}", full::held_alone(seed, true).story);
        }
        assert_eq!(report.counts.get("lost"), None, "seed {seed}: {:?}", report.counts);
    }
}

#[test]
fn what_was_deleted_while_a_peer_was_away_is_forgotten_there_as_well() {
    let (first, count) = asked_for().unwrap_or((1, 8));
    for (seed, peers) in (first..first + count).flat_map(|seed| [3, 5].map(|peers| (seed, peers))) {
        for stands_still in [false, true] {
            let report = fleeting::deleted_while_away(seed, false, peers, stands_still);
            if let Some(what) = report.violation {
                let story = fleeting::deleted_while_away(seed, true, peers, stands_still).story;
                panic!("seed {seed}, {peers} peers, stands still: {stands_still}: {what}\n{story}");
            }
            assert_eq!(report.counts.get("lost"), None, "seed {seed}: {:?}", report.counts);
        }
    }
}

#[test]
fn what_was_made_anew_while_a_peer_was_away_does_not_give_way_to_what_it_held() {
    let (first, count) = asked_for().unwrap_or((1, 12));
    for (seed, peers) in (first..first + count).flat_map(|seed| [3, 5].map(|peers| (seed, peers))) {
        let report = fleeting::made_anew_while_away(seed, false, peers);
        if let Some(what) = report.violation {
            let story = fleeting::made_anew_while_away(seed, true, peers).story;
            panic!("seed {seed}, {peers} peers: {what}\n{story}");
        }
        assert_eq!(report.counts.get("lost"), None, "seed {seed}: {:?}", report.counts);
    }
}

#[test]
fn what_was_deleted_while_a_peer_was_away_can_be_set_again_at_any_time() {
    let (first, count) = asked_for().unwrap_or((1, 20));
    for (seed, peers) in (first..first + count).flat_map(|seed| [3, 5].map(|peers| (seed, peers))) {
        let report = fleeting::set_again_while_away(seed, false, peers);
        if let Some(what) = report.violation {
            let story = fleeting::set_again_while_away(seed, true, peers).story;
            panic!("seed {seed}, {peers} peers: {what}\n{story}");
        }
    }
}

#[test]
fn nothing_is_lost_as_two_of_five_stand_still_and_two_leave_in_good_order() {
    let (first, count) = asked_for().unwrap_or((500, 20));
    let seeds: Vec<u64> = (first..first + count).collect();
    let totals = run_all(&seeds, departures::two_stand_still_and_two_leave);
    assert_eq!(totals["sessions looked at"], 60 * count, "{totals:?}");
    let old = seeds.iter().filter(|seed| !seed.is_multiple_of(3)).count() as u64;
    assert_eq!(totals["registers looked at"], 60 * old, "{totals:?}");
}

#[test]
fn the_peer_that_stays_serves_alone_while_one_is_silent_and_another_restarts_in_good_order() {
    for seed in 1..=8 {
        for (begun_at, leaver) in [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)] {
            for silent in [Silent::Dead, Silent::CutOff] {
                let scene = Degraded { begun_at, leaver, silent };
                let report = departures::one_silent_and_one_restarts(seed, false, scene);
                if let Some(what) = report.violation {
                    let report = departures::one_silent_and_one_restarts(seed, true, scene);
                    panic!("seed {seed}, {scene:?}: {what}\n{}", report.story);
                }
                let looks = if silent == Silent::Dead { 5 } else { 6 };
                assert_eq!(report.counts["sessions looked at"], 6 * looks, "{:?}", report.counts);
                assert_eq!(
                    report.counts["registers looked at"],
                    4 * (looks + 1),
                    "{:?}",
                    report.counts
                );
            }
        }
    }
}

#[test]
fn an_owner_that_hears_no_member_leaves_its_sessions_to_who_does() {
    let mut all = Vec::new();
    for seed in 1..=24 {
        let (report, waits) = one_link::owner_cut_off(seed, false);
        if let Some(what) = report.violation {
            panic!("seed {seed}: {what}\n{}", one_link::owner_cut_off(seed, true).0.story);
        }
        all.extend(waits);
    }
    all.sort_unstable();
    println!(
        "of {} waits the middle: {} ms, the longest: {:?} ms",
        all.len(),
        all[all.len() / 2],
        all.last()
    );
}

#[test]
fn a_request_waits_for_the_owner_s_own_copy_where_the_ready_one_is_not_heard() {
    let mut waited = 0;
    for seed in 1..=24 {
        let (report, some) = one_link::ready_only_where_not_heard(seed, false);
        if let Some(what) = report.violation {
            let (report, _) = one_link::ready_only_where_not_heard(seed, true);
            panic!("seed {seed}: {what}\n{}", report.story);
        }
        waited += some;
    }
    assert!(waited > 0, "no copy was starting when it was needed");
}

#[test]
fn one_seed_run_twice_is_one_trace() {
    for seed in [3, 4] {
        let once = run(seed, true, Planted::Nothing);
        let twice = run(seed, true, Planted::Nothing);
        assert!(once.trace.len() > 1_000, "a trace of {} lines", once.trace.len());
        for (number, (one, other)) in once.trace.iter().zip(&twice.trace).enumerate() {
            assert_eq!(one, other, "line {number} of seed {seed}");
        }
        assert_eq!(once.trace.len(), twice.trace.len(), "seed {seed}");
        assert_eq!(once.counts, twice.counts);
        let unheard = run(seed, false, Planted::Nothing);
        assert_eq!(once.counts, unheard.counts, "who listens changes nothing");
    }
    let (one, other) = (run(3, true, Planted::Nothing), run(4, true, Planted::Nothing));
    assert_ne!(one.trace, other.trace);
}

#[test]
fn peers_that_forget_what_they_answered_are_noticed_and_the_failure_is_printed_line_by_line() {
    // Not every seed lets a client come back to what was forgotten.
    const SEEDS: u64 = 24;
    let forgets_all = |seed, listening| run(seed, listening, Planted::Amnesia);
    let failures: Vec<String> =
        (1..=SEEDS).filter_map(|seed| run_one(seed, forgets_all).err()).collect();
    assert!(failures.len() >= 4, "{} of {SEEDS} were noticed", failures.len());
    for failure in failures {
        let mut lines = failure.lines();
        let what = lines.next().unwrap_or_default().to_owned();
        assert!(!what.contains("panicked"), "{failure}");
        let lines: Vec<&str> = lines.collect();
        assert!(lines.len() > 20, "a story of {} lines: {failure}", lines.len());
        assert!(lines.iter().any(|line| line.contains("everything heals")), "{failure}");
        assert!(lines.iter().any(|line| line.contains("asks peer-")), "{failure}");
        let violation = lines.iter().find(|line| line.contains("VIOLATION"));
        assert!(violation.is_some_and(|line| line.contains(&what[..20])), "{what}: {failure}");
    }
}

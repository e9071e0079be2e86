//! Every decision about a request, and who of many is chosen.

#![expect(clippy::unwrap_used, reason = "a scene that cannot be set fails its test")]

mod every_combination;
#[path = "../prng/mod.rs"]
mod prng;
mod scene;
mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prng::Prng;
use scene::{STATES, local, peers, question, ready, starting};
use warmhop_core::config::{AppPolicy, EffectsMode, SessionMode, StartMode};
use warmhop_core::ids::{AppName, PeerId, SessionId};
use warmhop_core::rank::{keepers, rank, session_ranks, third_member};
use warmhop_core::route::*;
use warmhop_core::view::AppState;

fn hop_target(decision: &Decision) -> &PeerId {
    match &decision.action {
        Action::Hop { to } => to,
        other => panic!("expected a hop, got {other:?}: {decision}"),
    }
}

#[test]
fn ready_here_is_served_here_unless_this_peer_leaves_and_another_stays() {
    let app = AppPolicy::default().with(|made| made.session = SessionMode::Pinned);
    let p = peers(2);
    let stays = [ready(&p[0])];
    let none_stays =
        [Candidate { draining: true, ..ready(&p[0]) }, Candidate { suspect: true, ..ready(&p[1]) }];
    let at = |draining, arrived, others, tried| {
        let local = local(AppState::Ready);
        decide(&Question { local, draining, arrived, tried, ..question(&app, others) })
    };
    let (door, hop) = (Arrived::AtFrontDoor, Arrived::ByHop);
    for others in [&stays[..], &none_stays, &[]] {
        assert_eq!(at(false, door, others, &[]).action, Action::Serve);
        assert_eq!(at(true, hop, others, &[]).action, Action::Serve, "its entry peer chose it");
    }
    let decision = at(true, door, &stays, &[]);
    assert_eq!(hop_target(&decision), &p[0]);
    assert_eq!(decision.to_string(), "this peer is draining; p0 is ready, the only one");
    assert_eq!(at(true, door, &none_stays, &[]).action, Action::Serve);
    assert_eq!(at(true, door, &stays, &p[..1]).action, Action::Serve, "it said no");
    // The session is in this peer's memory.
    let pin = PinTo { peer: &p[1], here: true, lives: true };
    let pinned = Question {
        local: local(AppState::Ready),
        draining: true,
        affinity: Some(pin),
        ..question(&app, &stays)
    };
    assert_eq!(decide(&pinned).action, Action::Serve);
}

#[test]
fn a_peer_that_is_only_better_placed_is_not_called_the_only_one() {
    let app = AppPolicy::default();
    let p = peers(3);
    let near = ready(&p[0]);
    for other in [
        Candidate { same_zone: false, ..ready(&p[1]) },
        Candidate { draining: true, ..ready(&p[1]) },
        Candidate { suspect: true, ..ready(&p[1]) },
    ] {
        let others = [near, other];
        let decision = decide(&question(&app, &others));
        assert_eq!(hop_target(&decision), &p[0]);
        let said = decision.to_string();
        assert!(!said.contains("only one") && said.contains("better placed"), "{said}");
    }
}

#[test]
fn a_request_for_a_cold_app_hops_at_once_while_the_start_begins_here() {
    let app = AppPolicy::default();
    let p = peers(1);
    let others = [ready(&p[0])];
    let decision = decide(&question(&app, &others));
    assert_eq!(hop_target(&decision), &p[0]);
    assert!(decision.start_here);
    assert_eq!(
        decision.to_string(),
        "not ready here, but on p0, the only one; a start begins here"
    );
    let again = Question { local: local(AppState::Starting), ..question(&app, &others) };
    assert!(!decide(&again).start_here, "the start is under way: nothing more to say to it");
}

#[test]
fn a_second_candidate_is_tried_only_after_the_first_and_then_none() {
    let app = AppPolicy::default();
    let p = peers(3);
    let others = [ready(&p[0]), ready(&p[1]), ready(&p[2])];
    let first = hop_target(&decide(&question(&app, &others))).clone();
    let tried = [first.clone()];
    let decision =
        decide(&Question { tried: &tried, attempt_budget: 1, ..question(&app, &others) });
    let second = hop_target(&decision).clone();
    assert_ne!(first, second);
    assert!(decision.to_string().contains("could not take it"), "{decision}");
    let tried = [first, second];
    let third = decide(&Question { tried: &tried, attempt_budget: 0, ..question(&app, &others) });
    assert!(matches!(third.action, Action::Wait { .. }), "{third}");
}

#[test]
fn a_hop_that_arrives_where_it_is_not_ready_is_refused_and_starts_nothing() {
    let app = AppPolicy::default();
    let p = peers(1);
    let others = [ready(&p[0])];
    for state in STATES.into_iter().filter(|state| *state != AppState::Ready) {
        let q =
            Question { local: local(state), arrived: Arrived::ByHop, ..question(&app, &others) };
        let decision = decide(&q);
        let Action::Refuse(Refusal::NotReadyHere { state: reported, .. }) = decision.action else {
            panic!("{decision}")
        };
        assert_eq!((reported, decision.start_here), (state, false));
    }
}

#[test]
fn ready_nowhere_waits_and_past_the_bounds_gets_503_with_the_measured_estimate() {
    let app = AppPolicy::default();
    let p = peers(1);
    let others = [starting(&p[0], 2_100)];
    let mut q = Question {
        local: LocalApp { eta: Some(Duration::from_secs(9)), ..local(AppState::Starting) },
        ..question(&app, &others)
    };
    let decision = decide(&q);
    assert_eq!(decision.action, Action::Wait { at_most: app.max_wait });
    assert_eq!(decision.to_string(), "ready nowhere; the copy on p0 should be ready in 2.1s");
    q.waited = app.max_wait;
    let Action::Refuse(refusal) = decide(&q).action else { panic!() };
    assert_eq!(
        (refusal.label(), refusal.problem().status(), refusal.retry_after_s()),
        ("waited_too_long", 503, 3),
        "the first copy in the mesh to be ready is what counts"
    );
    q.waited = Duration::ZERO;
    q.local.waiting = app.waiting_max;
    let Action::Refuse(refusal) = decide(&q).action else { panic!() };
    assert_eq!(refusal.problem().proxy_error(), "connection_limit_reached");
}

#[test]
fn an_app_that_failed_here_is_waited_for_within_reason_or_had_elsewhere() {
    let app = AppPolicy::default();
    let p = peers(2);
    let backs_off =
        |ms| LocalApp { starts_in: Some(Duration::from_millis(ms)), ..local(AppState::Failed) };
    let alone = Question { local: backs_off(400), ..question(&app, &[]) };
    let decision = decide(&alone);
    assert_eq!(decision.action, Action::Wait { at_most: app.max_wait });
    assert_eq!(
        decision.to_string(),
        "ready nowhere; the last start here failed, and the next begins in 400ms"
    );
    assert!(!decision.start_here, "the back-off holds");
    let seen = |failed_starts| decide(&Question { failed_starts, ..alone });
    assert!(matches!(seen(FAILED_STARTS_MAX - 1).action, Action::Wait { .. }));
    assert_eq!(seen(FAILED_STARTS_MAX).reason.label(), "start_failed");
    let long = Question { local: backs_off(30_001), ..question(&app, &[]) };
    assert_eq!(decide(&long).reason.label(), "start_failed", "it outlasts the wait");
    let others = [ready(&p[0])];
    let hop = Question { local: local(AppState::Failed), ..question(&app, &others) };
    assert_eq!(hop_target(&decide(&hop)), &p[0]);
    let others = [starting(&p[0], 400)];
    let wait = Question { local: local(AppState::Failed), ..question(&app, &others) };
    assert!(matches!(decide(&wait).action, Action::Wait { .. }));
    // What does not start here may start elsewhere, and another peer is asked to.
    let others = [
        Candidate { state: AppState::Failed, ..ready(&p[0]) },
        Candidate { state: AppState::Cold, ..ready(&p[1]) },
    ];
    let decision = decide(&Question { local: local(AppState::Failed), ..question(&app, &others) });
    assert!(matches!(decision.action, Action::Wait { .. }), "{decision}");
    assert_eq!((decision.start_here, decision.ask_to_start), (false, Some(p[1].clone())));
    let all_failed = Question { local: backs_off(400), ..question(&app, &others[..1]) };
    assert_eq!(decide(&all_failed).reason.label(), "backing_off");
}

#[test]
fn a_full_copy_gives_to_the_least_busy_one_with_a_free_place_and_else_the_request_waits() {
    let app = AppPolicy::default().with(|made| made.concurrency = Some(2));
    let p = peers(2);
    let busy = |peer, in_flight| Candidate { in_flight, ..ready(peer) };
    let full = LocalApp { in_flight: 2, ..local(AppState::Ready) };
    let ask =
        |local, others: &[Candidate<'_>]| decide(&Question { local, ..question(&app, others) });
    let others = [busy(&p[0], 1), busy(&p[1], 0)];
    assert_eq!(ask(local(AppState::Ready), &others).action, Action::Serve);
    assert_eq!(hop_target(&ask(full, &others)), &p[1]);
    assert_eq!(
        ask(full, &others).to_string(),
        "ready here, but busy (2 in flight); p1 is less so (0)"
    );
    let others = [busy(&p[0], 2), busy(&p[1], 2)];
    assert_eq!(ask(full, &others).reason.label(), "busy_everywhere");
    assert_eq!(ask(local(AppState::Starting), &others).reason.label(), "busy_everywhere");
    // What was full a while ago may be free by now.
    let others = [Candidate { load_age: Some(FULL_FOR * 2), ..busy(&p[0], 2) }];
    assert_eq!(hop_target(&ask(full, &others)), &p[0]);
    let waiting = LocalApp { waiting: app.waiting_max, ..full };
    assert_eq!(ask(waiting, &[]).reason.label(), "queue_full");
    let late = Question { local: full, waited: app.max_wait, ..question(&app, &[]) };
    assert_eq!(decide(&late).reason.label(), "busy_too_long");
}

#[test]
fn a_copy_that_serves_as_many_of_this_peers_requests_as_it_may_is_full_without_hearing_of_it() {
    let app = AppPolicy::default().with(|made| made.concurrency = Some(2));
    let p = peers(2);
    let unheard = |peer, ours| Candidate { ours, load_age: None, ..ready(peer) };
    let full = LocalApp { in_flight: 2, ..local(AppState::Ready) };
    let ask =
        |others: &[Candidate<'_>]| decide(&Question { local: full, ..question(&app, others) });
    assert_eq!(hop_target(&ask(&[unheard(&p[0], 2), unheard(&p[1], 1)])), &p[1]);
    assert_eq!(ask(&[unheard(&p[0], 2), unheard(&p[1], 2)]).reason.label(), "busy_everywhere");
    // An old report of others' requests does not count for as long as it serves one of ours.
    let heard = Candidate { in_flight: 2, load_age: Some(FULL_FOR * 2), ..unheard(&p[0], 1) };
    assert_eq!(hop_target(&ask(&[heard])), &p[0]);
    // And a session that is pinned there waits, rather than being turned away again and again.
    let app = app.with(|made| made.session = SessionMode::Pinned);
    let affinity = Some(PinTo { peer: &p[0], here: false, lives: true });
    for (ours, label) in [(1, "pinned_there"), (2, "busy_everywhere")] {
        let others = [unheard(&p[0], ours)];
        let decision = decide(&Question { affinity, ..question(&app, &others) });
        assert_eq!(decision.reason.label(), label);
    }
}

#[test]
fn a_client_that_has_its_share_waits_and_is_held_back_only_where_that_alone_keeps_it_waiting() {
    let app = AppPolicy::default().with(|made| made.concurrency = Some(3));
    let p = peers(2);
    let here = |in_flight, shut| LocalApp { in_flight, shut, ..local(AppState::Ready) };
    let there = |at: usize, ours, shut| Candidate { ours, shut, ..ready(&p[at]) };
    let ask = |local, others: &[Candidate<'_>]| {
        let q = Question { local, ..question(&app, others) };
        (decide(&q), is_held_back(&q))
    };
    let (decision, held) = ask(here(2, true), &[]);
    assert_eq!((decision.reason.label(), held), ("busy_everywhere", true));
    let (decision, held) = ask(here(3, true), &[]);
    assert_eq!((decision.reason.label(), held), ("busy_everywhere", false), "nobody has a place");
    let late = |local| {
        decide(&Question { local, waited: app.max_wait, ..question(&app, &[]) }).reason.to_string()
    };
    assert!(late(here(2, true)).starts_with("the client's other requests held as many places"));
    assert!(late(here(3, true)).starts_with("no copy had a free place"));
    let (decision, _) = ask(here(2, true), &[there(0, 2, true), there(1, 0, false)]);
    assert_eq!(hop_target(&decision), &p[1]);
    let (decision, held) = ask(here(2, true), &[there(0, 2, true), there(1, 3, false)]);
    assert_eq!((decision.reason.label(), held), ("busy_everywhere", true));
    let (decision, held) = ask(local(AppState::Starting), &[there(0, 1, true)]);
    assert_eq!((decision.reason.label(), held), ("busy_everywhere", true));
    // A session that is pinned waits for its own copy, whatever others have.
    let app = app.clone().with(|made| made.session = SessionMode::Pinned);
    let affinity = Some(PinTo { peer: &p[0], here: false, lives: true });
    for (shut, held) in [(true, true), (false, false)] {
        let others = [there(0, if shut { 1 } else { 3 }, shut), there(1, 0, false)];
        let q = Question { affinity, local: here(2, true), ..question(&app, &others) };
        assert_eq!((decide(&q).reason.label(), is_held_back(&q)), ("busy_everywhere", held));
    }
}

#[test]
fn a_newcomer_takes_no_place_from_those_that_wait_and_none_of_theirs_in_the_queue() {
    let app = AppPolicy::default().with(|made| {
        made.concurrency = Some(2);
        made.waiting_max = 3;
    });
    let p = peers(1);
    let others = [ready(&p[0])];
    let ask = |state, queued, waiting| {
        let local = LocalApp { waiting, ..local(state) };
        decide(&Question { local, queued, ..question(&app, &others) })
    };
    let behind = Queued { behind: true, ..Queued::default() };
    for state in [AppState::Ready, AppState::Cold] {
        assert_eq!(ask(state, behind, 1).reason.label(), "busy_everywhere");
        assert_ne!(ask(state, Queued::default(), 1).reason.label(), "busy_everywhere");
        assert_eq!(ask(state, behind, 3).reason.label(), "queue_full");
        let displaces = Queued { displaces: true, ..behind };
        assert_eq!(ask(state, displaces, 3).reason.label(), "busy_everywhere");
        let gave_way = Queued { gave_way: true, ..Queued::default() };
        assert_eq!(ask(state, gave_way, 1).reason.label(), "queue_full");
    }
    // Where a copy takes all that comes, there is no queue for places.
    let all = app.clone().with(|made| made.concurrency = None);
    let q = Question { local: local(AppState::Ready), queued: behind, ..question(&all, &[]) };
    assert_eq!(decide(&q).action, Action::Serve);
}

#[test]
fn eight_slow_requests_at_once_to_a_peer_with_two_others_ready_use_all_three() {
    let app = AppPolicy::default();
    let p = peers(2);
    let mut serving = [0_u32; 3];
    for _ in 0..8 {
        let local =
            LocalApp { in_flight: serving[0], awaiting: serving[0], ..local(AppState::Ready) };
        let unheard =
            |at: usize| Candidate { ours: serving[at + 1], load_age: None, ..ready(&p[at]) };
        let others = [unheard(0), unheard(1)];
        match decide(&Question { local, ..question(&app, &others) }).action {
            Action::Serve => serving[0] += 1,
            Action::Hop { to } => serving[1 + usize::from(to == p[1])] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(serving.iter().all(|n| (2..=4).contains(n)), "{serving:?}");
}

#[test]
fn a_request_that_has_had_its_turn_waits_at_the_least_busy_of_the_full_copies() {
    let app = AppPolicy::default().with(|made| made.concurrency = Some(2));
    let p = peers(2);
    let full =
        |peer, in_flight| Candidate { in_flight, load_age: Some(Duration::ZERO), ..ready(peer) };
    let others = [full(&p[0], 3), full(&p[1], 2)];
    let at =
        |queued, others: &[Candidate<'_>]| decide(&Question { queued, ..question(&app, others) });
    let turn = Queued { has_turn: true, ..Queued::default() };
    assert_eq!(at(Queued::default(), &others).reason, Reason::BusyEverywhere);
    let decision = at(turn, &others);
    assert_eq!(hop_target(&decision), &p[1]);
    assert!(decision.start_here && matches!(decision.reason, Reason::TurnThere { .. }));
    // A place that is free is better than a turn.
    let free = [others[1], Candidate { in_flight: 0, ..others[0] }];
    assert!(matches!(at(turn, &free).reason, Reason::ReadyThere { .. }));
    for barred in [
        Candidate { ours: 2, ..others[1] },
        Candidate { shut: true, ..others[1] },
        Candidate { suspect: true, ..others[1] },
        Candidate { draining: true, ..others[1] },
    ] {
        assert_eq!(at(turn, &[barred]).reason, Reason::BusyEverywhere, "{barred:?}");
    }
    let behind = Queued { behind: true, ..turn };
    assert_eq!(at(behind, &others).reason, Reason::BusyEverywhere);
    // With a copy here, the request waits for that as well; the next place may be another's.
    let here = |queued| {
        let local = LocalApp { in_flight: 1, ..local(AppState::Ready) };
        decide(&Question { local, queued, ..question(&app, &others) })
    };
    assert_eq!(here(turn).action, Action::Serve);
    let not_here = Queued { not_here: true, ..turn };
    assert_eq!(here(not_here).reason, Reason::BusyEverywhere);
}

#[test]
fn a_probe_that_is_not_to_wake_an_app_is_served_where_it_is_ready_and_starts_it_nowhere() {
    let p = peers(2);
    for start in [StartMode::OnRequest, StartMode::Never] {
        let app = AppPolicy::default().with(|made| made.start = start);
        let cold = Candidate { state: AppState::Cold, ..ready(&p[1]) };
        let ask = |state, others: &[Candidate<'_>]| {
            let local = local(state);
            decide(&Question { local, never_wakes: true, ..question(&app, others) })
        };
        for state in [AppState::Cold, AppState::Starting, AppState::Failed] {
            for others in [&[cold][..], &[starting(&p[0], 100)]] {
                let decision = ask(state, others);
                assert_eq!(decision.reason.label(), "not_woken", "{state:?}");
                assert_eq!((decision.start_here, decision.ask_to_start), (false, None));
            }
            let decision = ask(state, &[ready(&p[0]), cold]);
            assert_eq!((hop_target(&decision), decision.start_here), (&p[0], false));
        }
        assert_eq!(ask(AppState::Ready, &[]).action, Action::Serve);
    }
}

#[test]
fn a_hot_copy_gives_to_one_that_is_less_busy_only_where_requests_are_slow() {
    let app = AppPolicy::default();
    let p = peers(1);
    let busy = |in_flight| [Candidate { in_flight, ..ready(&p[0]) }];
    let ask = |awaiting, latency_us, other| {
        let local =
            LocalApp { awaiting, in_flight: awaiting, latency_us, ..local(AppState::Ready) };
        decide(&Question { local, ..question(&app, &busy(other)) }).action
    };
    let hop = Action::Hop { to: p[0].clone() };
    assert_eq!(ask(HOT_AWAITING, HOT_LATENCY_US, 0), hop);
    assert_eq!(ask(HOT_AWAITING, 0, 0), hop, "how slow they are nobody knows yet");
    assert_eq!(ask(HOT_AWAITING - 1, HOT_LATENCY_US, 0), Action::Serve);
    assert_eq!(ask(100, HOT_LATENCY_US - 1, 0), Action::Serve);
    assert_eq!(ask(5, HOT_LATENCY_US, 4), Action::Serve, "they would go back and forth");
}

#[test]
fn a_peer_that_never_starts_the_app_asks_the_first_able_one_and_waits() {
    let app = AppPolicy::default().with(|made| made.start = StartMode::Never);
    let p = peers(3);
    let cold = |peer| Candidate { state: AppState::Cold, ..ready(peer) };
    let others = [Candidate { draining: true, ..cold(&p[0]) }, cold(&p[1]), cold(&p[2])];
    let decision = decide(&question(&app, &others));
    assert!(matches!(decision.action, Action::Wait { .. }), "{decision}");
    assert_eq!((decision.start_here, decision.ask_to_start), (false, Some(p[1].clone())));
    let on_its_way = [starting(&p[0], 100), cold(&p[1])];
    assert_eq!(decide(&question(&app, &on_its_way)).ask_to_start, None);
}

#[test]
fn a_request_for_an_app_that_is_paused_everywhere_is_refused_at_once() {
    let app = AppPolicy::default();
    let never = AppPolicy::default().with(|made| made.start = StartMode::Never);
    let p = peers(2);
    let other = |peer, state| Candidate { state, ..ready(peer) };
    let paused = [other(&p[0], AppState::Paused), other(&p[1], AppState::Paused)];
    let here = |app: &AppPolicy, state, others: &[Candidate<'_>]| {
        decide(&Question { local: local(state), ..question(app, others) })
    };
    for decision in [
        here(&app, AppState::Paused, &[]),
        here(&app, AppState::Paused, &paused),
        here(&never, AppState::Cold, &paused),
    ] {
        let Action::Refuse(refusal) = &decision.action else { panic!("{decision}") };
        assert_eq!((refusal.label(), refusal.problem().status()), ("paused", 503));
        assert!(
            refusal.retry_after_s() > 1 && decision.to_string().contains("an operator resumes it")
        );
    }
    // Wherever another may start it, or does, or might be able to soon, it waits as before.
    for state in [AppState::Cold, AppState::Starting, AppState::Failed, AppState::Stopping] {
        let others = [paused[0], other(&p[1], state)];
        let decision = here(&app, AppState::Paused, &others);
        assert!(matches!(decision.action, Action::Wait { .. }), "{state:?}: {decision}");
    }
    assert_eq!(hop_target(&here(&app, AppState::Paused, &[ready(&p[0])])), &p[0]);
}

#[test]
fn what_is_paused_here_and_fails_elsewhere_is_waited_for_only_while_a_start_may_still_help() {
    let app = AppPolicy::default();
    let never = AppPolicy::default().with(|made| made.start = StartMode::Never);
    let p = peers(2);
    let other = |peer, state, eta: Option<u64>| Candidate {
        state,
        eta: eta.map(Duration::from_millis),
        ..ready(peer)
    };
    let asked = |app: &AppPolicy, state, others: &[Candidate<'_>], failed_elsewhere, waited_s| {
        let waited = Duration::from_secs(waited_s);
        let local = local(state);
        decide(&Question { local, failed_elsewhere, waited, ..question(app, others) })
    };
    let waits = |decision: &Decision| matches!(decision.action, Action::Wait { .. });
    let failing =
        [other(&p[0], AppState::Failed, Some(4_000)), other(&p[1], AppState::Paused, None)];
    for (app, here, words) in [
        (&app, AppState::Paused, "the app is paused here, and does not start"),
        (&never, AppState::Cold, "the app never runs here, and does not start"),
    ] {
        assert!(waits(&asked(app, here, &failing, FAILED_STARTS_MAX - 1, 0)));
        // Two starts have failed meanwhile, or the next one begins too late.
        for (failed, waited_s) in [(FAILED_STARTS_MAX, 0), (0, 27)] {
            let decision = asked(app, here, &failing, failed, waited_s);
            let Action::Refuse(refusal) = &decision.action else { panic!("{decision}") };
            assert_eq!((refusal.label(), refusal.problem().status()), ("start_failed", 503));
            assert_eq!(refusal.retry_after_s(), 4);
            assert!(decision.to_string().starts_with(words), "{decision}");
        }
        // A copy that is unwell may be well again, and one that is starting is another try.
        for hope in [
            other(&p[1], AppState::Failed, None),
            other(&p[1], AppState::Starting, Some(90_000)),
            other(&p[1], AppState::Cold, None),
            Candidate { suspect: true, ..other(&p[1], AppState::Cold, None) },
        ] {
            let decision = asked(app, here, &[failing[0], hope], FAILED_STARTS_MAX, 27);
            assert!(waits(&decision), "{hope:?}: {decision}");
        }
        let leaving = Candidate { draining: true, ..other(&p[1], AppState::Cold, None) };
        let decision = asked(app, here, &[failing[0], leaving], FAILED_STARTS_MAX, 0);
        assert_eq!(decision.reason.label(), "start_failed", "it starts nothing any more");
    }
    // Where this peer may start the app, its own failures count.
    let decision = asked(&app, AppState::Starting, &failing, FAILED_STARTS_MAX, 0);
    assert!(waits(&decision), "{decision}");
}

#[test]
fn a_draining_peer_starts_nothing_but_still_hops() {
    let app = AppPolicy::default();
    let p = peers(1);
    let others = [ready(&p[0])];
    let hop = decide(&Question { draining: true, ..question(&app, &others) });
    assert_eq!((hop_target(&hop), hop.start_here), (&p[0], false));
    let alone = decide(&Question { draining: true, ..question(&app, &[]) });
    assert_eq!(alone.action, Action::Refuse(Refusal::Draining));
}

#[test]
fn near_comes_before_far_before_draining_before_suspect() {
    let app = AppPolicy::default();
    let p = peers(4);
    let mut others = vec![
        Candidate { suspect: true, ..ready(&p[0]) },
        Candidate { draining: true, ..ready(&p[1]) },
        Candidate { same_zone: false, ..ready(&p[2]) },
        Candidate { in_flight: 10_000, latency_us: Some(90_000), ..ready(&p[3]) },
    ];
    for expected in [3, 2, 1, 0] {
        for dice in [0, 7 << 40, u64::MAX] {
            let decision = decide(&Question { dice, ..question(&app, &others) });
            assert_eq!(hop_target(&decision), &p[expected], "{decision}");
        }
        others.retain(|c| c.peer != &p[expected]);
    }
}

/// Whom two candidates of a pool of ten decide between, whatever the dice.
fn chosen_of_ten(
    change: impl Fn(usize, Candidate<'static>) -> Candidate<'static>,
) -> BTreeMap<String, u32> {
    let p: &'static [PeerId] = Box::leak(peers(10).into_boxed_slice());
    let others: Vec<_> = p.iter().enumerate().map(|(i, peer)| change(i, ready(peer))).collect();
    let app = AppPolicy::default();
    let mut rng = Prng(11);
    let mut chosen = BTreeMap::new();
    for _ in 0..20_000 {
        let decision = decide(&Question { dice: rng.next(), ..question(&app, &others) });
        *chosen.entry(hop_target(&decision).to_string()).or_insert(0) += 1;
    }
    chosen
}

#[test]
fn equal_candidates_share_the_requests_equally() {
    let chosen = chosen_of_ten(|_, c| c);
    assert_eq!(chosen.len(), 10);
    // 2,000 each; four standard deviations of a binomial are 170.
    assert!(chosen.values().all(|n| (1_830..=2_170).contains(n)), "{chosen:?}");
}

#[test]
fn the_busiest_of_ten_is_hot_and_never_wins_however_near_it_is() {
    let chosen = chosen_of_ten(|i, c| {
        if i == 4 { Candidate { in_flight: 9, latency_us: Some(1), ..c } } else { c }
    });
    assert!(!chosen.contains_key("p4"), "{chosen:?}");
}

#[test]
fn among_cold_ones_the_nearer_wins_though_it_is_busier() {
    // All equally busy but for one in ten: nobody but that one is hot.
    let chosen = chosen_of_ten(|i, c| Candidate {
        in_flight: if i == 9 { 50 } else { 3 },
        latency_us: Some(if i == 0 { 100 } else { 400 }),
        ..c
    });
    // p0 wins each time that it is drawn: with one of the nine others, two in ten.
    assert!((3_770..=4_230).contains(&chosen["p0"]), "{chosen:?}");
}

#[test]
fn a_count_of_requests_that_is_old_makes_nobody_hot() {
    let old = Some(LOAD_FRESH_FOR + Duration::from_millis(1));
    let chosen = chosen_of_ten(|i, c| {
        let load_age = if i == 4 { old } else { c.load_age };
        Candidate { in_flight: if i == 4 { 99 } else { 0 }, load_age, ..c }
    });
    assert!((1_830..=2_170).contains(&chosen["p4"]), "{chosen:?}");
}

#[test]
fn a_pinned_request_goes_where_its_session_is_even_if_ready_here() {
    let app = AppPolicy::default().with(|made| made.session = SessionMode::Pinned);
    let p = peers(2);
    let pin = Some(PinTo { peer: &p[1], here: false, lives: true });
    for change in [
        |c| c,
        |c: Candidate<'static>| Candidate { draining: true, ..c },
        |c: Candidate<'static>| Candidate { suspect: true, same_zone: false, ..c },
    ] {
        let p1: &'static PeerId = Box::leak(Box::new(p[1].clone()));
        let others = [ready(&p[0]), change(ready(p1))];
        let q =
            Question { local: local(AppState::Ready), affinity: pin, ..question(&app, &others) };
        let decision = decide(&q);
        assert_eq!(hop_target(&decision), &p[1], "{decision}");
        assert_eq!(decision.pin_lost, None);
    }
}

#[test]
fn a_pinned_request_begins_afresh_only_where_its_session_is_gone() {
    let app = AppPolicy::default().with(|made| made.session = SessionMode::Pinned);
    let p = peers(2);
    let pinned = |lives| Some(PinTo { peer: &p[1], here: false, lives });
    let others = [ready(&p[0]), ready(&p[1])];
    let q = Question { affinity: pinned(false), ..question(&app, &others) };
    let decision = decide(&q);
    assert_eq!(decision.pin_lost, Some(p[1].clone()));
    assert!(
        decision.to_string().starts_with("the session made on p1 is gone, a fresh one begins; "),
        "{decision}"
    );
    // It lives but could not be reached: the session is not thrown away for that.
    let tried = [p[1].clone()];
    let q = Question { affinity: pinned(true), tried: &tried, ..question(&app, &others) };
    let decision = decide(&q);
    assert_eq!(
        decision.action,
        Action::Refuse(Refusal::PinnedPeerUnreachable { peer: p[1].clone() })
    );
    // It is late besides: a request that waits for it may wait for ever.
    let others = [ready(&p[0]), Candidate { suspect: true, ..ready(&p[1]) }];
    let q = Question { affinity: pinned(true), tried: &tried, ..question(&app, &others) };
    assert_eq!(hop_target(&decide(&q)), &p[0]);
    // The copy that held it has stopped.
    let others = [ready(&p[0]), starting(&p[1], 100)];
    let q = Question { affinity: pinned(true), ..question(&app, &others) };
    assert_eq!(decide(&q).pin_lost, Some(p[1].clone()));
}

#[test]
fn a_request_runs_again_only_by_the_rule_of_the_contract() {
    use EffectsMode::{Anything, ByCommand, SessionOnly};
    for bits in 0..16_u32 {
        let [safe, key, portable, reached] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
        for effects in [Anything, ByCommand, SessionOnly] {
            let is_void = effects == SessionOnly || (key && effects == Anything);
            let expected = !reached || safe || (portable && is_void);
            let may = may_retry(Attempted {
                is_safe: safe,
                has_key: key,
                effects,
                is_portable: portable,
                may_have_reached_app: reached,
            });
            assert_eq!(may, expected, "{bits:04b} {effects:?}");
        }
    }
}

#[test]
fn retry_after_is_whole_seconds_rounded_up_and_bounded() {
    let secs = |ms| Refusal::StartFailed { retry_after: Duration::from_millis(ms) }.retry_after_s();
    assert_eq!([0, 1, 1_000, 1_001, 999_999_999].map(secs), [1, 1, 1, 2, 120]);
    assert_eq!(Refusal::StartFailed { retry_after: Duration::MAX }.retry_after_s(), 120);
}

#[test]
fn ranks_are_what_every_version_has_agreed_on() {
    // Another order would scatter sessions and keepers during a rolling upgrade.
    let p = peers(5);
    let names =
        |ranked: Vec<PeerId>| ranked.iter().map(PeerId::as_str).collect::<Vec<_>>().join(" ");
    assert_eq!(names(rank(b"shop", &p)), GOLDEN_RANK);
    assert_eq!(names(session_ranks(&SessionId([7; 16]), &p)), GOLDEN_SESSION);
    assert_eq!(names(keepers(&AppName::new("shop").unwrap(), &p, 5)), GOLDEN_KEEPERS);
}

// Computed apart from this code, by a textbook SipHash-2-4.
const GOLDEN_RANK: &str = "p3 p1 p0 p2 p4";
const GOLDEN_SESSION: &str = "p3 p2 p4 p1 p0";
const GOLDEN_KEEPERS: &str = "p0 p1 p2 p3 p4";

#[test]
fn ranks_do_not_depend_on_the_order_or_number_of_mentions() {
    let mut p = peers(20);
    let ranked = rank(b"key", &p);
    let mut rng = Prng(3);
    for _ in 0..50 {
        rng.shuffle(&mut p);
        assert_eq!(rank(b"key", p.iter().chain(&p)), ranked);
    }
    assert_eq!(ranked.iter().collect::<BTreeSet<_>>().len(), 20);
}

#[test]
fn third_members_are_spread_evenly_and_found_by_rank() {
    let p = peers(10);
    let mut rng = Prng(5);
    let mut counts = BTreeMap::new();
    for _ in 0..20_000 {
        let sid = SessionId(rng.bytes());
        let exclude = [p[0].clone(), rng.pick(&p).clone()];
        let third = third_member(&sid, &p, &exclude).unwrap();
        let ranked = session_ranks(&sid, &p);
        assert_eq!(ranked.iter().find(|peer| !exclude.contains(peer)), Some(&third));
        *counts.entry(third).or_insert(0_u32) += 1;
    }
    assert!(!counts.contains_key(&p[0]));
    // 2,222 each; four standard deviations are 180.
    assert!(counts.values().all(|n| (2_040..=2_410).contains(n)), "{counts:?}");
    assert_eq!(third_member(&SessionId([0; 16]), &p[..1], &p[..1]), None);
}

#[test]
fn a_peer_that_leaves_or_joins_moves_only_its_own() {
    let p = peers(12);
    let mut rng = Prng(9);
    for _ in 0..2_000 {
        let sid = SessionId(rng.bytes());
        let all = session_ranks(&sid, &p);
        let gone = rng.pick(&p).clone();
        let left: Vec<_> = p.iter().filter(|peer| **peer != gone).collect();
        let without = session_ranks(&sid, left.iter().copied());
        let expected: Vec<_> = all.iter().filter(|peer| **peer != gone).cloned().collect();
        assert_eq!(without, expected, "I15: the others keep their order");
    }
}

#[test]
fn keepers_are_as_many_as_asked_for_and_change_one_for_one() {
    let p = peers(9);
    let mut moved = 0;
    for i in 0..500 {
        let app = AppName::new(&format!("app-{i}")).unwrap();
        let three = keepers(&app, &p, 3);
        assert_eq!(three.len(), 3);
        assert_eq!(keepers(&app, &p, 2), three[..2]);
        assert_eq!(keepers(&app, &p[..2], 16).len(), 2);
        let after: BTreeSet<_> = keepers(&app, &p[1..], 3).into_iter().collect();
        let kept = three.iter().filter(|peer| after.contains(peer)).count();
        assert!(kept == 3 || (kept == 2 && three.contains(&p[0])));
        moved += 3 - kept;
    }
    // A third of the apps had the peer that left among their keepers: 167, give or take.
    assert!((120..=215).contains(&moved), "{moved}");
}

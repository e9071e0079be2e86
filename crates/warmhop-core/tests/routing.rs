//! Every decision about a request, and who of many is chosen.

#![expect(clippy::unwrap_used, reason = "a scene that cannot be set fails its test")]

mod prng;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prng::Prng;
use warmhop_core::config::{AppPolicy, EffectsMode, SessionMode, StartMode};
use warmhop_core::ids::{AppName, PeerId, SessionId};
use warmhop_core::rank::{keepers, rank, session_ranks, third_member};
use warmhop_core::route::*;
use warmhop_core::view::AppState;

const STATES: [AppState; 5] =
    [AppState::Cold, AppState::Starting, AppState::Ready, AppState::Stopping, AppState::Failed];

fn peer(name: &str) -> PeerId {
    PeerId::new(name).unwrap()
}

fn peers(n: usize) -> Vec<PeerId> {
    (0..n).map(|i| peer(&format!("p{i}"))).collect()
}

/// A ready, near, idle candidate.
fn ready(peer: &PeerId) -> Candidate<'_> {
    Candidate {
        peer,
        state: AppState::Ready,
        same_zone: true,
        in_flight: 0,
        ours: 0,
        latency_us: Some(300),
        age: Duration::from_millis(5),
        load_age: Some(Duration::from_millis(5)),
        suspect: false,
        draining: false,
        eta: None,
    }
}

fn starting(peer: &PeerId, eta_ms: u64) -> Candidate<'_> {
    Candidate { state: AppState::Starting, eta: Some(Duration::from_millis(eta_ms)), ..ready(peer) }
}

/// A request at the front door of a peer where the app is cold.
fn question<'a>(app: &'a AppPolicy, candidates: &'a [Candidate<'a>]) -> Question<'a> {
    Question {
        app,
        local: LocalApp { eta: None, ..local(AppState::Cold) },
        draining: false,
        zone: Some("a"),
        candidates,
        arrived: Arrived::AtFrontDoor,
        affinity: None,
        tried: &[],
        attempt_budget: ATTEMPTS_MAX,
        waited: Duration::ZERO,
        queued: Queued::default(),
        never_wakes: false,
        failed_starts: 0,
        dice: 0,
    }
}

fn local(state: AppState) -> LocalApp {
    LocalApp {
        state,
        in_flight: 0,
        eta: Some(Duration::from_millis(1500)),
        waiting: 0,
        awaiting: 0,
        latency_us: 0,
        starts_in: None,
    }
}

fn hop_target(decision: &Decision) -> &PeerId {
    match &decision.action {
        Action::Hop { to } => to,
        other => panic!("expected a hop, got {other:?}: {decision}"),
    }
}

/// The candidate sets of the exhaustive test: nobody, and every kind of peer alone and beside
/// others.
fn candidate_sets(p: &[PeerId]) -> Vec<Vec<Candidate<'_>>> {
    let far = |c| Candidate { same_zone: false, latency_us: None, load_age: None, ..c };
    let late = |c| Candidate { suspect: true, ..c };
    let leaving = |c| Candidate { draining: true, ..c };
    let cold = |c| Candidate { state: AppState::Cold, ..c };
    let failed = |c| Candidate { state: AppState::Failed, ..c };
    vec![
        vec![],
        vec![ready(&p[0])],
        vec![late(ready(&p[0]))],
        vec![leaving(ready(&p[0]))],
        vec![far(ready(&p[0]))],
        vec![starting(&p[0], 400)],
        vec![late(starting(&p[0], 400))],
        vec![cold(ready(&p[0]))],
        vec![failed(ready(&p[0])), late(cold(ready(&p[1])))],
        vec![ready(&p[0]), ready(&p[1])],
        vec![ready(&p[0]), starting(&p[1], 10)],
        vec![late(ready(&p[0])), leaving(ready(&p[1])), far(ready(&p[2]))],
        vec![ready(&p[0]), ready(&p[1]), ready(&p[2]), starting(&p[3], 900), cold(ready(&p[4]))],
    ]
}

#[test]
fn every_combination_gives_a_decision_that_keeps_the_invariants() {
    let p = peers(6);
    let tried_sets: [&[PeerId]; 4] = [&[], &p[0..1], &p[0..2], &p[4..6]];
    let pins = [
        None,
        Some(PinTo { peer: &p[0], here: false, lives: true }),
        Some(PinTo { peer: &p[0], here: false, lives: false }),
        Some(PinTo { peer: &p[5], here: false, lives: true }),
        Some(PinTo { peer: &p[5], here: true, lives: true }),
        Some(PinTo { peer: &p[5], here: true, lives: false }),
    ];
    let sets = candidate_sets(&p);
    let etas = [None, Some(Duration::from_millis(700))];
    let starts = [StartMode::OnRequest, StartMode::AtBoot, StartMode::Never];
    let sessions = [SessionMode::Portable, SessionMode::Pinned, SessionMode::None];
    let arrivals = [Arrived::AtFrontDoor, Arrived::ByHop];
    let waits = [(0, 0), (0, 2), (29, 1), (30, 1)];
    // How many requests a copy serves at once, how many this one does, and those that wait.
    let loads = [(None, 1, 0), (None, 5, 5), (Some(1), 0, 0), (Some(1), 1, 1)];
    let all_dice = [0, u64::MAX, 0x1234_5678_9ABC_DEF0];
    let standings = [
        Queued::default(),
        Queued { behind: true, ..Queued::default() },
        Queued { gave_way: true, ..Queued::default() },
        Queued { behind: true, displaces: true, ..Queued::default() },
    ];

    let mut seen = BTreeMap::<&str, u64>::new();
    let mut asked = 0_usize;
    loop {
        // `asked` read as a number whose digits choose one of each: every combination once.
        let mut digits = asked;
        let mut one_of = |n: usize| {
            let digit = digits % n;
            digits /= n;
            digit
        };
        let (start, session) = (starts[one_of(3)], sessions[one_of(3)]);
        let which = one_of(4);
        let (concurrency, in_flight, awaiting) = loads[which];
        let app = AppPolicy::default().with(|made| {
            made.start = start;
            made.session = session;
            made.waiting_max = 2;
            made.concurrency = concurrency;
        });
        let (waited_s, waiting) = waits[one_of(4)];
        let state = STATES[one_of(5)];
        let q = Question {
            app: &app,
            local: LocalApp {
                in_flight,
                eta: etas[one_of(2)],
                waiting,
                awaiting,
                latency_us: 80_000,
                starts_in: (state == AppState::Failed).then_some(Duration::from_millis(1500)),
                ..local(state)
            },
            draining: one_of(2) == 1,
            zone: None,
            candidates: &sets[one_of(sets.len())],
            arrived: arrivals[one_of(2)],
            affinity: pins[one_of(pins.len())],
            tried: tried_sets[one_of(tried_sets.len())],
            attempt_budget: one_of(3),
            waited: Duration::from_secs(waited_s),
            queued: standings[(asked / 7) % 4],
            never_wakes: (asked / 28).is_multiple_of(5),
            failed_starts: waited_s as u32 / 10,
            dice: all_dice[which % 3],
        };
        if digits > 0 {
            break;
        }
        let decision = decide(&q);
        check(&q, &decision);
        *seen.entry(decision.reason.label()).or_default() += 1;
        asked += 1;
    }
    assert!(asked > 1_000_000, "{asked}");
    // The test reaches every kind of decision; otherwise it would prove little.
    let all = [
        "backing_off",
        "busy_everywhere",
        "busy_here",
        "busy_too_long",
        "draining",
        "nobody_answered",
        "nobody_starts",
        "not_ready_here",
        "not_woken",
        "pinned_here",
        "pinned_peer_unreachable",
        "pinned_there",
        "queue_full",
        "ready_here",
        "ready_here_draining",
        "ready_there",
        "start_failed",
        "starting_elsewhere",
        "starting_here",
        "wait_full",
        "waited_too_long",
    ];
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), all);
}

fn check(q: &Question<'_>, d: &Decision) {
    let fail = |what: &str| panic!("{what}\n{q:#?}\n{d:#?}");
    let ready_here = q.local.state == AppState::Ready;
    let full = |in_flight| q.app.concurrency.is_some_and(|places| in_flight >= places);
    let behind = q.app.concurrency.is_some() && (q.queued.behind || q.queued.gave_way);
    let full_here = ready_here && (full(q.local.in_flight) || behind);
    let may_try = |c: &&Candidate<'_>| {
        let is_full = full(c.in_flight) && c.load_age.is_some_and(|age| age <= FULL_FOR);
        c.state == AppState::Ready
            && !is_full
            && !behind
            && !q.tried.contains(c.peer)
            && q.tried.len() < ATTEMPTS_MAX
            && q.attempt_budget > 0
    };
    let ready_untried = q.candidates.iter().any(|c| may_try(&c));
    match &d.action {
        Action::Serve if !ready_here => fail("served where it is not ready"),
        Action::Serve if full_here && q.arrived == Arrived::AtFrontDoor => {
            fail("served where no place is free")
        }
        Action::Hop { to } => {
            if q.arrived == Arrived::ByHop {
                fail("I11: hopped twice");
            }
            if q.tried.contains(to) || q.tried.len() >= ATTEMPTS_MAX || q.attempt_budget == 0 {
                fail("I10: tried in vain, and again");
            }
            if !q.candidates.iter().any(|c| c.peer == to && c.state == AppState::Ready) {
                fail("hopped to a peer that is not believed ready");
            }
        }
        Action::Wait { at_most } => {
            if q.arrived == Arrived::ByHop {
                fail("I11: a hop waited");
            }
            let pinned_here = q.affinity.is_some_and(|pin| pin.here && pin.lives)
                && q.app.session == SessionMode::Pinned;
            let stays = |c: &Candidate<'_>| !c.draining && !c.suspect;
            let better = q.candidates.iter().any(|c| may_try(&c) && (!ready_here || stays(c)));
            if (ready_here && !full_here) || (better && !pinned_here) {
                fail("I10: waited while a ready peer with a free place could be tried");
            }
            if at_most.is_zero() || q.waited + *at_most > q.app.max_wait {
                fail("waited without a bound");
            }
            if q.local.waiting >= q.app.waiting_max && !q.queued.displaces {
                fail("more wait than may");
            }
        }
        Action::Refuse(refusal) => {
            let busy = matches!(refusal, Refusal::QueueFull { .. } | Refusal::BusyTooLong { .. });
            if busy && ready_here && !full_here {
                fail("said to be busy, and is not");
            }
            if ready_here && !busy && !matches!(refusal, Refusal::PinnedPeerUnreachable { .. }) {
                fail("refused though ready here");
            }
            if ready_untried
                && !busy
                && q.arrived == Arrived::AtFrontDoor
                && !matches!(refusal, Refusal::PinnedPeerUnreachable { .. })
            {
                fail("refused though a ready peer could be tried");
            }
            if !(1..=120).contains(&refusal.retry_after_s()) || refusal.status() != 503 {
                fail("a refusal without a sane Retry-After");
            }
            if d.reason != Reason::Refused(refusal.clone()) {
                fail("refused for one reason and said another");
            }
        }
        Action::Serve => {}
    }
    let may_start = q.app.start != StartMode::Never
        && !q.draining
        && !q.never_wakes
        && q.arrived == Arrived::AtFrontDoor
        && matches!(q.local.state, AppState::Cold | AppState::Stopping);
    if d.start_here != may_start {
        fail("a start begins here exactly where it may and is not under way");
    }
    if let Some(asked) = &d.ask_to_start {
        let able = |c: &Candidate<'_>| c.peer == asked && !c.suspect && !c.draining;
        if d.start_here || ready_here || !q.candidates.iter().any(able) {
            fail("asked another peer to start it though it starts here, or cannot there");
        }
    }
    if d.pin_lost.is_some() {
        let pin = q.affinity.filter(|_| q.app.session == SessionMode::Pinned);
        if pin.is_none() || d.reason == Reason::PinnedHere {
            fail("lost a session that was none");
        }
    }
    let sentence = d.to_string();
    if sentence.is_empty() || sentence.contains('\n') || d.reason.label().is_empty() {
        fail("a decision without a sentence");
    }
    if decide(q) != *d {
        fail("asked twice, answered differently");
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
fn a_hop_that_arrives_where_it_is_not_ready_is_told_so_and_starts_nothing() {
    let app = AppPolicy::default();
    let p = peers(1);
    let others = [ready(&p[0])];
    for state in STATES.into_iter().filter(|state| *state != AppState::Ready) {
        let q =
            Question { local: local(state), arrived: Arrived::ByHop, ..question(&app, &others) };
        let decision = decide(&q);
        let Action::Refuse(Refusal::NotReadyHere { state: told, .. }) = decision.action else {
            panic!("{decision}")
        };
        assert_eq!((told, decision.start_here), (state, false));
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
        (refusal.label(), refusal.status(), refusal.retry_after_s()),
        ("waited_too_long", 503, 3),
        "the first copy in the mesh to be ready is what counts"
    );
    q.waited = Duration::ZERO;
    q.local.waiting = app.waiting_max;
    let Action::Refuse(refusal) = decide(&q).action else { panic!() };
    assert_eq!(refusal.proxy_error(), "connection_limit_reached");
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
    // What it told of others' requests a while ago does not last for as long as it serves one of ours.
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
fn whoever_comes_takes_no_place_from_those_that_wait_and_none_of_theirs_in_the_queue() {
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
    // Late besides: whoever waits for it may wait for ever.
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
            let may = may_retry(safe, key, effects, portable, reached);
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

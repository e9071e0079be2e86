//! Every combination of what a decision depends on, and what must be true of each.

use std::collections::BTreeMap;
use std::time::Duration;

use warmhop_core::config::{AppPolicy, SessionMode, StartMode};
use warmhop_core::ids::PeerId;
use warmhop_core::route::*;
use warmhop_core::view::AppState;

use crate::scene::{STATES, local, peers, ready, starting};

/// Every reason for a decision, but those of versions.
const REASONS: [&str; 22] = [
    "backing_off",
    "busy_everywhere",
    "busy_here",
    "busy_too_long",
    "draining",
    "nobody_answered",
    "nobody_starts",
    "not_ready_here",
    "not_woken",
    "paused",
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

/// The candidate sets of the exhaustive test: nobody, and every kind of peer alone and beside
/// others.
fn candidate_sets(p: &[PeerId]) -> Vec<Vec<Candidate<'_>>> {
    let far = |c| Candidate { same_zone: false, latency_us: None, load_age: None, ..c };
    let late = |c| Candidate { suspect: true, ..c };
    let leaving = |c| Candidate { draining: true, ..c };
    let cold = |c| Candidate { state: AppState::Cold, ..c };
    let failed = |c| Candidate { state: AppState::Failed, ..c };
    let paused = |c| Candidate { state: AppState::Paused, ..c };
    vec![
        vec![],
        vec![ready(&p[0])],
        vec![late(ready(&p[0]))],
        vec![leaving(ready(&p[0]))],
        vec![far(ready(&p[0]))],
        vec![starting(&p[0], 400)],
        vec![late(starting(&p[0], 400))],
        vec![cold(ready(&p[0]))],
        vec![paused(ready(&p[0])), late(paused(ready(&p[1])))],
        vec![failed(ready(&p[0])), late(cold(ready(&p[1])))],
        vec![failed(starting(&p[0], 500)), paused(ready(&p[1]))],
        vec![ready(&p[0]), ready(&p[1])],
        vec![ready(&p[0]), starting(&p[1], 10)],
        vec![late(ready(&p[0])), leaving(ready(&p[1])), far(ready(&p[2]))],
        vec![ready(&p[0]), ready(&p[1]), ready(&p[2]), starting(&p[3], 900), cold(ready(&p[4]))],
    ]
}

/// No session, and those that are pinned to a peer that may be this one, and may live.
fn pins(p: &[PeerId]) -> [Option<PinTo<'_>>; 6] {
    [
        None,
        Some(PinTo { peer: &p[0], here: false, lives: true }),
        Some(PinTo { peer: &p[0], here: false, lives: false }),
        Some(PinTo { peer: &p[5], here: false, lives: true }),
        Some(PinTo { peer: &p[5], here: true, lives: true }),
        Some(PinTo { peer: &p[5], here: true, lives: false }),
    ]
}

#[test]
fn every_combination_gives_a_decision_that_keeps_the_invariants() {
    let p = peers(6);
    let tried_sets: [&[PeerId]; 4] = [&[], &p[0..1], &p[0..2], &p[4..6]];
    let pins = pins(&p);
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
        let state = STATES[one_of(6)];
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
            failed_elsewhere: waited_s as u32 / 10,
            versions: Versions::default(),
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
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), REASONS);
}

/// A decision, held against what must be true of every one.
struct Checked<'a> {
    q: &'a Question<'a>,
    d: &'a Decision,
}

fn check(q: &Question<'_>, d: &Decision) {
    let it = Checked { q, d };
    match &d.action {
        Action::Serve => it.serves(),
        Action::Hop { to } => it.hops(to),
        Action::Wait { at_most } => it.waits(*at_most),
        Action::Refuse(refusal) => it.refuses(refusal),
    }
    it.starts();
    if d.pin_lost.is_some() {
        let pin = q.affinity.filter(|_| q.app.session == SessionMode::Pinned);
        if pin.is_none() || d.reason == Reason::PinnedHere {
            it.fail("lost a session that was none");
        }
    }
    let sentence = d.to_string();
    if sentence.is_empty() || sentence.contains('\n') || d.reason.label().is_empty() {
        it.fail("a decision without a sentence");
    }
    if decide(q) != *d {
        it.fail("asked twice, answered differently");
    }
}

impl Checked<'_> {
    fn fail(&self, what: &str) -> ! {
        panic!("{what}\n{:#?}\n{:#?}", self.q, self.d)
    }

    fn is_ready_here(&self) -> bool {
        self.q.local.state == AppState::Ready
    }

    fn is_full(&self, in_flight: u32) -> bool {
        self.q.app.concurrency.is_some_and(|places| in_flight >= places)
    }

    /// Whether others come first wherever a place is free.
    fn is_behind(&self) -> bool {
        self.q.app.concurrency.is_some() && (self.q.queued.behind || self.q.queued.gave_way)
    }

    fn is_full_here(&self) -> bool {
        self.is_ready_here() && (self.is_full(self.q.local.in_flight) || self.is_behind())
    }

    fn may_try(&self, c: &Candidate<'_>) -> bool {
        let q = self.q;
        let is_full = self.is_full(c.in_flight) && c.load_age.is_some_and(|age| age <= FULL_FOR);
        c.state == AppState::Ready
            && !is_full
            && !self.is_behind()
            && !q.tried.contains(c.peer)
            && q.tried.len() < ATTEMPTS_MAX
            && q.attempt_budget > 0
    }

    fn serves(&self) {
        if !self.is_ready_here() {
            self.fail("served where it is not ready");
        }
        if self.is_full_here() && self.q.arrived == Arrived::AtFrontDoor {
            self.fail("served where no place is free");
        }
    }

    fn hops(&self, to: &PeerId) {
        let q = self.q;
        if q.arrived == Arrived::ByHop {
            self.fail("I11: hopped twice");
        }
        if q.tried.contains(to) || q.tried.len() >= ATTEMPTS_MAX || q.attempt_budget == 0 {
            self.fail("I10: tried in vain, and again");
        }
        if !q.candidates.iter().any(|c| c.peer == to && c.state == AppState::Ready) {
            self.fail("hopped to a peer that is not believed ready");
        }
    }

    fn waits(&self, at_most: Duration) {
        let q = self.q;
        if q.arrived == Arrived::ByHop {
            self.fail("I11: a hop waited");
        }
        let pinned_here = q.affinity.is_some_and(|pin| pin.here && pin.lives)
            && q.app.session == SessionMode::Pinned;
        let stays = |c: &Candidate<'_>| !c.draining && !c.suspect;
        let is_better = |c: &Candidate<'_>| self.may_try(c) && (!self.is_ready_here() || stays(c));
        let better = q.candidates.iter().any(is_better);
        if (self.is_ready_here() && !self.is_full_here()) || (better && !pinned_here) {
            self.fail("I10: waited while a ready peer with a free place could be tried");
        }
        if at_most.is_zero() || q.waited + at_most > q.app.max_wait {
            self.fail("waited without a bound");
        }
        if q.local.waiting >= q.app.waiting_max && !q.queued.displaces {
            self.fail("more wait than may");
        }
    }

    fn refuses(&self, refusal: &Refusal) {
        let busy = matches!(refusal, Refusal::QueueFull { .. } | Refusal::BusyTooLong { .. });
        let unreachable = matches!(refusal, Refusal::PinnedPeerUnreachable { .. });
        if busy && self.is_ready_here() && !self.is_full_here() {
            self.fail("said to be busy, and is not");
        }
        if self.is_ready_here() && !busy && !unreachable {
            self.fail("refused though ready here");
        }
        let at_front_door = self.q.arrived == Arrived::AtFrontDoor;
        let may_try = self.q.candidates.iter().any(|c| self.may_try(c));
        if may_try && !busy && at_front_door && !unreachable {
            self.fail("refused though a ready peer could be tried");
        }
        if !(1..=120).contains(&refusal.retry_after_s()) || refusal.problem().status() != 503 {
            self.fail("a refusal without a sane Retry-After");
        }
        if self.d.reason != Reason::Refused(refusal.clone()) {
            self.fail("refused for one reason and said another");
        }
    }

    fn starts(&self) {
        let (q, d) = (self.q, self.d);
        let may_start = q.app.start != StartMode::Never
            && !q.draining
            && !q.never_wakes
            && q.arrived == Arrived::AtFrontDoor
            && matches!(q.local.state, AppState::Cold | AppState::Stopping);
        if d.start_here != may_start {
            self.fail("a start begins here exactly where it may and is not under way");
        }
        if let Some(asked) = &d.ask_to_start {
            let able = |c: &Candidate<'_>| c.peer == asked && !c.suspect && !c.draining;
            if d.start_here || self.is_ready_here() || !q.candidates.iter().any(able) {
                self.fail("asked another peer to start it though it starts here, or cannot there");
            }
        }
    }
}

//! One app's life on one peer: narrated in `scenarios/app-*.txt`, and at random.
//!
//! A scenario is read line by line. `at TIME EVENT` hands the machine an event; the indented line
//! below it is the result: effects, an arrow, the state. TIME is in milliseconds, `+N` after the
//! last, or `wake` for when the machine asked to be woken. `policy NAME VALUE` before the first
//! event changes the policy; `eta`, `starts`, `error`, `wake` and `why` assert what can be seen
//! then; `used TIME` passes the time of the last request.

#![expect(clippy::unwrap_used, reason = "a scene that cannot be set fails its test")]

mod prng;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use prng::Prng;
use warmhop_core::app::*;
use warmhop_core::config::{AppPolicy, StartMode};
use warmhop_core::ids::Now;
use warmhop_core::view::AppState;

#[test]
fn the_scenarios_go_as_they_are_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut found = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("app-") {
            play(name, &std::fs::read_to_string(&path).unwrap());
            found += 1;
        }
    }
    assert!(found >= 10, "only {found} scenarios found");
}

fn play(name: &str, text: &str) {
    let mut policy = AppPolicy::default();
    let mut machine = None;
    let mut now = Now(0);
    let mut happened: Option<String> = None;
    for (at, line) in text.lines().enumerate() {
        let place = format!("{name}:{}: {line}", at + 1);
        if let Some(expected) = line.strip_prefix("  ") {
            assert_eq!(happened.take().as_deref(), Some(expected), "{place}");
            continue;
        }
        assert_eq!(happened, None, "before {place}");
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        if command == "policy" {
            assert!(machine.is_none(), "{place}: too late");
            set_policy(&mut policy, rest);
            continue;
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let machine = machine.get_or_insert_with(|| AppMachine::new(policy.clone(), 1));
        let ms = |d: Option<Duration>| d.map_or("none".into(), |d| d.as_millis().to_string());
        let seen = match command {
            "at" => {
                let (time, event) = rest.split_once(' ').unwrap_or((rest, ""));
                now = match (time, time.strip_prefix('+')) {
                    ("wake", _) => machine.next_wake().expect("nothing to wake for"),
                    (_, Some(later)) => Now(now.0 + later.parse::<u64>().unwrap()),
                    (time, None) => Now(time.parse().unwrap()),
                };
                if !event.is_empty() {
                    let (event, in_flight) = match event.split_once(" in-flight ") {
                        Some((event, n)) => (event, n.parse().unwrap()),
                        None => (event, 0),
                    };
                    let effects = machine.on(parse_event(event), now, in_flight);
                    happened = Some(show(&effects, machine.state()));
                }
                continue;
            }
            "used" => {
                machine.used(Now(rest.parse().unwrap()));
                continue;
            }
            "eta" => ms(machine.eta(now)),
            "starts" => machine.starts().to_string(),
            "wake" => ms(machine.next_wake().map(|wake| wake.since(Now(0)))),
            "error" => machine.last_error().map_or("none".into(), |error| {
                std::iter::once(&error.reason)
                    .chain(&error.output)
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(" | ")
            }),
            "why" => {
                let (by, _) = rest.split_once(' ').unwrap();
                format!("{by} {}", machine.why_not_start(wanted_by(by), now).unwrap())
            }
            _ => panic!("{place}: unknown"),
        };
        assert_eq!(seen, rest, "{place}");
    }
    assert_eq!(happened, None, "{name} ends in the middle");
}

fn set_policy(policy: &mut AppPolicy, text: &str) {
    let ms = |text: &str| Duration::from_millis(text.parse().unwrap());
    match text.split_once(' ').unwrap() {
        ("start", "never") => policy.start = StartMode::Never,
        ("start", "at-boot") => policy.start = StartMode::AtBoot,
        ("start-timeout", value) => policy.start_timeout = ms(value),
        ("stop-when-idle", value) => policy.stop_when_idle = Some(ms(value)),
        _ => panic!("unknown policy {text}"),
    }
}

fn wanted_by(text: &str) -> WantedBy {
    match text {
        "request" => WantedBy::Request,
        "boot" => WantedBy::Boot,
        "keep-ready" => WantedBy::KeepReady,
        "operator" => WantedBy::Operator,
        _ => panic!("nobody is called {text}"),
    }
}

fn parse_event(text: &str) -> AppEvent {
    let mut words = text.splitn(3, ' ');
    let (verb, object, reason) =
        (words.next().unwrap(), words.next().unwrap_or(""), words.next().unwrap_or(""));
    let attempt = object.parse().unwrap_or(0);
    match verb {
        "wanted" => AppEvent::Wanted(wanted_by(object)),
        "keep" => AppEvent::Keep(true),
        "let-go" => AppEvent::Keep(false),
        "started" => AppEvent::Started { attempt },
        "start-failed" => {
            let mut parts = reason.split(" | ").map(String::from);
            AppEvent::StartFailed {
                attempt,
                reason: parts.next().unwrap(),
                output: parts.collect(),
            }
        }
        "exited" => AppEvent::Exited { attempt, reason: reason.into(), failed: true },
        "ended" => AppEvent::Exited { attempt, reason: reason.into(), failed: false },
        "hangs" => AppEvent::Lost { attempt, reason: reason.into(), failed: true },
        "refuses" => AppEvent::Lost { attempt, reason: reason.into(), failed: false },
        "unwell" => AppEvent::Unwell { attempt, reason: reason.into() },
        "well" => AppEvent::Well { attempt },
        "stopped" => AppEvent::Stopped { attempt },
        "renew" => AppEvent::Renew(match object {
            "operator" => Renewal::Operator,
            "changed" => Renewal::Changed,
            _ => panic!("nobody renews for {object}"),
        }),
        "pause" => AppEvent::Pause(true),
        "resume" => AppEvent::Pause(false),
        "tick" => AppEvent::Tick,
        "stop" => AppEvent::StopWanted(match object {
            "operator" => StopReason::Operator,
            "idle" => StopReason::Idle,
            "drain" => StopReason::Drain,
            "surplus" => StopReason::Surplus,
            _ => panic!("no stop for {object}"),
        }),
        _ => panic!("no event {text}"),
    }
}

fn show(effects: &[AppEffect], state: AppState) -> String {
    let effects: Vec<String> = effects
        .iter()
        .map(|effect| match effect {
            AppEffect::Start { attempt } => format!("start {attempt}"),
            AppEffect::CancelStart { attempt } => format!("cancel {attempt}"),
            AppEffect::Stop { attempt, grace } => format!("stop {attempt} {}", grace.as_millis()),
            AppEffect::EndNow { attempt } => format!("end-now {attempt}"),
            AppEffect::Changed => "changed".into(),
        })
        .collect();
    let space = if effects.is_empty() { "" } else { " " };
    format!("{}{space}-> {}", effects.join(", "), format!("{state:?}").to_lowercase())
}

const WISHES: [WantedBy; 4] =
    [WantedBy::Request, WantedBy::Boot, WantedBy::KeepReady, WantedBy::Operator];
const STOPS: [StopReason; 4] =
    [StopReason::Operator, StopReason::Idle, StopReason::Drain, StopReason::Surplus];

/// The worst possible runtime: slow, and prone to repeat reports of attempts that are long over.
#[derive(Default)]
struct Runtime {
    starting: BTreeSet<u64>,
    running: BTreeSet<u64>,
    stopping: BTreeSet<u64>,
    /// Of those, the ones whose grace was cut short, and former ones.
    ended_now: BTreeSet<u64>,
    /// Copies that no longer take requests.
    lost: BTreeSet<u64>,
}

/// What the machine may do to the copy that serves.
#[derive(Clone, Copy)]
struct Allowed {
    /// Stop it: it is not in use, or was to stop all the same.
    stop: bool,
    /// Start another one beside it.
    start_beside: bool,
}

impl Runtime {
    fn carry_out(&mut self, effects: &[AppEffect], allowed: Allowed, seed: u64) {
        for effect in effects {
            match effect {
                AppEffect::Start { attempt } => {
                    let beside = allowed.start_beside || self.running.is_empty();
                    let alone = self.starting.is_empty() && beside;
                    assert!(alone && self.stopping.len() < LEAVING_MAX, "I18: seed {seed}");
                    self.starting.insert(*attempt);
                }
                AppEffect::CancelStart { attempt } => {
                    assert!(self.starting.remove(attempt), "no such start, seed {seed}");
                }
                AppEffect::Stop { attempt, .. } => {
                    assert!(self.running.remove(attempt), "no such copy, seed {seed}");
                    assert!(
                        allowed.stop || self.lost.remove(attempt),
                        "I19: stopped in use, seed {seed}"
                    );
                    self.stopping.insert(*attempt);
                }
                AppEffect::EndNow { attempt } => {
                    // Attempts are numbered in order, and one copy serves at a time.
                    let longest = self.stopping.first();
                    assert_eq!(longest, Some(attempt), "seed {seed}");
                    assert!(self.ended_now.insert(*attempt), "twice, seed {seed}");
                }
                AppEffect::Changed => {}
            }
        }
    }

    fn event(&mut self, rng: &mut Prng, machine: &AppMachine) -> AppEvent {
        let (latest, given) = (machine.attempt(), machine.starts());
        let take = |set: &mut BTreeSet<u64>| set.pop_first();
        let reason = String::from("it did");
        match rng.below(14) {
            0..3 if rng.chance(20) => AppEvent::Keep(rng.chance(50)),
            0..3 => AppEvent::Wanted(*rng.pick(&WISHES)),
            3 => match take(&mut self.starting) {
                Some(attempt) => {
                    self.running.insert(attempt);
                    AppEvent::Started { attempt }
                }
                None => AppEvent::Tick,
            },
            4 => match take(&mut self.starting) {
                Some(attempt) => AppEvent::StartFailed { attempt, reason, output: vec![] },
                None => AppEvent::Tick,
            },
            5 if rng.chance(30) => match take(&mut self.running) {
                Some(attempt) => AppEvent::Exited { attempt, reason, failed: rng.chance(50) },
                None => AppEvent::Tick,
            },
            10 => match self.running.first().copied() {
                Some(attempt) if rng.chance(30) => {
                    self.lost.insert(attempt);
                    AppEvent::Lost { attempt, reason, failed: rng.chance(50) }
                }
                Some(attempt) if rng.chance(50) => AppEvent::Unwell { attempt, reason },
                Some(attempt) => AppEvent::Well { attempt },
                None => AppEvent::Tick,
            },
            6 | 7 => match take(&mut self.stopping) {
                Some(attempt) => AppEvent::Stopped { attempt },
                None => AppEvent::Tick,
            },
            8 if rng.chance(30) => {
                let drain_is_rare = if rng.chance(3) { 4 } else { 2 };
                AppEvent::StopWanted(STOPS[[0, 1, 3, 2][rng.below(drain_is_rare) as usize]])
            }
            9 => {
                // For an attempt that is over, or never was, but never for the current one.
                let attempt = if rng.chance(50) { given + 1 + rng.below(3) } else { 0 };
                let former = latest.saturating_sub(1 + rng.below(3));
                let attempt = if rng.chance(50) { former } else { attempt };
                let which = rng.below(4);
                if which >= 2 {
                    self.stopping.remove(&attempt);
                }
                match which {
                    0 => AppEvent::Started { attempt },
                    1 => AppEvent::StartFailed { attempt, reason, output: vec![] },
                    2 => AppEvent::Exited { attempt, reason, failed: rng.chance(50) },
                    _ => AppEvent::Stopped { attempt },
                }
            }
            11 if rng.chance(50) => {
                AppEvent::Renew(*rng.pick(&[Renewal::Operator, Renewal::Changed]))
            }
            11 if rng.chance(20) => AppEvent::Pause(rng.chance(40)),
            _ => AppEvent::Tick,
        }
    }
}

#[test]
fn whatever_happens_one_copy_lives_at_most_and_nothing_is_stuck() {
    let mut reached = BTreeSet::new();
    for seed in 0..600 {
        let mut rng = Prng(seed);
        let start = *rng.pick(&[StartMode::OnRequest, StartMode::AtBoot, StartMode::Never]);
        let stop_when_idle = *rng.pick(&[None, Some(0), Some(700)]);
        let stop_when_idle = stop_when_idle.map(Duration::from_millis);
        let policy = AppPolicy::default().with(|made| {
            made.start = start;
            made.stop_when_idle = stop_when_idle;
        });
        let mut machine = AppMachine::new(policy, seed);
        let mut runtime = Runtime::default();
        let mut now = Now(0);
        let mut drained = false;
        for _ in 0..400 {
            now = Now(now.0 + *rng.pick(&[0, 1, 50, 400, 3_000, 31_000]));
            let event = runtime.event(&mut rng, &machine);
            let in_flight =
                if machine.state() == AppState::Ready { rng.below(2) as u32 } else { 0 };
            let insists = match event {
                AppEvent::StopWanted(StopReason::Operator | StopReason::Drain)
                | AppEvent::Pause(true) => true,
                AppEvent::Started { attempt } => machine.next_attempt() == Some(attempt),
                AppEvent::Renew(_) => start == StartMode::Never,
                _ => false,
            };
            drained |= event == AppEvent::StopWanted(StopReason::Drain);
            let before = (machine.state(), machine.starts());
            let unwell = machine.state() == AppState::Failed && machine.starts_in(now).is_none();
            let allowed = Allowed {
                stop: in_flight == 0 || insists,
                start_beside: machine.state() == AppState::Ready || unwell,
            };
            let effects = machine.on(event, now, in_flight);
            runtime.carry_out(&effects, allowed, seed);

            let changed = before.0 != machine.state();
            assert!(!changed || effects.contains(&AppEffect::Changed), "seed {seed}");
            let changes = effects.iter().filter(|effect| **effect == AppEffect::Changed).count();
            assert!(changes <= 1, "seed {seed}");
            let starts = effects.iter().any(|e| matches!(e, AppEffect::Start { .. }));
            assert!(!starts || (!drained && start != StartMode::Never), "seed {seed}");
            assert_eq!(machine.starts(), before.1 + u64::from(starts));
            let next = machine.next_attempt();
            assert!(next.is_none_or(|next| runtime.starting.contains(&next)), "seed {seed}");
            assert!(runtime.running.len() <= 1 && runtime.starting.len() <= 1, "I18: seed {seed}");
            assert!(!starts || !machine.is_paused(), "seed {seed}");
            // The machine and the runtime agree on which copies exist.
            let there = (
                runtime.starting.contains(&machine.attempt()),
                runtime.running.contains(&machine.attempt()),
                !runtime.stopping.is_empty(),
            );
            let agrees = match machine.state() {
                AppState::Starting => there.0 && !there.1,
                AppState::Ready => !there.0 && there.1,
                AppState::Stopping => there == (false, false, true),
                AppState::Cold | AppState::Paused => there == (false, false, false),
                // Backing off, or unwell.
                AppState::Failed => !there.0,
            };
            assert!(agrees, "seed {seed}, {:?}: {there:?}", machine.state());
            if machine.state() == AppState::Starting {
                assert!(machine.eta(now).is_none_or(|eta| eta >= ETA_FLOOR));
            }
            let backs_off = machine.starts_in(now).is_some();
            if machine.state() == AppState::Starting || backs_off || next.is_some() {
                let wake = machine.next_wake().expect("a start or a back-off ends in time");
                assert!(wake.since(now) <= Duration::from_secs(60), "seed {seed}");
            }
            reached.insert(machine.state());
        }
    }
    assert_eq!(reached.len(), 6);
}

/// Fails a start at once, `times` times, and returns the back-offs.
fn back_offs(machine: &mut AppMachine, now: &mut Now, times: usize) -> Vec<u64> {
    (0..times)
        .map(|_| {
            machine.on(AppEvent::Wanted(WantedBy::Request), *now, 0);
            let attempt = machine.attempt();
            machine.on(
                AppEvent::StartFailed { attempt, reason: "no".into(), output: vec![] },
                *now,
                0,
            );
            let wake = machine.next_wake().unwrap();
            let back_off = wake.0 - now.0;
            *now = wake;
            machine.on(AppEvent::Tick, *now, 0);
            back_off
        })
        .collect()
}

#[test]
fn back_off_doubles_to_its_cap_with_full_jitter_and_peers_differ() {
    let ceilings = [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000];
    let mut longest = [0; 9];
    let mut shortest = [u64::MAX; 9];
    let mut all = BTreeSet::new();
    for seed in 0..500 {
        let mut machine = AppMachine::new(AppPolicy::default(), seed);
        let drawn = back_offs(&mut machine, &mut Now(0), 9);
        for (at, back_off) in drawn.iter().enumerate() {
            assert!((50..=ceilings[at]).contains(back_off), "{drawn:?}");
            longest[at] = longest[at].max(*back_off);
            shortest[at] = shortest[at].min(*back_off);
        }
        all.insert(drawn);
    }
    assert_eq!(all.len(), 500, "no two peers back off in step");
    for (at, ceiling) in ceilings.into_iter().enumerate() {
        let spread = longest[at] > ceiling * 95 / 100 && shortest[at] < 50 + ceiling / 20;
        assert!(spread, "the whole span is used: {} to {}", shortest[at], longest[at]);
    }
    // However long it goes on, nothing overflows.
    let mut machine = AppMachine::new(AppPolicy::default(), 1);
    assert!(back_offs(&mut machine, &mut Now(0), 5_000).iter().all(|b| *b <= 30_000));
}

#[test]
fn a_copy_that_was_ready_for_a_while_is_forgiven_its_failures_and_one_that_was_not_is_not() {
    for (ready_for, forgiven) in [(PROVEN_AFTER, true), (PROVEN_AFTER / 2, false)] {
        let mut longest = 0;
        for seed in 0..100 {
            let mut machine = AppMachine::new(AppPolicy::default(), seed);
            let mut now = Now(0);
            back_offs(&mut machine, &mut now, 8);
            machine.on(AppEvent::Wanted(WantedBy::Request), now, 0);
            let attempt = machine.attempt();
            machine.on(AppEvent::Started { attempt }, now, 0);
            now = now.after(ready_for);
            machine.on(AppEvent::Exited { attempt, reason: "crash".into(), failed: true }, now, 0);
            longest = longest.max(machine.next_wake().unwrap().since(now).as_millis());
        }
        assert_eq!(longest <= 500, forgiven, "{longest} ms");
    }
}

#[test]
fn an_apps_error_text_is_bounded_and_cut_between_characters() {
    let mut machine = AppMachine::new(AppPolicy::default(), 1);
    machine.on(AppEvent::Wanted(WantedBy::Request), Now(0), 0);
    let output = (0..100).map(|i| format!("{i} {}", "é".repeat(4_000))).collect();
    let reason = format!("x{}", "é".repeat(4_000));
    machine.on(AppEvent::StartFailed { attempt: 1, reason, output }, Now(1), 0);
    let error = machine.last_error().unwrap();
    assert_eq!(error.output.len(), OUTPUT_LINES_MAX);
    assert!(error.output[0].starts_with("80 ") && error.output[19].starts_with("99 "));
    let texts = error.output.iter().chain([&error.reason]);
    assert!(texts.into_iter().all(|t| (LINE_BYTES_MAX - 1..=LINE_BYTES_MAX).contains(&t.len())));
    let mut shown = String::new();
    write!(shown, "{error}").unwrap();
    assert_eq!(shown.lines().count(), 1 + OUTPUT_LINES_MAX);
}

#[test]
fn the_same_events_give_the_same_effects() {
    let run = || {
        let mut rng = Prng(12);
        let mut machine = AppMachine::new(AppPolicy::default(), 5);
        let mut runtime = Runtime::default();
        let mut trace = String::new();
        for step in 0..3_000 {
            let event = runtime.event(&mut rng, &machine);
            let effects = machine.on(event, Now(step * 40), 0);
            runtime.carry_out(&effects, Allowed { stop: true, start_beside: true }, 12);
            writeln!(trace, "{effects:?} {:?}", machine.next_wake()).unwrap();
        }
        trace
    };
    assert_eq!(run(), run());
}

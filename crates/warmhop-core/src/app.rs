//! One copy of one app on one peer: when it starts, when it stops, and when a failed start is
//! tried again.
//!
//! Owns the copy's state and the measure of how long its starts take. Refuses to know how a copy
//! starts: the runtime carries out the effects and reports the outcome with the number of the
//! attempt, so that a report of an attempt given up long ago changes nothing.
//!
//! A copy that ends has not always failed: a copy that exits cleanly after it has served is merely
//! gone, and the next request starts another. A copy that is alive but takes no requests is out of
//! service: for as long as it is unwell, or for good, in which case the next one starts *beside*
//! it, on a port of its own. Nobody waits for a process that is slow to end.
//!
//! ```text
//!                Wanted                    Started
//!        ┌─────────────────▶ Starting ────────────────▶ Ready ◀─┐
//!        │                    │    │                   │   │    │ Wanted again, after
//!        │   StopWanted       │    │ StartFailed,      │   │    │ Stopping or not:
//!      Cold ◀─────────────────┘    │ Exited, too slow  │   │    │ by way of Starting
//!       ▲ ▲                        ▼                   │   │    │
//!       │ └──────────────────── Failed ◀───────────────┘   │    │
//!       │   back-off over          │    Exited, Lost       │    │
//!       │                          │ Operator, or wanted   │    │
//!       │                          ▼ while backing off     │    │
//!       │                       Starting   StopWanted, idle│    │
//!       │                                                  ▼    │
//!       └────────────────────────────────────────────── Stopping┘
//!                             Stopped
//!
//!      Ready ── Unwell ──▶ out of service, shown as Failed ── Well ──▶ Ready
//!      Ready ── Lost or Exited, not failed ──▶ Stopping, Cold
//! ```

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::config::{AppPolicy, StartMode};
use crate::ids::Now;
use crate::view::AppState;

pub use crate::view::ETA_FLOOR;

mod renew;
mod words;

use self::renew::Next;
pub use self::renew::Renewal;

/// The ceiling of the first back-off; each further failure doubles it.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// The highest ceiling of a back-off.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The least back-off: full jitter may draw zero, and a copy that fails at once must not make its
/// peer spin.
pub const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// After so long a ready copy has proved itself: the next failure starts the back-off over.
pub const PROVEN_AFTER: Duration = Duration::from_secs(30);
/// How many former copies may be ending beside the current one. A start for which there is no room
/// has the one that was stopped first end at once: nobody waits for its grace.
pub const LEAVING_MAX: usize = 4;
/// A copy that hangs gets this grace, however much others have.
pub const HUNG_GRACE: Duration = Duration::from_secs(5);
/// The lines of output kept of a failed start.
pub const OUTPUT_LINES_MAX: usize = 20;
/// The bytes kept of each line of output, and of a reason.
pub const LINE_BYTES_MAX: usize = 1024;

/// Who wants the app ready here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WantedBy {
    /// A request that arrived here, or at another peer that could not start the app for it.
    Request,
    /// The peer starts; this counts only if the app starts at boot.
    Boot,
    /// This peer is among those that keep the app ready: see [`AppEvent::Keep`].
    KeepReady,
    /// A person, through the admin listener.
    Operator,
}

/// Why the copy here is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// A person, through the admin listener. A later request may start it again.
    Operator,
    /// Nobody used it. This counts only while nothing is in flight.
    Idle,
    /// The peer is leaving: nothing starts on it from here on.
    Drain,
    /// More copies are ready than are wanted. This counts only while nothing is in flight.
    Surplus,
}

/// An event in the life of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppEvent {
    /// The app is wanted here.
    Wanted(WantedBy),
    /// Whether this peer is among those that keep the app ready. While it is, each such event
    /// starts a copy if none runs, and a ready copy does not count as idle; afterwards its idle
    /// time runs from the last such event.
    Keep(bool),
    /// The copy of this attempt is ready.
    Started {
        /// The attempt's number.
        attempt: u64,
    },
    /// The start failed, and left nothing behind.
    StartFailed {
        /// The attempt's number.
        attempt: u64,
        /// One sentence for people.
        reason: String,
        /// The app's last lines of output, oldest first.
        output: Vec<String>,
    },
    /// The copy ended by itself.
    Exited {
        /// The number of its attempt.
        attempt: u64,
        /// One sentence for people.
        reason: String,
        /// It ended with an error, or before it had served anyone.
        failed: bool,
    },
    /// The copy no longer takes requests, although it may be alive: it refuses connections, or
    /// hangs.
    Lost {
        /// The number of its attempt.
        attempt: u64,
        /// One sentence for people.
        reason: String,
        /// It hangs, or it refused before it had served anyone.
        failed: bool,
    },
    /// The copy is alive, but reports that it cannot serve.
    Unwell {
        /// The number of its attempt.
        attempt: u64,
        /// One sentence for people.
        reason: String,
    },
    /// It can serve again.
    Well {
        /// The number of its attempt.
        attempt: u64,
    },
    /// A new copy is wanted to replace the one that runs, or starts.
    Renew(Renewal),
    /// Whether an operator holds copies down here, whatever is requested: a running one ends.
    Pause(bool),
    /// The copy is to stop.
    StopWanted(StopReason),
    /// The copy has stopped, as requested.
    Stopped {
        /// The number of its attempt.
        attempt: u64,
    },
    /// Time passed: see [`AppMachine::next_wake`].
    Tick,
}

/// An effect for the runtime to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppEffect {
    /// Start a copy, and report `Started` or `StartFailed`.
    Start {
        /// The number to report it by.
        attempt: u64,
    },
    /// Give this start up. If it became ready at the same moment, end it: its `Started` is ignored.
    CancelStart {
        /// The attempt's number.
        attempt: u64,
    },
    /// Give the copy nothing new, let it finish for `grace` at most, end it, and report
    /// `Stopped` in any case.
    Stop {
        /// The number of its attempt.
        attempt: u64,
        /// How long it may take.
        grace: Duration,
    },
    /// The grace of this copy, which is being stopped, is over: end it now, and report `Stopped`.
    EndNow {
        /// The number of its attempt.
        attempt: u64,
    },
    /// The state changed: announce it to the mesh, and reconsider the requests that wait.
    Changed,
}

/// Why the last start failed or the copy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppError {
    /// One sentence for people, at most [`LINE_BYTES_MAX`] bytes.
    pub reason: String,
    /// The app's last lines of output, oldest first: at most [`OUTPUT_LINES_MAX`].
    pub output: Vec<String>,
}

impl fmt::Display for AppError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        self.output.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// Why nothing starts although the app is wanted here: see [`AppMachine::why_not_start`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotStarted {
    /// The policy is `StartMode::Never`: this peer was declared unfit to run the app. Not even an
    /// operator can start it; a change of the configuration can.
    Never,
    /// The peer is leaving.
    Draining,
    /// An operator holds copies down here.
    Paused,
    /// Only apps with `StartMode::AtBoot` start with the peer.
    NotAtBoot,
    /// The last start failed; the next may begin after so long.
    BackingOff(Duration),
    /// The copy here is out of service until it reports that it can serve again.
    Unwell,
    /// It is ready, or being started.
    UnderWay,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Cold,
    Starting {
        since: Now,
    },
    Ready {
        since: Now,
    },
    /// Ready before, and out of service until it reports that it can serve again.
    Unwell {
        since: Now,
    },
    /// `again`: the app was wanted while [`LEAVING_MAX`] copies were ending, and starts once one
    /// of them has gone.
    Stopping {
        again: bool,
    },
    /// `again`: the app was wanted meanwhile, and starts once the back-off is over.
    Failed {
        until: Now,
        again: bool,
    },
}

/// One copy of one app on this peer. See the module's diagram.
#[derive(Debug, Clone)]
pub struct AppMachine {
    policy: AppPolicy,
    phase: Phase,
    /// The number of the current attempt in every phase but `Cold`, where it is a former one.
    attempt: u64,
    /// The highest number of any attempt.
    given: u64,
    /// The copy that starts beside the one that serves: in `Ready` and `Unwell` alone.
    next: Option<Next>,
    /// A new copy is wanted beside the one that serves once there is room for it.
    renew: bool,
    /// An operator holds copies down.
    paused: bool,
    /// The attempts whose copies are ending, in the order of their stops: at most [`LEAVING_MAX`].
    leaving: Vec<u64>,
    /// The one of those whose grace was cut short.
    ends_now: Option<u64>,
    /// Failures since a copy last proved itself.
    failures: u32,
    /// Milliseconds that starts take: an exponentially weighted mean, the newest at 1/4.
    start_ms: Option<u64>,
    last_use: Now,
    last_error: Option<AppError>,
    draining: bool,
    kept: bool,
    jitter: u64,
}

impl AppMachine {
    /// A cold copy. Peers should differ in `jitter_seed`, so that a fault they share does not
    /// make them start again in step.
    #[must_use]
    pub fn new(policy: AppPolicy, jitter_seed: u64) -> Self {
        // Until the first [`AppEvent::Keep`], a copy must not stop because that event is missing.
        let kept = policy.keep_ready > 0 && policy.start != StartMode::Never;
        Self {
            policy,
            phase: Phase::Cold,
            attempt: 0,
            given: 0,
            next: None,
            renew: false,
            paused: false,
            leaving: Vec::new(),
            ends_now: None,
            failures: 0,
            start_ms: None,
            last_use: Now::default(),
            last_error: None,
            draining: false,
            kept,
            jitter: jitter_seed,
        }
    }

    /// Takes one event. `in_flight` is the number of requests that the copy is serving.
    pub fn on(&mut self, event: AppEvent, now: Now, in_flight: u32) -> Vec<AppEffect> {
        let mut effects = Vec::new();
        let before = self.state();
        if in_flight > 0 {
            self.used(now);
        }
        match event {
            AppEvent::Wanted(by) => self.wanted(by, now, &mut effects),
            AppEvent::Keep(kept) => {
                self.kept = kept;
                if kept {
                    self.wanted(WantedBy::KeepReady, now, &mut effects);
                }
            }
            AppEvent::Started { attempt } => self.started(attempt, now, &mut effects),
            AppEvent::StartFailed { attempt, reason, output } => {
                self.start_failed(attempt, AppError::new(&reason, output), now, &mut effects);
            }
            AppEvent::Exited { attempt, reason, failed } => {
                self.exited(attempt, &reason, failed, now, &mut effects);
            }
            AppEvent::Lost { attempt, reason, failed } => {
                self.lost(attempt, &reason, failed, now, &mut effects);
            }
            AppEvent::Unwell { attempt, reason } => self.unwell(attempt, &reason),
            AppEvent::Well { attempt } => self.well(attempt),
            AppEvent::Renew(why) => self.renew(why, now, &mut effects),
            AppEvent::Pause(paused) => self.pause(paused, now, &mut effects),
            AppEvent::StopWanted(reason) => self.stop_wanted(reason, in_flight, &mut effects),
            AppEvent::Stopped { attempt } => self.stopped(attempt, now, &mut effects),
            AppEvent::Tick => self.tick(now, in_flight, &mut effects),
        }
        if self.state() != before && !effects.contains(&AppEffect::Changed) {
            effects.push(AppEffect::Changed);
        }
        effects
    }

    /// Notes that a request used the copy at `at`. A request that is served here sends no event,
    /// which would cost it a channel; the runtime keeps the time of the last request in an atomic
    /// and passes it on before a `Tick`.
    pub fn used(&mut self, at: Now) {
        self.last_use = self.last_use.max(at);
    }

    /// The copy's state.
    #[must_use]
    pub fn state(&self) -> AppState {
        match self.phase {
            Phase::Cold if self.paused => AppState::Paused,
            Phase::Cold => AppState::Cold,
            Phase::Starting { .. } => AppState::Starting,
            Phase::Ready { .. } => AppState::Ready,
            Phase::Stopping { .. } => AppState::Stopping,
            Phase::Unwell { .. } | Phase::Failed { .. } => AppState::Failed,
        }
    }

    /// Whether this peer is among those that keep the app ready, by the last [`AppEvent::Keep`];
    /// before the first, it is if the policy keeps copies ready.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    /// How often a copy was started here, failed starts included.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.given
    }

    /// The number of the current attempt, or of the last one if there is none; 0 before the first.
    /// [`AppMachine::next_attempt`] is the number of one that starts beside it.
    #[must_use]
    pub fn attempt(&self) -> u64 {
        self.attempt
    }

    /// How often in a row a start failed or a copy ended before it had proved itself.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Why the last start failed or the copy ended; absent once a copy is ready again.
    #[must_use]
    pub fn last_error(&self) -> Option<&AppError> {
        self.last_error.as_ref()
    }

    /// How long until a starting copy should be ready, or a start from here would take, from the
    /// measured starts; absent before the first. An overdue start is said to need [`ETA_FLOOR`],
    /// never zero.
    #[must_use]
    pub fn eta(&self, now: Now) -> Option<Duration> {
        let whole = Duration::from_millis(self.start_ms?);
        Some(match self.phase {
            Phase::Starting { since } => whole.saturating_sub(now.since(since)).max(ETA_FLOOR),
            Phase::Failed { until, .. } => until.since(now).saturating_add(whole),
            // Nobody knows when it can serve again.
            Phase::Unwell { .. } => return None,
            Phase::Cold | Phase::Ready { .. } | Phase::Stopping { .. } => whole,
        })
    }

    /// How long until the next start begins by itself if the app is wanted: the rest of a back-off.
    #[must_use]
    pub fn starts_in(&self, now: Now) -> Option<Duration> {
        match self.phase {
            Phase::Failed { until, .. } if !self.draining => Some(until.since(now)),
            _ => None,
        }
    }

    /// How long the current start has taken so far; absent if there is none.
    #[must_use]
    pub fn starting_for(&self, now: Now) -> Option<Duration> {
        match self.phase {
            Phase::Starting { since } => Some(now.since(since)),
            _ => None,
        }
    }

    /// When a `Tick` is due next, if nothing else happens.
    #[must_use]
    pub fn next_wake(&self) -> Option<Now> {
        match self.phase {
            Phase::Starting { since } => Some(since.after(self.policy.start_timeout)),
            Phase::Failed { until, .. } => Some(until),
            Phase::Ready { .. } | Phase::Unwell { .. } if self.next.is_some() => {
                self.next.map(|next| next.since.after(self.policy.start_timeout))
            }
            Phase::Ready { .. } | Phase::Unwell { .. } if self.kept => None,
            Phase::Ready { since } | Phase::Unwell { since } => {
                self.policy.stop_when_idle.map(|idle| self.last_use.max(since).after(idle))
            }
            Phase::Cold | Phase::Stopping { .. } => None,
        }
    }

    /// Why `by` would not start the app at once; absent if it would. During `Stopping` the next
    /// copy starts beside the one that ends.
    #[must_use]
    pub fn why_not_start(&self, by: WantedBy, now: Now) -> Option<NotStarted> {
        if self.policy.start == StartMode::Never {
            return Some(NotStarted::Never);
        }
        if self.draining {
            return Some(NotStarted::Draining);
        }
        if self.paused {
            return Some(NotStarted::Paused);
        }
        if by == WantedBy::Boot && self.policy.start != StartMode::AtBoot {
            return Some(NotStarted::NotAtBoot);
        }
        match self.phase {
            Phase::Failed { until, .. } if by != WantedBy::Operator && now < until => {
                Some(NotStarted::BackingOff(until.since(now)))
            }
            Phase::Unwell { .. } if by != WantedBy::Operator => Some(NotStarted::Unwell),
            Phase::Starting { .. } | Phase::Ready { .. } => Some(NotStarted::UnderWay),
            Phase::Cold | Phase::Unwell { .. } | Phase::Stopping { .. } | Phase::Failed { .. } => {
                None
            }
        }
    }

    fn wanted(&mut self, by: WantedBy, now: Now, effects: &mut Vec<AppEffect>) {
        self.used(now);
        match (self.why_not_start(by, now), &mut self.phase) {
            (None, Phase::Unwell { .. }) => {
                // An operator does not wait until it is well again.
                self.stop(self.policy.stop_grace, effects);
                if !self.goes_on_with_next() {
                    self.start(now, effects);
                }
            }
            (None, _) => self.start(now, effects),
            (Some(NotStarted::BackingOff(_)), Phase::Failed { again, .. }) => *again = true,
            (Some(_), _) => {}
        }
    }

    fn start(&mut self, now: Now, effects: &mut Vec<AppEffect>) {
        if self.leaving.len() >= LEAVING_MAX {
            self.phase = Phase::Stopping { again: true };
            self.make_room(effects);
            return;
        }
        self.given += 1;
        self.attempt = self.given;
        self.phase = Phase::Starting { since: now };
        effects.push(AppEffect::Start { attempt: self.attempt });
    }

    fn started(&mut self, attempt: u64, now: Now, effects: &mut Vec<AppEffect>) {
        if let Some(next) = self.next.filter(|next| next.attempt == attempt) {
            self.takes_over(next, now, effects);
            return;
        }
        let Phase::Starting { since } = self.phase else { return };
        if attempt != self.attempt {
            return;
        }
        self.measure(since, now);
        self.last_error = None;
        self.used(now);
        self.phase = Phase::Ready { since: now };
    }

    /// Notes how long a start took.
    fn measure(&mut self, since: Now, now: Now) {
        let took = u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
        self.start_ms = Some(match self.start_ms {
            None => took,
            // An integer mean in milliseconds: a float could round differently on another machine.
            Some(mean) => mean - mean / 4 + took / 4,
        });
    }

    fn start_failed(
        &mut self,
        attempt: u64,
        error: AppError,
        now: Now,
        effects: &mut Vec<AppEffect>,
    ) {
        if self.next.is_some_and(|next| next.attempt == attempt) {
            self.stays(error, effects);
            return;
        }
        if attempt != self.attempt {
            return;
        }
        match self.phase {
            Phase::Starting { .. } => self.fail(error, now),
            // The start was given up because it was slow; its last output says more than that.
            Phase::Failed { .. } => {
                if let Some(last) = self.last_error.as_mut().filter(|last| last.output.is_empty()) {
                    last.output = error.output;
                }
            }
            Phase::Cold | Phase::Ready { .. } | Phase::Unwell { .. } | Phase::Stopping { .. } => {}
        }
    }

    fn exited(
        &mut self,
        attempt: u64,
        reason: &str,
        failed: bool,
        now: Now,
        effects: &mut Vec<AppEffect>,
    ) {
        // It was to end anyway.
        if self.leaving.contains(&attempt) {
            self.stopped(attempt, now, effects);
            return;
        }
        if self.next.is_some_and(|next| next.attempt == attempt) {
            self.stays(AppError::new(reason, Vec::new()), effects);
            return;
        }
        if attempt != self.attempt {
            return;
        }
        match self.phase {
            Phase::Starting { .. } => self.fail(AppError::new(reason, Vec::new()), now),
            Phase::Ready { .. } | Phase::Unwell { .. } if self.next.is_some() => {
                self.goes_on_with_next();
            }
            Phase::Ready { since } | Phase::Unwell { since } if failed => {
                self.forgive(since, now);
                self.fail(AppError::new(reason, Vec::new()), now);
            }
            Phase::Ready { .. } | Phase::Unwell { .. } => {
                self.settle();
                self.start_if_always_wanted(now, effects);
            }
            Phase::Cold | Phase::Stopping { .. } | Phase::Failed { .. } => {}
        }
    }

    fn lost(
        &mut self,
        attempt: u64,
        reason: &str,
        failed: bool,
        now: Now,
        effects: &mut Vec<AppEffect>,
    ) {
        let (Phase::Ready { since } | Phase::Unwell { since }) = self.phase else { return };
        if attempt != self.attempt {
            return;
        }
        if failed {
            self.stop(self.policy.stop_grace.min(HUNG_GRACE), effects);
            if self.goes_on_with_next() {
                return;
            }
            self.forgive(since, now);
            self.fail(AppError::new(reason, Vec::new()), now);
        } else {
            self.stop(self.policy.stop_grace, effects);
            if !self.goes_on_with_next() {
                self.start_if_always_wanted(now, effects);
            }
        }
    }

    fn unwell(&mut self, attempt: u64, reason: &str) {
        let Phase::Ready { since } = self.phase else { return };
        if attempt == self.attempt {
            self.last_error = Some(AppError::new(reason, Vec::new()));
            self.phase = Phase::Unwell { since };
        }
    }

    fn well(&mut self, attempt: u64) {
        let Phase::Unwell { since } = self.phase else { return };
        if attempt == self.attempt {
            self.last_error = None;
            self.phase = Phase::Ready { since };
        }
    }

    /// An app that starts at boot, or is to be kept ready, is wanted without any request.
    fn start_if_always_wanted(&mut self, now: Now, effects: &mut Vec<AppEffect>) {
        let is_wanted = self.policy.start == StartMode::AtBoot || self.kept;
        if is_wanted && self.why_not_renew().is_none() {
            self.start(now, effects);
        }
    }

    fn forgive(&mut self, ready_since: Now, now: Now) {
        if now.since(ready_since) >= PROVEN_AFTER {
            self.failures = 0;
        }
    }

    fn fail(&mut self, error: AppError, now: Now) {
        let ceiling = u32::checked_pow(2, self.failures)
            .and_then(|factor| BACKOFF_FIRST.checked_mul(factor))
            .map_or(BACKOFF_MAX, |ceiling| ceiling.min(BACKOFF_MAX));
        // "Full jitter": uniform below an exponentially growing ceiling (Brooker, "Exponential
        // Backoff And Jitter", 2015), with the floor that BACKOFF_MIN gives a reason for.
        let span_ms = u64::try_from((ceiling - BACKOFF_MIN).as_millis()).unwrap_or(u64::MAX);
        let backoff =
            BACKOFF_MIN + Duration::from_millis(split_mix(&mut self.jitter) % (span_ms + 1));
        self.failures = self.failures.saturating_add(1);
        self.last_error = Some(error);
        // An app that starts at boot is wanted without any request.
        let again = self.policy.start == StartMode::AtBoot;
        self.phase = Phase::Failed { until: now.after(backoff), again };
    }

    fn stop_wanted(&mut self, why: StopReason, in_flight: u32, effects: &mut Vec<AppEffect>) {
        let insists = matches!(why, StopReason::Operator | StopReason::Drain);
        self.draining |= why == StopReason::Drain;
        if insists {
            self.give_up_next(effects);
        }
        match &mut self.phase {
            Phase::Starting { .. } if insists => {
                effects.push(AppEffect::CancelStart { attempt: self.attempt });
                self.settle();
            }
            // If the next one starts already, this one would end soon, and is not missed meanwhile.
            Phase::Ready { .. } | Phase::Unwell { .. }
                if insists || (in_flight == 0 && self.next.is_none()) =>
            {
                self.stop(self.policy.stop_grace, effects);
            }
            Phase::Stopping { again } if insists => *again = false,
            Phase::Failed { .. } if insists => self.settle(),
            _ => {}
        }
    }

    /// Ends the current copy, whatever comes after it.
    fn stop(&mut self, grace: Duration, effects: &mut Vec<AppEffect>) {
        self.leaving.push(self.attempt);
        self.renew = false;
        self.phase = Phase::Stopping { again: false };
        effects.push(AppEffect::Stop { attempt: self.attempt, grace });
    }

    /// Has the copy that was stopped first end at once, for the sake of one that is wanted.
    fn make_room(&mut self, effects: &mut Vec<AppEffect>) {
        let first = self.leaving.first().copied().filter(|_| self.ends_now.is_none());
        if let Some(attempt) = first {
            self.ends_now = first;
            effects.push(AppEffect::EndNow { attempt });
        }
    }

    /// No copy serves, and none is wanted.
    fn settle(&mut self) {
        let ending = !self.leaving.is_empty();
        self.phase = if ending { Phase::Stopping { again: false } } else { Phase::Cold };
    }

    fn stopped(&mut self, attempt: u64, now: Now, effects: &mut Vec<AppEffect>) {
        let before = self.leaving.len();
        self.leaving.retain(|leaving| *leaving != attempt);
        self.ends_now.take_if(|ending| *ending == attempt);
        if self.renew {
            self.start_beside(now, effects);
        }
        let Phase::Stopping { again } = self.phase else { return };
        if self.leaving.len() == before {
            return;
        }
        if again {
            self.start(now, effects);
        } else {
            self.settle();
        }
    }

    fn tick(&mut self, now: Now, in_flight: u32, effects: &mut Vec<AppEffect>) {
        if self.next_wake().is_none_or(|due| now < due) {
            return;
        }
        match self.phase {
            Phase::Starting { .. } => {
                effects.push(AppEffect::CancelStart { attempt: self.attempt });
                let limit = self.policy.start_timeout;
                let reason = alloc::format!("it was not ready within {limit:?}");
                self.fail(AppError { reason, output: Vec::new() }, now);
            }
            Phase::Ready { .. } | Phase::Unwell { .. } if self.next.is_some() => {
                self.give_up_next(effects);
                let limit = self.policy.start_timeout;
                let reason = alloc::format!("the new copy was not ready within {limit:?}");
                self.stays(AppError { reason, output: Vec::new() }, effects);
            }
            Phase::Failed { again: true, .. } => self.start(now, effects),
            Phase::Failed { again: false, .. } => self.settle(),
            Phase::Ready { .. } | Phase::Unwell { .. } if in_flight == 0 => {
                self.stop(self.policy.stop_grace, effects);
            }
            Phase::Ready { .. } | Phase::Unwell { .. } | Phase::Cold | Phase::Stopping { .. } => {}
        }
    }
}

impl AppError {
    fn new(reason: &str, mut output: Vec<String>) -> Self {
        output.drain(..output.len().saturating_sub(OUTPUT_LINES_MAX));
        output.iter_mut().for_each(|line| line.truncate(cut(line)));
        Self { reason: String::from(&reason[..cut(reason)]), output }
    }
}

/// The longest prefix of whole characters within [`LINE_BYTES_MAX`].
fn cut(text: &str) -> usize {
    let mut end = text.len().min(LINE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    end
}

/// `SplitMix64` (Steele, Lea and Flood, OOPSLA 2014, section 6): jitter needs spread, not secrecy.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

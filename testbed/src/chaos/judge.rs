//! Judges a run by what its clients saw, knowing nothing of how the mesh works.
//!
//! Each session is a list to which operations append, and every answer shows the whole list as
//! the operation left or found it. That makes linearizability (Herlihy and Wing, 1990) exact and
//! cheap to decide, where in general one has to search (Wing and Gong, 1993): the longest answer
//! gives the order of all appends that took effect, every other answer must be a beginning of it,
//! and so each operation has one place in that order. An append has the place of its item, a
//! read the place behind the last item that it saw. No other order is possible, so the history is
//! linearizable if and only if no operation that ended before another began comes after it in that
//! order. An append whose outcome the client never learnt counts as one that never ended; if no
//! answer shows it, it need not have happened.

mod session;
mod shown;

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::history::{
    Attempt, Came, Fault, History, KeyOperation, Micros, Operation, Outcome, Thread,
};
use super::leases;
use super::linear::{self, Finding};
use super::waits::{self, cause, longest_by_stretch, percentile};

/// How long after a fault its effects may still last.
pub const GRACE: Micros = 20_000_000;
const EXAMPLES_MAX: usize = 10;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The schedule's seed.
    pub seed: u64,
    /// How long the run took.
    pub length: Micros,
    /// Attempts of clients.
    pub requests: u64,
    /// Those that the app answered.
    pub answered: u64,
    /// Sessions.
    pub sessions: u64,
    /// Appends that were acknowledged.
    pub acknowledged: u64,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// How often a peer ran with each failpoint, and how often it ended there.
    pub failpoints: BTreeMap<String, (u64, u64)>,
    /// Why the run ended early, if it did.
    pub cut_short: Option<String>,
    /// How long clients went without an answer, by the kind of fault.
    pub unavailable: BTreeMap<String, Unavailable>,
    /// Errors that clients saw, by what they were.
    pub errors: BTreeMap<String, Refusals>,
    /// Errors with no fault near that could explain them, and those that nothing can.
    pub unexplained: u64,
    /// Appends that an app ran more than once, since an answer was lost on the way. What counts is
    /// that each was applied once.
    pub run_again: u64,
    /// Acknowledged appends that were not there afterwards.
    pub lost: u64,
    /// Items that occur twice.
    pub doubled: u64,
    /// Answers that lacked what had been acknowledged before, and came back later.
    pub stale: u64,
    /// Sessions of which two answers contradict each other.
    pub split: u64,
    /// Operations in an order that real time forbids.
    pub disordered: u64,
    /// Sessions that the mesh reported lost after a fault that may lose them.
    pub reported_lost: u64,
    /// What these faults were.
    pub lost_to: BTreeMap<String, u64>,
    /// Sessions that it reported lost without such a fault.
    pub lost_without_cause: u64,
    /// Clients that got an answer that their session is lost, although it never held anything.
    pub lost_nothing: u64,
    /// How often such clients were refused because no majority was reached, which they do not need.
    pub refused_nothing: u64,
    /// Keys that clients of the Redis-speaking endpoint used, and operations on them.
    pub keys: (u64, u64),
    /// Keys whose history no order explains.
    pub keys_broken: u64,
    /// Keys whose history was too long to judge.
    pub keys_undecided: u64,
    /// Locks that were held, and those of them that two held at once, or whose later holder drew the
    /// lower number.
    pub locks: (u64, u64),
    /// Clients that limiters let in, and those of them that were one too many within a window.
    pub let_in: (u64, u64),
    /// The errors that operations on keys got, by their first word, and by the fault that they belong
    /// to.
    pub key_errors: BTreeMap<String, BTreeMap<String, u64>>,
    /// Sessions that no client asked for, and that were looked after to the end.
    pub idle: u64,
    /// Those that had no owner, two, or too few living members for long after a fault.
    pub orphaned: u64,
    /// Some of what was wrong, in words.
    pub examples: Vec<String>,
}

/// Errors of one sort.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    /// How many.
    pub count: u64,
    /// Why the client may get it; empty if it never may.
    pub allowed: String,
    /// How many by the fault that they belong to; `none` where there is none.
    pub during: BTreeMap<String, u64>,
}

/// Times without an answer, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unavailable {
    /// How many clients waited, counted for each fault.
    pub clients: u64,
    /// The median over clients and faults.
    pub p50: Micros,
    /// The 99th percentile.
    pub p99: Micros,
    /// The longest.
    pub longest: Micros,
}

impl Verdict {
    /// Whether every promise was kept.
    #[must_use]
    pub fn holds(&self) -> bool {
        let broken = self.lost
            + self.doubled
            + self.stale
            + self.split
            + self.disordered
            + self.lost_without_cause
            + self.lost_nothing
            + self.keys_broken
            + self.locks.1
            + self.let_in.1
            + self.orphaned;
        broken == 0 && self.cut_short.is_none()
    }

    fn tell(&mut self, what: String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(what);
        }
    }
}

/// Judges a whole run.
#[must_use]
pub fn judge(history: &History) -> Verdict {
    let mut verdict = Verdict {
        seed: history.seed,
        length: history.length,
        cut_short: history.cut_short.clone(),
        ..Verdict::default()
    };
    let mut threads: BTreeMap<Thread, Vec<&Attempt>> = BTreeMap::new();
    for attempt in &history.attempts {
        threads.entry(attempt.thread).or_default().push(attempt);
    }
    count_attempts(history, &mut verdict);
    judge_lost_sessions(history, &threads, &mut verdict);
    count_faults(history, &mut verdict);
    verdict.refused_nothing = refused_nothing(&threads);
    judge_keys(history, &mut verdict);
    judge_leases(history, &mut verdict);
    judge_idle(history, &mut verdict);
    verdict.sessions = threads.len() as u64;
    for (thread, attempts) in &threads {
        session::judge(*thread, attempts, &mut verdict);
    }
    verdict.run_again = run_again(history);
    verdict.unavailable = unavailable(history);
    verdict
}

/// What came of the attempts, and which errors nothing explains.
fn count_attempts(history: &History, verdict: &mut Verdict) {
    for attempt in &history.attempts {
        verdict.requests += 1;
        match &attempt.outcome {
            Outcome::Answered { .. } => verdict.answered += 1,
            // See [`judge_lost_sessions`].
            Outcome::Refused { lost: true, .. } => {}
            outcome => {
                let (what, allowed) = name(outcome, attempt);
                let cause = near(&history.faults, attempt);
                let known = verdict.errors.entry(what).or_default();
                known.count += 1;
                known.allowed = allowed.unwrap_or_default().to_owned();
                *known.during.entry(cause.unwrap_or("none").to_owned()).or_default() += 1;
                // A repeat meets its first attempt in calm, too.
                let repeat =
                    matches!(outcome, Outcome::Refused { status: 409, .. }) && attempt.attempt > 0;
                let explained = repeat || allowed.is_some() && cause.is_some();
                verdict.unexplained += u64::from(!explained);
            }
        }
    }
}

/// Whether sessions that were reported lost held anything, and whether a fault explains the loss.
fn judge_lost_sessions(
    history: &History,
    threads: &BTreeMap<Thread, Vec<&Attempt>>,
    verdict: &mut Verdict,
) {
    let is_lost = |it: &&Attempt| matches!(it.outcome, Outcome::Refused { lost: true, .. });
    for attempt in history.attempts.iter().filter(is_lost) {
        let Thread { client, session } = attempt.thread;
        let wrote = |it: &&Attempt| matches!(it.operation, Operation::Append { .. });
        if !threads[&attempt.thread].iter().any(wrote) {
            verdict.lost_nothing += 1;
            verdict.tell(format!(
                "client {client}, session {session}: it was reported as lost, although nothing was \
                 ever written to it"
            ));
            continue;
        }
        let born = threads[&attempt.thread].iter().map(|first| first.began).min();
        // What is born after the mesh was whole again has lost nothing to that fault.
        let cause = history.faults.iter().rfind(|fault| {
            fault.may_lose
                && fault.began <= attempt.ended
                && born.is_some_and(|born| born <= fault.whole)
        });
        if let Some(fault) = cause {
            verdict.reported_lost += 1;
            *verdict.lost_to.entry(fault.name()).or_default() += 1;
        } else {
            verdict.lost_without_cause += 1;
            verdict
                .tell(format!("client {client}, session {session}: reported lost without a cause"));
        }
    }
}

fn count_faults(history: &History, verdict: &mut Verdict) {
    for fault in &history.faults {
        *verdict.faults.entry(fault.kind.clone()).or_default() += 1;
        if let Some(armed) = &fault.armed {
            let (times, tripped) = verdict.failpoints.entry(armed.point.clone()).or_default();
            *times += 1;
            *tripped += u64::from(armed.tripped);
        }
    }
}

fn judge_idle(history: &History, verdict: &mut Verdict) {
    verdict.idle = history.idle;
    verdict.orphaned = history.orphans.len() as u64;
    for orphan in &history.orphans {
        let fault = history.faults.get(orphan.fault).map_or("nothing", |it| it.kind.as_str());
        let (client, at) = (orphan.thread.client, orphan.at / 1_000_000);
        verdict.tell(format!(
            "idle session {client} ({}) was not whole {at} s into the run, after {fault}: {}",
            orphan.key, orphan.reports
        ));
    }
}

/// How many appends an app ran more than once.
fn run_again(history: &History) -> u64 {
    // What had a failpoint reached is in the apps' logs, too, and no client's.
    let mut times_run: HashMap<&str, u64> = HashMap::new();
    for attempt in &history.attempts {
        if let Operation::Append { item, .. } = &attempt.operation {
            times_run.insert(item, 0);
        }
    }
    for run in &history.runs {
        times_run.entry(&run.item).and_modify(|times| *times += 1);
    }
    times_run.values().filter(|times| **times > 1).count() as u64
}

/// How often clients that never wrote were refused for want of a majority.
fn refused_nothing(threads: &BTreeMap<Thread, Vec<&Attempt>>) -> u64 {
    let never_wrote = |attempts: &&Vec<&Attempt>| {
        !attempts.iter().any(|it| matches!(it.operation, Operation::Append { .. }))
    };
    let refused = |attempt: &&&Attempt| match &attempt.outcome {
        Outcome::Refused { problem, .. } => problem.ends_with("session-no-majority"),
        _ => false,
    };
    let attempts = threads.values().filter(never_wrote).flatten();
    attempts.filter(refused).count() as u64
}

fn judge_keys(history: &History, verdict: &mut Verdict) {
    let by_key = linear::by_key(&history.keys);
    verdict.keys = (by_key.len() as u64, history.keys.len() as u64);
    for (key, operations) in by_key {
        match linear::judge(&operations, &history.faults) {
            Finding::Linearizable => {}
            Finding::Undecided => verdict.keys_undecided += 1,
            Finding::Broken => {
                verdict.keys_broken += 1;
                let lines: Vec<String> = operations.iter().map(|it| line(it)).collect();
                verdict.tell(format!("no order explains key {key}:\n    {}", lines.join("\n    ")));
            }
        }
    }
    for operation in &history.keys {
        let (Came::Refused { error } | Came::Unknown { error }) = &operation.came else { continue };
        let word = error.split(' ').next().unwrap_or_default().to_owned();
        let at = cause(&history.faults, operation.began, operation.ended);
        let kind = at.map_or("none", |at| history.faults[at].kind.as_str());
        *verdict.key_errors.entry(word).or_default().entry(kind.to_owned()).or_default() += 1;
    }
}

fn judge_leases(history: &History, verdict: &mut Verdict) {
    let found = leases::judge(&history.holds, &history.let_in, &history.faults);
    let wrong = found.shared.len() + found.unfenced.len();
    verdict.locks = (history.holds.len() as u64, wrong as u64);
    verdict.let_in = (history.let_in.len() as u64, found.too_many.len() as u64);
    for (one, next) in &found.shared {
        verdict.tell(format!("two held one lock: {one:?} and {next:?}"));
    }
    for (one, next) in &found.unfenced {
        verdict.tell(format!("a later holder drew no higher number: {one:?} and {next:?}"));
    }
    for one in &found.too_many {
        verdict.tell(format!("a limiter let in one too many: {one:?}"));
    }
}

/// One operation on a key, on one line.
fn line(operation: &KeyOperation) -> String {
    let seconds = |micros: Micros| micros as f64 / 1e6;
    let KeyOperation { client, door, began, ended, asked, came, .. } = operation;
    let (began, ended) = (seconds(*began), seconds(*ended));
    format!("{began:.4}–{ended:.4} s client {client} at {door}: {asked:?} → {came:?}")
}

/// The outcome of an attempt without an answer, and why a client may get it; `None` if it never
/// may.
fn name(outcome: &Outcome, attempt: &Attempt) -> (String, Option<&'static str>) {
    match outcome {
        Outcome::Refused { status, problem, .. } => {
            let name = problem.rsplit(['/', ':', '#']).next().unwrap_or_default();
            let allowed = match (*status, name) {
                (409, _) if attempt.attempt > 0 => {
                    Some("its first attempt is under way, or too old to tell")
                }
                (502, "outcome-unknown" | "applied-answer-lost" | "execution-failed") => {
                    Some("the answer was lost on the way; the client learns that it may count")
                }
                (502, _) => Some("the peer or the app that had it is gone"),
                (503, "session-no-majority") => {
                    Some("a minority refuses rather than make a second history")
                }
                (504, "app-too-slow") => Some("the app that had it hangs"),
                (503 | 504, _) => Some("refused before it ran, for now"),
                _ => None,
            };
            (format!("{status} {name}").trim().to_owned(), allowed)
        }
        Outcome::NotSent { .. } => {
            ("no connection".to_owned(), Some("the peer that it asked was down"))
        }
        Outcome::Broken { .. } => (
            "connection broke, or no answer in time".to_owned(),
            Some("the peer that it asked ended or was suspended"),
        ),
        Outcome::Answered { .. } => ("answered".to_owned(), None),
    }
}

/// The kind of the fault that an attempt belongs to, or that may still be felt.
fn near<'h>(faults: &'h [Fault], attempt: &Attempt) -> Option<&'h str> {
    let felt = |fault: &Fault| {
        fault.began <= attempt.ended && attempt.began <= fault.ended.saturating_add(GRACE)
    };
    let at = cause(faults, attempt.began, attempt.ended).or_else(|| faults.iter().rposition(felt));
    at.map(|at| faults[at].kind.as_str())
}

/// How long clients waited, by the kind of fault.
fn unavailable(history: &History) -> BTreeMap<String, Unavailable> {
    let waits = waits::waits(history);
    let mut by_kind: BTreeMap<String, Vec<Micros>> = BTreeMap::new();
    for (fault, wait) in longest_by_stretch(&waits, &history.faults) {
        let kind = fault.map_or("none", |at| &history.faults[at].kind);
        by_kind.entry(kind.to_owned()).or_default().push(wait.took);
    }
    by_kind
        .into_iter()
        .map(|(kind, mut spans)| {
            spans.sort_unstable();
            let unavailable = Unavailable {
                clients: spans.len() as u64,
                p50: percentile(&spans, 50),
                p99: percentile(&spans, 99),
                longest: percentile(&spans, 100),
            };
            (kind, unavailable)
        })
        .collect()
}

#[cfg(test)]
mod tests;

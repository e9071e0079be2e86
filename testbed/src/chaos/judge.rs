//! Judges a run by what its clients saw, knowing nothing of how the mesh works.
//!
//! Each session is a list to which operations append, and every answer shows the whole list as
//! the operation left or found it. That makes linearizability (Herlihy and Wing, 1990) exact and
//! cheap to decide, where in general one has to search (Wing and Gong, 1993): the longest answer
//! gives the order of all appends that took effect, every other answer must be a beginning of it,
//! and so each operation has one place in that order. An append stands where its item stands; a
//! read stands behind the last item that it saw. Placing them so is the only possibility, so the
//! history is linearizable if and only if no operation that ended before another began stands
//! behind it. An append whose outcome the client never learnt never ended; where no answer shows
//! it, it may as well not have happened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::history::{
    Attempt, Came, Fault, History, KeyOperation, Micros, Operation, Outcome, Thread,
};
use super::leases;
use super::linear::{self, Finding};
use super::waits::{self, cause, longest_by_stretch, percentile};

/// How long after a fault what it did may still be felt.
pub const GRACE: Micros = 20_000_000;
const EXAMPLES_MAX: usize = 10;
const ERRORS_SHOWN_MAX: usize = 10;
/// As much as a key's history takes.
const EXAMPLE_CHARS_MAX: usize = 6000;

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
    /// Why the run ended before its time, if it did.
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
    /// Clients whose session never held anything and who were told that it is lost.
    pub lost_nothing: u64,
    /// How often such clients were refused for want of a majority, which nothing of theirs needs.
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
    /// What operations on keys were told instead of an answer, by its first word, and by the fault
    /// that it belongs to.
    pub key_errors: BTreeMap<String, BTreeMap<String, u64>>,
    /// Sessions that no client asked for, and that were looked after to the end.
    pub idle: u64,
    /// Those that had no owner, two, or too few living members for long after a fault.
    pub orphaned: u64,
    /// Some of what was wrong, told.
    pub examples: Vec<String>,
}

/// Errors of one sort.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    /// How many.
    pub count: u64,
    /// What the client may be told so for; empty where it never may.
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

/// One operation with all its attempts.
struct Done<'a> {
    first: &'a Attempt,
    /// When it was answered.
    ended: Option<Micros>,
    items: Option<&'a [String]>,
}

impl Done<'_> {
    fn item(&self) -> Option<&str> {
        match &self.first.operation {
            Operation::Append { item, .. } => Some(item),
            _ => None,
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
    let mut reported_lost = Vec::new();
    for attempt in &history.attempts {
        threads.entry(attempt.thread).or_default().push(attempt);
        verdict.requests += 1;
        match &attempt.outcome {
            Outcome::Answered { .. } => verdict.answered += 1,
            Outcome::Refused { lost: true, .. } => reported_lost.push(attempt),
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
    for attempt in reported_lost {
        let wrote = |it: &&Attempt| matches!(it.operation, Operation::Append { .. });
        if !threads[&attempt.thread].iter().any(wrote) {
            verdict.lost_nothing += 1;
            let Thread { client, session } = attempt.thread;
            verdict.tell(format!(
                "client {client}, session {session}: told that it is lost, although nothing was \
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
            let Thread { client, session } = attempt.thread;
            verdict
                .tell(format!("client {client}, session {session}: reported lost without a cause"));
        }
    }
    for fault in &history.faults {
        *verdict.faults.entry(fault.kind.clone()).or_default() += 1;
        if let Some(armed) = &fault.armed {
            let (times, tripped) = verdict.failpoints.entry(armed.point.clone()).or_default();
            *times += 1;
            *tripped += u64::from(armed.tripped);
        }
    }
    verdict.refused_nothing = refused_nothing(&threads);
    judge_keys(history, &mut verdict);
    judge_leases(history, &mut verdict);
    verdict.idle = history.idle;
    verdict.orphaned = history.orphans.len() as u64;
    for orphan in &history.orphans {
        let fault = history.faults.get(orphan.fault).map_or("nothing", |it| it.kind.as_str());
        let (client, at) = (orphan.thread.client, orphan.at / 1_000_000);
        verdict.tell(format!(
            "idle session {client} ({}) was not whole {at} s into the run, after {fault}: {}",
            orphan.key, orphan.told
        ));
    }
    verdict.sessions = threads.len() as u64;
    for (thread, attempts) in &threads {
        judge_session(*thread, attempts, &mut verdict);
    }
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
    verdict.run_again = times_run.values().filter(|times| **times > 1).count() as u64;
    verdict.unavailable = unavailable(history);
    verdict
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

fn operations<'a>(attempts: &[&'a Attempt]) -> Vec<Done<'a>> {
    let mut by_number: BTreeMap<u32, Done<'a>> = BTreeMap::new();
    let mut in_order: Vec<&'a Attempt> = attempts.to_vec();
    in_order.sort_by_key(|attempt| (attempt.number, attempt.attempt));
    for attempt in in_order {
        let done = by_number.entry(attempt.number).or_insert(Done {
            first: attempt,
            ended: None,
            items: None,
        });
        if let (Outcome::Answered { items }, None) = (&attempt.outcome, done.ended) {
            // A read that is repeated is another read; an append is the same one.
            if attempt.operation == Operation::Read {
                done.first = attempt;
            }
            done.ended = Some(attempt.ended);
            done.items = (attempt.operation != Operation::Echo).then_some(items);
        }
    }
    by_number.into_values().collect()
}

fn judge_session(thread: Thread, attempts: &[&Attempt], verdict: &mut Verdict) {
    let who = format!("client {}, session {}", thread.client, thread.session);
    let operations = operations(attempts);
    let asked: HashMap<&str, &Done<'_>> =
        operations.iter().filter_map(|done| Some((done.item()?, done))).collect();
    let answered = || operations.iter().filter_map(|done| Some((done, done.items?)));
    verdict.acknowledged += answered().filter(|(done, _)| done.item().is_some()).count() as u64;

    let longest: &[String] =
        answered().map(|(_, items)| items).max_by_key(|items| items.len()).unwrap_or_default();
    let mut split = false;
    let mut doubled: HashSet<&str> = HashSet::new();
    for (done, items) in answered() {
        let mut seen = HashSet::new();
        for item in items {
            if !seen.insert(item.as_str()) && doubled.insert(item) {
                verdict.doubled += 1;
                verdict.tell(format!("{who}: {item} occurs twice in {items:?}"));
            }
            let sent = asked.get(item.as_str());
            if sent.is_none_or(|sent| done.ended.is_some_and(|at| sent.first.began > at)) {
                verdict.disordered += 1;
                verdict.tell(format!("{who}: {item} was seen before anybody sent it"));
            }
        }
        if done.item().is_some_and(|own| items.last().is_none_or(|last| last != own)) {
            verdict.disordered += 1;
            verdict.tell(format!(
                "{who}: the answer of operation {} does not end with its own item: {items:?}",
                done.first.number
            ));
        }
        if !longest.starts_with(items) && !split {
            split = true;
            verdict.tell(format!("{who}: two histories, {items:?} and {longest:?}"));
        }
    }
    verdict.split += u64::from(split);

    // Where each operation stands: an append of the item at position p at 2p + 1, a read of
    // k items at 2k.
    let places: HashMap<&str, usize> =
        longest.iter().enumerate().map(|(at, item)| (item.as_str(), at)).collect();
    let mut placed: Vec<(Micros, Option<Micros>, usize, &Done<'_>)> = Vec::new();
    let mut lost: HashSet<&str> = HashSet::new();
    for done in &operations {
        match (done.item(), done.items) {
            (Some(item), _) if places.contains_key(item) => {
                placed.push((done.first.began, done.ended, 2 * places[item] + 1, done));
            }
            (Some(item), Some(_)) => {
                lost.insert(item);
            }
            (None, Some(items)) => {
                placed.push((done.first.began, done.ended, 2 * items.len(), done));
            }
            _ => {}
        }
    }
    let mut by_end: Vec<usize> = (0..placed.len()).filter(|at| placed[*at].1.is_some()).collect();
    by_end.sort_by_key(|at| placed[*at].1);
    let mut by_begin: Vec<usize> = (0..placed.len()).collect();
    by_begin.sort_by_key(|at| placed[*at].0);
    let mut ended = by_end.into_iter().peekable();
    let mut furthest: Option<usize> = None;
    for at in by_begin {
        let (began, _, place, done) = placed[at];
        while let Some(earlier) = ended.next_if(|at| placed[*at].1.is_some_and(|end| end < began)) {
            if furthest.is_none_or(|known| placed[known].2 < placed[earlier].2) {
                furthest = Some(earlier);
            }
        }
        let Some(before) = furthest.filter(|before| placed[*before].2 > place) else { continue };
        let before = placed[before].3;
        let (earlier, later) = (before.first.number, done.first.number);
        if done.item().is_none() {
            verdict.stale += 1;
            verdict.tell(format!(
                "{who}: operation {later} did not see what operation {earlier} had shown before"
            ));
        } else {
            verdict.disordered += 1;
            verdict.tell(format!("{who}: operation {later} stands before operation {earlier}"));
        }
    }
    // An acknowledged append that a later answer lacks, and that never comes back, is lost: where
    // its own answer was the longest, the later ones are shorter.
    for (done, _) in answered() {
        let (Some(item), Some(acknowledged)) = (done.item(), done.ended) else { continue };
        let mut later = answered()
            .filter(|(other, _)| other.first.began > acknowledged)
            .map(|(_, items)| items.iter().any(|held| held == item))
            .peekable();
        if later.peek().is_some() && !later.any(|held| held) {
            lost.insert(item);
        }
    }
    for item in lost {
        verdict.lost += 1;
        verdict.tell(format!("{who}: {item} was acknowledged and is gone"));
    }
}

/// What an attempt without an answer came to, and why a client may be told so; `None` where it
/// never may.
fn name(outcome: &Outcome, attempt: &Attempt) -> (String, Option<&'static str>) {
    match outcome {
        Outcome::Refused { status, problem, .. } => {
            let name = problem.rsplit(['/', ':', '#']).next().unwrap_or_default();
            let allowed = match (*status, name) {
                (409, _) if attempt.attempt > 0 => {
                    Some("its first attempt is under way, or too old to tell")
                }
                (502, "outcome-unknown" | "applied-answer-lost" | "execution-failed") => {
                    Some("the answer was lost on the way; the client is told that it may count")
                }
                (502, _) => Some("the peer or the app that had it is gone"),
                (503, "session-no-majority") => {
                    Some("a minority refuses rather than make a second history")
                }
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
            Some("the peer that it asked ended or stood still"),
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

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |micros: Micros| micros as f64 / 1e6;
        writeln!(
            f,
            "{} requests of {} sessions in {:.0} s; {} answered, {} appends acknowledged, {} run \
             again inside; seed {}",
            self.requests,
            self.sessions,
            seconds(self.length),
            self.answered,
            self.acknowledged,
            self.run_again,
            self.seed
        )?;
        writeln!(f, "\n  {:<12} {:>6}   a client's longest wait", "fault", "times")?;
        for (kind, spans) in &self.unavailable {
            let times = self.faults.get(kind).map_or_else(|| "-".to_owned(), u64::to_string);
            writeln!(
                f,
                "  {kind:<12} {times:>6}   p50 {:>6.2} s  p99 {:>6.2} s  longest {:>6.2} s",
                seconds(spans.p50),
                seconds(spans.p99),
                seconds(spans.longest)
            )?;
        }
        if !self.failpoints.is_empty() {
            let told = self.failpoints.iter();
            let told: Vec<String> =
                told.map(|(point, (times, done))| format!("{point} {done}/{times}")).collect();
            writeln!(f, "\n  failpoints, ended there / armed")?;
            for line in told.chunks(4) {
                writeln!(f, "  {}", line.join("   "))?;
            }
        }
        writeln!(f, "\n  errors that clients saw, and why they may")?;
        let mut errors: Vec<_> = self.errors.iter().collect();
        errors.sort_by_key(|(_, refusals)| std::cmp::Reverse(refusals.count));
        for (what, refusals) in errors.iter().take(ERRORS_SHOWN_MAX) {
            let allowed = match refusals.allowed.as_str() {
                "" => "NOT ALLOWED",
                allowed => allowed,
            };
            let mut during: Vec<_> = refusals.during.iter().collect();
            during.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let during: Vec<String> =
                during.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            writeln!(f, "  {:>6}  {what}: {allowed}", refusals.count)?;
            writeln!(f, "          {}", during.join(", "))?;
        }
        if errors.len() > ERRORS_SHOWN_MAX {
            let rest = errors.iter().skip(ERRORS_SHOWN_MAX);
            let count: u64 = rest.map(|(_, refusals)| refusals.count).sum();
            writeln!(f, "  {count:>6}  of {} other sorts", errors.len() - ERRORS_SHOWN_MAX)?;
        }
        writeln!(f, "  {:>6}  unexplained", self.unexplained)?;
        let causes: Vec<String> =
            self.lost_to.iter().map(|(fault, count)| format!("{count} to {fault}")).collect();
        writeln!(
            f,
            "\n  sessions reported lost with a cause: {}{}{}; without: {}",
            self.reported_lost,
            if causes.is_empty() { "" } else { ", " },
            causes.join(", "),
            self.lost_without_cause
        )?;
        if let Some(why) = &self.cut_short {
            writeln!(f, "  ! cut short: {why}")?;
        }
        for example in &self.examples {
            let short: String = example.chars().take(EXAMPLE_CHARS_MAX).collect();
            writeln!(f, "  ! {short}")?;
        }
        let (keys, operations) = self.keys;
        writeln!(
            f,
            "\n  {operations} operations on {keys} keys; too long to judge: {}",
            self.keys_undecided
        )?;
        for (error, during) in &self.key_errors {
            let during: Vec<String> =
                during.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            writeln!(f, "  {error:>10}  {}", during.join(", "))?;
        }
        writeln!(
            f,
            "  {} idle sessions were looked after; sessions that never held anything: {} times \
             called lost, {} times refused for want of a majority",
            self.idle, self.lost_nothing, self.refused_nothing
        )?;
        let ((holds, shared), (let_in, too_many)) = (self.locks, self.let_in);
        writeln!(f, "  {holds} times a lock was held, {let_in} times a limiter let somebody in")?;
        write!(f, "\n  keys without an order {}   orphaned {}", self.keys_broken, self.orphaned)?;
        write!(f, "   locks held by two {shared}   let in too many {too_many}")?;
        write!(
            f,
            "\n  lost {}   doubled {}   stale {}   two histories {}   out of order {}",
            self.lost, self.doubled, self.stale, self.split, self.disordered
        )
    }
}

#[cfg(test)]
mod tests;

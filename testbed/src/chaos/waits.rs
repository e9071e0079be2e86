//! How long clients waited, and which fault each wait belongs to.
//!
//! A wait is the time from an operation's first attempt to its answer, or to the end of its last
//! attempt where it got none, less what the app was asked to take. It belongs to the fault within
//! whose time or aftermath it begins, else to the first fault that begins while it lasts, else to
//! none. The aftermath of a fault lasts until the mesh is whole again, and a little longer if no
//! other begins: so no fault is blamed for another's effects, or for what happens without any fault.

use std::collections::HashMap;

use super::history::{Attempt, Fault, History, Micros, Operation, Outcome, Thread};

/// How long after the mesh is whole again a wait still belongs to the fault before it: what
/// clients repeat comes a moment later.
pub const MARGIN: Micros = 1_000_000;

/// One operation's wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// Which client.
    pub client: u32,
    /// When its first attempt was sent.
    pub began: Micros,
    /// When it was answered or given up.
    pub ended: Micros,
    /// How long it took, less what the app was asked to take.
    pub took: Micros,
    /// Whether it was answered by the app.
    pub answered: bool,
    /// The position in the history of the fault that it belongs to.
    pub fault: Option<usize>,
}

/// Every operation's wait, in the order of their beginnings.
#[must_use]
pub fn waits(history: &History) -> Vec<Wait> {
    let mut by_operation: HashMap<(Thread, u32), Vec<&Attempt>> = HashMap::new();
    for attempt in &history.attempts {
        by_operation.entry((attempt.thread, attempt.number)).or_default().push(attempt);
    }
    let mut waits: Vec<Wait> = by_operation
        .into_iter()
        .filter_map(|((thread, _), attempts)| {
            let began = attempts.iter().map(|attempt| attempt.began).min()?;
            let last = attempts.iter().max_by_key(|attempt| attempt.ended)?;
            let slow = match last.operation {
                Operation::Append { slow_ms, .. } => slow_ms * 1_000,
                _ => 0,
            };
            Some(Wait {
                client: thread.client,
                began,
                ended: last.ended,
                took: last.ended.saturating_sub(began).saturating_sub(slow),
                answered: matches!(last.outcome, Outcome::Answered { .. }),
                fault: cause(&history.faults, began, last.ended),
            })
        })
        .collect();
    waits.sort_unstable_by_key(|wait| (wait.began, wait.ended, wait.client));
    waits
}

/// The fault that something from `began` to `ended` belongs to, by its position.
#[must_use]
pub fn cause(faults: &[Fault], began: Micros, ended: Micros) -> Option<usize> {
    let within = |fault: &Fault| fault.began <= began && began <= fault.whole;
    let during = |fault: &Fault| began < fault.began && fault.began <= ended;
    let soon_after =
        |fault: &Fault| fault.began <= began && began <= fault.whole.saturating_add(MARGIN);
    faults
        .iter()
        .rposition(within)
        .or_else(|| faults.iter().position(during))
        .or_else(|| faults.iter().rposition(soon_after))
}

/// The longest wait of each client for each stretch of time that belongs to one fault, or lies
/// between two. The time between two faults is one stretch for each client.
#[must_use]
pub fn longest_by_stretch(waits: &[Wait], faults: &[Fault]) -> Vec<(Option<usize>, Wait)> {
    let mut longest: HashMap<(Option<usize>, usize, u32), Wait> = HashMap::new();
    for wait in waits {
        let before = match wait.fault {
            Some(_) => 0,
            None => faults.partition_point(|fault| fault.began <= wait.began),
        };
        let known = longest.entry((wait.fault, before, wait.client)).or_insert(*wait);
        if known.took < wait.took {
            *known = *wait;
        }
    }
    longest.into_iter().map(|((fault, ..), wait)| (fault, wait)).collect()
}

/// The share `per_cent` of sorted values, as the nearest one below.
#[must_use]
pub fn percentile(sorted: &[Micros], per_cent: usize) -> Micros {
    let at = (sorted.len() * per_cent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}
